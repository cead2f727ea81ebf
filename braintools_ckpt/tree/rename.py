"""Move parts of a document to other paths, before it is loaded into a target."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from ..document import Document, Value, children, is_container
from ..errors import format_key, format_path, spread
from .decode import decode_key

Rename: TypeAlias = Mapping[str, str] | Callable[[str], str]


def rename(document: Document, how: Rename) -> Document:
    """Give a document whose leaves stand at other paths.

    Parameters
    ----------
    document : Document
        The document; it is not changed.
    how : mapping or callable
        From a path of the file to a path of the target, both as ``layers/0/w``. A mapping may name a container: then
        all below it moves. A callable is asked for every leaf.

    Returns
    -------
    Document
        The same leaves in nested dicts, which containers of every kind accept.

    Raises
    ------
    TypeError
        If ``how`` or a path that it gives is of another type.
    ValueError
        If the mapping names a path that the file does not have, or two leaves end up at one path.
    """
    if not callable(how) and not isinstance(how, Mapping):
        raise TypeError(f"rename= must be a mapping of paths or a function of one path, got {type(how).__name__}.")
    leaves = list(_leaves(document, document.structure, ()))
    move = how if callable(how) else _by_prefix(how, [path for path, _ in leaves])
    structure: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for path, value in leaves:
        old = format_path(path)
        new = move(old)
        if not isinstance(new, str):
            raise TypeError(f"rename= must give paths as strings, got {new!r} for {old!r}.")
        if new in origins:
            raise ValueError(f"rename= moves two leaves to {new!r}: {origins[new]!r} and {old!r}.")
        origins[new] = old
        _put(structure, split_path(new) if new != old else [_plain(key) for key in path], value, new)
    return Document(structure, document.arrays, document.shared, document.metadata)


def _leaves(document: Document, value: Value, path: tuple[Any, ...]) -> list[tuple[tuple[Any, ...], Value]]:
    value = document.resolve(value)
    parts = list(children(value, decode_key)) if is_container(value) else []
    if not parts:
        return [(path, value)]
    return [leaf for key, item in parts for leaf in _leaves(document, item, (*path, *spread((key,))))]


def _plain(key: Any) -> str:
    return key if type(key) is str else str(key)


def _by_prefix(how: Mapping[str, str], paths: list[tuple[Any, ...]]) -> Callable[[str], str]:
    known = {format_path(path[:n]) for path in paths for n in range(1, len(path) + 1)}
    for old, new in how.items():
        if not isinstance(new, str):
            raise TypeError(f"rename= must give paths as strings, got {new!r} for {old!r}.")
        if old not in known:
            near = difflib.get_close_matches(old, sorted(known), 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"rename= names the path {old!r}, which the checkpoint does not have.{hint}")

    def move(path: str) -> str:
        steps = path.split("/")
        for n in range(len(steps), 0, -1):
            prefix = "/".join(steps[:n])
            if prefix in how:
                return "/".join([how[prefix], *steps[n:]])
        return path

    return move


def split_path(path: str) -> list[str]:
    """Split a path that was written for people into plain keys; quoted keys are unquoted."""
    import ast

    keys = []
    for step in _split_outside_quotes(path):
        keys.append(ast.literal_eval(step) if step[:1] in "'\"" else step)
    return [key if isinstance(key, str) else format_key(key) for key in keys]


def _split_outside_quotes(path: str) -> list[str]:
    steps, quote, start, i = [], "", 0, 0
    while i < len(path):
        char = path[i]
        if quote:
            if char == "\\":
                i += 1
            elif char == quote:
                quote = ""
        elif char in "'\"":
            quote = char
        elif char == "/":
            steps.append(path[start:i])
            start = i + 1
        i += 1
    return [*steps, path[start:]]


def _put(structure: dict[str, Any], keys: list[str], value: Value, path: str) -> None:
    at: Any = structure
    for key in keys[:-1]:
        at = at.setdefault(key, {})
        if type(at) is not dict:
            raise ValueError(f"rename= moves a leaf to {path!r}, below another leaf.")
    if keys[-1] in at:
        raise ValueError(f"rename= moves a leaf to {path!r}, where another part of the checkpoint stands.")
    at[keys[-1]] = value
