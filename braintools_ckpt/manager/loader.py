"""Which file to load, and which one instead if that is no checkpoint any more."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias

from ..api import msgpack_load
from ..errors import CheckpointNotFoundError, CorruptCheckpointError, InvalidCheckpointPath
from ..warn import warn
from .catalog import Catalog, Entry
from .policies import Mode, StepInfo, ranked

Which: TypeAlias = int | Literal["latest", "best"]


class Loader:
    """Loads steps of a directory.

    Parameters
    ----------
    catalog : Catalog
        The directory.
    metric : str
        By which the best is found.
    mode : {'min', 'max'}
        Whether less of it is better, or more.
    """

    def __init__(self, catalog: Catalog, metric: str, mode: Mode) -> None:
        self._catalog = catalog
        self.metric = metric
        self.mode = mode

    def judged(self, infos: Iterable[StepInfo]) -> list[StepInfo]:
        """Give the checkpoints that have the metric, the best first."""
        having = [info for info in infos if not math.isnan(info.metrics.get(self.metric, math.nan))]
        return ranked(having, self.metric, self.mode)

    def load(
        self, which: Literal["latest", "best"], target: Any, strict: bool, options: Mapping[str, Any]
    ) -> tuple[int, Any]:
        """Load the first choice that can be loaded; give its step, too."""
        failed: list[str] = []
        while entries := self._candidates(which):
            failed, all_there = [], True
            for entry in entries:
                try:
                    if entry.problem:
                        raise entry.error()
                    tree = msgpack_load(entry.path, target, **options)
                except FileNotFoundError:  # deleted since
                    all_there = False
                except (InvalidCheckpointPath, OSError) as error:
                    if strict:
                        raise
                    failed.append(f"{os.path.basename(entry.path)}: {error}")
                else:
                    self._tell(failed, entry.step)
                    return entry.step, tree
            if all_there:
                break
            # Some were deleted while this one looked: a run that goes on has saved others.
        if failed:
            listed = "".join(f"\n  - {text}" for text in failed)
            raise CorruptCheckpointError(
                f"None of the {len(failed)} checkpoints in {self._catalog.directory} can be loaded:{listed}"
            )
        raise self._nothing()

    def choose(self, which: Literal["latest", "best"]) -> Entry:
        """Give the first choice among the valid checkpoints."""
        for entry in self._candidates(which):
            if entry.info is not None:
                return entry
        raise self._nothing()

    def _nothing(self) -> CheckpointNotFoundError:
        return CheckpointNotFoundError(self._catalog.directory, " (it holds no checkpoint of this name format).")

    def _candidates(self, which: str) -> list[Entry]:
        """Give the files to try, the first choice first; what is no valid checkpoint is among them, to be told of."""
        entries = self._catalog.entries()
        if which == "latest":
            return entries[::-1]
        if which != "best":
            raise ValueError(f"step must be a number, 'latest' or 'best', got {which!r}.")
        by_step = {entry.step: entry for entry in entries}
        infos = [entry.info for entry in entries if entry.info is not None]
        judged = self.judged(infos)
        if infos and not judged:
            names = ", ".join(sorted({name for info in infos for name in info.metrics})) or "none"
            raise CheckpointNotFoundError(
                self._catalog.directory, f" (no checkpoint has the metric {self.metric!r}; there are: {names})."
            )
        best = [by_step[info.step] for info in judged]
        return [*(entry for entry in entries if entry.problem), *best]

    def _tell(self, failed: list[str], number: int) -> None:
        if failed:
            warn(f"Step {number} was loaded, since other checkpoints cannot be: {'; '.join(failed)}")
