"""All or nothing: a load that fails puts back every object that it had begun to change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from ..errors import Path


class Transaction:
    """Changes to the caller's objects, each with the way back.

    ``path`` is where in the tree a user's handler is at work, so that loads which it starts itself report whole paths.
    """

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []
        self.path: Path = ()

    def apply(self, change: Callable[[], None], undo: Callable[[], None]) -> None:
        """Make a change, remembering how to take it back."""
        self._undo.append(undo)
        change()

    def remember(self, obj: Any) -> None:
        """Keep the attributes of an object that somebody else's code is about to be given."""
        attributes = getattr(obj, "__dict__", None)
        if not isinstance(attributes, dict):
            return
        before = dict(attributes)

        def undo() -> None:
            attributes.clear()
            attributes.update(before)

        self._undo.append(undo)

    def roll_back(self, mark: int = 0) -> None:
        """Take back all changes since the mark, the last one first."""
        while len(self._undo) > mark:
            with suppress(Exception):  # the error that led here is the one to report, and the rest goes back too
                self._undo.pop()()


_current: ContextVar[Transaction | None] = ContextVar("transaction", default=None)


@contextmanager
def transaction() -> Iterator[Transaction]:
    """Run a block in the transaction that is open, or in one of its own; an exception takes the block back."""
    outer = _current.get()
    current = outer or Transaction()
    token = _current.set(current)
    mark = len(current._undo)
    path = current.path
    try:
        yield current
    except BaseException:
        current.roll_back(mark)
        raise
    finally:
        current.path = path
        _current.reset(token)
