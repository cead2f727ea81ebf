"""The public functions: how the layers are put together."""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias, get_args

import numpy as np

from .document import Document, LiveArrays
from .errors import AlreadyExistsError, CheckpointTooLargeError, InvalidCheckpointPath, format_path, unlink
from .format import codec, legacy, reader, writer
from .storage.local import atomic_write
from .storage.sinks import BytesSink, Sink, StreamSink
from .storage.sources import BufferSource, Source, open_source
from .storage.turns import Save, line, place_of, settle
from .tree import registry
from .tree.decode import decode_metadata
from .tree.encode import encode, encode_metadata
from .tree.load_report import Leftovers, LoadReport
from .tree.locate import locate
from .tree.merge import ArraysMode, Options, UnitsMode, load_plain, merge
from .tree.mismatch import MismatchMode, check_mode
from .tree.registration import msgpack_register_serialization, serializable
from .tree.rename import Rename, rename
from .tree.selection import Selection
from .tree.snapshot import take_snapshot
from .tree.state_dict import to_state_dict
from .walking import walking

if TYPE_CHECKING:
    from .async_manager import AsyncManager

Format: TypeAlias = Literal["v1", "flax"]
Compression: TypeAlias = Literal["zstd"]
File: TypeAlias = str | os.PathLike[str] | BinaryIO


def msgpack_save(
    filename: File,
    target: Any,
    overwrite: bool = True,
    async_manager: AsyncManager | None = None,
    verbose: bool = False,
    *,
    metadata: Mapping[str, Any] | None = None,
    format: Format = "v1",
    compression: Compression | None = None,
    durable: bool = True,
    progress: bool = False,
    only: Any = None,
    share_with: str | os.PathLike[str] | None = None,
) -> str:
    """Save a tree as one file.

    The file appears whole or not at all: it is written beside its place, synced to the disk and renamed.

    Parameters
    ----------
    filename : str, os.PathLike or binary file object
        Where to save. Directories that are missing are made; a symbolic link is written through.
    target : pytree
        What to save: nested containers of arrays, quantities, states, scalars and registered classes. It is not
        changed.
    overwrite : bool, default True
        Replace an existing file.
    async_manager : AsyncManager, optional
        Write in the background. The values saved are those of the moment of the call; loads of the file wait.
    verbose : bool, default False
        Print where the checkpoint goes.
    metadata : mapping, optional
        Anything small that describes the checkpoint (step, metrics, versions), with string keys. It can be read
        without reading the tree, by :func:`open_checkpoint`.
    format : {'v1', 'flax'}, default 'v1'
        ``'flax'`` writes plain state dicts that ``braintools.file`` and ``flax.serialization`` read; types, units'
        names and metadata are lost then.
    compression : {'zstd'}, optional
        Compress arrays that get smaller by it; the others stay as they are. Nothing has to be said to load the file.
        Needs ``pip install 'braintools-ckpt[zstd]'``.
    durable : bool, default True
        Sync file and directory, so that the checkpoint survives a power cut. Without it a save is faster.
    progress : bool, default False
        Show a bar of the bytes written.
    only : filter, optional
        Save only some states of the modules in the tree: a filter of flax.nnx or brainstate, such as ``nnx.Param``,
        ``(nnx.Param, nnx.BatchStat)`` or ``brainstate.ParamState``.
    share_with : str or os.PathLike, optional
        An earlier checkpoint. Arrays of at least 1 MiB that it holds as they are now are not written again, where the
        file system lets two files share data (btrfs and XFS do, ext4 does not): either file can then be deleted or
        changed without the other. Elsewhere, and where there is no such checkpoint, all is written.

    Returns
    -------
    str
        The file's name; ``''`` if the ``async_manager`` has left the save out, as it was told to.

    Raises
    ------
    AlreadyExistsError
        If the file exists and ``overwrite`` is false.
    PendingSaveError
        If the ``async_manager`` has no room for another save, and was told to raise.
    SerializationError
        If something in the tree cannot be saved; the message names its path, and nothing is written.
    HandlerError
        If a registered handler failed.
    MissingLibraryError
        If ``compression`` needs a library that is not installed; nothing is written.
    OSError
        If the file cannot be written; the old one, if there was one, is intact.

    See Also
    --------
    msgpack_load : The way back.
    msgpack_dumps : The same to bytes.

    Examples
    --------
    >>> import os, tempfile
    >>> import brainunit as u, jax.numpy as jnp
    >>> path = os.path.join(tempfile.mkdtemp(), "run", "state.msgpack")
    >>> state = {"V": jnp.array([-65.0, -60.0]) * u.mV, "t": 5 * u.ms, "layers": [jnp.ones(2), (1, "relu")]}
    >>> name = msgpack_save(path, state, metadata={"step": 100})
    >>> loaded = msgpack_load(path)
    >>> str(loaded["V"].unit), loaded["layers"][1]
    ('mV', (1, 'relu'))
    """
    _check_form(format, metadata, compression)
    _check_sharing(share_with, format, compression)
    name = _local_name(filename, "write", "wb")
    shown = name or str(getattr(filename, "name", filename))
    save = Save(path=shown)
    try:
        if async_manager is not None and not _reserved(async_manager, save):
            return ""
        if verbose:
            print(f"Saving checkpoint into {shown}")
        # In a function: what is prepared must not be kept by this frame, and so by the error of an earlier save.
        _prepare(
            save,
            filename,
            name,
            target,
            overwrite,
            metadata,
            format,
            compression,
            durable,
            progress,
            only,
            None if share_with is None else os.path.abspath(os.fsdecode(share_with)),
            async_manager is not None,
        )
        del target  # for the same reason
        if async_manager is None:
            save.write()
        else:
            async_manager.save_async(save)
    finally:  # no call in here: Ctrl-C could come in its stead
        if save not in line.entries:
            save.is_over = True
    return shown


