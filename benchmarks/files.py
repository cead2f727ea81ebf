"""Files and folders of the benchmarks: sizes, removal, syncing, warming the page cache."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def files_of(path: Path) -> Iterator[Path]:
    """Yield a file itself, or all files of a folder."""
    if path.is_dir():
        yield from (file for file in sorted(path.rglob("*")) if file.is_file())
    elif path.exists():
        yield path


def size_of(path: Path) -> int:
    """Give the bytes of a file or of all files of a folder."""
    return sum(file.stat().st_size for file in files_of(path))


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Bring what was written to the disk: files and the folder that names them."""
    for file in [*files_of(path), path.parent]:
        fd = os.open(file, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def warm(path: Path) -> None:
    """Read everything once, so that it lies in the page cache."""
    buffer = bytearray(1 << 20)
    for file in files_of(path):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def write_all(fd: int, data: memoryview) -> None:
    """Write all bytes; the kernel takes at most 2 GiB at once."""
    while data:
        data = data[os.write(fd, data) :]


def read_all(fd: int, out: memoryview, offset: int = 0) -> None:
    """Fill a buffer from a place of a file."""
    while out:
        count = os.preadv(fd, [out], offset)
        if not count:
            raise EOFError
        out, offset = out[count:], offset + count
