"""What a save looks at to decide what stays: what has changed, and not the whole directory."""

from __future__ import annotations

import itertools
import os
import shutil
import types

import pytest

from braintools_ckpt import CheckpointManager, KeepBest, KeepEvery, KeepLatest
from braintools_ckpt.manager import catalog
from braintools_ckpt.manager.catalog import Catalog
from braintools_ckpt.manager.names import StepNames

OLD = 1_000_000_000


def filled(folder, losses, **options):
    """Make a run of one checkpoint a loss, all of them long ago."""
    with CheckpointManager(folder, async_save=False, durable=False) as manager:
        for step, loss in enumerate(losses):
            manager.save(step, {"step": step}, {"loss": loss})
    aged(folder)
    return CheckpointManager(folder, async_save=False, durable=False, **options)


def aged(folder):
    """Let no file be so young that it has to be read again because the clock is coarse."""
    for entry in os.scandir(folder):
        os.utime(entry.path, (OLD, OLD))


@pytest.fixture
def looks(monkeypatch):
    """Count the files that are looked at, and let the clock be fine enough for files of this test."""
    looked = []

    def stat(path):
        looked.append(os.path.basename(path))
        return os.stat(path)

    monkeypatch.setattr(catalog, "os", types.SimpleNamespace(**{**vars(os), "stat": stat}))
    monkeypatch.setattr(catalog.time, "time_ns", lambda: 1 << 62)
    return looked


def test_a_save_looks_at_what_has_changed(tmp_path, looks):
    keep = [KeepEvery(2), KeepBest(3), KeepLatest(2)]
    manager = filled(tmp_path, range(400), keep=keep)
    manager.save(400, {"step": 400}, {"loss": 400})  # deletes the odd ones
    for step in range(401, 411):
        looks.clear()
        manager.save(step, {"step": step}, {"loss": step})
        assert len(looks) <= 10  # the new one, the one to be deleted, and those that are better
    assert manager.all_steps() == [0, 1, *range(2, 409, 2), 409, 410]


def test_files_that_took_the_place_of_others_are_seen(tmp_path, looks):
    manager = filled(tmp_path, [5, 4, 3, 2, 1], keep=KeepBest(2))
    manager.infos()
    path = manager.info(0).path
    other = filled(tmp_path / "other", [0.5])
    shutil.copy(other.info(0).path, tmp_path / "new")
    os.replace(tmp_path / "new", path)
    manager.save(5, {"step": 5}, {"loss": 9})
    assert manager.all_steps() == [0, 4, 5]


def test_files_that_came_and_went_are_seen(tmp_path, looks):
    manager = filled(tmp_path, [5, 4, 3], keep=KeepLatest(3))
    manager.infos()
    shutil.copy(manager.info(2).path, tmp_path / "0000000007.ckpt")
    os.unlink(manager.info(1).path)
    manager.save(8, {"step": 8})
    assert manager.all_steps() == [2, 7, 8]


def test_a_listing_while_another_thread_looks_at_a_new_file(tmp_path, monkeypatch):
    manager = filled(tmp_path, range(4))
    source, files = manager.info(0).path, Catalog(str(tmp_path), StepNames("{step:010}.ckpt"))
    real, numbers = Catalog._look, itertools.count(1000)

    class Interrupted:
        """An entry, at which another thread or a signal handler comes in between."""

        def __init__(self, step):
            self.step = step

        @property
        def info(self):
            monkeypatch.setattr(Catalog, "_look", real)
            os.link(source, files.path(new := next(numbers)))
            assert files.look(new) is not None
            return None

    monkeypatch.setattr(Catalog, "_look", lambda self, name, step: (None, Interrupted(step)))
    assert [entry.step for entry in files.entries()][:4] == [0, 1, 2, 3]


def test_what_is_better_is_looked_at_before_others_are_deleted_for_it(tmp_path, looks):
    bad = filled(tmp_path / "other", [9])
    manager = filled(tmp_path / "run", [0, 5, 4, 6], keep=KeepBest(1))
    manager.infos()
    shutil.copy(bad.info(0).path, manager.info(0).path)  # the best one is no more, and the listing does not show it
    manager.save(4, {"step": 4}, {"loss": 7})
    assert manager.all_steps() == [2, 4]


def test_what_was_written_to_since_it_was_judged_is_not_deleted(tmp_path, looks):
    manager = filled(tmp_path, [5, 4, 3, 2, 1], keep=KeepBest(2))
    manager.infos()
    other = filled(tmp_path / "other", [0.5])
    shutil.copy(other.info(0).path, manager.info(0).path)  # into the same file
    manager.save(5, {"step": 5}, {"loss": 9})
    assert manager.all_steps() == [0, 3, 4, 5]
    manager.save(6, {"step": 6}, {"loss": 9})
    assert manager.all_steps() == [0, 4, 6]
