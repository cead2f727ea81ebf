"""Loading into a target: what fits is loaded, what does not fit is a mismatch."""

from __future__ import annotations

import collections
import dataclasses
import enum
import itertools
import re
import subprocess
import sys
import textwrap
import warnings
from typing import Any, NamedTuple

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from trees import (
    Color,
    Dict,
    Int,
    Layer,
    List,
    Pair,
    Slotted,
    Str,
    assert_same,
    blank_tree,
    checkpointable_trees,
    copy_tree,
    replace_leaf,
)

import braintools_ckpt as bt
from braintools_ckpt.errors import MismatchError, PrecisionError


def load(saved, target, **options):
    return bt.msgpack_loads(bt.msgpack_dumps(saved), target, **options)


def silently(saved, target, **options):
    """Load without a warning (warnings are errors here)."""
    return load(saved, target, mismatch="ignore", **options)


class Point(NamedTuple):
    x: Any
    y: Any


class Point3(NamedTuple):
    x: Any
    y: Any
    z: Any


@dataclasses.dataclass
class Model:
    w: Any
    b: Any
    name: Any = ""


@dataclasses.dataclass
class SmallModel:
    w: Any


# --- each mismatch, in each mode ----------------------------------------------------------------------------

F4 = np.float32
VOLTAGE = np.ones(2, F4) * u.mV

#: name -> what the file holds, the target, the message, and what warn and ignore give
MISMATCHES = {
    "missing key": (
        {"a": 1},
        {"a": 0, "b": 2},
        "The target dict keys and state dict keys do not match, target dict contains keys {'b'} which are "
        "not present in state dict at path net/x.",
        {"a": 1, "b": 2},
    ),
    "missing keys": (
        {"a": 1},
        {"a": 0, "c": 3, "b": 2},
        "The target dict keys and state dict keys do not match, target dict contains keys {'b', 'c'} which "
        "are not present in state dict at path net/x.",
        {"a": 1, "c": 3, "b": 2},
    ),
    "unexpected key": (
        {"a": 1, "b": 2},
        {"a": 0},
        "The target dict keys and state dict keys do not match, state dict contains keys {'b'} which are not "
        "present in target dict at path net/x.",
        {"a": 1},
    ),
    "list too short": (
        [1, 2],
        [0, 0, 7],
        "The size of the list and the state dict do not match, got 3 and 2 at path net/x.",
        [1, 2, 7],
    ),
    "list too long": (
        [1, 2, 3],
        [0, 0],
        "The size of the list and the state dict do not match, got 2 and 3 at path net/x.",
        [1, 2],
    ),
    "tuple too long": (
        (1, 2, 3),
        (0,),
        "The size of the list and the state dict do not match, got 1 and 3 at path net/x.",
        (1,),
    ),
    "namedtuple field missing": (
        Point(1, 2),
        Point3(0, 0, 7),
        "The field names of the state dict and the named tuple do not match, got {'x', 'y'} and "
        "{'x', 'y', 'z'} at path net/x.",
        Point3(1, 2, 7),
    ),
    "namedtuple field unexpected": (
        Point3(1, 2, 3),
        Point(0, 0),
        "The field names of the state dict and the named tuple do not match, got {'x', 'y', 'z'} and "
        "{'x', 'y'} at path net/x.",
        Point(1, 2),
    ),
    "dict for a list": ({"a": 1}, [1], "Container mismatch: expected a list, got a dict at path net/x.", [1]),
    "list for a dict": (
        [1, 2],
        {"a": 1},
        "Container mismatch: expected a dict, got a list at path net/x.",
        {"a": 1},
    ),
    "array for a dict": (
        np.zeros(3, F4),
        {"a": 1},
        "Container mismatch: expected a dict, got float32[3] at path net/x.",
        {"a": 1},
    ),
    "dict for an array": (
        {"a": 1},
        np.ones(3, F4),
        "expected float32[3], got a dict at path net/x.",
        np.ones(3, F4),
    ),
    "list for an array": (
        [1, 2, 3],
        np.ones(3, F4),
        "expected float32[3], got a list at path net/x.",
        np.ones(3, F4),
    ),
    "str for an array": ("text", np.ones(3, F4), "expected float32[3], got ", np.ones(3, F4)),
    "None for an array": (
        None,
        np.ones(3, F4),
        "expected float32[3], got ",
        np.ones(3, F4),
    ),
    "array for None": (np.ones(3, F4), None, "expected None, got float32[3] at path net/x.", None),
    "array for a str": (np.ones(3, F4), "text", "expected str, got float32[3] at path net/x.", "text"),
    "bytes for a str": (b"a", "text", "expected str, got ", "text"),
    "str for bytes": ("a", b"b", "expected bytes, got ", b"b"),
    "str for an int": ("a", 3, "expected int, got ", 3),
    "float for an int": (1.5, 3, "expected int, got float 1.5 at path net/x.", 3),
    "whole float for an int": (2.0, 3, "expected int, got float 2.0 at path net/x.", 3),
    "int for a bool": (1, True, "expected bool, got int 1 at path net/x.", True),
    "complex for a float": (1j, 2.0, "expected float, got complex 1j at path net/x.", 2.0),
    "int too large for a float": (
        2**53 + 1,
        1.0,
        "expected float, got int 9007199254740993 at path net/x.",
        1.0,
    ),
    "None for an int": (None, 3, "expected int, got ", 3),
    "int for None": (3, None, "expected None, got ", None),
    "array for an int": (np.zeros(3, "i4"), 3, "expected int, got int32[3] at path net/x.", 3),
    "set for a list": ({1}, [1], "expected a list, got ", [1]),
    "shape": (
        np.ones((3, 2), F4),
        np.zeros((2, 3), F4),
        "Array shape mismatch: expected float32[2, 3], got float32[3, 2] at path net/x.",
        np.zeros((2, 3), F4),
    ),
    "shape of a jax array": (
        jnp.ones((3, 2)),
        jnp.zeros((2, 3)),
        "Array shape mismatch: expected float32[2, 3], got float32[3, 2] at path net/x.",
        jnp.zeros((2, 3)),
    ),
    "rank": (
        np.ones((1, 3), F4),
        np.zeros(3, F4),
        "Array shape mismatch: expected float32[3], got float32[1, 3] at path net/x.",
        np.zeros(3, F4),
    ),
    "0-d for 1-d": (
        np.ones((), F4),
        np.zeros(1, F4),
        "Array shape mismatch: expected float32[1], got float32[] at path net/x.",
        np.zeros(1, F4),
    ),
    "dtype": (
        np.ones(3, "c8"),
        np.zeros(3, "i1"),
        "Array dtype mismatch: expected int8[3], got complex64[3] at path net/x.",
        np.zeros(3, "i1"),
    ),
    "float for an int array": (
        np.ones(3, F4),
        np.zeros(3, "i4"),
        "Array dtype mismatch: expected int32[3], got float32[3] at path net/x.",
        np.zeros(3, "i4"),
    ),
    "text for a float array": (
        np.array(["1", "2"]),
        np.zeros(2, F4),
        "Array dtype mismatch: expected float32[2], got <U1[2] at path net/x.",
        np.zeros(2, F4),
    ),
    "values that do not survive": (
        np.array([4, 300]),
        np.zeros(2, "i1"),
        "Array dtype mismatch: expected int8[2], got int64[2] with values that do not survive the cast at path net/x.",
        np.zeros(2, "i1"),
    ),
    "dimension of a unit": (
        VOLTAGE,
        np.zeros(2, F4) * u.ms,
        "Unit mismatch: expected ms, got mV at path net/x.",
        np.zeros(2, F4) * u.ms,
    ),
    "shape of a quantity": (
        np.ones(5, F4) * u.mV,
        np.zeros((2, 2), F4) * u.mV,
        "Array shape mismatch: expected float32[2, 2], got float32[5] at path net/x.",
        np.zeros((2, 2), F4) * u.mV,
    ),
    "plain array for a quantity": (np.ones(2, F4), VOLTAGE, "Unit mismatch: expected mV, got ", VOLTAGE),
    "quantity for a plain array": (VOLTAGE, np.zeros(2, F4), "Unit mismatch: expected ", np.zeros(2, F4)),
    "quantity for a float": (1.0 * u.mV, 2.0, "Unit mismatch: expected ", 2.0),
    "key for an array": (
        jax.random.key(0),
        jnp.zeros(2, "uint32"),
        "expected uint32[2], got ",
        jnp.zeros(2, "uint32"),
    ),
    "array for a key": (
        jnp.zeros(2, "uint32"),
        jax.random.key(0),
        "got uint32[2] at path net/x.",
        jax.random.key(0),
    ),
    "key of another implementation": (
        jax.random.key(1, impl="rbg"),
        jax.random.key(0),
        "at path net/x.",
        jax.random.key(0),
    ),
    "field of a dataclass missing": (
        SmallModel(1),
        Model(0, 2, "n"),
        "contains keys {'b', 'name'}",
        Model(1, 2, "n"),
    ),
    "field of a dataclass unexpected": (
        Model(1, 2, "n"),
        SmallModel(0),
        "contains keys {'b', 'name'}",
        SmallModel(1),
    ),
    "list for a dataclass": (
        [1],
        SmallModel(0),
        "expected a SmallModel, got a list at path net/x.",
        SmallModel(0),
    ),
    "dict for an enum": ({"a": 1}, Color.RED, "at path net/x.", Color.RED),
}


