"""Files of the local file system: written whole or not at all, and still there after a power cut.

The bytes go to a temporary file beside the destination. That file is synced, then takes the destination's
place in one step, and then the directory is synced. A reader sees the old file or the new one, never a part.
"""

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

from ..errors import AlreadyExistsError, InvalidCheckpointPath
from .sinks import FileSink, OnBytes

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_TEMPORARY_NAME = re.compile(r"\..*\.tmp-(\d+)-([0-9a-f]{8})[0-9a-f]{8}", re.DOTALL)
#: What a file system or a platform answers that cannot do what it is asked.
_NOT_SUPPORTED = frozenset(
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


@contextmanager
def atomic_write(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = True,
    durable: bool = True,
    on_bytes: OnBytes | None = None,
) -> Iterator[FileSink]:
    """Write a file that appears whole when the block ends, or not at all when it raises.

    Parameters
    ----------
    path : str or os.PathLike
        The destination. Its directory is made if it is missing, a symbolic link is written through, and the
        permission bits of a file that is replaced are kept.
    overwrite : bool, default True
        Whether to replace an existing file. With ``False`` exactly one of many concurrent writers wins.
    durable : bool, default True
        Whether to wait until the file and its name are on the disk.
    on_bytes : callable, optional
        Called with the number of bytes after each piece that was written.

    Yields
    ------
    FileSink
        The place to write to.

    Raises
    ------
    AlreadyExistsError
        A file exists and ``overwrite`` is false.
    InvalidCheckpointPath
        The path is empty, a directory or a device.
    OSError
        The directory cannot be made, the disk is full, and the like; ``filename`` is the path that was given.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = pathlib.Path(directory, "runs", "data")
    ...     with atomic_write(path) as sink:
    ...         sink.write(b"all ", b"or nothing")
    ...     path.read_bytes()
    b'all or nothing'
    """
    given = os.fsdecode(path)
    with naming(given):
        destination, present = _inspect(given)
    if present is not None and not overwrite:
        raise AlreadyExistsError(given)
    kept = _permissions(present)
    made = _make_directory(os.path.dirname(destination))
    temporary = _temporary_path(destination)
    try:
        with _create(temporary, kept, given) as fd:
            yield FileSink(fd, name=given, on_bytes=on_bytes)
            with naming(given):
                if kept is not None:
                    _set_permissions(fd, temporary, kept)
                if durable:
                    _sync_file(fd)
        with naming(given):
            _publish(temporary, destination, given, overwrite=overwrite)
    except BaseException as error:  # Ctrl-C and a closed generator too
        _discard(temporary, error)
        raise
    if durable:
        with naming(given):
            _sync_directories([os.path.dirname(destination), *map(os.path.dirname, made)])


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


def _inspect(given: str) -> tuple[str, os.stat_result | None]:
    """Give the real destination, and the status of the file that stands there, if any."""
    if not given:
        raise InvalidCheckpointPath("Cannot write a checkpoint: the path is empty.")
    destination = _resolve(given)
    try:
        present = os.stat(destination)
    except (FileNotFoundError, NotADirectoryError):
        if given.endswith((os.sep, os.altsep or os.sep)):
            raise InvalidCheckpointPath(_not_a_file(given, "it names a directory")) from None
        return destination, None
    if stat.S_ISDIR(present.st_mode):
        raise InvalidCheckpointPath(_not_a_file(given, "it is a directory"))
    if not stat.S_ISREG(present.st_mode):  # to replace /dev/null by a file would break the machine
        raise InvalidCheckpointPath(_not_a_file(given, "it is not a regular file"))
    return destination, present


def _resolve(given: str) -> str:
    """Follow symbolic links, so that what they lead to is replaced and not they."""
    try:
        return os.path.realpath(given, strict=True)  # else it would take a link that cannot be read for a file
    except (FileNotFoundError, NotADirectoryError):
        return os.path.realpath(given)


def _not_a_file(given: str, reason: str) -> str:
    example = os.path.join(given, "checkpoint.msgpack")
    return f'Cannot write a checkpoint to "{given}": {reason}. Pass the path of a file, such as "{example}".'


def _make_directory(directory: str) -> list[str]:
    """Make a directory with its parents, and give those that were missing."""
    missing = []
    parent = directory
    while not os.path.lexists(parent) and os.path.dirname(parent) != parent:
        missing.append(parent)
        parent = os.path.dirname(parent)
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        # A file that stands in the way is reported as one that exists already: say what it lacks instead.
        code = errno.ENOTDIR if error.errno == errno.EEXIST else error.errno or errno.EIO
        reason = f"Cannot make the directory of the checkpoint: {os.strerror(code)}"
        raise OSError(code, reason, directory) from error
    return missing


def _temporary_path(destination: str) -> str:
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


def _permissions(present: os.stat_result | None) -> int | None:
    """Give the permission bits to keep, if any."""
    if present is None or os.name == "nt":  # Windows knows read-only alone, and replaces no such file
        return None
    return present.st_mode & 0o777


@contextmanager
def _create(temporary: str, kept: int | None, given: str) -> Iterator[int]:
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


def _set_permissions(fd: int, temporary: str, permissions: int) -> None:
    """Set the permissions to be kept, of which the umask may have taken some."""
    fchmod: Callable[[int, int], None] | None = getattr(os, "fchmod", None)
    try:
        if fchmod is not None:
            fchmod(fd, permissions)
        else:
            os.chmod(temporary, permissions)
    except OSError as error:  # a file system without permissions, such as FAT
        if error.errno not in _NOT_SUPPORTED:
            raise


def _lock(fd: int) -> bool:
    """Mark a temporary file as in use until it is closed or the process dies; false if somebody else does."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # in use, or a file system without locks
        return False
    return True


def _sync_file(fd: int) -> None:
    # On macOS fsync leaves the bytes in the drive's cache; this asks the drive to empty it.
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if fcntl is not None and full is not None:
        with suppress(OSError):  # not every file system there knows it
            fcntl.fcntl(fd, full)
            return
    os.fsync(fd)


def _publish(temporary: str, destination: str, given: str, *, overwrite: bool) -> None:
    if overwrite:
        os.replace(temporary, destination)
        return
    try:
        _publish_new(temporary, destination)
    except FileExistsError:
        raise AlreadyExistsError(given) from None


def _publish_new(temporary: str, destination: str) -> None:
    """Give the file its name in one step that fails if the name is taken."""
    link: Callable[[str, str], None] | None = getattr(os, "link", None)
    if link is None:
        _publish_reserved(temporary, destination)
        return
    try:
        link(temporary, destination)
    except OSError as error:
        if not isinstance(error, FileExistsError):  # no hard links here
            _publish_reserved(temporary, destination)
            return
        # NFS may lose the answer of a link that it made, and refuse the second try (see open(2), O_EXCL).
        if not os.path.samefile(temporary, destination):
            raise
    os.unlink(temporary)


def _publish_reserved(temporary: str, destination: str) -> None:
    """Do so without hard links: an empty file holds the name until the whole one takes it."""
    fd = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    reservation = os.fstat(fd)
    os.close(fd)
    try:
        os.replace(temporary, destination)
    except BaseException:
        with suppress(OSError):  # the first error is the one to tell
            if os.path.samestat(reservation, os.stat(destination)):  # not what somebody else put there since
                os.unlink(destination)
        raise


def _discard(temporary: str, error: BaseException) -> None:
    try:
        os.unlink(temporary)
    except FileNotFoundError:
        pass
    except OSError as second:
        error.add_note(f"The temporary file {temporary} could not be removed: {second.strerror}.")


def _sync_directories(directories: list[str]) -> None:
    """Bring the new names to the disk: the file's own and those of directories that were made for it."""
    for directory in directories:
        try:
            fd = os.open(directory, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno in _NOT_SUPPORTED:  # Windows, some network file systems, no permission to read
                continue
            error.add_note("The file is in place, but its name may not survive a power cut.")
            raise


def clean_temporaries(directory: str | os.PathLike[str], *, older_than: float = 3600.0) -> list[str]:
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
        candidates = [entry for entry in entries if _TEMPORARY_NAME.fullmatch(entry.name)]
    left = [entry for entry in candidates if _has_lost_its_writer(entry.name) or _is_old(entry, latest)]
    return [entry.path for entry in left if _remove_unused(entry.path)]


def _has_lost_its_writer(name: str) -> bool:
    found = _TEMPORARY_NAME.fullmatch(name)
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


def _remove_unused(path: str) -> bool:
    try:
        if fcntl is not None:
            fd = os.open(path, os.O_WRONLY)  # NFS locks only what is open for writing
            try:
                if not _lock(fd):
                    return False
            finally:
                os.close(fd)
        os.unlink(path)
    except OSError:  # gone by now, or not ours to remove
        return False
    return True
