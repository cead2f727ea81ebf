"""From a Document to bytes: arrays are streamed from where they lie, and the index comes last."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import xxhash

from ..document import ArraySpec, Document, LiveArrays, Value
from ..dtypes import check_growth, check_size, check_text, describe, storage_dtype
from ..errors import SerializationError, format_array
from ..storage.sinks import Sink
from . import codec, layout
from .blob_writer import BlobWriter
from .unchanged import Earlier, Unchanged

Array = np.ndarray[Any, Any]
#: An array that has to be rearranged or converted passes through a buffer of this many bytes.
_STAGING = 1 << 22
#: Whether a large array is worth compressing is tried on this many pieces of it, of this many bytes each.
_SAMPLES, _SAMPLE = 8, 1 << 14
#: In fewer arrays of one spec in a row there is nothing to gain by taking them together.
_FEW = 8
#: Bytes of an 80-bit float that hold something.
_LONG_DOUBLE = 10


def write(document: Document, sink: Sink, *, compress: bool = False) -> None:
    """Write a document as a file of format version 1.

    Parameters
    ----------
    document : Document
        With live arrays.
    sink : Sink
        Where the bytes go; it must stand at its beginning.
    compress : bool
        Compress what gets smaller by it, with zstd.

    Raises
    ------
    SerializationError
        If the document is one that no reader takes; nothing was written.
    """
    Writer(document, compress=compress).write(sink)


def write_end(sink: Sink, index: bytes) -> None:
    """Write the index, and the trailer after it."""
    digest = xxhash.xxh3_64_intdigest(index)
    trailer = layout.TRAILER.pack(layout.TRAILER_HEAD, sink.position, len(index), digest, layout.MAGIC)
    sink.write(index, trailer)


class Writer:
    """Writes one document. All that can be refused is refused when it is made, before the first byte.

    The structure is packed then, too, so that the document need not be kept.
    """

    def __init__(self, document: Document, *, compress: bool = False, earlier: Earlier | None = None) -> None:
        arrays = document.arrays
        assert isinstance(arrays, LiveArrays)
        self._arrays = arrays
        self._compress = compress
        self._earlier = earlier
        self._heading = {key: _packed(value) for key, value in _heading(document).items()}
        self._content = {"shared": _packed(document.shared), "structure": _packed(document.structure)}
        # Equal specs are one object; they are numbered as they come.
        distinct = {id(spec): spec for spec in arrays.specs}
        self._layouts = list(map(_Layout, distinct.values()))
        numbers = dict(zip(distinct, range(len(distinct)), strict=True))
        self._numbers = np.array([numbers[id(spec)] for spec in arrays.specs], np.uint32)
        for index in np.flatnonzero(np.array([how.text for how in self._layouts], np.bool_)[self._numbers]):
            _check_text(arrays.host(int(index)))
        self._offsets = np.zeros(len(arrays.specs), np.uint64)
        counts = np.bincount(self._numbers, minlength=len(distinct)).tolist()
        in_memory = sum(spec.nbytes * count for spec, count in zip(distinct.values(), counts, strict=True))
        _check_growth(in_memory, self.nbytes)

    @property
    def nbytes(self) -> int:
        """Number of bytes of the arrays."""
        return int(np.array([how.nbytes for how in self._layouts], np.uint64)[self._numbers].sum())

    def write(self, sink: Sink) -> None:
        """Write the file."""
        sink.write(layout.HEADER)
        with Unchanged(self._earlier, sink) as unchanged:
            self._blobs = BlobWriter(sink, unchanged)
            try:
                self._write_arrays()
                self._blobs.finish()
            finally:
                self._blobs.close()
            external = unchanged.settle()
        write_end(sink, self._index(external))

    # Arrays.

    def _write_arrays(self) -> None:
        """Write large arrays as they come, and gather small ones; a pack is written when it is full."""
        pack = _Pack()
        for how, first, stop in self._runs():
            if how.large:
                for index in range(first, stop):
                    self._offsets[index] = self._write_large(self._arrays.host(index))
                continue
            while first < stop:
                first = self._gather(pack, how, first, stop)
                if pack.size >= layout.PACK_SIZE:
                    self._write_pack(pack)
                    pack = _Pack()
        self._write_pack(pack)

    def _runs(self) -> Iterator[tuple[_Layout, int, int]]:
        """Give the ranges of arrays that have one spec."""
        changes = np.flatnonzero(np.diff(self._numbers)) + 1
        bounds = [0, *changes.tolist(), len(self._numbers)] if len(self._numbers) else [0]
        numbers = self._numbers[bounds[:-1]].tolist()
        for number, (first, stop) in zip(numbers, itertools.pairwise(bounds), strict=True):
            yield self._layouts[number], first, stop

    def _gather(self, pack: _Pack, how: _Layout, first: int, stop: int) -> int:
        """Add arrays to a pack until it is full; give the index of the next."""
        pack.align(how.alignment)
        step = how.nbytes + -how.nbytes % how.alignment
        if stop - first < _FEW or step != how.nbytes:
            self._offsets[first] = pack.size
            stop = first + 1
        else:
            room = -((pack.size - layout.PACK_SIZE) // step) if step else stop - first
            stop = min(stop, first + room)
            self._offsets[first:stop] = pack.size + step * np.arange(stop - first, dtype=np.uint64)
        host = self._arrays.host
        if how.plain:
            pack.parts += [host(index).tobytes() for index in range(first, stop)]
        else:
            pack.parts += [_small_bytes(host(index)) for index in range(first, stop)]
        pack.add(first, stop, how.nbytes)
        return stop

    def _write_pack(self, pack: _Pack) -> None:
        data = b"".join(pack.parts)
        width = self._width(pack) if self._compress and data else 0
        start = self._blobs.add([memoryview(data)], len(data), width)
        for first, stop in pack.members:
            self._offsets[first:stop] += np.uint64(start)

    def _width(self, pack: _Pack) -> int:
        """Give the item size of most bytes of a pack."""
        numbers = np.concatenate([self._numbers[first:stop] for first, stop in pack.members])
        widths = np.array([how.width for how in self._layouts])[numbers]
        nbytes = np.array([how.nbytes for how in self._layouts])[numbers]
        return int(np.bincount(widths, nbytes).argmax())

    def _write_large(self, array: Array) -> int:
        stored = storage_dtype(array.dtype)
        width = codec.item_width(stored) if self._compress and _shrinks(array, stored) else 0
        return self._blobs.add(_pieces(array, stored), array.size * stored.itemsize, width)

    # Index.

    def _index(self, external: list[list[Any]]) -> bytes:
        table = {
            "specs": [how.row for how in self._layouts],
            "spec": _column(self._numbers, "<u4"),
            "offset": _column(self._offsets, "<u8"),
            **self._blobs.columns(),
            "hash_block": layout.HASH_BLOCK,
        }
        features = [layout.ZSTD] * self._blobs.compressed + [layout.EXTERNAL] * bool(external)
        special = {"features": _packed(features)} if features else {}
        if external:
            special["external"] = _packed(external)
        parts = {**self._heading, **special, "arrays": _packed(table), **self._content}
        head = msgpack.Packer().pack_map_header(len(parts))
        return b"".join([head, *(part for key, value in parts.items() for part in (_packed(key), value))])


def _heading(document: Document) -> dict[str, Value]:
    from .. import __version__

    return {"format": layout.VERSION, "library": __version__, "metadata": document.metadata}


def _packed(value: Value) -> bytes:
    try:
        packed: bytes = msgpack.packb(value, use_bin_type=True)
    except (ValueError, OverflowError) as error:
        raise SerializationError(
            f"The structure of the tree cannot be packed: {str(error).rstrip('.')}. It may nest deeper than the 1024 "
            "levels that MessagePack libraries read."
        ) from error
    return packed


def _check_text(array: Array) -> None:
    try:
        check_text(array)
    except ValueError as error:
        raise SerializationError(
            f"An array {format_array(array.dtype, array.shape)} holds {error}. It was made of bytes that are no text: "
            "save it as what it is, such as array.view(numpy.uint8)."
        ) from error


class _Pack:
    """The bytes of small arrays that will be one blob, and whose they are."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.members: list[tuple[int, int]] = []
        self.size = 0

    def align(self, alignment: int) -> None:
        padding = -self.size % alignment
        if padding:
            self.parts.append(bytes(padding))
            self.size += padding

    def add(self, first: int, stop: int, nbytes: int) -> None:
        """Note whose parts came last, and how many bytes each has."""
        self.size += nbytes * (stop - first)
        if self.members and self.members[-1][1] == first:
            first = self.members.pop()[0]
        self.members.append((first, stop))


