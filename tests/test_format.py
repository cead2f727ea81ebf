"""Format version 1, byte by byte: a reader of its own, written from docs/format.md, and files that are wrong."""

from __future__ import annotations

import ast
import collections
import contextlib
import errno
import gc
import importlib.metadata
import importlib.util
import io
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import textwrap
import threading
import tracemalloc
import warnings
import weakref
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
import xxhash
import zstandard
from hostile.forge import ARRAY, ARRAYS, ITEMS, LEAF, LIST, MAGIC, NAMED_ARRAYS, NODE, REF, forge, nested
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from trees import assert_same, same_bits

import braintools_ckpt as bt
from braintools_ckpt.document import Document, LiveArrays
from braintools_ckpt.format import layout

ROOT = Path(__file__).parent.parent


@contextlib.contextmanager
def small_layout(**sizes):
    """Let small trees make files of many blobs, packs and blocks. (A pack must not be larger than a block.)"""
    sizes = {"MAX_BLOB": 128, "HASH_BLOCK": 64, "PACKED_BELOW": 24, "PACK_SIZE": 24, **sizes}
    with mock.patch.multiple(layout, **sizes):
        yield


# --- a reader that is not ours -------------------------------------------------------------------------------


class TinyReader:
    """Reads simple trees, by docs/format.md alone."""

    def __init__(self, data):
        self.data = data
        objects = msgpack.Unpacker(raw=False, strict_map_key=False, max_buffer_size=len(data) + 1)
        objects.feed(data)
        blobs, self.blob_at, index_at = [], [], None
        assert data[:2] == b"\xc4\x10"
        assert objects.unpack() == MAGIC + struct.pack("<I", 1)
        while True:
            at = objects.tell()
            item = objects.unpack()
            if type(item) is dict:
                index_at = at
                break
            if item is None:  # padding is nil
                assert data[at : at + 1] == b"\xc0"
                continue
            assert data[at : at + 5] == b"\xc6" + struct.pack(">I", len(item))
            assert (at + 5) % 64 == 0
            self.blob_at.append(at + 5)
            blobs.append(item)
        self.index = item
        end = objects.tell()
        trailer = objects.unpack()
        assert objects.tell() == len(data)
        assert data[end : end + 2] == b"\xc4\x24"
        offset, length, digest = struct.unpack("<QQQ", trailer[:24])
        assert trailer[24:] == MAGIC
        assert (offset, length) == (index_at, end - index_at)
        assert digest == xxhash.xxh3_64_intdigest(data[index_at:end])
        self._read_table(item["arrays"], blobs)

    def _read_table(self, table, blobs):
        assert np.frombuffer(table["blob_at"], "<u8").tolist() == self.blob_at
        assert np.frombuffer(table["blob_size"], "<u8").tolist() == [len(blob) for blob in blobs]
        step = table["hash_block"]
        blocks = [blob[i : i + step] for blob in blobs for i in range(0, len(blob), step)]
        hashes = np.frombuffer(table["hashes"], "<u8").tolist()
        assert hashes == [xxhash.xxh3_64_intdigest(block) for block in blocks]
        joined = b"".join(self._decompressed(table, blobs))
        self.arrays = []
        for number, offset in zip(
            np.frombuffer(table["spec"], "<u4"), np.frombuffer(table["offset"], "<u8").tolist(), strict=True
        ):
            kind, descr, shape = table["specs"][number]
            assert kind in ("numpy", "jax", "jax_weak")
            stored, dtype = self.dtype(descr)
            size = stored.itemsize * int(np.prod(shape, dtype=object))
            raw = joined[offset : offset + size]
            self.arrays.append(np.frombuffer(raw, stored).reshape(shape).astype(dtype))

    def _decompressed(self, table, blobs):
        if "zstd" not in self.index.get("features", []):
            assert not {"raw_size", "width"} & set(table)
            return blobs
        sizes = np.frombuffer(table["raw_size"], "<u8").tolist()
        return [*map(self._blob, blobs, sizes, table["width"])]

    def _blob(self, blob, size, width):
        if not width:
            assert len(blob) == size
            return blob
        data = zstandard.ZstdDecompressor().decompress(blob, allow_extra_data=False)
        assert len(blob) < len(data) == size <= 1 << 22
        count = size // width
        items = (bytes(data[i * count + item] for i in range(width)) for item in range(count))
        return b"".join([*items, data[width * count :]])

    def dtype(self, descr):
        """Give the stored form of a dtype, and the one in memory."""
        if type(descr) is dict:
            fields = [(name, *self.dtype(part), offset) for name, part, offset, *_ in descr["fields"]]
            names = [field[0] for field in fields]
            stored = np.dtype([(name, part) for name, part, _, _ in fields])
            keys = {"names": names, "formats": [f[2] for f in fields], "offsets": [f[3] for f in fields]}
            return stored, np.dtype({**keys, "itemsize": descr["itemsize"]}, align=descr["aligned"])
        if type(descr) is list:
            stored, dtype = self.dtype(descr[0])
            return np.dtype((stored, tuple(descr[1]))), np.dtype((dtype, tuple(descr[1])))
        if descr == "bfloat16":
            return np.dtype("<u2"), np.dtype("<u2")
        stored = np.dtype(descr.lstrip(">"))
        stored = stored if sys.byteorder == "little" else stored.newbyteorder("<")
        return stored, stored.newbyteorder(">") if descr.startswith(">") else stored

    def tree(self):
        return self.value(self.index["structure"])

    def value(self, value):
        if type(value) is dict:
            return {key: self.value(item) for key, item in value.items()}
        if type(value) is not list:
            return value
        kind, *rest = value
        if kind == LIST:
            return [self.value(item) for item in rest]
        if kind == ARRAY:
            return self.arrays[rest[0]]
        if kind == ITEMS:
            return {self.value(k): self.value(v) for k, v in zip(rest[::2], rest[1::2], strict=True)}
        if kind == REF:
            return self.value(self.index["shared"][rest[0]])
        if kind == ARRAYS:
            return self.arrays[rest[0] : rest[0] + rest[1]]
        if kind == NAMED_ARRAYS:
            return dict(zip(rest[1:], self.arrays[rest[0] :], strict=False))
        assert kind in (NODE, LEAF)
        tag, state = rest[0], rest[1]
        if tag == "tuple":
            return tuple(self.value(state))
        if tag == "int":
            return int.from_bytes(state, "little", signed=True)
        if tag == "complex":
            return complex(*self.value(state))
        if tag == "set":
            return set(self.value(state))
        return tag, self.value(state), rest[2] if len(rest) > 2 else {}


