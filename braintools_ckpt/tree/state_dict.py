"""Plain nested dicts, as ``braintools.file`` and Flax know them: what a document is when all types are taken away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..document import ARRAY, FLATTED_TAGS, ITEMS, LEAF, LIST, REF, Document, Value
from ..errors import SerializationError, format_path
from .containers import as_items
from .decode import Decoder, run_decoder
from .objects import FunctionHandler
from .registry import Registry


def to_state_dict(document: Document, registry: Registry, array: Callable[[int], Any]) -> Any:
    """Give a document as nested dicts with string keys.

    Lists and tuples become ``{'0': ..., '1': ...}``, objects the dict of their parts, a state its value, a quantity
    ``{'mantissa', 'scale', 'base', 'dim', 'factor'}``.

    Parameters
    ----------
    document : Document
        The document.
    registry : Registry
        Where tags of single values are looked up.
    array : callable
        Gives the object for an index of the array table.

    Returns
    -------
    dict or object
        The nested dicts, or the value itself when the tree is a single leaf.
    """
    return _Plain(document, registry, array).convert(document.structure)


class _Plain:
    def __init__(self, document: Document, registry: Registry, array: Callable[[int], Any]) -> None:
        self._document = document
        self._path: list[Any] = []
        self._array = array
        self._decoder = Decoder(document, registry, array, quiet=True)

    def convert(self, value: Value, verbatim: bool = False) -> Any:
        """Convert a value; what a user's handler returned keeps its lists."""
        if type(value) is dict:
            return {key: self._part(key, item, verbatim) for key, item in value.items()}
        if type(value) is not list:
            return value
        kind = value[0]
        if kind == ARRAY:
            return self._array(value[1])
        if kind == REF:
            return self.convert(self._document.shared[value[1]], verbatim)
        if kind == LIST and verbatim:
            return [self._part(i, item, verbatim) for i, item in enumerate(value[1:])]
        if kind == LIST:
            return {str(i): self._part(i, item) for i, item in enumerate(value[1:])}
        if kind == ITEMS:
            return self._items(as_items(value) or {})
        if kind == LEAF:
            return self._leaf(value)
        if value[1] in FLATTED_TAGS:
            return self._items(as_items(value) or {})
        return self.convert(value[2], isinstance(self._decoder.registry.by_tag(value[1]), FunctionHandler))

    def _part(self, key: Any, value: Value, verbatim: bool = False) -> Any:
        self._path.append(key)
        part = self.convert(value, verbatim)
        self._path.pop()
        return part

    def _items(self, items: dict[Any, Value]) -> dict[str, Any]:
        texts: dict[str, list[Any]] = {}
        for key in items:
            texts.setdefault(str(key), []).append(key)
        collisions = {text: keys for text, keys in texts.items() if len(keys) > 1}
        if collisions:
            text = f"Dict keys do not have a unique string representation. Collisions: {collisions}"
            where = f" at path {format_path(self._path)}" if self._path else ""
            raise SerializationError(f"{text}{where}. A plain state dict cannot hold them; format='v1' can.")
        return {str(key): self._part(key, item) for key, item in items.items()}

    def _leaf(self, value: Value) -> Any:
        if value[1] == "brainunit.Quantity":
            unit = value[3]["unit"]
            return {
                "mantissa": self.convert(value[2]),
                "scale": unit["scale"],
                "base": 10.0,
                "dim": np.asarray(unit["dim"][1:]),
                "factor": unit["factor"],
            }
        if value[1] == "enum":
            return self.convert(value[2]["value"])
        return run_decoder(self._decoder, value)
