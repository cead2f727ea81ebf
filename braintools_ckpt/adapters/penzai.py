"""penzai: parameters and state variables; models, frozen values and named arrays are pytrees like any other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from penzai.core.variables import LabeledVariable

from ..document import NODE, Value
from ..tree.cells import CellHandler
from ..tree.decode import Decoder
from ..tree.encode import Encoder
from ..tree.registry import Registry
from ..tree.scalars import class_name


class VariableHandler(CellHandler):
    """``Parameter``, ``StateVariable`` and their like: the value is saved; label and metadata are the target's."""

    tag = "penzai.Variable"

    def encode(self, variable: Any, encoder: Encoder) -> Value:
        """Write the value."""
        return [NODE, self.tag, encoder.encode(variable.value), {"class": class_name(type(variable))}]

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Give the value: only a target has the label."""
        return decoder.plain(
            state,
            f"The checkpoint holds a variable of the class {attributes['class']!r}: without a target it is loaded as "
            "its plain value. Pass a target to get the variable back.",
        )

    def read(self, cell: Any) -> Any:
        """Give the variable's value."""
        return cell.value

    def write(self, cell: Any, value: Any) -> None:
        """Set the variable's value."""
        cell.value = value

    def undo(self, cell: Any) -> Callable[[], object]:
        """Go past the setter, which may be what failed."""
        return partial(vars(cell).update, dict(vars(cell)))


def set_up(registry: Registry) -> None:
    """Register the types of penzai."""
    registry.register(LabeledVariable, VariableHandler())
