"""Saves to one place follow one another, whichever threads they run in, in the order in which they were asked for.

What holds here, whatever a signal handler or Ctrl-C interrupts:

1. *The order of the line is the order of writing.* A save gets into the line in one step. From then on it is done, and
   before that it is as if it had not been asked for. At each place the first of those that are not over is the one
   that is written. Saves in the background wait in the line for a thread of their crew, and no thread waits for them:
   one is begun by ``start_due`` when its turn has come. That is called when a save gets into the line, when one is
   over, and by everyone who waits, so it does not matter if a call of it was cut off.
2. *Nobody waits for what can end only after he has gone on himself.* A signal handler does not wait for the saves that
   its thread is in the midst of, nor for what stands behind them in the line, nor for threads that wait for these
   (``_stuck``). A save that it asks for goes first, then: what it has interrupted is the later one. A thread of a crew
   that waits, since a task may save, load and wait itself, is replaced meanwhile by another one (``threads.rest``).
3. *An exception at any point leaves nobody waiting.* What begins something ends it in a ``finally`` by one plain store
   (``is_over``), before which nothing else is called. Being taken out of the line, waking those who wait, and beginning
   what comes next are left to whoever looks next.
4. *No lock of Python's*: only what is in ``lockfree``. In particular no condition, event or semaphore of threading, and
   no pool of concurrent.futures.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from _thread import get_ident
from collections.abc import Callable, Hashable, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from itertools import takewhile
from typing import Any

from .. import threads
from ..lockfree import NAP, Register, Token
from ..threads import Crew, rest
from .outcome import Outcome

_log = logging.getLogger("braintools_ckpt")


class Save(Outcome):
    """A save, from when it is asked for until it is over; and its outcome.

    It is given a task, then gets into the line, then somebody claims it and runs it. `write` does all of that in this
    thread; `hand_over` leaves the rest to the crew.

    Attributes
    ----------
    path : str or None
        Where the checkpoint goes, for people.
    nbytes : int
        Size of the arrays that are held until it is there.
    """

    def __init__(
        self,
        task: Callable[[], Any] | None = None,
        place: Hashable = None,
        *,
        path: str | None = None,
        crew: Crew | None = None,
    ) -> None:
        super().__init__(path or "a task without a path")
        self.place = place
        self.path = path
        self.nbytes = 0
        #: Whose threads may run it.
        self.crew = crew
        self._giver = get_ident()
        self._task = task
        self._within: AbstractContextManager[object] | None = None

    def prepare(self, task: Callable[[], Any], place: Hashable, nbytes: int) -> None:
        """Say what is to be done."""
        self._task, self.place, self.nbytes = task, place, nbytes

    def do_within(self, context: AbstractContextManager[object]) -> None:
        """Let the task be done in a context, before the turn is over."""
        self._within = context

    @property
    def thread(self) -> int | None:
        """Who has to go on before this can be over; nobody while it waits in the line for a thread."""
        by = self._claim.by[:1]
        if by:
            return by[0].thread
        return None if self in line.entries else self._giver

    def cancel(self) -> bool:
        """Give it up, unless it has begun; what it holds is free then."""
        cancelled = super().cancel()
        if cancelled:
            self._task = self._within = None
            start_due()
        return cancelled

    def write(self) -> Any:
        """Do it at once: in this thread, when its turn has come."""
        try:
            self._claim.take(Token())
            self.is_over = False  # whoever has asked for it may have left, where another library's manager runs it
            line.enter(self)
            _wait_for(self._ahead())
            return self._do()
        finally:
            self.is_over = True
            self._task = self._within = None
            self._latch.set()
            start_due()

    __call__ = write

    def hand_over(self) -> None:
        """Let its crew do it, when its turn has come."""
        line.enter(self)
        start_due()
        if threads.is_ending:
            _wait_for([self])  # so it is written, here or elsewhere, before this thread ends
        if not self.is_over and not that_can_end([self]):
            # A signal handler's save, in the midst of another one, behind which it stands.
            _wait_for(self._ahead())
            self.run()

    def run(self) -> None:
        """Do it, unless somebody does already; what it raises is its outcome."""
        token, claim = Token(), self._claim
        outer, failed = sys.exception(), None
        try:
            if claim.take(token):
                try:
                    self._value = self._do()
                    self._has_value = True
                except BaseException as error:
                    failed = error
                    self._keep(error, outer)
                    if not isinstance(error, Exception):
                        raise
        finally:
            if claim.by[:1] == [token]:
                self.is_over = True
                self._task = self._within = None
                if self._calls:  # callbacks take their own time: another thread may go on with what is due
                    rest()
                try:
                    start_due()
                finally:
                    self._tell()
                    rest(False)
                if failed is not None:
                    with suppress(Exception):  # a filter of the user's may raise
                        _log.error("The save of %s in the background failed: %r", self.name, failed)
                del failed, outer  # with this frame they would be a cycle

    def _do(self) -> Any:
        task, self._task = self._task, None
        if task is None:
            raise RuntimeError("A save can be done only once.")
        with self._within or nullcontext():
            return task()

    def _ahead(self) -> list[Save]:
        """Give what is before it at its place."""
        return list(takewhile(lambda save: save is not self, _at(self.place)))

    def _wait(self, timeout: float | None) -> None:
        if self.is_over:
            return
        if wait_until(lambda: [self], timeout) and not self.is_over:
            raise RuntimeError(f"The save of {self.name} cannot be waited for here: this thread is in the midst of it.")
        if not self.is_over:
            raise TimeoutError


class _Wait:
    """A thread that waits for a save."""

    def __init__(self) -> None:
        self.thread = get_ident()
        self.save: Save | None = None
        self.is_over = False


#: All saves that have got into the line and are not over, of all places, in their order.
line: Register[Save] = Register()
_waits: Register[_Wait] = Register()


def place_of(path: str) -> str:
    """Give what is the same for all names of one file."""
    return os.path.realpath(path)


def settle(path: str) -> None:
    """Wait until all saves of a file are over that were asked for."""
    if line.entries:
        _wait_for(_at(place_of(path)))


def crew_of(size: int) -> Crew:
    """Make a crew that does saves, those that are handed over to it."""

    def find() -> Callable[[], object] | None:
        return next((save.run for save in _due() if save.crew is crew), None)

    crew = Crew(size, find)
    return crew


def start_due() -> None:
    """Let all saves begin whose turn has come and that are not begun, as many as their crews can take."""
    for crew in {id(save.crew): save.crew for save in _due()}.values():
        if crew is not None and not crew.call() and not threads.is_ending:
            with suppress(Exception):
                _log.warning("No other thread could write what was saved in the background: it is written now.")


def wait_until(none_of: Callable[[], list[Save]], timeout: float | None = None) -> bool:
    """Wait until a function names no save any more that can end without this thread; false if the time is up."""
    end = None if timeout is None else time.monotonic() + timeout
    wait = _Wait()
    try:
        _waits.enter(wait)
        while True:
            left = that_can_end(none_of())
            if not left:
                return True
            wait.save = left[0]
            rest()
            start_due()
            nap = NAP if end is None else min(NAP, end - time.monotonic())
            if nap <= 0:
                return False
            left[0]._latch.wait(nap)
    finally:
        wait.is_over = True
        rest(False)


def _wait_for(saves: list[Save]) -> None:
    if saves:
        wait_until(lambda: saves)


def _at(place: Hashable) -> list[Save]:
    return [save for save in line.present() if save.place == place]


def _due() -> list[Save]:
    """Give the saves whose turn has come and that nobody has begun."""
    first: dict[Hashable, Save] = {}
    for save in line.present():
        first.setdefault(save.place, save)
    return [save for save in first.values() if not save._claim.by]


def that_can_end(saves: Iterable[Save]) -> list[Save]:
    """Give of some saves those that are not over, and can end before this thread goes on."""
    left = [save for save in saves if not save.is_over]
    if left:
        stuck, waiting = _stuck(get_ident())
        left = [save for save in left if save not in stuck and save.thread not in waiting]
    return left


def _stuck(me: int) -> tuple[set[Save], set[int]]:
    """Give the saves in the line, and the threads, that can go on only after a thread has."""
    saves, waiting = set[Save](), {me}
    known = 0
    while known < len(saves) + len(waiting):
        known = len(saves) + len(waiting)
        places = set()
        for save in line.present():
            by = save._claim.by[:1]
            if by[0].thread in waiting if by else save.place in places:
                saves.add(save)
                places.add(save.place)
        for wait in _waits.present():
            if wait.save is None or wait.save.is_over:  # nobody waits, or no more
                continue
            if wait.save in saves or wait.save.thread in waiting:
                waiting.add(wait.thread)
    return saves, waiting
