"""save_in_loop: saves from within functions that jax has compiled."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .api import msgpack_save
from .arguments import Compression, Format, check_save
from .document import Document, LiveArrays
from .tree import registry
from .tree.encode import encode
from .tree.selection import Selection

if TYPE_CHECKING:
    from .async_manager import AsyncManager


def save_in_loop(
    destination: str | os.PathLike[str],
    every: int = 1000,
    *,
    overwrite: bool = True,
    async_manager: AsyncManager | None = None,
    metadata: Mapping[str, Any] | None = None,
    format: Format = "v1",
    compression: Compression | None = None,
    durable: bool = True,
    only: Any = None,
) -> Callable[[Any, Any], None]:
    """Make a function that saves a tree every so many steps, also inside of compiled loops.

    It can be called in the body of ``jax.jit``, ``jax.lax.scan``, ``fori_loop``, ``while_loop`` and
    ``brainstate.transform.for_loop``, and outside of all of them. What is saved are the current values; units, states
    and classes are kept as :func:`msgpack_save` keeps them. In the steps between nothing leaves the device.

    Parameters
    ----------
    destination : str or os.PathLike
        Where to save. ``{step}`` in it becomes the number of the step, as in ``'run/{step:08}.ckpt'``; else each save
        replaces the one before.
    every : int, default 1000
        Steps whose number can be divided by this are saved, so step 0 as well.
    async_manager : AsyncManager, optional
        Write in the background: the loop waits only while the values are copied. Waiting for the manager, and closing
        it, then waits for loops that the same thread has begun as well.
    metadata : mapping, optional
        As in :func:`msgpack_save`; the number of the step is added as ``'step'``.
    overwrite, format, compression, durable, only
        As in :func:`msgpack_save`.

    Returns
    -------
    callable
        ``save(step, tree)``, of a whole number and any tree that can be saved; it gives None.

    Raises
    ------
    ValueError
        If ``every`` is not positive, ``destination`` cannot be formatted, or an option is none.
    TypeError
        If ``destination`` is no path, ``every`` no whole number, or ``async_manager`` no manager; by the function that
        is given, if the step is not one whole number.
    SerializationError
        By the function that is given, if the tree cannot be saved, or it is called inside of ``shard_map`` or ``pmap``.

    Notes
    -----
    Save what a step returns rather than what it was given: jax has to copy, in every step, a value that is saved and
    then updated in place.

    jax runs the calls in order, but may return from a loop before the last one has ended: ``jax.effects_barrier()``
    waits for them. An error in a save is raised by jax, as its own, where the results of the loop are waited for.

    What jax does not trace has the value of when it was: a numpy array, and a ``State`` outside of brainstate's own
    transformations. Under ``jax.vmap`` and ``jax.checkpoint`` jax refuses calls to Python, and where ``jax.grad`` goes
    through a loop it drops them without a word: save outside of the function that is differentiated.

    Examples
    --------
    >>> import os, tempfile
    >>> import brainunit as u, jax, jax.numpy as jnp
    >>> from braintools_ckpt import msgpack_load, save_in_loop
    >>> folder = tempfile.mkdtemp()
    >>> save = save_in_loop(os.path.join(folder, "{step}.ckpt"), every=100)
    >>> def step(v, i):
    ...     v = v + 0.5 * u.mV
    ...     save(i, {"v": v})
    ...     return v, None
    >>> v, _ = jax.lax.scan(step, -65.0 * u.mV, jnp.arange(250))
    >>> jax.effects_barrier()
    >>> sorted(os.listdir(folder))
    ['0.ckpt', '100.ckpt', '200.ckpt']
    >>> print(msgpack_load(os.path.join(folder, "200.ckpt"))["v"])
    35.5 mV
    """
    every = _checked(every, destination)
    check_save(destination, format, metadata, compression, async_manager)
    pattern, folder = os.fspath(destination), os.getcwd()  # the program may go to another one
    _path(pattern, 0)

    def put(step: int, tree: Any) -> None:
        _put(
            os.path.join(folder, _path(pattern, step)),
            tree,
            overwrite,
            async_manager,
            metadata={**(metadata or {}), "step": step} if format == "v1" else None,
            format=format,
            compression=compression,
            durable=durable,
        )

    def save(step: Any, tree: Any) -> None:
        registry.activate("jax")
        from .adapters.jax import every_so_often, finish_effects, is_traced, whole_number

        step = whole_number(step)
        document = encode(tree, registry, traced=True, selection=None if only is None else Selection(only))
        sources = document.arrays.sources  # type: ignore[attr-defined]
        if not any(map(is_traced, [step, *sources])):
            if step % every == 0:
                put(step, document)
            return
        # All arrays of jax, also those that have their values: none is kept beyond the trace.
        given = [index for index, source in enumerate(sources) if not isinstance(source, np.ndarray)]
        arrays = [sources[index] for index in given]
        completed = _completion(document, given)
        if async_manager is not None and hasattr(async_manager, "add_barrier"):
            async_manager.add_barrier(finish_effects)
        every_so_often(step, every, lambda step, *arrays: put(int(step), completed(arrays)), arrays)

    return save


def _checked(every: Any, destination: Any) -> int:
    try:
        every = operator.index(every)
    except TypeError:
        raise TypeError(f"every must be a whole number, got {every!r}.") from None
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}.")
    if not isinstance(destination, (str, os.PathLike)):
        raise TypeError(f"destination must be a path, got {type(destination).__name__}.")
    return int(every)


def _put(path: str, tree: Any, overwrite: bool, async_manager: AsyncManager | None, **how: Any) -> None:
    from .async_manager import ManagerClosedError

    try:
        msgpack_save(path, tree, overwrite, async_manager, **how)
    except ManagerClosedError:  # a loop that another thread has begun may outlive the manager
        msgpack_save(path, tree, overwrite, **how)


def _path(pattern: str, step: int) -> str:
    try:
        return pattern.format(step=step) if "{" in pattern else pattern
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"destination {pattern!r} cannot be formatted ({type(error).__name__}: {error}). The only name that may "
            "stand in braces is step, as in 'run/{step:08}.ckpt'."
        ) from error


def _completion(document: Document, given: list[int]) -> Callable[[Sequence[Any]], Document]:
    """Give a function that puts arrays into their places in a document; the others are as they are now."""
    live = document.arrays
    assert isinstance(live, LiveArrays)
    sources = [np.array(source) if isinstance(source, np.ndarray) else None for source in live.sources]
    specs = live.specs

    def complete(arrays: Sequence[Any]) -> Document:
        whole = LiveArrays()
        whole.extend(specs, list(sources))
        for index, array in zip(given, arrays, strict=True):
            # On the host, and copied by whoever keeps it: the memory may be that of the running loop.
            whole.sources[index] = np.asarray(array)
        return replace(document, arrays=whole)

    document.arrays = LiveArrays()  # nothing of a trace may be kept longer than the trace
    return complete
