"""Data that an earlier checkpoint has as well, and that is not written again."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ..errors import CheckpointError
from ..storage.external import CheckpointSink
from ..storage.sinks import Sink
from ..storage.sources import LocalSource
from ..storage.spliced import SplicedSource
from . import layout, reader
from .external import describe

_log = logging.getLogger("braintools_ckpt")
#: So many bytes are compared at a time.
_PIECE = 1 << 20


@dataclass(frozen=True)
class Earlier(os.PathLike[str]):
    """A checkpoint that may have the same data; ``external`` says that files beside the new one may hold it."""

    path: str
    external: bool = False

    def __fspath__(self) -> str:
        return self.path


class Unchanged:
    """The large blobs of an earlier checkpoint, by what they hold.

    Parameters
    ----------
    earlier : Earlier or None
        If it is no checkpoint, or not there any more, nothing is shared.
    sink : Sink
        Where the new one is written to; only a `CheckpointSink` can share data.
    """

    def __init__(self, earlier: Earlier | None, sink: Sink) -> None:
        self._places: dict[tuple[int, ...], list[int]] = {}
        self._source: LocalSource | None = None
        self._clones = True
        if earlier is None or not isinstance(sink, CheckpointSink):
            return
        self._sink = sink
        self._external = sink.external if earlier.external else None
        self._asked_for_links = earlier.external
        try:
            self._source = LocalSource(earlier.path)
            blobs = reader.read_blobs(self._source)
        except (CheckpointError, OSError):
            self.close()
            return
        self._data = blobs.source
        if blobs.hash_block == layout.HASH_BLOCK:
            large = (blob for blob in blobs.raw_blobs() if blob[1] >= layout.PAGED_FROM)
            for at, size, hashes in large:
                self._places.setdefault((size, *hashes), []).append(at)

    @property
    def any(self) -> bool:
        """Whether there is anything that could be shared."""
        return bool(self._places)

    def share(self, data: memoryview, hashes: Sequence[int]) -> bool:
        """Append data to the sink without writing it, if the earlier checkpoint has the same; tell whether it has.

        The two are compared, so what has been damaged there is not the same.
        """
        places = self._places.get((len(data), *hashes))
        place = self._place(places[0], len(data)) if places and self._is_same(places[0], data) else None
        if places is None or place is None:
            return False
        source, there = place
        if self._clones:
            if there % layout.PAGE:  # files of an early version: written again, they are shared the next time
                return False
            whole = len(data) // layout.PAGE * layout.PAGE
            if self._sink.share(source.fileno(), there, whole):
                self._sink.write(data[whole:])
                return True
            self._clones = False
            self._check_links()
        if self._external is None:
            return False
        if source is self._source:
            self._external.add(self._sink.position, [data])
        else:
            self._external.keep(self._sink.position, len(data), source, there)
        self._sink.skip(len(data))
        places.pop(0)  # no two arrays are the same bytes
        return True

    def _is_same(self, at: int, data: memoryview) -> bool:
        buffer = bytearray(min(_PIECE, len(data)))
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            there = memoryview(buffer)[: len(piece)]
            try:
                self._data.read_into(at + start, there)
            except (CheckpointError, OSError):
                return False
            if not np.array_equal(np.frombuffer(there, np.uint8), np.frombuffer(piece, np.uint8)):
                return False
        return True

    def _place(self, at: int, size: int) -> tuple[LocalSource, int] | None:
        """Give the file in which a blob stands, and where."""
        if isinstance(self._data, SplicedSource):
            return self._data.place(at, size)
        return None if self._source is None else (self._source, at)

    def _check_links(self) -> None:
        """See whether links can do what blocks cannot; if not, say so, once for each directory."""
        if self._external is not None and not self._external.possible():
            self._external = None
        if self._external is None and self._source is not None:
            self._places = {}
            _say_refused(os.path.dirname(self._source.name), self._asked_for_links)

    def settle(self) -> list[list[Any]]:
        """Give what the index says of files beside the new checkpoint; after this, nothing can be shared."""
        if self._source is None or self._external is None:
            return []
        return describe(self._external.settle())

    def close(self) -> None:
        """Close the files."""
        if self._source is not None:
            self._source.close()
        self._source = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@functools.cache
def _say_refused(directory: str, asked_for_links: bool) -> None:
    _log.warning(
        "What is unchanged is written again: no data can be shared with files in %s, as the file system does not do "
        "that (btrfs and XFS do)%s, or is another one.",
        directory,
        " and has no hard links, or the name of the checkpoint is too long for further ones" if asked_for_links else "",
    )
