"""Files of ``braintools.file`` and ``flax.serialization``: one MessagePack object, read and written.

The format, which flax made and braintools took over::

    state  := nil | bool | int | float | str | bin | [state, ...] | {key: state, ...} | ext
    ext 1  := an array          the MessagePack object [shape, dtype.name, the bytes in C order]
    ext 2  := a complex number  the MessagePack object [real, imag]
    ext 3  := a numpy scalar    as an array of no dimensions
    split  := {"__msgpack_chunked_array__": True, "shape": {"0": n, ...}, "chunks": {"0": ext 1, ...}}
              an array of more than MAX_CHUNK_SIZE bytes, in flat pieces

Both libraries write the bytes as they lie in memory and a dtype name without byte order, so the data is
little-endian wherever such files are made, and an array that was big-endian was damaged when it was saved.
They also write string and structured arrays under names (``str64``, ``bytes16``, ``void96``) that they cannot
read: here these are read, structured elements as raw bytes since the file does not name their fields.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeAlias, cast

import msgpack
import numpy as np

from ..document import ARRAY, ITEMS, LEAF, LIST, ArraySpec, Document, LiveArrays, Value
from ..dtypes import MAX_NDIM, ML_DTYPES, describe, parse, storage_dtype
from ..errors import CorruptCheckpointError, LinkedPath, SerializationError, format_array, format_path, unlink
from .complete import check_complete

if TYPE_CHECKING:
    from ..storage.sinks import Sink

DType: TypeAlias = "np.dtype[Any]"
Array: TypeAlias = "np.ndarray[Any, Any]"

#: Arrays of more bytes are split. The same number as in flax; its readers take pieces of any size.
MAX_CHUNK_SIZE = 2**30
#: The deepest nesting that is written: what the readers of flax and braintools can walk without overflowing.
MAX_DEPTH = 512

_ARRAY_CODE, _COMPLEX_CODE, _SCALAR_CODE = 1, 2, 3
_SPLIT_MARK = "__msgpack_chunked_array__"
_SPLIT_KEYS = {_SPLIT_MARK, "shape", "chunks"}
_UINT32 = 2**32 - 1


# ---------------------------------------------------------------------------------------------------- reading

_FLEXIBLE_NAME = re.compile(r"(str|bytes|void)([1-9][0-9]{0,10})?", re.ASCII)
_FLEXIBLE_KIND = {"str": ("U", 32), "bytes": ("S", 8), "void": ("V", 8)}  # code, bits of one character
# An array whose elements have no bytes may claim any number of them; nothing real needs many.
_MAX_BYTELESS = 1 << 16
# Larger arrays are cut out of their ext without a further copy; for small ones unpacking it is quicker.
_SMALL = 4096
_HEADER_MAX = 1024  # bytes of shape and dtype name: 64 lengths of 9 bytes and a name
_EXT_LIMITS = {"raw": True, "max_array_len": MAX_NDIM, "max_map_len": 0}
_BIN_LENGTH = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}


class _Refused(Exception):  # noqa: N818  (never leaves this module)
    """What is wrong with the bytes; becomes the CorruptCheckpointError that names the file."""


def _refuse_bytes(what: str) -> NoReturn:
    raise _Refused(what)


class _Split(NamedTuple):
    """An array that stands in the file in pieces. It is joined when it is read, so nothing is held twice."""

    pieces: list[Array]
    shape: tuple[int, ...]

    def join(self) -> Array:
        return np.concatenate(self.pieces).reshape(self.shape)


class _FileArrays(LiveArrays):
    """The arrays of a file in memory: read-only views of its bytes, and split ones."""

    def host(self, index: int) -> Array:
        source = self.sources[index]
        return source.join() if type(source) is _Split else super().host(index)

    def read(self, indices: Sequence[int]) -> list[Array]:
        hosts = ((index, self.host(index)) for index in indices)
        return [host if type(self.sources[i]) is _Split else np.array(host, order="C") for i, host in hosts]

    def objects(self, indices: Sequence[int]) -> list[Any]:
        return self.read(indices)

    def join(self, indices: list[int], shape: tuple[int, ...]) -> int:
        """Replace the last arrays of the table by the one that they are the pieces of."""
        pieces = [self.sources[index] for index in indices]
        dtype = self.specs[indices[0]].dtype
        del self.specs[-len(indices) :], self.sources[-len(indices) :]
        return self.add(self.spec(dtype, shape, "numpy"), _Split(pieces, shape))


def _dtype_of(name: bytes) -> DType:
    text = name.decode("ascii", "replace")
    if found := _FLEXIBLE_NAME.fullmatch(text):
        code, width = _FLEXIBLE_KIND[found[1]]
        count, rest = divmod(int(found[2] or 0), width)
        text = f"{code}{count}" if rest == 0 else ""
    elif not text[:1].islower():  # numpy's names are; those that only our own format has are not
        text = ""
    try:
        return parse(text)
    except CorruptCheckpointError:
        shown = name[:40].decode("ascii", "replace")
        _refuse_bytes(f"{shown!r} is not the name of a dtype that this platform and version know")


def _cut(data: bytes) -> tuple[object, object, bytes | memoryview]:
    """Take an array's ext apart: shape, dtype name, bytes."""
    parts = _cut_small(data) if len(data) <= _SMALL else _cut_large(data)
    if parts is None:
        _refuse_bytes("an array is not made of a shape, a dtype and data")
    return parts


