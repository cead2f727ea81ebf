"""Files in the form of flax and braintools, which have no checksums, that are none."""

from __future__ import annotations

import msgpack
import numpy as np

MARK = "__msgpack_chunked_array__"


def array_ext(shape, name, data, code=1):
    return msgpack.ExtType(code, msgpack.packb((shape, name, data)))


def split_map(shape, *chunks, **more):
    numbered = {str(i): n for i, n in enumerate(shape)}
    return {
        MARK: True,
        "shape": numbered,
        "chunks": {str(i): chunk for i, chunk in enumerate(chunks)},
        **more,
    }


def f4(*values):
    return array_ext([len(values)], "float32", np.array(values, "<f4").tobytes())


def nested_arrays(depth):
    return b"\x91" * depth + b"\xc0"


BIG = bytes(8000)
HOSTILE = {
    "empty": b"",
    "reserved byte": b"\xc1",
    "trailing byte": b"\x80\x00",
    "two objects": b"\x80\x80",
    "half a map": b"\x81\xa1a",
    "str length beyond the file": b"\xdb\xff\xff\xff\xffa",
    "bin length beyond the file": b"\xc6\xff\xff\xff\xffa",
    "array length beyond the file": b"\xdd\xff\xff\xff\xff\xc0",
    "map length beyond the file": b"\xdf\xff\xff\xff\xff\xc0\xc0",
    "ext length beyond the file": b"\xc9\xff\xff\xff\xff\x01a",
    "array length larger than what follows": b"\xdd\x00\x00\x00\x04" + b"\xc0" * 3,
    "nested lengths": b"\xdd\x00\x00\xff\xff" * 1000 + bytes(65_000),
    "too deep": nested_arrays(1100),
    "far too deep": nested_arrays(500_000),
    "too deep maps": b"\x81\xa1a" * 5000 + b"\xc0",
    "text that is not UTF-8": b"\x81\xa1a\xa1\xff",
    "key that is not UTF-8": b"\x81\xa1\xff\xc0",
    "the same key twice": b"\x82\xa1a\x01\xa1a\x02",
    "the same number as key twice": b"\x82\x01\xc0\x01\xc0",
    "1 and true as keys": b"\x82\x01\xc0\xc3\xc0",
    "a list as key": b"\x81\x91\x01\xc0",
    "a map as key": b"\x81\x80\xc0",
    "an array as key": b"\x81" + msgpack.packb(f4(1)) + b"\xc0",
    "a timestamp": msgpack.packb(msgpack.Timestamp(0)),
    "a timestamp in a map": msgpack.packb({"t": msgpack.Timestamp(0)}),
    "a timestamp in a list": msgpack.packb([msgpack.Timestamp(1, 5)]),
    "a timestamp in a map of numbers": msgpack.packb({1: msgpack.Timestamp(1, 5)}),
    "a timestamp as key": b"\x81" + msgpack.packb(msgpack.Timestamp(0)) + b"\xc0",
    **{f"ext {code}": msgpack.packb([msgpack.ExtType(code, b"\x00")]) for code in (0, 4, 127)},
    "ext of another application": b"\xd4\x80\x00",
    **{
        f"{what}, ext {code}": msgpack.packb({"a": msgpack.ExtType(code, data)})
        for code in (1, 3)
        for what, data in {
            "nothing": b"",
            "nil": b"\xc0",
            "no list": msgpack.packb({"shape": 1}),
            "two parts": msgpack.packb(([], "int8")),
            "four parts": msgpack.packb(([], "int8", b"a", b"")),
            "trailing": msgpack.packb(([], "int8", b"a")) + b"\x00",
            "trailing, large": msgpack.packb(([8000], "int8", BIG)) + b"\x00",
            "cut off": msgpack.packb(([8], "int8", b"a" * 8))[:-1],
            "cut off, large": msgpack.packb(([8000], "int8", BIG))[:-1],
            "data is a list": msgpack.packb(([2], "int8", [1, 2])),
            "data is a list, large": msgpack.packb(([8000], "int8", [0] * 8000)),
            "data is nil": msgpack.packb(([0], "int8", None)),
            "long header": msgpack.packb(([8000], "int8" + " " * 2000, BIG)),
            "long list, large": msgpack.packb([0] * 8000),
            "two parts, large": msgpack.packb(([8000], BIG)),
            "endless shape, large": b"\x93\xdd\xff\xff\xff\xff" + BIG,
            "nested shape, large": b"\x93" + b"\x91" * 8000,
            "shape is a number": msgpack.packb((8, "int8", b"a" * 8)),
            "shape is a map": msgpack.packb(({}, "int8", b"a")),
            "shape is text": msgpack.packb(("8", "int8", b"a" * 8)),
            "negative": msgpack.packb(([-1], "int8", b"a")),
            "negative twice": msgpack.packb(([-2, -2], "int8", b"abcd")),
            "float": msgpack.packb(([2.0], "int8", b"ab")),
            "float that is 7": msgpack.packb(([7.0], "int16", b"a" * 14)),
            "bool": msgpack.packb(([True, 3], "int16", b"abcdef")),
            "list": msgpack.packb(([[2]], "int8", b"ab")),
            "overflow": msgpack.packb(([2**32, 2**32], "float32", b"")),
            "overflow beside zero": msgpack.packb(([0, 2**63, 4], "float32", b"")),
            "largest beside zero": msgpack.packb(([0, 2**64 - 1], "float32", b"")),
            "too short": msgpack.packb(([2, 3], "float32", bytes(20))),
            "too long": msgpack.packb(([2, 3], "float32", bytes(25))),
            "too short, large": msgpack.packb(([8001], "int8", BIG)),
            "too many dimensions": msgpack.packb(([1] * 65, "int8", b"a")),
            "huge array of nothing": msgpack.packb(([2**40], "str", b"")),
            "text that is none": msgpack.packb(([1], "str32", b"\xff\xff\xff\xff")),
            "half a character": msgpack.packb(([1], "str40", b"abcde")),
            "half a byte": msgpack.packb(([1], "bytes12", b"ab")),
            "dtype is a number": msgpack.packb(([1], 5, b"a")),
            "dtype is nil": msgpack.packb(([1], None, b"a")),
            **{
                f"dtype {name!r}": msgpack.packb(([1], name, b"a" * 8))
                for name in (
                    *(
                        "",
                        "object",
                        "O",
                        "f8",
                        "<f8",
                        ">f8",
                        ">int64",
                        "=int64",
                        "float64 ",
                        "Float64",
                        "V8",
                        "S8",
                    ),
                    *(
                        "U2",
                        "i4,i4",
                        "(2,)i4",
                        "str",
                        "str-64",
                        "str064",
                        "bytes064",
                        "void99999999999",
                        "longlong",
                    ),
                    *("datetime64[1s]", "datetime64[", "StringDType()", "finfo", "\xff", "x" * 500),
                )
            },
        }.items()
    },
    "scalar with dimensions": msgpack.packb(array_ext([1], "int8", b"a", 3)),
    **{
        f"complex, {what}": msgpack.packb(msgpack.ExtType(2, data))
        for what, data in {
            "nothing": b"",
            "one part": msgpack.packb([1.0]),
            "three parts": msgpack.packb([1.0, 2.0, 3.0]),
            "text": msgpack.packb([1.0, "2"]),
            "nil": msgpack.packb([1.0, None]),
            "no list": msgpack.packb(1.0),
            "map": msgpack.packb({1.0: 2.0}),
            "trailing": msgpack.packb([1.0, 2.0]) + b"\x00",
        }.items()
    },
    "split, too little": msgpack.packb(split_map([2, 3], f4(1, 2), f4(3))),
    "split, too much": msgpack.packb(split_map([2], f4(1, 2), f4(3))),
    "split, overflow": msgpack.packb(split_map([2**63, 2], f4(1))),
    "split, too many dimensions": msgpack.packb(split_map([1] * 65, f4(1))),
    "split, huge beside zero": msgpack.packb(split_map([0, 2**63], f4())),
}
