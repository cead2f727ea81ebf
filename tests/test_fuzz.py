"""Changed files, with right checksums: only the documented errors come of them.

``python -m pytest tests/test_fuzz.py --executions 1000000`` does as many; ``tests/fuzz/run.py`` does single ones again.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz.files import put_together, take_apart
from fuzz.mutate import mutate
from fuzz.seeds import seeds

import braintools_ckpt as bt

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "tests" / "fuzz" / "run.py"
CORPUS = sorted((ROOT / "tests" / "fuzz" / "corpus").glob("*"))


def fuzz(*arguments, code=""):
    """Run the fuzzer in a process of its own, after some code."""
    start = f"import runpy, sys; sys.argv = {[str(SCRIPT), *map(str, arguments)]!r}\n{code}\n"
    start += f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, env=environment)


@pytest.mark.skipif(sys.platform != "linux", reason="limits by setrlimit")
def test_changed_files_give_only_documented_errors(request):
    executions = request.config.getoption("--executions")
    done = fuzz(executions)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    figures = json.loads(done.stdout)
    assert figures["executions"] == executions
    assert figures["counts"]["loaded"] > executions // 20
    assert figures["counts"]["CorruptCheckpointError"] > executions // 5
    print(f"{executions} executions: {figures['counts']}; 0 undocumented errors")


#: What goes wrong, and what the fuzzer tells of it.
FAULTS = {
    "an error": ("def broken(*a, **k): raise RecursionError('seeded')", "RecursionError: seeded"),
    "no end": ("def broken(*a, **k):\n    while True: pass", "TooSlow"),
    "a crash": ("import os\ndef broken(*a, **k): os.abort()", "ended with -6 in execution"),
    "memory": ("def broken(*a, **k): bytearray(1 << 40)", "MemoryError"),
}


BREAK = """
from braintools_ckpt.format import reader
real, calls = reader.check_structure, []
def check(*arguments):
    calls.append(1)
    return broken() if len(calls) == 5 else real(*arguments)
reader.check_structure = check
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits by setrlimit")
@pytest.mark.parametrize("fault", FAULTS)
def test_the_fuzzer_tells(fault):
    code, told = FAULTS[fault]
    done = fuzz(60, code=f"{code}\n{BREAK}")
    assert done.returncode != 0
    assert told in done.stderr


def test_an_execution_can_be_done_again():
    made = [take_apart(data) for data, _ in seeds().values()]
    one, other = ([mutate(parts, random.Random(i), made) for i, parts in enumerate(made)] for _ in range(2))
    assert one == other


@pytest.mark.filterwarnings("ignore")
def test_files_that_are_taken_apart_and_put_together_are_what_they_were():
    for data, target in seeds().values():
        assert put_together(take_apart(data)) == data
        bt.msgpack_loads(data)
        bt.msgpack_loads(data, target(), mismatch="ignore")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_what_was_found_before(path):
    data = path.read_bytes()
    for options in ({}, {"raw": True}, {"target": {"a": 1}, "mismatch": "ignore"}, {"arrays": "jax"}):
        try:
            bt.msgpack_loads(data, max_size=1 << 26, **options)
        except bt.CheckpointError:
            continue
