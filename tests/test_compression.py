"""Files with compressed blobs: the same trees, smaller, and as hard to damage unseen."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import textwrap
import threading
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hostile.forge import ARRAY, forge
from hostile.frames import BLOBS, BOMB, FRAME, FRAMES, ZEROS, A, compressed, lying
from hypothesis import given
from hypothesis import strategies as st
from test_format import SIMPLE, TinyReader, look_at_everything, within
from test_lazy_import import imported_by
from test_memory import ROOM, SAVE, SIZE, measure
from trees import NUMPY_DTYPES, assert_same, blank_tree, checkpointable_trees, fill, lay_out

import braintools_ckpt as bt
from braintools_ckpt.format import codec, layout, pipeline

MIB = 1 << 20


@contextlib.contextmanager
def small_frames(**sizes):
    """Let small trees make files of many blobs, some of which are compressed."""
    made = {"MAX_BLOB": 256, "HASH_BLOCK": 256, "PACKED_BELOW": 64, "PACK_SIZE": 128, "FRAME_SIZE": 128}
    with mock.patch.multiple(layout, **made, **sizes):
        yield


def dumps(tree, **options):
    return bt.msgpack_dumps(tree, compression="zstd", **options)


def normal(count, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(count).astype(dtype)


def noise(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, count, np.uint8)


# --- what comes back ------------------------------------------------------------------------------------------


@given(tree=checkpointable_trees(template_free=True))
def test_trees_come_back_without_a_template(tree):
    with small_frames():
        data = dumps(tree)
    assert_same(tree, bt.msgpack_loads(data), template=False, loaded=True)
    assert_same(tree, bt.msgpack_load(io.BytesIO(data), mmap=True), template=False, loaded=True)


@given(tree=checkpointable_trees())
def test_trees_come_back_with_a_template(tree):
    with small_frames(), tempfile.TemporaryDirectory() as directory:
        path = bt.msgpack_save(os.path.join(directory, "x"), tree, compression="zstd", durable=False)
        for options in ({}, {"mmap": True}, {"parallel": False}, {"verify": False}):
            assert_same(tree, bt.msgpack_load(path, blank_tree(tree), **options), loaded=True)


@pytest.mark.parametrize("dtype", NUMPY_DTYPES, ids=str)
@pytest.mark.parametrize("how", ["C", "F", "strided"])
def test_arrays_of_every_dtype_come_back(dtype, how):
    array = lay_out(fill(np.dtype(dtype), 6000, np.random.default_rng(1)).reshape(60, 100), how)
    tree = {"few": array[:5], "many": np.repeat(array, 4, axis=0), "whole": array}
    data = dumps(tree)
    assert_same(tree, bt.msgpack_loads(data), loaded=True)
    assert data == dumps(bt.msgpack_loads(data))


@given(data=st.binary(max_size=700), width=st.integers(1, 64), times=st.integers(1, 40))
def test_bytes_of_every_length_and_width_come_back(data, width, times):
    raw = np.frombuffer(data * times, np.uint8)
    frame = codec.compress(raw, width)
    if frame is not None:
        out = np.empty_like(raw)
        codec.decompress(np.frombuffer(frame, np.uint8), width, out)
        assert out.tobytes() == raw.tobytes()
        assert len(frame) < len(raw)


@pytest.mark.parametrize("boundary", [-4, -1, 0, 1, 4])
@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["u1", "f4", "V12", [("a", "i1"), ("b", "f4", (2,))]], ids=str)
def test_arrays_that_end_around_a_block_come_back(boundary, blocks, dtype):
    dtype = np.dtype(dtype)
    bytes_ = (np.arange((blocks << 17) + boundary * dtype.itemsize) // 100 % 251).astype(np.uint8)
    array = bytes_[: len(bytes_) // dtype.itemsize * dtype.itemsize].view(dtype)
    with mock.patch.object(layout, "FRAME_SIZE", 1 << 17):
        data = dumps([array])
        assert data == dumps([np.repeat(array, 2)[::2]])  # wherever a staging buffer ends
    assert bt.msgpack_loads(data)[0].tobytes() == array.tobytes()
    assert len(data) < len(bytes_) // 9


def test_a_reader_written_from_the_document_reads_compressed_files():
    tree = {**SIMPLE, "weights": normal(70_000), "records": np.zeros(30_000, [("a", "i1"), ("b", ">f8")])}
    reader = TinyReader(dumps(tree))
    assert reader.index["features"] == ["zstd"]
    assert set(reader.index["arrays"]["width"]) == {4, 8, 9}  # weights, a pack and records
    assert_same(tree, reader.tree())
    with small_frames():
        reader = TinyReader(dumps(tree := {**SIMPLE, "weights": normal(70)}))
    assert {0, 8} <= set(reader.index["arrays"]["width"])
    assert_same(tree, reader.tree())


@pytest.mark.parametrize("mmap", [False, True])
def test_parts_are_what_numpy_gives(mmap):
    array = normal(1_200_000).reshape(300, 4000)
    wide = np.arange(500_000, dtype=">i8").reshape(-1, 5)
    data = dumps({"a": array, "b": wide, "r": noise(2 * MIB)})
    with bt.open_checkpoint(io.BytesIO(data), mmap=mmap) as checkpoint:
        for index in (0, -1, slice(3, 9), slice(None, None, -70), (slice(60, 70), slice(None, None, 3)), ...):
            assert checkpoint.read("a", index).tobytes() == array[index].tobytes()
            assert checkpoint.read("b", index).tolist() == wide[index].tolist()
        assert checkpoint.read("r", slice(-9, None)).tolist() == noise(2 * MIB)[-9:].tolist()
        assert_same(array, checkpoint["a"], loaded=True)


@pytest.mark.parametrize("mmap", [False, True])
def test_a_part_reads_only_the_blocks_it_needs(mmap):
    array = (np.arange(1 << 20) % 1000).astype(np.int32).reshape(64, -1)  # four blobs of 16 rows
    data = bytearray(dumps([array]))
    for at in TinyReader(data).blob_at[1:]:
        data[at + 9] ^= 1
    with bt.open_checkpoint(io.BytesIO(data), mmap=mmap) as checkpoint:
        assert checkpoint.read("0", slice(0, 16)).tolist() == array[:16].tolist()
        with pytest.raises(bt.CorruptCheckpointError):
            checkpoint.read("0", slice(0, 17))


def test_a_part_of_a_tree_reads_only_what_it_needs():
    tree = {"a": np.zeros(100_000), "b": np.ones(100_000)}
    data = bytearray(dumps(tree))
    data[TinyReader(data).blob_at[1] + 5] ^= 1
    assert_same({"a": tree["a"]}, bt.msgpack_loads(bytes(data), {"a": np.empty(100_000)}, partial=True))
    with bt.open_checkpoint(io.BytesIO(data)) as checkpoint:
        assert checkpoint["a"].tolist() == tree["a"].tolist()
        with pytest.raises(bt.CorruptCheckpointError):
            checkpoint["b"]


def test_what_is_raw_is_mapped_and_what_is_compressed_is_read(tmp_path):
    tree = {"raw": noise(3 * MIB), "zeros": np.zeros(MIB), "jax": jnp.zeros(MIB)}
    path = bt.msgpack_save(tmp_path / "x", tree, compression="zstd")
    with bt.open_checkpoint(path, mmap=True) as checkpoint:
        arrays = checkpoint._document.arrays
        mapped = np.frombuffer(arrays._unused_mapping([])(0, checkpoint.size), np.uint8)
        assert np.shares_memory(mapped, checkpoint["raw"])
        assert not np.shares_memory(mapped, checkpoint["zeros"])
    loaded = bt.msgpack_load(path, mmap=True)
    for array in jax.tree.leaves(loaded):
        assert np.asarray(array).__array_interface__["data"][0] % 64 == 0
    assert_same(tree, loaded, loaded=True)
    assert_same(tree, bt.msgpack_load(path, blank_tree(tree), mmap=True), loaded=True)


def test_arrays_of_two_reads_share_nothing():
    with bt.open_checkpoint(io.BytesIO(dumps({"a": np.zeros(50_000), "b": np.zeros(9)})), mmap=True) as checkpoint:
        for name in "ab":
            first, second = checkpoint[name], checkpoint[name]
            first[...] = 1
            assert not second.any()


# --- what is compressed, and how much ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "most"),
    [
        (normal(MIB), 0.85),
        (normal(MIB, np.float64), 0.89),
        (normal(MIB, np.float16), 0.86),
        (normal(MIB).astype(jnp.bfloat16), 0.69),
        (normal(MIB).astype(np.complex64), 0.43),
        (np.random.default_rng(0).integers(0, 50_000, MIB, np.int32), 0.51),
        (normal(MIB).view(np.complex64), 0.85),
        (np.arange(MIB), 0.01),
        (np.zeros(MIB), 0.001),
        (noise(MIB) < 9, 0.2),
        (np.array([f"neuron {i}" for i in range(90_000)]), 0.1),
        (np.frombuffer(b"some words and more words and many words " * 9999, np.uint8), 0.01),
        (np.round(normal(MIB, np.float64), 1), 0.25),
    ],
    ids=lambda x: f"{x.dtype}{x.ndim}" if isinstance(x, np.ndarray) else str(x),
)
def test_what_can_be_compressed_is(array, most):
    for data in (array, list(np.array_split(array, 1 + array.nbytes // 50_000))):
        raw, compressed = len(bt.msgpack_dumps(data)), len(dumps(data))
        assert compressed < raw * most


@pytest.mark.parametrize("size", [1, 9, 5000, 65_536, MIB - 1, MIB, MIB + 1, 3 * MIB + 7])
@pytest.mark.parametrize("make", [noise, lambda size: noise(size // 4 * 4).view("i4")], ids=["u1", "i4"])
def test_what_cannot_be_compressed_gives_the_file_that_it_gives_otherwise(make, size):
    tree = {"a": make(size), "none": np.zeros((0, 3)), "n": 1}
    assert dumps(tree) == bt.msgpack_dumps(tree)
    assert "features" not in TinyReader(dumps(tree)).index


def test_a_large_array_is_one_blob_if_it_is_not_worth_compressing():
    strided = noise(8 * MIB).view("u4")[::2]
    reader = TinyReader(dumps([np.zeros(MIB, np.int32), noise(3 * MIB), strided]))
    assert [*reader.index["arrays"]["width"]] == [4, 4, 4, 4, 0, 0]
    sizes = np.frombuffer(reader.index["arrays"]["blob_size"], "<u8").tolist()
    assert sizes[4:] == [3 * MIB, 4 * MIB]


def test_blocks_of_an_array_that_do_not_shrink_stay_raw():
    mixed = np.concatenate([np.zeros(MIB, np.uint8), noise(MIB), np.zeros(MIB, np.uint8)])
    reader = TinyReader(data := dumps([mixed]))
    assert [*reader.index["arrays"]["width"]] == [1, 0, 1]
    for options in ({}, {"mmap": True}):
        assert_same([mixed], bt.msgpack_load(io.BytesIO(data), **options), loaded=True)
    with bt.open_checkpoint(io.BytesIO(data)) as checkpoint:
        assert checkpoint.read("0", slice(MIB - 2, 2 * MIB + 2)).tolist() == mixed[MIB - 2 : 2 * MIB + 2].tolist()


def test_an_item_larger_than_a_sample_is_no_trouble():
    assert len(dumps([np.zeros(2, "V3000000")])) < 2000
    assert_same([np.zeros(2, "S3000000")], bt.msgpack_loads(dumps([np.zeros(2, "S3000000")])))


# --- how it is written ----------------------------------------------------------------------------------------


def mixed_tree():
    return {
        "weights": [normal(400_000, seed=i).astype(dtype) for i, dtype in enumerate(["f4", "f8", jnp.bfloat16])],
        "small": [np.arange(i) for i in range(200)],
        "noise": [noise(2 * MIB), np.asfortranarray(normal(600_000).reshape(600, 1000)), noise(100_000)],
        "jax": jnp.arange(500_000),
    }


def test_the_same_tree_gives_the_same_bytes_with_any_number_of_threads(monkeypatch):
    files = []
    for count in (1, 2, 8):
        monkeypatch.setattr(pipeline, "processors", lambda count=count: count)
        files.append(dumps(mixed_tree(), metadata={"a": 1}))
    assert files[0] == files[1] == files[2] == dumps(bt.msgpack_loads(files[0]), metadata={"a": 1})


def test_paths_file_objects_bytes_and_background_saves_give_one_file(tmp_path):
    data = dumps(mixed_tree())
    file = io.BytesIO()
    bt.msgpack_save(file, mixed_tree(), compression="zstd")
    path = bt.msgpack_save(tmp_path / "x", mixed_tree(), compression="zstd", progress=True)
    with bt.AsyncManager() as manager:
        later = bt.msgpack_save(tmp_path / "y", mixed_tree(), async_manager=manager, compression="zstd")
    assert data == file.getvalue() == Path(path).read_bytes() == Path(later).read_bytes()
    assert_same(mixed_tree(), bt.msgpack_load(path, progress=True), loaded=True)


def test_a_background_save_ends_though_the_program_ends(tmp_path):
    code = """
    import sys, numpy as np, braintools_ckpt as bt
    tree = {"a": [np.random.default_rng(i).standard_normal(1 << 20) for i in range(8)]}
    bt.msgpack_save(sys.argv[1], tree, async_manager=bt.AsyncManager(), compression="zstd")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), tmp_path / "x"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    with bt.open_checkpoint(tmp_path / "x") as checkpoint:
        checkpoint.verify()
        assert len(checkpoint) == 8


