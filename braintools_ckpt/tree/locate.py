"""Find where in a tree an array stands, for messages alone."""

from __future__ import annotations

from ..document import ARRAY, ARRAYS, NAMED_ARRAYS, REF, Document, Value, written_out
from ..errors import LinkedPath
from .view import View


def locate(document: Document, index: int) -> LinkedPath:
    """Give the path of the first leaf that an entry of the array table belongs to."""
    seen: set[int] = set()
    for leaf in View(document).leaves():
        if not leaf.again and _holds(document, leaf.value, index, seen):
            return leaf.path
    return (None, f"array {index}")


def _holds(document: Document, value: Value, index: int, seen: set[int]) -> bool:
    """Tell whether an array is in a value; ``seen`` are the shared values that do not have it."""
    stack = [value]
    while stack:
        value = stack.pop()
        if type(value) is dict:
            stack.extend(value.values())
        elif type(value) is list and value[0] == REF:
            if value[1] not in seen:
                seen.add(value[1])
                stack.append(document.shared[value[1]])
        elif type(value) is list and value[0] in (ARRAYS, NAMED_ARRAYS):
            stack.append(written_out(value))
        elif type(value) is list and value[0] == ARRAY:
            if value[1] == index:
                return True
        elif type(value) is list:
            stack.extend(value[1:])
    return False
