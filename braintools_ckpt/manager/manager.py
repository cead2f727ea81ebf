"""CheckpointManager: all the checkpoints of one run."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from ..api import msgpack_load
from ..arguments import Compression
from ..async_manager import AsyncManager
from ..errors import (
    CheckpointNotFoundError,
)
from ..format.whole import copy_whole
from ..storage.local import atomic_write
from ..storage.outcome import is_shown
from ..storage.sources import open_source
from ..warn import warn
from .arguments import listed, makes, metric_numbers, signal_numbers, step_number
from .catalog import Catalog
from .cleaning import Cleaner
from .loader import Loader, Which
from .names import StepNames
from .policies import (
    Mode,
    SavePolicy,
    StepInfo,
    best_of,
    check_mode,
    keep_policy,
    metrics_of,
    save_policy,
)
from .preemption import Preemption
from .retention import Retention
from .saver import Saver

_log = logging.getLogger("braintools_ckpt")
T = TypeVar("T")


class CheckpointManager:
    """All the checkpoints of one run: one file a step, in one directory, which is the only state.

    Parameters
    ----------
    directory : str or os.PathLike
        Where the checkpoints are; it is made if it is missing. Files may be copied in, removed or renamed by hand, and
        any number of processes may read.
    save : policy, int, list or None
        When :meth:`save` saves: a policy such as `EverySteps`, `EverySeconds`, `AtSteps` or `OnPreemption`, any
        function of a `Moment`, several of these in a list, of which any may decide, or a number of steps. By default
        always.
    keep : policy, int, list or None
        What stays: `KeepLatest`, `KeepBest`, `KeepEvery`, `KeepYounger`, `KeepSteps`, any function of the list of
        `StepInfo` and the time, several of these in a list, whose wishes all count, or a number of the latest ones. By
        default all. The latest one always stays.
    metric : str, optional
        By which metric :meth:`best_step` judges; by default that of the `KeepBest` in ``keep``, or else ``'loss'``.
    mode : {'min', 'max'}, optional
        Whether less of it is better, or more; by default as the `KeepBest` says, or else ``'min'``.
    async_save : bool or AsyncManager, default True
        Write in the background, with an `AsyncManager` of its own or the given one.
    name : str, default '{step:010}.ckpt'
        How the files are called.
    signals : bool, int or iterable of int, default False
        Handle SIGTERM and SIGINT (or those that are given): the next call of :meth:`save` saves in any case, not in the
        background, and ends the process with the code 128 + signal.
    compression, durable
        As in `msgpack_save`.
    share_unchanged : bool, default False
        Do not write again arrays of at least 1 MiB that the step before has as well. On btrfs and XFS files share them,
        see ``share_with`` of `msgpack_save`. Where there are hard links alone, as on ext4, they stand in a file beside
        the checkpoint, ``<its name>.shared-<number>``, which has to be copied along, or see :meth:`export`. Each step
        stays whole when others are deleted. An array is written a second time when it is first found unchanged.

    Raises
    ------
    ValueError
        If ``name`` is no format of a name, or ``mode`` none, or ``share_unchanged`` is asked for with ``compression``.

    Notes
    -----
    The number of a step is that in the file's name: that of steps done, as in the example, so that a run that finds
    nothing begins at 0.

    Making a manager removes temporary files of processes that were killed.

    Examples
    --------
    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> from braintools_ckpt import CheckpointManager, KeepBest, KeepLatest
    >>> def train(state):
    ...     return {"w": state["w"] + 1}
    >>> folder = tempfile.mkdtemp()
    >>> with CheckpointManager(folder, save=10, keep=[KeepLatest(2), KeepBest(1, "loss")]) as manager:
    ...     step, state = manager.restore_or({"w": jnp.zeros(2)})
    ...     while step < 50:
    ...         state, step = train(state), step + 1
    ...         saved = manager.save(step, state, metrics={"loss": abs(step - 20)})
    >>> manager.all_steps(), manager.best_step()
    ([20, 40, 50], 20)
    >>> CheckpointManager(folder).restore_or({"w": jnp.zeros(2)})
    (50, {'w': Array([50., 50.], dtype=float32)})
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        save: Any = None,
        keep: Any = None,
        metric: str | None = None,
        mode: Mode | None = None,
        async_save: bool | AsyncManager = True,
        name: str = "{step:010}.ckpt",
        signals: bool | Iterable[int] = False,
        compression: Compression | None = None,
        durable: bool = True,
        share_unchanged: bool = False,
    ) -> None:
        if not isinstance(async_save, bool) and not hasattr(async_save, "save_async"):
            raise TypeError(f"async_save must be True, False or an AsyncManager, got {async_save!r}.")
        if share_unchanged and compression is not None:
            raise ValueError("share_unchanged=True needs compression=None: what is compressed cannot be shared.")
        best = best_of(keep) or ("loss", "min")
        mode = best[1] if mode is None else mode
        check_mode(mode)
        self.directory = os.path.abspath(os.fsdecode(directory))
        self._save_policy: SavePolicy = save_policy(save)
        #: What the best are kept by, as long as no checkpoint has been seen that has it.
        self._unseen = metrics_of(keep)
        kept = None if keep is None else keep_policy(keep)
        self._catalog = Catalog(self.directory, StepNames(name))
        self._cleaner = Cleaner(self._catalog)
        self._loader = Loader(self._catalog, best[0] if metric is None else metric, mode)
        self._owns_async = async_save is True
        self._async: AsyncManager | None = AsyncManager() if async_save is True else async_save or None
        self._closed = False
        os.makedirs(self.directory, exist_ok=True)
        self._cleaner.clean()
        retention = Retention(self._catalog, self._cleaner, kept)
        self._saver = Saver(self._catalog, self._cleaner, retention, self._async, compression, durable, share_unchanged)
        self._preemption = Preemption(signal_numbers(signals))

    # Saving.

    def save(
        self,
        step: int,
        tree: Any,
        metrics: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        force: bool = False,
    ) -> bool:
        """Save a step, if the policy says so.

        Parameters
        ----------
        step : int
            The number of the step.
        tree : pytree
            What to save.
        metrics : mapping, optional
            Numbers by which checkpoints are judged.
        metadata : mapping, optional
            Anything small that describes the checkpoint.
        force : bool, default False
            Save whatever the policy says, and replace a checkpoint of this step.

        Returns
        -------
        bool
            Whether it was saved, or is being saved in the background.

        Raises
        ------
        StepExistsError
            If there is a checkpoint of this step, or a file that is none, or one that lacks data which may be put back.
            What is corrupt is replaced.
        SystemExit
            If a signal has asked the process to end: then the step has been saved.
        Exception
            What `msgpack_save` raises; and what an earlier save in the background has raised.
        """
        if self._closed:
            raise RuntimeError("Cannot save with a closed CheckpointManager. Make a new one.")
        step = step_number(step)
        numbers = metric_numbers(metrics or {})
        now = time.time()
        if not (force or self._wants(step, now)):
            return False
        self._look_for_metrics(numbers)
        described = {"step": step, "time": now, "metrics": numbers, "metadata": dict(metadata or {})}
        if self.preempted:
            self._save_and_end(step, tree, described, force)
        return self._saver.save(step, tree, described, force)

    def _look_for_metrics(self, given: Mapping[str, float]) -> None:
        """Warn once of a metric that nothing has, which may be called otherwise: the best would be deleted."""
        if given and not self._unseen <= given.keys():
            self._unseen -= {name for info in self._catalog.infos() for name in info.metrics}
            if unknown := sorted(self._unseen - given.keys()):
                warn(
                    f"KeepBest goes by {unknown[0]!r}, which no checkpoint in {self.directory} has so far; this one "
                    f"has {', '.join(map(repr, given))}. Of those without it none is better than another."
                )
            self._unseen = set()

    def should_save(self, step: int) -> bool:
        """Tell whether :meth:`save` would save that step: so that what is expensive to gather need not be.

        Parameters
        ----------
        step : int
            The number of the step.

        Returns
        -------
        bool
            What the policy says; True when the process has been asked to end.
        """
        return self._wants(step_number(step), time.time())

    def _wants(self, step: int, now: float) -> bool:
        return self.preempted or self._save_policy(self._saver.moment(step, now, self.preempted))

    def _save_and_end(self, step: int, tree: Any, described: dict[str, Any], force: bool) -> None:
        """Save at once, whatever has failed before, and end the process."""
        end = SystemExit(128 + (self._preemption.signal or 0))
        try:
            self._saver.save_now(step, tree, described, force)
        except Exception as error:  # noqa: BLE001  (the process ends all the same)
            _log.exception("Step %d could not be saved before the process ends", step)
            end.add_note(f"Step {step} could not be saved: {error!r}")
        with contextlib.suppress(Exception):  # it has been logged
            self.close()
        if threading.current_thread() is not threading.main_thread():  # there, SystemExit would end the thread alone
            self._preemption.pass_on()
        raise end

    # What there is.

    def infos(self) -> list[StepInfo]:
        """List what is known of all valid checkpoints, the lowest step first.

        Returns
        -------
        list of StepInfo
            Step, path, time, metrics, metadata and size of each.
        """
        return self._catalog.infos()

    def all_steps(self) -> list[int]:
        """List the steps of all valid checkpoints, in order.

        Returns
        -------
        list of int
            The steps. What is being saved in the background is not among them yet.
        """
        return [info.step for info in self._catalog.infos()]

    def latest_step(self) -> int | None:
        """Give the latest step.

        Returns
        -------
        int or None
            The step; None if there is no checkpoint.
        """
        steps = self.all_steps()
        return steps[-1] if steps else None

    def best_step(self) -> int | None:
        """Give the step with the best metric.

        Returns
        -------
        int or None
            The step; None if no checkpoint has the metric, or only as NaN.
        """
        best = self._loader.judged(self._catalog.infos())
        return best[0].step if best else None

    def info(self, step: int) -> StepInfo:
        """Give what is known of a checkpoint.

        Parameters
        ----------
        step : int
            Its step.

        Returns
        -------
        StepInfo
            Step, path, time, metrics, metadata and size.

        Raises
        ------
        CheckpointNotFoundError
            If there is no valid checkpoint of that step.
        """
        step = step_number(step)
        self._saver.settle(step)
        entry = self._catalog.look(step)
        if entry is None or entry.info is None:
            raise self._missing(step, "" if entry is None else entry.problem)
        return entry.info

    def metrics(self, step: int) -> dict[str, float]:
        """Give the metrics of a step.

        Parameters
        ----------
        step : int
            Its step.

        Returns
        -------
        dict
            Metrics by name.

        Raises
        ------
        CheckpointNotFoundError
            If there is no valid checkpoint of that step.
        """
        return dict(self.info(step).metrics)

    def _missing(self, step: int, problem: str = "") -> Exception:
        steps = self.all_steps()
        there = f"the directory has {listed(steps)}" if steps else "there is no checkpoint in its directory"
        return CheckpointNotFoundError(self._catalog.path(step), f" (step {step}); {problem or there}.")

    # Loading.

    def restore(
        self, step: Which = "latest", target: Any | None = None, *, strict: bool = False, **options: Any
    ) -> Any:
        """Load a step.

        Parameters
        ----------
        step : int, 'latest' or 'best'
            Which one.
        target : pytree, optional
            As in `msgpack_load`.
        strict : bool, default False
            Raise where the one that is asked for is corrupt, and do not go on to the one before (or the next best).
        **options
            As in `msgpack_load`.

        Returns
        -------
        pytree
            The tree.

        Raises
        ------
        CheckpointNotFoundError
            If there is none.
        CorruptCheckpointError
            If it is corrupt and ``strict`` is true or its number was given; or if all are.
        MismatchError
            If checkpoint and target differ.
        """
        return self._restore(step, target, strict, options)[1]

    def restore_or(
        self, init: T | Callable[[], T], step: Which = "latest", *, strict: bool = False, **options: Any
    ) -> tuple[int, T]:
        """Load the latest step, or begin anew: the first line of a script that can be ended at any time.

        Parameters
        ----------
        init : pytree or callable
            What to begin with, and the target of the load; or a function that makes it.
        step : int, 'latest' or 'best'
            Which one to load.
        strict, **options
            As in :meth:`restore`.

        Returns
        -------
        step : int
            The number of the step, 0 if there is no checkpoint.
        tree : pytree
            What was loaded, or ``init``.

        Raises
        ------
        CorruptCheckpointError
            If there are checkpoints and all are corrupt: a run must not begin anew without anybody knowing.
        MismatchError
            If checkpoint and ``init`` differ.
        """
        target: Any = init() if makes(init) else init  # type: ignore[operator]
        self._saver.settle()
        if not self._catalog.entries():
            return 0, target
        return self._restore(step, target, strict, options)

    def _restore(self, which: Which, target: Any, strict: bool, options: Mapping[str, Any]) -> tuple[int, Any]:
        self._saver.settle()
        if not isinstance(which, str):
            number = step_number(which)
            if self._catalog.look(number) is None:
                raise self._missing(number)
            return number, msgpack_load(self._catalog.path(number), target, **options)
        return self._loader.load(which, target, strict, options)

    def export(self, step: Which, path: str | os.PathLike[str], *, overwrite: bool = False) -> str:
        """Copy a checkpoint to where it is to stay: as one file, also where ``share_unchanged`` has made several of it.

        Parameters
        ----------
        step : int, 'latest' or 'best'
            Which one.
        path : str or os.PathLike
            Where the copy goes.
        overwrite : bool, default False
            Replace an existing file.

        Returns
        -------
        str
            The path.

        Raises
        ------
        CheckpointNotFoundError
            If there is none.
        CorruptCheckpointError
            If it is not as it was written: every byte is checked.
        AlreadyExistsError
            If the file exists and ``overwrite`` is false.

        Examples
        --------
        >>> import os, tempfile
        >>> from braintools_ckpt import CheckpointManager, msgpack_load
        >>> folder = tempfile.mkdtemp()
        >>> with CheckpointManager(os.path.join(folder, "run")) as manager:
        ...     saved = [manager.save(step, {"step": step}, {"loss": (step - 2) ** 2}) for step in range(5)]
        ...     model = manager.export("best", os.path.join(folder, "model.ckpt"))
        >>> msgpack_load(model)
        {'step': 2}
        """
        self._saver.settle()
        name = os.fsdecode(path)
        while True:
            chosen = self._loader.choose(step) if isinstance(step, str) else self._catalog.look(step_number(step))
            if chosen is None:
                raise self._missing(step_number(step))
            if chosen.problem:
                raise chosen.error()
            try:
                with open_source(chosen.path) as source, atomic_write(name, overwrite=overwrite) as sink:
                    copy_whole(source, sink)
            except CheckpointNotFoundError:  # deleted since; or, if another one is the latest now, that one is meant
                continue
            return name

    def delete(self, step: int) -> None:
        """Delete the checkpoint of a step, whatever the policy says.

        Parameters
        ----------
        step : int
            Its step.

        Raises
        ------
        CheckpointNotFoundError
            If there is none.
        """
        step = step_number(step)
        self._saver.settle(step)
        entry = self._catalog.look(step)
        if entry is None:
            raise self._missing(step)
        try:
            with self._cleaner.deleting() as delete:
                delete(entry)
        except FileNotFoundError:
            raise self._missing(step) from None

    def delete_after(self, step: int) -> list[int]:
        """Delete all later steps: where a run goes back, so that it does not go on from them the next time.

        Corrupt ones are deleted, too; what is no checkpoint at all stays.

        Parameters
        ----------
        step : int
            The last step to stay.

        Returns
        -------
        list of int
            The steps that were deleted.
        """
        step = step_number(step)
        self._saver.settle()
        deleted = []
        with self._cleaner.deleting() as delete:
            for entry in self._catalog.entries():
                if entry.step > step and (entry.info is not None or entry.damaged or entry.incomplete):
                    with contextlib.suppress(FileNotFoundError):
                        delete(entry)
                        deleted.append(entry.step)
        self._saver.look_again()
        return deleted

    # Following another process.

    def wait_for_new(self, after: int | None = None, *, timeout: float | None = None, poll: float = 1.0) -> int | None:
        """Wait until another process has saved a later step.

        Parameters
        ----------
        after : int, optional
            The step that is known; by default any is new.
        timeout : float, optional
            Seconds after which to give up.
        poll : float, default 1.0
            Seconds between two looks.

        Returns
        -------
        int or None
            The latest step, if it is later than ``after``; None if the time is up.
        """

        def later() -> int | None:
            latest = self.latest_step()
            return latest if latest is not None and (after is None or latest > after) else None

        return _wait_for(later, timeout, poll)

    def follow(self, *, timeout: float | None = None, poll: float = 1.0) -> Iterator[int]:
        """Go over all checkpoints, and those to come: for an evaluator beside a training.

        Parameters
        ----------
        timeout : float, optional
            Seconds without a new one after which to end.
        poll : float, default 1.0
            Seconds between two looks.

        Returns
        -------
        iterator of int
            Steps, each once, in order, and once more where a run has gone back and saved them anew. What is deleted
            before its turn is left out.
        """
        seen: set[tuple[int, float]] = set()

        def unseen() -> list[StepInfo] | None:
            return [info for info in self.infos() if (info.step, info.time) not in seen] or None

        while new := _wait_for(unseen, timeout, poll):
            for info in new:
                seen.add((info.step, info.time))
                entry = self._catalog.look(info.step)
                if entry is not None and entry.info is not None:
                    seen.add((info.step, entry.info.time))  # it may have been replaced meanwhile
                    yield info.step

    # The end.

    @property
    def preempted(self) -> bool:
        """Whether a signal has asked the process to end."""
        return self._preemption.signal is not None

    def wait(self) -> None:
        """Wait until what is being saved in the background is there; raise what has failed, once."""
        if self._async is not None:
            self._async.wait_previous_save()

    def close(self) -> None:
        """Wait for saves, and give back the handlers of signals.

        Raises
        ------
        Exception
            What failed in the background, if nobody has seen it yet.
        """
        self._end()
        if self._owns_async and self._async is not None:
            self._async.close()
        else:
            self.wait()

    def _end(self) -> None:
        self._closed = True
        self._preemption.restore()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            was_open = not self._closed
            self.close()
            if self.preempted and was_open:  # the signal came after the last save
                raise SystemExit(128 + (self._preemption.signal or 0))
            return
        self._end()
        if self._owns_async and self._async is not None:
            self._async.__exit__(kind, error, trace)
        elif is_shown(error):
            try:
                self.wait()
            except Exception as failed:  # noqa: BLE001  (it must not hide the exception that is on its way)
                error.add_note(f"Besides, a save in the background failed: {failed!r}")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.directory}: {listed(self.all_steps()) or 'no checkpoint'}>"


def _wait_for(look: Callable[[], T | None], timeout: float | None, poll: float) -> T | None:
    """Look until there is something; None if the time is up."""
    end = math.inf if timeout is None else time.monotonic() + timeout
    while (found := look()) is None:
        left = end - time.monotonic()
        if left <= 0:
            return None
        time.sleep(min(poll, left))
    return found
