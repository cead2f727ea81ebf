"""Files that keep to the grammar, and ask for time, memory or code all the same."""

from __future__ import annotations

import msgpack
import numpy as np

from .forge import ARRAY, ARRAYS, BYTE, ITEMS, LEAF, LIST, NAMED_ARRAYS, REF, column, forge, leaf, nested, node
from .states import UNIT

MODULUS = (1 << 61) - 1  # hashes of Python's numbers are remainders by it


def integer(number):
    """An int of any size."""
    return leaf("int", number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True))


def alone(structure, **index):
    return lambda: forge(structure(), **index)


#: More digits than Python writes.
GIANT = 1 << (8 << 17)
MEBIBYTE = 1 << 20


def collisions(count, make):
    """Keys of one hash."""
    return [make(i) for i in range(1, count + 1)]


def items(keys):
    return [ITEMS, *(part for key in keys for part in (key, 1))]


def colliding_complex(i):
    return leaf("complex", [LIST, float(-1_000_003 * i), float(i)])


def colliding_int(i):
    return integer(1 + i * MODULUS)


def colliding_fraction(i):
    return leaf("fraction", [LIST, integer(1 + i * MODULUS), 1])


def colliding_decimal(i):
    return leaf("decimal", str(1 + i * MODULUS))


#: Elements whose padding is nearly all of them, each array just below what one may have.
PADDED = {"fields": [["a", "uint8", 0]], "itemsize": 1 << 20, "aligned": False}
EMPTY = {"fields": [], "itemsize": 4, "aligned": False}


def padded(count):
    return forge([ARRAYS, 0, count], [("numpy", PADDED, [64], b"a" * 64)] * count)


def empty(count):
    return forge([ARRAYS, 0, count], [("numpy", EMPTY, [1 << 24], b"")] * count)


def wide(count):
    """A dtype of as many fields as there may be, in each of many arrays."""
    fields = [[f"{i}", "uint8", i] for i in range(1 << 12)]
    dtype = {"fields": fields, "itemsize": 1 << 12, "aligned": False}
    return forge([ARRAYS, 0, count], [("numpy", dtype, [1], bytes(1 << 12))] * count)


def quantity(**changes):
    return leaf("brainunit.Quantity", 1.0, unit={**UNIT, **changes})


def seeds(**changes):
    state = {"entropy": 1, "spawn_key": [LIST], "pool_size": 4, "n_children_spawned": 0, **changes}
    return leaf("numpy.seedsequence", state)


def metadata(value):
    return lambda: forge({"a": 1}, metadata={"a": value})


