"""A simulation that is killed again and again ends with the same bits as one that is not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import braintools_ckpt as bt

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "tests" / "harness" / "simulation.py"
STEPS = 60_000


def start(folder, way, steps=STEPS):
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(SCRIPT), str(folder), str(steps), way]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def run_killed(folder, way, kills):
    """Run to the end through so many kills at random moments; give the steps from which it went on."""
    begun = []
    for left in range(kills, -1, -1):
        with start(folder, way) as process:
            begun.append(int(process.stdout.readline().split()[1]))
            if left:
                path = folder / "checkpoint"
                known = path.stat().st_mtime_ns if path.exists() else None
                while process.poll() is None and (path.stat().st_mtime_ns if path.exists() else None) == known:
                    time.sleep(0.002)  # so that each start gets further
                time.sleep(random.uniform(0, 0.3))
                process.send_signal(signal.SIGKILL)
            code = process.wait()
        if code == 0:
            return begun
    raise AssertionError(f"the last run ended with {code}")


@pytest.mark.parametrize("way", ["manager", "loop"])
def test_a_killed_simulation_ends_bit_identical(way, tmp_path, request):
    kills = request.config.getoption("--kills")
    begun = run_killed(tmp_path / "killed", way, kills)
    print(f"{way}: {len(begun) - 1} kills; went on from {begun}")
    assert begun == sorted(begun)
    assert begun[-1] > 0
    with start(tmp_path / "whole", way) as process:
        assert process.wait() == 0
    killed, whole = ((tmp_path / name / "final").read_bytes() for name in ("killed", "whole"))
    assert killed == whole
    assert bt.msgpack_load(tmp_path / "whole" / "final")["step"].value == STEPS