@pytest.fixture(params=MISMATCHES)
def mismatch(request):
    saved, target, message, kept = MISMATCHES[request.param]
    file = {"good": np.arange(3.0), "net": {"x": saved}}
    whole = {"good": np.zeros(3), "net": {"x": target}}
    return file, whole, message, {"good": np.arange(3.0), "net": {"x": kept}}


def test_error_raises_and_leaves_the_target_alone(mismatch):
    file, target, message, _ = mismatch
    before = copy_tree(target)
    with pytest.raises(MismatchError) as caught:
        load(file, target)
    text = str(caught.value)
    assert message in text
    assert "at path net/x" in text
    assert "mismatch='warn'" in text
    assert isinstance(caught.value, ValueError)
    assert [m.path[:2] for m in caught.value.mismatches] == [("net", "x")] * len(caught.value.mismatches)
    assert_same(before, target)


def test_warn_gives_a_warning_and_the_targets_value(mismatch):
    file, target, message, kept = mismatch
    with pytest.warns(UserWarning, match="at path net/x") as record:
        got = load(file, target, mismatch="warn")
    assert message in str(record[0].message)
    assert len(record) == 1
    assert_same(kept, got)


def test_ignore_is_silent_and_gives_the_targets_value(mismatch):
    file, target, _, kept = mismatch
    assert_same(kept, load(file, target, mismatch="ignore"))


NOTHING_TO_KEEP = (
    "Nothing was loaded: where something does not fit, the target holds a jax.ShapeDtypeStruct, which has no value to "
    "keep. Pass a target with arrays there."
)


@pytest.mark.parametrize("mode", ["warn", "ignore"])
def test_a_placeholder_has_no_value_to_keep(mode):
    struct = jax.ShapeDtypeStruct((9, 9), F4)
    for saved in ({"x": np.ones(3, F4)}, {}, {"x": "text"}):
        for target in ({"x": struct}, {"x": [struct]}):
            with pytest.raises(MismatchError) as caught:
                load(saved, target, mismatch=mode)
            assert str(caught.value).endswith(NOTHING_TO_KEEP)


@dataclasses.dataclass
class Holder:
    x: Any


@pytest.mark.parametrize("mode", ["warn", "ignore"])
@pytest.mark.parametrize("around", [Holder, brainstate.ParamState, lambda s: u.Quantity(s, unit=u.mV), lambda s: (s,)])
def test_a_placeholder_is_found_wherever_it_is(around, mode):
    target = around(jax.ShapeDtypeStruct((3,), F4))
    for saved in ({"k": 3}, {"k": 3, "l": 3}):
        with pytest.raises(MismatchError) as caught:
            load(saved, {"k": 0, "l": target}, mismatch=mode)
        assert str(caught.value).endswith(NOTHING_TO_KEEP)


@pytest.mark.parametrize(
    "value",
    [jnp.ones(3) * u.mV, jax.random.key(0), np.zeros(2, "i4,f4"), brainstate.random.RandomState(1), True, 1.0, 1j],
)
def test_what_is_no_member_of_an_enum(value):
    with pytest.raises(MismatchError, match="Leaf mismatch: expected a member of Color"):
        load({"k": value}, {"k": Color.RED})


def test_one_state_in_two_places_keeps_its_own_value_when_they_differ():
    state = brainstate.ParamState(jnp.full(1, 9.0))
    load({"a": jnp.ones(1), "b": jnp.zeros(1)}, {"a": state, "b": state}, mismatch="ignore")
    assert_same(jnp.full(1, 9.0), state.value)


@pytest.mark.parametrize("mode", ["warn", "ignore"])
def test_a_placeholder_has_none_for_values_that_do_not_survive_either(mode):
    with pytest.raises(MismatchError) as caught:
        load({"x": np.array([2**24 + 1])}, {"x": jax.ShapeDtypeStruct((1,), F4)}, mismatch=mode)
    assert str(caught.value).endswith(NOTHING_TO_KEEP)


def test_quantities_that_share_a_mantissa_are_kept_whole():
    saved, own = np.array([1e300, 1.0]), np.array([5.0, 6.0], F4)
    target = [u.Quantity(own, unit=u.mV), u.Quantity(own, unit=u.mV)]
    got = load([u.Quantity(saved, unit=u.volt), u.Quantity(saved, unit=u.volt)], target, mismatch="ignore")
    assert_same(target, got)


def test_a_shared_state_fits_plain_values():
    state = brainstate.ParamState(jnp.ones(2))
    assert_same([jnp.ones(2), jnp.ones(2)], load([state, state], [jnp.zeros(2), jnp.zeros(2)]))


def test_a_value_that_does_not_survive_keeps_the_whole_quantity():
    target = {"q": np.array([5.0, 6.0], F4) * u.mV}
    got = load({"q": np.array([1e300, 1.0]) * u.volt}, target, mismatch="ignore")
    assert_same(target, got)
    assert_same({"q": 5 * u.volt}, load({"q": 5 * u.volt}, {"q": 5 * u.mV}, mismatch="ignore"))


def test_one_state_in_two_places_takes_one_value():
    state = brainstate.ParamState(jnp.zeros(2))
    same, other = (
        {"a": brainstate.ParamState(jnp.ones(2)), "b": brainstate.ParamState(jnp.full(2, n))} for n in (1, 2)
    )
    message = (
        "State mismatch: expected one value for a state that the target has in several places, got two that differ at "
        "path b."
    )
    with pytest.raises(MismatchError) as caught:
        load(other, {"a": state, "b": state})
    assert str(caught.value).startswith(message)
    assert_same(jnp.zeros(2), state.value)
    load(same, {"a": state, "b": state})
    assert_same(jnp.ones(2), state.value)


def test_warnings_that_are_errors_change_nothing():
    state = brainstate.ParamState(jnp.zeros(2))
    with pytest.raises(UserWarning, match="shape mismatch"):
        load({"a": jnp.ones(2), "b": np.ones(3)}, {"a": state, "b": np.zeros(2)}, mismatch="warn")
    assert_same(jnp.zeros(2), state.value)