class _Layout:
    """How the arrays of one spec are written."""

    def __init__(self, spec: ArraySpec) -> None:
        _check_size(spec)
        stored = storage_dtype(spec.dtype)
        self.row = [spec.kind, describe(spec.dtype), list(spec.shape)]
        self.nbytes = spec.size * stored.itemsize
        self.large = self.nbytes >= layout.PACKED_BELOW
        self.plain = stored == spec.dtype and not _has_padding(stored)
        self.text = spec.dtype.kind == "U" or spec.dtype.names is not None
        self.alignment = _alignment(stored)
        self.width = codec.item_width(stored)


def _check_size(spec: ArraySpec) -> None:
    try:
        check_size(spec.dtype, spec.shape)
    except ValueError as error:
        raise SerializationError(
            f"Cannot save an array {format_array(spec.dtype, spec.shape)}: it would take {error}, and no reader would "
            "accept the file. Remove the padding first: numpy.lib.recfunctions.repack_fields(array)."
        ) from error


def _check_growth(nbytes: int, stored: int) -> None:
    try:
        check_growth(nbytes, stored)
    except ValueError as error:
        raise SerializationError(
            f"Cannot save the arrays of this tree: they would take {error}, and no reader would accept the file. "
            "Remove the padding first: numpy.lib.recfunctions.repack_fields(array)."
        ) from error


