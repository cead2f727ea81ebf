"""The Document: what stands between Python objects and bytes.

A document is a *structure*, a table of *arrays* and the user's *metadata*. It knows neither jax nor files. The
encoder makes one from a tree, the writer turns it into bytes, the reader makes one from bytes (its arrays stay in
the file until they are asked for), and the merger turns it into a tree again.

The structure is made of values that MessagePack holds natively, so that it is packed and unpacked in C::

    value := None | bool | int (64 bits) | float | str | bytes
           | {str: value, ...}                 a dict whose keys are all strings
           | [LIST, value, ...]                a list
           | [ARRAY, index]                    an entry of the array table
           | [ITEMS, key, value, ...]          a dict with keys of any type
           | [NODE, tag, value]                an object of the type `tag`; the value holds its parts
           | [NODE, tag, value, attributes]    ... and a dict of attributes that are not parts (class, version ...)
           | [LEAF, tag, value]                the same for an object that is one leaf of the tree
           | [LEAF, tag, value, attributes]
           | [REF, index]                      a value of the shared table: an object that is met more than once
           | [ARRAYS, first, count]            a list of that many entries of the array table, one after the other
           | [NAMED_ARRAYS, first, key, ...]   a dict with string keys of such entries

A MessagePack array is always one of these nodes, a map is always a dict with string keys, and everything else is
itself; so no string and no key is ever special. The last two say in one node what takes a node an array otherwise: a
tree may have a million small ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np

from .dtypes import describe

LIST, ARRAY, ITEMS, NODE, LEAF, REF, ARRAYS, NAMED_ARRAYS = range(8)
# What tags mean for others than their own type; part of the format, so that it holds without their libraries, too.

#: Objects that hold one value, and fit where that value would.
CELL_TAGS = frozenset({"brainstate.State", "flax.nnx.Variable", "penzai.Variable"})
#: Mappings, and objects with named parts, that fit where any mapping with the same keys would.
MAPPING_TAGS = frozenset(
    {
        "OrderedDict",
        "defaultdict",
        "Counter",
        "dict",
        "brainstate.NestedDict",
        "flax.FrozenDict",
        "flax.nnx.State",
        "flax.nnx.Module",
        "pytree",
        "dataclass",
        "equinox.Module",
        "equinox.nn.State",
        "brainpy.math.BrainPyObject",
    }
)
#: Mappings whose keys are tuples that lead through nested mappings.
FLATTED_TAGS = frozenset({"brainstate.FlattedDict", "brainstate.Module"})

Value: TypeAlias = Any
Kind: TypeAlias = Literal["numpy", "jax", "jax_weak", "opaque"]


class ArraySpec(NamedTuple):
    """What is known of an array without its data.

    ``dtype`` is the dtype that the array has in Python (with its byte order); ``kind`` is the library it
    belongs to: ``numpy``, ``jax``, or ``jax_weak`` for a weakly typed jax array.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    kind: Kind

    @property
    def size(self) -> int:
        """Number of elements."""
        size = 1
        for n in self.shape:
            size *= n
        return size

    @property
    def nbytes(self) -> int:
        """Number of bytes of the data."""
        return self.size * self.dtype.itemsize


#: The kind of an object that is no array, in a document that is not written.
OPAQUE: Kind = "opaque"


class ArrayTable(Protocol):
    """The arrays of a document: live objects when saving, references into a file when loading."""

    @property
    def specs(self) -> Sequence[ArraySpec]:
        """What is known of each array, by index."""
        ...

    def read(self, indices: Sequence[int]) -> list[np.ndarray[Any, Any]]:
        """Give fresh, writable host arrays, one for each index, in that order."""
        ...

    def read_part(self, index: int, selection: Any) -> np.ndarray[Any, Any]:
        """Give ``array[selection]``, reading as little as possible."""
        ...


