"""Nested mappings as leaves by path, and back, and without some of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..document import ITEMS, Value
from .containers import as_items, mapping_state
from .merge import Merger
from .selection import Leaves


def without(value: Value, left_out: Leaves, merger: Merger) -> tuple[Value, list[tuple[Any, ...]]]:
    """Give the nested mappings of a file without the leaves that a filter leaves out, and the paths of what it had."""
    dropped: list[tuple[Any, ...]] = []
    return _without(value, nest(dict.fromkeys(left_out)), (), dropped, merger), dropped


def _without(
    value: Value, left_out: Mapping[Any, Any] | None, at: tuple[Any, ...], dropped: list[Any], merger: Merger
) -> Value:
    if left_out is None:
        dropped.append(at)
        return None
    items = as_items(mapping_state(merger.document.resolve(value)))
    if items is None:
        return value
    by_text = {str(key): key for key in left_out}
    kept: list[Value] = [ITEMS]
    for key, item in items.items():
        step = by_text.get(str(key))
        if step is None:
            kept += key, item
            continue
        below = _without(item, left_out[step], (*at, step), dropped, merger)
        if left_out[step] is not None and below != [ITEMS]:
            kept += key, below
    return kept


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
