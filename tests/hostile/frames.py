"""Compressed blobs that are not what the table says."""

from __future__ import annotations

import numpy as np
import zstandard

from .forge import ARRAY, LIST, column, forge

MIB = 1 << 20
ZEROS = bytes(4096)
COMPRESS = zstandard.ZstdCompressor(level=1)
FRAME = COMPRESS.compress(ZEROS)
A = ("numpy", "uint8", [4096], ZEROS)


def compressed(blobs=(FRAME,), raw_size=(4096,), width=(1,), arrays=(A,), **more):
    columns = {"raw_size": column(raw_size), "width": bytes(width)}
    structure = [LIST, *([ARRAY, i] for i in range(len(arrays)))]
    return forge(structure, arrays, list(blobs), table={**columns, **more}, features=["zstd"])


def streamed(data, **parameters):
    """Compress without saying how large the content is."""
    stream = zstandard.ZstdCompressor(write_content_size=False, **parameters).compressobj()
    return stream.compress(data) + stream.flush()


def lying(size):
    """A frame of 4096 zeros which says that it has another size: the last bytes of its header are the size."""
    header = zstandard.frame_header_size(FRAME)
    assert FRAME[4] == 0x60  # a single segment, whose size has two bytes that count from 256
    assert int.from_bytes(FRAME[5:7], "little") == 4096 - 256
    eight = b"\xe0" + size.to_bytes(8, "little")  # the same with a size of eight bytes
    return FRAME[:4] + eight + FRAME[header:]


BOMB = COMPRESS.compress(bytes(16 * MIB))
#: Tables of blobs that cannot be.
BLOBS = {
    "raw size missing": lambda: forge([ARRAY, 0], [A], [FRAME], table={"width": b"\1"}, features=["zstd"]),
    "width missing": lambda: forge([ARRAY, 0], [A], [FRAME], table={"raw_size": column([4096])}, features=["zstd"]),
    "raw size is no bytes": lambda: forge([ARRAY, 0], [A], table={"raw_size": [4096], "width": b""}, features=["zstd"]),
    "one raw size too many": lambda: compressed(raw_size=(4096, 4096)),
    "one width too few": lambda: compressed(width=()),
    "raw size too small": lambda: compressed(raw_size=(4095,)),
    "raw size of nothing": lambda: compressed(raw_size=(0,)),
    "raw size of the frame": lambda: compressed(raw_size=(len(FRAME),)),
    "raw size too large": lambda: compressed(raw_size=((1 << 22) + 1,)),
    "raw size that wraps around": lambda: compressed(raw_size=(2**64 - 1,)),
    "raw sizes that add up to another number": lambda: compressed([FRAME, FRAME], (2**63, 2**63 + 4096), (1, 1)),
    "a raw blob with another size": lambda: compressed([ZEROS], (8192,), (0,)),
    "no feature": lambda: forge([ARRAY, 0], [A], [FRAME], table={"raw_size": column([4096]), "width": b"\1"}),
    "features are no list": lambda: forge([ARRAY, 0], [A], features="zstd"),
    "features are no text": lambda: forge([ARRAY, 0], [A], features=[1]),
    "features are lists": lambda: forge([ARRAY, 0], [A], features=[["zstd"]]),
    "bytes of no array": lambda: compressed([BOMB] * 2, (16 * MIB, 16 * MIB), (1, 1)),
    "many bytes of no array": lambda: compressed([BOMB] * 500, (16 * MIB,) * 500, (1,) * 500),
    "a large array of few bytes": lambda: compressed(arrays=[("numpy", "uint8", [2**40], ZEROS)]),
}
#: What is no frame of 4096 bytes.
FRAMES = {
    "no frame": b"abc",
    "a skippable frame": b"\x50\x2a\x4d\x18\x02\x00\x00\x00ab",
    "of another size": COMPRESS.compress(bytes(4095)),
    "of another larger size": COMPRESS.compress(bytes(4097)),
    "a bomb": BOMB,
    "that says another size": lying(4097),
    "that says a smaller size": lying(4095),
    "that says a giant size": lying(2**62),
    "that says a negative size": lying(2**64 - 1),
    "that says no size": streamed(ZEROS),
    "that is a bomb and says no size": streamed(bytes(64 * MIB)),
    "cut short": FRAME[:-1],
    "cut short in its header": FRAME[:5],
    "with a byte after it": FRAME + b"\0",
    "twice": FRAME * 2,
    "of two that make the size": COMPRESS.compress(bytes(2048)) * 2,
    "and nothing": FRAME + COMPRESS.compress(b""),
    "with a dictionary": zstandard.ZstdCompressor(
        dict_data=zstandard.ZstdCompressionDict(b"\x37\xa4\x30\xec" + bytes(100), zstandard.DICT_TYPE_RAWCONTENT)
    ).compress(np.random.default_rng(0).bytes(4096))[:90],
    "with reserved bits": FRAME[:4] + bytes([FRAME[4] | 8]) + FRAME[5:],
    "with a wrong checksum": zstandard.ZstdCompressor(write_checksum=True).compress(ZEROS)[:-1] + b"\0",
}
