"""How time grows with bytes and with leaves: ours and the limit."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .report import table
from .results import show
from .runner import start
from .trees import SCALING, Tree
from .worker import Job

CASES = {"save": "save", "save_durable": "durable save", "load_free": "load"}
_PEERS = ("limit", "ours")
_UNITS = {"bytes": ("GiB", 1 << 30), "leaves": ("1,000 leaves", 1000)}


@dataclass(frozen=True)
class Point:
    """One measurement."""

    tree: str
    amount: int
    case: str
    peer: str
    seconds: float


def amounts(max_bytes: int, max_leaves: int) -> dict[str, list[int]]:
    """Choose what to measure: 1 MiB to 8 GiB, 1 to 1,000,000 leaves, or less."""
    sizes = [1 << 20, 1 << 23, 1 << 26, 1 << 28, 1 << 29, 1 << 30, 1 << 31, 1 << 32, 1 << 33]
    counts = [1, 10, 100, 1000, 10_000, 100_000, 200_000, 500_000, 1_000_000]
    return {
        "bytes": [size for size in sizes if size <= max_bytes],
        "leaves": [count for count in counts if count <= max_leaves],
    }


def measure(directory: Path, rounds: int, timeout: float, steps: Mapping[str, list[int]]) -> Iterator[Point | str]:
    """Measure all sizes; what memory does not suffice for is said as text."""
    for name, tree in SCALING.items():
        for amount in steps[name]:
            lacks = _lacks(tree, amount)
            if lacks:
                yield f"{tree.describe(amount)}: {lacks}"
                continue
            with tempfile.TemporaryDirectory(dir=directory, prefix="benchmark-") as folder:
                yield from _measure(Job("measure", name, amount, "", folder, ()), rounds, timeout)


def _lacks(tree: Tree, amount: int) -> str | None:
    """Estimate memory: the tree (twice, while it is made) or what is loaded, and the file in the cache."""
    if tree.unit != "bytes":
        return None
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return "more than the machine's memory" if 2.6 * amount > available else None


def _measure(job: Job, rounds: int, timeout: float) -> Iterator[Point | str]:
    for peer in _PEERS:
        result, _ = start(Job("prepare", job.tree, job.amount, peer, job.folder, ()), timeout)
        if "failed" in result:
            yield f"{job.tree} {job.amount:,}, {peer}: {result['failed']}"
            return
    for _ in range(rounds):
        for case in CASES:
            for peer in _PEERS:
                result, _ = start(Job("measure", job.tree, job.amount, peer, job.folder, (case,)), timeout)
                if "failed" in result:
                    yield f"{job.tree} {job.amount:,}, {case} of {peer}: {result['failed']}"
                else:
                    yield Point(job.tree, job.amount, case, peer, result["seconds"])


def medians(points: list[Point]) -> dict[tuple[str, str, str], dict[int, float]]:
    """Give medians by tree, case and peer, then by amount."""
    gathered: dict[tuple[str, str, str], dict[int, list[float]]] = {}
    for point in points:
        line = gathered.setdefault((point.tree, point.case, point.peer), {})
        line.setdefault(point.amount, []).append(point.seconds)
    return {key: {amount: statistics.median(line[amount]) for amount in sorted(line)} for key, line in gathered.items()}


def markdown(points: list[Point], notes: list[str]) -> str:
    """Write a table for bytes and one for leaves: time, time a unit, and the limit."""
    lines = medians(points)
    parts = ["# How cost grows\n", "![Time against bytes and leaves](scaling.png)\n"]
    for name, tree in SCALING.items():
        unit, size = _UNITS[name]
        header = [tree.title]
        header += [f"{title}{text}" for title in CASES.values() for text in ("", f" a {unit}", ", limit")]
        amounts_ = sorted({point.amount for point in points if point.tree == name})
        rows = [_row(tree, amount, size, lines) for amount in amounts_]
        parts.append(f"{table(header, rows)}")
    return "\n".join([*parts, *(f"- {note}" for note in notes)]) + "\n"


def _row(tree: Tree, amount: int, size: int, lines: Mapping[Any, dict[int, float]]) -> list[str]:
    row = [tree.describe(amount)]
    for case in CASES:
        ours, limit = (lines.get((tree.name, case, peer), {}).get(amount) for peer in ("ours", "limit"))
        row.append("-" if ours is None else show(ours, "seconds"))
        row.append("-" if ours is None else show(ours * size / amount, "seconds"))
        row.append("-" if limit is None else show(limit, "seconds"))
    return row


def draw(points: list[Point], path: Path) -> None:
    """Draw both growths, with a line of slope one to compare with."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(13, 4.6))
    lines = medians(points)
    for axis, (name, tree) in zip(axes, SCALING.items(), strict=True):
        for color, (case, title) in zip(("C0", "C1", "C2"), CASES.items(), strict=True):
            for peer, style in (("limit", ":"), ("ours", "-")):
                line = lines.get((name, case, peer), {})
                axis.plot(line.keys(), line.values(), style, marker=".", color=color, label=f"{title}, {peer}")
        ours = lines.get((name, "load_free", "ours"), {})
        if ours:
            last, value = list(ours.items())[-1]
            axis.plot(ours.keys(), [value * amount / last for amount in ours], color="grey", lw=0.8, label="linear")
        axis.set(xscale="log", yscale="log", xlabel=tree.unit, ylabel="seconds", title=tree.title)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
