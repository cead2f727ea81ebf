"""The form in which ``reader.mjs`` prints a tree, made of the tree itself: see README.md in this folder."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import json
import math
import pathlib
import random
import struct
import uuid
import zoneinfo
from typing import Any

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np

from braintools_ckpt.adapters.brainunit import unit_value
from braintools_ckpt.dtypes import describe

Form = Any


def form_of(tree: Any) -> Form:
    """Give the form of a tree, as JSON gives it back."""
    former = _Former()
    made = former.form(tree)
    return json.loads(json.dumps(_Numbered(made).print(made)))


class _Former:
    """Makes the form of a tree, in which what is one object is one dict of Python."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Any, Form]] = {}

    def form(self, x: Any) -> Form:
        if isinstance(x, _IMMUTABLE):
            return self._make(x)
        if id(x) not in self._made:
            self._made[id(x)] = (x, _Object(self._make(x)))
        return self._made[id(x)][1]

    def _make(self, x: Any) -> Form:
        plain = {type(None): lambda x: x, bool: lambda x: x, str: lambda x: x, int: _int, float: _float, bytes: _bytes}
        if type(x) in plain:
            return plain[type(x)](x)
        for ty, method in _METHODS:
            if isinstance(x, ty):
                return method(self, x)
        if jax.tree_util.all_leaves([x]) is False:
            return self._pytree(x)
        if dataclasses.is_dataclass(x):
            return self._fields("dataclass", x, **{"class": _name(x)})
        raise TypeError(f"no form for {x!r}")

    # What the methods make their forms of.

    def tagged(self, tag: str, state: Form, **attributes: Any) -> Form:
        made = {"tag": tag, "state": state}
        return made | {"attributes": {k: self.form(v) for k, v in attributes.items()}} if attributes else made

    def list(self, items: Any) -> Form:
        return {"list": [self.form(item) for item in items]}

    def dict(self, items: Any) -> Form:
        return {"dict": [[self.form(key), self.form(item)] for key, item in items.items()]}

    def derived(self, x: Any, base: type) -> dict[str, str]:
        return {} if type(x) is base else {"class": _name(x)}

    # The types.

    def _enum(self, x: enum.Enum) -> Form:
        return self.tagged("enum", self.dict({"name": x.name, "value": x.value}), **{"class": _name(x)})

    def _scalar_subclass(self, x: Any) -> Form:
        base = next(ty for ty in (str, int, float, bytes) if isinstance(x, ty))
        value = {str: str.__str__, int: int.__index__, float: float.__float__, bytes: bytes}[base](x)
        return self.tagged(base.__name__, self.form(value), **{"class": _name(x)})

    def _complex(self, x: complex) -> Form:
        return self.tagged("complex", self.list([x.real, x.imag]))

    def _namedtuple(self, x: Any) -> Form:
        return self.tagged("namedtuple", self.dict(x._asdict()), **{"class": type(x).__name__})

    def _tuple(self, x: Any) -> Form:
        if hasattr(x, "_fields"):
            return self._namedtuple(x)
        return self.tagged("tuple", self.list(x), **self.derived(x, tuple))

    def _list(self, x: Any) -> Form:
        return self.list(x) if type(x) is list else self.tagged("list", self.list(x), **self.derived(x, list))

    def _dict(self, x: Any) -> Form:
        if type(x) is dict:
            return self.dict(x)
        if isinstance(x, (brainstate.util.FlattedDict, brainstate.util.NestedDict)):
            return self.tagged(f"brainstate.{type(x).__name__}", self.dict(x))
        bases = (collections.OrderedDict, collections.defaultdict, collections.Counter, dict)
        base = next(ty for ty in bases if isinstance(x, ty))
        named = self.derived(x, base)
        if base is collections.defaultdict and x.default_factory in (list, dict, set, tuple, int, float, str, bool):
            named["factory"] = x.default_factory.__name__
        return self.tagged(base.__name__, self.dict(x), **named)

    def _deque(self, x: Any) -> Form:
        limit = {} if x.maxlen is None else {"maxlen": x.maxlen}
        return self.tagged("deque", self.list(x), **limit, **self.derived(x, collections.deque))

    def _set(self, x: Any) -> Form:
        made = self.list(x)
        made["list"].sort(key=lambda item: json.dumps(_Numbered(item).print(item), separators=(",", ":")))
        return self.tagged(type(x).__name__, made)

    def _range(self, x: Any) -> Form:
        return self.tagged(type(x).__name__, self.list([x.start, x.stop, x.step]))

    def _moment(self, x: Any) -> Form:
        state = [x.replace(tzinfo=None).isoformat(), x.fold, x.tzinfo]
        return self.tagged("datetime" if isinstance(x, datetime.datetime) else "time", self.list(state))

    def _timezone(self, x: datetime.timezone) -> Form:
        offset = x.utcoffset(None)
        plain = datetime.timezone(offset).tzname(None) == x.tzname(None)
        state = [offset.days * 86400 + offset.seconds, offset.microseconds, *([] if plain else [x.tzname(None)])]
        return self.tagged("timezone", self.list(state))

    def _array(self, x: np.ndarray) -> Form:
        if x.dtype.kind == "T":
            return self._strings(x)
        if type(x) is np.ndarray:
            return _array(x, "numpy")
        kind = "matrix" if isinstance(x, np.matrix) else "recarray"
        return self.tagged("numpy.subclass", _array(np.asarray(x), "numpy"), kind=kind)

    def _strings(self, x: Any) -> Form:
        dtype, missing = x.dtype, object()
        if hasattr(dtype, "na_object"):
            missing = dtype.na_object
        items = [None if i is missing or (i != i and missing != missing) else i for i in x.reshape(-1).tolist()]
        named = {"na": missing} if hasattr(dtype, "na_object") else {}
        return self.tagged("numpy.strings", self.list(items), shape=list(x.shape), coerce=dtype.coerce, **named)

    def _masked(self, x: Any) -> Form:
        fill = x._fill_value
        if fill is not None:
            default = np.asarray(np.ma.MaskedArray(np.empty(0, x.dtype)).fill_value)
            fill = np.asarray(fill)
            fill = None if (fill.dtype, fill.tobytes()) == (default.dtype, default.tobytes()) else fill
        mask = None if x.mask is np.ma.nomask else np.asarray(x.mask)
        state = {"data": np.asarray(x.data), "mask": mask, "fill_value": fill}
        return self.tagged("numpy.masked", self.dict(state), hard=bool(x.hardmask))

    def _generator(self, x: np.random.Generator) -> Form:
        seeds = x.bit_generator.seed_seq
        return self.tagged("numpy.generator", self.dict(x.bit_generator.state), seed_seq=seeds)

    def _seeds(self, x: Any) -> Form:
        state = {**x.state, "spawn_key": list(x.state["spawn_key"])}
        return self.tagged("numpy.seedsequence", self.dict(state))

    def _random(self, x: random.Random) -> Form:
        version, internal, gauss = x.getstate()
        return self.tagged("random", self.list([version, np.array(internal, np.uint32), gauss]))

    def _jax(self, x: jax.Array) -> Form:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            data = _array(np.asarray(jax.random.key_data(x)), "jax")
            return self.tagged("jax.key", data, impl=str(jax.random.key_impl(x)))
        return _array(np.asarray(x), "jax_weak" if x.weak_type else "jax")

    def _quantity(self, x: Any) -> Form:
        return self.tagged("brainunit.Quantity", self.form(x.mantissa), unit=x.unit)

    def _unit(self, x: Any) -> Form:
        return self.tagged("brainunit.Unit", None, unit=_plain(unit_value(x)))

    def _dimension(self, x: Any) -> Form:
        return self.tagged("brainunit.Dimension", self.list(np.asarray(x._dims).tolist()))

    def _state(self, x: Any) -> Form:
        own = vars(brainstate).get(type(x).__name__) is type(x)
        named = {k: v for k, v in {"name": x.name, "tag": x.tag}.items() if v is not None}
        kind = type(x).__name__ if own else _name(x)
        return self.tagged("brainstate.State", self.form(x.value), **{"class": kind}, **named)

    def _partial(self, x: Any) -> Form:
        return self.tagged("jax.Partial", self.dict({"args": x.args, "keywords": x.keywords}))

    def _fields(self, tag: str, x: Any, **named: str) -> Form:
        fields = [field.name for field in dataclasses.fields(x)] if dataclasses.is_dataclass(x) else vars(x)
        return self.tagged(tag, self.dict({name: getattr(x, name) for name in fields}), **named)

    def _registered(self, x: Any) -> Form:
        return self._fields(f"class:{_name(x)}", x)

    def _pytree(self, x: Any) -> Form:
        children = jax.tree_util.tree_flatten_with_path(x, is_leaf=lambda node: node is not x)[0]
        state = {path[0].name: child for path, child in children}
        return self.tagged("pytree", self.dict(state), **{"class": _name(x)})


