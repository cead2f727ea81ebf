"""What is saved comes back: equal in value, type, dtype, shape, order, unit and identity."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import io
import math
import pathlib
import struct
import subprocess
import sys
import warnings
import zoneinfo

import brainstate
import brainunit as u
import equinox as eqx
import flax
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from trees import (
    JAX_DTYPES,
    KEY_IMPLS,
    NUMPY_DTYPES,
    STATE_CLASSES,
    UNITS,
    Access,
    Color,
    Dict,
    Int,
    JaxData,
    Layer,
    List,
    Node,
    Number,
    Pair,
    Plain,
    Recorded,
    Str,
    Tuple,
    assert_same,
    blank_tree,
    checkpointable_trees,
    copy_tree,
    fill,
    make_default,
    same_bits,
    scale_by,
)

import braintools_ckpt as bt

# --- assert_same can fail -----------------------------------------------------------------------------------


def _masked(**options):
    return np.ma.masked_array([1.0, 2.0], [False, True], **options)


def _shared(same):
    x = np.zeros(2)
    return [x, x if same else x.copy()]


def _advanced(seed, steps):
    generator = np.random.default_rng(seed)
    generator.random(steps)
    return generator


#: Pairs of trees that are not the same, however much they look alike.
DIFFERENT = {
    "None and False": (None, False),
    "bool and int": (True, 1),
    "int and float": (1, 1.0),
    "int and int subclass": (1, Int(1)),
    "int and numpy scalar": (1, np.int64(1)),
    "IntEnum and int": (Number.ONE, 1),
    "enum members": (Color.RED, Color.BLUE),
    "flags": (Access.READ, Access.READ | Access.WRITE),
    "signed zeros": (0.0, -0.0),
    "nan payloads": (math.nan, struct.unpack("<d", struct.pack("<Q", 0x7FF8000000000001))[0]),
    "signed zeros in complex": (complex(0.0, 0.0), complex(0.0, -0.0)),
    "str and bytes": ("a", b"a"),
    "str and str subclass": ("a", Str("a")),
    "bytes and bytearray": (b"a", bytearray(b"a")),
    "list and tuple": ([1], (1,)),
    "list and list subclass": ([1], List([1])),
    "tuple and namedtuple": ((1, 2), Pair(1, 2)),
    "lengths": ([1], [1, 1]),
    "order of a dict": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "type of a key": ({1: "x"}, {True: "x"}),
    "text of a key": ({"1": "x"}, {1: "x"}),
    "dict and OrderedDict": ({"a": 1}, collections.OrderedDict(a=1)),
    "dict and dict subclass": ({"a": 1}, Dict(a=1)),
    "factories": (collections.defaultdict(list), collections.defaultdict(dict)),
    "maxlen": (collections.deque([1], 3), collections.deque([1], 4)),
    "set and frozenset": ({1}, frozenset({1})),
    "elements of a set": ({1, 2}, {1, 3}),
    "types in a set": ({1}, {1.0}),
    "dataclass fields": (Layer(1, 2), Layer(1, 3)),
    "static fields": (JaxData(1, 2), JaxData(1, 3)),
    "labels": (Node(1, 2, "a"), Node(1, 2, "b")),
    "attributes": (Plain(1), Plain(2)),
    "classes": (Recorded(1, 0), Layer(1, 0)),
    "decimals": (decimal.Decimal("1.0"), decimal.Decimal("1.00")),
    "fold": (datetime.datetime(2024, 1, 1, fold=0), datetime.datetime(2024, 1, 1, fold=1)),
    "time zones": (
        datetime.datetime(2024, 1, 1, tzinfo=zoneinfo.ZoneInfo("UTC")),
        datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC),
    ),
    "zone names": (
        datetime.datetime(2024, 1, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
        datetime.datetime(2024, 1, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Paris")),
    ),
    "date and datetime": (datetime.date(2024, 1, 1), datetime.datetime(2024, 1, 1)),
    "paths": (pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("a")),
    "slices": (slice(1, 2), slice(1, 2, 1)),
    "types in slices": (slice(1), slice(True)),
    "ranges": (range(3), range(4)),
    "byte order": (np.zeros(2, "<f4"), np.zeros(2, ">f4")),
    "dtype": (np.zeros(2, "f4"), np.zeros(2, "f8")),
    "shape": (np.zeros((2, 1)), np.zeros((1, 2))),
    "0-d array and scalar": (np.zeros(()), np.float64(0)),
    "array values": (np.array([0.0]), np.array([-0.0])),
    "structured fields": (np.zeros(1, [("a", "i4")]), np.zeros(1, [("b", "i4")])),
    "alignment": (np.zeros(1, np.dtype("u4,u4")), np.zeros(1, np.dtype("u4,u4", align=True))),
    "structured values": (np.array([(1, 2.0)], "i4,f4"), np.array([(1, 3.0)], "i4,f4")),
    "time units": (np.zeros(1, "M8[s]"), np.zeros(1, "M8[ms]")),
    "string dtypes": (np.zeros(1, np.dtypes.StringDType()), np.zeros(1, "U1")),
    "na objects": (
        np.zeros(1, np.dtypes.StringDType(na_object=None)),
        np.zeros(1, np.dtypes.StringDType(na_object=math.nan)),
    ),
    "bfloat16 and float16": (np.zeros(2, ml_dtypes.bfloat16), np.zeros(2, "f2")),
    "float8 kinds": (np.zeros(2, ml_dtypes.float8_e4m3fn), np.zeros(2, ml_dtypes.float8_e5m2)),
    "mask": (np.ma.masked_array([1, 2], [0, 1]), np.ma.masked_array([1, 2], [1, 0])),
    "data under the mask": (np.ma.masked_array([1, 2], [0, 1]), np.ma.masked_array([1, 3], [0, 1])),
    "fill value": (_masked(fill_value=1.0), _masked(fill_value=2.0)),
    "hard mask": (_masked(hard_mask=True), _masked(hard_mask=False)),
    "masked and plain": (np.ma.masked_array([1.0]), np.array([1.0])),
    "bit generators": (np.random.Generator(np.random.PCG64(0)), np.random.Generator(np.random.PCG64DXSM(0))),
    "generator states": (_advanced(0, 1), _advanced(0, 2)),
    "jax and numpy": (jnp.zeros(2), np.zeros(2, "f4")),
    "weak type": (jnp.asarray(1.0), jnp.asarray(np.float32(1.0))),
    "jax values": (jnp.array([0.0]), jnp.array([-0.0])),
    "key and key data": (jax.random.key(0), jax.random.key_data(jax.random.key(0))),
    "key impl": (jax.random.key(0, impl="rbg"), jax.random.key(0, impl="unsafe_rbg")),
    "key values": (jax.random.key(0), jax.random.key(1)),
    "units": (1.0 * u.mV, 1.0 * u.volt),
    "unit names": (
        u.Quantity(1.0, unit=u.mV),
        u.Quantity(1.0, unit=u.Unit(dim=u.mV.dim, scale=u.mV.scale)),
    ),
    "names of equal units": (1.0 * u.hertz, 1.0 * u.becquerel),
    "mantissa types": (u.Quantity(1.0, unit=u.mV), u.Quantity(np.float64(1.0), unit=u.mV)),
    "quantity and number": (u.Quantity(1.0), 1.0),
    "state classes": (brainstate.State(1), brainstate.ParamState(1)),
    "state values": (brainstate.State(np.array(1)), brainstate.State(np.array(2))),
    "state and value": (brainstate.State(jnp.zeros(1)), jnp.zeros(1)),
    "partial functions": (jax.tree_util.Partial(scale_by, 1), jax.tree_util.Partial(max, 1)),
    "partial arguments": (jax.tree_util.Partial(scale_by, 1), jax.tree_util.Partial(scale_by, 2)),
    "lost sharing": (_shared(True), _shared(False)),
    "gained sharing": (_shared(False), _shared(True)),
    "functions": (max, max),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_assert_same_tells_apart(name):
    a, b = DIFFERENT[name]
    for x, y in ((a, b), ([a], [b]), ({"k": a}, {"k": b}), (Layer(a), Layer(b))):
        with pytest.raises(AssertionError):
            assert_same(x, y)
        with pytest.raises(AssertionError):
            assert_same(y, x)


def test_assert_same_tells_read_only_arrays_apart():
    array = np.zeros(2)
    array.flags.writeable = False
    assert_same(np.zeros(2), array)
    with pytest.raises(AssertionError, match="writable"):
        assert_same(np.zeros(2), array, loaded=True)


@given(checkpointable_trees())
def test_assert_same_accepts_a_copy(tree):
    assert_same(tree, tree)
    assert_same(tree, copy_tree(tree))


# --- any tree comes back ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("roundtrip")


@given(tree=checkpointable_trees())
def test_a_file_comes_back_with_a_template(tree, folder):
    path = bt.msgpack_save(folder / "tree.msgpack", tree, durable=False)
    assert_same(tree, bt.msgpack_load(path, blank_tree(tree)), loaded=True)


@given(tree=checkpointable_trees(template_free=True))
def test_a_file_comes_back_without_a_template(tree, folder):
    path = bt.msgpack_save(folder / "free.msgpack", tree, durable=False)
    assert_same(tree, bt.msgpack_load(path), template=False, loaded=True)


@given(tree=checkpointable_trees())
def test_bytes_come_back_with_a_template(tree):
    assert_same(tree, bt.msgpack_loads(bt.msgpack_dumps(tree), blank_tree(tree)), loaded=True)


@given(tree=checkpointable_trees())
def test_bytes_come_back_into_the_tree_itself(tree):
    expected = copy_tree(tree)
    assert_same(expected, bt.msgpack_loads(bt.msgpack_dumps(tree), tree), loaded=True)


@given(tree=checkpointable_trees(template_free=True))
def test_bytes_come_back_without_a_template(tree):
    assert_same(tree, bt.msgpack_loads(bt.msgpack_dumps(tree)), template=False, loaded=True)


@settings(max_examples=50)
@given(tree=checkpointable_trees(template_free=True))
def test_a_file_object_comes_back(tree):
    file = io.BytesIO()
    bt.msgpack_save(file, tree)
    file.seek(0)
    assert_same(tree, bt.msgpack_load(file), template=False, loaded=True)
    file.seek(0)
    assert_same(tree, bt.msgpack_load(file, blank_tree(tree)), loaded=True)


@settings(max_examples=50)
@given(tree=checkpointable_trees(template_free=True))
def test_a_mapped_file_comes_back(tree, folder):
    path = bt.msgpack_save(folder / "mapped.msgpack", tree, durable=False)
    assert_same(tree, bt.msgpack_load(path, mmap=True), template=False, loaded=True)
    assert_same(tree, bt.msgpack_load(path, blank_tree(tree), mmap=True), loaded=True)


@given(tree=checkpointable_trees(legacy=True))
def test_a_legacy_file_comes_back_with_a_template(tree):
    data = bt.msgpack_dumps(tree, format="flax")
    assert_same(tree, bt.msgpack_loads(data, blank_tree(tree)), identity=False, loaded=True)


@settings(max_examples=50)
@given(tree=checkpointable_trees())
def test_every_tree_can_be_read_without_a_template(tree):
    """Classes that only a template can bring back are plain values then, and a warning names each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        bt.msgpack_loads(bt.msgpack_dumps(tree))


