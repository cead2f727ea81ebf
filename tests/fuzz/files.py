"""Checkpoints taken apart into what can be changed, and put together again with right checksums."""

from __future__ import annotations

import copy
import struct
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np
import xxhash
from hostile.forge import HEADER, MAGIC

from braintools_ckpt.format import layout


class Map(list):
    """A map as a list of its pairs, which may have a key twice."""


class Ext(list):
    """An ext object: its code, and its data, as an object where it is one."""


def unpack(data):
    """Give a MessagePack object with its maps as pairs."""
    return msgpack.unpackb(
        data,
        object_pairs_hook=lambda pairs: Map(map(list, pairs)),
        ext_hook=lambda code, data: Ext([code, _opened(data)]),
        strict_map_key=False,
    )


def _opened(data):
    try:
        return unpack(data)
    except Exception:
        return data


def pack(value):
    """Write an object that `unpack` gave, however it was changed since."""
    packer = msgpack.Packer(autoreset=False)
    _pack(value, packer)
    return packer.bytes()


def _pack(value, packer):
    if type(value) is Map:
        packer.pack_map_header(len(value))
        for pair in value:
            for part in pair if type(pair) is list and len(pair) == 2 else (pair, None):
                _pack(part, packer)
    elif type(value) is Ext:
        data = value[1] if type(value[1]) is bytes else pack(value[1])
        packer.pack_ext_type(value[0] if type(value[0]) is int and -128 <= value[0] < 128 else 1, data)
    elif isinstance(value, list):
        packer.pack_array_header(len(value))
        for part in value:
            _pack(part, packer)
    else:
        packer.pack(value)


@dataclass
class Parts:
    """A checkpoint: the data of its blobs, and its index; or one object, if it is a file of flax or braintools."""

    index: Any
    blobs: list[bytes] = field(default_factory=list)
    is_legacy: bool = False
    #: Columns that are written as they stand, and not as the blobs make them.
    lies: set[str] = field(default_factory=set)

    def copy(self):
        """Give parts that can be changed."""
        return Parts(copy.deepcopy(self.index), list(self.blobs), self.is_legacy, set(self.lies))


def take_apart(data):
    """Give the parts of a whole checkpoint."""
    if not data.startswith(HEADER):
        return Parts(unpack(data), is_legacy=True)
    offset, length = struct.unpack_from("<QQ", data, len(data) - layout.TRAILER.size + 2)
    index = unpack(data[offset : offset + length])
    table = dict(map(tuple, dict(map(tuple, index))["arrays"]))
    places = np.frombuffer(table["blob_at"], "<u8").tolist()
    sizes = np.frombuffer(table["blob_size"], "<u8").tolist()
    return Parts(index, [data[at : at + size] for at, size in zip(places, sizes, strict=True)])


def put_together(parts):
    """Give a file of these parts, whose places, sizes and checksums are right unless they are meant to lie."""
    if parts.is_legacy:
        return pack(parts.index)
    out, at = bytearray(HEADER), []
    for blob in parts.blobs:
        out += b"\xc0" * (-(len(out) + 5) % 64) + b"\xc6" + struct.pack(">I", len(blob))
        at.append(len(out))
        out += blob
    _fill_in(parts, at)
    return finish(bytes(out), pack(parts.index))


def finish(before, packed):
    """Put an index and its trailer after the blobs."""
    trailer = struct.pack("<QQQ", len(before), len(packed), xxhash.xxh3_64_intdigest(packed))
    return before + packed + b"\xc4\x24" + trailer + MAGIC


def _fill_in(parts, at):
    table = _entry(parts.index, "arrays")
    if type(table) is not Map:
        return
    block = _entry(table, "hash_block")
    block = block if type(block) is int and block > 0 else 1 << 24
    if block < 16:  # one hash a byte takes too long
        block = 1 << 24
    pieces = [blob[i : i + block] for blob in parts.blobs for i in range(0, len(blob), block)]
    right = {
        "blob_at": np.array(at, "<u8").tobytes(),
        "blob_size": np.array([len(blob) for blob in parts.blobs], "<u8").tobytes(),
        "hashes": np.array([xxhash.xxh3_64_intdigest(piece) for piece in pieces], "<u8").tobytes(),
    }
    for pair in table:
        key = pair[0] if type(pair) is list and len(pair) == 2 else None
        if type(key) is str and key in right and key not in parts.lies:
            pair[1] = right[key]


def _entry(index, key):
    pairs = (pair for pair in index if type(pair) is list and len(pair) == 2) if type(index) is Map else ()
    return next((pair[1] for pair in pairs if pair[0] == key), None)
