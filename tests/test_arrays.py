"""Arrays, scalars and generators: what comes back, what is refused, and which casts lose nothing."""

import datetime
import decimal
import fractions
import pathlib
import random
import uuid
import zoneinfo

import ml_dtypes
import numpy as np
import pytest

import braintools_ckpt as bt
from braintools_ckpt.document import ARRAY, LEAF, LIST, Document, LiveArrays
from braintools_ckpt.errors import CheckpointError
from braintools_ckpt.tree.casting import Misfit, cast, castable
from braintools_ckpt.tree.merge import Options, load_plain, merge
from braintools_ckpt.tree.registry import registry


def back(tree, **options):
    return bt.msgpack_loads(bt.msgpack_dumps(tree), **options)


def forged(tag, state, *arrays, **attributes):
    """Load a leaf that no encoder has written; its arrays are numbered from 0."""
    table = LiveArrays()
    for array in arrays:
        table.add(table.spec(array.dtype, array.shape, "numpy"), array)
    return load_plain(Document([LEAF, tag, state, attributes], table), registry, Options())


# --- random generators ----------------------------------------------------------------------------------------

GENERATORS = ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"]
KEY, FOUR, TWO = np.arange(624, dtype=np.uint32), np.arange(4, dtype=np.uint64), np.arange(2, dtype=np.uint64)
HALF = {"has_uint32": 0, "uinteger": 0}
GAUSS = {"has_gauss": 0, "gauss": 0.0}


def mersenne(pos=624, key=None, **more):
    return {"bit_generator": "MT19937", "state": {"key": [ARRAY, 0] if key is None else key, "pos": pos}, **more}


def philox(**changed):
    state = {"counter": [ARRAY, 1], "key": [ARRAY, 2]}
    return {"bit_generator": "Philox", "state": state, "buffer": [ARRAY, 1], "buffer_pos": 4, **HALF, **changed}


def pcg(state=1, inc=1, **changed):
    return {"bit_generator": "PCG64", "state": {"state": state, "inc": inc}, **HALF, **changed}


BAD_STATES = {
    **{f"pos {pos!r}": mersenne(pos) for pos in (-1, 625, 10**6, -1000, 2**70, True, 1.0, "1", None)},
    **{f"buffer_pos {pos!r}": philox(buffer_pos=pos) for pos in (-1, 5, -(10**6), 2.0)},
    "short key": mersenne(key=[ARRAY, 1]),
    "key of ints": mersenne(key=[LIST, *range(624)]),
    "counter of another length": philox(state={"counter": [ARRAY, 2], "key": [ARRAY, 2]}),
    "buffer of another dtype": philox(buffer=[ARRAY, 0]),
    "missing": {"bit_generator": "PCG64"},
    "more": pcg(more=1),
    "gauss": mersenne(**GAUSS),
    "negative": pcg(state=-1),
    "too large": pcg(inc=[LEAF, "int", (2**128).to_bytes(17, "little")]),
    "uinteger": pcg(uinteger=2**32),
    "has_uint32": pcg(has_uint32=2),
    "no name": {},
    "name is a list": {"bit_generator": [LIST, "PCG64"]},
    "other name": {"bit_generator": "BitGenerator"},
    "no map": 1,
}


@pytest.mark.parametrize("state", BAD_STATES.values(), ids=BAD_STATES)
def test_a_generator_takes_no_state_that_numpy_would_not_survive(state):
    with pytest.raises(bt.CorruptCheckpointError, match="The 'numpy.generator' at path . has no valid state: "):
        forged("numpy.generator", state, KEY, FOUR, TWO)


@pytest.mark.parametrize("state", [mersenne(), mersenne(625, **GAUSS), mersenne(1, has_gauss=0, gauss="a")], ids=str)
def test_a_random_state_takes_none_either(state):
    with pytest.raises(bt.CorruptCheckpointError, match="The 'numpy.randomstate' at path . has no valid state: "):
        forged("numpy.randomstate", state, KEY)