class LiveArrays:
    """An array table over arrays in memory: numpy arrays, or objects that ``numpy.asarray`` takes."""

    def __init__(self) -> None:
        self.specs: list[ArraySpec] = []
        self.sources: list[Any] = []
        self._distinct: dict[Any, ArraySpec] = {}

    def spec(self, dtype: np.dtype[Any], shape: tuple[int, ...], kind: Kind) -> ArraySpec:
        """Give the spec of such arrays; equal ones are one object."""
        key = (dtype, shape, kind)
        spec = self._distinct.get(key)
        if spec is None or spec.dtype is not dtype:
            spec = ArraySpec(dtype, shape, kind)
            spec = self._distinct.setdefault((_exact(dtype), shape, kind), spec)
            self._distinct.setdefault(key, spec)
        return spec

    def add(self, spec: ArraySpec, source: Any) -> int:
        """Append an array and return its index; the spec has to be one that `spec` gave."""
        self.specs.append(spec)
        self.sources.append(source)
        return len(self.sources) - 1

    def extend(self, specs: list[ArraySpec], sources: list[Any]) -> int:
        """Append arrays and return the index of the first."""
        self.specs += specs
        self.sources += sources
        return len(self.sources) - len(sources)

    def forget(self, count: int) -> None:
        """Keep only so many arrays, the first."""
        del self.specs[count:], self.sources[count:]

    def host(self, index: int) -> np.ndarray[Any, Any]:
        """Give the array on the host, without a copy where it lies there already."""
        source = self.sources[index]
        if type(source) is np.ndarray:
            return source
        spec = self.specs[index]
        try:  # what lies on a CPU; numpy's own way to ask a jax array takes ten times as long
            view = np.asarray(memoryview(source))
            return view if view.dtype == spec.dtype and view.shape == spec.shape else np.asarray(source)
        except (TypeError, ValueError, BufferError):  # it lies elsewhere, or has a dtype that buffers do not know
            return np.asarray(source)

    def read(self, indices: Sequence[int]) -> list[np.ndarray[Any, Any]]:
        """Give copies of the arrays, which belong to the caller."""
        return [np.array(self.host(index), order="C") for index in indices]

    def objects(self, indices: Sequence[int]) -> list[Any]:
        """Give the objects themselves; numpy arrays, which can be written to, as copies."""
        sources = [self.sources[index] for index in indices]
        return [np.array(source) if isinstance(source, np.ndarray) else source for source in sources]

    def read_part(self, index: int, selection: Any) -> np.ndarray[Any, Any]:
        """Give a copy of a part of one array."""
        return np.array(self.host(index)[selection])


def _exact(dtype: np.dtype[Any]) -> Any:
    """Give what is equal for dtypes of one description; numpy calls some equal that differ (M8[s] and M8[1000ms])."""
    if dtype.names is not None:
        return repr(describe(dtype))
    return dtype.str if dtype.kind in "mM" else dtype


@dataclass
class Document:
    """A tree as plain values: its structure, the values met more than once, its arrays and the metadata."""

    structure: Value
    arrays: ArrayTable
    shared: list[Value] = field(default_factory=list)
    metadata: dict[str, Value] = field(default_factory=dict)

    def resolve(self, value: Value) -> Value:
        """Follow a reference into the shared table; any other value is itself."""
        while type(value) is list and value[0] == REF:
            value = self.shared[value[1]]
        return value


def written_out(value: Value) -> Value:
    """Give a run of arrays as the ``LIST`` or the map that it stands for; other values are themselves."""
    if type(value) is list and value[0] == ARRAYS:
        return [LIST, *([ARRAY, index] for index in range(value[1], value[1] + value[2]))]
    if type(value) is list and value[0] == NAMED_ARRAYS:
        return {key: [ARRAY, index] for index, key in enumerate(value[2:], value[1])}
    return value


def children(value: Value, key_of: Callable[[Value], Any]) -> Iterator[tuple[Any, Value]]:
    """Yield the parts of a container with their keys; a leaf has none.

    ``key_of`` turns the encoded key of an ``ITEMS`` node into the Python key.
    """
    if type(value) is dict:
        yield from value.items()
    elif type(value) is list:
        kind = value[0]
        if kind == LIST:
            yield from enumerate(value[1:])
        elif kind == ITEMS:
            for position in range(1, len(value), 2):
                yield key_of(value[position]), value[position + 1]
