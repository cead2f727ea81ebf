"""Objects with a state that their tag cannot have."""

from __future__ import annotations

from .forge import ARRAY, BYTE, ITEMS, LIST, leaf, node
from .indices import PADDED

UNIT = {"symbol": "V", "name": "volt", "dim": [LIST, 2, 1, -3, -1, 0, 0, 0], "scale": 0, "factor": 1.0, "full": True}

#: Numpy takes any place in these and reads there, which may be outside of its memory.
MT_KEY = [LIST, *range(624)]
PHILOX = {
    "bit_generator": "Philox",
    "state": {"counter": [LIST, 0, 0, 0, 0], "key": [LIST, 0, 0]},
    "buffer": [LIST, 0, 0, 0, 0],
    "buffer_pos": 4,
    "has_uint32": 0,
    "uinteger": 0,
}

#: States that each built-in tag cannot have.
WRONG = {
    "tuple": [node("tuple", {}), node("tuple", 1), node("tuple", [ITEMS])],
    "list": [node("list", 5)],
    "deque": [
        node("deque", 5),
        node("deque", [LIST], maxlen="a"),
        node("deque", [LIST], maxlen=-1),
        node("deque", [LIST, 1, 2], maxlen=1),
        node("deque", [LIST], maxlen=None),
    ],
    "OrderedDict": [node("OrderedDict", [LIST]), node("OrderedDict", 1)],
    "defaultdict": [node("defaultdict", 1), node("defaultdict", {}, factory=[LIST])],
    "Counter": [node("Counter", [LIST, 1])],
    "namedtuple": [node("namedtuple", {"a": 1}), node("namedtuple", [LIST], **{"class": "P"})],
    "dataclass": [node("dataclass", {})],
    "pytree": [node("pytree", {})],
    "brainstate.State": [node("brainstate.State", 1), node("brainstate.State", 1, **{"class": [LIST]})],
    "brainstate.NestedDict": [node("brainstate.NestedDict", [LIST])],
    "brainstate.FlattedDict": [node("brainstate.FlattedDict", 1)],
    "brainstate.Module": [node("brainstate.Module", {})],
    "int": [leaf("int", "1"), leaf("int", 1.0), leaf("int", None), leaf("int", True)],
    "float": [leaf("float", "nan"), leaf("float", 1)],
    "complex": [leaf("complex", [LIST, "a", "b"]), leaf("complex", 1), leaf("complex", [LIST, 1.0, 2.0, 3.0])],
    "str": [leaf("str", 1), leaf("str", b"\xff"), leaf("str", [LIST])],
    "bytes": [leaf("bytes", "a"), leaf("bytes", None)],
    "bytearray": [leaf("bytearray", "a"), leaf("bytearray", None), leaf("bytearray", 1 << 40), leaf("bytearray", 8)],
    "set": [
        leaf("set", {}),
        leaf("set", [LIST, [LIST]]),
        leaf("set", [LIST, [ARRAY, 0]]),
        leaf("set", [LIST, 1, 1]),
        leaf("set", [LIST, 1, 1.0]),
    ],
    "frozenset": [leaf("frozenset", 1), leaf("frozenset", [LIST, {}]), leaf("frozenset", [LIST, 0.0, -0.0])],
    "enum": [
        leaf("enum", {"name": "A", "value": 1}),
        leaf("enum", {"value": 1}, **{"class": "m.E"}),
        leaf("enum", {"name": 1}, **{"class": "m.E"}),
    ],
    "range": [leaf("range", [LIST, 0, 1, 0]), leaf("range", [LIST, 0.5]), leaf("range", "abc"), leaf("range", None)],
    "slice": [leaf("slice", None), leaf("slice", [LIST]), leaf("slice", [LIST, 1, 2, 3, 4])],
    "datetime": [
        leaf("datetime", "2020-01-01"),
        leaf("datetime", [LIST, "2020-13-01T00:00:00", 0, None]),
        leaf("datetime", [LIST, "2020-01-01T00:00:00", 2, None]),
        leaf("datetime", [LIST, "2020-01-01T00:00:00", 0, "UTC"]),
        leaf("datetime", [LIST, 1, 0, None]),
        leaf("datetime", [LIST, "2020-01-01T00:00:00+01:00", 0, None]),
        leaf("datetime", [LIST, "20200101T000000", 0, None]),
    ],
    "date": [leaf("date", "2020-02-30"), leaf("date", 1), leaf("date", None), leaf("date", "2020-W01-1")],
    "time": [
        leaf("time", [LIST, "25:00", 0, None]),
        leaf("time", "12:00"),
        leaf("time", [LIST, "12:00", 0, None]),
        leaf("time", [LIST, "12:00:00+01:00", 0, None]),
    ],
    "timedelta": [leaf("timedelta", [LIST, 10**12]), leaf("timedelta", [LIST, "a"]), leaf("timedelta", None)],
    "timezone": [leaf("timezone", [LIST, 10**9, 0]), leaf("timezone", [LIST, 1]), leaf("timezone", [LIST, 1, 2, 3])],
    "zoneinfo": [
        leaf("zoneinfo", "No/Where"),
        leaf("zoneinfo", "../../etc/passwd"),
        leaf("zoneinfo", "/etc/passwd"),
        leaf("zoneinfo", "a\0b"),
        leaf("zoneinfo", "Europe"),
        leaf("zoneinfo", "x" * 5000),
        leaf("zoneinfo", None),
        leaf("zoneinfo", 1),
    ],
    "uuid": [
        leaf("uuid", b"short"),
        leaf("uuid", None),
        leaf("uuid", "0123456789abcdef"),
        leaf("uuid", [LIST] + [1] * 16),
    ],
    "decimal": [leaf("decimal", "abc"), leaf("decimal", None), leaf("decimal", [LIST, 1])],
    "fraction": [
        leaf("fraction", [LIST, 1, 0]),
        leaf("fraction", [LIST, 1.5, 2]),
        leaf("fraction", [LIST, "1e1000"]),
        leaf("fraction", None),
    ],
    "random": [leaf("random", [LIST, 3, 1, None]), leaf("random", None), leaf("random", [LIST, 3, [ARRAY, 0], None])],
    "path.PurePosixPath": [leaf("path.PurePosixPath", 1), leaf("path.PurePosixPath", None)],
    "path.PosixPath": [leaf("path.PosixPath", [LIST])],
    "array": [
        leaf("array", b"a"),
        leaf("array", b"abc", dtype="uint8", shape=[LIST, 4], kind="numpy"),
        leaf("array", b"", dtype="uint8", shape=[LIST, -1], kind="numpy"),
        leaf("array", "a", dtype="uint8", shape=[LIST, 1], kind="numpy"),
        leaf("array", b"", dtype="U0", shape=[LIST, 2**40], kind="numpy"),
        leaf("array", b"", dtype="V0", shape=[LIST, 2**40], kind="numpy"),
        leaf("array", b"a", dtype={**PADDED, "fields": [LIST, [LIST, "a", "uint8", 0]]}, shape=[LIST, 1], kind="numpy"),
    ],
    "numpy.scalar": [
        leaf("numpy.scalar", b"a"),
        leaf("numpy.scalar", b"ab", dtype="uint8"),
        leaf("numpy.scalar", 1, dtype="uint8"),
        leaf("numpy.scalar", b"a", dtype="O"),
        leaf("numpy.scalar", b"a", dtype={**PADDED, "fields": [LIST, [LIST, "a", "uint8", 0]]}),
    ],
    "numpy.str": [leaf("numpy.str", 5), leaf("numpy.str", b"a"), leaf("numpy.str", [LIST, 1])],
    "numpy.bytes": [leaf("numpy.bytes", "a"), leaf("numpy.bytes", 1 << 40)],
    "numpy.dtype": [leaf("numpy.dtype", "O"), leaf("numpy.dtype", 1), leaf("numpy.dtype", None)],
    "numpy.strings": [
        leaf("numpy.strings", [LIST, "a"]),
        leaf("numpy.strings", [LIST, "a"], shape=[LIST, 2**40], coerce=True),
        leaf("numpy.strings", [LIST, "a", "b"], shape=[LIST, -1], coerce=True),
        leaf("numpy.strings", [LIST, 1], shape=[LIST, 1], coerce=True),
        leaf("numpy.strings", [LIST, None], shape=[LIST, 1], coerce=True),
    ],
    "numpy.subclass": [
        leaf("numpy.subclass", [ARRAY, 0], kind="ndarray"),
        leaf("numpy.subclass", [ARRAY, 0]),
        leaf("numpy.subclass", 1, kind="matrix"),
    ],
    "numpy.masked": [
        leaf("numpy.masked", {"data": [ARRAY, 0], "mask": None, "fill_value": None}),
        leaf("numpy.masked", {"data": [ARRAY, 0]}, hard=False),
        leaf("numpy.masked", {"data": [ARRAY, 1], "mask": [ARRAY, 2], "fill_value": None}, hard=False),
        leaf("numpy.masked", 1, hard=False),
    ],
    "numpy.generator": [
        leaf("numpy.generator", {"bit_generator": "os"}),
        leaf("numpy.generator", {"bit_generator": "PCG64"}),
        leaf("numpy.generator", {"bit_generator": "MT19937", "state": {"key": [LIST, 1], "pos": 1}}),
        leaf("numpy.generator", [LIST]),
        leaf("numpy.generator", {"bit_generator": "MT19937", "state": {"key": MT_KEY, "pos": 10**6}}),
        leaf("numpy.generator", {"bit_generator": "MT19937", "state": {"key": MT_KEY, "pos": -1000}}),
        leaf("numpy.generator", {**PHILOX, "buffer_pos": -(10**6)}),
    ],
    "numpy.randomstate": [
        leaf(
            "numpy.randomstate",
            {
                "bit_generator": "MT19937",
                "state": {"key": MT_KEY, "pos": 10**6},
                "has_gauss": 0,
                "gauss": 0.0,
            },
        ),
        leaf("numpy.randomstate", {"bit_generator": "MT19937"}),
        leaf("numpy.randomstate", {}),
    ],
    "jax.key": [
        leaf("jax.key", [ARRAY, 0]),
        leaf("jax.key", [ARRAY, 0], impl="threefry2x32"),
        leaf("jax.key", [ARRAY, 0], impl="no such"),
        leaf("jax.key", 1, impl="threefry2x32"),
    ],
    "brainunit.Quantity": [
        leaf("brainunit.Quantity", 1.0),
        leaf("brainunit.Quantity", 1.0, unit=1),
        leaf("brainunit.Quantity", 1.0, unit={}),
        leaf("brainunit.Quantity", 1.0, unit={**UNIT, "dim": [LIST, 1]}),
        leaf("brainunit.Quantity", 1.0, unit={**UNIT, "scale": "a"}),
        leaf("brainunit.Quantity", "text", unit=UNIT),
    ],
    "brainunit.Unit": [leaf("brainunit.Unit", None), leaf("brainunit.Unit", None, unit={**UNIT, "dim": 1})],
    "brainunit.Dimension": [leaf("brainunit.Dimension", 1), leaf("brainunit.Dimension", [LIST, "a"])],
}

#: Arrays that the states refer to.
EXTRA = [BYTE, ("numpy", "uint8", [3], b"abc"), ("numpy", "bool", [2], b"\0\0")]
