"""One save after the other: what it overwrites, what becomes of it, and what is deleted when it is there."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from ..api import msgpack_save
from ..arguments import Compression
from ..async_manager import AsyncManager, SaveFuture
from ..errors import AlreadyExistsError, CheckpointError, CorruptCheckpointError, StepExistsError
from ..format import reader
from ..format.unchanged import Earlier
from ..storage.sources import open_source
from ..storage.turns import settle
from .catalog import Catalog
from .cleaning import Cleaner
from .policies import KeepPolicy, Moment, to_delete

_log = logging.getLogger("braintools_ckpt")


class Saver:
    """Saves steps into a directory, and keeps in it what a policy wants.

    Parameters
    ----------
    catalog : Catalog
        The directory.
    cleaner : Cleaner
        What deletes checkpoints in it.
    keep : callable or None
        The policy; None keeps all.
    manager : AsyncManager or None
        What writes in the background.
    compression, durable
        As in ``msgpack_save``.
    share_unchanged : bool
        Share with the step before what has not changed.
    """

    def __init__(
        self,
        catalog: Catalog,
        cleaner: Cleaner,
        keep: KeepPolicy | None,
        manager: AsyncManager | None,
        compression: Compression | None,
        durable: bool,
        share_unchanged: bool,
    ) -> None:
        self._catalog = catalog
        self._cleaner = cleaner
        self._keep = keep
        self._manager = manager
        self._compression = compression
        self._durable = durable
        self._share_unchanged = share_unchanged
        #: Saves that have been begun: when, and what becomes of them.
        self._begun: dict[int, tuple[float, SaveFuture]] = {}
        self._last: tuple[int, float] | None = None
        self.look_again()

    def look_again(self) -> None:
        """Take as the last save what the directory says."""
        infos = self._catalog.infos()
        self._last = (infos[-1].step, infos[-1].time) if infos else None

    def moment(self, step: int, now: float, preempted: bool) -> Moment:
        """Give what a policy decides upon."""
        pending = self._pending()
        last = max(((at, number) for number, at in pending.items()), default=None)
        last_step, last_time = (last[1], last[0]) if last else self._last or (None, None)
        return Moment(step, now, last_step, last_time, preempted)

    def _pending(self) -> dict[int, float]:
        """Give the steps that are being saved in the background, and when that was begun."""
        self._begun = {step: begun for step, begun in list(self._begun.items()) if not begun[1].done()}
        return {step: at for step, (at, _) in self._begun.items()}

    def save(self, step: int, tree: Any, described: dict[str, Any], force: bool) -> bool:
        """Save a step, in the background if there is one; tell whether it is."""
        return self._save(step, tree, described, self._overwrite(step, force), self._manager)

    def save_now(self, step: int, tree: Any, described: dict[str, Any], force: bool) -> None:
        """Save a step at once, unless it is there; what has failed before does not matter."""
        self.settle(step)
        entry = self._catalog.look(step)
        if force or entry is None or entry.info is None:
            self._save(step, tree, described, True, None)

    def _save(
        self, step: int, tree: Any, described: dict[str, Any], overwrite: bool, manager: AsyncManager | None
    ) -> bool:
        def ended() -> None:
            self._last = step, described["time"]
            replaced = self._catalog.known(step)
            self._catalog.look(step)
            if replaced is not None:
                self._cleaner.release(replaced.external)
            self._delete_what_nobody_keeps(step)

        reporting = None if manager is None else _Reporting(manager, ended)
        self._catalog.look(step)
        path = self._catalog.path(step)
        try:
            name = msgpack_save(
                path,
                tree,
                overwrite,
                reporting,  # type: ignore[arg-type]
                metadata=described,
                compression=self._compression,
                durable=self._durable,
                share_with=self._earlier(),  # type: ignore[arg-type]
            )
        except AlreadyExistsError:
            raise StepExistsError(path, step) from None
        finally:
            if reporting is not None and reporting.future is not None:
                self._begun[step] = described["time"], reporting.future
        if not name:
            _log.warning("Step %d is not saved: the AsyncManager has no room for it.", step)
            return False
        if reporting is None:
            ended()
        return True

    def _earlier(self) -> Earlier | None:
        """Give the step to share data with: the one that was saved last, if only it has been begun."""
        if not self._share_unchanged:
            return None
        pending = self._pending()
        infos = self._catalog.infos(trusting=True) if not pending else []
        if not pending and not infos:
            return None
        last = max(pending, key=lambda step: (pending[step], step)) if pending else infos[-1].step
        return Earlier(self._catalog.path(last), external=True)

    def _overwrite(self, step: int, force: bool) -> bool:
        """Tell whether a file of the step is to be replaced; refuse where that would lose something."""
        if force:
            return True
        if step in self._pending():
            raise StepExistsError(self._catalog.path(step), step, "is being saved")
        entry = self._catalog.look(step)
        if entry is None:
            return False
        if entry.damaged or (entry.info is not None and _is_corrupt(entry.path)):
            _log.warning("%s is corrupt, and is replaced.", entry.path)
            return True  # there is no checkpoint any more, and a run that has gone back could not go on
        problem = f"is a file that cannot be read ({entry.problem})" if entry.problem else ""
        raise StepExistsError(entry.path, step, problem)

    def _delete_what_nobody_keeps(self, saved: int) -> None:
        if self._keep is None:
            return
        infos = self._catalog.infos(trusting=True)
        try:
            unwanted = to_delete(infos, self._keep, time.time(), saved)
        except Exception:  # noqa: BLE001  (the checkpoint is saved all the same)
            _log.exception("The policy of what to keep failed: nothing is deleted")
            return
        for info in unwanted:
            try:
                entry = self._catalog.look(info.step)
                if entry is not None and entry.info is not None and entry.info.time == info.time:
                    self._cleaner.delete(entry)
            except FileNotFoundError:
                pass
            except OSError as error:  # it is tried again after the next save
                _log.warning("%s could not be deleted: %s", info.path, error)

    def settle(self, step: int | None = None) -> None:
        """Wait for saves of this manager, or one of them; what fails is told at the next save, wait or close."""
        for number in self._pending():
            if step is None or number == step:
                settle(self._catalog.path(number))


def _is_corrupt(path: str) -> bool:
    """Look at every byte of a checkpoint; only what has checksums can be told of."""
    try:
        with open_source(path) as source:
            if reader.is_checkpoint(source):
                reader.read_blobs(source).verify()
    except CorruptCheckpointError:
        return True
    except (CheckpointError, OSError):
        return False
    return False


class _Reporting:
    """What is needed of an AsyncManager, whose next save does something more when it has succeeded."""

    def __init__(self, manager: AsyncManager, ended: Callable[[], None]) -> None:
        self._manager = manager
        self._ended = ended
        self.future: SaveFuture | None = None

    def reserve(self, save: SaveFuture | None = None) -> SaveFuture | None:
        self.future = self._manager.reserve(save)
        return self.future

    def release(self, future: SaveFuture) -> None:
        self._manager.release(future)

    def save_async(self, task: Any) -> SaveFuture | None:
        task.then(self._ended)
        return self._manager.save_async(task)
