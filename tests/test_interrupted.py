"""Signal handlers that save, and Ctrl-C, at each point where Python looks for signals: no save hangs, none is lost.

Some scenarios are run again and again, each time with a signal at another point: deterministic, and from within, by
tracing. Others get real signals at random moments.
"""

from __future__ import annotations

import asyncio
import dis
import gc
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed, wait
from pathlib import Path

import jax
import jax.numpy as jnp
import leftovers
import numpy as np
import pytest

import braintools_ckpt as bt
from braintools_ckpt import at_exit, threads, walking
from braintools_ckpt.async_manager import ManagerClosedError
from braintools_ckpt.lockfree import Claim, Latch, Register, Token
from braintools_ckpt.storage import outcome, turns

#: A file that Ctrl-C has left open is closed with the traceback.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
ROOT = Path(__file__).parent.parent
PACKAGE = str(Path(bt.__file__).parent)


@pytest.fixture(autouse=True)
def _nothing_is_left():
    yield
    leftovers.assert_none()
    assert not walking._walks.present()


def in_child(code, tmp_path, limit=30, check=True):
    """Run code in a process of its own, which must end soon."""
    head = f"import faulthandler; faulthandler.dump_traceback_later({limit}, exit=True)\n"
    command = [sys.executable, "-c", head + textwrap.dedent(code), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=2 * limit, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done


# A signal at each point.


def points_of(code):
    """Give the instructions before which a signal may be noticed: after a call, at a function's start, in a loop."""
    table = dis._parse_exception_table(code)

    def handler(offset):
        return [entry.target for entry in table if entry.start <= offset < entry.end]

    found, before = set(), None
    for step in dis.get_instructions(code):
        # What is raised after a call is handled where the call is: one that ends a block cannot be played here.
        if before is not None and (before.opname.startswith("CALL") or before.opname == "RESUME"):
            found |= {step.offset} if handler(before.offset) == handler(step.offset) else set()
        if step.opname == "JUMP_BACKWARD" and handler(step.offset) == handler(step.argval):
            found.add(step.argval)
        before = step
    return found


class SignalAt:
    """Calls a function, as a signal would, at the so-and-so-many-th of all points that a block passes."""

    known: dict = {}

    def __init__(self, number, handler):
        self.left = number
        self.at = None
        self.handler = handler

    def _enter(self, frame, event, arg):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if frame.f_code not in self.known:
            self.known[frame.f_code] = points_of(frame.f_code)
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._step

    def _step(self, frame, event, arg):
        if event == "opcode" and self.left and frame.f_lasti in self.known[frame.f_code]:
            self.left -= 1
            if not self.left:
                self.at = frame.f_code.co_filename, frame.f_lineno
                self.handler()
        return self._step

    def __enter__(self):
        sys.settrace(self._enter)
        return self

    def __exit__(self, *_):
        sys.settrace(None)


def interrupt():
    raise KeyboardInterrupt


def save_and_load(manager, folder):
    bt.msgpack_save(folder / "x", {"i": 1}, async_manager=manager, durable=False)
    bt.msgpack_save(folder / "y", {"i": 1}, durable=False)
    bt.msgpack_load(folder / "x")
    manager.wait_previous_save()


def fail(manager, folder):
    bt.msgpack_save(folder / "taken", {"i": 1}, async_manager=manager, durable=False)
    with pytest.raises(bt.InvalidCheckpointPath):
        manager.wait_previous_save()


@pytest.mark.skipif(not hasattr(dis, "_parse_exception_table") or sys.version_info >= (3, 12), reason="of Python 3.11")
@pytest.mark.parametrize("is_ending", [False, True], ids=["threads", "no threads"])
@pytest.mark.parametrize("by", ["ctrl-c", "handler"])
@pytest.mark.parametrize("scenario", [save_and_load, fail])
def test_a_signal_at_each_point(scenario, by, is_ending, tmp_path, monkeypatch):
    (tmp_path / "taken").mkdir()
    limit, kept, problems = sys.getrecursionlimit(), [], []

    def handler():
        bt.msgpack_save(tmp_path / "x", {"i": 2}, durable=False)
        try:
            bt.msgpack_save(tmp_path / "y", {"i": 2}, async_manager=manager, durable=False)
            manager.wait_previous_save()
        except bt.InvalidCheckpointPath:  # what has failed is told to one of them
            told.append(True)

    monkeypatch.setattr(threads, "is_ending", is_ending)
    monkeypatch.setattr(turns._log, "disabled", True)
    rounds, end = 0, time.monotonic() + 1.5
    for number in itertools.count(1 + int(os.environ.get("OFFSET", os.getpid())) % 37, 37):  # all of them take a minute
        manager, told = bt.AsyncManager(max_pending=2), []
        signal_at = SignalAt(number, interrupt if by == "ctrl-c" else handler)
        try:
            with signal_at:
                scenario(manager, tmp_path)
        except KeyboardInterrupt as error:
            kept.append(error)  # with its traceback, as a notebook does
        except pytest.fail.Exception:
            assert told
        if signal_at.left or time.monotonic() > end:
            break
        rounds += 1
        last = {"i": "last"}
        calls = [
            lambda: bt.msgpack_save(tmp_path / "x", last, async_manager=manager, durable=False),
            lambda: bt.msgpack_save(tmp_path / "y", last, durable=False),
            manager.wait_previous_save,
            manager.close,
        ]
        for call in calls:
            try:
                call()
            except (bt.InvalidCheckpointPath, RuntimeError) as error:  # of the scenario, which was interrupted
                problems += [] if "taken" in str(error) or "KeyboardInterrupt" in str(error) else [error]
        assert not problems, signal_at.at
        assert manager.pending == 0
        assert bt.msgpack_load(tmp_path / "x") == bt.msgpack_load(tmp_path / "y") == last, signal_at.at
        outcome.failures.entries.clear()  # one that was being told is kept for the end of the process
        assert gc.isenabled(), signal_at.at
        assert sys.getrecursionlimit() == limit
    assert rounds > 10
    kept.clear()
    gc.collect()


# Real signals.

STORM = """
    import os, signal, sys, threading, time, numpy as np, braintools_ckpt as bt
    folder = sys.argv[1]
    manager = bt.AsyncManager(max_pending=3)
    bt.msgpack_save(folder + "/x", {"i": 0})
    bt.msgpack_load(folder + "/x")
    count = i = 0
    def every(first, step, steps, handler, save):
        global count, i
        def count_and_handle(*_):
            global count
            count += 1
            handler()
        signal.signal(signal.SIGALRM, count_and_handle)
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            i += 1
            try:
                signal.setitimer(signal.ITIMER_REAL, first + step * (i % steps))
                save()
            except KeyboardInterrupt:
                pass
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert count > 10, (count, i)
"""


def test_handlers_that_save_while_large_arrays_are_written(tmp_path):
    code = """
    large = {"a": np.zeros(12_000_000, np.uint8)}
    save = lambda name: bt.msgpack_save(folder + name, large, durable=False)
    every(0.0005, 1e-5, 211, lambda: save("/y"), lambda: save("/x"))
    """
    in_child(STORM + code, tmp_path)


def test_handlers_that_save_while_the_program_uses_a_pool_of_its_own(tmp_path):
    code = """
    from concurrent.futures import ThreadPoolExecutor
    pool = ThreadPoolExecutor(2)
    save = lambda name: bt.msgpack_save(folder + name, {"i": i}, async_manager=manager, durable=False)
    every(0.0003, 1e-5, 151, lambda: save("/y"), lambda: [pool.submit(int).result() for _ in range(20)] and save("/x"))
    manager.close()
    """
    in_child(STORM + code, tmp_path)


def test_handlers_that_save_to_a_path_with_saves_that_wait(tmp_path):
    code = """
    def save():
        for _ in range(2):
            bt.msgpack_save(folder + "/x", {"i": i}, async_manager=manager, durable=False)
        repr(manager)
    every(0.0002, 11e-6, 97, lambda: bt.msgpack_save(folder + "/x", {"i": -1}, durable=False), save)
    manager.close()
    """
    in_child(STORM + code, tmp_path)


def test_handlers_threads_and_tasks_that_save_and_wait_for_each_other(tmp_path):
    code = """
    import random
    managers = [bt.AsyncManager(max_workers=w, max_pending=p) for w, p in ((1, 1), (2, 3), (3, 2))]
    stop = time.monotonic() + 2
    def save(chance, who):
        manager = chance.choice([None, *managers])
        bt.msgpack_save(f"{folder}/{chance.randrange(5)}", {"by": who}, async_manager=manager, durable=False)
    def wait(chance):
        if chance.random() < 0.5:
            chance.choice(managers).wait_previous_save()
        else:
            bt.msgpack_load(f"{folder}/{chance.randrange(5)}")
    def task(chance, depth):
        what = chance.random()
        if what < 0.4:
            wait(chance)
        elif what < 0.7:
            save(chance, "task")
        elif depth:
            chance.choice(managers).save_async(lambda: task(chance, depth - 1))
    def go_on(number):
        chance = random.Random(number)
        while time.monotonic() < stop:
            what = chance.random()
            if what < 0.5:
                save(chance, number)
            elif what < 0.85:
                future = chance.choice(managers).save_async(lambda: task(chance, 3))
                if what < 0.55:
                    future.cancel()
            else:
                wait(chance)
    def handler():
        chance = random.Random(count)
        save(chance, "handler")
        if chance.random() < 0.4:
            wait(chance)
    for name in range(5):
        bt.msgpack_save(f"{folder}/{name}", {})
    others = [threading.Thread(target=go_on, args=(number,)) for number in range(5)]
    for other in others:
        other.start()
    main = random.Random(9)
    every(0.0002, 3e-5, 97, handler, lambda: save(main, "main"))
    for other in others:
        other.join()
    while any(manager.pending for manager in managers):  # tasks of one may still save with another
        for manager in managers:
            manager.wait_previous_save()
    for manager in managers:
        manager.close()
        assert manager.pending == 0
    assert sorted(os.listdir(folder)) == ["0", "1", "2", "3", "4", "x"], os.listdir(folder)
    """
    in_child(STORM + code, tmp_path)


def test_ctrl_c_leaves_the_garbage_collector_on(tmp_path):
    code = """
    import gc
    def interrupt():
        raise KeyboardInterrupt
    def dump():
        for _ in range(100):
            bt.msgpack_dumps({"i": 1})
    every(30e-6, 1e-6, 331, interrupt, dump)
    bt.msgpack_dumps({})
    assert gc.isenabled()
    """
    in_child(STORM + code, tmp_path)


# Single moments.


def test_ctrl_c_while_the_first_thread_is_started_lets_the_process_end(tmp_path):
    code = """
    import _thread, signal, sys, braintools_ckpt as bt
    real = _thread.start_new_thread
    def start(*args):
        _thread.start_new_thread = real
        real(*args)
        signal.raise_signal(signal.SIGINT)
    manager = bt.AsyncManager()
    bt.msgpack_save(sys.argv[1] + "/y", {})
    _thread.start_new_thread = start
    bt.msgpack_save(sys.argv[1] + "/x", {"i": 1}, async_manager=manager)
    """
    done = in_child(code, tmp_path, check=False)
    assert done.returncode == -signal.SIGINT
    assert bt.msgpack_load(tmp_path / "x") == {"i": 1}


@pytest.mark.parametrize("moment", ["before", "after"])
def test_what_a_handler_saves_is_not_overwritten_by_what_was_saved_before(moment, tmp_path, monkeypatch):
    real, replace = turns.line.enter, os.replace
    monkeypatch.setattr(os, "replace", lambda *args: (time.sleep(0.05), replace(*args)))

    def enter(save):
        monkeypatch.setattr(turns.line, "enter", real)
        if moment == "after":
            real(save)
        bt.msgpack_save(tmp_path / "x", {"i": "handler"})
        raise SystemExit

    with bt.AsyncManager(max_pending=4) as manager:
        bt.msgpack_save(tmp_path / "x", {"i": 1}, async_manager=manager)
        monkeypatch.setattr(turns.line, "enter", enter)
        with pytest.raises(SystemExit):
            bt.msgpack_save(tmp_path / "x", {"i": 2}, async_manager=manager)
    assert bt.msgpack_load(tmp_path / "x") == {"i": "handler"}


def test_a_save_that_waits_behind_an_interrupted_one_keeps_no_other_from_its_thread(tmp_path, monkeypatch):
    manager, real, done = bt.AsyncManager(), os.replace, []

    def replace(*args):
        monkeypatch.setattr(os, "replace", real)
        other = threading.Thread(target=bt.msgpack_save, args=(tmp_path / "x", {"i": 2}, True, manager))
        other.start()
        other.join()
        bt.msgpack_save(tmp_path / "y", {"i": 3}, async_manager=manager)  # as a signal handler
        done.append(bt.msgpack_load(tmp_path / "y"))
        real(*args)

    monkeypatch.setattr(os, "replace", replace)
    bt.msgpack_save(tmp_path / "x", {"i": 1})
    manager.close()
    assert done == [{"i": 3}]
    assert bt.msgpack_load(tmp_path / "x") == {"i": 2}


def test_a_path_that_is_free_does_not_wait_for_another(tmp_path, monkeypatch):
    real, go = os.replace, threading.Event()
    monkeypatch.setattr(os, "replace", lambda *args: (args[1].endswith("x") and go.wait(10), real(*args)))
    with bt.AsyncManager(max_workers=2, max_pending=4) as manager:
        for name in "xxy":
            bt.msgpack_save(tmp_path / name, {}, async_manager=manager)
        manager.save_future.result(5)
        assert manager.pending == 2
        go.set()


def test_a_handler_that_waits_for_what_it_has_interrupted_is_told(tmp_path, monkeypatch):
    manager, real = bt.AsyncManager(), os.replace

    def replace(*args):
        monkeypatch.setattr(os, "replace", real)
        manager.wait_previous_save()
        with pytest.raises(RuntimeError, match="this thread is in the midst of it"):
            at_exit.saves.present()[0].result()
        real(*args)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(threads, "is_ending", True)
    bt.msgpack_save(tmp_path / "x", {"i": 1}, async_manager=manager)
    assert bt.msgpack_load(tmp_path / "x") == {"i": 1}


def test_a_filter_of_logging_that_raises_loses_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(outcome._log, "filter", lambda record: 1 / 0)
    monkeypatch.setattr("braintools_ckpt.storage.turns._log.filter", lambda record: 1 / 0)
    manager = bt.AsyncManager()
    bt.msgpack_save(tmp_path, {}, async_manager=manager)
    with pytest.raises(bt.InvalidCheckpointPath):
        manager.close()


class Odd(Exception):
    def add_note(self, note):
        raise ValueError("no notes")


def test_an_error_that_takes_no_notes_is_told():
    manager = bt.AsyncManager()

    def refuse():
        raise Odd

    manager.save_async(refuse)
    manager.save_async(refuse) if manager.pending == 0 else None
    with pytest.raises(Odd):
        manager.close()


def test_ctrl_c_in_a_save_at_once_is_told_once(tmp_path, monkeypatch):
    manager, real = bt.AsyncManager(), os.replace
    monkeypatch.setattr(threads, "is_ending", True)
    monkeypatch.setattr(os, "replace", lambda *_: interrupt())
    with pytest.raises(KeyboardInterrupt):
        bt.msgpack_save(tmp_path / "x", {}, async_manager=manager)
    monkeypatch.setattr(os, "replace", real)
    bt.msgpack_save(tmp_path / "x", {}, async_manager=manager)
    manager.close()


def test_an_interrupted_report_is_made_by_the_next_one(tmp_path, monkeypatch):
    manager, real = bt.AsyncManager(), bt.AsyncManager._failed

    def failed(*args):
        real(*args)
        monkeypatch.setattr(bt.AsyncManager, "_failed", real)
        raise KeyboardInterrupt

    bt.msgpack_save(tmp_path, {}, async_manager=manager)
    monkeypatch.setattr(bt.AsyncManager, "_failed", failed)
    with pytest.raises(KeyboardInterrupt):
        manager.wait_previous_save()
    with pytest.raises(bt.InvalidCheckpointPath):
        manager.wait_previous_save()
    manager.close()


# Room.


def test_a_task_that_saves_waits_for_room(tmp_path):
    most = [0]

    def task():
        for i in range(30):
            bt.msgpack_save(tmp_path / "x", {"i": i}, async_manager=manager, durable=False)
            most[0] = max(most[0], manager.pending)

    with bt.AsyncManager(max_pending=1) as manager:
        manager.save_async(task)
        manager.wait_previous_save()
    assert most == [2]  # the task and one save
    assert bt.msgpack_load(tmp_path / "x") == {"i": 29}


def test_what_is_cancelled_holds_neither_memory_nor_room(tmp_path):
    go = threading.Event()
    with bt.AsyncManager(max_pending=2, on_full="skip") as manager:
        manager.save_async(lambda: go.wait(10))
        bt.msgpack_save(tmp_path / "x", {"a": np.zeros(1000)}, async_manager=manager)
        future = manager.save_future
        called = []
        future.add_done_callback(called.append)
        assert future.cancel()
        assert future.cancel()
        assert called == [future]
        assert (manager.pending, manager.pending_bytes) == (1, 0)
        assert bt.msgpack_save(tmp_path / "y", {}, async_manager=manager)
        with pytest.raises(CancelledError):
            future.exception()
        go.set()
    assert os.listdir(tmp_path) == ["y"]


@pytest.mark.parametrize("on_full", ["skip", "raise"])
def test_a_save_has_ended_when_its_result_is_there(on_full, tmp_path):
    go = threading.Event()
    with bt.AsyncManager(on_full=on_full) as manager:
        bt.msgpack_save(tmp_path / "x", {}, async_manager=manager)
        manager.save_future.add_done_callback(lambda future: go.wait(10))
        manager.save_future.result()
        assert manager.pending == 0
        assert bt.msgpack_save(tmp_path / "x", {}, async_manager=manager)
        manager.wait_previous_save()
        go.set()


def test_a_future_tells_its_state(tmp_path):
    go = threading.Event()
    with bt.AsyncManager() as manager:
        future = manager.save_async(lambda: go.wait(10))
        with pytest.raises(TimeoutError):
            future.result(0.01)
        assert future.running()
        assert not future.cancel()
        assert "running" in repr(future)
        go.set()
        assert future.result() is True
        called = []
        future.add_done_callback(called.append)
        assert called == [future]
        assert "done" in repr(future)


def test_what_others_do_with_futures(tmp_path):
    async def save():
        bt.msgpack_save(tmp_path / "x", {}, async_manager=manager)
        await asyncio.wrap_future(manager.save_future)
        bt.msgpack_save(tmp_path, {}, async_manager=manager)
        with pytest.raises(bt.InvalidCheckpointPath):
            await asyncio.wrap_future(manager.save_future)

    with bt.AsyncManager(max_pending=4) as manager:
        asyncio.run(save())
        futures = []
        for name in "abc":
            bt.msgpack_save(tmp_path / name, {}, async_manager=manager)
            futures.append(manager.save_future)
        assert wait(futures, timeout=10).done == set(futures)
        assert set(as_completed(futures, timeout=10)) == set(futures)


def test_flax_files_wait_for_no_array(tmp_path):
    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 4000, lambda _, x: jnp.sin(x) + 1, x))
    x = jnp.ones(20_000)
    slow(x).block_until_ready()
    with bt.AsyncManager() as manager:
        result = slow(x)
        bt.msgpack_save(tmp_path / "x", {"x": result}, async_manager=manager, format="flax")
        assert not result.is_ready()
        expected = np.array(result)
        result.delete()
    np.testing.assert_array_equal(bt.msgpack_load(tmp_path / "x", arrays="numpy")["x"], expected)


