"""dtypes: every one comes back exactly, and nothing else gets in."""

import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import braintools_ckpt as bt
from braintools_ckpt import dtypes
from braintools_ckpt.dtypes import ML_DTYPES, describe, parse, storage_dtype
from braintools_ckpt.errors import CorruptCheckpointError

ROOT = Path(__file__).parent.parent

NATIVE = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
]
LONG = [name for name in ("float96", "float128", "complex192", "complex256") if hasattr(np, name)]
INSTALLED_ML = sorted(name for name in ML_DTYPES if hasattr(ml_dtypes, name))
TIMES = [
    *(
        "datetime64",
        "timedelta64",
        "datetime64[ms]",
        "timedelta64[25s]",
        "datetime64[24h]",
        "datetime64[1000ms]",
    ),
    *(
        f"{base}[{unit}]"
        for base in ("datetime64", "timedelta64")
        for unit in ("Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as")
    ),
]
FLEXIBLE = ["U0", "U1", "U5", "S0", "S3", "V0", "V8", "S2147483647"]

POINT = np.dtype([("x", "<f8"), ("y", ">f4")])
STRUCTURED = {
    "plain": POINT,
    "aligned": np.dtype([("a", "i1"), ("b", "f8")], align=True),
    "packed": np.dtype([("a", "i1"), ("b", "f8")]),
    "aligned without padding": np.dtype([("a", "i4")], align=True),
    "nested": np.dtype([("p", POINT), ("q", POINT, (2, 3))]),
    "aligned in packed": np.dtype([("n", np.dtype([("a", "i1"), ("b", "i4")], align=True)), ("m", "i1")]),
    "sub-array of length one": np.dtype([("v", "i2", (1,))]),
    "empty sub-array": np.dtype([("v", "i2", (0, 4))]),
    "sub-array of sub-array": np.dtype([("v", np.dtype(("i2", (2,))), (3,))]),
    "titles": np.dtype([(("a title", "a"), "i4"), ("b", "M8[ms]")]),
    "offsets": np.dtype({"names": ["a", "b"], "formats": ["i4", "U2"], "offsets": [9, 0], "itemsize": 20}),
    "overlap": np.dtype({"names": ["all", "low"], "formats": ["u8", "u4"], "offsets": [0, 0], "itemsize": 8}),
    "no fields": np.dtype([]),
    "no fields, with bytes": np.dtype({"names": [], "formats": [], "offsets": [], "itemsize": 8}),
    "empty name": np.dtype({"names": ["", "b"], "formats": ["i4", "i4"]}),
    "ml": np.dtype([("w", ml_dtypes.bfloat16), ("z", np.dtype(ml_dtypes.int4), (2,))]),
    "empty strings": np.dtype([("s", "U0"), ("t", "S0")]),
    "record": np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]).dtype,
    "aligned record": np.dtype((np.record, np.dtype([("a", "i1"), ("b", "f8")], align=True))),
    "unicode name": np.dtype([("größe", "f4")]),
}


def simple_dtypes():
    named = [np.dtype(name) for name in (*NATIVE, *LONG, *TIMES, *FLEXIBLE)]
    return named + [np.dtype(getattr(ml_dtypes, name)) for name in INSTALLED_ML]


ALL = simple_dtypes() + [d.newbyteorder(">") for d in simple_dtypes()] + list(STRUCTURED.values())


def same(a, b):
    """Equal in everything one can see: numpy's own == leaves out alignment and the scalar's type."""
    assert a == b
    assert (a.type, a.byteorder, a.itemsize) == (b.type, b.byteorder, b.itemsize)
    assert a.isalignedstruct == b.isalignedstruct
    assert a.names == b.names
    assert a.str == b.str
    if a.kind in "mM":
        assert np.datetime_data(a) == np.datetime_data(b)
    if a.subdtype is not None:
        assert a.shape == b.shape
        same(a.base, b.base)
    for name in a.names or ():
        assert a.fields[name][1:] == b.fields[name][1:]
        same(a.fields[name][0], b.fields[name][0])


