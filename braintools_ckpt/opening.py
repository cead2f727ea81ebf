"""From a file to a document, and from a document to a tree."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from .arguments import File, check_nbytes, check_size
from .document import Document, LiveArrays
from .errors import InvalidCheckpointPath, ReplacedError, format_path, unlink
from .format import legacy, reader
from .storage.sources import Source, open_source
from .storage.turns import settle
from .tree import registry
from .tree.decode import decode_metadata
from .tree.load_report import Leftovers
from .tree.locate import locate
from .tree.merge import Options, load_plain, merge
from .tree.rename import Rename
from .tree.rename import rename as renamed
from .tree.state_dict import to_state_dict
from .walking import walking

T = TypeVar("T")
#: How often a file may be replaced while it is opened.
_TRIES = 10


def settled_source(file: File) -> Source:
    """Open a file when all saves to it that this process has begun have ended."""
    if isinstance(file, (str, os.PathLike)):
        settle(os.fspath(file))
    return open_source(file)


def read_current(read: Callable[[], T]) -> T:
    """Open and read a file; once more, if it was replaced before the files beside it could be opened."""
    for _ in range(_TRIES):
        try:
            return read()
        except ReplacedError:
            continue
    return read()


def load(
    source: Source,
    target: Any | None,
    options: Options,
    rename: Rename | None,
    raw: bool,
    *,
    max_size: int | None,
    **how: bool,
) -> Any:
    """Load what a source holds, with a target or without.

    A function of its own, so that the document is gone when the caller lets the garbage collector in again.
    """
    document = open_document(source, max_size=max_size, **how)
    return load_document(document, target, options, rename=rename, raw=raw)


def open_document(
    source: Source, *, max_size: int | None = None, verify: bool = True, mmap: bool = False, parallel: bool = True
) -> Document:
    """Make a document of a file of any known format, if it is not too large."""
    check_size(source, max_size)
    if reader.is_checkpoint(source):
        document = reader.read(source, verify=verify, mmap=mmap, parallel=parallel)
        if isinstance(document.arrays, reader.StoredArrays):
            check_nbytes(document.arrays.nbytes, max_size, f"{source.name} holds", " of data")
            outline = replace(document, arrays=LiveArrays())  # with the table itself it would be a reference cycle
            document.arrays.name_by(lambda index: format_path(unlink(locate(outline, index))))
        return document
    if mmap:
        raise InvalidCheckpointPath(
            f"{source.name} is not a file of braintools_ckpt's own format, and only those can be mapped. Load it "
            "without mmap=True and save it again."
        )
    reader.refuse_damaged(source)
    return legacy.read_state_dict(source.read(0, source.size), source.name)


def load_document(
    document: Document, target: Any | None, options: Options, *, rename: Rename | None = None, raw: bool = False
) -> Any:
    """Load a document, with a target or without."""
    with walking():
        if rename is not None:
            document = renamed(document, rename)
        if raw:
            arrays = document.arrays.read(range(len(document.arrays.specs)))
            state = to_state_dict(document, registry, arrays.__getitem__)
            if options.report is not None:
                options.report(Leftovers().report(document))
            return state
        if target is None:
            return load_plain(document, registry, options)
        return merge(document, target, registry, options)


def read_metadata(document: Document) -> dict[str, Any]:
    """Give the metadata of a document as objects."""
    return decode_metadata(document.metadata, registry)
