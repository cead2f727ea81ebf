"""flax.nnx: variables, states, and the objects that hold them: modules, optimizers, random streams, metrics."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import flax
import jax
from flax import nnx
from flax.nnx import variablelib
from flax.nnx.filterlib import to_predicate

from ..document import NODE, Value
from ..errors import LinkedPath, MissingLibraryError
from ..tree.cells import CellHandler
from ..tree.containers import as_items, container_mismatch, mapping_state
from ..tree.decode import Decoder
from ..tree.encode import Encoder
from ..tree.merge import Merger
from ..tree.nested import nest, unnest, without
from ..tree.registry import Handler, Registry
from ..tree.requests import Build
from ..tree.scalars import class_name
from ..tree.selection import Leaves, Selection, speaks_of, warn_of_random

Variable = nnx.Variable
State = nnx.State


class VariableHandler(CellHandler):
    """``Variable`` and its subclasses, plain or as a reference: what is saved is the value, past all hooks."""

    tag = "flax.nnx.Variable"

    def encode(self, variable: Any, encoder: Encoder) -> Value:
        """Write the value and the kind of variable."""
        return [NODE, self.tag, encoder.encode(_raw(variable)), {"class": _kind(variable)}]

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Make a variable of the same class, if it is one of flax's own."""
        name = attributes["class"]
        ty = _own_kinds().get(name)
        if ty is None:
            return decoder.plain(
                state,
                f"The checkpoint holds an nnx.Variable of the class {name!r}: without a target it is loaded as its "
                "plain value. Pass a target to get the class back.",
            )
        return ty(decoder.decode(state))

    def read(self, cell: Any) -> Any:
        """Give the variable's value."""
        return _raw(cell)

    def write(self, cell: Any, value: Any) -> None:
        """Set the variable's value; a reference stays the reference that it is, and metadata stay."""
        nnx.update(cell, value)

    def undo(self, cell: Any) -> Callable[[], object]:
        """Set the value that it has now."""
        return partial(nnx.update, cell, _raw(cell))


def _raw(variable: Any) -> Any:
    """Give what a variable holds: hooks are not asked, and a reference is read."""
    value = variable.get_raw_value() if hasattr(variable, "get_raw_value") else variable.raw_value
    return _read(value)


def _read(value: Any) -> Any:
    if isinstance(value, jax.Array | jax.ShapeDtypeStruct) or not variablelib.is_array_ref(value):
        return value
    return value[...]


def _kind(variable: Any) -> str:
    ty: type = getattr(variable, "var_type", type(variable))  # a variable of hijax has a class of its own
    return ty.__name__ if _own_kinds().get(ty.__name__) is ty else class_name(ty)


@cache
def _own_kinds() -> dict[str, type]:
    kinds = {name: ty for name, ty in vars(nnx).items() if isinstance(ty, type)}
    return {name: ty for name, ty in kinds.items() if issubclass(ty, Variable)}


class StateHandler(Handler):
    """``State`` and ``FlatState``: variables by path. A target is not changed: the result is a new one."""

    tag = "flax.nnx.State"

    def encode(self, state: Any, encoder: Encoder) -> Value:
        """Write the variables."""
        return encoder.node(self.tag, encoder.mapping(nest(_chosen(_leaves(state), encoder.selection))))

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Make a state."""
        return State(decoder.mapping(state))

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Plan the values; the variables around them are made anew."""
        if as_items(mapping_state(value)) is None:
            return container_mismatch(target, f"an nnx.{type(target).__name__}", value, path, merger)
        leaves = _leaves(target)
        chosen, value = _chosen_of_file(leaves, value, merger)
        plan = merger.plan(nest({path: _value(leaf) for path, leaf in chosen.items()}), value, path)

        def build() -> Any:
            values = unnest(plan(), chosen)
            made = {path: _like(leaf, values.get(path, _value(leaf))) for path, leaf in leaves.items()}
            flat = nnx.FlatState(made.items(), sort=False)
            return flat if isinstance(target, nnx.FlatState) else nnx.from_flat_state(flat)

        return build


