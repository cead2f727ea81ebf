"""Write the golden files of the old formats, with the old libraries themselves.

Run once for each library, in an environment that has it; a file that is in the repository is never written again::

    python tests/golden/make_legacy.py braintools
    python tests/golden/make_legacy.py flax
    python tests/golden/make_legacy.py braintools-file unpacked-wheel/braintools/file/msg_checkpoint.py 0.0.12
    python tests/golden/make_legacy.py flax-file unpacked-wheel/flax/serialization.py 0.3.0

What is in each file is said, by hand, in ``legacy/expected.py``.
"""

import collections
import importlib.metadata
import importlib.util
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

HERE = Path(__file__).parent / "legacy"
Point = collections.namedtuple("Point", ["x", "y"])


def basic():
    return {
        "none": None,
        "flags": {"yes": True, "no": False},
        "int": -7,
        "large": 2**63,
        "float": 0.1,
        "text": "größe",
        "bytes": b"\x00\xff",
        "weights": {"w": np.arange(6, dtype="float32").reshape(2, 3), "b": jnp.zeros(3)},
    }


def sequences():
    return {
        "list": [1, [2, "three"]],
        "tuple": (np.ones(2), 5.0),
        "point": Point(1, np.int16([2])),
        "one": [9],
    }


def empty():
    return {
        "dict": {},
        "list": [],
        "tuple": (),
        "array": np.zeros((0, 3), "float32"),
        "text": "",
        "bytes": b"",
    }


def numbers():
    return {
        "complex": 1.5 - 2j,
        "nan": float("nan"),
        "inf": float("-inf"),
        "negative zero": -0.0,
        "complex64": np.array([1 + 2j, -3j], "complex64"),
        "float32 scalar": np.float32(0.1),
        "int64 scalar": np.int64(-(2**40)),
        "bool scalar": np.bool_(True),
        "bfloat16 scalar": ml_dtypes.bfloat16(1.5),
        "time scalar": np.datetime64("2024-02-29", "D"),
        "zero-d": np.array(2.5, "float16"),
        "bools": np.array([True, False]),
        "times": np.array(["2024-02-29T12:00:00", "NaT"], "datetime64[s]"),
        "steps": np.array([1, -1], "timedelta64[25s]"),
        **{
            f"{kind}{8 * size}": np.array([1, 100], f"{kind[0]}{size}")
            for kind in ("int", "uint")
            for size in (1, 2, 4, 8)
        },
    }


def ml():
    return {
        "bfloat16": jnp.array([[1.0, -2.5]], jnp.bfloat16),
        "float8_e4m3fn": jnp.array([1.0, -0.5], jnp.float8_e4m3fn),
        "float8_e5m2": np.array([1.0, -0.5], ml_dtypes.float8_e5m2),
        "int4": np.array([-8, 7, 0], ml_dtypes.int4),
        "uint4": np.array([15, 1], ml_dtypes.uint4),
    }


def order():
    grid = np.arange(6, dtype="int32").reshape(2, 3)
    return {"fortran": np.asfortranarray(grid), "reversed": grid[:, ::-1], "step": np.arange(8.0)[::3]}


def split():
    """Arrays over the chunk limit, which `main` lowers to 16 bytes."""
    return {
        "even": np.arange(8, dtype="float32").reshape(2, 4),
        "uneven": {"deep": np.arange(7, dtype="int64")},
        "at the limit": np.arange(4, dtype="float32"),
    }


def strings():
    """What both libraries save and cannot load."""
    return {
        "text": np.array([["a", "größe"], ["", "xy"]]),
        "bytes": np.array([b"abc", b""]),
        "scalar": np.str_("hi"),
        "structured": np.array([(1, 2.0), (3, 4.0)], [("a", "i4"), ("b", "f8")]),
        "weights": np.ones(2, "float32"),
    }


def optimizer():
    import optax

    params = {"w": jnp.ones((2, 2)), "b": jnp.zeros(2)}
    adam = optax.adam(0.1)
    gradients = jax.tree.map(jnp.ones_like, params)
    return adam.update(gradients, adam.init(params), params)[1]


def quantities():
    import brainunit as u

    return {
        "mV": np.array([-65.0, 20.0]) * u.mV,
        "ms": 0.5 * u.ms,
        "compound": np.array([1.0, 2.0], "float32") * (u.mS / u.cm**2),
        "plain": np.array([3.0], "float32") * u.UNITLESS,
    }


def states():
    import brainstate

    class Model(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = brainstate.ParamState(jnp.arange(4.0).reshape(2, 2))
            self.inner = [brainstate.ShortTermState({"h": jnp.ones(3), "n": 2})]

    return Model().states()


SHARED = [basic, sequences, empty, numbers, ml, order, split, strings, optimizer]


def write(case, library, version, to_bytes):
    path = HERE / f"{library}-{version}-{case.__name__}.msgpack"
    if path.exists():
        print("kept   ", path.name)
        return
    path.write_bytes(to_bytes(case()))
    print("written", path.name, path.stat().st_size)


def write_all(module, cases, library, version, to_bytes):
    for case in cases:
        limit, module.MAX_CHUNK_SIZE = module.MAX_CHUNK_SIZE, 16 if case is split else module.MAX_CHUNK_SIZE
        write(case, library, version, to_bytes)
        module.MAX_CHUNK_SIZE = limit


def low_level():
    """What only flax's low-level function takes: lists stay lists, and a map's keys may be numbers."""
    return {"list": [1, np.arange(2), [2.5, None]], "numbered": {1: "one", -2: {2.5: b"", True: None}}}


def early():
    """What early versions of flax wrote in another way: named tuples, with their names."""
    return {
        "point": Point(1, np.int16([2])),
        "nested": [Point(Point(0.5, None), (np.float32(1.5), 1 - 2j))],
        "weights": {"w": jnp.arange(6.0).reshape(2, 3), "half": jnp.ones(2, jnp.bfloat16)},
    }


def put_back_what_is_gone():
    """Give jax and numpy the names that early versions of flax ask for."""
    jax.xla = types.SimpleNamespace(DeviceArray=jax.Array)
    np.issctype = lambda ty: isinstance(ty, type) and issubclass(ty, np.generic)  # noqa: NPY201


def load_module(path):
    spec = importlib.util.spec_from_file_location("old_msg_checkpoint", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(library, *arguments):
    if library == "flax":
        from flax import serialization

        version = importlib.metadata.version("flax")
        write_all(serialization, SHARED, "flax", version, serialization.to_bytes)
        write(low_level, "flax", version, lambda tree: serialization.msgpack_serialize(tree, in_place=True))
        return
    if library == "flax-file":
        put_back_what_is_gone()
        write(early, "flax", arguments[1], load_module(arguments[0]).to_bytes)
        return
    if library == "braintools":
        from braintools.file import _msg_checkpoint as module

        version = importlib.metadata.version("braintools")
    else:
        module, version = load_module(arguments[0]), arguments[1]
    to_bytes = getattr(module, "_to_bytes", None) or module.to_bytes
    write_all(module, [*SHARED, quantities, states], "braintools", version, to_bytes)


if __name__ == "__main__":
    main(*sys.argv[1:])
