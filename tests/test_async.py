"""Asynchronous saves: what is written are the values of the moment of the call, and no error is lost."""

from __future__ import annotations

import contextlib
import copy as copying
import errno
import gc
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import leftovers
import ml_dtypes
import numpy as np
import pytest
from trees import assert_same

import braintools_ckpt as bt
from braintools_ckpt.adapters import jax as jax_adapter
from braintools_ckpt.storage import turns

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _all_is_seen():
    yield
    leftovers.assert_none()


class Gate(bt.AsyncManager):
    """A manager whose saves wait until they are let through."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._crew.size = 0
        self.open = self

    def set(self):
        self._crew.size = self.max_workers
        turns.start_due()


@pytest.fixture
def gate():
    with contextlib.ExitStack() as stack:

        def make(*args, **options):
            manager = stack.enter_context(Gate(*args, **options))
            stack.callback(manager.open.set)
            return manager

        yield make


@pytest.fixture
def taken(tmp_path):
    """A path where nothing can be saved: a folder stands there."""
    (tmp_path / "taken").mkdir()
    return tmp_path / "taken"


# What is saved.


@pytest.mark.parametrize("format", ["v1", "flax"])
def test_what_changes_after_the_call_is_not_written(format, tmp_path, gate):
    path = tmp_path / "x"
    array, items, buffer = np.zeros(3), [1, 2], {"a": jnp.zeros(2)}
    manager = gate()
    bt.msgpack_save(path, {"x": array, "l": {"0": items[0]}, "d": buffer}, async_manager=manager, format=format)
    array[:] = 7
    items.append(3)
    buffer["a"].delete()
    buffer["b"] = 1
    manager.open.set()
    loaded = bt.msgpack_load(path, arrays="numpy")
    assert_same({"x": np.zeros(3), "l": {"0": 1}, "d": {"a": np.zeros(2, "f4")}}, loaded)


DTYPES = ["float32", "float16", "bfloat16", "int8", "uint32", "bool", "complex64", "float8_e4m3fn", "int4"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [3, 100_000])
def test_donated_and_deleted_arrays_are_written_as_they_were(size, dtype, tmp_path, gate):
    def make(start):
        return [(jnp.arange(size) % 7 + start + i).astype(dtype) for i in range(20)]

    overwrite = jax.jit(lambda arrays: [(a.astype(int) * 0 + 1).astype(a.dtype) for a in arrays], donate_argnums=0)
    manager = gate(max_pending=10)
    expected = []
    for round_ in range(10):
        arrays = make(round_)
        expected.append([np.array(array) for array in arrays])
        bt.msgpack_save(tmp_path / f"{round_}", arrays, async_manager=manager, durable=False)
        overwrite(arrays[:10])
        for array in arrays[10:]:
            array.delete()
        del arrays
    manager.open.set()
    manager.wait_previous_save()
    for round_, arrays in enumerate(expected):
        assert_same(arrays, bt.msgpack_load(tmp_path / f"{round_}", arrays="numpy"))


@pytest.mark.filterwarnings("ignore:.*module of the class")
def test_everything_else_that_can_change_is_written_as_it_was(tmp_path, gate):
    class Held(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = brainstate.ParamState(jnp.ones(3) * u.mV)

    def make():
        return {
            "numpy": np.arange(5.0),
            "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            "view": np.arange(20)[::3],
            "large": np.arange(12_000_000, dtype=np.float64),
            "text": np.array(["a", "bc"]),
            "strings": np.array(["a", "bc"], dtype=np.dtypes.StringDType()),
            "records": np.array([(1, 2.0)], dtype=[("i", "i4"), ("f", "f8")]),
            "dates": np.array(["2026-01-01"], "M8[D]"),
            "masked": np.ma.array([1, 2], mask=[True, False]),
            "quantity": np.ones(3) * u.mV,
            "bytes": bytearray(b"abc"),
            "set": {1, 2},
            "list": [[1], {"a": [2]}],
            "state": brainstate.State({"v": jnp.zeros(2), "n": np.zeros(2)}),
            "module": Held(),
            "rng": np.random.default_rng(3),
        }

    tree, before = make(), make()
    manager = gate()
    bt.msgpack_save(tmp_path / "x", tree, async_manager=manager)
    for name in ("numpy", "fortran", "view", "large", "records", "masked"):
        tree[name][...] = np.zeros((), tree[name].dtype)
    tree["text"][:] = "z"
    tree["strings"][:] = "z"
    tree["dates"][:] = np.datetime64("1999-01-01")
    np.asarray(tree["quantity"].mantissa)[:] = 9
    tree["bytes"][:] = b"xyz"
    tree["set"].add(3)
    tree["list"][0].append(5)
    tree["list"][1]["a"].clear()
    tree["state"].value["n"][:] = 4
    tree["state"].value = {"v": jnp.ones(2), "n": np.ones(2)}
    tree["module"].w.value = jnp.zeros(3) * u.mV
    tree["rng"].normal(size=10)
    manager.open.set()
    expected = bt.msgpack_loads(bt.msgpack_dumps(before))
    found = bt.msgpack_load(tmp_path / "x")
    assert_same(expected, found, loaded=True)


def test_arrays_that_are_still_computed_are_not_waited_for(tmp_path, gate):
    @jax.jit
    def slow(x):
        return jax.lax.fori_loop(0, 4000, lambda _, x: jnp.sin(x) + 1, x)

    x = jnp.ones(20_000)
    slow(x).block_until_ready()
    result = slow(x)
    manager = gate()
    bt.msgpack_save(tmp_path / "x", {"x": result}, async_manager=manager)
    was_ready = result.is_ready()
    expected = np.array(result)
    result.delete()
    manager.open.set()
    np.testing.assert_array_equal(bt.msgpack_load(tmp_path / "x", arrays="numpy")["x"], expected)
    assert not was_ready


def test_arrays_elsewhere_are_copied(monkeypatch, tmp_path):
    """Take the way of arrays that lie on an accelerator."""
    monkeypatch.setattr(jax_adapter, "_view", lambda array: None)
    tree = {"a": jnp.arange(5), "b": [jnp.ones(3, jnp.bfloat16), jnp.zeros(())], "key": jax.random.key(3)}
    before = jax.tree.map(jnp.copy, tree)
    with bt.AsyncManager() as manager:
        bt.msgpack_save(tmp_path / "x", tree, async_manager=manager)
        for array in jax.tree.leaves(tree):
            array.delete()
    assert_same(before, bt.msgpack_load(tmp_path / "x"), loaded=True)

    def unknown(self, kind):
        raise ValueError(f"no memory of the kind {kind}")

    monkeypatch.setattr(jax.sharding.SingleDeviceSharding, "with_memory_kind", unknown)
    with bt.AsyncManager() as manager:
        bt.msgpack_save(tmp_path / "y", before, async_manager=manager)
    assert_same(before, bt.msgpack_load(tmp_path / "y"), loaded=True)


def run_python(code, *args, env=None, check=True):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        env={**os.environ, **(env or {})},
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def test_arrays_on_several_devices(tmp_path):
    code = """
        import sys, jax, jax.numpy as jnp, numpy as np, braintools_ckpt as bt
        from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
        mesh = Mesh(np.array(jax.devices()), "d")
        whole = np.arange(32.0, dtype=np.float32).reshape(4, 8)
        tree = {str(spec): jax.device_put(whole, NamedSharding(mesh, spec)) for spec in (P("d"), P(None, "d"), P())}
        tree["second"] = jax.device_put(whole, jax.devices()[1])
        with bt.AsyncManager() as manager:
            bt.msgpack_save(sys.argv[1], tree, async_manager=manager)
            for array in tree.values():
                array.delete()
        for name, array in bt.msgpack_load(sys.argv[1], arrays="numpy").items():
            assert (array == whole).all(), name
    """
    run_python(code, tmp_path / "x", env={"XLA_FLAGS": "--xla_force_host_platform_device_count=4"})


def test_the_program_may_change_its_directory(monkeypatch, tmp_path, gate):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    manager = gate()
    assert bt.msgpack_save("run/x", {"a": 1}, async_manager=manager) == "run/x"
    monkeypatch.chdir(tmp_path / "other")
    manager.open.set()
    manager.close()
    assert bt.msgpack_load(tmp_path / "run" / "x") == {"a": 1}
    assert os.listdir(tmp_path / "other") == []


# Order.


def test_saves_to_one_path_keep_their_order(tmp_path):
    with bt.AsyncManager(max_workers=4, max_pending=20) as manager:
        for i in range(100):
            size = 300_000 if i % 3 == 0 else 3  # so that they would overtake each other
            for name in "ab":
                bt.msgpack_save(tmp_path / name, {"i": i, "a": np.full(size, i)}, async_manager=manager, durable=False)
    assert [bt.msgpack_load(tmp_path / name)["i"] for name in "ab"] == [99, 99]


def test_saves_of_several_managers_to_one_path_keep_their_order(tmp_path, gate):
    first, second = gate(), gate()
    os.symlink(tmp_path / "x", tmp_path / "link")
    (tmp_path / "x").touch()
    bt.msgpack_save(tmp_path / "x", {"i": 1}, async_manager=first)
    bt.msgpack_save(tmp_path / "link", {"i": 2}, async_manager=second)
    second.open.set()
    time.sleep(0.05)
    assert second.pending == 1
    first.open.set()
    second.wait_previous_save()
    assert bt.msgpack_load(tmp_path / "x") == {"i": 2}


def test_a_save_at_once_waits_for_those_before_it(tmp_path, gate):
    manager = gate()
    bt.msgpack_save(tmp_path / "x", {"i": 1}, async_manager=manager)
    threading.Timer(0.05, manager.open.set).start()
    bt.msgpack_save(tmp_path / "x", {"i": 2})
    assert manager.pending == 0
    assert bt.msgpack_load(tmp_path / "x") == {"i": 2}


def test_a_load_waits_for_what_was_saved_before_it(tmp_path, gate):
    manager = gate()
    bt.msgpack_save(tmp_path / "x", {"i": 1}, async_manager=manager)
    threading.Timer(0.05, manager.open.set).start()
    assert bt.msgpack_load(tmp_path / "x") == {"i": 1}
    bt.msgpack_save(tmp_path / "y", {"i": 2}, async_manager=manager)
    with bt.open_checkpoint(tmp_path / "y") as checkpoint:
        assert checkpoint["i"] == 2


def test_one_path_does_not_wait_for_another(tmp_path, gate):
    slow = gate()
    bt.msgpack_save(tmp_path / "x", {"i": 1}, async_manager=slow)
    with bt.AsyncManager() as quick:
        bt.msgpack_save(tmp_path / "y", {"i": 2}, async_manager=quick)
    assert bt.msgpack_load(tmp_path / "y") == {"i": 2}
    assert slow.pending == 1


def test_several_threads_and_paths_do_not_block_each_other(tmp_path):
    managers = [bt.AsyncManager(max_workers=n, max_pending=n) for n in (1, 2, 3)]

    def save(i):
        bt.msgpack_save(tmp_path / str(i % 4), {"i": i}, async_manager=managers[i % 3], durable=False)
        if i % 10 == 0:
            bt.msgpack_save(tmp_path / str(i % 4), {"i": i}, durable=False)
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(save, range(400)))
    for manager in managers:
        manager.close()
    assert {bt.msgpack_load(tmp_path / name)["i"] % 4 == int(name) for name in "0123"} == {True}


def test_a_save_within_a_save_of_the_same_path(tmp_path, monkeypatch):
    """Save in a signal handler, which may interrupt a save of the same file."""
    path = tmp_path / "x"
    real = os.replace
    inner = []

    def replace(*args):
        if not inner:
            inner.append(True)
            bt.msgpack_save(path, {"i": "inner"})
        real(*args)

    monkeypatch.setattr(os, "replace", replace)
    bt.msgpack_save(path, {"i": "outer"})
    assert bt.msgpack_load(path) == {"i": "outer"}


def test_tasks_without_a_path_follow_one_another():
    order, running = [], []

    def task(i):
        running.append(i)
        assert len(running) == 1
        time.sleep(0.002)
        order.append(i)
        running.clear()

    with bt.AsyncManager(max_workers=4, max_pending=20) as manager:
        for i in range(20):
            manager.save_async(lambda i=i: task(i))
    assert order == list(range(20))


def test_file_objects(tmp_path):
    with open(tmp_path / "x", "wb") as file, bt.AsyncManager(max_workers=3, max_pending=3) as manager:
        assert bt.msgpack_save(file, {"a": np.arange(1000)}, async_manager=manager) == str(tmp_path / "x")
    assert_same({"a": np.arange(1000)}, bt.msgpack_load(tmp_path / "x"))


# How many.


def test_each_save_has_a_future(tmp_path, gate):
    manager = gate(max_pending=3)
    futures = []
    for i in range(3):
        assert bt.msgpack_save(tmp_path / str(i), {"a": np.zeros(1000)}, async_manager=manager)
        futures.append(manager.save_future)
    assert len(set(futures)) == 3
    assert all(isinstance(future, Future) for future in futures)
    assert [future.path for future in futures] == [str(tmp_path / str(i)) for i in range(3)]
    assert (manager.pending, manager.pending_bytes) == (3, 3 * 8000)
    assert repr(manager) == "<Gate: 3 pending, 0.0 MiB held, 0 skipped>"
    manager.open.set()
    assert futures[2].result() is None
    manager.wait_previous_save()
    assert (manager.pending, manager.pending_bytes) == (0, 0)
    manager.close()
    assert repr(manager).endswith("closed>")


def test_a_full_manager_waits(tmp_path, gate):
    manager = gate(max_pending=2)
    for i in range(2):
        bt.msgpack_save(tmp_path / str(i), {"i": i}, async_manager=manager)
    opened = []
    threading.Timer(0.1, lambda: (opened.append(True), manager.open.set())).start()
    bt.msgpack_save(tmp_path / "2", {"i": 2}, async_manager=manager)
    assert opened
    manager.close()
    assert [bt.msgpack_load(tmp_path / str(i))["i"] for i in range(3)] == [0, 1, 2]


def test_a_full_manager_skips(tmp_path, gate):
    manager = gate(on_full="skip")
    assert bt.msgpack_save(tmp_path / "a", {"i": 1}, async_manager=manager) == str(tmp_path / "a")
    assert bt.msgpack_save(tmp_path / "b", {"i": object()}, async_manager=manager) == ""  # not even looked at
    assert manager.save_async(lambda: None) is None
    assert manager.skipped == 2
    manager.open.set()
    manager.wait_previous_save()
    assert bt.msgpack_save(tmp_path / "b", {"i": 2}, async_manager=manager) == str(tmp_path / "b")
    manager.close()
    assert bt.msgpack_load(tmp_path / "b") == {"i": 2}


def test_a_full_manager_raises(tmp_path, gate):
    manager = gate(on_full="raise", max_pending=2)
    for name in "ab":
        bt.msgpack_save(tmp_path / name, {}, async_manager=manager)
    with pytest.raises(bt.PendingSaveError, match=r"2 of 2 saves .* have not ended \(.*\). Save less often") as caught:
        bt.msgpack_save(tmp_path / "c", {}, async_manager=manager)
    assert str(tmp_path / "a") in str(caught.value)
    assert isinstance(caught.value, bt.errors.CheckpointError)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_workers": 0}, "max_workers must be a whole number of at least 1, got 0"),
        ({"max_pending": True}, "max_pending must be a whole number of at least 1, got True"),
        ({"max_pending": 1.5}, "max_pending must be a whole number of at least 1, got 1.5"),
        ({"on_full": "drop"}, "on_full must be one of 'wait', 'skip', 'raise', got 'drop'"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        bt.AsyncManager(**options)


def test_what_is_saved_is_let_go_of(tmp_path):
    with bt.AsyncManager() as manager:
        held = jnp.arange(1000.0)
        alive = weakref.ref(held)
        bt.msgpack_save(tmp_path / "x", {"a": held}, async_manager=manager)
        del held
        manager.wait_previous_save()
        gc.collect()
        assert alive() is None
        (tmp_path / "y").mkdir()
        held = jnp.arange(1000.0)
        alive = weakref.ref(held)
        bt.msgpack_save(tmp_path / "y", {"a": held}, async_manager=manager)
        del held
        while manager.pending:
            time.sleep(0.001)
        gc.collect()
        assert alive() is None  # though its error has not been seen yet
        with pytest.raises(bt.InvalidCheckpointPath):
            manager.wait_previous_save()


def test_what_is_no_manager():
    for wrong in (bt.AsyncManager, 5):
        with pytest.raises(TypeError, match="async_manager must be an AsyncManager object"):
            bt.msgpack_save("x", {}, async_manager=wrong)


def test_a_manager_of_another_library(tmp_path):
    file = pytest.importorskip("braintools.file")
    array = np.zeros(10)
    with file.AsyncManager() as manager:
        for i in range(3):
            bt.msgpack_save(tmp_path / "x", {"a": array, "i": i}, async_manager=manager)
            array += 1
    assert_same({"a": np.full(10, 2.0), "i": 2}, bt.msgpack_load(tmp_path / "x"))


# Errors.


def test_an_error_is_raised_once_and_does_not_poison_the_manager(tmp_path, taken):
    manager = bt.AsyncManager()
    bt.msgpack_save(taken, {"a": 1}, async_manager=manager)
    with pytest.raises(bt.InvalidCheckpointPath) as caught:
        manager.wait_previous_save()
    assert caught.value.__notes__ == [f"This was in the background, in the save of {taken}."]
    manager.wait_previous_save()
    bt.msgpack_save(tmp_path / "x", {"a": 1}, async_manager=manager)
    manager.close()
    assert bt.msgpack_load(tmp_path / "x") == {"a": 1}
    with pytest.raises(RuntimeError, match="closed AsyncManager"):
        manager.save_async(lambda: None)


def test_an_error_is_raised_at_the_next_save_which_is_done(tmp_path, taken):
    manager = bt.AsyncManager()
    bt.msgpack_save(taken, {"a": 1}, async_manager=manager)
    with pytest.raises(bt.InvalidCheckpointPath) as caught:
        bt.msgpack_save(tmp_path / "x", {"a": 2}, async_manager=manager)
    assert caught.value.__notes__[-1] == f"The save that was asked for now, of {tmp_path / 'x'}, goes on."
    manager.close()
    assert bt.msgpack_load(tmp_path / "x") == {"a": 2}


def test_errors_of_several_saves_are_raised_together(tmp_path, taken, gate):
    (tmp_path / "file").touch()
    manager = gate(max_pending=2)
    futures = []
    for path in (taken, tmp_path / "file" / "x"):
        bt.msgpack_save(path, {"a": 1}, async_manager=manager)
        futures.append(manager.save_future)
    manager.open.set()
    with pytest.raises(bt.InvalidCheckpointPath) as caught:
        manager.wait_previous_save()
    assert "Besides" in caught.value.__notes__[-1]
    assert "NotADirectoryError" in caught.value.__notes__[-1]
    assert isinstance(futures[1].exception(), NotADirectoryError)
    manager.wait_previous_save()


def test_an_error_that_was_seen_is_not_raised_again(taken):
    with bt.AsyncManager() as manager:
        bt.msgpack_save(taken, {"a": 1}, async_manager=manager)
        with pytest.raises(bt.InvalidCheckpointPath):
            manager.save_future.result()
        bt.msgpack_save(taken, {"a": 1}, async_manager=manager)
        assert isinstance(manager.save_future.exception(), bt.InvalidCheckpointPath)


def test_an_error_is_logged_at_once(taken, caplog):
    with caplog.at_level(logging.ERROR, "braintools_ckpt"), bt.AsyncManager() as manager:
        bt.msgpack_save(taken, {"a": 1}, async_manager=manager)
        with pytest.raises(bt.InvalidCheckpointPath):
            manager.wait_previous_save()
        end = time.monotonic() + 10  # the thread does it last of all
        while f"The save of {taken} in the background failed" not in caplog.text:
            assert time.monotonic() < end
            time.sleep(0.001)


def test_an_exception_in_the_block_is_not_hidden_by_a_failed_save(taken):
    with pytest.raises(KeyError, match="mine") as caught, bt.AsyncManager() as manager:  # noqa: PT012
        bt.msgpack_save(taken, {"a": 1}, async_manager=manager)
        raise KeyError("mine")
    assert "a save in the background failed" in caught.value.__notes__[0]


def test_an_exception_in_the_block_lets_the_save_end(tmp_path, monkeypatch):
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda *args: (time.sleep(0.1), real(*args)))
    with pytest.raises(KeyError), bt.AsyncManager() as manager:  # noqa: PT012
        bt.msgpack_save(tmp_path / "x", {"a": 1}, async_manager=manager)
        raise KeyError("mine")
    assert os.listdir(tmp_path) == ["x"]


def test_a_save_that_is_cancelled(tmp_path, gate):
    manager = gate(max_pending=3)
    bt.msgpack_save(tmp_path / "x", {"i": 1}, async_manager=manager)
    bt.msgpack_save(tmp_path / "y", {"i": 2}, async_manager=manager)
    cancelled = manager.save_future
    assert cancelled.cancel()
    manager.open.set()
    bt.msgpack_save(tmp_path / "y", {"i": 3}, async_manager=manager)
    manager.close()
    assert bt.msgpack_load(tmp_path / "y") == {"i": 3}
    with pytest.raises(CancelledError):
        cancelled.result()
    assert manager.pending == 0


def test_the_disk_is_full(tmp_path, monkeypatch):
    bt.msgpack_save(tmp_path / "x", {"a": "old"})
    real = os.writev

    def full(fd, buffers):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "writev", full)
    manager = bt.AsyncManager()
    bt.msgpack_save(tmp_path / "x", {"a": np.zeros(100_000)}, async_manager=manager)
    with pytest.raises(OSError, match="No space left") as caught:
        manager.close()
    assert caught.value.filename == str(tmp_path / "x")
    monkeypatch.setattr(os, "writev", real)
    assert bt.msgpack_load(tmp_path / "x") == {"a": "old"}
    assert os.listdir(tmp_path) == ["x"]


def test_a_real_disk_that_is_full():
    with bt.AsyncManager() as manager, open("/dev/full", "wb", buffering=0) as file:
        bt.msgpack_save(file, {"a": np.zeros(1000)}, async_manager=manager)
        with pytest.raises(OSError, match="No space left"):
            manager.wait_previous_save()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_the_permission_is_lost_for_users(tmp_path, gate):
    manager = gate()
    bt.msgpack_save(tmp_path / "run" / "x", {"a": 1})
    bt.msgpack_save(tmp_path / "run" / "x", {"a": 2}, async_manager=manager)
    os.chmod(tmp_path / "run", 0o500)
    manager.open.set()
    with pytest.raises(PermissionError):
        manager.wait_previous_save()
    os.chmod(tmp_path / "run", 0o700)


def test_the_permission_is_lost(tmp_path, monkeypatch, gate):
    manager = gate()
    bt.msgpack_save(tmp_path / "x", {"a": 1})
    bt.msgpack_save(tmp_path / "x", {"a": 2}, async_manager=manager)
    real = os.open

    def refuse(path, flags, *args, **options):
        if flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", refuse)
    manager.open.set()
    with pytest.raises(PermissionError, match="Permission denied"):
        manager.wait_previous_save()
    monkeypatch.setattr(os, "open", real)
    assert bt.msgpack_load(tmp_path / "x") == {"a": 1}


def test_the_directory_is_removed_before_the_save_is_written(tmp_path, gate):
    manager = gate()
    bt.msgpack_save(tmp_path / "run" / "x", {"a": 1})
    bt.msgpack_save(tmp_path / "run" / "x", {"a": 2}, async_manager=manager)
    shutil.rmtree(tmp_path / "run")
    manager.open.set()
    manager.close()  # it is made anew
    assert bt.msgpack_load(tmp_path / "run" / "x") == {"a": 2}


def test_the_directory_is_removed_while_the_save_is_written(tmp_path, monkeypatch):
    real = os.replace

    def replace(*args):
        shutil.rmtree(tmp_path / "run")
        real(*args)

    monkeypatch.setattr(os, "replace", replace)
    manager = bt.AsyncManager()
    bt.msgpack_save(tmp_path / "run" / "x", {"a": 2}, async_manager=manager)
    with pytest.raises(FileNotFoundError) as caught:
        manager.close()
    assert caught.value.filename == str(tmp_path / "run" / "x")


def test_no_thread_can_be_started(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise RuntimeError("can't start new thread")

    with bt.AsyncManager() as manager:
        with monkeypatch.context() as patch:
            patch.setattr("_thread.start_new_thread", refuse)
            bt.msgpack_save(tmp_path / "x", {"a": 1}, async_manager=manager)
            assert manager.pending == 0
        assert "it is written now" in caplog.text
        for i in range(3):
            bt.msgpack_save(tmp_path / "y", {"a": i}, async_manager=manager)
    assert (bt.msgpack_load(tmp_path / "x"), bt.msgpack_load(tmp_path / "y")) == ({"a": 1}, {"a": 2})


class Meanwhile:
    """An object whose handler does something else."""

    def __init__(self, do):
        self.do = do


def test_a_save_that_is_being_prepared_is_named(tmp_path):
    bt.msgpack_register_serialization(Meanwhile, lambda obj: obj.do() or {}, lambda obj, state: obj, override=True)
    errors = []

    def save():
        with pytest.raises(bt.PendingSaveError) as caught:
            bt.msgpack_save(tmp_path / "y", {}, async_manager=manager)
        errors.append(str(caught.value))

    def save_elsewhere():
        other = threading.Thread(target=save)
        other.start()
        other.join()

    with bt.AsyncManager(on_full="raise") as manager:
        bt.msgpack_save(tmp_path / "x", Meanwhile(save_elsewhere), async_manager=manager)
    assert f"({tmp_path / 'x'})" in errors[0]


class Fails:
    """An object whose handler fails."""


def test_an_exception_in_a_handler_is_raised_at_the_call(tmp_path):
    def refuse(obj):
        raise ZeroDivisionError("no state")

    bt.msgpack_register_serialization(Fails, refuse, lambda obj, state: obj, override=True)
    bt.msgpack_save(tmp_path / "x", {"a": 1})
    with bt.AsyncManager() as manager:
        with pytest.raises(bt.HandlerError, match=r"ZeroDivisionError: no state \(at path a\)"):
            bt.msgpack_save(tmp_path / "x", {"a": Fails()}, async_manager=manager)
        assert manager.pending == 0
        bt.msgpack_save(tmp_path / "y", {"a": 2}, async_manager=manager)
    assert (bt.msgpack_load(tmp_path / "x"), bt.msgpack_load(tmp_path / "y")) == ({"a": 1}, {"a": 2})


@pytest.mark.parametrize("wait", ["wait", "close", "full", "load", "save"])
def test_ctrl_c_while_waiting(wait, tmp_path, gate):
    manager = gate()
    path = tmp_path / "x"
    bt.msgpack_save(path, {"a": 1}, async_manager=manager)
    waits = {
        "wait": manager.wait_previous_save,
        "close": manager.close,
        "full": lambda: bt.msgpack_save(tmp_path / "y", {"a": 2}, async_manager=manager),
        "load": lambda: bt.msgpack_load(path),
        "save": lambda: bt.msgpack_save(path, {"a": 3}),
    }
    main = threading.main_thread().ident
    threading.Timer(0.1, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        waits[wait]()
    manager.open.set()
    if wait == "save":  # those behind an interrupted one still wait for those before it
        bt.msgpack_save(path, {"a": 4})
        assert bt.msgpack_load(path) == {"a": 4}
    else:
        assert bt.msgpack_load(path) == {"a": 1}
    manager.close()


# The end of the process.

SAVES = """
    import sys, os, time, numpy as np, braintools_ckpt as bt
    path = sys.argv[1]
    real = os.replace
    os.replace = lambda *args: (time.sleep(0.2), real(*args))
    manager = bt.AsyncManager(max_pending=3)
    for i in range(3):
        bt.msgpack_save(path, {"a": np.full(1000, i)}, async_manager=manager)