def through_a_file(descr):
    return msgpack.unpackb(msgpack.packb(descr, strict_types=True))


@pytest.mark.parametrize("dtype", ALL, ids=repr)
def test_comes_back_exactly(dtype):
    same(parse(through_a_file(describe(dtype))), dtype)


@pytest.mark.parametrize("dtype", ALL, ids=repr)
def test_storage_is_little_endian_and_packed(dtype):
    stored = storage_dtype(dtype)
    assert stored == storage_dtype(stored)
    assert not str(describe(stored)).count("'>")
    assert describe(stored)[0] != ">" if isinstance(describe(stored), str) else True

    def leaf_bytes(d):
        if d.subdtype is not None:
            return int(np.prod(d.shape)) * leaf_bytes(d.base)
        return d.itemsize if d.names is None else sum(leaf_bytes(d.fields[name][0]) for name in d.names)

    assert stored.itemsize == leaf_bytes(dtype)


def test_values_survive_storage():
    dtype = np.dtype([("a", ">i2"), ("b", "f8", (2,)), ("c", [("d", "U2"), ("e", ml_dtypes.bfloat16)])], align=True)
    array = np.array([(1, (2.5, -0.0), ("é", 1.5)), (-7, (np.inf, 3.0), ("xy", 0.0))], dtype)
    data = array.astype(storage_dtype(dtype)).tobytes()
    back = np.frombuffer(data, storage_dtype(parse(describe(dtype)))).astype(dtype)
    assert str(back) == str(array)
    assert np.frombuffer(data[:2], "<i2")[0] == 1


def test_the_spelling_is_stable():
    """These strings are in files: they can never change."""
    assert [describe(np.dtype(c)) for c in "?bhilqBHILQefdFD"] == [
        *(
            "bool",
            "int8",
            "int16",
            "int32",
            "int64",
            "int64",
            "uint8",
            "uint16",
            "uint32",
            "uint64",
            "uint64",
        ),
        *("float16", "float32", "float64", "complex64", "complex128"),
    ]
    assert describe(np.dtype(">c8")) == ">complex64"
    assert describe(np.dtype(">U3")) == ">U3"
    assert describe(np.dtype(">M8[25s]")) == ">datetime64[25s]"
    assert describe(STRUCTURED["titles"]) == {
        "fields": [["a", "int32", 0, "a title"], ["b", "datetime64[ms]", 4]],
        "itemsize": 12,
        "aligned": False,
    }
    assert describe(STRUCTURED["record"])["record"] is True
    assert describe(STRUCTURED["nested"])["fields"][1][1] == [describe(POINT), [2, 3]]


def test_equal_dtypes_are_not_confused_by_the_cache():
    assert describe(np.dtype("M8[s]")) == "datetime64[s]"
    assert describe(np.dtype("M8[1000ms]")) == "datetime64[1000ms]"
    assert describe(STRUCTURED["aligned without padding"])["aligned"] is True
    assert describe(np.dtype([("a", "i4")]))["aligned"] is False


def test_metadata_is_left_out():
    assert parse(describe(np.dtype("f4", metadata={"unit": "mV"}))).metadata is None


def test_all_installed_ml_dtypes_are_in_the_table():
    scalars = {n for n in dir(ml_dtypes) if isinstance(getattr(ml_dtypes, n), type) and "info" not in n}
    assert scalars <= ML_DTYPES


