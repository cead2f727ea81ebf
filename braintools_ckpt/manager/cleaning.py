"""What of a directory is not needed any more: checkpoints, files beside them, and what killed processes have left."""

from __future__ import annotations

import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from ..errors import CorruptCheckpointError, InvalidCheckpointPath, UnsupportedVersionError
from ..format import layout, reader
from ..storage.external import EXTERNAL_NAME
from ..storage.sources import LocalSource
from ..storage.temporary import TEMPORARY_NAME, clean_temporaries, temporary_path
from .catalog import Catalog, Entry

_log = logging.getLogger("braintools_ckpt")
#: Seconds for which what cannot be read may be a file that is being copied, and what nothing refers to may yet be.
_LEAST_AGE = 3600.0
#: Seconds after which a file that has not even a header is no copy that has just been begun.
_BEGINNING = 10.0
#: How files are called that nobody has made by copying a checkpoint: the last ones are deleted, but still open.
_NO_CHECKPOINT = re.compile(rf"{EXTERNAL_NAME.pattern}|{TEMPORARY_NAME.pattern}|\.nfs[0-9a-f]+", re.DOTALL)


class Cleaner:
    """Deletes checkpoints of a directory, with what only they have of the files beside them.

    Who else refers to such a file is looked up in all checkpoints of the directory, each time: whoever made them, by a
    save, by copying or by renaming, they stay whole. If that cannot be found out, nothing is deleted for now.

    Parameters
    ----------
    catalog : Catalog
        The directory.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        #: Names of files that had data of what is gone. (No lock: a signal handler may save in the midst of anything.)
        self._waiting: set[str] = set()
        self._told: set[str] = set()
        #: What files refer to that are not called like steps, or are not whole: by name, with what they are known by.
        self._others: dict[str, tuple[tuple[int, ...], list[str]]] = {}

    @contextmanager
    def deleting(self) -> Iterator[Callable[[Entry], None]]:
        """Give a function that deletes a checkpoint; what only they had is deleted when the block ends.

        The function raises FileNotFoundError where there is none any more.
        """
        aside: list[str] = []

        def delete(entry: Entry) -> None:
            external = self._external(entry) or self._called_like(entry)
            if not external:
                os.unlink(entry.path)
                return
            # Under this name nobody finds it without its data; and when the process is killed here, `clean` goes on.
            with suppress(OSError):
                os.utime(entry.path)  # or it would seem to have been left by somebody long ago
            os.rename(entry.path, temporary := temporary_path(entry.path))
            aside.append(temporary)
            self._waiting.update(external)

        try:
            yield delete
        finally:
            self._finish(aside)

    @contextmanager
    def replacing(self, entry: Entry | None) -> Iterator[None]:
        """Delete what had data of a checkpoint that is replaced in the block."""
        external = [] if entry is None else self._external(entry)
        if entry is None or not external:
            yield
            return
        aside = temporary_path(entry.path)
        with suppress(OSError):  # by this, `clean` finds what is to be deleted when the process is killed
            os.utime(entry.path)
            os.link(entry.path, aside)
        try:
            yield
        finally:  # if it has not been replaced, it is seen to refer to them
            self._waiting.update(external)
            self._finish([aside])

    def clean(self) -> None:
        """Remove what was left by processes that were killed while they saved or deleted."""
        clean_temporaries(self._catalog.directory, first=self._release_for)
        left = [name for name, _ in self._catalog.files() if EXTERNAL_NAME.fullmatch(name)]
        referred = self._referred() if left else None
        if referred is not None:
            self._tell_unreferred(self._path(name) for name in left if name not in referred)

    def _release_for(self, temporary: str) -> None:
        """Delete what a checkpoint refers to that has a temporary name: it was being saved, or deleted."""
        with suppress(InvalidCheckpointPath, OSError):
            self._waiting.update(_names_in(temporary))
            self._finish([])

    def _tell_unreferred(self, paths: Iterable[str]) -> None:
        """Tell of files that no checkpoint refers to: they may be the last of one that somebody has moved elsewhere."""
        old = []
        for path in paths:
            with suppress(OSError):
                status = os.stat(path)
                if status.st_mtime < time.time() - _LEAST_AGE:  # of others, a save may be about to refer to them
                    old.append(path)
        if old:
            _log.warning(
                "In %s there is data of checkpoints that are not there any more: %s%s. It may be deleted if these are "
                "not to be put back.",
                self._catalog.directory,
                os.path.basename(old[0]),
                f" and {len(old) - 1} more" if len(old) > 1 else "",
            )

    # What may go.

    def _finish(self, aside: list[str]) -> None:
        """Remove what was set aside, but first what only that had; what cannot be is tried again the next time."""
        names = set(self._waiting)
        try:
            referred = self._referred() if names else None
        except OSError as error:
            _log.warning("It cannot be found out what may be deleted: %s", error)
            referred = None
        if referred is not None:
            self._waiting.difference_update(names)
            for name in names - referred:
                self._unlink(name)
        for path in aside:
            with suppress(OSError):  # another process may have taken it for what was left
                os.unlink(path)

    def _unlink(self, name: str) -> None:
        try:
            os.unlink(self._path(name))
        except FileNotFoundError:
            pass
        except OSError as error:
            self._waiting.add(name)
            _log.warning("%s could not be deleted: %s", self._path(name), error)

    def _path(self, name: str) -> str:
        return os.path.join(self._catalog.directory, name)

    def _external(self, entry: Entry) -> list[str]:
        """Give the names of the files that have data of a checkpoint."""
        if entry.info is not None:
            return list(entry.external)
        return self._names_of(os.path.basename(entry.path)) or []

    def _called_like(self, entry: Entry) -> list[str]:
        """Give the files that are called like a checkpoint, if it does not tell them any more."""
        if entry.info is not None or os.path.islink(entry.path):
            return []
        own = f"{os.path.basename(entry.path)}.shared-"
        return [name for name, _ in self._catalog.files() if EXTERNAL_NAME.fullmatch(name) and name.startswith(own)]

    def _referred(self) -> set[str] | None:
        """Give the names of the files that have data of checkpoints in the directory; None if that is unknown."""
        whole = {os.path.basename(entry.path): entry for entry in self._catalog.entries() if entry.info is not None}
        referred: set[str] = set()
        for name, _ in self._catalog.files():
            if name in whole:
                referred.update(whole[name].external)
            elif not _NO_CHECKPOINT.fullmatch(name):
                names = self._names_of(name)
                if names is None:
                    self._tell_unknown(name)
                    return None
                referred.update(names)
        return referred

    def _tell_unknown(self, name: str) -> None:
        if name not in self._told:
            self._told.add(name)
            _log.warning(
                "%s cannot be read now. As long as it may be a copy of a checkpoint, no file beside is deleted.",
                self._path(name),
            )

    def _names_of(self, name: str) -> list[str] | None:
        """Give the names that a file refers to; None if that is unknown."""
        path = self._path(name)
        try:
            status = os.lstat(path)
            age = time.time() - status.st_mtime
            is_young = age < _LEAST_AGE
            if stat.S_ISLNK(status.st_mode):  # those of a link are its target's
                return []
            if age < _BEGINNING and status.st_size < layout.HEADER_SIZE:
                return None
            mark = status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
            known = self._others.get(name)
            if known is None or known[0] != mark or is_young:
                known = self._others[name] = mark, _names_in(path)
        except FileNotFoundError:
            return []
        except UnsupportedVersionError:  # it may refer to anything
            return None
        except CorruptCheckpointError:  # without its index it cannot be read, with all its data; but it may be growing
            return None if is_young else []
        except InvalidCheckpointPath:  # no file at all
            return []
        except OSError:
            return None
        return known[1]


def _names_in(path: str) -> list[str]:
    """Read the names of the files that have data of a checkpoint, if it is one."""
    with LocalSource(path) as source:
        return reader.external_names(source) if reader.is_checkpoint(source) else []
