"""The registry: which handler looks after which type.

A type is looked up once and remembered: exact match, then the adapters of the libraries in the type's MRO are
activated, then the MRO itself, then the generic rules (registered jax pytrees, dataclasses). A tag of a file is looked
up the same way, but can only ever reach what is registered here or one of the adapters in the fixed table below.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar

from ..document import Kind, Value
from ..errors import LinkedPath, MissingLibraryError, RegistrationError

if TYPE_CHECKING:
    import numpy as np

    from .decode import Decoder
    from .encode import Encoder
    from .merge import Merger
    from .requests import Build

#: The library a type comes from (the first words of its module or its tag) -> our adapter.
ADAPTERS = {
    "jax": "jax",
    "jaxlib": "jax",
    "flax": "flax",
    "flax.nnx": "nnx",
    "equinox": "equinox",
    "penzai": "penzai",
    "brainpy.math": "brainpy",
    "braintools": "braintools",
    "brainunit": "brainunit",
    "saiunit": "brainunit",
    "brainstate": "brainstate",
}
#: The packages that these are in.
LIBRARIES = frozenset(name.partition(".")[0] for name in ADAPTERS)

T = TypeVar("T")
#: Makes of dtype, shape and kind what whoever asks wants to have; of equal ones in a row only once.
MakeRow: TypeAlias = Callable[["np.dtype[Any]", tuple[int, ...], Kind], T]


class Handler:
    """How objects of one type become values of a structure, and how those become objects again.

    Attributes
    ----------
    tag : str
        The stable name of the type in files.
    tracked : bool
        Whether identity matters: an object met twice is then stored once, and is one object again on load.
    atomic : bool
        Whether the object can hold no other objects, and so no cycle.
    stateful : bool
        Whether a target of the type is itself changed by a load.
    takes_runs : bool
        Whether ``plan`` knows runs of arrays; else they are written out for it.
    """

    tag: str = ""
    tracked: ClassVar[bool] = True
    atomic: ClassVar[bool] = False
    stateful: ClassVar[bool] = False
    takes_runs: ClassVar[bool] = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {type(self).__module__}>"

    def encode(self, obj: Any, encoder: Encoder) -> Value:
        """Give the value that stands for the object in a structure."""
        raise NotImplementedError

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Make an object from the state and attributes of a node, without a target."""
        raise NotImplementedError

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Check a value of a file against a target and give a function that makes the result."""
        raise NotImplementedError

    # What handlers may add for the sake of speed: many objects are saved and loaded in one go.

    def encode_many(self, objects: list[Any], encoder: Encoder) -> list[Value] | None:
        """Give what ``encode`` gives for each of many new objects of one type; None if they are to be encoded singly.

        It must not raise: errors are for the long way, which knows the path.
        """
        return None

    def plan_many(
        self, targets: list[Any], values: list[Value], paths: list[LinkedPath], merger: Merger
    ) -> list[Build] | None:
        """Give what ``plan`` gives for each of many targets of one type; None if they are to be planned singly.

        It must note no mismatch: those are for the long way.
        """
        return None

    def plain_arrays(self, objects: list[Any], make: MakeRow[T], *, targets: bool = False) -> list[T] | None:
        """Give ``make(dtype, shape, kind)`` of objects of one type if that says all about each of them, else None.

        ``targets`` says that they are not to be saved but to be loaded into.
        """
        return None


class Registry:
    """A table of handlers by type and by tag, with one lookup order and one cache."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._types: dict[type, Handler] = {}
        self._tags: dict[str, Handler] = {}
        self._structural: list[tuple[Callable[[type], bool], Handler]] = []
        self._generic: list[tuple[Callable[[Any], bool], Handler]] = []
        self._activated: dict[str, bool] = {}
        self._cache: dict[type, Handler] = {}

    def start_anew(self) -> None:
        """Free the lock in a child process: the thread that held it may be one of the parent's."""
        self._lock = threading.RLock()

    def register(self, ty: type, handler: Handler, *, override: bool = False, reads: bool = True) -> None:
        """Let ``handler`` look after ``ty`` and its subclasses.

        ``reads`` says whether it makes objects of what files have under its tag; else another handler does.

        Raises
        ------
        RegistrationError
            If the type or the handler's tag is taken and ``override`` is false.
        """
        with self._lock:
            self.activate_for(ty)
            present = self._types.get(ty)
            if present is not None and not override:
                raise RegistrationError(
                    f'a serialization handler for "{ty.__name__}" is already registered: {present!r}. '
                    "Pass override=True to replace it."
                )
            tag = handler.tag if reads else ""
            holder = self._tags.get(tag)
            # Running a notebook cell again defines its class anew; the old one is then of no use.
            again = holder is not None and _same_name(getattr(holder, "type", None), ty)
            if tag and holder not in (None, present, handler) and not (override or again):
                raise RegistrationError(
                    f"the name {handler.tag.removeprefix('class:')!r} is already registered by {holder!r}. "
                    "Pass another name=, or override=True to replace it."
                )
            self._types[ty] = handler
            if present is not None and self._tags.get(present.tag) is present and present not in self._types.values():
                del self._tags[present.tag]
            if tag:
                self._tags[tag] = handler
            self._cache = {}

    def register_rule(self, applies: Callable[[Any], bool], handler: Handler, *, structural: bool = False) -> None:
        """Add a rule for types that cannot be listed.

        A structural rule looks at a type and comes before the MRO (an ``IntEnum`` is an enum, not an int); a generic
        one looks at an object and comes last.
        """
        with self._lock:
            (self._structural if structural else self._generic).append((applies, handler))
            self._tags[handler.tag] = handler
            self._cache = {}

    def register_tag(self, handler: Handler) -> None:
        """Let ``handler`` read its tag, without a type of its own."""
        with self._lock:
            self._tags[handler.tag] = handler

    @property
    def known(self) -> Mapping[type, Handler]:
        """The handlers that were looked up so far; a registration begins another table."""
        return self._cache

    def lookup(self, obj: Any) -> Handler | None:
        """Find the handler of an object's type, or None."""
        ty = type(obj)
        try:
            return self._cache[ty]
        except KeyError:
            pass
        with self._lock:
            handler = self._find(ty, obj)
            if handler is not None:  # others may get one: jax.tree_util knows a class once it is registered there
                self._cache[ty] = handler
            return handler

    def _find(self, ty: type, obj: Any) -> Handler | None:
        if ty not in self._types:
            self.activate_for(ty)
        if ty in self._types:
            return self._types[ty]
        for applies, handler in self._structural:
            if applies(ty):
                return handler
        for base in ty.__mro__:
            if base in self._types:
                return self._types[base]
        for applies, handler in self._generic:
            if applies(obj):
                return handler
        return None

    def by_tag(self, tag: str) -> Handler | None:
        """Find the handler that reads a tag, or None; may activate an adapter of the fixed table."""
        if tag not in self._tags:
            with suppress(MissingLibraryError):  # an old version that is of no use is as good as none
                self._activate_for_name(tag)
        return self._tags.get(tag)

    def activate_for(self, ty: type) -> None:
        """Activate the adapters of every library in the MRO of a type."""
        for base in ty.__mro__:
            self._activate_for_name(base.__module__)

    def _activate_for_name(self, name: str) -> bool:
        """Activate the adapters for a dotted name: ``flax`` and ``flax.nnx`` for ``flax.nnx.module``."""
        words = name.split(".", 2)[:2]
        library, part = self.activate(words[0]), self.activate(".".join(words))
        return library or part

    def activate(self, library: str) -> bool:
        """Import the adapter of a library once; False when there is none, or the library is not installed."""
        name = ADAPTERS.get(library)
        if name is None:
            return False
        with self._lock:
            if name not in self._activated:
                self._activated[name] = True  # before set_up, which registers and so comes back here
                try:
                    importlib.import_module(f"..adapters.{name}", __package__).set_up(self)
                except BaseException as error:
                    del self._activated[name]
                    missing = error.name if isinstance(error, ModuleNotFoundError) else None
                    if missing is None or missing.partition(".")[0] not in LIBRARIES:
                        raise
                    return False
            return self._activated[name]


def _same_name(one: Any, other: type) -> bool:
    return (
        isinstance(one, type)
        and one is not other
        and (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)
    )


registry = Registry()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=registry.start_anew)
