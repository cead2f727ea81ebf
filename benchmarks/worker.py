"""What runs in a process of its own: the preparation of a peer's file, or one measurement."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from . import canonical, files
from .cases import CASES, Case, Scene, Unsupported
from .lineup import PEERS
from .memory import Peak
from .peers import Peer
from .sampling import Sampler
from .trees import SCALING, TREES, Array

Result = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """An order for a worker."""

    mode: Literal["prepare", "measure", "sample"]
    tree: str
    amount: int
    peer: str
    #: The folder of the tree's files.
    folder: str
    cases: tuple[str, ...]

    @property
    def path(self) -> Path:
        """Where the peer's file stands."""
        return Path(self.folder, self.peer)

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def loads(text: str) -> Job:
        fields = json.loads(text)
        return Job(**{**fields, "cases": tuple(fields["cases"])})


def run(job: Job) -> Result:
    """Do what is ordered."""
    import jax

    jax.block_until_ready(jax.numpy.zeros(1))
    peer = PEERS[job.peer]()
    return _prepare(job, peer) if job.mode == "prepare" else _measure(job, peer)


def _scene(job: Job, amount: int, path: Path, live: str | None) -> Scene:
    tree = (TREES | SCALING)[job.tree]
    specs = tree.specs(amount)
    made: Any = None
    if live == "tree":
        made = tree.build(specs)
    elif live is not None:
        made = tree.template(specs, "jax" if live == "jax" else "numpy")
    return Scene(tree, specs, path, path.with_name(f"{path.name}.new"), made)


def _prepare(job: Job, peer: Peer) -> Result:
    """Write the file that is loaded later, and find out what the peer can do and whether it does it right."""
    refused = {}
    with tempfile.TemporaryDirectory(dir=job.folder) as folder:
        for name in job.cases:
            try:
                _warm_up(job, peer, CASES[name], Path(folder, name))
            except Exception as error:  # noqa: BLE001  (whatever it is, it is the answer)
                refused[name] = _reason(error)
    scene = _scene(job, job.amount, job.path, "tree")
    scene.out = job.path
    files.remove(job.path)
    start = time.perf_counter()
    try:
        peer.prepare(scene, "save")
        peer.save(scene, durable=True)
    except Exception as error:  # noqa: BLE001
        return {"refused": dict.fromkeys(job.cases, _reason(error))}
    seconds = time.perf_counter() - start
    scene.live = scene.ready = None
    checked = [name for name in job.cases if CASES[name].checks is not None and name not in refused]
    expected = scene.tree.host(scene.specs) if checked else {}
    for name in checked:
        wrong = _check(job, peer, CASES[name], expected)
        if wrong is not None:
            refused[name] = wrong
    return {"refused": refused, "size": files.size_of(job.path), "seconds": seconds}


def _check(job: Job, peer: Peer, case: Case, expected: dict[str, Array]) -> str | None:
    scene = _scene(job, job.amount, job.path, case.live)
    peer.prepare(scene, case.name)
    try:
        loaded = case.action(peer, scene)
        if not peer.exact:
            return None
        if case.checks == "leaf":
            return canonical.difference(expected[scene.leaf], loaded)
        return canonical.tree_difference(scene.specs, expected, loaded)
    except Exception as error:  # noqa: BLE001
        return _reason(error)


def _warm_up(job: Job, peer: Peer, case: Case, path: Path) -> None:
    """Do the same with a tiny tree."""
    amount = (TREES | SCALING)[job.tree].tiny
    if not case.saves:
        scene = _scene(job, amount, path, "tree")
        scene.out = path
        peer.prepare(scene, "save")
        peer.save(scene, durable=True)
    scene = _scene(job, amount, path, case.live)
    peer.prepare(scene, case.name)
    case.action(peer, scene)
    files.remove(scene.out)
    files.remove(path)


def _measure(job: Job, peer: Peer) -> Result:
    (name,) = job.cases
    case = CASES[name]
    with tempfile.TemporaryDirectory(dir=job.folder) as folder:
        _warm_up(job, peer, case, Path(folder, "tiny"))
    scene = _scene(job, job.amount, job.path, case.live)
    peer.prepare(scene, name)
    files.remove(scene.out)
    if case.saves:
        os.sync()  # what others wrote must not reach the disk now
    else:
        files.warm(job.path)
    gc.collect()
    _trim()
    try:
        if job.mode == "sample":
            return _sample(case, peer, scene)
        with Peak() as peak:
            start = time.perf_counter()
            loaded = case.action(peer, scene)
            seconds = time.perf_counter() - start
        del loaded
        result = {"seconds": seconds, "memory": peak.extra, **scene.marks}
        return {**result, "size": files.size_of(scene.out)} if case.saves else result
    finally:
        files.remove(scene.out)


def _sample(case: Case, peer: Peer, scene: Scene) -> Result:
    with Sampler() as sampler:
        case.action(peer, scene)
    return {"seconds": sum(sampler.seconds.values()), "phases": sampler.seconds}


def _trim() -> None:
    """Give freed memory back, so that everybody begins with fresh memory, whatever was made and freed before."""
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def _reason(error: Exception) -> str:
    if isinstance(error, Unsupported):
        return str(error)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 100 else text[:100] + ' ...'}"
