"""Data that stands in files beside a checkpoint: how the index says so, and how it is read."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import CheckpointNotFoundError, IncompleteCheckpointError, InvalidCheckpointPath, ReplacedError
from ..storage.external import Range, is_external_name
from ..storage.sources import LocalSource, Source
from ..storage.spliced import Splice, SplicedSource
from . import layout
from .blob_reader import column, corrupt

Array = np.ndarray[Any, Any]


def describe(files: list[tuple[str, list[Range]]]) -> list[list[Any]]:
    """Give what the index says of files beside a checkpoint."""
    return [[name, np.array(ranges, "<u8").tobytes()] for name, ranges in files]


def files_and_ranges(described: Any) -> dict[str, Array]:
    """Give what the index says: by name, a row for each range (where, how many bytes, where in that file)."""
    if type(described) is not list or not 0 < len(described) <= layout.MAX_EXTERNAL:
        raise ValueError("the files beside it are not some in a list")
    files = {}
    for name, ranges in described:
        if type(name) is not str or not is_external_name(name):
            raise ValueError(f"{name!r} is no name of a file beside it")
        files[name] = column(ranges, "<u8").reshape(-1, 3)
        if not len(files[name]):
            raise ValueError(f"nothing is in {name!r}")
    if len(files) != len(described):
        raise ValueError("a file beside it is named twice")
    return files


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
    ReplacedError
        If the checkpoint has been deleted or replaced meanwhile.
    ValueError, TypeError, KeyError
        If what is said is not right.
    """
    files = files_and_ranges(described)
    _check(files, column(blobs["blob_at"], "<u8"), column(blobs["blob_size"], "<u8"))
    if not isinstance(source, LocalSource):
        raise IncompleteCheckpointError(
            f"A part of the data of {source.name} stands in files beside it, such as {next(iter(files))!r}, and "
            "only a path leads there. Load it by its path, or have CheckpointManager.export make one file of it."
        )
    splices = []
    for name, ranges in files.items():
        other = _opened(source, name, int((ranges[:, 2] + ranges[:, 1]).max()))
        splices += [Splice(at, at + size, other, there) for at, size, there in ranges.tolist()]
    return SplicedSource(source, sorted(splices, key=lambda splice: splice.start))


def _check(files: dict[str, Array], blob_at: Array, blob_size: Array) -> None:
    """Check that each range lies inside of one blob, and that no byte is claimed twice, here or there."""
    at, size, _ = np.concatenate(list(files.values())).T
    blob = np.searchsorted(blob_at, at, "right") - 1
    inside = at - blob_at[blob]
    if np.any(blob < 0) or np.any(inside >= blob_size[blob]) or np.any(size > blob_size[blob] - inside):
        raise ValueError("data beside it is not that of blobs")
    if _overlap(at, size) or any(_overlap(there, size) for _, size, there in (ranges.T for ranges in files.values())):
        raise ValueError("data beside it belongs to several places")


def _overlap(starts: Array, sizes: Array) -> bool:
    """Tell whether any ranges have a byte in common, or have none, or end nowhere."""
    order = np.argsort(starts, kind="stable")
    ends = (starts + sizes)[order]
    return bool(np.any(ends <= starts[order]) or np.any(starts[order][1:] < ends[:-1]))


def _opened(source: LocalSource, name: str, end: int) -> LocalSource:
    """Open a file that must have so many bytes."""
    try:
        other = source.beside(name)
    except CheckpointNotFoundError:
        if source.is_current():
            raise IncompleteCheckpointError(
                f"Incomplete checkpoint {source.name}: a part of its data is in the file {name!r}, which is not beside "
                "it. Such a file belongs to its checkpoint, and has to be copied and moved along."
            ) from None
        raise ReplacedError(source.name, " (it was deleted or replaced while it was opened).") from None
    except InvalidCheckpointPath:
        raise corrupt(source, f"{name!r}, which should have a part of its data, is no regular file") from None
    if end > other.size:
        raise corrupt(source, f"the first {end} bytes of {name!r} belong to it, and that file has {other.size}")
    return other
