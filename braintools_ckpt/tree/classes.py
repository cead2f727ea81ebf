"""What classes are made of, and the handlers of those that nobody registered: enums and dataclasses.

Enums and dataclasses need a target to come back as themselves, unless they are registered.
"""

from __future__ import annotations

import dataclasses
import enum
import struct
from collections.abc import Callable, Hashable, Iterable
from functools import lru_cache
from types import MemberDescriptorType
from typing import Any

from ..document import LEAF, Value
from ..errors import HandlerError, LinkedPath
from .containers import as_items, container_mismatch, node_parts, plan_fields
from .decode import Decoder, NamedKey
from .describe import describe
from .encode import Encoder, Trouble
from .merge import Merger, constant
from .mismatch import format_keys
from .registry import Handler, Registry
from .requests import Build
from .scalars import check, class_name

_POINTER = struct.calcsize("P")
_NONE = type(None)

#: Turns a function from a path to an error into the exception to raise: ``Trouble`` while a tree is encoded or
#: decoded, and ``failing_at`` a path while it is planned.
Fail = Callable[[Callable[[str], Exception]], Exception]


def failing_at(path: LinkedPath, merger: Merger) -> Fail:
    """Give what makes an error at a path of a plan."""
    return lambda make: make(merger.format(path))


# The attributes of objects.


@lru_cache(maxsize=1024)
def slots(ty: type) -> tuple[str, ...]:
    """Give the slots of a class and its bases, by the names that private ones have from outside."""
    return tuple(
        name
        for base in reversed(ty.__mro__)
        if "__slots__" in vars(base)
        for name, item in vars(base).items()
        if isinstance(item, MemberDescriptorType)
    )


def attributes_of(obj: Any) -> dict[str, Any]:
    """Give all that an object holds: in slots that are set, and in its ``__dict__``."""
    ty: type = type(obj)
    held = {name: getattr(obj, name) for name in slots(ty) if hasattr(obj, name)}
    return {**held, **getattr(obj, "__dict__", {})}


def field_values(obj: Any, names: Iterable[str], fail: Fail) -> dict[str, Any]:
    """Give the named attributes of an object, which has to have them all."""
    values: dict[str, Any] = {}
    lacking = []
    for name in names:
        try:
            values[name] = getattr(obj, name)
        except AttributeError:
            lacking.append(name)
    if lacking:
        raise fail(
            lambda path: HandlerError(
                f"The {type(obj).__qualname__} at path {path} has no value for its field(s) {format_keys(lacking)}. "
                "Set them first, or leave them out of the fields."
            )
        )
    return values


@lru_cache(maxsize=4096)
def settable(ty: type, name: Any) -> bool:
    """Tell whether a file may set an attribute of a class that does not say what its fields are.

    What the class itself defines as a method or a property is not an object's to change, and even less a file's.
    """
    if name in slots(ty):
        return True
    if not ty.__dictoffset__ or type(name) is not str or not name.isidentifier():
        return False
    found = next((vars(base)[name] for base in ty.__mro__ if name in vars(base)), None)
    own = callable(found) or isinstance(found, classmethod) or hasattr(type(found), "__set__")
    return not own and not (name.startswith("__") and name.endswith("__"))


def base_with_hidden_data(ty: type) -> type | None:
    """Find the base whose objects hold data that is in no attribute (the items of a dict), or None.

    Such an object is larger than its attributes need; pickle finds those that it cannot take apart the same way.
    """
    return next((base for base in reversed(ty.__mro__) if _hides_data(base)), None)


def _hides_data(ty: type) -> bool:
    pointers = len(slots(ty)) + (ty.__dictoffset__ > 0) + (ty.__weakrefoffset__ > 0)
    return ty.__itemsize__ != 0 or ty.__basicsize__ > object.__basicsize__ + pointers * _POINTER


def rebuilt(target: Any, fields: dict[str, Any]) -> Any:
    """Make an object like the target with other fields, without calling ``__init__``."""
    result = object.__new__(type(target))
    for name, item in {**attributes_of(target), **fields}.items():
        object.__setattr__(result, name, item)
    return result


def lost_class(name: str) -> str:
    """Say why an object comes back as a plain map."""
    return (
        f"The checkpoint holds an object of the class {name!r}: without a target it is loaded as a plain dict. Pass a "
        "target to get the class back, or decorate the class with @braintools_ckpt.serializable."
    )


# Enums.