ALIGNED = np.dtype([("a", "i1"), ("b", ">f8"), ("c", "u2", (2,))], align=True)
SIMPLE = {
    "none": None,
    "yes": True,
    "n": -7,
    "large": 2**63,
    "huge": -(2**70),
    "x": 0.1,
    "text": "größe",
    "raw": b"\x00\xff",
    "z": 1 - 2j,
    "list": [1, [], ("a", ())],
    "keys": {1: "a", (2, "b"): [None], None: 1.5, "1": 2},
    "set": {3, 1, 2},
    "empty": {},
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big": np.arange(4, dtype=">i4"),
    "zero-d": np.array(2.5),
    "no rows": np.zeros((0, 3)),
    "names": np.array(["ab", "c"]),
    "when": np.array(["2024-02-29", "NaT"], "M8[D]"),
    "records": np.array([(1, 2.5, [3, 4]), (-1, -2.5, [5, 6])], ALIGNED),
    "larger": np.arange(300, dtype=np.int64),
    "many": [np.full(2, i, np.int16) for i in range(20)],
    "many named": {f"layer {i}": np.arange(i % 3) for i in range(20)},
}


def test_a_reader_written_from_the_document_reads_simple_trees():
    reader = TinyReader(bt.msgpack_dumps(SIMPLE, metadata={"step": 7, "tags": ["a"]}))
    assert_same(SIMPLE, reader.tree())
    assert reader.index["metadata"] == {"step": 7, "tags": [LIST, "a"]}
    assert reader.index["format"] == 1
    assert reader.index["library"] == bt.__version__
    assert list(reader.index) == ["format", "library", "metadata", "arrays", "shared", "structure"]


def test_it_reads_files_of_many_blobs():
    with small_layout():
        data = bt.msgpack_dumps(SIMPLE)
    reader = TinyReader(data)
    assert len(reader.blob_at) > 15
    assert len(reader.index["arrays"]["hashes"]) > 8 * len(reader.blob_at)
    assert max(np.frombuffer(reader.index["arrays"]["blob_size"], "<u8")) == 128
    assert_same(SIMPLE, reader.tree())
    assert_same(SIMPLE, bt.msgpack_loads(data), loaded=True)


def test_it_reads_jax_arrays_and_what_is_shared():
    shared = [jnp.arange(3), {"a": 1}]
    reader = TinyReader(bt.msgpack_dumps([shared, shared, jnp.ones(2, jnp.bfloat16), jnp.asarray(2.0)]))
    first, second, half, weak = reader.tree()
    assert first[0].tolist() == second[0].tolist() == [0, 1, 2]
    assert first[1] == second[1] == {"a": 1}
    assert len(reader.index["shared"]) == 1
    assert half.tolist() == [0x3F80, 0x3F80]
    assert weak == 2.0
    assert [spec[0] for spec in reader.index["arrays"]["specs"]] == ["jax", "jax", "jax_weak"]


def test_the_dump_in_the_document_is_a_real_file():
    text = (ROOT / "docs" / "format.md").read_text()
    lines = re.findall(r"^[0-9a-f]{4}  ((?:[0-9a-f]{2} ?)+) ", text, re.MULTILINE)
    documented = bytes.fromhex("".join(lines))
    tree = {"w": np.array([1, 2, 3], np.float32), "t": (1, "a")}
    with mock.patch.object(bt, "__version__", "0.1.0"):
        assert documented == bt.msgpack_dumps(tree, metadata={"step": 7})
    assert TinyReader(documented).tree()["t"] == (1, "a")


def test_the_table_that_explains_the_dump_says_what_is_there():
    text = (ROOT / "docs" / "format.md").read_text()
    dump = bytes.fromhex("".join(re.findall(r"^[0-9a-f]{4}  ((?:[0-9a-f]{2} ?)+) ", text, re.MULTILINE)))
    rows = re.findall(r"^\| ([0-9a-f]{4}) \| (`.*?) \|", text, re.MULTILINE)
    assert len(rows) > 20
    ends = [int(at, 16) for at, _ in rows[1:]] + [len(dump)]
    for (at, shown), end in zip(rows, ends, strict=True):
        pattern = b""
        for word in re.findall(r"x \d+|\"[^\"]*\"|[0-9a-f]{2}(?![^\s`])|\.\.\.", shown):
            if word.startswith("x "):
                pattern = pattern * int(word[2:])
            elif word == "...":
                pattern += b".*"
            else:
                pattern += re.escape(word[1:-1].encode() if word[0] == '"' else bytes.fromhex(word))
        assert re.fullmatch(pattern, dump[int(at, 16) : end], re.DOTALL), shown


def written_tags():
    """Give the tags that the code has, and the attributes that it gives them, as they stand in its source."""
    tags, attributes = set(), set()
    for path in (ROOT / "braintools_ckpt").rglob("*.py"):
        for part in ast.walk(ast.parse(path.read_text())):
            if isinstance(part, (ast.Assign, ast.AnnAssign)) and isinstance(part.value, ast.Constant):
                names = part.targets if isinstance(part, ast.Assign) else [part.target]
                if [name.id for name in names if isinstance(name, ast.Name)] == ["tag"]:
                    tags.add(part.value.value)
            elif isinstance(part, ast.Call) and getattr(part.func, "attr", "") in ("leaf", "node"):
                tags |= {item.value for item in part.args[:1] if isinstance(item, ast.Constant)}
                attributes |= {keyword.arg for keyword in part.keywords if keyword.arg}
                spread = [keyword.value for keyword in part.keywords if isinstance(keyword.value, ast.Dict)]
                attributes |= {key.value for item in spread for key in item.keys if isinstance(key, ast.Constant)}
            elif isinstance(part, ast.List) and len(part.elts) == 4 and isinstance(part.elts[3], ast.Dict):
                tags |= {item.value for item in part.elts[1:2] if isinstance(item, ast.Constant)}
                attributes |= {key.value for key in part.elts[3].keys if isinstance(key, ast.Constant)}
    return tags, attributes


def test_every_tag_and_dtype_of_the_code_is_in_the_document():
    from braintools_ckpt.dtypes import ML_DTYPES
    from braintools_ckpt.tree.registry import ADAPTERS, registry

    text = (ROOT / "docs" / "format.md").read_text()
    for library in sorted(ADAPTERS):
        registry.activate(library)
    written, attributes = written_tags()
    assert {"array", "numpy.scalar", "penzai.NamedArray", "flax.nnx.Variable", "stateful"} <= written
    assert {"class", "hard", "impl", "axes", "unit", "dtype", "kind", "seed_seq"} <= attributes
    tags = {tag for tag in registry._tags if not tag.startswith("class:")} | {tag for tag in written if tag}
    plain = {"bool", "NoneType", "None", "enum.key", "flax.nnx.slot"}  # these never stand in a file
    rows = {word for row in re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE) for word in re.findall(r"`(.*?)`", row)}
    assert tags - plain - rows == set()
    assert {name for name in attributes if f"`{name}`" not in text} == set()
    words = set(re.findall(r"\w+", text))
    assert ML_DTYPES - words == set()


