"""brainstate: states, modules, and the mappings that ``model.states()`` gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from typing import Any

import brainstate
from brainstate.util.filter import to_predicate

from ..document import NODE, Value
from ..errors import LinkedPath, Steps
from ..tree.cells import CellHandler
from ..tree.containers import (
    as_items,
    container_mismatch,
    leave_unexpected,
    mapping_state,
    node_parts,
    note_missing,
    plan_fields,
)
from ..tree.decode import Decoder
from ..tree.encode import Encoder
from ..tree.merge import Merger
from ..tree.nested import chosen_of_file, nest, unnest
from ..tree.registry import Handler, Registry
from ..tree.requests import Build
from ..tree.scalars import class_name
from ..tree.selection import FilterLibrary, Leaves, chosen, filtered, require_chosen

State = brainstate.State
RandomState = brainstate.random.RandomState
FlattedDict = brainstate.util.FlattedDict
NestedDict = brainstate.util.NestedDict


def _example(name: str) -> Any:
    with suppress(TypeError):  # some are made of other things
        return _own_kinds()[name](0.0) if name in _own_kinds() else None


FILTERS = FilterLibrary(
    to_predicate,
    RandomState,
    "If it has to be, pass only=(..., RandomState); if not, say so: only=All(..., Not(RandomState)), of "
    "brainstate.util.filter.",
    _example,
)


class StateHandler(CellHandler):
    """``State`` and its subclasses: the value is saved."""

    tag = "brainstate.State"
    title = "a State"
    filters = FILTERS

    def encode(self, state: Any, encoder: Encoder) -> Value:
        """Write the value and the kind of state."""
        require_chosen(state, encoder.selection, FILTERS)
        attributes: dict[str, Value] = {"class": _kind(type(state))}
        if state.name is not None:
            attributes["name"] = encoder.encode(state.name)
        if state.tag is not None:
            attributes["tag"] = encoder.encode(state.tag)
        return [NODE, self.tag, encoder.encode(self.read(state)), attributes]

    def encode_many(self, objects: list[Any], encoder: Encoder) -> list[Value] | None:
        """Write many states of one class, whose values are arrays or quantities."""
        if encoder.selection is not None or any(s.name is not None or s.tag is not None for s in objects):
            return None
        held = list(map(self.read, objects))
        if any(issubclass(ty, State) for ty in set(map(type, held))):  # it could be among them, and hold itself
            return None
        values = encoder.many(held)
        kind = _kind(type(objects[0]))
        return None if values is None else [[NODE, self.tag, value, {"class": kind}] for value in values]

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Make a state of the same class, if it is one of brainstate's own, with its name and tag."""
        made = super().decode(state, attributes, decoder)
        if attributes["class"] in self.kinds():
            for name in {"name", "tag"} & attributes.keys():
                setattr(made, name, decoder.decode(attributes[name]))
        return made

    def kinds(self) -> Mapping[str, type]:
        """Give brainstate's own classes."""
        return _own_kinds()


class TreeStateHandler(StateHandler):
    """``HiddenTreeState``: one array without a unit, which stands for many values by name, each with its own."""

    def read(self, cell: Any) -> Any:
        """Give the values by name."""
        return {name: cell.get_value(name) for name in cell.name2index}

    def write(self, cell: Any, value: Any) -> None:
        """Set the values."""
        cell.set_value(value)


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
        if encoder.selection is not None:
            obj = nest(chosen(dict(obj.to_flat()), encoder.selection, FILTERS))
        with filtered(encoder):
            return encoder.node(self.tag, encoder.mapping(obj))

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Make a nested dict."""
        return NestedDict(decoder.mapping(state))

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Plan by key."""
        items = as_items(mapping_state(value))
        if items is None:
            return container_mismatch(target, "a NestedDict", value, path, merger)
        if merger.selection is not None:
            flat = target.to_flat()
            taken, value = chosen_of_file(dict(flat), value, path, merger, FILTERS)
            with filtered(merger):
                plan = merger.plan(nest(taken), value, path)
            return lambda: type(target)(nest({**flat, **unnest(plan(), taken)}))
        plans = plan_fields(target, items, path, merger)
        return lambda: type(target)({key: plan() for key, plan in plans})


