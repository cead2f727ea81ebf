"""Many arrays in one container: whatever is done for all of them at once gives what the general way gives."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import gc
import io
import itertools
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import pytest
import xxhash
from hostile.forge import forge
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trees import JAX_DTYPES, LAYOUTS, Dict, JaxData, Layer, List, Str, Tuple, assert_same, blank_tree, lay_out

import braintools_ckpt as bt
from braintools_ckpt.adapters import jax as jax_adapter
from braintools_ckpt.errors import MismatchError, PrecisionError, SerializationError
from braintools_ckpt.tree import encode as encoding
from braintools_ckpt.tree import merge as merging

LIST, ARRAY, ITEMS, NODE, LEAF, REF, ARRAYS, NAMED_ARRAYS = range(8)
N = 20
NAMES = [f"k{i}" for i in range(N)]
HUGE = 10**9
ROOT = Path(__file__).parent.parent


def one_by_one():
    """Let each array have a node of its own, as few of them have."""
    return mock.patch.object(encoding, "_MIN_RUN", HUGE)


def taken_in(many):
    """Let so many jax arrays be taken in by a compiled function."""
    return mock.patch.object(jax_adapter, "_MANY", many)


def both(tree, **options):
    """Give the bytes of a tree with runs, and without."""
    data = bt.msgpack_dumps(tree, **options)
    with one_by_one():
        return data, bt.msgpack_dumps(tree, **options)


def index_of(data):
    start, size = (int.from_bytes(data[-36 + i : -28 + i], "little") for i in (0, 8))
    return msgpack.unpackb(data[start : start + size], strict_map_key=False)


def runs(value):
    """Count the arrays that stand in runs."""
    if type(value) is dict:
        return sum(map(runs, value.values()))
    if type(value) is not list:
        return 0
    if value[0] == ARRAYS:
        return value[2]
    if value[0] == NAMED_ARRAYS:
        return len(value) - 2
    return sum(map(runs, value[1:]))


def runs_in(data):
    index = index_of(data)
    return runs([LIST, index["structure"], *index["shared"]])


def outcome(call):
    """Give what a call returns or raises, and what it warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = call()
        except Exception as error:
            result = type(error).__name__, str(error)
    return result, [str(warning.message) for warning in caught]


def load_both(tree, target=lambda: None, template=True, **options):
    """Load a tree from a file with runs and from one without: all has to be the same. The target is made twice."""
    with_runs, without = both(tree)
    assert runs_in(with_runs)
    assert not runs_in(without)
    found, expected = (outcome(lambda: bt.msgpack_loads(data, target(), **options)) for data in (with_runs, without))
    assert_same(expected, found, template=template, loaded=True)
    return found


def arrays(count=N, dtype="f4", start=0, shape=(3,)):
    return [np.full(shape, start + i, dtype) for i in range(count)]


def named(*args, **options):
    return dict(zip(NAMES, arrays(*args, **options), strict=True))


def jax_arrays(count=N, dtype="f4", start=0, shape=(3,)):
    return [jnp.asarray(array) for array in arrays(count, dtype, start, shape)]


def zeros(count=N, dtype="f4", shape=(3,)):
    return [np.zeros(shape, dtype) for _ in range(count)]


# --- containers -------------------------------------------------------------------------------------------------

Fields = collections.namedtuple("Fields", NAMES)
Data = dataclasses.make_dataclass("Data", NAMES)
Data.__module__ = __name__


@bt.serializable(name="many/Registered")
@dataclasses.dataclass
class Registered:
    arrays: Any


@bt.serializable(name="many/Open")
class Open:
    """Its fields are what its objects hold."""

    def __init__(self, **fields):
        vars(self).update(fields)


class Pairs:
    """Registered with a pair of functions."""

    def __init__(self, **fields):
        self.fields = fields


bt.msgpack_register_serialization(
    Pairs, lambda x: dict(x.fields), lambda target, state: Pairs(**state), name="many/Pairs"
)


@jax.tree_util.register_pytree_with_keys_class
class Bag:
    """A pytree of jax with any number of children."""

    def __init__(self, **fields):
        self.fields = fields

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.GetAttrKey(key), item) for key, item in self.fields.items()], tuple(self.fields)

    @classmethod
    def tree_unflatten(cls, names, children):
        return cls(**dict(zip(names, children, strict=True)))


#: name -> from a list of arrays to a container of them that has a run, and whether it comes back without a target
CONTAINERS = {
    "list": (list, True),
    "dict": (lambda x: dict(zip(NAMES, x, strict=True)), True),
    "tuple": (tuple, True),
    "deque": (lambda x: collections.deque(x, 40), True),
    "OrderedDict": (lambda x: collections.OrderedDict(zip(NAMES, x, strict=True)), True),
    "defaultdict": (lambda x: collections.defaultdict(list, zip(NAMES, x, strict=True)), True),
    "NestedDict": (lambda x: brainstate.util.NestedDict(zip(NAMES, x, strict=True)), True),
    "namedtuple": (Fields._make, True),
    "serializable": (Registered, True),
    "serializable with fields": (lambda x: Open(**dict(zip(NAMES, x, strict=True))), True),
    "State": (lambda x: brainstate.State(list(x)), True),
    "list subclass": (List, False),
    "tuple subclass": (Tuple, False),
    "dict subclass": (lambda x: Dict(zip(NAMES, x, strict=True)), False),
    "dataclass": (lambda x: Data(*x), False),
    "dataclass of jax": (JaxData, False),
    "pair of functions": (lambda x: Pairs(**dict(zip(NAMES, x, strict=True))), False),
    "pytree": (lambda x: Bag(**dict(zip(NAMES, x, strict=True))), False),
    "Partial": (lambda x: jax.tree_util.Partial(max, *x), False),
}


@pytest.mark.parametrize("make", [arrays, jax_arrays])
@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_of_many_arrays(name, make):
    around, itself = CONTAINERS[name]
    tree = {"a": around(make()), "b": [around(make(start=50))]}
    found, _ = load_both(tree, template=False)
    if itself:
        assert_same(tree, found, template=False, loaded=True)
    target = {"a": around(make(start=90)), "b": [around(make(start=90))]}
    assert_same(tree, bt.msgpack_loads(bt.msgpack_dumps(tree), target), loaded=True)
    load_both(tree, lambda: {"a": around(make(start=90)), "b": [around(make(start=90))]})
    with one_by_one():
        raw = bt.msgpack_loads(bt.msgpack_dumps(tree), raw=True)
    assert_same(raw, load_both(tree, raw=True)[0], loaded=True)


@pytest.mark.parametrize(("name", "other"), itertools.product(CONTAINERS, repeat=2))
def test_a_run_into_a_container_of_another_kind(name, other):
    tree = CONTAINERS[name][0](arrays())
    for mode in ("error", "warn"):
        load_both(tree, lambda: CONTAINERS[other][0](zeros()), mismatch=mode)


def test_a_list_as_a_dict_of_positions_and_the_other_way_round():
    positions = {str(i): array for i, array in enumerate(arrays())}
    assert_same(arrays(), load_both(positions, zeros)[0], loaded=True)
    assert_same(tuple(arrays()), load_both(positions, lambda: tuple(zeros()))[0], loaded=True)
    (name, _), _ = load_both(arrays(), lambda: dict(zip(positions, zeros(), strict=True)))
    assert name == "MismatchError"


def test_a_run_in_another_order_of_keys():
    target = dict(reversed(named(start=90).items()))
    found, _ = load_both({"x": named()}, lambda: {"x": dict(target)})
    assert list(found["x"]) == list(target)
    assert_same({"x": {key: named()[key] for key in target}}, found, loaded=True)


def test_arrays_of_several_shapes_and_dtypes_are_one_run():
    tree = [np.full(i % 3, i, ["<i2", ">i2", "f4", "f8", "?", "c8"][i % 6]) for i in range(60)]
    assert runs_in(bt.msgpack_dumps(tree)) == 60
    assert_same(tree, load_both(tree)[0], loaded=True)
    assert_same(tree, load_both(tree, lambda: blank_tree(tree))[0], loaded=True)


@pytest.mark.parametrize("count", [15, 16, 17])
def test_from_sixteen_arrays_on(count):
    assert runs_in(bt.msgpack_dumps(arrays(count))) == (count if count > 15 else 0)
    assert_same(arrays(count), bt.msgpack_loads(bt.msgpack_dumps(arrays(count))), loaded=True)


with warnings.catch_warnings():
    warnings.simplefilter("ignore", PendingDeprecationWarning)
    MATRICES = [np.matrix([[i, 2.0]]) for i in range(N)]