#: What has to be refused.
REFUSED = {
    "a dict of complex keys with one hash": alone(lambda: items(collisions(8_000, colliding_complex))),
    "a dict of int keys with one hash": alone(lambda: items(collisions(8_000, colliding_int))),
    "a dict of fractions with one hash": alone(lambda: items(collisions(8_000, colliding_fraction))),
    "a dict of decimals with one hash": alone(lambda: items(collisions(8_000, colliding_decimal))),
    "a dict of tuples with one hash": alone(
        lambda: items(collisions(8_000, lambda i: node("tuple", [LIST, colliding_int(i)])))
    ),
    "a set of one hash": alone(lambda: leaf("set", [LIST, *collisions(8_000, colliding_complex)])),
    "a frozenset of one hash": alone(lambda: leaf("frozenset", [LIST, *collisions(8_000, colliding_int)])),
    "a Counter of one hash": alone(lambda: node("Counter", items(collisions(8_000, colliding_int)))),
    "an OrderedDict of one hash": alone(lambda: node("OrderedDict", items(collisions(8_000, colliding_int)))),
    "a FlattedDict of one hash": alone(
        lambda: node(
            "brainstate.FlattedDict",
            items(collisions(8_000, lambda i: node("tuple", [LIST, colliding_int(i), "x"]))),
        )
    ),
    "arrays that are mostly padding": lambda: padded(200),
    "arrays of nothing": lambda: empty(200),
    "a unit with a giant int as scale": lambda: forge(quantity(scale=integer(GIANT))),
    "a unit with a factor that is none": lambda: forge(quantity(factor="1")),
    "a unit with a giant exponent": lambda: forge(quantity(dim=[LIST, 2**62, 0, 0, 0, 0, 0, 0], scale="x")),
    "seeds with a giant pool": lambda: forge(seeds(pool_size=1 << 31)),
    "seeds with a pool below zero": lambda: forge(seeds(pool_size=-1)),
    "seeds with giant entropy": lambda: forge(seeds(entropy=integer(GIANT))),
    "seeds with a giant spawn key": lambda: forge(seeds(spawn_key=[LIST, integer(GIANT)])),
    "a fraction that takes for ever": alone(
        lambda: leaf("fraction", [LIST, integer(3 ** (5 << 20)), integer(5 ** (4 << 20))])
    ),
    "a class version that is giant": lambda: forge(node("class:hostile/Known", {"a": 1}, version=integer(GIANT))),
    "a class version that is text": lambda: forge(node("class:hostile/Known", {"a": 1}, version="2")),
    "dunder fields of a known class": lambda: forge(node("class:hostile/Known", {"__class__": 1, "__dict__": {}})),
    "a list of arrays without end": lambda: forge([ARRAYS, 0, 2**63], [BYTE]),
    "arrays by names twice": lambda: forge([NAMED_ARRAYS, 0, "a", "a"], [BYTE, BYTE]),
    "runs that cover the arrays twice": lambda: forge([LIST, [ARRAYS, 0, 2], [ARRAYS, 0, 2]], [BYTE, BYTE]),
    "a giant deque": lambda: forge(node("deque", [LIST], maxlen=2**63)),
    "a million maps in one another": lambda: forge(raw=b"\x81\xa1a" * 1_000_000 + b"\xc0"),
    "a dtype with giant offsets": lambda: forge(
        [ARRAY, 0], [("numpy", {"fields": [["a", "uint8", 2**62]], "itemsize": 2**63 - 1, "aligned": False}, [1], b"a")]
    ),
    "a dtype with offsets below zero": lambda: forge(
        [ARRAY, 0], [("numpy", {"fields": [["a", "uint8", -1]], "itemsize": 1, "aligned": False}, [1], b"a")]
    ),
    "a dtype with fields that overlap": lambda: forge(
        [ARRAY, 0],
        [
            (
                "numpy",
                {"fields": [["a", "uint64", 0], ["b", "uint64", 2]], "itemsize": 8, "aligned": False},
                [1],
                bytes(16),
            )
        ],
    ),
    "a subarray without end": lambda: forge(
        [ARRAY, 0],
        [("numpy", {"fields": [["a", ["uint8", [2**40]], 0]], "itemsize": 1, "aligned": False}, [1], b"a")],
    ),
    "a keyed array of a giant implementation": lambda: forge(leaf("jax.key", [ARRAY, 0], impl="x" * MEBIBYTE), [BYTE]),
    "spec of giant text": lambda: forge([ARRAY, 0], [("numpy", "U" + "9" * MEBIBYTE, [1], b"a")]),
    "time units without end": lambda: forge([ARRAY, 0], [("numpy", "datetime64[" + "9" * MEBIBYTE + "s]", [1], b"a")]),
    "the time zone of a directory": lambda: forge(leaf("zoneinfo", "")),
    "the time zone of the directory itself": lambda: forge(leaf("zoneinfo", ".")),
    "the time zone of a module": lambda: forge(leaf("zoneinfo", "antigravity/x")),
}

