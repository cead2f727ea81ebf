"""Load into a target: plan, execute, commit.

*Plan* walks the target and the structure together, by specs alone, and collects every mismatch before an array byte is
read. *Execute* reads the arrays that the plan asks for and converts them. *Commit* makes the results; only here may a
stateful target (a ``brainstate.State``) change, within a transaction.

What fits is loaded, what does not fit is a mismatch. A plan is a function of no arguments that makes the result of
one value once the arrays are read.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import compress, repeat
from typing import Any, Literal, TypeAlias

import numpy as np

from ..document import (
    ARRAY,
    ARRAYS,
    CELL_TAGS,
    LEAF,
    NAMED_ARRAYS,
    NODE,
    OPAQUE,
    REF,
    Document,
    LiveArrays,
    Value,
    written_out,
)
from ..dtypes import fits_jax
from ..errors import (
    CheckpointError,
    CorruptCheckpointError,
    HandlerError,
    LinkedPath,
    MismatchError,
    SerializationError,
    format_path,
    unlink,
    written,
)
from ..walking import walking
from .casting import Misfit, castable, fit_number
from .decode import BAD_STATE, Decoder, run_decoder
from .describe import describe, describe_spec
from .encode import Trouble, encode, is_function
from .load_report import Leftovers, LoadReport
from .locate import locate
from .mismatch import MismatchKind, MismatchMode, MismatchReport
from .quantities import QUANTITY
from .registry import Handler, Registry
from .requests import Build, Request, Requests, Together, Want, placed, plain_want
from .selection import Selection
from .transaction import Transaction, transaction

UnitsMode: TypeAlias = Literal["exact", "convert"]
ArraysMode: TypeAlias = Literal["saved", "numpy", "jax"]
Array = np.ndarray[Any, Any]

#: As many parts of one container are worth a try to plan them in one go.
_MANY = 16


@dataclass(frozen=True)
class Options:
    """How to load; the fields are the keyword arguments of ``msgpack_load``.

    ``passthrough`` takes what the state holds where the target's type has no handler, as state dicts always did.
    """

    mismatch: MismatchMode = "error"
    partial: bool = False
    units: UnitsMode = "exact"
    arrays: ArraysMode = "saved"
    only: Any = None
    report: Callable[[LoadReport], object] | None = None
    passthrough: bool = False


class Merger:
    """One load of one document into one target."""

    def __init__(
        self,
        document: Document,
        registry: Registry,
        options: Options,
        report: MismatchReport | None = None,
        selection: Selection | None = None,
    ) -> None:
        self.document = document
        self.registry = registry
        self.options = options
        self.report = report or MismatchReport(options.mismatch)
        #: Which states of modules to load.
        self.selection = selection or (None if options.only is None else Selection(options.only))
        self.specs = document.arrays.specs
        self.ratio = 1.0
        self.transaction = Transaction()
        self._requests = Requests(self.specs)
        self._plans: dict[tuple[int, int], tuple[Any, Build]] = {}
        self._whole_indices: set[int] = set()
        self._seen: set[int] = set()
        self.private: set[int] = set()
        #: Cells of the target that a plan was made for: what is theirs alone -> the cell, the plan of its value, and
        #: where it was met first.
        self.cells: dict[Hashable, tuple[Any, Build, LinkedPath]] = {}
        self._objects: dict[int, Any] = {}
        self.decoder = Decoder(document, registry, self._objects.__getitem__)
        self._parts: list[Merger] = []

    # Plan.

    def plan(self, target: Any, value: Value, path: LinkedPath) -> Build:
        """Check one value against one target."""
        handler = self.registry.lookup(target)
        if handler is None:
            if self.options.passthrough:
                return self.plan_decoded(value)
            if is_function(target) and (value is None or _tags(value) == ("function",)):
                return constant(target)
            if is_function(target):
                return self.leaf_mismatch(target, "a function", value, path)
            raise SerializationError(
                f"Cannot load into a {type(target).__module__}.{type(target).__qualname__} at path "
                f"{self.format(path)}: no handler is registered for it. Decorate the class with "
                "@braintools_ckpt.serializable, or call msgpack_register_serialization."
            )
        if type(value) is list:
            kind = value[0]
            if kind == REF:
                return self._plan_shared(target, value[1], path)
            if kind == NODE and value[1] in CELL_TAGS and value[1] != handler.tag:
                return self.plan(target, value[2], path)
            if target is None and _tags(value) == ("function",):
                return constant(None)  # as equinox.filter leaves functions out
            if kind in (ARRAYS, NAMED_ARRAYS) and not handler.takes_runs:
                value = written_out(value)
        return handler.plan(target, value, path, self)

    def _plan_shared(self, target: Any, index: int, path: LinkedPath) -> Build:
        key = (index, id(target))
        if key not in self._plans:
            plan = self.plan(target, self.document.shared[index], path)
            self._plans[key] = (target, once(plan))  # the target is kept, so its id stays its own
        return self._plans[key][1]

    def plan_many(self, targets: list[Any], values: list[Value], paths: list[LinkedPath]) -> list[Build]:
        """Check values against as many targets: in one go those of one type that all fit, the others one by one."""
        if len(targets) < _MANY:
            return list(map(self.plan, targets, values, paths))
        quick = self._plan_by_type(targets, values, paths)
        every = zip(quick, targets, values, paths, strict=False)
        return [build or self.plan(target, value, path) for build, target, value, path in every]

    def plan_alike(self, targets: list[Any], values: list[Value], paths: list[LinkedPath]) -> list[Build] | None:
        """Check the values of objects that are planned in one go themselves; None if one of them does not fit.

        Nothing is noted then, and they are to be planned one by one.
        """
        builds = self._plan_by_type(targets, values, paths)
        return None if None in builds else builds  # type: ignore[return-value]

    def _plan_by_type(self, targets: list[Any], values: list[Value], paths: list[LinkedPath]) -> list[Build | None]:
        types = set(map(type, targets))
        if len(types) == 1:  # as nearly always
            return list(self._plan_of_one_type(targets, values, paths) or repeat(None, len(targets)))
        builds: list[Build | None] = [None] * len(targets)
        for ty in types:
            chosen = [type(target) is ty for target in targets]
            parts = (list(compress(objects, chosen)) for objects in (targets, values, paths))
            made = self._plan_of_one_type(*parts)
            for place, build in zip(compress(range(len(targets)), chosen), made or (), strict=False):
                builds[place] = build
        return builds

    def _plan_of_one_type(self, targets: list[Any], values: list[Value], paths: list[LinkedPath]) -> list[Build] | None:
        handler = self.registry.lookup(targets[0])
        if handler is None or self.ratio != 1.0:
            return None
        if handler.atomic and all(type(value) is list and value[0] == ARRAY for value in values):
            return self._plan_arrays(handler, targets, [value[1] for value in values], paths)
        known = len(self.cells)
        builds = handler.plan_many(targets, values, paths, self)
        while builds is None and len(self.cells) > known:  # a part of the cells: all are planned singly
            self.cells.popitem()
        return builds

    def _plan_arrays(
        self, handler: Handler, targets: list[Any], indices: Sequence[int], paths: Iterable[LinkedPath]
    ) -> list[Build] | None:
        wants = handler.plain_arrays(targets, plain_want, targets=True)
        if wants is None or len(set(indices)) < len(indices):
            return None
        return self._requests.add_many(indices, wants, targets, paths)

    def plan_run(self, targets: list[Any], first: int, keys: Sequence[Any], path: LinkedPath) -> list[Build] | None:
        """Check a run of arrays against as many targets in one go.

        Only where all of them fit and nothing is special; else the result is None, and they are to be planned one by
        one.
        """
        handler = self.registry.lookup(targets[0]) if targets else None
        if handler is None or self.ratio != 1.0 or len(set(map(type, targets))) > 1:
            return None
        return self._plan_arrays(handler, targets, range(first, first + len(targets)), zip(repeat(path), keys))

    def fits(self, index: int, target: Array) -> bool:
        """Tell whether an array of the file, as it is, is what a numpy target asks for, and nobody else's."""
        return self.ratio == 1.0 and self._requests.fits(index, target)

    def take(self, index: int) -> Build:
        """Plan to give an array as it is read; `fits` has to say so."""
        return self._requests.take(index)

    def plan_array(self, target: Any, want: Want, value: Value, path: LinkedPath) -> Build:
        """Check an array, or a number where the target is one, and ask for it."""
        if type(value) is list and value[0] == ARRAY:
            spec = self.specs[value[1]]
            if spec.kind == OPAQUE:
                return self.mismatch("leaf", target, path, "Leaf mismatch", str(want), "an object")
            if spec.shape != want.shape:
                return self.mismatch("shape", target, path, "Array shape mismatch", str(want), describe_spec(spec))
            if spec.dtype != want.dtype and not castable(spec.dtype, want.dtype):
                return self.mismatch("dtype", target, path, "Array dtype mismatch", str(want), describe_spec(spec))
            return self._requests.add_once(value[1], want, target, path, self.ratio)
        number = self.number(value)
        if number is None or want.shape != ():
            return self.leaf_mismatch(target, str(want), value, path)
        return self._request_number(number, target, want, path)

    def _request_number(self, number: Any, target: Any, want: Want, path: LinkedPath) -> Build:
        try:
            array = np.asarray(number)
        except OverflowError:
            array = np.asarray(number, dtype=object)
        if array.dtype.kind == "O" or not castable(array.dtype, want.dtype):
            return self.mismatch("dtype", target, path, "Array dtype mismatch", str(want), written(number))
        return self._requests.add(array, want, target, path, self.ratio)

    def plan_number(self, target: Any, value: Value, path: LinkedPath) -> Build:
        """Check a Python number: the result has the target's type and equals what was saved."""
        wanted = type(target)
        if type(value) is list and value[0] == ARRAY:
            spec = self.specs[value[1]]
            if spec.shape == ():
                want = Want("python", spec.dtype, (), number=wanted)
                return self._requests.add(value[1], want, target, path, self.ratio)
        number = self.number(value)
        if number is None:
            return self.leaf_mismatch(target, wanted.__name__, value, path)
        if self.ratio != 1.0:
            want = Want("python", np.asarray(number).dtype, (), number=wanted)
            return self._requests.add(np.asarray(number), want, target, path, self.ratio)
        try:
            return constant(fit_number(number, wanted))
        except Misfit:
            found = f"{type(number).__name__} {number!r}"
            return self.mismatch("leaf", target, path, "Leaf mismatch", wanted.__name__, found)

    def number(self, value: Value) -> Any:
        """Give the number that a value stands for, or None."""
        if type(value) in (int, float, bool):
            return value
        if type(value) is list and value[0] == LEAF and value[1] in ("int", "complex", "numpy.scalar"):
            # A class that a number was of does not matter: the target has its own.
            number = self.decode_now(value if value[1] == "numpy.scalar" else value[:3])
            return number if isinstance(number, (int, complex, np.generic)) else None
        return None

    def plan_decoded(self, value: Value, path: LinkedPath = None) -> Build:
        """Plan a value that is taken as the file has it: it is decoded without a target."""
        self._need(value)
        return lambda: run_decoder(self.decoder, value, self.whole_path(path))

    def decode_now(self, value: Value, path: LinkedPath = None, decoder: type[Decoder] = Decoder) -> Any:
        """Decode a value while planning; if it holds arrays, they are read now."""
        self._need(value)
        self._read_whole()
        own = self.decoder if decoder is Decoder else decoder(self.document, self.registry, self._objects.__getitem__)
        return run_decoder(own, value, self.whole_path(path))

    def _need(self, value: Value, inside: bool = False) -> None:
        """Note the arrays that a value holds; what is shared is looked into once.

        Those inside of a leaf (the state of a generator) are its own business, and stay of the kind that they were.
        """
        if type(value) is dict:
            for item in value.values():
                self._need(item, inside)
        elif type(value) is list:
            if value[0] == ARRAY:
                self._whole_indices.add(value[1])
                if inside:
                    self.private.add(value[1])
            elif value[0] in (ARRAYS, NAMED_ARRAYS):
                count = value[2] if value[0] == ARRAYS else len(value) - 2
                self._whole_indices.update(range(value[1], value[1] + count))
                if inside:
                    self.private.update(range(value[1], value[1] + count))
            elif value[0] == REF:
                if value[1] not in self._seen:
                    self._seen.add(value[1])
                    self._need(self.document.shared[value[1]], inside)
            else:
                inside = inside or (value[0] == LEAF and value[1] != QUANTITY)
                for item in value[1:]:
                    self._need(item, inside)

    def part(self, document: Document, path: LinkedPath) -> Merger:
        """Give a merger for a document that takes the place of a part of this one (an upgraded state)."""
        merger = Merger(document, self.registry, self.options, self.report, self.selection)
        if self.transaction.leftovers is not None:
            self.transaction.leftovers.replaced[self.whole_path(path)] = document
        merger.transaction = self.transaction
        self._parts.append(merger)
        return merger

    def plan_all(self, target: Any, path: LinkedPath) -> Build:
        """Check the whole document against the target."""
        try:
            return self.plan(target, self.document.structure, path)
        except CheckpointError:
            raise
        except BAD_STATE as error:
            raise CorruptCheckpointError(
                "The load cannot be planned: the checkpoint's structure is none that its types can have, or a class of "
                f"the target failed ({type(error).__name__}: {error})."
            ) from error

    def build_all(self, build: Build) -> Any:
        """Make the result; all that can be known before is known."""
        try:
            return build()
        except CheckpointError:
            raise
        except BAD_STATE as error:
            raise CorruptCheckpointError(
                "The result cannot be made: the checkpoint's structure is none that its types can have "
                f"({type(error).__name__}: {error})."
            ) from error

    # Mismatches.

    def mismatch(
        self, kind: MismatchKind, target: Any, path: LinkedPath, what: str, expected: str, found: str
    ) -> Build:
        """Note that something does not fit; the plan is then to keep the target's own value."""
        self.note(kind, path, f"{what}: expected {expected}, got {found}", expected=expected, found=found)
        self.leave(path)
        return self.keep(target, path)

    def leave(self, *paths: LinkedPath) -> None:
        """Note that nothing is made of what the file has at some paths."""
        if self.transaction.leftovers is not None:
            self.transaction.leftovers.ignored.extend(map(self.whole_path, paths))

    def stay(self, *paths: LinkedPath) -> None:
        """Note that the target's own values stay at some paths."""
        if self.transaction.leftovers is not None:
            self.transaction.leftovers.kept.extend(map(self.whole_path, paths))

    def keep(self, target: Any, path: LinkedPath) -> Build:
        """Plan to keep the target's own value; a placeholder has none, so then the mismatch is an error in any mode."""
        self.stay(path)
        if self.transaction.leftovers is not None:
            self.transaction.leftovers.lacking[self.whole_path(path)] = id(target)
        if self.options.mismatch != "error" and _holds_placeholder(target):
            self.report.fatal = True
        return constant(target)

    def together(self) -> Together:
        """Plan parts of one value, of which all or none may be taken, in a ``with`` block."""
        return self._requests.together(self.report)

    def leaf_mismatch(self, target: Any, expected: str, value: Value, path: LinkedPath) -> Build:
        """Note that the file holds something of another kind."""
        found = describe(value, self.document)
        what = "Unit mismatch" if QUANTITY in _tags(value) else "Leaf mismatch"
        kind: MismatchKind = "unit" if what == "Unit mismatch" else "leaf"
        return self.mismatch(kind, target, path, what, expected, found)

    def note(
        self, kind: MismatchKind, path: LinkedPath, text: str, *, expected: str, found: str, keys: Sequence[Any] = ()
    ) -> None:
        """Add a mismatch to the report."""
        self.report.add(kind, self.whole_path(path), text, expected=expected, found=found, keys=tuple(keys))

    def whole_path(self, path: LinkedPath) -> tuple[Any, ...]:
        """Give a path from the root of the outermost load."""
        return (*self.transaction.path, *unlink(path))

    def format(self, path: LinkedPath) -> str:
        """Write a path for a message."""
        return format_path(self.whole_path(path))

    # Execute.

    def execute(self) -> None:
        """Read all arrays that the plan asks for, and convert them."""
        self._read_whole()
        self._requests.execute(self.document.arrays, self.place, self._misfit)
        for part in self._parts:
            part.execute()

    def _misfit(self, request: Request, found: str) -> None:
        _, want, path, keep, _ = request
        self.mismatch("dtype", keep, path, "Array dtype mismatch", str(want), found)

    def place(self, arrays: list[Array], wants: Sequence[Want], path_of: Callable[[int], LinkedPath]) -> list[Any]:
        """Turn host arrays, which nobody else holds, into jax arrays."""
        return placed(self.registry, arrays, wants, lambda index: self.format(path_of(index)))

    def _read_whole(self) -> None:
        indices = sorted(self._whole_indices - self._objects.keys())
        if indices:
            arrays = materialize(self.document, indices, self)
            self._objects.update(zip(indices, arrays, strict=True))

    # Commit.

    def call(self, target: Any, path: LinkedPath, function: Callable[[], Any]) -> Any:
        """Let a user's handler restore an object; what it raises names the path, what it changes can be undone."""
        mark = self.transaction.mark
        self.transaction.remember(target)
        outer = self.transaction.path
        self.transaction.path = self.whole_path(path)
        try:
            return function()
        except MismatchError as error:
            self.report.found.extend(error.mismatches)
            self.leave(path)
            self.stay(path)
            self.transaction.roll_back(mark, error)
            return target
        except HandlerError:
            raise
        except Exception as error:
            where = format_path(self.transaction.path)
            raise HandlerError(
                f"The handler of {type(target).__qualname__} failed to restore the value at path {where}: "
                f"{type(error).__name__}: {error}"
            ) from error
        finally:
            self.transaction.path = outer


