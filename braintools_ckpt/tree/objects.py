"""Handlers of classes that users register: by a pair of functions, or by decoration."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, overload

from ..document import Document, Value
from ..errors import HandlerError, LinkedPath, RegistrationError
from .classes import lost_class, rebuilt
from .containers import as_items, container_mismatch, node_parts, plan_fields
from .decode import Decoder
from .encode import Encoder, Trouble, encode
from .merge import Build, Merger
from .registry import Handler, registry
from .scalars import class_name

T = TypeVar("T", bound=type)
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
        fields = decoder.fields(state)
        return upgraded(self, fields, attributes)

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Decode the state, and let the user's function restore the target when all else is known to fit."""
        found = node_parts(value, self.tag)
        if found is None and type(value) is not dict:
            return container_mismatch(target, f"a {self._name}", value, path, merger)
        state, attributes = found or (value, {"version": self.version})
        decoded = merger.plan_decoded(state)

        def build() -> Any:
            fields = decoded()
            return merger.call(
                target,
                path,
                lambda: self._from(target, upgraded(self, fields, attributes), merger.options.mismatch),
            )

        return build


def _handler_error(text: str) -> Callable[[str], Exception]:
    return lambda path: HandlerError(f"{text} (at path {path}).")


def _with_mode(function: Callable[..., Any]) -> Callable[[Any, Any, str], Any]:
    """Accept functions of (target, state) beside those of (target, state, mismatch)."""
    try:
        inspect.signature(function).bind(None, None, "error")
    except TypeError:
        return lambda target, state, mismatch: function(target, state)
    except ValueError:  # a builtin without a signature
        return function
    return function


def versioned(node: Value, version: int) -> Value:
    """Note the version of a class in its node; version 1 goes without saying."""
    return node if version == 1 else [*node, {"version": version}]


def upgraded(handler: Any, state: dict[str, Any], attributes: dict[str, Value]) -> dict[str, Any]:
    """Bring a state of an older version to the present one, step by step."""
    version = attributes.get("version", 1)
    name = handler.type.__qualname__
    if version > handler.version:
        raise HandlerError(
            f"The checkpoint holds a {name} of version {version}, but the class registered here has version "
            f"{handler.version}. Update the code that defines {name}."
        )
    while version < handler.version:
        step = handler._upgrade.get(version)
        if step is None:
            raise HandlerError(
                f"The checkpoint holds a {name} of version {version}, and no upgrade from {version} to {version + 1} "
                f"is registered. Pass upgrade={{{version}: function}} where {name} is registered."
            )
        try:
            state = step(dict(state))
        except Exception as error:
            text = f"The upgrade of {name} from version {version} failed: {type(error).__name__}: {error}"
            raise HandlerError(text) from error
        if not isinstance(state, dict):
            raise HandlerError(
                f"The upgrade of {name} from version {version} must return a dict, got {type(state).__name__}."
            )
        version += 1
    return state


# Registered by decoration.


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

    def fields_of(self, obj: Any) -> dict[str, Any]:
        """Give the fields of an object that are saved."""
        names: Iterable[str]
        if self._fields is not None:
            names = self._fields
        elif dataclasses.is_dataclass(obj):
            names = [f.name for f in dataclasses.fields(obj)]
        else:
            names = [*_slots(type(obj)), *getattr(obj, "__dict__", {})]
        return {name: getattr(obj, name) for name in names if name not in self._static and hasattr(obj, name)}

    def encode(self, obj: Any, encoder: Encoder) -> Value:
        """Write the fields."""
        node = encoder.node(self.tag, encoder.fields(self.fields_of(obj)))
        if type(obj) is not self.type:
            return [*node, {"version": self.version, "class": class_name(type(obj))}]
        return versioned(node, self.version)

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Make an object of the class and set its fields."""
        if "class" in attributes:
            return decoder.plain(state, lost_class(attributes["class"]))
        fields = upgraded(self, decoder.fields(state), attributes)
        obj: Any = object.__new__(self.type)
        for name, item in {**self._defaults(), **fields}.items():
            object.__setattr__(obj, name, item)
        return obj

    def _defaults(self) -> dict[str, Any]:
        if not dataclasses.is_dataclass(self.type):
            return {}
        fields = [f for f in dataclasses.fields(self.type) if f.name in self._static]
        values = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
        made = {f.name: f.default_factory() for f in fields if f.default_factory is not dataclasses.MISSING}
        return {**values, **made}

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Plan by field."""
        found = node_parts(value, self.tag)
        state, attributes = found or (value, {"version": self.version})
        if as_items(state) is None or (found is None and type(value) is not dict):
            return container_mismatch(target, f"a {self.type.__name__}", value, path, merger)
        if attributes.get("version", 1) != self.version:
            state, merger = self._upgraded_part(state, attributes, merger)
        plans = plan_fields(self.fields_of(target), as_items(state) or {}, path, merger)
        return lambda: rebuilt(target, {key: plan() for key, plan in plans})

    def _upgraded_part(self, state: Value, attributes: dict[str, Value], merger: Merger) -> tuple[Value, Merger]:
        """Upgrade a state as plain objects, and go on planning with a document of the result."""
        fields = upgraded(self, merger.decode_now(state), attributes)
        document: Document = encode(dict(fields), merger.registry)
        return document.resolve(document.structure), merger.part(document)


