"""What a run needs to go on with the same bits, in one tree."""

from __future__ import annotations

import random
from typing import Any

import numpy as np


class _PythonRandom:
    """The generator behind the functions of Python's ``random``."""

    def get_state(self) -> Any:
        return random.getstate()

    def set_state(self, state: Any) -> None:
        random.setstate(state)


class _NumpyRandom:
    """The generator behind the functions of ``numpy.random``."""

    def get_state(self) -> Any:
        return np.random.get_state(legacy=False)  # noqa: NPY002  (it is that one which is meant)

    def set_state(self, state: Any) -> None:
        np.random.set_state(state)  # noqa: NPY002


def run_state(**parts: Any) -> dict[str, Any]:
    """Put together what a run needs to go on with the same bits: its parts, and the generators that are global.

    Parameters
    ----------
    **parts
        Model, optimizer, random keys, data iterators and whatever else there is. An object without a handler of its own
        has to have the methods ``state_dict`` and ``load_state_dict``, or ``get_state`` and ``set_state``, as iterators
        of data do.

    Returns
    -------
    dict
        The parts, and under ``'random'`` the generators of Python's ``random`` and of ``numpy.random``: as what is
        saved, and as the target of a load, which sets them. The key of jax is a part, and so is
        ``brainstate.random.DEFAULT``.

    Raises
    ------
    ValueError
        If a part is called ``random``.

    Examples
    --------
    >>> import random, tempfile
    >>> import jax
    >>> from braintools_ckpt import CheckpointManager, run_state
    >>> with CheckpointManager(tempfile.mkdtemp()) as manager:
    ...     step, run = manager.restore_or(run_state(w=0.5, key=jax.random.key(0)))
    ...     saved = manager.save(step + 1, run_state(w=0.25, key=run["key"]))
    ...     expected = random.random()
    ...     step, run = manager.restore_or(run_state(w=0.0, key=jax.random.key(1)))
    ...     print(step, run["w"], random.random() == expected)
    1 0.25 True
    """
    if "random" in parts:
        raise ValueError("A part cannot be called 'random': that is where the global generators are.")
    return {**parts, "random": {"python": _PythonRandom(), "numpy": _NumpyRandom()}}
