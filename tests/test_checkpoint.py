"""Looking into a file: what open_checkpoint tells without reading data, and what it reads when asked."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import html.parser
import io
import os
import pathlib
import re
import struct

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from trees import assert_same

import braintools_ckpt as bt
from braintools_ckpt.storage import sources

TREE = {
    "layers": [{"w": np.arange(40_000, dtype=np.float32).reshape(200, 200), "b": jnp.zeros(3)}, {"w": np.ones(2)}],
    "step": 7,
    "V": jnp.array([-65.0, -60.0]) * u.mV,
    "none": None,
    "empty": {},
    "key": jax.random.key(3),
}
PATHS = ["layers/0/w", "layers/0/b", "layers/1/w", "step", "V", "none", "empty", "key"]
SPECS = {
    "layers/0/w": ("array", "float32", (200, 200), None, 160_000),
    "layers/0/b": ("array", "float32", (3,), None, 12),
    "layers/1/w": ("array", "float64", (2,), None, 16),
    "step": ("int", None, None, None, 0),
    "V": ("brainunit.Quantity", "float32", (2,), "mV", 8),
    "none": ("None", None, None, None, 0),
    "empty": ("empty dict", None, None, None, 0),
    "key": ("jax.key", "uint32", (2,), None, 8),
}


def opened(tree, **options):
    return bt.open_checkpoint(io.BytesIO(bt.msgpack_dumps(tree, **options)))


@pytest.fixture
def path(tmp_path):
    return pathlib.Path(bt.msgpack_save(tmp_path / "model.msgpack", TREE, metadata={"run": "a", "scores": [1.5]}))


# --- without reading data -------------------------------------------------------------------------------------


def blobs_of(data):
    """Give where the bytes of arrays are: (begin, end) of each blob."""
    offset, length = struct.unpack_from("<QQ", data, len(data) - 36)
    table = msgpack.unpackb(data[offset : offset + length], strict_map_key=False)["arrays"]
    starts, sizes = (np.frombuffer(table[name], "<u8").tolist() for name in ("blob_at", "blob_size"))
    return [(start, start + size) for start, size in zip(starts, sizes, strict=True)]


def look(checkpoint):
    """Ask for everything that needs no data."""
    assert checkpoint.metadata == {"run": "a", "scores": [1.5]}
    assert checkpoint.paths == list(checkpoint) == PATHS
    assert len(checkpoint) == len(PATHS)
    assert {path: (s[0], s[1] and s[1].name, *s[2:]) for path, s in checkpoint.specs.items()} == SPECS
    assert "layers/0/w" in checkpoint
    assert "layers/2" not in checkpoint
    assert checkpoint["step"] == 7
    assert checkpoint["none"] is None
    assert checkpoint["empty"] == {}
    repr(checkpoint)
    checkpoint._repr_html_()


def test_metadata_paths_and_specs_are_there_at_once(path):
    with bt.open_checkpoint(path) as checkpoint:
        look(checkpoint)
        assert checkpoint.name == str(path)
        assert checkpoint.size == path.stat().st_size


def test_they_are_told_without_reading_data(path, monkeypatch):
    blobs = blobs_of(path.read_bytes())
    assert len(blobs) == 2
    read = []
    plain = sources.LocalSource.read_into

    def counting(self, offset, *buffers):
        read.append((offset, offset + sum(buffer.nbytes for buffer in buffers)))
        plain(self, offset, *buffers)

    monkeypatch.setattr(sources.LocalSource, "read_into", counting)
    with bt.open_checkpoint(path) as checkpoint:
        look(checkpoint)
        assert read
        assert not [1 for low, high in read for start, end in blobs if low < end and high > start]
        read.clear()
        assert checkpoint["layers/1/w"].tolist() == [1, 1]
        large, pack = blobs
        assert any(low < pack[1] and high > pack[0] for low, high in read)
        assert not any(low < large[1] and high > large[0] for low, high in read)


def test_damaged_data_is_found_when_it_is_read_and_not_before(path):
    data = bytearray(path.read_bytes())
    for start, _ in blobs_of(data):
        data[start] ^= 1
    path.write_bytes(data)
    with bt.open_checkpoint(path) as checkpoint:
        look(checkpoint)
        for read in (
            lambda: checkpoint["layers/0/w"],
            lambda: checkpoint.read("layers/1/w"),
            lambda: checkpoint["layers"],
            checkpoint.load,
            checkpoint.verify,
        ):
            with pytest.raises(bt.CorruptCheckpointError, match="the checksum of the data at byte"):
                read()
    with bt.open_checkpoint(path, verify=False) as checkpoint:
        assert checkpoint["layers/0/w"].shape == (200, 200)
        with pytest.raises(bt.CorruptCheckpointError):
            checkpoint.verify()


def test_damage_beside_the_data_is_found_by_verify(path):
    data = bytearray(path.read_bytes())
    data[blobs_of(data)[1][0] - 6] ^= 1
    path.write_bytes(data)
    with (
        bt.open_checkpoint(path) as checkpoint,
        pytest.raises(bt.CorruptCheckpointError, match="are not padding"),
    ):
        checkpoint.verify()


def test_verify_of_an_intact_file_says_nothing(path):
    with bt.open_checkpoint(path) as checkpoint:
        assert checkpoint.verify() is None


# --- reading --------------------------------------------------------------------------------------------------


def test_leaves_and_containers_are_read_by_path(path):
    with bt.open_checkpoint(path) as checkpoint:
        assert_same(TREE["layers"][0]["w"], checkpoint["layers/0/w"], loaded=True)
        assert_same(TREE["layers"][0]["b"], checkpoint["layers/0/b"])
        assert_same(TREE["V"], checkpoint["V"])
        assert_same(TREE["key"], checkpoint["key"])
        assert_same(TREE["layers"], checkpoint["layers"], loaded=True)
        assert_same(TREE["layers"][1], checkpoint["layers/1"], loaded=True)
        for root in ("", ".", ()):
            assert_same(TREE, checkpoint[root], loaded=True)
        for leaf, value in checkpoint.items():
            assert_same(checkpoint[leaf], value)


def test_paths_may_be_tuples_of_keys(path):
    with bt.open_checkpoint(path) as checkpoint:
        assert checkpoint["layers", 1, "w"].tolist() == [1, 1]
        assert checkpoint[("step",)] == 7
        assert checkpoint.read(("layers", 0, "w"), (3, slice(2))).tolist() == [600, 601]
        assert ("layers", 1) in checkpoint
        assert ("layers", "1") not in checkpoint
        assert ("layers", 2) not in checkpoint


def test_parts_of_arrays_are_read(path):
    w = TREE["layers"][0]["w"]
    with bt.open_checkpoint(path) as checkpoint:
        for index in (..., 5, -1, slice(3, 9, 2), slice(None, None, -50), (slice(2), slice(None, 4)), (..., 3)):
            assert_same(np.array(w[index]), checkpoint.read("layers/0/w", index))
        assert checkpoint.read("V").tolist() == [-65, -60]
        assert checkpoint.read("V", 1) == -60
        assert checkpoint.read("key").tolist() == jax.random.key_data(TREE["key"]).tolist()


def test_the_empty_tuple_is_the_whole_array(path):
    with bt.open_checkpoint(path) as checkpoint:
        assert checkpoint.read("layers/1/w", ()).tolist() == [1, 1]
    with opened({"x": np.array(2.5)}) as checkpoint:
        assert checkpoint.read("x", ()) == 2.5


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ("layers/0/ww", "Did you mean 'layers/0/w'?"),
        ("stepp", "Did you mean 'step'?"),
        ("layers/0/w/0", "Did you mean 'layers/0/w'?"),
        (("layers", 0, "c"), "Did you mean 'layers/0/b'?"),
        ("zzzzzz", "The paths are listed by .paths."),
    ],
)
def test_a_path_that_is_not_there_names_one_that_is(path, asked, text):
    with bt.open_checkpoint(path) as checkpoint:
        for read in (checkpoint.__getitem__, checkpoint.read):
            with pytest.raises(KeyError) as caught:
                read(asked)
            assert caught.value.args[0].startswith(f"The checkpoint {path} has nothing at the path ")
            if asked == ("layers", 0, "c"):
                assert "Did you mean 'layers/0/" in caught.value.args[0]
            else:
                assert caught.value.args[0].endswith(text)
        assert checkpoint.get(asked, 5) == 5
        assert asked not in checkpoint


@pytest.mark.parametrize("asked", [5, None, 1.5, object()])
def test_what_is_no_path_is_not_in_it(path, asked):
    with bt.open_checkpoint(path) as checkpoint:
        assert asked not in checkpoint


@pytest.mark.parametrize("asked", ["step", "none", "layers", "layers/0", "empty"])
def test_only_arrays_have_parts(path, asked):
    with bt.open_checkpoint(path) as checkpoint, pytest.raises(TypeError, match=f"at the path '{asked}' is no array"):
        checkpoint.read(asked)


def test_load_is_the_load_of_a_file(path):
    with bt.open_checkpoint(path) as checkpoint:
        assert_same(TREE, checkpoint.load(), loaded=True)
        assert checkpoint.load({"step": 0}, partial=True) == {"step": 7}
        assert checkpoint.load({"count": 0}, partial=True, rename={"step": "count"}) == {"count": 7}
        with pytest.raises(bt.MismatchError):
            checkpoint.load({"step": 0})
        with pytest.warns(UserWarning, match="do not match"):
            assert checkpoint.load({"step": 0, "new": 1}, "warn", partial=True) == {"step": 7, "new": 1}
        assert type(checkpoint.load(arrays="numpy")["layers"][0]["b"]) is np.ndarray
        assert checkpoint.load(raw=True)["layers"]["1"]["w"].tolist() == [1, 1]
        target = {"V": jnp.zeros(2) * u.volt}
        assert checkpoint.load(target, partial=True, units="convert")["V"].unit == u.volt
        with pytest.raises(ValueError, match="mismatch"):
            checkpoint.load(mismatch="maybe")


# --- paths that could be taken for each other -----------------------------------------------------------------


class Color(enum.Enum):
    RED = 1


KEYS = [
    "a/b",
    "a.b",
    "0",
    0,
    "",
    ".",
    "..",
    "/",
    " a",
    "a ",
    'it\'s "so"',
    "new\nline",
    "tab\t\x00",
    "back\\slash",
    "('a', 'b')",
    ("a", "b"),
    ("a/b",),
    (),
    (1, ("x", 2)),
    None,
    "None",
    True,
    "True",
    1.5,
    "1.5",
    -1,
    "-1",
    b"a",
    "b'a'",
    float("inf"),
    "inf",
    "größe",
    "[",
    "(",
    "{'",
    "]",
    datetime.date(2024, 2, 29),
    pathlib.PurePosixPath("a/b"),
    2**70,
    "x" * 200,
]


def test_every_key_has_a_path_of_its_own():
    tree = {"k": {key: np.array(i) for i, key in enumerate(KEYS)}, "nested": {"a": {"b": 1}, "a/b": 2}}
    with opened(tree) as checkpoint:
        assert len(set(checkpoint.paths)) == len(KEYS) + 2
        for i, (key, path) in enumerate(zip(KEYS, checkpoint.paths, strict=False)):
            assert checkpoint[path] == i, path
            assert checkpoint["k", key] == i, key
            assert checkpoint.read(path) == i
            assert path in checkpoint
        assert checkpoint["nested/a/b"] == 1
        assert checkpoint["nested/'a/b'"] == 2
        assert checkpoint["nested", "a/b"] == 2
        assert all(path.isprintable() for path in checkpoint.paths)


@pytest.mark.parametrize(
    "tree",
    [
        {"a/b": 1, "a": {"b": 2}},
        {("a", "b"): 1, "a": {"b": 2}},
        {"0": 1, 0: 2},
        {Color.RED: 1, "RED": 2},
        {Color.RED: 1, "<Color.RED>": 2},
        {"t": {("a", 0): 1, "a": [2]}},
        {"flat": brainstate.util.FlattedDict({("a", "b"): 1, ("a/b",): 2})},
    ],
    ids=repr,
)
def test_two_leaves_have_two_paths(tree):
    with opened(tree) as checkpoint:
        assert len(set(checkpoint.paths)) == 2
        assert sorted(checkpoint[path] for path in checkpoint.paths) == [1, 2]


def test_enum_keys_are_paths():
    with opened({Color.RED: np.ones(2)}) as checkpoint:
        (path,) = checkpoint.paths
        assert checkpoint[path].tolist() == [1, 1]
    strange = enum.Enum("strange", {"a/b": 1})
    with opened({strange["a/b"]: np.ones(2)}) as checkpoint:
        (path,) = checkpoint.paths
        assert checkpoint[path].tolist() == [1, 1]


def test_a_single_leaf_is_the_root():
    with opened(np.arange(3)) as checkpoint:
        assert checkpoint.paths == ["."]
        assert checkpoint["."].tolist() == [0, 1, 2]
        assert checkpoint.read("", 1) == 1
        assert str(checkpoint.specs["."]) == "int64[3]"


# --- kinds of leaves ------------------------------------------------------------------------------------------

Point = collections.namedtuple("Point", ["x", "y"])


def test_specs_of_states_and_empty_containers():
    tree = {
        "state": brainstate.ParamState(jnp.ones((2, 3))),
        "units": brainstate.ShortTermState(jnp.ones(4) * u.mV),
        "parts": brainstate.ParamState({"w": jnp.ones(5)}),
        "tuple": (),
        "list": [],
        "set": {1},
        "point": Point(1.5, np.float32(2)),
        "number": 3.0 * u.ms,
        "text": "a",
    }
    with opened(tree) as checkpoint:
        shown = {path: str(spec) for path, spec in checkpoint.specs.items()}
        assert shown["state"] == "float32[2, 3]"
        assert shown["units"] == "float32[4] mV"
        assert shown["parts/w"] == "float32[5]"
        assert shown["list"] == "empty list"
        assert shown["set"] == "set"
        assert shown["point/x"] == "float"
        assert shown["number"] == "float ms"
        assert shown["text"] == "str"
        assert checkpoint.specs["state"].nbytes == 24
        assert checkpoint.read("state", 0).tolist() == [1, 1, 1]
        assert_same(tree["state"], checkpoint["state"])


def test_empty_containers_are_called_by_their_name():
    tree = {
        "tuple": (),
        "list": [],
        "dict": {},
        "deque": collections.deque(),
        "ordered": collections.OrderedDict(),
        "flat": brainstate.util.FlattedDict({}),
    }
    with opened(tree) as checkpoint:
        assert {path: str(spec) for path, spec in checkpoint.specs.items()} == {
            "tuple": "empty tuple",
            "list": "empty list",
            "dict": "empty dict",
            "deque": "empty deque",
            "ordered": "empty OrderedDict",
            "flat": "empty FlattedDict",
        }


def test_shared_objects_are_listed_where_they_stand_and_read_from_everywhere():
    shared = {"w": np.ones(2), "n": 1}
    array = np.arange(3)
    with opened({"a": shared, "b": [shared, array], "c": array}) as checkpoint:
        assert {"a/w", "a/n", "b/1", "c"} <= set(checkpoint.paths)
        assert checkpoint["b/0/w"].tolist() == checkpoint["a/w"].tolist() == [1, 1]
        assert checkpoint["b", 0, "n"] == 1
        assert checkpoint.read("b/0/w", 0) == 1
        whole = checkpoint[""]
        assert whole["a"] is whole["b"][0]
        assert whole["c"] is whole["b"][1]


def test_a_shared_container_is_not_called_empty():
    shared = {"w": np.ones(2), "n": 1}
    with opened({"a": shared, "b": [shared]}) as checkpoint:
        assert checkpoint.paths == ["a/w", "a/n", "b/0"]
        assert str(checkpoint.specs["b/0"]) == "same as a"
        assert checkpoint["b/0"]["n"] == 1


def test_states_over_one_value_have_its_paths():
    values = {"w": np.ones(2), "n": 1}
    tree = {"a": brainstate.ParamState(values), "b": brainstate.ParamState(values), "c": values}
    with opened(tree) as checkpoint:
        assert {path: str(spec) for path, spec in checkpoint.specs.items()} == {
            "a/w": "float64[2]",
            "a/n": "int",
            "b": "same as a",
            "c": "same as a",
        }
        for place in "abc":
            assert checkpoint[f"{place}/w"].tolist() == checkpoint[place, "w"].tolist() == [1, 1]
            assert checkpoint.read(f"{place}/w", 0) == 1
            assert f"{place}/n" in checkpoint


def test_references_that_double_at_each_level_take_no_time():
    def chain(leaf, levels=60):
        for _ in range(levels):
            leaf = [leaf, leaf]
        return leaf

    with opened({"big": chain(np.zeros(2)), "x": 1}) as checkpoint:
        assert len(checkpoint) < 200
        assert checkpoint["x"] == 1
        assert checkpoint["big" + "/1" * 60].tolist() == [0, 0]
        state = checkpoint.load(raw=True)["big"]
        assert state["0"] is state["1"]


def test_a_lookup_does_not_search_again():
    with opened({f"k{i}": i for i in range(20_000)}) as checkpoint:
        assert dict(checkpoint) == {f"k{i}": i for i in range(20_000)}  # quadratic, this would take minutes


def nested(levels, leaf):
    structure = leaf
    for _ in range(levels):
        structure = {"a": structure}
    return structure


def with_structure(structure, arrays=None, shared=()):
    """Make a file of a structure that no tree has."""
    from braintools_ckpt.document import Document, LiveArrays
    from braintools_ckpt.format import writer
    from braintools_ckpt.storage.sinks import BytesSink

    sink = BytesSink()
    writer.write(Document(structure, arrays or LiveArrays(), list(shared)), sink)
    return bt.open_checkpoint(io.BytesIO(sink.getvalue()))


def test_a_deep_structure_is_listed_and_read():
    with with_structure(nested(1000, 7)) as checkpoint:
        (path,) = checkpoint.paths
        assert path == "/".join("a" * 1000)
        assert checkpoint[path] == 7
        assert checkpoint["a/a/a"]
        assert path in checkpoint
        assert str(checkpoint.specs[path]) == "int"
        assert "1 leaves" in repr(checkpoint)


@pytest.mark.parametrize(
    "quantity",
    [
        [4, "brainunit.Quantity", 1.5],
        [4, "brainunit.Quantity", 1.5, {}],
        [4, "brainunit.Quantity", 1.5, {"unit": 5}],
        [4, "brainunit.Quantity", 1.5, {"unit": {}}],
        [4, "brainunit.Quantity", 1.5, {"unit": {"symbol": [0]}}],
        [4, "brainunit.Quantity", None, {"unit": None}],
        [4, "brainunit.Quantity", [0, 1], {"unit": None}],
        [4, "numpy.masked", 5],
        [4, "numpy.masked", {}],
        [3, "tuple", 5],
        [3, "", {}],
    ],
    ids=repr,
)
def test_a_malformed_leaf_can_be_looked_at(quantity):
    with with_structure({"a": quantity, "b": 1}) as checkpoint:
        assert checkpoint.specs
        assert "b" in repr(checkpoint)
        assert checkpoint._repr_html_()


def test_a_malformed_quantity_has_no_plain_form():
    with with_structure({"a": [4, "brainunit.Quantity", 1.5]}) as checkpoint:
        with pytest.raises(bt.CorruptCheckpointError) as caught:
            checkpoint.load(raw=True)
        assert str(caught.value) == (
            "The 'brainunit.Quantity' at path a has no valid state: IndexError: list index out of range."
        )


def test_masked_arrays_show_their_data():
    with opened({"m": np.ma.masked_array(np.ones((2, 3), np.float32), mask=np.eye(2, 3, dtype=bool))}) as checkpoint:
        assert str(checkpoint.specs["m"]) == "float32[2, 3]"
        assert checkpoint.specs["m"].kind == "numpy.masked"


def test_specs_suggest_a_path(path):
    with bt.open_checkpoint(path) as checkpoint:
        with pytest.raises(KeyError) as caught:
            checkpoint.specs["layers/0/ww"]
        assert caught.value.args[0] == (
            f"The checkpoint {path} has nothing at the path 'layers/0/ww'. Did you mean 'layers/0/w'?"
        )
        assert "layers/0/ww" not in checkpoint.specs
        assert checkpoint.specs.get("layers/0/ww") is None


def test_read_of_a_container_says_what_it_holds(path):
    with bt.open_checkpoint(path) as checkpoint:
        for asked, items in [("layers", "2 items"), ("layers/1", "1 item"), ("empty", "0 items")]:
            with pytest.raises(TypeError) as caught:
                checkpoint.read(asked)
            assert str(caught.value) == (
                f"The value at the path {asked!r} is no array: it holds {items}. Use checkpoint[path]."
            )
        with pytest.raises(TypeError) as caught:
            checkpoint.read("step")
        assert str(caught.value) == "The value at the path 'step' is no array but int. Use checkpoint[path]."


def test_load_checks_its_arguments_as_msgpack_load_does(path):
    with bt.open_checkpoint(path) as checkpoint:
        for options, text in [
            ({"arrays": "bogus"}, "arrays must be one of 'saved', 'numpy', 'jax', got 'bogus'."),
            ({"units": "x"}, "units must be one of 'exact', 'convert', got 'x'."),
            (
                {"target": {}, "raw": True},
                "raw=True gives the plain state dict and takes no target; pass one or the other.",
            ),
        ]:
            with pytest.raises(ValueError) as caught:
                checkpoint.load(**options)
            assert str(caught.value) == text


def test_a_closed_checkpoint_says_so(path):
    checkpoint = bt.open_checkpoint(path)
    checkpoint.close()
    for read in (
        lambda: checkpoint["step"],
        lambda: checkpoint.read("layers/0/w"),
        checkpoint.load,
        checkpoint.verify,
    ):
        with pytest.raises(ValueError) as caught:
            read()
        assert str(caught.value) == f"The checkpoint {path} is closed."
    assert checkpoint.paths == PATHS
    assert checkpoint.metadata["run"] == "a"
    assert str(checkpoint.specs["layers/0/b"]) == "float32[3]"


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ("'x", "the quote ' is not closed"),
        ("(1, 2", "its brackets do not match"),
        ("a)", "its brackets do not match"),
        ("a//b", "one of its keys is empty (the empty string is written '')"),
        ("'a'b", "'a'b is not one string"),
    ],
)
def test_a_malformed_path(path, asked, reason):
    with bt.open_checkpoint(path) as checkpoint:
        with pytest.raises(KeyError) as caught:
            checkpoint[asked]
        assert caught.value.args[0] == (
            f"{asked!r} is not a path: {reason}. Keys are joined by '/', and a key that is no plain name is written as "
            "Python writes it, such as layers/0/'a b'."
        )
        assert asked not in checkpoint


def test_spelling_of_quotes_does_not_matter():
    with opened({"a b": {(1, "x"): 2, "w": 3}}) as checkpoint:
        assert checkpoint['"a b"/(1,"x")'] == 2
        assert checkpoint["'a b'/'w'"] == 3


def test_an_error_of_one_leaf_names_its_path():
    wide = jax.config.jax_enable_x64
    with jax.enable_x64(True):
        data = bt.msgpack_dumps({"w": [jnp.ones(2, jnp.float64)], "root": 1})
        root = bt.msgpack_dumps(jnp.ones(2, jnp.float64))
    assert not wide
    with bt.open_checkpoint(io.BytesIO(data)) as checkpoint:
        for asked in ("w/0", "w", ""):
            with pytest.raises(bt.PrecisionError, match="path w/0"):
                checkpoint[asked]
    with pytest.raises(bt.PrecisionError, match=r"path \.\W"):
        bt.msgpack_loads(root)


def test_keys_of_a_flatted_dict_that_need_one_place():
    tree = {"f": brainstate.util.FlattedDict({("a",): 1, ("a", "b"): 2})}
    for keys in (("a",), ("a", "b")), (("a", "b"), ("a",)):
        tree = {"f": brainstate.util.FlattedDict(dict.fromkeys(keys, 1))}
        with pytest.raises(bt.SerializationError) as caught:
            bt.msgpack_to_state_dict(tree)
        one, other = ("f/" + "/".join(key) for key in keys)
        assert str(caught.value) == (
            f"Two parts of a FlattedDict need one place in nested dicts: those at the paths {one} and {other}. "
            "A plain state dict cannot hold them; format='v1' can."
        )
        with opened(tree) as checkpoint:
            assert [checkpoint[path] for path in checkpoint.paths] == [1, 1]


def test_many_references_make_no_long_list():
    tree = [1]
    for _ in range(12):
        tree = [tree, tree]
    with opened(tree) as checkpoint:
        assert len(checkpoint) < 50
        assert checkpoint["/".join("1" * 12)] == [1]


# --- repr -----------------------------------------------------------------------------------------------------


def test_repr_is_a_table(path):
    with bt.open_checkpoint(path) as checkpoint:
        assert repr(checkpoint).split("\n") == [
            f"Checkpoint({str(path)!r}, {path.stat().st_size / 1024:.1f} KiB, 8 leaves)",
            "  run = 'a'",
            "  scores = [1.5]",
            "  layers/0/w  float32[200, 200]  156.2 KiB",
            "  layers/0/b  float32[3]         12 B",
            "  layers/1/w  float64[2]         16 B",
            "  step        int",
            "  V           float32[2] mV      8 B",
            "  none        None",
            "  empty       empty dict",
            "  key         uint32[2]          8 B",
        ]


def test_a_long_repr_is_cut():
    with opened([*range(100)]) as checkpoint:
        lines = repr(checkpoint).split("\n")
        assert len(lines) == 42
        assert lines[-1].strip() == "... and 60 more"


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.cells = set(), []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        assert attributes == []

    def handle_data(self, data):
        self.cells.append(data)


def test_the_html_repr_escapes_everything(tmp_path):
    bad = "<script>alert('x')</script>&"
    path = bt.msgpack_save(tmp_path / "a<b>&.msgpack", {bad: np.ones(2)}, metadata={bad: bad})
    with bt.open_checkpoint(path) as checkpoint:
        text = checkpoint._repr_html_()
    parsed = Tags()
    parsed.feed(text)
    assert parsed.tags <= {"div", "b", "table", "tr", "th", "td", "tbody", "thead", "details", "summary"}
    assert any(bad in cell for cell in parsed.cells)
    assert any("a<b>&.msgpack" in cell for cell in parsed.cells)
    assert "float64[2]" in parsed.cells
    assert "<script" not in text


# --- other files, and closing ---------------------------------------------------------------------------------


def test_a_file_of_flax_can_be_looked_into(tmp_path):
    tree = {"layers": [{"w": np.arange(6.0).reshape(2, 3)}], "step": 7}
    path = bt.msgpack_save(tmp_path / "old.msgpack", tree, format="flax")
    with bt.open_checkpoint(path) as checkpoint:
        assert checkpoint.paths == ["layers/'0'/w", "step"]
        assert checkpoint.metadata == {}
        assert str(checkpoint.specs["layers/'0'/w"]) == "float64[2, 3]"
        assert checkpoint.read("layers/'0'/w", 1).tolist() == [3, 4, 5]
        assert checkpoint["layers", "0", "w"].shape == (2, 3)
        assert_same(tree, checkpoint.load({"layers": [{"w": np.zeros((2, 3))}], "step": 0}), loaded=True)
        assert "float64[2, 3]" in repr(checkpoint)
        text = (
            f"{path} is a file of braintools.file or flax, which has no checksums: nothing was verified. Save it again "
            "with msgpack_save to get a file that can be."
        )
        with pytest.warns(UserWarning, match=re.escape(text) + r"\Z"):
            checkpoint.verify()
    with pytest.raises(bt.InvalidCheckpointPath, match="only those can be mapped"):
        bt.open_checkpoint(path, mmap=True)


def test_what_cannot_be_opened_leaves_no_file_open(tmp_path, monkeypatch):
    closed = []
    plain = sources.LocalSource.close
    monkeypatch.setattr(sources.LocalSource, "close", lambda self: (closed.append(self), plain(self))[1])
    path = tmp_path / "bad"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(bt.CorruptCheckpointError):
        bt.open_checkpoint(path)
    assert len(closed) == 1
    with pytest.raises(bt.CheckpointNotFoundError):
        bt.open_checkpoint(tmp_path / "missing")


def test_closing_closes_the_file_and_keeps_what_was_loaded(path):
    with bt.open_checkpoint(path) as checkpoint:
        assert checkpoint.__enter__() is checkpoint
        loaded = checkpoint["layers/0/w"]
    assert loaded[0, 5] == 5
    assert checkpoint.paths == PATHS
    with pytest.raises(ValueError, match="closed"):
        checkpoint["layers/0/w"]
    checkpoint.close()
    os.unlink(path)
    assert loaded[1, 0] == 200


def test_a_mapped_checkpoint_outlives_its_file(path):
    with bt.open_checkpoint(path, mmap=True) as checkpoint:
        w = checkpoint["layers/0/w"]
        part = checkpoint.read("layers/0/w", slice(0, 2))
    os.unlink(path)
    assert not w.flags.owndata
    assert w[1, 0] == part[1, 0] == 200


def test_an_error_in_the_block_passes_and_closes(path):
    with pytest.raises(ZeroDivisionError), bt.open_checkpoint(path) as checkpoint:
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="closed"):
        checkpoint["layers/0/w"]


def test_file_objects_are_read_from_where_they_stand_and_stay_open(path):
    file = io.BytesIO(b"before" + path.read_bytes())
    file.seek(6)
    with bt.open_checkpoint(file) as checkpoint:
        look(checkpoint)
        assert checkpoint.name == "<BytesIO>"
        assert checkpoint["layers/1/w"].tolist() == [1, 1]
    assert not file.closed
    with path.open("rb") as file:
        with bt.open_checkpoint(file) as checkpoint:
            assert checkpoint.name == str(path)
            assert checkpoint.read("layers/0/w", (0, 1)) == 1
        assert not file.closed


def test_a_checkpoint_is_a_mapping_that_cannot_be_changed(path):
    with bt.open_checkpoint(path) as checkpoint:
        assert isinstance(checkpoint, collections.abc.Mapping)
        with pytest.raises(TypeError):
            checkpoint["step"] = 8
        with pytest.raises(TypeError):
            del checkpoint["step"]


def test_metadata_comes_back_as_it_was():
    metadata = {
        "when": datetime.datetime(2024, 2, 29, tzinfo=datetime.UTC),
        "tuple": (1, {2: "a"}),
        "scores": np.arange(3, dtype=">f4"),
        "rate": 3.0 * u.mV,
    }
    with opened(1, metadata=metadata) as checkpoint:
        assert_same(metadata, checkpoint.metadata)
        assert checkpoint.metadata is checkpoint.metadata


@dataclasses.dataclass(frozen=True)
class Key:
    name: str


bt.serializable(name="test_checkpoint.Key")(Key)


def test_a_key_that_is_met_twice():
    key = Key("a")
    tree = {"x": {key: 1}, "y": {key: 2}}
    assert bt.msgpack_loads(bt.msgpack_dumps(tree), target=tree) == tree
    with opened(tree) as checkpoint:
        assert len(checkpoint.paths) == 2
