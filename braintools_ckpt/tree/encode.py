"""From a tree of Python objects to a Document."""

from __future__ import annotations

import dataclasses
import functools
import reprlib
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np

from ..claims import hashed
from ..document import (
    ARRAY,
    ARRAYS,
    ITEMS,
    LEAF,
    LIST,
    NAMED_ARRAYS,
    NODE,
    OPAQUE,
    REF,
    Document,
    Kind,
    LiveArrays,
    Value,
)
from ..errors import CheckpointError, Path, SerializationError, format_path
from ..walking import MAX_DEPTH, walking
from .registry import Handler, Registry

if TYPE_CHECKING:
    from .selection import Selection

#: A larger array does not belong into metadata, which is read whole whenever a file is opened.
MAX_METADATA_ARRAY = 1 << 16
MAX_METADATA_VALUES = 1 << 20
#: Fewer arrays in a row have a node each, which is easier to read for others.
_MIN_RUN = 16

_IN_PROGRESS = object()
_OBJECT = np.dtype(object)


class Trouble(Exception):  # noqa: N818  (never leaves the package: it becomes one of the public errors)
    """An error on its way up a tree: each level adds its key, so that a path costs nothing until it is needed."""

    def __init__(self, make: Callable[[str], Exception]) -> None:
        super().__init__()
        self.make = make
        self.keys: list[Any] = []

    def at(self, key: Any) -> Trouble:
        """Add the key of one more level."""
        self.keys.append(key)
        return self

    def resolve(self, prefix: Path = ()) -> Exception:
        """Make the public error, now that the whole path is known."""
        return self.make(format_path((*prefix, *reversed(self.keys))))


def check_hashes(keys: Iterable[Any]) -> None:
    """Refuse a dict or a set that no reader would accept."""
    try:
        hashed(keys)
    except ValueError as error:
        reason = str(error)
        raise Trouble(
            lambda path: SerializationError(f"Cannot save the keys or elements at path {path}: {reason}.")
        ) from error