def test_a_manager_that_is_closed_while_a_loop_saves(tmp_path, monkeypatch):
    manager = bt.AsyncManager()
    save = bt.save_in_loop(tmp_path / "x", 1, async_manager=manager)
    manager.close()
    with pytest.raises(ManagerClosedError):
        bt.msgpack_save(tmp_path / "x", {}, async_manager=manager)
    save(3, {"a": 1})
    assert bt.msgpack_load(tmp_path / "x") == {"a": 1}


def test_a_walk_that_begins_while_another_one_ends(monkeypatch):
    begun, go, limit, real = threading.Event(), threading.Event(), sys.getrecursionlimit(), gc.enable

    def walk():
        with walking.walking():
            begun.set()
            go.wait(10)

    def enable():
        monkeypatch.setattr(gc, "enable", real)
        real()
        other.start()
        begun.wait(0.2)

    other = threading.Thread(target=walk)
    monkeypatch.setattr(gc, "enable", enable)
    with walking.walking():
        pass
    assert begun.wait(10)
    assert not gc.isenabled()
    assert sys.getrecursionlimit() > limit
    go.set()
    other.join()
    assert gc.isenabled()
    assert sys.getrecursionlimit() == limit


def test_a_handler_that_waits_for_another_thread_while_a_walk_ends(monkeypatch):
    limit, real = sys.getrecursionlimit(), gc.enable

    def enable():
        monkeypatch.setattr(gc, "enable", real)
        other.start()
        other.join(30)
        ended.append(not other.is_alive())
        real()

    ended, other = [], threading.Thread(target=bt.msgpack_dumps, args=({},), daemon=True)
    monkeypatch.setattr(gc, "enable", enable)
    bt.msgpack_dumps({})
    assert ended == [True]
    assert gc.isenabled()
    assert sys.getrecursionlimit() == limit