def test_the_message_says_what_was_expected():
    with pytest.raises(bt.CorruptCheckpointError) as caught:
        forged("numpy.generator", {**mersenne(), "bit_generator": 1}, KEY)
    assert str(caught.value) == ("The 'numpy.generator' at path . has no valid state: TypeError: expected str, got 1.")


@pytest.mark.parametrize(
    "seed", [5, 2**200, [1, 2, 2**70], np.int64(3), np.arange(3), (1, [2, "0x5", "7"]), []], ids=str
)
@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_spawns_what_it_would_have_spawned(name, seed):
    generator = np.random.Generator(getattr(np.random, name)(seed))
    generator.spawn(2)
    generator.random(3)
    for loaded in (back(generator), back(generator, target=np.random.default_rng(0))):
        child, expected = (
            loaded.spawn(1)[0],
            type(generator)(type(generator.bit_generator)(np.random.SeedSequence(seed, spawn_key=(2,)))),
        )
        np.testing.assert_array_equal(child.integers(1 << 60, size=5), expected.integers(1 << 60, size=5))
        assert loaded.bit_generator.seed_seq.n_children_spawned == 3


def test_generators_that_share_a_seed_sequence_share_it_again():
    seeds = np.random.SeedSequence(7)
    tree = {"a": np.random.default_rng(seeds), "b": np.random.default_rng(seeds), "s": seeds}
    loaded = back(tree)
    assert loaded["a"].bit_generator.seed_seq is loaded["b"].bit_generator.seed_seq is loaded["s"]


def test_a_generator_of_an_older_file_spawns_streams_of_its_own():
    one, same, other = (forged("numpy.generator", pcg(state)) for state in (1, 1, 2))
    assert one.bit_generator.state["state"] == {"state": 1, "inc": 1}
    assert one.spawn(1)[0].random() == same.spawn(1)[0].random() != other.spawn(1)[0].random()


SEEDS = {
    "int": np.random.SeedSequence(5),
    "big int": np.random.SeedSequence(2**300),
    "list": np.random.SeedSequence([1, 2]),
    "drawn": np.random.SeedSequence(),
    "key": np.random.SeedSequence(5, spawn_key=(1, 2**40), pool_size=8, n_children_spawned=3),
}


@pytest.mark.parametrize("seeds", SEEDS.values(), ids=SEEDS)
def test_seed_sequences(seeds):
    loaded = back([seeds])[0]
    assert type(loaded) is np.random.SeedSequence
    assert loaded.state == seeds.state
    np.testing.assert_array_equal(loaded.generate_state(8), seeds.generate_state(8))


GOOD_SEEDS = {"entropy": 1, "spawn_key": [LIST], "pool_size": 4, "n_children_spawned": 0}


@pytest.mark.parametrize(
    "change",
    [
        {"entropy": None},
        {"entropy": -1},
        {"entropy": [LIST, [LEAF, "range", [LIST, 0, 10**12, 1]]]},
        {"spawn_key": [LIST, "1"]},
        {"spawn_key": [LIST, -1]},
        {"pool_size": 2**40},
        {"pool_size": 3},
        {"n_children_spawned": -1},
    ],
    ids=str,
)
def test_seed_sequences_that_cannot_be(change):
    with pytest.raises(bt.CorruptCheckpointError, match="The 'numpy.seedsequence' at path . has no valid state"):
        forged("numpy.seedsequence", {**GOOD_SEEDS, **change})


def test_bit_generators_are_refused():
    with pytest.raises(bt.SerializationError, match="PCG64 at path a: no handler"):
        bt.msgpack_dumps({"a": np.random.PCG64(0)})


# --- states of single values ----------------------------------------------------------------------------------

