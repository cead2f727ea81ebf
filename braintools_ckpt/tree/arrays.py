"""Handlers of numpy: arrays, scalars, masked arrays, string arrays, dtypes and random generators."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ..claims import short
from ..document import ARRAY, LEAF, LIST, ArraySpec, Value
from ..dtypes import check_size, check_text, describe, parse, storage_dtype
from ..errors import LinkedPath, SerializationError, format_array
from .decode import Decoder
from .encode import Encoder, Trouble
from .merge import Merger, constant
from .registry import Handler, MakeRow, Registry, T
from .requests import Build, Want, plain_want
from .scalars import Form, ValueHandler, check, no_subclass

Array = np.ndarray[Any, Any]
_NONE = type(None)
_STRING_DTYPE: Any = getattr(getattr(np, "dtypes", None), "StringDType", None)


class ArrayHandler(Handler):
    """``numpy.ndarray`` of every dtype that holds values rather than objects."""

    atomic = True

    def encode(self, array: Array, encoder: Encoder) -> Value:
        """Refer to the array; its data stays where it is until it is written."""
        dtype = array.dtype
        if type(array) is np.ndarray and dtype.kind in "fiubc":
            return encoder.array(dtype, array.shape, "numpy", array)
        kind = _SUBCLASS_NAMES.get(type(array))
        if kind is None and type(array) is not np.memmap:  # which is an array like any other once it is read
            no_subclass(array, np.ndarray, "Save np.asarray(x)")
        if _STRING_DTYPE is not None and isinstance(dtype, _STRING_DTYPE):
            return _encode_strings(array, encoder)
        if dtype.hasobject:
            raise Trouble(
                lambda path: SerializationError(
                    f"Cannot save the object array at path {path}: its elements are Python objects. Save a list of "
                    "them, or an array of a plain dtype."
                )
            )
        value = encoder.array(dtype, array.shape, "numpy", array)
        return encoder.leaf("numpy.subclass", value, kind=kind) if kind else value

    def plain_arrays(self, objects: list[Any], make: MakeRow[T], *, targets: bool = False) -> list[T] | None:
        """Tell of plain arrays of numbers."""
        if type(objects[0]) is not np.ndarray:
            return None
        rows: list[T] = []
        dtype, shape = None, None
        for array in objects:
            if array.dtype is not dtype or array.shape != shape:
                dtype, shape = array.dtype, array.shape
                if dtype.kind not in "fiubc":
                    return None
                row = make(dtype, shape, "numpy")
            rows.append(row)
        return rows

    def plan(self, target: Array, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Ask for an array of the target's shape and dtype."""
        if type(value) is list and value[0] == ARRAY and type(target) is np.ndarray and merger.fits(value[1], target):
            return merger.take(value[1])
        tag = value[1] if type(value) is list and value[0] == LEAF else None
        if tag == "numpy.strings":
            return _plan_strings(target, value, path, merger)
        if tag == "numpy.subclass":
            value = value[2]  # the result is of the target's class
        dtype = target.dtype
        want = plain_want(dtype, target.shape, "numpy") if dtype.kind in "fiubc" else Want("numpy", dtype, target.shape)
        array = merger.plan_array(target, want, value, path)
        return array if type(target) is np.ndarray else partial(_as_subclass, array, target)


def _as_subclass(build: Build, target: Array) -> Array:
    array: Array = build()
    kind = type(target) if type(target) in _SUBCLASS_NAMES else np.ndarray
    return array if array is target else array.view(kind)


def _plan_strings(target: Array, value: Value, path: LinkedPath, merger: Merger) -> Build:
    found = merger.decode_now(value)
    expected, got = (format_array(array.dtype, array.shape) for array in (target, found))
    if found.shape != target.shape:
        return merger.mismatch("shape", target, path, "Array shape mismatch", expected, got)
    if found.dtype != target.dtype:
        return merger.mismatch("dtype", target, path, "Array dtype mismatch", expected, got)
    return constant(found)


class SubclassHandler(Handler):
    """``numpy.matrix`` and ``numpy.recarray``, which differ from arrays in type alone."""

    tag = "numpy.subclass"

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """View the array as its subclass."""
        return decoder.decode(state).view({name: ty for ty, name in _SUBCLASS_NAMES.items()}[attributes["kind"]])


_SUBCLASS_NAMES: dict[type, str] = {np.matrix: "matrix", np.recarray: "recarray"}


