"""brainstate: states, modules, and the mappings that ``model.states()`` gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import brainstate
from brainstate.util.filter import to_predicate

from ..document import NODE, Value
from ..errors import LinkedPath, Steps
from ..tree.cells import CellHandler
from ..tree.containers import (
    as_items,
    container_mismatch,
    mapping_state,
    node_parts,
    note_missing,
    note_unexpected,
    plan_fields,
)
from ..tree.decode import Decoder
from ..tree.encode import Encoder
from ..tree.merge import Merger
from ..tree.nested import without
from ..tree.registry import Handler, Registry
from ..tree.requests import Build
from ..tree.scalars import class_name
from ..tree.selection import Leaves, speaks_of, warn_of_random

State = brainstate.State
RandomState = brainstate.random.RandomState
FlattedDict = brainstate.util.FlattedDict
NestedDict = brainstate.util.NestedDict


class StateHandler(CellHandler):
    """``State`` and its subclasses: the value is saved."""

    tag = "brainstate.State"

    def encode(self, state: Any, encoder: Encoder) -> Value:
        """Write the value and the kind of state."""
        attributes: dict[str, Value] = {"class": _kind(type(state))}
        if state.name is not None:
            attributes["name"] = encoder.encode(state.name)
        if state.tag is not None:
            attributes["tag"] = encoder.encode(state.tag)
        return [NODE, self.tag, encoder.encode(state.value), attributes]

    def encode_many(self, objects: list[Any], encoder: Encoder) -> list[Value] | None:
        """Write many states of one class, whose values are arrays or quantities."""
        if any(state.name is not None or state.tag is not None for state in objects):
            return None
        held = [state.value for state in objects]
        if any(issubclass(ty, State) for ty in set(map(type, held))):  # it could be among them, and hold itself
            return None
        values = encoder.many(held)
        kind = _kind(type(objects[0]))
        return None if values is None else [[NODE, self.tag, value, {"class": kind}] for value in values]

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Make a state of the same class, if it is one of brainstate's own."""
        name = attributes["class"]
        ty = _own_kinds().get(name)
        if ty is None:
            return decoder.plain(
                state,
                f"The checkpoint holds a State of the class {name!r}: without a target it is loaded as its plain "
                "value. Pass a target to get the class back.",
            )
        made = ty(decoder.decode(state))
        if "name" in attributes:
            made.name = decoder.decode(attributes["name"])
        if "tag" in attributes:
            made.tag = decoder.decode(attributes["tag"])
        return made

    def read(self, cell: Any) -> Any:
        """Give the state's value."""
        return cell.value

    def write(self, cell: Any, value: Any) -> None:
        """Set the state's value."""
        cell.value = value

    def undo(self, cell: Any) -> Callable[[], object]:
        """Go past the setter, which may be what failed."""
        return partial(vars(cell).update, dict(vars(cell)))


def _kind(ty: type) -> str:
    return ty.__name__ if _own_kinds().get(ty.__name__) is ty else class_name(ty)


@cache
def _own_kinds() -> dict[str, type]:
    spaces = (brainstate, brainstate.random)
    kinds = {name: ty for space in spaces for name, ty in vars(space).items() if isinstance(ty, type)}
    return {name: ty for name, ty in kinds.items() if issubclass(ty, State)}


class NestedDictHandler(Handler):
    """``NestedDict``."""

    tag = "brainstate.NestedDict"

    def encode(self, obj: Any, encoder: Encoder) -> Value:
        """Write the items."""
        return encoder.node(self.tag, encoder.mapping(obj))

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Make a nested dict."""
        return NestedDict(decoder.mapping(state))

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Plan by key."""
        items = as_items(mapping_state(value))
        if items is None:
            return container_mismatch(target, "a NestedDict", value, path, merger)
        plans = plan_fields(target, items, path, merger)
        return lambda: type(target)({key: plan() for key, plan in plans})