class FullDisk(io.RawIOBase):
    def __init__(self, room):
        self.room = room

    def writable(self):
        return True

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(28, "No space left on device")
        return len(data)


@pytest.mark.parametrize("room", [10, MIB, 4 * MIB])
def test_a_save_that_fails_leaves_no_thread(room):
    with pytest.raises(OSError, match="No space left"):
        bt.msgpack_save(FullDisk(room), mixed_tree(), compression="zstd")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("braintools_ckpt")]


@pytest.mark.skipif(sys.platform != "linux", reason="measures by /proc/self/statm")
@pytest.mark.parametrize("tree", ["plain", "fortran", "small"])
def test_a_save_copies_no_more_than_a_few_blocks(tree, tmp_path):
    code = SAVE.format(tree=tree).replace("durable=False", "durable=False, compression='zstd'")
    code = code.replace("bt.msgpack_dumps([np.ones(3)", "bt.msgpack_dumps(compression='zstd', target=[np.zeros(99)")
    assert measure(code, tmp_path / "x")["save"] < ROOM
    assert (tmp_path / "x").stat().st_size < SIZE / 4


def test_compression_is_asked_for_in_the_right_way(tmp_path):
    for save in (lambda **options: bt.msgpack_save(tmp_path / "x", 1, **options), lambda **o: bt.msgpack_dumps(1, **o)):
        with pytest.raises(ValueError) as caught:
            save(compression="gzip")
        assert str(caught.value) == "compression must be one of None, 'zstd', got 'gzip'."
        with pytest.raises(ValueError) as caught:
            save(compression="zstd", format="flax")
        assert str(caught.value) == ("format='flax' has no compression: leave compression out, or use format='v1'.")
    assert list(tmp_path.iterdir()) == []


