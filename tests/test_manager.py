"""CheckpointManager: when it saves, what it keeps, from where a run goes on."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import braintools_ckpt as bt
from braintools_ckpt import (
    AtSteps,
    CheckpointManager,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    EverySeconds,
    EverySteps,
    KeepBest,
    KeepEvery,
    KeepLatest,
    KeepSteps,
    KeepYounger,
    Moment,
    OnPreemption,
    StepExistsError,
    StepInfo,
)
from braintools_ckpt.manager.names import StepNames
from braintools_ckpt.manager.policies import keep_policy, ranked, save_policy, to_delete


def tree(step):
    return {"w": np.full(3, float(step)), "step": step}


def filled(folder, steps, **how):
    manager = CheckpointManager(folder, durable=False, **how)
    for step in steps:
        manager.save(step, tree(step), metrics={"loss": abs(step - 20)})
    manager.wait()
    return manager


def damage(path):
    """Change one byte of the data."""
    with open(path, "r+b") as file:
        file.seek(70)
        byte = file.read(1)
        file.seek(70)
        file.write(bytes([byte[0] ^ 1]))


# Policies, which are pure.

INFOS = [StepInfo(step, f"{step}", 100.0 + step, {"loss": loss, "acc": -loss}) for step, loss in
         ((1, 5.0), (2, 3.0), (3, math.nan), (4, 3.0), (5, math.inf), (6, 9.0))]  # fmt: skip


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (None, [1, 2, 3, 4, 5, 6]),
        (2, [5, 6]),
        (KeepLatest(3), [4, 5, 6]),
        (KeepBest(1), [4, 6]),
        (KeepBest(2, "loss"), [2, 4, 6]),
        (KeepBest(4, "loss"), [1, 2, 4, 6]),
        (KeepBest(5, "loss"), [1, 2, 4, 5, 6]),
        (KeepBest(1, "acc", "max"), [4, 6]),
        (KeepBest(1, "nothing"), [6]),
        (KeepEvery(3), [3, 6]),
        (KeepYounger(3.0), [4, 5, 6]),
        (KeepSteps([1, 77]), [1, 6]),
        ([KeepEvery(4), KeepSteps([1])], [1, 4, 6]),
        (lambda infos, now: [infos[0].step], [1, 6]),
    ],
)
def test_what_is_kept(policy, kept):
    deleted = to_delete(INFOS, keep_policy(policy), now=107.0)
    assert [info.step for info in INFOS if info not in deleted] == kept


def test_nothing_is_deleted_where_nothing_is():
    assert to_delete([], keep_policy([KeepLatest(1), KeepBest(1), KeepEvery(2), KeepSteps([1])]), now=0.0) == []


def test_the_order_of_the_best():
    assert [info.step for info in ranked(INFOS, "loss", "min")] == [4, 2, 1, 6, 5, 3]
    assert [info.step for info in ranked(INFOS, "loss", "max")] == [5, 6, 1, 4, 2, 3]


@pytest.mark.parametrize(
    ("policy", "moment", "saves"),
    [
        (None, Moment(3, 0.0), True),
        (10, Moment(20, 0.0), True),
        (EverySteps(10), Moment(21, 0.0), False),
        (EverySeconds(5), Moment(1, 100.0), True),
        (EverySeconds(5), Moment(1, 100.0, 0, 96.0), False),
        (EverySeconds(5), Moment(1, 100.0, 0, 95.0), True),
        (AtSteps([3, 4]), Moment(4, 0.0), True),
        (AtSteps([3, 4]), Moment(5, 0.0), False),
        (OnPreemption(), Moment(5, 0.0), False),
        (OnPreemption(), Moment(5, 0.0, preempted=True), True),
        ([EverySteps(10), AtSteps([3])], Moment(3, 0.0), True),
        (lambda moment: moment.step == 7, Moment(7, 0.0), True),
    ],
)
def test_when_it_is_saved(policy, moment, saves):
    assert save_policy(policy)(moment) is saves


@pytest.mark.parametrize("make", [EverySteps, EverySeconds, KeepLatest, KeepEvery, KeepYounger, KeepBest])
@pytest.mark.parametrize("number", [0, -1, True, "loss"])
def test_policies_of_no_number(make, number):
    with pytest.raises(ValueError, match=f"{make.__name__} needs a number greater than 0, got {number!r}"):
        make(number)


def test_what_is_no_policy(tmp_path):
    with pytest.raises(TypeError, match="save must be a policy"):
        CheckpointManager(tmp_path, save="daily")
    with pytest.raises(TypeError, match="keep must be a policy"):
        CheckpointManager(tmp_path, keep=KeepLatest)
    with pytest.raises(ValueError, match="mode must be 'min' or 'max', got 'least'"):
        CheckpointManager(tmp_path, mode="least")


# Names.


def test_names_sort_and_are_found_again():
    names = StepNames("run-{step:06}.msgpack")
    assert [names.of(step) for step in (0, 12, 1234567)] == [
        "run-000000.msgpack",
        "run-000012.msgpack",
        "run-1234567.msgpack",
    ]
    assert names.step("run-000012.msgpack") == 12
    for other in ("run-12.msgpack", "run-000012.msgpack.bak", ".run-000012.msgpack.tmp-1-0123456789abcdef", "notes"):
        assert names.step(other) is None


@pytest.mark.parametrize(
    "pattern",
    ["plain", "{step}{step}", "{epoch}", "a/{step}", ".{step}", "{step:x}", "{step", "{}", "{step!r:>5}x{other}"],
)
def test_formats_that_do_not_work(pattern, tmp_path):
    with pytest.raises(ValueError, match="is no format for checkpoints' names"):
        CheckpointManager(tmp_path, name=pattern)


# A run.


@pytest.mark.parametrize("how", [True, False])
def test_a_run_that_is_ended_and_begun_again(how, tmp_path):
    def run(until):
        with CheckpointManager(tmp_path / "run", save=10, keep=[KeepLatest(2), KeepBest(1)], async_save=how) as manager:
            step, state = manager.restore_or(lambda: {"w": jnp.zeros(2)})
            begun = step
            while step < until:
                state, step = {"w": state["w"] + 1}, step + 1
                assert manager.save(step, state, {"loss": abs(step - 20)}, {"note": f"at {step}"}) == (step % 10 == 0)
        return begun, manager

    assert run(55)[0] == 0
    begun, manager = run(80)
    assert begun == 50
    assert manager.all_steps() == [20, 70, 80]
    assert (manager.latest_step(), manager.best_step()) == (80, 20)
    assert manager.metrics(70) == {"loss": 50.0}
    assert manager.info(70).metadata == {"note": "at 70"}
    np.testing.assert_array_equal(manager.restore("best")["w"], [20, 20])
    np.testing.assert_array_equal(manager.restore(70, target={"w": np.zeros(2, np.float32)})["w"], [70, 70])
    assert sorted(os.listdir(tmp_path / "run")) == ["0000000020.ckpt", "0000000070.ckpt", "0000000080.ckpt"]


def test_nothing_is_there_yet(tmp_path):
    manager = CheckpointManager(tmp_path / "a" / "b")
    assert (manager.all_steps(), manager.latest_step(), manager.best_step()) == ([], None, None)
    with pytest.raises(CheckpointNotFoundError):
        manager.restore()
    with pytest.raises(CheckpointNotFoundError, match="there is no checkpoint in its directory"):
        manager.restore(3)
    init = tree(0)
    step, state = manager.restore_or(init)
    assert step == 0
    assert state is init


def test_the_best_may_be_given_by_another_metric(tmp_path):
    manager = CheckpointManager(tmp_path, metric="acc", mode="max", keep=KeepBest(1, "acc", "max"))
    for step, acc in ((1, 0.5), (2, 0.9), (3, float("nan")), (4, 0.7), (5, 0.6)):
        manager.save(step, tree(step), {"acc": acc})
    manager.wait()
    assert manager.all_steps() == [2, 5]
    assert manager.best_step() == 2


def test_metrics_must_be_numbers(tmp_path):
    manager = CheckpointManager(tmp_path)
    manager.save(1, tree(1), {"loss": jnp.float32(0.5), "n": np.int64(3)})
    assert manager.wait() is None
    assert manager.metrics(1) == {"loss": 0.5, "n": 3.0}
    with pytest.raises(TypeError, match="metrics must be numbers, got 'low' for 'loss'"):
        manager.save(2, tree(2), {"loss": "low"})
    assert manager.all_steps() == [1]


@pytest.mark.parametrize("step", [-1, 1.5, True, "3", None])
def test_steps_are_whole_numbers(step, tmp_path):
    with pytest.raises(ValueError, match="step, the first argument, must be a whole number of at least 0"):
        CheckpointManager(tmp_path).save(step, tree(0))


# Steps that exist.


def test_a_step_that_exists_is_an_error_and_never_a_silent_skip(tmp_path):
    manager = filled(tmp_path, [1, 2])
    with pytest.raises(
        StepExistsError, match="There is a checkpoint of step 2 already: .*Pass force=True to replace it"
    ):
        manager.save(2, tree(20))
    assert manager.restore(2)["step"] == 2
    assert manager.save(2, tree(20), force=True)
    assert manager.restore(2)["step"] == 20
    assert manager.save(1, tree(10), force=True)  # whatever the policy says, too
    assert CheckpointManager(tmp_path, save=AtSteps([])).save(3, tree(3)) is False
    assert CheckpointManager(tmp_path, save=AtSteps([])).save(3, tree(3), force=True) is True


def test_a_damaged_file_is_no_step_that_exists(tmp_path):
    manager = filled(tmp_path, [1, 2])
    path = tmp_path / "0000000002.ckpt"
    path.write_bytes(path.read_bytes()[:-50])
    again = CheckpointManager(tmp_path)
    assert again.all_steps() == [1]
    assert again.save(2, tree(22))
    assert again.restore()["step"] == 22
    assert manager.all_steps() == [1, 2]


# Files that are not as they should be.


def test_a_corrupt_latest_is_told_of_and_the_one_before_is_used(tmp_path):
    filled(tmp_path, [1, 2, 3])
    damage(tmp_path / "0000000003.ckpt")
    (tmp_path / "0000000004.ckpt").write_bytes(b"foreign")
    (tmp_path / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    manager = CheckpointManager(tmp_path)
    assert manager.all_steps() == [1, 2, 3]  # its data are looked at when it is loaded
    with pytest.warns(UserWarning, match=r"Step 2 was loaded, since other .*0000000004.ckpt: .*0000000003.ckpt: "):
        step, state = manager.restore_or(tree(0))
    assert (step, state["step"]) == (2, 2)
    with pytest.raises(CorruptCheckpointError):
        manager.restore(strict=True)
    with pytest.raises(CorruptCheckpointError):
        manager.restore(3)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_when_all_are_corrupt_a_run_does_not_begin_anew(tmp_path):
    filled(tmp_path, [1, 2])
    for path in tmp_path.iterdir():
        damage(path)
    with pytest.raises(CorruptCheckpointError, match=r"None of the 2 checkpoints in .* can be loaded"):
        CheckpointManager(tmp_path).restore_or(tree(0))


def test_a_corrupt_best_is_followed_by_the_next_best(tmp_path):
    manager = filled(tmp_path, [10, 20, 30])
    damage(tmp_path / "0000000020.ckpt")
    with pytest.warns(UserWarning, match="Step (10|30) was loaded"):
        assert manager.restore("best")["step"] in (10, 30)


def test_a_run_goes_on_over_what_is_corrupt(tmp_path):
    filled(tmp_path, [1, 2, 3])
    damage(tmp_path / "0000000003.ckpt")
    with CheckpointManager(tmp_path, keep=2) as manager:
        with pytest.warns(UserWarning, match="Step 2 was loaded"):
            step, _ = manager.restore_or(tree(0))
        assert step == 2
        manager.save(3, tree(33))
        manager.save(4, tree(4))
    assert manager.all_steps() == [3, 4]
    assert manager.restore(3)["step"] == 33
    with pytest.raises(StepExistsError):
        CheckpointManager(tmp_path).save(3, tree(5))


def test_a_run_that_goes_back_deletes_what_is_corrupt(tmp_path):
    manager = filled(tmp_path, [1, 2, 3, 4])
    damage(tmp_path / "0000000003.ckpt")
    os.truncate(tmp_path / "0000000004.ckpt", 100)
    (tmp_path / "0000000005.ckpt").write_bytes(b"somebody else's")
    assert manager.delete_after(2) == [3, 4]
    assert sorted(os.listdir(tmp_path)) == ["0000000001.ckpt", "0000000002.ckpt", "0000000005.ckpt"]


@pytest.mark.parametrize("keep", [KeepBest(1, "val_los"), [1, [KeepBest(2, "val_los")]]])
def test_a_metric_that_no_checkpoint_has(keep, tmp_path):
    with CheckpointManager(tmp_path, keep=keep) as manager:
        manager.save(1, tree(1))
        with pytest.warns(
            UserWarning, match="KeepBest goes by 'val_los', which no checkpoint in .*; this one has 'val_"
        ):
            manager.save(2, tree(2), {"val_loss": 1.0})
        manager.save(3, tree(3), {"val_loss": 1.0})  # once
    with CheckpointManager(tmp_path, keep=KeepBest(1, "val_loss")) as manager:
        manager.save(4, tree(4), {"train_loss": 1.0})  # others have it


def test_a_class_that_has_changed_is_no_reason_to_go_back(tmp_path):
    def made(*fields):
        ty = dataclasses.make_dataclass("Changed", fields)
        return bt.serializable(name="manager.Changed", override=True)(ty)

    with CheckpointManager(tmp_path) as manager:
        manager.save(1, made("a")(1))
        manager.save(2, made("a", "b")(1, 2))
        made("a")
        with pytest.raises(bt.HandlerError, match="The class has changed"):
            manager.restore()


def test_a_target_that_does_not_fit_is_no_reason_to_go_back(tmp_path):
    manager = filled(tmp_path, [1, 2])
    with pytest.raises(bt.MismatchError):
        manager.restore_or({"other": np.zeros(2)})
    assert manager.restore("latest", {"w": np.zeros(3)}, partial=True)["w"][0] == 2


def test_files_may_be_copied_removed_and_renamed_by_hand(tmp_path):
    manager = filled(tmp_path, [1, 2, 3])
    shutil.copy(tmp_path / "0000000002.ckpt", tmp_path / "0000000007.ckpt")
    (tmp_path / "0000000003.ckpt").rename(tmp_path / "best.ckpt")
    (tmp_path / "0000000001.ckpt").unlink()
    assert manager.all_steps() == [2, 7]
    step, state = manager.restore_or(tree(0))
    assert (step, state["step"]) == (7, 2)
    bt.msgpack_save(tmp_path / "0000000009.ckpt", {"of": "another origin"})
    assert manager.infos()[-1].metrics == {}
    assert manager.restore() == {"of": "another origin"}


def test_another_process_sees_what_is_there(tmp_path):
    reader = CheckpointManager(tmp_path)
    assert reader.all_steps() == []
    filled(tmp_path, [1])
    assert reader.all_steps() == [1]
    filled(tmp_path, [2])
    os.unlink(tmp_path / "0000000001.ckpt")
    assert reader.all_steps() == [2]
    manager = CheckpointManager(tmp_path)
    manager.save(2, tree(33), {"loss": 7}, force=True)
    manager.wait()
    assert reader.metrics(2) == {"loss": 7.0}


# Deleting.


def test_delete(tmp_path):
    manager = filled(tmp_path, [1, 2])
    manager.delete(1)
    assert manager.all_steps() == [2]
    with pytest.raises(CheckpointNotFoundError, match=r"\(step 1\); the directory has step 2"):
        manager.delete(1)


def test_the_latest_is_never_deleted_and_steps_that_come_late_are_judged_like_others(tmp_path):
    manager = filled(tmp_path, [10, 5, 20, 1], keep=[KeepBest(1)])
    assert manager.all_steps() == [1, 20]  # what has just been saved stays until the next
    manager = filled(tmp_path, [30, 40], keep=KeepBest(1))
    assert manager.all_steps() == [20, 40]


def test_a_reader_keeps_its_open_file(tmp_path):
    manager = filled(tmp_path, [1], keep=1)
    with bt.open_checkpoint(manager.info(1).path) as checkpoint:
        manager.save(2, tree(2))
        manager.wait()
        assert manager.all_steps() == [2]
        np.testing.assert_array_equal(checkpoint["w"], [1, 1, 1])


def test_what_cannot_be_deleted_stays_and_is_tried_again(tmp_path, monkeypatch, caplog):
    manager = filled(tmp_path, [1], keep=1)
    unlink = os.unlink

    def refuse(path, *more, **how):
        if str(path).endswith("0000000001.ckpt"):
            raise PermissionError(13, "no", path)
        return unlink(path, *more, **how)

    monkeypatch.setattr(os, "unlink", refuse)
    manager.save(2, tree(2))
    manager.wait()
    assert manager.all_steps() == [1, 2]
    assert "0000000001.ckpt could not be deleted" in caplog.text
    monkeypatch.undo()
    manager.save(3, tree(3))
    manager.wait()
    assert manager.all_steps() == [3]


@pytest.mark.parametrize("how", [True, False])
def test_a_save_that_fails_deletes_nothing(how, tmp_path, monkeypatch):
    manager = filled(tmp_path, [1, 2], keep=1, async_save=how)
    assert manager.all_steps() == [2]

    def full(*paths, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(os, "link", full)
    with pytest.raises(OSError, match="No space left"):
        manager.save(3, tree(3)) and manager.wait()
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["0000000002.ckpt"]
    assert manager.restore()["step"] == 2
    manager.save(4, tree(4))
    manager.wait()
    assert manager.all_steps() == [4]


def test_what_cannot_be_saved_changes_nothing(tmp_path):
    manager = filled(tmp_path, [1], save=EverySeconds(1e-9))
    with pytest.raises(bt.SerializationError):
        manager.save(2, {"w": object()})
    assert manager.all_steps() == [1]
    assert manager.save(2, tree(2))


# In the background.


def test_saves_in_the_background_follow_their_order(tmp_path):
    with bt.AsyncManager(max_pending=3) as own:
        manager = CheckpointManager(tmp_path, async_save=own, keep=2)
        array = np.zeros(1000)
        for step in range(1, 8):
            array[:] = step
            manager.save(step, {"w": array})
            array[:] = -1
        manager.close()
        assert not own.closed
    assert manager.all_steps() == [6, 7]
    np.testing.assert_array_equal(manager.restore()["w"], np.full(1000, 7.0))


def test_a_save_that_is_left_out_says_so(tmp_path, caplog):
    begin, go_on = threading.Event(), threading.Event()
    with bt.AsyncManager(on_full="skip") as own:
        own.save_async(lambda: (begin.set(), go_on.wait()))
        begin.wait()
        manager = CheckpointManager(tmp_path, async_save=own)
        assert manager.save(1, tree(1)) is False
        go_on.set()
    assert "Step 1 is not saved" in caplog.text
    assert manager.all_steps() == []


def test_closed_managers_save_no_more(tmp_path):
    manager = CheckpointManager(tmp_path)
    manager.close()
    with pytest.raises(RuntimeError, match="closed CheckpointManager"):
        manager.save(1, tree(1))
    manager.close()
    assert manager.all_steps() == []


def test_an_exception_on_its_way_is_not_hidden(tmp_path):
    manager = CheckpointManager(tmp_path)

    def run():
        with manager:
            manager.save(1, tree(1))
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run()
    assert manager.all_steps() == [1]


# Followers.


def test_an_evaluator_follows(tmp_path):
    def train():
        manager = CheckpointManager(tmp_path, async_save=False, durable=False)
        for step in range(1, 5):
            time.sleep(0.05)
            manager.save(step, tree(step))

    thread = threading.Thread(target=train)
    reader = CheckpointManager(tmp_path)
    thread.start()
    assert [reader.restore(step)["step"] for step in reader.follow(timeout=1.0, poll=0.01)] == [1, 2, 3, 4]
    thread.join()
    assert reader.wait_for_new(4, timeout=0.05, poll=0.01) is None
    assert reader.wait_for_new(3) == 4


def test_an_evaluator_follows_a_run_that_goes_back(tmp_path):
    manager = filled(tmp_path, [0, 80, 90])
    steps = CheckpointManager(tmp_path).follow(timeout=0.05, poll=0.01)
    assert [next(steps) for _ in range(3)] == [0, 80, 90]
    manager.delete_after(0)
    for step in (70, 80):
        manager.save(step, tree(step + 1))
        manager.wait()
        assert next(steps) == step
    assert list(steps) == []


# Preemption.

PREEMPTED = """
import os, signal, sys
import numpy as np
import braintools_ckpt as bt
heard = []
if sys.argv[2] == "chained":
    signal.signal(signal.SIGTERM, lambda *_: print("heard", flush=True))
