"""The byte layout of a checkpoint file, drawn once. ``docs/format.md`` is the specification.

A file is a plain sequence of MessagePack objects::

    HEADER    bin8    MAGIC, and the format version (uint32, little-endian)
    PAD*      nil     as many as bring the next blob's data to a multiple of ALIGNMENT (PAGE, if it is large)
    BLOB      bin32   raw bytes: an array, a piece of a large one, or a pack of small ones
    ...
    INDEX     map     format, library, metadata, features (if there are any), external, arrays, shared, structure
    TRAILER   bin8    offset, length and xxh3 of INDEX (uint64 each, little-endian), and MAGIC again

Arrays are little-endian and in C order. Their table is kept in columns:

    specs       [[kind, dtype, shape], ...]   each distinct one once
    spec        bin   uint32 for each array: its place in `specs`
    offset      bin   uint64 for each array: where its bytes begin in the concatenation of all blobs' data
    blob_at     bin   uint64 for each blob: where its data begins in the file
    blob_size   bin   uint64 for each blob: how many bytes it has
    hashes      bin   uint64 for each HASH_BLOCK (or rest) of each blob, in order: xxh3 of its bytes

An array's bytes are contiguous in the concatenation of the blobs; one that is larger than MAX_BLOB spans several blobs.

A file with the feature ZSTD has two columns more. Its concatenation is that of what the blobs stand for::

    raw_size    bin   uint64 for each blob: how many bytes its data stands for
    width       bin   uint8 for each blob: 0 for raw bytes; else the data is one zstd frame of items of `width` bytes,
                      transposed: the first bytes of all items, then all second ones, and so on, and what is left over

In a file with the feature EXTERNAL, bytes of blobs may stand in other files of the same directory::

    external    [[name, ranges], ...]   ranges: bin, three uint64 each: where the bytes begin in this file, how many
                                        they are, where they begin in the other one
"""

from __future__ import annotations

import struct

#: Line endings and an end-of-file mark are part of it, so that a transfer in text mode shows.
MAGIC = b"\x89BTCKPT\r\n\x1a\n\x00"
VERSION = 1
HEADER = b"\xc4\x10" + MAGIC + struct.pack("<I", VERSION)
HEADER_SIZE = len(HEADER)

TRAILER = struct.Struct(f"<2sQQQ{len(MAGIC)}s")
TRAILER_HEAD = bytes([0xC4, TRAILER.size - 2])

#: Data of a blob begins at a multiple of this, so that a mapped file can be used in place.
ALIGNMENT = 64
#: Data of a blob of at least PAGED_FROM bytes begins at a multiple of this, so that file systems can share it.
PAGE = 4096
PAGED_FROM = 1 << 20
BLOB_HEAD = struct.Struct(">BI")
BIN32 = 0xC6
NIL = b"\xc0"
#: The largest multiple of ALIGNMENT that a MessagePack bin holds.
MAX_BLOB = (1 << 32) - ALIGNMENT
#: Blobs are hashed in blocks of this size, so that parts can be checked, and several at a time.
HASH_BLOCK = 1 << 24

#: Smaller arrays share a blob; larger ones have their own.
PACKED_BELOW = 1 << 16
#: A pack is closed when it has this many bytes: keeping one small leaf alive keeps no more than that.
PACK_SIZE = 1 << 20
#: Arrays in a pack begin at multiples of this (or of their item size, if that is a smaller power of two).
PACK_ALIGNMENT = 16

#: The feature of files that have compressed blobs.
ZSTD = "zstd"
#: The feature of files that have data in files beside them.
EXTERNAL = "external"
FEATURES = frozenset({ZSTD, EXTERNAL})
#: There are at most so many files beside one: each is held open.
MAX_EXTERNAL = 64
#: An array is compressed in blobs that stand for this many bytes, so that several threads can share the work, and
#: parts can be read alone.
FRAME_SIZE = 1 << 20
#: No compressed blob stands for more bytes: it is taken from the file as a whole.
MAX_FRAME = 1 << 22
