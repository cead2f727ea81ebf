"""The arrays that a plan asks for: read once each, in file order, converted, and moved to jax's devices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from itertools import repeat
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np

from ..document import OPAQUE, ArraySpec, ArrayTable
from ..errors import LinkedPath, PrecisionError, format_array
from .casting import Misfit, cast, castable, fit_number, scale
from .mismatch import MismatchReport
from .registry import Registry

Array = np.ndarray[Any, Any]
Build: TypeAlias = Callable[[], Any]


class Want(NamedTuple):
    """What an array has to become: its library, dtype and shape, and for jax where it has to lie.

    ``kind`` is ``numpy``, ``jax``, ``jax_weak``, ``scalar`` (a numpy scalar) or ``python`` (with ``number`` as type).
    """

    kind: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    sharding: Any = None
    number: type = float

    def __str__(self) -> str:
        return self.number.__name__ if self.kind == "python" else format_array(self.dtype, self.shape)


@lru_cache(maxsize=4096)
def plain_want(dtype: np.dtype[Any], shape: tuple[int, ...], kind: str) -> Want:
    """Give the want of an array without a sharding; those of a kind are one object."""
    return Want(kind, dtype, shape)


#: One array that the plan needs: from where, as what, where it belongs, what stays if its values do not fit, and what
#: they are multiplied by. A plain tuple, since there may be a million.
Request: TypeAlias = tuple[int | Array, Want, LinkedPath, Any, float]


class Requests:
    """All requests of one load, and their results.

    Parameters
    ----------
    specs : sequence of ArraySpec
        Of the array table that indices refer to.
    """

    def __init__(self, specs: Sequence[ArraySpec]) -> None:
        self._specs = specs
        self._asked: list[Request] = []
        self._results: list[Any] = []
        self._host: dict[int, Array] = {}
        self._taken: dict[int, Array] = {}  # arrays that are results as they are read, and whose
        # By index and id of a target: what was asked for it. The target is kept, so its id stays its own.
        self._known: dict[tuple[int, int], tuple[Any, Build, float, int]] = {}
        self._misfits: set[int] = set()
        self._together: list[Together] = []

    # Plan.

    def add(self, source: int | Array, want: Want, target: Any, path: LinkedPath, ratio: float) -> Build:
        """Ask for an array of the table, or for a host array, as ``want`` says."""
        slot = len(self._asked)
        self._belongs(range(slot, slot + 1))
        self._asked.append((source, want, path, target, ratio))
        return partial(self._results.__getitem__, slot)

    def add_once(self, index: int, want: Want, target: Any, path: LinkedPath, ratio: float) -> Build:
        """Ask for an array of the table; of one array and one target, that stand in two places, as one object."""
        key = (index, id(target))
        known = self._known.get(key)
        if known is not None and known[2] == ratio:
            self._belongs(range(known[3], known[3] + 1))
            return known[1]
        slot = len(self._asked)
        build = self.add(index, want, target, path, ratio)
        self._known[key] = (target, build, ratio, slot)
        return build

    def fits(self, index: int, target: Array) -> bool:
        """Tell whether an array of the file, as it is, is what a numpy target asks for, and nobody else's."""
        spec = self._specs[index]
        if spec.dtype is not target.dtype or spec.shape != target.shape:
            return False
        if self._known and (index, id(target)) in self._known:
            return False
        return self._taken.setdefault(index, target) is target

    def take(self, index: int) -> Build:
        """Plan to give an array as it is read; `fits` has to say so."""
        return partial(self._host.__getitem__, index)

    def add_many(
        self, indices: Sequence[int], wants: list[Want], targets: list[Any], paths: Iterable[LinkedPath]
    ) -> list[Build] | None:
        """Ask for different arrays, if each fits its target and was not asked for before; else give None."""
        specs = list(map(self._specs.__getitem__, indices))
        if not _fit(specs, wants):
            return None
        if wants[0].kind == "numpy" and self._take_many(indices, specs, wants, targets):
            return list(map(partial, repeat(self._host.__getitem__), indices))
        known = list(zip(indices, map(id, targets), strict=True))
        if not (self._known.keys().isdisjoint(known) and self._taken.keys().isdisjoint(indices)):
            return None
        slots = range(len(self._asked), len(self._asked) + len(indices))
        self._belongs(slots)
        self._asked += zip(indices, wants, paths, targets, repeat(1.0))
        builds: list[Build] = list(map(partial, repeat(self._results.__getitem__), slots))
        self._known.update(zip(known, zip(targets, builds, repeat(1.0), slots), strict=False))
        return builds

    def _take_many(
        self, indices: Sequence[int], specs: Sequence[ArraySpec], wants: list[Want], targets: list[Array]
    ) -> bool:
        if any(spec.dtype is not want.dtype for spec, want in zip(specs, wants, strict=True)):
            return False
        taken = self._taken
        if not taken.keys().isdisjoint(indices) and any(
            taken.get(index, target) is not target for index, target in zip(indices, targets, strict=True)
        ):
            return False
        self._taken.update(zip(indices, targets, strict=True))
        return True

    def together(self, report: MismatchReport) -> Together:
        """Ask for parts of one value, of which all or none may be taken, in a ``with`` block."""
        return Together(self._misfits, self._together, report)

    def _belongs(self, slots: range) -> None:
        for parts in self._together:
            parts.slots.update(slots)

    # Execute.

    def execute(self, arrays: ArrayTable, place: Place, misfit: Callable[[Request, str], None]) -> None:
        """Read all arrays that were asked for, in file order, and convert them.

        Parameters
        ----------
        arrays : ArrayTable
            Where they are read from.
        place : callable
            Turns host arrays into jax arrays.
        misfit : callable
            Is told of each request whose values do not survive, and what was found instead.
        """
        uses = Counter(request[0] for request in self._asked if type(request[0]) is int)
        uses.update(self._taken.keys())
        indices = sorted(uses)
        self._host.update(zip(indices, arrays.read(indices), strict=True))
        for slot, request in enumerate(self._asked):
            source, want, _, keep, ratio = request
            if type(source) is int and ratio == 1.0 and uses[source] == 1 and self._is_wanted(source, want):
                self._results.append(self._host.pop(source))  # as most are
                continue
            array = self._own(source, uses)
            try:
                self._results.append(_converted(array, want, ratio))
            except Misfit:
                found = format_array(array.dtype, array.shape) + " with values that do not survive the "
                misfit(request, found + ("cast" if ratio == 1.0 else "conversion of their unit"))
                self._misfits.add(slot)
                self._results.append(keep)
        self._place(place)

    def _is_wanted(self, source: int, want: Want) -> bool:
        return self._specs[source].dtype is want.dtype and want.kind not in ("python", "scalar")

    def _own(self, source: int | Array, uses: Counter[int]) -> Array:
        """Give a host array that is nobody else's: the last one to ask needs no copy."""
        if type(source) is not int:
            return np.asarray(source)
        uses[source] -= 1
        return np.array(self._host[source]) if uses[source] else self._host.pop(source)

    def _place(self, place: Place) -> None:
        """Move what has to become jax arrays to its devices, all at once."""
        waiting = [i for i, (_, want, *_) in enumerate(self._asked) if want.kind in ("jax", "jax_weak")]
        waiting = [i for i in waiting if i not in self._misfits]
        if not waiting:
            return
        wants = [self._asked[i][1] for i in waiting]
        placed = place([self._results[i] for i in waiting], wants, lambda i: self._asked[waiting[i]][2])
        for i, array in zip(waiting, placed, strict=True):
            self._results[i] = array


