"""What a load says of itself: each path of file and target is loaded, kept or ignored, and it is true."""

from __future__ import annotations

import dataclasses
import io

import brainstate
import brainunit as u
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import braintools_ckpt as bt
from braintools_ckpt import LoadReport, MismatchError, msgpack_dumps, msgpack_loads


def report_of(saved, target, **options):
    """Load, and give the tree and what is said of it."""
    reports = []
    tree = msgpack_loads(msgpack_dumps(saved), target, report=reports.append, **options)
    (report,) = reports
    return tree, report


class Old(nnx.Module):
    def __init__(self, rngs):
        self.trunk = nnx.List([nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)])
        self.head = nnx.Linear(4, 10, rngs=rngs)
        self.extra = nnx.Param(jnp.ones(2))
        self.drop = nnx.Dropout(0.5, rngs=rngs)


class New(nnx.Module):
    def __init__(self, rngs):
        self.body = nnx.List([nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)])
        self.head = nnx.Linear(4, 3, rngs=rngs)
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)


BODY = ("body/0/bias", "body/0/kernel", "body/1/bias", "body/1/kernel")
RANDOM = ("drop/rngs/count", "drop/rngs/key")


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.filterwarnings("ignore:The target dict", "ignore:Array shape")
def test_a_trunk_with_a_new_head(partial):
    target = New(nnx.Rngs(1))
    head = np.array(target.head.kernel[...])
    how = {"rename": {"trunk": "body"}, "mismatch": "warn", "partial": partial}
    _, report = report_of(Old(nnx.Rngs(0)), target, **how)
    assert report == LoadReport(
        loaded=(*RANDOM, *BODY),
        kept=("head/bias", "head/kernel", "norm"),
        ignored=("extra", "head/bias", "head/kernel"),
    )
    np.testing.assert_array_equal(target.head.kernel[...], head)
    np.testing.assert_array_equal(target.body[0].kernel[...], Old(nnx.Rngs(0)).trunk[0].kernel[...])


def test_what_a_filter_leaves_out():
    only = nnx.All(nnx.Param, nnx.Not(nnx.RngState))
    _, report = report_of(Old(nnx.Rngs(0)), Old(nnx.Rngs(1)), only=only)
    trunk = tuple(path.replace("body", "trunk") for path in BODY)
    assert report == LoadReport(("extra", "head/bias", "head/kernel", *trunk), RANDOM, RANDOM)


class Net(brainstate.nn.Module):
    def __init__(self, n, *more):
        super().__init__()
        self.w = brainstate.ParamState({"w": jnp.ones(n) * u.mV, "b": jnp.zeros(2)})
        self.layer = brainstate.nn.Linear(2, 3)
        for name in more:
            setattr(self, name, brainstate.ParamState(jnp.ones(1)))


def test_states():
    _, report = report_of(Net(2, "x"), Net(3, "y"), mismatch="ignore")
    assert report == LoadReport(("layer/weight/weight", "layer/weight/bias", "w/b"), ("w/w", "y"), ("x", "w/w"))
    flat = brainstate.graph.states(Net(2, "y"))
    _, report = report_of(Net(2, "x"), flat, mismatch="ignore")
    assert report == LoadReport(("layer/weight/weight", "layer/weight/bias", "w/w", "w/b"), ("y",), ("x",))


def test_nested_files_into_flat_targets():
    saved = {"a": {"b": np.ones(2), "c": np.ones(3)}, "d": np.ones(1)}
    target = brainstate.util.FlattedDict({("a", "b"): np.zeros(2), ("e",): np.zeros(1)})
    tree, report = report_of(saved, target, mismatch="ignore")
    assert report == LoadReport(("a/b",), ("e",), ("a/c", "d"))
    np.testing.assert_array_equal(tree["a", "b"], np.ones(2))


