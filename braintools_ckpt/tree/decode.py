"""From a structure to Python objects, without a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..claims import hashed
from ..document import ARRAY, ARRAYS, ITEMS, LEAF, LIST, NAMED_ARRAYS, REF, ArraySpec, Document, Value
from ..errors import CheckpointError, CorruptCheckpointError, Path, format_path
from ..walking import walking
from ..warn import warn
from .encode import Trouble
from .registry import LIBRARIES, Handler, Registry

#: What built-in handlers raise when a file holds a state that their type cannot have.
BAD_STATE = (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError)
_PENDING = object()


class Decoder:
    """One walk over one structure, whose arrays are at hand.

    Parameters
    ----------
    document : Document
        The structure to decode.
    registry : Registry
        Where tags are looked up.
    array : callable
        Gives the object for an index of the array table.
    quiet : bool
        Do not warn of objects that come back as plain values.
    """

    def __init__(
        self, document: Document, registry: Registry, array: Callable[[int], Any], *, quiet: bool = False
    ) -> None:
        self._quiet = quiet
        self.document = document
        self.registry = registry
        self._array = array
        self._shared: dict[int, Any] = {}
        self._warned: set[str] = set()
        self._handlers: dict[str, Handler | None] = {}

    def decode(self, value: Value) -> Any:
        """Decode one value and all below it."""
        if type(value) is dict:
            return self.fields(value)
        if type(value) is not list:
            return value
        kind = value[0]
        if kind == ARRAY:
            return self._array(value[1])
        if kind in (LIST, ARRAYS):
            return self.sequence(value)
        if kind in (ITEMS, NAMED_ARRAYS):
            return self.mapping(value)
        if kind == REF:
            return self._shared_object(value[1])
        return self._object(value)

    def _shared_object(self, index: int) -> Any:
        if index not in self._shared:
            self._shared[index] = self.decode(self.document.shared[index])
        return self._shared[index]

    def _object(self, value: Value) -> Any:
        tag, state = value[1], value[2]
        attributes = value[3] if len(value) > 3 else {}
        handler = self._handlers[tag] if tag in self._handlers else self._handler(tag)
        if handler is None:
            return self.plain(state, _missing(tag))
        try:
            return handler.decode(state, attributes, self)
        except BAD_STATE as error:
            if isinstance(error, CheckpointError):
                raise
            reason = f"{type(error).__name__}: {error}"
            raise Trouble(
                lambda path: CorruptCheckpointError(f"The {tag!r} at path {path} has no valid state: {reason}.")
            ) from error

    def _handler(self, tag: str) -> Handler | None:
        # Found once a load, also where there is none: to look for a library that is not installed takes long.
        handler = self._handlers[tag] = self.registry.by_tag(tag)
        return handler

    # What handlers build their objects from.

    def sequence(self, value: Value) -> list[Any]:
        """Decode a ``LIST`` or ``ARRAYS``."""
        if type(value) is list and value[0] == ARRAYS:
            return list(map(self._array, range(value[1], value[1] + value[2])))
        if type(value) is not list or value[0] != LIST:
            raise TypeError(f"expected a list, got {type(value).__name__}")
        out = []
        index = 0
        try:
            for index in range(1, len(value)):
                out.append(self.decode(value[index]))
        except Trouble as trouble:
            raise trouble.at(index - 1)  # noqa: B904
        return out

    def mapping(self, value: Value) -> dict[Any, Any]:
        """Decode a plain map, ``NAMED_ARRAYS`` or ``ITEMS``."""
        if type(value) is dict or (type(value) is list and value[0] == NAMED_ARRAYS):
            return self.fields(value)
        if type(value) is not list or value[0] != ITEMS:
            raise TypeError(f"expected a map, got {type(value).__name__}")
        out: dict[Any, Any] = {}
        keys = hashed(map(self._key, value[1::2]))
        key = None
        try:
            for key, item in zip(keys, value[2::2], strict=True):
                out[key] = self.decode(item)
        except Trouble as trouble:
            raise trouble.at(key)  # noqa: B904
        if len(out) != len(value) // 2:
            raise ValueError("a key occurs twice")
        return out

    def _key(self, value: Value) -> Any:
        if type(value) is not list:
            return value
        key = self.decode(_named_enums(value))
        if isinstance(key, NamedKey):
            return self.plain(str(key), lost_enum(key.owner))
        return key

    def fields(self, value: Value) -> dict[str, Any]:
        """Decode a plain map or ``NAMED_ARRAYS``."""
        if type(value) is list and value[0] == NAMED_ARRAYS:
            _, first, *keys = value
            return dict(zip(keys, map(self._array, range(first, first + len(keys))), strict=True))
        if type(value) is not dict:
            raise TypeError(f"expected a map with string keys, got {type(value).__name__}")
        out = {}
        key = None
        try:
            array = self._array
            for key, item in value.items():
                if type(item) is list and item[0] == ARRAY:  # most leaves of most trees
                    out[key] = array(item[1])
                else:
                    out[key] = self.decode(item)
        except Trouble as trouble:
            raise trouble.at(key)  # noqa: B904
        return out

    def plain(self, state: Value, reason: str) -> Any:
        """Decode a state as it is, and say once why it does not become an object."""
        if reason not in self._warned and not self._quiet:
            self._warned.add(reason)
            warn(reason)
        return self.decode(state)


def decode(document: Document, registry: Registry, array: Callable[[int], Any], value: Value = _PENDING) -> Any:
    """Decode a whole document, or one value of it.

    Raises
    ------
    CorruptCheckpointError
        If a state is not one that its tag can have.
    """
    return run_decoder(Decoder(document, registry, array), document.structure if value is _PENDING else value)


def run_decoder(decoder: Decoder, value: Value, prefix: Path = ()) -> Any:
    """Decode a value, turning internal trouble into public errors with a path."""
    try:
        with walking():
            return decoder.decode(value)
    except Trouble as trouble:
        error = trouble.resolve(prefix)
        raise error from (trouble.__cause__ or error.__cause__)
    except CheckpointError:
        raise
    except BAD_STATE as error:
        raise CorruptCheckpointError(
            f"The structure of the checkpoint is none that can be loaded ({type(error).__name__}: {error})."
        ) from error


@dataclass(frozen=True)
class NamedKey:
    """A dict key whose class only a target knows: the member of an enum."""

    owner: str
    name: str

    def __str__(self) -> str:
        return f"{self.owner.rpartition('.')[2]}.{self.name}"

    def __repr__(self) -> str:
        return f"<{self}>"  # never the same as a string key


def decode_key(value: Value) -> Any:
    """Decode the key of an ``ITEMS`` node, which holds no arrays."""
    if type(value) is not list:
        return value
    from .registry import registry

    decoder = Decoder(Document([LIST], _NoArrays()), registry, _no_array, quiet=True)
    try:
        value = _named_enums(value)
    except BAD_STATE as error:
        raise CorruptCheckpointError(f"The key {value!r:.80} is none that a dict can have.") from error
    return run_decoder(decoder, value)


def _lost(tag: str) -> bool:
    from .registry import registry

    return tag.startswith("class:") and registry.by_tag(tag) is None


def _named_enums(value: Value) -> Value:
    """Let enum members stand as themselves wherever they are in a key, since a dict would not be hashable."""
    if type(value) is not list:
        return value
    if value[0] == LEAF and (value[1] == "enum" or _lost(value[1])):
        return [LEAF, "enum.key", [LIST, value[3]["class"], value[2]["name"]]]
    return [_named_enums(item) for item in value]


def decode_metadata(metadata: Mapping[str, Value], registry: Registry) -> dict[str, Any]:
    """Decode the metadata of a document."""
    result = decode(Document([LIST], _NoArrays()), registry, _no_array, dict(metadata))
    return dict(result)


class _NoArrays:
    specs: Sequence[ArraySpec] = ()

    def read(self, indices: Any) -> list[Any]:
        return []

    def read_part(self, index: int, selection: Any) -> Any:
        return _no_array(index)


def _no_array(index: int) -> Any:
    raise Trouble(lambda path: CorruptCheckpointError(f"There is a reference to array {index} in {format_path(path)}."))


def lost_enum(name: str) -> str:
    """Say why an enum member comes back as its name."""
    return (
        f"The checkpoint holds dict keys of the enum {name!r}: without a target they are loaded as their names. Pass a "
        "target to get the members back."
    )


def _missing(tag: str) -> str:
    if tag.startswith("class:"):
        name = tag.removeprefix("class:")
        return (
            f"The checkpoint holds an object of the class {name!r}, which is not registered: it is loaded as a plain "
            "value. Import the module that registers it before loading, or pass a target."
        )
    library = tag.partition(".")[0]
    if library in LIBRARIES:
        return (
            f"The checkpoint holds a {tag!r}, but {library} is not installed, or too old: it is loaded as a plain "
            "value. "
            f"Run: pip install --upgrade {library}"
        )
    return (
        f"The checkpoint holds a {tag!r}, which this version of braintools_ckpt does not know: it is loaded as a "
        "plain value."
    )