def msgpack_load(
    filename: File,
    target: Any | None = None,
    parallel: bool = True,
    mismatch: MismatchMode = "error",
    max_size: int | None = None,
    verbose: bool = False,
    *,
    partial: bool = False,
    rename: Rename | None = None,
    units: UnitsMode = "exact",
    arrays: ArraysMode = "saved",
    mmap: bool = False,
    verify: bool = True,
    raw: bool = False,
    progress: bool = False,
    only: Any = None,
    report: Callable[[LoadReport], object] | None = None,
) -> Any:
    """Load a tree from a file.

    Files of ``braintools.file`` and ``flax.serialization`` are recognised and loaded, too.

    Parameters
    ----------
    filename : str, os.PathLike or binary file object
        The file.
    target : pytree, optional
        What the result has to look like: its containers, shapes, dtypes, units, devices and shardings. Its values are
        not used, but where something does not fit. Stateful parts (``brainstate.State``) are updated in place, after
        everything else has succeeded. Leaves may be ``jax.ShapeDtypeStruct``.
    parallel : bool, default True
        Read large arrays with several threads.
    mismatch : {'error', 'warn', 'ignore'}, default 'error'
        What to do when file and target differ. ``'error'`` reports all differences in one exception and loads nothing;
        with the others the target's own value stays where something does not fit.
    max_size : int, optional
        The largest file to accept, in bytes; its arrays, when they are decompressed, may not be larger either.
    verbose : bool, default False
        Print where the checkpoint comes from.
    partial : bool, default False
        The target names only a part: what only the file has is no mismatch, and is not read.
    rename : mapping or callable, optional
        From paths of the file to paths of the target, such as ``{'encoder/w': 'trunk/w'}``.
    units : {'exact', 'convert'}, default 'exact'
        Whether a quantity in another unit of the same dimension is a mismatch, or is converted to the target's unit.
    arrays : {'saved', 'numpy', 'jax'}, default 'saved'
        What arrays become where no target says it: what they were, all numpy, or all jax (but for dtypes that jax does
        not have).
    mmap : bool, default False
        Map the file instead of reading it: numpy arrays are copy-on-write views of it, jax arrays on the CPU use them
        in place. The file must not be changed while they live; their checksums are not checked. What is compressed in
        the file is read and checked nevertheless.
    verify : bool, default True
        Check all data that is read against its checksums.
    raw : bool, default False
        Give the plain state dict: nested dicts with string keys and numpy arrays.
    progress : bool, default False
        Show a bar of the bytes read.
    only : filter, optional
        Load only some states of the modules in ``target``, as in :func:`msgpack_save`; the others stay as they are, and
        may or may not be in the file.
    report : callable, optional
        Is called with a :class:`LoadReport` when the load has succeeded: what was loaded, kept and ignored, by path.
        ``report=print`` prints it.

    Returns
    -------
    pytree
        The tree; numpy arrays in it are writable.

    Raises
    ------
    CheckpointNotFoundError
        If there is no such file (a ``FileNotFoundError`` and a ``ValueError``).
    CorruptCheckpointError
        If the file is not a checkpoint, or not as it was written.
    MismatchError
        If file and target differ and ``mismatch`` is ``'error'``; no object was changed.
    CheckpointTooLargeError
        If the file, or its arrays when they are decompressed, are larger than ``max_size``.
    MissingLibraryError
        If the file is compressed and zstandard is not installed.

    See Also
    --------
    msgpack_save : The way there.
    open_checkpoint : Look into a file, read single leaves.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> path = msgpack_save(os.path.join(tempfile.mkdtemp(), "w.msgpack"), {"w": np.arange(3.0), "b": 1})
    >>> msgpack_load(path, target={"w": np.zeros(3, np.float32), "b": 0})
    {'w': array([0., 1., 2.], dtype=float32), 'b': 1}
    >>> msgpack_load(path, target={"w": np.zeros(4), "b": 0})
    Traceback (most recent call last):
        ...
    braintools_ckpt.errors.MismatchError: Array shape mismatch: expected float64[4], got float64[3] at path w. ...
    """
    options = make_options(target, mismatch, partial, units, arrays, raw, only, report)
    _local_name(filename, "read", "rb")
    if verbose:
        print(f"Loading checkpoint from {filename}")
    with settled_source(filename) as source, _progress(progress, "loading", source.size) as on_bytes, walking():
        how = {"verify": verify, "mmap": mmap, "parallel": parallel}
        return _load(_counting(source, on_bytes), target, options, rename, raw, max_size=max_size, **how)


