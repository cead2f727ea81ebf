"""Objects that give their state and take one: ``state_dict`` and ``load_state_dict``, ``get_state`` and ``set_state``.

Iterators of data are such objects, and schedulers. What they give is saved like anything else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

from ..document import Value
from ..errors import HandlerError, LinkedPath
from .containers import container_mismatch, node_parts
from .decode import Decoder
from .encode import Encoder, Trouble
from .merge import Merger
from .registry import Handler, Registry
from .requests import Build
from .scalars import class_name

#: The methods of an object that gives its state and takes it, by what they are called in different libraries.
_PAIRS = (("state_dict", "load_state_dict"), ("get_state", "set_state"))


def _methods(obj: Any) -> tuple[Callable[[], Any], Callable[[Any], object]] | None:
    if isinstance(obj, type):
        return None
    for names in _PAIRS:
        if all(callable(getattr(type(obj), name, None)) for name in names):
            give, take = (getattr(obj, name) for name in names)
            return give, take
    return None


class StateMethodsHandler(Handler):
    """An object that gives its state and takes one: it is changed in place."""

    tag = "stateful"
    stateful = True

    def encode(self, obj: Any, encoder: Encoder) -> Value:
        """Write what the object gives."""
        try:
            state = _state_of(obj)
        except Exception as error:
            text = f"The {type(obj).__qualname__} failed to give its state: {type(error).__name__}: {error}"
            raise Trouble(lambda path: HandlerError(f"{text} (at path {path}).")) from error
        return encoder.node(self.tag, encoder.encode(state), **{"class": class_name(type(obj))})

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Give the state: only a target is the object."""
        if attributes["class"].startswith("braintools_ckpt."):  # that of a global generator
            return decoder.decode(state)
        return decoder.plain(
            state,
            f"The checkpoint holds the state of an object of the class {attributes['class']!r}: without a target it is "
            "loaded as that. Pass the object as target.",
        )

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Decode the state, and let the object take it when all else is known to fit."""
        found = node_parts(value, self.tag)
        if found is None:
            return container_mismatch(target, f"the state of a {type(target).__name__}", value, path, merger)
        decoded = merger.plan_decoded(found[0], path)

        def build() -> Any:
            old = copy.deepcopy(_state_of(target))
            take = partial(_take, target, where=merger.format(path))
            merger.transaction.apply(partial(take, decoded()), partial(take, old))
            return target

        return build


def _state_of(obj: Any) -> Any:
    methods = _methods(obj)
    assert methods is not None
    return methods[0]()


def _take(obj: Any, state: Any, where: str) -> None:
    methods = _methods(obj)
    assert methods is not None
    try:
        methods[1](state)
    except Exception as error:
        raise HandlerError(
            f"The {type(obj).__qualname__} at path {where} refused the state that was loaded for it: "
            f"{type(error).__name__}: {error}"
        ) from error


def set_up(registry: Registry) -> None:
    """Register the rule, which comes last."""
    registry.register_rule(lambda obj: _methods(obj) is not None, StateMethodsHandler())
