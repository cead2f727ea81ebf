"""Handlers of classes that nobody registered: enums and dataclasses. They need a target to come back as themselves."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

from ..document import Value
from ..errors import LinkedPath
from .containers import as_items, container_mismatch, node_parts, plan_fields
from .decode import Decoder, NamedKey
from .encode import Encoder
from .merge import Build, Merger, constant
from .registry import Handler, Registry
from .scalars import class_name


class EnumHandler(Handler):
    """Enum members, by name; a combination of flags by value."""

    tag = "enum"
    tracked = False

    def encode(self, member: Any, encoder: Encoder) -> Value:
        """Write name and value."""
        state = {"name": member.name, "value": encoder.encode(member.value)}
        return encoder.leaf(self.tag, state, **{"class": class_name(type(member))})

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Give name and value: which class they belong to, only a target can say."""
        return decoder.plain(state, lost_class(attributes["class"]))

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Take the member of the target's class that has the file's name, or else its value."""
        found = node_parts(value, self.tag)
        state = merger.decode_now(found[0] if found else value)
        name, plain = (state["name"], state["value"]) if found else (None, state)
        ty = type(target)
        if name in ty.__members__:
            return constant(ty[name])
        try:
            return constant(ty(plain))
        except ValueError:
            text = f"{name or plain!r}"
            return merger.mismatch("leaf", target, path, "Leaf mismatch", f"a member of {ty.__name__}", text)


class EnumKeyHandler(Handler):
    """Enum members as dict keys, while no target is at hand: their names."""

    tag = "enum.key"

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Give the name, marked as one."""
        return NamedKey(str(state))


def lost_class(name: str) -> str:
    """Say why an object comes back as a plain map."""
    return (
        f"The checkpoint holds an object of the class {name!r}: without a target it is loaded as a plain dict. Pass a "
        "target to get the class back, or decorate the class with @braintools_ckpt.serializable."
    )


class DataclassHandler(Handler):
    """Dataclasses that nobody registered: by field, rebuilt as the target's class."""

    tag = "dataclass"

    def encode(self, obj: Any, encoder: Encoder) -> Value:
        """Write the fields."""
        fields = {f.name: getattr(obj, f.name) for f in dataclasses.fields(obj)}
        return encoder.node(self.tag, encoder.fields(fields), **{"class": class_name(type(obj))})

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Give the fields as a dict."""
        return decoder.plain(state, lost_class(attributes["class"]))

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Plan by field."""
        found = node_parts(value, self.tag)
        items = as_items(found[0] if found else value)
        if items is None:
            return container_mismatch(target, f"a {type(target).__name__}", value, path, merger)
        fields = {f.name: getattr(target, f.name) for f in dataclasses.fields(target)}
        plans = plan_fields(fields, items, path, merger)
        return lambda: rebuilt(target, {key: plan() for key, plan in plans})


def rebuilt(target: Any, fields: dict[str, Any]) -> Any:
    """Make an object like the target with other fields, without calling ``__init__``."""
    result = object.__new__(type(target))
    for name, item in {**getattr(target, "__dict__", {}), **fields}.items():
        object.__setattr__(result, name, item)
    return result


def set_up(registry: Registry) -> None:
    """Register enums and dataclasses."""
    registry.register_rule(lambda ty: issubclass(ty, enum.Enum), EnumHandler(), structural=True)
    registry.register_tag(EnumKeyHandler())
    registry.register_rule(lambda obj: dataclasses.is_dataclass(type(obj)), DataclassHandler())