def msgpack_dumps(
    target: Any,
    *,
    metadata: Mapping[str, Any] | None = None,
    format: Format = "v1",
    compression: Compression | None = None,
    only: Any = None,
) -> bytes:
    """Give a tree as bytes: those that :func:`msgpack_save` would write.

    Parameters
    ----------
    target : pytree
        What to save.
    metadata : mapping, optional
        As in :func:`msgpack_save`.
    format : {'v1', 'flax'}, default 'v1'
        As in :func:`msgpack_save`.
    compression : {'zstd'}, optional
        As in :func:`msgpack_save`.
    only : filter, optional
        As in :func:`msgpack_save`.

    Returns
    -------
    bytes
        The checkpoint.

    Raises
    ------
    SerializationError
        If something in the tree cannot be saved.
    MissingLibraryError
        If ``compression`` needs a library that is not installed.

    Examples
    --------
    >>> msgpack_loads(msgpack_dumps({"step": 3, "name": "run"}))
    {'step': 3, 'name': 'run'}
    """
    _check_form(format, metadata, compression)
    sink = BytesSink()
    with walking():
        put, _ = _prepared(target, metadata, format, compression, only)
    put(sink)
    return sink.getvalue()


def msgpack_loads(
    data: bytes | bytearray | memoryview,
    target: Any | None = None,
    parallel: bool = True,
    mismatch: MismatchMode = "error",
    max_size: int | None = None,
    *,
    partial: bool = False,
    rename: Rename | None = None,
    units: UnitsMode = "exact",
    arrays: ArraysMode = "saved",
    verify: bool = True,
    raw: bool = False,
    only: Any = None,
    report: Callable[[LoadReport], object] | None = None,
) -> Any:
    """Load a tree from bytes; see :func:`msgpack_load` for the parameters.

    Parameters
    ----------
    data : bytes-like
        The checkpoint.
    target : pytree, optional
        What the result has to look like.
    parallel, mismatch, max_size, partial, rename, units, arrays, verify, raw, only, report
        As in :func:`msgpack_load`.

    Returns
    -------
    pytree
        The tree.

    Raises
    ------
    CorruptCheckpointError
        If the bytes are not a checkpoint.
    MismatchError
        If checkpoint and target differ and ``mismatch`` is ``'error'``.

    Examples
    --------
    >>> msgpack_loads(msgpack_dumps([1, (2, 3)]), target=[0, (0, 0)])
    [1, (2, 3)]
    """
    options = make_options(target, mismatch, partial, units, arrays, raw, only, report)
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"data must be bytes-like, got {type(data).__name__}. To load a file, use msgpack_load.")
    with BufferSource(data) as source, walking():
        how = {"verify": verify, "parallel": parallel}
        return _load(source, target, options, rename, raw, max_size=max_size, **how)


