"""Unchanged data of a run where the file system has no reflinks: in files beside the checkpoints, by hard links."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from pathlib import Path

import msgpack
import numpy as np
import pytest
import xxhash
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from braintools_ckpt import (
    CheckpointError,
    CheckpointManager,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    IncompleteCheckpointError,
    KeepLatest,
    KeepSteps,
    StepExistsError,
    msgpack_dumps,
    msgpack_load,
    msgpack_save,
    open_checkpoint,
)
from braintools_ckpt.format import layout, unchanged
from braintools_ckpt.manager import cleaning
from braintools_ckpt.manager.catalog import Catalog
from braintools_ckpt.storage import sources, temporary
from braintools_ckpt.storage.external import EXTERNAL_NAME

ROOT = Path(__file__).parent.parent
HARNESS = ROOT / "tests" / "harness"
sys.path.insert(0, str(HARNESS))

if sys.platform != "linux":
    pytest.skip("the system calls are those of Linux", allow_module_level=True)

from external import (  # noqa: E402
    KINDS,
    SIZE,
    aged,
    array,
    before,
    beside,
    calls_of,
    check,
    equal,
    filled,
    fine_clock,
    frozen,
    index_of,
    path,
    referred,
    run,
    tree,
    used,
)
from external import links_alone as links_alone_at  # noqa: E402
from faults import Calls, faults_of  # noqa: E402


@pytest.fixture(autouse=True)
def links_alone(monkeypatch):
    links_alone_at(monkeypatch.setattr)
    unchanged._say_refused.cache_clear()


def rewrite(file, data=None, **changes):
    """Write a file with another index."""
    data = bytes(Path(file).read_bytes() if data is None else data)
    _, at, size, _, _ = layout.TRAILER.unpack(data[-layout.TRAILER.size :])
    index = msgpack.packb({**msgpack.unpackb(data[at : at + size]), **changes})
    digest = xxhash.xxh3_64_intdigest(index)
    trailer = layout.TRAILER.pack(layout.TRAILER_HEAD, at, len(index), digest, layout.MAGIC)
    Path(file).write_bytes(data[:at] + index + trailer)


COPIES = {
    "over it": shutil.copyfile,
    "in its place": lambda source, to: (to.unlink(missing_ok=True), shutil.copyfile(source, to)),
    "by a rename": lambda source, to: os.replace(shutil.copyfile(source, f"{to}.new"), to),
}


# What is there.


def test_what_has_not_changed_is_written_once_and_stands_beside(tmp_path):
    manager = filled(tmp_path)
    assert beside(tmp_path, 0) == []
    assert [len(beside(tmp_path, step)) for step in (1, 2, 3)] == [1, 1, 1]
    assert {file.stat().st_ino for file in beside(tmp_path)} == {beside(tmp_path)[0].stat().st_ino}
    assert beside(tmp_path)[0].stat().st_size == 3 * SIZE
    for step in range(4):
        assert equal(manager.restore(step), tree(step))
        whole = msgpack_dumps(tree(step))
        assert 0 <= path(tmp_path, step).stat().st_size - len(whole) < 1000  # as a whole one, with what is in metadata
        assert path(tmp_path, step).stat().st_blocks * 512 < (4 if step == 0 else 1) * SIZE + 8 * 4096
    assert used(tmp_path) < (4 + 3 + 3) * SIZE + 40 * 4096


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("stays", [set(c) for n in (1, 2) for c in itertools.combinations(range(4), n)])
def test_each_step_stays_when_others_are_deleted(stays, by_hand, tmp_path):
    manager = filled(tmp_path)
    for step in set(range(4)) - stays:
        if by_hand:
            path(tmp_path, step).unlink()
            for file in beside(tmp_path, step):
                file.unlink()
        else:
            manager.delete(step)
    assert manager.all_steps() == sorted(stays)
    assert len(beside(tmp_path)) == len(stays - {0})
    for step in stays:
        assert equal(manager.restore(step, strict=True), tree(step))


@pytest.mark.parametrize("background", [False, True])
def test_retention_deletes_what_is_beside(background, tmp_path):
    with filled(tmp_path, 8, keep=KeepLatest(2), async_save=background) as manager:
        pass
    assert manager.all_steps() == [6, 7]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        p.name for step in (6, 7) for p in (path(tmp_path, step), *beside(tmp_path, step))
    )
    manager = run(tmp_path, keep=KeepLatest(1))
    manager.save(8, tree(8))
    assert manager.all_steps() == [8]
    assert len(list(tmp_path.iterdir())) == 2
    assert beside(tmp_path)[0].stat().st_nlink == 1
    assert equal(manager.restore(), tree(8))


def test_every_way_to_read(tmp_path):
    manager = filled(tmp_path)
    file = path(tmp_path, 2)
    for options in ({}, {"mmap": True}, {"verify": False}, {"parallel": False}, {"mmap": True, "verify": False}):
        loaded = msgpack_load(file, **options)
        assert equal(loaded, tree(2))
        loaded["frozen"]["w0"][:] = 0  # it is the caller's own
        assert equal(msgpack_load(file, target=tree(0), **options), tree(2))
    with open_checkpoint(file, mmap=True) as checkpoint:
        one, other = checkpoint["frozen"]["w1"], checkpoint["frozen"]["w1"]
        one[:] = 0
        np.testing.assert_array_equal(other, frozen()["w1"])
    with open_checkpoint(file) as checkpoint:
        checkpoint.verify()
        assert checkpoint.metadata["step"] == 2
        np.testing.assert_array_equal(checkpoint.read("frozen/w2", slice(100, 200)), frozen()["w2"][100:200])
        manager.delete(2)
        assert equal(checkpoint.load(), tree(2))  # who reads has the files open


def test_a_whole_range_may_stand_in_two_files(tmp_path):
    """As no writer of ours has it, but the format allows it."""
    filled(tmp_path)
    file = path(tmp_path, 1)
    with sources.LocalSource(file) as source:
        (name, ranges), *_ = [(key, value) for key, value in index_of(file)["external"]]
        assert source.beside(name)
    first = np.frombuffer(ranges, "<u8").reshape(-1, 3)
    split = [(at, SIZE // 2, there) for at, _, there in first.tolist()]
    data = bytearray(file.read_bytes())
    other = beside(tmp_path, 1)[0].read_bytes()
    for at, _, there in first.tolist():
        data[at + SIZE // 2 : at + SIZE] = other[there + SIZE // 2 : there + SIZE]
    rewrite(file, data, external=[[name, np.array(split, "<u8").tobytes()]])
    for options in ({}, {"mmap": True}):
        assert equal(msgpack_load(file, **options), tree(1))


# Which files there are.


class Run(RuleBasedStateMachine):
    """A run in which anything may stay as it was, beside somebody who deletes, copies and renames its files."""

    @initialize(keep=st.sampled_from([None, KeepLatest(2), KeepLatest(1)]))
    def begin(self, keep):
        self.folder = tempfile.mkdtemp()
        self.patch = pytest.MonkeyPatch()
        fine_clock(self.patch.setattr)  # what is seen may not depend on how fast this runs
        self.keep = keep
        self.manager = run(self.folder, keep=keep)
        self.files = {}
        self.orphans = False
        self.changed = set()
        self.times = 0
        self.step = 0
        self.values = [0] * 5

    def name(self, step):
        return path(self.folder, step).name

    @rule(changes=st.lists(st.integers(0, 4), max_size=4), again=st.booleans())
    def save(self, changes, again):
        for number in changes:
            self.values[number] += 1
        self.step += 0 if again else 1
        here = {f"w{i}": array(100 * i + value) for i, value in enumerate(self.values)}
        self.manager.save(self.step, here, force=True)
        self.files[self.name(self.step)] = here
        steps = sorted(step for step in range(self.step + 100) if self.name(step) in self.files)
        stays = {None: steps, 1: steps[-1:], 2: steps[-2:]}[self.keep and self.keep.n]
        for step in set(steps) - set(stays) - {self.step}:
            if self.name(step) not in self.changed or not path(self.folder, step).exists():
                del self.files[self.name(step)]  # else it is judged anew after the next save

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def delete(self, data):
        name = data.draw(st.sampled_from(sorted(self.files)))
        if name.endswith(".ckpt"):
            self.manager.delete(int(name[:10]))
        else:
            os.unlink(Path(self.folder, name))
            self.orphans = True
        del self.files[name]

    @precondition(lambda self: self.files)
    @rule(
        data=st.data(), number=st.integers(0, 2), how=st.sampled_from([*COPIES, "move", "link"]), as_step=st.booleans()
    )
    def copy_or_rename(self, data, number, how, as_step):
        name = data.draw(st.sampled_from(sorted(self.files)))
        to = self.name(number) if as_step else f"best-{number}"
        source, target = Path(self.folder, name), Path(self.folder, to)
        if to == name or (target.exists() and target.samefile(source)):
            return
        self.orphans |= to in self.files  # what that one had beside it
        self.changed.add(to)
        if how in COPIES:
            if target.exists() and target.stat().st_nlink > 1:
                target.unlink()  # to write into it would change the other one, too
            COPIES[how](source, target)
            self.times += 1
            os.utime(target, ns=(self.times, self.times))
        else:
            target.unlink(missing_ok=True)
            (os.replace if how == "move" else os.link)(source, target)
        self.files[to] = self.files.pop(name) if how == "move" else self.files[name]

    @rule()
    def restart(self):
        aged(self.folder)
        self.manager = run(self.folder, keep=self.keep)

    @invariant()
    def whole(self):
        if not hasattr(self, "manager"):
            return
        # Not by the manager: it is to see by itself what has changed when that matters.
        steps = [int(name[:10]) for name in sorted(self.files) if name.endswith(".ckpt")]
        assert run(self.folder).all_steps() == steps
        there = {name for name in os.listdir(self.folder) if not EXTERNAL_NAME.fullmatch(name)}
        assert there == set(self.files)
        for name, expected in self.files.items():
            assert equal(msgpack_load(Path(self.folder, name)), expected)
        if not self.orphans:
            referred = {
                name for file in self.files for name, _ in index_of(Path(self.folder, file)).get("external", [])
            }
            assert {file.name for file in beside(self.folder)} == referred

    def teardown(self):
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)
            self.patch.undo()


TestRun = Run.TestCase


def test_the_number_of_files_grows_with_the_logarithm(tmp_path):
    """One array after the other stops changing."""
    manager = run(tmp_path, keep=KeepLatest(1))
    for step in range(40):
        manager.save(step, {f"w{i}": array(100 * i + min(step, i)) for i in range(40)})
        assert len(beside(tmp_path, step)) <= 1 + np.log2(40)
    assert len(beside(tmp_path, step)) >= 2


def test_what_changes_again_is_not_kept_for_ever(tmp_path):
    manager = run(tmp_path, keep=KeepLatest(1))
    for step in range(40):
        manager.save(step, {f"w{i}": array(100 * i + (0 if step < 3 else max(0, step - i))) for i in range(40)})
        if step:
            sizes = [file.stat().st_size for file in beside(tmp_path, step)]
            same = 40 if step < 4 else sum(max(0, step - i) == max(0, step - 1 - i) for i in range(40))
            assert sum(sizes) <= 2 * same * SIZE


def test_equal_arrays_have_data_of_their_own(tmp_path):
    manager = run(tmp_path)
    for step in range(4):
        manager.save(step, {"a": array(0), "b": array(0), "c": array(0)})
        assert step == 0 or beside(tmp_path, step)[0].stat().st_size == 3 * SIZE
    loaded = msgpack_load(path(tmp_path, 3), mmap=True)
    loaded["a"][:] = 0
    np.testing.assert_array_equal(loaded["b"], array(0))
    manager.save(4, {"a": array(0), "b": array(0), "c": array(0), "d": array(0)})
    assert equal(manager.restore(), dict.fromkeys("abcd", array(0)))


def test_a_plain_save_shares_by_reflinks_alone(tmp_path):
    msgpack_save(tmp_path / "1", frozen())
    msgpack_save(tmp_path / "2", frozen(), share_with=tmp_path / "1")
    assert beside(tmp_path) == []
    assert (tmp_path / "2").read_bytes() == (tmp_path / "1").read_bytes()
    filled(tmp_path / "run")
    msgpack_save(tmp_path / "3", frozen(), share_with=path(tmp_path / "run", 2))  # of which most is elsewhere
    assert (tmp_path / "3").read_bytes() == (tmp_path / "1").read_bytes()


def test_a_step_that_is_saved_anew_leaves_nothing(tmp_path):
    manager = filled(tmp_path)
    for _ in range(3):
        manager.save(3, tree(3, again=True), force=True)
    assert equal(manager.restore(), tree(3, again=True))
    assert {file.name for file in beside(tmp_path)} == referred(tmp_path)


@pytest.mark.parametrize("no_links", ["link", "hard links", "long names"])
def test_where_there_are_no_hard_links_all_is_written(no_links, tmp_path, monkeypatch, caplog):
    name = "{step:010}.ckpt"
    if no_links == "link":
        monkeypatch.delattr(os, "link")
    elif no_links == "hard links":

        def link(*_, **__):
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)
    else:
        name = "x" * 230 + name
    manager = filled(tmp_path, name=name)
    assert beside(tmp_path) == []
    for step in range(4):
        assert equal(manager.restore(step), tree(step))
    (record,) = caplog.records
    assert "What is unchanged is written again" in record.getMessage()


def test_steps_are_not_called_like_files_beside_them(tmp_path):
    with pytest.raises(ValueError, match="files beside checkpoints are called so"):
        run(tmp_path, name="run.shared-{step:08}")


@pytest.mark.parametrize("code", [errno.EMLINK, errno.EPERM, errno.ENOENT, errno.EXDEV])
def test_a_file_that_gets_no_further_name_is_copied(code, tmp_path, monkeypatch):
    manager = filled(tmp_path)
    real = os.link

    def link(source, to):
        if EXTERNAL_NAME.fullmatch(os.path.basename(source)):
            raise OSError(code, os.strerror(code))
        real(source, to)

    monkeypatch.setattr(os, "link", link)
    manager.save(4, tree(4))
    (file,) = beside(tmp_path, 4)
    assert file.stat().st_nlink == 1
    assert file.stat().st_size == 3 * SIZE
    assert equal(manager.restore(4), tree(4))
    assert {file.name for file in beside(tmp_path)} == referred(tmp_path)


def test_permissions_are_those_of_the_checkpoint(tmp_path):
    before = os.umask(0o027)
    try:
        filled(tmp_path)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o640}


# What is missing, damaged or forged.


def test_a_checkpoint_without_its_data_says_so(tmp_path):
    manager = filled(tmp_path)
    (file,) = beside(tmp_path, 3)
    aside = file.rename(tmp_path / "aside")
    with pytest.raises(IncompleteCheckpointError, match=f"is in the file '{file.name}', which is not beside it"):
        msgpack_load(path(tmp_path, 3))
    assert run(tmp_path).all_steps() == [0, 1, 2]
    with pytest.warns(UserWarning, match=file.name):
        assert equal(run(tmp_path).restore(), tree(2))
    with pytest.raises(IncompleteCheckpointError):
        run(tmp_path).restore(3)
    with pytest.raises(StepExistsError, match=file.name):  # it can be mended
        manager.save(3, tree(3))
    watching = run(tmp_path)
    assert watching.latest_step() == 2
    aside.rename(file)
    assert watching.latest_step() == 3
    assert equal(watching.restore(), tree(3))


def test_copies_elsewhere_need_their_data(tmp_path):
    manager = filled(tmp_path / "run")
    (tmp_path / "other").mkdir()
    copy = Path(shutil.copy(path(tmp_path / "run", 3), tmp_path / "other"))
    with pytest.raises(IncompleteCheckpointError):
        msgpack_load(copy)
    shutil.copy(beside(tmp_path / "run", 3)[0], tmp_path / "other")
    assert equal(msgpack_load(copy), tree(3))
    data = path(tmp_path / "run", 3).read_bytes()
    with pytest.raises(IncompleteCheckpointError, match="Load it by its path"):
        msgpack_load(io.BytesIO(data))
    assert equal(manager.restore(3), tree(3))


@pytest.mark.parametrize("at", [0, SIZE - 1, SIZE, 3 * SIZE - 1])
def test_damage_beside_is_found(at, tmp_path):
    manager = filled(tmp_path)
    with open(beside(tmp_path, 3)[0], "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    for step in (1, 2, 3):
        with pytest.raises(CorruptCheckpointError, match=rf"{step:010}.ckpt: the checksum .* \(frozen/w{at // SIZE}\)"):
            msgpack_load(path(tmp_path, step))
        with open_checkpoint(path(tmp_path, step)) as checkpoint, pytest.raises(CorruptCheckpointError):
            checkpoint.verify()
    manager.save(4, tree(4))  # what is damaged is not shared
    assert equal(manager.restore(strict=True), tree(4))
    manager.save(3, tree(3))  # it is corrupt, and replaced
    assert equal(manager.restore(3), tree(3))


@pytest.mark.parametrize("size", [0, 1, SIZE, 3 * SIZE - 1])
def test_a_file_that_was_cut_short_is_found(size, tmp_path):
    filled(tmp_path)
    os.truncate(beside(tmp_path, 3)[0], size)
    with pytest.raises(CorruptCheckpointError, match=f"and that file has {size}"):
        msgpack_load(path(tmp_path, 3))


def forged(*ranges, name="x.shared-00000000"):
    return [[name, np.array(ranges, "<u8").tobytes()]]


MOST = 2**64 - 1


@pytest.mark.parametrize(
    "external",
    [
        None,
        [],
        {},
        [7],
        ["ab"],
        [["x.shared-00000000"]],
        [["x.shared-00000000", b"", 1]],
        [["x.shared-00000000", "text"]],
        [["x.shared-00000000", bytes(23)]],
        [[7, bytes(24)]],
        *(
            forged((4096, 1, 0), name=name)
            for name in (
                "",
                "x",
                ".shared-00000000",
                "x.shared-0000000",
                "x.shared-000000000",
                "x.shared-0000000G",
                "x.shared-ABCDEF00",
                "x.shared-00000000\n",
                "../x.shared-00000000",
                "/etc/x.shared-00000000",
                "a/x.shared-00000000",
                "a\\x.shared-00000000",
                "\0x.shared-00000000",
            )
        ),
        [*forged((4096, 1, 0)), *forged((4097, 1, 8))],
        [entry for i in range(65) for entry in forged((4096 + i, 1, 0), name=f"{i}.shared-00000000")],
        forged((4096, 0, 0)),
        forged((0, 1, 0)),
        forged((64, 1, 0)),
        forged((4096 + SIZE, 1, 0)),
        forged((4096 + SIZE - 1, 2, 0)),
        forged((4096, 100, 0), (4195, 1, 200)),
        forged((4096, 100, 0), (4300, 1, 99)),
        forged((MOST, 1, 0)),
        forged((MOST, MOST, 0)),
        forged((4096, MOST, 0)),
        forged((4096, 1, MOST)),
        forged((4096, MOST, MOST)),
    ],
)
def test_forged_tables_are_refused(external, tmp_path):
    msgpack_save(tmp_path / "x", [array(0), array(1)])
    for name in ["x.shared-00000000", *(f"{i}.shared-00000000" for i in range(65))]:
        (tmp_path / name).write_bytes(array(0).tobytes())
    rewrite(tmp_path / "x", features=["external"], external=external)
    for use in (msgpack_load, open_checkpoint):
        with pytest.raises(CorruptCheckpointError):
            use(tmp_path / "x")
    rewrite(tmp_path / "x", features=["external"], external=forged((4096, SIZE, 0)))
    assert equal(dict(enumerate(msgpack_load(tmp_path / "x"))), {0: array(0), 1: array(1)})


def test_a_directory_or_a_pipe_is_no_file_beside(tmp_path):
    msgpack_save(tmp_path / "x", [array(0)])
    rewrite(tmp_path / "x", features=["external"], external=forged((4096, 1, 0)))
    (tmp_path / "x.shared-00000000").mkdir()
    with pytest.raises(CorruptCheckpointError, match="is no regular file"):
        msgpack_load(tmp_path / "x")
    (tmp_path / "x.shared-00000000").rmdir()
    os.mkfifo(tmp_path / "x.shared-00000000")
    with pytest.raises(CorruptCheckpointError, match="is no regular file"):
        msgpack_load(tmp_path / "x")
    os.unlink(tmp_path / "x.shared-00000000")
    (tmp_path / "secret").write_bytes(array(0).tobytes())
    (tmp_path / "x.shared-00000000").symlink_to(tmp_path / "secret")
    with pytest.raises(CorruptCheckpointError, match="is no regular file"):
        msgpack_load(tmp_path / "x", mmap=True)


def test_a_checkpoint_may_be_loaded_through_a_link(tmp_path):
    filled(tmp_path / "run")
    (tmp_path / "best.ckpt").symlink_to(path(tmp_path / "run", 3))
    assert equal(msgpack_load(tmp_path / "best.ckpt"), tree(3))
    (tmp_path / "linked").symlink_to(tmp_path / "run")
    aged(tmp_path / "run")
    manager = run(tmp_path / "linked", keep=KeepLatest(1))
    assert {file.name for file in beside(tmp_path / "run")} == referred(tmp_path / "run")
    manager.save(4, tree(4))
    assert {file.name for file in beside(tmp_path / "run")} == referred(tmp_path / "run")
    assert equal(manager.restore(), tree(4))
    other = run(tmp_path / "other")
    path(tmp_path / "other", 4).symlink_to(path(tmp_path / "run", 4))
    assert equal(other.restore(), tree(4))
    other.delete(4)
    assert equal(manager.restore(), tree(4))


# Others who read and write meanwhile.


def test_a_step_that_is_replaced_while_it_is_opened(tmp_path, monkeypatch):
    manager = filled(tmp_path)
    real = sources.LocalSource.beside

    def late(source, name):
        monkeypatch.setattr(sources.LocalSource, "beside", real)
        manager.save(3, tree(3, again=True), force=True)
        return source.beside(name)

    monkeypatch.setattr(sources.LocalSource, "beside", late)
    assert equal(msgpack_load(path(tmp_path, 3)), tree(3, again=True))


def test_a_step_that_is_deleted_while_it_is_opened(tmp_path, monkeypatch):
    manager = filled(tmp_path)
    real = sources.LocalSource.beside

    def late(source, name):
        monkeypatch.setattr(sources.LocalSource, "beside", real)
        manager.delete(3)
        return source.beside(name)

    monkeypatch.setattr(sources.LocalSource, "beside", late)
    with pytest.raises(CheckpointNotFoundError):
        msgpack_load(path(tmp_path, 3))


def test_what_a_killed_save_or_deletion_has_left_is_removed(tmp_path):
    filled(tmp_path)
    (file,) = beside(tmp_path, 3)
    path(tmp_path, 3).rename(tmp_path / f".x.tmp-{2**22 + 7}-{temporary._machine()}00000000")
    assert run(tmp_path).all_steps() == [0, 1, 2]
    assert not file.exists()
    assert {file.name for file in beside(tmp_path)} == referred(tmp_path)
    # A save that is killed between the two steps in which a new file gets its name: the temporary one is another name.
    temporary_name = tmp_path / f".x.tmp-{2**22 + 7}-{temporary._machine()}00000000"
    os.link(path(tmp_path, 2), temporary_name)
    assert equal(run(tmp_path).restore(), tree(2))
    assert not temporary_name.exists()
    shutil.copy(path(tmp_path, 2), tmp_path / "best")
    path(tmp_path, 2).rename(temporary_name)
    run(tmp_path)
    assert not temporary_name.exists()
    assert equal(msgpack_load(tmp_path / "best"), tree(2))


def test_files_that_nothing_refers_to(tmp_path, caplog):
    filled(tmp_path)
    path(tmp_path, 3).unlink()
    (file,) = beside(tmp_path, 3)
    run(tmp_path)
    assert file.exists()  # it may be about to be referred to
    aged(tmp_path)
    run(tmp_path)
    assert file.exists()  # it may belong to a step which somebody has moved elsewhere, and will put back
    (record,) = caplog.records
    assert f"In {tmp_path} there is data of checkpoints that are not there any more: {file.name}." in record.message


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("goes", ["deleted", "replaced", "not kept"])
def test_a_copy_over_another_step_stays(how, goes, tmp_path):
    manager = filled(tmp_path, 6, keep=[KeepLatest(2), KeepSteps([1, 4])] if goes == "not kept" else None)
    aged(tmp_path)
    manager.infos()
    COPIES[how](path(tmp_path, 4), path(tmp_path, 1))
    if goes == "deleted":
        manager.delete(4)
    elif goes == "replaced":
        manager.save(4, tree(4, again=True), force=True)
    else:
        manager = run(tmp_path, keep=[KeepLatest(2), KeepSteps([1])])
        manager.save(6, tree(6))
        assert 4 not in manager.all_steps()
    assert equal(manager.restore(1, strict=True), tree(4))


@pytest.mark.parametrize("what", ["growing", "unreadable", "of the future"])
def test_what_cannot_be_read_now_may_be_a_copy(what, tmp_path, monkeypatch):
    manager = filled(tmp_path)
    data = path(tmp_path, 3).read_bytes()
    copy = tmp_path / "best"
    copy.write_bytes(data[: len(data) // 2] if what == "growing" else data)
    if what == "unreadable":
        real = cleaning.LocalSource
        monkeypatch.setattr(
            cleaning, "LocalSource", lambda p: raise_(PermissionError(13, "no")) if p == str(copy) else real(p)
        )
    if what == "of the future":
        copy.write_bytes(data[:14] + (2).to_bytes(4, "little") + data[18:])
    manager.delete(3)
    assert manager.all_steps() == [0, 1, 2]
    assert len(beside(tmp_path, 3)) == 1
    monkeypatch.undo()
    links_alone_at(monkeypatch.setattr)
    copy.write_bytes(data)
    assert equal(msgpack_load(copy), tree(3))
    copy.unlink()
    manager.delete(2)
    assert beside(tmp_path, 3) == []  # now that nobody refers to it


def raise_(error):
    raise error


def test_features_of_others_do_not_hide_what_a_file_refers_to(tmp_path):
    manager = filled(tmp_path)
    copy = Path(shutil.copy(path(tmp_path, 3), tmp_path / "best"))
    rewrite(copy, features=["external", "another"])
    manager.delete(3)
    assert len(beside(tmp_path, 3)) == 1


def test_a_deletion_that_fails_half_way_goes_on_later(tmp_path, monkeypatch, caplog):
    manager = filled(tmp_path)
    real = os.unlink

    def unlink(file, *rest):
        if EXTERNAL_NAME.fullmatch(os.path.basename(file)):
            raise OSError(errno.EACCES, "Permission denied", file)
        real(file, *rest)

    monkeypatch.setattr(os, "unlink", unlink)
    manager.delete(3)
    monkeypatch.setattr(os, "unlink", real)
    assert "could not be deleted" in caplog.text
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    assert len(beside(tmp_path, 3)) == 1
    manager.save(4, tree(4), force=True)
    manager.delete(2)
    assert beside(tmp_path, 3) == []


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("how", ["delete", "delete_after", "force", "by itself"])
def test_a_damaged_step_takes_along_what_it_has(how, cut, tmp_path):
    manager = filled(tmp_path)
    file = path(tmp_path, 3)
    if cut:
        os.truncate(file, file.stat().st_size - 5)
    else:
        data = bytearray(file.read_bytes())
        data[-3 * SIZE // 2 : -SIZE] = bytes(SIZE // 2)
        file.write_bytes(data)
    aged(tmp_path)
    before = set(beside(tmp_path, 3))
    if how == "delete":
        manager.delete(3)
    elif how == "delete_after":
        assert manager.delete_after(2) == [3]
    else:
        manager.save(3, tree(3), force=how == "force")
        assert equal(manager.restore(3), tree(3))
    # Of a file without its index, it is not known what it had: what is called like it may be that of another.
    assert bool(before & set(beside(tmp_path, 3))) == (cut and how in ("force", "by itself"))


def test_what_was_moved_elsewhere_is_not_deleted_with_what_was_put_in_its_place(tmp_path):
    manager = filled(tmp_path / "run")
    file = path(tmp_path / "run", 3)
    file.rename(tmp_path / "moved")
    file.write_bytes((tmp_path / "moved").read_bytes()[: 5 * SIZE // 2])
    manager.save(3, tree(3, again=True))
    (tmp_path / "moved").rename(tmp_path / "run" / "back")
    assert equal(msgpack_load(tmp_path / "run" / "back"), tree(3))


@pytest.mark.parametrize("size", [0, 4, 17])
def test_a_copy_that_has_just_begun(size, tmp_path):
    manager = filled(tmp_path)
    data = path(tmp_path, 3).read_bytes()
    (tmp_path / "best").write_bytes(data[:size])
    manager.delete(3)
    (tmp_path / "best").write_bytes(data)
    assert equal(msgpack_load(tmp_path / "best"), tree(3))


@pytest.mark.parametrize("name", [".nfs00000012", "metrics.jsonl", "notes", "plots"])
def test_what_is_no_copy_is_in_the_way_of_nothing(name, tmp_path):
    manager = filled(tmp_path)
    if name == "plots":
        (tmp_path / name).mkdir()
    elif name == ".nfs00000012":
        os.link(path(tmp_path, 3), tmp_path / name)
    else:
        (tmp_path / name).write_text("{}\n" * 20 if name == "metrics.jsonl" else "")
        if name == "notes":
            os.utime(tmp_path / name, (time.time() - 60,) * 2)
    manager.delete(3)
    assert beside(tmp_path, 3) == []


def test_a_signal_handler_saves_in_the_midst_of_a_listing(tmp_path, monkeypatch):
    with run(tmp_path, async_save=True) as manager:
        manager.save(1, tree(1))
        manager.wait()
        real = Catalog._look

        def interrupted(self, name, step):
            if threading.current_thread() is threading.main_thread():
                monkeypatch.setattr(Catalog, "_look", real)
                manager.save(2, tree(2))
                manager.wait()
            return real(self, name, step)

        monkeypatch.setattr(Catalog, "_look", interrupted)
        manager.all_steps()
        assert manager.all_steps() == [1, 2]


def test_what_is_read_only_is_cleaned_too(tmp_path):
    filled(tmp_path)
    left = tmp_path / f".x.tmp-{2**22 + 7}-{temporary._machine()}00000000"
    path(tmp_path, 3).rename(left)
    for file in tmp_path.iterdir():
        file.chmod(0o444)
    run(tmp_path)
    assert not left.exists()
    assert beside(tmp_path, 3) == []


def test_incomplete_steps_are_in_the_way_of_no_run_that_goes_back(tmp_path):
    manager = filled(tmp_path, 5)
    for step in (3, 4):
        beside(tmp_path, step)[0].unlink()
    (tmp_path / "0000000007.ckpt").symlink_to(path(tmp_path, 3))
    assert manager.delete_after(1) == [2, 3, 4, 7]
    assert {file.name for file in beside(tmp_path)} == referred(tmp_path)
    manager.save(2, tree(2))


def test_a_step_whose_data_was_moved_away_is_not_replaced(tmp_path):
    manager = filled(tmp_path)
    aged(tmp_path)
    manager.infos()
    (file,) = beside(tmp_path, 3)
    file.rename(tmp_path / "aside")
    with pytest.raises(StepExistsError):
        manager.save(3, tree(3))


def test_many_steps_are_deleted_at_once(tmp_path, monkeypatch):
    manager = filled(tmp_path, 30)
    lists = []
    monkeypatch.setattr(Catalog, "files", lambda self, real=Catalog.files: lists.append(1) or real(self))
    assert manager.delete_after(1) == list(range(2, 30))
    assert len(lists) < 10
    assert len(beside(tmp_path)) == 1


def test_groups_that_freeze_one_after_the_other_keep_few_files(tmp_path, monkeypatch):
    """Each smaller than the one before: none is as large as all that are smaller."""
    monkeypatch.setattr(layout, "PAGED_FROM", 1 << 12)
    monkeypatch.setattr(layout, "PACKED_BELOW", 1 << 12)
    manager = run(tmp_path, keep=KeepLatest(1))
    for step in range(80):
        manager.save(step, {f"w{i}": array(100 * i + min(step, i), (1 << 12) + 64 * (80 - i)) for i in range(80)})
        assert len(beside(tmp_path)) <= 9
    assert equal(manager.restore()["w79"], array(7979, (1 << 12) + 64))


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.EIO, "Input/output error")])
@pytest.mark.parametrize("force", [False, True])
def test_a_save_that_fails_when_it_is_there_keeps_its_data(force, error, tmp_path, monkeypatch):
    manager = filled(tmp_path)
    name = "replace" if force else "link"
    real, target = getattr(os, name), path(tmp_path, 3 if force else 4)

    def done_and_failed(source, to):
        real(source, to)
        if str(to) == str(target):
            raise error

    monkeypatch.setattr(os, name, done_and_failed)
    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        manager.save(int(target.stem), tree(int(target.stem), again=True), force=force)
    monkeypatch.setattr(os, name, real)
    assert equal(run(tmp_path).restore(int(target.stem)), tree(int(target.stem), again=True))
    assert {file.name for file in beside(tmp_path)} == referred(tmp_path)


def test_what_was_not_durable_becomes_so_before_others_have_it(tmp_path, monkeypatch):
    manager = filled(tmp_path)  # not durable
    calls = []

    def recorded(name):
        real = getattr(os, name)

        def call(first, *rest, **options):
            where = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else first
            calls.append((name, *(os.path.basename(os.fspath(p)) for p in (where, *rest))))
            return real(first, *rest, **options)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "link", "rename", "replace"):
        recorded(name)
    last = beside(tmp_path, 3)[0].name
    manager = run(tmp_path, durable=True)
    for state in (frozen(), {**frozen(), "new": array(7)}, {**frozen(), "new": array(7)}):
        calls.clear()
        step = manager.latest_step() + 1
        manager.save(step, {"frozen": state, "step": step})
        names = [name for name, _ in index_of(path(tmp_path, step))["external"]]
        told = [name for name, *_ in calls]
        checkpoint = calls.index(("link", calls[-2][1] if told[-2] == "link" else calls[-1][1], f"{step:010}.ckpt"))
        given = {call[2]: at for at, call in enumerate(calls) if call[0] == "rename"}
        assert sorted(given) == sorted(names)
        assert max(given.values()) < calls.index(("fsync", tmp_path.name)) < checkpoint  # the names before who refers
        assert calls[-1] == ("fsync", tmp_path.name)
        for call in calls:
            if call[0] == "rename":  # data before its name
                synced = [at for at, other in enumerate(calls) if other[0] == "fsync" and at < given[call[2]]]
                assert synced
        if last is not None:
            assert calls.index(("fsync", last)) < [at for at, call in enumerate(calls) if call[:2] == ("link", last)][0]
        last = None if len(names) > 1 else names[0]


def test_other_permissions_ask_for_a_file_of_their_own(tmp_path):
    before = os.umask(0o077)
    try:
        filled(tmp_path)
        os.umask(0o022)
        manager = run(tmp_path)
        manager.save(4, tree(4))
        manager.save(5, tree(5))
    finally:
        os.umask(before)
    assert [beside(tmp_path, step)[0].stat().st_mode & 0o777 for step in (3, 4, 5)] == [0o600, 0o644, 0o644]
    assert beside(tmp_path, 5)[0].stat().st_ino == beside(tmp_path, 4)[0].stat().st_ino


@pytest.mark.parametrize("damaged", [False, True])
def test_a_reader_never_sees_nothing_while_there_is_something(damaged, tmp_path, monkeypatch):
    if damaged:
        path(tmp_path, 0).write_bytes(b"damaged")
    manager = run(tmp_path, keep=KeepLatest(1))
    manager.save(1, tree(1))
    reader = run(tmp_path)
    real = Catalog.files

    def then_saved(self):
        files = real(self)
        monkeypatch.setattr(Catalog, "files", real)
        manager.save(manager.latest_step() + 1, tree(1))
        return files

    for use in (reader.latest_step, reader.restore, lambda: reader.restore_or(None)[1], lambda: reader.infos() or None):
        monkeypatch.setattr(Catalog, "files", then_saved)
        assert use() is not None


def test_a_large_array_is_copied_in_pieces(tmp_path):
    big, later = array(5, 64 << 20), array(2, 65 << 20)
    manager = run(tmp_path / "big")
    manager.save(0, {"a": big, "b": array(1, 65 << 20)})
    manager.save(1, {"a": big, "b": array(1, 65 << 20)})
    tracemalloc.start()
    manager.save(2, {"a": big, "b": later})  # of the file beside, less than half is used
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20
    assert beside(tmp_path / "big", 2)[0].stat().st_size == big.nbytes


# Saves that fail, and processes that are killed.


@pytest.mark.parametrize("kind", KINDS)
def test_each_call_fails(kind, tmp_path, request, monkeypatch):
    fine_clock(monkeypatch.setattr)
    names = calls_of(tmp_path / "run", kind)
    faults = [(at, fault) for at, name in enumerate(names) for fault in faults_of(name)]
    step = max(1, len(faults) * 4 // request.config.getoption("--faults"))
    for number, (at, fault) in enumerate(faults[::step]):
        folder = tmp_path / str(number)
        act = before(folder, kind)
        descriptors = len(os.listdir("/proc/self/fd"))
        failed = False
        with Calls(folder, at, fault):
            try:
                act()
            except (OSError, CheckpointError):
                failed = True
        assert len(os.listdir("/proc/self/fd")) == descriptors
        steps = check(folder)
        assert set(steps) >= ({1, 2, 3} if kind in ("saving", "replacing") and failed else {3})
        if failed and names[at] not in ("unlink", "rename"):
            assert {file.name for file in beside(folder)} == referred(folder)
        shutil.rmtree(folder)


def test_a_process_is_killed_at_each_call(request):
    step = max(1, 12 // request.config.getoption("--kills"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(HARNESS / "external.py"), str(step)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["kills"] > 300 // step
    assert figures["in the midst"] > 10
    print(f"{figures['kills']} kills, {figures['in the midst']} in the midst; 0 steps lost")


# To one file again.


def test_a_copy_is_whole(tmp_path):
    manager = filled(tmp_path / "run", keep=KeepLatest(3))
    for number in range(1, 4):
        copy = tmp_path / f"{number}"
        assert manager.export(number, copy) == str(copy)
        assert equal(msgpack_load(copy), tree(number))
        with open_checkpoint(copy) as checkpoint:
            checkpoint.verify()
            assert checkpoint.metadata["step"] == number
        assert "external" not in index_of(copy)
        assert "features" not in index_of(copy)
        shared = msgpack_load(path(tmp_path / "run", number), raw=True)
        assert equal(msgpack_load(copy, raw=True), shared)
    with pytest.raises(FileExistsError):
        manager.export("latest", tmp_path / "1")
    manager.export("latest", tmp_path / "1", overwrite=True)
    assert equal(msgpack_load(tmp_path / "1"), tree(3))
    with pytest.raises(CheckpointNotFoundError):
        manager.export(7, tmp_path / "7")
    with pytest.raises(CheckpointNotFoundError, match="loss"):
        manager.export("best", tmp_path / "7")
    with pytest.raises(ValueError, match="'latest' or 'best'"):
        manager.export("newest", tmp_path / "7")
    with open(beside(tmp_path / "run", 2)[0], "r+b") as file:
        file.write(b"damaged")
    with pytest.raises(CorruptCheckpointError):
        manager.export(2, tmp_path / "7")
    assert not (tmp_path / "7").exists()
    with pytest.raises(CheckpointNotFoundError):
        run(tmp_path / "empty").export("latest", tmp_path / "7")


def test_a_copy_of_a_whole_one_is_the_same(tmp_path):
    manager = CheckpointManager(tmp_path / "run", async_save=False, compression="zstd")
    manager.save(1, {"w": np.zeros(1 << 18), "s": "text"}, {"loss": 1.0})
    manager.export("best", tmp_path / "1")
    assert (tmp_path / "1").read_bytes() == path(tmp_path / "run", 1).read_bytes()
