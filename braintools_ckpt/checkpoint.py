"""Look into a checkpoint file without loading it."""

from __future__ import annotations

import difflib
import html
import os
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np

from .arguments import make_options
from .document import ARRAY, ARRAYS, LEAF, LIST, NODE, Document, Value
from .errors import LinkedPath, format_array, format_key, format_path, written
from .format.reader import StoredArrays
from .opening import load_document, open_document, read_current, read_metadata, settled_source
from .tree.load_report import LoadReport
from .tree.merge import ArraysMode, Merger, Options, UnitsMode
from .tree.mismatch import MismatchMode
from .tree.paths import parse_path
from .tree.quantities import QUANTITY, symbol
from .tree.registry import registry
from .tree.rename import Rename
from .tree.view import View
from .walking import walking
from .warn import warn

_SHOWN = 40


class LeafSpec(NamedTuple):
    """What is known of one leaf without reading it.

    Attributes
    ----------
    kind : str
        ``array``, or the type of another value (``int``, ``str``, ``datetime`` ...). A container that stands in
        several places is listed once; in the others it is ``same as`` the first one's path.
    dtype : numpy.dtype or None
        The dtype of an array, of a quantity's mantissa or of a random key's data.
    shape : tuple of int or None
        Its shape.
    unit : str or None
        The unit of a quantity, as it is shown.
    nbytes : int
        Bytes of array data.
    """

    kind: str
    dtype: np.dtype[Any] | None
    shape: tuple[int, ...] | None
    unit: str | None
    nbytes: int

    def __str__(self) -> str:
        text = self.kind if self.dtype is None or self.shape is None else format_array(self.dtype, self.shape)
        return text if self.unit is None else f"{text} {self.unit}"


