"""What is in each golden file of format version 1, and how it was written.

``TREES`` gives for each file a function that makes the tree, ``METADATA`` what was saved beside it and ``LAYOUT`` the
sizes that the writer used where they were not its own. Nothing here may be changed once the file is in the repository;
what is new goes into a new file.
"""

import collections
import datetime
import decimal
import fractions
import pathlib
import random
import uuid
import zoneinfo

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

Point = collections.namedtuple("Point", ["x", "y"])


def containers():
    return {
        "none": None,
        "flags": [True, False],
        "ints": [0, -1, 127, 128, -(2**63), 2**63, 2**64 - 1, 2**64, -(2**70)],
        "floats": [0.1, -0.0, float("inf"), float("-inf"), 5e-324],
        "complex": [1.5 - 2j, complex(0.0, -0.0)],
        "text": ["", "größe", "\U0001f9e0", "a\0b", "\ud800", "x" * 70_000],
        "bytes": [b"", b"\x00\xff", b"y" * 70_000],
        "nested": {"list": [1, [2, []]], "tuple": (1, (2, ()), []), "dict": {"a": {"b": {}}}},
        "keys": {1: "int", "1": "str", None: 0, 1.5: 0, b"b": 0, (1, ("x", None)): 0, 2**70: 0, "": 0, "a/b": 0},
        "point": Point(1, [2.5]),
        "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
        "default": collections.defaultdict(list, {"a": [1], 2: []}),
        "counter": collections.Counter("abca"),
        "deque": collections.deque([1, 2], maxlen=5),
        "sets": [{3, "a", (1, 2)}, frozenset({1, frozenset()}), set()],
    }


def stdlib():
    berlin = zoneinfo.ZoneInfo("Europe/Berlin")
    east = datetime.timezone(datetime.timedelta(hours=5, minutes=30), "IST")
    return {
        "bytearray": bytearray(b"\x01\x02"),
        "ellipsis": ...,
        "range": range(1, 2**70, 3),
        "slice": slice(None, -1, 2),
        "datetimes": [
            datetime.datetime(2024, 2, 29, 12, 30, 1, 5),
            datetime.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=berlin),
            datetime.datetime(1, 1, 1, tzinfo=datetime.UTC),
            datetime.datetime(9999, 12, 31, tzinfo=east),
        ],
        "date": datetime.date(2024, 2, 29),
        "times": [datetime.time(1, 2, 3, 4), datetime.time(12, tzinfo=east)],
        "timedelta": datetime.timedelta(-1, 5, 7),
        "uuid": uuid.UUID("12345678-1234-5678-1234-567812345678"),
        "decimals": [decimal.Decimal("1.00"), decimal.Decimal("-0"), decimal.Decimal("Infinity")],
        "fraction": fractions.Fraction(-(2**70), 3),
        "paths": [pathlib.PurePosixPath("/a/b"), pathlib.PureWindowsPath("C:\\a")],
    }


def numpy_dtypes():
    plain = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16", ">i2", ">f8", ">c8"]
    small = ["bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4"]
    record = np.dtype([("a", "i1"), ("b", ">f8"), ("c", "u2", (2,)), ("d", [("e", "U2")])], align=True)
    records = np.zeros(2, record)
    records["b"] = [1.5, -2.5]
    records["c"] = [[1, 2], [3, 4]]
    records["d"]["e"] = ["x", "yz"]
    return {
        "plain": {code: np.array([0, 1, 1, 0]).astype(code).reshape(2, 2) for code in plain},
        "ml": {
            name: np.array([0, 1, 2, -1 if name[0] != "u" else 3]).astype(getattr(ml_dtypes, name)) for name in small
        },
        "text": np.array([["a", "größe"], ["", "x\0y"]]),
        "bytes": np.array([b"a", b"bcd"]),
        "void": np.array([b"\x01\x02", b"\x03\x04"], "V2"),
        "times": np.array(["2024-02-29T12:00", "NaT"], "M8[25m]"),
        "steps": np.array([1, -1], "m8[ns]"),
        "records": records,
        "strings": np.array(["a", "längere Texte", ""], np.dtypes.StringDType()),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "zero-d": np.array(2.5),
        "empty": np.zeros((0, 3), "f4"),
        "scalars": [np.float32(0.1), np.int64(-5), np.bool_(True), np.datetime64("2024-02-29"), np.str_("a")],
        "dtype": np.dtype(">f4"),
        "masked": np.ma.MaskedArray([1, 2, 3], mask=[False, True, False], fill_value=9),
        "generator": np.random.Generator(np.random.PCG64(7)),
        "twister": np.random.Generator(np.random.MT19937(7)),
    }


def jax_arrays():
    return {
        "float32": jnp.arange(6, dtype=jnp.float32).reshape(2, 3),
        "bfloat16": jnp.array([1.5, -2.0], jnp.bfloat16),
        "int4": jnp.array([-8, 7, 0], jnp.int4),
        "bool": jnp.array([True, False]),
        "complex64": jnp.array([1 + 2j], jnp.complex64),
        "weak": jnp.asarray(2.5),
        "zero-d": jnp.int32(3),
        "empty": jnp.zeros((0, 2)),
        "key": jax.random.key(42),
        "keys": jax.random.split(jax.random.key(1, impl="rbg"), 3),
        "old key": jax.random.PRNGKey(0),
    }