def merge(
    document: Document,
    target: Any,
    registry: Registry,
    options: Options,
    path: LinkedPath = None,
) -> Any:
    """Load a document into a target.

    Parameters
    ----------
    document : Document
        What was saved.
    target : pytree
        What the result has to look like.
    registry : Registry
        Where handlers are looked up.
    options : Options
        How to treat what does not fit.
    path : LinkedPath, optional
        Where the target stands in a larger tree, for messages.

    Returns
    -------
    pytree
        A tree like the target with the document's values; stateful parts of the target are the target's own objects.

    Raises
    ------
    MismatchError
        If something does not fit and ``options.mismatch`` is ``"error"``; all of it in one exception.
    """
    leftovers = None if options.report is None else Leftovers()
    with walking():
        # In a function, so that the plan is gone before the garbage collector, which would go over it, is back.
        result = _merge(Merger(document, registry, options), target, path, leftovers)
    if options.report is not None and leftovers is not None:
        options.report(leftovers.report(document))
    return result


def _merge(merger: Merger, target: Any, path: LinkedPath, leftovers: Leftovers | None) -> Any:
    with transaction() as current:
        merger.transaction = current
        current.leftovers = leftovers or current.leftovers
        try:
            build = merger.plan_all(target, path)
            merger.report.raise_errors()
            if merger.selection is not None and not merger.report.found:
                merger.selection.confirm()
            merger.execute()
            merger.report.raise_errors()
            result = merger.build_all(build)
        except Trouble as trouble:
            raise trouble.resolve(merger.whole_path(path)) from trouble.__cause__
        merger.report.raise_errors()
        merger.report.warn()  # within: a warning may be an exception
    return result