def test_the_limits_in_the_document_are_those_of_the_code():
    from braintools_ckpt import claims, dtypes
    from braintools_ckpt.format import structure
    from braintools_ckpt.tree import encode

    text = (ROOT / "docs" / "format.md").read_text()
    section = text.partition("### Limits")[2].partition("\n## ")[0]
    limits = dict(re.findall(r"^\| (.*?) \| (.*?) \|$", section, re.MULTILINE))
    for name, value in {
        "bytes that a compressed blob stands for": layout.MAX_FRAME,
        "dimensions of an array or a sub-array": dtypes.MAX_NDIM,
        "elements without stored bytes": dtypes.MAX_EMPTY,
        "bytes in memory of an array, and of all arrays together": (dtypes.MAX_UNSTORED, dtypes.MAX_GROWTH),
        "bits of the ints of a `fraction` and of a `numpy.seedsequence`": claims._MOST_BITS,
        "padding before the head of a blob": layout.PAGE - 1,
        "itemsize, offset of a field, product of sub-array lengths": dtypes.MAX_ITEMSIZE,
        "levels of fields, fields of a dtype": (dtypes.MAX_DEPTH, dtypes.MAX_FIELDS),
        "levels of the structure, of a shared value, of the metadata": structure._MAX_LEVELS,
        "bytes of an array in the metadata (of this library)": encode.MAX_METADATA_ARRAY,
        "values in the metadata (of this library)": encode.MAX_METADATA_VALUES,
        "unused bytes of a compressed concatenation": layout.ALIGNMENT,
    }.items():
        numbers = [eval(number.replace("^", "**")) for number in re.findall(r"2\^\d+(?: - 1)?|\d+", limits[name])]
        assert tuple(numbers) == (value if type(value) is tuple else (value,)), name


def small_floats():
    text = (ROOT / "docs" / "format.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \| (\d+) \| (\w+) \|$", text, re.MULTILINE)
    return [(name, *map(int, numbers), special) for name, *numbers, special in rows]


@pytest.mark.parametrize(("name", "exponent", "mantissa", "bias", "special"), small_floats())
def test_small_floats_are_what_the_document_says(name, exponent, mantissa, bias, special):
    import ml_dtypes

    size = 1 + exponent + mantissa
    bits = np.arange(2**size, dtype=np.uint16 if size == 16 else np.uint8)
    sign, e, m = bits >> (size - 1), (bits >> mantissa) % 2**exponent, bits % 2**mantissa
    e, part = e.astype(float), m / 2**mantissa
    expected = np.where(e > 0, (1 + part) * 2.0 ** (e - bias), part * 2.0 ** (1 - bias)) * np.where(sign, -1, 1)
    top, full = e == 2**exponent - 1, m == 2**mantissa - 1
    if special == "ieee":
        expected[top] = np.where(m[top] > 0, np.nan, np.where(sign[top], -np.inf, np.inf))
    elif special == "fn":
        expected[top & full] = np.nan
    elif special == "fnuz":
        expected[bits == 1 << (size - 1)] = np.nan
    else:
        assert special == "finite"
    with np.errstate(invalid="ignore"):
        found = bits.view(getattr(ml_dtypes, name, np.float16)).astype(float)
    assert np.array_equal(expected, found, equal_nan=True)
    assert np.array_equal(np.signbit(expected)[expected == 0], np.signbit(found)[found == 0])


def test_all_small_floats_are_in_the_table():
    from braintools_ckpt.dtypes import ML_DTYPES

    names = {name for name, *_ in small_floats()}
    assert {name for name in ML_DTYPES if "float" in name} - names == {"float8_e8m0fnu"}


# --- bytes ----------------------------------------------------------------------------------------------------


def test_data_begins_at_multiples_of_64_and_pads_are_nil():
    for count in range(1, 12):
        with small_layout():
            data = bt.msgpack_dumps({"x" * count: [np.arange(5 * count + i, dtype="i1") for i in range(12)]})
        at = [*TinyReader(data).blob_at]
        assert at
        assert all(start % 64 == 0 for start in at)
        sizes = np.frombuffer(TinyReader(data).index["arrays"]["blob_size"], "<u8").tolist()
        ends = [18, *(start + size for start, size in zip(at, sizes, strict=True))]
        for end, start in zip(ends, at, strict=False):
            assert data[end : start - 5] == b"\xc0" * (start - 5 - end)
            assert start - 5 - end < 64


def test_large_blobs_begin_at_pages():
    arrays = [np.full(size, 1, np.uint8) for size in (100_000, 1 << 20, 70_000, (1 << 20) + 1, 5)]
    with bt.open_checkpoint(io.BytesIO(bt.msgpack_dumps(arrays))) as checkpoint:
        blobs = checkpoint._document.arrays._blobs
        assert [size for _, size, _ in blobs.raw_blobs()] == [100_000, 1 << 20, 70_000, (1 << 20) + 1, 5]
        assert [at % 4096 == 0 for at, size, _ in blobs.raw_blobs() if size >= 1 << 20] == [True, True]
        ends = [18, *(at + size for at, size, _ in blobs.raw_blobs())]
        gaps = [at - 5 - end for (at, _, _), end in zip(blobs.raw_blobs(), ends, strict=False)]
        assert [gap < (4096 if large else 64) for gap, large in zip(gaps, [0, 1, 0, 1, 0], strict=True)] == [True] * 5


@pytest.mark.parametrize(("page", "fits"), [(64, True), (4096, True), (8192, False)])
def test_as_much_padding_as_a_page_is_taken(page, fits, monkeypatch):
    array = np.arange(1000)
    with monkeypatch.context() as patch:
        patch.setattr(layout, "PAGE", page)
        patch.setattr(layout, "PAGED_FROM", 1)
        data = bt.msgpack_dumps(array)
    if fits:
        np.testing.assert_array_equal(bt.msgpack_loads(data), array)
        return
    with pytest.raises(bt.CorruptCheckpointError, match="a blob is not where it should be"):
        bt.msgpack_loads(data)


def test_arrays_in_a_pack_are_aligned():
    tree = [np.ones(3, "i1"), np.ones(1, "f8"), np.ones(1, "i1"), np.ones(1, "c16"), np.ones(1, "i1"), np.ones(2, "f2")]
    table = TinyReader(bt.msgpack_dumps(tree)).index["arrays"]
    assert np.frombuffer(table["offset"], "<u8").tolist() == [0, 8, 16, 32, 48, 50]


def test_a_tree_without_arrays_has_no_blob():
    data = bt.msgpack_dumps({"a": 1, "none": np.zeros((0, 2))})
    assert TinyReader(data).blob_at == []
    assert data[18] == 0x86
    assert_same({"a": 1, "none": np.zeros((0, 2))}, bt.msgpack_loads(data), loaded=True)


def test_the_same_tree_gives_the_same_bytes():
    def tree():
        shared = np.ones(2, ">f4")
        return {"a": [shared, np.ones(3, ">f4"), shared], "set": {"b", "a", "c"}, "r": np.zeros(4, ALIGNED)}

    data = bt.msgpack_dumps(tree(), metadata={"x": 1})
    assert data == bt.msgpack_dumps(tree(), metadata={"x": 1})
    assert data == bt.msgpack_dumps(bt.msgpack_loads(data), metadata={"x": 1})


@pytest.mark.parametrize("dtype", ["f4", ">f4", "U2", "M8[s]", [("a", "i1")]], ids=str)
def test_equal_dtypes_give_one_spec_whether_they_are_one_object_or_not(dtype):
    first, second = (np.zeros(3, np.dtype(dtype)) for _ in range(2))
    apart = bt.msgpack_dumps([first, second])
    assert len(TinyReader(apart).index["arrays"]["specs"]) == 1
    assert apart == bt.msgpack_dumps([first, first.copy()])