# --- a library that is missing ----------------------------------------------------------------------------------

MISSING = (
    "Checkpoints that are compressed with zstd need the library zstandard, which cannot be imported "
    "(import of zstandard halted; None in sys.modules). Run: pip install 'braintools-ckpt[zstd]'"
)


def test_a_missing_library_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    file = io.BytesIO()
    saves = [
        lambda: bt.msgpack_save(tmp_path / "new" / "x", {"a": 1}, compression="zstd"),
        lambda: bt.msgpack_save(file, {"a": 1}, compression="zstd"),
        lambda: dumps({"a": 1}),
    ]
    for save in saves:
        with pytest.raises(ImportError) as caught:
            save()
        assert type(caught.value) is bt.MissingLibraryError
        assert str(caught.value) == MISSING
    assert list(tmp_path.iterdir()) == []
    assert file.getvalue() == b""


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_the_library_is_imported_only_when_it_is_needed(compression):
    code = f"""
    import io, numpy as np, braintools_ckpt as bt
    data = bt.msgpack_dumps({{"a": np.zeros(9)}}, compression={compression!r})
    bt.msgpack_loads(data)
    bt.open_checkpoint(io.BytesIO(data)).verify()
    """
    assert imported_by(code, ("zstandard",)) == (["zstandard"] if compression else [])