def _encode_strings(array: Array, encoder: Encoder) -> Value:
    flat = array.reshape(-1)
    missing = getattr(array.dtype, "na_object", _NO_NA)
    items = [None if missing is not _NO_NA and _is_missing(item, missing) else str(item) for item in flat.tolist()]
    attributes: dict[str, Value] = {"shape": [LIST, *array.shape], "coerce": bool(getattr(array.dtype, "coerce", True))}
    if missing is not _NO_NA:
        attributes["na"] = encoder.encode(missing)
    return encoder.leaf("numpy.strings", encoder.sequence(items), **attributes)


_NO_NA = object()


def _is_missing(item: Any, missing: Any) -> bool:
    return item is missing or (item != item and missing != missing)


class StringsHandler(Handler):
    """Arrays of numpy's variable-width ``StringDType``."""

    tag = "numpy.strings"

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Fill a new array with the strings."""
        options: dict[str, Any] = {"coerce": check(attributes["coerce"], bool)}
        if "na" in attributes:
            options["na_object"] = decoder.decode(attributes["na"])
        items = decoder.sequence(state)
        if not all(item is None or type(item) is str for item in items):
            raise TypeError("expected strings")
        filled = [options["na_object"] if item is None else item for item in items]
        shape = [check(n, range(1 << 63)) for n in decoder.sequence(attributes["shape"])]
        return np.array(filled, dtype=_STRING_DTYPE(**options)).reshape(shape)


class ScalarHandler(Handler):
    """Numpy scalars, which are stored in place: a table entry for each would cost more than they hold."""

    tag = "numpy.scalar"
    tracked = False

    def encode(self, scalar: np.generic, encoder: Encoder) -> Value:
        """Write the scalar's bytes and its dtype."""
        dtype = scalar.dtype
        if dtype.hasobject:
            raise Trouble(lambda path: SerializationError(f"Cannot save the object scalar at path {path}."))
        stored = storage_dtype(dtype)
        data = scalar.tobytes() if stored == dtype else np.asarray(scalar).astype(stored).tobytes()
        return [LEAF, self.tag, data, {"dtype": _dtype_value(dtype)}]

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Read the bytes as a scalar."""
        return bytes_to_array(state, parse(decoder.decode(attributes["dtype"])), ())[()]

    def plan(self, target: np.generic, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Ask for a scalar of the target's dtype."""
        dtype = np.asarray(target).dtype
        if type(value) is list and value[0] == LEAF and value[1] == self.tag:
            found = merger.decode_now(value)
            if type(found) is type(target) and found.dtype == dtype and merger.ratio == 1.0:
                return constant(found)
        return merger.plan_array(target, Want("scalar", dtype, ()), value, path)


def inline_array(spec: ArraySpec, array: Array) -> Value:
    """Write a small array into the structure itself."""
    data = np.ascontiguousarray(array.astype(storage_dtype(spec.dtype), copy=False)).tobytes()
    return [LEAF, "array", data, {"dtype": _dtype_value(spec.dtype), "shape": [LIST, *spec.shape], "kind": spec.kind}]


def _dtype_value(dtype: np.dtype[Any]) -> Value:
    return _as_value(describe(dtype))


def _as_value(plain: Any) -> Value:
    if isinstance(plain, (list, tuple)):
        return [LIST, *map(_as_value, plain)]
    return {key: _as_value(item) for key, item in plain.items()} if isinstance(plain, dict) else plain


