"""Nested mappings as leaves by path, and back, and without some of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..document import CELL_TAGS, ITEMS, NODE, Value
from ..errors import LinkedPath, Steps
from .containers import as_items, mapping_state
from .merge import Merger
from .selection import FilterLibrary, Leaves, warn_of_random


def chosen_of_file(
    leaves: Leaves, value: Value, path: LinkedPath, merger: Merger, library: FilterLibrary
) -> tuple[Leaves, Value]:
    """Give what a load is about, of the target and of the nested mappings of a file."""
    if merger.selection is None:
        return leaves, value
    chosen, left_out = merger.selection.split(leaves, library)
    file = _File(merger, library)
    kept = file.kept(value, nest(dict.fromkeys(chosen)), nest(dict.fromkeys(left_out)), ())
    warn_of_random(
        {at: left_out[at] for at in file.dropped if at in left_out}, merger.selection.only, library, "loaded"
    )
    merger.stay(*((path, Steps(at)) for at in left_out))
    merger.leave(*((path, Steps(at)) for at in file.dropped))
    return chosen, kept


class _File:
    """The nested mappings of a file, from which a filter takes away what it leaves out."""

    def __init__(self, merger: Merger, library: FilterLibrary) -> None:
        self._merger = merger
        self._library = library
        #: What it takes away, by path.
        self.dropped: list[tuple[Any, ...]] = []

    def kept(self, value: Value, chosen: Mapping[Any, Any], left_out: Mapping[Any, Any], at: tuple[Any, ...]) -> Value:
        """Give a mapping without what is left out; nested dicts say what the target has, None stands for a leaf."""
        items = self._items(value)
        if items is None:
            return value
        steps = {str(step): step for step in (*left_out, *chosen)}
        result: list[Value] = [ITEMS]
        for key, item in items.items():
            step = steps.get(str(key), key)
            part = self._part(item, chosen.get(step, {}), left_out.get(step, {}), (*at, step))
            if part is not _NOTHING and part != [ITEMS]:
                result += key, part
        return result

    def _part(self, value: Value, chosen: Any, left_out: Any, path: tuple[Any, ...]) -> Value:
        rejected = chosen == left_out == {} and self._is_rejected(value, path)
        if left_out is None or rejected:
            self.dropped.append(path)
            return _NOTHING
        if chosen is None or self._is_empty(value):
            return value
        return self.kept(value, chosen, left_out, path)

    def _is_empty(self, value: Value) -> bool:
        return self._items(value) == {}

    def _is_rejected(self, value: Value, path: tuple[Any, ...]) -> bool:
        """Tell whether the filter leaves out what only the file has, by the class that stands there."""
        value = self._merger.document.resolve(value)
        selection = self._merger.selection
        if selection is None or not (type(value) is list and value[0] == NODE and value[1] in CELL_TAGS):
            return False
        kind = value[3]["class"] if len(value) > 3 else ""
        return selection.rejects(path, kind, self._library)

    def _items(self, value: Value) -> dict[Any, Value] | None:
        return as_items(mapping_state(self._merger.document.resolve(value)))


_NOTHING = object()


def nest(leaves: Leaves) -> dict[Any, Any]:
    """Give nested dicts of leaves by path."""
    nested: dict[Any, Any] = {}
    for path, leaf in leaves.items():
        at = nested
        for step in path[:-1]:
            at = at.setdefault(step, {})
        at[path[-1]] = leaf
    return nested


def unnest(nested: Mapping[Any, Any], leaves: Leaves) -> Leaves:
    """Give by path what nested dicts hold where the leaves stood that they were made of."""
    found: Leaves = {}
    for path in leaves:
        value: Any = nested
        for step in path:
            value = value[step]
        found[path] = value
    return found
