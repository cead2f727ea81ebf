"""A run with data beside its checkpoints: what is done with it fails, or the process is killed, at each of its calls.

Run as ``python external.py STEP``, it kills a process at every such call whose number can be divided by STEP, before
and after it, and tells in one line of JSON how many these were.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import msgpack
import numpy as np
from faults import Calls

from braintools_ckpt import CheckpointManager, KeepLatest
from braintools_ckpt.format import layout
from braintools_ckpt.manager import catalog
from braintools_ckpt.storage.external import EXTERNAL_NAME
from braintools_ckpt.storage.sinks import FileSink

SIZE = 1 << 16
HOUR = 3600


def links_alone(patch=setattr):
    """Let the file system have no reflinks, and take smaller arrays for large ones."""
    patch(FileSink, "share", lambda *_: False)
    patch(layout, "PAGED_FROM", SIZE)


def fine_clock(patch=setattr):
    """Let no file be looked at again because the clock could not tell a change."""
    patch(catalog, "_mark", lambda status: (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))


def array(seed, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def frozen(count=3):
    return {f"w{i}": array(i) for i in range(count)}


def tree(step, **others):
    return {"frozen": frozen(), "state": array(1000 + step), "step": step, **others}


def run(folder, **options):
    return CheckpointManager(folder, **{"async_save": False, "durable": False, "share_unchanged": True, **options})


def filled(folder, steps=4, **options):
    manager = run(folder, **options)
    for step in range(steps):
        manager.save(step, tree(step))
    return manager


def equal(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return np.array_equal(one, other)


def path(folder, step):
    return Path(folder, f"{step:010}.ckpt")


def beside(folder, step=None):
    """Give the files beside checkpoints, or one of them."""
    start = "" if step is None else path(folder, step).name
    return sorted(p for p in Path(folder).iterdir() if EXTERNAL_NAME.fullmatch(p.name) and p.name.startswith(start))


def used(folder):
    """Give the bytes that a folder takes on the disk."""
    status = {s.st_ino: s for s in (p.stat() for p in Path(folder).iterdir())}
    return sum(s.st_blocks * 512 for s in status.values())


def aged(folder):
    for file in Path(folder).iterdir():
        os.utime(file, (time.time() - 2 * HOUR,) * 2)


def index_of(file):
    """Give the index of a checkpoint, as it stands in the file."""
    data = Path(file).read_bytes()
    _, at, size, _, _ = layout.TRAILER.unpack(data[-layout.TRAILER.size :])
    return msgpack.unpackb(data[at : at + size])


def referred(folder):
    """Give the names that checkpoints of a folder refer to."""
    files = [p for p in Path(folder).iterdir() if not EXTERNAL_NAME.fullmatch(p.name)]
    return {name for file in files for name, _ in index_of(file).get("external", [])}


def before(folder, kind):
    """Make a run, and give what is to be done with it."""
    filled(folder, 4)
    manager = run(folder, keep=KeepLatest(3), durable=True)
    manager.infos()
    if kind == "deleting":
        return lambda: manager.delete(2)
    if kind == "replacing":
        return lambda: manager.save(3, tree(3, again=True), force=True)
    if kind == "copying":  # one that is new, and one that is mostly unused
        manager.save(4, {f"w{i}": array(i) for i in range(1, 20)})
        return lambda: manager.save(5, {f"w{i}": array(i) for i in range(1, 20)})
    return lambda: manager.save(4, tree(4))


KINDS = ["saving", "replacing", "copying", "deleting"]


def calls_of(folder, kind):
    act = before(folder, kind)
    with Calls(folder) as calls:
        act()
    return calls.names


def check(folder):
    """Every checkpoint is whole."""
    manager = run(folder)
    steps = manager.all_steps()
    assert [path(folder, step) for step in steps] == sorted(Path(folder).glob("*.ckpt")), "a checkpoint is not whole"
    for step in steps:
        loaded = manager.restore(step, strict=True)
        if "step" in loaded:
            assert equal({**tree(step), **{k: v for k, v in loaded.items() if k == "again"}}, loaded)
        else:
            assert equal(loaded, {f"w{i}": array(i) for i in range(1, 20)})
    return steps


def killed(kind, at, late, folder):
    """Kill a process at one of its calls, and look at what is there; tell whether anything was left to be removed."""

    def kill(name, real, *arguments, **options):
        try:
            if late:
                real(*arguments, **options)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        act = before(folder, kind)
        with Calls(folder, at, kill):
            act()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, "it was not killed"
    left = any(p.name.startswith(".") for p in folder.iterdir())
    steps = check(folder)
    assert 3 in steps or kind == "copying", "a step is lost"
    assert not [p for p in folder.iterdir() if p.name.startswith(".")], "temporary files stay"
    assert {file.name for file in beside(folder)} == referred(folder), "files beside stay"
    return left


def main(step):
    """Kill processes."""
    links_alone()
    fine_clock()
    figures = {"kills": 0, "in the midst": 0}
    with tempfile.TemporaryDirectory() as place:
        for kind in KINDS:
            for at in range(0, len(calls_of(Path(place, "calls", kind), kind)), step):
                for late in (False, True):
                    folder = Path(place, kind)
                    figures["kills"] += 1
                    figures["in the midst"] += killed(kind, at, late, folder)
                    shutil.rmtree(folder)
    print(json.dumps(figures))


if __name__ == "__main__":
    main(int(sys.argv[1]))