@pytest.mark.parametrize(
    ("one", "other"),
    [("M8[s]", "M8[1000ms]"), ([("a", "M8[s]")], [("a", "M8[1000ms]")]), ([("a", "i1")], (np.record, [("a", "i1")]))],
    ids=str,
)
def test_dtypes_that_numpy_calls_equal_keep_a_spec_each(one, other):
    tree = [np.zeros(2, dtype) for dtype in (one, other, one, other)]
    data = bt.msgpack_dumps(tree)
    assert len(TinyReader(data).index["arrays"]["specs"]) == 2
    assert_same(tree, bt.msgpack_loads(data), loaded=True)


@pytest.mark.parametrize("size", [5, 8192])
@pytest.mark.parametrize("dtype", [np.longdouble, np.clongdouble])
@pytest.mark.skipif(np.finfo(np.longdouble).nmant != 63, reason="only x86 has 80-bit floats")
def test_padding_of_long_doubles_gets_into_no_file(size, dtype):
    dirty = np.ones(size, dtype)
    dirty.view(np.uint8).reshape(-1, 16)[:, 10:] = 0xFF
    assert bt.msgpack_dumps(dirty) == bt.msgpack_dumps(np.ones(size, dtype))


@pytest.mark.parametrize("size", [3, 8192])
@pytest.mark.parametrize(
    "dtype",
    [
        [("a", np.longdouble)],
        [("n", "i1"), ("a", [("z", np.clongdouble), ("", ">f4")], (2,))],
        {"names": ["a"], "formats": [np.longdouble], "offsets": [5], "itemsize": 40},
    ],
    ids=["field", "nested", "apart"],
)
@pytest.mark.skipif(np.finfo(np.longdouble).nmant != 63, reason="only x86 has 80-bit floats")
def test_padding_of_long_doubles_in_records_gets_into_no_file(size, dtype):
    dtype = np.dtype(dtype)
    clean, dirty = np.zeros(size, dtype), np.zeros(size, dtype)

    def soil(array):
        for name in array.dtype.names or ():
            soil(array[name])
        if array.dtype.kind in "fc" and array.dtype.itemsize >= 16:
            octets = np.lib.stride_tricks.as_strided(
                array.view(f"V{array.dtype.itemsize}"), array.shape, array.strides
            ).view([("x", "u1", array.dtype.itemsize)])["x"]
            octets.reshape(*array.shape, -1, 16)[..., 10:] = 0xFF
            assert not np.shares_memory(octets, clean)

    soil(dirty)
    assert dirty.tobytes() != clean.tobytes()
    assert bt.msgpack_dumps(dirty) == bt.msgpack_dumps(clean)


def refused(document, message):
    """Check that a document is refused before a byte is written."""
    from braintools_ckpt.format import writer
    from braintools_ckpt.storage.sinks import BytesSink

    sink = BytesSink()
    with pytest.raises(bt.SerializationError) as caught:
        writer.write(document, sink)
    assert str(caught.value) == message
    assert sink.position == 0


def holding(*arrays):
    live = LiveArrays()
    for array in arrays:
        live.add(live.spec(array.dtype, array.shape, "numpy"), array)
    return Document([LIST, *([ARRAY, i] for i in range(len(arrays)))], live)


@pytest.mark.parametrize("part", ["structure", "shared", "metadata"])
def test_what_is_too_deep_is_refused_before_a_byte_is_written(part):
    document = holding(np.arange(3))
    setattr(
        document, part, {"structure": nested(2000), "shared": [nested(2000)], "metadata": {"a": nested(2000)}}[part]
    )
    refused(
        document,
        "The structure of the tree cannot be packed: recursion limit exceeded. It may nest deeper than the 1024 levels "
        "that MessagePack libraries read.",
    )


def test_what_no_reader_would_take_is_refused_before_a_byte_is_written():
    padded = np.dtype({"names": ["a"], "formats": ["u1"], "offsets": [0], "itemsize": 1 << 20})
    refused(
        holding(np.arange(3), np.broadcast_to(np.zeros((), padded), 65)),
        f"Cannot save an array {padded}[65]: it would take {65 << 20} bytes in memory for 65 bytes of data: more than "
        "256 times as many, and no reader would accept the file. Remove the padding first: "
        "numpy.lib.recfunctions.repack_fields(array).",
    )
    refused(
        holding(np.arange(3), np.array([0x110000], np.uint32).view("U1")),
        "An array <U1[1] holds text with the code point 0x110000, which does not exist. It was made of bytes that are "
        "no text: save it as what it is, such as array.view(numpy.uint8).",
    )


@pytest.mark.parametrize("count", [3, 40_000])
def test_padding_of_records_gets_into_no_file(count):
    dirty = np.zeros(count, ALIGNED)
    dirty.view(np.uint8)[:] = 0xAA
    for name in ALIGNED.names:
        dirty[name] = 0
    data = bt.msgpack_dumps(dirty)
    (index_at,) = struct.unpack_from("<Q", data, len(data) - 36)
    assert b"\xaa" not in data[:index_at]


# --- damage ---------------------------------------------------------------------------------------------------


def small_file():
    """A file with a pack, a large array in two blobs, padding and everything else, as short as it can be."""
    with small_layout():
        return bt.msgpack_dumps(
            {"p": np.arange(3, dtype="i2"), "q": np.arange(140, dtype="u1"), "n": [1, "a"]}, metadata={"step": 1}
        )


SMALL = small_file()


def test_the_small_file_has_all_parts():
    reader = TinyReader(SMALL)
    assert len(reader.blob_at) == 3
    assert reader.tree()["n"] == [1, "a"]
    assert b"\xc0" * 8 in SMALL


def test_every_flipped_bit_is_found():
    missed = []
    for place in range(len(SMALL)):
        for bit in range(8):
            damaged = bytearray(SMALL)
            damaged[place] ^= 1 << bit
            try:
                bt.msgpack_load(io.BytesIO(damaged))
            except bt.CorruptCheckpointError:
                continue
            missed.append((place, bit))
    assert missed == []


def test_every_truncation_is_found():
    for length in range(len(SMALL)):
        with pytest.raises(bt.CorruptCheckpointError):
            bt.msgpack_load(io.BytesIO(SMALL[:length]))


def test_missing_bytes_at_the_front_and_in_the_middle_are_found():
    for low, high in [(0, 1), (0, 18), (18, 19), (30, 64), (len(SMALL) - 100, len(SMALL) - 90)]:
        with pytest.raises(bt.CorruptCheckpointError):
            bt.msgpack_load(io.BytesIO(SMALL[:low] + SMALL[high:]))


@pytest.mark.parametrize("extra", [b"\x00", b"\xc0", b"x" * 100, SMALL[-38:], SMALL], ids=len)
def test_trailing_bytes_are_found(extra):
    message = (
        "Corrupt checkpoint <BytesIO>: its .*. The file was damaged or cut short after it was written; use another"
    )
    with pytest.raises(bt.CorruptCheckpointError, match=message):
        bt.msgpack_load(io.BytesIO(SMALL + extra))


