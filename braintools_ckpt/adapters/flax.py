"""flax (Linen): ``FrozenDict``; its dataclasses and train states are pytrees like any other."""

from __future__ import annotations

from typing import Any

from flax.core import FrozenDict

from ..document import Value
from ..errors import LinkedPath
from ..tree.containers import as_items, container_mismatch, mapping_state, plan_fields
from ..tree.decode import Decoder
from ..tree.encode import Encoder
from ..tree.merge import Merger
from ..tree.registry import Handler, Registry
from ..tree.requests import Build


class FrozenDictHandler(Handler):
    """``FrozenDict``: fits where a dict does, and the other way round."""

    tag = "flax.FrozenDict"

    def encode(self, obj: Any, encoder: Encoder) -> Value:
        """Write the items."""
        return encoder.node(self.tag, encoder.mapping(obj.unfreeze()))

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Make a frozen dict."""
        return FrozenDict(decoder.mapping(state))

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Plan by key."""
        items = as_items(mapping_state(value))
        if items is None:
            return container_mismatch(target, "a FrozenDict", value, path, merger)
        plans = plan_fields(target.unfreeze(), items, path, merger)
        return lambda: FrozenDict({key: plan() for key, plan in plans})


def set_up(registry: Registry) -> None:
    """Register the types of flax but for those of nnx."""
    registry.register(FrozenDict, FrozenDictHandler())
