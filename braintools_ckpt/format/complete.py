"""Whether MessagePack data is all there, found out before anything is made of it."""

from __future__ import annotations

import msgpack

#: Of more data than this the unpacker's own lists, which it makes for what is only claimed, are the smaller part.
_LARGE = 1 << 26


def check_complete(data: bytes | memoryview) -> None:
    """Refuse data whose lists and maps claim more items than follow: each would be made in the size that it claims.

    Raises
    ------
    ValueError
        If something is missing.
    msgpack.UnpackException
        If it is no MessagePack, or nests too deep.

    Examples
    --------
    >>> check_complete(msgpack.packb([1, [2, 3]]))
    >>> check_complete(bytes([0xDD, 0, 0, 255, 255]))
    Traceback (most recent call last):
        ...
    ValueError: incomplete input
    """
    size = len(data)
    if size > _LARGE:
        return
    unpacker = msgpack.Unpacker(max_buffer_size=max(1, size))  # by which all other limits go
    unpacker.feed(data)
    try:
        unpacker.skip()
    except msgpack.OutOfData:
        raise ValueError("incomplete input") from None