class EnumHandler(Handler):
    """Enum members, by name; a combination of flags by value."""

    tag = "enum"
    tracked = False

    def encode(self, member: Any, encoder: Encoder) -> Value:
        """Write the name, and the value if it can be saved."""
        state = {"name": member.name}
        if _can_be_saved(member.value, encoder.registry):
            state["value"] = encoder.encode(member.value)
        return encoder.leaf(self.tag, state, **{"class": class_name(type(member))})

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Give name and value: which class they belong to, only a target can say."""
        check(state["name"], (str, _NONE))
        return decoder.plain(
            state,
            f"The checkpoint holds a member of the enum {attributes['class']!r}: without a target it is loaded as a "
            "plain dict. Pass a target to get the member back.",
        )

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Take the member of the target's class that has the file's name, or else its value."""
        ty = type(target)
        found = _enum_parts(value)
        if found is None:
            # A plain state dict has a member's value; True and 1.0 are not the member of value 1.
            plain = merger.decode_now(value)
            same_type = any(type(plain) is type(member.value) for member in ty)
            member = _member(ty, None, lambda: plain) if same_type and isinstance(plain, Hashable) else None
            text = describe(value, merger.document)
        else:
            tag, state, attributes = found
            owner = attributes["class"].rpartition(".")[2]
            # A class may have moved, or been registered by a name of its own.
            same = owner == ty.__name__ or tag == self.tag != EnumHandler.tag
            member = _member_of(ty, state, merger.decode_now) if same else None
            text = f"{owner}.{_written(state)}"
        if member is None:
            return merger.mismatch("leaf", target, path, "Leaf mismatch", f"a member of {ty.__name__}", text)
        return constant(member)


class RegisteredEnumHandler(EnumHandler):
    """Members of an enum that is decorated: they come back without a target, too."""

    def __init__(self, ty: type[enum.Enum], name: str | None) -> None:
        self.type = ty
        self.tag = "class:" + (name or class_name(ty))

    def __repr__(self) -> str:
        return f"<handler of {class_name(self.type)}>"

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Give the member."""
        member = _member_of(self.type, state, decoder.decode)
        if member is None:
            name = self.type.__qualname__
            raise Trouble(
                lambda path: HandlerError(
                    f"The checkpoint holds the member {_written(state)} of {name} at path {path}, "
                    f"which the class does not have. Give {name} this member, as an alias if it has been renamed."
                )
            )
        return member


def _can_be_saved(value: Any, registry: Registry) -> bool:
    # By an encoder of its own: what fails half-way leaves arrays and a memo behind.
    try:
        Encoder(registry).encode(value)
    except Trouble:
        return False
    return True


def _enum_parts(value: Value) -> tuple[str, dict[str, Value], dict[str, Value]] | None:
    """Give tag, state and attributes of an enum's member, registered or not, else None."""
    if type(value) is list and value[0] == LEAF and (value[1] == "enum" or value[1].startswith("class:")):
        return value[1], value[2], value[3]
    return None


def _written(state: dict[str, Value]) -> str:
    return str(state["name"] or repr(state.get("value")))


def _member_of(ty: Any, state: dict[str, Value], decode: Callable[[Value], Any]) -> Any:
    value = (lambda: decode(state["value"])) if "value" in state else None
    return _member(ty, state["name"], value)


def _member(ty: Any, name: Any, value: Callable[[], Any] | None) -> Any:
    """Find a member by name, or else by value; None if there is none."""
    if name in ty.__members__:
        return ty[name]
    if value is None:
        return None
    try:
        return ty(value())
    except ValueError:
        return None


class EnumKeyHandler(Handler):
    """Enum members as dict keys, while no target is at hand: their names."""

    tag = "enum.key"

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Give the name, marked as one."""
        return NamedKey(*decoder.sequence(state))


# Functions.


class FunctionPlaceHandler(Handler):
    """The place of a function among data: only a target has it."""

    tag = "function"

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Give None."""
        return decoder.plain(
            None,
            "The checkpoint holds an object with functions in it, which are not saved: without a target they are "
            "loaded as None. Pass a target.",
        )


# Dataclasses.


def field_names(ty: Any) -> tuple[str, ...]:
    """Give the names of a dataclass's fields."""
    return tuple(field.name for field in dataclasses.fields(ty))


class DataclassHandler(Handler):
    """Dataclasses that nobody registered: by field, rebuilt as the target's class."""

    tag = "dataclass"

    def encode(self, obj: Any, encoder: Encoder) -> Value:
        """Write the fields."""
        fields = field_values(obj, field_names(type(obj)), Trouble)
        return encoder.node(self.tag, encoder.fields(fields), **{"class": class_name(type(obj))})

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Give the fields as a dict."""
        return decoder.plain(state, lost_class(attributes["class"]))

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Plan by field; what the target has beside its fields stays."""
        found = node_parts(value, self.tag)
        items = as_items(found[0] if found else value)
        if items is None:
            return container_mismatch(target, f"a {type(target).__name__}", value, path, merger)
        fields = field_values(target, field_names(type(target)), failing_at(path, merger))
        plans = plan_fields(fields, items, path, merger)
        return lambda: rebuilt(target, {key: plan() for key, plan in plans})


def set_up(registry: Registry) -> None:
    """Register enums and dataclasses."""
    registry.register_rule(lambda ty: issubclass(ty, enum.Enum), EnumHandler(), structural=True)
    registry.register_tag(EnumKeyHandler())
    registry.register_tag(FunctionPlaceHandler())
    registry.register_rule(_is_plain_dataclass, DataclassHandler())


def _is_plain_dataclass(obj: Any) -> bool:
    ty = type(obj)
    return dataclasses.is_dataclass(ty) and base_with_hidden_data(ty) is None