def test_what_a_failing_handler_touched_goes_back():
    class Cell:
        def __init__(self):
            self.v, self.log = brainstate.ShortTermState(jnp.zeros(2)), [1]

    class Late(Cell):
        pass

    def restore(target, state, mismatch):
        target.v.value = state["v"]
        target.log.append(2)
        return target

    def fail(target, state, mismatch):
        restore(target, state, mismatch)
        raise RuntimeError("late")

    bt.msgpack_register_serialization(Cell, lambda cell: {"v": cell.v.value}, restore)
    bt.msgpack_register_serialization(Late, lambda cell: {"v": cell.v.value}, fail)
    saved, target = [Cell(), Late()], [Cell(), Late()]
    saved[0].v.value = jnp.ones(2)
    with pytest.raises(bt.HandlerError, match="late"):
        load(saved, target)
    for cell in target:
        assert_same(jnp.zeros(2), cell.v.value)
        assert cell.log == [1]


def test_three_places_of_two_targets():
    shared, one, two = np.ones(2), np.zeros(2), np.zeros(2)
    got = load([shared, shared, shared], [one, two, one])
    assert got[0] is got[2]
    assert got[0] is not got[1]
    assert not np.shares_memory(got[0], got[1])


def test_a_template_of_eval_shape_takes_keys():
    for impl in ("threefry2x32", "rbg", "unsafe_rbg"):
        key = jax.random.key(3, impl=impl)
        assert_same({"k": key}, load({"k": key}, jax.eval_shape(lambda key=key: {"k": key})))


def test_enum_keys_of_two_classes():
    class Other(enum.Enum):
        RED = 1

    tree = {Color.RED: 1, Other.RED: 2, "RED": 3}
    assert_same(tree, load(tree, {Color.RED: 0, Other.RED: 0, "RED": 0}))
    with pytest.warns(UserWarning, match="are loaded as their names"):
        assert bt.msgpack_loads(bt.msgpack_dumps(tree)) == {"Color.RED": 1, "Other.RED": 2, "RED": 3}


def test_shared_lists_load_in_linear_time():
    tree = [1]
    for _ in range(60):
        tree = [tree, tree]
    loaded = bt.msgpack_loads(bt.msgpack_dumps(tree))
    assert loaded[0] is loaded[1]
    for _ in range(60):
        loaded = loaded[0]
    assert loaded == [1]


def test_shared_tuples_are_one_object_when_they_hold_others():
    inner = (1, [2])
    point = collections.namedtuple("point", "x")(inner)  # noqa: PYI024
    tree = [inner, inner, point, point, (1, 2)]
    for target in (None, tree):
        loaded = bt.msgpack_loads(bt.msgpack_dumps(tree), target)
        assert loaded == tree
        assert loaded[0] is loaded[1] is loaded[2].x
        assert loaded[2] is loaded[3]
    deep = ()
    for _ in range(60):
        deep = (deep, deep)
    loaded = bt.msgpack_loads(bt.msgpack_dumps(deep))
    assert loaded[0] is loaded[1]
    flat = (1, 2)
    assert bt.msgpack_dumps([flat, flat]) == bt.msgpack_dumps([(1, 2), tuple([1, 2])])  # noqa: C409


def test_a_frozen_object_may_be_a_key_of_two_dicts():
    @bt.serializable
    @dataclasses.dataclass(frozen=True)
    class Place:
        x: int

    place = Place(1)
    tree = [{place: 1}, {place: 2}]
    assert_same(tree, bt.msgpack_loads(bt.msgpack_dumps(tree)))
    assert_same(tree, load(tree, [{place: 0}, {place: 0}]))


def test_error_reports_all_mismatches_at_once():
    saved = {
        "layers": [{"w": np.ones((3, 2), F4)}, {"w": np.ones(2, F4)}],
        "v": 1.0 * u.mV,
        "extra": 1,
        "n": "x",
    }
    target = {
        "layers": [{"w": np.zeros((2, 3), F4)}, {"w": np.zeros(2, "i4")}],
        "v": 1.0 * u.ms,
        "n": 1,
        "new": 2,
    }
    with pytest.raises(MismatchError) as caught:
        load(saved, target)
    found = {(m.kind, m.path) for m in caught.value.mismatches}
    assert found == {
        ("missing", ()),
        ("unexpected", ()),
        ("shape", ("layers", 0, "w")),
        ("dtype", ("layers", 1, "w")),
        ("unit", ("v",)),
        ("leaf", ("n",)),
    }
    text = str(caught.value)
    assert text.startswith("6 mismatches between the checkpoint and the target:\n  - ")
    assert all(m.message in text for m in caught.value.mismatches)
    assert text.count("mismatch='warn'") == 1


def test_a_whole_message():
    with pytest.raises(MismatchError) as caught:
        load({"layers": [{"w": np.ones((3, 2), F4)}]}, {"layers": [{"w": np.zeros((2, 3), F4)}]})
    assert str(caught.value) == (
        "Array shape mismatch: expected float32[2, 3], got float32[3, 2] at path layers/0/w. Nothing was "
        "loaded. Pass mismatch='warn' or mismatch='ignore' to keep the target's values where they do not fit."
    )


def test_the_whole_message_of_an_unexpected_key_names_partial():
    with pytest.raises(MismatchError) as caught:
        load({"m": {"a": 1, "b": 2}}, {"m": {"a": 0}})
    assert str(caught.value) == (
        "The target dict keys and state dict keys do not match, state dict contains keys {'b'} which are not "
        "present in target dict at path m. Nothing was loaded. Pass mismatch='warn' or mismatch='ignore' to keep "
        "the target's values where they do not fit, or partial=True when the target names only a part."
    )


def test_keys_of_another_type_do_not_match():
    for saved, target in (({1: 5}, {2: 0}), ({1: 5}, {"1": 0}), ({"1": 5}, {1.0: 0})):
        with pytest.raises(MismatchError, match=re.escape(f"contains keys {set(target)!r} which are not present")):
            load({"x": saved}, {"x": target})


def test_a_mismatch_error_can_be_pickled():
    import pickle

    with pytest.raises(MismatchError) as caught:
        load({"a": 1}, {"a": "x"})
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert again.mismatches == caught.value.mismatches


def test_warn_gives_one_warning_for_each_mismatch():
    saved = {"a": np.ones(2), "b": 1, "c": 3}
    target = {"a": np.zeros(3), "b": "x", "c": 0, "d": 4}
    with pytest.warns(UserWarning, match="mismatch|do not match") as record:
        back = load(saved, target, mismatch="warn")
    assert len(record) == 3
    assert_same({"a": np.zeros(3), "b": "x", "c": 3, "d": 4}, back)


def load_from_checkpoint(path):
    with bt.open_checkpoint(path) as checkpoint:
        checkpoint.load({"a": "x"}, mismatch="warn")


WAYS = {
    "loads": lambda path: bt.msgpack_loads(path.read_bytes(), {"a": "x"}, mismatch="warn"),
    "load": lambda path: bt.msgpack_load(path, {"a": "x"}, mismatch="warn"),
    "from_state_dict": lambda path: bt.msgpack_from_state_dict({"a": "x"}, {"a": 1}, mismatch="warn"),
    "checkpoint": load_from_checkpoint,
}


@pytest.mark.parametrize("way", WAYS)
def test_warnings_point_at_the_caller(way, tmp_path):
    bt.msgpack_save(tmp_path / "x", {"a": 1})
    with pytest.warns(UserWarning, match="Leaf mismatch") as record:
        WAYS[way](tmp_path / "x")
    assert record[0].filename == __file__


@pytest.mark.parametrize("target", [False, "text", None, 3, 1.5, [1], {"a": 1}, np.zeros(2)], ids=repr)
def test_with_a_target_no_warning_asks_for_one(target):
    for value in (Int(5), Str("a"), List([1]), Color.RED, Layer(1), jax.tree_util.Partial(max, 1)):
        load([value], [target], mismatch="ignore")


def test_warn_is_silent_where_all_fits():
    assert load({"a": 1}, {"a": 0}, mismatch="warn") == {"a": 1}