BAD_VALUES = {
    "bytearray": [1 << 40, [LIST, 1], "a", None],
    "ellipsis": [1],
    "range": [[LIST, 1, 2], [LIST, 1.0, 2, 3], [LIST, True, 2, 3]],
    "slice": [[LIST, 1, 2], None],
    "datetime": [[LIST, "2024-01-01", 2, None], [LIST, "2024-01-01", 0, "UTC"], [LIST, 1, 0, None]],
    "date": [1, b"2024-01-01"],
    "timedelta": [[LIST, 1.5, 0, 0], [LIST, 1]],
    "timezone": [[LIST, "1", 0], [LIST, 1, 0, None], [LIST]],
    "zoneinfo": ["Europe", "x" * 5000, "../x", "No/Where", None, 1, ""],
    "uuid": ["0123456789abcdef", b"short", [LIST, *[1] * 16], None],
    "decimal": [1, "abc", [LIST, 0, [LIST, 1], 0]],
    "fraction": [[LIST, "1e99999999", 1], [LIST, "1e99999999"], [LIST, 1, 0], [LIST, 1.5, 2]],
    "random": [[LIST, 3, [LIST, 1], None], [LIST, 3, [ARRAY, 0], None], [LIST, 3, [ARRAY, 1], 1]],
    "path.PurePosixPath": [1, [LIST, "a"]],
    "numpy.str": [5, b"a", [LIST, 1]],
    "numpy.bytes": ["a", 1 << 40],
    "numpy.dtype": [1, None],
    "complex": [[LIST, "1+2j"], [LIST, 1, 2]],
    "bytes": [[ARRAY, 2], 5],
}


@pytest.mark.parametrize(
    ("tag", "state"),
    [(tag, state) for tag, states in BAD_VALUES.items() for state in states],
    ids=lambda x: str(x)[:40],
)
def test_a_state_of_another_type_is_refused(tag, state):
    words = np.zeros(625, np.uint32)
    words[-1] = 10**6  # a position
    with pytest.raises(bt.CorruptCheckpointError):
        forged(tag, state, KEY, words, np.zeros(3))


def test_a_missing_time_zone_database_is_named(monkeypatch):
    monkeypatch.setattr(zoneinfo, "available_timezones", set)
    with pytest.raises(CheckpointError) as caught:
        forged("zoneinfo", "No/Where")
    assert not isinstance(caught.value, bt.CorruptCheckpointError)
    assert str(caught.value) == (
        "Cannot load the time zone 'No/Where' at path .: there is no time zone database here. Run: pip install tzdata"
    )


def test_a_time_zone_without_a_key_cannot_be_saved():
    path = next(pathlib.Path(p) / "UTC" for p in (*zoneinfo.TZPATH, _tzdata()) if (pathlib.Path(p) / "UTC").exists())
    with path.open("rb") as file:
        zone = zoneinfo.ZoneInfo.from_file(file)
    with pytest.raises(bt.SerializationError) as caught:
        bt.msgpack_dumps({"z": zone})
    assert str(caught.value) == (
        "Cannot save the zoneinfo.ZoneInfo at path z: it has no key, under which it could be found again. "
        "Use ZoneInfo(key)."
    )


def _tzdata():
    tzdata = pytest.importorskip("tzdata")
    return pathlib.Path(tzdata.__file__).parent / "zoneinfo"


def test_fractions_of_numpy_ints():
    assert back(fractions.Fraction(np.int64(3), np.int64(4))) == fractions.Fraction(3, 4)


def test_values_still_come_back():
    tree = [bytearray(b"a" * 100_000), random.Random(3), np.str_("a"), slice(None, "b"), decimal.Decimal("1.50")]
    loaded = back(tree)
    assert loaded[1].random() == tree[1].random()
    assert (loaded[0], *loaded[2:]) == (tree[0], *tree[2:])


class Moment(datetime.datetime):
    pass


class Dated(datetime.date):
    pass


class Price(decimal.Decimal):
    pass


class Place(pathlib.PurePosixPath):
    pass


class Identity(uuid.UUID):
    pass


class Dice(random.Random):
    pass


class Tagged(np.ndarray):
    pass


class Seeds(np.random.SeedSequence):
    pass


class Masked(np.ma.MaskedArray):
    pass


