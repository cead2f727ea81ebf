"""Handlers of Python's containers: sequences, mappings, sets and named tuples.

A target accepts a container of its own kind, and the plain form that ``braintools.file`` and Flax give every container:
a dict with string keys (``{'0': ..., '1': ...}`` for a list).
"""

from __future__ import annotations

import collections
import copy
import enum
import functools
import keyword
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeAlias

import msgpack

from ..claims import hashed
from ..document import ARRAYS, FLATTED_TAGS, ITEMS, LEAF, LIST, MAPPING_TAGS, NAMED_ARRAYS, NODE, Value, written_out
from ..errors import LinkedPath, SerializationError, written
from .decode import Decoder, NamedKey, decode_key
from .describe import describe
from .encode import Encoder, Trouble, check_hashes
from .merge import Merger
from .mismatch import format_keys
from .registry import Handler, Registry, registry
from .requests import Build
from .scalars import base_reason, class_name

#: Turns a key into the step of a path that messages name.
Step: TypeAlias = Callable[[Any], Any]

_MISSING = object()


def node_parts(value: Value, tag: str) -> tuple[Value, dict[str, Value]] | None:
    """Give state and attributes of a node with that tag, else None."""
    if type(value) is list and value[0] in (NODE, LEAF) and value[1] == tag:
        return value[2], value[3] if len(value) > 3 else {}
    return None


def as_items(value: Value) -> dict[Any, Value] | None:
    """Give a mapping from Python keys to encoded values for any kind of map, else None."""
    value = written_out(value)
    if type(value) is dict:
        return value
    if type(value) is list and value[0] == ITEMS:
        return dict(zip(hashed(map(decode_key, value[1::2])), value[2::2], strict=True))
    if type(value) is list and value[0] == NODE and value[1] in FLATTED_TAGS:
        return _nested(as_items(value[2]) or {})
    return None


def _nested(items: dict[Any, Value]) -> dict[Any, Value]:
    """Turn tuples of steps into nested mappings, one step at a time."""
    hashed(path[0] if type(path) is tuple and path else path for path in items)
    leaves: dict[Any, Value] = {}
    below: dict[Any, list[Value]] = {}
    for path, item in items.items():
        first, *rest = path if type(path) is tuple else (path,)
        if rest:
            below.setdefault(first, [ITEMS]).extend(([NODE, "tuple", [LIST, *rest]], item))
        else:
            leaves[first] = item
    clash = leaves.keys() & below.keys()
    if clash:
        raise ValueError(f"the keys {sorted(map(written, clash))} are leaves, and lead to other leaves as well")
    return leaves | {first: [NODE, "brainstate.FlattedDict", rest] for first, rest in below.items()}


def as_elements(value: Value) -> list[Value] | None:
    """Give the elements of any kind of list, or of a dict with the keys ``'0'``, ``'1'`` ...; else None."""
    value = written_out(value)
    if type(value) is list and value[0] == LIST:
        return value[1:]
    if type(value) is dict and all(str(i) in value for i in range(len(value))):
        return [value[str(i)] for i in range(len(value))]
    return None


# Planning, shared by all containers.


def plan_elements(targets: list[Any], elements: list[Value], path: LinkedPath, merger: Merger) -> list[Build]:
    """Plan elements by position; what one side lacks is a mismatch, and the target's own elements stay."""
    merger.leave(*((path, i) for i in range(len(targets), len(elements))))
    if merger.transaction.leftovers is not None:
        merger.transaction.leftovers.lists.append(merger.whole_path(path))
    if len(elements) < len(targets) or (len(elements) > len(targets) and not merger.options.partial):
        merger.note(
            "length",
            path,
            f"The size of the list and the state dict do not match, got {len(targets)} and {len(elements)}",
            expected=str(len(targets)),
            found=str(len(elements)),
        )
    common = min(len(targets), len(elements))
    paths: list[LinkedPath] = [(path, i) for i in range(common)]
    plans = merger.plan_many(targets[:common], elements[:common], paths)
    plans.extend(merger.keep(target, (path, i)) for i, target in enumerate(targets[common:], common))
    return plans


