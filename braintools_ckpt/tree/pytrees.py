"""Any class that is registered with jax as a pytree: one level at a time, by the keys that it gives its children."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from ..document import Value
from ..errors import HandlerError, LinkedPath
from .classes import lost_class
from .containers import as_items, container_mismatch, mapping_state, plan_fields
from .decode import Decoder
from .encode import Encoder
from .merge import Merger
from .registry import Handler, Registry
from .requests import Build
from .scalars import class_name


def is_pytree(obj: Any) -> bool:
    """Tell whether jax knows how to take an object apart."""
    jax = sys.modules.get("jax")
    return jax is not None and not jax.tree_util.all_leaves([obj])


def take_apart(obj: Any) -> tuple[dict[Any, Any], Callable[[list[Any]], Any]]:
    """Give the children of one level by key, and a function that makes the object from new children."""
    tree_util = sys.modules["jax"].tree_util
    children, treedef = tree_util.tree_flatten_with_path(obj, is_leaf=lambda node: node is not obj)
    keys = [_plain_key(path[0]) for path, _ in children]
    if len(set(keys)) != len(keys):
        keys = list(range(len(children)))
    return dict(zip(keys, (child for _, child in children), strict=True)), treedef.unflatten


def _plain_key(key: Any) -> Any:
    for attribute in ("name", "key", "idx"):
        if hasattr(key, attribute):
            return getattr(key, attribute)
    return str(key)


class PytreeHandler(Handler):
    """A registered pytree: its children are saved, its static data comes from the target.

    Any class whose keys are the file's is a target: what counts in a pytree is its structure, and a class that has been
    renamed has the same.
    """

    tag = "pytree"

    def encode(self, obj: Any, encoder: Encoder) -> Value:
        """Write the children by key."""
        children, _ = take_apart(obj)
        return encoder.node(self.tag, encoder.mapping(children), **{"class": class_name(type(obj))})

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Give the children as a dict."""
        return decoder.plain(state, lost_class(attributes["class"]))

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Plan by key."""
        items = as_items(mapping_state(value))
        if items is None:
            return container_mismatch(target, f"a {type(target).__name__}", value, path, merger)
        children, unflatten = take_apart(target)
        plans = plan_fields(children, items, path, merger)

        def build() -> Any:
            parts = [plan() for _, plan in plans]
            try:
                return unflatten(parts)
            except Exception as error:
                raise HandlerError(
                    f"The class {type(target).__qualname__} failed to make its object from what was loaded, at path "
                    f"{merger.format(path)}: {type(error).__name__}: {error}"
                ) from error

        return build


def set_up(registry: Registry) -> None:
    """Register the rule for pytrees; it comes before that for dataclasses, whose static fields jax knows."""
    registry.register_rule(is_pytree, PytreeHandler())
