"""The end of the process: what is being saved is finished, and what has failed is told of."""

from __future__ import annotations

import atexit
import contextlib
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from . import threads
from .lockfree import Register
from .storage.outcome import failures
from .storage.turns import Save, line, wait_until

#: All saves that managers were asked for and that are not over, also those that wait for room.
saves: Register[Save] = Register()
#: What returns when saves that are on their way to a manager have arrived.
barriers: list[Callable[[], object]] = []
#: Whether it is too late to be told at the end.
has_reported = False


def _finish() -> None:
    """Wait for all that is being saved; what is asked for from then on, whoever asks for it waits for."""
    for barrier in barriers.copy():
        with contextlib.suppress(Exception):  # jax tells of it itself
            barrier()
    _wait_for_line()
    threads.is_ending = True
    _wait_for_line()  # for what other threads have asked for meanwhile
    threads.wait_for_all()  # callbacks too


def _wait_for_line() -> None:
    asked = _in_line()  # now: a thread that never ceases to ask must not keep the interpreter from its end
    wait_until(lambda: asked)


def _in_line() -> list[Save]:
    return [save for save in line.present() if save.crew is not None]


class _FailsToFlush:
    """A standard stream that cannot be flushed when the interpreter ends, which then exits with the code 120."""

    closed = False

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def flush(self) -> None:
        """Flush; at the very end, fail."""
        with contextlib.suppress(ValueError):  # it may be closed
            self._stream.flush()
        if sys.is_finalizing():
            raise RuntimeError("saves in the background failed, see above; so the exit code is 120")

    def __repr__(self) -> str:
        return "the end of the process"


def _report() -> None:
    """Tell of saves whose failure nobody was told of, and see that the exit code says so."""
    global has_reported
    has_reported = True
    lost = 0
    for save in _in_line():  # Ctrl-C while the interpreter waited for it
        print(f"\nThe save of {save.name} in the background was not finished.", file=sys.stderr)
        lost += 1
    for failure in failures.present():
        print(f"\nThe save of {failure.outcome.name} in the background failed, and nobody waited:", file=sys.stderr)
        traceback.print_exception(failure.error)
        lost += 1
    if lost:  # data that was not written is what Python has an exit code for, if it is its own streams'
        sys.stdout = _FailsToFlush(sys.stdout or sys.stderr)


atexit.register(_report)
try:
    # Private, but what concurrent.futures does: it comes before anything that is registered with atexit, where jax
    # ends its backends, and while threads can still be begun.
    threading._register_atexit(_finish)  # type: ignore[attr-defined]
except AttributeError:
    atexit.register(_finish)
except RuntimeError:  # the interpreter ends already
    threads.is_ending = True