class _Object(dict):
    """The form of an object that can be changed: whether it is met twice, means something."""


class _Numbered:
    """Prints a form: what is met again refers to where it was met first."""

    def __init__(self, form: Form) -> None:
        self._times: collections.Counter[int] = collections.Counter()
        self._count(form)
        self._numbers: dict[int, int] = {}

    def _count(self, form: Form) -> None:
        if isinstance(form, _Object):
            self._times[id(form)] += 1
            if self._times[id(form)] > 1:
                return
        if isinstance(form, dict) and "array" in form:
            return
        for part in form.values() if isinstance(form, dict) else form if isinstance(form, list) else ():
            self._count(part)

    def print(self, form: Form) -> Form:
        if isinstance(form, _Object) and self._times[id(form)] > 1:
            if id(form) in self._numbers:
                return {"again": self._numbers[id(form)]}
            self._numbers[id(form)] = len(self._numbers)
        if isinstance(form, dict) and "array" not in form:
            return {key: self.print(item) for key, item in form.items()}
        return [self.print(item) for item in form] if isinstance(form, list) else form


def _name(x: Any) -> str:
    return f"{type(x).__module__}.{type(x).__qualname__}"


def _int(x: int) -> Form:
    return {"int": _digits(x)}


def _digits(x: int) -> str:
    # Python refuses to write very long ones, to be safe from those that take long.
    return str(x) if abs(x) < 10**4000 else str(decimal.Decimal(x))


