"""What becomes of a save: a future that neither a signal handler nor Ctrl-C can hang."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any

from ..lockfree import Claim, Latch, Register, Token

_log = logging.getLogger("braintools_ckpt")


class Failure:
    """An error that somebody has to be told of."""

    def __init__(self, outcome: Outcome, error: BaseException) -> None:
        self.outcome = outcome
        self.error = error
        #: Who tells of it just now.
        self.claim = Claim()
        #: Whether somebody was told.
        self.is_over = False


#: Errors of which nobody was told yet.
failures: Register[Failure] = Register()


class Outcome(Future[Any]):
    """A future by plain stores and one latch; the lock of its base class is taken last of all, for others to see.

    It is made with its work undone, by ``_claim``: whoever has that does the work, or has cancelled it.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        #: What it is the outcome of, for messages.
        self.name = name
        #: Whether nothing will be done any more. It is set last, and by a plain store.
        self.is_over = False
        self._claim = Claim()
        self._latch = Latch()
        self._value: Any = None
        self._has_value = self._was_cancelled = False
        self._error: BaseException | None = None
        self._failure: Failure | None = None
        self._calls: list[Callable[[Any], object]] = []

    def __repr__(self) -> str:
        states = {"cancelled": self.cancelled(), "done": self.is_over, "running": self.running(), "pending": True}
        return f"<{type(self).__name__} {next(state for state, holds in states.items() if holds)}>"

    def done(self) -> bool:
        """Tell whether it has ended, in whatever way."""
        return self.is_over

    def running(self) -> bool:
        """Tell whether it has begun and not ended."""
        return bool(self._claim.by) and not self.is_over

    def cancelled(self) -> bool:
        """Tell whether it was given up before it began."""
        return self._was_cancelled and self.is_over

    def cancel(self) -> bool:
        """Give it up, unless it has begun; what it holds is free then."""
        token, claim = Token(), self._claim
        try:
            self._was_cancelled = claim.take(token) or self._was_cancelled
        finally:
            if claim.by[:1] == [token]:
                self._was_cancelled = self.is_over = True
        if claim.by[:1] == [token]:
            self._tell()
        return self._was_cancelled

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait, and give what it raised; that is not raised again by the manager."""
        self._wait(timeout)
        error = self._raised()
        if self._failure is not None:
            self._failure.is_over = True
        return error

    def result(self, timeout: float | None = None) -> Any:
        """Wait; give what it returned, or raise what it raised."""
        self._wait(timeout)
        error = self._raised()
        if error is None:
            return self._value
        try:
            raise error
        finally:
            if self._failure is not None:
                self._failure.is_over = True
            del error, self

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Call a function with this when it has ended, or now if it has."""
        self._calls.append(fn)
        if self.is_over:
            self._call_back()

    def is_told_by(self, error: BaseException) -> bool:
        """Tell whether an exception that is on its way is what ended this; then nobody else is told of it."""
        told = self._error is not None and error in (self._error, self._error.__cause__)
        if told and self._failure is not None:
            self._failure.is_over = True
        return told

    # For what does the work.

    def _wait(self, timeout: float | None) -> None:
        raise NotImplementedError

    def _raised(self) -> BaseException | None:
        if self.cancelled():
            raise CancelledError
        if self._has_value:
            return None
        return self._error or RuntimeError(
            f"The save of {self.name} was interrupted, or is left to the parent process."
        )

    def _keep(self, error: BaseException, outer: BaseException | None) -> None:
        """Keep what the work has raised, and see that somebody is told; ``outer`` was being handled before."""
        let_go(error, outer)
        if error.__traceback__ is not None:  # the caller's frame, which is not at its end
            error.__traceback__ = error.__traceback__.tb_next
        told = error
        if not isinstance(error, Exception):  # Ctrl-C and sys.exit() would end whoever asks
            told = RuntimeError(f"The save ended with {error!r}")
            told.__cause__ = error
        with suppress(Exception):
            told.add_note(f"This was in the background, in the save of {self.name}.")
        self._error = told
        self._failure = Failure(self, told)
        failures.enter(self._failure)

    def _tell(self) -> None:
        """Let all know that it has ended; this may fail or be interrupted without harm to anybody but who asked."""
        self._latch.set()
        with suppress(Exception):  # for concurrent.futures.wait, which looks into the base class
            if self._was_cancelled:
                super().cancel()
                super().set_running_or_notify_cancel()
            elif self._has_value:
                super().set_result(self._value)
            else:
                super().set_exception(self._error)
        self._call_back()

    def _call_back(self) -> None:
        while self._calls:
            try:
                call = self._calls.pop(0)
            except IndexError:  # another thread was faster
                return
            try:
                call(self)
            except Exception:  # noqa: BLE001  (as concurrent.futures does)
                with suppress(Exception):
                    _log.exception("A callback of the save of %s has failed", self.name)


def is_shown(error: BaseException) -> bool:
    """Tell whether an exception that leaves a block will be seen with its notes; one that ends the program is not."""
    return isinstance(error, (Exception, KeyboardInterrupt))


def let_go(error: BaseException, outer: BaseException | None = None) -> None:
    """Take the values of an error's frames away, and of those that led to it: they hold what was to be saved.

    Those of ``outer`` are somebody else's.
    """
    todo: list[BaseException | None] = [error]
    known = {id(outer)}
    while todo:
        found = todo.pop()
        if found is None or id(found) in known:
            continue
        known.add(id(found))
        traceback.clear_frames(found.__traceback__)
        todo += [found.__cause__, found.__context__]
        if isinstance(found, BaseExceptionGroup):
            todo += found.exceptions
