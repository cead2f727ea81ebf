"""A reader that is not ours: JavaScript that follows docs/format.md (``tests/interop``) reads what we write."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import pytest
import xxhash
from hostile import attacks
from hostile.forge import ARRAY, LIST, MAGIC, column, forge
from hostile.indices import INDICES, SPECS, STRUCTURES, TABLES
from hostile.make import cases
from hostile.states import EXTRA, WRONG
from hypothesis import given
from test_format import EXPECTED, GOLDEN, SIMPLE, small_layout
from trees import JAX_DTYPES, ML_DTYPES, NUMPY_DTYPES, Plain, Recorded, checkpointable_trees, fill

import braintools_ckpt as bt
from braintools_ckpt.errors import IncompleteCheckpointError

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


# --- data in other files --------------------------------------------------------------------------------------

BESIDE = "x.ckpt.shared-0123abcd"
LENGTHS = (150, 100, 50)  # of arrays
SIZES = (200, 100)  # of blobs, whose data begins at 64 and at 320: the second array is in both


RIGHT_DATA = np.random.default_rng(0).bytes(sum(SIZES))


def forge_with(data, **index):
    """Forge a file of some bytes in three arrays and two blobs."""
    ends = np.cumsum([0, *LENGTHS]).tolist()
    arrays = [("numpy", "uint8", [b - a], data[a:b]) for a, b in zip(ends, ends[1:])]
    blobs = [data[: SIZES[0]], data[SIZES[0] :]]
    return forge([LIST, *([ARRAY, i] for i in range(3))], arrays, blobs, **{"features": ["external"], **index})


def packed(rows):
    return b"".join(struct.pack("<QQQ", *row) for row in rows)


def write_right(folder, files, **index):
    """Write a file with data in others, where only noise is left of it, and give its path and its data."""
    whole = forge_with(RIGHT_DATA, external=[[name, packed(rows)] for name, rows in files.items()], **index)
    rest = bytearray(whole)
    for name, rows in files.items():
        beside = bytearray(b"\xbb" * (7 + max((start + size for _, size, start in rows), default=0)))
        for at, size, start in rows:
            beside[start : start + size] = whole[at : at + size]
            rest[at : at + size] = b"\xcc" * size
        (folder / name).write_bytes(beside)
    (folder / "x.ckpt").write_bytes(rest)
    return folder / "x.ckpt", RIGHT_DATA


def both_read(reader, path, data):
    found = reader(path)
    assert "tree" in found, found
    assert bytes(int(element) for array in arrays_in(found["tree"]) for element in array["array"]) == data
    assert b"".join(array.tobytes() for array in bt.msgpack_load(path)) == data


def both_refuse(reader, path, error=bt.CorruptCheckpointError):
    with pytest.raises(error) as caught:
        bt.msgpack_load(path)
    assert not isinstance(caught.value, IncompleteCheckpointError)
    assert refused(reader, path)


def both_miss(reader, path, name):
    with pytest.raises(IncompleteCheckpointError, match=re.escape(name)):
        bt.msgpack_load(path)
    assert reader(path) == {"missing": name}


def tree_of(step):
    random = np.random.default_rng(0)
    frozen = {
        "w": random.random((1 << 17) + 5),
        "v": np.frombuffer(random.bytes(300 << 12), "V4096"),
        "few": np.arange(9),
    }
    return {"frozen": frozen, "state": np.arange((1 << 17) + 3.0) + step, "step": step}


@pytest.fixture
def run(tmp_path):
    """Give the steps of a run, of which two have data in a file beside them each."""
    folder = tmp_path / "run"
    with bt.CheckpointManager(folder, async_save=False, share_unchanged=True) as manager:
        for step in range(3):
            manager.save(step, tree_of(step))
    beside = sorted(path.name.partition(".shared-")[0] for path in folder.glob("*.shared-*"))
    if not beside:
        pytest.skip("Here files share data by reflinks (btrfs, XFS), or not at all: no checkpoint has data in others.")
    assert beside == ["0000000001.ckpt", "0000000002.ckpt"]
    return folder


def step_path(run, step):
    return run / f"{step:010}.ckpt"


def file_beside(run, step):
    (path,) = run.glob(f"{step:010}.ckpt.shared-*")
    return path


def same_step(reader, run, step):
    expected = form_of(tree_of(step))
    assert reader(step_path(run, step))["tree"] == expected
    assert form_of(bt.msgpack_load(step_path(run, step))) == expected


def test_every_step_of_a_run_with_data_beside(reader, run):
    for step in range(3):
        same_step(reader, run, step)


def test_steps_stay_whole_when_those_before_are_deleted(reader, run):
    with bt.CheckpointManager(run, async_save=False) as manager:
        manager.delete(0)
        same_step(reader, run, 1)
        manager.delete(1)
    assert sorted(run.iterdir()) == [step_path(run, 2), file_beside(run, 2)]
    same_step(reader, run, 2)


def test_a_file_beside_that_is_missing(reader, run, tmp_path):
    beside = file_beside(run, 2)
    kept = beside.rename(tmp_path / "kept")
    both_miss(reader, step_path(run, 2), beside.name)
    same_step(reader, run, 1)  # which has a link of its own
    copy = shutil.copy(step_path(run, 1), tmp_path)
    both_miss(reader, copy, file_beside(run, 1).name)
    kept.rename(beside)
    same_step(reader, run, 2)


def test_a_flipped_bit_in_a_file_beside(reader, run):
    with open(file_beside(run, 2), "r+b") as file:
        file.seek(1 << 20)  # in the data of the first array
        byte = file.read(1)[0]
        file.seek(1 << 20)
        file.write(bytes([byte ^ 16]))
    for step in (1, 2):  # it is one file
        both_refuse(reader, step_path(run, step))


def flips(path, places):
    """Give the places of a file, each while one of its bits is flipped, all eight in turn."""
    data = path.read_bytes()
    for place in places:
        for bit in range(8):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
            yield place
    path.write_bytes(data)


GAP = (70, 40, 9)


def test_every_flipped_bit_in_a_file_beside(reader, tmp_path):
    path, data = write_right(tmp_path, {BESIDE: [GAP]})
    for _ in flips(tmp_path / BESIDE, range(9, 49)):
        both_refuse(reader, path)
    for _ in flips(tmp_path / BESIDE, (0, 8, 49, 55)):  # bytes that nobody asks for
        both_read(reader, path, data)


def test_every_flipped_bit_in_a_file_with_gaps(reader, tmp_path):
    path, data = write_right(tmp_path, {BESIDE: [GAP]})
    places = range(path.stat().st_size)
    assert {place for place in flips(path, places) if not refused(reader, path)} == set(range(70, 110))
    for _ in flips(path, (70, 109)):
        both_read(reader, path, data)


def in_blocks(block):
    """Give the columns that the data of right files has in small blocks."""
    blobs = (RIGHT_DATA[: SIZES[0]], RIGHT_DATA[SIZES[0] :])
    blocks = [blob[i : i + block] for blob in blobs for i in range(0, len(blob), block)]
    return {"hash_block": block, "hashes": column(map(xxhash.xxh3_64_intdigest, blocks))}


OTHER = "other.shared-00000000"
RIGHT = {
    "all data": ({BESIDE: [(64, 200, 0), (320, 100, 200)]}, {}),
    "in no order": ({BESIDE: [(320, 100, 5), (70, 10, 500), (64, 3, 105), (263, 1, 0)]}, {}),
    "each byte": ({BESIDE: [(64 + i, 1, 199 - i) for i in range(200)]}, {}),
    "two files": ({BESIDE: [(64, 100, 3)], OTHER: [(164, 100, 3), (419, 1, 0)]}, {}),
    "64 files": ({f"{i}.shared-00000000": [(64 + i, 1, 0)] for i in range(64)}, {}),
    "blocks of several files": ({BESIDE: [(70, 3, 1), (100, 60, 50)], OTHER: [(73, 5, 0)]}, {"table": in_blocks(7)}),
    "the feature twice": ({BESIDE: [GAP]}, {"features": ["external", "external"]}),
    "with the feature zstd": (
        {BESIDE: [GAP]},
        {"features": ["zstd", "external"], "table": {"raw_size": column(SIZES), "width": bytes(2)}},
    ),
}


@pytest.mark.parametrize(("files", "index"), RIGHT.values(), ids=RIGHT)
def test_data_beside(reader, files, index, tmp_path):
    both_read(reader, *write_right(tmp_path, files, **index))


@pytest.mark.parametrize(
    "name", ["a.shared-deadbeef", "..shared-09afaf90", "a.shared-00000000.shared-00000001", "é .shared-00000000"]
)
def test_names_of_files_beside(reader, name, tmp_path):
    both_read(reader, *write_right(tmp_path, {name: [GAP]}))


def test_compressed_data_beside(reader, tmp_path):
    tree = np.arange(300_000)
    data = bytearray(bt.msgpack_dumps(tree, compression="zstd"))
    offset, length = struct.unpack("<QQ", data[-36:-20])
    index = msgpack.unpackb(data[offset : offset + length])
    place = int(np.frombuffer(index["arrays"]["blob_at"], "<u8")[-1])
    (tmp_path / BESIDE).write_bytes(data[place + 10 : place + 30])
    data[place + 10 : place + 30] = bytes(20)
    index |= {"features": ["zstd", "external"], "external": [[BESIDE, packed([(place + 10, 20, 0)])]]}
    path = tmp_path / "x.ckpt"
    path.write_bytes(data[:offset] + ending(offset, index))
    assert reader(path)["tree"] == form_of(tree)
    np.testing.assert_array_equal(bt.msgpack_load(path), tree)


def ending(offset, index):
    """Give index and trailer, as they stand at some offset."""
    packed_index = msgpack.packb(index)
    trailer = struct.pack("<QQQ", offset, len(packed_index), xxhash.xxh3_64_intdigest(packed_index))
    return packed_index + b"\xc4\x24" + trailer + MAGIC


@pytest.mark.parametrize("external", [7, None, [["/etc/passwd", b"x"]]], ids=str)
def test_without_the_feature_the_key_means_nothing(reader, external, tmp_path):
    data = bytes(sum(SIZES))
    path = tmp_path / "x.ckpt"
    path.write_bytes(forge_with(data, features=[], external=external))
    both_read(reader, path, data)


def test_a_checkpoint_in_no_directory(reader, tmp_path):
    data = write_right(tmp_path, {BESIDE: [GAP]})[0].read_bytes()
    assert reader(data) == {"missing": BESIDE}
    with pytest.raises(IncompleteCheckpointError, match=BESIDE):
        bt.msgpack_loads(data)


#: All data of wrong files is this letter, and a file beside has the bytes of the checkpoint and more letters: who took
#: one byte for another, or read what is no data, would find nothing wrong. Only the table is.
LETTERS = b"a" * sum(SIZES)
BESIDE_SIZE = 2000


def write_wrong(folder, names=(BESIDE,), **index):
    data = forge_with(LETTERS, **index)
    for name in names:
        with contextlib.suppress(OSError, ValueError, TypeError):  # not every name can be one of a file
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((data + b"a" * BESIDE_SIZE)[:BESIDE_SIZE])
    path = folder / "x.ckpt"
    path.write_bytes(data)
    return path


ROW = packed([(70, 40, 70)])


def test_they_would_be_read_with_a_right_table(reader, tmp_path):
    both_read(reader, write_wrong(tmp_path, external=[[BESIDE, ROW]]), LETTERS)


WRONG_NAMES = [
    *("", ".shared-00000000", "x", "shared-00000000", "xshared-00000000", "x.Shared-00000000", "x.shared_00000000"),
    *("x.shared-0000000", "x.shared-000000000", "x.shared-0000000G", "x.shared-0000000A", "x.shared-0x000000"),
    *("x.shared-00000000\n", "x.shared-0000000 ", "x.shared-+0000000", "x.shared-0000_000", "x.shared-0000000\u0663"),
    *("../x.shared-00000000", "a/b.shared-00000000", "a/.shared-00000000", "./x.shared-00000000", "x.shared-00000000/"),
    *("a\\b.shared-00000000", "..\\x.shared-00000000", "a\0.shared-00000000", "x.shared-00000000\0"),
    *(None, True, 7, b"x.shared-00000000", ["x.shared-00000000"], {}),
]


@pytest.mark.parametrize("name", WRONG_NAMES, ids=repr)
def test_wrong_names_of_files_beside(reader, name, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    both_refuse(reader, write_wrong(folder, [name], external=[[name, ROW]]))


TOP = 2**64
WRONG_RANGES = {
    "in the header": [(0, 10, 0)],
    "in padding": [(20, 10, 20)],
    "in a head": [(59, 5, 59)],
    "begins before a blob": [(63, 10, 63)],
    "begins before the other blob": [(319, 10, 319)],
    "between blobs": [(264, 10, 264)],
    "ends after a blob": [(260, 5, 260)],
    "in two blobs": [(200, 130, 200)],
    "two whole blobs": [(64, 356, 64)],
    "ends after all blobs": [(410, 11, 410)],
    "in the index": [(420, 10, 420)],
    "after the file": [(10_000, 1, 64)],
    "empty": [(64, 0, 64)],
    "empty, behind a blob": [(264, 0, 64)],
    "empty, behind another": [(64, 10, 64), (74, 0, 74)],
    "overlap": [(64, 10, 64), (73, 10, 84)],
    "overlap, in another order": [(73, 10, 64), (64, 10, 84)],
    "the same twice": [(64, 10, 64), (64, 10, 84)],
    "one in another": [(64, 100, 64), (70, 2, 320), (90, 2, 330)],
    "overlap in the other file": [(64, 10, 64), (80, 10, 73)],
    "overlap there, in another order": [(64, 10, 73), (80, 10, 64)],
    "the same there": [(64, 10, 64), (80, 10, 64)],
    "one in another there": [(64, 100, 64), (170, 10, 114)],
    "past the end of the other file": [(64, 10, BESIDE_SIZE - 9)],
    "behind the other file": [(64, 1, BESIDE_SIZE)],
    "far behind the other file": [(64, 1, 2**62)],
    "begin of 2^64 - 1": [(TOP - 1, 1, 64)],
    "begin that wraps around": [(TOP - 64, 192, 64)],
    "begin of 2^63": [(2**63, 1, 64)],
    "begin that is right in 32 bits": [(2**32 + 64, 1, 64)],
    "size that wraps around to before it": [(64, TOP - 1, 64)],
    "size that wraps around to 0": [(64, TOP - 64, 64)],
    "size that wraps around to a blob": [(200, TOP - 100, 200)],
    "size of 2^63": [(64, 2**63, 64)],
    "size that is right in 32 bits": [(64, 2**32 + 1, 64)],
    "place of 2^64 - 1": [(64, 1, TOP - 1)],
    "place that wraps around": [(64, 20, TOP - 10)],
    "place of 2^63": [(64, 1, 2**63)],
    "place of 2^63 - 1": [(64, 1, 2**63 - 1)],
    "place that is right in 32 bits": [(64, 1, 2**32 + 64)],
    "places that overlap if they wrap around": [(64, 10, TOP - 5), (80, 10, 0)],
}


@pytest.mark.parametrize("rows", WRONG_RANGES.values(), ids=WRONG_RANGES)
def test_wrong_ranges(reader, rows, tmp_path):
    both_refuse(reader, write_wrong(tmp_path, external=[[BESIDE, packed(rows)]]))


WRONG_TABLES = {
    "nil": None,
    "an int": 1,
    "a map": {BESIDE: ROW},
    "text": BESIDE,
    "no files": [],
    "65 files": [[f"{i}.shared-00000000", packed([(64 + i, 1, 64)])] for i in range(65)],
    "a name twice": [[BESIDE, ROW], [BESIDE, packed([(200, 10, 200)])]],
    "ranges of two files that overlap": [[BESIDE, ROW], [OTHER, packed([(109, 10, 109)])]],
    "ranges of two files that are the same": [[BESIDE, ROW], [OTHER, ROW]],
    "no rows": [BESIDE, ROW],
    "a row that is nil": [[BESIDE, ROW], None],
    "a row that is a map": [{BESIDE: 0, "x": 1}],
    "an empty row": [[]],
    "a row of one": [[BESIDE]],
    "a row of three": [[BESIDE, ROW, 1]],
    "a column of 0 bytes": [[BESIDE, b""]],
    "a column of 23 bytes": [[BESIDE, ROW[:-1]]],
    "a column of 25 bytes": [[BESIDE, ROW + b"\0"]],
    "a column of 8 bytes": [[BESIDE, ROW[:8]]],
    "a column that is nil": [[BESIDE, None]],
    "a column that is text": [[BESIDE, "a" * 24]],
    "a column that is an array": [[BESIDE, [70, 40, 70]]],
}


@pytest.mark.parametrize("external", WRONG_TABLES.values(), ids=WRONG_TABLES)
def test_wrong_tables_of_files_beside(reader, external, tmp_path):
    names = [BESIDE, OTHER, *(f"{i}.shared-00000000" for i in range(65))]
    both_refuse(reader, write_wrong(tmp_path, names, external=external))


def test_the_feature_without_its_table(reader, tmp_path):
    both_refuse(reader, write_wrong(tmp_path))


def test_a_file_beside_that_is_cut_short(reader, tmp_path):
    path, data = write_right(tmp_path, {BESIDE: [GAP]})
    beside = tmp_path / BESIDE
    whole = beside.read_bytes()
    for size in (0, 9, 48):
        beside.write_bytes(whole[:size])
        both_refuse(reader, path)
    beside.write_bytes(whole[:49])
    both_read(reader, path, data)


def test_a_name_that_no_file_can_have(reader, tmp_path):
    both_refuse(reader, write_wrong(tmp_path, external=[["x" * 240 + ".shared-00000000", ROW]]))


def test_what_is_beside_is_no_link_but_the_checkpoint_may_be_one(reader, tmp_path):
    (tmp_path / "run").mkdir()
    path, data = write_right(tmp_path / "run", {BESIDE: [GAP]})
    link = tmp_path / "best"
    link.symlink_to(path)
    both_read(reader, link, data)
    (tmp_path / "run" / BESIDE).rename(tmp_path / "elsewhere")
    (tmp_path / "run" / BESIDE).symlink_to(tmp_path / "elsewhere")
    both_refuse(reader, path)


@pytest.mark.parametrize("make", [os.mkdir, getattr(os, "mkfifo", None)], ids=["directory", "pipe"])
def test_what_is_beside_is_no_regular_file(reader, make, tmp_path):
    if make is None:
        pytest.skip("this platform has no pipes with names")
    path, _ = write_right(tmp_path, {BESIDE: [GAP]})
    (tmp_path / BESIDE).unlink()
    make(tmp_path / BESIDE)
    both_refuse(reader, path)
