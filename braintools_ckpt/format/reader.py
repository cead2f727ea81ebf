"""From bytes to a Document whose arrays stay in the file until they are asked for.

Every number that a file gives is checked against the file's size before anything is allocated or read by it.
"""

from __future__ import annotations

import itertools
import math
import reprlib
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import msgpack
import numpy as np
import xxhash

from ..document import ArraySpec, Document
from ..dtypes import MAX_NDIM, check_growth, check_size, check_text, fits_jax, parse, storage_dtype
from ..errors import CheckpointError, CorruptCheckpointError, UnsupportedVersionError
from ..storage.sources import Source
from ..threads import do_all
from ..walking import walking
from . import layout
from .blob_reader import BlobReader, column
from .blob_reader import corrupt as _corrupt
from .complete import check_complete
from .external import files_and_ranges, open_external
from .pipeline import processors
from .structure import check_structure

Array = np.ndarray[Any, Any]
#: Gives a view of so many bytes of a mapped file, from an offset on.
_Views: TypeAlias = Callable[[int, int], memoryview]
_KINDS = ("numpy", "jax", "jax_weak")
_READERS = 4


def is_checkpoint(source: Source) -> bool:
    """Tell by the first bytes whether this is a file of our own format (of any version)."""
    return source.size >= layout.HEADER_SIZE and source.read(0, 14) == layout.HEADER[:14]


def refuse_damaged(source: Source) -> None:
    """Name what happened to a file of ours that is not recognised any more.

    Raises
    ------
    CorruptCheckpointError
        If the file is empty, or begins like a damaged header.
    """
    head = source.read(0, min(source.size, layout.HEADER_SIZE))
    if not head:
        raise CorruptCheckpointError(f"Invalid checkpoint at {source.name}: the file is empty.")
    if layout.HEADER.startswith(head):
        raise _corrupt(source, f"it is cut short after {source.size} bytes")
    for old, new in ((b"\r\n", b"\n"), (b"\n", b"\r\n")):
        if head[2:].startswith(layout.MAGIC.replace(old, new)):
            raise _corrupt(source, "its line endings were changed, as a transfer in text mode does")
    if head[2:9] == layout.MAGIC[:7]:
        raise _corrupt(source, "its header is damaged")


def read(source: Source, *, verify: bool = True, mmap: bool = False, parallel: bool = True) -> Document:
    """Read the index of a file.

    Parameters
    ----------
    source : Source
        The file.
    verify : bool
        Check the bytes of arrays against their checksums whenever they are read.
    mmap : bool
        Give arrays that are views of a copy-on-write mapping; their bytes are then read on first use, unchecked.
    parallel : bool
        Read large arrays with several threads.

    Returns
    -------
    Document
        With lazy arrays; the source must stay open while they are used.

    Raises
    ------
    CorruptCheckpointError
        If this is not a checkpoint, or not as it was written.
    UnsupportedVersionError
        If a newer version of the library wrote it.
    ReplacedError
        If it was deleted or replaced before the files beside it could be opened.
    """
    with walking():
        return _read_document(source, verify, mmap, parallel)


def _read_document(source: Source, verify: bool, mmap: bool, parallel: bool) -> Document:
    index = read_index(source)
    try:
        _check_heading(index)
        blobs = _blobs(source, index, verify)
        arrays = StoredArrays(blobs, index["arrays"], mmap=mmap, parallel=parallel)
        document = Document(index["structure"], arrays, index["shared"], index["metadata"])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise _malformed(source, error) from error
    check_structure(document, source.name)
    return document


def _blobs(source: Source, index: dict[str, Any], verify: bool) -> BlobReader:
    features = _features(source, index)
    compressed = layout.ZSTD in features
    end = index_span(source)[0]
    if layout.EXTERNAL in features:
        source = open_external(source, index["external"], index["arrays"])
    return BlobReader(source, index["arrays"], end, compressed=compressed, verify=verify)


def read_blobs(source: Source) -> BlobReader:
    """Read where the blobs of a checkpoint are, and nothing else."""
    try:
        return _blobs(source, read_index(source), verify=True)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise _malformed(source, error) from error