with bt.CheckpointManager(sys.argv[1], save=bt.OnPreemption(), signals=True) as manager:
    step, state = manager.restore_or({"w": np.zeros(2)})
    for step in range(step + 1, 100):
        state = {"w": state["w"] + 1}
        if step == 5:
            os.kill(os.getpid(), getattr(signal, sys.argv[3]))
        manager.save(step, state)
print("never")
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("before", ["plain", "chained"])
def test_a_signal_saves_the_next_step_and_ends_the_process(name, before, tmp_path):
    command = [sys.executable, "-c", PREEMPTED, str(tmp_path), before, name]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 128 + getattr(signal, name), done.stderr
    assert done.stdout == ("heard\n" if before == "chained" and name == "SIGTERM" else "")
    manager = CheckpointManager(tmp_path)
    assert manager.all_steps() == [5]
    assert manager.restore_or({"w": np.zeros(2)})[1]["w"][0] == 5


def test_handlers_are_given_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with CheckpointManager(tmp_path, signals=[signal.SIGTERM]) as manager:
        assert signal.getsignal(signal.SIGTERM) != before[0]
        assert signal.getsignal(signal.SIGINT) == before[1]
        assert not manager.preempted
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_signals_need_the_main_thread(tmp_path):
    caught = []

    def make():
        try:
            CheckpointManager(tmp_path, signals=True)
        except RuntimeError as error:
            caught.append(str(error))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert caught == ["Signals can be handled only in the main thread: make the CheckpointManager there."]


