"""The exceptions of the library, and how paths, dtypes and shapes are written in their messages.

Every exception that existed in ``braintools.file`` keeps its name, and each one is also the builtin that a
caller would think of first (``FileNotFoundError``, ``FileExistsError``, ``ValueError``, ``TypeError``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .tree.mismatch import Mismatch

#: A path into a tree: nothing for the root, else the parent's path and one key (a dict key, an index, a field).
Path = tuple[Any, ...]
#: The same as a linked list, which costs one small tuple per step while a tree is walked.
LinkedPath = tuple["LinkedPath", Any] | None


class CheckpointError(Exception):
    """Base of every error that this library raises about a checkpoint or a tree."""


class InvalidCheckpointPath(CheckpointError):  # noqa: N818  (the name that braintools.file users catch)
    """The path cannot be used as asked: it exists already, is a directory, or holds no valid checkpoint."""


class AlreadyExistsError(InvalidCheckpointPath, FileExistsError):
    """A file exists at the path and ``overwrite=False`` was given."""

    def __init__(self, path: object) -> None:
        super().__init__(
            f'Trying overwrite an existing file: "{path}". Pass overwrite=True to replace it, or another path.'
        )
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._path,)


class StepExistsError(AlreadyExistsError):
    """There is a checkpoint of the step already."""

    def __init__(self, path: object, step: int, problem: str = "") -> None:
        what = f"What stands for step {step} {problem}" if problem else f"There is a checkpoint of step {step} already"
        InvalidCheckpointPath.__init__(self, f"{what}: {path}. Pass force=True to replace it.")
        self._given = (path, step, problem)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._given


class CheckpointNotFoundError(CheckpointError, FileNotFoundError, ValueError):
    """No file exists at the path."""

    def __init__(self, path: object, hint: str = "") -> None:
        super().__init__(f"Checkpoint not found: {path}{hint}")
        self._given = (path, hint)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._given


class ReplacedError(CheckpointNotFoundError):
    """The file was deleted or replaced while it was opened."""


class CorruptCheckpointError(InvalidCheckpointPath, ValueError):
    """The bytes are not a checkpoint, or not the ones that were written."""


class IncompleteCheckpointError(CorruptCheckpointError):
    """A file beside the checkpoint, which has a part of its data, is missing."""


class UnsupportedVersionError(CorruptCheckpointError):
    """The file was written by a newer version of the library than this one."""


class CheckpointTooLargeError(CheckpointError, ValueError):
    """The file, or what it holds when it is decompressed, is larger than the ``max_size`` that the caller allowed."""


class MissingLibraryError(CheckpointError, ImportError):
    """A library that the checkpoint needs is not installed."""


class PendingSaveError(CheckpointError, RuntimeError):
    """As many saves as an ``AsyncManager`` allows have not ended."""


class SerializationError(CheckpointError, TypeError, ValueError):
    """A value of the tree cannot be saved; nothing was written."""


class HandlerError(CheckpointError, TypeError, ValueError):
    """A registered handler raised, or returned something that is not a state."""


class RegistrationError(CheckpointError, ValueError, TypeError):
    """A type cannot be registered as asked."""


class PrecisionError(CheckpointError, ValueError):
    """Data would lose precision in the type it has to become."""


class MismatchError(CheckpointError, ValueError):
    """The file and the target do not fit together; nothing was loaded and no object was changed.

    Attributes
    ----------
    mismatches : tuple of Mismatch
        Every difference that was found, in the order of the target.
    """

    def __init__(self, mismatches: Sequence[Mismatch], remedy: str) -> None:
        self.mismatches = tuple(mismatches)
        lines = [mismatch.message for mismatch in self.mismatches]
        if len(lines) > 1:
            head = f"{len(lines)} mismatches between the checkpoint and the target:\n  - "
            text = head + "\n  - ".join(lines) + "\n"
        else:
            text = lines[0] + " "
        super().__init__(text + remedy)
        self._remedy = remedy

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.mismatches, self._remedy)


# A string key may stand bare in a path when it can be taken for nothing else: no separator, no quote, no
# bracket, not a number, not a literal.
_BARE_KEY = re.compile(r"[^\W\d][\w.\-+ ]*(?<! )\Z")
_LITERALS = frozenset({"None", "True", "False", "nan", "inf", "Ellipsis"})


def format_key(key: Any) -> str:
    """Write one step of a path so that different keys of one node are always written differently.

    Parameters
    ----------
    key : object
        A dict key, a sequence index or a field name.

    Returns
    -------
    str
        The key itself for a plain name, else its ``repr``.

    Examples
    --------
    >>> format_key("w"), format_key(0), format_key("0"), format_key("a/b"), format_key((1, "x"))
    ('w', '0', "'0'", "'a/b'", "(1, 'x')")
    """
    if type(key) is str:
        bare = (key.isidentifier() and key.isascii()) or _BARE_KEY.match(key)  # the first is quick, and most are
        return key if bare and key not in _LITERALS else repr(key)
    return written(key)


def written(value: Any) -> str:
    """Write a value as ``repr`` does; ints of more digits than Python writes in decimals are written in hexadecimals.

    Examples
    --------
    >>> written((1, "a"))
    "(1, 'a')"
    >>> len(written([1 << 100_000]))
    25005
    """
    try:
        return repr(value)
    except ValueError:
        return _in_hexadecimals(value)


def _in_hexadecimals(value: Any) -> str:
    if isinstance(value, int):
        return hex(value)
    if type(value) in (list, set):
        left, right = "[]" if type(value) is list else "{}"
        return f"{left}{', '.join(map(written, value))}{right}"
    if type(value) is tuple:
        return f"({', '.join(map(written, value))}{',' * (len(value) == 1)})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{written(key)}: {written(item)}" for key, item in value.items()) + "}"
    return f"<{type(value).__name__} of more digits than Python writes>"


class Steps(tuple[Any, ...]):
    """Several steps of a path that are one key: a ``FlattedDict`` has the way to a leaf as its key."""


def format_path(path: Iterable[Any]) -> str:
    """Write a path as ``layers/0/w``; the root is ``.``.

    Parameters
    ----------
    path : iterable
        The keys from the root to the leaf.

    Returns
    -------
    str
        The keys, joined by ``/``.

    Examples
    --------
    >>> format_path(("layers", 0, "w"))
    'layers/0/w'
    >>> format_path(())
    '.'
    """
    return "/".join(map(format_key, spread(path))) or "."


def spread(path: Iterable[Any]) -> Iterator[Any]:
    """Yield the keys of a path one by one."""
    for key in path:
        if type(key) is Steps:
            yield from key
        else:
            yield key


def unlink(path: LinkedPath) -> Path:
    """Turn a linked path into the tuple of its keys."""
    keys: list[Any] = []
    while path is not None:
        path, key = path
        keys.append(key)
    return tuple(spread(reversed(keys)))


def format_array(dtype: object, shape: Sequence[int]) -> str:
    """Write an array as ``float32[2, 3]``.

    Parameters
    ----------
    dtype : numpy.dtype or str
        The dtype.
    shape : sequence of int
        The shape.

    Returns
    -------
    str
        The two as one word, the way messages, docs and reports write them.

    Examples
    --------
    >>> format_array("float32", (2, 3)), format_array("int8", ())
    ('float32[2, 3]', 'int8[]')
    """
    return f"{dtype}[{', '.join(map(str, shape))}]"