def external_names(source: Source) -> list[str]:
    """Read the names of the files beside a checkpoint that have a part of its data, whether they are there or not."""
    index = read_index(source)
    try:
        features = index.get("features", [])  # others may be unknown
        return list(files_and_ranges(index["external"])) if layout.EXTERNAL in features else []
    except (KeyError, TypeError, ValueError) as error:
        raise _malformed(source, error) from error


def _malformed(source: Source, error: Exception) -> CorruptCheckpointError:
    return _corrupt(source, f"its index is malformed ({type(error).__name__}: {error})")


def index_span(source: Source) -> tuple[int, int, int]:
    """Give offset, length and hash of the index, from the trailer."""
    head = source.read(0, layout.HEADER_SIZE)
    if head[: len(layout.HEADER) - 4] != layout.HEADER[:-4]:
        raise _corrupt(source, "its first bytes are not those of a checkpoint")
    version = int.from_bytes(head[-4:], "little")
    if not version:
        raise _corrupt(source, "its format version is 0, which there is not")
    if version != layout.VERSION:
        raise UnsupportedVersionError(
            f"The checkpoint {source.name} has format version {version}, and this version of braintools_ckpt reads "
            f"version {layout.VERSION}. Run: pip install --upgrade braintools-ckpt"
        )
    at = source.size - layout.TRAILER.size
    if at < layout.HEADER_SIZE:
        raise _corrupt(source, f"it has only {source.size} bytes")
    kind, offset, length, digest, magic = layout.TRAILER.unpack(source.read(at, layout.TRAILER.size))
    if kind != layout.TRAILER_HEAD or magic != layout.MAGIC:
        raise _corrupt(source, "its last bytes are not those of a checkpoint")
    if offset < layout.HEADER_SIZE or offset + length != at:
        raise _corrupt(source, "its trailer points outside of it")
    return offset, length, digest


