"""Room for deep trees: walking one takes several Python calls a level, and Python allows 1000 in all by default."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: How deep a tree may nest. MessagePack libraries stop at 1024 levels, and a level of ours takes up to two of theirs.
MAX_DEPTH = 400
_CALLS_A_LEVEL = 8

_lock = threading.Lock()
_users = 0
_before = 0


@contextmanager
def deep_recursion() -> Iterator[None]:
    """Raise the interpreter's recursion limit for a block, by what a tree of ``MAX_DEPTH`` levels takes.

    The limit is the whole process's: it is put back when the last of all threads has left such a block.
    """
    global _users, _before
    with _lock:
        _users += 1
        if _users == 1:
            _before = sys.getrecursionlimit()
            sys.setrecursionlimit(_before + MAX_DEPTH * _CALLS_A_LEVEL)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users and sys.getrecursionlimit() == _before + MAX_DEPTH * _CALLS_A_LEVEL:
                sys.setrecursionlimit(_before)
