"""Compression of one blob: the bytes of its items are transposed, then zstd takes them.

Numbers of one array are alike in some of their bytes (sign and exponent) and differ in others (the end of the
mantissa). Transposed, like stands beside like, in *planes*: all first bytes, then all second ones, and so on.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from ..errors import MissingLibraryError

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

#: Wider items are taken as bytes without order.
MAX_WIDTH = 64
#: What does not shrink by this part is not worth the time: it stays as it is, and can be mapped.
_LEAST_GAIN = 16
#: The most bytes that zstd describes by one table of symbols. A plane deserves one of its own.
_ZSTD_BLOCK = 1 << 17


def load_zstd() -> ModuleType:
    """Give the library, or say how to get it.

    Raises
    ------
    MissingLibraryError
        If it is not installed.
    """
    try:
        import zstandard
    except ImportError as error:
        raise MissingLibraryError(
            "Checkpoints that are compressed with zstd need the library zstandard, which cannot be imported "
            f"({error}). Run: pip install 'braintools-ckpt[zstd]'"
        ) from error
    return zstandard


def item_width(dtype: np.dtype[Any]) -> int:
    """Give the size of the items that arrays of a dtype are made of; 1 for bytes and what is too wide."""
    width = dtype.itemsize
    if dtype.kind == "U":
        width = 4
    elif dtype.kind == "S" or (dtype.type is np.void and dtype.names is None):
        width = 1
    return width if 0 < width <= MAX_WIDTH else 1


def compress(data: Bytes, width: int) -> bytes | None:
    """Give the frame of transposed bytes; None if it would not be worth it.

    Parameters
    ----------
    data : numpy.ndarray
        Bytes, one-dimensional.
    width : int
        Size of an item. Bytes after the last whole item stay at the end.

    Returns
    -------
    bytes or None
        One zstd frame, which says its content's size.
    """
    whole = len(data) // width
    turned = _transposed(data, width) if width > 1 and whole > 1 else data
    planes = [turned[i * whole : (i + 1) * whole] for i in range(width - 1)]
    planes.append(turned[(width - 1) * whole :])
    # Planes of whole zstd blocks need no other boundaries, and one call is the quickest.
    frame = _frame([turned] if whole % _ZSTD_BLOCK == 0 else [plane for plane in planes if len(plane)])
    return frame if len(frame) <= len(data) - max(1, len(data) // _LEAST_GAIN) else None


def _frame(planes: list[Bytes]) -> bytes:
    zstd = load_zstd()
    # Level 1, but with a smaller table of what was met before: in bytes of numbers little is met again, and what
    # seems so costs more than it saves. Quicker, and of numbers never larger.
    parameters = zstd.ZstdCompressionParameters.from_level(1, hash_log=12, write_content_size=True)
    compressor = zstd.ZstdCompressor(compression_params=parameters)
    if len(planes) == 1:
        whole: bytes = compressor.compress(planes[0].data)
        return whole
    stream = compressor.compressobj(size=sum(map(len, planes)))
    parts = []
    for plane in planes:
        parts += [stream.compress(plane.data), stream.flush(zstd.COMPRESSOBJ_FLUSH_BLOCK)]
    return b"".join([*parts, stream.flush()])


def decompress(frame: Bytes, width: int, out: Bytes) -> None:
    """Fill ``out`` with what a frame was made of. Nothing larger than ``out`` is ever allocated.

    Parameters
    ----------
    frame : numpy.ndarray
        Bytes as they stand in the file.
    width : int
        Size of an item.
    out : numpy.ndarray
        Bytes, writable.

    Raises
    ------
    ValueError
        If this is not one whole frame that gives as many bytes.
    MissingLibraryError
        If zstandard is not installed.
    """
    zstd = load_zstd()
    try:
        size = zstd.frame_content_size(frame.data)
        if size != len(out):  # before anything is allocated by it
            raise ValueError(f"its frame says that it holds {size} bytes, expected {len(out)}")
        data = zstd.ZstdDecompressor().decompress(frame.data, allow_extra_data=False)
    except zstd.ZstdError as error:
        raise ValueError(f"zstd: {error}") from error
    if len(data) != len(out):
        raise ValueError(f"its frame holds {len(data)} bytes, expected {len(out)}")
    _restore(np.frombuffer(data, np.uint8), width, out)


def _transposed(data: Bytes, width: int) -> Bytes:
    whole = len(data) // width
    out = np.empty_like(data)
    items = data[: whole * width].reshape(whole, width)
    for i in range(width):
        out[i * whole : (i + 1) * whole] = items[:, i]
    out[whole * width :] = data[whole * width :]
    return out


def _restore(data: Bytes, width: int, out: Bytes) -> None:
    whole = len(data) // width
    items = out[: whole * width].reshape(whole, width)
    for i in range(width):
        items[:, i] = data[i * whole : (i + 1) * whole]
    out[whole * width :] = data[whole * width :]