def read_index(source: Source) -> dict[str, Any]:
    """Read the index as it stands in the file; only its checksum has been checked."""
    offset, size, digest = index_span(source)
    data = source.read(offset, size)
    if xxhash.xxh3_64_intdigest(data) != digest:
        raise _corrupt(source, "the checksum of its index does not match")
    try:
        check_complete(data)
        index = msgpack.unpackb(
            data,
            strict_map_key=True,
            max_str_len=size,
            max_bin_len=size,
            max_array_len=size,
            max_map_len=size,
            max_ext_len=0,
            object_pairs_hook=_unique,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise _corrupt(source, f"its index cannot be unpacked ({type(error).__name__}: {error})") from error
    if type(index) is not dict:
        raise _corrupt(source, "its index is not a map")
    return index


def _check_heading(index: dict[str, Any]) -> None:
    if type(index["format"]) is not int or index["format"] != layout.VERSION:
        raise ValueError(f"its format is {index['format']!r}, and that of the header is {layout.VERSION}")
    if type(index["library"]) is not str:
        raise TypeError("its library is not a str")


def _features(source: Source, index: dict[str, Any]) -> list[str]:
    features = index.get("features", [])
    if type(features) is not list or not all(type(feature) is str for feature in features):
        raise TypeError("its features are not a list of str")
    if unknown := sorted(set(features) - layout.FEATURES):
        raise UnsupportedVersionError(
            f"The checkpoint {source.name} uses {' and '.join(map(reprlib.repr, unknown[:3]))}, which this version of "
            "braintools_ckpt does not know. Run: pip install --upgrade braintools-ckpt"
        )
    return features


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key occurs twice in one map")
    return made


class StoredArrays:
    """The array table of a file."""

    def __init__(self, blobs: BlobReader, table: dict[str, Any], *, mmap: bool, parallel: bool) -> None:
        self._blobs = blobs
        self._mmap = mmap
        self._mapping: _Views | None = None
        self._taken = np.zeros(0, np.bool_)  # by index: whether an array was taken from this mapping
        self._lock = threading.Lock()
        self._parallel = parallel
        if type(table["specs"]) is not list:
            raise TypeError("specs is not a list")
        self._distinct = [_spec(*row) for row in table["specs"]]
        self._spec_of = column(table["spec"], "<u4")
        self.specs: Sequence[ArraySpec] = list(map(self._distinct.__getitem__, self._spec_of.tolist()))
        counts = np.bincount(self._spec_of, minlength=len(self._distinct)).tolist()
        self._in_memory: int = sum(spec.nbytes * count for spec, count in zip(self._distinct, counts, strict=True))
        stored = np.array([s.size * storage_dtype(s.dtype).itemsize for s in self._distinct], np.uint64)
        self._sizes = stored[self._spec_of]
        self._offsets = column(table["offset"], "<u8")
        self._check_arrays(blobs.starts[-1])
        self.name_by(lambda index: f"array {index} of the file")

    def _check_arrays(self, total: int) -> None:
        """Check that arrays lie inside the blobs, and claim no byte twice."""
        if len(self._offsets) != len(self.specs):
            raise ValueError("the columns of the array table differ in length")
        if np.any(self._offsets > total) or np.any(self._sizes > total - self._offsets):
            raise ValueError("an array lies outside of the blobs")
        used = np.flatnonzero(self._sizes)
        in_order = used[np.argsort(self._offsets[used], kind="stable")]
        starts, ends = self._offsets[in_order], (self._offsets + self._sizes)[in_order]
        if np.any(starts[1:] < ends[:-1]):
            raise ValueError("arrays share bytes")
        check_growth(self._in_memory, int(self._sizes.sum()))
        # Raw bytes that belong to no array are there, in the file. Compressed ones could be any number.
        unused = total - int(self._sizes.sum())
        if self._blobs.any_compressed and unused > layout.ALIGNMENT * len(self.specs):
            raise ValueError("the blobs stand for far more bytes than the arrays have")

    @property
    def nbytes(self) -> int:
        """Bytes of all data, decompressed, or of all arrays in memory: whichever is more."""
        return max(self._blobs.starts[-1], self._in_memory)

    # Reading.

    def read(self, indices: Sequence[int]) -> list[Array]:
        """Give writable arrays: fresh memory, or views of the mapping."""
        plan = _ReadPlan(self, indices)
        if self._mmap:
            plan.mapped = self._unused_mapping(indices)
        plan.fetch()
        return plan.arrays()

    def _unused_mapping(self, indices: Sequence[int]) -> _Views:
        """Give a mapping that none of these arrays was taken from yet: no two results may share memory.

        Different arrays share no bytes, so one mapping serves all of them once.
        """
        with self._lock:
            if self._mapping is None or self._taken[indices].any():
                self._mapping, self._taken = self._blobs.source.mapped(), np.zeros(len(self.specs), np.bool_)
            self._taken[indices] = True
            return self._mapping

    def read_part(self, index: int, selection: Any) -> Array:
        """Give ``array[selection]``; of a large array, only the rows from the first to the last that are asked for."""
        spec = self.specs[index]
        offset = int(self._offsets[index])
        mapped = self._mmap and not self._blobs.compressed_span(offset, int(self._sizes[index]))
        rows = _row_range(selection, spec) if not mapped and spec.dtype == storage_dtype(spec.dtype) else None
        if rows is None:
            return np.asarray(self.read([index])[0][selection])
        start, stop, rest = rows
        stride = spec.nbytes // spec.shape[0]
        data = _aligned(stride * (stop - start))
        self._blobs.read_span(offset + start * stride, data.data)
        part = data.view(spec.dtype).reshape(stop - start, *spec.shape[1:])
        self._check_text(part)
        return np.asarray(part[rest])

    def _check_text(self, array: Array) -> None:
        """Refuse text that is none, whatever the checksums say: numpy does not survive it."""
        try:
            check_text(array)
        except ValueError as error:
            raise _corrupt(self._blobs.source, f"it holds {error}") from error

    def name_by(self, locate: Callable[[int], str]) -> None:
        """Let messages name arrays by what ``locate`` gives for their numbers."""
        # Of the two columns and not of this object, which would then be part of a reference cycle.
        self._blobs.whose = partial(_whose, self._offsets, self._sizes, locate)

    def verify(self) -> None:
        """Check every byte of every blob.

        Raises
        ------
        CorruptCheckpointError
            At the first block that is not as it was written.
        """
        self._blobs.verify()


def _whose(offsets: Array, sizes: Array, locate: Callable[[int], str], low: int, high: int) -> str:
    """Say which arrays have bytes in a range of the concatenation."""
    held = np.flatnonzero((offsets < high) & (offsets + sizes > low) & (sizes > 0))
    names = [locate(int(index)) for index in held[:3]]
    return f" ({', '.join(names)}{f' and {len(held) - 3} more' if len(held) > 3 else ''})"


class _ReadPlan:
    """The blobs that some arrays lie in, read once each: a large array into its own memory, a pack as a whole."""

    def __init__(self, table: StoredArrays, indices: Sequence[int]) -> None:
        self._table = table
        self.mapped: _Views | None = None
        self._memory: dict[int, Array] = {}  # first blob of a span -> its bytes
        self._views: dict[tuple[int, int], Array | None] = {}
        at = np.asarray(indices, np.int64)
        self._blobs = table._blobs
        starts = np.asarray(self._blobs.starts, np.uint64)
        self._offsets, self._sizes, self._specs = table._offsets[at], table._sizes[at], table._spec_of[at]
        first = np.searchsorted(starts, self._offsets, "right") - 1
        last = np.searchsorted(starts, self._offsets + np.maximum(self._sizes, 1) - 1, "right") - 1
        used = self._sizes > 0
        self._spans = _joined(first[used], last[used])
        #: The span that each array lies in.
        self._span = np.searchsorted(np.array([low for low, _ in self._spans]), first, "right") - 1

    def fetch(self) -> None:
        """Read every span that cannot be mapped, with several threads when it is large."""
        jobs: list[_Job] = []
        compressed = False
        for first, last in self._spans:
            if self._blobs.compressed(first, last):
                compressed = True
            elif self.mapped is not None:
                continue
            self._allocate(first, last, jobs)
        total = sum(memory.nbytes for memory in self._memory.values())
        if not self._table._parallel or total < 2 * (layout.FRAME_SIZE if compressed else self._blobs.hash_block):
            for job in jobs:
                job()
            return
        do_all(jobs, max(_READERS, processors()) if compressed else _READERS)

    def _allocate(self, first: int, last: int, jobs: list[_Job]) -> None:
        blobs = self._blobs
        memory = self._memory[first] = _aligned(blobs.starts[last + 1] - blobs.starts[first])
        for blob in range(first, last + 1):
            base = blobs.starts[blob] - blobs.starts[first]
            for block, start in enumerate(range(0, blobs.raw_size[blob], blobs.block_size(blob))):
                stop = min(start + blobs.block_size(blob), blobs.raw_size[blob])
                jobs.append(_Job(blobs, blob, block, memory.data[base + start : base + stop]))

    def arrays(self) -> list[Array]:
        """Give the arrays, as views of what was read; equal ones that lie in a row are cut from one view."""
        count = len(self._sizes)
        if not count:
            return []
        follows = self._offsets[1:] == self._offsets[:-1] + self._sizes[:-1]
        alike = self._specs[1:] == self._specs[:-1]
        alike &= self._span[1:] == self._span[:-1]
        cuts = [0, *(np.flatnonzero(~(follows & alike)) + 1).tolist(), count]
        columns = (self._specs, self._sizes, self._offsets, self._span)
        runs = zip(itertools.pairwise(cuts), *(column[cuts[:-1]].tolist() for column in columns), strict=True)
        arrays: list[Array] = []
        for (low, high), spec, size, offset, span in runs:
            arrays += self._run(high - low, spec, size, offset, span)
        return arrays

    def _run(self, count: int, number: int, size: int, offset: int, span: int) -> list[Array]:
        """Give the arrays of one spec that lie one after the other."""
        spec = self._table._distinct[number]
        if not size:
            return [np.zeros(spec.shape, spec.dtype) for _ in range(count)]
        first, last = self._spans[span]
        start = offset - self._blobs.starts[first]
        typed = self._typed(span, spec.dtype)
        if typed is not None and not start % typed.itemsize:
            start //= typed.itemsize
            together = typed[start : start + count * size // typed.itemsize]
        else:
            data = self._bytes(first, last)[start : start + count * size]
            together = _in_python(data, storage_dtype(spec.dtype), spec.dtype)
            self._table._check_text(together)
        if not spec.shape or len(spec.shape) == MAX_NDIM:  # of these numpy has no array of arrays
            step = len(together) // count
            return [together[i * step : (i + 1) * step].reshape(spec.shape) for i in range(count)]
        return list(together.reshape(count, *spec.shape)) if count > 1 else [together.reshape(spec.shape)]

    def _typed(self, span: int, dtype: np.dtype[Any]) -> Array | None:
        """Give all bytes of a span as elements of a dtype that stands in files as it is; None for others."""
        key = (span, id(dtype))  # the table keeps its dtypes
        if key not in self._views:
            view = None
            if dtype == storage_dtype(dtype) and dtype.kind != "U" and dtype.names is None:
                data = self._bytes(*self._spans[span])
                view = data[: len(data) // dtype.itemsize * dtype.itemsize].view(dtype)
            self._views[key] = view
        return self._views[key]

    def _bytes(self, first: int, last: int) -> Array:
        if first in self._memory or self.mapped is None:
            return self._memory[first]
        parts = []
        for blob in range(first, last + 1):
            parts.append(np.frombuffer(self.mapped(self._blobs.at[blob], self._blobs.raw_size[blob]), np.uint8))
        self._memory[first] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return self._memory[first]


def _joined(first: Array, last: Array) -> list[tuple[int, int]]:
    """Join ranges of blobs that have a blob in common, so that no blob is read or held twice."""
    order = np.argsort(first, kind="stable")
    first, reach = first[order], np.maximum.accumulate(last[order])
    ends = np.append(first[1:] > reach[:-1], True)[: len(first)]
    begins = np.append(True, ends[:-1])[: len(first)]
    return list(zip(first[begins].tolist(), reach[ends].tolist(), strict=True))


class _Job:
    """Reading and checking one block."""

    def __init__(self, blobs: BlobReader, blob: int, block: int, out: memoryview) -> None:
        self.order = (blob, block)
        self._blobs = blobs
        self._out = out

    def __call__(self) -> None:
        blob, block = self.order
        if self._blobs.verify_reads and not block:
            self._blobs.check_gap(blob)
        self._blobs.read_block(blob, block, block * self._blobs.block_size(blob), self._out)


def _in_python(data: Array, stored: np.dtype[Any], dtype: np.dtype[Any]) -> Array:
    """Give the bytes of a file, which are nobody else's, as the array that was saved; in place where that can be."""
    if stored == dtype:
        # As the spec's dtype, not the equal stored one: to numpy, flags and classes of records make no difference.
        return data.view(dtype)
    if dtype.names is None and dtype.subdtype is None:
        return data.view(stored).byteswap(inplace=True).view(dtype)
    return data.view(stored).astype(dtype)


def _aligned(size: int) -> Array:
    """Give memory that begins at a multiple of ``ALIGNMENT``, which jax can use without copying it."""
    buffer = np.empty(size + layout.ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % layout.ALIGNMENT
    return buffer[start : start + size]


def _row_range(selection: Any, spec: ArraySpec) -> tuple[int, int, Any] | None:
    """Split a selection into a range of rows and a selection within them; None when it is not that simple."""
    selections = selection if type(selection) is tuple else (selection,)
    if not spec.shape or not spec.nbytes or not selections:
        return None
    length = spec.shape[0]
    first, *rest = selections
    if isinstance(first, slice):
        rows = range(length)[first]
        if not rows:
            return None
        low, high = min(rows[0], rows[-1]), max(rows[0], rows[-1])
        step = slice(rows[0] - low, None if rows.step < 0 else rows[-1] - low + 1, rows.step)
        return low, high + 1, (step, *rest)
    if type(first) is int or isinstance(first, np.integer):
        if not -length <= first < length:
            raise IndexError(f"index {first} is out of bounds for axis 0 with size {length}")
        row = int(first) % length
        return row, row + 1, (0, *rest)
    return None


def _spec(kind: Any, descr: Any, shape: Any) -> ArraySpec:
    if kind not in _KINDS or type(shape) is not list or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"{kind!r} {shape!r} is no kind and shape of an array")
    dtype = parse(descr)
    if dtype.subdtype is not None:
        raise ValueError("a sub-array is the dtype of a field, not of an array")
    if kind != "numpy" and not fits_jax(dtype):
        raise ValueError(f"jax has no arrays of the dtype {dtype}")
    if len(shape) > MAX_NDIM or math.prod(n for n in shape if n) * max(1, dtype.itemsize) >= 1 << 63:
        raise ValueError(f"the shape {shape} is too large")
    check_size(dtype, shape)
    return ArraySpec(dtype, tuple(shape), kind)
