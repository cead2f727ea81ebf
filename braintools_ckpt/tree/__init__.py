"""From Python objects to Documents and back: the registry, the encoder and the merger."""

from . import arrays, classes, containers, pytrees, scalars
from .registry import registry

for _module in (scalars, arrays, containers, pytrees, classes):
    _module.set_up(registry)

__all__ = ["registry"]