class InlineArrayHandler(Handler):
    """Arrays that stand in the structure itself, as in metadata; they come back as numpy arrays."""

    tag = "array"

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Read the bytes as an array."""
        return bytes_to_array(state, parse(decoder.decode(attributes["dtype"])), decoder.sequence(attributes["shape"]))


def bytes_to_array(data: Any, dtype: np.dtype[Any], shape: Any) -> Array:
    """Make a fresh array from the bytes of a file."""
    stored = storage_dtype(dtype)
    if type(data) is not bytes:
        raise TypeError(f"expected bytes, got {type(data).__name__}")
    shape = tuple(shape)
    size = int(np.prod(shape, dtype=object)) if shape else 1
    if any(type(n) is not int or n < 0 for n in shape) or size * stored.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes do not make {format_array(dtype, shape)}")
    check_size(dtype, shape)
    if stored.itemsize == 0:
        return np.zeros(shape, dtype)
    array = np.frombuffer(data, stored).reshape(shape)
    check_text(array)
    return array.astype(dtype)


class MaskedArrayHandler(Handler):
    """``numpy.ma.MaskedArray``: data, mask and fill value."""

    tag = "numpy.masked"

    def encode(self, array: Any, encoder: Encoder) -> Value:
        """Write data and mask as arrays."""
        no_subclass(array, np.ma.MaskedArray, "Save np.ma.array(x.data, mask=x.mask)")
        state = {
            "data": encoder.encode(np.asarray(array.data)),
            "mask": None if array.mask is np.ma.nomask else encoder.encode(np.asarray(array.mask)),
            "fill_value": encoder.encode(_own_fill_value(array)),
        }
        return encoder.leaf(self.tag, state, hard=bool(array.hardmask))

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Put data and mask together."""
        parts = decoder.fields(state)
        data, fill_value = parts["data"], parts["fill_value"]
        if not hasattr(data, "dtype") or np.shape(fill_value) != ():
            raise TypeError("expected data and fill value to be arrays, the latter without dimensions")
        check(parts["mask"], (_NONE, np.empty(data.shape, np.ma.make_mask_descr(data.dtype))))
        return _masked(parts, check(attributes["hard"], bool))

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Ask for the parts in the target's dtype; if one of them does not fit, the target stays whole."""
        dtype, shape = target.dtype, target.shape
        if not (type(value) is list and value[0] == LEAF and value[1] == self.tag):
            return merger.leaf_mismatch(target, f"masked {format_array(dtype, shape)}", value, path)
        wants = {
            "data": Want("numpy", dtype, shape),
            "mask": Want("numpy", np.ma.make_mask_descr(dtype), shape),
            "fill_value": Want("numpy", dtype, ()),
        }
        state, hard = value[2], check(value[3]["hard"], bool)
        with merger.together() as together:
            builds = {
                name: merger.plan_array(object(), want, state[name], (path, name))
                for name, want in wants.items()
                if name == "data" or state[name] is not None
            }

        def build() -> Any:
            if not together.fits():
                return target
            return _masked({name: builds[name]() if name in builds else None for name in wants}, hard)

        return build


def _masked(parts: dict[str, Any], hard: bool) -> Any:
    mask = np.ma.nomask if parts["mask"] is None else parts["mask"]
    array: Any = np.ma.MaskedArray(parts["data"], mask=mask, hard_mask=hard)
    if parts["fill_value"] is not None:
        array._fill_value = parts["fill_value"]  # the setter would cast it, which can overflow
    return array


def _own_fill_value(array: Any) -> Array | None:
    # An array gets the default of its dtype when it is printed: that is the same as having none.
    if array._fill_value is None:
        return None
    own, default = np.asarray(array._fill_value), np.asarray(np.ma.MaskedArray(np.empty(0, array.dtype)).fill_value)
    return None if own.dtype == default.dtype and own.tobytes() == default.tobytes() else own


_WORDS32 = range(1 << 32)
_LEFT_OVER = {"has_uint32": range(2), "uinteger": _WORDS32}  # half of a word that was drawn
_PCG = {"state": {"state": range(1 << 128), "inc": range(1 << 128)}, **_LEFT_OVER}

#: What the states of numpy's bit generators look like. Numpy itself checks no positions in their buffers, and reads
#: outside of its memory when the next number is drawn.
_BIT_GENERATORS: dict[str, dict[str, Form]] = {
    "PCG64": _PCG,
    "PCG64DXSM": _PCG,
    "MT19937": {"state": {"key": np.empty(624, np.uint32), "pos": range(625)}},
    "Philox": {
        "state": {"counter": np.empty(4, np.uint64), "key": np.empty(2, np.uint64)},
        "buffer": np.empty(4, np.uint64),
        "buffer_pos": range(5),
        **_LEFT_OVER,
    },
    "SFC64": {"state": {"state": np.empty(4, np.uint64)}, **_LEFT_OVER},
}
_GAUSS = {"has_gauss": range(2), "gauss": float}


