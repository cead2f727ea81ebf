"""brainunit (and saiunit, the package behind it): quantities, units, dimensions, with the names of units."""

from __future__ import annotations

import inspect
from functools import lru_cache, partial
from typing import Any

import brainunit as u
import numpy as np

from ..document import LEAF, LIST, REF, Value
from ..errors import LinkedPath
from ..tree.containers import node_parts
from ..tree.decode import Decoder
from ..tree.describe import describe
from ..tree.encode import Encoder
from ..tree.merge import Merger
from ..tree.quantities import QUANTITY, UNIT
from ..tree.registry import Handler, Registry
from ..tree.requests import Build

_OPTIONS = frozenset(inspect.signature(u.Unit.__init__).parameters)


def unit_value(unit: Any) -> Value:
    """Write a unit: what it is (dimension, scale, factor) and how it is called."""
    value: dict[str, Value] = {
        "symbol": str(unit.dispname),
        "name": str(unit.name),
        "dim": [LIST, *_numbers(unit.dim)],
        "scale": _number(unit.scale),
        "factor": _number(unit.factor),
        "full": bool(getattr(unit, "is_fullname", True)),
    }
    parts = getattr(unit, "_display_parts", None)
    if parts is not None:
        value["parts"] = [LIST, *([LIST, str(name), str(symbol), _number(power)] for name, symbol, power in parts)]
    return value


def _unit_leaf(unit: Any) -> Value:
    return [LEAF, UNIT, None, {"unit": unit_value(unit)}]


def _numbers(dimension: Any) -> list[int | float]:
    return [_number(n) for n in np.asarray(dimension._dims).tolist()]


def _number(n: Any) -> int | float:
    return n if type(n) in (int, float) else float(n) if float(n) != int(n) else int(n)


def make_unit(value: Any, decoder: Decoder) -> Any:
    """Make the unit that a value describes or refers to; equal descriptions give one object."""
    if type(value) is not dict:
        unit = decoder.decode(value)
        if not isinstance(unit, u.Unit):
            raise TypeError(f"expected a unit, got {type(unit).__name__}")
        return unit
    parts = decoder.decode(value["parts"]) if "parts" in value else None
    return _unit(
        tuple(decoder.sequence(value["dim"])),
        value["scale"],
        value["factor"],
        value["name"],
        value["symbol"],
        value["full"],
        None if parts is None else tuple(map(tuple, parts)),
    )


@lru_cache(maxsize=4096)
def _unit(
    dim: tuple[float, ...],
    scale: float,
    factor: float,
    name: str,
    symbol: str,
    full: bool,
    parts: tuple[tuple[Any, ...], ...] | None,
) -> Any:
    if not any(dim) and scale == 0 and factor == 1 and name == u.UNITLESS.name:
        return u.UNITLESS
    if len(dim) != 7 or not all(type(n) in (int, float) for n in (*dim, scale, factor)):
        raise ValueError("a unit has seven exponents, a scale and a factor")
    options: dict[str, Any] = {"name": name, "dispname": symbol}
    if "is_fullname" in _OPTIONS:
        options["is_fullname"] = full
    if "display_parts" in _OPTIONS and parts is not None:
        options["display_parts"] = list(parts)
    unit = u.Unit(_dimension(dim), scale=scale, factor=factor, **options)
    standard = named(unit)
    return standard if unit_value(standard) == unit_value(unit) else unit


def _dimension(dim: tuple[float, ...]) -> Any:
    return u.get_or_create_dimension(list(dim))