@pytest.mark.parametrize("mode", ["ERROR", "raise", None, ""])
def test_an_unknown_mode(mode):
    with pytest.raises(ValueError, match="Invalid mismatch mode: .*Must be one of 'error', 'warn', or 'ignore'"):
        load({"a": 1}, {"a": 0}, mismatch=mode)


@pytest.mark.parametrize("option", [{"units": "si"}, {"arrays": "torch"}])
def test_unknown_options(option):
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        load({"a": 1}, {"a": 0}, **option)


# --- what the result looks like -----------------------------------------------------------------------------

#: what the file holds, the target, the result
RESULTS = {
    "numpy into jax": (np.ones(3, F4), jnp.zeros(3), jnp.ones(3)),
    "jax into numpy": (jnp.ones(3), np.zeros(3, F4), np.ones(3, F4)),
    "numpy scalar into python": (np.float64(2.5), 1.0, 2.5),
    "python into numpy scalar": (2.5, np.float32(1), np.float32(2.5)),
    "numpy scalar into numpy scalar": (np.int64(3), np.int16(1), np.int16(3)),
    "0-d array into python": (np.array(2.5), 1.0, 2.5),
    "0-d int array into float": (np.array(3), 1.0, 3.0),
    "0-d jax array into int": (jnp.asarray(3), 1, 3),
    "0-d bool array into int": (np.array(True), 1, 1),
    "python into 0-d array": (3, np.zeros((), "i4"), np.array(3, "i4")),
    "python into 0-d jax array": (0.1, jnp.zeros(()), jnp.asarray(F4(0.1))),
    "int into float": (4, 1.5, 4.0),
    "bool into int": (True, 7, 1),
    "bool into float": (True, 7.0, 1.0),
    "int into complex": (3, 1j, 3 + 0j),
    "dict into OrderedDict": (
        {"b": 1, "a": 2},
        collections.OrderedDict(b=0, a=0),
        collections.OrderedDict(b=1, a=2),
    ),
    "OrderedDict into dict": (collections.OrderedDict(a=1), {"a": 0}, {"a": 1}),
    "dict into a subclass": ({"a": 1}, Dict(a=0), Dict(a=1)),
    "dict into defaultdict": ({"a": 1}, collections.defaultdict(max, a=0), collections.defaultdict(max, a=1)),
    "order of the target": ({"b": 1, "a": 2}, {"a": 0, "b": 0}, {"a": 2, "b": 1}),
    "list into a subclass": ([1], List([0]), List([1])),
    "str into a subclass": ("a", Str("b"), Str("a")),
    "namedtuple by field": (Pair(1, 2), Pair(0, 0), Pair(1, 2)),
    "set": ({1, 2}, {5}, {1, 2}),
    "empty set": (set(), {5}, set()),
    "frozenset": (frozenset({1}), frozenset(), frozenset({1})),
    "str": ("a", "b", "a"),
    "None": (None, None, None),
    "jax dtype of the target": (jnp.ones(3, "bfloat16"), jnp.zeros(3), jnp.ones(3)),
    "weak type of the target": (np.ones((), F4), jnp.asarray(2.0), jnp.asarray(1.0)),
    "strong type of the target": (jnp.asarray(1.0), jnp.asarray(F4(0)), jnp.asarray(F4(1))),
    "byte order of the target": (np.arange(3, dtype=">i4"), np.zeros(3, "<i4"), np.arange(3, dtype="<i4")),
    "mantissa of the target": (np.ones(2, F4) * u.mV, jnp.zeros(2) * u.mV, jnp.ones(2) * u.mV),
    "jax mantissa into numpy": (jnp.ones(2) * u.mV, u.Quantity(np.zeros(2), unit=u.mV), np.ones(2) * u.mV),
    "python mantissa": (np.array(2.0) * u.mV, 1.0 * u.mV, 2.0 * u.mV),
    "ShapeDtypeStruct": (np.ones(3), jax.ShapeDtypeStruct((3,), F4), jnp.ones(3)),
    "ShapeDtypeStruct of bfloat16": (
        np.ones(3),
        jax.ShapeDtypeStruct((3,), jnp.bfloat16),
        jnp.ones(3, "bfloat16"),
    ),
    "wider text": (np.array(["ab"]), np.array(["abcde"]), np.array(["ab"], "U5")),
    "finer time": (
        np.array(["2024-01-01"], "M8[D]"),
        np.zeros(1, "M8[s]"),
        np.array(["2024-01-01"], "M8[s]"),
    ),
}


@pytest.mark.parametrize("name", RESULTS)
def test_the_result_has_the_targets_types(name):
    saved, target, expected = RESULTS[name]
    assert_same({"x": expected}, load({"x": saved}, {"x": target}), loaded=True)
    assert_same(expected, load(saved, target), loaded=True)


def test_the_target_is_not_the_result_and_does_not_change():
    target = {"a": [np.zeros(3), 1], "d": collections.deque([1], 3), "l": Layer(np.zeros(2), {"x": 1})}
    saved = {"a": [np.ones(3), 2], "d": collections.deque([5], 3), "l": Layer(np.ones(2), {"x": 2})}
    before = copy_tree(target)
    back = load(saved, target)
    assert_same(before, target)
    assert_same(saved, back)
    assert back["a"] is not target["a"]
    assert back["l"] is not target["l"]
    back["a"][0][...] = 9
    back["l"].b["x"] = 9
    assert_same(before, target)


def test_a_read_only_target_gives_a_writable_result():
    target = np.zeros(3)
    target.flags.writeable = False
    back = load(np.ones(3), target)
    back[0] = 5


def test_numpy_int_into_a_float_target_keeps_the_value():
    assert_same(np.array([1.0, 2.0**53]), load(np.array([1, 2**53]), np.zeros(2)))


def test_static_fields_come_from_the_target():
    from trees import JaxData

    assert load(JaxData(1, size=5), JaxData(0, size=9)) == JaxData(1, size=9)


def test_functions_of_partials_come_from_the_target():
    partial = jax.tree_util.Partial(min, 1, key=2)
    back = load(partial, jax.tree_util.Partial(max, 0, key=0))
    assert (back.func, back.args, back.keywords) == (max, (1,), {"key": 2})


def test_a_partial_with_other_keywords_is_a_mismatch():
    with pytest.raises(MismatchError, match="new"):
        load(jax.tree_util.Partial(max, 1, key=2), jax.tree_util.Partial(max, 1, new=2))


# --- casts --------------------------------------------------------------------------------------------------

