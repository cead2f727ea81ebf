"""flax.nnx: variables, states, and the objects that hold them: modules, optimizers, random streams, metrics."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx import variablelib
from flax.nnx.filterlib import to_predicate

from ..document import NODE, Value
from ..errors import LinkedPath, MissingLibraryError, SerializationError, format_path
from ..tree.cells import CellHandler
from ..tree.containers import as_items, container_mismatch, mapping_state
from ..tree.decode import Decoder
from ..tree.encode import Encoder, Trouble
from ..tree.merge import Merger
from ..tree.nested import chosen_of_file, nest, unnest
from ..tree.registry import Handler, Registry
from ..tree.requests import Build
from ..tree.scalars import class_name
from ..tree.selection import FilterLibrary, Leaves, chosen, filtered, require_chosen

Variable = nnx.Variable
State = nnx.State


def _example(name: str) -> Any:
    return _own_kinds()[name](jnp.zeros(())) if name in _own_kinds() else None


FILTERS = FilterLibrary(
    to_predicate,
    nnx.RngState,
    "If it has to be, pass only=(..., nnx.RngState); if not, say so: only=nnx.All(..., nnx.Not(nnx.RngState)).",
    _example,
)


class VariableHandler(CellHandler):
    """``Variable`` and its subclasses, plain or as a reference: what is saved is the value, past all hooks."""

    tag = "flax.nnx.Variable"
    title = "an nnx.Variable"
    filters = FILTERS

    def encode(self, variable: Any, encoder: Encoder) -> Value:
        """Write the value and the kind of variable."""
        require_chosen(variable, encoder.selection, FILTERS)
        return [NODE, self.tag, encoder.encode(_raw(variable)), {"class": _kind(variable)}]

    def kinds(self) -> Mapping[str, type]:
        """Give flax's own classes."""
        return _own_kinds()

    def read(self, cell: Any) -> Any:
        """Give the variable's value."""
        return _raw(cell)

    def write(self, cell: Any, value: Any) -> None:
        """Set the variable's value; a reference stays the reference that it is, and metadata stay."""
        held = cell.get_raw_value()
        if variablelib.is_array_ref(held):
            held[...] = value
        else:
            cell.set_raw_value(value, _unsafe_bypass_check=True)

    def undo(self, cell: Any) -> Callable[[], object]:
        """Set the value that it has now."""
        return partial(self.write, cell, _raw(cell))


class SlotHandler(CellHandler):
    """What a node holds in no variable, in an attribute or in a list or dict that is one: a value of any type."""

    tag = "flax.nnx.slot"  # never written: the value stands for itself

    def encode(self, slot: Any, encoder: Encoder) -> Value:
        """Write the value."""
        return encoder.encode(self.read(slot))

    def read(self, cell: Any) -> Any:
        """Give the value."""
        return cell.read()

    def write(self, cell: Any, value: Any) -> None:
        """Set the value, past what a class does when it is set; a reference stays the reference that it is."""
        held = cell.holder[cell.key]
        if _is_reference(held):
            held[...] = value
        else:
            cell.holder[cell.key] = value

    def undo(self, cell: Any) -> Callable[[], object]:
        """Set the value that it has now."""
        held = cell.holder[cell.key]
        if _is_reference(held):
            return partial(self.write, cell, held[...])
        return partial(cell.holder.__setitem__, cell.key, held)

    def key(self, cell: Any) -> Hashable:
        """Give where it is."""
        return id(cell.holder), cell.key


@dataclass(frozen=True, eq=False)
class Slot:
    """A place in the attributes of a node, in a list or in a dict."""

    holder: Any
    key: Any

    def read(self) -> Any:
        """Give the value."""
        return _read(self.holder[self.key])


def _raw(variable: Any) -> Any:
    """Give what a variable holds: hooks are not asked, and a reference is read."""
    return _read(variable.get_raw_value())


def _read(value: Any) -> Any:
    return value[...] if _is_reference(value) else value


def _is_reference(value: Any) -> bool:
    return not isinstance(value, _NO_REFERENCES) and bool(variablelib.is_array_ref(value))