def msgpack_to_state_dict(target: Any) -> Any:
    """Give a tree as nested dicts with string keys, whose leaves are the tree's own.

    Parameters
    ----------
    target : pytree
        The tree.

    Returns
    -------
    dict or object
        Lists and tuples as ``{'0': ..., '1': ...}``, quantities as ``{'mantissa', 'scale', 'base', 'dim', 'factor'}``,
        states as their values; a single leaf is itself.

    Raises
    ------
    SerializationError
        If something in the tree cannot be saved.

    Examples
    --------
    >>> msgpack_to_state_dict({"layers": [1, (2, 3)]})
    {'layers': {'0': 1, '1': {'0': 2, '1': 3}}}
    """
    document = encode(target, registry, passthrough=True)
    live = document.arrays
    assert isinstance(live, LiveArrays)
    with walking():
        return to_state_dict(document, registry, live.sources.__getitem__)


def msgpack_from_state_dict(target: Any, state: Any, name: str = ".", mismatch: MismatchMode = "error") -> Any:
    """Load a state dict into a target.

    Parameters
    ----------
    target : pytree
        What the result has to look like.
    state : dict or pytree
        What :func:`msgpack_to_state_dict` gave, or a tree like the target.
    name : str, default '.'
        Where the target stands in a larger tree, for messages.
    mismatch : {'error', 'warn', 'ignore'}, default 'error'
        As in :func:`msgpack_load`.

    Returns
    -------
    pytree
        A tree like the target with the state's values; states in the target are updated in place.

    Raises
    ------
    MismatchError
        If state and target differ and ``mismatch`` is ``'error'``.

    Examples
    --------
    >>> msgpack_from_state_dict([0, (0, 0)], {"0": 1, "1": {"0": 2, "1": 3}})
    [1, (2, 3)]
    """
    check_mode(mismatch)
    path = None if name == "." else (None, name)
    options = Options(mismatch, passthrough=True)
    return merge(encode(state, registry, passthrough=True), target, registry, options, path)


# How documents are opened and loaded; open_checkpoint uses these too.


def _load(
    source: Source,
    target: Any | None,
    options: Options,
    rename: Rename | None,
    raw: bool,
    *,
    max_size: int | None,
    **how: bool,
) -> Any:
    # A function of its own, so that the document is gone when the caller lets the garbage collector in again.
    document = open_document(source, max_size=max_size, **how)
    return load_document(document, target, options, rename=rename, raw=raw)


def settled_source(file: File) -> Source:
    """Open a file when all saves to it that this process has begun have ended."""
    if isinstance(file, (str, os.PathLike)):
        settle(os.fspath(file))
    return open_source(file)


