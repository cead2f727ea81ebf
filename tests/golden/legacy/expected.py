"""What is in each golden file, as a state dict: written by hand, not by the code that is tested.

The files of braintools 0.3.0, braintools 0.0.12 and flax that have one name hold the same. They were made by
``tests/golden/make_legacy.py`` with numpy 2.4, jax 0.10, brainunit 0.5.2, brainstate 0.5.4, optax 0.2.8 and
ml_dtypes 0.6 on x86-64 Linux. That of flax 0.3.0 was written by its own module, too, to which two names were given that
jax and numpy do not have any more.
"""

import ml_dtypes
import numpy as np


def f32(*values):
    return np.array(values, "float32")


def quantity(mantissa, scale, *dimension):
    return {
        "mantissa": mantissa,
        "scale": scale,
        "base": 10.0,
        "dim": np.array(dimension, "int64"),
        "factor": 1.0,
    }


def early_point(x, y):
    return {"name": "Point", "fields": {"0": "x", "1": "y"}, "values": {"0": x, "1": y}}


EXPECTED = {
    "basic": {
        "none": None,
        "flags": {"yes": True, "no": False},
        "int": -7,
        "large": 9223372036854775808,
        "float": 0.1,
        "text": "größe",
        "bytes": b"\x00\xff",
        "weights": {"w": f32([0, 1, 2], [3, 4, 5]), "b": f32(0, 0, 0)},
    },
    "sequences": {
        "list": {"0": 1, "1": {"0": 2, "1": "three"}},
        "tuple": {"0": np.array([1.0, 1.0]), "1": 5.0},
        "point": {"x": 1, "y": np.array([2], "int16")},
        "one": {"0": 9},
    },
    "empty": {
        "dict": {},
        "list": {},
        "tuple": {},
        "array": np.zeros((0, 3), "float32"),
        "text": "",
        "bytes": b"",
    },
    "numbers": {
        "complex": complex(1.5, -2.0),
        "nan": float("nan"),
        "inf": float("-inf"),
        "negative zero": -0.0,
        "complex64": np.array([complex(1, 2), complex(-0.0, -3)], "complex64"),
        "float32 scalar": np.float32(0.1),
        "int64 scalar": np.int64(-1099511627776),
        "bool scalar": np.bool_(True),
        "bfloat16 scalar": ml_dtypes.bfloat16(1.5),
        "time scalar": np.datetime64("2024-02-29", "D"),
        "zero-d": np.array(2.5, "float16"),
        "bools": np.array([True, False]),
        "times": np.array(["2024-02-29T12:00:00", "NaT"], "datetime64[s]"),
        "steps": np.array([1, -1], "timedelta64[25s]"),
        "int8": np.array([1, 100], "int8"),
        "int16": np.array([1, 100], "int16"),
        "int32": np.array([1, 100], "int32"),
        "int64": np.array([1, 100], "int64"),
        "uint8": np.array([1, 100], "uint8"),
        "uint16": np.array([1, 100], "uint16"),
        "uint32": np.array([1, 100], "uint32"),
        "uint64": np.array([1, 100], "uint64"),
    },
    "early": {
        "point": early_point(1, np.array([2], "int16")),
        "nested": {"0": early_point(early_point(0.5, None), {"0": np.float32(1.5), "1": 1 - 2j})},
        "weights": {"w": f32([0, 1, 2], [3, 4, 5]), "half": np.array([1, 1], ml_dtypes.bfloat16)},
    },
    "ml": {
        "bfloat16": np.array([[1.0, -2.5]], ml_dtypes.bfloat16),
        "float8_e4m3fn": np.array([1.0, -0.5], ml_dtypes.float8_e4m3fn),
        "float8_e5m2": np.array([1.0, -0.5], ml_dtypes.float8_e5m2),
        "int4": np.array([-8, 7, 0], ml_dtypes.int4),
        "uint4": np.array([15, 1], ml_dtypes.uint4),
    },
    "order": {
        "fortran": np.array([[0, 1, 2], [3, 4, 5]], "int32"),
        "reversed": np.array([[2, 1, 0], [5, 4, 3]], "int32"),
        "step": np.array([0.0, 3.0, 6.0]),
    },
    "split": {
        "even": f32([0, 1, 2, 3], [4, 5, 6, 7]),
        "uneven": {"deep": np.array([0, 1, 2, 3, 4, 5, 6], "int64")},
        "at the limit": f32(0, 1, 2, 3),
    },
    # What neither library can load. The names of the structured array's fields are not in the file.
    "strings": {
        "text": np.array([["a", "größe"], ["", "xy"]], "U5"),
        "bytes": np.array([b"abc", b""], "S3"),
        "scalar": np.str_("hi"),
        "structured": np.array([(1, 2.0), (3, 4.0)], [("a", "<i4"), ("b", "<f8")]).view("V12"),
        "weights": f32(1, 1),
    },
    "optimizer": {
        "0": {
            "count": np.array(1, "int32"),
            "mu": {"b": f32(0.1, 0.1), "w": f32([0.1, 0.1], [0.1, 0.1])},
            "nu": {"b": f32(0.001, 0.001), "w": f32([0.001, 0.001], [0.001, 0.001])},
        },
        "1": {},
    },
    # Dimensions in the order m, kg, s, A, K, mol, cd.
    "quantities": {
        "mV": quantity(np.array([-65.0, 20.0]), -3, 2, 1, -3, -1, 0, 0, 0),
        "ms": quantity(0.5, -3, 0, 0, 1, 0, 0, 0, 0),
        "compound": quantity(f32(1, 2), 1, -4, -1, 3, 2, 0, 0, 0),
        "plain": quantity(f32(3), 0, 0, 0, 0, 0, 0, 0, 0),
    },
    "states": {"inner": {"0": {"h": f32(1, 1, 1), "n": 2}}, "w": f32([0, 1], [2, 3])},
    "low_level": {
        "list": [1, np.array([0, 1]), [2.5, None]],
        "numbered": {1: "one", -2: {2.5: b"", True: None}},
    },
}