#: What may be loaded, or be refused, but must do no harm: Python has such values, or the tag is unknown.
LOADED = {
    "a namedtuple with a field that is a keyword when it is compiled": lambda: forge(
        node("namedtuple", {"\U0001d41d\U0001d41e\U0001d41f": 1}, **{"class": "A"})
    ),
    "a namedtuple with fields that are one when they are compiled": lambda: forge(
        node("namedtuple", {"\ufb01": 1, "fi": 2}, **{"class": "A"})
    ),
    "metadata with keys of one hash": lambda: forge(1, metadata={"a": items(collisions(8_000, colliding_int))}),
    "a class with a giant version": lambda: forge(node("class:hostile/Known", {"a": 1}, version=2**63)),
    "a class version below zero": lambda: forge(node("class:hostile/Known", {"a": 1}, version=-1)),
    "a unit with a negative giant scale": lambda: forge(quantity(scale=-(2**62))),
    "a unit with a giant scale": lambda: forge(quantity(scale=2**62)),
    "a key of many levels": alone(lambda: [ITEMS, nested(240, 1, lambda x: node("tuple", [LIST, x])), 1]),
    "ints of more digits than Python writes": lambda: forge({"a": integer(GIANT), "b": [LIST, integer(-GIANT)]}),
    "a giant int as key": lambda: forge([ITEMS, integer(GIANT), 1, integer(GIANT + 1), [LIST, 1, 2]]),
    "a giant int as key, twice": lambda: forge([ITEMS, integer(GIANT), 1, integer(GIANT), 2]),
    "a giant int in metadata": metadata(integer(GIANT)),
    "a giant int as key in metadata": metadata([ITEMS, integer(GIANT), 1]),
    "a range of giant ints": lambda: forge(leaf("range", [LIST, 0, integer(GIANT), 1])),
    "a slice of giant ints": lambda: forge(leaf("slice", [LIST, None, integer(GIANT), None])),
    "a fraction of giant ints": lambda: forge(leaf("fraction", [LIST, integer(GIANT), 1])),
    "a fraction as key": lambda: forge([ITEMS, leaf("fraction", [LIST, integer(GIANT), 1]), 1]),
    "a tuple with a giant int as key": lambda: forge([ITEMS, node("tuple", [LIST, integer(GIANT)]), 1]),
    "a timedelta of giant ints": lambda: forge(leaf("timedelta", [LIST, integer(GIANT), 0, 0])),
    "a timezone of giant ints": lambda: forge(leaf("timezone", [LIST, integer(GIANT), 0])),
    "a complex of infinities": lambda: forge(leaf("complex", [LIST, float("inf"), float("nan")])),
    "a set of nans": alone(lambda: leaf("set", [LIST, *[float("nan")] * 20_000])),
    "decimals of any exponent": lambda: forge(
        [ITEMS, leaf("decimal", "1e999999999999999999"), 1, leaf("decimal", "-1e-999999999999999999"), 2]
    ),
    "a signaling nan as key": lambda: forge([ITEMS, leaf("decimal", "sNaN"), 1]),
    "a decimal of many digits": lambda: forge(leaf("decimal", "9" * MEBIBYTE)),
    "a name that is long": lambda: forge({"a" * MEBIBYTE: 1}),
    "many names that are alike": alone(lambda: {"a" * 5000 + str(i): 1 for i in range(200)}),
    "names with control characters": lambda: forge({"\x1b[2J\x00\n": 1, "../../etc/passwd": 2, "%s%n{0}": 3}),
    "a tag that names a function": lambda: forge(leaf("os.system", "false")),
    "a tag that names a builtin": lambda: forge(leaf("builtins.eval", "__import__('os').system('false')")),
    "a tag that is pickle's": lambda: forge(node("copyreg._reconstructor", [LIST, "os", "system"])),
    "a tag of a module with effects": lambda: forge(node("antigravity.x", [LIST, leaf("this.s", 1)])),
    "a tag of an adapter's module": lambda: forge(node("brainstate.random.seed", 1)),
    "a tag with dots": lambda: forge(node("...", 1)),
    "a tag that is empty": lambda: forge(node("", 1)),
    "a tag that is long": lambda: forge(node("a" * MEBIBYTE, 1)),
    "many tags": alone(lambda: [LIST, *(node(f"t{i}", 1) for i in range(3000))]),
    "a class that is named like a module": lambda: forge(node("class:os/system", {"a": 1})),
    "a class of another module": lambda: forge(node("dataclass", {"a": 1}, **{"class": "subprocess.Popen"})),
    "a namedtuple of dunder fields": lambda: forge(node("namedtuple", {"__class__": 1}, **{"class": "A"})),
    "a namedtuple with code as name": lambda: forge(node("namedtuple", {"a": 1}, **{"class": "A(print(1))"})),
    "a namedtuple with code as field": lambda: forge(node("namedtuple", {"a=print(1)": 1}, **{"class": "A"})),
    "a namedtuple of many fields": alone(
        lambda: node("namedtuple", {f"a{i}": 1 for i in range(8_000)}, **{"class": "A"})
    ),
    "many namedtuples": alone(
        lambda: [LIST, *(node("namedtuple", {f"a{i}": 1}, **{"class": f"A{i}"}) for i in range(2000))]
    ),
    "a factory that is no type": lambda: forge(node("defaultdict", {"a": 1}, factory="os.system")),
    "an enum of a class": lambda: forge(leaf("enum", {"name": "P_NOWAIT", "value": 1}, **{"class": "os"})),
    "an enum key of a class": lambda: forge(
        [ITEMS, leaf("enum", {"name": "P_NOWAIT", "value": 1}, **{"class": "os"}), 1]
    ),
    "a function": lambda: forge(leaf("function", None, name="os.system")),
    "a path to somewhere": lambda: forge(leaf("path.PosixPath", "/etc/passwd\0")),
    "shared values that double": lambda: forge(
        [REF, 60], shared=[[LIST, 1], *([LIST, [REF, i], [REF, i]] for i in range(60))]
    ),
    "shared maps that double": lambda: forge(
        [REF, 60], shared=[{"a": 1}, *({"a": [REF, i], "b": [REF, i]} for i in range(60))]
    ),
    "shared tuples that double": lambda: forge(
        [REF, 60],
        shared=[[LIST, 1], *(node("tuple", [LIST, [REF, i], [REF, i]]) for i in range(60))],
    ),
    "shared objects of an unknown tag that double": lambda: forge(
        [REF, 60], shared=[[LIST, 1], *(node("new", [LIST, [REF, i], [REF, i]]) for i in range(60))]
    ),
    "shared states that double": lambda: forge(
        [REF, 60],
        shared=[
            [LIST, 1],
            *(node("brainstate.State", [LIST, [REF, i], [REF, i]], **{"class": "ParamState"}) for i in range(60)),
        ],
    ),
    "a set of sets that double": lambda: forge(
        [REF, 60],
        shared=[
            leaf("frozenset", [LIST, 1]),
            *(leaf("frozenset", [LIST, [REF, i], leaf("frozenset", [LIST, [REF, i]])]) for i in range(60)),
        ],
    ),
    "one array at many places": lambda: forge([LIST, *[[ARRAY, 0]] * 5000], [("numpy", "uint8", [1000], bytes(1000))]),
    "dtypes of many fields": lambda: wide(4),
    "many distinct specs": lambda: forge(
        [ARRAYS, 0, 3000], [("numpy", f"S{i}", [1], bytes(i)) for i in range(1, 3001)]
    ),
    "many arrays of nothing": lambda: forge([ARRAYS, 0, 20_000], [("numpy", "uint8", [0], b"")] * 20_000),
    "blocks of one byte": lambda: forge(
        [ARRAY, 0],
        [("numpy", "uint8", [5000], bytes(5000))],
        table={"hash_block": 1, "hashes": column([0x2D06800538D394C2] * 5000)},
    ),
    "an array of zero size with a huge shape": lambda: forge([ARRAY, 0], [("numpy", "uint8", [0, 2**62], b"")]),
    "an array of zero size with many dimensions": lambda: forge([ARRAY, 0], [("numpy", "uint8", [0] * 64, b"")]),
    "empty maps without end": lambda: forge([LIST, *[{}] * 50_000]),
    "empty lists without end": lambda: forge([LIST, *[[LIST]] * 50_000]),
    "a quantity in a quantity": lambda: forge(
        nested(300, 1.0, lambda x: [LEAF, "brainunit.Quantity", x, {"unit": UNIT}])
    ),
    "a masked array in a masked array": lambda: forge(
        nested(300, 1.0, lambda x: leaf("numpy.masked", {"data": x, "mask": None, "fill_value": None}, hard=False))
    ),
    "strings in strings": lambda: forge(nested(500, "a", lambda x: leaf("str", x))),
    "units of many parts": lambda: forge(quantity(parts=[LIST, *[[LIST, "a", "b", 2**62]] * 2000])),
    "units of one hash": alone(lambda: [LIST, *(quantity(factor=float(i), name=f"n{i}") for i in range(2000))]),
    "seeds with much entropy": lambda: forge(seeds(entropy=[LIST, *range(5000)])),
    "keys of jax without dimensions": lambda: forge(
        leaf("jax.key", [ARRAY, 0], impl="threefry2x32"), [("jax", "uint32", [0, 2], b"")]
    ),
}

#: The same for files without checksums, of flax and braintools.
LEGACY = {
    "a giant int": lambda: msgpack.packb({"a": 2**64 - 1, "b": -(2**63)}),
    "a quantity with a giant scale": lambda: msgpack.packb(
        {"mantissa": 1.0, "scale": 2**62, "base": 10.0, "dim": {str(i): 0 for i in range(7)}, "factor": 1.0}
    ),
    "names that are paths": lambda: msgpack.packb({"__class__": {"__init__": 1}, "..": 1}),
    "many empty maps": lambda: msgpack.packb([{}] * 50_000),
    "many arrays": lambda: msgpack.packb([msgpack.ExtType(1, msgpack.packb([[0], "float32", b""]))] * 20_000),
    "keys of one hash": lambda: msgpack.packb({float(i * 2**61): 1 for i in range(1, 3000)}),
    "keys of complex numbers of one hash": lambda: msgpack.Packer().pack_map_pairs(
        [(msgpack.ExtType(2, msgpack.packb([float(-1_000_003 * i), float(i)])), 1) for i in range(8_000)]
    ),
}

__all__ = ["LEGACY", "LOADED", "REFUSED", "np"]