#: What is to be said of one by one.
ORDINARY = {
    "matrix": MATRICES,
    "masked": [np.ma.array([1.0, 2.0], mask=[i % 2, 1]) for i in range(N)],
    "bfloat16": arrays(dtype=ml_dtypes.bfloat16),
    "int4": [np.array([i % 8], ml_dtypes.int4) for i in range(N)],
    "records": [np.array([(i, 1)], [("a", "i4"), ("b", ">f2")]) for i in range(N)],
    "recarray": [np.array([(i, 1)], [("a", "i4"), ("b", "f4")]).view(np.recarray) for i in range(N)],
    "text": [np.array([f"a{i}"]) for i in range(N)],
    "strings": [np.array([f"a{i}"], np.dtypes.StringDType()) for i in range(N)],
    "times": [np.array([i], "M8[s]") for i in range(N)],
    "numpy scalars": [np.float32(i) for i in range(N)],
    "quantities": [array * u.mV for array in arrays()],
    "states": [brainstate.ParamState(array) for array in arrays()],
    "numpy and jax": arrays(10) + jax_arrays(10),
    "arrays and a matrix": [*arrays(), MATRICES[0]],
    "arrays and a number": [*arrays(), 1],
    "an int before": [None, *arrays()],
    "the same array twice": (lambda x: [*x, x[3]])(arrays()),
    "one array": [np.ones(2)] * N,
    "one jax array": [jnp.ones(2)] * N,
    "int keys": dict(enumerate(arrays())),
    "Str keys": {Str(key): array for key, array in named().items()},
    "a key that is no text": {"\ud800": np.ones(1), **named()},
    "FlattedDict": brainstate.util.FlattedDict({("a", key): array for key, array in named().items()}),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_what_is_no_run(name):
    tree = {"x": ORDINARY[name]}
    with_runs, without = both(tree)
    assert with_runs == without
    assert_same(tree, bt.msgpack_loads(with_runs, tree), loaded=True)


def test_a_memmap_in_a_run(tmp_path):
    mapped = np.memmap(tmp_path / "m", "f4", "w+", shape=(N, 3))
    mapped[:] = np.arange(N)[:, None]
    for tree in ([*arrays(), mapped[0]], [mapped[i] for i in range(N)]):
        plain = [np.array(array) for array in tree]
        assert_same(plain, bt.msgpack_loads(bt.msgpack_dumps(tree)), loaded=True)
        assert_same(plain, bt.msgpack_loads(bt.msgpack_dumps(plain), tree), loaded=True)


def test_jax_scalars_with_and_without_weak_types():
    tree = [jnp.asarray(float(i)) if i % 2 else jnp.float32(i) for i in range(N)]
    assert {array.weak_type for array in tree} == {False, True}
    assert_same(tree, load_both(tree)[0])
    target = [jnp.asarray(0.0) if i % 3 else jnp.float32(0) for i in range(N)]
    found, _ = load_both(tree, lambda: list(target))
    assert [(x.weak_type, float(x)) for x in found] == [(t.weak_type, float(x)) for t, x in zip(target, tree)]


def random_keys(shape=(), **options):
    return [jax.random.split(jax.random.key(i, **options), shape) if shape else jax.random.key(i) for i in range(N)]


@pytest.mark.parametrize("shape", [(), (2,)])
def test_many_random_keys(shape):
    tree = {"x": random_keys(shape)}
    data = bt.msgpack_dumps(tree)
    assert_same(tree, bt.msgpack_loads(data))
    assert_same(tree, bt.msgpack_loads(data, {"x": tree["x"][::-1]}))


def test_a_run_of_arrays_does_not_fit_random_keys():
    (name, _), _ = load_both(jax_arrays(), random_keys)
    assert name == "MismatchError"


def test_many_random_keys_from_a_file_without_runs():
    with one_by_one():
        data = bt.msgpack_dumps(random_keys())
    assert_same(random_keys(), bt.msgpack_loads(data, [jax.random.key(77) for _ in range(N)]))


class Reversed(dict):
    """A dict that is iterated over in another order than its values are given."""

    def __iter__(self):
        return reversed(list(super().__iter__()))


def test_a_dict_subclass_with_an_order_of_its_own():
    with_runs, without = both(Reversed(named()))
    for data in (without, with_runs):
        found = bt.msgpack_loads(data, Reversed(named(start=90)))
        assert_same(dict(named().items()), dict(found.items()), loaded=True)


Names = enum.StrEnum("Names", {key.upper(): key for key in NAMES})


@pytest.mark.parametrize("key", [Str, Names])
def test_keys_of_the_result_are_the_targets(key):
    target = {key(name): np.zeros(3, "f4") for name in NAMES}
    found, _ = load_both(named(), lambda: dict(target))
    assert list(map(type, found)) == [key] * N


# --- what is one object -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [arrays, jax_arrays])
def test_a_container_that_is_met_twice(make):
    shared, fields = make(), dict(zip(NAMES, make(start=30), strict=True))
    tree = {"a": shared, "b": [shared, fields], "c": fields, "d": (shared,)}
    assert_same(tree, load_both(tree)[0], loaded=True)
    target, its = make(start=60), dict(zip(NAMES, make(start=60), strict=True))
    found, _ = load_both(tree, lambda: {"a": target, "b": [target, its], "c": its, "d": (target,)})
    assert_same(tree, found, loaded=True)
    assert found["a"] is found["b"][0] is found["d"][0]
    assert found["b"][1] is found["c"]


@pytest.mark.parametrize("make", [arrays, jax_arrays])
def test_a_container_that_is_met_twice_into_two(make):
    shared = make()
    found, _ = load_both([shared, shared], lambda: [make(start=60), make(start=80)])
    assert_same([make(), make()], found, loaded=True)


@pytest.mark.parametrize("make", [arrays, jax_arrays])
def test_an_array_of_a_run_before_and_after_it(make):
    run = make()
    before, after = [run[3], run], [run, run[3]]
    assert not runs_in(bt.msgpack_dumps(before))
    assert runs_in(bt.msgpack_dumps(after)) == N
    for tree in (before, after):
        found = bt.msgpack_loads(bt.msgpack_dumps(tree))
        assert_same(tree, found, loaded=True)
        target = make(start=50)
        shared = [target[3], target] if tree is before else [target, target[3]]
        assert_same(tree, bt.msgpack_loads(bt.msgpack_dumps(tree), shared), loaded=True)
        apart = [make(start=70)[3], target] if tree is before else [target, make(start=70)[3]]
        found = bt.msgpack_loads(bt.msgpack_dumps(tree), apart)
        assert_same(tree, found, identity=False, loaded=True)


@pytest.mark.parametrize("make", [arrays, jax_arrays])
def test_two_containers_of_the_same_arrays(make):
    run = make()
    tree = {"a": run, "b": tuple(run), "c": dict(zip(NAMES, run, strict=True))}
    assert runs_in(bt.msgpack_dumps(tree)) == N
    assert_same(tree, bt.msgpack_loads(bt.msgpack_dumps(tree)), loaded=True)
    target = make(start=50)
    shared = {"a": target, "b": tuple(target), "c": dict(zip(NAMES, target, strict=True))}
    assert_same(tree, bt.msgpack_loads(bt.msgpack_dumps(tree), shared), loaded=True)


def test_one_array_that_the_target_has_before_the_run():
    run, target = arrays(), arrays(start=50)
    found, _ = load_both({"run": run, "one": run[0]}, lambda: {"one": target[0], "run": target})
    assert found["one"] is found["run"][0]


def test_one_array_of_a_run_of_which_another_is_cast():
    run, target = arrays(), arrays(start=50)
    target[5] = target[5].astype("f8")
    found, _ = load_both({"run": run, "one": run[0]}, lambda: {"run": target, "one": target[0]})
    assert found["one"] is found["run"][0]


@pytest.mark.parametrize("make", [arrays, jax_arrays])
def test_one_array_that_the_target_has_before_the_run_and_nowhere_else(make):
    run = make()
    found, _ = load_both({"run": run, "one": run[0]}, lambda: {"one": make()[7], "run": make(start=50)})
    assert_same({"one": run[0], "run": run}, found, identity=False, loaded=True)
    if make is arrays:
        found["one"][:] = 99
        assert_same(run, found["run"], loaded=True)


def test_one_jax_array_that_the_target_has_before_the_run():
    run, target = jax_arrays(), jax_arrays(start=50)
    found, _ = load_both({"run": run, "one": run[0]}, lambda: {"one": target[0], "run": target})
    assert found["one"] is found["run"][0]


@pytest.mark.parametrize("make", [arrays, jax_arrays])
def test_one_target_for_all(make):
    target = make()[0]
    found, _ = load_both({"a": make(), "b": make(start=30)}, lambda: {"a": [target] * N, "b": [target] * N})
    assert_same({"a": make(), "b": make(start=30)}, found, loaded=True)


@pytest.mark.parametrize("kind", ["matrix", "recarray"])
def test_an_array_of_a_subclass_that_is_met_twice(kind):
    tree = [ORDINARY[kind][0], {"again": ORDINARY[kind][0]}]
    assert_same(tree, bt.msgpack_loads(bt.msgpack_dumps(tree)), loaded=True)


def test_states_that_hold_runs():
    state = brainstate.State(named())
    tree = {"a": state, "b": [state, brainstate.State(arrays())]}
    assert_same(tree, load_both(tree)[0])
    target = brainstate.State(named(start=50))
    other = brainstate.State(arrays(start=60))
    found = bt.msgpack_loads(bt.msgpack_dumps(tree), {"a": target, "b": [target, other]})
    assert found["a"] is found["b"][0] is target
    assert found["b"][1] is other
    assert_same(tree, found)


def test_a_module_of_many_states():
    class Net(brainstate.nn.Module):
        def __init__(self, start):
            super().__init__()
            for key, array in zip(NAMES, jax_arrays(start=start), strict=True):
                setattr(self, key, brainstate.ParamState(array))
            self.grouped = brainstate.State(named(start=start))

    saved, target = Net(0), Net(40)
    assert bt.msgpack_loads(bt.msgpack_dumps(saved), target) is target
    assert_same(saved, target)
    states = Net(60)
    assert_same(saved.states(), load_both(saved.states(), states.states)[0])
    assert_same(saved, states)


# --- mismatches -------------------------------------------------------------------------------------------------

WRONG = {
    "shape": (np.zeros(4, "f4"), "Array shape mismatch: expected float32[4], got float32[3] at path net/{}"),
    "dtype": (np.zeros(3, "i4"), "Array dtype mismatch: expected int32[3], got float32[3] at path net/{}"),
    "text": (np.zeros(3, "U1"), "Array dtype mismatch: expected <U1[3], got float32[3] at path net/{}"),
    "kind": ({"a": 1}, "Container mismatch: expected a dict, got float32[3] at path net/{}"),
    "scalar": (1.5, "Leaf mismatch: expected float, got float32[3] at path net/{}"),
    "unit": (np.zeros(3, "f4") * u.mV, "Unit mismatch: expected mV, got no unit: float32[3] at path net/{}"),
    "jax shape": (jnp.zeros((3, 1), "f4"), "Array shape mismatch: expected float32[3, 1], got float32[3] at path net/"),
}


@pytest.mark.parametrize("around", [list, tuple, lambda x: dict(zip(NAMES, x, strict=True)), Fields._make])
@pytest.mark.parametrize("wrong", WRONG)
def test_one_leaf_that_does_not_fit(wrong, around):
    leaf, text = WRONG[wrong]
    saved = arrays(start=0.5)
    target = zeros()
    target[7] = leaf
    path = NAMES[7] if hasattr(around(target), "_fields") or type(around(target)) is dict else 7
    text = text.format(path)
    (name, message), _ = load_both({"net": around(saved)}, lambda: {"net": around(target)})
    assert name == "MismatchError"
    assert message.startswith(text)
    expected = [*saved[:7], leaf, *saved[8:]]
    found, caught = load_both({"net": around(saved)}, lambda: {"net": around(target)}, mismatch="warn")
    assert_same({"net": around(expected)}, found, loaded=True)
    assert len(caught) == 1
    assert caught[0].startswith(text)
    found, caught = load_both({"net": around(saved)}, lambda: {"net": around(target)}, mismatch="ignore")
    assert_same({"net": around(expected)}, found, loaded=True)
    assert not caught


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("mode", ["error", "warn", "ignore"])
def test_leaves_that_are_missing_or_unexpected(mode, partial):
    saved = named()
    fewer = {key: np.zeros(3, "f4") for key in NAMES[:-2]}
    more = {**{key: np.zeros(3, "f4") for key in NAMES}, "new": np.ones(1)}
    options = {"mismatch": mode, "partial": partial}
    found, caught = load_both({"x": saved}, lambda: {"x": dict(fewer)}, **options)
    if mode == "error" and not partial:
        assert "state dict contains keys {'k18', 'k19'} which are not present in target dict at path x" in found[1]
    else:
        assert_same({"x": {key: saved[key] for key in fewer}}, found, loaded=True)
        assert len(caught) == (mode == "warn" and not partial)
    found, caught = load_both({"x": saved}, lambda: {"x": dict(more)}, **options)
    if mode == "error":
        assert "target dict contains keys {'new'} which are not present in state dict at path x" in found[1]
    else:
        assert_same({"x": {**saved, "new": np.ones(1)}}, found, loaded=True)
        assert len(caught) == (mode == "warn")
    for count in (N - 1, N + 1):
        found, caught = load_both({"x": arrays()}, lambda: {"x": zeros(count)}, **options)
        if (count > N or not partial) and mode == "error":
            assert f"do not match, got {count} and {N} at path x" in found[1]
        else:
            kept = zeros(1) if count > N else []
            assert_same({"x": [*arrays(min(count, N)), *kept]}, found, loaded=True)


@pytest.mark.parametrize("kind", ["numpy", "jax"])
@pytest.mark.parametrize("mode", ["error", "warn", "ignore"])
def test_one_value_that_does_not_survive_a_cast(kind, mode):
    saved = [np.full(3, i, "i8") for i in range(N)]
    saved[11][1] = 2**24 + 1
    make = jnp.asarray if kind == "jax" else np.array
    target = [make(array) for array in arrays(start=50)]
    found, caught = load_both({"x": [saved]}, lambda: {"x": [target]}, mismatch=mode)
    text = "Array dtype mismatch: expected float32[3], got int64[3] with values that do not survive the cast"
    text += " at path x/0/11"
    if mode == "error":
        assert found[0] == "MismatchError"
        assert found[1].startswith(text)
        return
    expected = [make(array) for array in arrays()]
    expected[11] = target[11]
    assert_same({"x": [expected]}, found, loaded=True)
    assert found["x"][0][11] is target[11]
    assert len(caught) == (mode == "warn")
    assert all(message.startswith(text) for message in caught)


def test_all_mismatches_of_a_run_in_one_error():
    target = zeros()
    target[3], target[9] = np.zeros(4, "f4"), np.zeros((1, 3), "f4")
    with pytest.raises(MismatchError) as caught:
        bt.msgpack_loads(bt.msgpack_dumps({"x": arrays()}), {"x": target})
    assert [(m.path, m.kind) for m in caught.value.mismatches] == [(("x", 3), "shape"), (("x", 9), "shape")]
    assert_same(np.zeros(4, "f4"), target[3])


def test_a_state_keeps_its_value_when_a_leaf_of_a_run_does_not_fit():
    state, other = brainstate.State(zeros()), brainstate.State({**named(), "k3": np.zeros(9)})
    before = list(state.value)
    with pytest.raises(MismatchError):
        bt.msgpack_loads(bt.msgpack_dumps({"a": arrays(), "b": named()}), {"a": state, "b": other})
    assert all(one is two for one, two in zip(before, state.value, strict=True))
    assert_same(zeros(), state.value)


@pytest.mark.parametrize("target", [None, "struct", "wide"])
def test_doubles_that_have_to_become_jax_arrays(target):
    saved = {"a": arrays(), "x": [arrays(dtype="f8")]}
    leaf = jax.ShapeDtypeStruct((3,), "f8")
    if target == "wide":
        with jax.enable_x64(True):
            leaf = jnp.zeros(3, "f8")
    options = {"arrays": "jax"} if target is None else {}
    goal = None if target is None else {"a": zeros(), "x": [[leaf] * N]}
    for many in (2, HUGE):
        with taken_in(many):
            (name, text), _ = load_both(saved, lambda: goal, **options)
        assert name == PrecisionError.__name__
        assert text.startswith("Cannot load float64[3] at path x/0/0 as a jax array without losing precision")


def test_doubles_with_64_bits():
    saved = {"x": arrays(dtype="f8")}
    with jax.enable_x64(True), taken_in(2):
        found, _ = load_both(saved, arrays="jax")
        assert_same({"x": [jnp.asarray(array) for array in saved["x"]]}, found)


# --- targets of other kinds -------------------------------------------------------------------------------------


def test_a_run_of_numbers_into_numbers():
    saved = [np.array(i, "f4") for i in range(N)]
    assert_same([float(i) for i in range(N)], load_both(saved, lambda: [0.5] * N)[0])
    whole = [np.array(i, "i2") for i in range(N)]
    assert_same(list(range(N)), load_both(whole, lambda: [1] * N)[0])
    assert_same([np.float64(i) for i in range(N)], load_both(saved, lambda: [np.float64(7)] * N)[0])
    mixed = [[0.5, np.float32(1), np.array(1.0), jnp.float32(2)][i % 4] for i in range(N)]
    expected = [[float(i), np.float32(i), np.array(float(i)), jnp.float32(i)][i % 4] for i in range(N)]
    assert_same(expected, load_both(saved, lambda: list(mixed))[0], loaded=True)


def test_a_run_into_structs():
    saved = arrays()
    found, _ = load_both({"x": saved}, lambda: {"x": [jax.ShapeDtypeStruct((3,), "f4")] * N})
    assert_same({"x": jax_arrays()}, found)
    for mode in ("error", "warn", "ignore"):
        wrong = [jax.ShapeDtypeStruct((4,) if i == 5 else (3,), "f4") for i in range(N)]
        (name, text), _ = load_both({"x": saved}, lambda: {"x": list(wrong)}, mismatch=mode)
        assert name == "MismatchError"
        assert "Array shape mismatch: expected float32[4], got float32[3] at path x/5" in text


def test_a_run_into_quantities_and_states():
    plain = [array * u.UNITLESS for array in zeros()]
    found, _ = load_both(arrays(), lambda: list(plain))
    assert_same([u.Quantity(array, unit=u.UNITLESS) for array in arrays()], found)
    (name, _), _ = load_both(arrays(), lambda: [array * u.mV for array in zeros()])
    assert name == "MismatchError"
    for data in both(named()):
        target = {key: brainstate.ParamState(array) for key, array in named(start=9).items()}
        states = list(target.values())
        found = bt.msgpack_loads(data, target)
        assert all(one is two for one, two in zip(found.values(), states, strict=True))
        assert_same(named(), {key: state.value for key, state in found.items()}, loaded=True)


def test_a_run_into_arrays_of_other_dtypes_and_libraries():
    for dtype, make in itertools.product(["f2", "f8", ">f4", "c8"], [np.array, jnp.asarray]):
        dtype = np.dtype("f4" if make is jnp.asarray and dtype == "f8" else dtype)
        if make is jnp.asarray and dtype.byteorder == ">":
            continue
        target = [make(array) for array in zeros(dtype=dtype)]
        found, _ = load_both(arrays(), lambda: list(target))
        assert_same([make(array) for array in arrays(dtype=dtype)], found, loaded=True)
    back, _ = load_both(jax_arrays(), zeros)
    assert_same(arrays(), back, loaded=True)


def test_committed_and_deleted_targets():
    device = jax.devices()[0]
    committed = [jax.device_put(array, device) if i == 4 else jnp.asarray(array) for i, array in enumerate(zeros())]
    for many in (2, HUGE):
        with taken_in(many):
            found, _ = load_both(arrays(), lambda: list(committed))
        assert [array.committed for array in found] == [i == 4 for i in range(N)]
        assert_same(jax_arrays(), found)
    gone = [jnp.asarray(array) for array in zeros()]
    gone[2].delete()
    assert_same(jax_arrays(), load_both(arrays(), lambda: list(gone))[0])


def test_a_deleted_or_donated_array_is_told_by_its_path():
    gone = jax_arrays()
    gone[2].delete()
    for ordinary in (contextlib.nullcontext(), one_by_one()):
        with ordinary, pytest.raises(SerializationError, match="array at path x/2: it has been deleted or donated"):
            bt.msgpack_dumps({"x": gone})


def test_an_object_array_is_told_by_its_path():
    for wrong in (np.array([None]), np.array([1, "a"], object)):
        tree = {"x": {**named(), "y": wrong}}
        for ordinary in (contextlib.nullcontext(), one_by_one()):
            with ordinary, pytest.raises(SerializationError, match="Cannot save the object array at path x/y"):
                bt.msgpack_dumps(tree)


# --- options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["saved", "numpy", "jax"])
def test_the_library_of_arrays(kind):
    tree = {"a": arrays(), "b": jax_arrays(), "c": tuple(arrays(dtype=">i2"))}
    found, _ = load_both(tree, arrays=kind)
    a = jax_arrays() if kind == "jax" else arrays()
    b = arrays() if kind == "numpy" else jax_arrays()
    assert_same({"a": a, "b": b, "c": tuple(arrays(dtype=">i2"))}, found, loaded=True)


def test_state_dicts():
    tree = {"a": arrays(), "b": {"c": named()}, "d": Fields._make(arrays())}
    with one_by_one():
        expected = bt.msgpack_to_state_dict(tree)
    state = bt.msgpack_to_state_dict(tree)
    assert_same(expected, state)
    assert all(one is two for one, two in zip(state["a"].values(), tree["a"], strict=True))
    target = {"a": zeros(), "b": {"c": named(start=9)}, "d": Fields._make(zeros())}
    for source in (state, tree):
        found = bt.msgpack_from_state_dict(target, source)
        assert_same(tree, found, loaded=True)
        for one, two in zip(found["a"], tree["a"], strict=True):
            assert not np.shares_memory(one, two)
    state["a"]["3"] = np.zeros(7, "f4")
    with pytest.raises(MismatchError, match=r"expected float32\[3\], got float32\[7\] at path net/a/3"):
        bt.msgpack_from_state_dict(target, state, name="net")


def test_files_of_flax():
    tree = {"a": arrays(), "b": {"c": named()}, "j": tuple(jax_arrays())}
    with_runs, without = both(tree, format="flax")
    assert with_runs == without
    target = {"a": zeros(), "b": {"c": named(start=9)}, "j": tuple(jax_arrays(start=9))}
    assert_same(tree, bt.msgpack_loads(with_runs, target), loaded=True)


@pytest.mark.parametrize("how", ["one", "whole", "function", "out of a list"])
def test_parts_that_move(how):
    tree = {"net": {"d": named(), "l": arrays()}, "x": np.ones(1)}
    moved: dict[str, Any] = {"net": {"d": named(), "l": arrays()}, "x": np.ones(1)}
    if how == "one":
        renames = {"net/d/k3": "net/d/new"}
        moved["net"]["d"]["new"] = moved["net"]["d"].pop("k3")
    elif how == "whole":
        renames = {"net/d": "other", "net/l": "net/m"}
        moved["other"] = moved["net"].pop("d")
        moved["net"]["m"] = moved["net"].pop("l")
    elif how == "function":

        def renames(path):
            return path.replace("k1", "q1")

        moved["net"]["d"] = {key.replace("k1", "q1"): array for key, array in moved["net"]["d"].items()}
    else:
        renames = {"net/l/2": "two"}
        moved["two"] = moved["net"]["l"].pop(2)
        moved["net"]["l"] = {str(i): array for i, array in zip([0, 1, *range(3, N)], moved["net"]["l"])}
    found, _ = load_both(tree, lambda: blank_tree(moved), rename=renames)
    assert_same(moved, found, loaded=True)
    load_both(tree, rename=renames)
    with_runs, _ = both(tree)
    with pytest.raises(ValueError, match="names the path 'net/d/k33'.*Did you mean 'net/d/k3'"):
        bt.msgpack_loads(with_runs, rename={"net/d/k33": "a"})


def test_partial_and_rename_together():
    target = {"one": np.zeros(3, "f4"), "rest": {"k5": np.zeros(3, "f4")}}
    found, _ = load_both({"d": named()}, lambda: blank_tree(target), partial=True, rename={"d/k1": "one", "d": "rest"})
    assert_same({"one": named()["k1"], "rest": {"k5": named()["k5"]}}, found, loaded=True)


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("mmap", [False, True])
def test_files(tmp_path, mmap, compression):
    tree = {"a": arrays(3000), "b": jax_arrays(600), "c": arrays(N, shape=(20_000,)), "d": arrays(N, dtype=">f8")}
    name = bt.msgpack_save(tmp_path / "f", tree, durable=False, compression=compression)
    before = Path(name).read_bytes()
    for target in (None, blank_tree(tree)):
        found = bt.msgpack_load(name, target, mmap=mmap)
        again = bt.msgpack_load(name, target, mmap=mmap)
        assert_same(tree, found, loaded=True)
        for key in "acd":
            for array in found[key]:
                array[...] = 7
        assert_same(tree, again, loaded=True)
    assert Path(name).read_bytes() == before
    with bt.open_checkpoint(name, mmap=mmap) as checkpoint:
        checkpoint.verify()
        one, two = checkpoint.load(blank_tree(tree)), checkpoint.load()
        one["a"][0][:] = 5
        assert_same(tree, two, loaded=True)
    assert_same(tree, two, loaded=True)


def test_a_damaged_byte_is_told_with_the_path_of_its_array():
    data = bytearray(bt.msgpack_dumps({"x": arrays(N, shape=(20_000,))}))
    at = data.index(np.float32(13).tobytes() * 20_000) + 40
    data[at] ^= 1
    with pytest.raises(bt.CorruptCheckpointError, match=r"\(x/13\)"):
        bt.msgpack_loads(bytes(data))
    with pytest.raises(bt.CorruptCheckpointError, match=r"\(x/13\)"):
        bt.msgpack_loads(bytes(data), {"x": zeros(shape=(20_000,))})
    with bt.open_checkpoint(io.BytesIO(bytes(data))) as checkpoint:
        assert checkpoint["x/12"][0] == 12
        with pytest.raises(bt.CorruptCheckpointError, match=r"\(x/13\)"):
            checkpoint["x/13"]
        with pytest.raises(bt.CorruptCheckpointError, match=r"\(x/13\)"):
            checkpoint.verify()


def test_runs_and_units_in_metadata():
    kept = {"arrays": arrays(), "named": named(), "unit": u.mV, "twice": [3 * u.mV, 4 * u.mV, u.mV]}
    data = bt.msgpack_dumps({"x": arrays()}, metadata=kept)
    assert not runs([LIST, *index_of(data)["metadata"].values()])
    with bt.open_checkpoint(io.BytesIO(data)) as checkpoint:
        assert_same(kept, checkpoint.metadata)


# --- looking into a file ----------------------------------------------------------------------------------------

ODD = [
    "",
    "0",
    "a/b",
    "it's",
    'q"',
    "é",
    "1e5",
    "None",
    "True",
    ".",
    "..",
    " ",
    "a b",
    "(1, 2)",
    "b'x'",
    "[",
    "<",
    "\\",
]
ODD += [
    "\n",
    "'a'",
    '"',
    "\U0001f600",
    "nan",
    "-1",
    "a.b",
    "/",
    "'\"",
    "1",
    "01",
    "\u0663",
    "\0",
    "a\\",
    "{}",
    "x" * 300,
]


@pytest.mark.parametrize("prefix", [(), ("r",), ("r", 3)])
def test_odd_keys_are_found(prefix):
    tree: Any = {key: np.full((2, 2), i, "f4") for i, key in enumerate(ODD)}
    for key in reversed(prefix):
        tree = {key: tree} if key == "r" else [0, 1, 2, tree]
    data, ordinary = both(tree)
    assert runs_in(data) == len(ODD)
    with bt.open_checkpoint(io.BytesIO(ordinary)) as checkpoint:
        expected = checkpoint.paths
        specs = {path: str(spec) for path, spec in checkpoint.specs.items()}
    with bt.open_checkpoint(io.BytesIO(data)) as listed:
        assert listed.paths == expected
        assert {path: str(spec) for path, spec in listed.specs.items()} == specs
        fresh = bt.open_checkpoint(io.BytesIO(data))
        for i, (path, key) in enumerate(zip(expected[-len(ODD) :], ODD, strict=True)):
            for checkpoint, name in itertools.product((fresh, listed), (path, (*prefix, key))):
                assert name in checkpoint
                assert_same(np.full((2, 2), i, "f4"), checkpoint[name], loaded=True)
                assert_same(np.full(2, i, "f4"), checkpoint.read(name, 1), loaded=True)
        assert fresh._values is None  # nothing was listed for it
        fresh.close()


MISSING = [
    "r/k99",
    "l/20",
    "l/-1",
    "l/01",
    "l/'0'",
    "l/\u0663",
    "l/1 ",
    "r/k1/x",
    "l/0/0",
    "r/",
    "/r",
    "l/+1",
    "r/k1\n",
]
MISSING += ["l/" + "9" * 5000, "r/'k1", "r/0", "l/k1", "e/0", "x/None"]


def test_paths_that_are_not_there():
    tree = {"r": named(), "l": arrays(), "e": [], "x": None}
    for data, path in itertools.product(both(tree), MISSING):
        with bt.open_checkpoint(io.BytesIO(data)) as checkpoint:
            assert path not in checkpoint
            with pytest.raises(KeyError):
                checkpoint[path]
            with pytest.raises(KeyError):
                checkpoint.read(path)
            with pytest.raises(KeyError):
                checkpoint.specs[path]


def test_containers_and_quoted_keys_are_found():
    tree = {"r": named(), "l": arrays(), "t": (jax_arrays(), 1)}
    for data in both(tree):
        with bt.open_checkpoint(io.BytesIO(data)) as checkpoint:
            assert_same(tree["r"], checkpoint["r"], loaded=True)
            assert_same(tree["l"], checkpoint[("l",)], loaded=True)
            assert_same(tree["t"], checkpoint["t"], loaded=True)
            assert_same(tree, checkpoint["."], loaded=True)
            assert_same(tree["r"]["k1"], checkpoint["r/'k1'"], loaded=True)
            assert len(checkpoint) == 3 * N + 1
            with pytest.raises(TypeError, match=f"it holds {N} items"):
                checkpoint.read("r")
            with pytest.raises(IndexError):
                checkpoint.read("l/3", 3)


def test_a_run_that_stands_in_several_places_is_listed_once():
    run = arrays()
    for data in both({"a": run, "b": [run], "c": named()}):
        with bt.open_checkpoint(io.BytesIO(data)) as checkpoint:
            assert checkpoint.paths == [*(f"a/{i}" for i in range(N)), "b/0", *(f"c/{key}" for key in NAMES)]
            assert str(checkpoint.specs["b/0"]) == "same as a"
            assert_same(run, checkpoint["b/0"], loaded=True)
            assert "b/0/3" in checkpoint
            assert_same(run[3], checkpoint["b/0/3"], loaded=True)


def test_an_empty_run_is_an_empty_list():
    with bt.open_checkpoint(io.BytesIO(forge([LIST, [ARRAYS, 0, 0], [LIST]]))) as checkpoint:
        assert [spec.kind for spec in checkpoint.specs.values()] == ["empty list"] * 2


def test_keys_that_are_written_alike_do_not_multiply():
    nan, levels = float("nan"), 12
    data = forge([REF, levels], shared=[1, *([ITEMS, nan, [REF, i], nan, [REF, i]] for i in range(levels))])
    with bt.open_checkpoint(io.BytesIO(data)) as checkpoint:
        opened = mock.Mock(wraps=checkpoint._view._open)
        with mock.patch.object(checkpoint._view, "_open", opened):
            assert "/".join(["nan"] * levels + ["x"]) not in checkpoint
    assert opened.call_count < 20 * levels


# --- versions ---------------------------------------------------------------------------------------------------


def test_upgrades_of_classes_with_many_arrays():
    def declare(version, upgrade=None):
        @bt.serializable(name="many/Versioned", version=version, upgrade=upgrade, override=version > 1)
        class Versioned(Open):
            pass

        return Versioned

    first = declare(1)
    plain = both(first(**named()))
    nested_trees = both(first(inner=named(), items=arrays(), other=Layer(named())))
    assert all(map(runs_in, (plain[0], nested_trees[0])))

    def upgrade(old):
        return {**{key.replace("k", "w"): item for key, item in old.items()}, "new": np.ones(2)}

    second = declare(2, {1: upgrade})
    renamed = {key.replace("k", "w"): array for key, array in named().items()}
    for data in plain:
        assert_same(vars(second(**renamed, new=np.ones(2))), vars(bt.msgpack_loads(data)), loaded=True)
        target = second(**{key: np.zeros(3, "f4") for key in renamed}, new=np.zeros(2))
        assert_same({**renamed, "new": np.ones(2)}, vars(bt.msgpack_loads(data, target)), loaded=True)
        target.w3 = np.zeros(4, "f4")
        with pytest.raises(MismatchError, match=r"expected float32\[4\], got float32\[3\] at path w3"):
            bt.msgpack_loads(data, target)
    for data in nested_trees:
        target = second(inner=named(start=9), items=zeros(), other=Layer(named(start=9)), new=np.zeros(2))
        expected = {"inner": named(), "items": arrays(), "other": Layer(named()), "new": np.ones(2)}
        assert_same(expected, vars(bt.msgpack_loads(data, target)), loaded=True)


def test_upgrades_of_classes_with_functions():
    def declare(version, upgrade=None):
        bt.msgpack_register_serialization(
            Old, lambda x: dict(x.fields), lambda target, state: Old(**state), True, version=version, upgrade=upgrade
        )

    class Old(Pairs):
        pass

    declare(1)
    files = both([Old(**named()), 1])
    declare(2, {1: lambda old: {f"x{key}": array for key, array in old.items()}})
    for data in files:
        found = bt.msgpack_loads(data, [Old(), 0])
        assert_same({f"x{key}": array for key, array in named().items()}, found[0].fields, loaded=True)


# --- how arrays lie, and whose they are --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f4", ">f8", "?", "c16", "u1", np.longdouble])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_in_every_order(layout, dtype):
    shapes = [(2, 3), (4, 1, 2), (), (0, 3)]
    tree = [lay_out(np.full(shape, i, dtype), layout) for i, shape in enumerate(shapes * 5)]
    found, _ = load_both(tree)
    assert_same(tree, found, loaded=True)
    assert_same(
        tree, load_both(tree, lambda: [lay_out(np.zeros(x.shape, dtype), layout) for x in tree])[0], loaded=True
    )


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,) * 63])
def test_shapes(shape):
    tree = {"n": arrays(shape=shape), "j": tuple(jax_arrays(shape=shape))}
    for many in (2, HUGE):
        with taken_in(many):
            assert_same(tree, load_both(tree)[0], loaded=True)
            assert_same(tree, load_both(tree, lambda: blank_tree(tree))[0], loaded=True)


