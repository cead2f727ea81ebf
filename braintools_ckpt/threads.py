"""Work in other threads, begun without any lock of Python's: see `lockfree` for why.

A thread ends when it finds nothing to do. So nothing is kept ready, and nothing has to be shut down.
"""

from __future__ import annotations

import _thread
import threading
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from .lockfree import NAP, Latch, Register

T = TypeVar("T")


class _Worker:
    """A thread while it works for a crew."""

    def __init__(self, crew: Crew) -> None:
        self.crew = crew
        self.thread = _thread.get_ident()
        #: It waits for something: meanwhile another one may work.
        self.rests = False
        self.is_over = False
        self.left = Latch()


_workers: Register[_Worker] = Register()
#: Whether the interpreter ends: then threads that nobody waits for may be cut off, and whoever waits does the work, one
#: job at a time.
is_ending = False


class Crew:
    """So many threads at a time, which do what there is to do.

    Parameters
    ----------
    size : int
        How many.
    find : callable
        Gives something to do, or None. Two threads may find the same: it must be done by one of them alone.
    """

    def __init__(self, size: int, find: Callable[[], Callable[[], object] | None]) -> None:
        self.size = size
        self._find = find

    def call(self) -> bool:
        """Let there be a thread if there is something to do and room for one; False if it was done in this one."""
        if self._busy() >= self.size or self._find() is None:
            return True
        if not is_ending:
            try:
                _thread.start_new_thread(self._work_apart, ())
                return True
            except RuntimeError:  # there are too many threads
                pass
        self._work(False)
        return False

    def _busy(self, until: _Worker | None = None) -> int:
        """Count the threads at work; with ``until`` those that began before that one."""
        workers = [worker for worker in _workers.present() if worker.crew is self]
        if until in workers:
            workers = workers[: workers.index(until)]
        return sum(not worker.rests for worker in workers)

    def _work_apart(self) -> None:
        try:
            self._work(True)
        finally:
            _forget_thread()

    def _work(self, is_apart: bool) -> None:
        # A thread enters itself: if it were entered by whoever starts it, a signal handler that comes before the start
        # would wait for a thread that is not there.
        worker = _Worker(self)
        try:
            _workers.enter(worker)
            while self._busy(worker) < self.size and (job := self._find()) is not None:
                try:
                    job()
                except BaseException:
                    if not is_apart:  # Ctrl-C of the program's
                        raise
                if is_ending:  # threads that never cease to ask must not keep this one
                    break
        finally:
            worker.is_over = True
            worker.left.set()
        if not is_ending:
            self.call()  # for what came while this thread was leaving

    def wait(self) -> None:
        """Wait until none of its threads is at work, but this one."""
        _wait_for([worker for worker in _workers.present() if worker.crew is self])


def rest(rests: bool = True) -> None:
    """Note that this thread waits, so that others of its crew can do what it waits for; or that it goes on."""
    if _workers.entries:
        me = _thread.get_ident()
        for worker in _workers.entries.copy():
            if worker.thread == me:
                worker.rests = rests


def _forget_thread() -> None:
    """Take away what ``threading`` keeps of this thread if somebody, as logging, has asked for it.

    It has not started the thread, and before Python 3.12 does not see it end.
    """
    me, known = _thread.get_ident(), getattr(threading, "_active", {})
    if isinstance(known.get(me), getattr(threading, "_DummyThread", ())):
        known.pop(me, None)


def wait_for_all() -> None:
    """Wait until no thread works for a crew, but this one."""
    _wait_for(_workers.present())


def _wait_for(workers: list[_Worker]) -> None:
    me = _thread.get_ident()
    for worker in workers:
        while worker.thread != me and not worker.left.wait(NAP):
            pass


class Job(Generic[T]):
    """A call whose result is asked for later."""

    def __init__(self, task: Callable[[], T], crew: Crew) -> None:
        self._task: Callable[[], T] | None = task
        self._crew = crew
        self._value: Any = None
        self._error: BaseException | None = None
        self._ended = Latch()

    def run(self) -> None:
        """Do it; what it raises is raised by `result`."""
        task, self._task = self._task, None
        try:
            self._value = task() if task else None
        except BaseException as error:  # noqa: BLE001  (it is raised by `result`)
            self._error = error
        finally:
            task = None
            self._ended.set()

    def wait(self) -> None:
        """Wait until it is done."""
        while not self._ended.wait(NAP):
            self._crew.call()

    def result(self) -> T:
        """Wait until it is done; give what it returned, or raise what it raised."""
        self.wait()
        if self._error is not None:
            raise self._error
        value: T = self._value
        return value


class Team:
    """Does jobs in the order in which they come, so many at a time; to be used in a ``with`` block."""

    def __init__(self, size: int) -> None:
        self._waiting: deque[Job[Any]] = deque()
        self._crew = Crew(size, lambda: self._do_next if self._waiting else None)

    def _do_next(self) -> None:
        try:
            job = self._waiting.popleft()
        except IndexError:  # another thread was faster
            return
        job.run()

    def add(self, task: Callable[[], T]) -> Job[T]:
        """Let something be done."""
        (job,) = self.add_all([task])
        return job

    def add_all(self, tasks: Iterable[Callable[[], T]]) -> list[Job[T]]:
        """Let many things be done."""
        jobs = [Job(task, self._crew) for task in tasks]
        self._waiting += jobs
        for _ in jobs[: self._crew.size]:
            self._crew.call()
        return jobs

    def close(self) -> None:
        """Give up the jobs that have not begun, and wait for the others."""
        self._waiting.clear()
        self._crew.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def do_all(tasks: Iterable[Callable[[], object]], size: int) -> None:
    """Do all of some tasks, so many at a time; at the first that fails the others are given up."""
    with Team(size) as team:
        for job in team.add_all(tasks):
            job.result()