def test_a_missing_library_is_told_when_data_is_needed(monkeypatch):
    data = dumps({"a": np.zeros(9000), "n": 1}, metadata={"step": 7})
    raw = dumps({"a": noise(9000)})
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with bt.open_checkpoint(io.BytesIO(data)) as checkpoint:
        assert checkpoint.metadata == {"step": 7}
        assert checkpoint.specs["a"].shape == (9000,)
        assert checkpoint["n"] == 1
        reads = [lambda: checkpoint["a"], lambda: checkpoint.read("a", 0), lambda: bt.msgpack_loads(data)]
        for read in (*reads, checkpoint.verify):
            with pytest.raises(bt.MissingLibraryError) as caught:
                read()
            assert str(caught.value) == MISSING
    assert_same({"a": noise(9000)}, bt.msgpack_loads(raw))


# --- damage ---------------------------------------------------------------------------------------------------


def small_file():
    """A file with a compressed pack, a compressed array of two blobs, one of them raw, and a raw array."""
    half = np.concatenate([np.zeros(128, np.uint8), noise(40)])
    with small_frames():
        return dumps({"p": np.zeros(15, "i4"), "half": half, "raw": noise(70), "n": [1, "a"]}, metadata={"step": 1})


SMALL = small_file()


def test_the_small_file_has_all_parts():
    reader = TinyReader(SMALL)
    assert sorted(reader.index["arrays"]["width"]) == [0, 0, 1, 4]
    assert len(SMALL) < 900