def test_units():
    target = {"a": 1.0 * u.ms, "b": 1.0 * u.ms, "c": 1.0}
    tree, report = report_of({"a": 2.0 * u.second, "b": 3.0 * u.mV, "c": 4.0 * u.mV}, target, mismatch="ignore")
    assert report == LoadReport(("a",), ("b", "c"), ("b", "c"))
    assert (tree["a"], tree["b"], tree["c"]) == (2.0 * u.second, 1.0 * u.ms, 1.0)


def test_values_that_do_not_survive():
    target = {"a": np.zeros(2, np.float32), "b": np.zeros(1, np.float32)}
    _, report = report_of({"a": np.array([1, 2**24 + 1]), "b": np.array([1])}, target, mismatch="ignore")
    assert report == LoadReport(("b",), ("a",), ("a",))


def test_without_a_target_all_is_loaded():
    tree, report = report_of({"a": [1, {}], "b": np.zeros(2)}, None)
    assert report == LoadReport(("a/0", "a/1", "b"), (), ())
    assert tree["a"] == [1, {}]


def test_nothing_is_said_of_a_load_that_failed():
    with pytest.raises(MismatchError):
        msgpack_loads(msgpack_dumps({"a": 1}), {"b": 1}, report=pytest.fail)


@pytest.mark.parametrize("report", [True, "print", [], LoadReport])
def test_reports_go_to_functions(report):
    with pytest.raises(TypeError, match="report must be a function of one LoadReport, such as print"):
        msgpack_loads(msgpack_dumps(1), report=report)


def test_all_ways_to_load(tmp_path):
    reports = []
    path = bt.msgpack_save(tmp_path / "a", {"a": 1})
    bt.msgpack_load(path, {"a": 0}, report=reports.append)
    with bt.open_checkpoint(path) as checkpoint:
        checkpoint.load({"a": 0}, report=reports.append)
    with bt.CheckpointManager(tmp_path / "run") as manager:
        manager.save(3, {"a": 1})
        manager.restore(target={"a": 0}, report=reports.append)
    assert reports == [LoadReport(("a",), (), ())] * 3


def test_what_stands_in_several_places():
    state = brainstate.ParamState(jnp.zeros(3))
    target = {"a": state, "b": state}

    def saved(a, b):
        return {"a": brainstate.ParamState(jnp.ones(a)), "b": brainstate.ParamState(2 * jnp.ones(b))}

    for a, b in [(3, 3), (3, 4)]:  # two values for one state, or one that does not fit
        _, report = report_of(saved(a, b), target, mismatch="ignore")
        assert (report.loaded, set(report.kept), set(report.ignored)) == ((), {"a", "b"}, {"a", "b"})
        np.testing.assert_array_equal(state.value, np.zeros(3))
    _, report = report_of({"a": saved(3, 3)["a"]}, target, mismatch="ignore")
    assert report == LoadReport(("a",), (), ())
    np.testing.assert_array_equal(state.value, np.ones(3))


def test_what_was_upgraded_has_the_new_names():
    def made(version, fields, **options):
        ty = dataclasses.make_dataclass("Layer", fields)
        return bt.serializable(name="load_report.Layer", version=version, override=version > 1, **options)(ty)

    old = made(1, ["w", "rest", "gone"])
    data = msgpack_dumps([{"x": old(np.ones(2), [1, np.ones(3)], 0), "w": 1} for _ in range(2)])
    new = made(2, ["weight", "rest", "bias"], upgrade={1: lambda f: {"weight": f["w"], "rest": f["rest"], "g": 0}})
    reports = []
    target = [{"x": new(np.zeros(2), [0, np.zeros(4)], 7), "w": 0} for _ in range(2)]
    msgpack_loads(data, target, mismatch="ignore", report=reports.append)
    (report,) = reports
    assert set(report.loaded) == {f"{i}/{path}" for i in range(2) for path in ("x/weight", "x/rest/0", "w")}
    assert set(report.kept) == {"0/x/bias", "0/x/rest/1", "1/x/bias", "1/x/rest/1"}
    assert set(report.ignored) == {"0/x/g", "0/x/rest/1", "1/x/g", "1/x/rest/1"}


