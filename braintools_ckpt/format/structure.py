"""The grammar of structures (see ``document.py``), checked once when a file is opened."""

from __future__ import annotations

from ..document import ARRAY, ARRAYS, ITEMS, LEAF, LIST, NAMED_ARRAYS, NODE, REF, Document, Value
from ..errors import CorruptCheckpointError

#: The most levels of a tree, references followed: as many as MessagePack libraries read of one without any.
_MAX_LEVELS = 1024
_STR = {str}


def check_structure(document: Document, name: str) -> None:
    """Check that a structure keeps to the grammar, once, so that nobody after this has to.

    Raises
    ------
    CorruptCheckpointError
        If it does not.
    """
    try:
        _check_tables(document)
    except (ValueError, IndexError, RecursionError) as error:
        raise CorruptCheckpointError(
            f"Corrupt checkpoint {name}: its structure is malformed ({error}). It was not written by braintools_ckpt, "
            "or damaged on purpose."
        ) from error


def _check_tables(document: Document) -> None:
    if type(document.shared) is not list or type(document.metadata) is not dict:
        raise ValueError("shared is not a list, or metadata not a map")
    structure = _Grammar(len(document.arrays.specs))
    for value in document.shared:
        if type(value) is list and value[0] == REF:
            raise ValueError("a shared value that is a reference itself")
        structure.shared.append(structure.levels(value))
    structure.levels(document.structure)
    _Grammar(arrays=-1).levels(document.metadata)  # not even an empty run: these are of the table's arrays


class _Grammar:
    """Checks values, and counts the levels of each: of a reference those of what it stands for."""

    def __init__(self, arrays: int) -> None:
        self.arrays = arrays
        self.shared: list[int] = []  # the levels of the shared values that may be referred to
        self.in_runs = 0

    def levels(self, value: Value) -> int:
        """Check a value: first itself, then all that is one level below, and so on."""
        deepest, depth, level, arrays = 0, 0, [value], self.arrays
        while level:
            below: list[Value] = []
            for item in level:
                kind = type(item)
                if kind is dict:
                    if not set(map(type, item)) <= _STR:
                        raise ValueError("a map with a key that is no str")
                    below += item.values()
                    if depth == deepest:
                        deepest = depth + 1
                elif kind is list:
                    if len(item) == 2 and item[0] is ARRAY and type(item[1]) is int and 0 <= item[1] < arrays:
                        levels = 1  # most leaves of most trees: what `_check_list` says of them, without calling it
                    else:
                        levels = self._check_list(item, below)
                    if depth + levels > deepest:
                        deepest = depth + levels
            if deepest > _MAX_LEVELS:
                raise ValueError(f"it nests deeper than {_MAX_LEVELS} levels")
            depth, level = depth + 1, below
        return deepest

    def _check_list(self, value: list[Value], below: list[Value]) -> int:
        """Check one node by itself, add its parts to those below, and give its levels without them."""
        kind = value[0]
        if type(kind) is not int:
            raise ValueError("a node without a kind")
        if kind == ARRAY:
            if len(value) != 2 or type(value[1]) is not int or not 0 <= value[1] < self.arrays:
                raise ValueError("a reference to an array that does not exist")
        elif kind in (NODE, LEAF):
            _check_node(value)
            below += value[2:]
        elif kind == REF:
            # Only to what comes before: so there are no cycles.
            if len(value) != 2 or type(value[1]) is not int or not 0 <= value[1] < len(self.shared):
                raise ValueError("a reference to a shared value that does not come before it")
            return self.shared[value[1]]
        elif kind in (ARRAYS, NAMED_ARRAYS):
            self._check_run(value)
            return 2
        elif kind == LIST:
            below += value[1:]
        elif kind == ITEMS and len(value) % 2:
            for key in value[1::2]:
                _check_key(key)
            below += value[1:]
        else:
            raise ValueError(f"a node of the kind {kind}")
        return 1

    def _check_run(self, value: list[Value]) -> None:
        first, names = value[1] if len(value) > 1 else None, value[2:]
        if value[0] == ARRAYS:
            count = names[0] if len(names) == 1 else None
        else:
            count = len(names)
            if not set(map(type, names)) <= _STR or len(set(names)) < count:
                raise ValueError("a run of arrays with a key that is no str, or occurs twice")
        if type(first) is not int or type(count) is not int or first < 0 or not 0 <= count <= self.arrays - first:
            raise ValueError("a run of arrays that do not exist")
        self.in_runs += count
        if self.in_runs > self.arrays:  # a few bytes must not stand for any number of leaves
            raise ValueError("runs of arrays that have arrays in common")


def _check_key(value: Value) -> None:
    """Check that a key is whole: it refers to no array and to no shared value."""
    if type(value) is list:
        if value and value[0] in (ARRAY, REF, ARRAYS, NAMED_ARRAYS):
            raise ValueError("a dict key that refers to something else")
        for item in value:
            _check_key(item)
    elif type(value) is dict:
        for item in value.values():
            _check_key(item)


def _check_node(value: list[Value]) -> None:
    if len(value) not in (3, 4) or type(value[1]) is not str:
        raise ValueError("an object without tag and state")
    if len(value) == 4 and type(value[3]) is not dict:
        raise ValueError("an object whose attributes are not a map")