def test_walks_of_many_threads_leave_the_settings(tmp_path):
    code = """
    import gc, sys, threading, time, braintools_ckpt as bt
    sys.setswitchinterval(1e-6)
    end, limit = time.monotonic() + 2, sys.getrecursionlimit()
    def walk():
        while time.monotonic() < end:
            bt.msgpack_dumps({})
    walkers = [threading.Thread(target=walk) for _ in range(4)]
    for walker in walkers:
        walker.start()
    for walker in walkers:
        walker.join()
    assert gc.isenabled() and sys.getrecursionlimit() == limit, (gc.isenabled(), sys.getrecursionlimit())
    """
    in_child(code, tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_child_of_a_process_that_walks_collects_garbage(tmp_path):
    code = """
    import gc, os, sys, threading, braintools_ckpt as bt
    from braintools_ckpt.walking import walking
    go, begun, limit = threading.Event(), threading.Event(), sys.getrecursionlimit()
    def walk():
        with walking():
            begun.set()
            go.wait(10)
    thread = threading.Thread(target=walk)
    thread.start()
    begun.wait()
    if os.fork() == 0:
        bt.msgpack_dumps({})
        os._exit(0 if gc.isenabled() and sys.getrecursionlimit() == limit else 1)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    go.set()
    thread.join()
    assert gc.isenabled()
    """
    in_child(code, tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_child_of_a_process_that_looks_up_a_type_saves(tmp_path):
    code = """
    import os, signal, sys, threading, braintools_ckpt as bt
    class Held(type):
        @property
        def __module__(cls):
            if threading.current_thread() is other:
                begun.set()
                go.wait(10)
            return "held"
    class Odd(dict, metaclass=Held):
        pass
    go, begun = threading.Event(), threading.Event()
    other = threading.Thread(target=lambda: bt.msgpack_dumps(Odd(a=1)))
    other.start()
    begun.wait(10)
    if os.fork() == 0:
        signal.alarm(10)
        bt.msgpack_dumps(type("New", (dict,), {})(a=1))
        os._exit(0)
    status = os.wait()[1]
    go.set()
    other.join()
    assert status == 0, status
    """
    in_child(code, tmp_path)


def test_an_error_that_the_program_handles_keeps_its_values(tmp_path, monkeypatch):
    def fail():
        found = 3
        raise KeyError(found)

    monkeypatch.setattr(threads, "is_ending", True)
    manager = bt.AsyncManager()
    try:
        fail()
    except KeyError as error:
        with pytest.raises(bt.InvalidCheckpointPath):
            [bt.msgpack_save(tmp_path, {}, async_manager=manager) for _ in range(2)]
        kept = error.__traceback__.tb_next.tb_frame.f_locals
    assert kept == {"found": 3}
    with pytest.raises(bt.InvalidCheckpointPath):
        manager.close()


# What it is made of.


def test_a_register_keeps_the_order_and_sweeps():
    class Entry:
        is_over = False

    register, entries = Register(), [Entry() for _ in range(5)]
    for entry in entries:
        register.enter(entry)
    entries[1].is_over = entries[3].is_over = True
    assert register.present() == [entries[0], entries[2], entries[4]] == register.entries


def test_a_claim_has_one_owner():
    claim = Claim()
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(lambda _: claim.take(Token()), range(100))) == 1
    claim.give_back()
    assert claim.take(Token())


def test_a_latch_wakes_all():
    latch, woken = Latch(), []
    waiting = [threading.Thread(target=lambda: woken.append(latch.wait(10))) for _ in range(5)]
    for thread in waiting:
        thread.start()
    assert not latch.wait(0.01)
    latch.set()
    latch.set()
    for thread in waiting:
        thread.join()
    assert woken == [True] * 5


def test_a_team_does_as_much_at_a_time_as_it_may():
    at_work, most, lock = [0], [0], threading.Lock()

    def job(i):
        with lock:
            at_work[0] += 1
            most[0] = max(most[0], at_work[0])
        time.sleep(0.002)
        with lock:
            at_work[0] -= 1
        if i == 40:
            raise KeyError(i)
        return i

    with threads.Team(3) as team:
        jobs = team.add_all([lambda i=i: job(i) for i in range(40)])
        assert [job.result() for job in jobs] == list(range(40))
    assert most == [3]
    with pytest.raises(KeyError):
        threads.do_all([lambda i=i: job(i) for i in range(38, 200)], 2)
    assert at_work == [0]


def test_no_thread_is_begun_while_there_is_nothing_to_do(monkeypatch):
    begun, go, started = threading.Event(), threading.Event(), []
    with threads.Team(3) as team:
        job = team.add(lambda: (begun.set(), go.wait(10)))
        assert begun.wait(10)
        monkeypatch.setattr("_thread.start_new_thread", lambda work, args: started.append(work))
        naps = iter(range(5))
        monkeypatch.setattr(job._ended, "wait", lambda nap: next(naps, None) is None)
        job.wait()
        monkeypatch.undo()
        go.set()
    assert started == []


def test_a_team_without_threads(monkeypatch):
    monkeypatch.setattr(threads, "is_ending", True)
    with threads.Team(3) as team:
        assert [job.result() for job in team.add_all([lambda i=i: i for i in range(9)])] == list(range(9))
