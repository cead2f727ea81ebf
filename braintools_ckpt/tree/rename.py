"""Move parts of a document to other paths, before it is loaded into a target.

Only what moves is touched. A value stays whole, with its type, its version and what it shares, wherever all of it goes
to one place; the containers on the way to something that moves alone become plain maps, which containers of every kind
accept.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from ..document import FLATTED_TAGS, ITEMS, Document, Value
from ..errors import format_path, unlink
from .encode import Encoder
from .paths import Texts, join, key_texts, literal_key, parse_path, written_key
from .registry import registry
from .view import View

Rename: TypeAlias = Mapping[str, str] | Callable[[str], str]

_NEW: Any = object()  # the key of a place that the checkpoint did not have
_VACANT: Any = object()
#: How many leaves of objects that were met before a function is asked for; a small file can stand for any number.
_MAX_AGAIN = 100_000


def rename(document: Document, how: Rename) -> Document:
    """Give a document whose leaves stand at other paths.

    Parameters
    ----------
    document : Document
        The document; it is not changed.
    how : mapping or callable
        From a path of the file to a path of the target, both as ``layers/0/w``. A mapping may name a container: then
        all below it moves. A callable is asked for every leaf.

    Returns
    -------
    Document
        The same leaves. What moves as a whole, or does not move, is as it was; containers that lose or gain parts
        are plain maps.

    Raises
    ------
    TypeError
        If ``how`` or a path that it gives is of another type.
    ValueError
        If a path is malformed or not in the file, two leaves end up at one path, the callable fails, or an object
        of a registered class would be taken apart.
    """
    view = View(document)
    moves = _moves(how)
    tree = _Tree(view)
    for piece in _Pieces(view, moves).all():
        tree.put(piece)
    return Document(tree.root.emit(()), document.arrays, document.shared, document.metadata)


# Which path goes where.


class _Moves(NamedTuple):
    new: Callable[[Texts], Texts]
    #: Whether a path below this one may move differently.
    open: Callable[[Texts], bool]
    named: Mapping[Texts, Texts]


def _moves(how: Rename) -> _Moves:
    if isinstance(how, Mapping):
        return _mapped(how)
    if callable(how):
        return _Moves(_called(how), lambda path: True, {})
    raise TypeError(f"rename= must be a mapping of paths or a function of one path, got {type(how).__name__}.")


def _mapped(how: Mapping[str, str]) -> _Moves:
    named: dict[Texts, Texts] = {}
    for old, new in how.items():
        if not isinstance(old, str):
            raise TypeError(f"rename= must name paths as strings, got {old!r}.")
        path = _parsed(old)
        if path in named:
            raise ValueError(f"rename= names the path {join(path)!r} twice. Give it once.")
        named[path] = _parsed(_checked(old, new))
    above = {path[:n] for path in named for n in range(len(path))}

    def new_path(path: Texts) -> Texts:
        for n in range(len(path), -1, -1):
            if path[:n] in named:
                return named[path[:n]] + path[n:]
        return path

    return _Moves(new_path, above.__contains__, named)


def _called(how: Callable[[str], str]) -> Callable[[Texts], Texts]:
    def new_path(path: Texts) -> Texts:
        old = join(path)
        try:
            new = how(old)
        except Exception as error:
            raise ValueError(f"rename= failed for the path {old!r}: {type(error).__name__}: {error}") from error
        return path if _checked(old, new) == old else _parsed(new)

    return new_path


def _checked(old: str, new: Any) -> str:
    if not isinstance(new, str):
        raise TypeError(f"rename= must give paths as strings, got {new!r} for {old!r}.")
    return new


def _parsed(path: str) -> Texts:
    try:
        return parse_path(path)
    except ValueError as error:
        raise ValueError(f"rename= got a path that cannot be read: {error}") from None


# What goes there.


class _Piece(NamedTuple):
    """A value, as it stands in the document, with the path and the encoded keys that it had, and its new path."""

    value: Value
    old: Texts
    codes: tuple[Value, ...]
    new: Texts


class _Pieces:
    """The document in as few pieces as the moves allow."""

    def __init__(self, view: View, moves: _Moves) -> None:
        self._view = view
        self._moves = moves
        self._known: set[Texts] = set()
        self._seen: set[int] = set()
        self._again = 0

    def all(self) -> list[_Piece]:
        """Give the pieces in the order of the tree."""
        pieces = self._of(self._view.document.structure, (), ())
        for path in self._moves.named:
            if path and path not in self._known:
                raise ValueError(
                    f"rename= names the path {join(path)!r}, which the checkpoint does not have.{self._hint(path)}"
                )
        return pieces

    def _of(self, value: Value, path: Texts, codes: tuple[Value, ...]) -> list[_Piece]:
        parts = self._view.parts(value) if self._moves.open(path) else None
        if not parts:
            return [_Piece(value, path, codes, self._moves.new(path))]
        self._count(value, len(parts), path)
        pieces: list[_Piece] = []
        targets: set[Texts | None] = set()
        for (key, part), code in zip(parts, _codes(self._view, value), strict=True):
            own = key_texts(key)
            here = path + own
            if self._moves.named:
                self._known.update(here[:n] for n in range(len(path) + 1, len(here) + 1))
            found = self._of(part, here, codes + code)
            targets.add(_moved_from(path, found, own))
            pieces += found
        target = targets.pop()
        if not targets and target is not None:
            return [_Piece(value, path, codes, target)]
        _keep_whole(self._view, value, path)
        return pieces

    def _count(self, value: Value, parts: int, path: Texts) -> None:
        inner = id(self._view.inner(value))
        self._again += parts if inner in self._seen else 0
        self._seen.add(inner)
        if self._again > _MAX_AGAIN:
            raise ValueError(
                f"rename= got a function, which is asked for every path, and the objects that stand in several places "
                f"of this checkpoint have too many (at path {join(path)!r}). Pass a mapping of paths."
            )

    def _hint(self, path: Texts) -> str:
        known: set[str] = set()
        for leaf in self._view.leaves():
            keys = unlink(leaf.path)
            known.update(format_path(keys[:n]) for n in range(1, len(keys) + 1))
        near = difflib.get_close_matches(join(path), sorted(known), 1)
        return f" Did you mean {near[0]!r}?" if near else ""


def _moved_from(path: Texts, found: list[_Piece], own: Texts) -> Texts | None:
    """Tell where a container goes if one of its parts, whole, is still at the same key of it; else None."""
    piece = found[0]
    if len(found) != 1 or piece.old != path + own or piece.new[-len(own) :] != own:
        return None
    return piece.new[: -len(own)]


def _codes(view: View, value: Value) -> list[tuple[Value, ...]]:
    """Give the keys of a container as a map in its place has them, in the order of its parts."""
    inner = view.inner(value)
    if type(inner) is list and inner[0] == ITEMS and FLATTED_TAGS.isdisjoint(view.tags(value)):
        return [(code,) for code in inner[1::2]]
    return [tuple(map(written_key, key_texts(key))) for key, _ in view.parts(value) or ()]


def _keep_whole(view: View, value: Value, path: Texts) -> None:
    """Refuse to take an object of a registered class apart: its versions and its handler are for all of it."""
    for tag in view.tags(value):
        if tag.startswith("class:"):
            raise ValueError(
                f"rename= would take apart the object of the class {tag.removeprefix('class:')!r} at path "
                f"{join(path)!r}, which only its class can load. Move the object as a whole, or give its class a new "
                "version= with an upgrade= that renames the fields."
            )


# The new tree.


class _Tree:
    """The new structure while pieces are put into it."""

    def __init__(self, view: View) -> None:
        self._view = view
        self.root = _Place(_NEW)

    def put(self, piece: _Piece) -> None:
        """Put a piece at its new path; two containers that meet there become one."""
        place = self.root
        codes = _codes_of(piece)
        for depth, text in enumerate(piece.new):
            place = self._opened(place, piece).setdefault(text, _Place(codes[depth]))
        if place.parts is None and place.value is _VACANT:
            place.value, place.piece = piece.value, piece
            return
        self._opened(place, piece)
        parts = self._view.parts(piece.value)
        if parts is None:
            raise _collision(place, piece)
        _keep_whole(self._view, piece.value, piece.old)
        for (key, part), code in zip(parts, _codes(self._view, piece.value), strict=True):
            own = key_texts(key)
            self.put(_Piece(part, piece.old + own, piece.codes + code, piece.new + own))

    def _opened(self, place: _Place, piece: _Piece) -> dict[str, _Place]:
        """Give the parts of a place, so that a piece can stand among them."""
        if place.parts is None:
            whole, there = place.value, place.piece
            if whole is not _VACANT and self._view.parts(whole) is None:
                raise _collision(place, piece)
            place.parts, place.value = {}, _VACANT
            if there is None:
                place.piece = piece
            else:
                self.put(there)
        return place.parts


class _Place:
    """A place of the new tree: a value as it stands, or parts."""

    def __init__(self, code: Value) -> None:
        self.code = code
        self.value: Value = _VACANT
        self.parts: dict[str, _Place] | None = None
        #: What stands here, or what came first to stand below.
        self.piece: _Piece | None = None

    def emit(self, path: Texts) -> Value:
        """Give the value that stands here."""
        if self.parts is None:
            return {} if self.value is _VACANT else self.value
        parts = {text: part.emit((*path, text)) for text, part in self.parts.items()}
        if any(part.code is not _NEW and type(part.code) is not str for part in self.parts.values()):
            items = [(self.parts[text].key(literal_key(text)), part) for text, part in parts.items()]
            return [ITEMS, *(item for pair in items for item in pair)]
        fields: dict[str, Value] = {}
        for text, part in parts.items():
            key = self.parts[text].key(written_key(text))
            if key in fields:
                raise ValueError(f"rename= puts two parts at the key {key!r} of {join(path)!r}. Give one another path.")
            fields[key] = part
        return fields

    def key(self, new: Any) -> Value:
        """Give the encoded key, which for a place that the checkpoint did not have is a new one."""
        return Encoder(registry).encode(new) if self.code is _NEW else self.code


def _codes_of(piece: _Piece) -> list[Value]:
    """Give the encoded keys of a new path: those that it begins or ends with as the old one stay what they were."""
    codes: list[Value] = [_NEW] * len(piece.new)
    shared = min(len(piece.new), len(piece.old))
    for steps in (range(shared), range(-1, -shared - 1, -1)):
        for step in steps:
            if piece.new[step] != piece.old[step]:
                break
            if codes[step] is _NEW:
                codes[step] = piece.codes[step]
    return codes


def _collision(place: _Place, piece: _Piece) -> ValueError:
    assert place.piece is not None
    one, other = place.piece, piece
    return ValueError(
        f"rename= cannot put {join(other.old)!r} at {join(other.new)!r}, because it puts {join(one.old)!r} at "
        f"{join(one.new)!r}. Give one of them another path."
    )
