"""rename=: only what moves is touched, and all else is as it was."""

from __future__ import annotations

import collections
import dataclasses
import enum

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest
from trees import assert_same

import braintools_ckpt as bt


def load(saved, target=None, **options):
    return bt.msgpack_loads(bt.msgpack_dumps(saved), target, **options)


def fails(error, saved, rename, text):
    with pytest.raises(error) as caught:
        load(saved, rename=rename)
    assert str(caught.value) == text
    return caught.value


@bt.serializable(name="test_rename.Schedule", version=2, upgrade={1: lambda s: {"rate": s["lr"], "step": s["step"]}})
@dataclasses.dataclass
class Schedule:
    rate: float
    step: int


class Listed:
    def __init__(self, items):
        self.items = items


def restore(target, state, mismatch):
    assert type(state["items"]) is list
    target.items = state["items"]
    return target


bt.msgpack_register_serialization(Listed, lambda x: {"items": x.items}, restore, name="test_rename.Listed")


class Color(enum.Enum):
    RED = 1


def old_schedule():
    """Give a file with a Schedule of version 1."""
    from braintools_ckpt.document import Document, LiveArrays
    from braintools_ckpt.format import writer
    from braintools_ckpt.storage.sinks import BytesSink

    sink = BytesSink()
    node = [3, "class:test_rename.Schedule", {"lr": 0.5, "step": 3}]
    writer.write(Document({"old": node, "x": 1}, LiveArrays()), sink)
    return sink.getvalue()


# --- what does not move is as it was ---------------------------------------------------------------------------

MIXED = {
    "x": 1,
    "list": [1, {"a": 2}],
    "tuple": (1, 2),
    "ordered": collections.OrderedDict(b=1, a=2),
    "keys": {1: "a", (2, "b"): "c", None: 0},
    "state": brainstate.ParamState(jnp.ones(2)),
    "flat": brainstate.util.FlattedDict({("a", "b"): 1}),
    "schedule": Schedule(0.1, 7),
}


@pytest.mark.parametrize("rename", [{"x": "y"}, lambda path: "y" if path == "x" else path], ids=["mapping", "function"])
def test_what_does_not_move_keeps_its_type(rename):
    expected = {"y": 1, **{key: item for key, item in MIXED.items() if key != "x"}}
    back = load(MIXED, rename=rename)
    assert_same(expected, back, loaded=True)
    assert list(back) == list(expected)


@pytest.mark.parametrize("rename", [{}, {"x": "x"}, {"'x'": "x"}, lambda path: path], ids=["{}", "=", "'", "function"])
def test_a_rename_of_nothing(rename):
    assert_same(MIXED, load(MIXED, rename=rename), loaded=True)


def test_versions_are_upgraded_all_the_same():
    data = old_schedule()
    assert bt.msgpack_loads(data, rename={"x": "y"}) == {"old": Schedule(0.5, 3), "y": 1}
    target = {"new": Schedule(0.0, 0), "x": 0}
    expected = {"new": Schedule(0.5, 3), "x": 1}
    assert bt.msgpack_loads(data, target, rename={"old": "new"}) == expected
    assert bt.msgpack_loads(data, target, rename=lambda path: path.replace("old", "new")) == expected


def test_lists_stay_lists_for_function_handlers():
    back = load({"a": Listed([1, 2]), "x": 1}, {"b": Listed([]), "y": 0}, rename={"a": "b", "x": "y"})
    assert back["b"].items == [1, 2]


def test_shared_objects_stay_shared():
    shared = {"w": np.ones(2)}
    back = load({"a": shared, "b": {"c": shared}, "x": 1}, rename={"x": "y", "b/c": "d"})
    assert back["a"] is back["d"]
    back = load({"a": shared, "b": shared}, rename={"a/w": "a/v"})
    assert back["a"]["v"] is back["b"]["w"]


def test_a_function_that_moves_all_of_a_container_moves_it_whole():
    saved = {"a": [1, (2, {"k": 3})], "b": 0}
    assert load(saved, rename=lambda path: path.replace("a/", "c/d/")) == {"c": {"d": [1, (2, {"k": 3})]}, "b": 0}


