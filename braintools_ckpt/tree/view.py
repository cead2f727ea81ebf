"""A document seen as a tree: containers, keys and leaves, with references followed at every level."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..document import (
    ARRAY,
    ARRAYS,
    FLATTED_TAGS,
    ITEMS,
    LIST,
    NAMED_ARRAYS,
    NODE,
    REF,
    Document,
    Value,
    children,
    written_out,
)
from ..errors import CorruptCheckpointError, LinkedPath, Steps, format_key
from .decode import decode_key
from .paths import Texts, key_texts, written_key

#: How many values a dict key may consist of: what is shared may stand in it often enough to fill any memory.
_MAX_KEY = 10_000
#: No list has an index of as many digits.
_DIGITS = 20


class Leaf(NamedTuple):
    """What has no parts of its own; or a container that was met before, at the path ``same_as``."""

    path: LinkedPath
    value: Value
    same_as: LinkedPath = None
    again: bool = False


class View:
    """The one way to ask for the parts of a value; nothing of the document is changed.

    Parameters
    ----------
    document : Document
        The document.
    """

    def __init__(self, document: Document) -> None:
        self.document = document
        self._places: dict[int, dict[str, int]] = {}

    def inner(self, value: Value) -> Value:
        """Give what holds the parts of a value, behind references and the nodes around it."""
        return self._open(value)[0]

    def tags(self, value: Value) -> list[str]:
        """Give the tags of the nodes around what :meth:`inner` gives, from the outside."""
        return self._open(value)[1]

    def _open(self, value: Value) -> tuple[Value, list[str]]:
        value = self.document.resolve(value)
        tags = []
        while type(value) is list and value[0] == NODE:
            tags.append(value[1])
            value = self.document.resolve(value[2])
        return value, tags

    def parts(self, value: Value) -> list[tuple[Any, Value]] | None:
        """Give the parts of a container with their keys; a leaf has none, which is None."""
        value, tags = self._open(value)
        value = written_out(value)
        if not (type(value) is dict or (type(value) is list and value[0] in (LIST, ITEMS))):
            return None
        parts = list(children(value, self.key))
        if FLATTED_TAGS.isdisjoint(tags):
            return parts
        return [(Steps(key) if type(key) is tuple and key else key, part) for key, part in parts]

    def key(self, value: Value) -> Any:
        """Decode the key of an ``ITEMS`` node."""
        return decode_key(self._inlined(value, [_MAX_KEY])) if type(value) is list else value

    def _inlined(self, value: Value, room: list[int]) -> Value:
        room[0] -= 1
        if room[0] < 0:
            raise CorruptCheckpointError(f"The checkpoint has a dict key of more than {_MAX_KEY} parts.")
        if type(value) is dict:
            return {key: self._inlined(item, room) for key, item in value.items()}
        if type(value) is not list:
            return value
        if value[0] == REF:
            return self._inlined(self.document.shared[value[1]], room)
        return [value[0], *(self._inlined(item, room) for item in value[1:])]

    def leaves(self) -> Iterator[Leaf]:
        """Yield all leaves in order; the parts of what is shared only where it first stands.

        A file must not be able to make the list explode.
        """
        first: dict[int, LinkedPath] = {}
        stack: list[tuple[LinkedPath, Value]] = [(None, self.document.structure)]
        while stack:
            path, value = stack.pop()
            parts = None if _is_array(value) else self.parts(value)
            if not parts:
                yield Leaf(path, value)
                continue
            known = id(self.inner(value))
            if known in first:
                yield Leaf(path, value, first[known], again=True)
                continue
            first[known] = path
            stack.extend(((path, key), part) for key, part in reversed(parts))

    def find(self, path: Texts) -> Value:
        """Give the value at a path; a KeyError without a message if there is none."""
        # A FlattedDict may have a key that is the beginning of another, so a first match can be a dead end.
        waiting = [(self.document.structure, path)]
        seen: set[tuple[int, int]] = set()  # keys that are written alike must not multiply the ways
        while waiting:
            value, rest = waiting.pop()
            if not rest:
                return value
            inner, tags = self._open(value)
            if FLATTED_TAGS.isdisjoint(tags) and not (type(inner) is list and inner[0] == ITEMS):
                waiting += ((part, rest[1:]) for part in self._part(inner, rest[0]))
                continue
            if (id(inner), len(rest)) in seen:
                continue
            seen.add((id(inner), len(rest)))
            for key, part in self.parts(value) or ():
                own = key_texts(key)
                if rest[: len(own)] == own:
                    waiting.append((part, rest[len(own) :]))
        raise KeyError

    def _part(self, value: Value, text: str) -> list[Value]:
        """Give the part of a list, or of a dict with string keys, whose key is written so; nothing if there is none."""
        if type(value) is dict:
            key = written_key(text)
            return [value[key]] if format_key(key) == text and key in value else []
        if type(value) is not list:
            return []
        if value[0] == NAMED_ARRAYS:
            key = written_key(text)
            places = self._places_in(value)
            return [[ARRAY, places[key]]] if format_key(key) == text and key in places else []
        length = {LIST: len(value) - 1, ARRAYS: value[-1]}.get(value[0], 0)
        index = int(text) if text.isdecimal() and text.isascii() and len(text) < _DIGITS else length
        if index >= length or str(index) != text:
            return []
        return [[ARRAY, value[1] + index] if value[0] == ARRAYS else value[1 + index]]

    def _places_in(self, run: list[Value]) -> dict[str, int]:
        if id(run) not in self._places:  # the document keeps it
            self._places[id(run)] = dict(zip(run[2:], itertools.count(run[1]), strict=False))
        return self._places[id(run)]


def _is_array(value: Value) -> bool:
    return type(value) is list and value[0] == ARRAY
