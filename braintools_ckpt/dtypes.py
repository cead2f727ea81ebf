"""How a dtype is written in a file, and how it is read back without ever handing text of a file to numpy.

A description is made of values that MessagePack holds natively::

    descr := name                     "bool", "int8" ... "uint64", "float16" ... "complex128", "bfloat16" ...
           | "U5" | "S3" | "V8"       text of 5 characters, 3 bytes of text, 8 raw bytes
           | "datetime64[ms]" | "timedelta64[25s]" | "datetime64"
           | ">" one of the above     the same with big-endian byte order in Python
           | {"fields": [field, ...], "itemsize": int, "aligned": bool}
                                      and "record": True where the elements are numpy.record
           | [descr, [length, ...]]   a sub-array, which numpy allows inside of fields only
    field := [name, descr, offset] | [name, descr, offset, title]

Every dtype has exactly one description, and a description that is not of this form is refused. The data in
a file is little-endian whatever the description says; ">" only restores the byte order that the array had in
Python. A dtype's ``metadata`` is not written: numpy itself drops it in most operations and leaves it out of
comparisons.
"""

from __future__ import annotations

import re
import reprlib
import sys
from collections.abc import Sequence
from functools import lru_cache
from math import frexp, ldexp, prod
from typing import Any, Literal, NoReturn, TypeAlias

import numpy as np

from .errors import CorruptCheckpointError

DType: TypeAlias = "np.dtype[Any]"
Descr: TypeAlias = "str | list[Any] | dict[str, Any]"

#: The dtypes of the ml_dtypes package. It is imported when one of them is met, never before.
ML_DTYPES = frozenset(
    {
        *("bfloat16", "complex32", "bcomplex32", "int1", "int2", "int4", "uint1", "uint2", "uint4"),
        *(
            "float8_e3m4",
            "float8_e4m3",
            "float8_e4m3b11fnuz",
            "float8_e4m3fn",
            "float8_e4m3fnuz",
            "float8_e5m2",
        ),
        *("float8_e5m2fnuz", "float8_e8m0fnu", "float6_e2m3fn", "float6_e3m2fn", "float4_e2m1fn"),
    }
)

MAX_DEPTH = 32  # of fields within fields
MAX_FIELDS = 1 << 16  # in one dtype, nested ones included
MAX_ITEMSIZE = (1 << 31) - 1  # numpy's own limit, a C int
MAX_NDIM = 64  # numpy's own limit

_FLEXIBLE = {"U": (np.str_, 4), "S": (np.bytes_, 1), "V": (np.void, 1)}
_FLEXIBLE_NAME = re.compile(r"([USV])(0|[1-9][0-9]{0,9})", re.ASCII)
_TIME_NAME = re.compile(
    r"(datetime64|timedelta64)(?:\[([1-9][0-9]{0,9})?(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?", re.ASCII
)
_TIME_CODES = {"datetime64": "M8", "timedelta64": "m8"}
_STRUCT_KEYS = ({"fields", "itemsize", "aligned"}, {"fields", "itemsize", "aligned", "record"})


def _long_doubles() -> dict[str, DType]:
    """Name C's long double by its layout: that of x86 and that of IEEE have one size and other bits."""
    dtype = np.dtype(np.longdouble)
    layout = {63: "", 105: "ibm", 112: "ieee"}.get(int(np.finfo(np.longdouble).nmant))
    if layout is None or dtype.itemsize == 8:  # a plain double where the compiler has no other
        return {}
    bits = 8 * dtype.itemsize
    return {f"float{bits}{layout}": dtype, f"complex{2 * bits}{layout}": np.dtype(np.clongdouble)}


def _native_dtypes() -> dict[str, DType]:
    dtypes: dict[str, DType] = {"bool": np.dtype(np.bool_)}
    for kind, sizes in (("int", (8, 16, 32, 64)), ("uint", (8, 16, 32, 64)), ("float", (16, 32, 64))):
        dtypes.update((f"{kind}{bits}", np.dtype(getattr(np, f"{kind}{bits}"))) for bits in sizes)
    dtypes["complex64"] = np.dtype(np.complex64)
    dtypes["complex128"] = np.dtype(np.complex128)
    return dtypes | _long_doubles()


_NATIVE = _native_dtypes()
# By kind and size: the C types `long` and `long long` are two types in numpy and one dtype here.
_NATIVE_NAMES = {(dtype.kind, dtype.itemsize): name for name, dtype in _NATIVE.items()}


