"""The numbers: medians and spreads of rows, and how they are written."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Literal

from .cases import CASES
from .runner import PeerResults, TreeResults

MIB = 1 << 20


@dataclass(frozen=True)
class Row:
    """A row of a table: one quantity of a case."""

    title: str
    case: str
    key: Literal["seconds", "blocked", "slower", "memory", "size"]

    @property
    def name(self) -> str:
        return f"{self.case}.{self.key}"


#: Cases whose seconds are not what they are about.
_OTHERWISE = ("save_async", "loop")


def _rows() -> list[Row]:
    rows = [Row(case.title, name, "seconds") for name, case in CASES.items() if name not in _OTHERWISE]
    rows += [Row("async save: blocked", "save_async", "blocked"), Row("async save: total", "save_async", "seconds")]
    rows += [Row("a loop beside an async save: slower by", "loop", "slower")]
    rows += [Row(f"peak memory: {case.memory}", name, "memory") for name, case in CASES.items() if case.memory]
    return [*rows, Row("size of the file", "size", "size"), Row("size, compressed", "save_compressed", "size")]


ROWS = {row.name: row for row in _rows()}


@dataclass(frozen=True)
class Number:
    """Median, least and most of the rounds."""

    median: float
    least: float
    most: float
    rounds: int


def number(peer: PeerResults | None, row: Row) -> Number | None:
    """Give a number, if there is one."""
    if peer is None:
        return None
    if row.case == "size":
        return None if peer.size is None else Number(peer.size, peer.size, peer.size, 1)
    values = [result[row.key] for result in peer.cases.get(row.case, []) if row.key in result]
    return Number(statistics.median(values), min(values), max(values), len(values)) if values else None


def find(tree: TreeResults, peer: str, name: str) -> Number | None:
    """Give a peer's number of a row by its name."""
    return number(tree.peers.get(peer), ROWS[name])


def show(value: float, key: str) -> str:
    """Write a quantity with its unit."""
    if key == "slower":
        return f"{value:.2f}x"
    if key in ("memory", "size"):
        return f"{value / MIB:,.0f} MiB" if value >= 10 * MIB else f"{value / MIB:.2f} MiB"
    if value >= 10:
        return f"{value:.1f} s"
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.0f} ms" if value >= 0.01 else f"{value * 1e3:.2f} ms"


def ratio(value: float, base: float) -> str:
    """Write a ratio with two digits."""
    if base <= 0:
        return ""
    times = value / base
    return f"{times:.0f}x" if times >= 10 else f"{times:.1f}x" if times >= 2 else f"{times:.2f}x"