class QuantityHandler(Handler):
    """``Quantity``: a mantissa and its unit."""

    tag = QUANTITY

    def encode(self, quantity: Any, encoder: Encoder) -> Value:
        """Write mantissa and unit."""
        unit = encoder.share(quantity.unit, _unit_leaf)
        return [LEAF, QUANTITY, encoder.encode(quantity.mantissa), {"unit": unit}]

    def encode_many(self, objects: list[Any], encoder: Encoder) -> list[Value] | None:
        """Write many, whose mantissas are arrays."""
        mantissas = encoder.many([quantity.mantissa for quantity in objects])
        if mantissas is None:
            return None
        units = [encoder.share(quantity.unit, _unit_leaf) for quantity in objects]
        return [[LEAF, QUANTITY, m, {"unit": unit}] for m, unit in zip(mantissas, units, strict=True)]

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Put mantissa and unit together."""
        return _quantity(u.Quantity, decoder.decode(state), make_unit(attributes["unit"], decoder))

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Plan the mantissa, when the unit fits."""
        state, unit = self._parts(value, merger)
        if unit is None:
            if not target.unit.is_unitless:
                found = describe(value, merger.document)
                return merger.mismatch("unit", target, path, "Unit mismatch", str(target.unit), f"no unit: {found}")
            state, unit = value, target.unit
        same = unit is target.unit or unit == target.unit
        if same and merger.options.mismatch == "error":  # then nothing is kept of a target whose mantissa does not fit
            return partial(_built, type(target), merger.plan(target.mantissa, state, path), target.unit)
        if same:
            return self._mantissa(target, state, target.unit, path, merger)
        if not unit.has_same_dim(target.unit):
            return merger.mismatch("unit", target, path, "Unit mismatch", str(target.unit), str(unit))
        if merger.options.units == "convert":
            return self._mantissa(target, state, target.unit, path, merger, unit.magnitude / target.unit.magnitude)
        # The same dimension in another unit: physically right, so outside of 'error' it is taken as it is.
        wanted, found = str(target.unit), str(unit)
        merger.note("scale", path, f"Unit mismatch: expected {wanted}, got {found}", expected=wanted, found=found)
        return self._mantissa(target, state, unit, path, merger)

    def plan_many(
        self, targets: list[Any], values: list[Value], paths: list[LinkedPath], merger: Merger
    ) -> list[Build] | None:
        """Plan many whose units are the same as the file's."""
        if merger.options.mismatch != "error":
            return None
        units: dict[int, Any] = {}
        for target, value in zip(targets, values, strict=True):
            found = node_parts(value, self.tag)
            if found is None or type(unit := found[1]["unit"]) is not list or unit[0] != REF:
                return None
            if unit[1] not in units:
                units[unit[1]] = make_unit(unit, merger.decoder)
            if units[unit[1]] is not target.unit and units[unit[1]] != target.unit:
                return None
        mantissas = merger.plan_alike([target.mantissa for target in targets], [value[2] for value in values], paths)
        if mantissas is None:
            return None
        return [partial(_built, type(t), m, t.unit) for t, m in zip(targets, mantissas, strict=True)]

    def _mantissa(
        self, target: Any, state: Value, unit: Any, path: LinkedPath, merger: Merger, ratio: float = 1.0
    ) -> Build:
        outer, merger.ratio = merger.ratio, merger.ratio * ratio
        try:
            with merger.together() as parts:
                mantissa = merger.plan(target.mantissa, state, path)
        finally:
            merger.ratio = outer
        # If the mantissa does not fit, the target's own stays, and that goes with the target's unit.
        return lambda: _quantity(type(target), mantissa(), unit) if parts.fits() else target

    def _parts(self, value: Value, merger: Merger) -> tuple[Value, Any]:
        found = node_parts(value, self.tag)
        if found is not None:
            return found[0], make_unit(found[1]["unit"], merger.decoder)
        if type(value) is dict and {"mantissa", "scale", "base", "dim"} <= set(value):
            return value["mantissa"], _plain_unit(
                merger.decode_now({k: v for k, v in value.items() if k != "mantissa"})
            )
        return value, None


def _plain_unit(parts: dict[str, Any]) -> Any:
    """Make the unit that ``braintools.file`` wrote; its early versions wrote no factor, and none wrote a name."""
    scale, base, factor = parts["scale"], float(parts["base"]), float(parts.get("factor", 1.0))
    if base != 10.0:
        scale, factor = 0, factor * base ** float(scale)
    dims = np.asarray(list(parts["dim"].values()) if isinstance(parts["dim"], dict) else parts["dim"])
    unit = u.Unit(_dimension(tuple(dims.tolist())), scale=scale, factor=factor)
    return named(unit)


def named(unit: Any) -> Any:
    """Give the library's own unit that equals a nameless one, if there is one."""
    standard = getattr(u.Unit.__init__, "__globals__", {}).get("_standard_units", {})
    return standard.get((unit.dim, unit.scale, unit.base, unit.factor), unit)


def _built(ty: Any, mantissa: Build, unit: Any) -> Any:
    return _quantity(ty, mantissa(), unit)


def _quantity(ty: Any, mantissa: Any, unit: Any) -> Any:
    if isinstance(mantissa, (np.ndarray, np.generic)) or type(mantissa).__module__.startswith("jax"):
        # As jax itself makes one again, which leaves the mantissa as it is and takes a tenth of the time.
        return ty.tree_unflatten(unit, (mantissa,))
    return ty(mantissa, unit=unit)


class UnitHandler(Handler):
    """``Unit`` by itself."""

    tag = UNIT
    tracked = False

    def encode(self, unit: Any, encoder: Encoder) -> Value:
        """Write the unit."""
        return encoder.share(unit, _unit_leaf)

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Make the unit."""
        return make_unit(attributes["unit"], decoder)

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Take the file's unit if it has the target's dimension."""
        if node_parts(value, self.tag) is None:
            return merger.leaf_mismatch(target, "a unit", value, path)
        unit = merger.decode_now(value)
        if not unit.has_same_dim(target):
            return merger.mismatch("unit", target, path, "Unit mismatch", str(target), str(unit))
        return lambda: unit


class DimensionHandler(Handler):
    """``Dimension`` by itself."""

    tag = "brainunit.Dimension"
    tracked = False

    def encode(self, dimension: Any, encoder: Encoder) -> Value:
        """Write the seven exponents."""
        return encoder.leaf(self.tag, [LIST, *_numbers(dimension)])

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Make the dimension."""
        return _dimension(tuple(decoder.sequence(state)))

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Take the file's dimension."""
        if node_parts(value, self.tag) is None:
            return merger.leaf_mismatch(target, "a dimension", value, path)
        return merger.plan_decoded(value)


def set_up(registry: Registry) -> None:
    """Register the types of brainunit."""
    registry.register(u.Quantity, QuantityHandler())
    registry.register(u.Unit, UnitHandler())
    registry.register(u.Dimension, DimensionHandler())