DERIVED = {
    "Moment": Moment(2024, 1, 1),
    "Dated": Dated(2024, 1, 1),
    "Price": Price(1),
    "Place": Place("a"),
    "Identity": Identity(int=1),
    "Dice": Dice(1),
    "SystemRandom": random.SystemRandom(),
    "Tagged": np.zeros(2).view(Tagged),
    "chararray": np.char.array(["a"]),
    "Masked": np.ma.array([1, 2]).view(Masked),
    "Seeds": Seeds(1),
}


@pytest.mark.parametrize("name", DERIVED)
def test_what_a_derived_class_adds_is_not_dropped_in_silence(name):
    with pytest.raises(bt.SerializationError, match=rf"Cannot save the [\w.]*{name} at path a/x: it would come back"):
        bt.msgpack_dumps({"a": {"x": DERIVED[name]}})


def test_the_message_says_what_to_do():
    with pytest.raises(bt.SerializationError) as caught:
        bt.msgpack_dumps({"x": DERIVED["Tagged"]})
    assert str(caught.value) == (
        f"Cannot save the {__name__}.Tagged at path x: it would come back as a plain numpy.ndarray. "
        "Save np.asarray(x), or register the class with msgpack_register_serialization."
    )


def test_a_target_of_a_derived_class_is_a_mismatch():
    data = bt.msgpack_dumps({"x": datetime.datetime(2024, 1, 1)})
    with pytest.raises(bt.MismatchError, match="Leaf mismatch: expected Moment, got a datetime at path x"):
        bt.msgpack_loads(data, target={"x": DERIVED["Moment"]})


def test_arrays_of_numpys_own_classes_come_back(tmp_path):
    mapped = np.memmap(tmp_path / "m", np.float32, "w+", shape=(3,))
    mapped[:] = [1, 2, 3]
    record = np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])
    tree = {"memmap": mapped, "matrix": np.matrix([[1, 2]]), "record": record, "masked": np.ma.masked}
    for loaded in (back(tree), back(tree, target=tree)):
        assert type(loaded["memmap"]) is np.ndarray
        assert loaded["memmap"].tolist() == [1, 2, 3]
        assert type(loaded["matrix"]) is np.matrix
        assert type(loaded["record"]) is np.recarray
        assert loaded["record"].b[0] == 2.0
        assert loaded["masked"] is np.ma.masked


# --- classes derived from builtin ones ------------------------------------------------------------------------


class Text(str):
    def __str__(self):
        return "wrong"


class Data(bytes):
    def __bytes__(self):
        return b"wrong"


class Whole(int):
    def __int__(self):
        return 99

    def __index__(self):
        return 99


class Real(float):
    def __float__(self):
        return 99.0


class Double(complex):
    def __complex__(self):
        return 99j


class Named(str):
    def __new__(cls, text, unit):
        self = super().__new__(cls, text)
        self.unit = unit
        return self


@pytest.mark.parametrize(
    ("obj", "value"),
    [
        (Text("right"), "right"),
        (Text("r\ud800" * 40_000), "r\ud800" * 40_000),
        (Data(b"right"), b"right"),
        (Whole(5), 5),
        (Whole(2**100), 2**100),
        (Real(0.5), 0.5),
        (Double(1j), 1j),
    ],
    ids=lambda obj: str(type(obj)),
)
def test_the_value_is_saved_and_not_what_a_method_says(obj, value):
    base = type(value)
    with pytest.warns(UserWarning, match="holds an object of the class"):
        loaded = back(obj)
    assert type(loaded) is base
    assert loaded == value
    as_target = back(obj, target=type(obj)(base()))
    assert type(as_target) is type(obj)
    assert base.__eq__(as_target, value) is True


def test_a_class_is_made_again_without_its_own_constructor():
    loaded = back(Named("a", "mV"), target=Named("b", "ms"))
    assert (type(loaded), loaded, loaded.unit) == (Named, "a", "ms")


def test_a_number_that_does_not_fit_leaves_the_targets_object():
    target = Whole(5)
    assert back(1.5, target=target, mismatch="ignore") is target