def _cut_small(data: bytes) -> tuple[object, object, bytes] | None:
    parts = msgpack.unpackb(data, **_EXT_LIMITS)
    whole = type(parts) is list and len(parts) == 3 and type(parts[2]) is bytes
    return (parts[0], parts[1], parts[2]) if whole else None


def _cut_large(data: bytes) -> tuple[object, object, memoryview] | None:
    header = msgpack.Unpacker(read_size=_HEADER_MAX, **_EXT_LIMITS)
    header.feed(data[:_HEADER_MAX])
    try:
        if header.read_array_header() != 3:
            return None
        shape, name, start = header.unpack(), header.unpack(), header.tell()
    except msgpack.OutOfData:
        return None
    layout = _BIN_LENGTH.get(data[start])
    if layout is None:
        return None
    payload = memoryview(data)[start + 1 + struct.calcsize(layout) :]
    return (shape, name, payload) if len(payload) == struct.unpack_from(layout, data, start + 1)[0] else None


# Arrays of one shape and dtype come in great numbers, so what is known of them is kept.
@lru_cache(maxsize=1024)
def _spec_of(name: bytes, *shape: int) -> tuple[ArraySpec, int]:
    if len(shape) > MAX_NDIM or min(shape, default=0) < 0:
        _refuse_bytes("an array has an invalid shape")
    spec = ArraySpec(_dtype_of(name), shape, "numpy")
    if spec.dtype.itemsize == 0 and spec.size > _MAX_BYTELESS:
        _refuse_bytes(f"an array {format_array(spec.dtype, shape)} of elements without bytes is too large")
    return spec, spec.nbytes


def _array_of(data: bytes) -> tuple[ArraySpec, Array]:
    shape, name, payload = _cut(data)
    if type(name) is not bytes or type(shape) is not list or not set(map(type, shape)) <= {int}:
        _refuse_bytes("an array is not made of a shape, a dtype and data")
    try:
        spec, nbytes = _spec_of(name, *shape)
        if nbytes == len(payload):
            array: Array = np.ndarray(spec.shape, spec.dtype, buffer=payload)
            return spec, _readable_text(array, payload) if spec.dtype.kind == "U" else array
    except (ValueError, OverflowError):  # an empty array with another length that numpy cannot count to
        _refuse_bytes("an array has an invalid shape")
    _refuse_bytes(f"{len(payload)} bytes are not the data of an array {format_array(spec.dtype, spec.shape)}")


