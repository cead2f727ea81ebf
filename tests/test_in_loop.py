"""Saves from within compiled loops."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from unittest import mock

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from trees import assert_same

import braintools_ckpt as bt
from braintools_ckpt.adapters import jax as jax_adapter

ROOT = Path(__file__).parent.parent


def tree_of(i):
    """Give what a tree holds after ``i`` steps."""
    return {"v": jnp.float32(i * 2) * u.mV, "n": [jnp.arange(3.0) + i, {"i": jnp.int32(i), "name": "run"}]}


def advance(tree):
    return {"v": tree["v"] + 2 * u.mV, "n": [tree["n"][0] + 1, {"i": tree["n"][1]["i"] + 1, "name": "run"}]}


def without_name(tree):
    """Give what a loop can carry."""
    return {"v": tree["v"], "n": [tree["n"][0], {"i": tree["n"][1]["i"]}]}


def with_name(tree):
    return {"v": tree["v"], "n": [tree["n"][0], {"i": tree["n"][1]["i"], "name": "run"}]}


def in_scan(save, steps):
    def step(carry, i):
        save(i, with_name(carry))
        return without_name(advance(with_name(carry))), None

    return lax.scan(step, without_name(tree_of(0)), jnp.arange(steps))[0]


def in_jitted_scan(save, steps):
    return jax.jit(lambda: in_scan(save, steps))()


def in_fori_loop(save, steps):
    def step(i, carry):
        save(i, with_name(carry))
        return without_name(advance(with_name(carry)))

    return lax.fori_loop(0, steps, step, without_name(tree_of(0)))


def in_while_loop(save, steps):
    def step(state):
        i, carry = state
        save(i, with_name(carry))
        return i + 1, without_name(advance(with_name(carry)))

    return lax.while_loop(lambda state: state[0] < steps, step, (0, without_name(tree_of(0))))


def in_jit(save, steps):
    @jax.jit
    def step(i, carry):
        save(i, with_name(carry))
        return without_name(advance(with_name(carry)))

    carry = without_name(tree_of(0))
    for i in range(steps):
        carry = step(i, carry)
    return carry


def in_jit_of_known_steps(save, steps):
    @jax.jit
    def run(carry):
        for i in range(steps):
            save(i, with_name(carry))
            carry = without_name(advance(with_name(carry)))
        return carry

    return run(without_name(tree_of(0)))


def in_python(save, steps):
    carry = tree_of(0)
    for i in range(steps):
        save(i, carry)
        carry = advance(carry)
    return carry


def in_brainstate(save, steps):
    carry = brainstate.State(without_name(tree_of(0)))

    def step(i):
        save(i, with_name(carry.value))
        carry.value = without_name(advance(with_name(carry.value)))

    brainstate.transform.for_loop(step, jnp.arange(steps))
    return carry.value


LOOPS = [
    in_scan,
    in_jitted_scan,
    in_fori_loop,
    in_while_loop,
    in_jit,
    in_jit_of_known_steps,
    in_python,
    in_brainstate,
]


@pytest.mark.parametrize("background", [False, True], ids=["at once", "background"])
@pytest.mark.parametrize("loop", LOOPS)
def test_the_values_of_the_steps_are_saved(loop, background, tmp_path):
    manager = bt.AsyncManager() if background else None
    save = bt.save_in_loop(tmp_path / "{step:03}", every=10, async_manager=manager, durable=False)
    jax.block_until_ready(loop(save, 35))
    manager.close() if background else jax.effects_barrier()
    assert sorted(os.listdir(tmp_path)) == ["000", "010", "020", "030"]
    for i in (0, 10, 20, 30):
        assert_same(tree_of(i), bt.msgpack_load(tmp_path / f"{i:03}"), loaded=True)
        with bt.open_checkpoint(tmp_path / f"{i:03}") as checkpoint:
            assert checkpoint.metadata == {"step": i}


def test_one_path_holds_the_last_save(tmp_path):
    with bt.AsyncManager() as manager:
        save = bt.save_in_loop(str(tmp_path / "x"), every=7, async_manager=manager, metadata={"run": "a"})
        in_jitted_scan(save, 30)
    assert_same(tree_of(28), bt.msgpack_load(tmp_path / "x"), loaded=True)
    with bt.open_checkpoint(tmp_path / "x") as checkpoint:
        assert checkpoint.metadata == {"run": "a", "step": 28}


def test_states_modules_keys_and_constants(tmp_path):
    class Cell(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.v = brainstate.HiddenState(jnp.zeros(3) * u.mV)
            self.w = brainstate.ParamState({"w": jnp.ones(2, jnp.bfloat16)})

    def make():
        return Cell(), brainstate.ShortTermState(jnp.zeros(2))

    cell, spikes = make()
    constant = np.arange(3)
    unchanged = jnp.arange(4)
    save = bt.save_in_loop(tmp_path / "{step}", every=5)

    def tree(key):
        return {"cell": cell, "spikes": spikes, "constant": constant, "unchanged": unchanged, "key": key, "same": key}

    def step(i, key):
        cell.v.value = cell.v.value + 1 * u.mV
        cell.w.value = {"w": cell.w.value["w"] * 2}
        spikes.value = spikes.value + 3
        key = jax.random.split(key)[0]
        save(i, tree(key))
        return key

    @brainstate.transform.jit
    def run(key):
        return brainstate.transform.scan(lambda key, i: (step(i, key), None), key, jnp.arange(8))[0]

    run(jax.random.key(0))
    constant[:] = 9
    jax.effects_barrier()
    key = jax.random.key(0)
    for _ in range(6):
        key = jax.random.split(key)[0]
    loaded_cell, loaded_spikes = make()
    target = {
        "cell": loaded_cell,
        "spikes": loaded_spikes,
        "constant": np.zeros(3, int),
        "unchanged": jnp.zeros(4, int),
        "key": jax.random.key(1),
        "same": jax.random.key(1),
    }
    loaded = bt.msgpack_load(tmp_path / "5", target)
    assert_same(jnp.full(3, 6.0, jnp.float32) * u.mV, loaded_cell.v.value, loaded=True)
    assert_same({"w": jnp.full(2, 64, jnp.bfloat16)}, loaded_cell.w.value, loaded=True)
    assert_same(jnp.full(2, 18.0, jnp.float32), loaded_spikes.value, loaded=True)
    assert_same(np.arange(3), loaded["constant"])
    assert_same(jnp.arange(4), loaded["unchanged"], loaded=True)
    assert_same(key, loaded["key"], loaded=True)


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "int8", "bool", "complex64", "float8_e4m3fn", "int4"]
)
def test_every_dtype(dtype, tmp_path):
    array = (jnp.arange(10) % 2).astype(dtype)
    save = bt.save_in_loop(tmp_path / "x", every=1)

    @jax.jit
    def run(array):
        save(3, {"a": array, "b": [array[0], array[:0]]})
        return array

    run(array)
    jax.effects_barrier()
    assert_same({"a": array, "b": [array[0], array[:0]]}, bt.msgpack_load(tmp_path / "x"), loaded=True)


def test_large_arrays_in_the_background_are_those_of_the_step(tmp_path):
    def step(carry, i):
        carry = carry + 1
        save(i, {"a": carry})
        return carry, None

    with bt.AsyncManager(max_pending=2) as manager:
        save = bt.save_in_loop(tmp_path / "{step}", every=3, async_manager=manager, durable=False)
        jax.lax.scan(step, jnp.zeros(2_000_000), jnp.arange(30))
    for i in range(0, 30, 3):
        assert_same(np.full(2_000_000, i + 1, np.float32), bt.msgpack_load(tmp_path / str(i), arrays="numpy")["a"])


def test_nothing_leaves_the_device_between_the_saves(tmp_path):
    calls = []
    real = jax_adapter.io_callback

    def counted(function, *args, **options):
        return real(lambda *given: (calls.append(int(given[0])), function(*given))[1], *args, **options)

    with mock.patch.object(jax_adapter, "io_callback", counted):
        in_jitted_scan(bt.save_in_loop(tmp_path / "x", every=100), 1000)
        jax.effects_barrier()
    assert calls == list(range(0, 1000, 100))


def test_a_function_that_is_differentiated(tmp_path):
    save = bt.save_in_loop(tmp_path / "{step}", every=2)

    def loss(w):
        carry = jnp.float32(1)
        for i in range(3):
            carry = carry * w
            save(i, {"carry": carry})
        return carry

    value, slope = jax.jit(jax.value_and_grad(loss))(jnp.float32(2))
    jax.effects_barrier()
    assert (value, slope) == (8, 12)
    assert sorted(os.listdir(tmp_path)) == ["0", "2"]
    assert_same({"carry": jnp.float32(8)}, bt.msgpack_load(tmp_path / "2"), loaded=True)


def test_the_old_format(tmp_path):
    save = bt.save_in_loop(tmp_path / "x", every=1, format="flax")
    jax.jit(lambda x: save(0, {"x": x}))(jnp.ones(2))
    jax.effects_barrier()
    assert_same({"x": np.ones(2, "f4")}, bt.msgpack_load(tmp_path / "x"), loaded=True)


def test_an_error_is_raised_where_results_are_waited_for(tmp_path):
    (tmp_path / "x").mkdir()
    save = bt.save_in_loop(tmp_path / "x", every=1)
    with pytest.raises(Exception, match="it is a directory"):  # noqa: PT012
        jax.block_until_ready(in_jitted_scan(save, 3))
        jax.effects_barrier()


def test_an_error_in_the_background_is_raised_by_the_manager(tmp_path):
    (tmp_path / "x").mkdir()
    manager = bt.AsyncManager()
    save = bt.save_in_loop(tmp_path / "x", every=10, async_manager=manager)
    in_jitted_scan(save, 10)
    with pytest.raises(bt.InvalidCheckpointPath, match="it is a directory"):
        manager.close()


def test_what_cannot_be_saved_is_an_error_when_it_is_traced(tmp_path):
    save = bt.save_in_loop(tmp_path / "x", every=1)
    with pytest.raises(bt.SerializationError, match="at path f"):
        jax.jit(lambda x: save(0, {"x": x, "f": lambda: 0}))(jnp.ones(2))


def test_a_save_that_does_not_belong_there_says_what_does():
    with pytest.raises(bt.SerializationError, match="save_in_loop"):
        jax.jit(lambda x: bt.msgpack_dumps({"x": x}))(jnp.ones(2))


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (("x", 0), ValueError, "every must be at least 1, got 0"),
        (("x", 2.0), TypeError, "every must be a whole number, got 2.0"),
        (("{stop}", 2), ValueError, "The only name that may stand in braces is step"),
        (("{", 2), ValueError, "cannot be formatted"),
        (("{step.number}", 2), ValueError, "cannot be formatted"),
        (("{step[0]}", 2), ValueError, "cannot be formatted"),
        ((5, 2), TypeError, "destination must be a path, got int"),
    ],
)
def test_arguments_that_cannot_be(args, error, message):
    with pytest.raises(error, match=message):
        bt.save_in_loop(*args)


def test_one_core_and_large_arrays(tmp_path):
    """Calls back to Python hang if they wait for what jax would compute in the thread that they are in."""
    code = """
        import os, sys
        os.sched_setaffinity(0, {next(iter(os.sched_getaffinity(0)))})
        import jax, jax.numpy as jnp, braintools_ckpt as bt
        for manager in (None, bt.AsyncManager()):
            save = bt.save_in_loop(sys.argv[1] + "/{step}", every=2, async_manager=manager, durable=False)
            def step(carry, i):
                carry = {"a": carry["a"] + 1, "b": [b + 1 for b in carry["b"]]}
                save(i, carry)
                return carry, None
            carry = {"a": jnp.zeros(4_000_000), "b": [jnp.zeros(1000, jnp.bfloat16) for _ in range(50)]}
            carry, _ = jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(6)))(carry)
            jax.effects_barrier()
            if manager:
                manager.close()
            for i in (0, 2, 4):
                found = bt.msgpack_load(sys.argv[1] + f"/{i}", arrays="numpy")
                assert (found["a"] == i + 1).all() and all((b == i + 1).all() for b in found["b"])
    """
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("the platform has no affinity")
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), tmp_path], cwd=ROOT, timeout=100, check=False)
    assert done.returncode == 0


# What reviews found.


def test_one_traced_value_in_several_places(tmp_path):
    def step(v, i):
        save(i, {"a": v, "b": v, "c": [v * u.mV, (v,)]})
        return v + 1, None

    save = bt.save_in_loop(tmp_path / "x", 1)
    lax.scan(step, jnp.zeros(2), jnp.arange(3))
    jax.effects_barrier()
    two = jnp.full(2, 2.0, jnp.float32)
    loaded = bt.msgpack_load(tmp_path / "x")
    assert_same({"a": two, "b": two, "c": [two * u.mV, (two,)]}, loaded, identity=False, loaded=True)
    assert loaded["a"] is loaded["b"]


@pytest.mark.parametrize(
    ("dtype", "every", "steps", "saved"),
    [
        ("uint8", 256, 6, [0]),
        ("uint8", 100, 250, [0, 100, 200]),
        ("int8", 100, 120, [0, 100]),
        ("int8", 1000, 60, [0]),
        ("uint32", 2, 4, [0, 2]),
        ("int32", 2**31, 3, [0]),
        ("uint32", 2**40, 3, [0]),
    ],
)
def test_steps_of_any_dtype(dtype, every, steps, saved, tmp_path):
    save = bt.save_in_loop(tmp_path / "{step}", every, durable=False)

    def step(v, i):
        save(i.astype(dtype), v)
        return v, None

    lax.scan(step, 1.0, jnp.arange(steps))
    jax.effects_barrier()
    assert sorted(map(int, os.listdir(tmp_path))) == saved


@pytest.mark.parametrize(
    ("step", "shown"),
    [
        (0.5, "0.5"),
        (True, "True"),
        (jnp.float32(1), r"float32\[\]"),
        (jnp.ones(1, int), r"int32\[1\]"),
        (3 * u.ms, "."),
        ("3", "'3'"),
    ],
)
def test_steps_that_are_no_whole_number(step, shown, tmp_path):
    save = bt.save_in_loop(tmp_path / "x", 1)
    with pytest.raises(TypeError, match=f"step must be one whole number, got {shown}"):
        save(step, {"a": 1})
    if isinstance(step, jax.Array):
        with pytest.raises(TypeError, match=f"step must be one whole number, got {shown}"):
            jax.jit(lambda step: save(step, {"a": 1}))(step)
    assert os.listdir(tmp_path) == []


def test_within_shard_map_it_is_refused(tmp_path):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("d",))
    save = bt.save_in_loop(tmp_path / "x", 1)
    spec = jax.sharding.PartitionSpec("d")
    run = jax.shard_map(lambda x: (save(0, {"x": x}), x)[1], mesh=mesh, in_specs=spec, out_specs=spec)
    with pytest.raises(bt.SerializationError, match=r"inside of jax\.shard_map"):
        jax.jit(run)(jnp.arange(8.0))


def test_arrays_that_are_closed_over(tmp_path):
    pinned = jax.device_put(jnp.arange(3), jnp.arange(3).sharding.with_memory_kind("pinned_host"))
    tree = {"whole": jnp.arange(5), "narrow": jnp.ones(2, jnp.bfloat16), "numpy": np.arange(2)}
    with bt.AsyncManager() as manager:
        save = bt.save_in_loop(tmp_path / "x", 1, async_manager=manager)
        jax.jit(lambda x: save(0, {**tree, "x": x}))(jnp.ones(2, jnp.float32))
    assert_same({**tree, "x": jnp.ones(2, jnp.float32)}, bt.msgpack_load(tmp_path / "x"), loaded=True)
    assert pinned.sharding.memory_kind == "pinned_host"


def test_a_loop_that_outlives_its_manager(tmp_path):
    manager = bt.AsyncManager()
    save = bt.save_in_loop(tmp_path / "x", 1, async_manager=manager)
    run = jax.jit(lambda x: save(0, {"x": x}))
    run(jnp.ones(2))
    manager.close()
    run(jnp.zeros(2))
    jax.effects_barrier()
    assert_same({"x": jnp.zeros(2, jnp.float32)}, bt.msgpack_load(tmp_path / "x"), loaded=True)


def test_a_manager_is_closed_though_its_loop_has_failed(tmp_path):
    (tmp_path / "x").mkdir()
    manager = bt.AsyncManager()
    bt.msgpack_save(tmp_path / "y", {"a": 1}, async_manager=manager)
    save = bt.save_in_loop(tmp_path / "x", 1, overwrite=False, async_manager=manager)
    with pytest.raises(Exception, match="existing file|overwrite"):  # noqa: PT012
        jax.block_until_ready(jax.jit(lambda x: (save(0, {"x": x}), x)[1])(jnp.ones(2)))
        manager.close()
    manager.close()
    assert manager.closed
    assert bt.msgpack_load(tmp_path / "y") == {"a": 1}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"compression": "bad"}, ValueError),
        ({"format": "v2"}, ValueError),
        ({"format": "flax", "metadata": {"a": 1}}, ValueError),
        ({"async_manager": bt.AsyncManager}, TypeError),
        ({"nosuch": 1}, TypeError),
    ],
)
def test_options_are_checked_at_once(options, error, tmp_path):
    with pytest.raises(error):
        bt.save_in_loop(tmp_path / "x", 1, **options)


def test_the_path_is_that_of_when_it_was_given(tmp_path, monkeypatch):
    (tmp_path / "{a}").mkdir()
    monkeypatch.chdir(tmp_path / "{a}")
    save = bt.save_in_loop("x{step}", np.int64(1))
    monkeypatch.chdir(tmp_path)
    jax.jit(lambda x: save(0, {"x": x}))(jnp.ones(2))
    jax.effects_barrier()
    assert os.listdir(tmp_path / "{a}") == ["x0"]
