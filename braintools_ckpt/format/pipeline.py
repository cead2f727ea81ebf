"""Work in several threads whose results are needed in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from ..threads import Job, Team

T = TypeVar("T")

_MOST = 8


def processors() -> int:
    """Give the number of processors that this process may use, at most eight."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    count = os.cpu_count() or 1 if affinity is None else len(affinity(0))
    return min(count, _MOST)


class Pipeline(Generic[T]):
    """Does jobs in threads, a few at a time, and hands on their results in the order of the jobs.

    Results are handed on by the thread that adds jobs, so only as many are held as there are threads, and one more.

    Parameters
    ----------
    put : callable
        Takes a result.
    threads : int, optional
        By default one for each processor.
    """

    def __init__(self, put: Callable[[T], None], threads: int | None = None) -> None:
        size = threads or processors()
        self._put = put
        self._team = Team(size)
        self._most = size + 1
        self._pending: deque[Job[T]] = deque()

    def add(self, job: Callable[[], T]) -> None:
        """Start a job, after the oldest is done if there are many."""
        if len(self._pending) == self._most:
            self._put(self._pending.popleft().result())
        self._pending.append(self._team.add(job))

    def drain(self) -> None:
        """Wait for all jobs."""
        while self._pending:
            self._put(self._pending.popleft().result())

    def close(self) -> None:
        """Give up the jobs that have not begun, and wait for the others."""
        self._pending.clear()
        self._team.close()