def test_blobs_that_changed_places_are_found():
    first, second = TinyReader(SMALL).blob_at[:2]
    swapped = bytearray(SMALL)
    swapped[first : first + 12], swapped[second : second + 12] = (
        SMALL[second : second + 12],
        SMALL[first : first + 12],
    )
    with pytest.raises(bt.CorruptCheckpointError, match=f"the checksum of the data at byte {first} does not match"):
        bt.msgpack_load(io.BytesIO(swapped))


def test_damage_is_told_with_its_place():
    at = TinyReader(SMALL).blob_at[0] + 70
    damaged = bytearray(SMALL)
    damaged[at] ^= 1
    with pytest.raises(bt.CorruptCheckpointError) as caught:
        bt.msgpack_load(io.BytesIO(damaged))
    assert str(caught.value) == (
        f"Corrupt checkpoint <BytesIO>: the checksum of the data at byte {at - 6} does not match (q). "
        "The file was damaged or cut short after it was written; use another copy."
    )


@pytest.mark.parametrize("version", [2, 3, 255, 2**31])
def test_a_file_of_the_future(version):
    data = SMALL[:14] + struct.pack("<I", version) + b"anything at all"
    for load in (
        bt.msgpack_loads,
        lambda d: bt.msgpack_load(io.BytesIO(d)),
        lambda d: bt.open_checkpoint(io.BytesIO(d)),
    ):
        with pytest.raises(bt.UnsupportedVersionError) as caught:
            load(data)
        name = "<bytes>" if load is bt.msgpack_loads else "<BytesIO>"
        assert str(caught.value) == (
            f"The checkpoint {name} has format version {version}, and this version of braintools_ckpt reads version 1. "
            "Run: pip install --upgrade braintools-ckpt"
        )


def test_an_array_table_is_gone_when_nobody_uses_it():
    from braintools_ckpt.opening import open_document
    from braintools_ckpt.storage.sources import BufferSource

    document = open_document(BufferSource(SMALL))
    table = weakref.ref(document.arrays)
    gc.disable()
    try:
        del document
        assert table() is None
    finally:
        gc.enable()


# --- checks that can be left out, and ways of reading ---------------------------------------------------------


def damaged_in(blob):
    """Give the small file with the first byte of a blob changed: 0 and 1 are of the array q, 2 is the pack."""
    damaged = bytearray(SMALL)
    damaged[TinyReader(SMALL).blob_at[blob]] ^= 0xFF
    return bytes(damaged)


def test_verify_false_reads_damaged_data_and_nothing_else():
    loaded = bt.msgpack_loads(damaged_in(0), verify=False)
    assert loaded["q"][0] == 0xFF
    assert loaded["q"][1:].tolist() == list(range(1, 140))
    index_damaged = bytearray(SMALL)
    index_damaged[-45] ^= 1
    with pytest.raises(bt.CorruptCheckpointError, match="the checksum of its index does not match"):
        bt.msgpack_loads(bytes(index_damaged), verify=False)


def test_only_what_is_read_is_checked():
    loaded = bt.msgpack_loads(damaged_in(0), target={"p": np.zeros(3, "i2")}, partial=True)
    assert loaded["p"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("where", [0, 1, 2])
def test_verify_finds_damage_in_every_blob_and_in_the_padding(where):
    at = TinyReader(SMALL).blob_at[where]
    for place in (at, at - 1, at - 6):  # data, head, padding
        damaged = bytearray(SMALL)
        damaged[place] ^= 1
        with (
            bt.open_checkpoint(io.BytesIO(damaged), verify=False) as checkpoint,
            pytest.raises(bt.CorruptCheckpointError),
        ):
            checkpoint.verify()
    with bt.open_checkpoint(io.BytesIO(SMALL), verify=False) as checkpoint:
        checkpoint.verify()


class Holder:
    def __init__(self, arrays):
        self.arrays = arrays


bt.msgpack_register_serialization(
    Holder, lambda h: {"arrays": h.arrays}, lambda target, state: Holder(state["arrays"]), name="test_format.Holder"
)


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("step", [1, 7, 64, 128])
def test_arrays_that_span_blobs_in_lists_and_handlers(parallel, step, tmp_path):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 255, (n, 3), np.uint8) for n in (1, 20, 43, 44, 128, 200)]
    tree = {"list": [*arrays, np.asfortranarray(arrays[4])], "holder": Holder([arrays[5][::-1].copy(), jnp.arange(99)])}
    with small_layout(HASH_BLOCK=step, PACKED_BELOW=1):
        path = bt.msgpack_save(tmp_path / "x", tree)
    target = {"list": [np.zeros_like(a) for a in tree["list"]], "holder": Holder(None)}
    for wanted in (target, None):
        loaded = bt.msgpack_load(path, wanted, parallel)
        holder = loaded["holder"].arrays if wanted else loaded["holder"]["arrays"]
        assert_same([*tree["list"], *tree["holder"].arrays], [*loaded["list"], *holder], loaded=True)


def test_parallel_reading_starts_threads_and_raises_what_they_raise(monkeypatch):
    from braintools_ckpt.format import reader

    pools = []
    real = reader.do_all
    monkeypatch.setattr(reader, "do_all", lambda *args: (pools.append(args), real(*args)))
    bt.msgpack_loads(SMALL, parallel=False)
    assert pools == []
    assert_same(bt.msgpack_loads(SMALL, parallel=False), bt.msgpack_loads(SMALL, parallel=True))
    assert len(pools) == 1
    for parallel in (True, False):
        with pytest.raises(bt.CorruptCheckpointError, match="the checksum of the data"):
            bt.msgpack_loads(damaged_in(1), parallel=parallel)


