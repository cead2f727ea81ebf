"""What a save in the background is written from: values that nobody can change any more."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import numpy as np

from ..document import LiveArrays
from ..threads import do_all
from .registry import Registry

#: Pieces in which large arrays are copied, by several threads.
_PIECE = 1 << 24


def take_snapshot(arrays: LiveArrays, registry: Registry) -> None:
    """Let a table of arrays hold what no one else can change: copies of numpy arrays, and the data of jax arrays.

    Of jax arrays on a CPU nothing is copied, and what has to come from a device comes later, on its own.
    """
    sources = arrays.sources
    elsewhere = [index for index, source in enumerate(sources) if not isinstance(source, np.ndarray)]
    if elsewhere:
        registry.activate("jax")
        from ..adapters.jax import hold

        # First: copies from devices are on their way while those of numpy arrays are made.
        for index, held in zip(elsewhere, hold([sources[index] for index in elsewhere]), strict=True):
            sources[index] = held
    if len(elsewhere) == len(sources):
        return
    here = sorted(set(range(len(sources))).difference(elsewhere))
    for index, copy in zip(here, _copies([sources[index] for index in here]), strict=True):
        sources[index] = copy


def _copies(arrays: list[Any]) -> list[np.ndarray[Any, Any]]:
    large = [array.nbytes > _PIECE and array.flags.c_contiguous and not array.dtype.hasobject for array in arrays]
    copies = [
        np.empty_like(array, subok=False) if is_large else np.array(array, order="C")
        for array, is_large in zip(arrays, large, strict=True)
    ]
    pieces = [
        partial(np.copyto, _flat(copy)[start : start + _PIECE], _flat(array)[start : start + _PIECE])
        for copy, array, is_large in zip(copies, arrays, large, strict=True)
        if is_large
        for start in range(0, array.nbytes, _PIECE)
    ]
    if pieces:
        do_all(pieces, min(4, os.cpu_count() or 1))
    return copies


def _flat(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array.view(np.ndarray).reshape(-1).view(np.uint8)