def test_what_moves_within_a_tuple():
    _, report = report_of({"o": (1, {"x": 2})}, {"o": (0, {"z": 0})}, rename={"o/1/x": "o/1/z"})
    assert report == LoadReport(("o/0", "o/1/z"), (), ())


def test_keys_that_are_numbers_or_text():
    _, report = report_of({"0": 1, "a": {"1": 2}}, {0: 0, "a": [1]}, mismatch="ignore")
    assert report == LoadReport(("0",), ("a",), ("a",))
    _, report = report_of({"a": {"0": [1], "1": 2}}, {"a": [[0], "text"]}, mismatch="ignore")
    assert report == LoadReport(("a/0/0",), ("a/1",), ("a/1",))
    _, report = report_of({"1": 2, 1: 3}, {1: 0}, partial=True)
    assert report == LoadReport(("1",), (), ("'1'",))


def test_loads_that_a_handler_starts():
    class Holder:
        def __init__(self, parts):
            self.parts = parts

    def restore(target, state, mismatch):
        target.parts = bt.msgpack_from_state_dict(target.parts, state["parts"], name="parts", mismatch=mismatch)
        return target

    bt.msgpack_register_serialization(Holder, lambda holder: {"parts": holder.parts}, restore)
    target = Holder({"a": np.zeros(2), "b": np.zeros(3)})
    _, report = report_of({"h": Holder({"a": np.ones(2), "b": np.ones(4)})}, {"h": target}, mismatch="ignore")
    assert report == LoadReport(("h/parts/a",), ("h/parts/b",), ("h/parts/b",))


def test_an_empty_container_of_the_file():
    assert report_of({"a": {}}, {"a": {"x": 1}}, mismatch="ignore")[1] == LoadReport((), ("a/x",), ())
    assert report_of({"a": {}}, {"a": {}})[1] == LoadReport(("a",), (), ())


def test_the_state_dict():
    reports = []
    msgpack_loads(msgpack_dumps({"a": [1]}), raw=True, report=reports.append)
    assert reports == [LoadReport(("a/0",), (), ())]


# Whatever is loaded into whatever else.

LEAVES = st.sampled_from([0, 1, "text", None, 0.5]) | st.integers(0, 3).map(lambda n: np.full(n, 7.0))
KEYS = st.sampled_from(["a", "b", "a/b", 1, ("a", "b")])
TREES = st.recursive(
    LEAVES,
    lambda trees: (
        st.dictionaries(KEYS, trees, max_size=3)
        | st.lists(trees, max_size=3)
        | st.lists(trees, max_size=3).map(tuple)
        | st.dictionaries(st.tuples(st.sampled_from("ab"), st.sampled_from("cd")), trees, max_size=2).map(
            brainstate.util.FlattedDict
        )
    ),
    max_leaves=8,
)


def leaves(tree):
    """Give the leaves of a tree by path, as plain values; what is empty is 0."""
    with bt.open_checkpoint(io.BytesIO(msgpack_dumps(tree))) as checkpoint:
        return {path: np.asarray(checkpoint[path]).tolist() or 0 for path in checkpoint.paths}


def below(path, tops):
    return any(top in (".", path) or path.startswith(top + "/") for top in tops)


@given(saved=TREES, target=TREES, partial=st.booleans())
def test_every_path_is_accounted_for(saved, target, partial):
    tree, report = report_of(saved, target, mismatch="ignore", partial=partial)
    file, before = leaves(saved), leaves(target)
    for path, value in file.items():
        made_of_nothing = value == 0 and any(below(top, [path]) for top in report.kept)
        assert (path in report.loaded) is not (below(path, report.ignored) or made_of_nothing)
    for path, value in leaves(tree).items():
        if below(path, report.kept):
            assert value == before[path]
        elif path in report.loaded:
            assert value == file[path]
        else:  # nothing, where the file has something that is ignored
            assert value == before[path] == 0
            assert any(below(top, [path]) for top in report.ignored)
