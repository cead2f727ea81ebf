"""The checkpoint of a trainer: one dict of model, optimizer, scheduler, epoch, step and rng, whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from harness.checkpoint_dict import checkpoint

import braintools_ckpt as bt
from braintools_ckpt import LoadReport, MismatchError, msgpack_dumps, msgpack_load, msgpack_save

HARNESS = Path(__file__).parent / "harness" / "checkpoint_dict.py"


def start(folder, epochs, seed):
    command = [sys.executable, str(HARNESS), str(folder), str(epochs), str(seed)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def result(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return output


def test_a_run_that_is_killed_ends_with_the_same_bits(tmp_path):
    whole = start(tmp_path / "whole", 6, seed=0)
    cut = start(tmp_path / "cut", 6, seed=0)
    while not list((tmp_path / "cut").glob("*2.ckpt")):
        assert cut.poll() is None
        time.sleep(0.01)
    os.kill(cut.pid, signal.SIGKILL)
    cut.communicate()
    assert result(start(tmp_path / "cut", 6, seed=1)) == result(whole)


def filled(seed):
    run = checkpoint(seed)
    run["epoch"], run["step"], run["scheduler"].rate = 3, 24, 0.005
    return run


def test_strict(tmp_path):
    path = msgpack_save(tmp_path / "a" / "b" / "train.ckpt", filled(0))
    run = checkpoint(1)
    back = msgpack_load(path, run)
    assert back["model"] is run["model"]
    assert back["scheduler"] is run["scheduler"]
    assert msgpack_dumps(back) == msgpack_dumps(filled(0))

    run = checkpoint(1, classes=3)
    before = msgpack_dumps(run)
    with pytest.raises(MismatchError, match="Array shape mismatch") as caught:
        msgpack_load(path, {**run, "ema": jnp.zeros(3)})
    keys = {mismatch.keys for mismatch in caught.value.mismatches if mismatch.kind == "missing"}
    assert keys == {("ema",)}
    assert msgpack_dumps(run) == before


def test_not_strict(tmp_path):
    path = msgpack_save(tmp_path / "train.ckpt", {**filled(0), "old": 1})
    run = checkpoint(1, classes=3)
    head = np.array(run["model"].head.kernel[...])
    reports: list[LoadReport] = []
    back = msgpack_load(path, {**run, "ema": jnp.zeros(3)}, mismatch="ignore", report=reports.append)
    (report,) = reports
    assert [path for path in report.kept if not path.startswith("optimizer")] == [
        "model/head/bias",
        "model/head/kernel",
        "ema",
    ]
    assert [path for path in report.ignored if not path.startswith("optimizer")] == [
        "old",
        "model/head/bias",
        "model/head/kernel",
    ]
    assert (back["epoch"], back["step"], back["scheduler"].rate) == (3, 24, 0.005)
    np.testing.assert_array_equal(run["model"].head.kernel[...], head)
    np.testing.assert_array_equal(run["model"].hidden.kernel[...], checkpoint(0)["model"].hidden.kernel[...])


def test_a_save_that_fails_leaves_the_last_one(tmp_path):
    path = msgpack_save(tmp_path / "train.ckpt", filled(0))
    before = (tmp_path / "train.ckpt").read_bytes()
    with pytest.raises(bt.SerializationError, match="path callback"):
        msgpack_save(path, {**filled(1), "callback": object()})
    assert (tmp_path / "train.ckpt").read_bytes() == before
    assert os.listdir(tmp_path) == ["train.ckpt"]
