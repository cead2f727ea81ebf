"""Saves to one place follow one another, whichever threads they run in, in the order in which they were asked for."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

#: Of a kind that a signal handler, which may save as well, can take once more.
_lock = threading.RLock()
#: The last turn that was taken for each place, while it is not over.
_last: dict[Hashable, Turn] = {}
#: Threads that work in the background.
_workers: set[int] = set()


def place_of(path: str) -> str:
    """Give what is the same for all names of one file."""
    return os.path.realpath(path)


class Turn:
    """A place in the line before one file."""

    def __init__(self, place: Hashable) -> None:
        self._place = place
        self._before: Turn | None = None
        self._over = threading.Event()
        self._is_taken = False
        self._has_begun = False
        #: Who has to go on before this can be over; nobody while it waits for its thread.
        self.thread: int | None = threading.get_ident()

    def take(self) -> None:
        """Get into the line, behind all others."""
        with _lock:
            if not self._is_taken:
                self._is_taken = True
                self._before = _last.get(self._place)
                _last[self._place] = self

    def begin(self) -> None:
        """Wait until all that came before is over."""
        with _lock:
            self.thread, self._has_begun = threading.get_ident(), True
        was_taken = self._is_taken
        self.take()
        _wait(self._before, was_taken)
        self._before = None

    def hand_over(self) -> None:
        """Note that another thread has got what the turn is for."""
        with _lock:
            if not self._has_begun:
                self.thread = None

    def give_up(self) -> None:
        """Leave the line. Those behind still wait for those before."""
        with _lock:
            self._over.set()
            if _last.get(self._place) is self:
                before = next((turn for turn in self._behind_each_other() if not turn._over.is_set()), None)
                if before is None:
                    del _last[self._place]
                else:
                    _last[self._place] = before

    def _behind_each_other(self) -> Iterator[Turn]:
        turn: Turn | None = self
        while turn is not None:
            yield turn
            turn = turn._before


def _wait(last: Turn | None, for_all: bool = False) -> None:
    """Wait for a turn and those before it.

    A thread that works in the background waits only for those that have begun, unless ``for_all``: the others may stand
    behind its own task.
    """
    if last is None:
        return
    me = threading.get_ident()
    turns = [turn for turn in last._behind_each_other() if not turn._over.is_set()]
    # A signal handler that saves, within a save: what it has interrupted, and what waits for that, has to wait for it.
    own = max((place for place, turn in enumerate(turns) if turn.thread == me), default=-1)
    for turn in turns[own + 1 :]:
        if for_all or turn._has_begun or me not in _workers:
            turn._over.wait()


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
        self.path = path
        self.nbytes = nbytes
        self.slot = slot
        self._task: Callable[[], Any] | None = task
        self._turn = Turn(place)

    def take_turn(self) -> None:
        """Get into the line now; else that is when the task is run."""
        self._turn.take()

    def hand_over(self) -> None:
        """Note that another thread has got the task."""
        self._turn.hand_over()

    def give_up(self) -> None:
        """Do not run the task any more."""
        self._task = None
        self._turn.give_up()

    def __del__(self) -> None:
        self._turn.give_up()  # Ctrl-C may come anywhere

    def __call__(self) -> Any:
        """Wait for the turn and run the task, once; what it holds is let go of with it."""
        task, self._task = self._task, None
        if task is None:
            raise RuntimeError("A task that waits for its turn can be run only once.")
        try:
            self._turn.begin()
            return task()
        finally:
            self._turn.give_up()


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


def settle(path: str) -> None:
    """Wait until all turns that were taken for a file are over."""
    if _last:
        _wait(_last.get(place_of(path)))


def _start_anew() -> None:
    """Forget the turns of the parent process: its threads go on there."""
    global _lock
    _lock = threading.RLock()
    _last.clear()
    _workers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
