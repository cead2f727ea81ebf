"""Loads hostile files in processes that are held to limits: ``python prison.py [PART OF A NAME]``.

Each file gets a process of its own, with 5 seconds of processor time, that is watched for whatever a file should not
be able to cause. One line of JSON tells how it went: for each way to load the type of the error (or ``""``), and the
most memory taken beyond what the process had, in KiB.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import json
import os
import resource
import signal
import sys
import time
import traceback
import warnings
import zoneinfo
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent.parent)]

import braintools_ckpt as bt  # noqa: E402

SECONDS = 5
#: In KiB, beside the file.
MOST_MEMORY = 64 << 10
#: Events of the interpreter that a file must not cause: see the table of audit events in Python's documentation.
FORBIDDEN = {
    *("exec", "compile", "import", "code.__new__", "marshal.loads", "pickle.find_class", "ctypes.dlopen"),
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen", "os.kill"),
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate"),
    *("socket.__new__", "socket.connect", "socket.bind", "urllib.Request", "webbrowser.open"),
}
LIBRARIES = {"braintools_ckpt", "importlib", "jax", "jaxlib", "numpy", "tzdata", "brainunit"}
caused: list[str] = []
_LIBC = ctypes.CDLL(None)


def watch(event, arguments):
    """Take down what must not happen."""
    if event in FORBIDDEN and not _is_harmless(event, arguments):
        caused.append(f"{event} {arguments!r:.200}")
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        caused.append(f"open {arguments!r:.200}")


def _is_harmless(event, arguments):
    if event == "import":  # the package's own parts, and those of libraries that are set up on first use
        return arguments[0].partition(".")[0] in (
            "braintools_ckpt",
            "importlib",
            "jax",
            "jaxlib",
            "numpy",
            "tzdata",
            "brainunit",
        )
    if event in ("exec", "compile", "code.__new__", "marshal.loads"):
        # Their modules are read, and collections.namedtuple makes its __new__ from names that were checked.
        return _is_called_by("importlib", "collections/__init__.py", "jax", "brainunit")
    return False


def _is_called_by(*files):
    frame = sys._getframe(3)
    while frame is not None:
        if any(file in frame.f_code.co_filename for file in files):
            return True
        frame = frame.f_back
    return False


def free_memory():
    """Give back what is held for later, so that the next file is measured as if it were the first."""
    _LIBC.malloc_trim(0)


def look(data):
    """Look into a file in all ways that there are, and read it piece by piece."""
    with bt.open_checkpoint(io.BytesIO(data), max_size=1 << 26) as checkpoint:
        repr(checkpoint)
        checkpoint._repr_html_()
        assert len(checkpoint.paths) == len(checkpoint.specs)
        for path in list(checkpoint)[:200]:
            checkpoint[path]
        with contextlib.suppress(KeyError):
            checkpoint["no/such/path"]
        with contextlib.suppress(UserWarning):
            checkpoint.verify()


def mapped(data):
    """Load a file that is mapped."""
    descriptor = os.memfd_create("hostile")
    os.write(descriptor, data)
    return bt.msgpack_load(f"/proc/self/fd/{descriptor}", mmap=True, max_size=1 << 26)


WAYS = {
    "load": lambda data: bt.msgpack_loads(data, max_size=1 << 26),
    "target": lambda data: bt.msgpack_loads(data, {"a": [1, {"b": 2.0}], "c": "x"}, mismatch="ignore"),
    "strict target": lambda data: bt.msgpack_loads(data, [1, {"b": 2.0}]),
    "raw": lambda data: bt.msgpack_loads(data, raw=True, max_size=1 << 26),
    "mapped": mapped,
    "look": look,
}


def memory(line):
    with open("/proc/self/status") as status:
        return next(int(row.split()[1]) for row in status if row.startswith(line))


def try_all(data):
    """Load a file in each way, and give what came of it."""
    ways = {}
    for way, load in WAYS.items():
        used = int(time.process_time())
        resource.setrlimit(resource.RLIMIT_CPU, (used + SECONDS, resource.RLIM_INFINITY))
        with open("/proc/self/clear_refs", "w") as file:  # forget the highest so far
            file.write("5")
        before = memory("VmRSS")
        caused.clear()
        seen, kind, message, trace = caused, "", "", ""
        try:
            load(data)
        except Exception as error:
            seen, kind, message = list(caused), type(error).__name__, str(error)[:2000]
            if not isinstance(error, bt.CheckpointError):
                trace = traceback.format_exc()[-3000:]
        taken = memory("VmHWM") - before
        ways[way] = {"error": kind, "message": message, "trace": trace, "taken": taken, "caused": list(seen)}
        free_memory()
    return ways


def in_prison(files):
    """Let a process try files, one after the other; give what it told of each that it came to."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.alarm(120)
            for name, data in files:
                os.write(writer, (json.dumps({"name": name}) + "\n").encode())
                report = {"name": name, "ways": try_all(data), "code": 0}
                os.write(writer, (json.dumps(report) + "\n").encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as lines:
        reports = {report["name"]: report for report in map(json.loads, lines)}
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return [{"ways": {}, "code": code, **report} for report in reports.values()]


def set_up():
    """Do all that libraries do once, before anybody watches."""

    import brainunit as u
    import jax.numpy as jnp
    import numpy as np

    @bt.serializable(name="hostile/Known")
    class Known:
        def __init__(self):
            self.a = 1

    with contextlib.suppress(zoneinfo.ZoneInfoNotFoundError):
        zoneinfo.ZoneInfo("No/Where")  # looks for the package tzdata
    for library in ("brainstate", "brainunit", "flax", "equinox", "penzai", "braintools", "brainpy"):
        bt.msgpack_loads(bt.msgpack_dumps(1))
        with contextlib.suppress(ImportError):
            from braintools_ckpt.tree.registry import registry

            registry.activate(library)
    tree = [np.ones(3), jnp.ones(3), {"q": 1.0 * u.mV}, Known()]
    data = bt.msgpack_dumps(tree, compression="zstd")
    for way in WAYS.values():
        with contextlib.suppress(bt.CheckpointError):
            way(data)


def main(part):
    from hostile.make import all_files

    warnings.simplefilter("ignore")
    set_up()
    sys.addaudithook(watch)
    gc.collect()
    gc.freeze()
    files = [(name, make) for name, make in all_files().items() if part in name]
    while files:
        # Those that ask for much have a process each.
        count = next((i for i, (name, _) in enumerate(files[:50]) if "attack" in name), 50) or 1
        reports = in_prison((name, make()) for name, make in files[:count])
        for report in reports:
            print(json.dumps(report), flush=True)
        files = files[len(reports) :]


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
