"""How much memory a save and a load take beside the tree itself, measured in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import tracemalloc

import numpy as np
import pytest

import braintools_ckpt as bt

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="measures by /proc/self/statm")

MIB = 1 << 20
SIZE = 256 * MIB
#: What a save or a load may take beside the tree.
ROOM = 64 * MIB

#: ``peak(f)`` calls f and gives its result and the most memory of its own that the process held more than before.
PROLOGUE = """
import ctypes, gc, json, os, sys, threading, time
import numpy as np
import braintools_ckpt as bt

SIZE, PATH = int(sys.argv[1]), sys.argv[2]
PAGE = os.sysconf("SC_PAGE_SIZE")

def held():
    # Resident pages that belong to the process alone; those of a mapped file that nobody wrote to are the system's.
    with open("/proc/self/statm") as file:
        resident, shared = file.read().split()[1:3]
    return (int(resident) - int(shared)) * PAGE

def peak(function):
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    highest, done = [held()], threading.Event()
    before = highest[0]
    def watch():
        while not done.is_set():
            highest[0] = max(highest[0], held())
            time.sleep(0.0005)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = function()
    finally:
        done.set()
        watcher.join()
    return result, max(highest[0], held()) - before

def plain():
    parts = [np.full(SIZE // 8 // 4, i, np.float32) for i in range(4)]
    return {"one": np.arange(SIZE // 2 // 8, dtype=np.float64), "list": parts}

def fortran():
    return {"w": np.asfortranarray(np.arange(SIZE // 4, dtype=np.float32).reshape(1024, -1))}

def big_endian():
    return {"w": np.arange(SIZE // 8, dtype=">f8")}

def on_jax():
    import jax.numpy as jnp
    parts = [jnp.full(SIZE // 8 // 4, i, jnp.float32) for i in range(4)]
    return {"one": jnp.arange(SIZE // 2 // 4, dtype=jnp.float32), "list": parts}

def small():
    return {str(i): np.full(1000, i, np.float32) for i in range(SIZE // 4000)}
"""


def measure(code, path):
    """Run code in a fresh process; what it puts into ``figures`` comes back."""
    done = subprocess.run(
        [sys.executable, "-c", f"{PROLOGUE}\nfigures = {{}}\n{textwrap.dedent(code)}\nprint(json.dumps(figures))"]
        + [str(SIZE), str(path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


SAVE = """
tree = {tree}()
bt.msgpack_dumps([np.ones(3), next(iter(tree.values()))[:1]])
_, figures["save"] = peak(lambda: bt.msgpack_save(PATH, tree, durable=False))
"""
# What the target costs is not counted: it is there before. A mapped load comes before the others, while nothing that
# these took could be used again.
LOADS = """
import jax, jax.numpy as jnp

like = tree["one"]
targets = {
    "none": None,
    "numpy": {"one": np.empty(like.shape, like.dtype), "list": [np.empty(SIZE // 32, np.float32)] * 4},
    "jax": {
        "one": jax.ShapeDtypeStruct(like.shape, like.dtype),
        "list": [jax.ShapeDtypeStruct((SIZE // 32,), np.float32)] * 4,
    },
}
if like.dtype == np.float64:
    del targets["jax"]  # becomes no jax array here
bt.msgpack_loads(bt.msgpack_dumps([np.ones(3), jnp.ones(3)]))
del tree, like
for mmap in (True, False):
    for name, target in targets.items():
        loaded, taken = peak(lambda: bt.msgpack_load(PATH, target, mmap=mmap))
        assert float(loaded["list"][3][-1]) == 3.0
        assert isinstance(loaded["one"], {"none": object, "numpy": np.ndarray, "jax": jax.Array}[name])
        figures["mapped" if mmap else "eager", name] = taken
        del loaded

def look():
    with bt.open_checkpoint(PATH) as checkpoint:
        assert len(checkpoint.specs) == 5
        checkpoint.read("one", slice(0, 10))
        checkpoint.verify()
        return repr(checkpoint)

_, figures["look"] = peak(look)
figures = {" ".join(key) if type(key) is tuple else key: item for key, item in figures.items()}
"""


@pytest.fixture(scope="module", params=["plain", "on_jax"])
def figures(request, tmp_path_factory):
    """Everything that is measured on one tree: each process costs a second or two of its own."""
    path = tmp_path_factory.mktemp("memory") / request.param
    found = measure(SAVE.format(tree=request.param) + LOADS, path)
    path.unlink()
    return found


def test_a_save_copies_nothing(figures):
    assert figures["save"] < ROOM


@pytest.mark.parametrize("tree", ["fortran", "big_endian", "small"])
def test_a_save_of_other_layouts_copies_nothing(tree, tmp_path):
    assert measure(SAVE.format(tree=tree), tmp_path / "x")["save"] < ROOM
    assert (tmp_path / "x").stat().st_size > SIZE * 0.99


def test_a_load_takes_the_payload_and_little_more(figures):
    found = {name: taken for name, taken in figures.items() if name.startswith("eager")}
    assert len(found) >= 2
    for name, taken in found.items():
        assert SIZE * 0.9 < taken < SIZE + ROOM, name  # the lower bound shows that the measurement sees what is loaded


def test_a_mapped_load_takes_next_to_nothing(figures):
    found = {name: taken for name, taken in figures.items() if name.startswith("mapped")}
    assert len(found) >= 2
    for name, taken in found.items():
        assert taken < ROOM, name


def test_looking_into_a_file_takes_next_to_nothing(figures):
    assert figures["look"] < ROOM


def test_a_save_that_copies_is_found(tmp_path):
    code = 'tree = plain(); figures["save"] = peak(lambda: bt.msgpack_dumps(tree))[1]'
    assert measure(code, tmp_path / "x")["save"] > SIZE


def test_big_endian_arrays_are_swapped_where_they_lie():
    array = np.arange(1 << 20, dtype=">f8")
    data = bt.msgpack_dumps({"x": array})
    tracemalloc.start()
    loaded = bt.msgpack_loads(data)["x"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert loaded.dtype == array.dtype
    np.testing.assert_array_equal(loaded, array)
    assert peak < 1.25 * array.nbytes