# --- what moves alone ------------------------------------------------------------------------------------------


def test_containers_on_the_way_become_plain_maps():
    saved = {"a": [1, (2, 3)], "b": (4, {"x": 5}), "c": [6]}
    back = load(saved, rename={"a/1/0": "b/1/y"})
    assert back == {"a": {"0": 1, "1": {"1": 3}}, "b": {"0": 4, "1": {"y": 2, "x": 5}}, "c": [6]}
    assert load([1, 2], [0, 0], rename={"0": "1", "1": "0"}) == [2, 1]


def test_keys_stay_what_they_are():
    saved = {"d": {1: "a", "x": "b", (2, "c"): "c", Color.RED: "d"}}
    target = {"d": {1: "", "y": "", (2, "c"): "", Color.RED: "", 7: ""}, "n": ""}
    expected = {"d": {1: "a", "y": "b", (2, "c"): "c", Color.RED: "d", 7: "e"}}
    del target["n"]
    assert load({**saved, "e": "e"}, target, rename={"d/x": "d/y", "e": "d/7"}) == expected
    saved = {"d": {1: "a", 2: "b"}}
    assert load(saved, {"d": {2: "", 1: ""}}, rename={"d/1": "d/2", "d/2": "d/1"}) == {"d": {2: "a", 1: "b"}}
    assert load({"d": {"a b": 1, "a/b": 2}}, rename={"d/'a b'": 'd/"c d"', "d/'a/b'": "e"}) == {"d": {"c d": 1}, "e": 2}


def test_branches_that_meet_become_one():
    assert load({"a": {"x": 1}, "b": {"y": 2}}, rename={"a": "b"}) == {"b": {"x": 1, "y": 2}}
    assert load({"b": {"y": 2}, "a": {"x": 1}}, rename={"a": "b"}) == {"b": {"y": 2, "x": 1}}


def test_the_root_can_be_wrapped_and_unwrapped():
    assert load({"w": (1, 2), "b": 3}, rename={".": "params"}) == {"params": {"w": (1, 2), "b": 3}}
    assert load({"params": {"w": (1, 2)}}, rename={"params": "."}) == {"w": (1, 2)}
    assert load((1, 2), rename={"": "params"}) == {"params": (1, 2)}


def test_values_below_a_shared_state():
    values = {"w": np.ones(2)}
    saved = {"a": brainstate.ParamState(values), "b": brainstate.ParamState(values)}
    back = load(saved, rename={"a/w": "v"})
    assert back["v"].tolist() == [1, 1]
    assert back["b"].value["w"] is back["v"]
    back = load(saved, rename=lambda path: path.replace("/w", "/v"))
    assert back["b"]["v"].tolist() == back["a"]["v"].tolist() == [1, 1]


def test_keys_of_several_steps():
    saved = brainstate.util.FlattedDict({("l", 0, "w"): 1, ("l", 0, "b"): 2, ("m",): 3})
    assert load(saved, rename={"l/0/w": "l/0/v"}) == {"l": {"0": {"v": 1, "b": 2}}, "m": 3}
    assert load(saved, rename={"l": "k"}) == {"k": {"0": {"w": 1, "b": 2}}, "m": 3}


def test_references_that_double_at_each_level():
    tree = {"w": 1}
    for _ in range(50):
        tree = [tree, tree]
    back = load({"big": tree, "x": 1}, rename={"big": "huge"})
    assert back["huge"][0] is back["huge"][1]
    back = load({"big": tree, "x": 1}, rename={"big/0/1": "y"})
    assert back["big"]["1"][1] is back["y"]
    with pytest.raises(ValueError, match="Pass a mapping of paths."):
        load({"big": tree}, rename=lambda path: path)


# --- errors ----------------------------------------------------------------------------------------------------


