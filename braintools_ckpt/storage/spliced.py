"""A file of which some bytes stand in other files."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import NamedTuple

from .sources import BatchSource, LocalSource


class Splice(NamedTuple):
    """Bytes that stand elsewhere: where they begin and end, and the other file, and where they begin in it."""

    start: int
    stop: int
    source: LocalSource
    there: int


class SplicedSource(BatchSource):
    """Reads a file as if all of its bytes stood in it.

    Parameters
    ----------
    base : LocalSource
        The file.
    splices : iterable of Splice
        The bytes that stand elsewhere: ranges in order, none of which overlap.
    """

    def __init__(self, base: LocalSource, splices: Iterable[Splice]) -> None:
        super().__init__(base.name, base.size)
        self.base = base
        self._pieces: list[Splice] = []
        at = 0
        for splice in (*splices, Splice(base.size, base.size, base, base.size)):
            if at < splice.start:
                self._pieces.append(Splice(at, splice.start, base, at))
            self._pieces.append(splice)
            at = splice.stop
        self._starts = [piece.start for piece in self._pieces]

    def place(self, offset: int, size: int) -> tuple[LocalSource, int] | None:
        """Give the file in which a range stands, and where; None if it stands in several."""
        piece = self._piece(offset)
        return (piece.source, piece.there + offset - piece.start) if offset + size <= piece.stop else None

    def _piece(self, offset: int) -> Splice:
        return self._pieces[bisect_right(self._starts, offset) - 1]

    def read_into(self, offset: int, *buffers: memoryview) -> None:
        """Fill all buffers, in order, with the bytes from ``offset`` on."""
        self._check_range(offset, sum(buffer.nbytes for buffer in buffers))
        for buffer in buffers:
            left = buffer
            while left:
                piece = self._piece(offset)
                step = min(len(left), piece.stop - offset)
                piece.source.read_into(piece.there + offset - piece.start, left[:step])
                offset += step
                left = left[step:]

    def mapped(self) -> Callable[[int, int], memoryview]:
        """Map all files; give what gives views of them. What stands in several of them is copied."""
        views = {source: source.map() for source in {piece.source for piece in self._pieces}}

        def view(offset: int, size: int) -> memoryview:
            place = self.place(offset, size)
            if place is None:
                data = memoryview(bytearray(size))
                self.read_into(offset, data)
                return data
            source, at = place
            return views[source][at : at + size]

        return view
