"""The two ways to register a class: by a pair of functions, or by decoration."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, overload

from ..errors import RegistrationError
from .classes import (
    RegisteredEnumHandler,
    base_with_hidden_data,
    field_names,
)
from .mismatch import format_keys
from .objects import FieldsHandler, FunctionHandler, Upgrades, takes
from .registry import Handler, registry

T = TypeVar("T", bound=type)


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
        ``(target, state, mismatch) -> object`` or ``(target, state) -> object``: restores an object of the class from
        a state, and returns it. It may change and return the target; see the notes.
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

    Notes
    -----
    ``ty_from_state_dict`` is given the values that ``ty_to_state_dict`` returned, as they are loaded without a target:
    a ``State`` among them comes back as a new ``State``, not as the target's. Nothing in the state is checked against
    the target: shapes, dtypes and units are the function's business. To have a part checked and merged as other parts
    of a tree are, call ``msgpack_from_state_dict(target.part, state["part"], mismatch)`` in it.

    If the load fails after the function has run, the attributes of the target are put back. What it did to anything
    beyond the target, or wrote into an array in place, stays.

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
    if not takes(ty_to_state_dict, 1):
        raise RegistrationError("ty_to_state_dict must take one argument, the object.")
    if not (takes(ty_from_state_dict, 3) or takes(ty_from_state_dict, 2)):
        raise RegistrationError("ty_from_state_dict must take (target, state, mismatch) or (target, state).")
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

    The fields are those of ``fields``, those of a dataclass, or else the instance's attributes. An object is rebuilt
    without calling ``__init__``; without a target, too, it comes back as itself. Attributes that a dataclass has beside
    its fields are not saved; those of a target stay.

    An enum is registered by its name alone: its members come back without a target, too.

    A class whose base holds data that is in no attribute (``dict``, ``list``, ``str``, ``int``, ``numpy.ndarray``,
    ``Exception`` ...) is refused. Subclasses of builtin containers and scalars are saved as they are; for the others
    there is `msgpack_register_serialization`.

    Parameters
    ----------
    cls : type
        The class, when the decorator is used bare.
    fields : iterable of str, optional
        The attributes to save; an object that lacks one is an error.
    static : iterable of str, optional
        Attributes that are not saved: they come from the target (or from the class's default).
    name : str, optional
        The class's name in files, by default its module and qualified name. Give one, and the class may move.
    version : int, default 1
        The version of the fields.
    upgrade : mapping, optional
        ``{1: function, 2: function, ...}``: each takes the fields of that version as a dict and returns those of the
        next. What among them needs a target to come back as itself (a dataclass, an enum's member) is a dict there.
    override : bool, default False
        Replace a handler that is registered already, or that a base brings along.

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
    for given in (fields, static):
        if isinstance(given, str):
            raise RegistrationError("fields and static must be lists of names, got a single string.")
    listed = None if fields is None else tuple(fields)
    unsaved = tuple(static)

    def decorate(ty: Any) -> Any:
        _check_registration(ty, name, version, upgrade)
        handler: Handler
        if issubclass(ty, enum.Enum):
            if listed is not None or unsaved or version != 1 or upgrade:
                raise RegistrationError(
                    f"{ty.__name__} is an enum, which is registered by its name alone: leave out fields=, static=, "
                    "version= and upgrade=."
                )
            handler = RegisteredEnumHandler(ty, name)
        else:
            _check_fields(ty, (*(listed or ()), *unsaved))
            _check_bases(ty, override)
            handler = FieldsHandler(ty, listed, unsaved, name, version, upgrade)
        registry.register(ty, handler, override=override)
        return ty

    return decorate if cls is None else decorate(cls)


def _check_registration(ty: Any, name: Any, version: Any, upgrade: Any) -> None:
    if not isinstance(ty, type):
        raise RegistrationError(f"Only a class can be registered, got {ty!r}.")
    if name is not None and not (isinstance(name, str) and name):
        raise RegistrationError(f"name must be a string that is not empty, got {name!r}.")
    if type(version) is not int or version < 1:
        raise RegistrationError(f"version must be an integer of 1 or more, got {version!r}.")
    if upgrade:
        _check_upgrade(dict(upgrade), version)


def _check_upgrade(upgrade: dict[Any, Any], version: int) -> None:
    if not all(type(step) is int and callable(f) and takes(f, 1) for step, f in upgrade.items()):
        raise RegistrationError("upgrade must map version numbers to functions of one state dict.")
    steps = sorted(upgrade)
    if steps[0] < 1 or steps != list(range(steps[0], version)):
        raise RegistrationError(
            f"upgrade must have a step for each version from its first one to {version - 1}, since version={version}; "
            f"got steps from the versions {steps}."
        )


def _check_fields(ty: type, names: tuple[Any, ...]) -> None:
    if not all(isinstance(name, str) for name in names):
        raise RegistrationError(f"fields and static must be lists of names, got {list(names)!r}.")
    known = field_names(ty) if dataclasses.is_dataclass(ty) else names
    unknown = [name for name in names if name not in known]
    if unknown:
        raise RegistrationError(
            f"The dataclass {ty.__name__} has no field(s) {format_keys(unknown)}; its fields are {format_keys(known)}."
        )


def _check_bases(ty: type, override: bool) -> None:
    base = base_with_hidden_data(ty)
    if base is not None:
        raise RegistrationError(
            f"{ty.__name__} cannot be saved by its attributes: its base {base.__name__} holds data that is in none. "
            "Leave it unregistered if it is a subclass of a builtin container, scalar or array: those are saved as "
            "they are. Otherwise, or to save more than that, call msgpack_register_serialization."
        )
    registry.activate_for(ty)
    held = [registry._types[base] for base in ty.__mro__[1:] if base in registry._types]
    if held and not isinstance(held[0], FunctionHandler | FieldsHandler) and not override:
        raise RegistrationError(
            f"{ty.__name__} needs no registration: it is saved as its base is, by {held[0]!r}. Leave the decorator "
            "out, or pass override=True to save its attributes instead."
        )