def plan_fields(
    targets: Mapping[Any, Any],
    items: Mapping[Any, Value],
    path: LinkedPath,
    merger: Merger,
    step: Step | None = None,
) -> list[tuple[Any, Build]]:
    """Plan values by key; what one side lacks is a mismatch, and the target's own values stay."""
    names: Mapping[Any, Any] | None = None  # the file's keys, as nearly always, are the target's
    found = list(targets.items())
    if targets.keys() != items.keys():
        names = _names(targets, items, path, merger, step)
        found = [(key, target) for key, target in found if key in names]
    values = [items[names[key] if names else key] for key, _ in found]
    paths: list[LinkedPath] = [(path, step(key) if step else key) for key, _ in found]
    plans = merger.plan_many([target for _, target in found], values, paths)
    planned = [(key, plan) for (key, _), plan in zip(found, plans, strict=True)]
    if len(found) == len(targets):
        return planned
    known = dict(planned)
    return [
        (key, known[key] if key in known else merger.keep(target, (path, step(key) if step else key)))
        for key, target in targets.items()
    ]


def _names(
    targets: Mapping[Any, Any], items: Mapping[Any, Value], path: LinkedPath, merger: Merger, step: Step | None
) -> dict[Any, Any]:
    """Give the file's key for each key of the target that it has."""
    plain = all(type(key) is str for key in items)  # as state dicts are
    found = {key: key if key in items else _name_in(items, key, plain) for key in targets}
    names = {key: name for key, name in found.items() if name is not _MISSING}
    if merger.transaction.leftovers is not None:
        at = merger.whole_path(path)
        merger.transaction.leftovers.keys += ((at, name, key) for key, name in names.items() if name is not key)
    if len(names) < len(targets):
        note_missing([key for key in targets if key not in names], path, merger)
    if len(names) < len(items):
        known = set(names.values())
        leave_unexpected([key for key in items if key not in known], path, merger, step)
    return names


def _name_in(items: Mapping[Any, Value], key: Any, plain: bool) -> Any:
    """Find the key of a file that stands for a key of the target without being equal to it."""
    if plain:
        return str(key) if str(key) in items else _MISSING
    if type(key) is not str and (key != key or not isinstance(key, (int, float))):
        for other in items:
            if _same_key(key, other):
                return other
    return _MISSING


def _same_key(key: Any, other: Any) -> bool:
    if isinstance(other, NamedKey):
        return isinstance(key, enum.Enum) and (class_name(type(key)), key.name) == (other.owner, other.name)
    # nan does not equal itself, and is the same key all the same: what counts is how a key is written.
    return type(key) is type(other) and _written(key) == _written(other)


def _written(key: Any) -> bytes:
    packed: bytes = msgpack.packb(Encoder(registry).encode(key))
    return packed


def note_missing(keys: list[Any], path: LinkedPath, merger: Merger) -> None:
    """Note keys of the target that the file does not have."""
    text = (
        "The target dict keys and state dict keys do not match, target dict contains keys "
        f"{format_keys(keys)} which are not present in state dict"
    )
    merger.note("missing", path, text, expected=format_keys(keys), found="nothing", keys=keys)


def leave_unexpected(keys: list[Any], path: LinkedPath, merger: Merger, step: Step | None = None) -> None:
    """Note keys of the file that the target does not have: a mismatch, unless the target names only a part."""
    merger.leave(*((path, step(key) if step else key) for key in keys))
    if merger.options.partial:
        return
    text = (
        "The target dict keys and state dict keys do not match, state dict contains keys "
        f"{format_keys(keys)} which are not present in target dict"
    )
    merger.note("unexpected", path, text, expected="nothing", found=format_keys(keys), keys=keys)


def container_mismatch(target: Any, expected: str, value: Value, path: LinkedPath, merger: Merger) -> Build:
    """Note that the file holds another kind of container."""
    found = describe(value, merger.document)
    return merger.mismatch("container", target, path, "Container mismatch", expected, found)


def _article(ty: type) -> str:
    return f"a {ty.__name__}"


# Mappings.