def test_ml_dtypes_is_imported_only_when_met():
    code = (
        "import sys, numpy as np; from braintools_ckpt.dtypes import describe, parse\n"
        "parse(describe(np.dtype('>f4'))); assert 'ml_dtypes' not in sys.modules\n"
        "parse('bfloat16'); assert 'ml_dtypes' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)


def test_an_old_ml_dtypes_is_named(monkeypatch):
    monkeypatch.setattr(dtypes, "ML_DTYPES", ML_DTYPES | {"float2_e1m0"})
    with pytest.raises(CorruptCheckpointError, match="float2_e1m0 .*pip install -U ml_dtypes"):
        parse("float2_e1m0")


@pytest.mark.parametrize(
    "dtype",
    [
        np.dtype(object),
        np.dtypes.StringDType(),
        np.dtype([("a", "i4"), ("b", "O")]),
        np.dtype({"names": ["a"], "formats": ["i4"], "titles": [3]}),
        np.dtype((np.int32, {"lo": (np.int16, 0), "hi": (np.int16, 2)})),
        np.dtype([("\ud800", "i4")]),
    ],
    ids=repr,
)
def test_what_cannot_be_stored(dtype):
    with pytest.raises(TypeError):
        describe(dtype)


def test_what_could_not_be_read_back_is_not_described():
    deep = np.dtype("i1")
    for _ in range(dtypes.MAX_DEPTH + 1):
        deep = np.dtype([("f", deep)])
    with pytest.raises(TypeError, match="deeper"):
        describe(deep)
    half = np.dtype("V1073741824")
    twice = np.dtype({"names": ["a", "b"], "formats": [half, half], "offsets": [0, 0]})
    with pytest.raises(TypeError, match="larger"):
        describe(twice)
    same(parse(describe(np.dtype([("f", "i1")]))), np.dtype([("f", "i1")]))


def struct(*fields, itemsize=8, aligned=False, **more):
    return {"fields": list(fields), "itemsize": itemsize, "aligned": aligned, **more}


def nested(depth):
    descr = "int8"
    for _ in range(depth):
        descr = struct(["f", descr, 0], itemsize=1)
    return descr


def deep_list(depth):
    descr = []
    for _ in range(depth):
        descr = [descr]
    return descr


HOSTILE = {
    **{
        f"text {text!r}": text
        for text in (
            *(
                "",
                ">",
                "<float32",
                "=float32",
                "f4",
                "object",
                "O",
                ">>float32",
                ">bool",
                ">int8",
                ">S3",
                ">V2",
            ),
            *(
                "float32 ",
                " float32",
                "float32\n",
                "Float32",
                "int128",
                "longdouble",
                "str",
                "U",
                "U-1",
                "U+1",
                "U01",
            ),
            *(
                "U536870912",
                "U9999999999",
                "S2147483648",
                "V99999999999",
                "U５",
                "S1_0",
                "float32,int8",
                "(2,)i4",
            ),
            *("datetime64[]", "datetime64[1s]", "datetime64[0s]", "datetime64[-1s]", "datetime64[generic]"),
            *("datetime64[9999999999s]", "datetime64[s/100]", "datetime64[B]", "M8[s]", "T", "StringDType()"),
            *("finfo", "iinfo", "__name__", "i4,i4", "[('a','i4')]", "x" * 10_000),
        )
    },
    **{f"type {value!r}": value for value in (None, True, 4, 1.5, b"float32", ("int8", (2,)), [], {}, [1], {1: 2})},
    "sub-array without shape": ["int8"],
    "sub-array, scalar shape": ["int8", 3],
    "sub-array, empty shape": ["int8", []],
    "sub-array, negative": ["int8", [-1]],
    "sub-array, bool": ["int8", [True]],
    "sub-array, float": ["int8", [2.0]],
    "sub-array, huge": ["int8", [2**31]],
    "sub-array, huge product": ["int8", [2**30, 2**30]],
    "sub-array, huge bytes": ["int64", [2**30]],
    "sub-array, product hidden by zero size": ["U0", [2**30, 2**30]],
    "sub-array, too many dimensions": ["int8", [1] * 65],
    "sub-array, unknown base": ["int9", [1]],
    "missing key": {"fields": [], "itemsize": 0},
    "unknown key": struct(more=1),
    "record false": struct(record=False),
    "record 1": struct(record=1),
    "aligned 1": struct(aligned=1),
    "itemsize negative": struct(itemsize=-1),
    "itemsize huge": struct(itemsize=2**31),
    "itemsize beyond 64 bits": struct(itemsize=2**70),
    "itemsize bool": struct(itemsize=True),
    "itemsize float": struct(itemsize=8.0),
    "itemsize text": struct(itemsize="8"),
    "fields is a map": {"fields": {}, "itemsize": 8, "aligned": False},
    "field is text": struct("abc"),
    "field is short": struct(["a", "int8"]),
    "field is long": struct(["a", "int8", 0, "t", "u"]),
    "name is a number": struct([1, "int8", 0]),
    "name is bytes": struct([b"a", "int8", 0]),
    "title is None": struct(["a", "int8", 0, None]),
    "title is a number": struct(["a", "int8", 0, 1]),
    "title is the name": struct(["a", "int8", 0, "a"]),
    "title is another name": struct(["a", "int8", 0, "b"], ["b", "int8", 1]),
    "same name twice": struct(["a", "int8", 0], ["a", "int8", 1]),
    "offset negative": struct(["a", "int8", -1]),
    "offset huge": struct(["a", "int8", 2**63]),
    "offset bool": struct(["a", "int8", False]),
    "offset float": struct(["a", "int8", 0.0]),
    "field beyond the end": struct(["a", "int64", 1]),
    "field beyond the end of a C int": struct(["a", "int32", 2**31 - 1], itemsize=2**31 - 1),
    "aligned, but it is not": struct(["a", "int32", 1], aligned=True),
    "aligned, wrong itemsize": struct(["a", "int32", 0], itemsize=6, aligned=True),
    "packed form too large": struct(["a", "V1073741824", 0], ["b", "V1073741824", 0], itemsize=2**30),
    "object field": struct(["a", "object", 0]),
    "too deep": nested(40),
    "far too deep": nested(900),
    "deep list": deep_list(900),
    "too many fields": struct(*(["", "int8", 0] for _ in range(2**16 + 1))),
    "too many nested fields": struct(
        *([str(i), struct(*([str(j), "int8", 0] for j in range(300))), 0] for i in range(300))
    ),
}


@pytest.mark.parametrize("descr", HOSTILE.values(), ids=(name[:60] for name in HOSTILE))
def test_hostile(descr):
    with pytest.raises(CorruptCheckpointError, match="Invalid dtype in the checkpoint: .") as caught:
        parse(descr)
    assert len(str(caught.value)) < 400


def test_message():
    with pytest.raises(CorruptCheckpointError) as caught:
        parse("float33")
    assert str(caught.value) == (
        "Invalid dtype in the checkpoint: 'float33' is not a dtype that this platform and version know."
    )


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        hnp.scalar_dtypes(),
        hnp.nested_dtypes(subtype_strategy=hnp.scalar_dtypes() | hnp.array_dtypes(allow_subarrays=True)),
    ),
    st.booleans(),
)
def test_any_dtype(dtype, swap):
    dtype = dtype.newbyteorder(">") if swap else dtype
    same(parse(through_a_file(describe(dtype))), dtype)


