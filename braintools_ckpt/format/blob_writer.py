"""Blobs on their way into a file: raw ones from where they lie, compressed ones by way of several threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import xxhash

from ..storage.sinks import Sink
from . import codec, layout
from .pipeline import Pipeline
from .unchanged import Unchanged

#: Handing on a smaller block takes as long as hashing it.
_HASHED_ASIDE = 1 << 21


class BlobWriter:
    """Writes blobs one after the other, and keeps their table."""

    def __init__(self, sink: Sink, unchanged: Unchanged) -> None:
        self._sink = sink
        self._unchanged = unchanged
        self._pipeline: Pipeline[_Encoded] = Pipeline(self._write_encoded)
        self._total = 0
        self._at: list[int] = []
        self._size: list[int] = []
        self._hashes: list[int] = []
        self._hashing: Pipeline[int] = Pipeline(self._hashes.append, threads=1)
        self._raw_size: list[int] = []
        self._width: list[int] = []

    def add(self, pieces: Iterable[memoryview], size: int, width: int = 0) -> int:
        """Append data, and give where it begins in the concatenation.

        Parameters
        ----------
        pieces : iterable of memoryview
            The data; it must not change before `finish`.
        size : int
            How many bytes the pieces have together.
        width : int
            Compress it, as items of this size; 0 leaves it as it is.
        """
        start = self._total
        self._total += size
        if width:
            self._hashing.drain()
            blocks = _Blocks(partial(self._compress, width), layout.FRAME_SIZE)
            for piece in pieces:
                blocks.add(piece)
            blocks.end()
        else:
            self._pipeline.drain()
            self._write_raw(pieces, size)
        return start

    def finish(self) -> None:
        """Write what is still under way."""
        self._pipeline.drain()
        self._hashing.drain()

    def close(self) -> None:
        """End the threads; what is still under way is not written."""
        self._pipeline.close()
        self._hashing.close()

    def columns(self) -> dict[str, bytes]:
        """Give the table of the blobs."""
        table = {"blob_at": self._at, "blob_size": self._size, "hashes": self._hashes}
        columns = {key: _column(numbers, "<u8") for key, numbers in table.items()}
        if self.compressed:
            columns |= {"raw_size": _column(self._raw_size, "<u8"), "width": _column(self._width, "<u1")}
        return columns

    @property
    def compressed(self) -> bool:
        """Whether any blob is compressed."""
        return any(self._width)

    # Raw.

    def _write_raw(self, pieces: Iterable[memoryview], left: int) -> None:
        room = 0
        blocks = _Blocks(self._write_block, layout.HASH_BLOCK)
        for piece in pieces:
            while piece:
                if not room:
                    room = min(left, layout.MAX_BLOB)
                    left -= room
                    self._begin(room, room, 0)
                    if self._unchanged.any and len(piece) >= room >= layout.PAGED_FROM and self._share(piece[:room]):
                        piece, room = piece[room:], 0
                        continue
                step = min(len(piece), room)
                blocks.add(piece[:step])
                piece = piece[step:]
                room -= step
                if not room:
                    blocks.end()

    def _begin(self, size: int, raw_size: int, width: int) -> None:
        head_at = self._sink.position
        alignment = layout.PAGE if size >= layout.PAGED_FROM else layout.ALIGNMENT
        padding = -(head_at + layout.BLOB_HEAD.size) % alignment
        self._sink.write(layout.NIL * padding + layout.BLOB_HEAD.pack(layout.BIN32, size))
        self._at.append(head_at + padding + layout.BLOB_HEAD.size)
        self._size.append(size)
        self._raw_size.append(raw_size)
        self._width.append(width)

    def _write_block(self, *parts: memoryview) -> None:
        """Hash and write what makes one block; hashing a large one is another thread's, while this one writes."""
        if sum(map(len, parts)) >= _HASHED_ASIDE:
            self._hashing.add(partial(_hash, parts))
        else:
            self._hashing.drain()
            self._hashes.append(_hash(parts))
        self._sink.write(*parts)

    def _share(self, data: memoryview) -> bool:
        """Take a whole blob from an earlier file that has the same; tell whether that could be done."""
        self._hashing.drain()
        blocks = (data[start : start + layout.HASH_BLOCK] for start in range(0, len(data), layout.HASH_BLOCK))
        hashes = [_hash((block,)) for block in blocks]
        shared = self._unchanged.share(data, hashes)
        if shared:
            self._hashes += hashes
        return shared

    # Compressed.

    def _compress(self, width: int, *parts: memoryview) -> None:
        self._pipeline.add(partial(_Encoded, parts, width))

    def _write_encoded(self, blob: _Encoded) -> None:
        self._begin(len(blob.data), blob.raw_size, blob.width)
        self._hashes.append(blob.hash)
        self._sink.write(blob.data)


def _hash(parts: tuple[memoryview, ...]) -> int:
    hasher = xxhash.xxh3_64()
    for part in parts:
        hasher.update(part)
    return hasher.intdigest()


class _Encoded:
    """What becomes of a block: a frame, or itself where that is not worth it."""

    def __init__(self, parts: tuple[memoryview, ...], width: int) -> None:
        raw = parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
        frame = codec.compress(np.frombuffer(raw, np.uint8), width)
        self.raw_size = len(raw)
        self.width = 0 if frame is None else width
        self.data = raw if frame is None else memoryview(frame)
        self.hash = xxhash.xxh3_64_intdigest(self.data)


class _Blocks:
    """Cuts a stream of pieces into blocks of one size, and the rest."""

    def __init__(self, write: Callable[..., Any], size: int) -> None:
        self._write = write
        self._most = size
        self._parts: list[memoryview] = []
        self._size = 0

    def add(self, piece: memoryview) -> None:
        while piece:
            step = min(len(piece), self._most - self._size)
            self._parts.append(piece[:step])
            self._size += step
            piece = piece[step:]
            if self._size == self._most:
                self.end()

    def end(self) -> None:
        if self._parts:
            self._write(*self._parts)
            self._parts, self._size = [], 0


def _column(numbers: list[int], dtype: str) -> bytes:
    return np.array(numbers, dtype=dtype).tobytes()
