"""Save or load only some states of modules, by a filter of the library that they come from (``only=``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from ..errors import SerializationError, format_path
from ..warn import warn

#: What is selected from: the leaves of a module by path.
Leaves: TypeAlias = dict[tuple[Any, ...], Any]
Predicate: TypeAlias = Callable[[tuple[Any, ...], Any], bool]


class Selection:
    """One filter, and whether it has chosen anything yet.

    Parameters
    ----------
    only : object
        A filter of flax.nnx or brainstate: a type of variable or state, a predicate of path and leaf, or several.
    """

    def __init__(self, only: Any) -> None:
        self.only = only
        self.found = False

    def split(self, leaves: Leaves, make: Callable[[Any], Predicate]) -> tuple[Leaves, Leaves]:
        """Give the leaves that the filter chooses, and those that it leaves out.

        ``make`` is the library's function from a filter to a predicate.
        """
        try:
            predicate = make(self.only)
        except (TypeError, ValueError):
            raise TypeError(
                "only must be a filter: a type such as nnx.Param or brainstate.ParamState, a predicate of path and "
                f"leaf, or several of these in a tuple; got {self.only!r}."
            ) from None
        chosen = {path: leaf for path, leaf in leaves.items() if predicate(path, leaf)}
        self.found = self.found or bool(chosen)
        return chosen, {path: leaf for path, leaf in leaves.items() if path not in chosen}

    def confirm(self) -> None:
        """Refuse a filter that has chosen nothing at all."""
        if not self.found:
            raise SerializationError(
                f"only={self.only!r} chooses nothing: the tree holds no module with such a state. It is for modules of "
                "flax.nnx and brainstate, and for nnx.State."
            )


def warn_of_random(paths: list[tuple[Any, ...]], what: str, remedy: str) -> None:
    """Say that the state of random numbers stays behind, so that a run will not go on as it was."""
    if paths:
        named = ", ".join(map(format_path, paths[:3])) + (", ..." if len(paths) > 3 else "")
        warn(f"only= leaves out random state, which is not {what}: {named}. {remedy}")


def speaks_of(only: Any, ty: type) -> bool:
    """Tell whether a filter names a type or one derived from it, be it to choose it or to leave it out."""
    if isinstance(only, (list, tuple)):
        return any(speaks_of(part, ty) for part in only)
    if isinstance(only, type):
        return issubclass(only, ty)
    # The filters that hold others: ``Any`` and ``All``, ``Not``, ``OfType``.
    held = [getattr(only, name, None) for name in ("predicates", "predicate", "type")]
    return any(speaks_of(part, ty) for part in held if part is not None)
