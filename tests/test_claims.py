"""What a file may ask for: no more time and memory than goes with its size, whatever numbers it holds."""

from __future__ import annotations

import collections
import fractions
import io
import re

import ml_dtypes
import msgpack
import numpy as np
import pytest
from hostile.attacks import GIANT, MODULUS, colliding_complex, colliding_int, integer, items
from hostile.forge import ARRAYS, ITEMS, LIST, forge, leaf, node
from trees import assert_same

import braintools_ckpt as bt
from braintools_ckpt.errors import format_path, written

MOST = 1000  # keys of one hash


# --- keys of one hash -------------------------------------------------------------------------------------------


def structures(count):
    keys = [colliding_int(i) for i in range(count)]
    pairs = [node("tuple", [LIST, key, i]) for i, key in enumerate(keys)]  # whose own hashes differ
    return {
        "dict": items(keys),
        "set": leaf("set", [LIST, *keys]),
        "frozenset": leaf("frozenset", [LIST, *map(colliding_complex, range(count))]),
        "Counter": node("Counter", items(keys)),
        "first steps of a FlattedDict": node(
            "brainstate.FlattedDict", [ITEMS, *(part for pair in pairs for part in (pair, 1))]
        ),
    }


@pytest.mark.parametrize("name", structures(1))
def test_many_keys_of_one_hash_are_refused(name):
    target = {"set": set(), "frozenset": frozenset(), "Counter": collections.Counter()}.get(name, {})
    enough, many = (forge({"a": structures(count)[name]}) for count in (MOST, MOST + 1))
    bt.msgpack_loads(enough)
    bt.msgpack_loads(enough, {"a": target}, mismatch="ignore")
    message = f"{MOST + 1} keys have the same hash, and at most {MOST} are read"
    with pytest.raises(bt.CorruptCheckpointError, match=message):
        bt.msgpack_loads(many, {"a": target}, mismatch="ignore")
    if "FlattedDict" not in name:  # which is only nested when a target is
        with pytest.raises(bt.CorruptCheckpointError, match=message):
            bt.msgpack_loads(many)


def test_many_keys_of_one_hash_are_refused_in_metadata():
    data = forge(1, metadata={"a": structures(MOST + 1)["dict"]})
    with (
        bt.open_checkpoint(io.BytesIO(data)) as checkpoint,
        pytest.raises(bt.CorruptCheckpointError, match="same hash"),
    ):
        checkpoint.metadata  # noqa: B018


def test_what_no_reader_would_take_is_not_saved():
    numbers = [1 + i * MODULUS for i in range(MOST + 1)]
    for tree in ({"a": dict.fromkeys(numbers, 1)}, {"a": set(numbers)}):
        with pytest.raises(bt.SerializationError) as caught:
            bt.msgpack_dumps(tree)
        assert str(caught.value) == (
            f"Cannot save the keys or elements at path a: {MOST + 1} keys have the same hash, and at most {MOST} are "
            "read."
        )
    enough = {"a": dict.fromkeys(numbers[1:], 1), "b": set(numbers[1:])}
    assert bt.msgpack_loads(bt.msgpack_dumps(enough)) == enough


def test_hashes_of_many_keys_are_no_trouble():
    tree = {
        "ints": dict.fromkeys(range(5000)),
        "floats": {i / 7 for i in range(5000)},
        "pairs": {(i, -i): 1 for i in range(5000)},
    }
    assert bt.msgpack_loads(bt.msgpack_dumps(tree)) == tree


# --- giant ints -------------------------------------------------------------------------------------------------


