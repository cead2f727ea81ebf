"""What can differ between a checkpoint and a target, and what is done about it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from ..errors import MismatchError, Path, format_path, written
from ..warn import warn

MismatchMode: TypeAlias = Literal["error", "warn", "ignore"]
MismatchKind: TypeAlias = Literal[
    "missing", "unexpected", "container", "length", "leaf", "shape", "dtype", "unit", "scale"
]

_REMEDY = (
    "Nothing was loaded. Pass mismatch='warn' or mismatch='ignore' to keep the target's values where they do not fit"
)
_NOTHING_TO_KEEP = (
    "Nothing was loaded: where something does not fit, the target holds a jax.ShapeDtypeStruct, which has no value to "
    "keep. Pass a target with arrays there."
)
_REMEDIES: dict[str, str] = {
    "unexpected": ", or partial=True when the target names only a part",
    "scale": ", or units='convert' to convert units of the same dimension",
}


@dataclass(frozen=True)
class Mismatch:
    """One difference between a checkpoint and a target.

    Attributes
    ----------
    kind : str
        ``missing`` and ``unexpected`` (keys), ``container``, ``length``, ``leaf`` (kinds of values), ``shape``,
        ``dtype``, ``unit`` (of another dimension) or ``scale`` (another unit of the same dimension).
    path : tuple
        Where it is: the keys from the root of the target.
    expected, found : str
        What the target asks for and what the checkpoint holds.
    message : str
        The whole sentence.
    keys : tuple
        The keys that are missing or unexpected.
    """

    kind: MismatchKind
    path: Path
    expected: str
    found: str
    message: str
    keys: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return self.message


def check_mode(mode: str) -> None:
    """Refuse a mismatch mode that does not exist."""
    if mode not in get_args(MismatchMode):
        raise ValueError(f"Invalid mismatch mode: {mode!r}. Must be one of 'error', 'warn', or 'ignore'.")


class MismatchReport:
    """Collects mismatches, and ends in one exception, in warnings, or in silence."""

    def __init__(self, mode: MismatchMode) -> None:
        check_mode(mode)
        self.mode = mode
        self.found: list[Mismatch] = []
        #: Something has no value of its own to keep: an error in any mode.
        self.fatal = False

    def add(
        self, kind: MismatchKind, path: Path, text: str, *, expected: str, found: str, keys: tuple[Any, ...] = ()
    ) -> None:
        """Note one mismatch; ``text`` is the sentence up to its path."""
        message = f"{text} at path {format_path(path)}." if path else f"{text} at path . (the root)."
        self.found.append(Mismatch(kind, path, expected, found, message, keys))

    def raise_errors(self) -> None:
        """Raise all that was found in one exception, when mismatches are errors."""
        if self.found and (self.mode == "error" or self.fatal):
            if self.fatal:
                raise MismatchError(self.found, _NOTHING_TO_KEEP)
            kinds = {mismatch.kind for mismatch in self.found}
            remedies = [remedy for kind, remedy in _REMEDIES.items() if kind in kinds]
            raise MismatchError(self.found, "".join([_REMEDY, *remedies, "."]))

    def warn(self) -> None:
        """Give one warning for each mismatch, when that was asked for."""
        if self.mode == "warn":
            for mismatch in self.found:
                warn(mismatch.message)


def format_keys(keys: Collection[Any]) -> str:
    """Write keys as a set, in a stable order."""
    return "{" + ", ".join(sorted(map(written, keys))) + "}"
