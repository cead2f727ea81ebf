"""Peak memory of a part of a program, above what it held before."""

from __future__ import annotations

import resource
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_PAGE = resource.getpagesize()
_STATM = Path("/proc/self/statm")


class Peak:
    """Measure by the kernel's own high-water mark, which no thread disturbs and which misses nothing.

    A sampling thread is not run while a library holds the GIL, which is just when some copy. It serves where the
    mark cannot be set back. Both count resident pages, and so those of a mapped file, too.
    """

    extra = 0

    def __enter__(self) -> Self:
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self._sampler = None
        except OSError:
            self._sampler = _Sampler()
        self._before = _resident()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        peak = _high_water() if self._sampler is None else self._sampler.end()
        self.extra = max(0, peak - self._before)


class _Sampler:
    def __init__(self) -> None:
        self._peak = _resident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(0.001):
            self._peak = max(self._peak, _resident())

    def end(self) -> int:
        self._ended.set()
        self._thread.join()
        return max(self._peak, _resident())


def _resident() -> int:
    return int(_STATM.read_text().split()[1]) * _PAGE


def _high_water() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("The kernel tells no high-water mark.")
