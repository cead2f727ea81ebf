"""Saves to one place follow one another, whichever threads they run in, in the order in which they were asked for.

A signal handler may save as well, whatever it has interrupted. So nothing here holds a lock: each step is one operation
of a list or a lock that Python does not interrupt.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from typing import Any

#: All turns that were taken and are not over, of all places, in their order.
_line: list[Turn] = []
#: Threads that work in the background.
_workers: set[int] = set()
#: Seconds after which a wait looks again, should nobody have woken it.
_NAP = 0.05


def place_of(path: str) -> str:
    """Give what is the same for all names of one file."""
    return os.path.realpath(path)


class Turn:
    """A place in the line before one file."""

    def __init__(self, place: Hashable) -> None:
        self.place = place
        self.has_begun = False
        #: Who has to go on before this can be over; nobody while it waits for its thread.
        self.thread: int | None = threading.get_ident()
        self._is_taken = False
        self.is_over = False
        self._running = threading.Lock()
        self._running.acquire()

    def take(self) -> None:
        """Get into the line, behind all others."""
        if not self._is_taken:
            self._is_taken = True
            _line.append(self)

    def begin(self) -> None:
        """Wait until all that came before is over."""
        was_taken = self._is_taken
        self.has_begun = True
        self.thread = threading.get_ident()
        self.take()
        _wait(self._ahead(), for_all=was_taken)

    def hand_over(self) -> None:
        """Note that another thread is going to get what the turn is for."""
        self.thread = None

    def give_up(self) -> None:
        """Leave the line."""
        self.is_over = True
        with suppress(RuntimeError):  # it was given up before
            self._running.release()
        with suppress(ValueError):
            _line.remove(self)

    def waits_for_own(self) -> bool:
        """Tell whether this thread has itself to go on before the turn can come, as in a signal handler."""
        me = threading.get_ident()
        return any(turn.thread == me for turn in self._ahead())

    def wait(self) -> None:
        """Wait until the turn is over."""
        while not self.is_over:
            if self._running.acquire(timeout=_NAP):
                with suppress(RuntimeError):
                    self._running.release()

    def _ahead(self) -> list[Turn]:
        return list(takewhile(lambda turn: turn is not self, _turns_at(self.place)))


def _turns_at(place: Hashable) -> list[Turn]:
    return [turn for turn in list(_line) if turn.place == place and not turn.is_over]


def _wait(turns: list[Turn], *, for_all: bool) -> None:
    """Wait for turns, in their order.

    Not for one's own, nor what stands behind it: a signal handler that saves has interrupted it. And a thread that
    works in the background waits only for those that have begun, unless ``for_all``: the others may stand behind its
    own task.
    """
    me = threading.get_ident()
    for turn in takewhile(lambda turn: turn.thread != me, turns):
        if for_all or turn.has_begun or not is_background():
            turn.wait()


class InTurn:
    """A task that waits for its turn before a place.

    Parameters
    ----------
    task : callable
        A function of no arguments.
    place : hashable
        What only one task at a time may have.
    path : str, optional
        Where the task writes, for messages.
    nbytes : int
        Bytes of memory that are held for it.
    slot : object
        What a manager has reserved for it.
    """

    def __init__(
        self, task: Callable[[], Any], place: Hashable, *, path: str | None = None, nbytes: int = 0, slot: Any = None
    ) -> None:
        self.turn = Turn(place)
        self.path = path
        self.nbytes = nbytes
        self.slot = slot
        self._task: Callable[[], Any] | None = task
        self._then: Callable[[], object] | None = None

    def then(self, more: Callable[[], object]) -> None:
        """Do something more when the task has succeeded, before the turn is over."""
        self._then = more

    def give_up(self) -> None:
        """Do not run the task any more."""
        self._task = None
        self.turn.give_up()

    def __del__(self) -> None:
        if not self.turn.is_over:  # Ctrl-C may come anywhere
            self.turn.give_up()

    def __call__(self) -> Any:
        """Wait for the turn and run the task, once; what it holds is let go of with it."""
        task, self._task = self._task, None
        if task is None:
            raise RuntimeError("A task that waits for its turn can be run only once.")
        try:
            self.turn.begin()
            result = task()
            if self._then is not None:
                self._then()
            return result
        finally:
            self._then = None
            self.turn.give_up()


@contextmanager
def in_background() -> Iterator[None]:
    """Mark the thread as one that works in the background, during a block."""
    me = threading.get_ident()
    is_outermost = me not in _workers
    _workers.add(me)
    try:
        yield
    finally:
        if is_outermost:
            _workers.discard(me)


def is_background() -> bool:
    """Tell whether the thread works in the background."""
    return threading.get_ident() in _workers


def settle(path: str) -> None:
    """Wait until all turns that were taken for a file are over."""
    if _line:
        _wait(_turns_at(place_of(path)), for_all=False)


def _start_anew() -> None:
    """Forget the turns of the parent process: its threads go on there."""
    _line.clear()
    _workers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
