"""Blobs of a file: read by their place in the concatenation, checked, and decompressed where they are compressed."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import xxhash

from ..errors import CorruptCheckpointError
from ..storage.sources import Source
from . import codec, layout

Array = np.ndarray[Any, Any]
#: So many bytes are read at a time, and are hashed while they are in the processor's cache.
_PIECE = 1 << 18


def corrupt(source: Source, what: str) -> CorruptCheckpointError:
    """Make the error that says what is wrong with a file."""
    return CorruptCheckpointError(
        f"Corrupt checkpoint {source.name}: {what}. The file was damaged or cut short after it was written; use "
        "another copy."
    )


class BlobReader:
    """The blobs of a file.

    They are read in *blocks*: a compressed blob is one block, the others are cut as they were for their hashes.

    Parameters
    ----------
    source : Source
        The file.
    table : dict
        The array table, as it stands in the index.
    end : int
        Where the index begins.
    compressed : bool
        Whether the file has the feature ``ZSTD``.
    verify : bool
        Check what is read against its hashes.

    Raises
    ------
    ValueError, TypeError, KeyError
        If the table is not right.
    """

    def __init__(self, source: Source, table: dict[str, Any], end: int, *, compressed: bool, verify: bool) -> None:
        self.source = source
        self.verify_reads = verify
        #: Says which arrays lie in a range of the concatenation, for messages.
        self.whose: Callable[[int, int], str] = lambda low, high: ""
        self.at: list[int] = column(table["blob_at"], "<u8").tolist()
        self._size: list[int] = column(table["blob_size"], "<u8").tolist()
        self._hashes: list[int] = column(table["hashes"], "<u8").tolist()
        self.hash_block: int = table["hash_block"]
        self.raw_size: list[int] = column(table["raw_size"], "<u8").tolist() if compressed else self._size
        self._width: list[int] = column(table["width"], "<u1").tolist() if compressed else [0] * len(self.at)
        self._check_places(end)
        self._check_raw_sizes()
        #: Where each blob begins in the concatenation, and the end of the last one.
        self.starts: list[int] = [0, *np.cumsum(self.raw_size, dtype=np.uint64).tolist()]

    def _check_places(self, end: int) -> None:
        """Check that blobs follow each other with nothing but padding between."""
        if type(self.hash_block) is not int or self.hash_block < 1 or len(self.at) != len(self._size):
            raise ValueError("the table of blobs is not consistent")
        self._first_hash = [0]
        at = layout.HEADER_SIZE
        for start, size in zip(self.at, self._size, strict=True):
            gap = start - at - layout.BLOB_HEAD.size
            if not 0 <= gap < layout.PAGE or start % layout.ALIGNMENT or not 0 < size < 1 << 32:
                raise ValueError("a blob is not where it should be")
            at = start + size
            self._first_hash.append(self._first_hash[-1] + -(-size // self.hash_block))
        if at != end or self._first_hash[-1] != len(self._hashes):
            raise ValueError("the blobs do not fill the file")

    def _check_raw_sizes(self) -> None:
        if not len(self._size) == len(self.raw_size) == len(self._width):
            raise ValueError("the columns of the blobs differ in length")
        for size, raw_size, width in zip(self._size, self.raw_size, self._width, strict=True):
            if raw_size != size if not width else not size < raw_size <= layout.MAX_FRAME:
                raise ValueError(f"a blob of {size} bytes cannot stand for {raw_size} bytes (width {width})")

    def raw_blobs(self) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        """Give place, size and hashes of each blob that is not compressed."""
        for blob, (at, size) in enumerate(zip(self.at, self._size, strict=True)):
            if not self._width[blob]:
                yield at, size, tuple(self._hashes[self._first_hash[blob] : self._first_hash[blob + 1]])

    @property
    def any_compressed(self) -> bool:
        """Whether any blob is compressed."""
        return any(self._width)

    def compressed(self, first: int, last: int) -> bool:
        """Tell whether one of the blobs from first to last is compressed."""
        return any(self._width[first : last + 1])

    def compressed_span(self, offset: int, size: int) -> bool:
        """Tell whether bytes of a part of the concatenation are compressed."""
        return self.compressed(bisect_right(self.starts, offset) - 1, bisect_left(self.starts, offset + size) - 1)

    def block_size(self, blob: int) -> int:
        """Give the size of the blocks of a blob, in bytes of the concatenation."""
        return self.raw_size[blob] if self._width[blob] else self.hash_block

    def read_span(self, offset: int, out: memoryview) -> None:
        """Fill ``out`` from the concatenation, reading only the blocks that it touches."""
        blob = bisect_right(self.starts, offset) - 1
        while out:
            inside = offset - self.starts[blob]
            step = min(len(out), self.raw_size[blob] - inside)
            size = self.block_size(blob)
            for block in range(inside // size, (inside + step - 1) // size + 1):
                low = max(inside, block * size)
                high = min(inside + step, (block + 1) * size)
                self.read_block(blob, block, low, out[low - inside : high - inside])
            out = out[step:]
            offset += step
            blob += 1

    def read_block(self, blob: int, block: int, low: int, out: memoryview) -> None:
        """Fill ``out`` with the bytes of one block from ``low`` on, which counts from the start of the blob."""
        start = block * self.block_size(blob)
        size = min(self.block_size(blob), self.raw_size[blob] - start)
        if len(out) == size or not (self.verify_reads or self._width[blob]):
            self._read_directly(blob, block, low, out)
            return
        whole = np.empty(size, np.uint8).data
        self._read_directly(blob, block, start, whole)
        out[:] = whole[low - start : low - start + len(out)]

    def _read_directly(self, blob: int, block: int, low: int, out: memoryview) -> None:
        if self._width[blob]:
            self._decompress(blob, out)
        else:
            self._read_hashing(blob, block, low, out)

    def _read_hashing(self, blob: int, block: int, low: int, out: memoryview) -> None:
        """Read a block piece by piece, and hash each while the processor has it in its cache."""
        if not self.verify_reads:
            self.source.read_into(self.at[blob] + low, out)
            return
        hasher = xxhash.xxh3_64()
        for start in range(0, len(out), _PIECE):
            piece = out[start : start + _PIECE]
            self.source.read_into(self.at[blob] + low + start, piece)
            hasher.update(piece)
        self._compare(blob, block, hasher.intdigest())

    def _decompress(self, blob: int, out: memoryview) -> None:
        frame = np.empty(self._size[blob], np.uint8)
        self.source.read_into(self.at[blob], frame.data)
        for block, start in enumerate(range(0, len(frame), self.hash_block)):
            self._check(blob, block, frame[start : start + self.hash_block].data)
        try:
            codec.decompress(frame, self._width[blob], np.frombuffer(out, np.uint8))
        except ValueError as error:
            raise corrupt(
                self.source,
                f"the data at byte {self.at[blob]} cannot be decompressed ({error}){self._whose(blob)}",
            ) from error

    def _check(self, blob: int, block: int, data: memoryview) -> None:
        self._compare(blob, block, xxhash.xxh3_64_intdigest(data) if self.verify_reads else 0)

    def _compare(self, blob: int, block: int, digest: int) -> None:
        if self.verify_reads and digest != self._hashes[self._first_hash[blob] + block]:
            at = self.at[blob] + block * self.hash_block
            raise corrupt(self.source, f"the checksum of the data at byte {at} does not match{self._whose(blob)}")

    def _whose(self, blob: int) -> str:
        return self.whose(self.starts[blob], self.starts[blob + 1])

    def check_gap(self, blob: int) -> None:
        """Check the padding and the head before a blob: they must be what they must be."""
        before = self.at[blob - 1] + self._size[blob - 1] if blob else layout.HEADER_SIZE
        gap = self.source.read(before, self.at[blob] - before)
        head = layout.BLOB_HEAD.pack(layout.BIN32, self._size[blob])
        if gap != layout.NIL * (len(gap) - len(head)) + head:
            raise corrupt(self.source, f"the bytes before the data at byte {self.at[blob]} are not padding")

    def verify(self) -> None:
        """Check every byte as it stands in the file, gaps included, and that what is compressed can be decompressed.

        Raises
        ------
        CorruptCheckpointError
            At the first block that is not as it was written.
        MissingLibraryError
            If something is compressed and zstandard is not installed.
        """
        before, self.verify_reads = self.verify_reads, True
        buffer = np.empty(min(self.hash_block, max(self._size, default=0)), np.uint8).data
        try:
            for blob, size in enumerate(self._size):
                self.check_gap(blob)
                if self._width[blob]:
                    self._decompress(blob, np.empty(self.raw_size[blob], np.uint8).data)
                    continue
                for block, start in enumerate(range(0, size, self.hash_block)):
                    data = buffer[: min(self.hash_block, size - start)]
                    self.source.read_into(self.at[blob] + start, data)
                    self._check(blob, block, data)
        finally:
            self.verify_reads = before


def column(data: Any, dtype: str) -> Array:
    """Give a column of the array table as numbers."""
    if type(data) is not bytes:
        raise TypeError("a column of the array table is not bytes")
    return np.frombuffer(data, dtype)