DESCR_PARTS = st.one_of(
    st.sampled_from(["int8", ">float32", "U5", "bfloat16", "datetime64[s]", "fields", "itemsize", "aligned", "a"]),
    st.none() | st.booleans() | st.integers(-2, 70) | st.integers() | st.floats() | st.text(max_size=4) | st.binary(),
)
JUNK = st.recursive(
    DESCR_PARTS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["fields", "itemsize", "aligned", "record", "x"]), inner)
        | st.builds(
            lambda fields, size, flag: {"fields": fields, "itemsize": size, "aligned": flag},
            st.lists(st.tuples(st.text(max_size=2), inner, st.integers(0, 20)).map(list), max_size=3),
            st.integers(0, 70),
            st.booleans(),
        )
    ),
    max_leaves=12,
)


@settings(max_examples=500, deadline=None)
@given(JUNK)
def test_junk_is_refused_or_is_the_one_description(descr):
    try:
        dtype = parse(descr)
    except CorruptCheckpointError:
        return
    assert describe(dtype) == descr


# --- what a file may claim ------------------------------------------------------------------------------------


def padded(itemsize):
    return np.dtype({"names": ["a"], "formats": ["i1"], "offsets": [0], "itemsize": itemsize})


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (np.dtype("f4"), (2**40,)),
        (padded(256), (2**30,)),
        (padded(2**26), ()),
        (padded(2**31 - 1), (0, 5)),
        (np.dtype("U0"), (2**24,)),
        (np.dtype("V0"), (2**60, 0)),
        (np.dtype({"names": [], "formats": [], "offsets": [], "itemsize": 2**20}), (64,)),
    ],
    ids=repr,
)
def test_sizes_that_are_allowed(dtype, shape):
    dtypes.check_size(dtype, shape)


