"""Data that an earlier checkpoint has as well: where it lies there, for file systems that let two files share it."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from typing import Self

import numpy as np

from ..errors import CheckpointError
from ..storage.sources import LocalSource
from . import layout, reader

_log = logging.getLogger("braintools_ckpt")
#: So many bytes are compared at a time.
_PIECE = 1 << 20


class Unchanged:
    """The large blobs of an earlier checkpoint, by what they hold.

    Parameters
    ----------
    path : str
        The earlier checkpoint. If it is none, or not there any more, nothing is found.
    """

    def __init__(self, path: str) -> None:
        self._places: dict[tuple[int, ...], int] = {}
        self.source: LocalSource | None = None
        try:
            self.source = LocalSource(path)
            blobs = reader.read_blobs(self.source)
        except (CheckpointError, OSError):
            self.close()
            return
        if blobs.hash_block == layout.HASH_BLOCK:
            large = (blob for blob in blobs.raw_blobs() if blob[1] >= layout.PAGED_FROM)
            self._places = {(size, *hashes): at for at, size, hashes in large}

    def find(self, data: memoryview, hashes: Sequence[int]) -> tuple[int, int] | None:
        """Give a descriptor of the file and where the same bytes begin in it, or None.

        They are compared, so what has been damaged there is not the same.
        """
        at = self._places.get((len(data), *hashes))
        if at is None or self.source is None:
            return None
        buffer = bytearray(min(_PIECE, len(data)))
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            there = memoryview(buffer)[: len(piece)]
            try:
                self.source.read_into(at + start, there)
            except (CheckpointError, OSError):
                return None
            if not np.array_equal(np.frombuffer(there, np.uint8), np.frombuffer(piece, np.uint8)):
                return None
        return self.source.fileno(), at

    def refused(self) -> None:
        """Say that the file system does not share data, once for each place."""
        if self.source is not None:
            _say_refused(os.path.dirname(self.source.name))

    def close(self) -> None:
        """Close the file."""
        if self.source is not None:
            self.source.close()
        self.source = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@functools.cache
def _say_refused(directory: str) -> None:
    _log.warning(
        "What is unchanged is written again: no data can be shared with files in %s, as the file system does not do "
        "that (btrfs and XFS do), or is another one.",
        directory,
    )