#: values and dtype of the file, dtype of the target, what comes (None: a mismatch)
CASTS = [
    ([1.5, 2.5], "f8", "f4", [1.5, 2.5]),
    ([0.1], "f8", "f2", [0.1]),
    ([1.5], "f4", "f8", [1.5]),
    ([1.5], "f4", ml_dtypes.bfloat16, [1.5]),
    ([1.5], ml_dtypes.bfloat16, "f4", [1.5]),
    ([1.5], "f8", ml_dtypes.float8_e4m3fn, [1.5]),
    ([1.5], ml_dtypes.float8_e4m3fn, ml_dtypes.bfloat16, [1.5]),
    ([np.nan, np.inf, -np.inf], "f8", "f4", [np.nan, np.inf, -np.inf]),
    ([1e300], "f8", "f4", None),
    ([1.5], "f8", "c8", [1.5]),
    ([1.5], "c16", "c8", [1.5]),
    ([1.5], "c16", "f8", None),
    ([1.0], "f8", "i8", None),
    ([1.0], "f8", "?", None),
    ([0.0], "f8", "M8[s]", None),
    ([4], "i8", "f4", [4]),
    ([2**24], "i8", "f4", [2**24]),
    ([2**24 + 1], "i8", "f4", None),
    ([2**53 + 1], "i8", "f8", None),
    ([2**63 - 1], "i8", "f8", None),
    ([2**63], "u8", "f8", [2**63]),
    ([2**64 - 1], "u8", "f8", None),
    ([-(2**63)], "i8", "f8", [-(2**63)]),
    ([2048], "i4", "f2", [2048]),
    ([2049], "i4", "f2", None),
    ([100000], "i4", "f2", None),
    ([256], "i4", ml_dtypes.bfloat16, [256]),
    ([257], "i4", ml_dtypes.bfloat16, None),
    ([3], "i4", ml_dtypes.float8_e4m3fn, [3]),
    ([1000], "i4", ml_dtypes.float8_e4m3fn, None),
    ([2**24 + 1], "i8", "c8", None),
    ([127, -128], "i8", "i1", [127, -128]),
    ([128], "i8", "i1", None),
    ([5], "i4", "u4", [5]),
    ([-1], "i4", "u4", None),
    ([-1], "i4", "u8", None),
    ([2**32 - 1], "u4", "i4", None),
    ([2**31 - 1], "u4", "i4", [2**31 - 1]),
    ([2**63], "u8", "i8", None),
    ([2**63 - 1], "u8", "i8", [2**63 - 1]),
    ([5], "i4", "i8", [5]),
    ([7], "i8", ml_dtypes.int4, [7]),
    ([8], "i8", ml_dtypes.int4, None),
    ([-1], "i8", ml_dtypes.uint4, None),
    ([7], ml_dtypes.int4, "f4", [7]),
    ([-8], ml_dtypes.int4, "i8", [-8]),
    ([True, False], "?", "i4", [1, 0]),
    ([True], "?", "f4", [1]),
    ([1, 0], "i4", "?", None),
    ([], "i8", "i1", []),
    ([], "f8", "i1", None),
]


@pytest.mark.parametrize(
    ("values", "source", "wanted", "expected"),
    CASTS,
    ids=lambda x: np.dtype(x).name if isinstance(x, type) else str(x),
)
def test_casts(values, source, wanted, expected):
    saved = {"x": np.array(values, source)}
    target = {"x": np.zeros(len(values), wanted)}
    if expected is None:
        with pytest.raises(MismatchError, match="dtype mismatch: expected .*, got .* at path x"):
            load(saved, target)
        assert_same(target, load(saved, target, mismatch="ignore"))
    else:
        assert_same({"x": np.array(expected).astype(wanted)}, load(saved, target))


@pytest.mark.parametrize(
    ("values", "source", "wanted", "expected"),
    [cast for cast in CASTS if np.dtype(cast[2]).str[1:] in ("f4", "f2", "V2", "i1", "i4", "u4", "c8")][::2],
)
def test_casts_into_jax(values, source, wanted, expected):
    saved, target = {"x": np.array(values, source)}, {"x": jnp.zeros(len(values), wanted)}
    if expected is None:
        with pytest.raises(MismatchError, match="at path x"):
            load(saved, target)
    else:
        assert_same({"x": jnp.asarray(np.array(expected).astype(wanted))}, load(saved, target))


#: a python number of the file, the target, what comes (None: a mismatch)
NUMBERS = [
    (2**53, 1.0, 2.0**53),
    (2**53 + 1, 1.0, None),
    (10**400, 1.0, None),
    (2**70, 5, 2**70),
    (1.5, 5, None),
    (float("inf"), 5, None),
    (1.5, True, None),
    (2**24, np.zeros((), F4), np.array(2**24, F4)),
    (2**24 + 1, np.zeros((), F4), None),
    (300, np.zeros((), "u1"), None),
    (-1, np.zeros((), "u1"), None),
    (2**70, np.zeros((), "i8"), None),
    (1.5, np.zeros((), "i8"), None),
    (0.1, np.zeros((), F4), np.array(0.1, F4)),
    (1e300, np.zeros((), F4), None),
    (True, np.zeros((), "i4"), np.array(1, "i4")),
    (np.array(2**53 + 1), 1.0, None),
    (np.array(1.5), 1, None),
    (np.array(2.0), 1, None),
    (np.float32(0.1), 1.0, float(np.float32(0.1))),
    (np.array(1.5, ml_dtypes.bfloat16), 1.0, 1.5),
    (np.array([1.5]), 1.0, None),
    ("1.5", 1.0, None),
    (1.5, "x", None),
]


@pytest.mark.parametrize(("saved", "target", "expected"), NUMBERS, ids=range(len(NUMBERS)))
def test_numbers(saved, target, expected):
    if expected is None:
        with pytest.raises(MismatchError, match="mismatch: expected .*, got .* at path x"):
            load({"x": saved}, {"x": target})
        assert_same({"x": target}, load({"x": saved}, {"x": target}, mismatch="ignore"))
    else:
        assert_same({"x": expected}, load({"x": saved}, {"x": target}))


@pytest.mark.parametrize(
    ("saved", "target"),
    [
        (np.array(["abcde"]), np.array(["ab"])),
        (np.array([b"abcde"]), np.array([b"ab"])),
        (np.array(["2024-01-01T01"], "M8[h]"), np.zeros(1, "M8[D]")),
        (np.array([25], "m8[h]"), np.zeros(1, "m8[D]")),
        (np.zeros(1, [("a", "i4"), ("b", "i4")]), np.zeros(1, [("a", "i4")])),
        (np.array([(300,)], [("a", "i4")]), np.zeros(1, [("a", "i1")])),
    ],
    ids=["U", "S", "datetime", "timedelta", "field", "field dtype"],
)
def test_other_dtypes_are_never_narrowed(saved, target):
    with pytest.raises(MismatchError, match="Array dtype mismatch: expected .*, got .* at path x"):
        load({"x": saved}, {"x": target})


# --- units --------------------------------------------------------------------------------------------------


def test_another_unit_of_the_same_dimension_is_a_mismatch():
    target = {"t": np.zeros(2) * u.ms}
    with pytest.raises(MismatchError) as caught:
        load({"t": np.ones(2) * u.second}, target)
    text = str(caught.value)
    assert "Unit mismatch: expected ms, got s at path t." in text
    assert "units='convert'" in text


def test_units_are_converted_when_asked():
    back = load({"t": np.array([1.0, 2.5]) * u.second}, {"t": np.zeros(2) * u.ms}, units="convert")
    assert_same({"t": np.array([1000.0, 2500.0]) * u.ms}, back)


@pytest.mark.parametrize("mode", ["warn", "ignore"])
def test_another_unit_under_warn_and_ignore_keeps_the_physical_value(mode):
    saved, target = {"t": np.array([1.0]) * u.second}, {"t": np.array([7.0]) * u.ms}
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        back = load(saved, target, mismatch=mode)
    assert_same(saved, back)
    assert [str(w.message) for w in record if "Unit mismatch: expected ms, got s at path t" in str(w.message)] == [
        str(w.message) for w in record
    ]
    assert len(record) == (mode == "warn")


def test_another_unit_needs_no_value_to_keep():
    target = {"t": u.Quantity(jax.ShapeDtypeStruct((1,), jnp.float32), unit=u.ms)}
    back = load({"t": np.array([1.0], np.float32) * u.second}, target, mismatch="ignore")
    assert_same({"t": jnp.array([1.0]) * u.second}, back)


@pytest.mark.parametrize("mode", ["warn", "ignore"])
def test_another_dimension_keeps_the_targets_value(mode):
    target = {"t": np.array([7.0]) * u.ms}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_same(target, load({"t": np.array([1.0]) * u.mV}, target, mismatch=mode, units="convert"))


def test_convert_does_not_help_another_dimension():
    with pytest.raises(MismatchError, match="Unit mismatch: expected ms, got mV at path t"):
        load({"t": 1.0 * u.mV}, {"t": 1.0 * u.ms}, units="convert")