@pytest.mark.slow
def test_an_array_of_more_than_4_gib(tmp_path):
    size = int(4.3 * 2**30)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    if min(memory, shutil.disk_usage(tmp_path).free) < 12 * 2**30:
        pytest.skip("needs 12 GiB of memory and of disk")
    array = np.zeros(size // 8)
    marks = [0, 2**29 - 9, 2**29 - 8, 2**29, size // 8 - 1]
    array[marks] = np.arange(1.0, 6.0)
    path = bt.msgpack_save(tmp_path / "large", {"list": [array]}, durable=False)
    del array
    try:
        loaded = bt.msgpack_load(path)["list"][0]
        assert loaded.shape == (size // 8,)
        assert loaded[marks].tolist() == [1, 2, 3, 4, 5]
        assert np.count_nonzero(loaded) == 5
        del loaded
        with bt.open_checkpoint(path) as checkpoint:
            assert checkpoint.read("list/0", slice(2**29 - 9, 2**29 + 1, 1)).tolist() == [2, 3, *[0] * 7, 4]
    finally:
        os.unlink(path)


# --- mapped files ---------------------------------------------------------------------------------------------


def mapped_tree():
    return {
        "small": np.arange(3.0),
        "large": np.arange(20_000.0).reshape(100, 200),
        "big-endian": np.arange(20_000, dtype=">f8"),
        "jax": jnp.arange(20_000.0),
        "empty": np.zeros((0, 2)),
    }


def test_a_mapped_file_gives_aligned_arrays_that_are_the_callers_own(tmp_path):
    path = bt.msgpack_save(tmp_path / "x", mapped_tree())
    before = Path(path).read_bytes()
    loaded = bt.msgpack_load(path, mmap=True)
    assert_same(mapped_tree(), loaded, loaded=True)
    for name in ("large", "jax"):
        assert np.asarray(loaded[name]).__array_interface__["data"][0] % 64 == 0
    assert loaded["small"].__array_interface__["data"][0] % 8 == 0
    assert not loaded["large"].flags.owndata
    for name in ("small", "large", "big-endian"):
        loaded[name][...] = -1
    assert Path(path).read_bytes() == before
    assert_same(mapped_tree(), bt.msgpack_load(path, mmap=True), loaded=True)
    assert (loaded["large"] == -1).all()


def test_a_donated_jax_array_leaves_the_mapped_file_alone(tmp_path):
    path = bt.msgpack_save(tmp_path / "x", {"w": jnp.arange(20_000.0)})
    before = Path(path).read_bytes()
    array = bt.msgpack_load(path, mmap=True)["w"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not every backend donates
        result = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)(array).block_until_ready()
    assert (np.asarray(result) == -1).all()
    assert Path(path).read_bytes() == before


def test_a_mapped_file_is_read_lazily_and_unchecked(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(damaged_in(0))
    loaded = bt.msgpack_load(path, mmap=True)
    assert loaded["q"][0] == 0xFF
    with bt.open_checkpoint(path, mmap=True) as checkpoint, pytest.raises(bt.CorruptCheckpointError):
        checkpoint.verify()


def test_arrays_that_span_blobs_are_joined_when_mapped(tmp_path):
    with small_layout():
        path = bt.msgpack_save(tmp_path / "x", SIMPLE)
    assert_same(SIMPLE, bt.msgpack_load(path, mmap=True), loaded=True)


def test_a_target_takes_mapped_arrays(tmp_path):
    path = bt.msgpack_save(tmp_path / "x", mapped_tree())
    target = {key: np.zeros_like(item) for key, item in mapped_tree().items()} | {"jax": jnp.zeros(20_000)}
    assert_same(mapped_tree(), bt.msgpack_load(path, target, mmap=True), loaded=True)


@pytest.mark.parametrize("second", [lambda c: c["a"], lambda c: c.read("a"), lambda c: c.read("a", slice(None))])
@pytest.mark.parametrize("make", [np.arange, jnp.arange], ids=["numpy", "jax"])
def test_arrays_of_two_reads_of_a_mapped_file_share_nothing(make, second, tmp_path):
    path = bt.msgpack_save(tmp_path / "x", {"a": make(20_000.0), "b": make(3)})
    with bt.open_checkpoint(path, mmap=True) as checkpoint:
        first, later = checkpoint["a"], second(checkpoint)
        if isinstance(later, np.ndarray):
            later[...] = -1
        elif isinstance(first, np.ndarray):
            first[...] = -1
        assert_same(make(20_000.0), checkpoint["a"], loaded=True)
        if not isinstance(first, np.ndarray):
            assert first.tolist() == list(range(20_000))


def test_a_mapped_file_is_mapped_again_only_for_what_was_taken(tmp_path, monkeypatch):
    from braintools_ckpt.storage.sources import LocalSource

    maps = []
    real = LocalSource.map
    monkeypatch.setattr(LocalSource, "map", lambda source: maps.append(source) or real(source))
    path = bt.msgpack_save(tmp_path / "x", {str(i): np.arange(i) for i in range(9)})
    with bt.open_checkpoint(path, mmap=True) as checkpoint:
        assert maps == []
        leaves = [checkpoint[key] for key in checkpoint]
        assert len(maps) == 1
        assert all(
            np.shares_memory(checkpoint[key], leaf) is False for key, leaf in zip(checkpoint, leaves, strict=True)
        )
        assert len(maps) == 2
    assert [len(leaf) for leaf in leaves] == list(range(9))


def test_blobs_that_several_arrays_span_are_held_once(monkeypatch):
    from braintools_ckpt.format import reader

    sizes = []
    real = reader._aligned
    monkeypatch.setattr(reader, "_aligned", lambda size: sizes.append(size) or real(size))
    # In the first blob; from it over the second into the third; in the third; alone in the fourth.
    pieces = [b"a" * 50, b"b" * 150, b"c" * 50, b"d" * 80]
    joined = b"".join(pieces)
    blobs = [joined[low:high] for low, high in ((0, 100), (100, 180), (180, 250), (250, 330))]
    arrays = [("numpy", "uint8", [len(piece)], piece) for piece in pieces]
    data = forge([LIST, *([ARRAY, i] for i in range(4))], arrays, blobs)
    assert [array.tobytes() for array in bt.msgpack_loads(data)] == pieces
    assert sizes == [250, 80]
    assert [array.tobytes() for array in bt.msgpack_load(io.BytesIO(data), mmap=True)] == pieces


# --- parts of arrays ------------------------------------------------------------------------------------------

PART_DTYPES = ["u1", "<f4", ">f4", ">i8", "U3", "S2", "M8[s]", [("a", "i1"), ("b", ">f8")], ALIGNED, "?", "c8"]


@given(data=st.data())
def test_parts_are_what_numpy_gives(data):
    dtype = np.dtype(data.draw(st.sampled_from(PART_DTYPES)))
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9))
    size = int(np.prod(shape))
    plain = np.arange(size) if dtype.names is None else np.zeros(size)
    array = plain.astype("i8").astype(dtype).reshape(shape)
    if dtype.names:
        array["a"] = np.arange(size).reshape(shape)
    if data.draw(st.booleans()):
        array = np.asfortranarray(array)
    index = data.draw(st.just(...) | hnp.basic_indices(shape, allow_newaxis=True) | st.slices(shape[0] if shape else 1))
    if shape == () and type(index) is slice:
        index = ...
    verify = data.draw(st.booleans())
    block, packed = data.draw(st.sampled_from([(1, 1), (5, 1), (64, 1), (64, 24), (100, 24), (1 << 20, 24)]))
    with small_layout(HASH_BLOCK=block, PACKED_BELOW=packed):
        file = io.BytesIO(bt.msgpack_dumps([np.arange(3, dtype="u1"), array]))
    with bt.open_checkpoint(file, verify=verify) as checkpoint:
        part = checkpoint.read("1", index)
    expected = np.asarray(array[index])
    assert type(part) is np.ndarray
    assert part.dtype == expected.dtype
    assert part.shape == expected.shape
    assert same_bits(part, expected)


@pytest.mark.parametrize("index", [[0, 2], np.array([True, False, True, False]), ([1, 0], 2), (slice(1, 3), [0, 2])])
def test_parts_by_fancy_indices(index):
    array = np.arange(12.0).reshape(4, 3)
    with bt.open_checkpoint(io.BytesIO(bt.msgpack_dumps([array]))) as checkpoint:
        assert checkpoint.read("0", index).tolist() == array[index].tolist()


@pytest.mark.parametrize("index", [4, -5, (0, 3), (slice(None), 0, 0)])
def test_a_part_outside_of_the_array(index):
    with (
        bt.open_checkpoint(io.BytesIO(bt.msgpack_dumps([np.zeros((4, 3))]))) as checkpoint,
        pytest.raises(IndexError),
    ):
        checkpoint.read("0", index)


@pytest.mark.parametrize(
    "read", [lambda c, i: c.read("0", i), lambda c, i: c._document.arrays.host(0)[i]], ids=["file", "numpy"]
)
@pytest.mark.parametrize(("index", "row"), [(7, 7), (-4, -4), ((np.int8(3), 0), 3)], ids=str)
def test_a_row_outside_of_an_array_is_told_as_numpy_does(read, index, row):
    array = np.zeros((3, 2))
    with bt.open_checkpoint(io.BytesIO(bt.msgpack_dumps([array]))) as checkpoint:
        checkpoint._document.arrays.host = lambda _: array
        with pytest.raises(IndexError) as caught:
            read(checkpoint, index)
    assert str(caught.value) == f"index {row} is out of bounds for axis 0 with size 3"


@pytest.mark.parametrize("index", [(), slice(1, None), 1, ..., (slice(None, None, -1), 0)], ids=str)
def test_parts_of_elements_without_bytes(index):
    array = np.zeros((3, 2), "V0")
    with bt.open_checkpoint(io.BytesIO(bt.msgpack_dumps([array]))) as checkpoint:
        part = checkpoint.read("0", index)
    assert (part.dtype, part.shape) == (np.dtype("V0"), array[index].shape)


def test_a_part_of_text_that_is_none_is_refused():
    array = ("numpy", "U1", [2], b"a\0\0\0\xff\xff\xff\xff")
    with bt.open_checkpoint(io.BytesIO(forge([ARRAY, 0], [array]))) as checkpoint:
        assert checkpoint.read("", 0).tolist() == "a"
        with pytest.raises(bt.CorruptCheckpointError) as caught:
            checkpoint.read("", 1)
    assert str(caught.value) == (
        "Corrupt checkpoint <BytesIO>: it holds text with the code point 0xffffffff, which does not exist. The file "
        "was damaged or cut short after it was written; use another copy."
    )


def test_a_part_reads_only_the_blocks_it_needs():
    with small_layout(PACKED_BELOW=1, HASH_BLOCK=64):
        data = bt.msgpack_dumps([np.arange(4096, dtype="u1").reshape(64, 64)])
    reader = TinyReader(data)
    damaged = bytearray(data)
    for at in reader.blob_at[1:]:
        damaged[at] ^= 1  # all but the first two rows of 64
    with bt.open_checkpoint(io.BytesIO(damaged)) as checkpoint:
        assert checkpoint.read("0", slice(0, 2)).tolist() == np.arange(128).reshape(2, 64).tolist()
        assert checkpoint.read("0", (1, slice(3, 1, -1))).tolist() == [67, 66]
        with pytest.raises(bt.CorruptCheckpointError):
            checkpoint.read("0", 2)


# --- malformed indices with right checksums -------------------------------------------------------------------


def test_a_forged_file_that_is_right_is_read():
    data = forge({"a": [ARRAY, 0], "b": [LIST, 1]}, [("numpy", "uint8", [3], b"abc")], library="any", unknown="ignored")
    assert_same({"a": np.frombuffer(b"abc", "u1"), "b": [1]}, bt.msgpack_loads(data))
    assert TinyReader(data).tree()["b"] == [1]


@contextlib.contextmanager
def within(megabytes=64):
    """Hold a block to a limit of memory."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < megabytes << 20
    finally:
        tracemalloc.stop()


def look_at_everything(checkpoint):
    checkpoint.verify()
    assert len(checkpoint.paths) == len(checkpoint.specs)
    assert repr(checkpoint)
    assert checkpoint._repr_html_()
    for path in checkpoint:
        repr(checkpoint[path])


def test_shared_values_that_double_are_decoded_once():
    shared = [[LIST, 1], *([LIST, [REF, i], [REF, i]] for i in range(40))]
    data = forge([REF, 40], shared=shared)
    code = f"""
    import braintools_ckpt as bt
    value = bt.msgpack_loads({data!r})
    assert value[0] is value[1]
    """
    run_alone(code, timeout=8)


def run_alone(code, timeout=60):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_depth_up_to_what_messagepack_reads_is_no_crash():
    for wrap in (
        lambda x: [LIST, x],
        lambda x: {"a": x},
        lambda x: [NODE, "tuple", [LIST, x]],
        lambda x: [LEAF, "frozenset", [LIST, x]],
        lambda x: [LEAF, "unknown", x],
        lambda x: [ITEMS, [NODE, "tuple", [LIST, x]], 1],
    ):
        for depth in (300, 500, 1000):
            with warnings.catch_warnings(), contextlib.suppress(bt.CorruptCheckpointError, ValueError):
                warnings.simplefilter("ignore")
                data = forge(nested(depth, 1, wrap))
                bt.msgpack_loads(data)


@pytest.mark.parametrize("depth", [300, 1000])
def test_looking_into_deep_trees(depth):
    for wrap in (lambda x: [LIST, x], lambda x: [LEAF, "unknown", x]):
        with bt.open_checkpoint(io.BytesIO(forge(nested(depth, 1, wrap)))) as checkpoint:
            assert len(checkpoint.paths) == 1
            assert len(checkpoint.specs) == 1


@pytest.mark.parametrize("levels", [1024, 1025])
def test_levels_are_counted_through_references(levels):
    data = forge(nested(levels // 2, [REF, 0]), shared=[nested(levels - levels // 2)])
    if levels == 1024:
        with bt.open_checkpoint(io.BytesIO(data)) as checkpoint:
            assert len(checkpoint.paths) == 1
        return
    with pytest.raises(bt.CorruptCheckpointError) as caught:
        bt.msgpack_loads(data)
    assert str(caught.value) == (
        "Corrupt checkpoint <bytes>: its structure is malformed (it nests deeper than 1024 levels). It was not written "
        "by braintools_ckpt, or damaged on purpose."
    )


def test_a_tree_of_shared_values_as_deep_as_can_be_written():
    tree = []
    for _ in range(399):
        tree = collections.deque([tree, tree])  # a NODE, its LIST and a REF: three levels, were references counted
    data = bt.msgpack_dumps(tree)
    loaded = bt.msgpack_loads(data)
    for _ in range(399):
        loaded, same = loaded
        assert loaded is same
    assert loaded == []


def test_unknown_tags_come_back_as_plain_values_with_a_warning():
    data = forge({"a": [NODE, "future.Thing", {"x": 1}], "b": [LEAF, "os.system", "echo", {"version": 3}]})
    with pytest.warns(UserWarning, match="does not know") as record:
        assert bt.msgpack_loads(data) == {"a": {"x": 1}, "b": "echo"}
    assert [str(warning.message) for warning in record] == [
        f"The checkpoint holds a {tag!r}, which this version of braintools_ckpt does not know: it is loaded as a plain "
        "value."
        for tag in ("future.Thing", "os.system")
    ]


def test_a_tag_imports_nothing():
    data = forge([NODE, "antigravity.x", [LIST, [NODE, "class:this.Zen", {}], [LEAF, "turtle", 1]]])
    code = f"""
    import sys, warnings, braintools_ckpt as bt
    warnings.simplefilter("ignore")
    bt.msgpack_loads({data!r})
    assert not {{"antigravity", "this", "turtle"}} & set(sys.modules)
    """
    run_alone(code)


# --- golden files ---------------------------------------------------------------------------------------------

GOLDEN = ROOT / "tests" / "golden" / "v1"


def load_script(path):
    spec = importlib.util.spec_from_file_location(f"golden_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EXPECTED = load_script(GOLDEN / "expected.py")


def test_every_golden_file_is_known():
    assert {path.stem for path in GOLDEN.glob("*.msgpack")} == set(EXPECTED.TREES)


@pytest.mark.parametrize("name", EXPECTED.TREES)
def test_a_golden_file_loads_for_ever(name):
    path = GOLDEN / f"{name}.msgpack"
    make = EXPECTED.TREES[name]
    for options in ({}, {"parallel": False}, {"mmap": True}):
        compare(make(), bt.msgpack_load(path, **options), template=False, loaded=True)
    compare(make(), bt.msgpack_load(path, target=make()), loaded=True)
    with bt.open_checkpoint(path) as checkpoint:
        assert_same(EXPECTED.METADATA.get(name, {}), checkpoint.metadata)
        checkpoint.verify()


def compare(expected, found, **options):
    """Compare two trees, with values that assert_same has no rule for."""
    if isinstance(expected, random.Random):
        assert expected.getstate() == found.getstate()
        return
    if isinstance(expected, dict) and "dtype" in expected:
        assert expected.pop("dtype") == found.pop("dtype")
    assert_same(expected, found, **options)


@pytest.mark.parametrize("name", EXPECTED.TREES)
def test_the_tree_of_a_golden_file_still_gives_the_same_bytes(name):
    for library, version in EXPECTED.VERSIONS.get(name, {}).items():
        present = importlib.metadata.version(library)
        if present != version:
            pytest.skip(f"written with {library} {version}, here is {present}")
    if name in EXPECTED.SUPERSEDED:
        pytest.skip(EXPECTED.SUPERSEDED[name])
    data = (GOLDEN / f"{name}.msgpack").read_bytes()
    with (
        mock.patch.object(bt, "__version__", TinyReader(data).index["library"]),
        mock.patch.multiple(layout, **EXPECTED.sizes(name, layout)),
    ):
        options = {"metadata": EXPECTED.METADATA.get(name), "compression": EXPECTED.COMPRESSION.get(name)}
        assert bt.msgpack_dumps(EXPECTED.TREES[name](), **options) == data


def test_the_golden_files_hold_what_they_are_for():
    def reader(name):
        found = TinyReader.__new__(TinyReader)
        data = (GOLDEN / f"{name}.msgpack").read_bytes()
        offset, length = struct.unpack_from("<QQ", data, len(data) - 36)
        found.index = msgpack.unpackb(data[offset : offset + length])
        return found.index

    assert len(reader("packs")["arrays"]["blob_at"]) == 2 * 8
    assert len(reader("blocks")["arrays"]["blob_at"]) > 10 * 8
    assert len(reader("blocks")["arrays"]["hashes"]) > len(reader("blocks")["arrays"]["blob_at"])
    assert len(reader("shared")["shared"]) == 2
    assert reader("containers")["metadata"]["step"] == 7
    assert set(reader("compressed")["arrays"]["width"]) == {0, 2, 4, 8, 9}


CLASSES = load_script(GOLDEN / "classes" / "expected.py").TREES


def test_every_golden_file_of_classes_is_known():
    assert {path.stem for path in (GOLDEN / "classes").glob("*.msgpack")} == set(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_a_golden_file_of_classes_loads_for_ever(name):
    if name in ("brainpy", "penzai"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip(name)
    path, make = GOLDEN / "classes" / f"{name}.msgpack", CLASSES[name]
    expected, target = bt.msgpack_dumps(make()), make(1000)
    assert bt.msgpack_dumps(target) != expected
    assert bt.msgpack_dumps(bt.msgpack_load(path, target=target)) == expected
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # most of it comes back as plain values
        assert bt.msgpack_load(path).keys() == make().keys()
    with bt.open_checkpoint(path) as checkpoint:
        checkpoint.verify()


def tags_of(value):
    if isinstance(value, dict):
        value = list(value.values())
    elif isinstance(value, list) and len(value) > 2 and value[0] in (NODE, LEAF):
        yield value[1]
    for part in value if isinstance(value, list) else ():
        yield from tags_of(part)


def test_every_tag_of_the_document_is_in_a_golden_file():
    found = set()
    for path in GOLDEN.rglob("*.msgpack"):
        data = path.read_bytes()
        offset, length = struct.unpack_from("<QQ", data, len(data) - 36)
        index = msgpack.unpackb(data[offset : offset + length])
        found |= set(tags_of([index["structure"], index["shared"], index["metadata"]]))
    text = (ROOT / "docs" / "format.md").read_text()
    section = text.partition("### Tags")[2].partition("### Bit generators")[0]
    rows = re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE)
    tags = {tag for row in rows for tag in re.findall(r"`(.*?)`", row)} - {"class:NAME"}
    assert len(tags) > 60
    # A path of the system that one is on: these files were written on Linux.
    assert tags - found == {"path.WindowsPath"}
    assert {"class:golden/Fields", "class:golden/Synapse", "class:golden/Counter", "class:golden/Colour"} <= found


class FullFile(io.RawIOBase):
    """A file on a disk that gets full."""

    def __init__(self, room):
        super().__init__()
        self._room = room

    def writable(self):
        return True

    def write(self, data):
        if self._room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._room -= len(data)
        return len(data)


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_disk_that_gets_full_ends_the_threads_that_hash_and_compress(compression):
    tree = [np.arange(3 << 20, dtype=np.uint8) for _ in range(4)]
    with mock.patch.object(layout, "HASH_BLOCK", 1 << 21), pytest.raises(OSError, match="No space left"):
        bt.msgpack_save(FullFile(5 << 20 if compression is None else 1 << 12), tree, compression=compression)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("braintools_ckpt")]


def test_large_blocks_that_are_hashed_aside_stay_in_order():
    sizes = [1, 1 << 16, 3 << 20, 5, (5 << 20) + 3, 1 << 21, 70_000]
    tree = [np.random.default_rng(i).integers(0, 255, size, np.uint8) for i, size in enumerate(sizes)]
    tree += [np.asfortranarray(np.arange(3 << 19, dtype=np.float32).reshape(1024, -1)), np.arange(1 << 20, dtype=">i4")]
    with mock.patch.object(layout, "HASH_BLOCK", 1 << 21):
        data = bt.msgpack_dumps(tree)
    reader = TinyReader(data)  # which checks every hash
    for expected, found in zip(tree, reader.tree(), strict=True):
        assert np.array_equal(expected, found)
