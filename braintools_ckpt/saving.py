"""From a tree to a file: what has to be done at once, and what may wait."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np

from .arguments import Compression, File, Format, check_manager
from .document import Document, LiveArrays
from .errors import AlreadyExistsError
from .format import legacy, writer
from .format.unchanged import Earlier
from .progress import progress_bar
from .storage.local import atomic_write
from .storage.sinks import Sink, StreamSink
from .storage.turns import Save, place_of, settle
from .tree import registry
from .tree.encode import encode, encode_metadata
from .tree.selection import Selection
from .tree.snapshot import take_snapshot
from .tree.state_dict import to_state_dict
from .walking import walking


def reserved(manager: Any, save: Save) -> bool:
    """Have a manager make room for a save; false if it leaves the save out."""
    check_manager(manager)
    if hasattr(manager, "reserve"):
        return manager.reserve(save) is not None
    manager.wait_previous_save()  # that of another library
    return True


def prepare(
    save: Save,
    filename: File,
    name: str | None,
    target: Any,
    overwrite: bool,
    metadata: Mapping[str, Any] | None,
    format: Format,
    compression: Compression | None,
    durable: bool,
    progress: bool,
    only: Any,
    earlier: Earlier | None,
    is_async: bool,
) -> None:
    """Do all of a save that cannot wait, and tell it what is left to be done."""
    if name is not None and not overwrite and os.path.lexists(name):
        raise AlreadyExistsError(name)
    with walking():
        put, nbytes = prepared(target, metadata, format, compression, only, earlier, snapshot=is_async)
    # By then the program may be in another directory.
    path = os.path.abspath(name) if name and is_async else name
    size = nbytes if format == "v1" and compression is None else None  # of others it is not known
    write = functools.partial(_write, put, filename, path, overwrite, durable, progress, size)
    save.prepare(write, _place(filename, path), nbytes)


def prepared(
    target: Any,
    metadata: Mapping[str, Any] | None,
    form: Format,
    compression: Compression | None,
    only: Any,
    earlier: Earlier | None = None,
    *,
    snapshot: bool = False,
) -> tuple[Callable[[Sink], None], int]:
    """Do all of a save that can fail but the writing; give what writes, and how many bytes its arrays have.

    A function of its own, so that the document is gone when the caller lets the garbage collector in again.
    """
    selection = None if only is None else Selection(only)
    document = target if isinstance(target, Document) else encode(target, registry, selection=selection)
    if metadata is not None:
        document.metadata = encode_metadata(metadata, registry)
    live = document.arrays
    assert isinstance(live, LiveArrays)
    if snapshot:
        take_snapshot(live, registry)
    if form == "v1":
        prepared = writer.Writer(document, compress=compression is not None, earlier=earlier)
        if earlier is None:
            return prepared.write, prepared.nbytes
        return _after(earlier.path, prepared.write), prepared.nbytes
    state = to_state_dict(document, registry, functools.partial(_soon, live) if snapshot else live.host)
    return functools.partial(legacy.write_state_dict, state), sum(spec.nbytes for spec in live.specs)


def _soon(live: LiveArrays, index: int) -> Any:
    """Give an array of a snapshot; one that is still on its way to the host stays what it is until it is written."""
    source = live.sources[index]
    return live.host(index) if isinstance(source, (np.ndarray, memoryview)) else source


def _after(path: str, put: Callable[[Sink], None]) -> Callable[[Sink], None]:
    """Let a save begin when those of another file have ended, which it wants to share data with."""

    def settled(sink: Sink) -> None:
        settle(path)
        put(sink)

    return settled


def _place(file: File, path: str | None) -> Hashable:
    """Give what only one save at a time may write to."""
    return ("file object", id(file)) if path is None else place_of(path)


def _write(
    put: Callable[[Sink], None],
    file: File,
    path: str | None,
    overwrite: bool,
    durable: bool,
    progress: bool,
    size: int | None,
) -> None:
    with progress_bar(progress, "saving", size) as on_bytes:
        if path is None:
            put(StreamSink(file, on_bytes=on_bytes))  # type: ignore[arg-type]
        else:
            with atomic_write(path, overwrite=overwrite, durable=durable, on_bytes=on_bytes) as sink:
                put(sink)
