"""Paths that people write, such as ``layers/0/'a b'``, read the way messages and listings write them."""

from __future__ import annotations

import ast
from typing import Any, TypeAlias

from ..errors import format_key, spread

#: A path as the texts of its keys, each as :func:`format_key` writes it.
Texts: TypeAlias = tuple[str, ...]

_QUOTES = ("'", '"')
#: Reprs of keys that Python can read again; spacing and the choice of quotes do not matter in them.
_LITERALS = (*_QUOTES, "(", "b'", 'b"')


def parse_path(path: str) -> Texts:
    """Split a path at its slashes, but for those inside of quotes or brackets.

    Parameters
    ----------
    path : str
        The path; ``.`` or nothing is the root.

    Returns
    -------
    tuple of str
        Its keys, each as ``format_key`` writes it.

    Raises
    ------
    ValueError
        If a quote or bracket is not closed, or a key is empty.

    Examples
    --------
    >>> parse_path("layers/0/'a/b'")
    ('layers', '0', "'a/b'")
    """
    if path in ("", "."):
        return ()
    return tuple(_normal(step, path) for step in _split(path))


def _split(path: str) -> list[str]:
    steps, depth, quote, start, i = [], 0, "", 0, 0
    while i < len(path) and depth >= 0:
        char = path[i]
        if quote:
            if char == "\\":
                i += 1
            elif char == quote:
                quote = ""
        elif char in _QUOTES:
            quote = char
        elif char in "([{<":
            depth += 1
        elif char in ")]}>":
            depth -= 1
        elif char == "/" and not depth:
            steps.append(path[start:i])
            start = i + 1
        i += 1
    if quote or depth:
        raise _malformed(path, f"the quote {quote} is not closed" if quote else "its brackets do not match")
    return [*steps, path[start:]]


def _normal(step: str, path: str) -> str:
    if not step:
        raise _malformed(path, "one of its keys is empty (the empty string is written '')")
    if step.startswith(_LITERALS):
        key = _literal(step)
        if step.startswith(_QUOTES) and type(key) is not str:
            raise _malformed(path, f"{step} is not one string")
        if key is not None:
            return format_key(key)
    return step


def _malformed(path: str, reason: str) -> ValueError:
    return ValueError(
        f"{path!r} is not a path: {reason}. Keys are joined by '/', and a key that is no plain name is written as "
        "Python writes it, such as layers/0/'a b'."
    )


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None  # the repr of an object: it is compared as text


def written_key(text: str) -> str:
    """Give the string key that a text of a path stands for: what is in its quotes, or the text itself."""
    return str(_literal(text)) if text.startswith(_QUOTES) else text


def literal_key(text: str) -> Any:
    """Give the key that a text of a path stands for in a dict whose keys are not all strings."""
    key = _literal(text)
    return text if key is None and text != "None" else key


def key_texts(key: Any) -> Texts:
    """Write a key the way paths have it; one that is several steps gives several texts."""
    return tuple(format_key(step) for step in spread((key,)))


def join(texts: Texts) -> str:
    """Write a path."""
    return "/".join(texts) or "."
