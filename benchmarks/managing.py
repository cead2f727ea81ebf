"""What a run pays for its manager: unchanged data, and a directory of many steps. Ours, and Orbax's."""

from __future__ import annotations

import contextlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from braintools_ckpt import CheckpointManager, KeepBest, KeepEvery, KeepLatest

from .report import table
from .results import show

_KEPT = 3


class Cost(NamedTuple):
    """What one manager took: seconds, or bytes."""

    title: str
    numbers: dict[str, float]


class _Ours:
    def __init__(self, folder: Path, **options: Any) -> None:
        self._manager = CheckpointManager(folder, async_save=False, **options)

    def save(self, step: int, tree: Any, loss: float = 0.0) -> None:
        self._manager.save(step, tree, {"loss": loss})

    def restore(self, step: int) -> Any:
        return self._manager.restore(step)

    def steps(self) -> int:
        return len(self._manager.infos())

    def close(self) -> None:
        self._manager.close()


class _Orbax:
    """Orbax's, with saves that are finished when they return, as ours here."""

    def __init__(self, folder: Path, **options: Any) -> None:
        import orbax.checkpoint as ocp

        self._args = ocp.args.StandardSave
        given = ocp.CheckpointManagerOptions(enable_async_checkpointing=False, **options)
        self._manager = ocp.CheckpointManager(folder, options=given)

    def save(self, step: int, tree: Any, loss: float = 0.0) -> None:
        self._manager.save(step, args=self._args(tree), metrics={"loss": loss})

    def restore(self, step: int) -> Any:
        return self._manager.restore(step)

    def steps(self) -> int:
        return len(self._manager.all_steps())

    def close(self) -> None:
        self._manager.close()


def unchanged(directory: Path, size: int, rounds: int) -> Iterator[Cost]:
    """Save a run of which all but 2 MiB stay as they are: seconds a step, bytes on the disk for three steps."""
    frozen = {f"w{i}": np.random.default_rng(i).random(size // 32, np.float32) for i in range(8)}
    kinds: dict[str, Callable[[Path], Any]] = {
        "share_unchanged=True": lambda folder: _Ours(folder, keep=KeepLatest(_KEPT), share_unchanged=True),
        "braintools_ckpt": lambda folder: _Ours(folder, keep=KeepLatest(_KEPT)),
        "Orbax": lambda folder: _Orbax(folder, max_to_keep=_KEPT),
    }
    with contextlib.ExitStack() as stack:
        folders = {kind: Path(stack.enter_context(_folder(directory))) for kind in kinds}
        managers = {kind: make(folders[kind]) for kind, make in kinds.items()}
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for step in range(2 + rounds):  # with the first ones there is nothing yet to share
            tree = {"frozen": frozen, "state": np.random.default_rng(step).random(1 << 18)}
            for kind, manager in managers.items():
                begun = time.perf_counter()
                manager.save(step, tree)
                times[kind].append(time.perf_counter() - begun)
        for kind, manager in managers.items():
            manager.close()
            numbers = {"first step": times[kind][0], "second step": times[kind][1]}
            yield Cost(kind, {**numbers, "step": statistics.median(times[kind][2:]), "disk": _used(folders[kind])})


def many(directory: Path, count: int, rounds: int) -> Iterator[Cost]:
    """Fill a directory with steps, and go on: seconds to open and list them, and of a save that keeps them all."""
    tree = {"a": np.zeros(3)}
    keep = [KeepEvery(1), KeepBest(3, "loss"), KeepLatest(5)]
    kinds: dict[str, Callable[[Path, bool], Any]] = {
        "braintools_ckpt": lambda folder, keeps: _Ours(folder, keep=keep if keeps else None, durable=False),
        "Orbax": lambda folder, keeps: _Orbax(folder, **({"max_to_keep": 5, "keep_period": 1} if keeps else {})),
    }
    for kind, make in kinds.items():
        with _folder(directory) as folder:
            manager = make(Path(folder), False)
            for step in range(count):
                manager.save(step, tree, float(step % 97))
            manager.close()
            time.sleep(2.1)  # files that were written a moment ago are read again
            begun = time.perf_counter()
            manager = make(Path(folder), True)
            listed = manager.steps()
            opened = time.perf_counter() - begun
            assert listed == count
            times = []
            for step in range(count, count + rounds):
                begun = time.perf_counter()
                manager.save(step, tree, 1.0)
                times.append(time.perf_counter() - begun)
            manager.close()
            yield Cost(f"{kind}, {count:,} steps", {"open and list": opened, "save": statistics.median(times)})


@contextlib.contextmanager
def _folder(directory: Path) -> Iterator[str]:
    folder = tempfile.mkdtemp(dir=directory, prefix="benchmark-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _used(folder: Path) -> float:
    status = {found.st_ino: found for found in (path.stat() for path in folder.rglob("*"))}
    return sum(found.st_blocks * 512 for found in status.values())


def markdown(unchanging: list[Cost], filled: list[Cost], size: int) -> str:
    """Write the tables."""
    parts = [
        "# Managers\n",
        f"Durable saves of {size >> 20} MiB that stay as they are and 2 MiB that change, one step after the other; "
        "the disk holds three steps. (Orbax compresses.)\n",
        _table(unchanging),
        "Steps of one small array with a metric: opening a directory of them, and saves that keep all.\n",
        _table(filled),
    ]
    return "\n".join(parts)


def _table(costs: list[Cost]) -> str:
    titles = list(costs[0].numbers)
    rows = [
        [cost.title, *(show(cost.numbers[title], "size" if title == "disk" else "seconds") for title in titles)]
        for cost in costs
    ]
    return table(["", *titles], rows)
