"""Data that stands in files beside a checkpoint: how the index says so, and how it is read."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import numpy as np

from ..errors import CheckpointNotFoundError, IncompleteCheckpointError, InvalidCheckpointPath
from ..storage.external import EXTERNAL_NAME, Range
from ..storage.sources import LocalSource, Source
from ..storage.spliced import Splice, SplicedSource
from . import layout
from .blob_reader import column, corrupt


def describe(files: list[tuple[str, list[Range]]]) -> list[list[Any]]:
    """Give what the index says of files beside a checkpoint."""
    return [[name, np.array(ranges, "<u8").tobytes()] for name, ranges in files]


def open_external(source: Source, described: Any, blobs: dict[str, Any]) -> Source:
    """Open the files beside a checkpoint; give what reads all of it.

    Parameters
    ----------
    source : Source
        The checkpoint.
    described : list
        What its index says of the files.
    blobs : dict
        The array table, which has the places of blobs.

    Raises
    ------
    IncompleteCheckpointError
        If a file is missing.
    CorruptCheckpointError
        If one is shorter than it should be, or no file.
    CheckpointNotFoundError
        If the checkpoint has been deleted meanwhile.
    ValueError, TypeError, KeyError
        If what is said is not right.
    """
    files = files_and_ranges(described)
    if not isinstance(source, LocalSource):
        raise IncompleteCheckpointError(
            f"A part of the data of {source.name} stands in files beside it, such as {next(iter(files))}, and only a "
            "path leads there. Load it by its path."
        )
    splices = [splice for name, ranges in files.items() for splice in _opened(source, name, ranges)]
    splices.sort(key=itemgetter(0))
    _check_places(splices, blobs)
    return SplicedSource(source, splices)


def files_and_ranges(described: Any) -> dict[str, list[list[int]]]:
    """Give what the index says of files beside a checkpoint: ranges by name."""
    if type(described) is not list or not 0 < len(described) <= layout.MAX_EXTERNAL:
        raise ValueError("the files beside it are not some in a list")
    files = {}
    for name, ranges in described:
        if type(name) is not str or not EXTERNAL_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a file beside it")
        files[name] = column(ranges, "<u8").reshape(-1, 3).tolist()
    if len(files) != len(described):
        raise ValueError("a file beside it is named twice")
    return files


def _opened(source: LocalSource, name: str, ranges: list[list[int]]) -> list[Splice]:
    try:
        other = source.beside(name)
    except CheckpointNotFoundError:
        if source.is_current():
            raise IncompleteCheckpointError(
                f"Incomplete checkpoint {source.name}: a part of its data is in the file {name}, which is not beside "
                "it. Such a file belongs to its checkpoint, and has to be copied and moved along."
            ) from None
        raise
    except InvalidCheckpointPath:
        raise corrupt(source, f"{name}, which should have a part of its data, is no regular file") from None
    end = 0
    for _, size, there in sorted(ranges, key=itemgetter(2)):
        if not size or there < end:
            raise ValueError("data beside it belongs to several blobs, or there is none")
        end = there + size
    if end > other.size:
        raise corrupt(source, f"the first {end} bytes of {name} belong to it, and that file has {other.size}")
    return [Splice(at, at + size, other, there) for at, size, there in ranges]


def _check_places(splices: list[Splice], blobs: dict[str, Any]) -> None:
    """Check that ranges lie inside of blobs, and claim no byte twice."""
    starts = np.array([splice.start for splice in splices], np.uint64)
    stops = np.array([splice.stop for splice in splices], np.uint64)
    at, size = column(blobs["blob_at"], "<u8"), column(blobs["blob_size"], "<u8")
    blob = np.searchsorted(at, starts, "right") - 1
    if np.any(blob < 0) or np.any(stops > (at + size)[blob]) or np.any(starts[1:] < stops[:-1]):
        raise ValueError("data beside it is not that of blobs")