@given(tree=checkpointable_trees())
def test_saving_changes_nothing_and_the_same_tree_gives_the_same_bytes(tree):
    before = copy_tree(tree)
    data = bt.msgpack_dumps(tree)
    assert_same(before, tree)
    assert bt.msgpack_dumps(tree) == data
    assert bt.msgpack_dumps(before) == data


@settings(max_examples=50)
@given(tree=checkpointable_trees())
def test_a_file_and_its_bytes_are_the_same(tree, folder):
    path = pathlib.Path(bt.msgpack_save(folder / "same.msgpack", tree, durable=False))
    file = io.BytesIO()
    bt.msgpack_save(file, tree)
    assert path.read_bytes() == file.getvalue() == bt.msgpack_dumps(tree)


def made_or_refused(make):
    """Give what is made, or the error."""
    try:
        return make()
    except bt.SerializationError as error:
        return error


@given(tree=checkpointable_trees())
def test_the_legacy_format_takes_a_tree_right_or_not_at_all(tree):
    data = made_or_refused(lambda: bt.msgpack_dumps([tree], format="flax"))
    if isinstance(data, bt.SerializationError):
        assert "format='v1'" in str(data)
    else:
        back = bt.msgpack_loads(data, [blank_tree(tree)])
        assert_same([tree], back, identity=False, loaded=True)