def test_an_array_of_as_many_dimensions_as_numpy_has():
    array = np.ones((1,) * 64)
    assert_same(array, bt.msgpack_loads(bt.msgpack_dumps(array)), loaded=True)


def memory_of(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, np.ndarray)]


@pytest.mark.parametrize("way", ["plain", "target", "cast", "jax file", "state dict", "raw"])
def test_results_share_no_memory(way):
    saved = {"a": arrays(), "b": named(start=30), "c": arrays(dtype="f8", start=60)}
    expected = {key: list(part.values()) if type(part) is dict else part for key, part in saved.items()}
    target = {"a": zeros(), "b": named(start=90), "c": zeros(dtype="f8")}
    if way == "cast":
        target["c"] = zeros(dtype="f4")
    if way == "state dict":
        found = bt.msgpack_from_state_dict(target, saved)
    else:
        tree = jax.tree.map(jnp.asarray, saved) if way == "jax file" else saved
        options = {"raw": True} if way == "raw" else {}
        found = bt.msgpack_loads(
            bt.msgpack_dumps(tree), target if way in ("target", "cast", "jax file") else None, **options
        )
    results = memory_of(found)
    for i, array in enumerate(results):
        assert array.flags.writeable
        array[...] = -i
    assert [array.flat[0] for array in results] == [-i for i in range(len(results))]
    for array in results:
        assert not any(np.shares_memory(array, other) for other in memory_of([saved, target]))
    assert expected["a"][3][0] == 3


