"""equinox: modules, by the names of their fields, and the state of stateful layers."""

from __future__ import annotations

from typing import Any

import equinox as eqx
from equinox.nn._shared import SharedNode  # it has no public name

from ..document import Value
from ..errors import LinkedPath, SerializationError
from ..tree.classes import Fail, failing_at
from ..tree.containers import as_items, container_mismatch, mapping_state, node_parts, plan_fields
from ..tree.decode import Decoder
from ..tree.encode import Encoder, Trouble
from ..tree.merge import Merger, constant
from ..tree.pytrees import PytreeHandler
from ..tree.registry import Handler, Registry
from ..tree.requests import Build


class ModuleHandler(PytreeHandler):
    """``Module``: its fields are saved, but for static ones and functions, which come from the target."""

    tag = "equinox.Module"

    def encode(self, obj: Any, encoder: Encoder) -> Value:
        """Write the fields; functions may stand anywhere beneath."""
        outer, encoder.functions_stay = encoder.functions_stay, True
        try:
            return super().encode(obj, encoder)
        finally:
            encoder.functions_stay = outer


class StateHandler(Handler):
    """``nn.State``: the states of stateful layers, by the names that ``make_with_state`` gives them."""

    tag = "equinox.nn.State"

    def encode(self, state: Any, encoder: Encoder) -> Value:
        """Write the states."""
        return encoder.node(self.tag, encoder.mapping(_named(state, Trouble)))

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Give the states as a dict: what they belong to, only a target can say."""
        return decoder.plain(
            state,
            "The checkpoint holds an equinox.nn.State: without a target it is loaded as a dict of its states. Pass one "
            "as target.",
        )

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Plan by name; the result is a new state."""
        found = node_parts(value, self.tag)
        items = as_items(mapping_state(found[0] if found else value))
        if items is None:
            return container_mismatch(target, "an equinox.nn.State", value, path, merger)
        plans = plan_fields(_named(target, failing_at(path, merger)), items, path, merger)
        _, markers = target.tree_flatten()
        return lambda: type(target).tree_unflatten(markers, [plan() for _, plan in plans])


class SharedNodeHandler(Handler):
    """What ``nn.Shared`` puts where a part was that is tied to another one."""

    tag = "function"  # as a function, it holds nothing
    tracked = False

    def encode(self, node: Any, encoder: Encoder) -> Value:
        """Note the place."""
        return encoder.leaf(self.tag, None, name="SharedNode")

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Keep the target's."""
        if value is None or node_parts(value, self.tag) is not None:
            return constant(target)
        return merger.leaf_mismatch(target, "a SharedNode", value, path)


def _named(state: Any, fail: Fail) -> dict[Any, Any]:
    values, markers = state.tree_flatten()
    if not all(isinstance(marker, str) for marker in markers):
        raise fail(
            lambda path: SerializationError(
                f"The equinox.nn.State at path {path} has no names for its states, by which they could be told apart. "
                "Make model and state with equinox.nn.make_with_state (of equinox 0.13.1 or newer)."
            )
        )
    return dict(zip(markers, values, strict=True))


def set_up(registry: Registry) -> None:
    """Register the types of equinox."""
    registry.register(eqx.Module, ModuleHandler())
    registry.register(eqx.nn.State, StateHandler())
    registry.register(SharedNode, SharedNodeHandler(), reads=False)
