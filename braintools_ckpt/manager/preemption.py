"""Notice when the process is asked to end (SIGTERM from a scheduler, Ctrl-C), so that the next step can be saved."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Self, TypeAlias

_log = logging.getLogger("braintools_ckpt")
_Handler: TypeAlias = Callable[[int, FrameType | None], Any] | int | None


class Preemption:
    """Handlers of signals that remember the first one; what handled it before is called as well.

    A second signal of the same kind is left to what handled it before, so that Ctrl-C twice ends at once.

    Parameters
    ----------
    signals : iterable of int
        Which to handle. There can be some only in the main thread.
    """

    def __init__(self, signals: Iterable[int] = ()) -> None:
        self._signals = tuple(signals)
        self._before: dict[int, _Handler] = {}
        #: The signal that came, if one did.
        self.signal: int | None = None

    def __enter__(self) -> Self:
        if self._signals and threading.current_thread() is not threading.main_thread():
            raise RuntimeError("Signals can be handled only in the main thread: make the CheckpointManager there.")
        for number in self._signals:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        self.restore()

    def restore(self) -> None:
        """Give back the handlers that were there before, where nobody else has put another since."""
        while self._before:
            number, handler = self._before.popitem()
            if signal.getsignal(number) == self._handle:
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        before = self._before.get(number)
        if self.signal is None:
            self.signal = number
            name = signal.Signals(number).name
            _log.warning("%s: the next step is saved, then the process ends. A second one ends it at once.", name)
            if callable(before) and before is not signal.default_int_handler:
                before(number, frame)
        elif callable(before):
            before(number, frame)
        elif before == signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