def _readable_text(array: Array, payload: bytes | memoryview) -> Array:
    """Swap the bytes of text that was saved big-endian: read as little-endian it is no text at all."""
    codes: Array = np.ndarray(len(payload) // 4, "<u4", buffer=payload)
    if codes.max(initial=0) <= sys.maxunicode:
        return array
    codes = codes.byteswap()
    if codes.max() > sys.maxunicode:
        _refuse_bytes("the data of a string array is not text")
    return np.ndarray(array.shape, array.dtype, buffer=codes.tobytes())


def _complex_of(data: bytes) -> Value:
    parts = msgpack.unpackb(data, **_EXT_LIMITS)
    if type(parts) is not list or len(parts) != 2 or not all(type(part) is float for part in parts):
        _refuse_bytes("a complex number is not made of two floats")
    return [LEAF, "complex", [LIST, *parts]]


def _scalar_of(data: bytes) -> Value:
    spec, array = _array_of(data)
    if spec.shape != ():
        _refuse_bytes("a numpy scalar has dimensions")
    return [LEAF, "numpy.scalar", array.tobytes(), {"dtype": describe(spec.dtype)}]


def _numbered(value: Value) -> list[Value] | None:
    """Give the values of ``{"0": a, "1": b}``, or nothing if it is not such a dict."""
    if type(value) is not dict or any(str(i) not in value for i in range(len(value))):
        return None
    return [value[str(i)] for i in range(len(value))]


class _Reader:
    """Turns what msgpack meets into a document's values, from the leaves up."""

    def __init__(self) -> None:
        self.arrays = _FileArrays()

    def ext(self, code: int, data: bytes) -> Value:
        if code == _ARRAY_CODE:
            spec, array = _array_of(data)
            return [ARRAY, self.arrays.add(self.arrays.spec(*spec), array)]
        if code == _COMPLEX_CODE:
            return _complex_of(data)
        if code == _SCALAR_CODE:
            return _scalar_of(data)
        _refuse_bytes(f"it holds an unknown extension type {code}")

    def sequence(self, items: list[Value]) -> Value:
        _check_types(items)
        items.insert(0, LIST)
        return items

    def mapping(self, pairs: list[tuple[Value, Value]]) -> Value:
        try:
            state = dict(pairs)
        except TypeError:  # complex numbers and numpy scalars are lists here, which cannot be keys of a dict
            return _items(pairs)
        if not set(map(type, state)) <= {str}:
            return _items(pairs)
        if len(state) != len(pairs):
            _refuse_bytes("a map has the same key twice")
        _check_types(state.values())
        return self._joined(state) if _SPLIT_MARK in state else state

    def _joined(self, state: dict[str, Value]) -> Value:
        """Make one array of a split one; a dict that only looks like one stays what it is."""
        shape, chunks = _numbered(state.get("shape")), _numbered(state.get("chunks"))
        if state.keys() != _SPLIT_KEYS or state[_SPLIT_MARK] is not True or shape is None or not chunks:
            return state
        if not all(type(n) is int and n >= 0 for n in shape) or not self._are_pieces(chunks):
            return state
        indices = [chunk[1] for chunk in chunks]
        size = sum(self.arrays.specs[index].size for index in indices)
        if len(shape) > MAX_NDIM or size == 0 or prod(shape) != size:  # nobody splits an empty array
            _refuse_bytes(f"the pieces of a split array do not make the shape {shape}")
        return [ARRAY, self.arrays.join(indices, tuple(shape))]

    def _are_pieces(self, chunks: list[Value]) -> bool:
        if not all(type(chunk) is list and chunk[0] == ARRAY for chunk in chunks):
            return False
        specs = [self.arrays.specs[chunk[1]] for chunk in chunks]
        return all(len(spec.shape) == 1 and spec.dtype == specs[0].dtype for spec in specs)


def _check_types(values: Iterable[Value]) -> None:
    # MessagePack's own timestamp is the one extension type that does not go through the hook.
    if msgpack.Timestamp in map(type, values):
        _refuse_bytes("it holds an unknown extension type -1")


def _items(pairs: list[tuple[Value, Value]]) -> Value:
    _check_types(value for _, value in pairs)
    if len({_identity(key) for key, _ in pairs}) != len(pairs):
        _refuse_bytes("a map has the same key twice")
    return [ITEMS, *(part for pair in pairs for part in pair)]


def _identity(key: Value) -> Any:
    if type(key) is list and key[0] == LEAF:
        return repr(key)
    if key is None or type(key) in (bool, int, float, str, bytes):
        return (str, key) if type(key) is str else key  # a str is never the repr of a leaf
    _refuse_bytes("a map has a key that is no scalar")


def read_state_dict(buffer: bytes | memoryview, name: str) -> Document:
    """Read a file of ``braintools.file`` or ``flax.serialization``.

    Parameters
    ----------
    buffer : bytes or memoryview
        The whole file. The document does not refer to it.
    name : str
        What error messages call the file.

    Returns
    -------
    Document
        The state dict: what braintools and flax know without a target. Arrays are numpy arrays; lists and
        tuples are dicts with the keys "0", "1" and so on, but for what flax's low-level function has saved.

    Raises
    ------
    CorruptCheckpointError
        If the bytes are not such a file.

    Examples
    --------
    >>> read_state_dict(bytes.fromhex("82a16101a16202"), "old.msgpack").structure
    {'a': 1, 'b': 2}
    """
    reader = _Reader()
    limit = len(buffer)
    try:
        check_complete(buffer)
        structure = msgpack.unpackb(
            buffer,
            ext_hook=reader.ext,
            list_hook=reader.sequence,
            object_pairs_hook=reader.mapping,
            strict_map_key=False,
            **dict.fromkeys((f"max_{kind}_len" for kind in ("str", "bin", "array", "map", "ext")), limit),
        )
        _check_types((structure,))
    except _Refused as error:
        raise CorruptCheckpointError(f'Invalid checkpoint at "{name}": {error}.') from None
    except msgpack.StackError as error:
        raise CorruptCheckpointError(f'Invalid checkpoint at "{name}": it is nested too deeply.') from error
    except ValueError as error:  # every error of msgpack, and text that is not UTF-8
        raise CorruptCheckpointError(
            f'Invalid checkpoint at "{name}": it is neither a checkpoint of braintools_ckpt nor a whole state dict of '
            "braintools.file or flax."
        ) from error
    return Document(structure, reader.arrays)


# ---------------------------------------------------------------------------------------------------- writing

_FIXEXT = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}
_GATHERED = 1 << 16  # what is smaller is copied next to each other, to save calls of the sink


