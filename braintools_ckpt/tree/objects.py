"""Handlers of classes that users register (in `registration.py`), and the upgrades of their states."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..document import LIST, Document, Value
from ..errors import CorruptCheckpointError, HandlerError, LinkedPath, SerializationError
from .classes import (
    Fail,
    attributes_of,
    failing_at,
    field_names,
    field_values,
    lost_class,
    rebuilt,
    settable,
)
from .containers import as_items, container_mismatch, node_parts, plan_fields
from .decode import Decoder
from .encode import Encoder, Trouble, encode
from .merge import Merger
from .mismatch import format_keys
from .registry import Handler, registry
from .requests import Build
from .scalars import class_name

Upgrades = Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]


# Registered by a pair of functions.


class FunctionHandler(Handler):
    """A class with a function to a state dict and one from it.

    What ``to`` returns is never changed; its values may be anything that can be saved. ``from`` is given the state
    with its values as they were returned.
    """

    def __init__(
        self,
        ty: type,
        to: Callable[[Any], Any],
        back: Callable[..., Any],
        name: str | None,
        version: int,
        upgrade: Upgrades | None,
    ) -> None:
        self.type = ty
        self.tag = "class:" + (name or class_name(ty))
        self.version = version
        self._upgrade = dict(upgrade or {})
        self._to = to
        self._from = _with_mode(back)

    def __repr__(self) -> str:
        return f"<handler of {class_name(self.type)}>"

    def encode(self, obj: Any, encoder: Encoder) -> Value:
        """Write what the user's function returns."""
        state = self._state(obj)
        if isinstance(state, Mapping):
            for key in state:
                if not isinstance(key, str):
                    raise Trouble(
                        _handler_error(
                            f"A state dict must only have string keys, got key {key!r} of type "
                            f"{type(key).__name__} from the handler of {self._name}"
                        )
                    )
            value = encoder.fields(dict(state))
        else:
            raise Trouble(
                _handler_error(
                    f"The handler of {self._name} must return a dict with string keys, got {type(state).__name__}"
                )
            )
        return versioned(encoder.node(self.tag, value), self.version)

    def _state(self, obj: Any) -> Any:
        try:
            return self._to(obj)
        except Exception as error:
            text = f"The handler of {self._name} failed: {type(error).__name__}: {error}"
            raise Trouble(_handler_error(text)) from error

    @property
    def _name(self) -> str:
        return self.type.__qualname__

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Give the state: without a target there is nothing to call the user's function with."""
        return upgraded(self, decoder.fields(state), attributes, Trouble)

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Decode the state, and let the user's function restore the target when all else is known to fit."""
        found = node_parts(value, self.tag)
        if found is None and type(value) is not dict:
            return container_mismatch(target, f"a {self._name}", value, path, merger)
        state, attributes = found or (value, {"version": self.version})
        decoded = merger.plan_decoded(state, path)

        def build() -> Any:
            fields = upgraded(self, decoded(), attributes, failing_at(path, merger))
            result = merger.call(target, path, lambda: self._from(target, fields, merger.options.mismatch))
            if result is None:  # the mistake that is made most often: no return
                text = f"The handler of {self._name} must return the restored object; it returned None"
                raise _handler_error(text)(merger.format(path))
            return result

        return build


def _handler_error(text: str) -> Callable[[str], Exception]:
    return lambda path: HandlerError(f"{text} (at path {path}).")


def _with_mode(function: Callable[..., Any]) -> Callable[[Any, Any, str], Any]:
    """Accept functions of (target, state) beside those of (target, state, mismatch)."""
    if takes(function, 3):
        return function
    return lambda target, state, mismatch: function(target, state)


