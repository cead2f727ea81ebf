"""What walks over large and deep trees need of the interpreter."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

#: How deep a tree may nest. MessagePack libraries stop at 1024 levels, and a level of ours takes up to two of theirs.
MAX_DEPTH = 400
_CALLS_A_LEVEL = 8

#: A signal handler that saves may come at any moment, also while this is held.
_lock = threading.RLock()
_users = 0
_limit = 0
_collecting = False


@contextmanager
def walking() -> Iterator[None]:
    """Give a block the calls that a tree of ``MAX_DEPTH`` levels takes, and spare it the garbage collector.

    A walk makes many small objects and no garbage: collecting in between would go over all of them again and again,
    which takes longer than the walk. Both settings are the whole process's; the last of all threads to leave such a
    block puts them back.
    """
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _users, _limit, _collecting
    with _lock:
        _users += 1
        if _users == 1:
            _limit = sys.getrecursionlimit()
            _collecting = gc.isenabled()
            sys.setrecursionlimit(_limit + MAX_DEPTH * _CALLS_A_LEVEL)
            gc.disable()


def _leave() -> None:
    global _users
    with _lock:
        if _users == 1:
            _put_back()
        _users -= 1


def _put_back() -> None:
    if _collecting:
        gc.enable()
    if sys.getrecursionlimit() == _limit + MAX_DEPTH * _CALLS_A_LEVEL:
        # This thread may itself be deeper than that by now: then the limit stays.
        with suppress(RecursionError):
            sys.setrecursionlimit(_limit)