class FlattedDictHandler(Handler):
    """``FlattedDict``: keys are tuples, which name the way through nested dicts."""

    tag = "brainstate.FlattedDict"

    def encode(self, obj: Any, encoder: Encoder) -> Value:
        """Write the items."""
        states = FlattedDict(chosen(dict(obj), encoder.selection, FILTERS))
        with filtered(encoder):
            return encoder.node(self.tag, encoder.mapping(states))

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Make a flatted dict."""
        return FlattedDict(decoder.mapping(state))

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Plan by key; nested dicts, as ``braintools.file`` writes them, are followed along the keys."""
        plans = _plan_flat(dict(target), value, path, merger)
        if plans is None:
            return container_mismatch(target, "a FlattedDict", value, path, merger)
        return lambda: type(target)({**target, **{key: plan() for key, plan in plans}})


def _plan_flat(leaves: Leaves, value: Value, path: LinkedPath, merger: Merger) -> list[tuple[Any, Build]] | None:
    """Plan leaves by their paths; None if the file has no mapping."""
    taken, value = chosen_of_file(leaves, value, path, merger, FILTERS)
    found = node_parts(value, FlattedDictHandler.tag) or node_parts(value, ModuleHandler.tag)
    items = as_items(found[0] if found else mapping_state(value))
    if items is None:
        return None
    with filtered(merger):
        return plan_fields(taken, items, path, merger, Steps) if found else _plan_nested(taken, items, path, merger)


def _plan_nested(target: Any, items: dict[Any, Value], path: LinkedPath, merger: Merger) -> list[tuple[Any, Build]]:
    plans: list[tuple[Any, Build]] = []
    missing = []
    for key, state in target.items():
        found = _follow(items, key)
        if found is None:
            missing.append(key)
            plans.append((key, merger.keep(state, (path, Steps(key)))))
        else:
            plans.append((key, merger.plan(state, found[0], (path, Steps(key)))))
    if missing:
        note_missing(missing, path, merger)
    prefixes = {tuple(map(str, key[:n])) for key in target for n in range(1, len(key) + 1)}
    ends = {tuple(map(str, key)) for key in target}
    extra = list(_strangers(items, (), prefixes, ends))
    if extra:
        leave_unexpected(extra, path, merger, Steps)
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

    def states(self, module: Any) -> Leaves:
        """Give the states by path."""
        return dict(brainstate.graph.states(module))

    def encode(self, module: Any, encoder: Encoder) -> Value:
        """Write the states."""
        states = FlattedDict(chosen(self.states(module), encoder.selection, FILTERS))
        with filtered(encoder):
            state = encoder.mapping(states)
        return encoder.node(self.tag, state, **{"class": class_name(type(module))})

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Give the states: only a target can say how the module is built."""
        return decoder.plain(
            state,
            f"The checkpoint holds a module of the class {attributes['class']!r}: without a target it is loaded as a "
            "dict of its states. Pass a module as target.",
        )

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Plan all states of the module, which is changed in one step."""
        plans = _plan_flat(self.states(target), value, path, merger)
        if plans is None:
            return container_mismatch(target, f"a module {type(target).__name__}", value, path, merger)

        def build() -> Any:
            for _, plan in plans:
                plan()
            return target

        return build


def set_up(registry: Registry) -> None:
    """Register the types of brainstate."""
    registry.register(State, StateHandler())
    if hasattr(brainstate, "HiddenTreeState"):
        registry.register(brainstate.HiddenTreeState, TreeStateHandler(), reads=False)
    registry.register(NestedDict, NestedDictHandler())
    registry.register(FlattedDict, FlattedDictHandler())
    registry.register(brainstate.graph.Node, ModuleHandler())
