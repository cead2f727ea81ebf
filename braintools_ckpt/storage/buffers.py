"""Caller's buffers as flat views, cut into pieces that one system call may take."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from typing_extensions import Buffer as Buffer
else:  # a name to import at runtime as well; Python 3.11 has no collections.abc.Buffer yet
    Buffer = bytes | bytearray | memoryview

#: The most bytes of one system call: small enough that Ctrl-C gets through, large enough to cost nothing.
PIECE_BYTES = 64 * 1024 * 1024


def _most_buffers() -> int:
    sysconf: Callable[[str], int] | None = getattr(os, "sysconf", None)
    try:
        limit = -1 if sysconf is None else sysconf("SC_IOV_MAX")
    except (ValueError, OSError):  # the platform does not tell
        limit = -1
    return limit if limit > 0 else 16  # what POSIX promises at least


#: The most buffers of one vectored system call.
MOST_BUFFERS = _most_buffers()


def flat(buffer: Buffer) -> memoryview:
    """View a C-contiguous buffer of any format as bytes, without a copy.

    Parameters
    ----------
    buffer : bytes-like
        Anything with the buffer protocol, numpy arrays of every dtype included.

    Returns
    -------
    memoryview
        One dimension of bytes (format ``B``), writable where the buffer is.

    Raises
    ------
    ValueError
        The buffer is not C-contiguous.

    Examples
    --------
    >>> flat(np.ones((2, 2), "float32")).nbytes
    16
    """
    if isinstance(buffer, memoryview):
        if buffer.format == "B" and buffer.ndim == 1 and buffer.c_contiguous:
            return buffer
        if not buffer.c_contiguous:
            raise ValueError("A buffer must be C-contiguous to be written or filled as one run of bytes.")
        if buffer.nbytes == 0:
            return memoryview(b"")
    elif isinstance(buffer, (bytes, bytearray)):
        return memoryview(buffer)
    # memoryview.cast knows native formats alone; numpy asks for plain bytes, which every exporter can give.
    exporter: Any = buffer  # the stubs of Python 3.11 do not know whose buffers these are
    octets: Any = np.frombuffer(exporter, np.uint8)
    return memoryview(octets)


def batches(buffers: Iterable[Buffer]) -> Iterator[list[memoryview]]:
    """Cut and group buffers so that each group fits one vectored system call; empty buffers vanish."""
    batch: list[memoryview] = []
    nbytes = 0
    for piece in _pieces(buffers):
        if batch and (len(batch) == MOST_BUFFERS or nbytes + len(piece) > PIECE_BYTES):
            yield batch
            batch, nbytes = [], 0
        batch.append(piece)
        nbytes += len(piece)
    if batch:
        yield batch


def _pieces(buffers: Iterable[Buffer]) -> Iterator[memoryview]:
    for buffer in buffers:
        view = flat(buffer)
        for start in range(0, len(view), PIECE_BYTES):
            yield view[start : start + PIECE_BYTES]


def drop(batch: list[memoryview], nbytes: int) -> list[memoryview]:
    """Give what is left of a batch after its first ``nbytes`` bytes."""
    for position, view in enumerate(batch):
        if nbytes < len(view):
            return [view[nbytes:], *batch[position + 1 :]]
        nbytes -= len(view)
    return []
