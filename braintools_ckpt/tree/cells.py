"""Cells: objects that hold one value, which a load replaces in place (a ``brainstate.State``, an ``nnx.Variable``)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any, ClassVar

from ..document import Value
from ..errors import HandlerError, LinkedPath
from .containers import node_parts
from .decode import Decoder
from .merge import Merger, constant, same_values
from .registry import Handler
from .requests import Build
from .selection import FilterLibrary


class CellHandler(Handler):
    """Plans the value of a cell; the cell takes it when everything else has succeeded."""

    stateful = True
    #: What messages call such a cell.
    title: ClassVar[str]
    #: How filters are read that may leave the cell out.
    filters: ClassVar[FilterLibrary | None] = None

    def kinds(self) -> Mapping[str, type]:
        """Give the classes of which cells can be made without a target, by the names that files have for them."""
        return {}

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Make a cell of the same class, if that can be done without a target."""
        name = attributes["class"]
        ty = self.kinds().get(name)
        if ty is not None:
            return ty(decoder.decode(state))
        return decoder.plain(
            state,
            f"The checkpoint holds {self.title} of the class {name!r}: without a target it is loaded as its plain "
            "value. Pass a target to get the class back.",
        )

    def read(self, cell: Any) -> Any:
        """Give the value of a cell."""
        return cell.value

    def write(self, cell: Any, value: Any) -> None:
        """Give a cell another value."""
        cell.value = value

    def undo(self, cell: Any) -> Callable[[], object]:
        """Give what takes the next change of a cell back, past its setter, which may be what failed."""
        return partial(vars(cell).update, dict(vars(cell)))

    def key(self, cell: Any) -> Hashable:
        """Give what is the same for a cell wherever it is met."""
        return id(cell)

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Plan the value; a cell that a filter leaves out stays as it is."""
        if self.filters and merger.selection and not merger.selection.split({(): target}, self.filters)[0]:
            merger.leave(path)
            merger.stay(path)
            return constant(target)
        found = node_parts(value, self.tag)
        old = self.read(target)
        plan = merger.plan(old, found[0] if found else value, path)
        # Met twice, and not because the file has one cell there: both values have to be the same.
        _, first, place = merger.cells.setdefault(self.key(target), (target, plan, path))
        if first is not plan:
            return lambda: self._confirm(target, old, first(), plan(), (place, path), merger)
        return partial(self._assign_built, target, plan, merger)

    def plan_many(
        self, targets: list[Any], values: list[Value], paths: list[LinkedPath], merger: Merger
    ) -> list[Build] | None:
        """Plan many cells that were not met before, whose values fit."""
        keys = set(map(self.key, targets))
        if len(keys) < len(targets) or not merger.cells.keys().isdisjoint(keys):
            return None
        if merger.selection is not None or any(node_parts(value, self.tag) is None for value in values):
            return None
        plans = merger.plan_alike(list(map(self.read, targets)), [value[2] for value in values], paths)
        if plans is None:
            return None
        cells = zip(targets, plans, paths, strict=True)
        merger.cells.update((self.key(target), (target, plan, path)) for target, plan, path in cells)
        return [partial(self._assign_built, target, plan, merger) for target, plan in zip(targets, plans, strict=True)]

    def _assign_built(self, target: Any, plan: Build, merger: Merger) -> Any:
        if merger.transaction.leftovers is not None:
            merger.transaction.leftovers.filled.add(id(target))
        return self._assign(target, plan(), merger)

    def _confirm(
        self, target: Any, old: Any, first: Any, second: Any, paths: tuple[LinkedPath, LinkedPath], merger: Merger
    ) -> Any:
        if not same_values(first, second, merger.registry):
            kind = self.tag.rpartition(".")[2]
            text = (
                f"{kind} mismatch: expected one value for a {kind.lower()} that the target has in several places, got "
                "two that differ"
            )
            merger.note("leaf", paths[1], text, expected="one value", found="two values")
            merger.leave(*paths)
            merger.stay(*paths)
            return self._assign(target, old, merger)
        return target

    def _assign(self, target: Any, new: Any, merger: Merger) -> Any:
        merger.transaction.apply(partial(self._write, target, new), self.undo(target))
        return target

    def _write(self, cell: Any, value: Any) -> None:
        try:
            self.write(cell, value)
        except Exception as error:
            raise HandlerError(
                f"The {type(cell).__name__} refused the value that was loaded for it: {type(error).__name__}: {error}"
            ) from error