def quantities():
    return {
        "V": jnp.array([-65.0, -60.0], jnp.float32) * u.mV,
        "t": 5.0 * u.ms,
        "numpy": u.Quantity(np.arange(3, dtype=">f8"), unit=u.nS / u.cm**2),
        "none": u.Quantity(1.5),
        "unit": u.pA,
        "product": (u.mV / u.ms) ** 2,
        "dimension": u.volt.dim,
    }


def states():
    return {
        "state": brainstate.State(jnp.arange(3.0)),
        "param": brainstate.ParamState({"w": jnp.ones((2, 2)), "b": jnp.zeros(2)}),
        "hidden": brainstate.HiddenState(jnp.ones(2, jnp.float32) * u.mV),
        "flat": brainstate.util.FlattedDict({("net", 0, "w"): brainstate.ParamState(jnp.ones(2))}),
        "nested": brainstate.util.NestedDict({"net": {"w": jnp.ones(2)}}),
    }


def shared():
    array, part = np.arange(3), {"w": jnp.ones(2)}
    outer = [part, array]
    return {"a": part, "b": outer, "c": outer, "d": array, "e": {"again": [part, array, outer]}}


def packs():
    return {
        "small": [np.full(i, i, dtype) for i in range(6) for dtype in ("u1", "f8", "c16", "i2")],
        "large": np.arange(9_000, dtype="u8"),
        "after": np.arange(3, dtype="u1"),
    }


def blocks():
    return {
        "large": np.arange(500, dtype=">u2"),
        "rows": np.asfortranarray(np.arange(60, dtype="f4").reshape(12, 5)),
        "jax": jnp.arange(100),
        "small": [np.arange(i, dtype="u1") for i in range(12)],
    }


def compressed():
    values = np.arange(6000)
    return {
        "wave": np.sin(values / 100).astype(np.float32).round(3),
        "jax": jnp.asarray(values * 37 % 1000, jnp.int32),
        "half": (values[::2] % 64).astype(ml_dtypes.bfloat16).reshape(30, 100),
        "raw": (values * values % 65_521 * 40_503 >> 7).astype(np.uint8),
        "records": np.array([(i % 200, i / 4) for i in range(900)], [("a", "u1"), ("b", ">f8")]),
        "small": [values[:i] for i in range(9)],
        "text": np.array([f"neuron {i}" for i in range(300)]),
    }


def runs():
    array = np.arange(2)
    return {
        "list": [np.full(i % 3, i, np.float32) for i in range(20)],
        "dict": {f"k{i}": np.full((1, 2), i, ">i2" if i % 2 else "i2") for i in range(16)},
        "jax": (*(jnp.full(2, i) for i in range(17)),),
        "again": [array, *(np.arange(i) for i in range(15)), array],
        "few": [np.arange(i) for i in range(15)],
    }


TREES = {
    "containers": containers,
    "stdlib": stdlib,
    "numpy": numpy_dtypes,
    "numpy_seeds": numpy_dtypes,
    "jax": jax_arrays,
    "quantities": quantities,
    "states": states,
    "shared": shared,
    "packs": packs,
    "blocks": blocks,
    "leaf": lambda: 1.5,
    "random": lambda: random.Random(5),
    "compressed": compressed,
    "runs": runs,
    "numpy_runs": numpy_dtypes,
    "packs_runs": packs,
    "quantities_shared": quantities,
    "states_shared": states,
}
METADATA = {
    "containers": {
        "step": 7,
        "lr": 0.1,
        "tags": ("a", {1: "b"}),
        "history": np.array([[1.0, 0.5]], ">f4"),
        "when": datetime.date(2024, 2, 29),
    },
    "quantities": {"dt": 0.1 * u.ms},
    "quantities_shared": {"dt": 0.1 * u.ms},
}
#: Many blobs, packs and blocks in a small file.
LAYOUT = {
    "blocks": {"MAX_BLOB": 128, "HASH_BLOCK": 64, "PACKED_BELOW": 24, "PACK_SIZE": 24},
    "compressed": {"FRAME_SIZE": 4096, "PACKED_BELOW": 1024, "PACK_SIZE": 1024},
}
#: How a file is compressed, if it is.
COMPRESSION = {"compressed": "zstd"}


def sizes(name, layout):
    """Give the sizes that a file is written with."""
    return LAYOUT.get(name) or {"MAX_BLOB": layout.MAX_BLOB}


#: Files that the library does not write like that any more, and why: they are loaded for ever all the same.
SUPERSEDED = {
    "numpy": "generators are written with the seeds they spawn from: see numpy_seeds",
    "numpy_seeds": "many arrays in a row have one node: see numpy_runs",
    "packs": "many arrays in a row have one node: see packs_runs",
    "quantities": "units stand among the shared values: see quantities_shared",
    "states": "units stand among the shared values: see states_shared",
}


#: The versions whose own forms are part of these files; with others the bytes may differ, and nothing else.
VERSIONS = {
    "quantities_shared": {"brainunit": "0.5.2"},
    "states_shared": {"brainunit": "0.5.2", "brainstate": "0.5.4"},
    "compressed": {"zstandard": "0.25.0"},
}
