"""All or nothing: a load that fails puts back every object that it had begun to change."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import Any

from ..errors import Path
from .load_report import Leftovers

#: What has attributes, but no state of the caller's.
_CODE = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, type)
#: How deep objects are looked into, each once: as a module lies in modules in an object of the user's.
_DEPTH = 10


def _may_change(item: Any) -> bool:
    if isinstance(item, (list, dict)):
        return True
    ty: type = type(item)
    return (hasattr(item, "__dict__") or bool(_slots(ty))) and not isinstance(item, _CODE)


class Transaction:
    """Changes to the caller's objects, each with the way back.

    ``path`` is where in the tree a user's handler is at work, so that loads which it starts itself report whole paths;
    ``leftovers`` is where they note what they take nothing for, if somebody wants to know.
    """

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []
        self.path: Path = ()
        self.leftovers: Leftovers | None = None

    def apply(self, change: Callable[[], object], undo: Callable[[], object]) -> None:
        """Make a change, remembering how to take it back."""
        self._undo.append(undo)
        change()

    @property
    def mark(self) -> int:
        """Where the list of changes stands now."""
        return len(self._undo)

    def remember(self, obj: Any) -> None:
        """Keep what an object holds that somebody else's code is about to be given.

        Attributes, lists and dicts are kept to some depth, so also the values of states and modules among them. Arrays
        are not: what is written into one in place stays.
        """
        level, seen = [obj], {id(obj)}
        for _ in range(_DEPTH):
            held = {id(item): item for each in level for item in self._remember_one(each) if _may_change(item)}
            level = [item for key, item in held.items() if key not in seen]
            seen.update(held)

    def _remember_one(self, obj: Any) -> Iterable[Any]:
        """Keep one object, and give what it holds."""
        if isinstance(obj, list):
            items = list(obj)
            self._undo.append(partial(obj.__setitem__, slice(None), items))
            return items
        mapping = obj if isinstance(obj, dict) else getattr(obj, "__dict__", None)
        held: list[Any] = []
        if isinstance(mapping, dict):
            self._undo.append(partial(_refill, mapping, dict(mapping)))
            held += mapping.values()
        ty: type = type(obj)
        for name in _slots(ty):
            if hasattr(obj, name):
                held.append(getattr(obj, name))
                self._undo.append(partial(object.__setattr__, obj, name, held[-1]))
        return held

    def roll_back(self, mark: int, error: BaseException | None = None) -> None:
        """Take back all changes since the mark, the last one first."""
        while len(self._undo) > mark:
            try:
                self._undo.pop()()
            except Exception as failed:  # noqa: BLE001  (the rest has to go back all the same)
                if error is not None:
                    error.add_note(f"An object could not be put back as it was: {failed!r}")


def _refill(mapping: dict[Any, Any], items: dict[Any, Any]) -> None:
    mapping.clear()
    mapping.update(items)


@lru_cache(maxsize=1024)
def _slots(ty: type) -> list[str]:
    slots = [base.__dict__.get("__slots__", ()) for base in ty.__mro__]
    names = [name for given in slots for name in ([given] if isinstance(given, str) else given)]
    return [name for name in names if not name.startswith("__")]


_current: ContextVar[Transaction | None] = ContextVar("transaction", default=None)


@contextmanager
def transaction() -> Iterator[Transaction]:
    """Run a block in the transaction that is open, or in one of its own; an exception takes the block back."""
    outer = _current.get()
    current = outer or Transaction()
    token = _current.set(current)
    mark = current.mark
    path, leftovers = current.path, current.leftovers
    try:
        yield current
    except BaseException as error:
        current.roll_back(mark, error)
        raise
    finally:
        current.path, current.leftovers = path, leftovers
        _current.reset(token)