class FlattedDictHandler(Handler):
    """``FlattedDict``: keys are tuples, which name the way through nested dicts."""

    tag = "brainstate.FlattedDict"

    def encode(self, obj: Any, encoder: Encoder) -> Value:
        """Write the items."""
        return encoder.node(self.tag, encoder.mapping(obj))

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Make a flatted dict."""
        return FlattedDict(decoder.mapping(state))

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Plan by key; nested dicts, as ``braintools.file`` writes them, are followed along the keys."""
        found = node_parts(value, self.tag)
        items = as_items(found[0]) if found else as_items(mapping_state(value))
        if items is None:
            return container_mismatch(target, "a FlattedDict", value, path, merger)
        plans = plan_fields(target, items, path, merger, Steps) if found else _plan_nested(target, items, path, merger)
        return lambda: type(target)({key: plan() for key, plan in plans})


def _plan_nested(target: Any, items: dict[Any, Value], path: LinkedPath, merger: Merger) -> list[tuple[Any, Build]]:
    plans: list[tuple[Any, Build]] = []
    missing = []
    for key, state in target.items():
        found = _follow(items, key)
        if found is None:
            missing.append(key)
            plans.append((key, merger.keep(state)))
        else:
            plans.append((key, merger.plan(state, found[0], (path, Steps(key)))))
    if missing:
        note_missing(missing, path, merger)
    prefixes = {tuple(map(str, key[:n])) for key in target for n in range(1, len(key) + 1)}
    ends = {tuple(map(str, key)) for key in target}
    extra = list(_strangers(items, (), prefixes, ends))
    if extra and not merger.options.partial:
        note_unexpected(extra, path, merger)
    return plans


def _follow(items: Any, key: tuple[Any, ...]) -> tuple[Value] | None:
    value: Value = items
    for step in key:
        value = as_items(mapping_state(value))
        if value is None:
            return None
        if step not in value:
            step = str(step)
        if step not in value:
            return None
        value = value[step]
    return (value,)


def _strangers(items: Any, at: tuple[str, ...], prefixes: set[Any], ends: set[Any]) -> Iterator[Any]:
    for key, value in items.items():
        here = (*at, str(key))
        if here in ends:
            continue
        below = as_items(mapping_state(value)) if here in prefixes else None
        if below is None:
            yield here
        else:
            yield from _strangers(below, here, prefixes, ends)


class ModuleHandler(Handler):
    """``brainstate.nn.Module`` and other graph nodes: their states, by path."""

    tag = "brainstate.Module"

    def encode(self, module: Any, encoder: Encoder) -> Value:
        """Write the states."""
        states = brainstate.graph.states(module)
        if encoder.selection is not None:
            chosen, left_out = encoder.selection.split(dict(states), to_predicate)
            _warn_of_random(left_out, encoder.selection.only, "saved")
            states = FlattedDict(chosen)
        return encoder.node(self.tag, encoder.mapping(states), **{"class": class_name(type(module))})

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Give the states: only a target can say how the module is built."""
        return decoder.plain(
            state,
            f"The checkpoint holds a module of the class {attributes['class']!r}: without a target it is loaded as a "
            "dict of its states. Pass a module as target.",
        )

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Plan all states of the module, which is changed in one step."""
        states = brainstate.graph.states(target)
        if merger.selection is not None:
            states, left_out = merger.selection.split(dict(states), to_predicate)
            value, dropped = without(value, left_out, merger)
            _warn_of_random({key: left_out[key] for key in dropped}, merger.selection.only, "loaded")
        found = node_parts(value, self.tag) or node_parts(value, FlattedDictHandler.tag)
        items = as_items(found[0] if found else mapping_state(value))
        if items is None:
            return container_mismatch(target, f"a module {type(target).__name__}", value, path, merger)
        plans = plan_fields(states, items, path, merger, Steps) if found else _plan_nested(states, items, path, merger)

        def build() -> Any:
            for _, plan in plans:
                plan()
            return target

        return build


def _warn_of_random(leaves: Leaves, only: Any, what: str) -> None:
    random = [path for path, state in leaves.items() if isinstance(state, RandomState)]
    if random and not speaks_of(only, RandomState):
        warn_of_random(
            random,
            what,
            "If it has to be, pass only=(..., RandomState); if not, say so: only=All(..., Not(RandomState)), of "
            "brainstate.util.filter.",
        )


def set_up(registry: Registry) -> None:
    """Register the types of brainstate."""
    registry.register(State, StateHandler())
    registry.register(NestedDict, NestedDictHandler())
    registry.register(FlattedDict, FlattedDictHandler())
    registry.register(brainstate.graph.Node, ModuleHandler())
