"""brainpy: networks and other objects that hold variables; a variable is a ``brainstate.State``."""

from __future__ import annotations

from typing import Any

from brainpy.math import BrainPyObject

from ..document import Value
from ..errors import LinkedPath
from ..tree.containers import as_items, container_mismatch, mapping_state, node_parts, plan_fields
from ..tree.decode import Decoder
from ..tree.encode import Encoder
from ..tree.merge import Merger
from ..tree.registry import Handler, Registry
from ..tree.requests import Build
from ..tree.scalars import class_name


class ObjectHandler(Handler):
    """``BrainPyObject``: its variables, by the way that leads to them.

    Their own names count the objects that were made before, and so differ from process to process.
    """

    tag = "brainpy.math.BrainPyObject"
    stateful = True

    def encode(self, obj: Any, encoder: Encoder) -> Value:
        """Write the variables."""
        return encoder.node(self.tag, encoder.mapping(_variables(obj)), **{"class": class_name(type(obj))})

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Give the variables: only a target can say how the object is built."""
        return decoder.plain(
            state,
            f"The checkpoint holds a brainpy object of the class {attributes['class']!r}: without a target it is "
            "loaded as a dict of its variables. Pass the object as target.",
        )

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Plan all variables of the object, which is changed in one step."""
        found = node_parts(value, self.tag)
        items = as_items(mapping_state(found[0] if found else value))
        if items is None:
            return container_mismatch(target, f"a brainpy {type(target).__name__}", value, path, merger)
        plans = plan_fields(_variables(target), items, path, merger)

        def build() -> Any:
            for _, plan in plans:
                plan()
            return target

        return build


def _variables(obj: Any) -> dict[str, Any]:
    return dict(sorted(obj.vars(method="relative").items()))


def set_up(registry: Registry) -> None:
    """Register the types of brainpy."""
    registry.register(BrainPyObject, ObjectHandler())