@settings(max_examples=50)
@given(tree=checkpointable_trees())
def test_state_dicts_come_back(tree):
    state = made_or_refused(lambda: bt.msgpack_to_state_dict([tree]))
    if isinstance(state, bt.SerializationError):
        assert "Collisions" in str(state)
    else:
        assert_same([tree], bt.msgpack_from_state_dict([blank_tree(tree)], state), identity=False)


@settings(max_examples=50)
@given(tree=checkpointable_trees(template_free=True))
def test_every_leaf_of_a_file_can_be_looked_at(tree):
    with bt.open_checkpoint(io.BytesIO(bt.msgpack_dumps(tree, metadata={"step": 1}))) as checkpoint:
        assert checkpoint.metadata == {"step": 1}
        assert len(set(checkpoint.paths)) == len(checkpoint.paths) == len(checkpoint)
        assert list(checkpoint.specs) == checkpoint.paths
        for path in checkpoint.paths:
            assert path in checkpoint
            checkpoint[path]
        checkpoint.verify()
        assert repr(checkpoint)
        assert checkpoint._repr_html_()
        assert_same(tree, checkpoint.load(), template=False, loaded=True)


def both_ways(tree, **options):
    """Bring a tree back with a template and without."""
    data = bt.msgpack_dumps(tree)
    assert_same(tree, bt.msgpack_loads(data, blank_tree(tree), **options), loaded=True)
    assert_same(tree, bt.msgpack_loads(data, **options), template=False, loaded=True)


