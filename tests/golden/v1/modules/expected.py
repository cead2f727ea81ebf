"""What is in each golden file of modules: numbers that count up, so that they depend on no library's random numbers.

Nothing here may be changed once the file is in the repository; what is new goes into a new file. The files are written
by ``python tests/golden/make_modules.py``.
"""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import nnx
from flax.core import FrozenDict


def counted(tree, start):
    """Fill the arrays of a tree with numbers that count up."""
    leaves, treedef = jax.tree.flatten(tree)
    filled = []
    for leaf in leaves:
        if eqx.is_inexact_array(leaf):
            leaf = (start + jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape)
            start += leaf.size
        filled.append(leaf)
    return jax.tree.unflatten(treedef, filled)


class Net(nnx.Module):
    def __init__(self, start):
        rngs = nnx.Rngs(int(start))
        self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs) for _ in range(2)])
        self.layers[1].kernel = self.layers[0].kernel
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        nnx.update(self, counted(nnx.to_pure_dict(nnx.state(self, nnx.Not(nnx.RngState))), start))


def flax_nnx(start=0):
    return {"model": Net(start), "state": nnx.state(Net(start + 1)), "param": nnx.Param(jnp.full(2, 1.0 + start))}


def flax_linen(start=0):
    return FrozenDict({"params": {"dense": {"kernel": jnp.full((2, 3), 1.0 + start)}}, "stats": {}})


class Stateful(eqx.Module):
    linear: eqx.nn.Linear
    activation: object
    norm: eqx.nn.BatchNorm

    def __init__(self, start):
        self.linear = counted(eqx.nn.Linear(2, 3, key=jax.random.key(0)), start)
        self.activation = jax.nn.relu
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.norm = eqx.nn.BatchNorm(3, "batch")


def equinox(start=0):
    model, state = eqx.nn.make_with_state(Stateful)(start)
    return model, counted(state, start + 100)


TREES = {"flax_nnx": flax_nnx, "flax_linen": flax_linen, "equinox": equinox}
