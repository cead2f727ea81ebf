"""What threads and signal handlers may share at any moment: registers, claims and latches.

A signal handler interrupts the main thread between any two steps, and must not wait for a lock that this thread holds.
Ctrl-C ends what it interrupts at any step, also before a lock is given back that was just taken. ``threading``'s own
conditions, events and semaphores, and with them the pools of ``concurrent.futures``, survive neither. So here

- what is true is one operation of a list, or one store to an attribute: it has happened or not, and none of it needs
  a second one to be undone;
- what has ended is marked by a plain store, which is the first thing in a ``finally``: no call stands before it, as
  Ctrl-C could come in its stead;
- all else is done by whoever looks next: sweeping out what has ended, and looking again where nobody woke one up.
"""

from __future__ import annotations

import _thread
import os
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

#: Seconds after which a wait looks again, should nobody have woken it.
NAP = 0.02


class _Ends(Protocol):
    is_over: bool


T = TypeVar("T", bound=_Ends)


class Register(Generic[T]):
    """Who takes part in something, in order: one enters at the end, and leaves by setting ``is_over``.

    There is one for each purpose in a process. A child that is forked begins with empty ones: what they held goes on
    in the parent.
    """

    def __init__(self) -> None:
        self.entries: list[T] = []
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._start_anew)

    def enter(self, entry: T) -> None:
        """Add an entry, behind all others."""
        self.entries.append(entry)

    def present(self) -> list[T]:
        """Give those that are not over; the others are swept out."""
        found = self.entries.copy()
        for entry in found:
            if entry.is_over:
                with suppress(ValueError):  # somebody else was faster
                    self.entries.remove(entry)
        return [entry for entry in found if not entry.is_over]

    def _start_anew(self) -> None:
        for entry in self.entries:
            entry.is_over = True
        self.entries.clear()


class Token:
    """A name for one who claims something: who that was can be told after an exception at any point."""

    def __init__(self) -> None:
        self.thread = _thread.get_ident()


class Claim:
    """What only one may have: the first who asks for it."""

    def __init__(self) -> None:
        #: The first of these has it.
        self.by: list[Token] = []

    def take(self, token: Token) -> bool:
        """Ask for it; tell whether this was the first to ask."""
        self.by.append(token)
        return self.by[:1] == [token]

    def give_back(self) -> None:
        """Let the next one have it who asks."""
        self.by.clear()


class Latch:
    """Something that happens once, and can be waited for."""

    def __init__(self) -> None:
        self.is_set = False
        self._lock = _thread.allocate_lock()
        self._lock.acquire()

    def set(self) -> None:
        """Let it happen."""
        self.is_set = True
        with suppress(RuntimeError):  # it had happened
            self._lock.release()

    def wait(self, timeout: float) -> bool:
        """Wait for it, at most so many seconds; tell whether it has happened."""
        if not self.is_set and self._lock.acquire(timeout=timeout):
            with suppress(RuntimeError):
                self._lock.release()
        return self.is_set