# ------------------------------------------------------------------------------------------------- describe


def _is_big_endian(dtype: DType) -> bool:
    return dtype.byteorder == ">" or (dtype.byteorder == "=" and sys.byteorder == "big")


def _refuse(dtype: DType) -> NoReturn:
    raise TypeError(f"dtype {dtype} has no bytes of its own to store")


def _plain_name(dtype: DType) -> str:
    kind, module = dtype.kind, dtype.type.__module__
    if module == "ml_dtypes" and dtype.type.__name__ in ML_DTYPES:
        return dtype.type.__name__
    if module != "numpy" and not (kind == "V" and issubclass(dtype.type, np.void)):
        _refuse(dtype)
    if kind in _FLEXIBLE:
        return f"{kind}{dtype.itemsize // _FLEXIBLE[kind][1]}"
    if kind in "mM":
        return dtype.name
    return _NATIVE_NAMES.get((kind, dtype.itemsize)) or _refuse(dtype)


def _with_prefix(dtype: DType) -> str:
    return (">" if _is_big_endian(dtype) else "") + _plain_name(dtype)


_cached = lru_cache(maxsize=1024)(_with_prefix)


def _describe_plain(dtype: DType) -> str:
    # Numpy calls datetime64[1000ms] and datetime64[s] equal, as it does an aligned and a packed structured
    # dtype: a cache would take one for the other.
    return _with_prefix(dtype) if dtype.kind in "mM" else _cached(dtype)


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


class _Describer:
    """Describes one dtype, and counts its fields."""

    def __init__(self) -> None:
        self._fields = 0

    def any(self, dtype: DType, depth: int) -> Descr:
        if depth > MAX_DEPTH:
            raise TypeError(f"dtype is nested deeper than {MAX_DEPTH} levels")
        if dtype.subdtype is not None:
            base, shape = dtype.subdtype
            return [self.any(base, depth + 1), list(shape)]
        if dtype.names is not None:
            return self._struct(dtype, depth)
        return _describe_plain(dtype)

    def _struct(self, dtype: DType, depth: int) -> Descr:
        names = dtype.names or ()
        self._fields += len(names)
        if self._fields > MAX_FIELDS:
            raise TypeError(f"dtype has more than {MAX_FIELDS} fields")
        if not issubclass(dtype.type, np.void):
            raise TypeError(f"dtype {dtype} is a number with fields: view the array as one of the two")
        descr: dict[str, Any] = {
            "fields": [self._field(dtype, name, depth) for name in names],
            "itemsize": dtype.itemsize,
            "aligned": dtype.isalignedstruct,
        }
        if issubclass(dtype.type, np.record):
            descr["record"] = True
        return descr

    def _field(self, dtype: DType, name: str, depth: int) -> list[Any]:
        assert dtype.fields is not None  # what has names has fields
        base, offset, *title = dtype.fields[name]
        if title and type(title[0]) is not str:
            raise TypeError(f"dtype has a field title that is no string: {title[0]!r}")
        if not all(map(_is_unicode, (name, *title))):
            raise TypeError(f"dtype has a field name that is not valid Unicode: {name!r}")
        return [name, self.any(base, depth + 1), offset, *title]


def describe(dtype: DType) -> Descr:
    """Describe a dtype in values that MessagePack holds natively.

    Parameters
    ----------
    dtype : numpy.dtype
        Any dtype whose elements are bytes: all but ``object`` and ``StringDType``.

    Returns
    -------
    str, list or dict
        The one description of this dtype; `parse` gives back an equal dtype with the same byte order,
        offsets, titles and alignment. The dtype's ``metadata`` is left out.

    Raises
    ------
    TypeError
        If the elements are no plain bytes, or the dtype is too large or too deep for a file.

    Examples
    --------
    >>> describe(np.dtype("float32")), describe(np.dtype(">i2")), describe(np.dtype("U5"))
    ('float32', '>int16', 'U5')
    >>> describe(np.dtype([("x", "f8"), ("n", "i4", (2,))]))
    {'fields': [['x', 'float64', 0], ['n', ['int32', [2]], 8]], 'itemsize': 16, 'aligned': False}
    """
    if dtype.hasobject:
        _refuse(dtype)
    if dtype.names is None and dtype.subdtype is None:
        return _describe_plain(dtype)
    descr = _Describer().any(dtype, 0)
    storage_dtype(dtype)
    return descr


