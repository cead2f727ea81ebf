"""Cells: objects that hold one value, which a load replaces in place (a ``brainstate.State``, an ``nnx.Variable``)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ..document import Value
from ..errors import HandlerError, LinkedPath
from .containers import node_parts
from .merge import Merger, same_values
from .registry import Handler
from .requests import Build


class CellHandler(Handler):
    """Plans the value of a cell; the cell takes it when everything else has succeeded."""

    stateful = True

    def read(self, cell: Any) -> Any:
        """Give the value of a cell."""
        raise NotImplementedError

    def write(self, cell: Any, value: Any) -> None:
        """Give a cell another value."""
        raise NotImplementedError

    def undo(self, cell: Any) -> Callable[[], object]:
        """Give what takes the next change of a cell back."""
        raise NotImplementedError

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Plan the value."""
        found = node_parts(value, self.tag)
        old = self.read(target)
        plan = merger.plan(old, found[0] if found else value, path)
        # Met twice, and not because the file has one cell there: both values have to be the same.
        first = merger.cells.setdefault(id(target), (target, plan))[1]
        if first is not plan:
            return lambda: self._confirm(target, old, first(), plan(), path, merger)
        return partial(self._assign_built, target, plan, merger)

    def plan_many(
        self, targets: list[Any], values: list[Value], paths: list[LinkedPath], merger: Merger
    ) -> list[Build] | None:
        """Plan many cells that were not met before, whose values fit."""
        ids = set(map(id, targets))
        if len(ids) < len(targets) or not merger.cells.keys().isdisjoint(ids):
            return None
        if any(node_parts(value, self.tag) is None for value in values):
            return None
        plans = merger.plan_alike(list(map(self.read, targets)), [value[2] for value in values], paths)
        if plans is None:
            return None
        merger.cells.update((id(target), (target, plan)) for target, plan in zip(targets, plans, strict=True))
        return [partial(self._assign_built, target, plan, merger) for target, plan in zip(targets, plans, strict=True)]

    def _assign_built(self, target: Any, plan: Build, merger: Merger) -> Any:
        return self._assign(target, plan(), merger)

    def _confirm(self, target: Any, old: Any, first: Any, second: Any, path: LinkedPath, merger: Merger) -> Any:
        if not same_values(first, second, merger.registry):
            kind = self.tag.rpartition(".")[2]
            text = (
                f"{kind} mismatch: expected one value for a {kind.lower()} that the target has in several places, got "
                "two that differ"
            )
            merger.note("leaf", path, text, expected="one value", found="two values")
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