# --- casts ----------------------------------------------------------------------------------------------------


def fits(values, wanted, source=None):
    array = np.asarray(values, source)
    wanted = np.dtype(wanted)
    if not castable(array.dtype, wanted):
        return None
    try:
        return cast(array, wanted)
    except Misfit:
        return False


E4M3, E4M3FNUZ = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3fnuz
FLOAT4, E8M0, INT4 = ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e8m0fnu, ml_dtypes.int4

SURVIVE = [
    ([1.1, np.nan, np.inf, -np.inf, -0.0], "f2", [1.1, np.nan, np.inf, -np.inf, 0]),
    ([1e-300], "f4", [0]),
    ([1e-30], E4M3, [0]),
    ([np.nan, 448, 464, -463], E4M3, [np.nan, 448, 448, -448]),
    ([-0.0], E4M3FNUZ, [0]),
    ([7, 6, -6.9], FLOAT4, [6, 6, -6]),
    ([0.5, 4, np.nan], E8M0, [0.5, 4, np.nan]),
    ([np.inf, np.nan], ml_dtypes.bfloat16, [np.inf, np.nan]),
    ([True, False], "f4", [1, 0]),
    ([1 + 2j], "c8", [1 + 2j]),
    ([1.5], "c8", [1.5]),
    ([True, False], INT4, [1, 0]),
]
LOST = [
    ([1e39], "f4"),
    ([1e300 + 1j], "c8"),
    ([1 + 1e300j], "c8"),
    ([1e300], "c8"),
    ([465.0], E4M3),
    ([np.inf], E4M3),
    ([1e30], E4M3),
    ([np.inf], E4M3FNUZ),
    ([7.1], FLOAT4),
    ([1e30], FLOAT4),
    ([np.inf], FLOAT4),
    ([np.nan], FLOAT4),
    ([0.0], E8M0),
    ([-1.0], E8M0),
    ([False], E8M0),
    ([8], INT4),
]


@pytest.mark.parametrize(("values", "dtype", "expected"), SURVIVE, ids=str)
def test_floats_that_survive(values, dtype, expected):
    result = fits(values, dtype)
    np.testing.assert_allclose(result.astype(complex), expected, rtol=1e-3)
    assert result.dtype == dtype


@pytest.mark.parametrize(("values", "dtype"), LOST, ids=str)
def test_floats_that_do_not(values, dtype):
    assert fits(values, dtype) is False