def _slots(ty: type) -> list[str]:
    names: list[str] = []
    for base in reversed(ty.__mro__):
        slots = base.__dict__.get("__slots__", ())
        names.extend([slots] if isinstance(slots, str) else slots)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


# The two ways to register.


def msgpack_register_serialization(
    ty: type,
    ty_to_state_dict: Callable[[Any], dict[str, Any]],
    ty_from_state_dict: Callable[..., Any],
    override: bool = False,
    *,
    name: str | None = None,
    version: int = 1,
    upgrade: Upgrades | None = None,
) -> None:
    """Register a class for saving and loading by a pair of functions.

    Parameters
    ----------
    ty : type
        The class; its subclasses use the same functions unless they are registered themselves.
    ty_to_state_dict : callable
        ``(obj) -> dict`` with string keys. The values may be anything that can be saved; they need not be converted,
        and what is returned is never changed.
    ty_from_state_dict : callable
        ``(target, state, mismatch) -> object`` or ``(target, state) -> object``: restores the target's class from a
        state. It may change and return the target; if the load fails afterwards, the target's attributes are put back.
    override : bool, default False
        Replace a handler that is registered already.
    name : str, optional
        The class's name in files, by default its module and qualified name. Give one, and the class may move.
    version : int, default 1
        The version of the state that ``ty_to_state_dict`` returns now.
    upgrade : mapping, optional
        ``{1: function, 2: function, ...}``: how a state of that version becomes one of the next.

    Raises
    ------
    RegistrationError
        If the class or the name is taken, or an argument is not what it should be.

    Examples
    --------
    >>> class Counter:
    ...     def __init__(self, n):
    ...         self.n = n
    >>> def restore(target, state, mismatch):
    ...     target.n = state["n"]
    ...     return target
    >>> msgpack_register_serialization(Counter, lambda c: {"n": c.n}, restore, name="demo.Counter")
    >>> from braintools_ckpt import msgpack_dumps, msgpack_loads
    >>> msgpack_loads(msgpack_dumps(Counter(3)), target=Counter(0)).n
    3
    """
    _check_registration(ty, name, version, upgrade)
    for function, role in ((ty_to_state_dict, "ty_to_state_dict"), (ty_from_state_dict, "ty_from_state_dict")):
        if not callable(function):
            raise RegistrationError(f"{role} must be a function, got {type(function).__name__}.")
    handler = FunctionHandler(ty, ty_to_state_dict, ty_from_state_dict, name, version, upgrade)
    registry.register(ty, handler, override=override)


@overload
def serializable(cls: T, /) -> T: ...


@overload
def serializable(
    *,
    fields: Iterable[str] | None = None,
    static: Iterable[str] = (),
    name: str | None = None,
    version: int = 1,
    upgrade: Upgrades | None = None,
    override: bool = False,
) -> Callable[[T], T]: ...


def serializable(
    cls: Any = None,
    /,
    *,
    fields: Iterable[str] | None = None,
    static: Iterable[str] = (),
    name: str | None = None,
    version: int = 1,
    upgrade: Upgrades | None = None,
    override: bool = False,
) -> Any:
    """Let a class be saved and loaded, as a decorator with or without arguments.

    The fields are those of a dataclass, those of ``fields``, or else the instance's attributes. An object is rebuilt
    without calling ``__init__``; without a target, too, it comes back as itself.

    Parameters
    ----------
    cls : type
        The class, when the decorator is used bare.
    fields : iterable of str, optional
        The attributes to save.
    static : iterable of str, optional
        Attributes that are not saved: they come from the target (or from a dataclass's default).
    name : str, optional
        The class's name in files, by default its module and qualified name. Give one, and the class may move.
    version : int, default 1
        The version of the fields.
    upgrade : mapping, optional
        ``{1: function, 2: function, ...}``: each takes the fields of that version as a dict and returns those of the
        next.
    override : bool, default False
        Replace a handler that is registered already.

    Returns
    -------
    type
        The class itself.

    Raises
    ------
    RegistrationError
        If the class or the name is taken, or an argument is not what it should be.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> @serializable(name="demo.Schedule", version=2, upgrade={1: lambda s: {"rate": s["lr"], "step": s["step"]}})
    ... @dataclass
    ... class Schedule:
    ...     rate: float
    ...     step: int
    >>> from braintools_ckpt import msgpack_dumps, msgpack_loads
    >>> msgpack_loads(msgpack_dumps(Schedule(0.1, 7)))
    Schedule(rate=0.1, step=7)
    """

    def decorate(ty: Any) -> Any:
        _check_registration(ty, name, version, upgrade)
        names = [fields, static]
        if any(isinstance(given, str) for given in names):
            raise RegistrationError("fields and static must be lists of names, got a single string.")
        registry.register(ty, FieldsHandler(ty, fields, static, name, version, upgrade), override=override)
        return ty

    return decorate if cls is None else decorate(cls)


def _check_registration(ty: Any, name: Any, version: Any, upgrade: Any) -> None:
    if not isinstance(ty, type):
        raise RegistrationError(f"Only a class can be registered, got {ty!r}.")
    if name is not None and not (isinstance(name, str) and name):
        raise RegistrationError(f"name must be a string that is not empty, got {name!r}.")
    if type(version) is not int or version < 1:
        raise RegistrationError(f"version must be an integer of 1 or more, got {version!r}.")
    if upgrade is not None and not all(type(v) is int and callable(f) for v, f in dict(upgrade).items()):
        raise RegistrationError("upgrade must map version numbers to functions of one state dict.")
