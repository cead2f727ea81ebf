"""The grammar of structures (see ``document.py``), checked once when a file is opened."""

from __future__ import annotations

from ..document import ARRAY, ITEMS, LEAF, LIST, NODE, REF, Document, Value
from ..errors import CorruptCheckpointError


def check_structure(document: Document, name: str) -> None:
    """Check that a structure keeps to the grammar, once, so that nobody after this has to.

    Raises
    ------
    CorruptCheckpointError
        If it does not.
    """
    arrays = len(document.arrays.specs)
    try:
        _check_tables(document, arrays)
    except (ValueError, IndexError, RecursionError) as error:
        raise CorruptCheckpointError(
            f"Corrupt checkpoint {name}: its structure is malformed ({error}). It was not written by braintools_ckpt, "
            "or damaged on purpose."
        ) from error


def _check_tables(document: Document, arrays: int) -> None:
    if type(document.shared) is not list or type(document.metadata) is not dict:
        raise ValueError("shared is not a list, or metadata not a map")
    for index, value in enumerate(document.shared):
        _check_value(value, arrays, index)
    _check_value(document.structure, arrays, len(document.shared))
    _check_value(document.metadata, 0, 0)


def _check_value(value: Value, arrays: int, shared: int) -> None:
    if type(value) is dict:
        for item in value.values():
            if type(item) is list or type(item) is dict:
                _check_value(item, arrays, shared)
    elif type(value) is list:
        kind = value[0]
        if type(kind) is not int:
            raise ValueError("a node without a kind")
        if kind == ARRAY:
            if len(value) != 2 or type(value[1]) is not int or not 0 <= value[1] < arrays:
                raise ValueError("a reference to an array that does not exist")
        elif kind == REF:
            # Only to what comes before: so there are no cycles.
            if len(value) != 2 or type(value[1]) is not int or not 0 <= value[1] < shared:
                raise ValueError("a reference to a shared value that does not come before it")
        elif kind in (NODE, LEAF):
            _check_node(value)
            _check_items(value, 2, arrays, shared)
        elif kind == LIST or (kind == ITEMS and len(value) % 2):
            _check_items(value, 1, arrays, shared)
        else:
            raise ValueError(f"a node of the kind {kind}")


def _check_items(value: list[Value], start: int, arrays: int, shared: int) -> None:
    for index in range(start, len(value)):
        item = value[index]
        if type(item) is list or type(item) is dict:
            _check_value(item, arrays, shared)


def _check_node(value: list[Value]) -> None:
    if len(value) not in (3, 4) or type(value[1]) is not str:
        raise ValueError("an object without tag and state")
    if len(value) == 4 and type(value[3]) is not dict:
        raise ValueError("an object whose attributes are not a map")