@pytest.mark.parametrize("mmap", [False, True])
def test_every_flipped_bit_is_found(mmap):
    at = TinyReader(SMALL)
    width = [*at.index["arrays"]["width"]]
    sizes = np.frombuffer(at.index["arrays"]["blob_size"], "<u8").tolist()
    mapped = {
        place
        for start, size, w in zip(at.blob_at, sizes, width, strict=True)
        for place in range(start - 69, start + size)
        if not w
    }
    for place in range(len(SMALL)):
        for bit in range(8):
            damaged = bytearray(SMALL)
            damaged[place] ^= 1 << bit
            try:
                bt.msgpack_load(io.BytesIO(damaged), mmap=mmap)
            except bt.InvalidCheckpointPath:  # to map a file whose magic is wrong is another one
                continue
            assert mmap, (place, bit)
            assert place in mapped, (place, bit)  # a mapped file's raw bytes and gaps are not checked


def test_verify_finds_every_flipped_byte():
    for place in range(len(SMALL)):
        damaged = bytearray(SMALL)
        damaged[place] ^= 0x55
        with (
            pytest.raises(bt.CorruptCheckpointError),
            bt.open_checkpoint(io.BytesIO(damaged), verify=False) as checkpoint,
        ):
            checkpoint.verify()
    with bt.open_checkpoint(io.BytesIO(SMALL), verify=False) as checkpoint:
        checkpoint.verify()


def test_every_truncation_is_found():
    for length in range(len(SMALL)):
        with pytest.raises(bt.CorruptCheckpointError):
            bt.msgpack_load(io.BytesIO(SMALL[:length]))


def test_damage_is_told_with_its_place():
    data = dumps({"a": np.zeros(30_000), "b": np.ones(30_000)})
    at = TinyReader(data).blob_at[1]
    damaged = bytearray(data)
    damaged[at + 10] ^= 1
    with pytest.raises(bt.CorruptCheckpointError) as caught:
        bt.msgpack_loads(bytes(damaged))
    assert str(caught.value) == (
        f"Corrupt checkpoint <bytes>: the checksum of the data at byte {at} does not match (b). The file was damaged "
        "or cut short after it was written; use another copy."
    )


def test_without_checksums_a_damaged_frame_is_still_no_more_than_an_error():
    data = dumps({"a": np.arange(30_000)})
    at = TinyReader(data).blob_at[0]
    size = int.from_bytes(TinyReader(data).index["arrays"]["blob_size"][:8], "little")
    for place in range(at, at + size, 7):
        damaged = bytearray(data)
        damaged[place] ^= 0xFF
        with contextlib.suppress(bt.CorruptCheckpointError):
            bt.msgpack_loads(bytes(damaged), verify=False)


# --- files that are wrong on purpose ----------------------------------------------------------------------------


def test_a_forged_compressed_file_that_is_right_is_read():
    assert bt.msgpack_loads(compressed())[0].tobytes() == ZEROS
    assert bt.msgpack_loads(compressed([lying(4096)]))[0].tobytes() == ZEROS
    mixed = compressed([FRAME, b"abc", FRAME], (4096, 3, 4096), (4, 0, 255), [A, ("numpy", "S3", [1], b"abc"), A])
    assert [array.tobytes() for array in bt.msgpack_loads(mixed)] == [ZEROS, b"abc", ZEROS]
    assert TinyReader(mixed).tree()[1].tolist() == [b"abc"]