class DictHandler(Handler):
    """``dict``: in order, with keys of any type."""

    def encode(self, obj: Any, encoder: Encoder) -> Value:
        """Write a map."""
        return encoder.mapping(obj)

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Plan by key."""
        if type(value) is list and value[0] == NAMED_ARRAYS and value[2:] == list(target):
            keys = list(target)  # which may be of a class of strings
            arrays = merger.plan_run(list(target.values()), value[1], keys, path)
            if arrays is not None:
                return partial(_dict, keys, arrays)
        items = as_items(mapping_state(value))
        if items is None:
            return container_mismatch(target, "a dict", value, path, merger)
        plans = plan_fields(target, items, path, merger)
        return lambda: {key: plan() for key, plan in plans}

    def plan_many(
        self, targets: list[Any], values: list[Value], paths: list[LinkedPath], merger: Merger
    ) -> list[Build] | None:
        """Plan dicts that have the same keys: key by key."""
        keys = list(targets[0])
        if any(type(value) is not dict or value.keys() != targets[0].keys() for value in values):
            return None
        if any(list(target) != keys for target in targets):
            return None
        columns: list[list[Build]] = []
        for key in keys:
            parts = [target[key] for target in targets], [value[key] for value in values]
            column = merger.plan_alike(*parts, [(path, key) for path in paths])
            if column is None:
                return None
            columns.append(column)
        return [partial(_dict, keys, row) for row in zip(*columns, strict=True)]


def _dict(keys: list[Any], plans: Iterable[Build]) -> dict[Any, Any]:
    return {key: plan() for key, plan in zip(keys, plans, strict=True)}


def mapping_state(value: Value) -> Value:
    """Give the items of any kind of mapping; other values are themselves."""
    if type(value) is list and value[0] == NODE and value[1] in MAPPING_TAGS:
        return value[2]
    return value


#: The factories of a ``defaultdict`` that a file may name.
_FACTORIES: dict[str, type] = {ty.__name__: ty for ty in (list, dict, set, tuple, int, float, str, bool)}


class DictSubclassHandler(Handler):
    """``OrderedDict``, ``defaultdict``, ``Counter`` and users' own subclasses of dict."""

    def __init__(self, ty: type[dict[Any, Any]]) -> None:
        self.type = ty
        self.tag = ty.__name__

    def encode(self, obj: Any, encoder: Encoder) -> Value:
        """Write the items, and what else makes the mapping."""
        attributes: dict[str, Value] = {}
        if type(obj) is not self.type:
            attributes["class"] = class_name(type(obj))
        if isinstance(obj, collections.defaultdict) and obj.default_factory in _FACTORIES.values():
            attributes["factory"] = obj.default_factory.__name__  # type: ignore[union-attr]
        return encoder.node(self.tag, encoder.mapping(obj), **attributes)

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Make a mapping of the standard library's type."""
        if self.type is dict or "class" in attributes:
            return decoder.plain(state, base_reason(str(attributes.get("class")), self.type))
        items = decoder.mapping(state)
        if self.type is collections.defaultdict:
            return collections.defaultdict(_FACTORIES.get(attributes.get("factory", "")), items)
        return self.type(items)

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Plan by key; the result is a mapping of the target's type."""
        items = as_items(mapping_state(value))
        if items is None:
            return container_mismatch(target, _article(type(target)), value, path, merger)
        plans = plan_fields(target, items, path, merger)
        return lambda: _refilled(target, ((key, plan()) for key, plan in plans))


def _refilled(target: Any, items: Iterable[tuple[Any, Any]]) -> Any:
    # A copy keeps what the class adds to a dict: a default factory, attributes.
    result = copy.copy(target)
    result.clear()
    for key, item in items:
        result[key] = item
    return result


# Sequences.


