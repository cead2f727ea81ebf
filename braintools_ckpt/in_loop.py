"""save_in_loop: saves from within functions that jax has compiled."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .api import msgpack_save
from .document import Document, LiveArrays
from .tree import registry
from .tree.encode import encode
from .tree.snapshot import take_snapshot


def save_in_loop(
    destination: str | os.PathLike[str],
    every: int = 1000,
    *,
    async_manager: Any = None,
    metadata: Mapping[str, Any] | None = None,
    **options: Any,
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
        it, then waits for the loop as well.
    metadata : mapping, optional
        As in :func:`msgpack_save`; the number of the step is added as ``'step'``.
    **options
        What else :func:`msgpack_save` takes.

    Returns
    -------
    callable
        ``save(step, tree)``, of a whole number and any tree that can be saved; it gives None.

    Raises
    ------
    ValueError
        If ``every`` is not positive, or ``destination`` cannot be formatted.

    Notes
    -----
    jax runs the calls in order, but may return from a loop before the last one has ended: ``jax.effects_barrier()``
    waits for them. An error in a save is raised by jax, where the results of the loop are waited for. It cannot be
    called under ``jax.vmap``, and where ``jax.grad`` goes through a ``scan`` jax drops all calls to Python without a
    word: save outside of the function that is differentiated.

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
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise ValueError(f"every must be a whole number of at least 1, got {every!r}.")
    if not isinstance(destination, (str, os.PathLike)):
        raise TypeError(f"destination must be a path, got {type(destination).__name__}.")
    pattern = os.fspath(destination)
    _path(pattern, 0)
    described = options.get("format") != "flax"

    def put(step: int, tree: Any) -> None:
        about = {**(metadata or {}), "step": step} if described else None
        msgpack_save(_path(pattern, step), tree, async_manager=async_manager, metadata=about, **options)

    def save(step: Any, tree: Any) -> None:
        registry.activate("jax")
        from .adapters.jax import every_so_often, finish_effects, is_traced

        document = encode(tree, registry, traced=True)
        sources = document.arrays.sources  # type: ignore[attr-defined]
        traced = [index for index, source in enumerate(sources) if is_traced(source)]
        if not traced and not is_traced(step):
            if int(step) % every == 0:
                put(int(step), tree)
            return
        arrays = [sources[index] for index in traced]
        completed = _completion(document, traced)
        if hasattr(async_manager, "before_waiting"):
            async_manager.before_waiting(finish_effects)
        every_so_often(step, every, lambda step, *arrays: put(int(step), completed(arrays)), arrays)

    return save


def _path(pattern: str, step: int) -> str:
    try:
        return pattern.format(step=step) if "{" in pattern else pattern
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"destination {pattern!r} cannot be formatted ({type(error).__name__}: {error}). The only name that may "
            "stand in braces is step, as in 'run/{step:08}.ckpt'."
        ) from error


def _completion(document: Document, traced: list[int]) -> Callable[[Sequence[Any]], Document]:
    """Give a function that puts data into the places of arrays that were traced; the other arrays stay as they are."""
    live = document.arrays
    assert isinstance(live, LiveArrays)
    for index in traced:
        live.sources[index] = None  # nothing of a trace may be kept longer than the trace
    constants = LiveArrays()
    others = sorted(set(range(len(live.sources))).difference(traced))
    constants.extend([live.specs[index] for index in others], [live.sources[index] for index in others])
    take_snapshot(constants, registry)

    def complete(arrays: Sequence[Any]) -> Document:
        whole = LiveArrays()
        found: dict[int, Any] = dict(zip(others, constants.sources, strict=True))
        found.update(zip(traced, arrays, strict=True))
        whole.extend(live.specs, [found[index] for index in range(len(live.specs))])
        return replace(document, arrays=whole)

    return complete