class _Run(NamedTuple):
    """Bytes of an array, from ``start`` to ``stop`` as they stand in the file."""

    source: Any
    start: int
    stop: int


Part: TypeAlias = bytes | _Run


def _refuse_value(path: LinkedPath, what: str) -> NoReturn:
    raise SerializationError(
        f"Cannot save {what} at path {format_path(unlink(path))} in the format of flax and braintools, "
        "which has no place for it. Save it with format='v1'."
    )


def _header(size: int, forms: Sequence[tuple[int, str]]) -> bytes:
    """Write a first byte and a length, in the shortest of the forms."""
    for first, layout in forms:
        if size < 1 << (8 * struct.calcsize(layout)):
            return struct.pack(">B" + layout, first, size)
    raise OverflowError(size)  # every size is checked before


def _bin_header(size: int) -> bytes:
    return _header(size, ((0xC4, "B"), (0xC5, "H"), (0xC6, "I")))


def _ext_header(code: int, size: int) -> bytes:
    if size in _FIXEXT:
        return bytes((_FIXEXT[size], code))
    return _header(size, ((0xC7, "B"), (0xC8, "H"), (0xC9, "I"))) + bytes((code,))


def _map_header(size: int) -> bytes:
    return bytes((0x80 | size,)) if size < 16 else _header(size, ((0xDE, "H"), (0xDF, "I")))


def _list_header(size: int) -> bytes:
    return bytes((0x90 | size,)) if size < 16 else _header(size, ((0xDC, "H"), (0xDD, "I")))


# Arrays of one shape and dtype come in great numbers, so their headers are kept; with the dtype's text as a part
# of the key, since numpy calls datetime64[1000ms] and datetime64[s] equal.
@lru_cache(maxsize=1024)
def _array_header(code: int, shape: tuple[int, ...], dtype: DType, _text: str) -> bytes:
    nbytes = prod(shape) * dtype.itemsize
    inner = _list_header(3) + msgpack.packb(shape) + msgpack.packb(dtype.name) + _bin_header(nbytes)
    return bytes(_ext_header(code, len(inner) + nbytes) + inner)


