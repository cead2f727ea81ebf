"""The trees that a checkpoint can hold, and what it means for two of them to be the same.

``checkpointable_trees()`` is the one hypothesis strategy of the test suite. ``assert_same`` compares two
trees to the last bit, ``copy_tree`` and ``blank_tree`` make an equal tree and a template with other values.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import pathlib
import struct
import uuid
import zoneinfo
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from typing import Any, NamedTuple

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from braintools_ckpt import serializable
from braintools_ckpt.errors import format_path

# --- classes that the trees hold -------------------------------------------------------------------


class Pair(NamedTuple):
    left: Any
    right: Any


Single = namedtuple("Single", ["value"])


@dataclasses.dataclass
class Layer:
    """A dataclass that nobody registered."""

    w: Any
    b: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frozen:
    """A dataclass whose instances cannot be assigned to."""

    value: Any
    note: str = ""


@dataclasses.dataclass(slots=True)
class Slotted:
    value: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class JaxData:
    """A dataclass that jax knows as a pytree, with one static field."""

    value: Any
    size: int = dataclasses.field(default=3, metadata={"static": True})


@jax.tree_util.register_pytree_with_keys_class
class Node:
    """A class that jax knows as a pytree with keys."""

    def __init__(self, left: Any, right: Any, label: str = "node") -> None:
        self.left, self.right, self.label = left, right, label

    def tree_flatten_with_keys(self) -> Any:
        keys = jax.tree_util.GetAttrKey
        return ((keys("left"), self.left), (keys("right"), self.right)), self.label

    @classmethod
    def tree_unflatten(cls, label: str, children: Any) -> Node:
        return cls(*children, label=label)


@serializable
@dataclasses.dataclass
class Recorded:
    """A dataclass registered with the library: it comes back as itself, with a template and without."""

    value: Any
    step: int = 0


@serializable
class Plain:
    """A class registered with the library that keeps its fields in ``__dict__``."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Color(enum.Enum):
    RED = 1
    BLUE = "blue"


class Number(enum.IntEnum):
    ONE = 1
    TWO = 2


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Str(str):
    """A subclass of a scalar."""


class Int(int):
    """A subclass of a scalar."""


class Float(float):
    """A subclass of a scalar."""


class List(list):
    """A subclass of a container."""


class Tuple(tuple):
    """A subclass of a container."""


class Dict(dict):
    """A subclass of a container."""


class CustomState(brainstate.ParamState):
    """A State class that is not brainstate's own."""


def make_default() -> str:
    """Make the default of a defaultdict whose factory no file can name."""
    return "default"


def scale_by(factor: Any, x: Any = 1) -> Any:
    """Stand for the function of a Partial."""
    return factor * x


# --- what "the same" means -------------------------------------------------------------------------


def assert_same(
    a: Any,
    b: Any,
    *,
    template: bool = True,
    identity: bool = True,
    loaded: bool = False,
) -> None:
    """Raise AssertionError unless two trees are the same, to the last bit, in every part.

    Parameters
    ----------
    a, b : object
        The trees: what is expected, and what came.
    template : bool, default True
        With False a namedtuple may be of another class that has the same name and fields.
    identity : bool, default True
        Whether what is one object in one tree must be one object in the other.
    loaded : bool, default False
        Whether ``b`` came from a checkpoint, so that its numpy arrays must be writable.
    """
    _Comparison(template, identity, loaded).compare(a, b, ())


_UNIT_PARTS = ("dim", "scale", "base", "factor", "name", "dispname", "is_fullname")
_MUTABLE = (
    list,
    dict,
    set,
    deque,
    bytearray,
    np.ndarray,
    np.random.Generator,
    jax.Array,
    brainstate.State,
    u.Quantity,
    Layer,
    Frozen,
    Slotted,
    JaxData,
    Node,
    Recorded,
    Plain,
)


