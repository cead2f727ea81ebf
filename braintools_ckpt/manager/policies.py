"""When to save and what to keep: pure functions of what is known.

A save policy is any function of a `Moment` that says whether to save. A keep policy is any function of the checkpoints
there are, the oldest first, and the time, that gives the steps it wants to keep; what no policy wants is deleted.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal, TypeAlias

Mode: TypeAlias = Literal["min", "max"]


@dataclass(frozen=True)
class StepInfo:
    """What is known of one checkpoint without loading it.

    Attributes
    ----------
    step : int
        Its number, which is in its name.
    path : str
        Where it is.
    time : float
        When it was saved, in seconds since 1970.
    metrics : Mapping
        The metrics that were saved with it, by name.
    metadata : Mapping
        The user's metadata.
    nbytes : int
        Size of the file.
    """

    step: int
    path: str
    time: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    nbytes: int = 0


@dataclass(frozen=True)
class Moment:
    """What a save policy decides upon.

    Attributes
    ----------
    step : int
        The step that could be saved.
    now : float
        The time, in seconds since 1970.
    last_step : int or None
        The latest step that was saved, or is being saved.
    last_time : float or None
        When that was.
    preempted : bool
        Whether the process has been asked to end.
    """

    step: int
    now: float
    last_step: int | None = None
    last_time: float | None = None
    preempted: bool = False


SavePolicy: TypeAlias = Callable[[Moment], bool]
KeepPolicy: TypeAlias = Callable[[Sequence[StepInfo], float], Collection[int]]


# When to save.


@dataclass(frozen=True)
class EverySteps:
    """Save the steps whose number can be divided by ``n``."""

    n: int

    def __post_init__(self) -> None:
        _check_count("EverySteps", self.n)

    def __call__(self, moment: Moment) -> bool:
        """Tell whether to save."""
        return moment.step % self.n == 0


@dataclass(frozen=True)
class EverySeconds:
    """Save when so many seconds have passed since the last save, and the first step of all."""

    seconds: float

    def __post_init__(self) -> None:
        _check_positive("EverySeconds", self.seconds)

    def __call__(self, moment: Moment) -> bool:
        """Tell whether to save."""
        # A clock may go back: then nothing is known of how long it was.
        return moment.last_time is None or not 0 <= moment.now - moment.last_time < self.seconds


@dataclass(frozen=True)
class AtSteps:
    """Save these steps."""

    steps: frozenset[int]

    def __init__(self, steps: Iterable[int]) -> None:
        object.__setattr__(self, "steps", _steps(steps))

    def __call__(self, moment: Moment) -> bool:
        """Tell whether to save."""
        return moment.step in self.steps


@dataclass(frozen=True)
class OnPreemption:
    """Save when the process has been asked to end (see ``CheckpointManager(signals=...)``), and at no other time."""

    def __call__(self, moment: Moment) -> bool:
        """Tell whether to save."""
        return moment.preempted


def save_policy(given: object) -> SavePolicy:
    """Give the policy that somebody means: one, several of which any may decide, a number of steps, or None for all."""
    if given is None:
        return lambda moment: True
    if _is_whole(given):
        return EverySteps(operator.index(given))  # type: ignore[arg-type]
    if isinstance(given, (list, tuple)) and given:
        policies = list(map(save_policy, given))
        return lambda moment: any(policy(moment) for policy in policies)
    if callable(given) and not isinstance(given, type):
        return given
    raise TypeError(f"save must be a policy, several in a list, a number of steps or None, got {given!r}.")


# What to keep.


@dataclass(frozen=True)
class KeepLatest:
    """Keep the ``n`` latest."""

    n: int = 1

    def __post_init__(self) -> None:
        _check_count("KeepLatest", self.n)

    def __call__(self, infos: Sequence[StepInfo], now: float) -> Collection[int]:
        """Give the steps to keep."""
        return [info.step for info in infos[-self.n :]]


@dataclass(frozen=True)
class KeepBest:
    """Keep the ``n`` best by a metric; NaN, or no such metric at all, is worst, and of equals the later is better."""

    n: int = 1
    metric: str = "loss"
    mode: Mode = "min"

    def __post_init__(self) -> None:
        _check_count("KeepBest", self.n)
        check_mode(self.mode)

    def __call__(self, infos: Sequence[StepInfo], now: float) -> Collection[int]:
        """Give the steps to keep."""
        return [info.step for info in ranked(infos, self.metric, self.mode)[: self.n]]


@dataclass(frozen=True)
class KeepEvery:
    """Keep the steps whose number can be divided by ``n``."""

    n: int

    def __post_init__(self) -> None:
        _check_count("KeepEvery", self.n)

    def __call__(self, infos: Sequence[StepInfo], now: float) -> Collection[int]:
        """Give the steps to keep."""
        return [info.step for info in infos if info.step % self.n == 0]


@dataclass(frozen=True)
class KeepYounger:
    """Keep what is not older than so many seconds."""

    seconds: float

    def __post_init__(self) -> None:
        _check_positive("KeepYounger", self.seconds)

    def __call__(self, infos: Sequence[StepInfo], now: float) -> Collection[int]:
        """Give the steps to keep."""
        return [info.step for info in infos if now - info.time <= self.seconds]


@dataclass(frozen=True)
class KeepSteps:
    """Keep these steps."""

    steps: frozenset[int]

    def __init__(self, steps: Iterable[int]) -> None:
        object.__setattr__(self, "steps", _steps(steps))

    def __call__(self, infos: Sequence[StepInfo], now: float) -> Collection[int]:
        """Give the steps to keep."""
        return self.steps


def keep_policy(given: object) -> KeepPolicy:
    """Give the policy that somebody means: one, several that all count, a number of the latest, or None for all."""
    if given is None:
        return lambda infos, now: [info.step for info in infos]
    if _is_whole(given):
        return KeepLatest(operator.index(given))  # type: ignore[arg-type]
    if isinstance(given, (list, tuple)) and given:
        return KeepAny(tuple(map(keep_policy, given)))
    if callable(given) and not isinstance(given, type):
        return given
    raise TypeError(f"keep must be a policy, several in a list, a number of checkpoints or None, got {given!r}.")


@dataclass(frozen=True)
class KeepAny:
    """Keep what any of several policies keeps."""

    policies: tuple[KeepPolicy, ...]

    def __call__(self, infos: Sequence[StepInfo], now: float) -> Collection[int]:
        """Give the steps to keep."""
        return {step for policy in self.policies for step in policy(infos, now)}


def rivals(infos: Sequence[StepInfo], policy: KeepPolicy | None, now: float) -> set[int]:
    """Give the steps on whose account others are not kept: if one of them is no more, one of the others is to stay."""
    if isinstance(policy, KeepAny):
        return {step for part in policy.policies for step in rivals(infos, part, now)}
    if isinstance(policy, (KeepEvery, KeepYounger, KeepSteps)):  # these look at each step by itself
        return set()
    return set() if policy is None else set(policy(infos, now))


def to_delete(infos: Sequence[StepInfo], policy: KeepPolicy, now: float, saved: int | None = None) -> list[StepInfo]:
    """Give the checkpoints that nobody wants to keep; the latest, and what has just been saved, are always kept."""
    kept = {saved, *policy(infos, now)}
    return [info for info in infos[:-1] if info.step not in kept]


def best_of(keep: object) -> tuple[str, Mode] | None:
    """Give the metric and mode by which the best are kept, if it is one."""
    found = {(policy.metric, policy.mode) for policy in _bests(keep)}
    return found.pop() if len(found) == 1 else None


def metrics_of(keep: object) -> set[str]:
    """Give the metrics by which the best are kept."""
    return {policy.metric for policy in _bests(keep)}


def _bests(keep: object) -> Iterator[KeepBest]:
    if isinstance(keep, (list, tuple)):
        for policy in keep:
            yield from _bests(policy)
    elif isinstance(keep, KeepBest):
        yield keep


# What is best.


def ranked(infos: Sequence[StepInfo], metric: str, mode: Mode) -> list[StepInfo]:
    """Order checkpoints by a metric, the best first; NaN or none is worst, and of equals the later is better."""
    sign = 1 if mode == "min" else -1

    def key(info: StepInfo) -> tuple[bool, float, int]:
        value = info.metrics.get(metric, math.nan)
        return (True, 0.0, -info.step) if math.isnan(value) else (False, sign * value, -info.step)

    return sorted(infos, key=key)


def check_mode(mode: object) -> None:
    """Refuse what is no mode."""
    if mode not in ("min", "max"):
        raise ValueError(f"mode must be 'min' or 'max', got {mode!r}.")


def _check_positive(name: str, number: float) -> None:
    if isinstance(number, bool) or not isinstance(number, Real) or not number > 0:
        raise ValueError(f"{name} needs a number greater than 0, got {number!r}.")


def _check_count(name: str, number: int) -> None:
    _check_positive(name, number)
    if not _is_whole(number):
        raise ValueError(f"{name} needs a whole number, got {number!r}.")


def _is_whole(number: object) -> bool:
    return hasattr(number, "__index__") and not isinstance(number, bool)


def _steps(steps: Iterable[int]) -> frozenset[int]:
    if isinstance(steps, str) or not all(map(_is_whole, given := list(steps))):
        raise ValueError(f"steps must be whole numbers, got {steps!r}.")
    return frozenset(map(operator.index, given))
