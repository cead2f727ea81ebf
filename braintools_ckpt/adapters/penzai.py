"""penzai: parameters and state variables; models, frozen values and named arrays are pytrees like any other."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

from penzai.core.named_axes import NamedArray
from penzai.core.variables import LabeledVariable

from ..document import LIST, NODE, Value
from ..errors import LinkedPath
from ..tree.cells import CellHandler
from ..tree.containers import node_parts
from ..tree.decode import Decoder
from ..tree.encode import Encoder
from ..tree.merge import Merger
from ..tree.registry import Handler, Registry
from ..tree.requests import Build
from ..tree.scalars import class_name


class VariableHandler(CellHandler):
    """``Parameter``, ``StateVariable`` and their like: the value is saved; label and metadata are the target's."""

    tag = "penzai.Variable"
    title = "a variable of penzai"

    def encode(self, variable: Any, encoder: Encoder) -> Value:
        """Write the value."""
        return [NODE, self.tag, encoder.encode(variable.value), {"class": class_name(type(variable))}]


class NamedArrayHandler(Handler):
    """``NamedArray``: its array, and the names of axes, which have to be the target's."""

    tag = "penzai.NamedArray"

    def encode(self, array: Any, encoder: Encoder) -> Value:
        """Write the array and the names of its last axes."""
        return [NODE, self.tag, encoder.encode(array.data_array), {"axes": _axes(array)}]

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Give the array with its names, where these are texts."""
        data, names = decoder.decode(state), decoder.sequence(attributes["axes"])
        axes = zip(names, data.shape[data.ndim - len(names) :], strict=True)
        return NamedArray(named_axes=collections.OrderedDict(axes), data_array=data)

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Plan the array."""
        found = node_parts(value, self.tag)
        if found is None:
            return merger.leaf_mismatch(target, "a NamedArray", value, path)
        wanted, got = _axes(target)[1:], found[1]["axes"][1:]
        if wanted != got:
            return merger.mismatch("leaf", target, path, "Named axes mismatch", str(wanted), str(got))
        plan = merger.plan(target.data_array, found[0], path)
        return lambda: dataclasses.replace(target, data_array=plan())


def _axes(array: Any) -> list[Value]:
    return [LIST, *(name if isinstance(name, str) else repr(name) for name in array.named_axes)]


def set_up(registry: Registry) -> None:
    """Register the types of penzai."""
    registry.register(LabeledVariable, VariableHandler())
    registry.register(NamedArray, NamedArrayHandler())
