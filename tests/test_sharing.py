"""Data that has not changed since an earlier checkpoint is shared with it, where the file system can do that."""

from __future__ import annotations

import errno
import os
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from braintools_ckpt import (
    AsyncManager,
    CheckpointManager,
    CorruptCheckpointError,
    msgpack_dumps,
    msgpack_load,
    msgpack_save,
    open_checkpoint,
)
from braintools_ckpt.format import layout, unchanged
from braintools_ckpt.storage import sinks

pytestmark = pytest.mark.skipif(sinks.fcntl is None, reason="this platform has no ioctl")
PAGE = 4096


class Kernel:
    """Does what btrfs and XFS do, by copying, and counts it; refuses what they refuse."""

    def __init__(self, error=None):
        self.error = error
        self.asked = 0
        self.shared = 0

    def ioctl(self, fd, request, argument):
        assert request == sinks._CLONE_RANGE
        self.asked += 1
        source, offset, size, to = struct.unpack("qQQQ", argument)
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        assert offset % PAGE == to % PAGE == size % PAGE == 0 != size
        assert os.fstat(fd).st_size == to
        assert os.pwrite(fd, os.pread(source, size, offset), to) == size
        self.shared += size


@pytest.fixture
def kernel(monkeypatch):
    made = Kernel()
    monkeypatch.setattr(sinks, "fcntl", made)
    return made


def arrays(seed, count=3, size=(1 << 18) + 5):
    """Give arrays of a little more than a MiB, which is no multiple of a page."""
    random = np.random.default_rng(seed)
    return {f"w{i}": random.random(size, np.float32) for i in range(count)}


def whole_pages(tree):
    return sum(array.nbytes // PAGE * PAGE for array in tree.values())


def test_what_has_not_changed_is_shared(tmp_path, kernel):
    frozen = arrays(0)
    first, second = tmp_path / "1", tmp_path / "2"
    msgpack_save(first, {"frozen": frozen, "w": arrays(1)["w0"], "step": 1})
    tree = {"frozen": frozen, "w": arrays(2)["w0"], "step": 2}
    msgpack_save(second, tree, share_with=first)
    assert kernel.shared == whole_pages(frozen)
    assert second.read_bytes() == msgpack_dumps(tree)  # sharing does not show in the bytes
    first.unlink()
    with open_checkpoint(second) as checkpoint:
        checkpoint.verify()
    np.testing.assert_array_equal(msgpack_load(second)["frozen"]["w2"], frozen["w2"])


def test_arrays_are_found_wherever_they_were(tmp_path, kernel):
    tree = arrays(0, 4)
    msgpack_save(tmp_path / "1", tree)
    moved = {"new": arrays(1)["w0"], "a": {"b": jnp.asarray(tree["w3"])}, "c": tree["w1"]}
    msgpack_save(tmp_path / "2", moved, share_with=str(tmp_path / "1"))
    assert kernel.shared == whole_pages({"a": tree["w3"], "c": tree["w1"]})
    assert (tmp_path / "2").read_bytes() == msgpack_dumps(moved)


def test_packs_of_small_arrays_are_shared(tmp_path, kernel):
    tree = [np.full(100, i) for i in range(4000)]
    msgpack_save(tmp_path / "1", tree)
    msgpack_save(tmp_path / "2", tree, share_with=tmp_path / "1")
    assert kernel.shared >= 3 * layout.PACK_SIZE // PAGE * PAGE
    assert (tmp_path / "2").read_bytes() == (tmp_path / "1").read_bytes()


def test_arrays_of_several_blobs(tmp_path, kernel, monkeypatch):
    monkeypatch.setattr(layout, "MAX_BLOB", 1 << 20)
    tree = arrays(0, 2, 1 << 19)
    msgpack_save(tmp_path / "1", tree)
    tree["w1"][-1] += 1
    msgpack_save(tmp_path / "2", tree, share_with=tmp_path / "1")
    assert kernel.shared == 3 << 20
    np.testing.assert_array_equal(msgpack_load(tmp_path / "2")["w1"], tree["w1"])


def test_arrays_that_are_converted_are_written(tmp_path, kernel):
    tree = {"a": arrays(0)["w0"].astype(">f4"), "b": np.asfortranarray(arrays(1)["w0"][:1024].reshape(32, 32))}
    msgpack_save(tmp_path / "1", tree)
    msgpack_save(tmp_path / "2", tree, share_with=tmp_path / "1")
    assert (tmp_path / "2").read_bytes() == (tmp_path / "1").read_bytes()


def test_what_is_damaged_is_not_shared(tmp_path, kernel):
    tree = arrays(0)
    msgpack_save(tmp_path / "1", tree)
    with open(tmp_path / "1", "r+b") as file:
        file.seek(PAGE + 77)
        file.write(b"\xff\x00\xff")
    with pytest.raises(CorruptCheckpointError):
        msgpack_load(tmp_path / "1")
    msgpack_save(tmp_path / "2", tree, share_with=tmp_path / "1")
    assert kernel.shared == whole_pages(tree) * 2 // 3
    assert (tmp_path / "2").read_bytes() == msgpack_dumps(tree)


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EINTR])
def test_file_systems_that_cannot_share(error, tmp_path, kernel, caplog):
    unchanged._say_refused.cache_clear()
    tree = arrays(0)
    kernel.error = error
    msgpack_save(tmp_path / "1", tree)
    for name in ("2", "3"):
        msgpack_save(tmp_path / name, tree, share_with=tmp_path / "1")
        assert (tmp_path / name).read_bytes() == msgpack_dumps(tree)
    assert kernel.asked == 2  # and not for each array
    (record,) = caplog.records  # and it is said once
    assert f"no data can be shared with files in {tmp_path}" in record.getMessage()


