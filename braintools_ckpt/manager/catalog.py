"""Which checkpoints a directory holds. The directory is the only state: whatever happens there by hand is seen."""

from __future__ import annotations

import logging
import math
import operator
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..errors import CheckpointError, CorruptCheckpointError, IncompleteCheckpointError, UnsupportedVersionError
from ..format import reader
from ..opening import open_document, read_metadata
from ..storage.sources import LocalSource, Source
from .names import StepNames
from .policies import StepInfo

_log = logging.getLogger("braintools_ckpt")
#: How often a directory is looked at in which nothing was left. (A link that leads nowhere is never there.)
_TRIES = 5
#: What the file system says of a file, by which it is known again.
_Mark: TypeAlias = tuple[int, int, int, int]
#: How a file of MessagePack begins that is a map, as those of braintools.file and flax are.
_MAPS = frozenset({*range(0x80, 0x90), 0xDE, 0xDF})


@dataclass(frozen=True)
class Entry:
    """A file with the name of a step: a valid checkpoint, of which ``info`` tells, or what is wrong with it.

    ``damaged`` says that it is a file of ours which is not as it was written, ``incomplete`` that a file is missing
    which has a part of its data; ``external`` are the names of such files.
    """

    step: int
    path: str
    info: StepInfo | None = None
    problem: str = ""
    damaged: bool = False
    incomplete: bool = False
    external: tuple[str, ...] = ()

    def error(self) -> CorruptCheckpointError:
        """Make the error that tells of the problem."""
        return (IncompleteCheckpointError if self.incomplete else CorruptCheckpointError)(self.problem)


_Known: TypeAlias = dict[str, tuple[_Mark | None, Entry]]


