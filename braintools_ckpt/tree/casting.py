"""Which numbers may become which, without losing anything that was not asked for."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_BOOL, _INT, _FLOAT, _COMPLEX = range(4)


class Misfit(Exception):  # noqa: N818  (internal: becomes a mismatch)
    """Values that do not survive a cast."""


@cache
def rank(dtype: np.dtype[Any]) -> int | None:
    """Order the kinds of numbers: bool, integer, float, complex; None for what is no number."""
    plain = {"b": _BOOL, "i": _INT, "u": _INT, "f": _FLOAT, "c": _COMPLEX}.get(dtype.kind)
    if plain is not None or dtype.names is not None or dtype.type.__module__.partition(".")[0] != "ml_dtypes":
        return plain
    return _INT if "int" in dtype.name else _FLOAT


@cache
def castable(source: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Tell whether a cast is one of the same kind (or to a wider kind).

    Whether the values survive it is checked when they are read.
    """
    low, high = rank(source), rank(wanted)
    if low is not None and high is not None:
        return low <= high
    if low is not None or high is not None:
        return False
    try:
        return np.can_cast(source, wanted, "safe")
    except TypeError:
        return False


def cast(array: Array, dtype: np.dtype[Any]) -> Array:
    """Cast an array; integers must keep every value, and floats may lose digits but not become infinite.

    Raises
    ------
    Misfit
        If a value does not survive.
    """
    if array.dtype == dtype:
        return array
    with np.errstate(all="ignore"):
        result = array.astype(dtype)
        low, high = rank(array.dtype), rank(dtype)
        if low == _INT and not _same_integers(array, result):
            raise Misfit
        if low in (_FLOAT, _COMPLEX) and high is not None and _narrower(dtype, array.dtype):
            lost = ~np.isfinite(result) & np.isfinite(array)
            if lost.any():
                raise Misfit
    return result


def _narrower(wanted: np.dtype[Any], source: np.dtype[Any]) -> bool:
    return not np.can_cast(source, wanted, "safe")


def _same_integers(before: Array, after: Array) -> bool:
    if rank(after.dtype) == _INT:
        signs = (before < 0) == (after < 0)
        return bool(np.all(signs & (after.astype(before.dtype) == before)))
    # Compared as Python would: exactly. Values up to 2**53 are exact in float64, and beyond that a cast back to
    # integer decides, unless the float lies outside the integer's range (where casting back is undefined).
    parts = after.real if rank(after.dtype) == _COMPLEX else after
    wide = parts.astype(np.promote_types(np.float64, parts.dtype) if parts.dtype.kind == "f" else np.float64)
    limits = np.iinfo(np.int64 if before.dtype.kind != "u" else np.uint64)
    inside = np.isfinite(wide) & (wide < float(limits.max) + 0.0) & (wide >= float(limits.min))
    exact = np.zeros(before.shape, bool)
    exact[inside] = wide[inside].astype(limits.dtype) == before[inside].astype(limits.dtype)
    return bool(exact.all())


def scale(array: Array, ratio: float, dtype: np.dtype[Any]) -> Array:
    """Multiply by the ratio of two units, and cast to ``dtype`` under the rules of :func:`cast`.

    Raises
    ------
    Misfit
        If ``dtype`` is an integer one and the products are no integers that fit.
    """
    exact = array.astype(np.complex128 if rank(array.dtype) == _COMPLEX else np.float64)
    # Dividing by a power of ten is exact where multiplying by its inverse is not.
    product = exact * ratio if ratio >= 1 else exact / (1 / ratio)
    if rank(dtype) != _INT:
        return cast(product, dtype)
    nearest = np.rint(product)
    if not np.all(np.abs(nearest) < 2.0**53) or not np.allclose(nearest, product, rtol=1e-15, atol=0):
        raise Misfit
    return cast(nearest.astype(np.int64), dtype)


def fit_number(value: Any, wanted: type) -> Any:
    """Turn a number into a Python bool, int, float or complex that equals it.

    Raises
    ------
    Misfit
        If the kind is wider than the wanted one, or the value changes.
    """
    ranks = {bool: _BOOL, int: _INT, float: _FLOAT, complex: _COMPLEX}
    own = ranks.get(type(value))
    if own is None:
        own = rank(np.asarray(value).dtype)
    if own is None or own > ranks[wanted]:
        raise Misfit
    if isinstance(value, np.generic):
        value = value.item() if own <= _INT else wanted(value)
    try:
        result = wanted(value)
    except OverflowError:
        raise Misfit from None
    if own == _INT and result != value:
        raise Misfit
    return result
