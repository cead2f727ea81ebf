"""From a Document to bytes: arrays are streamed from where they lie, and the index comes last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import xxhash

from ..document import ArraySpec, Document, LiveArrays, Value
from ..dtypes import check_size, check_text, describe, storage_dtype
from ..errors import SerializationError, format_array
from ..storage.sinks import Sink
from . import codec, layout
from .blob_writer import BlobWriter

Array = np.ndarray[Any, Any]
#: An array that has to be rearranged or converted passes through a buffer of this many bytes.
_STAGING = 1 << 22
#: Whether a large array is worth compressing is tried on this many pieces of it, of this many bytes each.
_SAMPLES, _SAMPLE = 8, 1 << 14
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
    assert isinstance(document.arrays, LiveArrays)
    _Writer(sink, document, document.arrays, compress).write()


class _Writer:
    """Writes one document. All that can be refused is refused when it is made, before the first byte."""

    def __init__(self, sink: Sink, document: Document, arrays: LiveArrays, compress: bool) -> None:
        self._sink = sink
        self._blobs = BlobWriter(sink)
        self._arrays = arrays
        self._compress = compress
        self._heading = {key: _packed(value) for key, value in _heading(document).items()}
        self._content = {"shared": _packed(document.shared), "structure": _packed(document.structure)}
        self._specs: dict[int, _Layout] = {}  # by the spec's id: equal specs are one object
        self._layouts = [self._layout(spec) for spec in arrays.specs]
        for index, how in enumerate(self._layouts):
            if how.text:
                _check_text(arrays.host(index))
        self._offsets = [0] * len(arrays.specs)

    def _layout(self, spec: ArraySpec) -> _Layout:
        how = self._specs.get(id(spec))
        if how is None:
            how = self._specs[id(spec)] = _Layout(len(self._specs), spec)
        return how

    def write(self) -> None:
        self._sink.write(layout.HEADER)
        try:
            self._write_arrays()
            self._blobs.finish()
        finally:
            self._blobs.close()
        index = self._index()
        start = self._sink.position
        trailer = layout.TRAILER.pack(
            layout.TRAILER_HEAD, start, len(index), xxhash.xxh3_64_intdigest(index), layout.MAGIC
        )
        self._sink.write(index, trailer)

    # Arrays.

    def _write_arrays(self) -> None:
        """Write large arrays as they come, and gather small ones; a pack is written when it is full."""
        arrays = self._arrays
        pack: list[bytes] = []
        members: list[int] = []
        size = 0
        for index, how in enumerate(self._layouts):
            if how.large:
                self._offsets[index] = self._write_large(arrays.host(index))
                continue
            data = arrays.host(index).tobytes() if how.plain else _small_bytes(arrays.host(index))
            padding = -size % how.alignment
            if padding:
                pack.append(bytes(padding))
                size += padding
            members.append(index)
            self._offsets[index] = size
            pack.append(data)
            size += len(data)
            if size >= layout.PACK_SIZE:
                self._write_pack(pack, members)
                pack, members, size = [], [], 0
        if members:
            self._write_pack(pack, members)

    def _write_pack(self, pack: list[bytes], members: list[int]) -> None:
        data = b"".join(pack)
        start = self._blobs.add([memoryview(data)], len(data), self._width(members) if self._compress else 0)
        for index in members:
            self._offsets[index] += start

    def _width(self, members: list[int]) -> int:
        """Give the item size of most bytes of a pack."""
        sizes: Counter[int] = Counter()
        for how, count in Counter(map(self._layouts.__getitem__, members)).items():
            sizes[how.width] += count * how.nbytes
        return sizes.most_common(1)[0][0]

    def _write_large(self, array: Array) -> int:
        stored = storage_dtype(array.dtype)
        width = codec.item_width(stored) if self._compress and _shrinks(array, stored) else 0
        return self._blobs.add(_pieces(array, stored), array.size * stored.itemsize, width)

    # Index.

    def _index(self) -> bytes:
        table = {
            "specs": [how.row for how in self._specs.values()],
            "spec": _column([how.number for how in self._layouts], "<u4"),
            "offset": _column(self._offsets, "<u8"),
            **self._blobs.columns(),
            "hash_block": layout.HASH_BLOCK,
        }
        features = {"features": _packed([layout.ZSTD])} if self._blobs.compressed else {}
        parts = {**self._heading, **features, "arrays": _packed(table), **self._content}
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


class _Layout:
    """How the arrays of one spec are written."""

    def __init__(self, number: int, spec: ArraySpec) -> None:
        _check_size(spec)
        stored = storage_dtype(spec.dtype)
        self.number = number
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


def _column(numbers: list[int], dtype: str) -> bytes:
    return np.array(numbers, dtype=dtype).tobytes()
