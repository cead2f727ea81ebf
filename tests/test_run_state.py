"""A whole run in one tree: parts with methods for their state, and the global generators."""

from __future__ import annotations

import random

import jax
import numpy as np
import pytest

import braintools_ckpt as bt
from braintools_ckpt import CheckpointManager, msgpack_dumps, msgpack_loads, run_state


class Batches:
    """An iterator of data that can go on, as grain's or torchdata's."""

    def __init__(self, seed, n=10):
        self.n, self.at, self.order = n, 0, np.random.default_rng(seed).permutation(n)

    def __next__(self):
        self.at += 1
        return int(self.order[(self.at - 1) % self.n])

    def state_dict(self):
        return {"at": self.at, "order": self.order}

    def load_state_dict(self, state):
        if len(state["order"]) != self.n:
            raise ValueError("another number of samples")
        self.at, self.order = state["at"], state["order"]


class Bytes:
    """One whose state is bytes, by the other pair of names."""

    def __init__(self):
        self.n = 0

    def get_state(self):
        return b"%d" % self.n

    def set_state(self, state):
        self.n = int(state)


def test_a_run_goes_on_with_the_same_numbers(tmp_path):
    def draw(run):
        return random.random(), np.random.random(), next(run["data"]), jax.random.uniform(run["key"]).item()

    def made(seed):
        random.seed(seed)
        np.random.seed(seed)
        return run_state(w=np.full(2, seed), key=jax.random.key(seed), data=Batches(seed), other=Bytes())

    with CheckpointManager(tmp_path) as manager:
        step, run = manager.restore_or(made(0))
        draw(run)
        run["other"].n = 7
        manager.save(step + 1, run)
        manager.wait()
        expected = draw(run)
        fresh = made(1)
        step, run = manager.restore_or(fresh)
        assert step == 1
        assert run["data"] is fresh["data"]
        assert run["other"].n == 7
        assert draw(run) == expected


def test_a_load_that_fails_puts_generators_and_iterators_back():
    random.seed(0)
    data = msgpack_dumps({"run": run_state(data=Batches(0)), "z": Batches(0, n=5)})
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tobytes()
    target = {"run": run_state(data=Batches(1)), "z": Batches(1, n=6)}
    order = target["run"]["data"].order.copy()
    with pytest.raises(bt.HandlerError, match="The Batches at path z refused the state .* another number of samples"):
        msgpack_loads(data, target)
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == before
    np.testing.assert_array_equal(target["run"]["data"].order, order)


def test_parts_that_cannot_give_their_state():
    class Broken:
        def state_dict(self):
            raise RuntimeError("no")

        def load_state_dict(self, state): ...

    with pytest.raises(bt.HandlerError, match=r"failed to give its state: RuntimeError: no \(at path part\)"):
        msgpack_dumps(run_state(part=Broken()))
    with pytest.raises(ValueError, match="cannot be called 'random'"):
        run_state(random=1)


def test_without_a_target_the_state_itself_is_loaded():
    with pytest.warns(UserWarning, match="the state of an object of the class 'test_run_state.Batches'"):
        loaded = msgpack_loads(msgpack_dumps({"data": Batches(0)}))
    assert set(loaded["data"]) == {"at", "order"}
    with pytest.raises(bt.MismatchError, match="expected the state of a Batches"):
        msgpack_loads(msgpack_dumps({"data": 3}), {"data": Batches(0)})


def test_a_handler_comes_before_the_methods():
    class Both(Batches):
        pass

    bt.msgpack_register_serialization(
        Both, lambda b: {"n": b.n}, lambda t, s: t, name="test_run_state.Both", override=True
    )
    assert msgpack_loads(msgpack_dumps(Both(0)), raw=True) == {"n": 10}
