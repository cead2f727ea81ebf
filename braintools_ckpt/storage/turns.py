"""Saves to one place follow one another, whichever threads they run in, in the order in which they were asked for."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from types import TracebackType
from typing import Any

_lock = threading.Lock()
#: The last turn that was taken for each place, while it is not over.
_last: dict[Hashable, Turn] = {}


def place_of(path: str) -> str:
    """Give what is the same for all names of one file."""
    return os.path.realpath(path)


class Turn:
    """A place in the line before one file, taken when it is made.

    In a ``with`` block it is the turn's: all that came before is over. A turn that is never used has to be given up.
    """

    def __init__(self, place: Hashable) -> None:
        self._place = place
        self._over = threading.Event()
        self._thread: int | None = None
        with _lock:
            self._before = _last.get(place)
            _last[place] = self

    def __enter__(self) -> None:
        try:
            _wait(self._before)
        except BaseException:  # Ctrl-C
            self.give_up()
            raise
        self._before = None
        self._thread = threading.get_ident()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_up()

    def give_up(self) -> None:
        """Leave the line. Those behind still wait for those before."""
        with _lock:
            if _last.get(self._place) is self:
                if self._before is None or self._before._over.is_set():
                    del _last[self._place]
                else:
                    _last[self._place] = self._before
        self._over.set()


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
    """

    def __init__(self, task: Callable[[], Any], place: Hashable, *, path: str | None = None, nbytes: int = 0) -> None:
        self.path = path
        self.nbytes = nbytes
        self._task: Callable[[], Any] | None = task
        self._place = place
        self._turn: Turn | None = None

    def take_turn(self) -> None:
        """Get into the line now; else that is when the task is run."""
        self._turn = Turn(self._place)

    def give_up(self) -> None:
        """Do not run the task any more."""
        if self._turn is not None:
            self._turn.give_up()

    def __call__(self) -> Any:
        """Wait for the turn and run the task, once; what it holds is let go of with it."""
        task, self._task = self._task, None
        if task is None:
            raise RuntimeError("A task that waits for its turn can be run only once.")
        with self._turn or Turn(self._place):
            return task()


def settle(path: str) -> None:
    """Wait until all turns that were taken for a file are over."""
    if _last:
        _wait(_last.get(place_of(path)))


def _wait(turn: Turn | None) -> None:
    while turn is not None:
        if turn._thread == threading.get_ident():  # it is this very thread's: a signal handler's save, within a save
            return
        turn._over.wait()
        turn = turn._before  # of one that was given up


def _start_anew() -> None:
    """Forget the turns of the parent process: its threads go on there."""
    global _lock
    _lock = threading.Lock()
    _last.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
