"""Files of the local file system: written whole or not at all, and still there after a power cut.

The bytes go to a temporary file beside the destination. That file is synced, then takes the destination's
place in one step, and then the directory is synced. A reader sees the old file or the new one, never a part.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ..errors import AlreadyExistsError, InvalidCheckpointPath
from .external import CheckpointSink, ExternalFiles
from .sinks import OnBytes
from .temporary import NOT_SUPPORTED, create, discard, naming, set_permissions, sync_file, temporary_path


@contextmanager
def atomic_write(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = True,
    durable: bool = True,
    on_bytes: OnBytes | None = None,
) -> Iterator[CheckpointSink]:
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
    CheckpointSink
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
    temporary = temporary_path(destination)
    external = ExternalFiles(destination, temporary, kept, given, durable=durable)
    try:
        with create(temporary, kept, given) as fd:
            yield CheckpointSink(fd, external, name=given, on_bytes=on_bytes)
            with naming(given):
                external.close()
                set_permissions(fd, temporary, kept)
                if durable:
                    sync_file(fd)
        with naming(given):
            if external.publish() and durable:  # before what refers to them
                _sync_directories([os.path.dirname(destination)])
            _publish(temporary, destination, given, overwrite=overwrite)
    except BaseException as error:  # Ctrl-C and a closed generator too
        external.discard()
        discard(temporary, error)
        raise
    if durable:
        with naming(given):
            _sync_directories([os.path.dirname(destination), *map(os.path.dirname, made)])


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


def _permissions(present: os.stat_result | None) -> int | None:
    """Give the permission bits to keep, if any."""
    if present is None or os.name == "nt":  # Windows knows read-only alone, and replaces no such file
        return None
    return present.st_mode & 0o777


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
            if error.errno in NOT_SUPPORTED:  # Windows, some network file systems, no permission to read
                continue
            error.add_note("The file is in place, but its name may not survive a power cut.")
            raise