EVERY = {
    "bfloat16": np.arange(1 << 16, dtype=np.uint16),
    **{name: np.arange(1 << 8, dtype=np.uint8) for name in ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu")},
    "float4_e2m1fn": np.arange(1 << 4, dtype=np.uint8),
}


@pytest.mark.parametrize("name", EVERY)
def test_floats_of_a_smaller_type_survive_in_a_larger_one_and_back(name):
    every = EVERY[name].view(getattr(ml_dtypes, name))
    wide = fits(every, "f8")
    assert [str(float(x)) for x in wide] == [str(float(x)) for x in every]
    assert [str(float(x)) for x in fits(wide, every.dtype)] == [str(float(x)) for x in every]


def test_moments_that_overflow_are_no_others():
    far = np.array(["9999-01-01", "NaT", "2020-01-01"], "M8[s]")
    assert fits(far, "M8[ns]") is False
    np.testing.assert_array_equal(fits(far[1:], "M8[ns]"), far[1:])
    np.testing.assert_array_equal(fits(far, ">M8[ms]"), far)
    assert fits(np.array([2**62], "m8[s]"), "m8[ms]") is False
    assert fits(np.array([2, "NaT"], "m8[s]"), "m8[ms]").tolist()[0] == datetime.timedelta(seconds=2)
    assert fits(np.array(["2020-01-01"], "M8[ns]"), "M8[s]") is None


@pytest.mark.parametrize(
    ("source", "wanted"), [("S3", "U3"), ("U3", "S9"), ("M8[s]", "U40"), ("i8", "m8[s]"), ("S3", "V3")]
)
def test_text_bytes_and_moments_do_not_become_each_other(source, wanted):
    assert not castable(np.dtype(source), np.dtype(wanted))


def test_bytes_that_are_no_text_are_a_mismatch():
    data = bt.msgpack_dumps({"a": np.array([b"\xff"])})
    with pytest.raises(bt.MismatchError, match=r"Array dtype mismatch: expected <U1\[1\], got \|S1\[1\] at path a"):
        bt.msgpack_loads(data, target={"a": np.array(["x"])})


def test_which_casts_of_other_kinds_there_are():
    record = np.dtype([("a", "i8")])
    for source, wanted in (
        ("U3", "U5"),
        ("S3", "S5"),
        ("V3", "V5"),
        ("m8[s]", "m8[ms]"),
    ):
        assert castable(np.dtype(source), np.dtype(wanted))
    for source, wanted in ((record, "V8"), ("V8", record), (record, "i8"), ("i8", record), ("U5", "U3"), ([], "V0")):
        assert not castable(np.dtype(source), np.dtype(wanted))


RECORDS = np.array([(1, (2.5, 3), "a"), (300, (1, 2), "b")], [("n", "i8"), ("v", "f8", (2,)), ("s", "U1")])


def test_records_are_matched_by_name():
    wanted = np.dtype([("s", ">U3"), ("v", "f4", (2,)), ("n", "u2")], align=True)
    result = fits(RECORDS, wanted)
    assert result.dtype == wanted
    assert str(result) == "[('a', [2.5, 3. ],   1) ('b', [1. , 2. ], 300)]"
    assert str(fits(RECORDS[0], wanted)) == str(result[0])
    loaded = back({"r": RECORDS}, target={"r": np.zeros(2, wanted)})["r"]
    assert str(loaded) == str(result)


@pytest.mark.parametrize(
    "changed",
    [
        [("x", "i8"), ("v", "f8", (2,)), ("s", "U1")],
        [("n", "i8"), ("v", "f8", (2,))],
        [("n", "i8"), ("v", "f8", (2,)), ("s", "U1"), ("t", "U1")],
        [("n", "i8"), ("v", "f8", (3,)), ("s", "U1")],
        [("n", "i8"), ("v", "f8"), ("s", "U1")],
        [("n", "i8"), ("v", "i8", (2,)), ("s", "U1")],
        [("n", [("n", "i8")]), ("v", "f8", (2,)), ("s", "U1")],
    ],
    ids=str,
)
def test_other_fields_are_a_mismatch(changed):
    with pytest.raises(bt.MismatchError, match="Array dtype mismatch: expected .*, got .* at path r"):
        back({"r": RECORDS}, target={"r": np.zeros(2, changed)})


def test_values_survive_within_records_too():
    assert fits(RECORDS, [("n", "i1"), ("v", "f8", (2,)), ("s", "U1")]) is False
    large = np.array([((1e300, 0.0),)], [("v", "f8", (2,))])
    assert fits(large, [("v", "f4", (2,))]) is False
    nested = np.array([((300,),)], [("p", [("q", "i4")])])
    assert fits(nested, [("p", [("q", "i1")])]) is False
    assert fits(nested, [("p", [("q", "i2")])]).tolist() == [((300,),)]


# --- arrays in the structure ----------------------------------------------------------------------------------

PADDED = {"fields": [LIST, [LIST, "a", "uint8", 0]], "itemsize": 2**31 - 1, "aligned": False}


@pytest.mark.parametrize(
    ("dtype", "data", "shape"),
    [
        (PADDED, b"a", [1]),
        ("U0", b"", [2**40]),
        ("U1", b"\0\0\x11\0", [1]),
        ({**PADDED, "itemsize": 4, "fields": [LIST, [LIST, "a", "U1", 0]]}, b"\0\0\x11\0", [1]),
    ],
    ids=str,
)
def test_arrays_and_scalars_of_a_hostile_size_or_text(dtype, data, shape):
    with pytest.raises(bt.CorruptCheckpointError):
        forged("array", data, dtype=dtype, shape=[LIST, *shape], kind="numpy")
    if shape == [1]:
        with pytest.raises(bt.CorruptCheckpointError):
            forged("numpy.scalar", data, dtype=dtype)


# --- masked arrays --------------------------------------------------------------------------------------------


def masked(data, mask, **options):
    return np.ma.MaskedArray(np.array(data), mask=mask, **options)


def test_a_masked_array_that_does_not_survive_leaves_the_target_whole():
    target = masked(np.array([1, 2], np.int8), [True, False])
    loaded = back(masked([300, 4], [False, True]), target=target, mismatch="ignore")
    assert loaded is target
    with pytest.raises(bt.MismatchError, match="Array dtype mismatch: expected int8"):
        back(masked([300, 4], [False, True]), target=target)


def test_a_fill_value_that_does_not_survive_is_one_too():
    target = masked(np.array([1, 2], np.int8), [True, False])
    assert back(masked([3, 4], [False, True], fill_value=300), target=target, mismatch="ignore") is target


def test_two_targets_of_one_masked_array_share_nothing():
    array = masked([1.0, 2.0], [True, False])
    one, other = masked([0.0, 0.0], False), masked([0.0, 0.0], False)
    loaded = back([array, array], target=[one, other])
    loaded[0][0] = 5.0
    loaded[0].mask[1] = True
    assert loaded[1].mask.tolist() == [True, False]
    assert loaded[1].data.tolist() == [1.0, 2.0]


def test_a_masked_record_with_its_fields_in_another_order():
    array = np.ma.array([(1, 2.0)], mask=[(True, False)], dtype=[("a", "i8"), ("b", "f8")])
    loaded = back(array, target=np.ma.zeros(1, [("b", "f4"), ("a", "i4")]))
    assert loaded.mask.tolist() == [(False, True)]
    assert loaded.data.tolist() == [(2.0, 1)]


@pytest.mark.parametrize(
    "mask", [np.zeros(3, bool), np.zeros(2, np.uint8), np.zeros((2, 1), bool), np.zeros((), bool)], ids=str
)
def test_a_mask_of_another_form_is_corrupt(mask):
    with pytest.raises(bt.CorruptCheckpointError, match="The 'numpy.masked' at path . has no valid state: TypeError"):
        forged(
            "numpy.masked", {"data": [ARRAY, 0], "mask": [ARRAY, 1], "fill_value": None}, np.zeros(2), mask, hard=False
        )


def test_two_targets_of_one_matrix_share_nothing():
    array = np.matrix([[1.0, 2.0]])
    loaded = back([array, array], target=[np.matrix([[0.0, 0.0]]), np.matrix([[0.0, 0.0]])])
    loaded[0][0, 0] = 5
    assert loaded[1].tolist() == [[1.0, 2.0]]
    assert loaded[1].flags.writeable


def test_a_matrix_is_cast_like_any_array():
    loaded = back(np.matrix([[1.0, 2.0]]), target=np.matrix([[0, 0]], np.float32))
    assert (type(loaded), loaded.dtype) == (np.matrix, np.float32)
    target = np.zeros((1, 2), np.int8)
    assert back(np.matrix([[1.5, 2.0]]), target=target, mismatch="ignore") is target


def test_a_masked_array_without_data_is_a_mismatch():
    arrays = LiveArrays()
    value = [LEAF, "numpy.masked", {"data": None, "mask": None, "fill_value": None}, {"hard": False}]
    target = masked([1.0], False)
    assert merge(Document(value, arrays), target, registry, Options(mismatch="ignore")) is target


def test_arrays_that_are_asked_for_as_jax_arrays_do_not_change_what_holds_them():
    for obj in (b"a" * 100_000, random.Random(1), np.random.RandomState(1), masked(np.zeros(2, "f4"), [True, False])):
        assert type(back(obj, arrays="jax")) is type(obj)