def test_what_is_loaded_outlives_everything(tmp_path):
    for mmap, many in itertools.product((False, True), (2, HUGE)):
        tree = {"n": arrays(100), "j": jax_arrays(100), "big": jax_arrays(N, shape=(20_000,))}
        name = bt.msgpack_save(tmp_path / "f", tree, durable=False)
        with taken_in(many):
            found = bt.msgpack_load(name, mmap=mmap)
        os.unlink(name)
        kept = found["j"][57], found["big"][3], found["n"][31]
        for array in (*found["j"], *found["big"]):
            if array is not kept[0] and array is not kept[1]:
                array.delete()
        for array in found["n"]:
            if array is not kept[2]:
                array[:] = np.nan
        del found, array, tree
        gc.collect()
        garbage = [np.full(2000, np.nan, "f4") for _ in range(200)]
        expected = jnp.full(3, 57, "f4"), jnp.full(20_000, 3, "f4"), np.full(3, 31, "f4")
        assert_same(tuple(map(np.asarray, expected)), tuple(map(np.asarray, kept)))
        del garbage


def test_donating_one_leaves_the_others(tmp_path):
    for mmap, many in itertools.product((False, True), (2, HUGE)):
        name = bt.msgpack_save(tmp_path / "f", jax_arrays(100, shape=(64,)), durable=False)
        before = Path(name).read_bytes()
        with taken_in(many):
            found = bt.msgpack_load(name, mmap=mmap)
        add = jax.jit(lambda x: x + 1, donate_argnums=0)
        changed = [add(array) for array in found[::2]]
        assert_same(jax_arrays(100, shape=(64,))[1::2], found[1::2])
        assert_same(jax_arrays(100, start=1, shape=(64,))[::2], changed)
        assert Path(name).read_bytes() == before


