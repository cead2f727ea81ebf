"""Saves whose system calls fail one after the other, or in the midst of which the process is killed.

Run as ``python faults.py KILLS``, it kills that many processes that save, at every call of every way to save first, and
then at random moments, and tells in one line of JSON what was left.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import braintools_ckpt as bt
from braintools_ckpt.storage import sources, temporary

fcntl = temporary.fcntl

#: Calls that a save or a load may make, of the functions that the library calls them by.
CALLS = {
    "open": os,
    "write": os,
    "writev": os,
    "pwrite": os,
    "pwritev": os,
    "preadv": os,
    "pread": os,
    "read": os,
    "fsync": os,
    "fdatasync": os,
    "ftruncate": os,
    "truncate": os,
    "posix_fallocate": os,
    "close": os,
    "replace": os,
    "rename": os,
    "link": os,
    "unlink": os,
    "utime": os,
    "mkdir": os,
    "fchmod": os,
    "chmod": os,
    "stat": os,
    "lstat": os,
    "fstat": os,
    "scandir": os,
    "lseek": os,
    "flock": fcntl,
    "ioctl": fcntl,
    "FileIO": sources.io,
    "mmap": sources.mmap,
}
_ALL = [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINTR]
_WRITES = {"write", "writev", "pwrite", "pwritev"}


class Calls:
    """Counts the calls that concern a folder, and lets something happen at one of them.

    Parameters
    ----------
    folder : Path
        Calls that name a file in it, or have a descriptor of one, count.
    at : int, optional
        At which call something happens, counted from 0.
    act : callable, optional
        What happens: it is given the function and its arguments, and does what the call is to do.
    lasting : bool
        It happens at all later calls of the same name as well.
    """

    def __init__(self, folder, at=None, act=None, *, lasting=False):
        self._folder = str(folder)
        self._at, self._act, self._lasting = at, act, lasting
        self._descriptors = set()
        self.names = []

    def _concerns(self, arguments):
        first = arguments[0] if arguments else None
        if isinstance(first, int):
            return first in self._descriptors
        return isinstance(first, (str, os.PathLike)) and os.fspath(first).startswith(self._folder)

    def _called(self, name, real, *arguments, **options):
        if not self._concerns(arguments):
            return real(*arguments, **options)
        number = len(self.names)
        self.names.append(name)
        acts = self._at is not None and self._act is not None
        if acts and (number == self._at or (self._lasting and number > self._at and name == self.names[self._at])):
            result = self._act(name, real, *arguments, **options)
        else:
            result = real(*arguments, **options)
        if name in ("open", "FileIO"):
            self._descriptors.add(result if name == "open" else result.fileno())
        if name == "close":
            self._descriptors.discard(arguments[0])
        return result

    def __enter__(self):
        self._undo = []
        for name, module in CALLS.items():
            real = getattr(module, name, None)
            if real is not None:
                self._undo.append((module, name, real))
                setattr(module, name, functools.partial(self._called, name, real))
        return self

    def __exit__(self, *_):
        for module, name, real in self._undo:
            setattr(module, name, real)


def failing(code):
    """Let a call fail with an error of the system."""

    def act(name, real, *arguments, **options):
        if name == "close":  # the descriptor is gone even when close fails
            real(*arguments)
        raise OSError(code, os.strerror(code))

    act.what = errno.errorcode[code]
    return act


def short(name, real, *arguments, **options):
    """Let a call write half of what it is given, or one byte."""
    if name in _WRITES:
        data = arguments[1] if name in ("write", "pwrite") else arguments[1][0]
        data = memoryview(data)[: max(1, len(data) // 2)]
        return real(arguments[0], data if name in ("write", "pwrite") else [data], *arguments[2:])
    return real(*arguments, **options)


def nothing(name, real, *arguments, **options):
    """Let a call write nothing without saying why."""
    return 0


short.what, nothing.what = "a short write", "a write of nothing"


def faults_of(name):
    """Give what may happen at a call."""
    codes = _ALL + {"open": [errno.EMFILE, errno.EACCES], "link": [errno.EPERM, errno.EMLINK]}.get(name, [])
    return [*map(failing, codes), *([short, nothing] if name in _WRITES else [])]


def tree(version, is_sharing=False):
    """Give what is saved: each value says of which version it is, but for what all versions share."""
    parts = {"large": np.full(9000, version), "small": [np.full(3, version + i) for i in range(5)], "version": version}
    return {**parts, "shared": np.zeros(1 << 20, np.uint8)} if is_sharing else parts


@functools.cache
def content(version, compression=None, is_sharing=False):
    """Give the file of a version."""
    return bt.msgpack_dumps(tree(version, is_sharing), compression=compression)


def _save(path, version, **options):
    bt.msgpack_save(path, tree(version, "share_with" in options), **options)


def _save_aside(path, version, **options):
    with bt.AsyncManager() as manager:
        _save(path, version, async_manager=manager, **options)


#: Each way to save: what does so, its options, and whether a file is there before.
WAYS = {
    f"{kind}, {'background' if save is _save_aside else 'at once'}, {'durable' if durable else 'not durable'}": (
        save,
        {"durable": durable, **options},
        existing,
        where,
    )
    for save in (_save, _save_aside)
    for durable in (True, False)
    for kind, options, existing, where in [
        ("first save", {}, False, "file"),
        ("in a new directory", {}, False, "new/directory/file"),
        ("replacing", {}, True, "file"),
        ("through a link", {}, True, "link"),
        ("overwrite=False", {"overwrite": False}, False, "file"),
        ("compressed", {"compression": "zstd"}, True, "file"),
        ("sharing", {"share_with": "file"}, True, "file"),
    ]
}


class Place:
    """A folder in which one save is made to fail."""

    def __init__(self, folder, way):
        self.save, self.options, self.existing, where = WAYS[way]
        self.folder = Path(folder)
        if "share_with" in self.options:
            self.options = {**self.options, "share_with": self.folder / self.options["share_with"]}
        self.path = self.folder / where
        self.file = self.folder / "file" if where == "link" else self.path
        if where == "link":
            self.path.symlink_to(self.file)
        if self.existing:
            self.file.write_bytes(self.content(1))

    def content(self, version):
        """Give the file of a version that is saved so; the first one was not compressed."""
        return content(version, self.options.get("compression") if version > 1 else None, "share_with" in self.options)

    def do(self):
        """Save version 2."""
        self.save(self.path, 2, **self.options)

    def version(self):
        """Tell which version is there, 0 for none; anything but a whole one is an error."""
        if not self.file.exists():
            assert not self.existing, "the old file is gone"
            return 0
        found = self.file.read_bytes()
        versions = {self.content(version): version for version in (1, 2)}
        assert found in versions, f"a file of {len(found)} bytes is neither the old nor the new one"
        assert bt.msgpack_load(self.path)["version"] == versions[found]
        return versions[found]

    def left(self):
        """Give what is there beside the file, its directories and the link."""
        known = {self.file, self.path, *self.file.parents, *self.path.parents}
        return {path for path in self.folder.rglob("*") if path not in known and not path.is_dir()}

    def start_again(self, **options):
        """Do what the next start does: remove what was left. Nothing else may be there then."""
        for folder in {path.parent for path in self.left()}:
            temporary.clean_temporaries(folder, **options)
        assert self.left() == set(), f"{self.left()} stay for ever"
        self.save(self.path, 3, **{**self.options, "overwrite": True})
        assert bt.msgpack_load(self.path)["version"] == 3


def calls_of(way):
    """Give the names of the calls that a save makes, in their order."""
    with tempfile.TemporaryDirectory() as folder:
        place = Place(folder, way)
        with Calls(folder) as calls:
            place.do()
        assert place.version() == 2
        return calls.names


def killed(way, at, late):
    """Kill a process that saves before or after one of its calls; give the version that is there, and what is left."""

    def act(name, real, *arguments, **options):
        try:
            if late:
                real(*arguments, **options)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)

    with tempfile.TemporaryDirectory() as folder:
        place = Place(folder, way)
        _in_child(lambda: _do_with(Calls(folder, at, act), place))
        return _found(place)


def _do_with(calls, place):
    with calls:
        place.do()


def _in_child(work):
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            work()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, "it was not killed"


def killed_sometime(rng, way):
    """Kill a process that saves again and again at a random moment."""
    with tempfile.TemporaryDirectory() as folder:
        place = Place(folder, way)
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                while True:
                    place.save(place.path, 1, **{**place.options, "overwrite": True, "compression": None})
                    place.save(place.path, 2, **{**place.options, "overwrite": True})
            os._exit(1)
        time.sleep(rng.expovariate(1 / 0.004))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        place.existing = False  # it may have been killed before its first save
        return _found(place)


def _found(place):
    version, left = place.version(), len(place.left())
    place.start_again()
    return version, left


def main(kills):
    """Kill as many processes."""
    rng = random.Random(0)
    points = [(way, at, late) for way in WAYS for at in range(len(calls_of(way))) for late in (False, True)]
    rng.shuffle(points)
    figures = {"at calls": 0, "at random moments": 0, "in the midst of a save": 0, "lost": 0}
    for number in range(kills):
        at_call = number < min(len(points), kills // 2)
        version, left = killed(*points[number]) if at_call else killed_sometime(rng, rng.choice(list(WAYS)))
        figures["at calls" if at_call else "at random moments"] += 1
        figures["in the midst of a save"] += bool(left)
        figures["lost"] += version not in (0, 1, 2)
    print(json.dumps(figures))


if __name__ == "__main__":
    main(int(sys.argv[1]))