class Catalog:
    """The files of a directory that are called like steps; one that was read is read again only if it has changed.

    Parameters
    ----------
    directory : str
        Where they are.
    names : StepNames
        How they are called.
    """

    def __init__(self, directory: str, names: StepNames) -> None:
        self.directory = directory
        self.names = names
        #: No lock keeps several threads from it, as a signal handler may save in the midst of anything: what one of
        #: them misses is read again. It is never gone over, only asked.
        self._known: _Known = {}
        self._told: set[str] = set()

    def path(self, step: int) -> str:
        """Give the path of a step."""
        return os.path.join(self.directory, self.names.of(step))

    def entries(self, *, trusting: bool = False) -> list[Entry]:
        """Look at the directory, and give what it holds, the lowest step first.

        Parameters
        ----------
        trusting : bool
            Take it that files have not changed whose names and numbers (those of the file system) are what they were.
            To list these takes little time, to look at each file much.
        """
        for attempt in range(_TRIES):
            entries, vanished = self._list(trusting)
            # Where another process saves and deletes, one look may miss both what was there and what has come.
            if any(entry.info is not None for entry in entries) or (attempt and not vanished):
                break
        return sorted(entries, key=operator.attrgetter("step"))

    def _list(self, trusting: bool) -> tuple[list[Entry], bool]:
        """Look at the directory; tell whether a file was gone when it was looked at."""
        found: _Known = {}
        vanished = False
        for name, inode in self.files():
            entry = self._known.get(name)
            if not (trusting and entry is not None and _has_number(entry[0], inode)):
                step = self.names.step(name)
                entry = None if step is None else self._look(name, step)
                vanished |= step is not None and entry is None
            if entry is not None:
                found[name] = entry
        entries = [entry for _, entry in found.values()]  # before another thread can add to it
        self._known = found
        return entries, vanished

    def infos(self, *, trusting: bool = False) -> list[StepInfo]:
        """Give what is known of all valid checkpoints, the lowest step first; as `entries` does."""
        return [entry.info for entry in self.entries(trusting=trusting) if entry.info is not None]

    def look(self, step: int) -> Entry | None:
        """Look at the file of one step; None if there is none."""
        name = self.names.of(step)
        found = self._look(name, step)
        if found is None:
            self._known.pop(name, None)
            return None
        self._known[name] = found
        return found[1]

    def files(self) -> list[tuple[str, int]]:
        """Give the names in the directory, and the numbers by which the file system knows the files."""
        try:
            with os.scandir(self.directory) as files:
                return [(file.name, file.inode()) for file in files]
        except FileNotFoundError:
            return []

    def _look(self, name: str, step: int) -> tuple[_Mark | None, Entry] | None:
        path = os.path.join(self.directory, name)
        try:
            status = os.stat(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            return None, self._wrong(name, Entry(step, path, problem=f"it cannot be looked at: {error}"))
        mark = _mark(status)
        known = self._known.get(name)
        if known is not None and mark is not None and known[0] == mark:
            return known
        if not stat.S_ISREG(status.st_mode):
            return mark, self._wrong(name, Entry(step, path, problem="it is no file"))
        try:
            return mark, _read(path, step, status)
        except FileNotFoundError:
            return None
        except UnsupportedVersionError as error:
            return mark, self._wrong(name, Entry(step, path, problem=str(error)))
        except IncompleteCheckpointError as error:  # what is missing may come
            return None, self._wrong(name, Entry(step, path, problem=str(error), incomplete=True))
        except (CheckpointError, ValueError) as error:
            damaged = isinstance(error, CorruptCheckpointError) and _is_ours(path)
            return mark, self._wrong(name, Entry(step, path, problem=str(error), damaged=damaged))
        except OSError as error:  # it may be another time
            return None, self._wrong(name, Entry(step, path, problem=f"it cannot be read: {error}"))

    def _wrong(self, name: str, entry: Entry) -> Entry:
        if name not in self._told:  # a file that is being copied is another one at each look
            self._told.add(name)
            _log.warning("%s is left out: %s", entry.path, entry.problem)
        return entry


def _mark(status: os.stat_result) -> _Mark | None:
    """Give what a file is known by; None as long as another change might leave all of this as it is.

    The clocks of file systems have steps of some milliseconds, or of up to two seconds, which are whole milliseconds.
    """
    changed = max(status.st_mtime_ns, status.st_ctime_ns)
    step = 2_000_000_000 if changed % 1_000_000 == 0 else 20_000_000
    if not changed < time.time_ns() - step:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _has_number(mark: _Mark | None, inode: int) -> bool:
    return mark is not None and mark[0] == inode


def _is_ours(path: str) -> bool:
    try:
        with LocalSource(path) as source:
            return reader.is_checkpoint(source)
    except (CheckpointError, OSError):
        return False


def _read(path: str, step: int, status: os.stat_result) -> Entry:
    with LocalSource(path) as source:  # not by open_checkpoint, which waits for saves that are on their way
        metadata = _metadata(source)
        external = tuple(source.all_beside)
    if external and os.path.islink(path):  # those of a link are its target's
        external = ()
    metrics, own, when = (metadata.get(key) for key in ("metrics", "metadata", "time"))
    saved = _finite(when)
    info = StepInfo(
        step=step,
        path=path,
        time=status.st_mtime if saved is None else saved,
        metrics=_numbers(metrics) if isinstance(metrics, Mapping) else {},
        metadata=dict(own) if isinstance(own, Mapping) else {},
        nbytes=status.st_size,
    )
    return Entry(step, path, info, external=external)


def _metadata(source: Source) -> Mapping[str, Any]:
    if reader.is_checkpoint(source):
        return read_metadata(open_document(source))
    if source.size and source.read(0, 1)[0] in _MAPS:  # of braintools.file or flax, which have no metadata
        return {}
    raise CorruptCheckpointError(f"{source.name} is not a checkpoint.")


def _numbers(metrics: Mapping[Any, Any]) -> dict[str, float]:
    numbers = ((str(name), _number(value)) for name, value in metrics.items())
    return {name: number for name, number in numbers if number is not None}


def _number(value: Any) -> float | None:
    """Give a number of a file as a float, or None if it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _finite(value: Any) -> float | None:
    number = _number(value)
    return number if number is not None and math.isfinite(number) else None
