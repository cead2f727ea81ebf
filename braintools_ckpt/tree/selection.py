"""Save or load only some states of modules, by a filter of the library that they come from (``only=``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from ..errors import HandlerError, SerializationError, format_path
from ..warn import warn
from .encode import Trouble

#: What is selected from: the leaves of a module by path.
Leaves: TypeAlias = dict[tuple[Any, ...], Any]
Predicate: TypeAlias = Callable[[tuple[Any, ...], Any], bool]


@dataclass(frozen=True)
class FilterLibrary:
    """What a library knows of filters.

    ``predicate`` makes one of a filter, ``random`` is the type of what holds the state of random numbers, and
    ``remedy`` says how to choose that, or to say that it is not wanted. ``example`` makes something of a class that a
    file names, to ask a filter of, or gives None.
    """

    predicate: Callable[[Any], Predicate]
    random: type
    remedy: str
    example: Callable[[str], Any]


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

    def split(self, leaves: Leaves, library: FilterLibrary) -> tuple[Leaves, Leaves]:
        """Give the leaves that the filter chooses, and those that it leaves out."""
        try:
            predicate = library.predicate(self.only)
        except (TypeError, ValueError):
            raise TypeError(
                "only must be a filter: a type such as nnx.Param or brainstate.ParamState, a predicate of path and "
                f"leaf, or several of these in a tuple; got {self.only!r}."
            ) from None
        chosen: Leaves = {}
        left_out: Leaves = {}
        for path, leaf in leaves.items():
            (chosen if self._chooses(predicate, path, leaf) else left_out)[path] = leaf
        self.found = self.found or bool(chosen)
        return chosen, left_out

    def rejects(self, path: tuple[Any, ...], kind: str, library: FilterLibrary) -> bool:
        """Tell whether the filter would leave out what a file has at a path, as far as its class says so."""
        example = library.example(kind)
        return example is not None and not self._chooses(library.predicate(self.only), path, example)

    def _chooses(self, predicate: Predicate, path: tuple[Any, ...], leaf: Any) -> bool:
        try:
            return bool(predicate(path, leaf))
        except Exception as error:
            raise HandlerError(
                f"The filter only={self.only!r} failed at path {format_path(path)}: {type(error).__name__}: {error}"
            ) from error

    def confirm(self) -> None:
        """Refuse a filter that has chosen nothing at all."""
        if not self.found:
            raise SerializationError(
                f"only={self.only!r} chooses nothing: the tree holds no module with such a state. It is for modules of "
                "flax.nnx, brainstate and brainpy and for mappings of their states; "
                + (
                    "a text stands for a tag, and not for the name of a class."
                    if isinstance(self.only, str)
                    else "pass the class of variables or states to choose, such as nnx.Param."
                )
            )


class _HasSelection(Protocol):
    selection: Selection | None


@contextmanager
def filtered(walk: _HasSelection) -> Iterator[None]:
    """Look no more at a filter within a block: it has been asked of what is there."""
    outer, walk.selection = walk.selection, None
    try:
        yield
    finally:
        walk.selection = outer


def require_chosen(leaf: Any, selection: Selection | None, library: FilterLibrary) -> None:
    """Refuse to leave out what stands by itself, since nobody would see that it is not there."""
    if selection is not None and not selection.split({(): leaf}, library)[0]:
        name = type(leaf).__name__
        raise Trouble(
            lambda path: SerializationError(
                f"only={selection.only!r} does not choose the {name} at path {path}, which stands in no module. Take "
                "it out of the tree, or choose it as well."
            )
        )


def chosen(leaves: Leaves, selection: Selection | None, library: FilterLibrary) -> Leaves:
    """Give what a save is about."""
    if selection is None:
        return leaves
    taken, left_out = selection.split(leaves, library)
    if taken:  # else it is refused in the end
        warn_of_random(left_out, selection.only, library, "saved")
    return taken


def warn_of_random(left_out: Leaves, only: Any, library: FilterLibrary, what: str) -> None:
    """Say that the state of random numbers stays behind, so that a run will not go on as it was."""
    paths = [format_path(path) for path, leaf in left_out.items() if isinstance(leaf, library.random)]
    if paths and not speaks_of(only, library.random):
        named = ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")
        warn(f"only= leaves out random state, which is not {what}: {named}. {library.remedy}")


def speaks_of(only: Any, ty: type) -> bool:
    """Tell whether a filter names a type or one derived from it, be it to choose it or to leave it out."""
    if isinstance(only, (list, tuple)):
        return any(speaks_of(part, ty) for part in only)
    if isinstance(only, type):
        return issubclass(only, ty)
    # The filters that hold others: ``Any`` and ``All``, ``Not``, ``OfType``.
    held = [getattr(only, name, None) for name in ("predicates", "predicate", "type")]
    return any(speaks_of(part, ty) for part in held if part is not None)
