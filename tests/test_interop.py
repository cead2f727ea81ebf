"""A reader that is not ours: JavaScript that follows docs/format.md (``tests/interop``) reads what we write."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hostile import attacks
from hostile.forge import forge
from hostile.indices import INDICES, SPECS, STRUCTURES, TABLES
from hostile.make import cases
from hostile.states import EXTRA, WRONG
from hypothesis import given
from test_format import EXPECTED, GOLDEN, SIMPLE, small_layout
from trees import JAX_DTYPES, ML_DTYPES, NUMPY_DTYPES, Plain, Recorded, checkpointable_trees, fill

import braintools_ckpt as bt

FOLDER = Path(__file__).parent / "interop"
sys.path.insert(0, str(FOLDER))
from form import form_of, register  # noqa: E402

register(Plain, Recorded)


class Reader:
    """The other reader, waiting for files."""

    def __init__(self, node):
        self._process = subprocess.Popen(
            [node, str(FOLDER / "reader.mjs")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )

    def __call__(self, file):
        """Give what it prints of a file, or of the bytes of one."""
        name = f"base64:{base64.b64encode(file).decode()}" if isinstance(file, bytes) else str(file)
        self._process.stdin.write(name + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(timeout=60) == 0


@pytest.fixture(scope="module")
def reader():
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed: the reader in JavaScript cannot run. Install Node 20 or newer.")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(re.match(r"v(\d+)", version)[1]) < 20:
        pytest.skip(f"The reader in JavaScript needs Node 20 or newer, here is {version}.")
    if not (FOLDER / "node_modules").is_dir():
        pytest.skip("The reader in JavaScript lacks its packages. Run: npm ci --prefix tests/interop")
    running = Reader(node)
    yield running
    running.close()


def same(reader, tree, **options):
    metadata = options.get("metadata") or {}
    found = reader(bt.msgpack_dumps(tree, **options))
    assert found.get("tree") == form_of(tree), found
    assert found["metadata"] == form_of(metadata)
    assert (found["format"], found["library"]) == (1, bt.__version__)


# --- files that it reads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPECTED.TREES)
def test_golden_files(reader, name):
    found = reader(GOLDEN / f"{name}.msgpack")
    expected = form_of(EXPECTED.TREES[name]())
    if name == "numpy":  # an early file, which does not have the seeds of generators
        for generator in ("generator", "twister"):
            del entry(expected, generator)["attributes"]
    assert found["tree"] == expected
    assert found["metadata"] == form_of(EXPECTED.METADATA.get(name, {}))


def entry(form, key):
    return dict(form["dict"])[key]


MODULES = sorted(GOLDEN.glob("*/*.msgpack"))
#: Their arrays are parts of leaves, or one array is a part of two objects.
OTHERS = {"numpy_objects", "penzai"}


def test_all_golden_files_of_classes_are_read(reader):
    assert len(MODULES) > 9
    for path in MODULES:
        assert "tree" in reader(path)


@pytest.mark.parametrize("path", [path for path in MODULES if path.stem not in OTHERS], ids=lambda path: path.stem)
def test_golden_files_of_modules_hold_the_same_arrays(reader, path):
    found = list(arrays_in(reader(path)["tree"]))
    with bt.open_checkpoint(path) as checkpoint:
        leaves = [path for path, spec in checkpoint.specs.items() if spec.dtype is not None]
        expected = [form_of(np.asarray(checkpoint.read(leaf))) for leaf in leaves]
    values = [(form["array"], form["dtype"], form["shape"]) for form in expected]
    assert [(form["array"], form["dtype"], form["shape"]) for form in found] == values
    assert len(found) > 0


def arrays_in(form):
    """Give the arrays of a form, each once, in order."""
    if isinstance(form, dict) and "array" in form:
        yield form
    elif isinstance(form, (dict, list)):
        for part in form.values() if isinstance(form, dict) else form:
            yield from arrays_in(part)


LAYOUTS = [{}, {"HASH_BLOCK": 7}, {"MAX_BLOB": 64, "PACKED_BELOW": 1}, {"PAGED_FROM": 8, "PACKED_BELOW": 1}]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_files_of_many_blobs(reader, layout):
    with small_layout(**layout):
        same(reader, SIMPLE, metadata={"step": 7, "tags": ["a", (1, 2.0)], "history": np.arange(3.0)})


DTYPES = {str(dtype): dtype for dtype in NUMPY_DTYPES}


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_dtype(reader, dtype):
    arrays = [fill(dtype, 60, np.random.default_rng(1)).reshape(3, 1, 20), np.zeros((), dtype), np.zeros((0, 2), dtype)]
    scalars = [] if dtype.kind == "T" else [arrays[0][0, 0, 0]]
    same(reader, [arrays, scalars, np.asfortranarray(arrays[0])])


@pytest.mark.parametrize("dtype", ML_DTYPES, ids=str)
def test_every_number_of_small_dtypes(reader, dtype):
    if dtype.itemsize == 1:
        bits = (ml_dtypes.iinfo if "int" in dtype.name else ml_dtypes.finfo)(dtype).bits
        numbers = np.arange(2**bits, dtype=np.uint8)
    else:
        numbers = np.arange(2**16, dtype=np.uint16)
        numbers = np.resize(numbers, 2**17) if dtype.itemsize == 4 else numbers
    same(reader, numbers.view(dtype))


@pytest.mark.parametrize("dtype", JAX_DTYPES, ids=str)
def test_arrays_of_jax(reader, dtype):
    same(
        reader, {"array": jnp.asarray(fill(dtype, 12, np.random.default_rng(2)).reshape(3, 4)), "weak": jnp.asarray(1)}
    )


@pytest.mark.parametrize("length", [1, 7, 1000, 300_000])
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "c16", "U3", [("a", "u1"), ("b", "f8")]], ids=str)
def test_compressed_files(reader, dtype, length):
    tree = {"array": np.arange(length).astype(dtype) if type(dtype) is str else np.zeros(length, dtype), "few": [1, 2]}
    if length == 300_000:
        tree["array"] = tree["array"][:20_000] if dtype != "u1" else tree["array"]
    same(reader, tree, compression="zstd")


def test_text_and_keys_that_javascript_would_change(reader):
    odd = ["", "\ufeffbom", "\ufeff" * 300, "\ud800", "\udc00\ud800", "a\0b", "\U0001f9e0", "\ufffe"]
    keys = {"10": 0, "9": 1, "__proto__": {"toString": 1}, "constructor": 2, "=": 3, "": 4}
    numbered = {10: 0, 9: 1, "10": 2, -0.5: 3, True: 4, None: 5, (): 6, (1, ("a",)): 7, 2**70: 8, b"": 9}
    long = ["x" * 70_000, "\ud800ä" * 30_000, b"\x00\xff" * 40_000]
    same(reader, [odd, long, {long[0]: 0}, keys, numbered, dict.fromkeys(odd, 0)], metadata=keys)


def test_numbers_that_javascript_would_change(reader):
    ints = [0, -1, 2**53, 2**53 + 1, -(2**53) - 1, 2**63, -(2**63), 2**64 - 1, 2**64, -(2**64), 10**3000]
    floats = [0.0, -0.0, 1.0, 2.0**53, 2.0**70, 5e-324, float("inf"), float("-inf"), float("nan"), -float("nan")]
    same(reader, [ints, floats, [True, 1, 1.0], np.array(ints[:5]), np.array([2**64 - 1], np.uint64), np.array(floats)])


@pytest.mark.parametrize("template_free", [True, False])
def test_any_tree(reader, template_free):
    @given(tree=checkpointable_trees(template_free=template_free))
    def check(tree):
        same(reader, tree)

    check()


# --- files that it refuses ------------------------------------------------------------------------------------


def refused(reader, data):
    found = reader(data)
    assert "failed" not in found, found
    return "refused" in found


FILES = {
    "plain": lambda: bt.msgpack_dumps({"w": np.array([1, 2, 3], np.float32), "t": (1, "a")}, metadata={"step": 7}),
    "compressed": lambda: bt.msgpack_dumps(np.arange(300), compression="zstd"),
}


@pytest.mark.parametrize("make", FILES.values(), ids=FILES)
def test_it_finds_every_flipped_bit(reader, make):
    data = make()
    assert not refused(reader, data)
    unseen = []
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        if not refused(reader, bytes(damaged)):
            unseen.append(bit)
    assert unseen == []


@pytest.mark.parametrize("make", FILES.values(), ids=FILES)
def test_it_finds_every_truncation(reader, make):
    data = make()
    assert [size for size in range(1, len(data)) if not refused(reader, data[:size])] == []


def test_it_finds_other_files(reader):
    data = FILES["plain"]()
    for other in (b"\x80", data + data, data + b"\x00", data[:14] + b"\x02" + data[15:]):
        assert refused(reader, other)


@pytest.mark.parametrize("make", cases(INDICES, TABLES, SPECS, STRUCTURES))
def test_it_refuses_what_the_document_refuses(reader, make):
    assert refused(reader, make())


WRONG_STATES = {f"{tag} {i}": state for tag, states in WRONG.items() for i, state in enumerate(states)}
#: What only libraries know: which dates and time zones there are, and what a mantissa may be.
UNKNOWN_TO_IT = {"datetime 1", "date 0", *(f"zoneinfo {i}" for i in range(6)), "brainunit.Quantity 5"}


@pytest.mark.parametrize("name", WRONG_STATES)
def test_it_refuses_states_that_a_tag_cannot_have(reader, name):
    assert refused(reader, forge({"a": WRONG_STATES[name]}, EXTRA)) is (name not in UNKNOWN_TO_IT)


@pytest.mark.parametrize("name", ["arrays that are mostly padding", "arrays of nothing"])
def test_it_refuses_arrays_that_are_far_larger_in_memory(reader, name):
    assert refused(reader, attacks.REFUSED[name]())


def test_unknown_features_and_keys(reader):
    assert refused(reader, forge(1, features=["new"]))
    assert reader(forge(1, unknown=[9]))["tree"] == {"int": "1"}