class Encoder:
    """One walk over one tree. Nothing of the caller's is changed; arrays are referred to, not copied.

    Parameters
    ----------
    registry : Registry
        Where handlers are looked up.
    inline : bool
        Write small arrays into the structure itself, as metadata needs it, instead of the array table.
    passthrough : bool
        Let objects without a handler stand in the array table as they are, for documents that are not written.
    traced : bool
        Let arrays that jax is tracing stand in the array table, for a document that is completed when they have data.
    selection : Selection, optional
        Which states of modules to encode.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        inline: bool = False,
        passthrough: bool = False,
        traced: bool = False,
        selection: Selection | None = None,
    ) -> None:
        self.registry = registry
        self.traced = traced
        self.selection = selection
        #: Functions are no data, but where they stand among it, their places are noted: a target has its own.
        self.functions_stay = False
        self._handlers = registry.known
        self._passthrough = passthrough
        self.arrays = LiveArrays()
        self._inline = inline
        # id of an object -> (the object, kept alive so that its id stays its own; what it became)
        self._memo: dict[int, tuple[Any, Any]] = {}
        # The same for arrays: id -> index in the table, which keeps them alive.
        self._indices: dict[int, int] = {}
        self._repeated: set[int] = set()
        self._shared: list[Value] = []
        self._places: dict[bytes, int] = {}
        self._whole = inline
        self._depth = 0

    def encode(self, obj: Any) -> Value:
        """Encode one object and all below it."""
        if obj is None or obj is True or obj is False or type(obj) is float:
            return obj
        handler = self._handlers.get(type(obj)) or self.registry.lookup(obj)
        if handler is None:
            if self._passthrough:
                return self.array(_OBJECT, (), OPAQUE, obj)
            if self.functions_stay and is_function(obj):
                return self.leaf("function", None, name=_function_name(obj))
            raise Trouble(lambda path: SerializationError(_unknown(obj, path)))
        if not handler.tracked:
            return handler.encode(obj, self)
        key = id(obj)
        known = self._memo.get(key)
        if known is not None:
            return self._again(known)
        index = self._indices.get(key)
        if index is not None:
            return [ARRAY, index]
        if not handler.atomic:
            self._memo[key] = (obj, _IN_PROGRESS)
        value = handler.encode(obj, self)
        if type(value) is list and value[0] == ARRAY and self.arrays.sources[value[1]] is obj:
            self._indices[key] = value[1]
        else:
            self._memo[key] = (obj, value)
        return value

    def _again(self, known: tuple[Any, Any]) -> Value:
        obj, value = known
        if value is _IN_PROGRESS:
            raise Trouble(
                lambda path: SerializationError(
                    f"Cannot save a cycle: the {_type_name(obj)} at path {path} contains itself. "
                    "Break the cycle, or register the type with a handler that leaves it out."
                )
            )
        if type(value) is dict or (type(value) is list and not _is_flat_tuple(value)):
            self._repeated.add(id(value))
        return value

    # What handlers build their values from.

    def array(self, dtype: np.dtype[Any], shape: tuple[int, ...], kind: Kind, source: Any) -> Value:
        """Put an array into the array table and refer to it."""
        arrays = self.arrays
        spec = arrays.spec(dtype, shape, kind)
        if not self._inline:
            return [ARRAY, arrays.add(spec, source)]
        if spec.nbytes > MAX_METADATA_ARRAY:
            raise Trouble(
                lambda path: SerializationError(
                    f"Metadata is for small values: the array at path {path} has {spec.nbytes} bytes, at most "
                    f"{MAX_METADATA_ARRAY} are allowed. Save it in the tree instead."
                )
            )
        from .arrays import inline_array

        return inline_array(spec, np.asarray(source))

    def sequence(self, items: Collection[Any]) -> Value:
        """Encode items as a list."""
        first = self._run(list(items))
        if first is not None:
            return [ARRAYS, first, len(items)]
        out: list[Value] = [LIST]
        index = 0
        self._descend()
        try:
            for index, item in enumerate(items):  # noqa: B007  (the path of an error)
                out.append(self.encode(item))
        except Trouble as trouble:
            raise trouble.at(index)  # noqa: B904  (the same trouble goes on)
        self._depth -= 1
        return out

    def _run(self, objects: list[Any]) -> int | None:
        """Put items into the array table in one go, if they are arrays of one type and nothing else is to be said.

        Returns the index of the first. What is met the second time, or cannot be saved, is for the long way.
        """
        if len(objects) < _MIN_RUN or self._inline:
            return None
        handler = self.registry.lookup(objects[0])
        if handler is None or not handler.atomic or len(set(map(type, objects))) > 1:
            return None
        return self._append(handler, objects) if self._are_new(objects) else None

    def _are_new(self, objects: list[Any]) -> bool:
        ids = set(map(id, objects))
        return len(ids) == len(objects) and ids.isdisjoint(self._indices) and ids.isdisjoint(self._memo)

    def _append(self, handler: Handler, arrays: list[Any]) -> int | None:
        """Put new arrays of one type into the table, if nothing else is to be said of them."""
        specs = handler.plain_arrays(arrays, self.arrays.spec)
        if specs is None:
            return None
        first = self.arrays.extend(specs, arrays)
        self._indices.update(zip(map(id, arrays), range(first, first + len(arrays)), strict=True))
        return first

    def many(self, objects: list[Any]) -> list[Value] | None:
        """Encode objects in one go, if their handlers can, and none of them was met before; else give None."""
        if self._inline or not self._are_new(objects):
            return None
        known, arrays = len(self._memo), len(self.arrays.specs)
        values = self._many(objects)
        if values is None:  # nothing of it may stay: the long way must not meet it the second time, or store it again
            for _ in range(len(self._memo) - known):
                self._memo.popitem()
            for _ in range(len(self.arrays.specs) - arrays):
                self._indices.popitem()
            self.arrays.forget(arrays)
        return values

    def _many(self, objects: list[Any]) -> list[Value] | None:
        places: dict[type, list[int]] = {}
        for place, obj in enumerate(objects):
            places.setdefault(type(obj), []).append(place)
        if not all(_goes_quickly(self.registry.lookup(objects[of_type[0]])) for of_type in places.values()):
            return None
        values: list[Value] = [None] * len(objects)
        for of_type in places.values():
            made = self._many_of_one_type([objects[place] for place in of_type])
            if made is None:
                return None
            for place, value in zip(of_type, made, strict=True):
                values[place] = value
        return values

    def _many_of_one_type(self, objects: list[Any]) -> list[Value] | None:
        handler = self.registry.lookup(objects[0])
        if handler is None:
            return None
        first = self._append(handler, objects) if handler.atomic else None
        if first is not None:
            return [[ARRAY, index] for index in range(first, first + len(objects))]
        values = handler.encode_many(objects, self)
        if values is not None:
            self._memo.update(zip(map(id, objects), zip(objects, values, strict=True), strict=True))
        return values

    def _descend(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Trouble(lambda path: SerializationError(_too_deep(path)))

    def mapping(self, items: Mapping[Any, Any]) -> Value:
        """Encode a mapping: as a plain map when all keys are strings, else as keys and values in turn."""
        for key in items:
            if type(key) is not str or not (key.isascii() or _is_utf8(key)):
                return self._items(items)
        return self.fields(items)

    def fields(self, items: Mapping[str, Any]) -> Value:
        """Encode a mapping whose keys are known to be plain strings."""
        if len(items) >= _MIN_RUN:
            pairs = list(items.items())  # once: a subclass, or another thread, may give other values the next time
            first = self._run([item for _, item in pairs])
            if first is not None:
                return [NAMED_ARRAYS, first, *(key for key, _ in pairs)]
            values = self.many([item for _, item in pairs])
            if values is not None:
                return {key: value for (key, _), value in zip(pairs, values, strict=True)}
        out: dict[str, Value] = {}
        key = None
        self._descend()
        try:
            for key, item in items.items():
                out[key] = self.encode(item)
        except Trouble as trouble:
            raise trouble.at(key)  # noqa: B904
        self._depth -= 1
        return out

    def _items(self, items: Mapping[Any, Any]) -> Value:
        check_hashes(items)
        out: list[Value] = [ITEMS]
        key = None
        self._descend()
        try:
            for key, item in items.items():
                out.append(self._key(key))
                out.append(self.encode(item))
        except Trouble as trouble:
            raise trouble.at(key)  # noqa: B904
        self._depth -= 1
        return out

    def _key(self, key: Any) -> Value:
        arrays = len(self.arrays.specs)
        # A key stands whole in each dict: references are for values.
        known, self._memo, self._indices = (self._memo, self._indices), {}, {}
        whole, self._whole = self._whole, True
        try:
            value = self.encode(key)
        except Trouble:
            value = None
        finally:
            (self._memo, self._indices), self._whole = known, whole
        if (value is None) is (key is None) and len(self.arrays.specs) == arrays and _is_key_again(value):
            return value
        raise Trouble(
            lambda path: SerializationError(
                f"Cannot save the dict key {reprlib.repr(key)} at path {path}: keys must be scalars, strings of at "
                "most 64 KiB, tuples of them, or objects of a class with the decorator @braintools_ckpt.serializable."
            )
        )

    def share(self, obj: Any, encode: Callable[[Any], Value]) -> Value:
        """Put what stands in many places, like a unit, into the shared table: once for all that are equal."""
        known = self._memo.get(id(obj))
        if known is not None:
            return known[1]
        value = encode(obj)
        if self._whole:
            return value
        index = self._places.setdefault(msgpack.packb(value), len(self._shared))
        if index == len(self._shared):
            self._shared.append(value)
        self._memo[id(obj)] = (obj, [REF, index])
        return [REF, index]

    def node(self, tag: str, state: Value, **attributes: Value) -> Value:
        """Make an object whose parts are in its state."""
        return [NODE, tag, state, attributes] if attributes else [NODE, tag, state]

    def leaf(self, tag: str, state: Value, **attributes: Value) -> Value:
        """Make an object that is one leaf of the tree."""
        return [LEAF, tag, state, attributes] if attributes else [LEAF, tag, state]

    def hoist(self, structure: Value) -> tuple[Value, list[Value]]:
        """Move what occurs more than once into a shared table; inner values come before those that hold them."""
        if not self._repeated:
            return structure, self._shared
        return self._hoist(structure, self._shared, {}), self._shared

    def _hoist(self, value: Value, shared: list[Value], moved: dict[int, int]) -> Value:
        if id(value) in moved:
            return [REF, moved[id(value)]]
        if type(value) is dict:
            for key, item in value.items():
                if type(item) is dict or type(item) is list:
                    value[key] = self._hoist(item, shared, moved)
        elif type(value) is list and value[0] not in (ARRAY, ARRAYS, NAMED_ARRAYS):
            for index, item in enumerate(value):
                if type(item) is dict or type(item) is list:
                    value[index] = self._hoist(item, shared, moved)
        if id(value) not in self._repeated:
            return value
        moved[id(value)] = len(shared)
        shared.append(value)
        return [REF, moved[id(value)]]


def _is_key_again(value: Value) -> bool:
    """Tell whether what is written for a key can be the key of a dict when it is loaded."""
    if type(value) is not list or _is_flat_tuple(value):  # as nearly always
        return True
    from .decode import decode_key

    try:
        hash(decode_key(value))
    except (TypeError, CheckpointError):
        return False
    return True


def _goes_quickly(handler: Handler | None) -> bool:
    if handler is None:
        return False
    own = type(handler)
    return own.plain_arrays is not Handler.plain_arrays or own.encode_many is not Handler.encode_many


def _is_flat_tuple(value: Value) -> bool:
    # Whether two equal tuples of scalars are one object is up to Python's compiler, and means nothing.
    if value[0] != NODE or value[1] not in ("tuple", "namedtuple"):
        return False
    if type(value[2]) is list and value[2][0] in (ARRAYS, NAMED_ARRAYS):
        return True
    parts = value[2].values() if type(value[2]) is dict else value[2][1:]
    return not any(type(part) is dict or (type(part) is list and part[0] != ARRAY) for part in parts)


def encode(
    target: Any,
    registry: Registry,
    *,
    passthrough: bool = False,
    traced: bool = False,
    selection: Selection | None = None,
) -> Document:
    """Turn a tree into a document that refers to the tree's own arrays.

    Parameters
    ----------
    target : pytree
        What to save. It is not changed.
    registry : Registry
        Where handlers are looked up.
    passthrough : bool
        Let objects without a handler stand for themselves, in a document that is not written.
    traced : bool
        Let arrays that jax is tracing stand for the data that they will have.
    selection : Selection, optional
        Which states of modules to save.

    Returns
    -------
    Document
        The structure and the array table.

    Raises
    ------
    SerializationError
        If something in the tree cannot be saved; the message names its path.
    HandlerError
        If a registered handler failed.
    """
    encoder = Encoder(registry, passthrough=passthrough, traced=traced, selection=selection)
    structure, shared = _run(encoder, target)
    if selection is not None:
        selection.confirm()
    return Document(structure, encoder.arrays, shared)


def encode_metadata(metadata: Mapping[str, Any], registry: Registry) -> dict[str, Value]:
    """Encode the user's metadata, which holds its small arrays within itself."""
    if not isinstance(metadata, Mapping) or not all(isinstance(key, str) for key in metadata):
        raise SerializationError(
            f"metadata must be a mapping with string keys, got {_type_name(metadata)}"
            + (f" with keys {list(metadata)!r}." if isinstance(metadata, Mapping) else ".")
        )
    encoder = Encoder(registry, inline=True)
    value, shared = _run(encoder, {str(key): item for key, item in metadata.items()}, ("metadata",))
    if type(value) is not dict:
        raise SerializationError("The keys of metadata must be valid text: one of them has an unpaired surrogate.")
    # Metadata has no shared table of its own: what is shared is written as often as it occurs.
    return {key: _inline_shared(item, shared, [MAX_METADATA_VALUES]) for key, item in value.items()}


