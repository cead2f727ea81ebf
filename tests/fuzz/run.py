"""Changes files and loads them, again and again: ``python tests/fuzz/run.py EXECUTIONS [SEED [FIRST]]``.

Each execution is made from the seed and its number alone, so that one of them can be done again:
``python tests/fuzz/run.py 1 SEED NUMBER``. Only errors that are documented may come; everything else is reported, and
so are crashes, hangs, and memory that grows.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import mmap
import os
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent.parent)]

import braintools_ckpt as bt  # noqa: E402

#: Processor time that one file may take, and memory that the process may have beyond what it begins with.
SECONDS = 3
MEMORY = 512 << 20
MOST = 1 << 26
#: So long nothing else comes from a process that hangs.
HANGS = 120


class TooSlow(BaseException):
    """A file took longer than it may."""


def _look(data, verify=True):
    with bt.open_checkpoint(io.BytesIO(data), verify=verify, max_size=MOST) as checkpoint:
        repr(checkpoint)
        checkpoint._repr_html_()
        assert len(checkpoint.specs) == len(checkpoint)
        checkpoint.metadata  # noqa: B018
        for path in list(checkpoint)[:50]:
            with contextlib.suppress(bt.CheckpointError):
                checkpoint[path]
        checkpoint.verify()


def _again(data):
    loaded = bt.msgpack_loads(data, max_size=MOST)
    try:
        saved = bt.msgpack_dumps(loaded)
    except bt.SerializationError:
        return
    bt.msgpack_loads(saved)


def _renamed(data):
    try:
        bt.msgpack_loads(data, rename=lambda path: f"renamed/{path}" if "a" in path else path, max_size=MOST)
    except ValueError as error:
        if not str(error).startswith("rename= "):  # the error for a function that gives two parts one path
            raise


def execute(data, rng, target):
    """Load a file in one of the ways that there are."""
    way = rng.randrange(12)
    if way <= 2:
        bt.msgpack_loads(data, max_size=MOST)
    elif way <= 5:
        mode = rng.choice(["error", "warn", "ignore"])
        partial, units = rng.randrange(2) == 0, rng.choice(["exact", "convert"])
        bt.msgpack_loads(data, target(), mismatch=mode, partial=partial, units=units, max_size=MOST)
    elif way == 6:
        bt.msgpack_loads(data, raw=True, max_size=MOST)
    elif way == 7:
        bt.msgpack_load(io.BytesIO(data), mmap=True, max_size=MOST)
    elif way == 8:
        bt.msgpack_loads(data, verify=False, arrays=rng.choice(["numpy", "jax"]), max_size=MOST)
    elif way == 9:
        _renamed(data)
    elif way == 10:
        _again(data)
    else:
        _look(data, verify=rng.randrange(2) == 0)


class Fuzzer:
    """Makes and does executions by their numbers."""

    def __init__(self, seed):
        from fuzz.files import take_apart
        from fuzz.seeds import seeds

        self.seed = seed
        self.made = [(take_apart(data), target) for data, target in seeds().values()]
        self.counts = Counter()

    def file(self, number):
        """Give the file of an execution, the choices that are left, and a target."""
        from fuzz.mutate import mutate

        rng = random.Random(f"{self.seed}/{number}")
        parts, target = rng.choice(self.made)
        others = [rng.choice(self.made)[0]]
        return mutate(parts, rng, others), rng, target

    def do(self, number):
        """Do one execution; give what should not have happened."""
        data, rng, target = self.file(number)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            execute(data, rng, target)
            self.counts["loaded"] += 1
        except bt.CheckpointError as error:
            self.counts[type(error).__name__] += 1
        except (Exception, TooSlow):
            return traceback.format_exc()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        return None


def _stop(*_):
    raise TooSlow


def main(executions, seed, first, progress):
    """Do the executions, and tell in one line of JSON what came of them."""
    warnings.simplefilter("ignore")
    faulthandler.enable()
    signal.signal(signal.SIGPROF, _stop)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    fuzzer = Fuzzer(seed)
    fuzzer.do(-1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    found, began = {}, time.monotonic()
    for number in range(first, first + executions):
        progress[:8] = number.to_bytes(8, "little")
        trouble = fuzzer.do(number)
        if trouble is not None:
            key = "".join(trouble.splitlines()[-3:])
            if key not in found:
                print(f"execution {number}: {trouble}", file=sys.stderr, flush=True)
            found.setdefault(key, []).append(number)
        if number % 100_000 == 99_999:
            print(f"{number + 1}: {dict(fuzzer.counts)}", file=sys.stderr, flush=True)
    took = time.monotonic() - began
    figures = {"executions": executions, "undocumented": found, "counts": fuzzer.counts, "seconds": round(took)}
    print(json.dumps(figures))
    return 1 if found else 0


def guarded(executions, seed, first):
    """Do so in a child, so that a crash and a hang are told with the number of their execution."""
    progress = mmap.mmap(-1, 8)
    child = os.fork()
    if not child:
        code = 2
        try:
            code = main(executions, seed, first, progress)
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    seen, since = b"", time.monotonic()
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            break
        if progress[:8] != seen:
            seen, since = progress[:8], time.monotonic()
        elif time.monotonic() - since > HANGS:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.1)
    if code not in (0, 1):
        print(f"ended with {code} in execution {int.from_bytes(progress[:8], 'little')}", file=sys.stderr)
    return code


if __name__ == "__main__":
    executions, seed, first, *_ = [*map(int, sys.argv[1:]), 0, 0]
    sys.exit(guarded(executions, seed, first))
