"""brainstate: states, modules, and the mappings that ``model.states()`` gives."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import brainstate

from ..document import NODE, Value
from ..errors import HandlerError, LinkedPath, Steps
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
from ..tree.merge import Merger, same_values
from ..tree.registry import Handler, Registry
from ..tree.requests import Build
from ..tree.scalars import class_name

State = brainstate.State
FlattedDict = brainstate.util.FlattedDict
NestedDict = brainstate.util.NestedDict


class StateHandler(Handler):
    """``State`` and its subclasses: the value is saved; a target is changed only when the whole load has succeeded."""

    tag = "brainstate.State"
    stateful = True

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

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Plan the value; the target state takes it when the load commits."""
        found = node_parts(value, self.tag)
        old = target.value
        plan = merger.plan(old, found[0] if found else value, path)
        # Met twice, and not because the file has one state there: both values have to be the same.
        first = merger.states.setdefault(id(target), (target, plan))[1]
        if first is not plan:
            return lambda: _confirm(target, old, first(), plan(), path, merger)
        return partial(_assign_built, target, plan, merger)

    def plan_many(
        self, targets: list[Any], values: list[Value], paths: list[LinkedPath], merger: Merger
    ) -> list[Build] | None:
        """Plan many states that were not met before, whose values fit."""
        ids = set(map(id, targets))
        if len(ids) < len(targets) or not merger.states.keys().isdisjoint(ids):
            return None
        if any(node_parts(value, self.tag) is None for value in values):
            return None
        plans = merger.plan_alike([target.value for target in targets], [value[2] for value in values], paths)
        if plans is None:
            return None
        merger.states.update((id(target), (target, plan)) for target, plan in zip(targets, plans, strict=True))
        return [partial(_assign_built, target, plan, merger) for target, plan in zip(targets, plans, strict=True)]


def _assign_built(target: Any, plan: Build, merger: Merger) -> Any:
    return _assign(target, plan(), merger)


def _confirm(target: Any, old: Any, first: Any, second: Any, path: LinkedPath, merger: Merger) -> Any:
    if not same_values(first, second, merger.registry):
        text = (
            "State mismatch: expected one value for a state that the target has in several places, got two that differ"
        )
        merger.note("leaf", path, text, expected="one value", found="two values")
        return _assign(target, old, merger)
    return target


def _assign(target: Any, new: Any, merger: Merger) -> Any:
    # What takes the change back goes past the setter, which may be what failed.
    merger.transaction.apply(partial(_set, target, new), partial(vars(target).update, dict(vars(target))))
    return target


def _set(state: Any, value: Any) -> None:
    try:
        state.value = value
    except Exception as error:
        raise HandlerError(
            f"The {type(state).__name__} refused the value that was loaded for it: {type(error).__name__}: {error}"
        ) from error


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


def set_up(registry: Registry) -> None:
    """Register the types of brainstate."""
    registry.register(State, StateHandler())
    registry.register(NestedDict, NestedDictHandler())
    registry.register(FlattedDict, FlattedDictHandler())
    registry.register(brainstate.graph.Node, ModuleHandler())