# ---------------------------------------------------------------------------------------------------- parse


def _fail(what: str) -> NoReturn:
    raise CorruptCheckpointError(f"Invalid dtype in the checkpoint: {what}.")


_shorten = reprlib.repr  # plain repr goes as deep, and is as long, as a hostile file says


def _ml_dtype(name: str) -> DType:
    try:
        import ml_dtypes

        scalar: type[np.generic] = getattr(ml_dtypes, name)
        return np.dtype(scalar)
    except (ImportError, AttributeError):
        _fail(f"{name} is not known here, it needs a newer ml_dtypes (pip install -U ml_dtypes)")


def _base_dtype(name: str) -> DType:
    if name in _NATIVE:
        return _NATIVE[name]
    if name in ML_DTYPES:
        return _ml_dtype(name)
    if found := _FLEXIBLE_NAME.fullmatch(name):
        scalar, width = _FLEXIBLE[found[1]]
        if int(found[2]) * width > MAX_ITEMSIZE:
            _fail(f"{name} is too large")
        return np.dtype((scalar, int(found[2])))
    if found := _TIME_NAME.fullmatch(name):
        if found[2] is not None and int(found[2]) > MAX_ITEMSIZE:
            _fail(f"{name} has a step that is too large")
        unit = "" if found[3] is None else f"[{int(found[2] or 1)}{found[3]}]"
        return np.dtype(_TIME_CODES[found[1]] + unit)
    _fail(f"{_shorten(name)} is not a dtype that this platform and version know")


def _with_order(dtype: DType, order: Literal["<", ">"]) -> DType:
    # A native ml_dtypes dtype is given back as it is: newbyteorder would write its order as '<', not '='.
    return dtype if dtype.isnative and order == _NATIVE_ORDER else dtype.newbyteorder(order)


_NATIVE_ORDER = "<" if sys.byteorder == "little" else ">"


@lru_cache(maxsize=1024)
def _parse_plain(text: str) -> DType:
    dtype = _with_order(_base_dtype(text.removeprefix(">")), ">" if text.startswith(">") else "<")
    if _describe_plain(dtype) != text:  # '>int8', 'datetime64[1s]': not what is ever written
        _fail(f"{_shorten(text)} is not written as this version writes it")
    return dtype


def _size(value: object, what: str) -> int:
    if type(value) is not int or not 0 <= value <= MAX_ITEMSIZE:
        _fail(f"{what} is {_shorten(value)}")
    return value


class _Parser:
    """Parses one description, and counts its fields."""

    def __init__(self) -> None:
        self._fields = 0

    def any(self, descr: object, depth: int) -> DType:
        if depth > MAX_DEPTH:
            _fail(f"nested deeper than {MAX_DEPTH} levels")
        if type(descr) is str:
            return _parse_plain(descr)
        if type(descr) is list:
            return self._subarray(descr, depth)
        if type(descr) is dict:
            return self._struct(descr, depth)
        _fail(f"{_shorten(descr)} is not a description")

    def _subarray(self, descr: list[Any], depth: int) -> DType:
        if len(descr) != 2 or type(descr[1]) is not list or not 1 <= len(descr[1]) <= MAX_NDIM:
            _fail(f"{_shorten(descr)} is not a sub-array")
        shape = tuple(_size(n, "a length of a sub-array") for n in descr[1])
        base = self.any(descr[0], depth + 1)
        if prod(shape) > MAX_ITEMSIZE or base.itemsize * prod(shape) > MAX_ITEMSIZE:
            _fail(f"a sub-array of shape {_shorten(list(shape))} is too large")
        return np.dtype((base, shape))

    def _struct(self, descr: dict[str, Any], depth: int) -> DType:
        fields = descr.get("fields")
        if descr.keys() not in _STRUCT_KEYS or type(fields) is not list:
            _fail(f"{_shorten(descr)} is not a structured dtype")
        self._fields += len(fields)
        if self._fields > MAX_FIELDS:
            _fail(f"more than {MAX_FIELDS} fields")
        if type(descr["aligned"]) is not bool or descr.get("record", True) is not True:
            _fail(f"{_shorten(descr)} has a flag of the wrong type")
        dtype = self._build([self._field(field, depth) for field in fields], descr)
        return np.dtype((np.record, dtype)) if "record" in descr else dtype

    def _field(self, field: object, depth: int) -> tuple[str, DType, int, str | None]:
        if type(field) is not list or len(field) not in (3, 4):
            _fail(f"{_shorten(field)} is not a field")
        if any(type(text) is not str for text in (field[0], *field[3:])):
            _fail(f"{_shorten(field)} has a name or a title that is no string")
        title = field[3] if len(field) == 4 else None
        return field[0], self.any(field[1], depth + 1), _size(field[2], "an offset"), title

    def _build(self, fields: list[tuple[str, DType, int, str | None]], descr: dict[str, Any]) -> DType:
        itemsize = _size(descr["itemsize"], "an itemsize")
        for name, part, offset, _ in fields:  # numpy's own check of this overflows
            if offset + part.itemsize > itemsize:
                _fail(f"field {_shorten(name)} ends after the itemsize {itemsize}")
        names, formats, offsets, titles = zip(*fields, strict=True) if fields else ((), (), (), ())
        spec: Any = {"names": names, "formats": formats, "offsets": offsets, "itemsize": itemsize}
        if any(title is not None for title in titles):
            spec["titles"] = titles
        try:
            dtype: DType = np.dtype(spec, align=bool(descr["aligned"]))
        except (ValueError, TypeError) as error:
            raise CorruptCheckpointError(f"Invalid dtype in the checkpoint: {error}.") from error
        return dtype