class GeneratorHandler(Handler):
    """``numpy.random.Generator`` and ``RandomState``: the state of their bit generator, and what it was seeded with."""

    def __init__(self, ty: type, tag: str) -> None:
        self.type = ty
        self.tag = tag

    def encode(self, generator: Any, encoder: Encoder) -> Value:
        """Write the state as numpy gives it."""
        no_subclass(generator, self.type, "Save its state")
        if self.tag == "numpy.randomstate":
            return encoder.leaf(self.tag, self._state(generator.get_state(legacy=False), encoder))
        state = self._state(generator.bit_generator.state, encoder)
        seeds = getattr(generator.bit_generator, "seed_seq", None)
        if type(seeds) is not np.random.SeedSequence:
            return encoder.leaf(self.tag, state)
        try:
            return encoder.leaf(self.tag, state, seed_seq=encoder.encode(seeds))
        except Trouble as trouble:
            raise trouble.at("seed_seq")  # noqa: B904

    def _state(self, state: dict[str, Any], encoder: Encoder) -> Value:
        name = state["bit_generator"]
        if name not in _BIT_GENERATORS:
            raise Trouble(
                lambda path: SerializationError(
                    f"Cannot save the random generator at path {path}: its bit generator {name!r} is not one of "
                    f"{', '.join(_BIT_GENERATORS)}."
                )
            )
        return encoder.mapping(state)

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Make a generator in that state."""
        values = decoder.fields(state)
        name = check(values["bit_generator"], str)
        if name not in _BIT_GENERATORS:
            raise ValueError(f"unknown bit generator {name[:80]!r}")
        legacy = self.tag == "numpy.randomstate"
        check(values, {"bit_generator": str, **_BIT_GENERATORS[name], **(_GAUSS if legacy else {})})
        bit_generator = getattr(np.random, name)
        if legacy:
            generator = self.type(bit_generator(0))
            generator.set_state(values)
            return generator
        if "seed_seq" in attributes:
            seeds = check(decoder.decode(attributes["seed_seq"]), np.random.SeedSequence)
        else:
            # Streams that are spawned later have to differ from those of other generators without one.
            drawn = bit_generator(0)
            drawn.state = values
            seeds = np.random.SeedSequence(drawn.random_raw(4).tolist())
        seeded = bit_generator(seeds)
        seeded.state = values
        return self.type(seeded)

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Take the file's generator if it is one of the same kind; the target's own is not touched."""
        if not (type(value) is list and value[0] == LEAF and value[1] == self.tag):
            return merger.leaf_mismatch(target, f"a {self.tag}", value, path)
        return merger.plan_decoded(value)


def _from_seeds(seeds: np.random.SeedSequence) -> dict[str, Any]:
    state: dict[str, Any] = dict(seeds.state)
    seed = state["entropy"]
    state["entropy"] = int(seed) if isinstance(seed, (int, np.integer)) else _integers(seed)
    state["spawn_key"] = _integers(state["spawn_key"])
    for number in (*(state["entropy"] if type(state["entropy"]) is list else (state["entropy"],)), *state["spawn_key"]):
        short(number)
    return state


def _integers(seed: Any) -> list[int]:
    # Numpy takes ints, their text, and sequences of these within each other, for the sequence of all of them.
    if isinstance(seed, str):
        return [int(seed, 16 if seed.startswith("0x") else 10)]
    if isinstance(seed, (int, np.integer)):
        return [int(seed)]
    return [number for part in seed for number in _integers(part)]


def _to_seeds(state: dict[str, Any]) -> np.random.SeedSequence:
    entropy, spawn_key = state["entropy"], state["spawn_key"]
    for number in (*(entropy if type(entropy) is list else (entropy,)), *spawn_key):
        short(check(number, int))
    return np.random.SeedSequence(
        entropy,
        spawn_key=spawn_key,
        pool_size=state["pool_size"],
        n_children_spawned=state["n_children_spawned"],
    )


# A pool costs time with the square of its size; numpy's own is 4.
_SEEDS = {"entropy": (int, list), "spawn_key": list, "pool_size": range(4, 257), "n_children_spawned": _WORDS32}


def set_up(registry: Registry) -> None:
    """Register the types of numpy."""
    arrays = ArrayHandler()
    registry.register(np.ndarray, arrays)
    registry.register(np.generic, ScalarHandler())
    registry.register(np.ma.MaskedArray, MaskedArrayHandler())
    registry.register(np.random.Generator, GeneratorHandler(np.random.Generator, "numpy.generator"))
    registry.register(np.random.RandomState, GeneratorHandler(np.random.RandomState, "numpy.randomstate"))
    seeds = ValueHandler(np.random.SeedSequence, "numpy.seedsequence", _SEEDS, _from_seeds, _to_seeds, tracked=True)
    registry.register(np.random.SeedSequence, seeds)
    for handler in (SubclassHandler(), StringsHandler(), InlineArrayHandler()):
        registry.register_tag(handler)
