"""Look into a checkpoint file without loading it."""

from __future__ import annotations

import difflib
import html
import os
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np

from .api import load_document, open_document, read_metadata
from .document import ARRAY, LEAF, NODE, REF, ArraySpec, Document, Value, children, is_container
from .errors import format_array, format_key, format_path, spread
from .format.reader import StoredArrays
from .storage.sources import open_source
from .tree.decode import decode_key
from .tree.merge import ArraysMode, Options, UnitsMode
from .tree.mismatch import MismatchMode, check_mode
from .tree.rename import Rename

_SHOWN = 40


class LeafSpec(NamedTuple):
    """What is known of one leaf without reading it.

    Attributes
    ----------
    kind : str
        ``array``, or the type of another value (``int``, ``str``, ``datetime`` ...).
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
        self._close = close
        self._metadata: dict[str, Any] | None = None
        self._values: dict[str, Value] | None = None
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
        return {path: self._spec(value) for path, value in self._leaves().items()}

    def _leaves(self) -> dict[str, Value]:
        if self._values is None:
            self._values = {}
            self._collect(self._document.structure, (), set())
        return self._values

    def _collect(self, value: Value, path: tuple[Any, ...], seen: set[int]) -> None:
        assert self._values is not None
        while type(value) is list and value[0] == REF:
            # What is shared is listed where it first stands: a file must not be able to make the list explode.
            first = value[1] not in seen
            seen.add(value[1])
            value = self._document.shared[value[1]]
            if not first:
                self._values[format_path(path)] = value
                return
        parts = list(children(value, decode_key)) if is_container(value) else []
        if not parts:
            self._values[format_path(path)] = value
        for key, item in parts:
            self._collect(item, (*path, key), seen)

    def _spec(self, value: Value) -> LeafSpec:
        value = self._document.resolve(value)
        if type(value) is list and value[0] == LEAF:
            attributes = value[3] if len(value) > 3 else {}
            inner = self._spec(value[2])
            kind = value[1]
            unit = attributes["unit"]["symbol"] if value[1] == "brainunit.Quantity" else None
            if unit is not None and inner.dtype is None:
                kind = inner.kind
            return inner._replace(kind=kind, unit=unit)
        if type(value) is list and value[0] == NODE and not is_container(value):
            return self._spec(value[2])  # a state around a single value
        if type(value) is list and value[0] == ARRAY:
            spec: ArraySpec = self._document.arrays.specs[value[1]]
            return LeafSpec("array", spec.dtype, spec.shape, None, spec.nbytes)
        return LeafSpec(_kind(value), None, None, None, 0)

    def _value(self, path: str | tuple[Any, ...]) -> Value:
        """Give the value at a path: a leaf or a container."""
        value = self._document.resolve(self._document.structure)
        steps = _split(path) if isinstance(path, str) else [format_key(key) for key in path]
        while steps:
            for key, part in children(value, decode_key) if is_container(value) else ():
                own = [format_key(step) for step in spread((key,))]
                if steps[: len(own)] == own:
                    value, steps = self._document.resolve(part), steps[len(own) :]
                    break
            else:
                raise KeyError(self._no_path(path if isinstance(path, str) else format_path(path)))
        return value

    def _no_path(self, path: str) -> str:
        near = difflib.get_close_matches(path, self.paths, 1)
        hint = f"Did you mean {near[0]!r}?" if near else "The paths are listed by .paths."
        return f"The checkpoint {self.name} has nothing at the path {path!r}. {hint}"

    def __getitem__(self, path: str | tuple[Any, ...]) -> Any:
        """Read what stands at a path: a leaf, or all of a container."""
        part = Document(self._value(path), self._document.arrays, self._document.shared)
        return load_document(part, None, Options())

    def __contains__(self, path: object) -> bool:
        try:
            self._value(path)  # type: ignore[arg-type]
        except (KeyError, TypeError):
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
        """
        value = self._value(path)
        while type(value) is list and value[0] in (NODE, LEAF):
            value = self._document.resolve(value[2])
        if not (type(value) is list and value[0] == ARRAY):
            raise TypeError(f"The value at the path {path!r} is no array but {_kind(value)}. Use checkpoint[path].")
        return self._document.arrays.read_part(value[1], index)

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
    ) -> Any:
        """Load the whole tree; the parameters are those of :func:`msgpack_load`."""
        check_mode(mismatch)
        options = Options(mismatch, partial, units, arrays)
        return load_document(self._document, target, options, rename=rename, raw=raw)

    def verify(self) -> None:
        """Check every byte of the file against its checksums.

        Raises
        ------
        CorruptCheckpointError
            If a byte is not as it was written.
        """
        if isinstance(self._document.arrays, StoredArrays):
            self._document.arrays.verify()

    def close(self) -> None:
        """Close the file; what was loaded stays."""
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
        lines += [f"  {key} = {item!r}" for key, item in self.metadata.items()]
        lines += [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in rows]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        def row(tag: str, cells: tuple[str, ...]) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        title = html.escape(f"{os.path.basename(self.name)}: {_size(self.size)}, {len(self)} leaves")
        metadata = "".join(row("td", (key, repr(item))) for key, item in self.metadata.items())
        body = row("th", ("path", "value", "size")) + "".join(row("td", cells) for cells in self._rows())
        head = f"<table>{row('th', ('metadata', ''))}{metadata}</table>" if metadata else ""
        return f"<div><b>{title}</b>{head}<table>{body}</table></div>"


def open_checkpoint(
    filename: str | os.PathLike[str] | BinaryIO, *, verify: bool = True, mmap: bool = False
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
    source = open_source(filename)
    try:
        document = open_document(source, verify=verify, mmap=mmap)
    except BaseException:
        source.close()
        raise
    return Checkpoint(document, source.name, source.size, source.close)


def _split(path: str) -> list[str]:
    """Split a path at its slashes, but for those inside of quotes or brackets."""
    if path in ("", "."):
        return []
    steps, depth, quote, start, i = [], 0, "", 0, 0
    while i < len(path):
        char = path[i]
        if quote:
            if char == "\\":
                i += 1
            elif char == quote:
                quote = ""
        elif char in "'\"":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char == "/" and not depth:
            steps.append(path[start:i])
            start = i + 1
        i += 1
    return [*steps, path[start:]]


def _kind(value: Value) -> str:
    if value is None:
        return "None"
    if type(value) is list:
        return value[1] if value[0] == LEAF else "empty list" if value[0] == 0 else "empty dict"
    return "empty dict" if type(value) is dict else type(value).__name__


def _size(nbytes: int) -> str:
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return ""