def parse(descr: Descr) -> DType:
    """Rebuild the dtype that `describe` has described.

    Parameters
    ----------
    descr : str, list or dict
        A description as read from a file. Nothing in it is trusted.

    Returns
    -------
    numpy.dtype
        The dtype, with its byte order, offsets, titles and alignment.

    Raises
    ------
    CorruptCheckpointError
        If this is no description, or one of a dtype that this platform does not have.

    Examples
    --------
    >>> parse("float32"), parse(">int16"), parse("datetime64[ms]")
    (dtype('float32'), dtype('>i2'), dtype('<M8[ms]'))
    """
    if type(descr) is str:
        return _parse_plain(descr)
    dtype = _Parser().any(descr, 0)
    try:
        same = describe(dtype) == descr
    except TypeError as error:
        raise CorruptCheckpointError(f"Invalid dtype in the checkpoint: {error}.") from error
    if not same:
        _fail(f"{_shorten(descr)} is not written as this version writes it")
    return dtype


# -------------------------------------------------------------------------------------------------- storage


def storage_dtype(dtype: DType) -> DType:
    """Give the dtype of the bytes in the file.

    Parameters
    ----------
    dtype : numpy.dtype
        The dtype that the array has in Python.

    Returns
    -------
    numpy.dtype
        The same in little-endian order. A structured dtype is packed, also within its fields: the padding
        between fields is memory that nobody has set, which must not get into a file.

    Raises
    ------
    TypeError
        If the packed fields, which may have shared their bytes, are too large for numpy.

    Examples
    --------
    >>> storage_dtype(np.dtype(">f4")).str
    '<f4'
    >>> storage_dtype(np.dtype([("a", "i1"), ("b", "f8")], align=True)).itemsize
    9
    """
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return _sized(storage_dtype(base), shape)
    if dtype.names is None:
        return _with_order(dtype, "<")
    return _packed(dtype)


def _sized(base: DType, shape: tuple[int, ...]) -> DType:
    if base.itemsize * prod(shape) > MAX_ITEMSIZE:
        raise TypeError(f"dtype is larger than {MAX_ITEMSIZE} bytes")
    return np.dtype((base, shape))


def _packed(dtype: DType) -> DType:
    assert dtype.fields is not None  # what has names has fields
    names = dtype.names or ()
    formats = [storage_dtype(dtype.fields[name][0]) for name in names]
    offsets, end = [], 0
    for part in formats:
        offsets.append(end)
        end += part.itemsize
    if end > MAX_ITEMSIZE:
        raise TypeError(f"dtype is larger than {MAX_ITEMSIZE} bytes")
    # Not as a list of pairs: numpy would give a field whose name is empty another name.
    return np.dtype({"names": list(names), "formats": formats, "offsets": offsets, "itemsize": end})


# ------------------------------------------------------------------------------------------- what a file may claim

