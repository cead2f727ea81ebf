"""Asynchronous saves: what is written are the values of the moment of the call, and no error is lost."""

from __future__ import annotations

import threading

import jax.numpy as jnp
import numpy as np
import pytest
from trees import assert_same

import braintools_ckpt as bt


class Gate(bt.AsyncManager):
    """A manager whose saves wait until they are let through."""

    def __init__(self):
        super().__init__()
        self.open = threading.Event()

    def save_async(self, task):
        super().save_async(lambda: (self.open.wait(10), task()))


@pytest.mark.parametrize("format", ["v1", "flax"])
def test_what_changes_after_the_call_is_not_written(format, tmp_path):
    path = tmp_path / "x"
    array, items, buffer = np.zeros(3), [1, 2], {"a": jnp.zeros(2)}
    with Gate() as manager:
        bt.msgpack_save(path, {"x": array, "l": {"0": items[0]}, "d": buffer}, async_manager=manager, format=format)
        array[:] = 7
        items.append(3)
        buffer["a"].delete()
        buffer["b"] = 1
        manager.open.set()
    loaded = bt.msgpack_load(path, arrays="numpy")
    assert_same({"x": np.zeros(3), "l": {"0": 1}, "d": {"a": np.zeros(2, "f4")}}, loaded)


def test_an_error_is_raised_once_and_does_not_poison_the_manager(tmp_path):
    (tmp_path / "dir").mkdir()
    manager = bt.AsyncManager()
    bt.msgpack_save(tmp_path / "dir", {"a": 1}, async_manager=manager)
    with pytest.raises(bt.InvalidCheckpointPath):
        manager.wait_previous_save()
    manager.wait_previous_save()
    bt.msgpack_save(tmp_path / "x", {"a": 1}, async_manager=manager)
    manager.close()
    assert bt.msgpack_load(tmp_path / "x") == {"a": 1}
    with pytest.raises(RuntimeError, match="closed AsyncManager"):
        manager.save_async(lambda: None)


def test_an_exception_in_the_block_is_not_hidden_by_a_failed_save(tmp_path):
    (tmp_path / "dir").mkdir()
    with pytest.raises(KeyError, match="mine") as caught, bt.AsyncManager() as manager:  # noqa: PT012
        bt.msgpack_save(tmp_path / "dir", {"a": 1}, async_manager=manager)
        raise KeyError("mine")
    assert "last background save failed" in caught.value.__notes__[0]


def test_what_is_no_manager():
    for wrong in (bt.AsyncManager, 5):
        with pytest.raises(TypeError, match="async_manager must be an AsyncManager object"):
            bt.msgpack_save("x", {}, async_manager=wrong)