def materialize(document: Document, indices: Sequence[int], merger: Merger) -> list[Any]:
    """Read arrays and give them the library they had, or the one that the options ask for."""
    mode = merger.options.arrays
    if isinstance(document.arrays, LiveArrays) and mode == "saved":
        return document.arrays.objects(indices)
    arrays: list[Any] = document.arrays.read(indices)
    specs = [document.arrays.specs[index] for index in indices]
    on_device = [i for i, spec in enumerate(specs) if spec.kind != "numpy"]
    if mode != "saved":
        private = [i for i in on_device if indices[i] in merger.private]
        others = (i for i, spec in enumerate(specs) if mode == "jax" and fits_jax(spec.dtype))
        on_device = sorted({*private, *(i for i in others if indices[i] not in merger.private)})
    if on_device:
        wants = [plain_want(specs[i].dtype, specs[i].shape, specs[i].kind.replace("numpy", "jax")) for i in on_device]
        on_file = [indices[i] for i in on_device]
        placed = merger.place([arrays[i] for i in on_device], wants, lambda i: locate(document, on_file[i]))
        for i, array in zip(on_device, placed, strict=True):
            arrays[i] = array
    return arrays


def same_values(one: Any, other: Any, registry: Registry) -> bool:
    """Tell whether two trees hold the same, bit for bit."""
    first, second = encode(one, registry), encode(other, registry)
    if repr((first.structure, first.shared, first.arrays.specs)) != repr(
        (second.structure, second.shared, second.arrays.specs)
    ):
        return False
    indices = range(len(first.arrays.specs))
    pairs = zip(first.arrays.read(indices), second.arrays.read(indices), strict=True)
    return all(a.tobytes() == b.tobytes() for a, b in pairs)


