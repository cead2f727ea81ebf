"""One save after the other: what it overwrites, what becomes of it, and what is deleted when it is there."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from ..api import msgpack_save
from ..arguments import Compression
from ..async_manager import AsyncManager, SaveFuture
from ..errors import (
    AlreadyExistsError,
    CheckpointError,
    CorruptCheckpointError,
    IncompleteCheckpointError,
    StepExistsError,
)
from ..format import reader
from ..format.unchanged import Earlier
from ..storage.sources import open_source
from ..storage.turns import settle
from .catalog import Catalog
from .cleaning import Cleaner
from .policies import Moment
from .retention import Retention

_log = logging.getLogger("braintools_ckpt")


class Saver:
    """Saves steps into a directory, and keeps in it what a policy wants.

    Parameters
    ----------
    catalog : Catalog
        The directory.
    cleaner : Cleaner
        What deletes checkpoints in it.
    retention : Retention
        What is done when a step has been saved.
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
        retention: Retention,
        manager: AsyncManager | None,
        compression: Compression | None,
        durable: bool,
        share_unchanged: bool,
    ) -> None:
        self._catalog = catalog
        self._cleaner = cleaner
        self._retention = retention
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
        turn = self._turn(step, described["time"])
        within = None if manager is None else _Within(manager, turn)
        with turn if within is None else self._telling(step):
            try:
                name = msgpack_save(
                    self._catalog.path(step),
                    tree,
                    overwrite,
                    within,  # type: ignore[arg-type]
                    metadata=described,
                    compression=self._compression,
                    durable=self._durable,
                    share_with=self._earlier(),
                )
            finally:
                if within is not None and within.future is not None:
                    self._begun[step] = described["time"], within.future
        if not name:
            _log.warning("Step %d is not saved: the AsyncManager has no room for it.", step)
        return bool(name)

    @contextmanager
    def _turn(self, step: int, when: float) -> Iterator[None]:
        """Do what comes before and after the writing of a step."""
        with self._cleaner.replacing(self._catalog.look(step)), self._telling(step):
            yield
        self._last = step, when
        self._catalog.look(step)
        self._retention.apply(step)

    @contextmanager
    def _telling(self, step: int) -> Iterator[None]:
        try:
            yield
        except AlreadyExistsError:
            raise StepExistsError(self._catalog.path(step), step) from None

    def _earlier(self) -> Earlier | None:
        """Give the step to share data with: the one that was saved last, if only it has been begun."""
        if not self._share_unchanged:
            return None
        pending = self._pending()
        if pending:
            last = max(pending, key=lambda step: (pending[step], step))
        elif self._last is not None and os.path.lexists(self._catalog.path(self._last[0])):
            last = self._last[0]
        elif infos := self._catalog.infos():
            last = infos[-1].step
        else:
            return None
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
    except IncompleteCheckpointError:  # what is missing may come
        return False
    except CorruptCheckpointError:
        return True
    except (CheckpointError, OSError):
        return False
    return False


class _Within:
    """What is needed of an AsyncManager, whose next save is done within a context."""

    def __init__(self, manager: AsyncManager, context: AbstractContextManager[None]) -> None:
        self._manager = manager
        self._context = context
        self.future: SaveFuture | None = None

    def reserve(self, save: SaveFuture | None = None) -> SaveFuture | None:
        self.future = self._manager.reserve(save)
        return self.future

    def release(self, future: SaveFuture) -> None:
        self._manager.release(future)

    def save_async(self, task: Any) -> SaveFuture | None:
        task.do_within(self._context)
        return self._manager.save_async(task)