@pytest.mark.parametrize(
    ("dtype", "shape", "message"),
    [
        (padded(257), (2**20,), "269484032 bytes in memory for 1048576 bytes of data: more than 256 times as many"),
        (padded(2**26 + 1), (), "67108865 bytes in memory for 1 bytes of data: more than 256 times as many"),
        (np.dtype("U0"), (2**24 + 1,), "16777217 elements of no bytes: at most 16777216 are read"),
        (np.dtype([]), (2**30, 2**30), "1152921504606846976 elements of no bytes: at most 16777216 are read"),
        (
            np.dtype({"names": [], "formats": [], "offsets": [], "itemsize": 2**20}),
            (65,),
            "68157440 bytes in memory for 0 bytes of data: more than 256 times as many",
        ),
    ],
    ids=repr,
)
def test_sizes_that_are_not(dtype, shape, message):
    with pytest.raises(ValueError, match=".") as caught:
        dtypes.check_size(dtype, shape)
    assert str(caught.value) == message


BAD_TEXT = np.array([0x61, 0x10FFFF, 0x61, 0x110000], np.uint32).view("U2")
RECORD = np.dtype([("n", "i1"), ("p", [("s", "U2", (1,))])])


def test_text_that_is_none():
    record = np.zeros(2, RECORD)
    record["p"]["s"][:, 0] = BAD_TEXT
    for array in (
        BAD_TEXT,
        BAD_TEXT.astype(">U2"),
        np.tile(BAD_TEXT, (2, 3))[:, ::3],
        BAD_TEXT[1:].reshape(()),
        record,
    ):
        with pytest.raises(ValueError, match="^text with the code point 0x110000, which does not exist$"):
            dtypes.check_text(array)


@pytest.mark.parametrize(
    "array",
    [
        BAD_TEXT[:1],
        np.array("é\U0010ffff"),
        np.array(["a"], ">U3"),
        np.zeros(0, "U3"),
        np.zeros(3, "U0"),
        np.zeros(2, RECORD),
        np.zeros(2),
        np.array([b"\xff"]),
        np.array(["\ud800"]),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_text_that_is_some(array):
    dtypes.check_text(array)


def test_what_fits_jax():
    fitting = {*NATIVE, *INSTALLED_ML} - {"complex32", "bcomplex32", "float6_e2m3fn", "float6_e3m2fn"}
    assert all(dtypes.fits_jax(np.dtype(getattr(ml_dtypes, name, name))) for name in fitting)
    others = [np.dtype(name) for name in (*LONG, *TIMES, *FLEXIBLE)] + list(STRUCTURED.values())
    others += [np.dtype(">f4"), np.dtype(ml_dtypes.bfloat16).newbyteorder(">"), np.dtype(object)]
    assert [dtype for dtype in others if dtypes.fits_jax(dtype)] == []


def test_jax_takes_what_fits():
    for name in {*NATIVE, *INSTALLED_ML}:
        array = np.zeros(2, getattr(ml_dtypes, name, name))
        if not dtypes.fits_jax(array.dtype):
            with pytest.raises((TypeError, jax.errors.JaxRuntimeError)):
                jax.device_put(array)
            continue
        assert jax.device_put(array).shape == (2,)
        loaded = bt.msgpack_loads(bt.msgpack_dumps(array), arrays="numpy")
        assert loaded.dtype == array.dtype