#: What has to be asked in the first place, since most values are of these.
_NO_REFERENCES = (jax.Array, jax.ShapeDtypeStruct)


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
        leaves = {path: leaf if isinstance(leaf, Variable) else _read(leaf) for path, leaf in _leaves(state).items()}
        taken = nest(chosen(leaves, encoder.selection, FILTERS))
        with filtered(encoder):
            return encoder.node(self.tag, encoder.mapping(taken))

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Make a state."""
        return State(decoder.mapping(state))

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Plan the values; the variables around them are made anew."""
        leaves = _leaves(target)
        taken, value = chosen_of_file(leaves, value, path, merger, FILTERS)
        if as_items(mapping_state(value)) is None:
            return container_mismatch(target, f"an nnx.{type(target).__name__}", value, path, merger)
        with filtered(merger):
            plan = merger.plan(nest({path: _value(leaf) for path, leaf in taken.items()}), value, path)

        def build() -> Any:
            values = unnest(plan(), taken)
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
        cells = nest(chosen(_cells(node), encoder.selection, FILTERS))
        with filtered(encoder):
            state = encoder.mapping(cells)
        return encoder.node(self.tag, state, **{"class": class_name(type(node))})

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Give the state: only a target can say how the object is built."""
        reason = (
            f"The checkpoint holds an nnx object of the class {attributes['class']!r}: without a target it is loaded "
            "as its nnx.State. Pass the object as target, or call nnx.update(object, nnx.to_pure_dict(state))."
        )
        return State(decoder.plain(state, reason))

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Plan the state: all that is in it is a cell, which is set when the load commits."""
        every = _cells(target)
        _refuse_left_abstract(target, every, path, merger)
        cells, value = chosen_of_file(every, value, path, merger, FILTERS)
        if as_items(mapping_state(value)) is None:
            return container_mismatch(target, f"an nnx {type(target).__name__}", value, path, merger)
        with filtered(merger):
            plan = merger.plan(nest(cells), value, path)

        def build() -> Any:
            plan()
            return target

        return build


def _cells(node: Any) -> Leaves:
    """Give the variables of a node by path, and the slots of what is in none."""
    leaves = _leaves(_state_of(node))
    if all(isinstance(leaf, Variable) for leaf in leaves.values()):  # as nearly always
        return leaves
    cells: Leaves = {}
    for path, leaf in leaves.items():
        place, cell = (path, leaf) if isinstance(leaf, Variable) else _slot(node, path)
        cells.setdefault(place, cell)
    whole = [place for place, cell in cells.items() if isinstance(cell, Slot)]
    for path in cells:
        within = next((place for place in whole if path[: len(place)] == place != path), None)
        if within is not None:
            raise Trouble(partial(_mixed, within))
    return cells


def _state_of(node: Any) -> Any:
    """Give ``nnx.state(node)``; where variables share a reference, flax takes it away from all but the first."""
    held = list(_references(node))
    try:
        return nnx.state(node)
    finally:
        for variable, reference in held:
            if variable.get_raw_value() is not reference:
                variable.set_raw_value(reference, _unsafe_bypass_check=True)


def _references(node: Any) -> Iterator[tuple[Any, Any]]:
    """Give the variables that hold references, with these."""
    seen, todo = set[int](), [node]
    while todo:
        item = todo.pop()
        if isinstance(item, Variable):
            reference = item.get_raw_value()
            if _is_reference(reference):
                yield item, reference
        elif isinstance(item, (nnx.Pytree, dict, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            todo += (
                item if isinstance(item, (list, tuple)) else (item if isinstance(item, dict) else vars(item)).values()
            )


def _slot(node: Any, path: tuple[Any, ...]) -> tuple[tuple[Any, ...], Slot]:
    """Find the last place on a path where a value can be set; what is there is saved as a whole, by its own handler."""
    at, end, slot = node, 0, Slot(vars(node), path[0])
    for depth, key in enumerate(path):
        if isinstance(at, nnx.Pytree):
            holder = vars(at)
            key = key if key in holder else str(key)  # nnx.List has texts for numbers
        elif type(at) in (dict, list):
            holder = at
        else:
            break
        at, end, slot = holder[key], depth + 1, Slot(holder, key)
    return path[:end], slot


def _mixed(place: tuple[Any, ...], where: str) -> Exception:
    return SerializationError(
        f"Cannot save the nnx object at path {where}: what it holds at {format_path(place)} has arrays beside "
        "variables or modules, and cannot be changed. Make it a list or a dict, or the arrays variables."
    )


def _refuse_left_abstract(node: Any, cells: Leaves, path: LinkedPath, merger: Merger) -> None:
    """Refuse a module out of ``nnx.eval_shape`` with arrays outside of variables: flax does not count them as state."""
    first = next(iter(cells.values()), None)
    if first is None or not any(_is_abstract(leaf) for leaf in jax.tree.leaves(_value(first))):
        return
    known = {id(_value(cell)) for cell in cells.values()}
    left = [at for at, item in nnx.iter_graph(node) if _is_abstract(item) and id(item) not in known]
    if left:
        raise SerializationError(
            f"Cannot load into the abstract {type(node).__name__} at path {merger.format(path)}: its arrays "
            f"{', '.join(map(format_path, left[:3]))} are in no nnx.Variable, so that nnx does not count them as "
            "state, and they would stay without values. Make them variables, or pass a module that was built."
        )


def _is_abstract(item: Any) -> bool:
    return isinstance(item, (jax.ShapeDtypeStruct, jax.core.Tracer))


def _leaves(state: Any) -> Leaves:
    return dict(state if isinstance(state, nnx.FlatState) else nnx.to_flat_state(state))


def _value(leaf: Any) -> Any:
    return leaf.read() if isinstance(leaf, Slot) else _raw(leaf) if isinstance(leaf, Variable) else _read(leaf)


def _like(leaf: Any, value: Any) -> Any:
    return leaf.replace(value) if isinstance(leaf, Variable) else value


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
    registry.register(Slot, SlotHandler())