# --- each kind of value, named ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", NUMPY_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 0, 3), (2, 3)])
def test_numpy_dtypes(dtype, shape):
    array = fill(dtype, math.prod(shape), np.random.default_rng(0)).reshape(shape)
    both_ways({"array": array, "other": array[::-1] if array.ndim else array.copy()})


@pytest.mark.parametrize("dtype", JAX_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3)])
def test_jax_dtypes(dtype, shape):
    both_ways({"array": jnp.asarray(fill(dtype, math.prod(shape), np.random.default_rng(0)).reshape(shape))})


@pytest.mark.parametrize("impl", KEY_IMPLS)
def test_typed_keys(impl):
    key = jax.random.key(3, impl=impl)
    both_ways({"key": key, "keys": jax.random.split(key, (2, 3))})
    back = bt.msgpack_loads(bt.msgpack_dumps(key))
    assert (jax.random.bits(back) == jax.random.bits(key)).all()


@pytest.mark.parametrize("unit", UNITS, ids=str)
def test_units(unit):
    both_ways({"unit": unit, "dim": unit.dim, "python": u.Quantity(1.5, unit=unit)})
    both_ways([u.Quantity(np.arange(3.0), unit=unit), u.Quantity(jnp.arange(3.0), unit=unit)])


def test_every_named_unit_keeps_its_name():
    units = {name: getattr(u, name) for name in dir(u) if isinstance(getattr(u, name), u.Unit)}
    assert len(units) > 2000
    data = bt.msgpack_dumps({name: u.Quantity(1.0, unit=unit) for name, unit in units.items()})
    for name, back in bt.msgpack_loads(data).items():
        assert (back.unit, back.unit.name, back.unit.dispname, str(back)) == (
            units[name],
            units[name].name,
            units[name].dispname,
            str(u.Quantity(1.0, unit=units[name])),
        )


