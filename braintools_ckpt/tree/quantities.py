"""What the core knows of quantities: their tags, and where their unit stands."""

from __future__ import annotations

from typing import Any

from ..document import Document, Value

QUANTITY = "brainunit.Quantity"
UNIT = "brainunit.Unit"


def unit_description(document: Document, attributes: dict[str, Value]) -> dict[str, Value]:
    """Give what a file says of the unit of a quantity (or of a unit by itself)."""
    value: Any = document.resolve(attributes["unit"])
    description: dict[str, Value] = value if type(value) is dict else value[3]["unit"]
    return description


def symbol(document: Document, attributes: dict[str, Value]) -> str:
    """Give the symbol of a unit for a message; a file may hold anything, so nothing is taken for granted."""
    try:
        return str(unit_description(document, attributes)["symbol"])
    except (TypeError, KeyError, IndexError):
        return "?"
