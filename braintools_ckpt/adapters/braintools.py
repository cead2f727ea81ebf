"""braintools: optimizers, whose learning rate is the business of a scheduler with states of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import brainstate
from braintools.optim import LRScheduler, OptaxOptimizer

from ..tree.registry import Registry
from ..tree.selection import Leaves
from .brainstate import ModuleHandler


class OptimizerHandler(ModuleHandler):
    """``OptaxOptimizer``: its states and those of its schedulers, which are no nodes of the graph that it is."""

    def states(self, module: Any) -> Leaves:
        """Give the states by path."""
        states = super().states(module)
        known = {id(state) for state in states.values()}
        found = [*_states_of(module.lr_scheduler, ("lr_scheduler",)), *_inner(module.schedulers, ("schedulers",))]
        for path, state in found:
            if id(state) not in known:
                known.add(id(state))
                states[path] = state
        return states


def _states_of(scheduler: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    for name, item in sorted(vars(scheduler).items()):
        if isinstance(item, brainstate.State):
            yield (*path, name), item
        else:
            yield from _inner(item, (*path, name))


def _inner(item: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(item, LRScheduler):
        yield from _states_of(item, path)
    elif isinstance(item, (list, tuple)):
        for index, part in enumerate(item):
            yield from _inner(part, (*path, index))


def set_up(registry: Registry) -> None:
    """Register the optimizers."""
    registry.register(OptaxOptimizer, OptimizerHandler(), reads=False)
