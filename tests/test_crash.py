"""A run that is killed at random moments goes on from its last finished save, while another process reads."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from braintools_ckpt import CheckpointManager
from braintools_ckpt.format import reader
from braintools_ckpt.storage.external import EXTERNAL_NAME
from braintools_ckpt.storage.sources import LocalSource
from braintools_ckpt.storage.temporary import TEMPORARY_NAME

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "tests" / "harness" / "crash.py"
sys.path.insert(0, str(SCRIPT.parent))

from crash import check  # noqa: E402


def run_and_kill(folder, rng, *share):
    """Start the run, kill it at a random moment after its first save; give where it went on from, and its last save."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(SCRIPT), str(folder), *share]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        begun = process.stdout.readline().split()
        left = {name for name in os.listdir(folder) if TEMPORARY_NAME.fullmatch(name)}
        left = {name for name in left if f"-{process.pid}-" not in name}
        lines = [process.stdout.readline()]
        time.sleep(rng.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.read().splitlines()
    saved = [int(line.split()[1]) for line in lines if line.startswith("saved") and len(line.split()) == 2]
    return int(begun[1]), saved[-1], left


def referred(path):
    """Give the names of the files beside a checkpoint."""
    with LocalSource(path) as source:
        return reader.external_names(source)


def read_on(folder, is_over, seen):
    """Load the latest step again and again: it has to be whole each time, and never older than before."""
    reader = CheckpointManager(folder)
    while not is_over.is_set():
        step, state = reader.restore_or(None)
        if state is not None:
            check(state, step)
            seen.append(step)
        time.sleep(0.01)


@pytest.mark.parametrize("share", [[], ["share"]])
def test_every_start_goes_on_from_the_last_finished_save(share, tmp_path, request):
    kills = request.config.getoption("--kills") * 2
    rng = random.Random(0)
    is_over, seen = threading.Event(), []
    reader = threading.Thread(target=read_on, args=(tmp_path, is_over, seen))
    reader.start()
    finished, leftovers = 0, 0
    try:
        for _ in range(kills):
            begun, saved, left = run_and_kill(tmp_path, rng, *share)
            assert begun >= finished
            assert left == set()
            leftovers += any(TEMPORARY_NAME.fullmatch(name) for name in os.listdir(tmp_path))
            finished = saved
    finally:
        is_over.set()
        reader.join()
    assert seen == sorted(seen)
    manager = CheckpointManager(tmp_path)
    assert len(manager.all_steps()) <= 5
    assert manager.latest_step() >= finished
    named = {name for step in manager.all_steps() for name in referred(manager.info(step).path)}
    assert {name for name in os.listdir(tmp_path) if EXTERNAL_NAME.fullmatch(name)} == named
    print(f"{kills} kills, {leftovers} in the midst of a save; {len(seen)} loads by another process; 0 steps lost")
