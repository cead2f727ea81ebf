"""From Python objects to Documents and back: the registry, the encoder and the merger."""

from . import arrays, classes, containers, pytrees, scalars, stateful
from .registry import registry

for _module in (scalars, arrays, containers, pytrees, classes, stateful):
    _module.set_up(registry)

__all__ = ["registry"]