"""


@pytest.mark.parametrize(
    ("end", "code"), [("", 0), ("del manager", 0), ("sys.exit(3)", 3), ("raise KeyError('mine')", 1)]
)
def test_the_interpreter_ends_when_all_is_saved(end, code, tmp_path):
    done = run_python(SAVES + f"\n    {end}", tmp_path / "x", check=False)
    assert done.returncode == code, done.stderr
    assert_same({"a": np.full(1000, 2)}, bt.msgpack_load(tmp_path / "x"))


@pytest.mark.parametrize("end", ["", "del manager", "sys.exit(3)", "raise KeyError('mine')", "time.sleep(0.3)"])
def test_an_error_that_nobody_waits_for_ends_the_process_with_an_error(end, taken):
    code = f"""
        import atexit, sys, time, braintools_ckpt as bt
        atexit.register(print, "registered before")
        manager = bt.AsyncManager()
        atexit.register(print, "registered after")
        bt.msgpack_save(sys.argv[1], {{"a": 1}}, async_manager=manager)
        print("printed")
        {end}
    """
    done = run_python(code, taken, check=False)
    assert done.returncode == 120
    assert f"The save of {taken} in the background failed, and nobody waited" in done.stderr
    assert "InvalidCheckpointPath" in done.stderr
    assert done.stdout.split("\n") == ["printed", "registered after", "registered before", ""]


@pytest.mark.parametrize(
    "block",
    [
        "bt.AsyncManager() as manager: bt.msgpack_save(sys.argv[1] + '/x', {}, async_manager=manager); sys.exit()",
        "bt.CheckpointManager(sys.argv[1]) as manager: manager.save(1, {}); sys.exit()",
    ],
    ids=["AsyncManager", "CheckpointManager"],
)
def test_an_error_in_a_block_that_ends_the_process_is_told(block, tmp_path):
    code = f"""
        import os, sys, braintools_ckpt as bt
        def replace(*args):
            raise PermissionError("refused")
        os.replace = os.link = replace
        with {block}
    """
    done = run_python(code, tmp_path, check=False)
    assert done.returncode == 120
    assert "in the background failed, and nobody waited" in done.stderr
    assert "PermissionError: refused" in done.stderr


def test_an_error_that_was_seen_does_not_change_the_exit_code(taken):
    code = """
        import sys, braintools_ckpt as bt
        manager = bt.AsyncManager()
        bt.msgpack_save(sys.argv[1], {"a": 1}, async_manager=manager)
        try:
            manager.wait_previous_save()
        except bt.InvalidCheckpointPath:
            sys.exit(0)
    """
    assert run_python(code, taken).stderr.count("Traceback") == 0


def test_a_save_at_exit(tmp_path):
    code = """
        import atexit, sys, braintools_ckpt as bt
        manager = bt.AsyncManager()
        atexit.register(lambda: bt.msgpack_save(sys.argv[1], {"a": 1}, async_manager=manager))
    """
    run_python(code, tmp_path / "x")
    assert bt.msgpack_load(tmp_path / "x") == {"a": 1}


def test_threads_that_never_cease_to_save_do_not_keep_the_interpreter_from_its_end(tmp_path):
    code = """
        import sys, threading, time, braintools_ckpt as bt
        folder = sys.argv[1]
        manager = bt.AsyncManager(max_pending=16)
        def save(name):
            while True:
                bt.msgpack_save(f"{folder}/{name}", {}, async_manager=manager, durable=False)
        for name in range(6):
            threading.Thread(target=save, args=(name,), daemon=True).start()
        time.sleep(0.2)
        bt.msgpack_save(folder + "/last", {"a": 1}, async_manager=manager)
    """
    assert handled(code, tmp_path, check=False).returncode in (0, 120)  # what is cut off is told of
    assert bt.msgpack_load(tmp_path / "last") == {"a": 1}
    assert {"0", "1", "2", "3", "4", "5"} < set(os.listdir(tmp_path))


def test_threads_that_still_run_at_the_end_save(tmp_path):
    code = """
        import sys, threading, time, braintools_ckpt as bt
        from braintools_ckpt import threads
        folder = sys.argv[1]
        manager = bt.AsyncManager(max_pending=4)
        def save(name):
            while not threads.is_ending:
                time.sleep(0.001)
            for i in range(20):
                bt.msgpack_save(f"{folder}/{name}", {"i": i}, async_manager=manager, durable=False)
        for name in range(3):
            threading.Thread(target=save, args=(name,)).start()
    """
    assert handled(code, tmp_path).stderr == ""
    assert [bt.msgpack_load(tmp_path / str(name)) for name in range(3)] == [{"i": 19}] * 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_child_process_starts_anew(tmp_path, taken):
    code = """
        import os, sys, time, threading, braintools_ckpt as bt
        folder, taken = sys.argv[1:]
        real = os.replace
        gate = threading.Event()
        os.replace = lambda *args: (gate.wait(), real(*args))
        manager = bt.AsyncManager()
        bt.msgpack_save(folder + "/x", {"a": "parent"}, async_manager=manager)
        failing = bt.AsyncManager()
        bt.msgpack_save(taken, {"a": 1}, async_manager=failing)
        while failing.pending:
            time.sleep(0.01)
        if os.fork() == 0:
            os.replace = real
            assert manager.pending == 0 and manager.save_future.done()
            assert "left to the parent process" in str(manager.save_future.exception())
            manager.wait_previous_save()
            failing.close()
            bt.msgpack_save(folder + "/x", {"a": "child"}, async_manager=manager)
            manager.close()
            assert bt.msgpack_load(folder + "/x") == {"a": "child"}
            sys.exit(7)
        pid, status = os.wait()
        assert os.waitstatus_to_exitcode(status) == 7, status
        gate.set()
        manager.close()
        assert bt.msgpack_load(folder + "/x") == {"a": "parent"}
        try:
            failing.close()
        except bt.InvalidCheckpointPath:
            print("seen")
    """
    assert run_python(code, tmp_path, taken, env={"PYTHONWARNINGS": "ignore"}).stdout == "seen\n"


def _save_in_child(path):
    with bt.AsyncManager() as manager:
        bt.msgpack_save(path, {"a": 1}, async_manager=manager)


def test_in_a_process_of_multiprocessing(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=_save_in_child, args=(str(tmp_path / "x"),))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert bt.msgpack_load(tmp_path / "x") == {"a": 1}


# Progress.


def test_a_bar_of_bytes(tmp_path, capsys):
    tree = {"a": np.zeros(1_000_000), "b": ml_dtypes.bfloat16(1)}
    bt.msgpack_save(tmp_path / "x", tree)
    with bt.AsyncManager() as manager:
        bt.msgpack_save(tmp_path / "x", tree, async_manager=manager)
    bt.msgpack_load(tmp_path / "x")
    assert capsys.readouterr() == ("", "")
    bt.msgpack_save(tmp_path / "x", tree, progress=True)
    shown = capsys.readouterr().err
    assert "saving" in shown
    assert "7.63M/7.63M" in shown
    with bt.AsyncManager() as manager:
        bt.msgpack_save(tmp_path / "x", tree, async_manager=manager, progress=True)
    assert "7.63M/7.63M" in capsys.readouterr().err
    bt.msgpack_load(tmp_path / "x", progress=True)
    shown = capsys.readouterr().err
    assert "loading" in shown
    assert "100%" in shown


# What reviews found.


def handled(code, tmp_path, **options):
    """Run code in a process of its own, which must end soon."""
    return run_python(
        "import faulthandler; faulthandler.dump_traceback_later(60, exit=True)\n" + textwrap.dedent(code),
        tmp_path,
        **options,
    )


def test_signal_handlers_that_save_while_saves_are_under_way(tmp_path):
    """Save on SIGTERM, at any moment, with the same manager and to the same path."""
    code = """
    import gc, os, signal, sys, time, numpy as np, braintools_ckpt as bt
    folder, limit = sys.argv[1], sys.getrecursionlimit()
    manager = bt.AsyncManager()
    count = [0]
    def handler(*_):
        count[0] += 1
        bt.msgpack_save(folder + "/x", {"i": -count[0]}, durable=False)
        bt.msgpack_save(folder + "/y", {"i": -count[0]}, async_manager=manager, durable=False)
        if count[0] % 3 == 0:
            manager.wait_previous_save()
            bt.msgpack_load(folder + "/x")
    handler()
    signal.signal(signal.SIGALRM, handler)
    end = time.monotonic() + 6
    i = 0
    while time.monotonic() < end:
        i += 1
        signal.setitimer(signal.ITIMER_REAL, 0.0001 + 0.0000137 * (i % 211))
        bt.msgpack_save(folder + "/x", {"i": i, "a": np.zeros(100)}, async_manager=manager, durable=False)
        bt.msgpack_save(folder + "/y", {"i": i}, durable=False)
        if i % 20 == 0:
            bt.msgpack_load(folder + "/y")
    signal.setitimer(signal.ITIMER_REAL, 0)
    bt.msgpack_save(folder + "/x", {"i": "last"}, async_manager=manager, durable=False)
    manager.close()
    assert bt.msgpack_load(folder + "/x") == {"i": "last"}
    assert count[0] > 50 and i > 50, (count, i)
    assert gc.isenabled() and sys.getrecursionlimit() == limit
    """
    handled(code, tmp_path)


def test_ctrl_c_at_any_moment(tmp_path):
    code = """
    import gc, os, signal, sys, time, numpy as np, braintools_ckpt as bt
    from braintools_ckpt.storage import turns
    folder = sys.argv[1]
    manager = bt.AsyncManager(max_pending=2)
    def interrupt(*_):
        raise KeyboardInterrupt
    signal.signal(signal.SIGALRM, interrupt)
    end = time.monotonic() + 6
    i = interrupted = 0
    while time.monotonic() < end:
        i += 1
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0001 + 0.0000137 * (i % 173))
            bt.msgpack_save(folder + "/x", {"i": i}, async_manager=manager, durable=False)
            bt.msgpack_save(folder + "/x", {"i": i}, durable=False)
            bt.msgpack_load(folder + "/x")
            signal.setitimer(signal.ITIMER_REAL, 0)
        except (KeyboardInterrupt, RuntimeError):  # or the error of a save that was interrupted
            interrupted += 1
        except Exception as error:
            if "KeyboardInterrupt" not in repr(error):
                raise
    signal.setitimer(signal.ITIMER_REAL, 0)
    gc.collect()
    bt.msgpack_save(folder + "/x", {"i": "last"}, async_manager=manager, durable=False)
    manager.close()
    assert bt.msgpack_load(folder + "/x") == {"i": "last"}
    assert not turns.line.present()
    assert interrupted > 50, (i, interrupted)
    """
    handled(code, tmp_path, check=True)


def test_tasks_may_load_save_and_wait(tmp_path):
    code = """
    import sys, time, braintools_ckpt as bt
    path = sys.argv[1] + "/x"
    bt.msgpack_save(path, {"i": 0})
    manager = bt.AsyncManager(max_pending=5)
    found = []
    manager.save_async(lambda: (time.sleep(0.1), found.append(bt.msgpack_load(path)), bt.msgpack_save(path, {"i": 1})))
    bt.msgpack_save(path, {"i": 2}, async_manager=manager)
    manager.save_async(lambda: manager.wait_previous_save())
    manager.save_future.add_done_callback(lambda future: bt.msgpack_load(path))
    manager.save_async(lambda: bt.msgpack_save(path, {"i": 3}, async_manager=manager))
    manager.wait_previous_save()
    manager.close()
    assert found == [{"i": 2}]  # which was asked for before the task loads
    assert bt.msgpack_load(path) == {"i": 3}
    """
    handled(code, tmp_path)


def test_room_is_reserved_before_anything_is_copied(tmp_path, gate):
    manager = gate(on_full="skip", max_pending=1)
    with ThreadPoolExecutor(4) as pool:
        big = np.zeros(3_000_000)
        names = list(
            pool.map(lambda i: bt.msgpack_save(tmp_path / str(i), {"a": big}, async_manager=manager), range(8))
        )
    assert sum(map(bool, names)) == 1
    assert manager.skipped == 7
    manager.open.set()
    manager.close()
    assert os.listdir(tmp_path) == [os.path.basename(next(filter(None, names)))]


def test_room_is_given_back_when_a_tree_cannot_be_saved(tmp_path, gate):
    manager = gate(max_pending=1)
    for _ in range(3):
        with pytest.raises(bt.SerializationError):
            bt.msgpack_save(tmp_path / "x", {"a": lambda: 0}, async_manager=manager)
        with pytest.raises(bt.AlreadyExistsError):
            bt.msgpack_save(tmp_path, {"a": 0}, False, async_manager=manager)
    assert manager.pending == 0


def test_failures_are_raised_also_by_saves_that_are_skipped(tmp_path):
    hold = threading.Event()
    manager = bt.AsyncManager(max_workers=2, max_pending=2, on_full="skip")
    manager.save_async(lambda: hold.wait(10))
    bt.msgpack_save(tmp_path, {}, async_manager=manager)  # a folder
    while manager.pending > 1:
        time.sleep(0.001)
    manager.max_pending = 1
    with pytest.raises(bt.InvalidCheckpointPath):
        bt.msgpack_save(tmp_path / "x", {}, async_manager=manager)
    assert manager.skipped == 1
    hold.set()
    manager.close()
    assert os.listdir(tmp_path) == []


def test_a_task_that_wants_to_end_the_process(tmp_path):
    with pytest.raises(ZeroDivisionError) as caught, bt.AsyncManager() as manager:  # noqa: PT012
        manager.save_async(lambda: sys.exit(3))
        raise ZeroDivisionError
    assert "RuntimeError: The save ended with SystemExit(3)" in caught.value.__notes__[0]


def test_those_who_leave_the_line_do_not_let_others_pass(tmp_path, gate):
    first, others = gate(), gate(max_pending=5)
    bt.msgpack_save(tmp_path / "x", {"i": 1}, async_manager=first)
    for i in (2, 3):
        bt.msgpack_save(tmp_path / "x", {"i": i}, async_manager=others)
        assert others.save_future.cancel()
    others.open.set()
    others.wait_previous_save()
    bt.msgpack_save(tmp_path / "x", {"i": 4}, async_manager=others)
    time.sleep(0.05)
    assert others.pending == 1
    first.open.set()
    others.close()
    assert bt.msgpack_load(tmp_path / "x") == {"i": 4}


def test_ctrl_c_while_the_interpreter_waits_for_a_save(tmp_path):
    code = """
        import os, signal, sys, threading, time, braintools_ckpt as bt
        os.replace = lambda *args: time.sleep(20)
        bt.msgpack_save(sys.argv[1], {"a": 1}, async_manager=bt.AsyncManager())
        print("begun", flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "x")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "begun\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=15)
    assert process.returncode == 120
    assert f"The save of {tmp_path / 'x'} in the background was not finished." in stderr