@pytest.mark.parametrize("there", ["nothing", "a directory", "a foreign file", "an empty file", "a cut file"])
def test_what_is_no_checkpoint_is_passed_over(there, tmp_path, kernel):
    tree = arrays(0)
    path = tmp_path / "1"
    if there == "a directory":
        path.mkdir()
    elif there != "nothing":
        data = {"a foreign file": b"no checkpoint", "an empty file": b"", "a cut file": msgpack_dumps(tree)[:-9]}
        path.write_bytes(data[there])
    msgpack_save(tmp_path / "2", tree, share_with=path)
    assert kernel.shared == 0
    assert (tmp_path / "2").read_bytes() == msgpack_dumps(tree)


def test_a_file_may_share_with_the_one_that_it_replaces(tmp_path, kernel):
    tree = arrays(0)
    path = msgpack_save(tmp_path / "1", tree)
    msgpack_save(path, tree | {"step": 2}, share_with=path)
    assert kernel.shared == whole_pages(tree)
    assert msgpack_load(path)["step"] == 2


def test_sharing_in_the_background(tmp_path, kernel, monkeypatch):
    tree = arrays(0)
    monkeypatch.chdir(tmp_path)
    with AsyncManager() as manager:
        msgpack_save("1", tree, async_manager=manager)
        msgpack_save("2", tree, async_manager=manager, share_with="1")
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path / "other")
    assert kernel.shared == whole_pages(tree)
    assert (tmp_path / "2").read_bytes() == msgpack_dumps(tree)


@pytest.mark.parametrize("background", [False, True])
def test_a_run_shares_what_stays(background, tmp_path, kernel):
    frozen = arrays(0)
    with CheckpointManager(tmp_path, keep=2, async_save=background, share_unchanged=True) as manager:
        for step in range(5):
            manager.save(step, {"frozen": frozen, "step": step})
    assert kernel.shared == 4 * whole_pages(frozen)
    with CheckpointManager(tmp_path, keep=1, async_save=background, share_unchanged=True) as manager:  # goes on
        manager.save(5, {"frozen": frozen, "step": 5})
    assert kernel.shared == 5 * whole_pages(frozen)
    assert manager.all_steps() == [5]
    tree = manager.restore()
    assert tree["step"] == 5
    np.testing.assert_array_equal(tree["frozen"]["w1"], frozen["w1"])


def test_the_step_before_one_that_was_deleted(tmp_path, kernel):
    frozen = arrays(0)
    with CheckpointManager(tmp_path, async_save=False, share_unchanged=True) as manager:
        manager.save(1, frozen)
        manager.save(2, arrays(1))
        manager.delete(2)
        manager.save(3, frozen)
    assert kernel.shared == whole_pages(frozen)


def test_workers_wait_for_what_they_share_with(tmp_path, kernel):
    tree = arrays(0)
    with AsyncManager(max_workers=4, max_pending=8) as manager:
        for step in range(6):
            before = tmp_path / f"{step - 1}"
            msgpack_save(tmp_path / f"{step}", tree, async_manager=manager, share_with=before)
    assert kernel.shared == 5 * whole_pages(tree)


def test_without_being_asked_nothing_is_shared(tmp_path, kernel):
    with CheckpointManager(tmp_path) as manager:
        for step in range(2):
            manager.save(step, arrays(0))
    assert kernel.asked == 0


@pytest.mark.parametrize("options", [{"format": "flax"}, {"compression": "zstd"}])
def test_what_cannot_be_combined(options, tmp_path):
    with pytest.raises(ValueError, match="share_with= needs format='v1' without compression"):
        msgpack_save(tmp_path / "1", 1, share_with=tmp_path / "0", **options)
    with pytest.raises(TypeError, match="share_with must be the path of a checkpoint, got int"):
        msgpack_save(tmp_path / "1", 1, share_with=7)
    with pytest.raises(ValueError, match="share_unchanged=True needs compression=None"):
        CheckpointManager(tmp_path / "run", share_unchanged=True, compression="zstd")
    assert list(tmp_path.iterdir()) == []


def test_the_real_thing(tmp_path):
    """On btrfs and XFS, by the kernel: ``--basetemp`` says where."""
    tree = arrays(0, 8, 1 << 20)
    msgpack_save(tmp_path / "1", tree)
    os.sync()
    before = os.statvfs(tmp_path)
    with open(tmp_path / "1", "rb") as source, open(tmp_path / "probe", "wb") as probe:
        if not sinks.FileSink(probe.fileno()).share(source.fileno(), 0, PAGE):
            pytest.skip("the file system cannot share data between files")
    msgpack_save(tmp_path / "2", tree | {"step": 2}, share_with=tmp_path / "1")
    os.sync()
    used = (before.f_bfree - os.statvfs(tmp_path).f_bfree) * before.f_frsize
    assert used < sum(array.nbytes for array in tree.values()) // 8
    (tmp_path / "1").unlink()
    with open_checkpoint(tmp_path / "2") as checkpoint:
        checkpoint.verify()
    assert (tmp_path / "2").read_bytes() == msgpack_dumps(tree | {"step": 2})
