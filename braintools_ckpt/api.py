"""The public functions: how the layers are put together."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .arguments import (
    Compression,
    File,
    Format,
    check_form,
    check_sharing,
    local_name,
    make_options,
)
from .document import LiveArrays
from .opening import load, read_current, settled_source
from .progress import counting, progress_bar
from .saving import prepare, prepared, reserved
from .storage.sinks import BytesSink
from .storage.sources import BufferSource
from .storage.turns import Save, line
from .tree import registry
from .tree.encode import encode
from .tree.load_report import LoadReport
from .tree.merge import ArraysMode, Options, UnitsMode, merge
from .tree.mismatch import MismatchMode, check_mode
from .tree.registration import msgpack_register_serialization, serializable
from .tree.rename import Rename
from .tree.state_dict import to_state_dict
from .walking import walking

if TYPE_CHECKING:
    from .async_manager import AsyncManager


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
    check_form(format, metadata, compression)
    earlier = check_sharing(share_with, format, compression)
    name = local_name(filename, "write", "wb")
    shown = name or str(getattr(filename, "name", filename))
    save = Save(path=shown)
    try:
        if async_manager is not None and not reserved(async_manager, save):
            return ""
        if verbose:
            print(f"Saving checkpoint into {shown}")
        # In a function: what is prepared must not be kept by this frame, and so by the error of an earlier save.
        prepare(
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
            earlier,
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
    local_name(filename, "read", "rb")
    if verbose:
        print(f"Loading checkpoint from {filename}")
    how = {"verify": verify, "mmap": mmap, "parallel": parallel}

    def load_once() -> Any:
        with settled_source(filename) as source, progress_bar(progress, "loading", source.size) as on_bytes, walking():
            return load(counting(source, on_bytes), target, options, rename, raw, max_size=max_size, **how)

    return read_current(load_once)


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
    check_form(format, metadata, compression)
    sink = BytesSink()
    with walking():
        put, _ = prepared(target, metadata, format, compression, only)
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
        return load(source, target, options, rename, raw, max_size=max_size, **how)


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
