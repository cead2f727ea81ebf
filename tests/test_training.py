"""Real trainings, with every library whose objects we know, go on in another process with the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "tests" / "harness" / "training.py"


def run(part, library, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(SCRIPT), part, library, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


@pytest.mark.parametrize("library", ["nnx", "linen", "equinox", "haiku", "penzai", "brainstate"])
def test_a_training_goes_on_bit_identical_in_another_process(library, tmp_path):
    whole = run("first", library, tmp_path)
    assert len(whole) == 64
    assert run("rest", library, tmp_path) == whole
    assert run("fresh", library, tmp_path) != whole  # so it is the checkpoint that makes it so