@pytest.mark.parametrize(
    ("saved", "target", "expected"),
    [
        (1.0 * u.second, 0.0 * u.ms, 1000.0 * u.ms),
        (3.0 * u.mV, 0.0 * u.volt, 0.003 * u.volt),
        (jnp.ones(2) * u.volt, jnp.zeros(2) * u.mV, jnp.full(2, F4(1000)) * u.mV),
        (
            np.array([2]) * u.second,
            u.Quantity(np.array([0]), unit=u.ms),
            u.Quantity(np.array([2000]), unit=u.ms),
        ),
        (np.ones(1, "f8") * u.second, jnp.zeros(1) * u.ms, jnp.full(1, F4(1000)) * u.ms),
        (
            np.ones(1) * u.nA / u.cm**2,
            np.zeros(1) * u.amp / u.meter**2,
            np.array([1e-5]) * u.amp / u.meter**2,
        ),
    ],
    ids=range(6),
)
def test_conversions(saved, target, expected):
    assert_same({"x": expected}, load({"x": saved}, {"x": target}, units="convert"))


def test_a_conversion_of_integers_that_would_round_is_a_mismatch():
    saved, target = (
        {"x": u.Quantity(np.array([1500]), unit=u.ms)},
        {"x": u.Quantity(np.array([0]), unit=u.second)},
    )
    with pytest.raises((MismatchError, PrecisionError), match="at path x"):
        load(saved, target, units="convert")


def test_an_equal_unit_of_another_name_fits():
    unit = u.Unit(dim=u.mV.dim, scale=u.mV.scale)
    assert load({"x": u.Quantity(2.0, unit=unit)}, {"x": 1.0 * u.mV})["x"] == 2.0 * u.mV


def test_units_in_a_state():
    state = brainstate.ParamState(jnp.zeros(2) * u.mV)
    assert load({"s": brainstate.ParamState(jnp.ones(2) * u.volt)}, {"s": state}, units="convert")["s"] is state
    assert_same(jnp.full(2, F4(1000)) * u.mV, state.value)


# --- any tree and any target --------------------------------------------------------------------------------


def changed(tree, index, leaf):
    """Make a template for a tree in which one leaf is another, where a tree can have it."""
    try:
        return replace_leaf(blank_tree(tree), index, leaf)
    except (TypeError, ValueError, AttributeError, NotImplementedError):
        reject()


def load_or_refuse(data, target):
    """Load, or give the error."""
    try:
        return bt.msgpack_loads(data, target)
    except MismatchError as error:
        return error


@settings(max_examples=200)
@given(tree=checkpointable_trees(), index=st.integers(0, 20), leaf=checkpointable_trees(max_leaves=2))
def test_any_tree_into_any_target(tree, index, leaf):
    """What does not fit is reported by a MismatchError that changes nothing, and is never another exception."""
    data = bt.msgpack_dumps([tree])
    target = changed([tree], index, leaf)
    before = copy_tree(target)
    loaded = load_or_refuse(data, target)
    if not isinstance(loaded, MismatchError):
        assert_same(loaded, bt.msgpack_loads(data, before, mismatch="warn"))
        return
    assert_same(before, target)
    kept = bt.msgpack_loads(data, target, mismatch="ignore")
    with pytest.warns(UserWarning, match="mismatch|do not match") as record:
        again = bt.msgpack_loads(data, before, mismatch="warn")
    assert len(record) == len(loaded.mismatches)
    assert_same(kept, again)


@given(tree=checkpointable_trees(), other=checkpointable_trees())
def test_any_tree_into_another(tree, other):
    data, target = bt.msgpack_dumps([tree]), [other]
    before = copy_tree(target)
    if isinstance(load_or_refuse(data, target), MismatchError):
        assert_same(before, target)
    assert type(bt.msgpack_loads(data, target, mismatch="ignore")[0]) is type(other)


# --- partial ------------------------------------------------------------------------------------------------


def test_partial_loads_what_the_target_names():
    saved = {"net": {"w": np.ones(3), "b": np.ones(2)}, "opt": {"m": [1, 2]}, "step": 5}
    assert_same(
        {"net": {"b": np.ones(2)}, "step": 5},
        load(saved, {"net": {"b": np.zeros(2)}, "step": 0}, partial=True),
    )


def test_partial_still_asks_for_what_the_target_names():
    with pytest.raises(MismatchError, match="target dict contains keys {'new'}"):
        load({"a": 1}, {"a": 0, "new": 1}, partial=True)
    with pytest.raises(MismatchError, match="Array shape mismatch"):
        load({"a": np.ones(3), "b": 1}, {"a": np.ones(2)}, partial=True)


def test_partial_does_not_read_the_rest(tmp_path):
    small, large = np.arange(5000.0), np.arange(500_000.0)
    path = tmp_path / "x.msgpack"
    bt.msgpack_save(path, {"small": small, "large": large})
    data = bytearray(path.read_bytes())
    data[data.index(large.tobytes()[:4000]) + 800_000] ^= 1
    path.write_bytes(data)
    with pytest.raises(bt.CorruptCheckpointError):
        bt.msgpack_load(path, {"small": small * 0, "large": large * 0})
    assert_same({"small": small}, bt.msgpack_load(path, {"small": small * 0}, partial=True))


def test_partial_namedtuples_and_dataclasses():
    assert load(Point3(1, 2, 3), Point(0, 0), partial=True) == Point(1, 2)
    assert load(Model(1, 2), SmallModel(0), partial=True) == SmallModel(1)


# --- rename -------------------------------------------------------------------------------------------------


def test_rename_with_a_mapping():
    saved = {"encoder": {"w": np.ones(3), "b": 1}, "step": 5}
    target = {"net": {"weight": np.zeros(3), "b": 0}, "step": 0}
    back = load(saved, target, rename={"encoder/w": "net/weight", "encoder/b": "net/b"})
    assert_same({"net": {"weight": np.ones(3), "b": 1}, "step": 5}, back)


def test_rename_with_a_callable():
    saved = {"encoder": {"w": np.ones(3), "b": 1}, "step": 5}
    target = {"net": {"w": np.zeros(3), "b": 0}, "step": 0}
    back = load(saved, target, rename=lambda path: path.replace("encoder/", "net/"))
    assert_same({"net": {"w": np.ones(3), "b": 1}, "step": 5}, back)


def test_rename_of_a_whole_branch():
    saved = {"encoder": {"layers": [{"w": np.ones(3)}, {"w": np.ones(2)}]}, "encoder2": 1}
    target = {"net": {"layers": [{"w": np.zeros(3)}, {"w": np.zeros(2)}]}, "encoder2": 0}
    back = load(saved, target, rename={"encoder": "net"})
    assert_same({"net": saved["encoder"], "encoder2": 1}, back)


def test_rename_that_names_nothing_is_an_error():
    with pytest.raises(ValueError, match="nowhere/w"):
        load({"a": 1}, {"a": 0}, rename={"nowhere/w": "a"})


def test_rename_of_two_paths_to_one_is_an_error():
    with pytest.raises(ValueError, match="'b'.*'a'|'a'.*'b'"):
        load({"a": 1, "b": 2}, {"a": 0}, rename={"b": "a"})


def test_rename_swaps():
    assert load({"a": 1, "b": 2}, {"a": 0, "b": 0}, rename={"a": "b", "b": "a"}) == {"a": 2, "b": 1}


# --- jax: devices, sharding, x64 ----------------------------------------------------------------------------


