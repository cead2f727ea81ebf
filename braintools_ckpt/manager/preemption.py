"""Notice when the process is asked to end (SIGTERM from a scheduler, Ctrl-C), so that the next step can be saved."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, TypeAlias

_Handler: TypeAlias = Callable[[int, FrameType | None], Any] | int | None


class Preemption:
    """Handlers of signals that remember the first one; what handled it before is called as well.

    A second signal is left to what handled it before, so that Ctrl-C twice ends at once. So are signals in a process
    that was forked, and all of them when the handlers have been given back: somebody else may have put a handler around
    these, which then still calls them.

    Parameters
    ----------
    signals : iterable of int
        Which to handle, but for those that are ignored. There can be some only in the main thread.
    """

    def __init__(self, signals: Iterable[int] = ()) -> None:
        self._before: dict[int, _Handler] = {}
        self._pid = os.getpid()
        self._is_active = True
        #: The signal that came, if one did.
        self.signal: int | None = None
        wanted = tuple(signals)
        if wanted and threading.current_thread() is not threading.main_thread():
            raise RuntimeError("Signals can be handled only in the main thread: make the CheckpointManager there.")
        try:
            for number in wanted:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        except BaseException:
            self.restore()
            raise

    def restore(self) -> None:
        """Give back the handlers that were there before, where nobody else has put another since."""
        self._is_active = False
        if threading.current_thread() is not threading.main_thread():  # only there can it be done
            return
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def pass_on(self) -> None:
        """Let what handled the signal before have it, if one came."""
        if self.signal is not None:
            os.kill(os.getpid(), self.signal)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        before = self._before.get(number)
        if not self._is_active or self.signal is not None or os.getpid() != self._pid:
            self._leave(number, frame)
            return
        self.signal = number
        # Not by logging, in the midst of which the signal may have come.
        name = signal.Signals(number).name
        os.write(2, f"\n{name}: the next step is saved, then the process ends. Another one ends it at once.\n".encode())
        if callable(before) and before is not signal.default_int_handler:
            before(number, frame)

    def _leave(self, number: int, frame: FrameType | None) -> None:
        before = self._before.get(number)
        if callable(before):
            before(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