class NodeHandler(Handler):
    """Modules, optimizers, random streams, metrics: what nnx calls a node of a graph. Its state is saved, by path.

    A target is checked whole, and changed in place when all of the load has succeeded. What it has beside its state
    stays, and so do the metadata of its variables.
    """

    tag = "flax.nnx.Module"
    stateful = True

    def encode(self, node: Any, encoder: Encoder) -> Value:
        """Write the state."""
        chosen = _chosen(_leaves(nnx.state(node)), encoder.selection)
        return encoder.node(self.tag, encoder.mapping(nest(chosen)), **{"class": class_name(type(node))})

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Give the state: only a target can say how the object is built."""
        reason = (
            f"The checkpoint holds an nnx object of the class {attributes['class']!r}: without a target it is loaded "
            "as its nnx.State. Pass the object as target, or call nnx.update(object, state)."
        )
        return State(decoder.plain(state, reason))

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Plan the state."""
        if as_items(mapping_state(value)) is None:
            return container_mismatch(target, f"an nnx {type(target).__name__}", value, path, merger)
        chosen, value = _chosen_of_file(_leaves(nnx.state(target)), value, merger)
        # What is in no variable is an attribute of a node, and set by way of it.
        loose = {path: leaf for path, leaf in chosen.items() if not isinstance(leaf, Variable)}
        plan = merger.plan(nest(chosen | {path: _read(leaf) for path, leaf in loose.items()}), value, path)

        def build() -> Any:
            made = plan()
            if loose:
                old, new = ({path: _read(leaf) for path, leaf in loose.items()}, unnest(made, loose))
                update = partial(nnx.update, target)
                merger.transaction.apply(partial(update, nest(new)), partial(update, nest(old)))
            return target

        return build


def _leaves(state: Any) -> Leaves:
    return dict(state if isinstance(state, nnx.FlatState) else nnx.to_flat_state(state))


def _value(leaf: Any) -> Any:
    return _raw(leaf) if isinstance(leaf, Variable) else _read(leaf)


def _like(leaf: Any, value: Any) -> Any:
    return leaf.replace(value) if isinstance(leaf, Variable) else value


# Filters.


def _chosen(leaves: Leaves, selection: Selection | None) -> Leaves:
    """Give what a save is about."""
    if selection is None:
        return leaves
    chosen, left_out = selection.split(leaves, to_predicate)
    _warn_of_random(list(left_out), left_out, selection.only, "saved")
    return chosen


def _chosen_of_file(leaves: Leaves, value: Value, merger: Merger) -> tuple[Leaves, Value]:
    """Give what a load is about, of the target and of the file."""
    if merger.selection is None:
        return leaves, value
    chosen, left_out = merger.selection.split(leaves, to_predicate)
    value, dropped = without(value, left_out, merger)
    _warn_of_random(dropped, left_out, merger.selection.only, "loaded")
    return chosen, value


def _warn_of_random(paths: list[tuple[Any, ...]], leaves: Leaves, only: Any, what: str) -> None:
    random = [path for path in paths if isinstance(leaves[path], nnx.RngState)]
    if random and not speaks_of(only, nnx.RngState):
        warn_of_random(
            random,
            what,
            "If it has to be, pass only=(..., nnx.RngState); if not, say so: only=nnx.All(..., nnx.Not(nnx.RngState)).",
        )


def set_up(registry: Registry) -> None:
    """Register the types of nnx."""
    if not hasattr(nnx, "FlatState"):
        raise MissingLibraryError(
            f"Objects of flax.nnx can be saved with flax 0.12.1 or newer, and flax {flax.__version__} is installed. "
            "Run: pip install --upgrade flax"
        )
    variable, state = VariableHandler(), StateHandler()
    registry.register(Variable, variable)
    if hasattr(variablelib, "HijaxVariable"):
        registry.register(variablelib.HijaxVariable, variable)
    registry.register(State, state)
    registry.register(nnx.FlatState, state)
    registry.register(nnx.Pytree, NodeHandler())
