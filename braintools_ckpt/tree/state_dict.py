"""Plain nested dicts, as ``braintools.file`` and Flax know them: what a document is when all types are taken away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..document import ARRAY, FLATTED_TAGS, ITEMS, LEAF, LIST, REF, Document, Value, written_out
from ..errors import CheckpointError, CorruptCheckpointError, SerializationError, format_path, spread, written
from .decode import BAD_STATE, Decoder, run_decoder
from .objects import FunctionHandler
from .quantities import QUANTITY, unit_description
from .registry import Registry
from .view import View

_LIMIT = "A plain state dict cannot hold them; format='v1' can."


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
        The nested dicts, or the value itself when the tree is a single leaf. What the document holds once and refers
        to from several places is one object in all of them.

    Raises
    ------
    SerializationError
        If two parts would have the same place in the dicts.
    """
    return _Plain(document, registry, array).convert(document.structure)


class _Plain:
    def __init__(self, document: Document, registry: Registry, array: Callable[[int], Any]) -> None:
        self._document = document
        self._view = View(document)
        self._shared: dict[tuple[int, bool], Any] = {}
        self._path: list[Any] = []
        self._array = array
        self._decoder = Decoder(document, registry, array, quiet=True)

    def convert(self, value: Value, verbatim: bool = False) -> Any:
        """Convert a value; what a user's handler returned keeps its lists."""
        value = written_out(value)
        if type(value) is dict:
            return {key: self._part(key, item, verbatim) for key, item in value.items()}
        if type(value) is not list:
            return value
        kind = value[0]
        if kind == ARRAY:
            return self._array(value[1])
        if kind == REF:
            return self._once(value[1], verbatim)
        if kind == LIST and verbatim:
            return [self._part(i, item, verbatim) for i, item in enumerate(value[1:])]
        if kind == LIST:
            return {str(i): self._part(i, item) for i, item in enumerate(value[1:])}
        if kind == ITEMS:
            return self._items(value)
        if kind == LEAF:
            return self._leaf(value)
        if value[1] in FLATTED_TAGS:
            return self._nested(value)
        return self.convert(value[2], isinstance(self._decoder.registry.by_tag(value[1]), FunctionHandler))

    def _once(self, index: int, verbatim: bool) -> Any:
        # A few dozen values that each refer twice to the one before stand for more objects than any memory holds.
        if (index, verbatim) not in self._shared:
            self._shared[index, verbatim] = self.convert(self._document.shared[index], verbatim)
        return self._shared[index, verbatim]

    def _part(self, key: Any, value: Value, verbatim: bool = False) -> Any:
        self._path.append(key)
        part = self.convert(value, verbatim)
        self._path.pop()
        return part

    def _items(self, value: Value) -> dict[str, Any]:
        items = self._view.parts(value) or []
        texts: dict[str, list[Any]] = {}
        for key, _ in items:
            texts.setdefault(_text(key), []).append(key)
        collisions = {text: keys for text, keys in texts.items() if len(keys) > 1}
        if collisions:
            text = f"Dict keys do not have a unique string representation. Collisions: {written(collisions)}"
            where = f" at path {format_path(self._path)}" if self._path else ""
            raise SerializationError(f"{text}{where}. {_LIMIT}")
        return {_text(key): self._part(key, item) for key, item in items}

    def _nested(self, value: Value) -> dict[str, Any]:
        """Nest a mapping whose keys are several steps each."""
        leaves: dict[tuple[str, ...], tuple[Any, Value]] = {}
        branches: dict[tuple[str, ...], Any] = {}
        for key, item in self._view.parts(value) or ():
            place = tuple(map(_text, spread((key,))))
            ways = [place[:n] for n in range(1, len(place))]
            other = next((leaves[way][0] for way in ways if way in leaves), branches.get(place))
            if place in leaves or other is not None:
                raise self._overlap(leaves[place][0] if place in leaves else other, key)
            leaves[place] = key, item
            branches.update(dict.fromkeys(ways, key))
        result: dict[str, Any] = {}
        for place, (key, item) in leaves.items():
            at = result
            for step in place[:-1]:
                at = at.setdefault(step, {})
            at[place[-1]] = self._part(key, item)
        return result

    def _overlap(self, one: Any, other: Any) -> SerializationError:
        paths = [format_path((*self._path, key)) for key in (one, other)]
        return SerializationError(
            f"Two parts of a FlattedDict need one place in nested dicts: those at the paths {paths[0]} and {paths[1]}. "
            f"{_LIMIT}"
        )

    def _leaf(self, value: Value) -> Any:
        try:
            if value[1] == QUANTITY:
                return self._quantity(value[2], unit_description(self._document, value[3]))
            if value[1] == "enum" or value[1].startswith("class:"):  # a leaf of a class is a registered enum's member
                state = self._document.resolve(value[2])
                return self.convert(state["value"] if "value" in state else state["name"])
        except BAD_STATE as error:
            if isinstance(error, CheckpointError):
                raise
            where = format_path(self._path)
            raise CorruptCheckpointError(
                f"The {value[1]!r} at path {where} has no valid state: {type(error).__name__}: {error}."
            ) from error
        return run_decoder(self._decoder, value)

    def _quantity(self, mantissa: Value, unit: dict[str, Value]) -> dict[str, Any]:
        return {
            "mantissa": self.convert(mantissa),
            "scale": unit["scale"],
            "base": 10.0,
            "dim": np.asarray(unit["dim"][1:]),
            "factor": unit["factor"],
        }


def _text(key: Any) -> str:
    try:
        return str(key)
    except ValueError:  # an int of more digits than Python writes
        return written(key)