def _float(x: float) -> Form:
    return {"float": struct.pack(">d", x).hex()}


def _bytes(x: bytes) -> Form:
    return {"bytes": x.hex()}


def _plain(value: Any) -> Any:
    """Give the Python objects of a value of a structure that has lists and maps alone."""
    if type(value) is list:
        return [_plain(item) for item in value[1:]]
    return {key: _plain(item) for key, item in value.items()} if type(value) is dict else value


def _array(x: np.ndarray, kind: str) -> Form:
    return {"array": _elements(x), "kind": kind, "dtype": describe(x.dtype), "shape": list(x.shape)}


def _elements(x: np.ndarray) -> list[Any]:
    """Give the elements in C order, as JSON has them."""
    x = np.ascontiguousarray(x).reshape(-1)
    dtype = x.dtype
    if dtype.names is not None:
        columns = [_column(x[name], len(x)) for name in dtype.names]
        return [list(row) for row in zip(*columns, strict=True)] if columns else [[] for _ in x]
    if dtype.kind == "b":
        return x.tolist()
    if dtype.kind in "iu" or (dtype.type.__module__ == "ml_dtypes" and "int" in dtype.name):
        return [str(int(item)) for item in x]
    if dtype.kind in "mM":
        return ["NaT" if np.isnat(item) else str(item.astype(np.int64)) for item in x]
    if dtype.kind == "U":
        return x.tolist()
    if dtype.kind == "S":
        return [item.hex() for item in x.tolist()]
    if dtype.kind == "V" and issubclass(dtype.type, np.void):
        return [item.tobytes().hex() for item in x]
    if dtype.kind == "c" or "complex" in dtype.name:
        part = np.longdouble if dtype.char == "G" else np.float64
        with np.errstate(invalid="ignore"):
            pairs = x.astype(np.clongdouble if dtype.char == "G" else np.complex128).view(part)
        return [list(pair) for pair in zip(_floats(pairs[::2]), _floats(pairs[1::2]), strict=True)]
    return _floats(x)