def test_a_save_in_the_background_has_the_values_of_the_call(tmp_path):
    tree = {"x": arrays(1000), "y": jax_arrays(1000)}
    name = str(tmp_path / "f")
    with bt.AsyncManager() as manager:
        bt.msgpack_save(name, tree, async_manager=manager, durable=False)
        for array in tree["x"]:
            array[:] = -1
        for array in tree["y"]:
            array.delete()
    assert_same({"x": arrays(1000), "y": jax_arrays(1000)}, bt.msgpack_load(name), loaded=True)


def test_nothing_of_the_callers_changes():
    tree, target = {"a": named(), "l": arrays()}, {"a": named(start=50), "l": arrays(start=60)}
    lists = tree["l"], target["l"]
    before = [list(one) for one in lists]
    found = bt.msgpack_loads(bt.msgpack_dumps(tree), target)
    assert_same({"a": named(), "l": arrays()}, tree)
    assert_same({"a": named(start=50), "l": arrays(start=60)}, target)
    assert all(x is y for one, old in zip(lists, before) for x, y in zip(one, old, strict=True))
    assert found["l"] is not target["l"]
    assert found["a"] is not target["a"]


# --- many small jax arrays at once --------------------------------------------------------------------------------


def facts(arrays_):
    return [(x.sharding, x.committed, x.weak_type, str(x.aval), np.asarray(x).tobytes()) for x in arrays_]


@pytest.mark.parametrize("dtype", JAX_DTYPES, ids=str)
def test_every_dtype_is_identity(dtype):
    tree = [jnp.asarray(np.array([0, 1, i % 2]).astype(dtype)) for i in range(70)]
    data = bt.msgpack_dumps(tree)
    with taken_in(2):
        assert_same(tree, bt.msgpack_loads(data))
        assert_same(tree, bt.msgpack_loads(data, tree))


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 34, 65, 66])
def test_any_number_is_identity(count):
    tree = [jnp.asarray(float(i)) if i % 3 == 0 else jnp.asarray([i, 1]) for i in range(count)]
    with taken_in(2):
        assert_same(tree, bt.msgpack_loads(bt.msgpack_dumps(tree)))


CONTEXTS = {
    "disable_jit": jax.disable_jit,
    "debug_nans": lambda: jax.debug_nans(True),
    "debug_infs": lambda: jax.debug_infs(True),
    "disallow": lambda: jax.transfer_guard("disallow"),
    "log": lambda: jax.transfer_guard("log"),
    "disallow to device": lambda: jax.transfer_guard_host_to_device("disallow"),
    "disallow explicit": lambda: jax.transfer_guard("disallow_explicit"),
    "default_device": lambda: jax.default_device(jax.devices()[0]),
    "default_device by name": lambda: jax.default_device("cpu"),
    "mesh": lambda: jax.set_mesh(jax.make_mesh((1,), ("x",))),
    "auto mesh": lambda: jax.set_mesh(jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))),
    "x64": lambda: jax.enable_x64(True),
    "strict promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "checks": lambda: jax.enable_checks(True),
    "leaks": jax.checking_leaks,
    "compile time": jax.ensure_compile_time_eval,
    "no tracing": lambda: jax.no_tracing(True),
    "no execution": lambda: jax.no_execution(True),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_what_is_set_while_arrays_are_identity(name):
    rest = [1.0] * list(CONTEXTS).index(name)  # a shape of its own, for which nothing is compiled yet
    tree = [jnp.array([i, jnp.nan, jnp.inf, *rest], "f4") for i in range(70)]
    data = bt.msgpack_dumps(tree)
    found = []
    for many in (HUGE, 2):
        with taken_in(many), CONTEXTS[name]():
            result = outcome(lambda: bt.msgpack_loads(data))[0]
        found.append(facts(result) if type(result) is list else result)
    assert found[0] == found[1]


@pytest.mark.parametrize("around", [jax.jit, jax.vmap, jax.grad, lambda f: lambda x: jax.eval_shape(f, x)])
def test_while_jax_is_tracing(around):
    data = bt.msgpack_dumps(jax_arrays(70))

    def function(x):
        return x * sum(bt.msgpack_loads(data)[-3:]).sum()

    argument = jnp.arange(3.0) if around is jax.vmap else 2.0
    found = []
    for many in (HUGE, 2):
        with taken_in(many):
            found.append(around(lambda x: function(x))(argument))  # noqa: PLW0108  (a new function each time)
    assert str(found[0]) == str(found[1])