class Checkpoint(Mapping[str, Any]):
    """A read-only mapping from paths to leaves, over one open file.

    Made by :func:`open_checkpoint`. Nothing but the index is read until a leaf is asked for.
    """

    def __init__(self, document: Document, name: str, size: int, close: Any) -> None:
        self._document = document
        self._view = View(document)
        self._close = close
        self._closed = False
        self._metadata: dict[str, Any] | None = None
        self._values: dict[str, Value] | None = None
        self._same_as: dict[str, str] = {}
        self._specs: _Specs | None = None
        self._array_specs: dict[int, LeafSpec] = {}
        #: The file's name.
        self.name = name
        #: The file's size in bytes.
        self.size = size

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata that was saved with the tree."""
        if self._metadata is None:
            self._metadata = read_metadata(self._document)
        return self._metadata

    @property
    def paths(self) -> list[str]:
        """The paths of all leaves, in the order of the tree."""
        return list(self._leaves())

    @property
    def specs(self) -> dict[str, LeafSpec]:
        """What is known of each leaf, by path."""
        if self._specs is None:
            specs = {path: self._spec(path, value) for path, value in self._leaves().items()}
            self._specs = _Specs(specs, self._no_path)
        return self._specs

    def _leaves(self) -> dict[str, Value]:
        if self._values is None:
            values: dict[str, Value] = {}
            texts = _PathTexts()
            with walking():
                for leaf in self._view.leaves():
                    path = texts.of(leaf.path)
                    values[path] = leaf.value
                    if leaf.again:
                        self._same_as[path] = texts.of(leaf.same_as)
            self._values = values
        return self._values

    def _spec(self, path: str, value: Value) -> LeafSpec:
        if path in self._same_as:
            return LeafSpec(f"same as {self._same_as[path]}", None, None, None, 0)
        if not (type(value) is list and value[0] == ARRAY):
            return _spec(self._document, value)
        spec = self._document.arrays.specs[value[1]]
        known = self._array_specs.get(id(spec))  # equal ones are one object
        if known is None:
            known = self._array_specs[id(spec)] = _spec(self._document, value)
        return known

    def _value(self, path: str | tuple[Any, ...]) -> Value:
        """Give the value at a path: a leaf or a container."""
        text = path if isinstance(path, str) else format_path(path)
        try:
            return self._find(text)
        except ValueError as error:
            raise KeyError(str(error)) from None
        except KeyError:
            raise KeyError(self._no_path(text)) from None

    def _find(self, path: str) -> Value:
        """Look along the path; only what cannot be found so is looked for among all leaves."""
        if self._values is None or path not in self._values:
            try:
                with walking():
                    return self._view.find(parse_path(path))
            except (KeyError, ValueError):
                if path not in self._leaves():
                    raise
        return self._leaves()[path]

    def _no_path(self, path: object) -> str:
        near = difflib.get_close_matches(str(path), self.paths, 1)
        hint = f"Did you mean {near[0]!r}?" if near else "The paths are listed by .paths."
        return f"The checkpoint {self.name} has nothing at the path {path!r}. {hint}"

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"The checkpoint {self.name} is closed.")

    def __getitem__(self, path: str | tuple[Any, ...]) -> Any:
        """Read what stands at a path: a leaf, or all of a container."""
        self._check_open()
        value = self._value(path)
        with walking():
            # By way of the whole document, so that messages name paths from its root.
            return Merger(self._document, registry, Options()).decode_now(value)

    def __contains__(self, path: object) -> bool:
        try:
            self._find(path if isinstance(path, str) else format_path(path))  # type: ignore[arg-type]
        except (KeyError, ValueError, TypeError):
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self._leaves())

    def __len__(self) -> int:
        return len(self._leaves())

    def read(self, path: str | tuple[Any, ...], index: Any = ...) -> np.ndarray[Any, Any]:
        """Read a part of an array.

        Parameters
        ----------
        path : str or tuple
            The path of an array, or of a quantity (then its mantissa is read).
        index : int, slice or tuple of these, optional
            What to read, by default all. Of a slice of rows, only those rows are read from the file.

        Returns
        -------
        numpy.ndarray
            ``array[index]``.

        Raises
        ------
        KeyError
            If there is nothing at the path.
        TypeError
            If it is no array.
        IndexError
            If the index is outside of the array.
        ValueError
            If the checkpoint is closed.
        """
        self._check_open()
        value = self._value(path)
        parts = self._view.parts(value)
        if parts is not None:
            raise TypeError(
                f"The value at the path {path!r} is no array: it holds {len(parts)} item{'s'[: len(parts) != 1]}. "
                "Use checkpoint[path]."
            )
        array = _unwrapped(self._document, value)[0]
        if not (type(array) is list and array[0] == ARRAY):
            kind = _spec(self._document, value).kind
            raise TypeError(f"The value at the path {path!r} is no array but {kind}. Use checkpoint[path].")
        return self._document.arrays.read_part(array[1], index)

    def load(
        self,
        target: Any | None = None,
        mismatch: MismatchMode = "error",
        *,
        partial: bool = False,
        rename: Rename | None = None,
        units: UnitsMode = "exact",
        arrays: ArraysMode = "saved",
        raw: bool = False,
        only: Any = None,
        report: Callable[[LoadReport], object] | None = None,
    ) -> Any:
        """Load the whole tree; the parameters are those of :func:`msgpack_load`."""
        options = make_options(target, mismatch, partial, units, arrays, raw, only, report)
        self._check_open()
        return load_document(self._document, target, options, rename=rename, raw=raw)

    def verify(self) -> None:
        """Check every byte of the file against its checksums, and that what is compressed can be decompressed.

        Files of ``braintools.file`` and ``flax.serialization`` have none: then there is a warning.

        Raises
        ------
        CorruptCheckpointError
            If a byte is not as it was written.
        MissingLibraryError
            If the file is compressed and zstandard is not installed.
        ValueError
            If the checkpoint is closed.
        """
        self._check_open()
        if isinstance(self._document.arrays, StoredArrays):
            self._document.arrays.verify()
        else:
            warn(
                f"{self.name} is a file of braintools.file or flax, which has no checksums: nothing was verified. "
                "Save it again with msgpack_save to get a file that can be."
            )

    def close(self) -> None:
        """Close the file; what was loaded stays, and so do metadata, paths and specs."""
        self._closed = True
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _rows(self) -> list[tuple[str, str, str]]:
        specs = list(self.specs.items())
        rows = [(path, str(spec), _size(spec.nbytes) if spec.nbytes else "") for path, spec in specs[:_SHOWN]]
        return [*rows, (f"... and {len(specs) - _SHOWN} more", "", "")] if len(specs) > _SHOWN else rows

    def __repr__(self) -> str:
        rows = self._rows()
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
        lines = [f"Checkpoint({self.name!r}, {_size(self.size)}, {len(self)} leaves)"]
        lines += [f"  {key} = {written(item)}" for key, item in self.metadata.items()]
        lines += [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in rows]
        return "\n".join(map(_printable, lines))

    def _repr_html_(self) -> str:
        def row(tag: str, cells: tuple[str, ...]) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        title = html.escape(f"{os.path.basename(self.name)}: {_size(self.size)}, {len(self)} leaves")
        metadata = "".join(row("td", (key, written(item))) for key, item in self.metadata.items())
        body = row("th", ("path", "value", "size")) + "".join(row("td", cells) for cells in self._rows())
        head = f"<table>{row('th', ('metadata', ''))}{metadata}</table>" if metadata else ""
        return f"<div><b>{title}</b>{head}<table>{body}</table></div>"


def open_checkpoint(
    filename: str | os.PathLike[str] | BinaryIO,
    *,
    verify: bool = True,
    mmap: bool = False,
    max_size: int | None = None,
) -> Checkpoint:
    """Open a checkpoint to see what it holds, and to read single leaves.

    Parameters
    ----------
    filename : str, os.PathLike or binary file object
        The file.
    verify : bool, default True
        Check all data that is read against its checksums.
    mmap : bool, default False
        Give arrays that are views of the mapped file.
    max_size : int, optional
        The largest file to accept, in bytes; its arrays, when they are decompressed, may not be larger either.

    Returns
    -------
    Checkpoint
        A mapping from paths to leaves; close it, or use it in a ``with`` block.

    Raises
    ------
    CheckpointNotFoundError
        If there is no such file.
    CorruptCheckpointError
        If it is no checkpoint.
    CheckpointTooLargeError
        If the file, or its arrays when they are decompressed, are larger than ``max_size``.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from braintools_ckpt import msgpack_save
    >>> path = os.path.join(tempfile.mkdtemp(), "model.msgpack")
    >>> _ = msgpack_save(path, {"layers": [{"w": np.ones((4, 2))}], "step": 7}, metadata={"run": "a"})
    >>> with open_checkpoint(path) as checkpoint:
    ...     print(checkpoint.metadata, checkpoint.paths, checkpoint.specs["layers/0/w"])
    ...     print(checkpoint["step"], checkpoint.read("layers/0/w", slice(0, 1)))
    {'run': 'a'} ['layers/0/w', 'step'] float64[4, 2]
    7 [[1. 1.]]
    """

    def opened() -> Checkpoint:
        source = settled_source(filename)
        try:
            document = open_document(source, max_size=max_size, verify=verify, mmap=mmap)
        except BaseException:
            source.close()
            raise
        return Checkpoint(document, source.name, source.size, source.close)

    return read_current(opened)


def _printable(text: str) -> str:
    """Escape what a terminal could take for a command: names, tags and units are the file's own."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


