"""CheckpointManager: all the checkpoints of one run."""

from __future__ import annotations

import contextlib
import logging
import math
import operator
import os
import signal as signals_of_os
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, TypeVar

from ..api import Compression, msgpack_load, msgpack_save
from ..async_manager import AsyncManager, SaveFuture
from ..errors import CheckpointNotFoundError, CorruptCheckpointError, StepExistsError
from ..storage.local import clean_temporaries
from ..storage.turns import InTurn
from ..warn import warn
from .catalog import Catalog
from .names import StepNames
from .policies import (
    KeepPolicy,
    Mode,
    Moment,
    SavePolicy,
    StepInfo,
    check_mode,
    keep_policy,
    ranked,
    save_policy,
    to_delete,
)
from .preemption import Preemption

_log = logging.getLogger("braintools_ckpt")
Which: TypeAlias = int | Literal["latest", "best"]
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
    metric : str, default 'loss'
        By which metric :meth:`best_step` judges.
    mode : {'min', 'max'}, default 'min'
        Whether less of it is better, or more.
    async_save : bool or AsyncManager, default True
        Write in the background, with an `AsyncManager` of its own or the given one.
    name : str, default '{step:010}.ckpt'
        How the files are called.
    signals : bool or iterable of int, default False
        Handle SIGTERM and SIGINT (or those that are given): the next call of :meth:`save` saves in any case, and ends
        the process.
    compression, durable
        As in `msgpack_save`.

    Raises
    ------
    ValueError
        If ``name`` is no format of a name, or ``mode`` none.

    Notes
    -----
    The number of a step is that in the file's name: that of steps done, as in the example, so that a run that finds
    nothing begins at 0.

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
        metric: str = "loss",
        mode: Mode = "min",
        async_save: bool | AsyncManager = True,
        name: str = "{step:010}.ckpt",
        signals: bool | Iterable[int] = False,
        compression: Compression | None = None,
        durable: bool = True,
    ) -> None:
        check_mode(mode)
        self.directory = os.path.abspath(os.fspath(directory))
        self._save_policy: SavePolicy = save_policy(save)
        self._keep_policy: KeepPolicy = keep_policy(keep)
        self._metric, self._mode = metric, mode
        self._how = {"compression": compression, "durable": durable}
        self._catalog = Catalog(self.directory, StepNames(name))
        self._last: tuple[int, float] | None = None
        self._async = AsyncManager() if async_save is True else async_save or None
        self._owns_async = async_save is True
        self._closed = False
        os.makedirs(self.directory, exist_ok=True)
        clean_temporaries(self.directory)
        infos = self._catalog.scan()
        if infos:
            self._last = infos[-1].step, infos[-1].time
        chosen = (signals_of_os.SIGTERM, signals_of_os.SIGINT) if signals is True else signals or ()
        self._preemption = Preemption(chosen)
        self._preemption.__enter__()

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
            If there is a checkpoint of this step.
        SystemExit
            If a signal has asked the process to end: then the step has been saved.
        Exception
            What `msgpack_save` raises; and what an earlier save in the background has raised.
        """
        if self._closed:
            raise RuntimeError("Cannot save with a closed CheckpointManager. Make a new one.")
        step = _step(step)
        now = time.time()
        if not (force or self.preempted or self._save_policy(self._moment(step, now))):
            return False
        path = self._catalog.path(step)
        if not force and self._catalog.look(step) is not None:
            raise StepExistsError(path, step)
        saved = self._write(step, tree, _numbers(metrics or {}), dict(metadata or {}), now, path)
        if self.preempted:
            self._end_process()
        return saved

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
        return self.preempted or self._save_policy(self._moment(_step(step), time.time()))

    def _moment(self, step: int, now: float) -> Moment:
        last_step, last_time = self._last or (None, None)
        return Moment(step, now, last_step, last_time, self.preempted)

    def _write(
        self, step: int, tree: Any, metrics: dict[str, float], metadata: dict[str, Any], now: float, path: str
    ) -> bool:
        described = {"step": step, "time": now, "metrics": metrics, "metadata": metadata}
        known = self._last
        self._last = step, now

        def ended() -> None:
            self._catalog.look(step)
            self._delete_what_nobody_keeps()

        manager = None if self._async is None else _Reporting(self._async, ended)
        try:
            # A file of this step that is no checkpoint is replaced: there is none of it, then.
            name = msgpack_save(path, tree, True, manager, metadata=described, **self._how)  # type: ignore[arg-type]
        except BaseException:
            self._last = known
            raise
        if not name:
            self._last = known
            _log.warning("Step %d is not saved: the AsyncManager has no room for it.", step)
            return False
        if manager is None:
            ended()
        return True

    def _delete_what_nobody_keeps(self) -> None:
        for info in to_delete(self._catalog.known(), self._keep_policy, time.time()):
            try:
                os.unlink(info.path)
            except FileNotFoundError:
                pass
            except OSError as error:  # it is tried again after the next save
                _log.warning("%s could not be deleted: %s", info.path, error)
                continue
            self._catalog.forget(info.step)

    # What there is.

    def infos(self) -> list[StepInfo]:
        """List what is known of all valid checkpoints, the lowest step first.

        Returns
        -------
        list of StepInfo
            Step, path, time, metrics, metadata and size of each.
        """
        return self._catalog.scan()

    def all_steps(self) -> list[int]:
        """List the steps of all valid checkpoints, in order.

        Returns
        -------
        list of int
            The steps. What is being saved in the background is not among them yet.
        """
        return [info.step for info in self._catalog.scan()]

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
        infos = [info for info in self._catalog.scan() if not math.isnan(info.metrics.get(self._metric, math.nan))]
        return ranked(infos, self._metric, self._mode)[0].step if infos else None

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
        found = self._catalog.look(_step(step))
        if found is None:
            raise self._missing(step)
        return found

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

    def _missing(self, step: int) -> Exception:
        steps = self.all_steps()
        there = f"there are {_listed(steps)}" if steps else "there is no checkpoint in its directory"
        return CheckpointNotFoundError(self._catalog.path(step), f" (step {step}); {there}.")

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
        target: Any = init() if _is_function(init) else init  # type: ignore[operator]
        self.wait()
        if not self._catalog.steps():
            return 0, target
        return self._restore(step, target, strict, options)

    def _restore(self, which: Which, target: Any, strict: bool, options: Mapping[str, Any]) -> tuple[int, Any]:
        self.wait()
        if not isinstance(which, str):
            number = _step(which)
            if self._catalog.look(number) is None and number not in self._catalog.steps():
                raise self._missing(number)
            return number, msgpack_load(self._catalog.path(number), target, **options)
        candidates = self._candidates(which)
        failed: list[str] = []
        for number in candidates:
            path = self._catalog.path(number)
            try:
                tree = msgpack_load(path, target, **options)
            except CorruptCheckpointError as error:
                if strict:
                    raise
                failed.append(f"{os.path.basename(path)}: {error}")
            except FileNotFoundError:  # deleted since
                continue
            else:
                self._tell(failed, number)
                return number, tree
        if failed:
            raise CorruptCheckpointError(
                f"None of the {len(failed)} checkpoints in {self.directory} can be loaded:\n  - "
                + "\n  - ".join(failed)
            )
        raise CheckpointNotFoundError(self.directory, " (it holds no checkpoint of this name format).")

    def _candidates(self, which: str) -> list[int]:
        """Give the steps to try, the first choice first; what is no valid checkpoint is among them, to be told of."""
        if which == "latest":
            return self._catalog.steps()[::-1]
        if which == "best":
            return [info.step for info in ranked(self._catalog.scan(), self._metric, self._mode)]
        raise ValueError(f"step must be a number, 'latest' or 'best', got {which!r}.")

    def _tell(self, failed: list[str], number: int) -> None:
        if failed:
            warn(f"Step {number} was loaded, since later (or better) checkpoints cannot be: {'; '.join(failed)}")

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
        self.wait()
        try:
            os.unlink(self._catalog.path(_step(step)))
        except FileNotFoundError:
            raise self._missing(step) from None
        self._catalog.forget(step)

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
        end = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            latest = self.latest_step()
            if latest is not None and (after is None or latest > after):
                return latest
            left = end - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(poll, left))

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
            Steps, each once, in order. What is deleted before its turn is left out.
        """
        last = -1
        while True:
            new = [step for step in self.all_steps() if step > last]
            for step in new:
                last = step
                if self._catalog.look(step) is not None:
                    yield step
            if not new and self.wait_for_new(last, timeout=timeout, poll=poll) is None:
                return

    # The end.

    @property
    def preempted(self) -> bool:
        """Whether a signal has asked the process to end."""
        return self._preemption.signal is not None

    def _end_process(self) -> None:
        number = self._preemption.signal or 0
        self.close()
        raise SystemExit(128 + number)

    def wait(self) -> None:
        """Wait until what is being saved in the background is there; raise what has failed, once."""
        if self._async is not None:
            self._async.wait_previous_save()

    def close(self) -> None:
        """Wait for saves, and give back the handlers of signals."""
        self._closed = True
        self._preemption.restore()
        if self._owns_async and self._async is not None:
            self._async.close()
        else:
            self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except Exception as failed:  # noqa: BLE001  (it must not hide the exception that is on its way)
            error.add_note(f"Besides, a save in the background failed: {failed!r}")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.directory}: {_listed(self.all_steps()) or 'no checkpoint'}>"