class ListHandler(Handler):
    """``list``."""

    def encode(self, obj: Any, encoder: Encoder) -> Value:
        """Write a list."""
        return encoder.sequence(obj)

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Plan by position."""
        if type(value) is list and value[0] == ARRAYS and value[2] == len(target):
            arrays = merger.plan_run(target, value[1], range(value[2]), path)
            if arrays is not None:
                return lambda: [plan() for plan in arrays]
        elements = as_elements(value)
        if elements is None:
            return container_mismatch(target, "a list", value, path, merger)
        plans = plan_elements(target, elements, path, merger)
        return lambda: [plan() for plan in plans]


class SequenceHandler(Handler):
    """``tuple``, ``deque``, and subclasses of these and of ``list``."""

    def __init__(self, ty: type, tag: str) -> None:
        self.type = ty
        self.tag = tag

    def encode(self, obj: Any, encoder: Encoder) -> Value:
        """Write the elements."""
        attributes: dict[str, Value] = {}
        if type(obj) is not self.type:
            attributes["class"] = class_name(type(obj))
        if isinstance(obj, collections.deque) and obj.maxlen is not None:
            attributes["maxlen"] = obj.maxlen
        return encoder.node(self.tag, encoder.sequence(obj), **attributes)

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Make a sequence of the builtin type."""
        if "class" in attributes:
            reason = base_reason(attributes["class"], self.type)
            return self.type(decoder.plain(state, reason))
        items = decoder.sequence(state)
        if self.type is collections.deque:
            return _deque(items, attributes["maxlen"]) if "maxlen" in attributes else collections.deque(items)
        return self.type(items)

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Plan by position."""
        found = node_parts(value, self.tag)
        elements = as_elements(found[0]) if found else as_elements(value) if type(value) is dict else None
        if elements is None and self.type is list:
            elements = as_elements(value)
        if elements is None:
            return container_mismatch(target, _article(type(target)), value, path, merger)
        plans = plan_elements(list(target), elements, path, merger)
        if isinstance(target, collections.deque):
            return lambda: _same_deque(target, (plan() for plan in plans))
        if type(target) is tuple or type(target) is list:
            return lambda: type(target)([plan() for plan in plans])
        return lambda: merger.call(target, path, lambda: type(target)([plan() for plan in plans]))


def _deque(items: list[Any], maxlen: Any) -> Any:
    if type(maxlen) is not int or maxlen < len(items):  # a deque would drop the first ones
        raise ValueError(f"{len(items)} elements in a deque of at most {maxlen!r:.80}")
    return collections.deque(items, maxlen)


def _same_deque(target: Any, items: Iterable[Any]) -> Any:
    result = copy.copy(target)
    result.clear()
    result.extend(items)
    return result


class NamedTupleHandler(Handler):
    """Named tuples, by field name."""

    tag = "namedtuple"

    def encode(self, obj: Any, encoder: Encoder) -> Value:
        """Write the fields."""
        state = encoder.fields(dict(zip(obj._fields, obj, strict=True)))
        return encoder.node(self.tag, state, **{"class": type(obj).__name__})

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Make a named tuple of the same name and fields, or a plain map where the names would not do."""
        fields = decoder.fields(state)
        name = attributes["class"]
        names = (name, *fields)
        usable = all(n.isidentifier() and not keyword.iskeyword(n) for n in names)
        usable = usable and all(map(partial(unicodedata.is_normalized, "NFKC"), names))  # what is compiled is
        if len(names) > 256 or not usable or any(field.startswith("_") for field in fields):
            return decoder.plain(state, lost_namedtuple(name))
        return _namedtuple_type(name, tuple(fields))(**fields)

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Plan by field."""
        found = node_parts(value, self.tag)
        items = as_items(found[0] if found else value)
        if items is None:
            return container_mismatch(target, f"a namedtuple {type(target).__name__}", value, path, merger)
        fields = target._fields
        items = _without_envelope(items, fields)
        lacking = set(fields) - set(items)
        extra = set(items) - set(fields)
        merger.leave(*((path, field) for field in extra))
        if lacking or (extra and not merger.options.partial):
            merger.note(
                "missing" if lacking else "unexpected",
                path,
                "The field names of the state dict and the named tuple do not match, got "
                f"{format_keys(items)} and {format_keys(fields)}",
                expected=format_keys(fields),
                found=format_keys(items),
                keys=tuple(sorted(lacking or extra)),
            )
        plans = [
            merger.plan(item, items[field], (path, field)) if field in items else merger.keep(item, (path, field))
            for field, item in zip(fields, target, strict=True)
        ]
        return lambda: type(target)._make(plan() for plan in plans)


def lost_namedtuple(name: str) -> str:
    """Say why a named tuple comes back as a plain map."""
    return (
        f"The checkpoint holds a namedtuple {name!r} whose field names only its own class can have: without a target "
        "it is loaded as a plain dict. Pass a target to get the class back."
    )


def _without_envelope(items: dict[Any, Value], fields: tuple[str, ...]) -> dict[Any, Value]:
    """Undo the form ``{'name', 'fields', 'values'}`` that early versions of Flax wrote."""
    envelope = {"name", "fields", "values"}
    if set(items) != envelope or set(fields) == envelope:
        return items
    names, values = as_elements(items["fields"]), as_elements(items["values"])
    if names is None or values is None or len(names) != len(values):
        return items
    return dict(zip(names, values, strict=True))


@functools.lru_cache(maxsize=1024)
def _namedtuple_type(name: str, fields: tuple[str, ...]) -> Any:
    return collections.namedtuple(name, fields)


# Sets.


class SetHandler(Handler):
    """``set`` and ``frozenset``: one value each, in an order that depends on the elements alone."""

    def __init__(self, ty: type, *, tracked: bool) -> None:
        self.type = ty
        self.tag = ty.__name__
        self.tracked = tracked  # type: ignore[misc]

    def encode(self, obj: Any, encoder: Encoder) -> Value:
        """Write the elements, sorted by their bytes."""
        check_hashes(obj)
        elements = encoder.sequence(obj)
        if _loses_its_class(elements):
            raise Trouble(
                lambda path: SerializationError(
                    f"Cannot save the {self.tag} at path {path}: members of enums and objects of dataclasses come back "
                    "from a set as plain dicts, which it cannot hold. Decorate their class with "
                    "@braintools_ckpt.serializable, or save a list."
                )
            )
        attributes = {} if type(obj) is self.type else {"class": class_name(type(obj))}
        return encoder.leaf(self.tag, [LIST, *sorted(elements[1:], key=msgpack.packb)], **attributes)

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Make a set."""
        if "class" in attributes:
            return _distinct(self.type, decoder.plain(state, base_reason(attributes["class"], self.type)))
        return _distinct(self.type, decoder.sequence(state))

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Take the file's elements."""
        found = node_parts(value, self.tag)
        if found is None:
            return container_mismatch(target, _article(type(target)), value, path, merger)
        elements = merger.plan_decoded(found[0])
        return lambda: _distinct(type(target), elements())