@pytest.mark.parametrize("cls", STATE_CLASSES)
def test_states(cls):
    both_ways({"s": cls(jnp.arange(3.0))})
    if cls is not brainstate.HiddenState:
        both_ways({"s": cls({"w": jnp.arange(3.0) * u.mV, "n": [np.arange(2), (1, None)]})})


def test_states_of_other_shapes():
    both_ways({"s": brainstate.HiddenGroupState(jnp.ones((2, 3)))})
    both_ways({"s": brainstate.random.RandomState(5)})


INTS = [0, -1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**5000]


@pytest.mark.parametrize("number", INTS, ids=range(len(INTS)))
def test_ints_of_any_size(number):
    both_ways({"n": number, number: "key"})


@pytest.mark.parametrize("depth", [10, 200])
@pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: {"k": x}, lambda x: (x,), lambda x: {0: x}])
def test_deep_trees(depth, wrap):
    tree = np.arange(3)
    for _ in range(depth):
        tree = wrap(tree)
    data = bt.msgpack_dumps(tree)
    assert_same(tree, bt.msgpack_loads(data))
    assert_same(tree, bt.msgpack_loads(data, tree))


def test_confusable_keys_stay_apart():
    tree = {"a/b": 1, "a": {"b": 2, "b/c": 3}, "a.b": 4, "0": 5, 0: 6, "": 7, ".": 8, None: 9, "None": 10}
    tree |= {(): 11, ("a", "b"): 12, "('a', 'b')": 13, b"a": 14, "b'a'": 15, 1.5: 16, "1.5": 17, "a/b/c": 18}
    both_ways(tree)
    both_ways({"m": tree, "a": [tree]})


@pytest.mark.parametrize("key", [1, True, 1.0, "1", b"1", 1 + 0j, np.int64(1), np.float32(1), (1,), (True,)])
def test_keys_keep_their_type(key):
    both_ways({key: "x"})


@pytest.mark.parametrize("dtype", ["f2", ">f2", "i1", "u1", "f4", "i8", "c8", "?", "U3"])
def test_printing_a_masked_array_changes_nothing(dtype):
    """Printing one sets its fill value to numpy's default, which small dtypes cannot hold."""
    array = np.ma.masked_array(np.ones(3).astype(dtype), [0, 1, 0])
    before = bt.msgpack_dumps(array)
    assert repr(array)
    assert bt.msgpack_dumps(array) == before
    both_ways(array)


def test_nan_as_a_key():
    both_ways({math.nan: 1, "nan": 2, (math.nan, 1): 3})
    both_ways({"s": {math.nan, 1}, "f": frozenset({(math.nan,)})})


def test_frozensets_as_keys():
    both_ways({frozenset({"a", 1}): 1, (frozenset({"b"}), 2): 2, frozenset(): 3})


def test_time_zones_keep_their_names():
    zone = datetime.timezone(datetime.timedelta(hours=1), "CET")
    both_ways({"d": datetime.datetime(2024, 1, 1, tzinfo=zone), "t": datetime.time(1, tzinfo=zone)})


def test_one_object_met_often_is_stored_once():
    array = np.arange(1000.0)
    once, often = bt.msgpack_dumps([array]), bt.msgpack_dumps([array] * 50)
    assert len(often) < len(once) + 1000
    back = bt.msgpack_loads(often)
    assert all(x is back[0] for x in back)


def test_equal_objects_stay_apart():
    back = bt.msgpack_loads(bt.msgpack_dumps([np.zeros(3), np.zeros(3), [], []]))
    back[0][0] = 1
    back[2].append(1)
    assert_same([np.array([1.0, 0, 0]), np.zeros(3), [1], []], back)