# Temporary files.


def test_temporary_files_of_dead_processes_are_removed_at_the_next_start(tmp_path):
    script = (
        "import os, sys\nfrom braintools_ckpt.storage.local import atomic_write\n"
        "with atomic_write(sys.argv[1] + '/0000000001.ckpt') as sink:\n"
        "    sink.write(b'part')\n    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)])
    assert len(os.listdir(tmp_path)) == 1
    CheckpointManager(tmp_path)
    assert os.listdir(tmp_path) == []


def test_temporary_files_of_living_processes_stay(tmp_path):
    from braintools_ckpt.storage.local import atomic_write

    with atomic_write(tmp_path / "0000000001.ckpt") as sink:
        sink.write(b"part")
        CheckpointManager(tmp_path)
        assert len(os.listdir(tmp_path)) == 1


def test_repr(tmp_path):
    manager = filled(tmp_path, range(1, 10))
    assert repr(manager) == f"<CheckpointManager of {tmp_path}: steps 1, 2, ... 9>"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert repr(CheckpointManager(tmp_path / "no")) == f"<CheckpointManager of {tmp_path / 'no'}: no checkpoint>"


# What others do in the meantime.


@pytest.mark.parametrize(("keep", "left"), [(3, [10, 20, 30]), (KeepBest(1), [10, 30]), ([2, KeepEvery(50)], [20, 30])])
def test_files_that_were_removed_by_hand_count_no_more(keep, left, tmp_path):
    manager = filled(tmp_path, [80, 90, 100], keep=keep)
    for name in os.listdir(tmp_path):
        os.unlink(tmp_path / name)
    assert manager.restore_or(tree(0))[0] == 0
    for step in (10, 20, 30):
        assert manager.save(step, tree(step), {"loss": step})
    manager.wait()
    assert manager.all_steps() == left


def test_files_of_another_writer_are_judged_too(tmp_path):
    one, other = CheckpointManager(tmp_path, keep=2), CheckpointManager(tmp_path, keep=2)
    for step in range(1, 8):
        (one if step % 2 else other).save(step, tree(step))
        one.wait(), other.wait()
    assert one.all_steps() == [6, 7]


@pytest.mark.parametrize("step", [1, 1_000_000, 1_000_000_000])
def test_files_changed_within_one_step_of_the_clock(step, tmp_path, monkeypatch):
    class Coarse:
        def __init__(self, status):
            self.st_ino, self.st_size, self.st_mode = status.st_ino, status.st_size, status.st_mode
            self.st_mtime_ns = self.st_ctime_ns = status.st_mtime_ns // step * step
            self.st_mtime = self.st_mtime_ns / 1e9

    coarse = types.SimpleNamespace(**{**vars(os), "stat": lambda path: Coarse(os.stat(path))})
    monkeypatch.setattr("braintools_ckpt.manager.catalog.os", coarse)
    manager = CheckpointManager(tmp_path)
    manager.save(1, tree(1), {"loss": 1.0})
    manager.save(2, tree(2), {"loss": 2.0})
    manager.wait()
    first, second = ((tmp_path / f"{number:010}.ckpt").read_bytes() for number in (1, 2))
    for _ in range(20):
        for one, two in [(first, second), (second, first)]:
            for number, data in [(1, one), (2, two)]:
                with open(tmp_path / f"{number:010}.ckpt", "r+b") as file:
                    file.write(data)
            assert manager.best_step() == (1 if one is first else 2)


def test_a_run_that_goes_back(tmp_path):
    manager = filled(tmp_path, [80, 90, 100], keep=2)
    assert manager.delete_after(90) == [100]
    for step in (95, 96, 97):
        manager.save(step, tree(step))
    manager.wait()
    assert manager.all_steps() == [96, 97]
    manager = filled(tmp_path / "other", [80, 90, 100], keep=2)
    manager.save(95, tree(95))
    manager.wait()
    assert 95 in manager.all_steps()


ODD = {
    "a directory": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a loop": lambda path: path.symlink_to(path.name),
    "a foreign file": lambda path: path.write_bytes(b"HDF not of ours"),
    "a number": lambda path: path.write_bytes(b"1"),
    "an empty file": lambda path: path.touch(),
    "odd metadata": lambda path: bt.msgpack_save(
        path, tree(9), metadata={"metrics": {"x": 10**400, "loss": "low"}, "time": float("nan")}
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_entries_are_told_of_and_skipped(kind, tmp_path, caplog):
    filled(tmp_path, [1, 2])
    ODD[kind](tmp_path / "0000000009.ckpt")
    manager = CheckpointManager(tmp_path)
    valid = kind == "odd metadata"
    assert manager.all_steps() == [1, 2, 9][: 3 if valid else 2]
    if valid:
        assert manager.metrics(9) == {}
        return
    manager.all_steps(), manager.all_steps()
    assert caplog.text.count("0000000009.ckpt is left out") == 1
    with pytest.warns(UserWarning, match="Step 2 was loaded, since other checkpoints cannot be: 0000000009.ckpt"):
        assert manager.restore_or(tree(0))[0] == 2
    with pytest.raises(CorruptCheckpointError):
        manager.restore(strict=True)
    with pytest.raises(StepExistsError, match="What stands for step 9 is a file that cannot be read"):
        manager.save(9, tree(9))


def test_a_link_to_nothing_is_nothing(tmp_path):
    (tmp_path / "0000000009.ckpt").symlink_to("gone")
    assert CheckpointManager(tmp_path).restore_or(tree(0))[0] == 0


# Saves that meet.


def test_a_step_that_is_being_saved_exists(tmp_path):
    begin, go_on = threading.Event(), threading.Event()
    with bt.AsyncManager(max_pending=3) as own:
        manager = CheckpointManager(tmp_path, async_save=own)
        own.save_async(lambda: (begin.set(), go_on.wait()))
        begin.wait()
        assert manager.save(1, tree(1))
        with pytest.raises(StepExistsError, match="What stands for step 1 is being saved"):
            manager.save(1, tree(2))
        go_on.set()
        assert manager.metrics(1) == {}  # waits for it
    assert manager.restore(1)["step"] == 1


def test_one_of_two_writers_of_a_step_wins(tmp_path):
    one, other = (CheckpointManager(tmp_path, async_save=False) for _ in range(2))
    one.save(1, tree(1))
    other._catalog.look = lambda step: None  # it looked just before
    with pytest.raises(StepExistsError):
        other.save(1, tree(2))
    assert one.restore(1)["step"] == 1


def test_after_a_save_that_failed_the_policy_knows(tmp_path, monkeypatch):
    manager = CheckpointManager(tmp_path, save=EverySeconds(3600))

    def full(*paths, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(os, "replace", full)
    manager.save(1, tree(1))
    with pytest.raises(OSError, match="No space"):
        manager.wait()
    monkeypatch.undo()
    assert manager.should_save(2)
    assert manager.save(2, tree(2))
    assert not manager.should_save(3)
    manager.wait()
    assert not manager.should_save(3)


def test_old_failures_do_not_come_out_of_loads_and_deletions(tmp_path, monkeypatch):
    manager = filled(tmp_path, [1, 2])
    monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full")))
    monkeypatch.setattr(os, "replace", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full")))
    manager.save(3, tree(3))
    time.sleep(0.1)
    manager.delete(1)
    assert manager.restore_or(tree(0))[0] == 2
    with pytest.raises(OSError, match="full"):
        manager.wait()


def test_a_policy_of_what_to_keep_that_fails_deletes_nothing(tmp_path, caplog):
    manager = filled(tmp_path, [1, 2, 3], keep=lambda infos, now: infos[-2:])
    assert manager.all_steps() == [1, 2, 3]
    assert "nothing is deleted" in caplog.text


# Best.


def test_the_best_is_judged_as_it_is_kept(tmp_path):
    manager = CheckpointManager(tmp_path, keep=[KeepBest(2, "acc", "max"), 1])
    for step, acc in ((1, 0.9), (2, 0.95), (3, 0.1)):
        manager.save(step, tree(step), {"acc": acc})
    manager.wait()
    assert manager.best_step() == 2
    assert manager.restore("best")["step"] == 2
    other = CheckpointManager(tmp_path, metric="f1")
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint has the metric 'f1'; there are: acc"):
        other.restore("best")


def test_clocks_that_go_back(tmp_path):
    assert EverySeconds(5)(Moment(1, 100.0, 0, 1e9)) is True
    assert EverySeconds(5)(Moment(1, 100.0, 0, math.nan)) is True


@pytest.mark.parametrize("given", [[], "3", 2.5])
def test_policies_that_are_none(given, tmp_path):
    for name in ("save", "keep"):
        with pytest.raises(TypeError, match=f"{name} must be a policy"):
            CheckpointManager(tmp_path, **{name: given})
    with pytest.raises(ValueError, match="needs a whole number"):
        KeepLatest(2.5)
    with pytest.raises(ValueError, match="steps must be whole numbers"):
        KeepSteps("12")
    with pytest.raises(TypeError, match="async_save must be"):
        CheckpointManager(tmp_path, async_save="yes")


def test_what_a_run_begins_with_may_be_made_in_many_ways(tmp_path):
    manager = CheckpointManager(tmp_path)
    for make in (lambda: tree(0), functools.partial(tree, 0), dict):
        assert isinstance(manager.restore_or(make)[1], dict)


# Signals again.


def in_a_process(script, folder):
    head = (
        "import multiprocessing, os, signal, sys, threading, time\nimport numpy as np\nimport braintools_ckpt as bt\n"
        "folder, term = sys.argv[1], signal.SIGTERM\ntree = {'w': np.zeros(2)}\n"
    )
    command = [sys.executable, "-c", head + script, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def test_a_forked_worker_can_be_ended(tmp_path):
    done = in_a_process(
        "with bt.CheckpointManager(folder, signals=True):\n"
        "    worker = multiprocessing.get_context('fork').Process(target=time.sleep, args=(20,))\n"
        "    worker.start(); time.sleep(0.2); worker.terminate(); worker.join(5)\n"
        "    print(worker.is_alive())\n",
        tmp_path,
    )
    assert done.stdout == "False\n", done.stderr


def test_managers_may_be_closed_in_any_order(tmp_path):
    done = in_a_process(
        "a = bt.CheckpointManager(folder + '/a', signals=True); b = bt.CheckpointManager(folder + '/b', signals=True)\n"
        "a.close(); b.close(); os.kill(os.getpid(), term); time.sleep(1); print('survived')\n",
        tmp_path,
    )
    assert done.returncode == -signal.SIGTERM, done.stderr


@pytest.mark.parametrize(
    ("how", "steps"),
    [
        ("m = bt.CheckpointManager(folder, save=100, signals=True)\n", [5]),
        ("m = bt.CheckpointManager(folder, signals=True); m.save(5, tree)\n", [5]),  # it is there already
        (
            "own = bt.AsyncManager(on_full='skip'); own.save_async(lambda: time.sleep(0.5))\n"
            "m = bt.CheckpointManager(folder, async_save=own, signals=True)\n",
            [5],
        ),
        ("m = bt.CheckpointManager(folder, keep=lambda infos, now: 1 / 0, signals=True)\n", [5]),
    ],
)
def test_preemption_always_saves_and_ends(how, steps, tmp_path):
    end = "os.kill(os.getpid(), term)\ntry:\n    m.save(5, tree)\nexcept Exception as e:\n    print('caught', e)\n"
    done = in_a_process(how + end, tmp_path)
    assert (done.returncode, done.stdout) == (143, ""), done.stderr
    assert CheckpointManager(tmp_path).all_steps() == steps


def test_preemption_in_a_thread_ends_the_process(tmp_path):
    done = in_a_process(
        "m = bt.CheckpointManager(folder, signals=True); os.kill(os.getpid(), term)\n"
        "t = threading.Thread(target=m.save, args=(5, tree)); t.start(); t.join(); time.sleep(1); print('survived')\n",
        tmp_path,
    )
    assert done.returncode == -signal.SIGTERM, done.stderr
    assert CheckpointManager(tmp_path).all_steps() == [5]


def test_a_signal_after_the_last_save_is_not_lost(tmp_path):
    done = in_a_process(
        "with bt.CheckpointManager(folder, save=100, signals=True) as m:\n"
        "    m.save(1, tree); os.kill(os.getpid(), term)\nprint('goes on')\n",
        tmp_path,
    )
    assert (done.returncode, done.stdout) == (143, ""), done.stderr


def test_signals_that_cannot_be_handled(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(OSError, match="Invalid argument"):
        CheckpointManager(tmp_path, signals=[signal.SIGTERM, signal.SIGKILL])
    assert signal.getsignal(signal.SIGTERM) == before
    with CheckpointManager(tmp_path, signals=signal.SIGTERM):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_is_deleted_while_one_looks_is_looked_for_again(tmp_path, monkeypatch):
    manager, writer = filled(tmp_path, [1]), CheckpointManager(tmp_path, keep=1, async_save=False)
    reader = CheckpointManager(tmp_path)
    entries = reader._catalog.entries
    later = iter([2, 3])

    def meanwhile():
        found = entries()
        if step := next(later, None):
            writer.save(step, tree(step))
        return found

    monkeypatch.setattr(reader._catalog, "entries", meanwhile)
    assert reader.restore()["step"] == 3
    assert manager.all_steps() == [3]