def open_document(
    source: Source, *, max_size: int | None = None, verify: bool = True, mmap: bool = False, parallel: bool = True
) -> Document:
    """Make a document of a file of any known format, if it is not too large."""
    _check_size(source, max_size)
    if reader.is_checkpoint(source):
        document = reader.read(source, verify=verify, mmap=mmap, parallel=parallel)
        if isinstance(document.arrays, reader.StoredArrays):
            _check_nbytes(document.arrays.nbytes, max_size, f"{source.name} holds", " of data")
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
            document = _rename(document, rename)
        if raw:
            arrays = document.arrays.read(range(len(document.arrays.specs)))
            state = to_state_dict(document, registry, arrays.__getitem__)
            if options.report is not None:
                options.report(Leftovers().report(document))
            return state
        if target is None:
            return load_plain(document, registry, options)
        return merge(document, target, registry, options)


_rename = rename


def read_metadata(document: Document) -> dict[str, Any]:
    """Give the metadata of a document as objects."""
    return decode_metadata(document.metadata, registry)


def _prepare(
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
    share_with: str | None,
    is_async: bool,
) -> None:
    """Do all of a save that cannot wait, and tell it what is left to be done."""
    if name is not None and not overwrite and os.path.lexists(name):
        raise AlreadyExistsError(name)
    with walking():
        put, nbytes = _prepared(target, metadata, format, compression, only, share_with, snapshot=is_async)
    # By then the program may be in another directory.
    path = os.path.abspath(name) if name and is_async else name
    size = nbytes if format == "v1" and compression is None else None  # of others it is not known
    write = functools.partial(_write, put, filename, path, overwrite, durable, progress, size)
    save.prepare(write, _place(filename, path), nbytes)


