"""The files that are changed: small ones, which have together everything that the format has."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import pathlib
import random
import uuid
import zoneinfo
from pathlib import Path
from unittest import mock

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np

import braintools_ckpt as bt
from braintools_ckpt.format import layout

GOLDEN = Path(__file__).parent.parent / "golden"
Pair = collections.namedtuple("Pair", "a b")


@bt.serializable(name="fuzz.Point", override=True)
@dataclasses.dataclass
class Point:
    """A class that is registered."""

    x: object = 0
    y: object = 0


@bt.serializable(name="fuzz.Old", version=3, upgrade={1: lambda s: s, 2: lambda s: {"b": s["a"]}}, override=True)
@dataclasses.dataclass
class Old:
    """A class of another version."""

    b: object = 0


class Color(enum.Enum):
    """A class of which only the target knows."""

    RED = 1


def _shared():
    array, inner = np.arange(4.0), [1, 2]
    return {"a": [array, array], "b": inner, "c": inner, "d": (inner, array)}


def _objects():
    return {
        "counter": collections.Counter("abca"),
        "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
        "default": collections.defaultdict(list, {1: [2]}),
        "deque": collections.deque([1, 2], 5),
        "pair": Pair(1, [2]),
        "sets": [{1, "a"}, frozenset([2.5, None])],
        "numbers": [1 << 70, -(1 << 80), 1j, decimal.Decimal("1.5"), fractions.Fraction(2, 3), range(3), slice(1, 2)],
        "times": [
            datetime.datetime(2020, 1, 2, 3, tzinfo=zoneinfo.ZoneInfo("UTC")),
            datetime.date(2020, 1, 2),
            datetime.time(1, 2, tzinfo=datetime.timezone(datetime.timedelta(hours=1))),
            datetime.timedelta(1, 2, 3),
        ],
        "others": [
            uuid.UUID(int=5),
            pathlib.PurePosixPath("a/b"),
            ...,
            bytearray(b"ab"),
            b"bytes",
            "\udc80",
            Color.RED,
        ],
        ("tuple", 1): {None: 1, True: 2, 2.5: 3, b"k": 4, (1, ("x",)): 5},
        "point": Point([1], {"z": np.ones(2)}),
        "old": Old(5),
    }


def _numpy():
    return [
        np.array([["ab", "c"]]),
        np.array([b"ab"]),
        np.array(["x", "yy"], np.dtypes.StringDType()),
        np.zeros(2, [("a", "i1"), ("b", ">f8", (2,))]),
        np.ma.masked_array([1, 2], [0, 1]),
        np.float32(1.5),
        np.datetime64("2020-01-01"),
        np.dtype([("a", "f4")]),
        np.matrix([[1, 2]]),
        np.zeros((0, 3)),
        np.arange(3, dtype=">i4"),
        np.str_("x"),
        np.array(5, "float16"),
    ]


def _generators():
    return [
        np.random.default_rng(0),
        np.random.Generator(np.random.Philox(1)),
        np.random.SeedSequence(3, spawn_key=(1,)),
    ]


def _jax():
    return {
        "w": jnp.arange(6.0).reshape(2, 3),
        "weak": jnp.asarray(1.0),
        "bf": jnp.ones(3, "bfloat16"),
        "key": jax.random.key(0),
        "keys": jax.random.split(jax.random.key(1), 2),
        "s": brainstate.ParamState(jnp.ones(2)),
    }


def _units():
    v = jnp.ones(2) * u.mV
    return {"v": v, "again": v, "g": 2.0 * u.nS / u.cm**2, "unit": u.ms, "state": brainstate.HiddenState(v)}


def _runs():
    return {"l": [np.float32([i]) for i in range(20)], "d": {str(i): np.float32([i]) for i in range(18)}}


TREES = {
    "plain": lambda: {"w": np.arange(5.0), "n": [1, "a", None, 2.5, True], "t": (1, b"x")},
    "shared": _shared,
    "objects": _objects,
    "numpy": _numpy,
    "generators": _generators,
    "jax": _jax,
    "units": _units,
    "runs": _runs,
    "random": lambda: [random.Random(0)],
    "states": lambda: brainstate.util.FlattedDict({("a", "b"): brainstate.ParamState(jnp.ones(1)), ("c",): 1}),
}
METADATA = {"step": 7, "loss": 0.5, "who": ("x", {1: 2}), "array": np.arange(2)}


def seeds():
    """Give the files, with a function that makes a target for each."""
    made = {}
    for name, tree in TREES.items():
        with mock.patch.multiple(layout, MAX_BLOB=128, HASH_BLOCK=64, PACKED_BELOW=40, PACK_SIZE=64):
            made[name] = bt.msgpack_dumps(tree(), metadata=METADATA if name in ("plain", "units") else None), tree
    flat = {"z": np.zeros(500, "f4"), "p": [np.zeros(9, "i2"), np.arange(40.0)], "s": "x"}
    with mock.patch.multiple(layout, PACKED_BELOW=64, PACK_SIZE=128, FRAME_SIZE=512):
        made["zstd"] = bt.msgpack_dumps(flat, compression="zstd"), lambda: flat
    for name in ("plain", "shared"):
        made[f"flax {name}"] = bt.msgpack_dumps(TREES[name](), format="flax"), TREES[name]
    for path in sorted((GOLDEN / "legacy").glob("*.msgpack")):
        if path.stat().st_size < 2000:
            made[path.stem] = path.read_bytes(), dict
    return made
