"""What became of each value in a load into a target, by path: ``report=`` of ``msgpack_load``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..document import LEAF, Document, Value
from ..errors import LinkedPath, Path, unlink
from .paths import Texts, join, key_texts
from .view import View


@dataclass(frozen=True)
class LoadReport:
    """What a load has taken from the file, and what it has left on both sides.

    Attributes
    ----------
    loaded : tuple of str
        The leaves that come from the file.
    kept : tuple of str
        Where the target's own value stays: a leaf, or all below a container. What did not fit stands here and in
        ``ignored``.
    ignored : tuple of str
        What the file has and the load has not taken: a leaf, or all below a container.

    Notes
    -----
    All paths are those of the target, after ``rename=``.

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

    def report(self, document: Document) -> LoadReport:
        """Tell what became of each value, when the load has succeeded."""
        kept, ignored = _texts(self.kept), _texts(self.ignored)
        loaded = (_written(leaf.path) for leaf in View(document).leaves() if not _is_function(leaf.value))
        taken = [path for path in loaded if not any(path[:n] in ignored for n in range(len(path) + 1))]
        return LoadReport(*(tuple(dict.fromkeys(map(join, paths))) for paths in (taken, kept, ignored)))


def _texts(paths: Iterable[Path]) -> dict[Texts, None]:
    return dict.fromkeys(_path_texts(path) for path in paths)


def _written(path: LinkedPath) -> Texts:
    return _path_texts(unlink(path))


def _path_texts(path: Path) -> Texts:
    return tuple(text for key in path for text in key_texts(key))


def _is_function(value: Value) -> bool:
    """Tell whether a leaf stands for a function, which is always the target's."""
    return type(value) is list and value[:2] == [LEAF, "function"]
