"""What of a directory is not needed any more: checkpoints, files beside them, and what killed processes have left."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection
from contextlib import suppress

from ..errors import CheckpointError
from ..format import reader
from ..storage.external import EXTERNAL_NAME
from ..storage.sources import LocalSource
from ..storage.temporary import TEMPORARY_NAME, clean_temporaries, temporary_path
from .catalog import Catalog, Entry

_log = logging.getLogger("braintools_ckpt")
#: Seconds for which nothing that a save may have just made is taken for what was left of one.
_LEAST_AGE = 3600.0


class Cleaner:
    """Deletes checkpoints of a directory, with what only they have of the files beside them.

    Whether others have it is not looked up anywhere but in the checkpoints themselves: whoever made them, by a save, by
    copying or by renaming, they stay whole.

    Parameters
    ----------
    catalog : Catalog
        The directory.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        #: The files beside those that are not called like steps, or not whole, by name and what they are known by.
        self._others: dict[tuple[str, int, int, int], list[str]] = {}

    def delete(self, entry: Entry) -> None:
        """Delete a checkpoint.

        Raises
        ------
        FileNotFoundError
            It is not there any more.
        """
        if not entry.external:
            os.unlink(entry.path)
            return
        # Under this name nobody finds it without its data; and when the process is killed here, `clean` goes on.
        temporary = temporary_path(entry.path)
        os.rename(entry.path, temporary)
        self.release(entry.external)
        os.unlink(temporary)

    def release(self, external: Collection[str]) -> None:
        """Delete files that had data of a checkpoint which is gone, unless others in the directory refer to them."""
        if external:
            for name in set(external) - self._referred():
                with suppress(FileNotFoundError):
                    os.unlink(self._path(name))

    def _release_for(self, temporary: str) -> None:
        """Delete what a checkpoint refers to that has a temporary name: it was being saved, or deleted."""
        with suppress(CheckpointError, OSError):
            self.release(_external_names(temporary))

    def clean(self) -> None:
        """Remove what was left by processes that were killed while they saved or deleted."""
        clean_temporaries(self._catalog.directory, first=self._release_for)
        left = {name for name, _ in self._catalog.files() if EXTERNAL_NAME.fullmatch(name)}
        for name in left - self._referred() if left else ():
            with suppress(OSError):
                self._clean_unreferred(self._path(name))

    def _path(self, name: str) -> str:
        return os.path.join(self._catalog.directory, name)

    def _referred(self) -> set[str]:
        """Give the names of the files that have data of checkpoints in the directory."""
        known = {os.path.basename(entry.path): entry for entry in self._catalog.entries(trusting=True)}
        referred: set[str] = set()
        for name, _ in self._catalog.files():
            if name in known and known[name].info is not None:
                referred.update(known[name].external)
            elif not EXTERNAL_NAME.fullmatch(name) and not TEMPORARY_NAME.fullmatch(name):
                referred.update(self._external_of(name))
        return referred

    def _external_of(self, name: str) -> list[str]:
        with suppress(CheckpointError, OSError):
            status = os.stat(self._path(name))
            key = name, status.st_ino, status.st_size, status.st_mtime_ns
            if key not in self._others:
                self._others[key] = _external_names(self._path(name))
            return self._others[key]
        return []

    def _clean_unreferred(self, path: str) -> None:
        """Remove a file that nothing refers to, if its data has another name; if not, it may be the last of it."""
        status = os.stat(path)
        if status.st_mtime > time.time() - _LEAST_AGE:  # a save may be about to refer to it
            return
        if status.st_nlink > 1:
            os.unlink(path)
        else:
            _log.warning(
                "%s (%d bytes) has data of a checkpoint that is not in its directory any more. It may be deleted if "
                "the checkpoint is not to be put back.",
                path,
                status.st_size,
            )


def _external_names(path: str) -> list[str]:
    """Give the names of the files beside a file that have a part of its data, if it is a checkpoint."""
    with LocalSource(path) as source:
        return reader.external_names(source) if reader.is_checkpoint(source) else []