DEVICES = """
    import contextlib, itertools, sys
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
    from unittest import mock
    import braintools_ckpt as bt
    from braintools_ckpt.adapters import jax as adapter

    devices = jax.devices()
    assert len(devices) == 4
    over = NamedSharding(Mesh(np.array(devices), ("x",)), P("x"))
    copies = NamedSharding(Mesh(np.array(devices), ("x",)), P())
    zero = np.zeros(4, "f4")
    saved = [np.full(4, i, "f4") + np.arange(4, dtype="f4") for i in range(70)]

    def facts(arrays):
        return [(x.sharding, x.committed, x.weak_type, str(x.aval), np.asarray(x).tolist()) for x in arrays]

    def mesh(*shape, kind):
        names = ("x", "y")[: len(shape)]
        return lambda: jax.set_mesh(jax.make_mesh(shape, names, axis_types=(kind,) * len(shape)))

    contexts = {
        "none": contextlib.nullcontext,
        "device": lambda: jax.default_device(devices[1]),
        "explicit": mesh(4, kind=AxisType.Explicit),
        "auto": mesh(2, 2, kind=AxisType.Auto),
        "smaller": mesh(2, kind=AxisType.Explicit),
    }
    targets = {
        "nothing": None,
        "uncommitted": [jnp.asarray(zero) for _ in saved],
        "sharded": [jax.device_put(zero, over) for _ in saved],
        "replicated": [jax.device_put(zero, copies) for _ in saved],
        "third": [jax.device_put(zero, devices[3]) for _ in saved],
        "mixed": [jax.device_put(zero, over) if i % 2 else jnp.asarray(zero) for i in range(70)],
        "structs": [jax.ShapeDtypeStruct((4,), "f4", sharding=over if i % 2 else None) for i in range(70)],
    }
    files = {
        "plain": [jnp.asarray(x) for x in saved],
        "over": [jax.device_put(x, over) for x in saved],
        "copies": [jax.device_put(x, copies) for x in saved],
    }
    data = {bt.msgpack_dumps(tree) for tree in files.values()}
    assert len(data) == 1  # where arrays lay is not saved
    data = data.pop()
    for (c, context), (t, target) in itertools.product(contexts.items(), targets.items()):
        found = []
        for many in (10**9, 2):
            with mock.patch.object(adapter, "_MANY", many), context():
                found.append(facts(bt.msgpack_loads(data, target)))
        assert found[0] == found[1], (c, t)
        assert [f[4] for f in found[0]] == [x.tolist() for x in saved], (c, t)
        if t in ("sharded", "replicated", "third"):
            assert {f[0] for f in found[0]} == {target[0].sharding}, (c, t)
    print("done")
"""


def test_several_devices():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(DEVICES)],
        env={**os.environ, **flags},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.stdout, done.stderr[-3000:]) == ("done\n", "")


# --- units ------------------------------------------------------------------------------------------------------


def my_unit(factor=60.0, name="my minute"):
    return u.Unit(dim=u.second.dim, scale=0, factor=factor, name=name, dispname=name[:3])


def test_equal_units_stand_in_a_file_once():
    tree = {
        "a": [np.ones(2) * my_unit() for _ in range(300)],
        "b": [i * u.mV for i in range(300)],
        "c": 1.0 * my_unit(7.0),
    }
    data = bt.msgpack_dumps(tree)
    assert len(index_of(data)["shared"]) == 3
    found = bt.msgpack_loads(data)
    assert_same(tree, found)
    assert len({id(quantity.unit) for quantity in found["a"]}) == 1
    assert all(quantity.unit is u.mV for quantity in found["b"])
    target = {
        "a": [np.zeros(2) * my_unit() for _ in range(300)],
        "b": [0 * u.mV for _ in range(300)],
        "c": 0.0 * my_unit(7.0),
    }
    assert_same(tree, bt.msgpack_loads(data, target))


def test_units_of_other_names_are_kept_apart():
    tree = [np.ones(2) * my_unit(name=f"name {i}") for i in range(N)] + [
        1.0 * u.Unit(u.second.dim, scale=0, factor=60.0)
    ]
    data = bt.msgpack_dumps(tree)
    assert len(index_of(data)["shared"]) == N + 1
    assert_same(tree, bt.msgpack_loads(data))


def units_everywhere():
    unit, quantity = my_unit(), np.ones(2) * my_unit()
    shared = [quantity, {"unit": unit}]
    return {
        "value": unit,
        "twice": [quantity, quantity, unit, u.mV, u.UNITLESS],
        "keys": {unit: 1, u.mV: quantity, (u.mV, 1): 2},
        "shared": shared,
        "again": shared,
        "state": brainstate.State(quantity),
        "layer": {"tuple": (quantity, unit), "set": {1, 2}},
    }


def test_units_wherever_they_are():
    tree = units_everywhere()
    data = bt.msgpack_dumps(tree)
    found = bt.msgpack_loads(data)
    assert_same(tree, found)
    assert found["twice"][0] is found["twice"][1] is found["shared"][0] is found["layer"]["tuple"][0]
    assert found["shared"] is found["again"]
    assert found["value"] is found["twice"][2] is found["twice"][0].unit
    assert found["twice"][3] is u.mV
    assert_same(tree, bt.msgpack_loads(data, units_everywhere()))
    assert_same(bt.msgpack_loads(data, raw=True), bt.msgpack_to_state_dict(bt.msgpack_loads(data, arrays="numpy")))
    with bt.open_checkpoint(io.BytesIO(data)) as checkpoint:
        assert str(checkpoint.specs["twice/0"]) == "float64[2] my "
        assert_same(tree["twice"][0], checkpoint["twice/0"])
        assert checkpoint["value"] is found["value"]
        assert_same(np.ones(1), checkpoint.read("shared/0", slice(1)))


@pytest.mark.parametrize("mode", ["error", "warn", "ignore"])
def test_one_unit_of_many_that_does_not_fit(mode):
    saved = [np.full(2, float(i)) * u.mV for i in range(N)]
    target = [np.zeros(2) * (u.mV if i != 4 else u.volt) for i in range(N)]
    data = bt.msgpack_dumps({"x": saved})
    found, caught = outcome(lambda: bt.msgpack_loads(data, {"x": target}, mismatch=mode))
    if mode == "error":
        assert found[0] == "MismatchError"
        assert found[1].startswith("Unit mismatch: expected V, got mV at path x/4")
    else:
        assert_same({"x": saved}, found)
        assert len(caught) == (mode == "warn")
    converted = bt.msgpack_loads(data, {"x": target}, units="convert")
    assert converted["x"][4].unit is u.volt
    np.testing.assert_allclose(converted["x"][4].mantissa, [0.004, 0.004])
    assert_same(saved[5], converted["x"][5])


GOLDEN = sorted((Path(__file__).parent / "golden" / "v1").glob("*.msgpack"))


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.stem)
def test_files_of_before_are_the_same_when_they_are_saved_again(file):
    def load(data, **options):
        return outcome(lambda: bt.msgpack_loads(data, **options))[0]

    old = load(file.read_bytes())
    again, without = both(old)
    assert both(load(again)) == both(load(without)) == (again, without)


def test_units_written_as_they_were_at_first():
    """Each quantity had its unit with it."""
    unit = {
        "symbol": "mV",
        "name": "mvolt",
        "dim": [LIST, *map(int, u.mV.dim._dims)],
        "scale": -3,
        "factor": 1.0,
        "full": True,
    }
    node = [LEAF, "brainunit.Quantity", [ARRAY, 0], {"unit": unit}]
    array = ("numpy", "float64", [1], np.ones(1).tobytes())
    data = forge({"x": node, "unit": [LEAF, "brainunit.Unit", None, {"unit": unit}]}, [array])
    with bt.open_checkpoint(io.BytesIO(data)) as checkpoint:
        assert str(checkpoint.specs["x"]) == "float64[1] mV"
    expected = {"x": np.ones(1) * u.Unit(u.mV.dim, scale=-3, name="mvolt", dispname="mV"), "unit": u.mV}
    found = bt.msgpack_loads(data)
    assert found["x"].unit == found["unit"] == u.mV
    assert_same(np.ones(1), found["x"].mantissa, loaded=True)
    target = {"x": np.zeros(1) * u.mV, "unit": u.mV}
    assert bt.msgpack_loads(data, target)["x"].unit is u.mV
    assert found["x"].unit.dispname == expected["x"].unit.dispname
    assert bt.msgpack_loads(data, raw=True)["x"]["scale"] == -3


# --- files that are wrong ---------------------------------------------------------------------------------------

BYTES = [("numpy", "uint8", [1], bytes([i])) for i in range(N)]

