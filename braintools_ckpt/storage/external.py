"""Data of a checkpoint that stands in files beside it, and that other checkpoints have as well.

This is for file systems that cannot let two files share blocks of the disk (`FileSink.share`), but have hard links:
each checkpoint has such a file under a name of its own, so that it stays when the other checkpoints are deleted. In
the checkpoint itself there is a hole where the data would stand.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from .sinks import FileSink, OnBytes
from .sources import LocalSource
from .temporary import create, set_permissions, sync_file, temporary_path

#: How such a file is called: like the checkpoint that it belongs to, and a random number.
EXTERNAL_NAME = re.compile(r"([^/\\\0]+)\.shared-[0-9a-f]{8}", re.DOTALL)
#: Bytes of a checkpoint: where they begin in it, how many they are, and where they begin in the other file.
Range: TypeAlias = tuple[int, int, int]
#: What is added to a file begins at a multiple of this, the block of file systems.
_PAGE = 4096
#: Names of files have at most so many bytes.
_LONGEST = 255
#: So many bytes are copied at a time.
_PIECE = 1 << 20


def is_external_name(name: str) -> bool:
    """Tell whether such a file may be called so: by nothing that leads elsewhere, or that no file system takes."""
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return False
    # To Windows, a name with a colon may lead to another drive.
    return bool(EXTERNAL_NAME.fullmatch(name)) and length <= _LONGEST and os.path.basename(name) == name


class ExternalFiles:
    """The files beside one checkpoint that is being written.

    They have temporary names until `publish`, so that nothing is left of a save that fails or is killed.

    Parameters
    ----------
    destination : str
        Where the checkpoint will be.
    temporary : str
        Where it is being written.
    permissions : int or None
        The permission bits that it will have, if they are given.
    given : str
        What errors call it.
    durable : bool
        Bring the data to the disk.
    """

    def __init__(self, destination: str, temporary: str, permissions: int | None, given: str, *, durable: bool) -> None:
        self._destination = destination
        self._temporary = temporary
        self._permissions = permissions
        self._given = given
        self._durable = durable
        self._kept: dict[LocalSource, list[Range]] = {}
        self._new: FileSink | None = None
        self._new_ranges: list[Range] = []
        self._new_name = ""
        #: Temporary and lasting name of each file.
        self._names: dict[str, str] = {}
        self._checkpoint: os.stat_result | None = None
        self._open = contextlib.ExitStack()

    def possible(self) -> bool:
        """Tell whether the file system has hard links, and the name leaves room for others."""
        link: Callable[[str, str], None] | None = getattr(os, "link", None)
        if link is None or not is_external_name(os.path.basename(_random_name(self._destination))):
            return False
        probe = temporary_path(self._destination)
        try:
            link(self._temporary, probe)
        except OSError:
            return False
        with contextlib.suppress(OSError):  # a temporary file more or less
            os.unlink(probe)
        return True

    def keep(self, at: int, size: int, source: LocalSource, there: int) -> None:
        """Note that bytes of the checkpoint are those of a file that stands beside an earlier one."""
        self._kept.setdefault(source, []).append((at, size, there))

    def add(self, at: int, data: Iterable[memoryview]) -> None:
        """Write bytes of the checkpoint into a new file, which later ones can have as well."""
        new = self._new
        if new is None:
            self._new_name = self._named()
            fd = self._open.enter_context(create(self._new_name, self._permissions, self._given))
            new = self._new = FileSink(fd, name=self._given)
        new.skip(-new.position % _PAGE)
        there = new.position
        for piece in data:
            new.write(piece)
        self._new_ranges.append((at, new.position - there, there))

    def settle(self) -> list[tuple[str, list[Range]]]:
        """Give the names that the files will have, and what is in them; after this, nothing is added.

        Of an earlier file that is mostly unused, or has no more than all smaller ones together, the data is copied: so
        not much is kept that nobody needs, and there are never more files than their total size has bits.
        """
        files = {}
        by_use = {source: sum(size for _, size, _ in ranges) for source, ranges in self._kept.items()}
        smaller = 0 if self._new is None else self._new.position
        for source in sorted(by_use, key=by_use.__getitem__):
            worth = 2 * by_use[source] >= source.size and by_use[source] > smaller
            smaller += by_use[source]
            temporary = self._linked(source) if worth else None
            if temporary is not None:
                files[temporary] = self._kept[source]
                continue
            for at, size, there in self._kept[source]:
                self.add(at, _pieces(source, there, size))
        if self._new is not None:
            files[self._new_name] = self._new_ranges
        return [(os.path.basename(self._names[name]), ranges) for name, ranges in files.items()]

    def _named(self) -> str:
        """Give a new temporary name, and note what it will become."""
        temporary = temporary_path(self._destination)
        self._names[temporary] = _random_name(self._destination)
        return temporary

    def _linked(self, source: LocalSource) -> str | None:
        """Give a file of an earlier checkpoint another name; None where that cannot be, or it is another by now."""
        temporary = self._named()
        with contextlib.suppress(OSError):
            if self._durable:  # it may be that of a save that was not
                sync_file(source.fileno())
            os.utime(source.name)  # or its new name would seem to have been left by somebody long ago
            os.link(source.name, temporary)
            status = os.stat(temporary)
            if os.path.samestat(status, os.fstat(source.fileno())) and self._may_be_read_alike(status):
                return temporary
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        del self._names[temporary]
        return None

    def _may_be_read_alike(self, status: os.stat_result) -> bool:
        """Tell whether a file has the permissions that the checkpoint will have."""
        asked = os.stat(self._temporary).st_mode if self._permissions is None else self._permissions
        return (status.st_mode ^ asked) & 0o777 == 0

    def close(self) -> None:
        """Close the new file, if there is one, and bring it to the disk before."""
        if self._new is not None:
            set_permissions(self._new.fileno(), self._new_name, self._permissions)
            if self._durable:
                sync_file(self._new.fileno())
        self._open.close()

    def publish(self) -> bool:
        """Give the files their names, just before the checkpoint gets its own; tell whether there are any."""
        if self._names:
            self._checkpoint = os.stat(self._temporary)
        for temporary, name in self._names.items():
            os.rename(temporary, name)
        return bool(self._names)

    def discard(self) -> None:
        """Remove the files of a save that has failed."""
        with contextlib.suppress(OSError):
            self._open.close()
        if self._checkpoint is not None and self._is_published(self._checkpoint):
            return
        for name in itertools.chain.from_iterable(self._names.items()):
            with contextlib.suppress(OSError):
                os.unlink(name)

    def _is_published(self, checkpoint: os.stat_result) -> bool:
        """Tell whether the checkpoint has got its name all the same, and needs its files."""
        try:
            return os.path.samestat(os.stat(self._destination), checkpoint)
        except FileNotFoundError:
            return False
        except OSError:  # rather leave something than lose it
            return True


class CheckpointSink(FileSink):
    """A sink of a file beside which others may have a part of its data; see `FileSink` for the parameters."""

    def __init__(self, fd: int, external: ExternalFiles, *, name: str, on_bytes: OnBytes | None = None) -> None:
        super().__init__(fd, name=name, on_bytes=on_bytes)
        self.external = external


def _random_name(destination: str) -> str:
    return f"{destination}.shared-{secrets.token_hex(4)}"


def _pieces(source: LocalSource, at: int, size: int) -> Iterator[memoryview]:
    for start in range(0, size, _PIECE):
        yield memoryview(source.read(at + start, min(_PIECE, size - start)))
