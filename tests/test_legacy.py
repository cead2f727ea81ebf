"""Files of braintools.file and flax.serialization: read for ever, and written so that both read them."""

import collections
import contextlib
import datetime
import importlib.util
import random
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import braintools.file
import jax
import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import pytest
from braintools.file import _msg_checkpoint as braintools_module
from flax import serialization as flax
from hostile.legacy import HOSTILE, MARK, array_ext, f4, split_map
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from trees import assert_same

from braintools_ckpt import msgpack_load
from braintools_ckpt.document import ARRAY, ITEMS, LEAF, LIST
from braintools_ckpt.dtypes import ML_DTYPES, parse
from braintools_ckpt.errors import CorruptCheckpointError, SerializationError
from braintools_ckpt.format import legacy
from braintools_ckpt.format.legacy import read_state_dict, write_state_dict
from braintools_ckpt.storage.sinks import BytesSink

HERE = Path(__file__).parent / "golden"
GOLDEN = sorted((HERE / "legacy").glob("*.msgpack"))


def load_script(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EXPECTED = load_script(HERE / "legacy" / "expected.py").EXPECTED
MAKE = load_script(HERE / "make_legacy.py")


def plain(document):
    """Turn a document into the objects that it stands for."""
    arrays = document.arrays.read(range(len(document.arrays.specs)))
    for array, spec in zip(arrays, document.arrays.specs, strict=True):
        assert (array.dtype, array.shape, spec.kind) == (spec.dtype, spec.shape, "numpy")

    def value_of(value):
        if type(value) is dict:
            return {key: value_of(item) for key, item in value.items()}
        if type(value) is not list:
            return value
        match value:
            case [kind, index] if kind == ARRAY:
                return arrays[index]
            case [kind, *items] if kind == LIST:
                return [value_of(item) for item in items]
            case [kind, *items] if kind == ITEMS:
                return {value_of(k): value_of(v) for k, v in zip(items[::2], items[1::2], strict=True)}
            case [kind, "complex", [inner, real, imag]] if (kind, inner) == (LEAF, LIST):
                return complex(real, imag)
            case [kind, "numpy.scalar", data, {"dtype": descr}] if kind == LEAF:
                return np.frombuffer(data, parse(descr))[0]
        raise AssertionError(value)

    return value_of(document.structure)


def read(data):
    return plain(read_state_dict(data, "test.msgpack"))


def write(tree):
    sink = BytesSink()
    write_state_dict(tree, sink)
    return sink.getvalue()


def same(a, b):
    """Equal to the bit, with the same types all the way down."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(a, np.ndarray | np.generic):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    else:
        assert repr(a) == repr(b)


# ---------------------------------------------------------------------------------------------- golden files


def case_of(path):
    return path.stem.rsplit("-", 1)[1]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden(path):
    same(read(path.read_bytes()), EXPECTED[case_of(path)])


def test_golden_files_are_all_there():
    names = {path.stem.rsplit("-", 1)[0] for path in GOLDEN}
    assert names >= {"braintools-0.0.12", "braintools-0.3.0", "flax-0.12.8", "flax-0.3.0"}
    assert {case_of(path) for path in GOLDEN} == set(EXPECTED)
    assert len(GOLDEN) == 33
    for path in GOLDEN:
        if case_of(path) == "split":
            assert path.read_bytes().count(MARK.encode()) == 2


def test_an_early_file_of_flax_fits_its_tree():
    point = MAKE.Point
    target = {
        "point": point(0, np.zeros(1, np.int16)),
        "nested": [point(point(0.0, None), (np.float32(0), 0j))],
        "weights": {"w": jnp.zeros((2, 3)), "half": jnp.zeros(2, jnp.bfloat16)},
    }
    assert_same(MAKE.early(), msgpack_load(HERE / "legacy" / "flax-0.3.0-early.msgpack", target=target), loaded=True)


@pytest.mark.parametrize("library", ["braintools", "flax"])
@pytest.mark.parametrize("case", MAKE.SHARED + [MAKE.quantities, MAKE.states, MAKE.low_level], ids=lambda c: c.__name__)
def test_files_of_the_installed_libraries(library, case, monkeypatch):
    module = braintools_module if library == "braintools" else flax
    if case is MAKE.split:
        monkeypatch.setattr(module, "MAX_CHUNK_SIZE", 16)
    if case is MAKE.low_level:
        data = (module._msgpack_serialize if library == "braintools" else flax.msgpack_serialize)(case(), in_place=True)
    elif library == "flax" and case in (MAKE.quantities, MAKE.states):
        return  # flax knows neither
    else:
        data = (module._to_bytes if library == "braintools" else flax.to_bytes)(case())
    same(read(data), EXPECTED[case.__name__])


def test_a_file_saved_by_braintools(tmp_path):
    path = tmp_path / "old.msgpack"
    braintools.file.msgpack_save(str(path), {"w": jnp.arange(3.0), "step": 3}, verbose=False)
    same(read(path.read_bytes()), {"w": np.arange(3, dtype="float32"), "step": 3})


# ----------------------------------------------------------------------------------------------- what reading gives


def test_arrays_are_fresh_writable_and_not_tied_to_the_buffer():
    buffer = bytearray(write({"w": np.arange(3), "big": np.arange(5000)}))
    document = read_state_dict(memoryview(buffer), "x")
    buffer[:] = bytes(len(buffer))
    first, second = (document.arrays.read([0])[0] for _ in range(2))
    assert first.flags.writeable
    assert first.flags.owndata
    first[0] = 9
    assert second.tolist() == [0, 1, 2]
    assert document.arrays.read_part(1, slice(2, 4)).tolist() == [2, 3]
    assert document.arrays.host(1).tolist() == list(range(5000))


def test_split_arrays_are_one_entry_of_the_table(monkeypatch):
    monkeypatch.setattr(legacy, "MAX_CHUNK_SIZE", 16)
    document = read_state_dict(write({"a": np.ones(1), "s": np.arange(6).reshape(2, 3), "z": np.zeros(1)}), "x")
    assert document.structure == {"a": [ARRAY, 0], "s": [ARRAY, 1], "z": [ARRAY, 2]}
    (array,) = document.arrays.read([1])
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert array.flags.writeable
    assert document.arrays.host(1).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert document.arrays.read_part(1, (0, 1)) == 1
    assert document.arrays.read([2])[0].tolist() == [0]


def test_split_arrays_anywhere():
    inner = split_map([2, 2], f4(1, 2, 3), f4(4))
    expected = np.array([[1, 2], [3, 4]], "float32")
    same(read(msgpack.packb(inner)), expected)
    same(read(msgpack.packb([0, [inner]])), [0, [expected]])
    same(read(msgpack.packb({"a": [{"b": inner}], "c": f4(7)})), {"a": [{"b": expected}], "c": np.float32([7])})
    same(read(msgpack.packb(dict(reversed(inner.items())))), expected)
    swapped = {MARK: True, "chunks": {"1": f4(4), "0": f4(1, 2, 3)}, "shape": {"1": 2, "0": 2}}
    same(read(msgpack.packb([swapped, f4(5)])), [expected, np.float32([5])])


@pytest.mark.parametrize(
    "lookalike",
    [
        {MARK: True},
        {MARK: False, "shape": {"0": 1}, "chunks": {"0": f4(1)}},
        {MARK: 1, "shape": {"0": 1}, "chunks": {"0": f4(1)}},
        {MARK: True, "shape": [1], "chunks": {"0": f4(1)}},
        {MARK: True, "shape": {"0": 1}, "chunks": [f4(1)]},
        {MARK: True, "shape": {"0": 0}, "chunks": {}},
        {MARK: True, "shape": {"1": 1}, "chunks": {"0": f4(1)}},
        {MARK: True, "shape": {"0": 1}, "chunks": {"1": f4(1)}},
        {MARK: True, "shape": {"0": -1}, "chunks": {"0": f4(1)}},
        {MARK: True, "shape": {"0": True}, "chunks": {"0": f4(1)}},
        {MARK: True, "shape": {"0": 1.0}, "chunks": {"0": f4(1)}},
        {MARK: True, "shape": {"0": 1}, "chunks": {"0": 1.0}},
        {MARK: True, "shape": {"0": 1}, "chunks": {"0": "text"}},
        {MARK: True, "shape": {"0": 1}, "chunks": {"0": [1, 0]}},
        split_map([1], f4(1), more=1),
        split_map([2], f4(1), array_ext([1], "float64", bytes(8))),
        split_map([1], array_ext([1, 1], "float32", bytes(4))),
        split_map([1], array_ext([], "float32", bytes(4))),
    ],
    ids=lambda value: repr(value)[:70],
)
def test_a_dict_that_only_looks_like_a_split_array_stays_a_dict(lookalike):
    loaded = read(msgpack.packb({"user": lookalike}))["user"]
    assert list(loaded) == list(lookalike)
    assert type(loaded[MARK]) is type(lookalike[MARK])


def test_big_endian_text_is_read():
    for text in (np.array([["a", "größe"], ["", "xy"]]), np.array("hé"), np.str_("x")):
        saved = np.asarray(text).astype(np.asarray(text).dtype.newbyteorder(">"))
        saved = saved[()] if isinstance(text, np.str_) else saved
        same(read(flax.msgpack_serialize({"t": saved}))["t"], text)


def test_every_ml_dtype():
    for name in sorted(ML_DTYPES & set(dir(ml_dtypes))):
        array = np.zeros(3, getattr(ml_dtypes, name))
        same(read(flax.msgpack_serialize(array)), array)


def test_all_kinds_of_keys():
    keys = [1, -5, 2.5, None, b"x", "x", complex(1, 2), np.float32(0.5), np.int8(7)]
    tree = {"k": dict.fromkeys(keys, 0)}
    loaded = read(flax.msgpack_serialize(tree, in_place=True))["k"]
    assert [repr(key) for key in loaded] == [repr(key) for key in keys]


# ------------------------------------------------------------------------------------------------- hostile files


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile(data):
    with pytest.raises(CorruptCheckpointError, match=r'^Invalid checkpoint at "evil.msgpack": .') as caught:
        read_state_dict(data, "evil.msgpack")
    assert len(str(caught.value)) < 1000


def test_messages():
    def message(data):
        with pytest.raises(CorruptCheckpointError) as caught:
            read_state_dict(data, "a.msgpack")
        return str(caught.value).removeprefix('Invalid checkpoint at "a.msgpack": ')

    assert message(msgpack.packb(array_ext([2, 3], "float32", bytes(20)))) == (
        "20 bytes are not the data of an array float32[2, 3]."
    )
    assert message(msgpack.packb(array_ext([1], "float33", bytes(4)))) == (
        "'float33' is not the name of a dtype that this platform and version know."
    )
    assert message(b"\x81" * 3000) == "it is nested too deeply."
    assert message(b"").startswith("it is neither a checkpoint of braintools_ckpt nor a whole state dict")
    assert message(msgpack.packb(msgpack.ExtType(9, b""))) == "it holds an unknown extension type 9."


def test_hostile_lengths_take_no_memory():
    data = (b"\xdd" + (10**6).to_bytes(4, "big")) * 20 + bytes(10**6)
    evil = b"\xdf\x00\xff\xff\xff" + bytes(100)
    tracemalloc.start()
    for hostile in (evil, HOSTILE["endless shape, large, ext 1"], HOSTILE["huge array of nothing, ext 1"]):
        with pytest.raises(CorruptCheckpointError):
            read_state_dict(hostile, "x")
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()
    with pytest.raises(CorruptCheckpointError):
        read_state_dict(data, "x")


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_every_truncation(path):
    data = path.read_bytes()
    for size in range(len(data)):
        with pytest.raises(CorruptCheckpointError):
            read_state_dict(data[:size], "x")


def mutated(data, rng):
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data))
        match rng.randrange(4):
            case 0:
                data[place] ^= 1 << rng.randrange(8)
            case 1:
                data[place] = rng.choice(b"\x00\x7f\x80\x93\xa1\xc0\xc1\xc4\xc7\xc9\xd4\xd5\xdc\xdd\xdf\xff")
            case 2:
                del data[place : place + rng.randint(1, 4)]
            case 3:
                data[place:place] = rng.randbytes(rng.randint(1, 4))
        data = data or bytearray(b"\xc0")
    return bytes(data)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_mutations_give_an_error_or_a_value(path):
    rng = random.Random(path.stem)
    original = path.read_bytes()
    refused = 0
    for _ in range(600):
        try:
            document = read_state_dict(mutated(original, rng), "x")
        except CorruptCheckpointError:
            refused += 1
            continue
        check_arrays(document)
    assert refused > 100


def check_arrays(document):
    for array, spec in zip(document.arrays.read(range(len(document.arrays.specs))), document.arrays.specs, strict=True):
        assert array.shape == spec.shape
        assert array.nbytes < 10**6
        if array.dtype.kind == "U":
            array.tolist()


@given(st.binary(max_size=200))
def test_any_bytes(data):
    with contextlib.suppress(CorruptCheckpointError):
        read_state_dict(data, "x")


# ------------------------------------------------------------------------------------------------------- writing


@pytest.fixture(scope="session")
def braintools_0_0_12(tmp_path_factory):
    """The file module of braintools 0.0.12, from the package registry."""
    place = tmp_path_factory.mktemp("braintools")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "-q",
        "braintools==0.0.12",
        "-d",
        str(place),
    ]
    try:
        subprocess.run(command, check=True, timeout=120, capture_output=True)
        (wheel,) = place.glob("*.whl")
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        pytest.skip(f"braintools 0.0.12 could not be downloaded: {error}")
    with zipfile.ZipFile(wheel) as archive:
        archive.extract("braintools/file/msg_checkpoint.py", place)
    return load_script(place / "braintools" / "file" / "msg_checkpoint.py")


def writable():
    trees = {case.__name__: case for case in (MAKE.basic, MAKE.numbers, MAKE.ml, MAKE.order)}
    return trees | {"lists": lambda: {"l": [1, [np.arange(3), {"a": jnp.ones(2)}], "x"], "e": {}, "f": []}}


TREES = writable()


def as_numpy(tree):
    """What the file holds of a tree: numpy arrays in C order."""
    if isinstance(tree, dict):
        return {key: as_numpy(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [as_numpy(value) for value in tree]
    return np.asarray(tree, order="C") if isinstance(tree, jax.Array | np.ndarray) else tree


@pytest.mark.parametrize("limit", [2**30, 16, 1])
@pytest.mark.parametrize("case", TREES)
def test_all_libraries_read_what_is_written(case, limit, tmp_path, monkeypatch):
    monkeypatch.setattr(legacy, "MAX_CHUNK_SIZE", limit)
    tree, data = TREES[case](), write(TREES[case]())
    same(read(data), as_numpy(tree))
    same(flax.msgpack_restore(data), as_numpy(tree))
    path = tmp_path / "written.msgpack"
    path.write_bytes(data)
    same(braintools.file.msgpack_load(str(path), verbose=False), as_numpy(tree))


@pytest.mark.parametrize("limit", [2**30, 16])
@pytest.mark.parametrize("case", TREES)
def test_braintools_0_0_12_reads_what_is_written(case, limit, braintools_0_0_12, monkeypatch):
    monkeypatch.setattr(legacy, "MAX_CHUNK_SIZE", limit)
    same(braintools_0_0_12._msgpack_restore(write(TREES[case]())), as_numpy(TREES[case]()))


def test_they_load_it_into_a_target(tmp_path, braintools_0_0_12):
    params = {"b": jnp.ones(2, jnp.bfloat16), "w": jnp.arange(4.0).reshape(2, 2)}
    data = write({"params": params, "step": 3})
    target = {"params": jax.tree.map(jnp.zeros_like, params), "step": 0}
    path = tmp_path / "written.msgpack"
    path.write_bytes(data)
    for loaded in (
        flax.from_bytes(target, data),
        braintools.file.msgpack_load(str(path), target, verbose=False),
        braintools_0_0_12._from_bytes(target, data),
    ):
        same(loaded, as_numpy({"params": params, "step": 3}))


@pytest.mark.parametrize("limit", [2**30, 16])
@pytest.mark.parametrize("case", [case for case in TREES if case != "lists"])
def test_the_same_bytes_as_flax(case, limit, monkeypatch):
    monkeypatch.setattr(legacy, "MAX_CHUNK_SIZE", limit)
    monkeypatch.setattr(flax, "MAX_CHUNK_SIZE", limit)
    assert write(TREES[case]()) == flax.msgpack_serialize(TREES[case](), in_place=True)


SIZES = [0, 1, 2, 15, 16, 17, 31, 32, 255, 256, 4095, 4096, 65535, 65536, 65537, 200_000]


@pytest.mark.parametrize("size", SIZES)
def test_every_form_of_header(size):
    data = np.arange(size) % 251
    tree = {
        "array": data.astype("uint8"),
        "bytes": data.astype("uint8").tobytes(),
        "text": "x" * size,
        "dict": {str(i): i for i in range(size)},
        "list": list(range(size)),
    }
    packed = write(tree)
    assert packed == flax.msgpack_serialize(tree, in_place=True)
    same(read(packed), tree)


def test_leaves_at_the_root():
    for leaf in (
        None,
        True,
        2**64 - 1,
        -(2**63),
        0.5,
        "é",
        b"x",
        1j,
        np.float32(1),
        np.arange(3),
        [],
        {},
        [[], {}],
    ):
        assert write(leaf) == flax.msgpack_serialize(leaf, in_place=True)
        same(read(write(leaf)), leaf)


def test_a_split_array_at_the_root(monkeypatch):
    monkeypatch.setattr(legacy, "MAX_CHUNK_SIZE", 16)
    same(flax.msgpack_restore(write(np.arange(5))), np.arange(5))


def test_arrays_in_lists_are_not_split(monkeypatch):
    monkeypatch.setattr(legacy, "MAX_CHUNK_SIZE", 16)
    data = write({"l": [np.arange(9), {"d": np.arange(9)}], "s": np.arange(9)})
    assert data.count(MARK.encode()) == 1
    same(flax.msgpack_restore(data), {"l": [np.arange(9), {"d": np.arange(9)}], "s": np.arange(9)})


class CountingSink:
    """Keeps the addresses of what it is given, not the bytes."""

    def __init__(self):
        self.position = 0
        self.runs = []

    def write(self, *buffers):
        for buffer in buffers:
            octets = np.frombuffer(buffer, np.uint8) if len(buffer) else np.empty(0, np.uint8)
            self.runs.append((octets.__array_interface__["data"][0], octets.size))
            self.position += octets.size


def test_arrays_are_written_from_where_they_lie():
    array = np.ones(2**20, "float32")
    sink = CountingSink()
    tracemalloc.start()
    write_state_dict({"a": {"b": array}, "again": array}, sink)
    assert tracemalloc.get_traced_memory()[1] < 10**6  # most of it is msgpack's own buffer
    tracemalloc.stop()
    assert sink.runs.count((array.__array_interface__["data"][0], array.nbytes)) == 2


def test_the_real_limit():
    array = np.empty(2**30 + 3, "uint8")  # never touched: it takes no memory
    sink = CountingSink()
    write_state_dict({"a": array}, sink)
    assert [size for _, size in sink.runs if size > 2**20] == [2**30]
    assert 2**30 + 3 < sink.position < 2**30 + 300


def test_the_layout_in_memory_does_not_matter():
    grid = np.arange(12, dtype="int32").reshape(3, 4)
    layouts = {
        "big-endian": grid.astype(">i4"),
        "fortran": np.asfortranarray(grid),
        "reversed": grid[::-1, ::-1],
        "broadcast": np.broadcast_to(grid[0], (3, 4)),
        "transposed": grid.T,
        "big-endian scalar": grid.astype(">i4")[0, 1],
        "big-endian times": np.array(["2024-01-01"], ">M8[s]"),
        "read-only": np.frombuffer(b"abcd", "int16"),
        "subclass": grid.view(type("Sub", (np.ndarray,), {})),
        "large": np.arange(40_000, dtype=">f8").reshape(200, 200).T,
    }
    before = {name: (array.tobytes(), array.dtype) for name, array in layouts.items()}
    loaded = flax.msgpack_restore(write(layouts))
    for name, array in layouts.items():
        np.testing.assert_array_equal(loaded[name], np.asarray(array))
        assert loaded[name].dtype == array.dtype.newbyteorder("<")
        assert (array.tobytes(), array.dtype) == before[name]


def test_equal_time_steps_keep_their_own_name():
    for name in ("M8[s]", "M8[1000ms]", "M8[s]"):
        assert np.datetime_data(read(write(np.zeros(2, name))).dtype) == np.datetime_data(name)


def test_nothing_is_changed(monkeypatch):
    monkeypatch.setattr(legacy, "MAX_CHUNK_SIZE", 16)
    inner = {"w": np.arange(9), "j": jnp.arange(9)}
    tree = {"inner": inner, "list": [inner["w"]]}
    leaves = [inner["w"], inner["j"]]
    write(tree)
    assert tree["inner"] is inner
    assert [inner["w"] is leaves[0], inner["j"] is leaves[1], list(inner)] == [True, True, ["w", "j"]]
    assert list(tree) == ["inner", "list"]


def deep(levels):
    tree = 1
    for _ in range(levels):
        tree = {"d": tree}
    return tree


def test_the_deepest_tree_is_read_by_all():
    data = write(deep(legacy.MAX_DEPTH))
    assert msgpack.unpackb(data) == deep(legacy.MAX_DEPTH)
    for loaded in (
        flax.msgpack_restore(data),
        braintools_module._msgpack_restore(data),
        read_state_dict(data, "x").structure,
    ):
        assert loaded == deep(legacy.MAX_DEPTH)


def cycle():
    tree = {"a": []}
    tree["a"].append(tree)
    return tree


def deleted():
    array = jnp.arange(3)
    array.delete()
    return array


class Text(str):
    pass


REFUSED = {
    "int": (2**64, "an int of more than 64 bits"),
    "negative int": (-(2**63) - 1, "an int of more than 64 bits"),
    "set": ({1}, "a value of type set"),
    "tuple": ((1,), "a value of type tuple"),
    "bytearray": (bytearray(b"x"), "a value of type bytearray"),
    "str subclass": (Text("x"), "a value of type Text"),
    "dict subclass": (collections.OrderedDict(), "a value of type OrderedDict"),
    "datetime": (datetime.datetime(2024, 1, 1), "a value of type datetime"),
    "timestamp": (msgpack.Timestamp(0), "a value of type Timestamp"),
    "ext": (msgpack.ExtType(5, b""), "a value of type ExtType"),
    "object": (object(), "a value of type object"),
    "function": (len, "a value of type builtin_function_or_method"),
    "surrogate": ("\ud800", "a str that is not valid Unicode"),
    "surrogate key": ({"\ud800": 1}, "a str that is not valid Unicode"),
    "int key": ({1: 2}, "a dict key of type int"),
    "bytes key": ({b"a": 2}, "a dict key of type bytes"),
    "str subclass key": ({Text("x"): 2}, "a dict key of type Text"),
    "mark": ({MARK: 2}, "the key that marks split arrays"),
    "text array": (np.array(["ab"]), "an array of dtype <U2"),
    "bytes array": (np.array([b"ab"]), r"an array of dtype \|S2"),
    "text scalar": (np.str_("ab"), "an array of dtype <U2"),
    "structured": (np.zeros(1, [("a", "i4")]), r"an array of dtype \[\('a', '<i4'\)\]"),
    "void": (np.void(b"abc"), r"an array of dtype \|V3"),
    "object array": (np.array([None]), "an array of dtype object"),
    "StringDType": (np.array(["a"], np.dtypes.StringDType()), r"an array of dtype StringDType\(\)"),
    "masked": (np.ma.masked_array([1, 2], [True, False]), "a masked array"),
    "key": (jax.random.key(0), "a typed PRNG key"),
    "deleted": (deleted(), "an array that was deleted or donated"),
    "cycle": (cycle(), "a tree of more than 512 levels, or one that contains itself,"),
    "depth": (deep(legacy.MAX_DEPTH), "a tree of more than 512 levels, or one that contains itself,"),
}


@pytest.mark.parametrize(("value", "what"), REFUSED.values(), ids=REFUSED)
def test_what_the_format_cannot_hold(value, what):
    sink = BytesSink()
    tree = {"fine": np.ones(100_000), "layers": [0, {"bad": value}]}
    with pytest.raises(
        SerializationError, match=f"^Cannot save {what} at path layers/1/bad.* Save it with format='v1'.$"
    ):
        write_state_dict(tree, sink)
    assert sink.position == 0


def test_the_whole_message():
    with pytest.raises(SerializationError) as caught:
        write({"a": [{1, 2}]})
    assert str(caught.value) == (
        "Cannot save a value of type set at path a/0 in the format of flax and braintools, which has no place for it. "
        "Save it with format='v1'."
    )


def test_a_traced_value_is_refused():
    @jax.jit
    def step(x):
        write({"x": x})
        return x

    with pytest.raises(SerializationError, match="a value that jax is tracing at path x"):
        step(1.0)


def test_too_large_inside_of_a_list():
    array = np.empty(2**32, "uint8")  # never touched
    with pytest.raises(SerializationError, match="an array of 4 GiB and more inside of a list at path l/0"):
        write({"l": [array]})


def test_jax_is_not_imported():
    code = (
        "import sys, numpy as np\n"
        "from braintools_ckpt.format.legacy import read_state_dict, write_state_dict\n"
        "from braintools_ckpt.storage.sinks import BytesSink\n"
        "sink = BytesSink(); write_state_dict({'a': np.ones(3)}, sink); read_state_dict(sink.getvalue(), 'x')\n"
        "assert 'jax' not in sys.modules and 'ml_dtypes' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=HERE.parent.parent)


NUMBER_DTYPES = st.sampled_from(
    [np.dtype(c) for c in "?bhilBHILefdFD"]
    + [np.dtype("M8[ms]"), np.dtype("m8[25s]")]
    + [np.dtype(getattr(ml_dtypes, name)) for name in ("bfloat16", "float8_e4m3fn", "int4")]
)


def filled(dtype, shape):
    """Any bytes are an array of numbers, but for the types that do not use all bits of a byte."""
    size = int(np.prod(shape)) * dtype.itemsize
    octets = st.binary(min_size=size, max_size=size)
    if dtype.name in ("bool", "int4"):
        octets = octets.map(lambda data: bytes(byte & 1 for byte in data))
    return octets.map(lambda data: np.frombuffer(data, dtype).reshape(shape))


ARRAYS = st.tuples(NUMBER_DTYPES, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)).flatmap(
    lambda pair: filled(*pair)
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.complex_numbers()
    | st.text(max_size=40)
    | st.binary(max_size=40)
    | ARRAYS
    | NUMBER_DTYPES.flatmap(lambda dtype: filled(dtype, ())).map(lambda array: array[()])
)
STATES = st.recursive(
    LEAVES,
    lambda inner: st.dictionaries(st.text(max_size=5), inner, max_size=4) | st.lists(inner, max_size=3),
    max_leaves=12,
)


@given(STATES, st.sampled_from([1, 16, 2**30]))
def test_any_state_dict(tree, limit):
    before, legacy.MAX_CHUNK_SIZE = legacy.MAX_CHUNK_SIZE, limit
    try:
        data = write(tree)
    finally:
        legacy.MAX_CHUNK_SIZE = before
    same(read(data), tree)
    same(flax.msgpack_restore(data), tree)
