"""What messages say of a value of a file."""

from __future__ import annotations

from ..document import ARRAY, ARRAYS, LEAF, LIST, NODE, ArraySpec, Document, Value
from ..errors import format_array
from .quantities import QUANTITY, symbol


def describe(value: Value, document: Document) -> str:
    """Say in a few words what a value of a file is."""
    if type(value) is not list:
        if value is None:
            return "None"
        return "a dict" if type(value) is dict else f"{type(value).__name__} {value!r}"[:80]
    kind = value[0]
    if kind == ARRAY:
        return describe_spec(document.arrays.specs[value[1]])
    if kind not in (NODE, LEAF):
        return "a list" if kind in (LIST, ARRAYS) else "a dict"
    tag, attributes = value[1], value[3] if len(value) > 3 else {}
    if tag == QUANTITY:
        return f"{describe(value[2], document)} with unit {symbol(document, attributes)}"
    name = attributes.get("class")
    return f"a {tag}" + (f" {name}" if name else "")


def describe_spec(spec: ArraySpec) -> str:
    """Write a spec as ``float32[2, 3]``."""
    return format_array(spec.dtype, spec.shape)
