"""Whether what was loaded is what was saved."""

from __future__ import annotations

from typing import Any

import numpy as np

from .trees import Array, Specs


def mantissa(value: Any) -> Array:
    """Give the numbers of a leaf as numpy: of a state, a quantity, a quantity's plain dict, or an array."""
    if type(value).__module__.startswith("brainstate"):
        value = value.value
    if isinstance(value, dict):
        value = value["mantissa"]
    return np.asarray(getattr(value, "mantissa", value))


def difference(expected: Array, got: Any) -> str | None:
    """Say how a leaf differs, or give None."""
    array = mantissa(got)
    if array.dtype != expected.dtype:
        return f"{expected.dtype} comes back as {array.dtype}"
    if array.shape != expected.shape:
        return f"the shape {expected.shape} comes back as {array.shape}"
    return None if array.tobytes() == expected.tobytes() else "the values are others"


def unit_difference(specs: Specs, loaded: Any) -> str | None:
    """Say whose unit differs; plain arrays and dicts have none to compare."""
    for name, spec in specs.items():
        value = getattr(loaded[name], "value", loaded[name])
        if spec.unit is not None and hasattr(value, "mantissa"):
            import brainunit

            if value.unit != getattr(brainunit, spec.unit):
                return f"the unit {spec.unit} comes back as {value.unit}"
    return None


def tree_difference(specs: Specs, expected: dict[str, Array], loaded: Any) -> str | None:
    """Say how a loaded tree differs from the one that was saved, or give None."""
    if set(loaded) != set(expected):
        return "other leaves come back"
    for name, array in expected.items():
        text = difference(array, loaded[name])
        if text is not None:
            return text
    return unit_difference(specs, loaded)
