"""What is deleted when a step has been saved."""

from __future__ import annotations

import logging
import time

from .catalog import Catalog, Entry
from .cleaning import Cleaner
from .policies import KeepPolicy, StepInfo, rivals, to_delete

_log = logging.getLogger("braintools_ckpt")
#: How often it is thought over because of what changes meanwhile.
_TRIES = 5


class Retention:
    """Keeps in a directory what a policy wants.

    Not every file is looked at, but what is to be deleted, and what it is to be deleted for: so the work goes with what
    changes.

    Parameters
    ----------
    catalog : Catalog
        The directory.
    cleaner : Cleaner
        What deletes.
    keep : callable or None
        The policy; None keeps all.
    """

    def __init__(self, catalog: Catalog, cleaner: Cleaner, keep: KeepPolicy | None) -> None:
        self._catalog = catalog
        self._cleaner = cleaner
        self._keep = keep

    def apply(self, saved: int) -> None:
        """Delete what nobody wants to keep, now that a step has been saved; what fails is only told."""
        if self._keep is None:
            return
        try:
            unwanted = self._unwanted(self._keep, saved)
        except OSError as error:
            _log.warning("It cannot be found out what may be deleted: %s", error)
            return
        except Exception:  # noqa: BLE001  (the checkpoint is saved all the same)
            _log.exception("The policy of what to keep failed: nothing is deleted")
            return
        if unwanted:
            self._delete(unwanted)

    def _unwanted(self, keep: KeepPolicy, saved: int) -> list[StepInfo]:
        for _ in range(_TRIES):
            now, infos = time.time(), self._catalog.infos(trusting=True)
            unwanted = to_delete(infos, keep, now, saved)
            better = rivals(infos, keep, now) if unwanted else set()
            if all(self._still(info) for info in infos if info.step in better):
                return unwanted
        return []

    def _still(self, info: StepInfo) -> Entry | None:
        """Give the file of a step, if it is the one that was judged."""
        entry = self._catalog.look(info.step)
        return entry if entry is not None and entry.info is not None and entry.info.time == info.time else None

    def _delete(self, unwanted: list[StepInfo]) -> None:
        with self._cleaner.deleting() as delete:
            for info in unwanted:
                try:
                    if entry := self._still(info):
                        delete(entry)
                except FileNotFoundError:
                    pass
                except OSError as error:  # it is tried again after the next save
                    _log.warning("%s could not be deleted: %s", info.path, error)