MALFORMED = [
    *([ARRAYS], [ARRAYS, 0], [ARRAYS, -1, 2], [ARRAYS, 0, N + 1], [ARRAYS, N, 1], [ARRAYS, 0, -1], [ARRAYS, N + 1, 0]),
    *([ARRAYS, True, 1], [ARRAYS, 0, True], [ARRAYS, None, 1], [ARRAYS, 0, None], [ARRAYS, 0.0, 1], [ARRAYS, 0, 1.0]),
    *(
        [ARRAYS, "0", 1],
        [ARRAYS, 0, "1"],
        [ARRAYS, 0, 2**63],
        [ARRAYS, 2**63, 0],
        [ARRAYS, 0, 1, 1],
        [ARRAYS, [LIST], 1],
    ),
    *([ARRAYS, 0, [LIST]], [ARRAYS, 0, b"\1"], [ARRAYS, {}, 1], [ARRAYS, -(2**63), 2**63]),
    *([NAMED_ARRAYS], [NAMED_ARRAYS, -1, "a"], [NAMED_ARRAYS, N, "a"], [NAMED_ARRAYS, 0, "a", "b", "a"]),
    *([NAMED_ARRAYS, 0, 1], [NAMED_ARRAYS, 0, b"a"], [NAMED_ARRAYS, 0, None], [NAMED_ARRAYS, 0, [LIST]]),
    *(
        [NAMED_ARRAYS, 0, {}],
        [NAMED_ARRAYS, True, "a"],
        [NAMED_ARRAYS, "a"],
        [NAMED_ARRAYS, None],
        [NAMED_ARRAYS, "a", "b"],
    ),
    *([NAMED_ARRAYS, 0.0, "a"], [NAMED_ARRAYS, 0, *map(str, range(N + 1))], [NAMED_ARRAYS, 2**63, "a"]),
    *([NAMED_ARRAYS, 0, "a", 1], [NAMED_ARRAYS, 0, "a", ["b"]], [NAMED_ARRAYS, N + 1], [8, 0, 1], [8, 0, "a"]),
]
PLACES = {
    "root": lambda value: forge(value, BYTES),
    "list": lambda value: forge([LIST, 1, value], BYTES),
    "map": lambda value: forge({"x": {"y": value}}, BYTES),
    "key": lambda value: forge([ITEMS, value, 1], BYTES),
    "value": lambda value: forge([ITEMS, 1, value], BYTES),
    "state": lambda value: forge([NODE, "tuple", value], BYTES),
    "leaf": lambda value: forge([LEAF, "new", value], BYTES),
    "attribute": lambda value: forge([NODE, "tuple", [LIST], {"class": value}], BYTES),
    "shared": lambda value: forge([REF, 0], BYTES, shared=[value]),
    "shared and unused": lambda value: forge(1, BYTES, shared=[value]),
    "metadata": lambda value: forge(1, BYTES, metadata={"a": value}),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", MALFORMED, ids=lambda value: repr(value)[:40])
def test_a_malformed_run_is_refused(place, value):
    data = PLACES[place](value)
    for target in (None, zeros(), named()):
        with pytest.raises(bt.CorruptCheckpointError):
            bt.msgpack_loads(data, target)
    with pytest.raises(bt.CorruptCheckpointError):
        bt.open_checkpoint(io.BytesIO(data))


@pytest.mark.parametrize("value", [[ARRAYS, 0, 1], [NAMED_ARRAYS, 0, "a"], [ARRAYS, 0, N]])
def test_a_run_in_metadata_is_refused(value):
    with pytest.raises(bt.CorruptCheckpointError):
        bt.msgpack_loads(forge(1, BYTES, metadata={"a": value}))


#: Runs where a run may stand, but none can.
MISPLACED = {
    "key": [ITEMS, [ARRAYS, 0, 2], 1],
    "named key": [ITEMS, [NAMED_ARRAYS, 0, "a"], 1],
    "empty key": [ITEMS, [ARRAYS, 0, 0], 1],
    "tuple as key": [ITEMS, [NODE, "tuple", [ARRAYS, 0, N]], 1],
    "frozenset as key": [ITEMS, [LEAF, "frozenset", [ARRAYS, 0, N]], 1],
    "tuple": [NODE, "tuple", [NAMED_ARRAYS, 0, "a"]],
    "OrderedDict": [NODE, "OrderedDict", [ARRAYS, 0, 2]],
    "FlattedDict": [NODE, "brainstate.FlattedDict", [ARRAYS, 0, 2]],
    "namedtuple": [NODE, "namedtuple", [ARRAYS, 0, 2], {"class": "P"}],
    "name of a namedtuple": [NODE, "namedtuple", [NAMED_ARRAYS, 0, "x"], {"class": [ARRAYS, 0, 1]}],
    "maxlen": [NODE, "deque", [ARRAYS, 0, 2], {"maxlen": [ARRAYS, 0, 1]}],
    "registered": [NODE, "class:many/Registered", [ARRAYS, 0, 2]],
    "field": [NODE, "class:many/Registered", [NAMED_ARRAYS, 0, "arrays", "another"]],
    "functions": [NODE, "class:many/Pairs", [ARRAYS, 0, 2]],
    "set": [LEAF, "set", [ARRAYS, 0, 2]],
    "strings": [LEAF, "numpy.strings", [ARRAYS, 0, 2], {"shape": [LIST, 2], "coerce": True}],
    "shape of strings": [LEAF, "numpy.strings", [LIST, "a"], {"shape": [ARRAYS, 0, 1], "coerce": True}],
    "masked": [LEAF, "numpy.masked", [ARRAYS, 0, 3], {"hard": False}],
    "mask of numbers": [LEAF, "numpy.masked", [NAMED_ARRAYS, 0, "data", "mask", "fill_value"], {"hard": False}],
    "random key": [LEAF, "jax.key", [ARRAYS, 0, 1], {"impl": "threefry2x32"}],
    "unit of a quantity": [LEAF, "brainunit.Quantity", [ARRAY, 0], {"unit": [ARRAYS, 0, 2]}],
    "named unit": [LEAF, "brainunit.Quantity", [ARRAY, 0], {"unit": [NAMED_ARRAYS, 0, "dim"]}],
    "unit": [
        LEAF,
        "brainunit.Unit",
        None,
        {"unit": [NAMED_ARRAYS, 0, "symbol", "name", "dim", "scale", "factor", "full"]},
    ],
    "generator": [LEAF, "numpy.generator", [NAMED_ARRAYS, 0, "bit_generator", "state"]],
    "seeds": [LEAF, "numpy.seedsequence", [NAMED_ARRAYS, 0, "entropy"]],
    "int": [LEAF, "int", [ARRAYS, 0, 1]],
    "complex": [LEAF, "complex", [ARRAYS, 0, 2]],
    "scalar": [LEAF, "numpy.scalar", [ARRAYS, 0, 1], {"dtype": "uint8"}],
    "dtype of a scalar": [LEAF, "numpy.scalar", b"\0", {"dtype": [ARRAYS, 0, 1]}],
    "matrix": [LEAF, "numpy.subclass", [ARRAYS, 0, 1], {"kind": "matrix"}],
    "datetime": [LEAF, "datetime", [ARRAYS, 0, 2]],
    "slice": [LEAF, "slice", [ARRAYS, 0, 2]],
}
GOALS = [
    *(
        [0],
        (0,),
        {"a": 1},
        collections.OrderedDict(a=1),
        {1},
        frozenset(),
        1,
        1.5,
        1j,
        True,
        "a",
        None,
        range(2),
        slice(1),
    ),
    *(np.zeros(2, np.dtypes.StringDType()), np.ma.zeros(2), jax.random.key(0), np.ones(2) * u.mV, u.mV, Names.K1),
    *(np.random.default_rng(0), np.random.SeedSequence(1), np.uint8(0), np.zeros((), "u1"), MATRICES[0], Layer(1, 2)),
    *(
        collections.deque([0, 0]),
        Registered(1),
        Pairs(),
        brainstate.State(1),
        jnp.zeros(1),
        zeros(),
        named(),
        Fields(*zeros()),
    ),
    *(jax.ShapeDtypeStruct((1,), "u1"), brainstate.util.FlattedDict({("a",): 1}), brainstate.util.NestedDict({"a": 1})),
    *(jax.tree_util.Partial(len, 1), brainstate.nn.Linear(1, 1)),
]


@pytest.mark.parametrize("name", MISPLACED)
def test_a_run_where_none_can_be_is_refused(name):
    data = forge(MISPLACED[name], BYTES)
    refused = (bt.CorruptCheckpointError, bt.HandlerError)  # the latter where a class may have changed
    with pytest.raises(refused):
        bt.msgpack_loads(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for options in ({"raw": True}, {"arrays": "jax"}, {"arrays": "numpy"}, {"rename": lambda path: f"z/{path}"}):
            with contextlib.suppress(*refused):
                bt.msgpack_loads(data, **options)
        for goal, mode in itertools.product(GOALS, ("error", "ignore")):
            with contextlib.suppress(*refused, MismatchError):
                bt.msgpack_loads(data, goal, mismatch=mode)
        with contextlib.suppress(bt.CorruptCheckpointError), bt.open_checkpoint(io.BytesIO(data)) as checkpoint:
            repr(checkpoint)
            for path in checkpoint.paths:
                str(checkpoint.specs[path])
                with contextlib.suppress(*refused):
                    checkpoint[path]
                with contextlib.suppress(bt.CorruptCheckpointError, TypeError):
                    checkpoint.read(path)


def test_runs_of_other_lengths_and_in_other_places_are_read():
    structure = [
        LIST,
        [ARRAYS, 0, 0],
        [NAMED_ARRAYS, N],
        [ARRAYS, 3, 2],
        {"a": [NAMED_ARRAYS, 19, "z"]},
        [ARRAYS, 3, 2],
    ]
    found = bt.msgpack_loads(forge(structure, BYTES))
    at = [np.array([i], "u1") for i in range(N)]
    assert_same([[], {}, at[3:5], {"a": {"z": at[19]}}, at[3:5]], found, identity=False, loaded=True)
    target = [[], {}, [np.ones(1, "u1")] * 2, {"a": {"z": np.ones(1, "u1")}}, [np.ones(1, "u1"), np.ones(1, "u1")]]
    found = bt.msgpack_loads(forge(structure, BYTES), target)
    assert_same([[], {}, at[3:5], {"a": {"z": at[19]}}, at[3:5]], found, identity=False, loaded=True)
    found[2][0][:] = 99
    assert found[4][0] == 3


@pytest.mark.parametrize("raw", [False, True])
def test_runs_that_overlap_do_not_multiply(raw):
    count = 300
    data = forge([LIST, *([ARRAYS, 0, count] for _ in range(count))], [("numpy", "uint8", [0], b"")] * count)
    assert len(data) < 60 * count
    found = outcome(lambda: bt.msgpack_loads(data, raw=raw))[0]
    if found[0] != "CorruptCheckpointError":
        assert sum(map(len, found.values() if raw else found)) <= 4 * count


# --- any tree -----------------------------------------------------------------------------------------------------

POOL = [
    *arrays(4),
    *jax_arrays(4),
    *arrays(2, dtype="f8"),
    *arrays(2, dtype=">i4", shape=()),
    jnp.asarray(1.5),
    np.zeros((0, 2), "f4"),
    np.array(["a"]),
    np.ones(2) * u.mV,
    1.5,
    None,
]
LEAVES = st.sampled_from(range(len(POOL)))
SHAPES = st.recursive(
    LEAVES,
    lambda children: (
        st.lists(children, max_size=5)
        | st.lists(children, max_size=5).map(tuple)
        | st.lists(children, max_size=5).map(lambda items: dict(zip("abcde", items)))
    ),
    max_leaves=12,
)


def grown(shape, pool):
    """Put leaves into a shape; the same number is the same object."""
    if isinstance(shape, (list, tuple)):
        return type(shape)(grown(part, pool) for part in shape)
    if isinstance(shape, dict):
        return {key: grown(part, pool) for key, part in shape.items()}
    return pool[shape]


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(SHAPES, SHAPES, st.sampled_from(["error", "warn", "ignore"]), st.booleans())
def test_any_tree_into_any_target(shape, other, mode, partial):
    tree, goal, own = (grown(what, pool) for what, pool in ((shape, POOL), (other, POOL), (shape, blank_tree(POOL))))
    files = []
    for least in (1, HUGE):
        with mock.patch.object(encoding, "_MIN_RUN", least):
            files.append(bt.msgpack_dumps(tree))
    assert not runs_in(files[1])
    assert_same(tree, bt.msgpack_loads(files[0]), loaded=True)
    # Arrays that are one object in the target: see test_one_array_that_the_target_has_before_the_run.
    for options in ({"target": own}, {"target": goal, "mismatch": mode, "partial": partial}, {"raw": True}):
        found, expected = (outcome(lambda: bt.msgpack_loads(data, **options)) for data in files)
        assert_same(expected, found, identity=False, loaded=True)
    with bt.open_checkpoint(io.BytesIO(files[0])) as one, bt.open_checkpoint(io.BytesIO(files[1])) as two:
        assert one.paths == two.paths
        assert {path: str(spec) for path, spec in one.specs.items()} == {path: str(two.specs[path]) for path in two}
        for path in one:
            with bt.open_checkpoint(io.BytesIO(files[0])) as fresh:
                assert_same(two[path], fresh[path], loaded=True)


def test_a_million_numbers_of_a_list_are_not_looked_at_twice():
    """A run costs no more than a node of a few bytes, whatever its length."""
    few, many = (bt.msgpack_dumps([np.zeros(1, "u1") for _ in range(count)]) for count in (100, 20_000))
    assert xxhash.xxh3_64_intdigest(few) != xxhash.xxh3_64_intdigest(many)
    assert len(many) - len(few) < 14 * 19_900  # a number of 4 bytes, an offset of 8, and the data


# States, which are written together, too.


class OwnState(brainstate.HiddenState):
    """A user's class of states."""


def many_states():
    states = {
        f"v{i}": brainstate.HiddenState(jnp.full(3, i, jnp.float32) * (u.mV if i % 2 else u.nS)) for i in range(20)
    }
    states |= {f"s{i}": brainstate.ShortTermState(np.full(2, i, np.int16)) for i in range(20)}
    return states


def changed_states(name):
    states = many_states()
    first = states["v0"]
    changes = {
        "nothing": dict,
        "a state twice": lambda: {"again": first},
        "a value twice": lambda: {"again": brainstate.HiddenState(first.value)},
        "an array twice": lambda: {"again": brainstate.HiddenState(first.value.mantissa * u.UNITLESS)},
        "an array beside": lambda: {"beside": states["s3"].value},
        "a quantity beside": lambda: {"beside": states["v3"].value},
        "a number": lambda: {"number": brainstate.State(1.5), "one": brainstate.State(2.5 * u.ms)},
        "a dict": lambda: {"net": brainstate.ParamState({"w": jnp.ones(2), "b": jnp.zeros(2) * u.mV})},
        "a list of arrays": lambda: {"net": brainstate.ParamState(arrays())},
        "a state in a state": lambda: {"outer": brainstate.State(brainstate.State(jnp.ones(2)))},
        "a key": lambda: {"rng": brainstate.State(jax.random.key(3))},
        "a class of its own": lambda: {f"o{i}": OwnState(jnp.full(2, i)) for i in range(20)},
        "records": lambda: {"r": brainstate.State(np.zeros(2, [("a", "f4"), ("b", "i8")]))},
        "None": lambda: {"nothing": brainstate.State(None)},
    }
    states |= changes[name]()
    return states


CHANGED = [
    "nothing",
    "a state twice",
    "a value twice",
    "an array twice",
    "an array beside",
    "a quantity beside",
    "a number",
    "a dict",
    "a list of arrays",
    "a state in a state",
    "a key",
    "a class of its own",
    "records",
    "None",
]


@pytest.mark.filterwarnings("ignore:The checkpoint holds a State of the class")
@pytest.mark.parametrize("name", CHANGED)
def test_many_states_are_written_like_few(name):
    tree = changed_states(name)
    quick = bt.msgpack_dumps(tree)
    with mock.patch.object(encoding, "_MIN_RUN", HUGE):
        slow = bt.msgpack_dumps(tree)
    found, expected = bt.msgpack_loads(quick), bt.msgpack_loads(slow)
    assert list(found) == list(expected) == list(tree)
    for key, state in expected.items():
        assert type(found[key]) is type(state)
        values = [getattr(one, "value", one) for one in (found[key], state)]
        if not isinstance(values[0], brainstate.State):
            assert_same(*values[::-1], loaded=True)
    for one, other in itertools.combinations(tree, 2):
        assert (found[one] is found[other]) is (expected[one] is expected[other]) is (tree[one] is tree[other])
    raw = [bt.msgpack_loads(data, raw=True) for data in (quick, slow)]
    assert_same(raw[1], raw[0], identity=False, loaded=True)


def test_many_states_write_each_array_and_each_quantity_once():
    tree = many_states()
    value = tree["v4"].value
    data = bt.msgpack_dumps({"states": tree, "value": value, "array": value.mantissa})
    with bt.open_checkpoint(io.BytesIO(data)) as checkpoint:
        assert len(checkpoint._document.arrays.specs) == 40
    found = bt.msgpack_loads(data)
    assert found["states"]["v4"].value is found["value"]
    assert found["value"].mantissa is found["array"]


@pytest.mark.parametrize("place", ["v7", "s7"])
def test_one_of_many_states_that_cannot_be_saved_is_named(place):
    tree = many_states()
    tree[place] = brainstate.State(jnp.ones(2) * u.mV)
    tree[place].value.mantissa.delete()
    with pytest.raises(SerializationError, match=rf"at path {place}: it has been deleted"):
        bt.msgpack_dumps(tree)


def test_a_state_that_holds_itself_among_many_is_a_cycle():
    tree = many_states()
    tree["loop"] = brainstate.State(None)
    tree["loop"]._value = tree["loop"]
    with pytest.raises(SerializationError, match="cycle"):
        bt.msgpack_dumps(tree)


class Computed(brainstate.State):
    """A state that gives another array whenever it is asked."""

    @property
    def value(self):
        return np.array(self._value)

    @value.setter
    def value(self, value):
        self._value = value


@pytest.mark.parametrize("beside", [1, np.zeros(2, [("a", "f4")]), jax.random.key(0)])
def test_what_was_begun_in_one_go_is_not_stored_twice(beside):
    tree = {f"s{i}": Computed(np.full(3, i, np.float32)) for i in range(20)}
    tree |= {f"a{i}": np.full(2, i) for i in range(20)}
    data = bt.msgpack_dumps({**tree, "beside": beside})
    with bt.open_checkpoint(io.BytesIO(data)) as checkpoint:
        assert len(checkpoint._document.arrays.specs) == 40 + (not isinstance(beside, int))
        assert all(np.array_equal(checkpoint[f"a{i}"], np.full(2, i)) for i in range(20))


# Planned in one go.


def planned_singly():
    """Let each part of a container be checked by itself, as few of them are."""
    return mock.patch.object(merging, "_MANY", HUGE)


def population(seed, **changes):
    """Give 20 groups of states with and without units, of which some can be changed: ``name=(group, state)``."""
    data = np.random.default_rng(seed)
    groups = {
        f"group {i}": {
            "V": brainstate.HiddenState(jnp.asarray(data.normal(size=3), jnp.float32) * u.mV),
            "spike": brainstate.ShortTermState(jnp.asarray(data.integers(0, 2, 3), jnp.float32)),
            "w": brainstate.ParamState({"in": np.asarray(data.normal(size=2)), "out": np.asarray(data.normal(size=4))}),
            "n": [np.asarray(data.normal(size=2)) * u.nS],
        }
        for i in range(N)
    }
    for change in changes.items():
        CHANGES[change[0]](groups, *change[1:])
    return groups


def _state_in_two_groups(groups):
    groups["group 7"]["V"] = groups["group 3"]["V"]


def _array_in_two_groups(groups):
    groups["group 7"]["w"].value = groups["group 3"]["w"].value


CHANGES = {
    "one_is_missing": lambda groups, _: groups["group 4"].pop("V"),
    "one_of_another_unit": lambda groups, _: setattr(groups["group 4"]["V"], "value", jnp.zeros(3) * u.ms),
    "one_of_another_scale": lambda groups, _: setattr(groups["group 4"]["V"], "value", jnp.ones(3) * u.volt),
    "one_of_another_shape": lambda groups, _: setattr(groups["group 5"]["spike"], "value", jnp.zeros(5)),
    "one_of_another_dtype": lambda groups, _: groups["group 6"].update(n=[np.zeros(2, complex) * u.nS]),
    "one_of_another_type": lambda groups, _: groups["group 6"].update(n=(1, 2)),
    "one_with_another_key": lambda groups, _: groups["group 8"].update(more=np.zeros(2)),
    "a_state_in_two_groups": lambda groups, _: _state_in_two_groups(groups),
    "an_array_in_two_groups": lambda groups, _: _array_in_two_groups(groups),
    "in_another_order": lambda groups, _: groups.update({"group 2": dict(reversed(groups.pop("group 2").items()))}),
    "one_group_less": lambda groups, _: groups.pop("group 9"),
    "a_placeholder": lambda groups, _: groups["group 1"].update(
        spike=brainstate.ShortTermState(jax.ShapeDtypeStruct((3,), jnp.float32))
    ),
}


def loaded_into(data, target, **options):
    """Give what a load gives, as bytes, or its error; its report; and what it made of the target."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            loaded = bt.msgpack_loads(data, target, **options)
            result = bt.msgpack_dumps(loaded)
        except (MismatchError, SerializationError) as error:
            result = f"{type(error).__name__}: {error}"
    try:
        after = bt.msgpack_dumps(target)
    except SerializationError as error:
        after = str(error)
    return result, [str(warning.message) for warning in caught], after


@pytest.mark.parametrize("options", [{}, {"mismatch": "warn"}, {"partial": True}, {"units": "convert"}], ids=str)
@pytest.mark.parametrize("of_target", [None, *CHANGES])
@pytest.mark.parametrize("of_file", [None, "a_state_in_two_groups", "an_array_in_two_groups", "one_of_another_unit"])
def test_many_are_planned_like_few(of_file, of_target, options):
    data = bt.msgpack_dumps(population(0, **({of_file: True} if of_file else {})))
    changes = {of_target: True} if of_target else {}
    quickly = loaded_into(data, population(1, **changes), **options)
    with planned_singly():
        singly = loaded_into(data, population(1, **changes), **options)
    assert quickly == singly
    if not of_file and not of_target:
        assert_same(population(0), bt.msgpack_loads(quickly[0], population(1)), loaded=True)


def test_many_that_fit_are_not_planned_one_by_one():
    groups, target = population(0), population(1)
    for group in (*groups.values(), *target.values()):
        del group["n"]  # a list
    data = bt.msgpack_dumps(groups)
    counted = []
    plan = merging.Merger.plan

    def count(self, target, value, path):
        counted.append(path)
        return plan(self, target, value, path)

    with mock.patch.object(merging.Merger, "plan", count):
        bt.msgpack_loads(data, target)
    assert counted == [None]  # the tree itself
    assert_same(groups, target, loaded=True)