def test_ints_of_more_digits_than_python_writes_are_shown():
    tree = {"value": GIANT, "keys": {GIANT: 1, (-GIANT, "a"): 2, 3: [4]}}
    data = bt.msgpack_dumps(tree, metadata={"n": GIANT, "l": [GIANT], "d": {GIANT: (1,)}})
    assert bt.msgpack_loads(data) == tree
    assert bt.msgpack_loads(data, tree) == tree
    with bt.open_checkpoint(io.BytesIO(data)) as checkpoint:
        assert f"n = {GIANT:#x}" in repr(checkpoint)
        assert f"{GIANT:#x}" in checkpoint._repr_html_()
        for path in checkpoint:
            checkpoint[path]
        assert checkpoint[f"keys/{GIANT:#x}"] == 1
        assert checkpoint[("keys", (-GIANT, "a"))] == 2
    assert list(bt.msgpack_loads(data, raw=True)["keys"]) == [f"{GIANT:#x}", f"(-{GIANT:#x}, 'a')", "3"]
    with pytest.raises(bt.MismatchError, match="0x1000"):
        bt.msgpack_loads(data, {"value": 1, "keys": {}})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([GIANT, "a"], "[{}, 'a']"),
        ((GIANT,), "({},)"),
        ({GIANT}, "{{{}}}"),
        ({"a": GIANT}, "{{'a': {}}}"),
        (frozenset([GIANT]), "<frozenset of more digits than Python writes>"),
        ((1, "x"), "(1, 'x')"),
    ],
)
def test_how_they_are_written(value, text):
    assert written(value) == text.format(hex(GIANT))
    assert format_path([value]) == written(value)


@pytest.mark.parametrize("bits", [1 << 14, (1 << 14) + 1])
def test_fractions_and_seeds_have_a_limit(bits):
    number = (1 << bits) - 1
    values = [fractions.Fraction(number, 2), fractions.Fraction(2, number), np.random.SeedSequence(number)]
    values += [np.random.SeedSequence([1, number]), np.random.SeedSequence(1, spawn_key=(number,))]
    states = [
        leaf("fraction", [LIST, integer(number), 2]),
        leaf(
            "numpy.seedsequence",
            {"entropy": integer(number), "spawn_key": [LIST], "pool_size": 4, "n_children_spawned": 0},
        ),
    ]
    if bits == 1 << 14:
        for value in values:
            bt.msgpack_loads(bt.msgpack_dumps([value]))
        return
    for value in values:
        with pytest.raises(bt.SerializationError, match="at path a: an int of 16385 bits stands where at most 16384"):
            bt.msgpack_dumps({"a": value})
    for state in states:
        with pytest.raises(
            bt.CorruptCheckpointError, match="at path a has no valid state: ValueError: an int of 16385"
        ):
            bt.msgpack_loads(forge({"a": state}))


# --- memory -----------------------------------------------------------------------------------------------------


def padded(size):
    return np.dtype({"names": ["a"], "formats": ["u1"], "offsets": [0], "itemsize": size})


def test_padding_of_all_arrays_together_has_a_limit():
    descr = {"fields": [["a", "uint8", 0]], "itemsize": 1 << 20, "aligned": False}
    row = ("numpy", descr, [16], b"a" * 16)
    assert len(bt.msgpack_loads(forge([ARRAYS, 0, 4], [row] * 4))) == 4
    with pytest.raises(bt.CorruptCheckpointError, match="83886080 bytes in memory for 80 bytes of data: more than 256"):
        bt.msgpack_loads(forge([ARRAYS, 0, 5], [row] * 5))
    arrays = [np.zeros(16, padded(1 << 20)) for _ in range(5)]
    bt.msgpack_dumps(arrays[:4])
    with pytest.raises(
        bt.SerializationError, match="the arrays of this tree: they would take 83886080 bytes in memory"
    ):
        bt.msgpack_dumps(arrays)


def test_max_size_counts_what_arrays_take_in_memory():
    data = bt.msgpack_dumps([np.zeros(100, padded(1000))] * 2 + [np.zeros(100, padded(1000))])
    for load in (bt.msgpack_loads, lambda data, **options: bt.open_checkpoint(io.BytesIO(data), **options)):
        load(data, max_size=200_000)
        with pytest.raises(bt.CheckpointTooLargeError, match="holds 200000 bytes of data"):
            load(data, max_size=199_999)


