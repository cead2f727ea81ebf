"""equinox: modules, by the names of their fields, and the state of stateful layers."""

from __future__ import annotations

from typing import Any

import equinox as eqx

from ..document import Value
from ..errors import LinkedPath
from ..tree.containers import as_items, container_mismatch, mapping_state, node_parts, plan_fields
from ..tree.decode import Decoder
from ..tree.encode import Encoder
from ..tree.merge import Merger
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
        return encoder.node(self.tag, encoder.mapping(_named(state)))

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
        plans = plan_fields(_named(target), items, path, merger)
        _, markers = target.tree_flatten()
        return lambda: type(target).tree_unflatten(markers, [plan() for _, plan in plans])


def _named(state: Any) -> dict[Any, Any]:
    values, markers = state.tree_flatten()
    # Markers are texts once a model has been made, and objects without a name before.
    names = [marker if isinstance(marker, str) else place for place, marker in enumerate(markers)]
    return dict(zip(names, values, strict=True))


def set_up(registry: Registry) -> None:
    """Register the types of equinox."""
    registry.register(eqx.Module, ModuleHandler())
    registry.register(eqx.nn.State, StateHandler())