class _Comparison:
    def __init__(self, template: bool, identity: bool, loaded: bool) -> None:
        self.template, self.identity, self.loaded = template, identity, loaded
        self.a_of: dict[int, Any] = {}
        self.b_of: dict[int, Any] = {}

    def fail(self, what: str, path: tuple[Any, ...], a: Any, b: Any) -> None:
        raise AssertionError(f"{what} at path {format_path(path)}: expected {a!r}, got {b!r}")

    def check(self, same: bool, what: str, path: tuple[Any, ...], a: Any, b: Any) -> None:
        if not same:
            self.fail(what, path, a, b)

    def compare(self, a: Any, b: Any, path: tuple[Any, ...]) -> None:
        self.check(self.same_type(a, b), "type", path, type(a), type(b))
        if self.identity and isinstance(a, _MUTABLE):
            seen = id(a) in self.b_of
            shared = self.b_of.setdefault(id(a), b) is b and self.a_of.setdefault(id(b), a) is a
            self.check(shared, "identity", path, a, b)
            if seen:
                return
        for types, method in self.METHODS:
            if isinstance(a, types):
                method(self, a, b, path)
                return
        if dataclasses.is_dataclass(a):
            names = [field.name for field in dataclasses.fields(a)]
        else:
            names = sorted(getattr(a, "__dict__", ()))
            self.check(names == sorted(getattr(b, "__dict__", ())), "attributes", path, a, b)
        self.check(bool(names), "unknown class", path, a, b)
        for name in names:
            self.compare(getattr(a, name), getattr(b, name), (*path, name))

    def same_type(self, a: Any, b: Any) -> bool:
        if type(a) is type(b):
            return True
        if not self.template and isinstance(a, tuple) and isinstance(b, tuple):
            names = [(type(x).__name__, getattr(x, "_fields", None)) for x in (a, b)]
            return names[0] == names[1] and names[0][1] is not None
        return False

    def compare_scalar(self, a: Any, b: Any, path: tuple[Any, ...]) -> None:
        self.check(a == b, "value", path, a, b)

    def compare_float(self, a: float, b: float, path: tuple[Any, ...]) -> None:
        self.check(struct.pack("<d", a) == struct.pack("<d", b), "value", path, a, b)

    def compare_complex(self, a: complex, b: complex, path: tuple[Any, ...]) -> None:
        self.compare_float(a.real, b.real, path)
        self.compare_float(a.imag, b.imag, path)

    def compare_as_text(self, a: Any, b: Any, path: tuple[Any, ...]) -> None:
        self.check(str(a) == str(b), "value", path, a, b)

    def compare_moment(self, a: Any, b: Any, path: tuple[Any, ...]) -> None:
        self.check(a.replace(tzinfo=None) == b.replace(tzinfo=None) and a.fold == b.fold, "value", path, a, b)
        self.check(type(a.tzinfo) is type(b.tzinfo), "time zone", path, a, b)
        if isinstance(a.tzinfo, zoneinfo.ZoneInfo):
            self.check(a.tzinfo.key == b.tzinfo.key, "time zone", path, a, b)
        elif a.tzinfo is not None:
            zones = [(x.tzinfo.utcoffset(None), x.tzinfo.tzname(None)) for x in (a, b)]
            self.check(zones[0] == zones[1], "time zone", path, *zones)

    def compare_slice(self, a: slice, b: slice, path: tuple[Any, ...]) -> None:
        for name in ("start", "stop", "step"):
            self.compare(getattr(a, name), getattr(b, name), (*path, name))

    def compare_sequence(self, a: Any, b: Any, path: tuple[Any, ...]) -> None:
        self.check(len(a) == len(b), "length", path, a, b)
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            self.compare(x, y, (*path, i))

    def compare_deque(self, a: deque[Any], b: deque[Any], path: tuple[Any, ...]) -> None:
        self.check(a.maxlen == b.maxlen, "maxlen", path, a.maxlen, b.maxlen)
        self.compare_sequence(a, b, path)

    def compare_dict(self, a: dict[Any, Any], b: dict[Any, Any], path: tuple[Any, ...]) -> None:
        self.check(len(a) == len(b), "keys", path, list(a), list(b))
        for (key, x), (other, y) in zip(a.items(), b.items(), strict=True):
            self.compare(key, other, (*path, key))
            self.compare(x, y, (*path, key))

    def compare_defaultdict(self, a: Any, b: Any, path: tuple[Any, ...]) -> None:
        self.check(a.default_factory is b.default_factory, "factory", path, a, b)
        self.compare_dict(a, b, path)

    def compare_set(self, a: Any, b: Any, path: tuple[Any, ...]) -> None:
        self.check(_canonical(a) == _canonical(b), "elements", path, a, b)

    def compare_scalar_array(self, a: np.generic, b: np.generic, path: tuple[Any, ...]) -> None:
        self.elements(np.asarray(a), np.asarray(b), path)

    def compare_array(self, a: np.ndarray, b: np.ndarray, path: tuple[Any, ...]) -> None:
        self.check(b.flags.writeable or not self.loaded, "writable", path, True, False)
        self.elements(a, b, path)

    def elements(self, a: np.ndarray, b: np.ndarray, path: tuple[Any, ...]) -> None:
        same = a.dtype == b.dtype and repr(a.dtype) == repr(b.dtype)
        self.check(same and a.dtype.isalignedstruct == b.dtype.isalignedstruct, "dtype", path, a.dtype, b.dtype)
        self.check(a.shape == b.shape, "shape", path, a.shape, b.shape)
        self.check(same_bits(a, b), "value", path, a, b)

    def compare_masked(self, a: np.ma.MaskedArray, b: np.ma.MaskedArray, path: tuple[Any, ...]) -> None:
        self.elements(np.ma.getdata(a), np.ma.getdata(b), path)
        self.elements(np.ma.getmaskarray(a), np.ma.getmaskarray(b), path)
        # Asking an array for its fill value would set it; numpy's default for small integers does not fit them.
        with np.errstate(all="ignore"):
            fills = [np.asarray(x.copy().fill_value).astype(x.dtype) for x in (a, b)]
        self.elements(*fills, path)
        self.check(a.hardmask == b.hardmask, "hardmask", path, a.hardmask, b.hardmask)

    def compare_generator(self, a: np.random.Generator, b: np.random.Generator, path: tuple[Any, ...]) -> None:
        kinds = [type(x.bit_generator) for x in (a, b)]
        self.check(kinds[0] is kinds[1], "bit generator", path, *kinds)
        states = [x.bit_generator.state for x in (a, b)]
        _Comparison(True, False, False).compare(*states, path)

    def compare_jax_array(self, a: jax.Array, b: jax.Array, path: tuple[Any, ...]) -> None:
        self.check(a.dtype == b.dtype, "dtype", path, a.dtype, b.dtype)
        self.check(a.shape == b.shape, "shape", path, a.shape, b.shape)
        self.check(a.sharding == b.sharding, "sharding", path, a.sharding, b.sharding)
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            impls = [jax.random.key_impl(x) for x in (a, b)]
            self.check(impls[0] == impls[1], "key impl", path, *impls)
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        else:
            self.check(a.weak_type == b.weak_type, "weak_type", path, a.weak_type, b.weak_type)
        self.elements(np.asarray(a), np.asarray(b), path)

    def compare_unit(self, a: u.Unit, b: u.Unit, path: tuple[Any, ...]) -> None:
        for name in _UNIT_PARTS:
            x, y = getattr(a, name), getattr(b, name)
            self.check(x == y, f"unit {name}", path, x, y)

    def compare_quantity(self, a: u.Quantity, b: u.Quantity, path: tuple[Any, ...]) -> None:
        self.compare_unit(a.unit, b.unit, path)
        self.compare(a.mantissa, b.mantissa, path)

    def compare_state(self, a: brainstate.State, b: brainstate.State, path: tuple[Any, ...]) -> None:
        self.compare(a.value, b.value, path)

    def compare_module(self, a: Any, b: Any, path: tuple[Any, ...]) -> None:
        self.compare_dict(a.states(), b.states(), path)

    def compare_partial(self, a: Any, b: Any, path: tuple[Any, ...]) -> None:
        self.check(a.func is b.func, "function", path, a.func, b.func)
        self.compare(a.args, b.args, (*path, "args"))
        self.compare(a.keywords, b.keywords, (*path, "keywords"))

    def compare_node(self, a: Node, b: Node, path: tuple[Any, ...]) -> None:
        self.compare(a.label, b.label, (*path, "label"))
        self.compare(a.left, b.left, (*path, "left"))
        self.compare(a.right, b.right, (*path, "right"))

    METHODS: tuple[tuple[Any, Callable[..., None]], ...] = (
        (enum.Enum, compare_scalar),
        (np.generic, compare_scalar_array),
        (np.ma.MaskedArray, compare_masked),
        (np.ndarray, compare_array),
        (jax.Array, compare_jax_array),
        (u.Quantity, compare_quantity),
        (u.Unit, compare_unit),
        (brainstate.State, compare_state),
        (brainstate.nn.Module, compare_module),
        (jax.tree_util.Partial, compare_partial),
        (Node, compare_node),
        (np.random.Generator, compare_generator),
        (float, compare_float),
        (complex, compare_complex),
        (decimal.Decimal, compare_as_text),
        ((datetime.datetime, datetime.time), compare_moment),
        (slice, compare_slice),
        (deque, compare_deque),
        ((list, tuple), compare_sequence),
        (defaultdict, compare_defaultdict),
        (dict, compare_dict),
        ((set, frozenset), compare_set),
        (
            (
                type(None),
                type(...),
                int,
                str,
                bytes,
                bytearray,
                range,
                fractions.Fraction,
                datetime.date,
                datetime.timedelta,
                uuid.UUID,
                pathlib.PurePath,
                u.Dimension,
            ),
            compare_scalar,
        ),
    )


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Tell whether two arrays of one dtype and shape have the same elements, whatever lies in the padding."""
    if a.dtype.names is not None:
        return all(same_bits(a[name], b[name]) for name in a.dtype.names)
    if a.dtype.kind == "T":
        return all(x == y or x is y or (x != x and y != y) for x, y in zip(a.flat, b.flat, strict=True))
    if a.dtype.char in "gG":
        parts = [(a.real, b.real), (a.imag, b.imag)] if a.dtype.char == "G" else [(a, b)]
        return all(
            np.array_equal(x, y, equal_nan=True) and np.array_equal(np.signbit(x), np.signbit(y)) for x, y in parts
        )
    return a.tobytes() == b.tobytes()


def _canonical(x: Any) -> str:
    if isinstance(x, (set, frozenset)):
        return f"{type(x).__name__}({', '.join(sorted(map(_canonical, x)))})"
    if isinstance(x, tuple):
        return f"{type(x).__name__}({', '.join(map(_canonical, x))})"
    return f"{type(x).__name__}:{x!r}"


# --- equal trees and templates ---------------------------------------------------------------------


def copy_tree(tree: Any) -> Any:
    """Make an equal tree of other objects, with the same sharing inside."""
    return _Rebuild(_copy_leaf).rebuild(tree)


def blank_tree(tree: Any) -> Any:
    """Make a template: the same structure with other values."""
    return _Rebuild(_blank_leaf).rebuild(tree)


def replace_leaf(tree: Any, index: int, leaf: Any) -> Any:
    """Make an equal tree in which one leaf is another; ``index`` counts the leaves around."""
    count = [0]
    _Rebuild(lambda x: count.__setitem__(0, count[0] + 1)).rebuild(tree)
    left = [index % count[0] if count[0] else -1]

    def replace(x: Any) -> Any:
        left[0] -= 1
        return leaf if left[0] == -1 else _copy_leaf(x)

    return _Rebuild(replace).rebuild(tree)


class _Rebuild:
    def __init__(self, leaf: Callable[[Any], Any]) -> None:
        self.leaf = leaf
        self.memo: dict[int, Any] = {}

    def rebuild(self, x: Any) -> Any:
        if id(x) not in self.memo:
            self.memo[id(x)] = (x, self.build(x))
        return self.memo[id(x)][1]

    def build(self, x: Any) -> Any:
        cls = type(x)
        if isinstance(x, brainstate.State):
            return cls(self.rebuild(x.value))
        if isinstance(x, u.Quantity):
            mantissa = self.rebuild(x.mantissa)
            if not isinstance(mantissa, (int, float, complex, np.generic, np.ndarray, jax.Array)):
                raise TypeError("no mantissa")
            return u.Quantity(mantissa, unit=x.unit)
        if isinstance(x, jax.tree_util.Partial):
            keywords = {key: self.rebuild(value) for key, value in x.keywords.items()}
            return cls(x.func, *map(self.rebuild, x.args), **keywords)
        if isinstance(x, Node):
            return Node(self.rebuild(x.left), self.rebuild(x.right), x.label)
        if isinstance(x, Plain):
            return Plain(self.rebuild(x.value))
        if isinstance(x, defaultdict):
            return cls(x.default_factory, {key: self.rebuild(value) for key, value in x.items()})
        if isinstance(x, dict):
            return cls({key: self.rebuild(value) for key, value in x.items()})
        if isinstance(x, deque):
            return cls(map(self.rebuild, x), x.maxlen)
        if isinstance(x, tuple) and hasattr(x, "_fields"):
            return cls(*map(self.rebuild, x))
        if isinstance(x, (list, tuple)):
            return cls(map(self.rebuild, x))
        if dataclasses.is_dataclass(x):
            names = [field.name for field in dataclasses.fields(x)]
            static = [field.name for field in dataclasses.fields(x) if field.metadata.get("static")]
            return cls(**{n: getattr(x, n) if n in static else self.rebuild(getattr(x, n)) for n in names})
        return self.leaf(x)


def _copy_leaf(x: Any) -> Any:
    if isinstance(x, (np.ndarray, np.random.Generator)):
        return copy.deepcopy(x)
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(np.array(jax.random.key_data(x)), impl=jax.random.key_impl(x))
    if isinstance(x, jax.Array):
        return jnp.array(x, copy=True) if x.weak_type else jnp.asarray(np.array(x))
    return type(x)(x) if isinstance(x, (set, bytearray)) else x


#: Another value of the same type, for each type that is a leaf.
_BLANKS: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (enum.Enum, lambda x: next(member for member in type(x) if member is not x)),
    (np.datetime64, lambda x: np.datetime64("NaT", np.datetime_data(x.dtype))),
    (np.generic, lambda x: np.zeros((), x.dtype)[()]),
    (np.ma.MaskedArray, lambda x: np.ma.masked_array(np.zeros(x.shape, x.dtype))),
    (np.ndarray, lambda x: fill(x.dtype, x.size, np.random.default_rng(77)).reshape(x.shape)),
    (np.random.Generator, lambda x: np.random.Generator(type(x.bit_generator)(99))),
    (bool, lambda x: not x),
    (int, lambda x: type(x)(7)),
    (float, lambda x: type(x)(0.5)),
    (complex, lambda x: 0.5j),
    (str, lambda x: type(x)("blank")),
    ((bytes, bytearray, set, frozenset), lambda x: type(x)()),
    (datetime.datetime, lambda x: datetime.datetime(1999, 1, 1)),
    (datetime.date, lambda x: datetime.date(1999, 1, 1)),
    (datetime.time, lambda x: datetime.time(1)),
    (datetime.timedelta, lambda x: datetime.timedelta(7)),
    (uuid.UUID, lambda x: uuid.UUID(int=7)),
    (decimal.Decimal, lambda x: decimal.Decimal(7)),
    (fractions.Fraction, lambda x: fractions.Fraction(7)),
    (pathlib.PurePath, lambda x: type(x)("blank")),
    (range, lambda x: range(7)),
    (slice, lambda x: slice(7)),
)


def _blank_leaf(x: Any) -> Any:
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        zeros = np.zeros(jax.random.key_data(x).shape, np.uint32)
        return jax.random.wrap_key_data(zeros, impl=jax.random.key_impl(x))
    if isinstance(x, jax.Array):
        return jnp.zeros_like(x) if x.weak_type else jnp.asarray(np.zeros(x.shape, x.dtype))
    for types, blank in _BLANKS:
        if isinstance(x, types):
            return blank(x)
    return x


# --- the leaves ------------------------------------------------------------------------------------

ML_DTYPES = [
    np.dtype(getattr(ml_dtypes, name))
    for name in dir(ml_dtypes)
    if isinstance(getattr(ml_dtypes, name), type) and issubclass(getattr(ml_dtypes, name), np.generic)
]
ML_TYPES = {dtype.type for dtype in ML_DTYPES}
PLAIN_DTYPES = [np.dtype(c) for c in ["?", *"bhilBHILefdFD"]]
SWAPPED_DTYPES = [dtype.newbyteorder(">") for dtype in PLAIN_DTYPES if dtype.itemsize > 1]
LONG_DTYPES = [np.dtype(np.longdouble), np.dtype(np.clongdouble)]
TIME_DTYPES = [np.dtype(text) for text in ("M8[s]", "<M8[25us]", ">M8[D]", "m8[ns]", ">m8[3h]", "M8", "m8")]
TEXT_DTYPES = [np.dtype(text) for text in ("U1", "<U7", ">U3", "S1", "S5", "V3")]
STRING_DTYPES = [
    np.dtypes.StringDType(),
    np.dtypes.StringDType(na_object=None),
    np.dtypes.StringDType(na_object=float("nan")),
    np.dtypes.StringDType(coerce=False),
    np.dtypes.StringDType(na_object="missing"),
]
STRUCT_DTYPES = [
    np.dtype([("x", "<f4"), ("n", ">i2")]),
    np.dtype([("flag", "?"), ("value", "f8"), ("name", "U3")], align=True),
    np.dtype([("inner", [("a", "i4"), ("b", [("c", "c8")])]), ("matrix", ">f2", (2, 3))]),
    np.dtype({"names": ["a", "b"], "formats": ["u1", "<i4"], "offsets": [2, 8], "itemsize": 16}),
    np.dtype([(("A title", "field"), "i4"), ("when", "M8[ms]")]),
    np.dtype([("half", ml_dtypes.bfloat16), ("eight", ml_dtypes.float8_e4m3fn, (2,))]),
    np.dtype([]),
]
NUMPY_DTYPES = PLAIN_DTYPES + SWAPPED_DTYPES + LONG_DTYPES + TIME_DTYPES + TEXT_DTYPES + ML_DTYPES
NUMPY_DTYPES += STRING_DTYPES + STRUCT_DTYPES
JAX_DTYPES = [np.dtype(c) for c in ("?", *"bhiBHIefF")] + [
    dtype for dtype in ML_DTYPES if not any(part in dtype.name for part in ("complex", "float6", "int1"))
]
SHAPES = [(), (0,), (1,), (3,), (2, 3), (0, 2), (2, 1, 2)]
LAYOUTS = ["C", "F", "reversed", "strided", "broadcast", "read-only", "transposed", "unaligned"]
WORDS = ["", "a", "a/b", "a.b", "0", "naïve", "日本", "\U0001f600x", "nul\0in", " ", "x" * 40]
KEY_IMPLS = ["threefry2x32", "rbg", "unsafe_rbg"]
UNITS = [
    u.mV,
    u.ms,
    u.second,
    u.volt,
    u.nA / u.cm**2,
    u.mV * u.ms,
    u.mV**0.5,
    u.UNITLESS,
    u.siemens,
    u.kelvin,
    u.becquerel,
    u.hertz,
    u.joule,
    u.newton * u.meter,
    u.Unit(dim=u.mV.dim, scale=u.mV.scale),
    u.Unit(dim=u.second.dim, scale=0, factor=60.0, name="my minute", dispname="mymin"),
    u.Unit(dim=u.second.dim, scale=3, factor=0.1),
]
NAN = float("nan")
BIT_GENERATORS = [np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64]
FACTORIES = [list, dict, set, int, float, str, tuple, bool, None]


def fill(dtype: np.dtype, size: int, rng: np.random.Generator) -> np.ndarray:
    """Make an array of any bits that the dtype can hold: nans with payloads, infinities, NaT, -0.0."""
    if dtype.names is not None:
        array = np.zeros(size, dtype)
        for name in dtype.names:
            field = dtype[name]
            values = fill(field.base, size * int(np.prod(field.shape, dtype=int)), rng)
            array[name] = values.reshape((size, *field.shape))
        return array
    if dtype.kind == "T":
        words = [*WORDS, dtype.na_object] if hasattr(dtype, "na_object") else WORDS
        array = np.empty(size, dtype)
        for i in range(size):
            array[i] = words[rng.integers(len(words))]
        return array
    if dtype.kind == "U":
        return np.array([WORDS[i] for i in rng.integers(len(WORDS), size=size)], dtype)
    if dtype.char in "gG":
        values = rng.standard_normal(size).astype(np.longdouble) / 3
        return np.where(rng.integers(0, 4, size) == 0, np.longdouble("nan"), values).astype(dtype)
    if dtype == "M8":
        return np.full(size, "NaT", dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, size).astype(dtype)
    if dtype.type in ML_TYPES and "int" in dtype.name:
        info = ml_dtypes.iinfo(dtype)
        return rng.integers(int(info.min), int(info.max) + 1, size).astype(np.int8).astype(dtype)
    data = np.frombuffer(rng.bytes(size * dtype.itemsize), np.uint8).copy()
    if dtype.type in ML_TYPES and dtype.itemsize == 1:
        data &= np.uint8((1 << ml_dtypes.finfo(dtype).bits) - 1)
    return np.frombuffer(data, dtype) if size else np.zeros(0, dtype)


def lay_out(array: np.ndarray, layout: str) -> np.ndarray:
    """Give an array of the same shape whose elements lie in memory in the way that is named."""
    if layout == "F" and array.ndim > 1:
        return np.asfortranarray(array)
    if layout == "reversed" and array.ndim:
        return array[::-1]
    if layout == "strided" and array.ndim:
        return np.concatenate([array, array], axis=-1)[..., ::2].reshape(array.shape)
    if layout == "broadcast" and array.ndim and array.size:
        return np.broadcast_to(array[:1], array.shape)
    if layout == "transposed":
        return np.ascontiguousarray(array.T).T if array.ndim > 1 else array
    if layout == "unaligned" and array.dtype.kind != "T" and array.dtype.itemsize:
        data = np.zeros(array.nbytes + 1, np.uint8)
        view = np.ndarray(array.shape, array.dtype, buffer=data, offset=1)
        view[...] = array
        return view
    array = array.copy()
    array.flags.writeable = layout != "read-only"
    return array


@st.composite
def numpy_arrays(draw: Any, dtypes: Any = NUMPY_DTYPES) -> np.ndarray:
    """Any numpy array, by dtype, shape and layout."""
    dtype, shape = draw(st.sampled_from(dtypes)), draw(st.sampled_from(SHAPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    array = fill(dtype, int(np.prod(shape, dtype=int)), rng).reshape(shape)
    return lay_out(array, draw(st.sampled_from(LAYOUTS)))


@st.composite
def numpy_scalars(draw: Any, dtypes: Any = NUMPY_DTYPES) -> np.generic:
    """Any numpy scalar; a StringDType has none."""
    dtype = draw(st.sampled_from([dtype for dtype in dtypes if dtype.kind != "T"]))
    return fill(dtype, 1, np.random.default_rng(draw(st.integers(0, 2**32))))[0]


@st.composite
def masked_arrays(draw: Any) -> np.ma.MaskedArray:
    """A masked array with data under the mask."""
    dtypes = [*PLAIN_DTYPES, *SWAPPED_DTYPES, np.dtype("U3"), STRUCT_DTYPES[0], np.dtype("M8[s]")]
    data = draw(numpy_arrays(dtypes=dtypes))
    mask = draw(st.sampled_from([False, True, None]))
    if mask is None:
        mask = fill(np.dtype("?"), data.size, np.random.default_rng(data.size)).reshape(data.shape)
        mask = mask if data.dtype.names is None else [tuple([bool(m)] * 2) for m in mask.flat][: data.size]
        if data.dtype.names is not None:
            full = np.zeros(data.shape, np.ma.make_mask_descr(data.dtype))
            full.reshape(-1)[:] = mask
            mask = full
    array = np.ma.masked_array(data, mask, hard_mask=draw(st.booleans()))
    if array.dtype.kind in "fiu" and draw(st.booleans()):
        array.fill_value = 3
    return array


@st.composite
def jax_arrays(draw: Any) -> jax.Array:
    """Any jax array: every dtype that the CPU holds, and weak types."""
    shape = draw(st.sampled_from(SHAPES))
    if draw(st.integers(0, 3)) == 0:
        value = draw(st.sampled_from([1, 2.5, -0.0, True, 1j]))
        return jnp.broadcast_to(jnp.asarray(value), shape)
    dtype = draw(st.sampled_from(JAX_DTYPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return jnp.asarray(fill(dtype, int(np.prod(shape, dtype=int)), rng).reshape(shape))


@st.composite
def key_arrays(draw: Any) -> jax.Array:
    """A typed PRNG key, or an array of them."""
    impl = draw(st.sampled_from(KEY_IMPLS))
    shape = (*draw(st.sampled_from([(), (2,), (0,)])), 2 if impl == "threefry2x32" else 4)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    data = fill(np.dtype(np.uint32), int(np.prod(shape)), rng).reshape(shape)
    return jax.random.wrap_key_data(data, impl=impl)


def scalars(legacy: bool = False) -> st.SearchStrategy[Any]:
    """Python's own scalars."""
    special = [0.0, -0.0, NAN, float("inf"), -float("inf"), 5e-324, 1.7976931348623157e308]
    parts = [
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(),
        st.sampled_from(special),
        st.complex_numbers(),
        st.text(max_size=5),
        st.sampled_from(WORDS),
        st.binary(max_size=5),
    ]
    if not legacy:
        edges = [2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**3000, -(10**30), 0]
        parts += [st.integers(), st.sampled_from(edges)]
    return st.one_of(parts)


