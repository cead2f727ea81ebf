"""What became of each value in a load into a target, by path: ``report=`` of ``msgpack_load``."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..document import LEAF, Document
from ..errors import Path, unlink
from .paths import Texts, join, key_texts
from .view import View


@dataclass(frozen=True)
class LoadReport:
    """What a load has taken from the file, and what it has left on both sides.

    Attributes
    ----------
    loaded : tuple of str
        The leaves that come from the file. Those inside of an object with a handler of its own are the file's.
    kept : tuple of str
        Where the target's own value stays: a leaf, or all below a container. What did not fit stands here and in
        ``ignored``.
    ignored : tuple of str
        What the file has and the load has not taken: a leaf, or all below a container.

    Notes
    -----
    All paths are those of the target, after ``rename=`` and upgrades.

    Examples
    --------
    >>> from braintools_ckpt import msgpack_dumps, msgpack_loads
    >>> data = msgpack_dumps({"trunk": [1, 2], "head": 3})
    >>> tree = msgpack_loads(data, {"trunk": [0, 0], "new": 0}, mismatch="ignore", report=print)
    loaded 2
      trunk/0
      trunk/1
    kept 1
      new
    ignored 1
      head
    """

    loaded: tuple[str, ...]
    kept: tuple[str, ...]
    ignored: tuple[str, ...]

    def __str__(self) -> str:
        lines = []
        for name in ("loaded", "kept", "ignored"):
            paths = getattr(self, name)
            lines += [f"{name} {len(paths)}", *(f"  {path}" for path in paths)]
        return "\n".join(lines)


@dataclass
class Leftovers:
    """What a plan takes nothing for, noted while it is made: places of the target, and of the file."""

    kept: list[Path] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)
    #: Parts of the file that were upgraded, and what is loaded in their place.
    replaced: dict[Path, Document] = field(default_factory=dict)
    #: Cells that have a value of the file, and cells that the file lacks in some place.
    filled: set[int] = field(default_factory=set)
    lacking: dict[Path, int] = field(default_factory=dict)

    #: Lists of the target, whose elements a file may have under text, and its other keys that a file has otherwise.
    lists: list[Path] = field(default_factory=list)
    keys: list[tuple[Path, Any, Any]] = field(default_factory=list)

    def report(self, document: Document) -> LoadReport:
        """Tell what became of each value, when the load has succeeded."""
        kept = _places(path for path in self.kept if self.lacking.get(path) not in self.filled)
        ignored, replaced = _places(self.ignored), _places(self.replaced)
        above_kept = {path[:n] for path in kept for n in range(len(path) + 1)}
        names = _Names(self)
        leaves = [leaf for leaf in _leaves(document, names, ()) if not _is_below(leaf[0], replaced)]
        for path, part in self.replaced.items():
            at = _texts(path)
            leaves += (leaf for leaf in _leaves(part, names, at) if not _is_below(leaf[0], replaced, len(at) + 1))
        taken = [
            path for path, is_empty in leaves if not _is_below(path, ignored) and not (is_empty and path in above_kept)
        ]
        return LoadReport(*(tuple(dict.fromkeys(map(join, paths))) for paths in (taken, kept, ignored)))


class _Names:
    """How paths of the file are written in the target."""

    def __init__(self, leftovers: Leftovers) -> None:
        self._lists = _places(leftovers.lists)
        self._keys = {(*_texts(path), *key_texts(old)): key_texts(new) for path, old, new in leftovers.keys}

    def of(self, at: Texts, path: Path) -> Texts:
        for key in path:
            own = key_texts(key)
            if at in self._lists:
                own = (own[0].strip("'"),)
            at += self._keys.get(at + own, own)
        return at


def _leaves(document: Document, names: _Names, at: Texts) -> Iterator[tuple[Texts, bool]]:
    """Give the path of each leaf, and whether it is an empty container; functions are always the target's."""
    view = View(document)
    for leaf in view.leaves():
        if not (type(leaf.value) is list and leaf.value[:2] == [LEAF, "function"]):
            yield names.of(at, unlink(leaf.path)), not leaf.again and view.parts(leaf.value) == []


def _places(paths: Iterable[Path]) -> dict[Texts, None]:
    return dict.fromkeys(map(_texts, paths))


def _is_below(path: Texts, places: Collection[Texts], least: int = 0) -> bool:
    """Tell whether a path begins with one of these, of at least so many steps."""
    return bool(places) and any(path[:n] in places for n in range(least, len(path) + 1))


def _texts(path: Path) -> Texts:
    return tuple(text for key in path for text in key_texts(key))
