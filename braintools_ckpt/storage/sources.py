"""Where bytes come from: a source is read by position, from many threads at once."""

from __future__ import annotations

import difflib
import io
import itertools
import mmap
import os
import platform
import stat
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

from ..errors import CheckpointNotFoundError, CorruptCheckpointError, InvalidCheckpointPath
from .buffers import Buffer, batches, drop, flat
from .sinks import OnBytes, file_name
from .temporary import naming

# Python 3.11 does not name this flag of Linux, whose value depends on the processor.
_NORESERVE: int = getattr(mmap, "MAP_NORESERVE", 0x4000 if platform.machine() in ("x86_64", "aarch64") else 0)


class Source(Protocol):
    """Bytes that are read by position.

    Attributes
    ----------
    name : str
        How messages call it.
    size : int
        Number of bytes, fixed when the source is opened.
    on_bytes : callable or None
        Called with the number of bytes after each read.
    """

    name: str
    size: int
    on_bytes: OnBytes | None

    def read_into(self, offset: int, *buffers: memoryview) -> None:
        """Fill all buffers, in order, with the bytes from ``offset`` on."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Give ``size`` bytes from ``offset`` on."""
        ...

    def map(self) -> memoryview:
        """Give a writable view of everything; what is written to it stays in memory."""
        ...

    def mapped(self) -> Callable[[int, int], memoryview]:
        """Map everything; give what gives such views of so many bytes from an offset on."""
        ...

    def close(self) -> None:
        """Close the source; views that ``map`` gave stay valid."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...


class BatchSource:
    """Checks ranges and fills buffers, batch by batch, with ``_read_some``."""

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self.on_bytes: OnBytes | None = None

    def _read_some(self, offset: int, batch: list[memoryview]) -> int:
        raise NotImplementedError

    def close(self) -> None:
        """Release what the source holds; views that ``map`` gave stay valid."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        self.close()

    def read_into(self, offset: int, *buffers: memoryview) -> None:
        """Fill all buffers, in order, with the bytes from ``offset`` on. Safe in many threads at once.

        Parameters
        ----------
        offset : int
            Where to begin, in bytes.
        *buffers : memoryview
            Writable and C-contiguous.

        Raises
        ------
        CorruptCheckpointError
            The source ends before the buffers are full.
        """
        self._check_range(offset, sum(buffer.nbytes for buffer in buffers))
        for batch in batches(buffers):
            left = batch
            while left:
                count = self._read_some(offset, left)
                if count <= 0:  # the file was cut after it was opened
                    raise self._ends_early(offset, sum(map(len, left)), offset)
                offset += count
                left = drop(left, count)
                if self.on_bytes is not None:
                    self.on_bytes(count)

    def read(self, offset: int, size: int) -> bytes:
        """Give ``size`` bytes from ``offset`` on. Safe in many threads at once.

        Parameters
        ----------
        offset, size : int
            The range, in bytes.

        Returns
        -------
        bytes
            Exactly ``size`` bytes.

        Raises
        ------
        CorruptCheckpointError
            The source ends before.
        """
        self._check_range(offset, size)  # before anything is allocated
        data = bytearray(size)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def map(self) -> memoryview:
        """Give a writable view of everything; here a copy in memory.

        Returns
        -------
        memoryview
            All bytes, at an address that is a multiple of the page size.
        """
        if self.size == 0:
            return memoryview(bytearray())
        view = memoryview(mmap.mmap(-1, self.size))  # anonymous memory: aligned, so arrays over it need no copy
        self.read_into(0, view)
        return view

    def mapped(self) -> Callable[[int, int], memoryview]:
        """Map everything; give what gives writable views of so many bytes from an offset on."""
        view = self.map()
        return lambda offset, size: view[offset : offset + size]

    def _check_range(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise self._ends_early(offset, size, self.size)

    def _ends_early(self, offset: int, size: int, end: int) -> CorruptCheckpointError:
        return CorruptCheckpointError(
            f"{self.name} ends early: expected {size} bytes at offset {offset}, but it ends at offset {end}. "
            "It was cut short, or changed while it was read."
        )


class LocalSource(BatchSource):
    """A file of the local file system.

    Parameters
    ----------
    path : str or os.PathLike
        An existing file.

    Raises
    ------
    CheckpointNotFoundError
        Nothing exists at the path; the message names files with similar names.
    InvalidCheckpointPath
        The path is a directory, or no regular file.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = pathlib.Path(directory, "data")
    ...     _ = path.write_bytes(b"0123456789")
    ...     with LocalSource(path) as source:
    ...         source.size, source.read(2, 3)
    (10, b'234')
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._lock = threading.Lock()
        self._beside: dict[str, LocalSource] = {}
        name = os.fsdecode(path)
        with naming(name):
            self._file = _open_regular(name)
            try:
                size = os.fstat(self._file.fileno()).st_size
            except BaseException:
                self._file.close()
                raise
        super().__init__(name, size)

    def is_current(self) -> bool:
        """Tell whether the open file is what stands at the path now."""
        try:
            return os.path.samestat(os.stat(self.name), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False

    def beside(self, name: str) -> LocalSource:
        """Open a file of the same directory, which is closed with this one.

        Raises
        ------
        CheckpointNotFoundError
            There is none of that name.
        InvalidCheckpointPath
            It is no regular file, or a symbolic link, which could lead anywhere.
        """
        if name not in self._beside:
            path = os.path.join(os.path.dirname(os.path.realpath(self.name)), name)
            if os.path.islink(path):
                raise InvalidCheckpointPath(f'Cannot load "{path}": it is a symbolic link.')
            opened = self._beside[name] = LocalSource(path)
            opened.on_bytes = self.on_bytes
        return self._beside[name]

    @property
    def all_beside(self) -> list[str]:
        """The names of the files that `beside` has opened."""
        return list(self._beside)

    def _read_some(self, offset: int, batch: list[memoryview]) -> int:
        try:
            return self._read_somehow(offset, batch)
        except OSError as error:
            error.filename = self.name
            raise

    def _read_somehow(self, offset: int, batch: list[memoryview]) -> int:
        # Positional reads need no lock; Windows has neither of them, and macOS only lately preadv.
        preadv: Callable[[int, list[memoryview], int], int] | None = getattr(os, "preadv", None)
        if preadv is not None:
            return preadv(self._file.fileno(), batch, offset)
        pread: Callable[[int, int, int], bytes] | None = getattr(os, "pread", None)
        if pread is not None:
            data = pread(self._file.fileno(), len(batch[0]), offset)
            batch[0][: len(data)] = data
            return len(data)
        with self._lock:
            self._file.seek(offset)
            return self._file.readinto(batch[0])

    def fileno(self) -> int:
        """Give the file's descriptor."""
        return self._file.fileno()

    def map(self) -> memoryview:
        """Give a writable copy-on-write view of the whole file: nothing is read until it is touched.

        Returns
        -------
        memoryview
            All bytes. It stays valid when the source is closed and when the file is replaced or removed; but
            a process that cuts the file short in place takes the bytes away (``SIGBUS`` on POSIX systems).
        """
        if self.size == 0:  # an empty file cannot be mapped
            return memoryview(bytearray())
        try:
            with naming(self.name):
                return memoryview(_map_copy_on_write(self._file.fileno(), self.size))
        except ValueError:  # longer than the file, which was cut after it was opened
            raise self._ends_early(0, self.size, os.fstat(self._file.fileno()).st_size) from None

    def close(self) -> None:
        """Close the file; views that ``map`` gave stay valid."""
        self._file.close()
        while self._beside:
            self._beside.popitem()[1].close()


def _map_copy_on_write(fd: int, size: int) -> mmap.mmap:
    if sys.platform == "linux":
        # Linux refuses a private mapping that is larger than the memory, unless told to reserve none for it.
        flags = mmap.MAP_PRIVATE | _NORESERVE
        return mmap.mmap(fd, size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return mmap.mmap(fd, size, access=mmap.ACCESS_COPY)


def _open_regular(path: str) -> io.FileIO:
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise InvalidCheckpointPath(f'Cannot load "{path}": it is a directory. Pass the path of a checkpoint file.')
        if not stat.S_ISREG(mode):  # opening a pipe would wait for its writer, for ever
            raise InvalidCheckpointPath(
                f'Cannot load "{path}": it is not a regular file. Pass open("{path}", "rb") instead.'
            )
        return io.FileIO(path, "rb")
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointNotFoundError(path, _hint(path)) from None


def _hint(path: str) -> str:
    if os.path.islink(path):
        return f". It is a symbolic link to '{os.readlink(path)}', which does not exist."
    directory, name = os.path.split(path)
    try:
        with os.scandir(directory or ".") as entries:
            names = [entry.name for entry in itertools.islice(entries, 1000)]
    except FileNotFoundError:
        return f". The directory '{directory}' does not exist."
    except OSError:  # it may not be listed: then there is nothing to suggest
        return ""
    similar = difflib.get_close_matches(name, (name for name in names if not name.startswith(".")))
    return f". Did you mean {' or '.join(map(repr, similar))}?" if similar else ""


class BufferSource(BatchSource):
    """Bytes in memory, read where they lie.

    Parameters
    ----------
    buffer : bytes-like
        C-contiguous. It is not copied and must not change while the source is used.
    name : str, optional
        How messages call it.

    Examples
    --------
    >>> BufferSource(b"0123456789").read(2, 3)
    b'234'
    """

    def __init__(self, buffer: Buffer, name: str = "<bytes>") -> None:
        self._view = flat(buffer)
        super().__init__(name, len(self._view))

    def _read_some(self, offset: int, batch: list[memoryview]) -> int:
        count = len(batch[0])
        batch[0][:] = self._view[offset : offset + count]
        return count


class StreamSource(BatchSource):
    """A seekable binary file object, from its present position to its end.

    Parameters
    ----------
    file : binary file object
        It stays the caller's to close. Nobody else may move its position while the source is used.

    Examples
    --------
    >>> file = io.BytesIO(b"skipped|0123456789")
    >>> _ = file.seek(8)
    >>> StreamSource(file).read(2, 3)
    b'234'
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._start = file.tell()
        super().__init__(file_name(file), max(0, file.seek(0, os.SEEK_END) - self._start))
        file.seek(self._start)

    def _read_some(self, offset: int, batch: list[memoryview]) -> int:
        readinto: Callable[[memoryview], int | None] | None = getattr(self._file, "readinto", None)
        with self._lock:
            self._file.seek(self._start + offset)
            if readinto is not None:
                count = readinto(batch[0])
            else:
                data = self._file.read(len(batch[0]))
                batch[0][: len(data)] = data
                count = len(data)
        if count is None:
            raise BlockingIOError(f"Cannot read {self.name}: it is non-blocking and has no bytes yet.")
        return count


def open_source(file: str | os.PathLike[str] | BinaryIO) -> Source:
    """Open a path or a binary file object for reading by position.

    Parameters
    ----------
    file : str, os.PathLike or binary file object
        What to read. A file object that cannot seek is read to its end at once.

    Returns
    -------
    Source
        A context manager, to be closed after use. A file object of the caller stays open.

    Raises
    ------
    CheckpointNotFoundError
        Nothing exists at the path.
    InvalidCheckpointPath
        The path is a directory, or no regular file.
    TypeError
        The argument is neither a path nor a binary file object.

    Examples
    --------
    >>> open_source(io.BytesIO(b"0123456789")).read(2, 3)
    b'234'
    """
    if isinstance(file, (str, os.PathLike)):
        return LocalSource(file)
    if isinstance(file, io.TextIOBase):
        raise TypeError("Cannot read a checkpoint from a text file. Open it with mode 'rb'.")
    if not callable(getattr(file, "read", None)):
        raise TypeError(
            f"Expected a path or a binary file object, got {type(file).__name__}. Wrap bytes in io.BytesIO."
        )
    return StreamSource(file) if _can_seek(file) else BufferSource(file.read(), file_name(file))


def _can_seek(file: Any) -> bool:
    seekable = getattr(file, "seekable", None)
    return bool(seekable()) if callable(seekable) else False
