"""Files that were made to do harm: each is refused quickly, in little memory, and runs no code of its choice.

``python tests/hostile/make.py FOLDER`` writes all of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hostile.make import all_files
from hostile.prison import MOST_MEMORY, WAYS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="measures by /proc and limits by setrlimit")

PRISON = Path(__file__).parent / "hostile" / "prison.py"
NAMES = list(all_files())
REFUSED = {"CorruptCheckpointError", "UnsupportedVersionError"}


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What became of each file, in a process of its own that is held to limits."""
    done = subprocess.run([sys.executable, str(PRISON)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return {report["name"]: report for report in map(json.loads, done.stdout.splitlines())}


def test_each_file_is_tried(reports):
    assert list(reports) == NAMES
    taken = max(found["taken"] for report in reports.values() for found in report["ways"].values())
    print(f"{len(NAMES)} hostile files, each loaded in {len(WAYS)} ways; at most {taken / 1024:.0f} MiB")


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_file(name, reports):
    report = reports[name]
    assert report["code"] == 0, f"killed after {list(report['ways'])}"
    assert list(report["ways"]) == list(WAYS)
    for way, found in report["ways"].items():
        assert found["trace"] == "", (way, found["error"])
        assert found["caused"] == [], way
        assert found["taken"] < MOST_MEMORY, way
    if name.startswith("refused/"):
        assert report["ways"]["load"]["error"] in REFUSED