def test_the_sharding_of_the_target():
    device = jax.devices()[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    for target in (jax.ShapeDtypeStruct((3,), F4, sharding=sharding), jax.device_put(jnp.zeros(3), sharding)):
        back = load(np.ones(3, F4), target)
        assert back.sharding == sharding
        assert_same(np.ones(3, F4), np.asarray(back))


SHARDED = """
    import os
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax, numpy as np, jax.numpy as jnp
    import braintools_ckpt as bt
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

    assert len(jax.devices()) == 8
    host = np.arange(64, dtype=np.float32).reshape(8, 8)
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))
    other = Mesh(np.array(jax.devices()), ("z",))
    shardings = [
        NamedSharding(mesh, P("x", "y")),
        NamedSharding(mesh, P(None, "x")),
        NamedSharding(mesh, P()),
        NamedSharding(other, P("z")),
        jax.sharding.SingleDeviceSharding(jax.devices()[5]),
    ]
    for saved in shardings:
        tree = {"w": jax.device_put(host, saved), "n": 1}
        data = bt.msgpack_dumps(tree)
        back = bt.msgpack_loads(data)
        assert isinstance(back["w"], jax.Array), back
        np.testing.assert_array_equal(back["w"], host)
        for wanted in shardings:
            for target in (
                jax.ShapeDtypeStruct((8, 8), np.float32, sharding=wanted),
                jax.device_put(np.zeros((8, 8), np.float32), wanted),
            ):
                back = bt.msgpack_loads(data, {"w": target, "n": 0})["w"]
                assert back.sharding == wanted, (saved, wanted, back.sharding)
                np.testing.assert_array_equal(back, host)
    keys = jax.device_put(jax.random.split(jax.random.key(0), 8), NamedSharding(other, P("z")))
    back = bt.msgpack_loads(bt.msgpack_dumps(keys), keys)
    assert back.sharding == keys.sharding
    assert (jax.random.key_data(back) == jax.random.key_data(keys)).all()
    eight = jax.device_put(jnp.ones((8, 8), jnp.bfloat16), shardings[0])
    back = bt.msgpack_loads(bt.msgpack_dumps({"a": host}), {"a": eight})["a"]
    assert back.dtype == jnp.bfloat16 and back.sharding == eight.sharding
    print("done")
"""


def test_sharded_arrays_on_eight_devices():
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(SHARDED)], capture_output=True, text=True)
    assert done.stdout.strip() == "done", done.stderr[-3000:]


def test_float64_that_would_become_jax_is_an_error_when_x64_is_off():
    data = bt.msgpack_dumps({"net": [np.ones(3)]})
    with pytest.raises(PrecisionError) as caught:
        bt.msgpack_loads(data, arrays="jax")
    text = str(caught.value)
    assert "net/0" in text
    assert "float64" in text
    assert "jax_enable_x64" in text
    assert "arrays='numpy'" in text
    assert isinstance(caught.value, ValueError)


def test_jax_float64_is_an_error_when_x64_is_off_and_comes_back_when_it_is_on():
    with jax.enable_x64(True):
        tree = {"c": jnp.ones(3, "complex128"), "n": jnp.ones(3, "int64"), "w": jnp.ones(3, "float64")}
        data = bt.msgpack_dumps(tree)
        assert_same(tree, bt.msgpack_loads(data))
        assert_same(tree, bt.msgpack_loads(data, jax.tree.map(jnp.zeros_like, tree)))
    with pytest.raises(PrecisionError, match="jax_enable_x64"):
        bt.msgpack_loads(data)
    assert_same({key: np.asarray(value) for key, value in tree.items()}, bt.msgpack_loads(data, arrays="numpy"))
    target = {"c": jnp.zeros(3, "complex64"), "n": jnp.zeros(3, "int32"), "w": jnp.zeros(3)}
    expected = {"c": jnp.ones(3, "complex64"), "n": jnp.ones(3, "int32"), "w": jnp.ones(3)}
    assert_same(expected, bt.msgpack_loads(data, target))


def test_a_float64_template_without_x64_is_an_error():
    with pytest.raises((PrecisionError, MismatchError), match="jax_enable_x64"):
        load({"w": np.ones(3)}, {"w": jax.ShapeDtypeStruct((3,), "float64")})


def test_int64_into_an_int32_jax_target_when_the_values_fit():
    assert_same(jnp.asarray([4, 5]), load(np.array([4, 5]), jnp.zeros(2, "int32")))
    with pytest.raises(MismatchError, match="do not survive"):
        load(np.array([4, 2**40]), jnp.zeros(2, "int32"))


# --- all or nothing -----------------------------------------------------------------------------------------