@pytest.mark.parametrize("make", BLOBS.values(), ids=BLOBS)
def test_a_malformed_table_is_refused(make):
    data = make()
    with within(), pytest.raises(bt.CorruptCheckpointError):
        bt.open_checkpoint(io.BytesIO(data))


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_a_malformed_frame_is_refused(frame, width):
    data = compressed([frame], width=(width,))
    for load in (bt.msgpack_loads, lambda data: bt.msgpack_load(io.BytesIO(data), mmap=True)):
        with within(1), pytest.raises(bt.CorruptCheckpointError) as caught:
            load(data)
        assert "the data at byte 64 cannot be decompressed (" in str(caught.value)
        assert ") (0). The file was damaged" in str(caught.value)
    with within(1), bt.open_checkpoint(io.BytesIO(data)) as checkpoint:
        with pytest.raises(bt.CorruptCheckpointError, match="cannot be decompressed"):
            checkpoint.verify()  # though its checksums are right
        with pytest.raises(bt.CorruptCheckpointError):
            look_at_everything(checkpoint)
        with pytest.raises(bt.CorruptCheckpointError):
            checkpoint.read("0", 5)


def test_a_frame_that_is_wrong_is_told():
    with pytest.raises(bt.CorruptCheckpointError) as caught:
        bt.msgpack_loads(compressed([BOMB]))
    assert str(caught.value) == (
        "Corrupt checkpoint <bytes>: the data at byte 64 cannot be decompressed (its frame says that it holds 16777216 "
        "bytes, expected 4096) (0). The file was damaged or cut short after it was written; use another copy."
    )


@pytest.mark.parametrize("features", [["lz4"], ["zstd", "zstd2", "a" * 1000]], ids=["one", "many"])
def test_an_unknown_feature_is_refused(features):
    data = forge([ARRAY, 0], [A], features=features)
    for load in (bt.msgpack_loads, lambda data: bt.open_checkpoint(io.BytesIO(data))):
        with pytest.raises(bt.UnsupportedVersionError) as caught:
            load(data)
        name = "<bytes>" if load is bt.msgpack_loads else "<BytesIO>"
        unknown = "'lz4'" if features == ["lz4"] else f"'{'a' * 12}...{'a' * 13}' and 'zstd2'"
        assert str(caught.value) == (
            f"The checkpoint {name} uses {unknown}, which this version of braintools_ckpt does not know. "
            "Run: pip install --upgrade braintools-ckpt"
        )


def test_max_size_limits_what_is_decompressed():
    data = dumps({"a": np.zeros(8 * MIB, np.uint8)})
    assert len(data) < 5000
    for name, load in {
        "<bytes>": lambda size: bt.msgpack_loads(data, max_size=size),
        "<BytesIO>": lambda size: bt.msgpack_load(io.BytesIO(data), max_size=size),
    }.items():
        with within(2), pytest.raises(bt.CheckpointTooLargeError, match="too large"):
            load(len(data) - 1)
        with within(2), pytest.raises(bt.CheckpointTooLargeError) as caught:
            load(8 * MIB - 1)
        assert str(caught.value) == (
            f"Checkpoint data too large: {name} holds 8388608 bytes of data, which exceeds maximum 8388607 bytes "
            "(max_size=)."
        )
        assert not load(8 * MIB)["a"].any()


# --- speed ----------------------------------------------------------------------------------------------------


def test_large_files_are_read_in_several_threads(monkeypatch):
    from braintools_ckpt.format import reader

    pools = []
    real = reader.do_all
    monkeypatch.setattr(reader, "do_all", lambda *args: (pools.append(args), real(*args)))
    data = dumps({"a": np.zeros(2 * MIB, np.uint8)})
    assert_same({"a": np.zeros(2 * MIB, np.uint8)}, bt.msgpack_loads(data), loaded=True)
    assert len(pools) == 1
    bt.msgpack_loads(data, parallel=False)
    bt.msgpack_loads(dumps({"a": np.zeros(MIB, np.uint8)}))
    assert len(pools) == 1
