"""Find where in a tree an array stands, for messages alone."""

from __future__ import annotations

from ..document import ARRAY, LEAF, Document, Value, children, is_container
from ..errors import LinkedPath
from .decode import decode_key


def locate(document: Document, index: int) -> LinkedPath:
    """Give the path of the first leaf that an entry of the array table belongs to."""
    return _search(document, document.structure, index, None) or (None, f"array {index}")


def _search(document: Document, value: Value, index: int, path: LinkedPath) -> LinkedPath:
    value = document.resolve(value)
    while type(value) is list and (value[0] == LEAF or (value[0] != ARRAY and not is_container(value))):
        value = document.resolve(value[2]) if len(value) > 2 else None
    if type(value) is list and value[0] == ARRAY:
        return path if value[1] == index else None
    if is_container(value):
        for key, item in children(value, decode_key):
            found = _search(document, item, index, (path, key))
            if found is not None:
                return found
    return None
