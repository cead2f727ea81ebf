"""brainpy: networks and other objects that hold variables; a variable is a ``brainstate.State``."""

from __future__ import annotations

from typing import Any

import brainstate
from brainpy.math import BrainPyObject

from ..document import Value
from ..errors import LinkedPath
from ..tree.containers import as_items, container_mismatch, mapping_state, plan_fields
from ..tree.decode import Decoder
from ..tree.encode import Encoder
from ..tree.merge import Merger
from ..tree.nested import chosen_of_file
from ..tree.registry import Handler, Registry
from ..tree.requests import Build
from ..tree.scalars import class_name
from ..tree.selection import chosen, filtered
from .brainstate import FILTERS


class ObjectHandler(Handler):
    """``BrainPyObject``: its variables, by the way that leads to them.

    Their own names count the objects that were made before, and so differ from process to process.
    """

    tag = "brainpy.math.BrainPyObject"
    stateful = True

    def encode(self, obj: Any, encoder: Encoder) -> Value:
        """Write the variables."""
        taken = chosen({(name,): variable for name, variable in _variables(obj).items()}, encoder.selection, FILTERS)
        with filtered(encoder):
            state = encoder.mapping({name: variable for (name,), variable in taken.items()})
        return encoder.node(self.tag, state, **{"class": class_name(type(obj))})

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Give the variables: only a target can say how the object is built."""
        return decoder.plain(
            state,
            f"The checkpoint holds a brainpy object of the class {attributes['class']!r}: without a target it is "
            "loaded as a dict of its variables. Pass the object as target.",
        )

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Plan all variables of the object, which is changed in one step."""
        leaves = {(name,): variable for name, variable in _variables(target).items()}
        taken, value = chosen_of_file(leaves, value, path, merger, FILTERS)
        items = as_items(mapping_state(value))
        if items is None:
            return container_mismatch(target, f"a brainpy {type(target).__name__}", value, path, merger)
        with filtered(merger):
            plans = plan_fields({name: variable for (name,), variable in taken.items()}, items, path, merger)

        def build() -> Any:
            for _, plan in plans:
                plan()
            return target

        return build


def _variables(obj: Any) -> dict[str, Any]:
    found = dict(obj.vars(method="relative"))
    known = {id(variable) for variable in found.values()}
    for way, node in obj.nodes(method="relative").items():
        for name, item in vars(node).items():
            for path, state in _states_of(item).items():
                if id(state) not in known:
                    known.add(id(state))
                    found[".".join([*filter(None, [way]), name, *map(str, path)])] = state
    return dict(sorted(found.items()))


def _states_of(item: Any) -> dict[tuple[Any, ...], Any]:
    """Give the states of brainstate that are no variables of brainpy: a random generator, those of a module."""
    if isinstance(item, brainstate.State):
        return {(): item}
    return dict(brainstate.graph.states(item)) if isinstance(item, brainstate.graph.Node) else {}


def set_up(registry: Registry) -> None:
    """Register the types of brainpy."""
    registry.register(BrainPyObject, ObjectHandler())
