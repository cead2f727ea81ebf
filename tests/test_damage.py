"""Damaged files: every flipped bit, every missing end, and whatever else happens to files is found and told.

``python -m pytest tests/test_damage.py --flips 1000000`` tries every bit.
"""

from __future__ import annotations

import io
import itertools
import os
import re
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import braintools_ckpt as bt
from braintools_ckpt.format import layout

RNG = np.random.default_rng(0)
SMALL = {"MAX_BLOB": 128, "HASH_BLOCK": 64, "PACKED_BELOW": 24, "PACK_SIZE": 48, "FRAME_SIZE": 128}


def made(tree, **options):
    """Make a small file that has all the parts of a large one."""
    with mock.patch.multiple(layout, **SMALL):
        return bt.msgpack_dumps(tree, **options)


def shared():
    array, part = np.arange(30, dtype="u1"), [1, 2]
    return {"a": array, "again": [array, part, part]}


FILES = {
    "plain": made({"w": np.arange(140, dtype="u1"), "v": np.arange(60, dtype="u1")}),
    "packed": made({str(i): np.full(3, i, "i2") for i in range(7)}),
    "compressed": made({"z": np.zeros(130, "i4"), "noise": RNG.integers(0, 255, 70, "u1")}, compression="zstd"),
    "with metadata": made({"w": np.arange(40, dtype="u1")}, metadata={"step": 7, "note": "a", "a": np.arange(3)}),
    "shared": made(shared()),
    "without arrays": made({"a": [1, (2.5, "x")], "b": None}),
}


def load(file):
    bt.msgpack_load(file)


def look(file, **options):
    with bt.open_checkpoint(file, **options) as checkpoint:
        checkpoint.verify()


def look_mapped(file):
    look(file, verify=False, mmap=True)


WAYS = [load, look, look_mapped]
#: What the message of an error says of the place.
PLACE = re.compile(
    r"byte \d+|offset \d+|only \d+ bytes|after \d+ bytes|its index|its trailer|its last bytes|its first bytes"
    r"|its header|its format|format version|line endings|the file is empty"
)


def check_found(data, way):
    """Check that damage is found in one way of reading, and that the error says where it is."""
    file = io.BytesIO(data)
    file.name = "run/state.ckpt"
    with pytest.raises(bt.CheckpointError) as caught:
        way(file)
    assert isinstance(caught.value, bt.InvalidCheckpointPath), repr(caught.value)
    message = str(caught.value)
    assert "run/state.ckpt" in message
    # Without its magic a file is one of flax, which cannot be mapped.
    assert PLACE.search(message) or "neither a checkpoint" in message or "only those can be mapped" in message, message