def test_a_shared_state_is_one_state_again():
    state = brainstate.ParamState(jnp.ones(3))
    both_ways({"encoder": {"w": state}, "decoder": [state]})


def test_loaded_arrays_belong_to_the_caller():
    tree = {"a": [np.arange(4.0), np.zeros(3, "i1")], "b": np.arange(3), "big": np.zeros(200_000)}
    data = bt.msgpack_dumps(tree)
    first = bt.msgpack_loads(data)
    arrays = [*first["a"], first["b"], first["big"]]
    for array in arrays:
        array[...] = 99
    assert all((array == 99).all() for array in arrays)
    assert_same(tree, bt.msgpack_loads(data))
    template = copy_tree(tree)
    filled = bt.msgpack_loads(data, template)
    filled["b"][...] = 99
    assert_same(tree, template)


def test_many_small_leaves():
    tree = {f"layer{i}": {"w": np.full((2, 2), i), "b": jnp.asarray(i), "n": i} for i in range(500)}
    both_ways(tree)


def test_arrays_of_every_size_around_the_packs():
    sizes = [0, 1, 63, 64, 65, 4095, 4096, 4097, 65535, 65536, 65537, 2**20 - 1, 2**20, 2**20 + 1]
    both_ways({size: np.arange(size, dtype="u1") for size in sizes})


