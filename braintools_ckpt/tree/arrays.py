"""Handlers of numpy: arrays, scalars, masked arrays, string arrays, dtypes and random generators."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..document import LEAF, LIST, ArraySpec, Value
from ..dtypes import describe, parse, storage_dtype
from ..errors import LinkedPath, SerializationError
from .decode import Decoder
from .encode import Encoder, Trouble
from .merge import Build, Merger, Want, constant, plain_want
from .registry import Handler, Registry

Array = np.ndarray[Any, Any]
_STRING_DTYPE: Any = getattr(getattr(np, "dtypes", None), "StringDType", None)


class ArrayHandler(Handler):
    """``numpy.ndarray`` of every dtype that holds values rather than objects."""

    atomic = True

    def encode(self, array: Array, encoder: Encoder) -> Value:
        """Refer to the array; its data stays where it is until it is written."""
        dtype = array.dtype
        if type(array) is np.ndarray and dtype.kind in "fiubc":
            return encoder.array(dtype, array.shape, "numpy", array)
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
        kind = _SUBCLASS_NAMES.get(type(array))
        return encoder.leaf("numpy.subclass", value, kind=kind) if kind else value

    def plan(self, target: Array, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Ask for an array of the target's shape and dtype."""
        if type(value) is list and value[0] == LEAF and value[1] in ("numpy.strings", "numpy.subclass"):
            return _plan_special(target, value, path, merger)
        dtype = target.dtype
        want = plain_want("numpy", dtype, target.shape) if dtype.kind in "fiubc" else Want("numpy", dtype, target.shape)
        return merger.plan_array(target, want, value, path)


def _plan_special(target: Array, value: Value, path: LinkedPath, merger: Merger) -> Build:
    found = merger.decode_now(value)
    if found.shape != target.shape:
        texts = f"{target.dtype}{list(target.shape)}", f"{found.dtype}{list(found.shape)}"
        return merger.mismatch("shape", target, path, "Array shape mismatch", *texts)
    if found.dtype != target.dtype:
        texts = f"{target.dtype}{list(target.shape)}", f"{found.dtype}{list(found.shape)}"
        return merger.mismatch("dtype", target, path, "Array dtype mismatch", *texts)
    return constant(found.view(type(target)))


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
        options: dict[str, Any] = {"coerce": attributes["coerce"]}
        if "na" in attributes:
            options["na_object"] = decoder.decode(attributes["na"])
        items = decoder.sequence(state)
        if not all(item is None or type(item) is str for item in items):
            raise TypeError("expected strings")
        filled = [options["na_object"] if item is None else item for item in items]
        array = np.array(filled, dtype=_STRING_DTYPE(**options))
        return array.reshape(decoder.sequence(attributes["shape"]))


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
        raise ValueError(f"{len(data)} bytes do not make {dtype}{list(shape)}")
    if stored.itemsize == 0:
        return np.zeros(shape, dtype)
    return np.frombuffer(data, stored).reshape(shape).astype(dtype)


class MaskedArrayHandler(Handler):
    """``numpy.ma.MaskedArray``: data, mask and fill value."""

    tag = "numpy.masked"

    def encode(self, array: Any, encoder: Encoder) -> Value:
        """Write data and mask as arrays."""
        state = {
            "data": encoder.encode(np.asarray(array.data)),
            "mask": None if array.mask is np.ma.nomask else encoder.encode(np.asarray(array.mask)),
            "fill_value": encoder.encode(_own_fill_value(array)),
        }
        return encoder.leaf(self.tag, state, hard=bool(array.hardmask))

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Put data and mask together."""
        parts = decoder.fields(state)
        mask = np.ma.nomask if parts["mask"] is None else parts["mask"]
        array: Any = np.ma.MaskedArray(parts["data"], mask=mask, hard_mask=attributes["hard"])
        if parts["fill_value"] is not None:
            array._fill_value = parts["fill_value"]  # the setter would cast it, which can overflow
        return array

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Ask for the parts in the target's dtype; the mask is the file's."""
        if not (type(value) is list and value[0] == LEAF and value[1] == self.tag):
            return merger.leaf_mismatch(target, f"masked {target.dtype}{list(target.shape)}", value, path)
        state = value[2]
        before = len(merger.report.found)
        want = Want("numpy", target.dtype, target.shape)
        data = merger.plan_array(np.asarray(target.data), want, state["data"], (path, "data"))
        if len(merger.report.found) > before:
            return constant(target)
        whole = merger.plan_decoded(value)

        def build() -> Any:
            loaded = whole()
            result: Any = np.ma.MaskedArray(data(), mask=loaded.mask, hard_mask=loaded.hardmask)
            if loaded._fill_value is not None:
                result._fill_value = loaded._fill_value
            return result

        return build


def _own_fill_value(array: Any) -> Array | None:
    # An array gets the default of its dtype when it is printed: that is the same as having none.
    if array._fill_value is None:
        return None
    own, default = np.asarray(array._fill_value), np.asarray(np.ma.MaskedArray(np.empty(0, array.dtype)).fill_value)
    return None if own.dtype == default.dtype and own.tobytes() == default.tobytes() else own


_BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")


class GeneratorHandler(Handler):
    """``numpy.random.Generator`` and ``RandomState``: the state of their bit generator."""

    def __init__(self, ty: type, tag: str) -> None:
        self.type = ty
        self.tag = tag

    def encode(self, generator: Any, encoder: Encoder) -> Value:
        """Write the state as numpy gives it."""
        state = generator.get_state(legacy=False) if self.tag == "numpy.randomstate" else generator.bit_generator.state
        name = state["bit_generator"]
        if name not in _BIT_GENERATORS:
            raise Trouble(
                lambda path: SerializationError(
                    f"Cannot save the random generator at path {path}: its bit generator {name!r} is not one of "
                    f"{', '.join(_BIT_GENERATORS)}."
                )
            )
        return encoder.leaf(self.tag, encoder.mapping(state))

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Make a generator in that state."""
        values = decoder.fields(state)
        name = values["bit_generator"]
        if name not in _BIT_GENERATORS:
            raise ValueError(f"unknown bit generator {name!r}")
        bit_generator = getattr(np.random, name)(0)
        generator = self.type(bit_generator)
        if self.tag == "numpy.randomstate":
            generator.set_state(values)
        else:
            bit_generator.state = values
        return generator

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Take the file's generator if it is one of the same kind; the target's own is not touched."""
        if not (type(value) is list and value[0] == LEAF and value[1] == self.tag):
            return merger.leaf_mismatch(target, f"a {self.tag}", value, path)
        return merger.plan_decoded(value)


def set_up(registry: Registry) -> None:
    """Register the types of numpy."""
    arrays = ArrayHandler()
    registry.register(np.ndarray, arrays)
    registry.register(np.generic, ScalarHandler())
    registry.register(np.ma.MaskedArray, MaskedArrayHandler())
    registry.register(np.random.Generator, GeneratorHandler(np.random.Generator, "numpy.generator"))
    registry.register(np.random.RandomState, GeneratorHandler(np.random.RandomState, "numpy.randomstate"))
    for handler in (SubclassHandler(), StringsHandler(), InlineArrayHandler()):
        registry.register_tag(handler)