ZONES = st.sampled_from(
    [
        None,
        datetime.UTC,
        datetime.timezone(datetime.timedelta(hours=5, minutes=30)),
        datetime.timezone(datetime.timedelta(seconds=-3723)),
        zoneinfo.ZoneInfo("Europe/Berlin"),
    ]
)
PATHS = [
    pathlib.Path("a") / "b.txt",
    pathlib.PurePosixPath("/x/y"),
    pathlib.PureWindowsPath("C:\\x\\y"),
    pathlib.PosixPath("."),
]


def library_values() -> st.SearchStrategy[Any]:
    """Values of the standard library that are leaves."""
    when = st.datetimes(timezones=st.none()).flatmap(lambda x: ZONES.map(lambda z: x.replace(tzinfo=z)))
    step = st.none() | st.integers(-3, 3).filter(bool)
    return st.one_of(
        when,
        st.sampled_from([datetime.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"))]),
        st.dates(),
        st.times().flatmap(lambda x: ZONES.map(lambda z: x.replace(tzinfo=z))),
        st.timedeltas(),
        st.uuids(allow_nil=True),
        st.decimals(),
        st.sampled_from([decimal.Decimal("-0"), decimal.Decimal("1.00"), decimal.Decimal("sNaN12")]),
        st.fractions(),
        st.sampled_from(PATHS),
        st.builds(range, st.integers(-9, 9), st.integers(-9, 2**70), st.sampled_from([-2, -1, 1, 5])),
        st.builds(slice, st.none() | st.integers(), st.none() | st.integers(), step),
        st.just(...),
        st.binary(max_size=5).map(bytearray),
    )


def hashable_values(*, keys: bool = False) -> st.SearchStrategy[Any]:
    """What can be an element of a set or a dict key; many are easily taken for each other.

    A frozenset is no key here: where keys become text (legacy files), equal ones become different texts.
    """
    confusable = [
        "a/b",
        "a.b",
        "a",
        "b",
        "0",
        0,
        "1",
        1,
        True,
        1.0,
        "",
        None,
        "None",
        b"a",
        b"",
        -1,
        1.5,
    ]
    confusable += ["True", "nan", ".", "..", "/", "'a'", "__msgpack_chunked_array__", "dtype", 2**70, 1j, ()]
    parts = st.one_of(
        st.sampled_from(confusable),
        st.text(max_size=3),
        st.integers(),
        st.floats(allow_nan=False),
        st.dates(),
        st.uuids(),
        st.sampled_from([np.int64(3), np.float32(0.1), np.str_("np"), *PATHS]),
    )

    def extend(x: Any) -> Any:
        several = st.tuples(x) | st.tuples(x, x)
        return several if keys else several | st.frozensets(x, max_size=2)

    return st.recursive(parts, extend, max_leaves=3)


def leaves(*, with_jax: bool, with_units: bool, legacy: bool, template_free: bool) -> st.SearchStrategy[Any]:
    """Every kind of leaf, each group as often as the others."""
    dtypes = [*PLAIN_DTYPES, np.dtype(ml_dtypes.bfloat16), np.dtype("M8[s]")] if legacy else NUMPY_DTYPES
    groups = [scalars(legacy), numpy_arrays(dtypes=dtypes), numpy_scalars(dtypes=dtypes)]
    if with_jax:
        groups += [jax_arrays()]
    if with_units:
        groups += [quantities(with_jax=with_jax, legacy=legacy)]
    if with_jax and with_units:
        groups += [states(legacy=legacy, template_free=template_free)]
    if not legacy:
        groups += [numpy_arrays(dtypes=STRUCT_DTYPES + STRING_DTYPES + ML_DTYPES), masked_arrays()]
        groups += [library_values(), st.one_of(rare_values(with_jax, with_units, template_free))]
    return st.sampled_from(groups).flatmap(lambda group: group)


def rare_values(with_jax: bool, with_units: bool, template_free: bool) -> list[st.SearchStrategy[Any]]:
    """Leaves that few trees have."""
    generators = st.builds(
        lambda cls, seed: np.random.Generator(cls(seed)), st.sampled_from(BIT_GENERATORS), st.integers(0, 9)
    )
    sets = st.frozensets(hashable_values(), max_size=3)
    parts = [generators, sets, sets.map(set)]
    if not template_free:
        enums = [*Color, *Number, *Access, Access.READ | Access.WRITE]
        parts += [st.sampled_from(enums), st.builds(Str, st.text(max_size=3))]
        parts += [st.builds(Int, st.integers()), st.builds(Float, st.floats())]
    if with_jax:
        parts += [key_arrays()]
    if with_units:
        parts += [st.sampled_from(UNITS), st.sampled_from(UNITS).map(lambda unit: unit.dim)]
    return parts


def quantities(*, with_jax: bool, legacy: bool) -> st.SearchStrategy[u.Quantity]:
    """A quantity with a python, numpy or jax mantissa."""
    dtypes = [np.dtype(c) for c in "bhilefdF"] + ([] if legacy else [np.dtype(">f4")])
    mantissas = [
        st.floats(),
        st.integers(-(2**31), 2**31 - 1),
        numpy_arrays(dtypes=dtypes),
        numpy_scalars(dtypes=dtypes[:8]),
    ]
    if with_jax:
        mantissas.append(jax_arrays())
    return st.builds(lambda x, unit: u.Quantity(x, unit=unit), st.one_of(mantissas), st.sampled_from(UNITS))


# --- the trees -------------------------------------------------------------------------------------

STATE_CLASSES = [
    brainstate.State,
    brainstate.ParamState,
    brainstate.HiddenState,
    brainstate.ShortTermState,
    brainstate.LongTermState,
    brainstate.BatchState,
    brainstate.DelayState,
]


def _containers(children: Any, *, with_jax: bool, legacy: bool, template_free: bool) -> st.SearchStrategy[Any]:
    some = st.lists(children, max_size=3)
    keys = st.sampled_from(WORDS) | st.text(max_size=3) | st.integers(-2, 9)
    named = st.dictionaries(keys, children, max_size=3).filter(lambda x: len(set(map(str, x))) == len(x))
    parts = [some, some.map(tuple), named, st.builds(Pair, children, children), st.builds(Single, children)]
    parts += [named.map(OrderedDict)]
    if not legacy:
        anything = st.dictionaries(hashable_values(keys=True), children, max_size=4)
        parts += [
            anything,
            anything.map(OrderedDict),
            st.builds(defaultdict, st.sampled_from(FACTORIES), anything),
            st.builds(lambda x, room: deque(x, room), some, st.sampled_from([None, 3, 5])),
            st.builds(Recorded, children, st.integers(0, 9)),
            st.builds(Plain, children),
        ]
    if not legacy and not template_free:
        parts += [
            st.builds(Layer, children, children),
            st.builds(Frozen, value=children),
            st.builds(Slotted, children),
            some.map(List),
            some.map(Tuple),
            named.map(Dict),
            st.builds(defaultdict, st.just(make_default), anything),
        ]
    if with_jax and not legacy and not template_free:
        parts += [
            st.builds(JaxData, children),
            st.builds(Node, children, children),
            st.builds(lambda x, y: jax.tree_util.Partial(scale_by, x, x=y), children, children),
        ]
    return st.one_of(parts)


def states(*, legacy: bool, template_free: bool) -> st.SearchStrategy[Any]:
    """A brainstate State, or one of brainstate's dicts of them."""
    array = jax_arrays() | quantities(with_jax=True, legacy=legacy)
    value = array | st.dictionaries(st.sampled_from(["w", "b", "a.b"]), array, max_size=2)
    classes = STATE_CLASSES if template_free or legacy else [*STATE_CLASSES, CustomState]
    state = st.sampled_from(classes).flatmap(
        lambda cls: st.builds(cls, array if cls is brainstate.HiddenState else value)
    )
    if legacy:
        return state
    path = st.lists(st.sampled_from(["net", "w", 0, "a/b"]), min_size=1, max_size=3).map(tuple)
    whole = st.dictionaries(path, state, max_size=3).filter(_prefix_free)
    flat = whole.map(brainstate.util.FlattedDict)
    return state | flat | flat.map(lambda x: x.to_nest()).filter(lambda x: isinstance(x, brainstate.util.NestedDict))


def _prefix_free(paths: dict[tuple[Any, ...], Any]) -> bool:
    return not any(a != b and b[: len(a)] == a for a in paths for b in paths)


@st.composite
def checkpointable_trees(
    draw: Any,
    *,
    jax: bool = True,
    units: bool = True,
    legacy: bool = False,
    template_free: bool = False,
    max_leaves: int = 8,
) -> Any:
    """Any tree that a checkpoint can hold, with objects that are met more than once.

    Parameters
    ----------
    jax, units : bool
        Whether there may be jax objects (and brainstate States), and quantities.
    legacy : bool
        Only what files of ``braintools.file`` and flax can hold.
    template_free : bool
        Only what comes back as itself when no template is given.
    max_leaves : int
        About how many leaves there may be.
    """
    small, whole = _strategies(jax, units, legacy, template_free, max_leaves)
    _SHARED.clear()
    if not legacy:
        _SHARED.extend(draw(st.lists(small, max_size=2)))
    return draw(whole)


#: What the tree that is being drawn may hold more than once.
_SHARED: list[Any] = []


@functools.cache
def _strategies(
    with_jax: bool, with_units: bool, legacy: bool, template_free: bool, max_leaves: int
) -> tuple[st.SearchStrategy[Any], st.SearchStrategy[Any]]:
    leaf = leaves(with_jax=with_jax, with_units=with_units, legacy=legacy, template_free=template_free)

    def extend(children: Any) -> Any:
        return _containers(children, with_jax=with_jax, legacy=legacy, template_free=template_free)

    small = st.recursive(leaf, extend, max_leaves=2)
    if legacy:
        return small, extend(st.recursive(leaf, extend, max_leaves=max_leaves))
    again = st.integers(0, 1).map(lambda i: _SHARED[i] if i < len(_SHARED) else None)
    return small, st.recursive(leaf | again, extend, max_leaves=max_leaves)