class _Reporting:
    """An AsyncManager whose next save does something more when it has succeeded."""

    def __init__(self, manager: AsyncManager, ended: Callable[[], None]) -> None:
        self.reserve = manager.reserve
        self.release = manager.release
        self._manager = manager
        self._ended = ended

    def save_async(self, task: InTurn) -> SaveFuture | None:
        task.then(self._ended)
        return self._manager.save_async(task)


def _step(step: Any) -> int:
    with contextlib.suppress(TypeError):
        number = operator.index(step)
        if number >= 0 and not isinstance(step, bool):
            return number
    raise ValueError(f"step must be a whole number of at least 0, got {step!r}.")


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    numbers = {}
    for name, value in metrics.items():
        try:
            numbers[str(name)] = float(value)
        except (TypeError, ValueError):
            raise TypeError(
                f"metrics must be numbers, got {value!r} for {name!r}. What describes a checkpoint otherwise goes into "
                "metadata=."
            ) from None
    return numbers


def _is_function(obj: Any) -> bool:
    # Not callable(): a model is that, too.
    return isinstance(obj, types.FunctionType | types.MethodType | types.BuiltinFunctionType)


def _listed(steps: list[int]) -> str:
    shown = ", ".join(map(str, steps)) if len(steps) <= 6 else f"{steps[0]}, {steps[1]}, ... {steps[-1]}"
    return f"step{'s'[: len(steps) != 1]} {shown}" if steps else ""
