"""What the public functions are given, checked before anything is done."""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO, Literal, TypeAlias, get_args

from .errors import CheckpointTooLargeError
from .format import codec
from .format.unchanged import Earlier
from .storage.sources import Source
from .tree.merge import ArraysMode, Options, UnitsMode
from .tree.mismatch import check_mode

Format: TypeAlias = Literal["v1", "flax"]
Compression: TypeAlias = Literal["zstd"]
File: TypeAlias = str | os.PathLike[str] | BinaryIO


def check_save(filename: File, format_: Any, metadata: Any, compression: Any, manager: Any) -> None:
    """Check the arguments of a save before there is anything to save."""
    check_form(format_, metadata, compression)
    local_name(filename, "write", "wb")
    if manager is not None:
        check_manager(manager)


def check_form(format_: Any, metadata: Any, compression: Any) -> None:
    """Check in which form to save, before anything is done for it."""
    check_choice("format", format_, get_args(Format))
    if metadata is not None and format_ == "flax":
        raise ValueError("format='flax' has no place for metadata: put it into the tree, or use format='v1'.")
    check_choice("compression", compression, (None, *get_args(Compression)))
    if compression is None:
        return
    if format_ == "flax":
        raise ValueError("format='flax' has no compression: leave compression out, or use format='v1'.")
    codec.load_zstd()


def check_sharing(share_with: Any, format_: Any, compression: Any) -> Earlier | None:
    """Check with what a save may share data, and give it."""
    if share_with is None:
        return None
    if not isinstance(share_with, (str, os.PathLike)):
        raise TypeError(f"share_with must be the path of a checkpoint, got {type(share_with).__name__}.")
    if format_ != "v1" or compression is not None:
        raise ValueError("share_with= needs format='v1' without compression: what is compressed cannot be shared.")
    return share_with if isinstance(share_with, Earlier) else Earlier(os.path.abspath(os.fsdecode(share_with)))


def check_manager(manager: Any) -> None:
    """Refuse what saves nothing in the background."""
    if isinstance(manager, type) or not hasattr(manager, "save_async"):
        raise TypeError(f"async_manager must be an AsyncManager object, such as AsyncManager(), got {manager!r}.")


def local_name(file: Any, ability: str, mode: str) -> str | None:
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
    check_choice("units", units, get_args(UnitsMode))
    check_choice("arrays", arrays, get_args(ArraysMode))
    if raw and target is not None:
        raise ValueError("raw=True gives the plain state dict and takes no target; pass one or the other.")
    if only is not None and target is None:
        raise ValueError("only= chooses states of the modules in a target: pass target=.")
    if report is not None and (not callable(report) or isinstance(report, type)):
        raise TypeError(f"report must be a function of one LoadReport, such as print, got {report!r}.")
    return Options(mismatch, partial, units, arrays, only=only, report=report)


def check_size(source: Source, max_size: int | None) -> None:
    """Refuse a file that is too large."""
    if max_size is not None and (not isinstance(max_size, int) or isinstance(max_size, bool)):
        raise TypeError(f"max_size must be a number of bytes (int), got {type(max_size).__name__}.")
    check_nbytes(source.size, max_size, f"{source.name} has", "")


def check_nbytes(nbytes: int, max_size: int | None, has: str, of: str) -> None:
    """Refuse what has too many bytes; ``has`` and ``of`` say what it is."""
    if max_size is not None and nbytes > max_size:
        raise CheckpointTooLargeError(
            f"Checkpoint data too large: {has} {nbytes} bytes{of}, which exceeds maximum {max_size} bytes (max_size=)."
        )


def check_choice(name: str, value: Any, choices: tuple[str | None, ...]) -> None:
    """Refuse what is none of the values that an argument may have."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")