def test_open_checkpoint_has_a_max_size(tmp_path):
    path = bt.msgpack_save(tmp_path / "x", {"a": np.zeros(1 << 20, np.uint8)}, compression="zstd")
    with pytest.raises(bt.CheckpointTooLargeError) as caught:
        bt.open_checkpoint(path, max_size=100)
    assert re.fullmatch(
        rf"Checkpoint data too large: {path} has \d+ bytes, which exceeds maximum 100 .*", str(caught.value)
    )
    with pytest.raises(
        bt.CheckpointTooLargeError, match=f"{path} holds 1048576 bytes of data, which exceeds maximum 9999"
    ):
        bt.open_checkpoint(path, max_size=9999)
    with bt.open_checkpoint(path, max_size=1 << 20) as checkpoint:
        assert checkpoint["a"].sum() == 0
    with pytest.raises(TypeError, match="max_size must be a number of bytes"):
        bt.open_checkpoint(path, max_size="1")
    flax = io.BytesIO(bt.msgpack_dumps({"a": 1}, format="flax"))
    with pytest.raises(bt.CheckpointTooLargeError):
        bt.open_checkpoint(flax, max_size=1)


# --- single values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [["\ufb01"], ["\ufb01", "fi"], ["\U0001d41d\U0001d41e\U0001d41f"]], ids=ascii)
def test_names_that_are_others_when_they_are_compiled(fields):
    data = forge(node("namedtuple", {field: i for i, field in enumerate(fields)}, **{"class": "Named"}))
    with pytest.warns(UserWarning, match="whose field names only its own class can have"):
        assert bt.msgpack_loads(data) == {field: i for i, field in enumerate(fields)}


@pytest.mark.parametrize("version", [None, "2", 1.0, True, [LIST]])
def test_versions_of_classes_are_ints(version):
    @bt.serializable(name="test_claims.Versioned", version=2, override=True)
    class Versioned:
        pass

    data = forge({"a": [3, "class:test_claims.Versioned", {}, {"version": version}]})
    for target in (None, {"a": Versioned()}):
        with pytest.raises(bt.CorruptCheckpointError, match="the version is of type"):
            bt.msgpack_loads(data, target)


@pytest.mark.parametrize("name", ["float6_e2m3fn", "complex32"])
def test_dtypes_that_jax_does_not_have(name):
    if not hasattr(ml_dtypes, name):
        pytest.skip("not in this ml_dtypes")
    array = np.zeros(2, getattr(ml_dtypes, name))
    loaded = bt.msgpack_loads(bt.msgpack_dumps({"a": array}), arrays="jax")
    assert_same({"a": array}, loaded)
    with pytest.raises(bt.CorruptCheckpointError, match="jax has no arrays of the dtype"):
        bt.msgpack_loads(forge([1, 0], [("jax", name, [2], array.tobytes())]))


def test_legacy_files_may_have_any_keys():
    data = msgpack.packb({2**64 - 1: 1, -(2**63): 2})
    assert bt.msgpack_loads(data) == {2**64 - 1: 1, -(2**63): 2}


def test_a_file_sends_no_commands_to_a_terminal():
    evil = "\x1b[2J\r\n\u202e"
    unit = {"symbol": evil, "name": "x", "dim": [LIST, *[0] * 7], "scale": 0, "factor": 2.0, "full": True}
    structure = {evil: 1, "a": node(evil, {}), "b": leaf(evil, 1), "q": leaf("brainunit.Quantity", 1.0, unit=unit)}
    with bt.open_checkpoint(io.BytesIO(forge(structure, metadata={evil: evil}))) as checkpoint:
        assert all(line.isprintable() for line in repr(checkpoint).split("\n"))
        assert repr(checkpoint).count("\n") == 5
        assert "\\x1b[2J\\r\\n\\u202e" in repr(checkpoint)
