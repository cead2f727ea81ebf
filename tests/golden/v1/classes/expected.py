"""What is in each golden file of classes: every tag that no other golden file has.

``TREES`` gives for each file a function that makes the tree with numbers that count up from ``start``. Nothing here may
be changed once the file is in the repository; what is new goes into a new file. The files are written by
``python tests/golden/make_classes.py``.
"""

import dataclasses
import enum
import pathlib
import warnings

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from braintools_ckpt import msgpack_register_serialization, serializable


class Floats(float):
    pass


class Ints(int):
    pass


class Text(str):
    pass


class Bytes(bytes):
    pass


class Numbers(list):
    pass


class Triple(tuple):
    pass


class Table(dict):
    pass


class Phase(enum.Enum):
    TRAIN = "train"
    TEST = 2


class Access(enum.Flag):
    READ = 1
    WRITE = 2


@serializable(name="golden/Colour")
class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class Layer:
    w: object
    b: object = None


@jax.tree_util.register_pytree_with_keys_class
class Node:
    def __init__(self, left, right):
        self.left, self.right = left, right

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in ("left", "right")], None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


class Iterator:
    """Has the methods of an iterator of data."""

    def __init__(self, position):
        self.position = position

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


@serializable(name="golden/Fields")
@dataclasses.dataclass
class Fields:
    w: object
    steps: int


@serializable(name="golden/Synapse", version=2, upgrade={1: lambda old: {"weight": old["w"], "tau": 5.0}})
@dataclasses.dataclass
class Synapse:
    weight: object
    tau: float


class Counter:
    def __init__(self, counts):
        self.counts = counts


msgpack_register_serialization(
    Counter,
    lambda counter: {"counts": counter.counts},
    lambda _, state: Counter(state["counts"]),
    name="golden/Counter",
)


def scale(factor, x):
    return factor * x


def subclasses(start=0):
    return {
        "float": Floats(start + 0.5),
        "int": [Ints(start + 1), Ints(2**70 + start)],
        "text": Text(f"text {start}"),
        "bytes": Bytes([start % 256]),
        "list": Numbers([start, 1]),
        "tuple": Triple((start, jnp.full(2, start))),
        "dict": Table(a=start, b=jnp.full(2, start)),
        "enums": [Phase.TRAIN if start else Phase.TEST, Access.READ | Access.WRITE if start else Access.READ],
        "keys": {Colour.RED: start, (1, Colour.BLUE): 1},
    }


def classes(start=0):
    return {
        "dataclass": Layer(jnp.full(2, start), {"inner": Layer(np.full(2, start))}),
        "pytree": Node(jnp.full(2, start), [Node(start, None)]),
        "stateful": Iterator(start),
        "partial": jax.tree_util.Partial(scale, jnp.full(2, start), x=start),
        "fields": Fields(jnp.full(2, start), start),
        "functions": Counter([start, np.full(2, start)]),
        "enum": Colour.RED if start else Colour.BLUE,
    }


def upgraded(start=0):
    return {"synapse": Synapse(jnp.full(2, start + 1.0), 5.0)}


def numpy_objects(start=0):
    return {
        "bytes": np.bytes_(b"abc" + bytes([65 + start % 20])),
        "random": np.random.RandomState(start),
        "matrix": np.asmatrix(np.full((2, 2), start)),
        "recarray": np.rec.array([(start, 2.5)], dtype=[("a", "i4"), ("b", "f8")]),
        "records": np.array([(start, 2.5)], np.dtype((np.record, [("a", "i4"), ("b", "f8")]))),
        "masked": [np.ma.masked, np.ma.masked_array(np.full(3, start), [True, False, True])],
        "path": pathlib.Path("a") / str(start),
    }


class Network(brainstate.nn.Module):
    def __init__(self, start):
        super().__init__()
        self.w = brainstate.ParamState(jnp.full((2, 2), start + 1.0))
        self.inner = [brainstate.HiddenState(jnp.full(2, start + 2.0))]


def brainstate_module(start=0):
    return {"network": Network(start), "states": Network(start + 1).states()}


def brainpy(start=0):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import brainpy.math as bm

    class Cell(bm.BrainPyObject):
        def __init__(self, value):
            super().__init__()
            self.v = bm.Variable(jnp.full(3, value + 1.0))

    class Cells(bm.BrainPyObject):
        def __init__(self):
            super().__init__()
            self.one, self.two = Cell(start), Cell(start + 1)

    return {"cells": Cells()}


def penzai(start=0):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from penzai import pz
    array = pz.nx.wrap(jnp.arange(4.0).reshape(2, 2) + start)
    return {
        "named": array.tag("a", "b"),
        "parameter": pz.Parameter(value=array.tag("a", "b"), label="w"),
        "state": pz.StateVariable(value=jnp.full(2, float(start)), label="s"),
    }


TREES = {
    "subclasses": subclasses,
    "classes": classes,
    "upgraded": upgraded,
    "numpy_objects": numpy_objects,
    "brainstate_module": brainstate_module,
    "brainpy": brainpy,
    "penzai": penzai,
}