MAX_EMPTY = 1 << 24  # elements of no bytes, which cost nothing in a file however many it claims
MAX_UNSTORED = 1 << 26  # bytes that an array may take in memory whatever it takes in the file
MAX_GROWTH = 256  # times that a larger array may grow
_LAST_CODE_POINT = 0x10FFFF


def check_size(dtype: DType, shape: Sequence[int]) -> None:
    """Refuse an array that is far larger in memory than in a file, before it is made.

    Padding between fields is not stored, so a few bytes of a hostile file could ask for any amount of memory.

    Parameters
    ----------
    dtype : numpy.dtype
        The dtype in Python.
    shape : sequence of int
        The shape.

    Raises
    ------
    ValueError
        If it takes more than 64 MiB and more than 256 times its stored size, or has more than 2^24 elements of no
        bytes.

    Examples
    --------
    >>> check_size(np.dtype("float32"), (1 << 40,))
    >>> check_size(np.dtype({"names": ["a"], "formats": ["i1"], "offsets": [0], "itemsize": 1 << 20}), (1000,))
    Traceback (most recent call last):
    ValueError: 1048576000 bytes in memory for 1000 bytes of data: more than 256 times as many
    """
    size = prod(shape)
    stored = size * storage_dtype(dtype).itemsize
    if size > MAX_EMPTY and not stored:
        raise ValueError(f"{size} elements of no bytes: at most {MAX_EMPTY} are read")
    check_growth(size * dtype.itemsize, stored)


def check_growth(nbytes: int, stored: int) -> None:
    """Refuse what takes far more bytes in memory than in a file: one array, or all arrays of a file together.

    Raises
    ------
    ValueError
        If these are more than 64 MiB, and more than 256 times as many.
    """
    if nbytes > max(MAX_UNSTORED, MAX_GROWTH * stored):
        raise ValueError(f"{nbytes} bytes in memory for {stored} bytes of data: more than {MAX_GROWTH} times as many")


def check_text(array: np.ndarray[Any, Any]) -> None:
    """Refuse text that is none: reading an element whose code points do not exist makes numpy raise, or crash.

    Parameters
    ----------
    array : numpy.ndarray
        An array of any dtype, as it was read from a file.

    Raises
    ------
    ValueError
        If a ``U`` element, also one within a record, has a code point above 0x10FFFF.

    Examples
    --------
    >>> check_text(np.array(["text"]))
    >>> check_text(np.array([0x110000], np.uint32).view("U1"))
    Traceback (most recent call last):
    ValueError: text with the code point 0x110000, which does not exist
    """
    dtype = array.dtype
    if dtype.kind == "U" and array.nbytes:
        last = int(np.ascontiguousarray(array).view(dtype.str[0] + "u4").max())
        if last > _LAST_CODE_POINT:
            raise ValueError(f"text with the code point {last:#x}, which does not exist")
    for name in dtype.names or ():
        check_text(array[name])


#: Of the types of ml_dtypes.
_NOT_IN_JAX = frozenset({"complex32", "bcomplex32", "float6_e2m3fn", "float6_e3m2fn"})


def fits_jax(dtype: DType) -> bool:
    """Tell whether jax has arrays of a dtype.

    Parameters
    ----------
    dtype : numpy.dtype
        Any dtype.

    Returns
    -------
    bool
        True for numbers in native byte order, those of ml_dtypes among them; False for long doubles, which jax would
        narrow, and for all that are no numbers.

    Examples
    --------
    >>> fits_jax(np.dtype("float32")), fits_jax(np.dtype(">f4")), fits_jax(np.dtype("U3"))
    (True, False, False)
    """
    if not dtype.isnative or dtype.names is not None:
        return False
    widest = {"b": 1, "i": 8, "u": 8, "f": 8, "c": 16}.get(dtype.kind)
    if widest is None:
        return dtype.type.__module__ == "ml_dtypes" and dtype.name not in _NOT_IN_JAX
    return dtype.itemsize <= widest


@lru_cache(maxsize=64)
def largest(dtype: DType) -> float:
    """Give the largest number that rounds to one of a dtype.

    Some types of ml_dtypes have no inf: a cast takes all that is larger for their last number.

    Parameters
    ----------
    dtype : numpy.dtype
        A float of ml_dtypes.

    Returns
    -------
    float
        The last number of the type and half of its last step.
    """
    import ml_dtypes

    info = ml_dtypes.finfo(dtype)
    last = float(info.max)
    return last + ldexp(float(info.eps), frexp(last)[1] - 2)