def test_the_same_bytes_in_another_process():
    """Neither the hash seed nor the process shows in the bytes."""
    code = (
        "import braintools_ckpt as bt, hashlib\n"
        "tree = {'s': {'a', 'b', 'c', 'd', 1, None}, 'f': frozenset(['x', 'y', ('z', 1)]), 'l': [1.5] * 3}\n"
        "print(hashlib.sha256(bt.msgpack_dumps(tree)).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(digests) == 1


# --- objects of other libraries -----------------------------------------------------------------------------


class Network(eqx.Module):
    layers: list
    scale: jax.Array
    activation: str = eqx.field(static=True)


class FlaxState(flax.struct.PyTreeNode):
    params: dict
    step: int
    name: str = flax.struct.field(pytree_node=False, default="x")


def with_template(tree, template):
    return bt.msgpack_loads(bt.msgpack_dumps(tree), template)


def same_leaves(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert type(x) is type(y)
        assert not isinstance(x, (np.ndarray, jax.Array)) or same_bits(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adam(1e-3),
        optax.chain(optax.clip(1.0), optax.adamw(optax.linear_schedule(1.0, 0.0, 10))),
        optax.multi_transform({"w": optax.sgd(0.1, momentum=0.9), "b": optax.adam(0.1)}, {"w": "w", "b": "b"}),
        optax.inject_hyperparams(optax.adam)(learning_rate=1e-3),
        optax.apply_if_finite(optax.sgd(0.1), 3),
    ],
    ids=["adam", "chain", "multi_transform", "inject_hyperparams", "apply_if_finite"],
)
def test_optax_states(optimizer):
    params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
    start = optimizer.init(params)
    updates, state = optimizer.update(params, start, params)
    back = with_template(state, start)
    same_leaves(state, back)
    assert_same(jax.tree.leaves(state), jax.tree.leaves(back))


def test_equinox_modules():
    net = Network([jnp.arange(3.0), {"w": jnp.ones(2)}], jnp.asarray(2.0), "relu")
    back = with_template(net, jax.tree.map(jnp.zeros_like, net))
    assert type(back) is Network
    same_leaves(net, back)


def test_flax_struct_nodes():
    state = FlaxState({"w": jnp.arange(3.0)}, 5)
    back = with_template(state, state.replace(step=0))
    assert type(back) is FlaxState
    assert back.step == 5
    same_leaves(state, back)


def test_flax_frozen_dicts():
    tree = flax.core.freeze({"a": {"w": jnp.arange(3.0)}, "n": 1})
    back = with_template(tree, jax.tree.map(lambda x: x * 0, tree))
    assert type(back) is flax.core.FrozenDict
    same_leaves(tree, back)


def test_brainstate_modules():
    net = brainstate.nn.Sequential(brainstate.nn.Linear(2, 3), jnp.tanh, brainstate.nn.Linear(3, 1))
    other = brainstate.nn.Sequential(brainstate.nn.Linear(2, 3), jnp.tanh, brainstate.nn.Linear(3, 1))
    data = bt.msgpack_dumps(net)
    assert bt.msgpack_loads(data, other) is other
    assert_same(net.states(), other.states())
    assert_same(net.states(), bt.msgpack_loads(bt.msgpack_dumps(net.states())))
    kept = other.states()
    assert all(state is kept[key] for key, state in bt.msgpack_loads(data, other).states().items())


# --- classes that only a template brings back ---------------------------------------------------------------


class Weekday(enum.Enum):
    MONDAY = "mon"


#: value -> what comes back without a template, and the class that the warning names
PLAIN = [
    (Layer(1, [2]), {"w": 1, "b": [2]}, "Layer"),
    (Weekday.MONDAY, {"name": "MONDAY", "value": "mon"}, "Weekday"),
    (Number.TWO, {"name": "TWO", "value": 2}, "Number"),
    (Str("a"), "a", "Str"),
    (Int(5), 5, "Int"),
    (List([1]), [1], "List"),
    (Tuple([1]), (1,), "Tuple"),
    (Dict(a=1), {"a": 1}, "Dict"),
    (JaxData(1), {"value": 1}, "JaxData"),
    (Node(1, 2), {"left": 1, "right": 2}, "Node"),
    (jax.tree_util.Partial(scale_by, 3, x=4), {"args": (3,), "keywords": {"x": 4}}, "Partial"),
]


@pytest.mark.parametrize(("value", "plain", "name"), PLAIN, ids=[name for _, _, name in PLAIN])
def test_without_a_template_a_class_is_plain_and_a_warning_names_it(value, plain, name):
    data = bt.msgpack_dumps({"v": value})
    with pytest.warns(UserWarning, match=name) as record:
        back = bt.msgpack_loads(data)
    assert len(record) == 1
    assert_same({"v": plain}, back)
    assert_same({"v": value}, bt.msgpack_loads(data, {"v": value}))


@dataclasses.dataclass(frozen=True)
class Place:
    row: int


@bt.serializable
@dataclasses.dataclass(frozen=True)
class KnownPlace:
    row: int


@bt.serializable
class KnownDay(enum.Enum):
    MONDAY = "mon"


def test_keys_and_elements_that_would_be_plain_dicts_are_refused_when_they_are_saved():
    for key in (Place(1), (0, Place(1)), frozenset([Place(1)])):
        with pytest.raises(bt.SerializationError, match="Cannot save the dict key"):
            bt.msgpack_dumps({key: 1})
    elements = [Weekday.MONDAY, Place(1), (0, Weekday.MONDAY), Pair(0, Place(1)), frozenset([(Number.TWO,)])]
    for element in elements:
        for make in (set, frozenset):
            with pytest.raises(bt.SerializationError, match=r"Cannot save the (frozen)?set at path a.*: members"):
                bt.msgpack_dumps({"a": make([element, 2])})
    tree = {KnownPlace(1): {KnownPlace(1), (KnownDay.MONDAY,)}, (KnownDay.MONDAY, KnownPlace(2)): frozenset([1])}
    assert bt.msgpack_loads(bt.msgpack_dumps(tree)) == tree
    assert bt.msgpack_loads(bt.msgpack_dumps({Weekday.MONDAY: 1}), {Weekday.MONDAY: 0}) == {Weekday.MONDAY: 1}


def test_one_class_gives_one_warning():
    with pytest.warns(UserWarning, match="Layer") as record:
        bt.msgpack_loads(bt.msgpack_dumps([Layer(i) for i in range(5)]))
    assert len(record) == 1


def test_a_factory_that_no_file_can_name_is_left_out_without_a_template():
    data = bt.msgpack_dumps(collections.defaultdict(make_default, a=1))
    back = bt.msgpack_loads(data)
    assert_same(collections.defaultdict(None, a=1), back)
    assert bt.msgpack_loads(data, collections.defaultdict(make_default, a=0))["new"] == "default"


def test_a_namedtuple_without_a_template():
    back = bt.msgpack_loads(bt.msgpack_dumps([Pair(1, [2])]))[0]
    assert type(back).__name__ == "Pair"
    assert back._fields == ("left", "right")
    assert back == Pair(1, [2])
    assert back.right == [2]


# --- places and options -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, pathlib.Path, lambda path: path])
def test_filenames(kind, tmp_path):
    path = kind(str(tmp_path / "deep" / "er" / "x.msgpack"))
    assert bt.msgpack_save(path, {"a": 1}) == str(path)
    assert bt.msgpack_load(path) == {"a": 1}


def test_open_files(tmp_path):
    with open(tmp_path / "x", "wb") as file:
        bt.msgpack_save(file, {"a": np.arange(3)})
    with open(tmp_path / "x", "rb") as file:
        assert_same({"a": np.arange(3)}, bt.msgpack_load(file))
    assert_same({"a": np.arange(3)}, bt.msgpack_load(tmp_path / "x"))


def test_bytes_like_data():
    data = bt.msgpack_dumps({"a": np.arange(3)})
    for kind in (bytes, bytearray, memoryview):
        assert_same({"a": np.arange(3)}, bt.msgpack_loads(kind(data)))


def test_verbose_says_what_is_done(tmp_path, capsys):
    path = str(tmp_path / "x.msgpack")
    bt.msgpack_save(path, {"a": 1}, verbose=True)
    assert f"Saving checkpoint into {path}" in capsys.readouterr().out
    bt.msgpack_load(path, verbose=True)
    assert f"Loading checkpoint from {path}" in capsys.readouterr().out


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("verify", [True, False])
def test_ways_of_reading(parallel, mmap, verify, tmp_path):
    tree = {"a": np.arange(300_000.0), "b": [jnp.arange(3), np.float32(1)], "s": "x"}
    path = bt.msgpack_save(tmp_path / "x", tree)
    options = {"parallel": parallel, "mmap": mmap, "verify": verify}
    assert_same(tree, bt.msgpack_load(path, **options), loaded=True)
    assert_same(tree, bt.msgpack_load(path, blank_tree(tree), **options), loaded=True)


def test_arrays_as_numpy_and_as_jax():
    data = bt.msgpack_dumps({"n": np.arange(3, dtype="i4"), "j": jnp.arange(3), "q": jnp.ones(2) * u.mV})
    as_numpy = bt.msgpack_loads(data, arrays="numpy")
    assert_same({"n": np.arange(3, dtype="i4"), "j": np.arange(3, dtype="i4"), "q": np.ones(2, "f4") * u.mV}, as_numpy)
    as_jax = bt.msgpack_loads(data, arrays="jax")
    assert_same({"n": jnp.arange(3), "j": jnp.arange(3), "q": jnp.ones(2) * u.mV}, as_jax)


def test_raw_gives_the_state_dict():
    tree = {"list": [np.arange(2), (1,)], 3: "x", "pair": Pair(1, 2)}
    raw = bt.msgpack_loads(bt.msgpack_dumps(tree), raw=True)
    assert_same(
        {"list": {"0": np.arange(2), "1": {"0": 1}}, "3": "x", "pair": {"left": 1, "right": 2}},
        raw,
        loaded=True,
    )


def test_metadata_is_kept_apart():
    metadata = {"version": 3, "note": "x", "list": [1, 2.5, None], "deep": {"a": True}}
    data = bt.msgpack_dumps({"a": 1}, metadata=metadata)
    with bt.open_checkpoint(io.BytesIO(data)) as checkpoint:
        assert checkpoint.metadata == metadata
    assert bt.msgpack_loads(data) == {"a": 1}
