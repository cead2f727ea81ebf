"""Parts of which checkpoints are forged: with right checksums, which an attacker computes as well as anybody."""

from __future__ import annotations

import struct

import msgpack
import numpy as np
import xxhash

MAGIC = b"\x89BTCKPT\r\n\x1a\n\x00"
HEADER = b"\xc4\x10" + MAGIC + b"\x01\x00\x00\x00"
LIST, ARRAY, ITEMS, NODE, LEAF, REF, ARRAYS, NAMED_ARRAYS = range(8)


def column(numbers, dtype="<u8"):
    return np.array(list(numbers), dtype=dtype).tobytes()


def forge(structure=None, arrays=(), blobs=None, *, table=None, raw=None, text=None, instead=b"", **index):
    """Make a file with any index: its checksums are right, whatever it says.

    ``arrays`` are (kind, dtype, shape, bytes); ``table`` and ``index`` replace parts of the table and of the index,
    and ``raw`` the whole index. Where the index has ``text``, it gets the bytes ``instead``.
    """
    data = b"".join(array[3] for array in arrays)
    blobs = ([data] if data else []) if blobs is None else blobs
    out, at = bytearray(HEADER), []
    for blob in blobs:
        out += b"\xc0" * (-(len(out) + 5) % 64) + b"\xc6" + struct.pack(">I", len(blob))
        at.append(len(out))
        out += blob
    offsets = np.cumsum([0, *(len(array[3]) for array in arrays)])[:-1]
    made = {
        "specs": [list(array[:3]) for array in arrays],
        "spec": column(range(len(arrays)), "<u4"),
        "offset": column(offsets),
        "blob_at": column(at),
        "blob_size": column(map(len, blobs)),
        "hashes": column(xxhash.xxh3_64_intdigest(blob) for blob in blobs),
        "hash_block": 1 << 24,
    }
    whole = {
        "format": 1,
        "library": "forged",
        "metadata": {},
        "arrays": {**made, **(table or {})},
        "shared": [],
        "structure": structure,
        **index,
    }
    packed = msgpack.packb(whole) if raw is None else raw
    if text is not None:
        packed = packed.replace(msgpack.packb(text), instead)
    trailer = struct.pack("<QQQ", len(out), len(packed), xxhash.xxh3_64_intdigest(packed))
    return bytes(out + packed + b"\xc4\x24" + trailer + MAGIC)


def nested(depth, leaf=1, wrap=lambda x: [LIST, x]):
    for _ in range(depth):
        leaf = wrap(leaf)
    return leaf


def deep(depth):
    return nested(depth, 1, lambda x: [x])


def leaf(tag, state, **attributes):
    return [LEAF, tag, state, attributes] if attributes else [LEAF, tag, state]


def node(tag, state, **attributes):
    return [NODE, tag, state, attributes] if attributes else [NODE, tag, state]


BYTE = ("numpy", "uint8", [1], b"a")