class _PathTexts:
    """Writes linked paths; what leads to a container is written once for all that is in it."""

    def __init__(self) -> None:
        self._above: dict[int, tuple[LinkedPath, str]] = {}  # by id of a linked path, which is kept alive here

    def of(self, path: LinkedPath) -> str:
        """Write a path."""
        if path is None:
            return "."
        above, key = path
        text = format_key(key) if type(key) is str else format_path((key,))
        if above is None:
            return text
        known = self._above.get(id(above))
        if known is None:
            known = self._above[id(above)] = (above, self.of(above) + "/")
        return known[1] + text


class _Specs(dict[str, LeafSpec]):
    """Specs by path; a path that is not there is told like one that cannot be read."""

    def __init__(self, specs: dict[str, LeafSpec], explain: Callable[[object], str]) -> None:
        super().__init__(specs)
        self._explain = explain

    def __missing__(self, path: object) -> LeafSpec:
        raise KeyError(self._explain(path))


def _unwrapped(document: Document, value: Value) -> tuple[Value, list[Value]]:
    """Give what is inside of all objects around a value, and these objects from the outside."""
    around = []
    value = document.resolve(value)
    while type(value) is list and value[0] in (NODE, LEAF):
        around.append(value)
        value = value[2]
        if around[-1][1] == "numpy.masked" and type(value) is dict:
            value = value.get("data")
        value = document.resolve(value)
    return value, around


def _spec(document: Document, value: Value) -> LeafSpec:
    """Tell what is known of a leaf; a file may hold anything, so nothing of a state is taken for granted."""
    value, around = _unwrapped(document, value)
    quantities = [node for node in around if node[1] == QUANTITY]
    unit = symbol(document, (*quantities[0], {})[3]) if quantities else None
    tags = [node[1] for node in around if node[0] == LEAF]
    if type(value) is list and value[0] == ARRAY:
        spec = document.arrays.specs[value[1]]
        return LeafSpec(tags[0] if tags else "array", spec.dtype, spec.shape, unit, spec.nbytes)
    others = [tag for tag in tags if tag != QUANTITY]
    return LeafSpec(others[0] if others else _kind(value, around), None, None, unit, 0)


def _kind(value: Value, around: list[Value]) -> str:
    if value is None:
        return "None"
    if type(value) is not dict and type(value) is not list:
        return type(value).__name__
    plain = "list" if type(value) is list and value[0] in (LIST, ARRAYS) else "dict"
    name = around[-1][1].rpartition(".")[2].removeprefix("class:") if around else plain
    return f"empty {name}"


def _size(nbytes: int) -> str:
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return ""