def _pieces(array: Array, stored: np.dtype[Any]) -> Iterator[memoryview]:
    """Give the bytes of an array in C order and in the dtype of the file, from where they lie if they lie so."""
    if array.dtype == stored and array.flags.c_contiguous and not _has_padding(stored):
        yield array.reshape(-1).view(np.uint8).data
        return
    rows = max(1, _STAGING // max(1, stored.itemsize))
    for start in range(0, array.size, rows):
        yield _part(array, stored, start, rows).data


def _part(array: Array, stored: np.dtype[Any], start: int, count: int) -> Array:
    flat = array.reshape(-1) if array.flags.c_contiguous else array.flat
    part = np.ascontiguousarray(_converted(np.asarray(flat[start : start + count]), stored))
    return part.view(np.uint8)


def _shrinks(array: Array, stored: np.dtype[Any]) -> bool:
    """Tell by some of its bytes whether a large array is worth compressing; of one block that will show."""
    if array.size * stored.itemsize <= layout.FRAME_SIZE:
        return True
    count = -(-_SAMPLE // stored.itemsize)
    starts = [i * (array.size - count) // (_SAMPLES - 1) for i in range(_SAMPLES)]
    width = codec.item_width(stored)
    sample = np.concatenate([_part(array, stored, start, count)[: _SAMPLE // width * width] for start in starts])
    return codec.compress(sample, width) is not None


def _converted(array: Array, stored: np.dtype[Any]) -> Array:
    array = array.astype(stored, copy=False)
    if _has_padding(stored):
        array = np.array(array, order="C")
        _clear_padding(array)
    return array


def _small_bytes(array: Array) -> bytes:
    return _converted(array, storage_dtype(array.dtype)).tobytes()


def _has_padding(dtype: np.dtype[Any]) -> bool:
    """Tell whether elements, or fields of them, are 80-bit floats: these have bytes that hold nothing."""
    if dtype.subdtype is not None:
        return _has_padding(dtype.subdtype[0])
    if dtype.fields is not None:
        return any(_has_padding(field[0]) for field in dtype.fields.values())
    return dtype.kind in "fc" and dtype.itemsize > _LONG_DOUBLE and np.finfo(dtype).nmant == 63


def _clear_padding(array: Array) -> None:
    """Clear the bytes of 80-bit floats that hold nothing: they would be whatever memory held before."""
    dtype = array.dtype
    for name in dtype.names or ():
        _clear_padding(array[name])
    if dtype.names is None and _has_padding(dtype):
        size = dtype.itemsize // (2 if dtype.kind == "c" else 1)
        starts = range(_LONG_DOUBLE, dtype.itemsize, size)
        gaps = np.dtype(
            {
                "names": [f"{start}" for start in starts],
                "formats": [f"V{size - _LONG_DOUBLE}"] * len(starts),
                "offsets": list(starts),
                "itemsize": dtype.itemsize,
            }
        )
        array.view(gaps)[...] = np.zeros((), gaps)


def _alignment(dtype: np.dtype[Any]) -> int:
    size = dtype.itemsize
    if size & (size - 1) or not size:
        return layout.PACK_ALIGNMENT
    return min(size, layout.PACK_ALIGNMENT)


def _column(numbers: Any, dtype: str) -> bytes:
    return np.asarray(numbers, dtype=dtype).tobytes()
