"""User code written for ``braintools.file`` runs unchanged: every test runs on it and on ``braintools_ckpt``.

A test here holds what both promise. Where ``braintools.file`` is wrong (big-endian arrays, a load that stops
half way, file entries that are dropped) the right behaviour is held by the tests of that part, not here.
"""

from __future__ import annotations

import contextlib
import enum
import importlib
import os
import pathlib
import threading
import warnings
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType
from typing import Any

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

Point = namedtuple("Point", ["x", "y"])


@pytest.fixture(params=["braintools.file", "braintools_ckpt"])
def file(request: pytest.FixtureRequest) -> ModuleType:
    """The module that the user imports; the only line of their code that changes."""
    return importlib.import_module(request.param)


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "checkpoints" / "model.msgpack")


def roundtrip(file: ModuleType, path: str, tree: Any, target: Any = None) -> Any:
    file.msgpack_save(path, tree)
    return file.msgpack_load(path, target=target)


@contextlib.contextmanager
def warnings_of() -> Iterator[Callable[[], list[str]]]:
    """Collect the user warnings of a block; calling what it gives lists their messages."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield lambda: [str(warning.message) for warning in caught]


def assert_trees_equal(got: Any, want: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


# --- Plain data -------------------------------------------------------------------------------------------


def test_a_basic_dict_comes_back(file: ModuleType, path: str) -> None:
    model = {
        "weights": jnp.array([[1.0, 2.0], [3.0, 4.0]]),
        "bias": jnp.array([0.1, 0.2]),
        "config": {"learning_rate": 0.001, "batch_size": 32},
    }
    loaded = roundtrip(file, path, model)
    assert loaded["weights"].shape == (2, 2)
    assert loaded["config"] == {"learning_rate": 0.001, "batch_size": 32}
    np.testing.assert_array_equal(loaded["bias"], model["bias"])


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -7,
        2.5,
        "text",
        b"bytes",
        3 + 4j,
        np.float32(2.5),
        np.int64(-1),
        np.arange(6).reshape(2, 3),
    ],
    ids=repr,
)
def test_a_leaf_comes_back(file: ModuleType, path: str, value: Any) -> None:
    loaded = roundtrip(file, path, {"leaf": value})["leaf"]
    np.testing.assert_array_equal(loaded, value)
    assert type(loaded) is type(value)


def test_a_bfloat16_array_comes_back(file: ModuleType, path: str) -> None:
    loaded = roundtrip(file, path, {"w": jnp.arange(4, dtype=jnp.bfloat16)})["w"]
    assert loaded.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(loaded, np.float32), [0, 1, 2, 3])


def test_save_returns_the_filename_and_makes_directories(file: ModuleType, tmp_path: pathlib.Path) -> None:
    as_str = str(tmp_path / "a" / "b" / "c.msgpack")
    assert file.msgpack_save(as_str, {"v": 1}) == as_str
    as_path = tmp_path / "d" / "e.msgpack"
    assert file.msgpack_save(as_path, {"v": 2}) == os.fspath(as_path)
    assert file.msgpack_load(as_path)["v"] == 2


def test_arguments_may_be_positional(file: ModuleType, path: str) -> None:
    file.msgpack_save(path, {"v": np.arange(3)}, True, None, False)
    loaded = file.msgpack_load(path, {"v": np.zeros(3, int)}, True, "warn", None, False)
    np.testing.assert_array_equal(loaded["v"], np.arange(3))


@pytest.mark.parametrize("parallel", [True, False])
def test_parallel_or_not(file: ModuleType, path: str, parallel: bool) -> None:
    file.msgpack_save(path, {"big": np.arange(100_000)})
    np.testing.assert_array_equal(file.msgpack_load(path, parallel=parallel)["big"], np.arange(100_000))


def test_verbose_says_what_happens(file: ModuleType, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    file.msgpack_save(path, {"v": 1})
    file.msgpack_load(path)
    assert capsys.readouterr().out == ""
    file.msgpack_save(path, {"v": 1}, verbose=True)
    file.msgpack_load(path, verbose=True)
    assert capsys.readouterr().out == f"Saving checkpoint into {path}\nLoading checkpoint from {path}\n"


# --- Templates --------------------------------------------------------------------------------------------


def test_a_template_gives_the_structure(file: ModuleType, path: str) -> None:
    saved = {"w": jnp.ones((2, 2)), "layers": [jnp.ones(2), (jnp.zeros(1), 3)], "config": {"lr": 0.1, "n": 8}}
    template = {
        "w": jnp.zeros((2, 2)),
        "layers": [jnp.zeros(2), (jnp.ones(1), 0)],
        "config": {"lr": 0.0, "n": 0},
    }
    loaded = roundtrip(file, path, saved, template)
    assert_trees_equal(loaded, saved)
    assert type(loaded["layers"][1]) is tuple
    assert template["config"] == {"lr": 0.0, "n": 0}, "the template is not changed"


def test_a_template_gives_keys_that_are_not_strings(file: ModuleType, path: str) -> None:
    saved = {1: np.arange(2), ("l1", "w"): np.arange(3), None: 5}
    loaded = roundtrip(file, path, saved, {1: np.zeros(2, int), ("l1", "w"): np.zeros(3, int), None: 0})
    assert list(loaded) == list(saved)
    np.testing.assert_array_equal(loaded["l1", "w"], np.arange(3))


class Mode(enum.Enum):
    TRAIN = 1
    TEST = 2


def test_enum_members_are_keys(file: ModuleType, path: str) -> None:
    loaded = roundtrip(
        file, path, {Mode.TRAIN: np.arange(2), Mode.TEST: 3}, {Mode.TRAIN: np.zeros(2, int), Mode.TEST: 0}
    )
    assert loaded[Mode.TEST] == 3
    np.testing.assert_array_equal(loaded[Mode.TRAIN], np.arange(2))


def test_an_ordered_dict_is_a_template(file: ModuleType, path: str) -> None:
    loaded = roundtrip(file, path, OrderedDict(a=np.arange(2), b=1), OrderedDict(a=np.zeros(2, int), b=0))
    assert list(loaded) == ["a", "b"]
    np.testing.assert_array_equal(loaded["a"], np.arange(2))


def test_whole_numbers_fit_a_float_template(file: ModuleType, path: str) -> None:
    loaded = roundtrip(file, path, {"w": np.arange(5)}, {"w": np.zeros(5)})
    np.testing.assert_array_equal(loaded["w"], np.arange(5))


def test_a_nested_model_comes_back(file: ModuleType, path: str) -> None:
    def model(fill: float) -> dict[str, Any]:
        return {
            "encoder": {
                "layers": [{"weights": jnp.full((10, 6), fill)}, {"weights": jnp.full((4, 3), fill)}],
                "config": {"activation": "relu", "dropout": fill},
            },
            "optimizer_state": {"momentum": [jnp.full(n, fill) for n in (10, 6)], "step": int(fill)},
        }

    without = roundtrip(file, path, model(3.0))
    assert len(without["encoder"]["layers"]) == 2
    assert without["optimizer_state"]["step"] == 3
    assert_trees_equal(file.msgpack_load(path, target=model(0.0)), model(3.0))


# --- brainstate -------------------------------------------------------------------------------------------


class SimpleModel(brainstate.nn.Module):
    def __init__(self, fill: float) -> None:
        super().__init__()
        self.weight = brainstate.ParamState(jnp.full((2, 2), fill))
        self.bias = brainstate.ParamState({"b": jnp.full(2, fill)})
        self.running_mean = brainstate.State(jnp.full(2, fill))


def test_model_states_are_restored_in_place(file: ModuleType, path: str) -> None:
    file.msgpack_save(path, {"model_state": SimpleModel(1.0).states(), "training_step": 1000, "epoch": 10})
    model = SimpleModel(0.0)
    weight = model.weight
    template = {"model_state": model.states(), "training_step": 0, "epoch": 0}
    restored = file.msgpack_load(path, target=template)
    assert (restored["epoch"], restored["training_step"]) == (10, 1000)
    assert model.weight is weight
    np.testing.assert_array_equal(model.weight.value, np.ones((2, 2)))
    np.testing.assert_array_equal(model.bias.value["b"], np.ones(2))
    np.testing.assert_array_equal(model.running_mean.value, np.ones(2))


def test_a_deeper_network_is_restored(file: ModuleType, path: str) -> None:
    def network(seed: int) -> brainstate.nn.Module:
        with brainstate.random.seed_context(seed):
            layers = brainstate.nn.Linear(4, 8), brainstate.nn.ReLU(), brainstate.nn.Linear(8, 2)
            return brainstate.nn.init_all_states(brainstate.nn.Sequential(*layers))

    saved, restored = network(1), network(2)
    x = np.ones((1, 4), np.float32)
    assert not np.array_equal(saved(x), restored(x))
    file.msgpack_save(path, {"state": saved.states(), "version": 1.0})
    file.msgpack_load(path, target={"state": restored.states(), "version": 0.0})
    np.testing.assert_allclose(saved(x), restored(x), rtol=1e-5)


@pytest.mark.parametrize("nest_saved", [False, True])
@pytest.mark.parametrize("nest_target", [False, True])
def test_states_may_be_flat_or_nested(file: ModuleType, path: str, nest_saved: bool, nest_target: bool) -> None:
    saved, restored = SimpleModel(1.0).states(), SimpleModel(0.0)
    target = restored.states()
    file.msgpack_save(path, {"state": saved.to_nest() if nest_saved else saved})
    file.msgpack_load(path, target={"state": target.to_nest() if nest_target else target})
    np.testing.assert_array_equal(restored.weight.value, np.ones((2, 2)))
    plain = file.msgpack_to_state_dict(saved)
    file.msgpack_from_state_dict({"weight": restored.bias}, {"weight": plain["bias"]})
    np.testing.assert_array_equal(restored.bias.value["b"], np.ones(2))


def test_a_flat_state_fills_a_plain_nested_dict(file: ModuleType) -> None:
    states = brainstate.util.FlattedDict({("a", "w"): np.arange(3), ("b",): np.arange(2)})
    target = {"a": {"w": np.zeros(3, int)}, "b": np.zeros(2, int)}
    for state in (states, file.msgpack_to_state_dict(states)):
        restored = file.msgpack_from_state_dict(target, state)
        np.testing.assert_array_equal(restored["a"]["w"], np.arange(3))
        np.testing.assert_array_equal(restored["b"], np.arange(2))


def test_states_in_a_dict_keep_class_and_identity(file: ModuleType, path: str) -> None:
    def states(fill: float) -> dict[str, brainstate.State]:
        return {
            "a": brainstate.State(jnp.full(1, fill)),
            "b": brainstate.ShortTermState(jnp.full(2, fill) * u.mV),
            "c": brainstate.ParamState({"w": jnp.full(3, fill), "n": [jnp.full(1, fill)]}),
        }

    target = states(0.0)
    loaded = roundtrip(file, path, states(1.0), target)
    assert all(loaded[name] is target[name] for name in "abc")
    assert loaded["b"].value.unit == u.mV
    np.testing.assert_array_equal(loaded["b"].value.mantissa, np.ones(2))
    np.testing.assert_array_equal(loaded["c"].value["n"][0], np.ones(1))


# --- Custom classes ---------------------------------------------------------------------------------------


def layer_class() -> type:
    """A fresh class, so that no test sees what another one registered."""

    class CustomLayer:
        def __init__(self, input_size: int, output_size: int) -> None:
            self.input_size = input_size
            self.output_size = output_size
            self.weights = jnp.ones((input_size, output_size))
            self.bias = jnp.zeros(output_size)

    return CustomLayer


def register_layer(file: ModuleType, layer_type: type) -> None:
    def to_state_dict(layer: Any) -> dict[str, Any]:
        return {name: getattr(layer, name) for name in ("input_size", "output_size", "weights", "bias")}

    def from_state_dict(layer: Any, state: dict[str, Any], mismatch: str = "error") -> Any:
        new = layer_type(state["input_size"], state["output_size"])
        new.weights = state["weights"]
        new.bias = state["bias"]
        return new

    file.msgpack_register_serialization(layer_type, to_state_dict, from_state_dict)


def test_a_custom_class_with_handlers(file: ModuleType, path: str) -> None:
    layer_type = layer_class()
    register_layer(file, layer_type)
    layer = layer_type(10, 5)
    layer.weights = layer.weights * 2
    target = {"my_layer": layer_type(10, 5), "metadata": {"version": ""}}
    loaded = roundtrip(file, path, {"my_layer": layer, "metadata": {"version": "1.0"}}, target)
    assert type(loaded["my_layer"]) is layer_type
    assert loaded["metadata"] == {"version": "1.0"}
    np.testing.assert_array_equal(loaded["my_layer"].weights, np.full((10, 5), 2.0))
    assert file.msgpack_load(path)["my_layer"]["weights"].shape == (10, 5), "without a template: its state"


def test_a_handler_may_fill_the_template_it_is_given(file: ModuleType, path: str) -> None:
    class Counter:
        def __init__(self, count: int) -> None:
            self.count = count

    def from_state_dict(counter: Counter, state: dict[str, Any], mismatch: str) -> Counter:
        counter.count = state["count"]
        return counter

    file.msgpack_register_serialization(Counter, lambda x: {"count": x.count}, from_state_dict)
    target = {"counter": Counter(0)}
    loaded = roundtrip(file, path, {"counter": Counter(5)}, target)
    assert loaded["counter"] is target["counter"]
    assert loaded["counter"].count == 5


def test_handlers_may_recurse(file: ModuleType, path: str) -> None:
    class Block:
        def __init__(self, fill: float) -> None:
            self.layers = [jnp.full(2, fill), (jnp.full(1, fill), fill)]
            self.membrane = jnp.full(3, fill) * u.mV
            self.state = brainstate.ParamState(jnp.full(2, fill))

    def to_state_dict(block: Block) -> dict[str, Any]:
        return {name: file.msgpack_to_state_dict(value) for name, value in vars(block).items()}

    def from_state_dict(block: Block, state: dict[str, Any], mismatch: str = "error") -> Block:
        new = Block(0.0)
        for name, value in vars(block).items():
            restored = file.msgpack_from_state_dict(value, state[name], name=name, mismatch=mismatch)
            setattr(new, name, restored)
        return new

    file.msgpack_register_serialization(Block, to_state_dict, from_state_dict)
    loaded = roundtrip(file, path, {"blocks": [Block(1.0), Block(2.0)]}, {"blocks": [Block(0.0), Block(0.0)]})
    for block, fill in zip(loaded["blocks"], (1.0, 2.0), strict=True):
        assert type(block.layers[1]) is tuple
        assert block.layers[1][1] == fill
        assert block.membrane.unit == u.mV
        np.testing.assert_array_equal(block.layers[0], np.full(2, fill))
        np.testing.assert_array_equal(block.membrane.mantissa, np.full(3, fill))
        np.testing.assert_array_equal(block.state.value, np.full(2, fill))


def test_a_handler_is_told_the_mismatch_mode(file: ModuleType, path: str) -> None:
    class Node:
        pass

    modes = []
    file.msgpack_register_serialization(Node, lambda x: {"v": 1}, lambda x, state, mode: modes.append(mode) or x)
    file.msgpack_save(path, {"node": Node()})
    for mode in ("error", "warn", "ignore"):
        file.msgpack_load(path, target={"node": Node()}, mismatch=mode)
    assert modes == ["error", "warn", "ignore"]


def test_registering_twice_needs_override(file: ModuleType, path: str) -> None:
    class Twice:
        pass

    file.msgpack_register_serialization(Twice, lambda x: {"v": 1}, lambda x, state, mode: state["v"])
    with pytest.raises(ValueError, match="already registered"):
        file.msgpack_register_serialization(Twice, lambda x: {"v": 2}, lambda x, state, mode: state["v"])
    file.msgpack_register_serialization(Twice, lambda x: {"v": 2}, lambda x, state, mode: state["v"], override=True)
    assert roundtrip(file, path, [Twice()], [Twice()]) == [2]


def test_a_notebook_cell_may_run_twice(file: ModuleType, path: str) -> None:
    for fill in (1.0, 2.0):
        layer_type = layer_class()  # the same statement makes a new class of the same name
        register_layer(file, layer_type)
        layer = layer_type(2, 1)
        layer.bias = jnp.full(1, fill)
        loaded = roundtrip(file, path, {"layer": layer}, {"layer": layer_type(2, 1)})["layer"]
        assert type(loaded) is layer_type
        np.testing.assert_array_equal(loaded.bias, np.full(1, fill))


def test_the_most_specific_class_wins(file: ModuleType) -> None:
    class Base:
        pass

    class Derived(Base):
        pass

    class Leaf(Derived):
        pass

    for ty, kind in ((Base, "base"), (Derived, "derived")):
        file.msgpack_register_serialization(ty, lambda x, kind=kind: {"kind": kind}, lambda x, state, mode: state)
    assert file.msgpack_to_state_dict(Base()) == {"kind": "base"}
    assert file.msgpack_to_state_dict(Derived()) == {"kind": "derived"}
    assert file.msgpack_to_state_dict(Leaf()) == {"kind": "derived"}


def test_a_state_needs_string_keys(file: ModuleType, path: str) -> None:
    class Weird:
        pass

    file.msgpack_register_serialization(Weird, lambda x: {1: "a"}, lambda x, state, mode: x)
    with pytest.raises(TypeError, match="string keys"):
        file.msgpack_to_state_dict(Weird())
    with pytest.raises(TypeError, match="string keys"):
        file.msgpack_save(path, {"w": Weird()})
    assert not os.path.exists(path)


# --- State dicts ------------------------------------------------------------------------------------------


def add(x: float, y: float, z: float = 0.0) -> float:
    return x + y + z


@pytest.mark.parametrize(
    ("target", "state"),
    [
        ([10, 20], {"0": 10, "1": 20}),
        ((10, [20]), {"0": 10, "1": {"0": 20}}),
        ({"a": 1, 2: [3]}, {"a": 1, "2": {"0": 3}}),
        (Point(1, 2), {"x": 1, "y": 2}),
        (jax.tree_util.Partial(add, 1.0, z=3.0), {"args": {"0": 1.0}, "keywords": {"z": 3.0}}),
        (5, 5),
        ("text", "text"),
    ],
    ids=["list", "tuple", "dict", "namedtuple", "Partial", "int", "str"],
)
def test_the_state_dict_of_a_container(file: ModuleType, target: Any, state: Any) -> None:
    assert file.msgpack_to_state_dict(target) == state
    restored = file.msgpack_from_state_dict(target, state)
    assert type(restored) is type(target)
    assert file.msgpack_to_state_dict(restored) == state


def test_the_state_dict_of_a_state_is_that_of_its_value(file: ModuleType) -> None:
    state = brainstate.ParamState({"w": jnp.arange(3), "l": [1, 2]})
    plain = file.msgpack_to_state_dict(state)
    assert plain["l"] == {"0": 1, "1": 2}
    np.testing.assert_array_equal(plain["w"], np.arange(3))
    target = brainstate.ParamState({"w": jnp.zeros(3, int), "l": [0, 0]})
    assert file.msgpack_from_state_dict(target, plain) is target
    assert target.value["l"] == [1, 2]


def test_the_state_dict_of_a_quantity(file: ModuleType) -> None:
    quantity = np.array([1.0, 2.0]) * u.mV
    plain = file.msgpack_to_state_dict(quantity)
    assert {"mantissa", "scale", "base", "dim", "factor"} <= set(plain)
    restored = file.msgpack_from_state_dict(np.zeros(2) * u.mV, plain)
    assert restored.unit == u.mV
    np.testing.assert_array_equal(restored.mantissa, [1.0, 2.0])


def test_a_type_without_handler_passes_through_a_state_dict(file: ModuleType) -> None:
    class Unregistered:
        pass

    value = Unregistered()
    assert file.msgpack_to_state_dict(value) is value
    assert file.msgpack_from_state_dict(value, {"x": 1}) == {"x": 1}


def test_the_old_envelope_of_a_namedtuple_is_understood(file: ModuleType) -> None:
    envelope = {"name": "Point", "fields": {"0": "x", "1": "y"}, "values": {"0": 10, "1": 20}}
    assert file.msgpack_from_state_dict(Point(0, 0), envelope) == Point(10, 20)
    tricky = namedtuple("tricky", ["name", "fields", "values"])
    value = tricky(np.arange(2), np.arange(3), np.arange(4))
    restored = file.msgpack_from_state_dict(value, file.msgpack_to_state_dict(value))
    assert type(restored) is tricky
    np.testing.assert_array_equal(restored.values, np.arange(4))


# --- Mismatches -------------------------------------------------------------------------------------------

#: name: (target, state dict, what the message says, what 'warn' and 'ignore' give)
MISMATCHES = {
    "missing key": (
        {"a": 1, "b": 2, "c": 3},
        {"a": 10, "b": 20},
        "The target dict keys and state dict keys do not match, target dict contains keys {'c'} "
        "which are not present in state dict at path .",
        {"a": 10, "b": 20, "c": 3},
    ),
    "short list": (
        [1, 2, 3],
        {"0": 10, "1": 20},
        "The size of the list and the state dict do not match",
        [10, 20, 3],
    ),
    "short tuple": ((1, 2), {"0": 10}, "The size of the list and the state dict do not match", (10, 2)),
    "missing field": (
        Point(1, 2),
        {"x": 10},
        "The field names of the state dict and the named tuple do not match",
        Point(10, 2),
    ),
    "nested": (
        {"model": {"weights": [1, 2, 3]}, "config": {"lr": 0.1, "batch": 32}},
        {"model": {"weights": {"0": 10, "1": 20}}, "config": {"lr": 0.5}},
        "The size of the list and the state dict do not match",
        {"model": {"weights": [10, 20, 3]}, "config": {"lr": 0.5, "batch": 32}},
    ),
}


@pytest.mark.parametrize(("target", "state", "message", "merged"), MISMATCHES.values(), ids=list(MISMATCHES))
class TestMismatchModes:
    def test_error_raises(self, file: ModuleType, target: Any, state: Any, message: str, merged: Any) -> None:
        with pytest.raises(ValueError) as caught:
            file.msgpack_from_state_dict(target, state)
        assert message in str(caught.value)

    def test_warn_keeps_the_targets_value(
        self, file: ModuleType, target: Any, state: Any, message: str, merged: Any
    ) -> None:
        with warnings_of() as messages:
            assert file.msgpack_from_state_dict(target, state, mismatch="warn") == merged
        assert any(message in text for text in messages())

    def test_ignore_is_silent(self, file: ModuleType, target: Any, state: Any, message: str, merged: Any) -> None:
        assert file.msgpack_from_state_dict(target, state, mismatch="ignore") == merged


def test_the_three_modes_on_a_file(file: ModuleType, path: str) -> None:
    layer = {"weights": jnp.ones((5, 3)), "bias": jnp.ones(3)}
    file.msgpack_save(path, {"layer1": layer, "config": {"lr": 0.01}})
    target = {
        "layer1": {"weights": jnp.zeros((5, 3)), "bias": jnp.zeros(3)},
        "layer2": {"weights": jnp.full((2, 1), 7.0)},
        "config": {"lr": 0.001, "momentum": 0.9},
    }
    with pytest.raises(ValueError, match=r"target dict contains keys \{'layer2'\} which are not present"):
        file.msgpack_load(path, target=target, mismatch="error")
    with warnings_of() as messages:
        warned = file.msgpack_load(path, target=target, mismatch="warn")
    assert "'layer2'" in messages()[0]
    assert "'momentum'" in messages()[1]
    ignored = file.msgpack_load(path, target=target, mismatch="ignore")
    for loaded in (warned, ignored):
        np.testing.assert_array_equal(loaded["layer1"]["weights"], np.ones((5, 3)))
        np.testing.assert_array_equal(loaded["layer2"]["weights"], np.full((2, 1), 7.0))
        assert loaded["config"] == {"lr": 0.01, "momentum": 0.9}


def test_another_shape_is_a_mismatch(file: ModuleType, path: str) -> None:
    file.msgpack_save(path, {"w": np.arange(10.0)})
    for target in (np.zeros(3), jnp.zeros(3)):
        with pytest.raises(ValueError, match=r"Array shape mismatch: expected .*3.*, got .*10.* at path"):
            file.msgpack_load(path, target={"w": target})
    with pytest.warns(UserWarning, match="Array shape mismatch"):
        file.msgpack_load(path, target={"w": np.zeros(3)}, mismatch="warn")
    file.msgpack_load(path, target={"w": np.zeros(3)}, mismatch="ignore")


def test_another_unit_is_a_mismatch(file: ModuleType, path: str) -> None:
    file.msgpack_save(path, {"t": np.array([2.0]) * u.second})
    target = {"t": np.array([1.0]) * u.ms}
    with pytest.raises(ValueError, match="Unit mismatch"):
        file.msgpack_load(path, target=target)
    with pytest.warns(UserWarning, match="Unit mismatch"):
        warned = file.msgpack_load(path, target=target, mismatch="warn")
    ignored = file.msgpack_load(path, target=target, mismatch="ignore")
    for loaded in (warned, ignored):
        assert loaded["t"].to_decimal(u.ms) == pytest.approx(2000.0), "physically what the file says"


def test_a_mismatch_leaves_the_state_its_value(file: ModuleType, path: str) -> None:
    file.msgpack_save(path, {"p": brainstate.ParamState({"w": jnp.ones(2)})})
    target = {"p": brainstate.ParamState({"w": jnp.zeros(2), "b": jnp.full(1, 7.0)})}
    with pytest.raises(ValueError, match="'b'"):
        file.msgpack_load(path, target=target)
    np.testing.assert_array_equal(target["p"].value["w"], np.zeros(2))
    file.msgpack_load(path, target=target, mismatch="ignore")
    np.testing.assert_array_equal(target["p"].value["w"], np.ones(2))
    np.testing.assert_array_equal(target["p"].value["b"], np.full(1, 7.0))


def test_an_unknown_mode_is_refused(file: ModuleType, path: str) -> None:
    file.msgpack_save(path, {"a": 1})
    with pytest.raises(ValueError, match="mismatch"):
        file.msgpack_load(path, target={"a": 0}, mismatch="bogus")
    with pytest.raises(ValueError, match="mismatch"):
        file.msgpack_from_state_dict({"a": 0}, {"a": 1}, mismatch="bogus")


# --- Asynchronous saving ----------------------------------------------------------------------------------


def test_a_background_save(file: ModuleType, path: str) -> None:
    with file.AsyncManager() as manager:
        assert manager.save_future is None
        assert file.msgpack_save(path, {"a": jnp.arange(10), "step": 42}, async_manager=manager) == path
        assert isinstance(manager.save_future, Future)
        manager.wait_previous_save()
        assert manager.save_future.done()
    assert file.msgpack_load(path)["step"] == 42


def test_leaving_the_context_waits(file: ModuleType, path: str) -> None:
    with file.AsyncManager(max_workers=2) as manager:
        file.msgpack_save(path, {"a": np.zeros(1_000_000)}, async_manager=manager)
    assert file.msgpack_load(path)["a"].shape == (1_000_000,)


def test_close_may_be_called_twice_and_ends_saving(file: ModuleType, path: str) -> None:
    manager = file.AsyncManager()
    file.msgpack_save(path, {"v": 456}, async_manager=manager)
    manager.close()
    manager.close()
    assert file.msgpack_load(path)["v"] == 456
    with pytest.raises(RuntimeError, match="closed"):
        manager.save_async(lambda: None)


def test_what_changes_after_the_call_is_not_saved(file: ModuleType, path: str) -> None:
    data = {"numpy": np.zeros(1000), "state": brainstate.State(jnp.zeros(10)), "items": [1, 2]}
    with file.AsyncManager() as manager:
        file.msgpack_save(path, data, async_manager=manager)
        data["numpy"] += 1
        data["state"].value = jnp.ones(10)
        data["items"].append(3)
    target = {"numpy": np.ones(1000), "state": brainstate.State(jnp.ones(10)), "items": [0, 0]}
    loaded = file.msgpack_load(path, target=target)
    np.testing.assert_array_equal(loaded["numpy"], np.zeros(1000))
    np.testing.assert_array_equal(loaded["state"].value, np.zeros(10))
    assert loaded["items"] == [1, 2]


def test_saves_follow_one_another(file: ModuleType, tmp_path: pathlib.Path) -> None:
    with file.AsyncManager() as manager:
        for i in range(10):
            file.msgpack_save(tmp_path / "latest.msgpack", {"i": i}, async_manager=manager)
            file.msgpack_save(tmp_path / f"{i}.msgpack", {"i": i}, async_manager=manager)
    assert [file.msgpack_load(tmp_path / f"{i}.msgpack")["i"] for i in range(10)] == list(range(10))
    assert file.msgpack_load(tmp_path / "latest.msgpack")["i"] == 9


@pytest.mark.filterwarnings("ignore:A previous async")
def test_threads_may_share_a_manager(file: ModuleType, tmp_path: pathlib.Path) -> None:
    with file.AsyncManager(max_workers=2) as manager, ThreadPoolExecutor(3) as pool:

        def save(i: int) -> None:
            file.msgpack_save(tmp_path / f"{i}.msgpack", {"i": i, "a": np.zeros(100)}, async_manager=manager)

        list(pool.map(save, range(8)))
    assert [file.msgpack_load(tmp_path / f"{i}.msgpack")["i"] for i in range(8)] == list(range(8))


def test_an_own_task_runs_and_its_error_is_raised(file: ModuleType) -> None:
    done = threading.Event()
    manager = file.AsyncManager()
    manager.save_async(done.set)
    manager.wait_previous_save()
    assert done.is_set()

    def fail() -> None:
        raise OSError("disk full")

    manager.save_async(fail)
    with pytest.raises(OSError, match="disk full"):
        manager.wait_previous_save()


# --- Quantities -------------------------------------------------------------------------------------------


def test_a_physical_model_comes_back(file: ModuleType, path: str) -> None:
    model = {
        "time_constant": 10.0 * u.ms,
        "resistance": 100.0 * u.Mohm,
        "capacitance": 200.0 * u.pF,
        "threshold": -50.0 * u.mV,
        "membrane": jnp.linspace(-70.0, -50.0, 5) * u.mV,
    }
    loaded = roundtrip(file, path, model, model.copy())
    for name, quantity in model.items():
        assert isinstance(loaded[name], u.Quantity)
        assert loaded[name].unit == quantity.unit
        np.testing.assert_array_equal(loaded[name].mantissa, quantity.mantissa)


def test_the_files_value_wins_over_the_templates(file: ModuleType, path: str) -> None:
    data = {"x": jnp.arange(3.0) * u.ms}
    file.msgpack_save(path, data)
    data["x"] += 1 * u.ms
    loaded = file.msgpack_load(path, target=data)
    np.testing.assert_array_equal(loaded["x"].mantissa, np.arange(3.0))


# --- Other pytrees ----------------------------------------------------------------------------------------


def test_a_namedtuple_comes_back(file: ModuleType, path: str) -> None:
    loaded = roundtrip(file, path, [Point(jnp.ones(2), {"k": 1})], [Point(jnp.zeros(2), {"k": 0})])
    assert type(loaded[0]) is Point
    assert loaded[0].y == {"k": 1}
    np.testing.assert_array_equal(loaded[0].x, np.ones(2))


def test_an_optax_state_comes_back_and_goes_on(file: ModuleType, path: str) -> None:
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(1e-2, 10)))
    params = {("l1", "w"): jnp.ones((2, 3)), ("l1", "b"): jnp.zeros(3)}
    grads = jax.tree.map(jnp.ones_like, params)
    state = optimizer.init(params)
    for _ in range(3):
        _, state = optimizer.update(grads, state, params)
    loaded = roundtrip(file, path, {"opt": state}, {"opt": optimizer.init(params)})["opt"]
    assert jax.tree.structure(loaded) == jax.tree.structure(state)
    assert_trees_equal(optimizer.update(grads, loaded, params), optimizer.update(grads, state, params))


def test_a_partial_takes_its_function_from_the_template(file: ModuleType, path: str) -> None:
    saved = {"f": jax.tree_util.Partial(add, 1.0, 2.0, z=3.0)}
    loaded = roundtrip(file, path, saved, {"f": jax.tree_util.Partial(add, 0.0, 0.0, z=0.0)})["f"]
    assert loaded.func is add
    assert loaded() == 6.0


# --- Practice ---------------------------------------------------------------------------------------------


def test_metadata_in_the_dict(file: ModuleType, path: str) -> None:
    metadata = {
        "model_version": "1.2.0",
        "timestamp": 1.5,
        "training_config": {"lr": 0.001, "batch_size": 32},
    }
    loaded = roundtrip(file, path, {"model": {"weights": jnp.ones((10, 10))}, "metadata": metadata})
    assert loaded["metadata"] == metadata


def test_a_missing_file(file: ModuleType, path: str) -> None:
    with pytest.raises(ValueError, match="Checkpoint not found: .*model.msgpack"):
        file.msgpack_load(path)


def test_a_corrupt_file(file: ModuleType, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "corrupt.msgpack"
    path.write_bytes(b"\xff\xff\xff not msgpack at all \x00\x01")
    with pytest.raises(file.InvalidCheckpointPath):
        file.msgpack_load(path)
    file.msgpack_save(path, {"w": np.arange(1000)})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(file.InvalidCheckpointPath):
        file.msgpack_load(path)


def test_overwrite(file: ModuleType, path: str) -> None:
    file.msgpack_save(path, {"v": 1}, overwrite=False)
    with pytest.raises(file.InvalidCheckpointPath):
        file.msgpack_save(path, {"v": 2}, overwrite=False)
    assert file.msgpack_load(path)["v"] == 1
    file.msgpack_save(path, {"v": 3})
    assert file.msgpack_load(path)["v"] == 3
    assert os.listdir(os.path.dirname(path)) == ["model.msgpack"]


def test_max_size(file: ModuleType, path: str) -> None:
    file.msgpack_save(path, {"a": np.arange(1000)})
    with pytest.raises(ValueError, match="too large"):
        file.msgpack_load(path, max_size=10)
    for max_size in (None, 1_000_000):
        np.testing.assert_array_equal(file.msgpack_load(path, max_size=max_size)["a"], np.arange(1000))


def test_validation_after_loading(file: ModuleType, path: str) -> None:
    expected = {"weights": (2, 2), "bias": (2,)}
    loaded = roundtrip(file, path, {"weights": jnp.ones((2, 2)), "bias": jnp.zeros(2)})
    assert {name: loaded[name].shape for name in expected} == expected


def test_regular_checkpoints_in_a_loop(file: ModuleType, tmp_path: pathlib.Path) -> None:
    state = {"weights": jnp.zeros(4), "rng": jax.random.PRNGKey(42), "epoch": -1}
    kept: list[pathlib.Path] = []
    with file.AsyncManager() as manager:
        for epoch in range(25):
            state = {**state, "weights": state["weights"] + 1, "epoch": epoch}
            if epoch % 5 == 0:
                path = tmp_path / f"checkpoint_epoch_{epoch}.msgpack"
                kept.append(file.msgpack_save(path, state, async_manager=manager))
                while len(kept) > 3:
                    os.remove(kept.pop(0))
    assert sorted(os.listdir(tmp_path)) == [f"checkpoint_epoch_{epoch}.msgpack" for epoch in (10, 15, 20)]
    loaded = file.msgpack_load(kept[-1], target=state)
    assert loaded["epoch"] == 20
    np.testing.assert_array_equal(loaded["weights"], np.full(4, 21.0))


def test_no_warning_on_the_way(file: ModuleType, path: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        roundtrip(file, path, {"w": jnp.ones(3), "q": 1.0 * u.mV}, {"w": jnp.zeros(3), "q": 0.0 * u.mV})


# --- Files that were written before the import changed ------------------------------------------------------


def test_old_files_load_with_the_code_that_wrote_them(path: str) -> None:
    old, new = (importlib.import_module(name) for name in ("braintools.file", "braintools_ckpt"))
    layer_type = layer_class()
    for file in (old, new):
        register_layer(file, layer_type)

    def checkpoint(fill: float) -> dict[str, Any]:
        layer = layer_type(2, 2)
        layer.bias = jnp.full(2, fill)
        params = {"w": jnp.full(3, fill)}
        return {
            "model": SimpleModel(fill).states(),
            "optimizer": optax.adam(1e-3).init(params),
            "layers": [layer, Point(fill, (jnp.full(1, fill),))],
            "membrane": jnp.full(4, fill) * u.mV,
            "epoch": int(fill),
        }

    old.msgpack_save(path, checkpoint(3.0))
    want, got = checkpoint(3.0), new.msgpack_load(path, target=checkpoint(0.0))
    for key in want["model"]:
        np.testing.assert_array_equal(*(jax.tree.leaves(tree["model"][key].value)[0] for tree in (want, got)))
    np.testing.assert_array_equal(got["layers"][0].bias, np.full(2, 3.0))
    assert got["layers"][1].x == 3.0
    assert got["membrane"].unit == u.mV
    np.testing.assert_array_equal(got["membrane"].mantissa, np.full(4, 3.0))
    assert got["epoch"] == 3
    assert jax.tree.structure(got["optimizer"]) == jax.tree.structure(want["optimizer"])