class Net(brainstate.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = brainstate.nn.Linear(2, 3)
        self.second = brainstate.nn.Linear(3, 4)


def values(tree):
    return [np.array(x) for x in jax.tree.leaves([state.value for state in tree])]


def test_states_are_updated_and_returned():
    target = {"a": brainstate.ParamState(jnp.zeros(2)), "b": brainstate.HiddenState(np.zeros(2, F4))}
    a, b = target["a"], target["b"]
    back = load({"a": brainstate.ParamState(jnp.ones(2)), "b": brainstate.HiddenState(jnp.ones(2))}, target)
    assert back["a"] is a
    assert back["b"] is b
    assert_same(jnp.ones(2), a.value)
    assert_same(np.ones(2, F4), b.value)


def test_a_shared_state_is_updated_once():
    state = brainstate.ParamState(jnp.zeros(2))
    other = brainstate.ParamState(jnp.ones(2))
    back = load([other, {"again": other}], [state, {"again": state}])
    assert back[0] is back[1]["again"] is state
    assert_same(jnp.ones(2), state.value)


@pytest.mark.parametrize(
    "bad",
    [
        ({"w": np.ones(9)}, {"w": np.zeros(2)}),
        ({"w": np.array([1, 300])}, {"w": np.zeros(2, "i1")}),
        ({"w": 1.0 * u.mV}, {"w": 1.0 * u.ms}),
        ({}, {"w": 1}),
        ({"w": 1, "extra": 1}, {"w": 1}),
        ({"w": np.ones(3)}, {"w": jax.ShapeDtypeStruct((3,), "float64")}),
    ],
    ids=["shape", "values", "unit", "missing", "unexpected", "x64"],
)
def test_an_error_changes_no_state(bad):
    saved, target = Net(), Net()
    states = list(target.states().values())
    before = values(states)
    tree = {"net": target.states(), "z": bad[1]}
    with pytest.raises(ValueError, match="at path z|z/w"):
        load({"net": saved.states(), "z": bad[0]}, tree)
    for x, y in zip(before, values(states), strict=True):
        np.testing.assert_array_equal(x, y)
    assert all(a is b for a, b in zip(states, tree["net"].values(), strict=True))


def test_damage_found_while_reading_changes_no_state(tmp_path):
    saved = {"a": brainstate.ParamState(jnp.ones(2)), "z": brainstate.ParamState(jnp.ones(400_000))}
    path = tmp_path / "x.msgpack"
    bt.msgpack_save(path, saved)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    target = {"a": brainstate.ParamState(jnp.zeros(2)), "z": brainstate.ParamState(jnp.zeros(400_000))}
    with pytest.raises(bt.CorruptCheckpointError):
        bt.msgpack_load(path, target)
    assert_same(jnp.zeros(2), target["a"].value)
    assert_same(jnp.zeros(400_000), target["z"].value)


def test_a_handler_that_raises_changes_no_state(fresh_class):
    def refuse(target, state, mismatch):
        raise RuntimeError("no")

    bt.msgpack_register_serialization(fresh_class, lambda x: {"v": 1}, refuse)
    target = {
        "a": brainstate.ParamState(jnp.zeros(2)),
        "b": fresh_class(),
        "c": brainstate.ParamState(jnp.zeros(2)),
    }
    saved = {
        "a": brainstate.ParamState(jnp.ones(2)),
        "b": fresh_class(),
        "c": brainstate.ParamState(jnp.ones(2)),
    }
    with pytest.raises(bt.HandlerError, match="at path b"):
        load(saved, target)
    assert_same(jnp.zeros(2), target["a"].value)
    assert_same(jnp.zeros(2), target["c"].value)


def test_a_state_that_refuses_its_value_changes_no_other_state():
    class Refusing(brainstate.State):
        @property
        def value(self):
            return self._value

        @value.setter
        def value(self, v):
            raise TypeError("locked")

    target = {"a": brainstate.ParamState(jnp.zeros(2)), "b": Refusing(jnp.zeros(2))}
    with pytest.raises(Exception, match="locked"):
        load({"a": brainstate.ParamState(jnp.ones(2)), "b": brainstate.State(jnp.ones(2))}, target)
    assert_same(jnp.zeros(2), target["a"].value)


def test_warn_updates_the_states_that_fit():
    target = {"a": brainstate.ParamState(jnp.zeros(2)), "b": brainstate.ParamState(jnp.zeros(3))}
    with pytest.warns(UserWarning, match="shape mismatch: expected float32\\[3\\], got float32\\[2\\] at path b"):
        load(
            {"a": brainstate.ParamState(jnp.ones(2)), "b": brainstate.ParamState(jnp.ones(2))},
            target,
            mismatch="warn",
        )
    assert_same(jnp.ones(2), target["a"].value)
    assert_same(jnp.zeros(3), target["b"].value)


def test_a_plain_value_fits_a_state():
    state = brainstate.ParamState(jnp.zeros(2))
    assert load({"w": jnp.ones(2)}, {"w": state})["w"] is state
    assert_same(jnp.ones(2), state.value)


def test_a_state_fits_a_plain_value():
    """As it does with braintools.file, whose files do not know States."""
    assert_same({"w": jnp.ones(2)}, load({"w": brainstate.ParamState(jnp.ones(2))}, {"w": jnp.zeros(2)}))


_NUMBERS = itertools.count()


@pytest.fixture
def fresh_class():
    """A class that nobody registered yet."""
    return type(f"Fresh{next(_NUMBERS)}", (), {"__init__": lambda self, **fields: self.__dict__.update(fields)})


# --- handlers and @serializable with a target ---------------------------------------------------------------


def test_a_handler_gets_the_target_the_state_and_the_mode(fresh_class):
    seen = []

    def restore(target, state, mismatch):
        seen.append((target, state, mismatch))
        return fresh_class(v=state["v"])

    bt.msgpack_register_serialization(fresh_class, lambda x: {"v": x.v}, restore)
    target = fresh_class(v=np.zeros(2))
    back = load({"x": fresh_class(v=np.ones(2))}, {"x": target}, mismatch="ignore")["x"]
    assert_same(np.ones(2), back.v)
    assert len(seen) == 1
    assert seen[0][0] is target
    assert seen[0][2] == "ignore"


def test_a_handler_may_take_two_arguments(fresh_class):
    bt.msgpack_register_serialization(
        fresh_class, lambda x: {"v": x.v}, lambda target, state: fresh_class(v=state["v"])
    )
    assert_same(np.ones(2), load(fresh_class(v=np.ones(2)), fresh_class(v=np.zeros(2))).v)


def test_a_class_may_be_defined_again():
    """As when a notebook's cell is run again."""
    for value in (1, 2):

        @bt.serializable
        @dataclasses.dataclass
        class Again:
            w: Any

        back = bt.msgpack_loads(bt.msgpack_dumps(Again(value)))
        assert type(back) is Again
        assert back.w == value


def test_a_handler_may_be_registered_again_for_a_class_that_is_defined_again():
    for value in (1, 2):

        class Again:
            def __init__(self, w):
                self.w = w

        bt.msgpack_register_serialization(Again, lambda x: {"w": x.w}, lambda t, s: type(t)(s["w"]))
        assert load(Again(value), Again(0)).w == value


def test_serializable_children_are_merged_with_the_target(fresh_class):
    bt.serializable(fresh_class)
    target = fresh_class(w=jnp.zeros(2), n=0)
    assert_same(jnp.ones(2), load(fresh_class(w=np.ones(2, F4), n=5), target).w)
    with pytest.raises(
        MismatchError, match="Array shape mismatch: expected float32\\[2\\], got float32\\[3\\] at path w"
    ):
        load(fresh_class(w=np.ones(3, F4), n=5), target)
    assert_same(jnp.zeros(2), target.w)


def test_serializable_static_fields_come_from_the_target():
    @bt.serializable(static=("activation",), name="tests.static")
    @dataclasses.dataclass
    class Net:
        w: Any
        activation: Any

    back = load(Net(np.ones(2), max), Net(np.zeros(2), min))
    assert back.activation is min
    assert_same(np.ones(2), back.w)


def test_serializable_fields_and_no_init():
    @bt.serializable(fields=("a",), name="tests.fields")
    class Thing:
        def __init__(self):
            raise RuntimeError("must not be called")

    thing = Thing.__new__(Thing)
    thing.a, thing.b = 1, 2
    back = bt.msgpack_loads(bt.msgpack_dumps(thing))
    assert type(back) is Thing
    assert vars(back) == {"a": 1}


def test_an_older_version_is_upgraded_step_by_step():
    @bt.serializable(name="tests.upgraded", version=1)
    @dataclasses.dataclass
    class Old:
        weight: Any

    data = bt.msgpack_dumps({"m": Old(np.ones(2))})

    def first(state):
        return {"w": state["weight"]}

    def second(state):
        return {**state, "b": np.zeros(2)}

    @bt.serializable(name="tests.upgraded", version=3, upgrade={1: first, 2: second}, override=True)
    @dataclasses.dataclass
    class New:
        w: Any
        b: Any

    for back in (bt.msgpack_loads(data), bt.msgpack_loads(data, {"m": New(np.zeros(2), np.ones(2))})):
        assert type(back["m"]) is New
        assert_same([np.ones(2), np.zeros(2)], [back["m"].w, back["m"].b])


# --- state dicts --------------------------------------------------------------------------------------------


def test_state_dicts_have_the_known_form():
    tree = {"a": [np.ones(2), (1, 2)], 3: Pair(1, 2), "s": brainstate.ParamState(jnp.ones(2))}
    state = bt.msgpack_to_state_dict(tree)
    expected = {"a": {"0": np.ones(2), "1": {"0": 1, "1": 2}}, "3": {"left": 1, "right": 2}, "s": jnp.ones(2)}
    assert_same(expected, state)


def test_state_dicts_are_restored():
    target = {"a": [np.zeros(2), (0, 0)], "s": brainstate.ParamState(jnp.zeros(2))}
    state = {"a": {"0": np.ones(2), "1": {"0": 1, "1": 2}}, "s": np.ones(2, F4)}
    back = bt.msgpack_from_state_dict(target, state)
    assert back["s"] is target["s"]
    assert_same(jnp.ones(2), target["s"].value)
    assert_same([np.ones(2), (1, 2)], back["a"])


def test_state_dicts_follow_the_same_rules():
    with pytest.raises(
        MismatchError, match="Array shape mismatch: expected float64\\[2\\], got float64\\[3\\] at path a"
    ):
        bt.msgpack_from_state_dict({"a": np.zeros(2)}, {"a": np.ones(3)})
    with pytest.warns(UserWarning, match="Array shape mismatch"):
        back = bt.msgpack_from_state_dict({"a": np.zeros(2)}, {"a": np.ones(3)}, mismatch="warn")
    assert_same({"a": np.zeros(2)}, back)


def test_slotted_dataclasses_are_targets():
    assert load(Slotted(1), Slotted(0)).value == 1


def test_arrays_inside_of_a_leaf_are_its_own_business():
    tree = {
        "g": np.random.Generator(np.random.Philox(1)),
        "m": np.ma.masked_array([1.0, 2.0], [0, 1]),
        "b": b"x" * 99_999,
    }
    for arrays in ("jax", "numpy", "saved"):
        assert_same(tree, bt.msgpack_loads(bt.msgpack_dumps(tree), arrays=arrays))
    key = jax.random.key(1)
    assert_same({"k": key}, bt.msgpack_loads(bt.msgpack_dumps({"k": key}), arrays="numpy"))
