"""The manager against a model of it: a dict of steps, under saves, deletions, damage and restarts."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import warnings

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from braintools_ckpt import (
    CheckpointManager,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    KeepBest,
    KeepLatest,
    StepExistsError,
)

STEPS = st.integers(0, 30)
LOSSES = st.sampled_from([0.0, 1.0, 2.5, -1.0, math.nan, math.inf, None])
KEEPS = {
    "all": None,
    "latest": KeepLatest(3),
    "best": KeepBest(2),
    "both": [KeepLatest(2), KeepBest(1)],
}


class Entry:
    """What the model knows of one file: what was saved, and what has been done to it since."""

    def __init__(self, value, loss):
        self.value, self.loss = value, loss
        self.listed = self.loads = True


def wanted(model, keep, saved):
    """Give the steps that stay; written once more, and in another way than in the library."""
    valid = sorted(step for step, entry in model.items() if entry.listed)
    if keep == "all" or not valid:
        return set(model)
    latest = valid[-{"latest": 3, "best": 1, "both": 2}[keep] :]
    judged = [step for step in valid if model[step].loss is not None and not math.isnan(model[step].loss)]
    others = [step for step in valid if step not in judged]
    by_loss = sorted(judged, key=lambda step: (model[step].loss, -step)) + others[::-1]
    best = by_loss[: {"latest": 0, "best": 2, "both": 1}[keep]]
    return {saved, *latest, *best, *(step for step in model if step not in valid)}


class Run(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = tempfile.mkdtemp()
        self.model = {}
        self.counter = 0

    @initialize(keep=st.sampled_from(sorted(KEEPS)), background=st.booleans())
    def begin(self, keep, background):
        self.keep, self.background = keep, background
        self.manager = self.made()

    def made(self):
        return CheckpointManager(self.folder, keep=KEEPS[self.keep], async_save=self.background, durable=False)

    def path(self, step):
        return os.path.join(self.folder, f"{step:010}.ckpt")

    @rule(step=STEPS, loss=LOSSES, force=st.booleans())
    def save(self, step, loss, force):
        self.counter += 1
        tree = {"value": np.full(5, self.counter), "n": self.counter}
        metrics = None if loss is None else {"loss": loss}
        if not force and step in self.model and self.model[step].loads:
            with pytest.raises(StepExistsError):
                self.manager.save(step, tree, metrics)
            return
        assert self.manager.save(step, tree, metrics, force=force) is True
        self.manager.wait()
        self.model[step] = Entry(self.counter, loss)
        stays = wanted(self.model, self.keep, step)
        self.model = {other: entry for other, entry in self.model.items() if other in stays}

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def delete(self, data):
        step = data.draw(st.sampled_from(sorted(self.model)))
        self.manager.delete(step)
        del self.model[step]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove_by_hand(self, data):
        step = data.draw(st.sampled_from(sorted(self.model)))
        os.unlink(self.path(step))
        del self.model[step]

    @precondition(lambda self: self.model)
    @rule(data=st.data(), to=STEPS)
    def copy_by_hand(self, data, to):
        step = data.draw(st.sampled_from(sorted(self.model)))
        if to != step:
            shutil.copy(self.path(step), self.path(to))
            entry = self.model[to] = Entry(self.model[step].value, self.model[step].loss)
            entry.listed, entry.loads = self.model[step].listed, self.model[step].loads

    @precondition(lambda self: self.model)
    @rule(data=st.data(), cut=st.booleans())
    def damage(self, data, cut):
        step = data.draw(st.sampled_from(sorted(self.model)))
        with open(self.path(step), "r+b") as file:
            size = file.seek(0, 2)
            if cut or size <= 70:
                file.truncate(size // 2)
            else:
                file.seek(70)
                byte = file.read(1)[0]
                file.seek(70)
                file.write(bytes([byte ^ 4]))
        os.utime(self.path(step), ns=(self.counter, self.counter))  # a clock may be coarse
        self.counter += 1
        entry = self.model[step]
        if cut:
            entry.listed = entry.loads = False
        else:
            entry.loads = not entry.loads if entry.listed else entry.loads

    @rule()
    def restart(self):
        self.manager.close()
        self.manager = self.made()

    @invariant()
    def steps(self):
        if not hasattr(self, "manager"):
            return
        listed = sorted(step for step, entry in self.model.items() if entry.listed)
        for manager in (self.manager, CheckpointManager(self.folder)):
            assert manager.all_steps() == listed
            assert manager.latest_step() == (listed[-1] if listed else None)
            judged = [s for s in listed if self.model[s].loss is not None and not math.isnan(self.model[s].loss)]
            best = min(judged, key=lambda step: (self.model[step].loss, -step), default=None)
            assert manager.best_step() == best

    @invariant()
    def going_on(self):
        if not hasattr(self, "manager"):
            return
        loads = sorted(step for step, entry in self.model.items() if entry.loads)
        target = {"value": np.zeros(5, int), "n": 0}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self.model and not loads:
                with pytest.raises(CorruptCheckpointError):
                    self.manager.restore_or(target)
                return
            step, tree = self.manager.restore_or(target)
            if not self.model:
                assert (step, tree) == (0, target)
                with pytest.raises(CheckpointNotFoundError):
                    self.manager.restore()
                return
        assert step == loads[-1]
        assert tree["n"] == self.model[step].value
        assert (tree["value"] == tree["n"]).all()

    def teardown(self):
        if hasattr(self, "manager"):
            self.manager.close()
        shutil.rmtree(self.folder)


TestRun = Run.TestCase
TestRun.settings = settings(settings.get_profile("suite"), max_examples=40, stateful_step_count=25)
