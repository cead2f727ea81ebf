"""Temporary files: what is being written, what a writer that was killed has left, and how one tells these apart."""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

#: What a file system or a platform answers that cannot do what it is asked.
NOT_SUPPORTED = frozenset(
    {
        errno.EINVAL,
        errno.ENOSYS,
        errno.ENOTSUP,
        errno.EOPNOTSUPP,
        errno.EBADF,
        errno.EACCES,
        errno.EPERM,
        errno.EISDIR,
    }
)
#: How temporary files are called: `temporary_path` makes such names.
TEMPORARY_NAME = re.compile(r"\..*\.tmp-(\d+)-([0-9a-f]{8})[0-9a-f]{8}", re.DOTALL)


def temporary_path(destination: str) -> str:
    """Give a name beside a file under which it can be written."""
    directory, name = os.path.split(destination)
    # A part of the name is enough for people, and a whole one could become too long. Cut by characters: some
    # file systems refuse half of one.
    while len(os.fsencode(name)) > 64:
        name = name[:-1]
    return os.path.join(directory, f".{name}.tmp-{os.getpid()}-{_machine()}{secrets.token_hex(4)}")


@functools.cache
def _machine() -> str:
    """Give eight digits for where the numbers of processes mean the same: a machine since it was started."""
    marks = [os.uname().nodename] if hasattr(os, "uname") else []
    for source in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with suppress(OSError):
            marks.append(os.readlink(source) if os.path.islink(source) else Path(source).read_text())
    return hashlib.blake2b("\0".join(marks).encode(), digest_size=4).hexdigest()


@contextmanager
def create(temporary: str, kept: int | None, given: str) -> Iterator[int]:
    """Open a new file, locked while it is open, for no more readers than the one that it replaces has."""
    permissions = 0o666 if kept is None else kept | stat.S_IWUSR
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with naming(given):
        fd = os.open(temporary, flags, permissions)  # never inherited by programs that are started (PEP 446)
    try:
        _lock(fd)
        yield fd
    except BaseException:
        with suppress(OSError):  # the first error is the one to tell
            os.close(fd)
        raise
    with naming(given):
        os.close(fd)  # some network file systems tell only now that the disk is full


def set_permissions(fd: int, temporary: str, permissions: int | None) -> None:
    """Set the permissions to be kept, if any, of which the umask may have taken some."""
    if permissions is None:
        return
    fchmod: Callable[[int, int], None] | None = getattr(os, "fchmod", None)
    try:
        if fchmod is not None:
            fchmod(fd, permissions)
        else:
            os.chmod(temporary, permissions)
    except OSError as error:  # a file system without permissions, such as FAT
        if error.errno not in NOT_SUPPORTED:
            raise


def sync_file(fd: int) -> None:
    """Bring the bytes of a file to the disk."""
    # On macOS fsync leaves the bytes in the drive's cache; this asks the drive to empty it.
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if fcntl is not None and full is not None:
        with suppress(OSError):  # not every file system there knows it
            fcntl.fcntl(fd, full)
            return
    os.fsync(fd)


def discard(temporary: str, error: BaseException) -> None:
    """Remove a temporary file of a save that has failed."""
    try:
        os.unlink(temporary)
    except FileNotFoundError:
        pass
    except OSError as second:
        error.add_note(f"The temporary file {temporary} could not be removed: {second.strerror}.")


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Let system errors name the path that the caller knows, not a temporary file or none at all."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = path
            del error.filename2
        raise


def clean_temporaries(
    directory: str | os.PathLike[str],
    *,
    older_than: float = 3600.0,
    first: Callable[[str], object] | None = None,
) -> list[str]:
    """Remove the temporary files of writers that were killed.

    A file is removed when nobody holds its lock, and either the process that made it, on this machine, is no
    more, or it has not changed for an hour. A writer holds the lock as long as its file is open, and the system
    frees it when the process dies: unlike a process id, it can't be taken over by another process, and other
    containers see it. The hour covers network file systems whose locks other machines don't see. Windows has no
    such lock, but refuses to remove a file that is open.

    Parameters
    ----------
    directory : str or os.PathLike
        Where to look; directories inside it are left alone.
    older_than : float, default 3600.0
        The least age, in seconds since the last change. A file is for a moment neither locked nor published: an age
        of zero is right only where nobody is writing.
    first : callable, optional
        Is called with the path of each file that is about to be removed.

    Returns
    -------
    list of str
        The paths that were removed.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     clean_temporaries(directory)
    []
    """
    latest = time.time() - older_than
    with os.scandir(os.fsdecode(directory)) as entries:
        candidates = [entry for entry in entries if TEMPORARY_NAME.fullmatch(entry.name)]
    left = [entry for entry in candidates if _has_lost_its_writer(entry.name) or _is_old(entry, latest)]
    return [entry.path for entry in left if _remove_unused(entry.path, first)]


def _has_lost_its_writer(name: str) -> bool:
    found = TEMPORARY_NAME.fullmatch(name)
    if found is None or found[2] != _machine() or os.name == "nt":  # there, asking after a process could end it
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # it is somebody else's
        return False
    return False


def _is_old(entry: os.DirEntry[str], latest: float) -> bool:
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:  # its writer has just finished
        return False
    return stat.S_ISREG(status.st_mode) and status.st_mtime <= latest


def _remove_unused(path: str, first: Callable[[str], object] | None) -> bool:
    try:
        if fcntl is not None:
            fd = _opened_to_lock(path)
            try:
                if not _lock(fd):
                    return False
            finally:
                os.close(fd)
        if first is not None:
            first(path)
        os.unlink(path)
    except OSError:  # gone by now, or not ours to remove
        return False
    return True


def _opened_to_lock(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY)  # NFS locks only what is open for writing
    except PermissionError:
        return os.open(path, os.O_RDONLY)


def _lock(fd: int) -> bool:
    """Mark a temporary file as in use until it is closed or the process dies; false if somebody else does."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # in use, or a file system without locks
        return False
    return True