def test_an_object_of_a_class_is_not_taken_apart():
    text = (
        "rename= would take apart the object of the class 'test_rename.Schedule' at path a, which only its class can "
        "load. Move the object as a whole, or give its class a new version= with an upgrade= that renames the fields."
    )
    for rename in (
        {"a/rate": "a/lr"},
        {"a/rate": "lr"},
        lambda path: path.replace("rate", "lr"),
    ):
        with pytest.raises(ValueError) as caught:
            load({"a": Schedule(1.0, 2), "x": 1}, rename=rename)
        assert str(caught.value) == text.replace("path a", "path 'a'")
    with pytest.raises(ValueError, match="take apart the object of the class 'test_rename.Schedule' at path 'a'"):
        load({"a": Schedule(1.0, 2), "x": 1}, rename={"x": "a/extra"})
    with pytest.raises(ValueError, match="take apart the object of the class 'test_rename.Listed' at path 'a'"):
        load({"a": Listed([1]), "x": 1}, rename={"a/items/0": "x2"})


@pytest.mark.parametrize("rename", [{"a": "'x"}, {"'a": "x"}, lambda path: "'x"], ids=["new", "old", "function"])
def test_a_malformed_path(rename):
    path = "'a" if not callable(rename) and "'a" in rename else "'x"
    fails(
        ValueError,
        {"a": 1},
        rename,
        f"rename= got a path that cannot be read: {path!r} is not a path: the quote ' is not closed. Keys are joined "
        "by '/', and a key that is no plain name is written as Python writes it, such as layers/0/'a b'.",
    )


def test_a_function_that_fails():
    error = fails(
        ValueError,
        {"a": {"b": 1}},
        lambda path: {}[path],
        "rename= failed for the path 'a/b': KeyError: 'a/b'",
    )
    assert isinstance(error.__cause__, KeyError)


def test_paths_that_are_no_strings():
    fails(TypeError, {"a": 1}, {"a": 5}, "rename= must give paths as strings, got 5 for 'a'.")
    fails(TypeError, {"a": 1}, {5: "a"}, "rename= must name paths as strings, got 5.")
    fails(TypeError, {"a": 1}, lambda path: 5, "rename= must give paths as strings, got 5 for 'a'.")
    fails(TypeError, {"a": 1}, 5, "rename= must be a mapping of paths or a function of one path, got int.")


def test_a_path_that_is_not_there():
    fails(
        ValueError,
        {"layers": [{"w": 1}]},
        {"layers/0/ww": "x"},
        "rename= names the path 'layers/0/ww', which the checkpoint does not have. Did you mean 'layers/0/w'?",
    )
    fails(
        ValueError,
        {"a": {"w": 1}},
        {"a/w/z": "x", "a": "b"},
        "rename= names the path 'a/w/z', which the checkpoint does not have. Did you mean 'a/w'?",
    )
    fails(ValueError, {"a": 1}, {"a": "b", "'a'": "c"}, "rename= names the path 'a' twice. Give it once.")


def test_two_things_in_one_place():
    text = "rename= cannot put {} at {}, because it puts {} at {}. Give one of them another path."
    fails(ValueError, {"a": 1, "b": 2}, {"b": "a"}, text.format("'b'", "'a'", "'a'", "'a'"))
    fails(ValueError, {"a": 1, "b": 2}, {"b": "a/c"}, text.format("'b'", "'a/c'", "'a'", "'a'"))
    fails(ValueError, {"a": 1, "b": {"c": 2}}, {"a": "b"}, text.format("'b'", "'b'", "'a'", "'b'"))
    fails(ValueError, {"b": {"c": 2}, "a": 1}, {"a": "b"}, text.format("'a'", "'b'", "'b'", "'b'"))
    fails(ValueError, {"a": {"x": 1}, "b": {"x": 2}}, {"a": "b"}, text.format("'b/x'", "'b/x'", "'a/x'", "'b/x'"))
    fails(
        ValueError,
        {"a": {"'0'": 1, "0": 2}, "b": 3},
        {"b": "a/0"},
        "rename= puts two parts at the key '0' of 'a'. Give one another path.",
    )