def _is_jax_array(value: Any) -> bool:
    jax = sys.modules.get("jax")  # without jax in the process nobody can hold one of its arrays
    return jax is not None and isinstance(value, jax.Array)


def _check_array(path: LinkedPath, array: Any) -> None:
    """Refuse the arrays whose values would not come back from such a file."""
    dtype = array.dtype
    if not isinstance(dtype, np.dtype):
        _refuse_value(path, "a typed PRNG key")
    if dtype.kind not in "biufcmM" and dtype.type.__name__ not in ML_DTYPES:
        _refuse_value(path, f"an array of dtype {dtype}")
    if not isinstance(array, np.ndarray | np.generic):
        _check_jax_array(path, array)
    elif isinstance(array, np.ma.MaskedArray):
        _refuse_value(path, "a masked array")


def _check_jax_array(path: LinkedPath, array: Any) -> None:
    if isinstance(array, sys.modules["jax"].core.Tracer):
        _refuse_value(path, "a value that jax is tracing")
    if array.is_deleted():
        _refuse_value(path, "an array that was deleted or donated")
    if not array.is_fully_addressable:
        _refuse_value(path, "an array that spans several processes")


class _Planner:
    """Walks a tree in the order of the file: bytes, and the larger arrays that stand between them."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self._pack = msgpack.Packer(strict_types=True).pack
        self._stack: list[tuple[LinkedPath, Iterator[tuple[Any, Any]], bool, bool]] = []

    def walk(self, raw: Any) -> None:
        """Walk without recursion, and without copying any large array."""
        self._value(None, raw, True)
        while self._stack:
            parent, entries, is_map, splittable = self._stack[-1]
            for key, value in entries:
                path = (parent, key)
                if is_map:
                    self._key(path, key)
                self._value(path, value, splittable)
                if type(value) in (dict, list):
                    break  # its parts come before those that are left here
            else:
                self._stack.pop()

    def _key(self, path: LinkedPath, key: object) -> None:
        if type(key) is not str:
            _refuse_value(path, f"a dict key of type {type(key).__name__}")
        if key == _SPLIT_MARK:
            _refuse_value(path, "the key that marks split arrays")
        self._text(path, key)

    def _value(self, path: LinkedPath, value: Any, splittable: bool) -> None:
        kind = type(value)
        if kind is dict:
            self._open(path, _map_header(len(value)), iter(value.items()), True, splittable)
        elif kind is list:
            # The readers of flax and braintools do not look for split arrays inside of a list.
            self._open(path, _list_header(len(value)), enumerate(value), False, False)
        elif isinstance(value, np.ndarray | np.generic):
            self._array(path, value, splittable)
        elif value is None or kind is bool or kind is float:
            self.parts.append(self._pack(value))
        elif kind is int:
            self._int(path, value)
        elif kind is str:
            self._text(path, value)
        elif kind is bytes:
            self._bytes(path, value)
        elif kind is complex:
            self.parts.append(self._pack(msgpack.ExtType(_COMPLEX_CODE, self._pack([value.real, value.imag]))))
        elif _is_jax_array(value):
            self._array(path, value, splittable)
        else:
            _refuse_value(path, f"a value of type {kind.__name__}")

    def _open(self, path: LinkedPath, header: bytes, entries: Iterator[Any], is_map: bool, splittable: bool) -> None:
        if len(self._stack) == MAX_DEPTH:
            _refuse_value(path, f"a tree of more than {MAX_DEPTH} levels, or one that contains itself,")
        self.parts.append(header)
        self._stack.append((path, entries, is_map, splittable))

    def _int(self, path: LinkedPath, value: int) -> None:
        if not -(2**63) <= value < 2**64:
            _refuse_value(path, "an int of more than 64 bits")
        self.parts.append(self._pack(value))

    def _text(self, path: LinkedPath, value: str) -> None:
        try:
            self.parts.append(self._pack(value))
        except UnicodeEncodeError:
            _refuse_value(path, "a str that is not valid Unicode")
        except ValueError:
            _refuse_value(path, "a str of 4 GiB and more")

    def _bytes(self, path: LinkedPath, value: bytes) -> None:
        if len(value) > _UINT32:
            _refuse_value(path, "bytes of 4 GiB and more")
        self.parts += (_bin_header(len(value)), value)

    def _array(self, path: LinkedPath, array: Any, splittable: bool) -> None:
        """Write an array whole, or split where the readers of the old libraries put it together again."""
        _check_array(path, array)
        scalar = isinstance(array, np.generic)
        if array.nbytes <= MAX_CHUNK_SIZE or scalar or not splittable:
            if array.nbytes > _UINT32 - _HEADER_MAX:
                _refuse_value(path, "an array of 4 GiB and more inside of a list")
            code = _SCALAR_CODE if scalar else _ARRAY_CODE
            self._run(code, array.shape, _Run(array, 0, array.nbytes))
        else:
            self._split(array)

    def _run(self, code: int, shape: tuple[int, ...], run: _Run) -> None:
        dtype = run.source.dtype
        header = _array_header(code, shape, dtype, dtype.str)
        if run.source.nbytes < _SMALL:
            self.parts.append(header + _flat_bytes(run.source)[run.start : run.stop].tobytes())
        else:
            self.parts += (header, run)

    def _split(self, array: Any) -> None:
        itemsize = array.dtype.itemsize
        step = itemsize * max(1, MAX_CHUNK_SIZE // itemsize)
        starts = range(0, array.nbytes, step)
        shape = {str(axis): length for axis, length in enumerate(array.shape)}
        head = (_SPLIT_MARK, True, "shape", shape, "chunks")
        self.parts.append(b"".join((_map_header(3), *map(self._pack, head), _map_header(len(starts)))))
        for number, start in enumerate(starts):
            run = _Run(array, start, min(start + step, array.nbytes))
            self.parts.append(self._pack(str(number)))
            self._run(_ARRAY_CODE, ((run.stop - start) // itemsize,), run)


def _flat_bytes(source: Any) -> Array:
    """View an array as bytes in the order of the file; copy it only where it lies otherwise."""
    host = np.asarray(source)
    flat = host.astype(storage_dtype(host.dtype), copy=False).reshape(-1)
    return np.ascontiguousarray(flat).view(np.uint8)


def _buffers(parts: Iterable[Part]) -> Iterator[bytes | memoryview]:
    source: Any = None
    octets: Any = None
    for part in parts:
        if type(part) is bytes:
            yield part
            continue
        run = cast("_Run", part)
        if run.source is not source:  # the pieces of one array follow each other
            source, octets = run.source, _flat_bytes(run.source)
        yield memoryview(octets)[run.start : run.stop]


def write_state_dict(raw: Any, sink: Sink) -> None:
    """Write a state dict as flax and braintools write it.

    Parameters
    ----------
    raw : dict or a leaf
        Nested dicts with str keys and lists, of None, bool, int, float, complex, str, bytes, numpy scalars
        and numpy or jax arrays. It is not changed, and an array is copied only where its elements do not lie
        in the order of the file.
    sink : Sink
        Where the bytes go.

    Raises
    ------
    SerializationError
        If the format has no place for a value; nothing is written then.

    Examples
    --------
    >>> from braintools_ckpt.storage.sinks import BytesSink
    >>> sink = BytesSink()
    >>> write_state_dict({"w": np.zeros(3, "float32"), "step": 7}, sink)
    >>> len(sink.getvalue())
    37
    """
    plan = _Planner()
    plan.walk(raw)  # all of it is checked before the first byte is written
    gathered = bytearray()
    for buffer in _buffers(plan.parts):
        if len(buffer) < _GATHERED:
            gathered += buffer
            if len(gathered) < _GATHERED:
                continue
            buffer = b""
        sink.write(gathered, buffer)
        gathered = bytearray()
    sink.write(gathered)