def test_a_replicated_array_is_held_once():
    code = """
        import jax, numpy as np
        from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
        from braintools_ckpt.adapters.jax import hold
        mesh = Mesh(np.array(jax.devices()), "d")
        array = jax.device_put(np.arange(8.0), NamedSharding(mesh, P()))
        (held,) = hold([array])
        assert isinstance(held, (np.ndarray, memoryview)), type(held)
    """
    run_python(code, env={"XLA_FLAGS": "--xla_force_host_platform_device_count=4"})


@pytest.mark.parametrize("how", ["delete", "donate"])
def test_arrays_in_pinned_memory_are_copied(how, monkeypatch):
    array = jnp.arange(1000.0)
    pinned = jax.device_put(array, array.sharding.with_memory_kind("pinned_host"))
    monkeypatch.setattr(jax_adapter, "_view", lambda array: None)
    (held,) = jax_adapter.hold([pinned])
    pinned.delete() if how == "delete" else jax.jit(lambda x: x + 1, donate_argnums=0)(pinned)
    np.testing.assert_array_equal(np.asarray(held), np.arange(1000.0))


def test_errors_that_are_kept_hold_nothing(tmp_path, taken):
    manager, kept, alive = bt.AsyncManager(), [], []
    for _ in range(5):
        held = jnp.arange(1000.0)
        alive.append(weakref.ref(held))
        try:
            bt.msgpack_save(taken, {"a": held}, async_manager=manager)
        except bt.InvalidCheckpointPath as error:
            kept.append(error)
        del held
    with pytest.raises(bt.InvalidCheckpointPath):
        manager.close()
    assert len(kept) == 4
    for error in kept:  # this test's own frame is in it
        error.__traceback__ = error.__traceback__.tb_next
    gc.collect()
    assert [ref() for ref in alive] == [None] * 5


def test_a_manager_cannot_be_copied():
    with bt.AsyncManager() as manager:
        for copy in (copying.copy, copying.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="cannot be copied or pickled"):
                copy(manager)
