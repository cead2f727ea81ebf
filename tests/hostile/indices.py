"""Indices that break a rule of docs/format.md."""

from __future__ import annotations

import msgpack

from .forge import ARRAY, ARRAYS, BYTE, HEADER, ITEMS, LEAF, LIST, NAMED_ARRAYS, NODE, REF, column, deep, forge

TWO = [("numpy", "uint8", [2], b"ab"), ("numpy", "uint8", [2], b"cd")]
PADDED = {"fields": [["a", "uint8", 0]], "itemsize": 2**31 - 1, "aligned": False}
NO_FIELDS = {"fields": [], "itemsize": 2**31 - 1, "aligned": False}


def of_spec(kind, dtype, shape, data=b"a"):
    return lambda: forge([ARRAY, 0], [(kind, dtype, shape, data)])


def of_table(**table):
    return lambda: forge([ARRAY, 0], [BYTE], table=table)


def of_structure(structure, **index):
    return lambda: forge(structure, [BYTE], **index)


INDICES = {
    "not a map": lambda: forge(raw=msgpack.packb([1])),
    "not messagepack": lambda: forge(raw=b"\xc1"),
    "empty": lambda: forge(raw=b""),
    "two objects": lambda: forge(raw=msgpack.packb({}) * 2),
    "no keys": lambda: forge(raw=msgpack.packb({})),
    "no structure": lambda: forge(raw=msgpack.packb({"arrays": {}, "shared": [], "metadata": {}})),
    "an ext": lambda: forge(msgpack.ExtType(1, b"x")),
    "a timestamp": lambda: forge(msgpack.Timestamp(1)),
    "int keys": lambda: forge({1: 2}),
    "a key twice": lambda: forge(raw=b"\x82\xa1a\x01\xa1a\x02"),
    "a giant length": lambda: forge(raw=b"\xdd\xff\xff\xff\xff"),
    "a giant map": lambda: forge(raw=b"\xdf\xff\xff\xff\xff"),
    "a giant bin": lambda: forge(raw=b"\xc6\xff\xff\xff\xff"),
    "not utf-8": lambda: forge(raw=b"\x81\xa1\xff\x01"),
    "too deep": lambda: forge(raw=b"\x91" * 5000 + b"\xc0"),
    "arrays is no map": lambda: forge(raw=msgpack.packb({"arrays": 1, "structure": 1, "shared": []})),
    "shared is no list": lambda: forge(1, shared={}),
    "metadata is no map": lambda: forge(1, metadata=[0]),
    "metadata with an array": lambda: forge(1, [BYTE], metadata={"a": [ARRAY, 0]}),
    "metadata with bytes as key": lambda: forge(1, metadata={b"a": 1}),
    "attributes with bytes as key": lambda: forge([NODE, "new", 1, {b"a": 1}]),
    "another format than the header's": lambda: forge(1, format=2),
    "format is a bool": lambda: forge(1, format=True),
    "no format": lambda: forge(raw=msgpack.packb({"library": "", "arrays": {}, "shared": [], "structure": 1})),
    "library is no text": lambda: forge(1, library=1),
    "header of version 0": lambda: forge(1).replace(HEADER, HEADER[:14] + bytes(4)),
    "metadata with a ref": lambda: forge(1, shared=[1], metadata={"a": [REF, 0]}),
    "metadata with an empty run": lambda: forge(1, metadata={"a": [ARRAYS, 0, 0]}),
    "features are nil": lambda: forge(1, features=None),
    "features are text": lambda: forge(1, features="zstd"),
    "more levels than MessagePack reads": lambda: forge("x", text="x", instead=b"\x92\x00" * 1023 + b"\x91\x01"),
}
TABLES = {
    "spec outside": of_table(spec=column([5], "<u4")),
    "spec is no bytes": of_table(spec=[0]),
    "block is a float": of_table(hash_block=16.0),
    "spec of odd length": of_table(spec=b"\x00\x00"),
    "spec of other length": of_table(spec=column([0, 0], "<u4")),
    "specs is no list": of_table(specs=7),
    "specs is an empty map": lambda: forge(1, table={"specs": {}}),
    "specs of wrong length": of_table(specs=[["numpy", "uint8"]]),
    "offset outside": of_table(offset=column([1])),
    "offset far outside": of_table(offset=column([2**64 - 1])),
    "no offset": of_table(offset=b""),
    "blob outside": of_table(blob_at=column([2**63])),
    "blob not aligned": of_table(blob_at=column([65])),
    "blob in the header": of_table(blob_at=column([0])),
    "blob too long": of_table(blob_size=column([2**32])),
    "blob that wraps around": of_table(blob_size=column([2**64 - 1])),
    "empty blob": of_table(blob_size=column([0])),
    "blob missing": of_table(blob_at=b"", blob_size=b"", hashes=b""),
    "one size too many": of_table(blob_size=column([1, 1])),
    "hash missing": of_table(hashes=b""),
    "hash too many": of_table(hashes=column([1, 2])),
    "hash wrong": of_table(hashes=column([1])),
    "block of 0": of_table(hash_block=0),
    "block below 0": of_table(hash_block=-1),
    "block is text": of_table(hash_block="1"),
    "column missing": lambda: forge(1, raw=msgpack.packb({"arrays": {}, "shared": [], "metadata": {}, "structure": 1})),
    "arrays share all bytes": lambda: forge(
        [LIST, [ARRAY, 0], [ARRAY, 1]], TWO, [b"ab"], table={"offset": column([0, 0])}
    ),
    "arrays share some bytes": lambda: forge([LIST, [ARRAY, 0], [ARRAY, 1]], TWO, table={"offset": column([0, 1])}),
    "arrays share bytes in their order": lambda: forge(
        [LIST, [ARRAY, 0], [ARRAY, 1]],
        [("numpy", "uint8", [6], b""), ("numpy", "uint8", [2], b"")],
        [b"a" * 8, b"b" * 8],
        table={"offset": column([4, 5])},
    ),
    "a byte between blob and index": lambda: forge(1, [BYTE], raw=b"\xc0" + msgpack.packb({})),
}
SPECS = {
    "unknown dtype": of_spec("numpy", "float7", [1]),
    "dtype of a module": of_spec("numpy", "os.system", [1]),
    "object dtype": of_spec("numpy", "O", [1], b"a" * 8),
    "numpy's own text": of_spec("numpy", "<f4", [1], b"aaaa"),
    "numpy's list of types": of_spec("numpy", "i4,f8", [1], b"a" * 12),
    "another spelling": of_spec("numpy", ">uint8", [1]),
    "dtype is an int": of_spec("numpy", 5, [1]),
    "dtype nested deep": of_spec("numpy", deep(500), [1]),
    "unknown kind": of_spec("torch", "uint8", [1]),
    "kind opaque": of_spec("opaque", "uint8", [1]),
    "kind is no text": of_spec(["numpy"], "uint8", [1]),
    "kind nested deep": of_spec(deep(1000), "uint8", [1]),
    "negative shape": of_spec("numpy", "uint8", [-1]),
    "two negative lengths": of_spec("numpy", "uint8", [-1, -1]),
    "float shape": of_spec("numpy", "uint8", [1.0]),
    "bool shape": of_spec("numpy", "uint8", [True]),
    "shape is a map": of_spec("numpy", "uint8", {"a": 1}),
    "shape nested deep": of_spec("numpy", "uint8", deep(1000)),
    "65 dimensions": of_spec("numpy", "uint8", [1] * 65),
    "huge shape": of_spec("numpy", "uint8", [2**40]),
    "overflowing shape": of_spec("numpy", "uint8", [2**32, 2**32]),
    "shape that overflows to 1": of_spec("numpy", "uint8", [2**63, 2, 2**63 + 1]),
    "empty with a huge length": of_spec("numpy", "uint8", [0, 2**63], b""),
    "many elements of no bytes": of_spec("numpy", "U0", [2**40], b""),
    "many more of no bytes": of_spec("numpy", "V0", [2**63 - 1], b""),
    "padding that expands": of_spec("numpy", PADDED, [64], b"a" * 64),
    "padding alone": of_spec("numpy", NO_FIELDS, [2**20], b""),
    "jax text": of_spec("jax", "U1", [1], b"a\0\0\0"),
    "jax time": of_spec("jax", "datetime64[s]", [1], b"a" * 8),
    "jax big-endian": of_spec("jax", ">float32", [1], b"aaaa"),
    "jax records": of_spec("jax", {"fields": [["a", "uint8", 0]], "itemsize": 1, "aligned": False}, [1]),
    "jax weak bool": of_spec("jax", "V1", [1]),
    "jax complex32": of_spec("jax", "complex32", [1], b"a" * 4),
    "jax float6_e2m3fn": of_spec("jax_weak", "float6_e2m3fn", [1]),
    "jax long double": of_spec("jax", "float128", [1], b"a" * 16),
    "a sub-array": of_spec("numpy", ["uint8", [2]], [1], b"aa"),
    "two names alike": of_spec(
        "numpy", {"fields": [["a", "uint8", 0], ["a", "uint8", 1]], "itemsize": 2, "aligned": False}, [1], b"aa"
    ),
    "a title that is a name": of_spec(
        "numpy", {"fields": [["a", "uint8", 0, "b"], ["b", "uint8", 1]], "itemsize": 2, "aligned": False}, [1], b"aa"
    ),
    "sub-array of text without characters": of_spec(
        "numpy", {"fields": [["a", ["U0", [2]], 0]], "itemsize": 0, "aligned": False}, [1], b""
    ),
    "text that is none": of_spec("numpy", "U1", [1], b"\xff\xff\xff\xff"),
}
STRUCTURES = {
    "array outside": of_structure([ARRAY, 1]),
    "array below": of_structure([ARRAY, -1]),
    "array without number": of_structure([ARRAY]),
    "array with two": of_structure([ARRAY, 0, 0]),
    "array by text": of_structure([ARRAY, "0"]),
    "array by bool": of_structure([ARRAY, True]),
    "ref to nothing": of_structure([REF, 0]),
    "ref below": of_structure([REF, -1], shared=[1]),
    "ref to itself": of_structure([REF, 0], shared=[[REF, 0]]),
    "refs in a circle": of_structure([REF, 0], shared=[[LIST, [REF, 1]], [LIST, [REF, 0]]]),
    "ref that is shared": of_structure([REF, 1], shared=[1, [REF, 0]]),
    "refs in a chain": of_structure([REF, 19_999], shared=[1, *([REF, i] for i in range(20_000))]),
    "refs to lists in a chain": of_structure(
        [REF, 19_999], shared=[[LIST], *([LIST, [REF, i]] for i in range(20_000))]
    ),
    "ref forwards": of_structure([REF, 0], shared=[[REF, 1], 1]),
    "unknown kind": of_structure([6, 1]),
    "negative kind": of_structure([-1, 1]),
    "kind is text": of_structure(["LIST", 1]),
    "kind is a bool": of_structure([True, 0]),
    "kind is a float": of_structure([0.0]),
    "kind is nil": of_structure([None]),
    "empty array": of_structure([]),
    "items of odd length": of_structure([ITEMS, 1]),
    "run that goes too far": of_structure([ARRAYS, 0, 2]),
    "empty run behind all arrays": of_structure([ARRAYS, 2, 0]),
    "named run with a name twice": of_structure([NAMED_ARRAYS, 0, "a", "a"]),
    "items with a set as key": of_structure([ITEMS, [LEAF, "set", [LIST, 1]], 1]),
    "items with a subclass of list as key": of_structure([ITEMS, [NODE, "list", [LIST, 1], {"class": "m.L"}], 1]),
    "items with an unknown list as key": of_structure([ITEMS, [LEAF, "new", [LIST, 1]], 1]),
    "items with tuples that are equal": of_structure(
        [ITEMS, [NODE, "tuple", [LIST, 1]], 1, [NODE, "namedtuple", {"a": True}, {"class": "P"}], 2]
    ),
    "items with frozensets that are equal": of_structure(
        [ITEMS, [LEAF, "frozenset", [LIST, 1, 2]], 1, [LEAF, "frozenset", [LIST, 2, 1.0]], 2]
    ),
    "items with one member of an enum twice": of_structure(
        [ITEMS, *(part for v in (1, 2) for part in ([LEAF, "enum", {"name": "A", "value": v}, {"class": "m.E"}], v))]
    ),
    "items with an int and its subclass": of_structure([ITEMS, 5, 1, [LEAF, "int", 5, {"class": "m.I"}], 2]),
    "items with an array in a key": of_structure(
        [
            ITEMS,
            [NODE, "tuple", [LIST, [LEAF, "array", b"a", {"dtype": "uint8", "shape": [LIST, 1], "kind": "numpy"}]]],
            1,
        ]
    ),
    "a list that is a reference": of_structure([NODE, "tuple", [REF, 0]], shared=[[LIST, 1]]),
    "items with a key twice": of_structure([ITEMS, 1, "a", 1, "b"]),
    "items with equal keys": of_structure([ITEMS, 1, "a", 1.0, "b"]),
    "items with a list as key": of_structure([ITEMS, [LIST], 1]),
    "items with a map as key": of_structure([ITEMS, {}, 1]),
    "items with an array as key": of_structure([ITEMS, [ARRAY, 0], 1]),
    "items with a broken enum as key": of_structure([ITEMS, [LEAF, "enum", None], 1]),
    "node without state": of_structure([NODE, "tuple"]),
    "node with too much": of_structure([NODE, "tuple", [LIST], {}, 1]),
    "tag is no text": of_structure([NODE, 1, [LIST]]),
    "attributes are no map": of_structure([NODE, "tuple", [LIST], 1]),
    "bad inside of attributes": of_structure([NODE, "tuple", [LIST], {"a": [9]}]),
    "bad inside of an unknown tag": of_structure([LEAF, "new", [ARRAY, 7]]),
    "bytes keys": of_structure({b"a": 1}),
}
