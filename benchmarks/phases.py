"""Where the time goes: ours, by phase."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import cases
from .report import table
from .results import show
from .runner import start
from .sampling import OTHER, PHASES
from .trees import TREES
from .worker import Job

CASES = ("save", "save_durable", "load_jax", "load_numpy", "load_free")


class Profile(NamedTuple):
    """The phases of one case with one tree."""

    tree: str
    case: str
    #: Of the round with the median time.
    seconds: dict[str, float]


def measure(
    names: Sequence[str], amounts: dict[str, int], directory: Path, rounds: int, timeout: float
) -> Iterator[Profile]:
    """Sample all cases of some trees."""
    for name in names:
        with tempfile.TemporaryDirectory(dir=directory, prefix="benchmark-") as folder:
            start(Job("prepare", name, amounts[name], "ours", folder, ()), timeout)
            for case in (case for case in CASES if TREES[name].kind in cases.CASES[case].trees):
                job = Job("sample", name, amounts[name], "ours", folder, (case,))
                found: list[dict[str, Any]] = [start(job, timeout)[0] for _ in range(rounds)]
                done = sorted((result for result in found if "failed" not in result), key=lambda r: r["seconds"])
                if done:
                    yield Profile(name, case, done[len(done) // 2]["phases"])


def markdown(profiles: Sequence[Profile]) -> str:
    """Write a table for each tree: phases as rows, cases as columns."""
    parts = ["# Where the time goes\n"]
    for name in dict.fromkeys(profile.tree for profile in profiles):
        found = {profile.case: profile.seconds for profile in profiles if profile.tree == name}
        rows = [[phase, *(_cell(found[case], phase) for case in found)] for phase in [*PHASES, OTHER]]
        rows = [row for row in rows if set(row[1:]) != {""}]
        rows.append(["**all**", *(show(sum(seconds.values()), "seconds") for seconds in found.values())])
        titles = [cases.CASES[case].title for case in found]
        parts.append(f"## {TREES[name].title}\n\n{table(['phase', *titles], rows)}")
    return "\n".join(parts)


def _cell(seconds: dict[str, float], phase: str) -> str:
    part = seconds.get(phase, 0) / sum(seconds.values())
    return "" if part < 0.005 else f"{show(seconds[phase], 'seconds')} · {part:.0%}"