def _inline_shared(value: Value, shared: list[Value], left: list[int]) -> Value:
    left[0] -= 1
    if left[0] < 0:
        raise SerializationError(
            f"Metadata is for small values: it has more than {MAX_METADATA_VALUES}. Save it in the tree instead."
        )
    if type(value) is dict:
        return {key: _inline_shared(item, shared, left) for key, item in value.items()}
    if type(value) is list:
        if value[0] == REF:
            return _inline_shared(shared[value[1]], shared, left)
        return [_inline_shared(item, shared, left) for item in value]
    return value


def _run(encoder: Encoder, target: Any, prefix: Path = ()) -> tuple[Value, list[Value]]:
    try:
        with walking():
            return encoder.hoist(encoder.encode(target))
    except Trouble as trouble:
        error = trouble.resolve(prefix)
        raise error from (trouble.__cause__ or error.__cause__)
    except RecursionError as error:
        raise SerializationError(_too_deep(format_path(prefix))) from error


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _type_name(obj: Any) -> str:
    ty = type(obj)
    return ty.__qualname__ if ty.__module__ == "builtins" else f"{ty.__module__}.{ty.__qualname__}"


#: Types of functions; those of jax by name, since jax may not be there.
_FUNCTIONS = (types.FunctionType, type, np.ufunc)
_FUNCTIONS_OF_JAX = {"PjitFunction", "custom_jvp", "custom_vjp", "ufunc"}


