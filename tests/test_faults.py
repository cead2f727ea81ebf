"""Saves that fail: whatever the system answers, and whenever the process ends, the old file or the new one is whole.

``python -m pytest tests/test_faults.py --faults 100000 --kills 100`` tries all faults, and kills 10,000 processes.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import braintools_ckpt as bt

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "tests" / "harness" / "faults.py"
sys.path.insert(0, str(SCRIPT.parent))

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the system calls are those of Linux")

if sys.platform == "linux":
    from faults import WAYS, Calls, Place, calls_of, failing, faults_of, nothing, short


def spread(items, count):
    """Give so many of the items, evenly spread."""
    step = max(1, len(items) // count)
    return items[::step] if len(items) > count else items


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def check_fault(way, at, fault, lasting):
    """Let one call of a save fail, and check what is there afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        place, before, error = Place(folder, way), descriptors(), None
        with Calls(folder, at, fault, lasting=lasting) as calls:
            try:
                place.do()
            except (OSError, bt.CheckpointError) as caught:
                error = caught
        assert descriptors() == before
        version = place.version()
        if error is None:
            assert version == 2
            assert place.left() == set()
        else:
            # The file, or the directory in which it cannot be made.
            named = str(getattr(error, "filename", None) or error)
            assert named in (str(place.path), str(place.path.parent)) or str(place.path) in named, named
            assert f".{place.file.name}.tmp-" not in str(error)
            in_place = version == 2
            after_publishing = {"open", "fsync", "close", "unlink", "flock"} & {calls.names[at]}
            assert not in_place or after_publishing, "an error was told, but the file was replaced"
        if not (lasting and calls.names[at] == "unlink") and calls.names[at] != "unlink":
            assert place.left() == set()
        place.start_again(older_than=0)
    return "error" if error is not None else "saved"


def test_each_call_of_each_save_fails(request):
    faults = [
        (way, at, fault, lasting)
        for way in WAYS
        for at, name in enumerate(calls_of(way))
        for fault in faults_of(name)
        for lasting in (False, True)
    ]
    tried = spread(faults, request.config.getoption("--faults"))
    outcomes = Counter()
    for way, at, fault, lasting in tried:
        try:
            outcomes[check_fault(way, at, fault, lasting)] += 1
        except BaseException as error:
            error.add_note(f"{way}: {fault.what} at call {at} ({calls_of(way)[at]}){', and on' * lasting}")
            raise
    print(f"{len(tried)} of {len(faults)} faults in {len(WAYS)} ways to save: {dict(outcomes)}; 0 files lost")


def test_calls_are_seen(tmp_path):
    assert {"open", "write", "fsync", "close", "replace"} <= set(calls_of("replacing, at once, durable"))
    assert "link" in calls_of("overwrite=False, background, durable")
    assert "mkdir" in calls_of("in a new directory, at once, durable")
    assert calls_of("first save, at once, not durable").count("fsync") == 0
    assert calls_of("in a new directory, at once, durable").count("fsync") >= 3


@pytest.mark.parametrize("act", ["short", "nothing"])
def test_writes_that_do_little(act, tmp_path):
    place = Place(tmp_path, "replacing, at once, durable")
    first = calls_of("replacing, at once, durable").index("write")
    with Calls(tmp_path, first, {"short": short, "nothing": nothing}[act], lasting=True):
        if act == "short":
            place.do()
        else:
            with pytest.raises(OSError, match="reported 0 written bytes") as caught:
                place.do()
            assert caught.value.filename == str(place.path)
    assert place.version() == (2 if act == "short" else 1)


# --- loads ----------------------------------------------------------------------------------------------------


def load(path):
    return bt.msgpack_load(path)["small"][0]


def load_mapped(path):
    return bt.msgpack_load(path, mmap=True)["small"][0]


def look(path):
    with bt.open_checkpoint(path) as checkpoint:
        checkpoint.verify()
        return checkpoint["small/0"]


@pytest.mark.parametrize("way", [load, load_mapped, look])
def test_each_call_of_each_load_fails(way, tmp_path):
    path = tmp_path / "file"
    bt.msgpack_save(path, {"small": [np.arange(3)], "large": np.arange(100_000)})
    with Calls(tmp_path) as calls:
        way(path)
    assert {"FileIO", "preadv"} <= set(calls.names)
    for at, name in enumerate(calls.names):
        for code in (errno.EIO, errno.ENOMEM, errno.EINTR, errno.EACCES):
            before = descriptors()
            with Calls(tmp_path, at, failing(code)), pytest.raises(OSError) as caught:
                way(path)
            assert caught.value.errno == code, name
            assert caught.value.filename == str(path), name
            assert descriptors() == before
    assert way(path).tolist() == [0, 1, 2]


# --- kills ----------------------------------------------------------------------------------------------------


def test_a_killed_save_leaves_the_old_file_or_the_new_one(request):
    kills = request.config.getoption("--kills") * 100
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(SCRIPT), str(kills)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout)
    assert figures["at calls"] + figures["at random moments"] == kills
    assert figures["in the midst of a save"] > kills // 10
    assert figures["lost"] == 0
    print(f"{kills} kills: {figures}")
