"""Starts the workers: one process a case, peer and round, peers in turn, so that drift hits all alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import files
from .cases import CASES
from .lineup import PEERS
from .trees import Tree
from .worker import Job, Result

_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Settings:
    """How to measure."""

    peers: tuple[str, ...]
    cases: tuple[str, ...]
    rounds: int
    directory: Path
    #: Seconds after which a worker is stopped.
    timeout: float
    #: A measurement whose process took more seconds than this is not repeated.
    patience: float


@dataclass
class PeerResults:
    """What was found about one peer with one tree."""

    size: int | None = None
    #: Why a case has no numbers.
    refused: dict[str, str] = field(default_factory=dict)
    cases: dict[str, list[Result]] = field(default_factory=dict)


@dataclass
class TreeResults:
    """What was found with one tree."""

    title: str
    text: str
    kind: str
    payload: int
    peers: dict[str, PeerResults] = field(default_factory=dict)


def merged(known: TreeResults | None, found: TreeResults) -> TreeResults:
    """Give results with those of peers and cases beside them that were measured before and not again."""
    if known is None or known.payload != found.payload:
        return found
    peers = {}
    for name in dict.fromkeys([*known.peers, *found.peers]):
        old, new = (results.peers.get(name, PeerResults()) for results in (known, found))
        size = old.size if new.size is None else new.size
        peers[name] = PeerResults(size, {**old.refused, **new.refused}, {**old.cases, **new.cases})
    return replace(found, peers=peers)


def measure_tree(tree: Tree, amount: int, settings: Settings, report: Callable[[TreeResults], None]) -> TreeResults:
    """Measure all cases of a tree with all peers; ``report`` is called after each round."""
    payload = sum(spec.nbytes for spec in tree.specs(amount).values())
    results = TreeResults(tree.title, tree.describe(amount), tree.kind, payload)
    cases = tuple(name for name in settings.cases if tree.kind in CASES[name].trees)
    with tempfile.TemporaryDirectory(dir=settings.directory, prefix="benchmark-") as folder:
        for peer in settings.peers:
            results.peers[peer] = _prepare(Job("prepare", tree.name, amount, peer, folder, cases), settings)
        for number in range(settings.rounds):
            for case in cases:
                for peer in settings.peers:
                    job = Job("measure", tree.name, amount, peer, folder, (case,))
                    _measure(job, results.peers[peer], number, settings)
            report(results)
    return results


def _prepare(job: Job, settings: Settings) -> PeerResults:
    missing = _missing(job.peer)
    if missing is not None:
        return PeerResults(refused=dict.fromkeys(job.cases, f"{missing} is not installed"))
    result, seconds = start(job, settings.timeout)
    _say(f"{job.tree}: {job.peer} prepared in {seconds:.0f} s")
    if "failed" in result:
        reason: str = result["failed"]
        return PeerResults(refused=dict.fromkeys(job.cases, reason))
    return PeerResults(result.get("size"), result["refused"])


def _missing(peer: str) -> str | None:
    from .machine import versions

    found = versions()
    return next((name for name in PEERS[peer].modules if found[name] == "not installed"), None)


def _measure(job: Job, results: PeerResults, number: int, settings: Settings) -> None:
    (case,) = job.cases
    done = results.cases.get(case, [])
    if case in results.refused or len(done) < number:
        return
    result, seconds = start(job, settings.timeout)
    if "failed" in result:
        results.refused[case] = result["failed"]
        return
    if number == 0 and seconds > settings.patience:
        result["slow"] = True
    if not (done and done[0].get("slow")):
        results.cases[case] = [*done, result]
    if number == 0 and seconds > settings.patience:
        _say(f"{job.tree}: {case} of {job.peer} took {seconds:.0f} s and is not repeated")


def start(job: Job, timeout: float) -> tuple[Result, float]:
    """Run a worker and give its result and its whole time."""
    begin = time.perf_counter()
    environment = {
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONWARNINGS": "ignore",
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    command = [sys.executable, "-m", "benchmarks", "worker", job.dumps()]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        files.remove(job.path.with_name(f"{job.path.name}.new"))
        what = "one save and one load of each kind" if job.mode == "prepare" else "it"
        return {"failed": f"stopped: {what} took more than {timeout:g} s"}, timeout
    seconds = time.perf_counter() - begin
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"failed": f"ended with {done.returncode}: {lines[-1][:150] if lines else ''}"}, seconds
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result, seconds


def _say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def announce(tree: Tree, amount: int, settings: Settings) -> None:
    """Say what comes."""
    _say(f"{tree.name}: {tree.title}, {tree.describe(amount)}, {len(settings.peers)} peers, {settings.rounds} rounds")


def usable(names: Sequence[str], known: Sequence[str], what: str) -> tuple[str, ...]:
    """Check names given on the command line; ``+x`` adds to the default."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"Unknown {what}: {', '.join(unknown)}. Known: {', '.join(known)}.")
    return tuple(name for name in known if name in names)