def _prepared(
    target: Any,
    metadata: Mapping[str, Any] | None,
    form: Format,
    compression: Compression | None,
    only: Any,
    share_with: str | None = None,
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
        prepared = writer.Writer(document, compress=compression is not None, share_with=share_with)
        if share_with is None:
            return prepared.write, prepared.nbytes
        return _after(share_with, prepared.write), prepared.nbytes
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


def _reserved(manager: Any, save: Save) -> bool:
    """Have a manager make room for a save; false if it leaves the save out."""
    _check_manager(manager)
    if hasattr(manager, "reserve"):
        return manager.reserve(save) is not None
    manager.wait_previous_save()  # that of another library
    return True


def _check_manager(manager: Any) -> None:
    if isinstance(manager, type) or not hasattr(manager, "save_async"):
        raise TypeError(f"async_manager must be an AsyncManager object, such as AsyncManager(), got {manager!r}.")


def check_save(filename: File, format_: Any, metadata: Any, compression: Any, manager: Any) -> None:
    """Check the arguments of a save before there is anything to save."""
    _check_form(format_, metadata, compression)
    _local_name(filename, "write", "wb")
    if manager is not None:
        _check_manager(manager)


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
    with _progress(progress, "saving", size) as on_bytes:
        if path is None:
            put(StreamSink(file, on_bytes=on_bytes))  # type: ignore[arg-type]
        else:
            with atomic_write(path, overwrite=overwrite, durable=durable, on_bytes=on_bytes) as sink:
                put(sink)


@contextlib.contextmanager
def _progress(show: bool, what: str, size: int | None) -> Iterator[Callable[[int], None] | None]:
    if not show:
        yield None
        return
    from tqdm import tqdm

    with tqdm(total=size, desc=what, unit="B", unit_scale=True, unit_divisor=1024) as bar:

        def advance(nbytes: float) -> None:
            bar.update(min(nbytes, inf if size is None else size - bar.n))  # header and index are not in the size

        yield advance
        if size is not None:  # what was not needed need not be read
            advance(size)


def _counting(source: Source, on_bytes: Callable[[int], None] | None) -> Source:
    if on_bytes is None:
        return source
    read_into = source.read_into

    def counted(offset: int, *buffers: memoryview) -> None:
        read_into(offset, *buffers)
        on_bytes(sum(map(len, buffers)))

    source.read_into = counted  # type: ignore[method-assign]
    return source


def _local_name(file: Any, ability: str, mode: str) -> str | None:
    """Give the path of a file by name; None for a file object."""
    if isinstance(file, (str, os.PathLike)):
        name = os.fspath(file)
        if not isinstance(name, str):
            raise TypeError(f"filename must be a str path, got {type(name).__name__}.")
        if not name:
            raise ValueError("filename is empty.")
        scheme, colons, _ = name.partition("://")
        if colons and len(scheme) > 1 and scheme.isalnum():
            raise ValueError(
                f"{name!r} is a URL, and msgpack_save and msgpack_load take local paths. Open it with "
                "fsspec.open(url, 'wb') or 'rb', and pass the file object."
            )
        return name
    if hasattr(file, ability):
        if isinstance(file, io.TextIOBase):
            to = {"write": "to", "read": "from"}[ability]
            raise TypeError(f"Cannot {ability} a checkpoint {to} a text file. Open it with mode {mode!r}.")
        able = getattr(file, {"write": "writable", "read": "readable"}[ability], None)
        if able is None or able():
            return None
        raise ValueError(f"The file object {file!r} cannot {ability} bytes. Open it with mode {mode!r}.")
    raise TypeError(f"filename must be a str, a PathLike or a binary file object, got {type(file).__name__}.")


def make_options(
    target: Any, mismatch: Any, partial: bool, units: Any, arrays: Any, raw: bool, only: Any, report: Any
) -> Options:
    """Check the arguments of a load, and give them as options."""
    check_mode(mismatch)
    _check_choice("units", units, get_args(UnitsMode))
    _check_choice("arrays", arrays, get_args(ArraysMode))
    if raw and target is not None:
        raise ValueError("raw=True gives the plain state dict and takes no target; pass one or the other.")
    if only is not None and target is None:
        raise ValueError("only= chooses states of the modules in a target: pass target=.")
    if report is not None and not callable(report):
        raise TypeError(f"report must be a function of one LoadReport, such as print, got {report!r}.")
    return Options(mismatch, partial, units, arrays, only=only, report=report)


def _check_form(format_: Any, metadata: Any, compression: Any) -> None:
    """Check in which form to save, before anything is done for it."""
    _check_choice("format", format_, get_args(Format))
    if metadata is not None and format_ == "flax":
        raise ValueError("format='flax' has no place for metadata: put it into the tree, or use format='v1'.")
    _check_choice("compression", compression, (None, *get_args(Compression)))
    if compression is None:
        return
    if format_ == "flax":
        raise ValueError("format='flax' has no compression: leave compression out, or use format='v1'.")
    codec.load_zstd()


def _check_sharing(share_with: Any, format_: Any, compression: Any) -> None:
    if share_with is None:
        return
    if not isinstance(share_with, (str, os.PathLike)):
        raise TypeError(f"share_with must be the path of a checkpoint, got {type(share_with).__name__}.")
    if format_ != "v1" or compression is not None:
        raise ValueError("share_with= needs format='v1' without compression: what is compressed cannot be shared.")


def _check_choice(name: str, value: Any, choices: tuple[str | None, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def _check_size(source: Source, max_size: int | None) -> None:
    if max_size is not None and (not isinstance(max_size, int) or isinstance(max_size, bool)):
        raise TypeError(f"max_size must be a number of bytes (int), got {type(max_size).__name__}.")
    _check_nbytes(source.size, max_size, f"{source.name} has", "")


def _check_nbytes(nbytes: int, max_size: int | None, has: str, of: str) -> None:
    if max_size is not None and nbytes > max_size:
        raise CheckpointTooLargeError(
            f"Checkpoint data too large: {has} {nbytes} bytes{of}, which exceeds maximum {max_size} bytes (max_size=)."
        )


__all__ = [
    "msgpack_dumps",
    "msgpack_from_state_dict",
    "msgpack_load",
    "msgpack_loads",
    "msgpack_register_serialization",
    "msgpack_save",
    "msgpack_to_state_dict",
    "serializable",
]
