"""Which numbers may become which, without losing anything that was not asked for."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ..dtypes import largest

Array = np.ndarray[Any, Any]
_SAFE = {"UU", "SS", "VV", "mm", "MM"}
_BOOL, _INT, _FLOAT, _COMPLEX = range(4)


class Misfit(Exception):  # noqa: N818  (internal: becomes a mismatch)
    """Values that do not survive a cast."""


@cache
def rank(dtype: np.dtype[Any]) -> int | None:
    """Order the kinds of numbers: bool, integer, float, complex; None for what is no number."""
    plain = {"b": _BOOL, "i": _INT, "u": _INT, "f": _FLOAT, "c": _COMPLEX}.get(dtype.kind)
    if plain is not None or dtype.names is not None or dtype.type.__module__.partition(".")[0] != "ml_dtypes":
        return plain
    return _INT if "int" in dtype.name else _COMPLEX if "complex" in dtype.name else _FLOAT


@cache
def castable(source: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Tell whether a cast is one of the same kind (or to a wider kind).

    The fields of records are matched by name, in any order, and each has to be castable. Whether the values survive is
    checked when they are read.
    """
    if source.names is not None or wanted.names is not None:
        names = source.names or ()
        same = (source.names is None) is (wanted.names is None) and set(names) == set(wanted.names or ())
        return same and all(castable(source[name], wanted[name]) for name in names)
    if source.subdtype is not None or wanted.subdtype is not None:
        return source.shape == wanted.shape and castable(source.base, wanted.base)
    low, high = rank(source), rank(wanted)
    if low is not None and high is not None:
        return low <= high
    # Numpy has more casts that it calls safe: bytes to text, which fails on what is no ASCII, and moments to text.
    return source.kind + wanted.kind in _SAFE and np.can_cast(source, wanted, "safe")


def cast(array: Array, dtype: np.dtype[Any]) -> Array:
    """Cast an array, field by field if it holds records.

    Integers and moments must keep every value. Floats may be rounded, and those that are too small for the wanted type
    may become 0, but nan, inf and what is too large must not become anything else.

    Raises
    ------
    Misfit
        If a value does not survive.
    """
    if array.dtype == dtype:
        return array
    if dtype.names is not None:
        records: Array = np.zeros(array.shape, dtype)
        for name in dtype.names:
            field = records[name]
            field[...] = cast(array[name], field.dtype)
        return records
    with np.errstate(all="ignore"):
        try:
            result = array.astype(dtype)
        except OverflowError:  # numpy raises it for some moments, and wraps around for others
            raise Misfit from None
        if not _survives(array, result):
            raise Misfit
    return result


def _survives(before: Array, after: Array) -> bool:
    low = rank(before.dtype)
    if low is None:
        return before.dtype.kind not in "mM" or _same_moments(before, after)
    if low == _BOOL:
        return rank(after.dtype) == _BOOL or _same_integers(before.view(np.uint8), after)
    if low == _INT:
        return _same_integers(before, after)
    return np.can_cast(before.dtype, after.dtype, "safe") or all(
        _same_floats(*parts) for parts in zip(_parts(before), _parts(after), strict=False)
    )


def _same_moments(before: Array, after: Array) -> bool:
    # As integers: NaT, which equals nothing, is one of them.
    return bool(np.array_equal(after.astype(before.dtype).view(np.int64), before.view(np.int64)))


def _parts(array: Array) -> tuple[Array, ...]:
    return (array.real, array.imag) if array.dtype.kind == "c" else (array,)


def _same_floats(before: Array, after: Array) -> bool:
    same = (np.isnan(before) == np.isnan(after)) & (np.isinf(before) == np.isinf(after))
    same &= (before != 0) | (after == 0)
    if after.dtype.type.__module__ != "numpy" and rank(after.dtype) == _FLOAT:
        same &= np.isinf(before) | ~(np.abs(before) > largest(after.dtype))
    return bool(same.all())


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
