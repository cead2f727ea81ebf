"""Where bytes go: a sink takes buffers and appends them, whole."""

from __future__ import annotations

import errno
import io
import os
import struct
from collections.abc import Callable
from types import ModuleType
from typing import Any, BinaryIO, Protocol

from .buffers import Buffer as Buffer
from .buffers import batches, drop

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

#: What Linux calls FICLONERANGE; where it has another number, the call is refused.
_CLONE_RANGE = 0x4020940D
#: Called with the number of bytes after each piece that was written.
OnBytes = Callable[[int], None]


class Sink(Protocol):
    """A place that bytes are appended to.

    Attributes
    ----------
    position : int
        Bytes written so far.
    """

    position: int

    def write(self, *buffers: Buffer) -> None:
        """Append all buffers, whole and in order."""
        ...


class _PieceSink:
    """Feeds the buffers, batch by batch, to ``_write_some`` until all of them are written."""

    def __init__(self, name: str | None, on_bytes: OnBytes | None) -> None:
        self.position = 0
        self._name = name
        self._on_bytes = on_bytes

    def _write_some(self, batch: list[memoryview]) -> int:
        raise NotImplementedError

    def write(self, *buffers: Buffer) -> None:
        """Append all buffers, whole and in order.

        Parameters
        ----------
        *buffers : bytes-like
            C-contiguous buffers; none of them is kept after the call.
        """
        for batch in batches(buffers):
            left = batch
            while left:
                written = self._write_some(left)
                self._check(written, sum(map(len, left)))
                self.position += written
                left = drop(left, written)
                if self._on_bytes is not None:
                    self._on_bytes(written)

    def _check(self, written: int, asked: int) -> None:
        # Zero would be tried again for ever; more than was asked means that the count cannot be trusted.
        if not 0 < written <= asked:
            raise OSError(errno.EIO, f"Writing {asked} bytes reported {written} written bytes", self._name)


class FileSink(_PieceSink):
    """A sink over an open file descriptor, which stays the caller's to close.

    Parameters
    ----------
    fd : int
        A descriptor that is open for writing.
    name : str, optional
        The path that errors name.
    on_bytes : callable, optional
        Called with the number of bytes after each piece that was written.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryFile() as file:
    ...     sink = FileSink(file.fileno())
    ...     sink.write(b"two ", b"buffers")
    ...     sink.position
    11
    """

    def __init__(self, fd: int, *, name: str | None = None, on_bytes: OnBytes | None = None) -> None:
        super().__init__(name, on_bytes)
        self._fd = fd

    def fileno(self) -> int:
        """Give the file's descriptor."""
        return self._fd

    def _write_some(self, batch: list[memoryview]) -> int:
        writev: Callable[[int, list[memoryview]], int] | None = getattr(os, "writev", None)
        try:  # a signal is no error here: Python tries again after EINTR (PEP 475)
            if writev is None or len(batch) == 1:
                return os.write(self._fd, batch[0])
            return writev(self._fd, batch)
        except OSError as error:
            if self._name is not None:
                error.filename = self._name
            raise

    def share(self, fd: int, offset: int, size: int) -> bool:
        """Append bytes of another file in such a way that both share them on the disk, until one is changed there.

        Parameters
        ----------
        fd : int
            The other file, open for reading.
        offset, size : int
            Its bytes, which begin and end at multiples of the file system's block size; so does what was written.

        Returns
        -------
        bool
            False where the file system (or the platform) cannot do that: nothing was appended then.
        """
        if fcntl is None:
            return False
        try:
            fcntl.ioctl(self._fd, _CLONE_RANGE, struct.pack("qQQQ", fd, offset, size, self.position))
        except OSError:  # whatever it is, writing will tell
            return False
        self.skip(size)
        return True

    def skip(self, size: int) -> None:
        """Leave out bytes: what is written next comes after them, and a hole is left where nothing stands yet."""
        os.lseek(self._fd, size, os.SEEK_CUR)
        self.position += size
        if self._on_bytes is not None:
            self._on_bytes(size)


class BytesSink:
    """A sink that collects what it is given in memory.

    Parameters
    ----------
    on_bytes : callable, optional
        Called with the number of bytes after each call of ``write``.

    Examples
    --------
    >>> sink = BytesSink()
    >>> sink.write(b"ab", bytearray(b"cd"))
    >>> sink.getvalue()
    b'abcd'
    """

    def __init__(self, *, on_bytes: OnBytes | None = None) -> None:
        self.position = 0
        self._on_bytes = on_bytes
        self._collected = io.BytesIO()

    def write(self, *buffers: Buffer) -> None:
        """Append a copy of all buffers."""
        for batch in batches(buffers):
            for view in batch:
                written = self._collected.write(view)
                self.position += written
                if self._on_bytes is not None:
                    self._on_bytes(written)

    def getvalue(self) -> bytes:
        """Give all bytes written so far."""
        return self._collected.getvalue()


class StreamSink(_PieceSink):
    """A sink over a binary file object, which stays the caller's to flush and close.

    Parameters
    ----------
    file : binary file object
        Anything with a ``write`` that takes bytes. It may write less than it is given and return the count.
    on_bytes : callable, optional
        Called with the number of bytes after each piece that was written.

    Raises
    ------
    TypeError
        The object has no ``write``, or is a text file.

    Examples
    --------
    >>> file = io.BytesIO()
    >>> StreamSink(file).write(b"some", b"thing")
    >>> file.getvalue()
    b'something'
    """

    def __init__(self, file: BinaryIO, *, on_bytes: OnBytes | None = None) -> None:
        if isinstance(file, io.TextIOBase):
            raise TypeError("Cannot write a checkpoint to a text file. Open it with mode 'wb'.")
        if not callable(getattr(file, "write", None)):
            raise TypeError(f"Expected a binary file object with a write method, got {type(file).__name__}.")
        super().__init__(file_name(file), on_bytes)
        self._file = file

    def _write_some(self, batch: list[memoryview]) -> int:
        written: int | None = self._file.write(batch[0])
        if written is not None:
            return written
        # In the io module None means that nothing could be written now; a plain object just returns nothing.
        if isinstance(self._file, io.RawIOBase):
            raise BlockingIOError(errno.EAGAIN, "The non-blocking file takes no more bytes now", self._name)
        return len(batch[0])


def file_name(file: Any) -> str:
    """Name a file object in a message: its path where it knows one, else its type."""
    name = getattr(file, "name", None)
    return name if isinstance(name, str) else f"<{type(file).__name__}>"