def load_plain(document: Document, registry: Registry, options: Options) -> Any:
    """Load a document without a target."""
    tree = Merger(document, registry, options).decode_now(document.structure)
    if options.report is not None:
        options.report(Leftovers().report(document))
    return tree


def _holds_placeholder(target: Any) -> bool:
    jax = sys.modules.get("jax")
    if jax is None or type(target) in (int, float, str, np.ndarray):
        return False
    return isinstance(target, jax.ShapeDtypeStruct) or any(map(_holds_placeholder, _held(target, jax.tree_util)))


def _held(target: Any, tree_util: Any) -> Iterable[Any]:
    """Give what an object holds, whatever holds it."""
    if isinstance(target, dict):
        return target.values()
    if isinstance(target, (list, tuple, deque)):
        return target
    children = tree_util.tree_leaves(target, is_leaf=lambda node: node is not target)
    if len(children) != 1 or children[0] is not target:
        return list(children)
    fields = [f.name for f in dataclasses.fields(target)] if dataclasses.is_dataclass(target) else ["_value"]
    return [getattr(target, name) for name in fields if hasattr(target, name)]


def constant(value: Any) -> Build:
    """Plan to give a value that is known already."""
    return lambda: value


def once(build: Build) -> Build:
    """Run a plan at most once, and give the same object each time."""
    made: list[Any] = []

    def run() -> Any:
        if not made:
            made.append(build())
        return made[0]

    return run


def _tags(value: Value) -> tuple[str, ...]:
    return (value[1],) if type(value) is list and value[0] in (NODE, LEAF) else ()
