"""What a CheckpointManager is given, checked and made uniform; and how steps are written in messages."""

from __future__ import annotations

import contextlib
import functools
import operator
import signal as signals_of_os
import types
from collections.abc import Iterable, Mapping
from typing import Any


def signal_numbers(given: Any) -> Iterable[int]:
    """Give the signals to handle."""
    if isinstance(given, bool):
        return (signals_of_os.SIGTERM, signals_of_os.SIGINT) if given else ()
    return (given,) if isinstance(given, int) else tuple(given)


def step_number(step: Any) -> int:
    """Give a step as an int, or refuse it."""
    with contextlib.suppress(TypeError):
        number = operator.index(step)
        if number >= 0 and not isinstance(step, bool):
            return number
    raise ValueError(f"step, the first argument, must be a whole number of at least 0, got {_shown(step)}.")


def metric_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Give metrics as floats by name, or refuse them."""
    numbers = {}
    for name, value in metrics.items():
        number = None
        if not isinstance(value, (str, bytes)):
            with contextlib.suppress(TypeError, ValueError, OverflowError):
                number = float(value)
        if number is None:
            raise TypeError(
                f"metrics must be numbers, got {_shown(value)} for {name!r}. What describes a checkpoint otherwise "
                "goes into metadata=."
            )
        numbers[str(name)] = number
    return numbers


def makes(init: Any) -> bool:
    """Tell whether something to begin with is made by a call. Not by callable(): a model is that, too."""
    if isinstance(init, types.FunctionType | types.MethodType | types.BuiltinFunctionType | functools.partial | type):
        return True
    return callable(init) and hasattr(init, "__wrapped__")  # as jax.jit makes them


def _shown(value: Any) -> str:
    """Write a value, or what it is where that is long: a model may have been passed by mistake."""
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else f"a {type(value).__qualname__}"


def listed(steps: list[int]) -> str:
    """Write steps, or the ends of a long list."""
    shown = ", ".join(map(str, steps)) if len(steps) <= 6 else f"{steps[0]}, {steps[1]}, ... {steps[-1]}"
    return f"step{'s'[: len(steps) != 1]} {shown}" if steps else ""