def is_function(obj: Any) -> bool:
    """Tell whether an object is a function or class that holds nothing which could be saved."""
    if isinstance(obj, _FUNCTIONS):
        return True
    if isinstance(obj, types.BuiltinFunctionType):  # not the method of an object
        return obj.__self__ is None or isinstance(obj.__self__, types.ModuleType)
    if isinstance(obj, functools.partial):
        held = (*obj.args, *obj.keywords.values())
        return is_function(obj.func) and all(item is None or type(item) in (bool, int, float, str) for item in held)
    ty = type(obj)
    return ty.__name__ in _FUNCTIONS_OF_JAX and ty.__module__.partition(".")[0] in ("jax", "jaxlib")


def _function_name(obj: Any) -> str:
    return str(getattr(obj, "__qualname__", None) or getattr(obj, "__name__", type(obj).__qualname__))


def _unknown(obj: Any, path: str) -> str:
    text = f"Cannot save a value of type {_type_name(obj)} at path {path}: no handler is registered for it. "
    if isinstance(obj, type) or (callable(obj) and not dataclasses.is_dataclass(obj)):
        return text + "Functions and classes are not saved; take it out of the tree, or hold it in a static field."
    return text + "Decorate the class with @braintools_ckpt.serializable, or call msgpack_register_serialization."


def _too_deep(path: str) -> str:
    return (
        f"Cannot save a tree that nests deeper than {MAX_DEPTH} levels (at path {_shortened(path)}). "
        "Flatten it, for example into a list with indices."
    )


def _shortened(path: str) -> str:
    return path if len(path) <= 120 else f"{path[:60]} ... {path[-40:]}"