class Together:
    """Whether all parts of one value fit: known in part when they are planned, and wholly when they are converted."""

    def __init__(self, misfits: set[int], around: list[Together], report: MismatchReport) -> None:
        self._misfits = misfits
        self._around = around
        self._report = report
        self._before = len(report.found)
        self._planned = False
        #: The requests of the parts.
        self.slots: set[int] = set()

    def __enter__(self) -> Self:
        self._around.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        self._around.pop()
        self._planned = len(self._report.found) == self._before

    def fits(self) -> bool:
        """Tell whether every part has got its value."""
        return self._planned and self._misfits.isdisjoint(self.slots)


def _fit(specs: Sequence[ArraySpec], wants: Sequence[Want]) -> bool:
    """Tell whether each array can become what is wanted; equal specs and wants are one object each, mostly."""
    seen: tuple[Any, Any] = (None, None)
    for spec, want in zip(specs, wants, strict=True):
        if spec is seen[0] and want is seen[1]:
            continue
        seen = spec, want
        if spec.kind == OPAQUE or spec.shape != want.shape:
            return False
        if spec.dtype != want.dtype and not castable(spec.dtype, want.dtype):
            return False
    return True


def _converted(array: Array, want: Want, ratio: float) -> Any:
    if want.kind == "python":
        number = array[()] if ratio == 1.0 else scale(array, ratio, _number_dtype(want))[()]
        return fit_number(number, want.number)
    if ratio != 1.0:
        array = scale(array, ratio, want.dtype)
    array = cast(array, want.dtype)
    return array[()] if want.kind == "scalar" else array


def _number_dtype(want: Want) -> np.dtype[Any]:
    return np.dtype(np.int64 if want.number in (int, bool) else np.complex128 if want.number is complex else np.float64)


# Jax arrays.

#: Turns host arrays into jax arrays; the function tells where the one of an index belongs.
Place: TypeAlias = Callable[[list[Array], Sequence[Want], Callable[[int], LinkedPath]], list[Any]]


def placed(registry: Registry, arrays: list[Array], wants: Sequence[Want], path_of: Callable[[int], str]) -> list[Any]:
    """Turn host arrays, which nobody else holds, into jax arrays.

    Raises
    ------
    PrecisionError
        If an array has 64-bit numbers and jax does not.
    """
    registry.activate("jax")
    from ..adapters.jax import WideDtypeError, place

    try:
        return place(arrays, wants)
    except WideDtypeError as error:
        raise PrecisionError(error.explain(path_of(error.index))) from None