def takes(function: Callable[..., Any], count: int) -> bool:
    """Tell whether a function can be called with that many arguments."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # a builtin without a signature: nobody can know
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def versioned(node: Value, version: int) -> Value:
    """Note the version of a class in its node; version 1 goes without saying."""
    return node if version == 1 else [*node, {"version": version}]


def upgraded(handler: Any, state: dict[str, Any], attributes: dict[str, Value], fail: Fail) -> dict[str, Any]:
    """Bring a state of an older version to the present one, step by step."""
    version = attributes.get("version", 1)
    if type(version) is not int:
        raise TypeError(f"the version is of type {type(version).__name__}")
    name = handler.type.__qualname__

    def failure(text: str) -> Exception:
        registered = handler.tag.removeprefix("class:")
        return fail(lambda path: HandlerError(f"{text} (name {registered!r}, at path {path})."))

    if version > handler.version:
        raise failure(
            f"The checkpoint holds a {name} of version {version}, but the class registered here has version "
            f"{handler.version}. Update the code that defines {name}"
        )
    while version < handler.version:
        step = handler._upgrade.get(version)
        if step is None:
            raise failure(
                f"The checkpoint holds a {name} of version {version}, and no upgrade from {version} to {version + 1} "
                f"is registered. Pass upgrade={{{version}: function}} where {name} is registered"
            )
        try:
            state = step(dict(state))
        except Exception as error:
            text = f"The upgrade of {name} from version {version} failed: {type(error).__name__}: {error}"
            raise failure(text) from error
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            got = f"keys {list(state)!r}" if isinstance(state, dict) else type(state).__name__
            text = f"The upgrade of {name} from version {version} must return a dict with string keys, got {got}"
            raise failure(text)
        version += 1
    return state


class Kept(dict[Any, Any]):
    """A part of an old state whose class only the target knows: a dict to an upgrade, and itself again behind it."""

    node: list[Value] | None = None


class KeptHandler(Handler):
    """Writes what an upgrade passed on as the node that it was."""

    def encode(self, obj: Any, encoder: Encoder) -> Value:
        """Write the node with its parts."""
        state = encoder.mapping(obj)
        return [*obj.node[:2], state, *obj.node[3:]] if obj.node else state


registry.register(Kept, KeptHandler())


class UpgradeDecoder(Decoder):
    """Decodes an old state for an upgrade, when a target waits behind it: what would lose its class is kept."""

    def plain(self, state: Value, reason: str) -> Any:
        """Decode a state as it is."""
        made = self.decode(state)
        return Kept(made) if type(made) is dict else made

    def _object(self, value: Value) -> Any:
        made = super()._object(value)
        if type(made) is Kept and made.node is None:
            made.node = value
        return made


# Registered by decoration.


def _decoded_for_upgrade(state: Value, path: LinkedPath, merger: Merger) -> Any:
    return merger.decode_now(state, path, UpgradeDecoder)


class FieldsHandler(Handler):
    """A ``@serializable`` class: its fields are saved and merged by us, and it is rebuilt without ``__init__``."""

    def __init__(
        self,
        ty: type,
        fields: Iterable[str] | None,
        static: Iterable[str],
        name: str | None,
        version: int,
        upgrade: Upgrades | None,
    ) -> None:
        self.type = ty
        self.tag = "class:" + (name or class_name(ty))
        self.version = version
        self._upgrade = dict(upgrade or {})
        self._fields = None if fields is None else tuple(fields)
        self._static = frozenset(static)

    def __repr__(self) -> str:
        return f"<handler of {class_name(self.type)}>"

    def _listed(self, ty: type) -> tuple[str, ...] | None:
        """Give the names of the fields that every object has, or None where each object has its own."""
        names = self._fields
        if names is None and dataclasses.is_dataclass(ty):
            names = field_names(ty)
        return None if names is None else tuple(name for name in names if name not in self._static)

    def _accepts(self, name: str) -> bool:
        """Tell whether a file may have a field of that name."""
        listed = self._listed(self.type)
        return name in listed if listed is not None else name not in self._static and settable(self.type, name)

    def fields_of(self, obj: Any, fail: Fail) -> dict[str, Any]:
        """Give the fields of an object that are saved."""
        listed = self._listed(type(obj))
        if listed is not None:
            return field_values(obj, listed, fail)
        fields = {name: item for name, item in attributes_of(obj).items() if name not in self._static}
        fields.pop("__orig_class__", None)  # typing leaves it in objects of generic classes
        ty: type = type(obj)
        refused = [name for name in fields if not settable(ty, name)]
        if refused:
            raise fail(
                lambda path: HandlerError(
                    f"The {ty.__qualname__} at path {path} has the attribute(s) {format_keys(refused)}, which "
                    "a file must not set: they are no plain names, or the class defines them itself. Name the fields "
                    "to save with @serializable(fields=...), or pass these as static=."
                )
            )
        return fields

    def encode(self, obj: Any, encoder: Encoder) -> Value:
        """Write the fields."""
        node = encoder.node(self.tag, encoder.fields(self.fields_of(obj, Trouble)))
        if type(obj) is not self.type:
            return [*node, {"version": self.version, "class": class_name(type(obj))}]
        return versioned(node, self.version)

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Make an object of the class and set its fields."""
        if "class" in attributes:
            return decoder.plain(state, lost_class(attributes["class"]))
        fields = upgraded(self, decoder.fields(state), attributes, Trouble)
        unknown = [name for name in fields if not self._accepts(name)]
        if unknown:
            text = f"has the field(s) {format_keys(unknown)}, which the class does not have"
            raise self._misfit(text, CorruptCheckpointError if any(map(_is_no_field, unknown)) else HandlerError)
        obj: Any = object.__new__(self.type)
        for name, item in {**self._defaults(fields), **fields}.items():
            object.__setattr__(obj, name, item)
        lacking = [name for name in self._listed(self.type) or () if name not in fields and not hasattr(obj, name)]
        if lacking:
            raise self._misfit(f"lacks the field(s) {format_keys(lacking)}", HandlerError)
        self._warn_of_static(obj, decoder)
        return obj

    def _misfit(self, text: str, kind: type[Exception]) -> Exception:
        return Trouble(
            lambda path: kind(
                f"The checkpoint's {self.type.__qualname__} at path {path} {text}. The class has changed: pass a "
                "target, or register an upgrade."
            )
        )

    def _warn_of_static(self, obj: Any, decoder: Decoder) -> None:
        unset = [name for name in self._unsaved() if not hasattr(obj, name)]
        if unset:
            reason = (
                f"The checkpoint does not hold the static field(s) {format_keys(unset)} of "
                f"{self.type.__qualname__}: without a target they stay unset. Pass a target, or give them defaults."
            )
            decoder.plain([LIST], reason)  # an empty list, for the warning

    def _unsaved(self) -> set[str]:
        """Give the names of the attributes that objects have and files do not."""
        fields = field_names(self.type) if dataclasses.is_dataclass(self.type) else ()
        return {*fields, *self._static}.difference(self._listed(self.type) or ())

    def _defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Give the defaults of the fields of a dataclass that a file does not have."""
        if not dataclasses.is_dataclass(self.type):
            return {}
        fields = [field for field in dataclasses.fields(self.type) if field.name not in given]
        values = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
        made = {f.name: f.default_factory() for f in fields if f.default_factory is not dataclasses.MISSING}
        return {**values, **made}

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Plan by field; what the target has beside its fields stays."""
        found = node_parts(value, self.tag)
        state, attributes = found or (value, {"version": self.version})
        if as_items(state) is None or (found is None and type(value) is not dict):
            return container_mismatch(target, f"a {self.type.__name__}", value, path, merger)
        fields = self.fields_of(target, failing_at(path, merger))
        if attributes.get("version", 1) != self.version:
            state, merger = self._upgraded_part(state, attributes, path, merger)
        plans = plan_fields(fields, as_items(state) or {}, path, merger)
        return lambda: rebuilt(target, {key: plan() for key, plan in plans})

    def _upgraded_part(
        self, state: Value, attributes: dict[str, Value], path: LinkedPath, merger: Merger
    ) -> tuple[Value, Merger]:
        """Upgrade a state as plain objects, and go on planning with a document of the result."""
        fail = failing_at(path, merger)
        fields = upgraded(self, _decoded_for_upgrade(state, path, merger), attributes, fail)
        try:
            document: Document = encode(fields, merger.registry)
        except SerializationError as error:
            text = f"The upgrade of {self.type.__qualname__} returned what cannot be loaded: {error}"
            raise fail(_handler_error(text)) from error
        return document.resolve(document.structure), merger.part(document, path)


def _is_no_field(name: str) -> bool:
    """Tell whether no class has such a field."""
    return not name.isidentifier() or name.startswith("__")