def flipped(data, bit):
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def test_every_flipped_bit_is_found(request):
    flips = [(name, bit) for name, data in FILES.items() for bit in range(len(data) * 8)]
    step = max(1, -(-len(flips) // request.config.getoption("--flips")))
    tried = flips[:: step | 1]  # an odd step comes by every bit of a byte
    for (name, bit), way in itertools.product(tried, WAYS):
        check_found(flipped(FILES[name], bit), way)
    print(f"{len(tried)} of {len(flips)} flipped bits in {len(FILES)} files, read in {len(WAYS)} ways; 0 not found")


def test_every_truncation_is_found():
    count = 0
    for data, way in itertools.product(FILES.values(), WAYS):
        for length in range(len(data)):
            check_found(data[:length], way)
            count += 1
    print(f"{count // len(WAYS)} truncations, read in {len(WAYS)} ways; 0 not found")


def test_what_is_missing_in_the_midst_is_found():
    for data, way in itertools.product(FILES.values(), WAYS):
        for at in range(0, len(data), 7):
            for size in (1, 8, 64):
                if at + size < len(data):
                    check_found(data[:at] + data[at + size :], way)
                    check_found(data[:at] + data[at : at + size] * 2 + data[at + size :], way)


def parts(data):
    """Give what stands before the index, the index, and the trailer."""
    _, offset, length, _, _ = layout.TRAILER.unpack(data[-layout.TRAILER.size :])
    return data[:offset], data[offset : offset + length], data[-layout.TRAILER.size :]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("way", WAYS)
def test_what_is_added_is_found(name, way):
    data = FILES[name]
    before, index, trailer = parts(data)
    for extra in (b"\0", b"\xc0", b"\n", b"garbage" * 9, trailer, index + trailer, data, layout.HEADER):
        check_found(data + extra, way)
        check_found(extra + data, way)
    for other in FILES.values():
        check_found(data + other, way)
        if other != data:
            check_found(before + b"".join(parts(other)[1:]), way)
            check_found(before + index + parts(other)[2], way)


def blobs_of(data):
    """Give where the data of each blob begins, and its size."""
    import msgpack

    table = msgpack.unpackb(parts(data)[1])["arrays"]
    columns = (np.frombuffer(table[name], "<u8").tolist() for name in ("blob_at", "blob_size"))
    return list(zip(*columns, strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_blobs_that_changed_places_are_found(way):
    count = 0
    for data in FILES.values():
        for (one, size), (other, other_size) in itertools.combinations(blobs_of(data), 2):
            size = min(size, other_size)
            swapped = bytearray(data)
            swapped[one : one + size], swapped[other : other + size] = (
                data[other : other + size],
                data[one : one + size],
            )
            if swapped != data:
                check_found(bytes(swapped), way)
                count += 1
    assert count > 5


def test_data_of_another_version_of_the_file_is_found():
    """What a disk leaves that has written one part of a file and not another."""
    old, new = (made({"w": np.full(140, i, "u1"), "v": np.full(60, i, "u1")}) for i in (1, 2))
    assert len(old) == len(new)
    for at in range(64, len(old), 64):
        mixed = new[:at] + old[at:]
        for torn in (mixed, old[:at] + new[at:], new[:at] + bytes(len(old) - at), bytes(at) + new[at:]):
            if torn not in (old, new):
                for way in WAYS:
                    check_found(torn, way)


# --- files that change while they are read ----------------------------------------------------------------------


@pytest.fixture
def path(tmp_path):
    """A file of many blocks, none of which is packed."""
    tree = {"a": np.arange(3000, dtype="i4"), "b": np.arange(3000, dtype="i4")[::-1].copy()}
    with mock.patch.multiple(layout, PACKED_BELOW=1, HASH_BLOCK=256):
        return Path(bt.msgpack_save(tmp_path / "state.ckpt", tree))


def overwrite(path, at, data):
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


@pytest.mark.parametrize("mmap", [False, True])
def test_a_file_that_is_overwritten_after_it_was_opened(mmap, path):
    (first, _), (second, _) = blobs_of(path.read_bytes())
    with bt.open_checkpoint(path, mmap=mmap) as checkpoint:
        overwrite(path, second + 5000, b"\xff")
        assert checkpoint["a"][5] == 5
        with pytest.raises(bt.CorruptCheckpointError, match=rf"{path}: the checksum of the data at byte \d+ .*\(b\)"):
            checkpoint.verify()
        if not mmap:  # what is mapped is not checked, as its documentation says
            with pytest.raises(bt.CorruptCheckpointError, match=rf"{path}: the checksum .*\(b\)"):
                checkpoint["b"]
            assert checkpoint.read("b", slice(0, 60)).tolist() == list(range(2999, 2939, -1))
            with pytest.raises(bt.CorruptCheckpointError, match=rf"{path}: the checksum .*\(b\)"):
                checkpoint.read("b", 1250)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("size", [0, 18, 100, 13000, -1])
def test_a_file_that_is_cut_after_it_was_opened(mmap, size, path):
    with bt.open_checkpoint(path, mmap=mmap) as checkpoint:
        os.truncate(path, size % path.stat().st_size)
        if size == -1:
            checkpoint.verify()  # all that it needs has been read, or is there
            return
        with pytest.raises(bt.CorruptCheckpointError, match=rf"{path} ends early: .*cut short, or changed while"):
            checkpoint.verify()
        with pytest.raises(bt.CorruptCheckpointError, match=rf"{path} ends early"):
            checkpoint["b"]


def test_a_file_that_grows_after_it_was_opened(path):
    with bt.open_checkpoint(path) as checkpoint, open(path, "ab") as file:
        file.write(bytes(1000))
        file.flush()
        assert checkpoint["a"][7] == 7
        checkpoint.verify()
    with pytest.raises(bt.CorruptCheckpointError, match="its last bytes"):
        bt.msgpack_load(path)


@pytest.mark.parametrize("mmap", [False, True])
def test_a_file_that_is_replaced_or_removed_stays_what_it_was_to_those_who_read_it(mmap, path):
    with bt.open_checkpoint(path, mmap=mmap) as checkpoint:
        bt.msgpack_save(path, {"a": np.zeros(3000, "i4"), "b": 1})
        assert checkpoint["a"][7] == 7
        path.unlink()
        assert checkpoint["b"][0] == 2999
        checkpoint.verify()


@pytest.mark.parametrize("moment", range(0, 30, 3))
def test_a_file_that_is_overwritten_while_it_is_read(moment, path, monkeypatch):
    """Whenever another program writes into the file, the values are the old ones, or there is an error."""
    from braintools_ckpt.storage.sources import LocalSource

    real, reads = LocalSource._read_some, itertools.count()

    def read_some(source, offset, batch):
        if next(reads) == moment:
            overwrite(path, 64, os.urandom(20_000))
        return real(source, offset, batch[:1])

    monkeypatch.setattr(LocalSource, "_read_some", read_some)
    with pytest.raises(bt.CorruptCheckpointError, match=str(path)):
        bt.msgpack_load(path, parallel=False)
