"""What a file may ask for: values that are small in a file, and that take time with the square of their size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

_MOST_OF_ONE_HASH = 1000
_MOST_BITS = 1 << 14


def hashed(keys: Iterable[Any]) -> list[Any]:
    """Give the keys of a dict, or the elements of a set, if their hashes are not those of an attack.

    Numbers of equal hash are easily found, and a dict compares each key with all others of its hash.

    Raises
    ------
    ValueError
        If many of them have one hash, which chance does not bring about.
    TypeError
        If one of them has none.

    Examples
    --------
    >>> hashed(["a", 1])
    ['a', 1]
    """
    keys = list(keys)
    if len(keys) > _MOST_OF_ONE_HASH:
        count = Counter(map(hash, keys)).most_common(1)[0][1]
        if count > _MOST_OF_ONE_HASH:
            raise ValueError(f"{count} keys have the same hash, and at most {_MOST_OF_ONE_HASH} are read")
    return keys


def short(number: int) -> int:
    """Give an int of which a fraction is made, or a seed of random numbers, if it is not giant.

    Raises
    ------
    ValueError
        If it has more than 2^14 bits, which are about as many digits as Python reads and writes.

    Examples
    --------
    >>> short(-5)
    -5
    """
    if number.bit_length() > _MOST_BITS:
        raise ValueError(f"an int of {number.bit_length()} bits stands where at most {_MOST_BITS} are read")
    return number
