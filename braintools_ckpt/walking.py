"""What walks over large and deep trees need of the interpreter."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType

from .lockfree import NAP, Register, Token

#: How deep a tree may nest. MessagePack libraries stop at 1024 levels, and a level of ours takes up to two of theirs.
MAX_DEPTH = 400
_CALLS_A_LEVEL = 8


class walking(Token):  # noqa: N801  (it reads as a function)
    """Give a block the calls that a tree of ``MAX_DEPTH`` levels takes, and spare it the garbage collector.

    A walk makes many small objects and no garbage: collecting in between would go over all of them again and again,
    which takes longer than the walk. Both settings are the whole process's; the last of all threads to leave such a
    block puts them back.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_over = False
        self.frame: FrameType | None = None

    def __enter__(self) -> None:
        try:
            self.frame = sys._getframe(1)
            self._forget_lost()
            _walks.enter(self)
            _alone(_set_up)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self.is_over = True
        self.frame = None
        try:
            _alone(_put_back)
        except BaseException:  # Ctrl-C
            _alone(_put_back)
            raise

    def _forget_lost(self) -> None:
        """Forget walks of this thread whose block has been left without a word, as Ctrl-C came just then."""
        mine = [walk for walk in _walks.present() if walk.thread == self.thread]
        if not mine:
            return
        frames, frame = set(), self.frame and self.frame.f_back  # no function has two walks at a time
        while frame is not None:
            frames.add(frame)
            frame = frame.f_back
        for walk in mine:
            if walk.frame not in frames:
                walk.is_over, walk.frame = True, None


class _Turn(Token):
    """A thread that changes the settings, or waits for the one that does."""

    is_over = False


_walks: Register[walking] = Register()
_turns: Register[_Turn] = Register()
#: What was set before the first of all walks, the first entry counts; empty while there is none.
_before: list[tuple[int, bool]] = []


def _alone(change: Callable[[], None]) -> None:
    """Let one thread at a time change the settings: what another one has half set must not be taken for the program's.

    A signal handler comes in its thread's turn. There it may wait for other threads, so these do not wait for long.
    """
    turn, end = _Turn(), time.monotonic() + NAP
    try:
        _turns.enter(turn)
        while (first := _turns.present()[:1]) and first[0].thread != turn.thread and time.monotonic() < end:
            time.sleep(0)
        change()
    finally:
        turn.is_over = True


def _set_up() -> None:
    if not _before:
        _before.append((sys.getrecursionlimit(), gc.isenabled()))
    for limit, _ in _before[:1]:
        sys.setrecursionlimit(limit + MAX_DEPTH * _CALLS_A_LEVEL)
        gc.disable()


def _put_back() -> None:
    if _walks.present():
        return
    before = _before[:1]
    for limit, collecting in before:
        if collecting:
            gc.enable()
        if sys.getrecursionlimit() == limit + MAX_DEPTH * _CALLS_A_LEVEL:
            # This thread may itself be deeper than that by now: then the limit stays.
            with suppress(RecursionError):
                sys.setrecursionlimit(limit)
    _before.clear()
    if _walks.present():  # of a thread that did not wait any longer
        _before[:0] = before
        _set_up()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_put_back)  # walks of other threads go on in the parent
