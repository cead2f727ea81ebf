"""Which checkpoints a directory holds. The directory is the only state: whatever happens there by hand is seen."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from typing import Any

from ..api import open_document, read_metadata
from ..errors import CorruptCheckpointError
from ..storage.sources import open_source
from .names import StepNames
from .policies import StepInfo

_log = logging.getLogger("braintools_ckpt")


class Catalog:
    """The checkpoints of a directory; a file that was read once is read again only when it has changed.

    Parameters
    ----------
    directory : str
        Where they are.
    names : StepNames
        How they are called.
    """

    def __init__(self, directory: str, names: StepNames) -> None:
        self.directory = directory
        self.names = names
        self._lock = threading.RLock()
        #: By name: what the file system says of the file, and what is known of it; None if it is no valid checkpoint.
        self._known: dict[str, tuple[tuple[int, int, int], StepInfo | None]] = {}

    def path(self, step: int) -> str:
        """Give the path of a step."""
        return os.path.join(self.directory, self.names.of(step))

    def scan(self) -> list[StepInfo]:
        """Look at the directory, and give its valid checkpoints, the lowest step first."""
        with self._lock:
            known = {}
            for name, step in self._files():
                found = self._look(name, step)
                if found is not None:
                    known[name] = found
            self._known = known
            return self.known()

    def known(self) -> list[StepInfo]:
        """Give the checkpoints that are known of, without looking."""
        with self._lock:
            infos = [info for _, info in self._known.values() if info is not None]
            return sorted(infos, key=lambda info: info.step)

    def steps(self) -> list[int]:
        """Give the steps of all files with such names, whether valid or not."""
        return sorted(step for _, step in self._files())

    def _files(self) -> list[tuple[str, int]]:
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        return [(name, step) for name in names if (step := self.names.step(name)) is not None]

    def look(self, step: int) -> StepInfo | None:
        """Look at the file of one step: None if there is none, or no valid one."""
        name = self.names.of(step)
        with self._lock:
            found = self._look(name, step)
            if found is None:
                self._known.pop(name, None)
                return None
            self._known[name] = found
            return found[1]

    def forget(self, step: int) -> None:
        """Note that a file is gone."""
        with self._lock:
            self._known.pop(self.names.of(step), None)

    def _look(self, name: str, step: int) -> tuple[tuple[int, int, int], StepInfo | None] | None:
        path = os.path.join(self.directory, name)
        try:
            status = os.stat(path)
            mark = (status.st_ino, status.st_size, status.st_mtime_ns)
            known = self._known.get(name)
            if known is not None and known[0] == mark:
                return known
            return mark, _read(path, step, status)
        except FileNotFoundError:
            return None
        except (CorruptCheckpointError, OSError) as error:
            _log.warning("%s is left out: %s", path, error)
            return mark, None


def _read(path: str, step: int, status: os.stat_result) -> StepInfo:
    with open_source(path) as source:  # not by open_checkpoint, which waits for saves that are on their way
        metadata = read_metadata(open_document(source))
    metrics, own = metadata.get("metrics"), metadata.get("metadata")
    time = metadata.get("time")
    return StepInfo(
        step=step,
        path=path,
        time=float(time) if isinstance(time, (int, float)) else status.st_mtime,
        metrics=_numbers(metrics) if isinstance(metrics, Mapping) else {},
        metadata=dict(own) if isinstance(own, Mapping) else {},
        nbytes=status.st_size,
    )


def _numbers(metrics: Mapping[Any, Any]) -> dict[str, float]:
    return {str(name): float(value) for name, value in metrics.items() if isinstance(value, (int, float))}
