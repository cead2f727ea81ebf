"""Where a thread spends its time, by phase, from samples of its stack."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

_INTERVAL = 0.0005

#: The functions that a phase is in: end of the file's name, name of the function. The innermost counts.
PHASES = {
    "walk the tree": [("tree/encode.py", "_run")],
    "pack structure and table": [("format/writer.py", "__init__"), ("format/writer.py", "_index")],
    "gather and hash": [("format/writer.py", "_write_arrays")],
    "write": [("storage/sinks.py", "write")],
    "sync": [("storage/temporary.py", "sync_file"), ("storage/local.py", "_sync_directories")],
    "rename, permissions": [
        ("storage/local.py", "_publish"),
        ("storage/local.py", "_inspect"),
        ("storage/temporary.py", "create"),
    ],
    "read and check the index": [("format/reader.py", "read")],
    "plan": [("tree/merge.py", "plan_all"), ("tree/merge.py", "_need")],
    "read and check arrays": [("format/reader.py", "fetch"), ("format/reader.py", "arrays")],
    "put on jax's device": [("tree/merge.py", "place")],
    "convert": [("tree/merge.py", "execute")],
    "make the result": [("tree/merge.py", "build_all"), ("tree/decode.py", "run_decoder")],
    "States' setters": [("adapters/brainstate.py", "_set")],
}
_PHASE_OF = {place: phase for phase, places in PHASES.items() for place in places}
OTHER = "other (collector, freeing, opening)"


class Sampler:
    """Looks every half millisecond where the thread is that made it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._watched = threading.get_ident()
        self._ended = threading.Event()
        self._counts: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._interval = sys.getswitchinterval()
        sys.setswitchinterval(_INTERVAL / 2)
        self._start = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = time.perf_counter() - self._start
        self._ended.set()
        self._thread.join()
        sys.setswitchinterval(self._interval)
        whole = max(1, self._counts.total())
        self.seconds = {phase: seconds * count / whole for phase, count in self._counts.items()}

    def _run(self) -> None:
        while not self._ended.wait(_INTERVAL):
            frame = sys._current_frames().get(self._watched)
            self._counts[_phase(frame)] += 1


def _phase(frame: FrameType | None) -> str:
    while frame is not None:
        name = frame.f_code.co_filename
        if "braintools_ckpt" in name:
            file = "/".join(Path(name).parts[-2:])
            phase = _PHASE_OF.get((file, frame.f_code.co_name))
            if phase is not None:
                return phase
        frame = frame.f_back
    return OTHER