def _column(field: np.ndarray, count: int) -> list[Any]:
    if field.ndim == 1:
        return _elements(field)
    size = int(np.prod(field.shape[1:], dtype=int))
    flat = _elements(field)
    return [flat[i * size : (i + 1) * size] for i in range(count)]


def _floats(x: np.ndarray) -> list[str]:
    if x.dtype.char == "g":
        return [_long_double(item) for item in x]
    with np.errstate(invalid="ignore"):  # of signalling nans
        numbers = x.astype(np.float64).tolist()
    return ["nan" if math.isnan(number) else struct.pack(">d", number).hex() for number in numbers]


def _long_double(x: np.longdouble) -> str:
    sign = "-" if np.signbit(x) else ""
    if not np.isfinite(x):
        return "nan" if np.isnan(x) else f"{sign}inf"
    mantissa, power = np.frexp(abs(x))
    number, power = int(np.ldexp(mantissa, 64)), int(power) - 64
    if number == 0:
        return f"{sign}0"
    while not number & 1:
        number, power = number >> 1, power + 1
    return f"{sign}{number}p{power}"


def register(*types: type) -> None:
    """Name classes that are ``@serializable``, under their own names."""
    _METHODS[:0] = [(ty, _Former._registered) for ty in types]


_METHODS: list[tuple[Any, Any]] = [
    (enum.Enum, _Former._enum),
    (type(np.ma.masked), lambda self, x: self.tagged("numpy.masked_constant", None)),
    (np.ma.MaskedArray, _Former._masked),
    (np.ndarray, _Former._array),
    (np.str_, lambda self, x: self.tagged("numpy.str", str(x))),
    (np.bytes_, lambda self, x: self.tagged("numpy.bytes", _bytes(bytes(x)))),
    (np.generic, lambda self, x: {"scalar": _elements(np.asarray(x))[0], "dtype": describe(x.dtype)}),
    (np.dtype, lambda self, x: self.tagged("numpy.dtype", self.form(describe(x)))),
    (np.random.Generator, _Former._generator),
    (np.random.SeedSequence, _Former._seeds),
    (random.Random, _Former._random),
    (jax.Array, _Former._jax),
    (u.Quantity, _Former._quantity),
    (u.Unit, _Former._unit),
    (u.Dimension, _Former._dimension),
    (brainstate.State, _Former._state),
    (jax.tree_util.Partial, _Former._partial),
    (complex, _Former._complex),
    ((str, int, float, bytes), _Former._scalar_subclass),
    (tuple, _Former._tuple),
    (list, _Former._list),
    (dict, _Former._dict),
    (collections.deque, _Former._deque),
    ((set, frozenset), _Former._set),
    (bytearray, lambda self, x: self.tagged("bytearray", _bytes(bytes(x)))),
    (type(...), lambda self, x: self.tagged("ellipsis", None)),
    ((range, slice), _Former._range),
    ((datetime.datetime, datetime.time), _Former._moment),
    (datetime.date, lambda self, x: self.tagged("date", x.isoformat())),
    (datetime.timedelta, lambda self, x: self.tagged("timedelta", self.list([x.days, x.seconds, x.microseconds]))),
    (datetime.timezone, _Former._timezone),
    (zoneinfo.ZoneInfo, lambda self, x: self.tagged("zoneinfo", x.key)),
    (uuid.UUID, lambda self, x: self.tagged("uuid", _bytes(x.bytes))),
    (decimal.Decimal, lambda self, x: self.tagged("decimal", str(x))),
    (fractions.Fraction, lambda self, x: self.tagged("fraction", self.list([x.numerator, x.denominator]))),
    (pathlib.PurePath, lambda self, x: self.tagged(f"path.{type(x).__name__}", str(x))),
]
#: Types of which two objects cannot be told from one.
_IMMUTABLE: tuple[type, ...] = (
    *(type(None), int, float, complex, str, bytes, tuple, frozenset, enum.Enum, type(...), range, slice, np.dtype),
    *(datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo, uuid.UUID, decimal.Decimal),
    *(fractions.Fraction, pathlib.PurePath, np.generic, type(np.ma.masked), u.Unit, u.Dimension),
)