def _loses_its_class(value: Value) -> bool:
    """Tell whether elements of a set, or parts of them, need a target to come back as themselves."""
    if type(value) is not list:
        return False
    if value[0] == LIST:
        return any(map(_loses_its_class, value[1:]))
    if value[0] not in (NODE, LEAF):
        return False
    if value[1] == "namedtuple" and type(value[2]) is dict:
        return any(map(_loses_its_class, value[2].values()))
    return value[1] in ("enum", "dataclass", "pytree") or (
        value[1] in ("tuple", "frozenset") and _loses_its_class(value[2])
    )


def _distinct(make: Callable[[Any], Any], elements: list[Any]) -> Any:
    made = make(hashed(elements))
    if len(made) != len(elements):
        raise ValueError("an element occurs twice in a set")
    return made


def set_up(registry: Registry) -> None:
    """Register the containers."""
    registry.register(dict, _Split(DictHandler(), DictSubclassHandler(dict), dict))
    for mapping in (collections.OrderedDict, collections.defaultdict, collections.Counter):
        registry.register(mapping, DictSubclassHandler(mapping))
    registry.register(list, _Split(ListHandler(), SequenceHandler(list, "list"), list))
    registry.register(tuple, SequenceHandler(tuple, "tuple"))
    registry.register(collections.deque, SequenceHandler(collections.deque, "deque"))
    registry.register(set, SetHandler(set, tracked=True))
    registry.register(frozenset, SetHandler(frozenset, tracked=False))
    registry.register_rule(
        lambda ty: issubclass(ty, tuple) and hasattr(ty, "_fields"), NamedTupleHandler(), structural=True
    )


class _Split(Handler):
    """The builtin type itself has a form of its own in the structure; its subclasses are nodes."""

    takes_runs = True

    def __init__(self, exact: Handler, derived: Handler, ty: type) -> None:
        self.tag = derived.tag
        self._exact = exact
        self._derived = derived
        self._type = ty
        self.decode = derived.decode  # type: ignore[method-assign]

    def _of(self, obj: Any) -> Handler:
        return self._exact if type(obj) is self._type else self._derived

    def encode(self, obj: Any, encoder: Encoder) -> Value:
        return self._of(obj).encode(obj, encoder)

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        if type(value) is list and value[0] == NODE and value[1] == "list":
            value = value[2]
        handler = self._of(target)
        return handler.plan(target, value if handler is self._exact else written_out(value), path, merger)

    def plan_many(
        self, targets: list[Any], values: list[Value], paths: list[LinkedPath], merger: Merger
    ) -> list[Build] | None:
        return self._of(targets[0]).plan_many(targets, values, paths, merger)
