"""Trainings on handwritten digits, one with each library, that go on from a checkpoint in another process.

Run as ``python training.py first LIBRARY FOLDER``, then ``python training.py rest LIBRARY FOLDER``. The first trains,
saves in the middle, and goes on; the second builds everything from nothing with another seed, loads, and goes on. Both
print the SHA-256 of all that they have in the end. With ``fresh`` the second does not load.
"""

from __future__ import annotations

import hashlib
import random
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import braintools_ckpt as bt

STEPS = 12
IMAGES, LABELS = load_digits(return_X_y=True)
IMAGES = (IMAGES / 16).astype(np.float32)


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def optimizer():
    """Everything that optax can do to a state at once: a chain, a schedule, a mask, accumulated steps."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 4, 40)
    decay = optax.add_decayed_weights(1e-4, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params))
    chain = optax.chain(optax.clip_by_global_norm(1.0), decay, optax.inject_hyperparams(optax.adam)(schedule))
    return optax.MultiSteps(chain, every_k_schedule=2).gradient_transformation()


class Nnx:
    """flax.nnx: tied weights, batch statistics, dropout, lists, an nnx.Optimizer."""

    def __init__(self, seed):
        from flax import nnx

        class Net(nnx.Module):
            def __init__(self, rngs):
                self.inner = nnx.List([nnx.Linear(64, 64, rngs=rngs) for _ in range(2)])
                self.inner[1].kernel = self.inner[0].kernel
                self.norm = nnx.BatchNorm(64, rngs=rngs)
                self.drop = nnx.Dropout(0.2, rngs=rngs)
                self.head = nnx.Linear(64, 10, rngs=rngs)

            def __call__(self, x):
                for layer in self.inner:
                    x = nnx.relu(layer(x))
                return self.head(self.drop(self.norm(x)))

        self.model = Net(nnx.Rngs(seed))
        self.optimizer = nnx.Optimizer(self.model, optax.adam(optax.cosine_decay_schedule(1e-2, 40)), wrt=nnx.Param)
        self.metrics = nnx.MultiMetric(loss=nnx.metrics.Average("loss"))

        @nnx.jit
        def step(model, optimizer, metrics, x, y):
            loss, grads = nnx.value_and_grad(lambda model: cross_entropy(model(x), y))(model)
            optimizer.update(model, grads)
            metrics.update(loss=loss)

        self._step = step

    def step(self, x, y):
        self._step(self.model, self.optimizer, self.metrics, x, y)

    def tree(self):
        return self.model, self.optimizer, self.metrics

    def take(self, tree):
        assert tree[0] is self.model


class Linen:
    """flax.linen: a TrainState, batch statistics, dropout."""

    def __init__(self, seed):
        from flax import linen as nn
        from flax.core import freeze
        from flax.training.train_state import TrainState

        class Net(nn.Module):
            @nn.compact
            def __call__(self, x, train=True):
                x = nn.BatchNorm(use_running_average=not train)(nn.relu(nn.Dense(64)(x)))
                return nn.Dense(10)(nn.Dropout(0.2, deterministic=not train)(x))

        class Train(TrainState):
            batch_stats: dict
            key: jax.Array

        net = Net()
        variables = net.init({"params": jax.random.key(seed), "dropout": jax.random.key(1)}, IMAGES[:2])
        self.state = Train.create(
            apply_fn=net.apply,
            params=freeze(variables["params"]),
            tx=optimizer(),
            batch_stats=variables["batch_stats"],
            key=jax.random.key(seed + 1),
        )

        @jax.jit
        def step(state, x, y):
            key, dropout = jax.random.split(state.key)

            def loss(params):
                logits, changed = state.apply_fn(
                    {"params": params, "batch_stats": state.batch_stats},
                    x,
                    rngs={"dropout": dropout},
                    mutable=["batch_stats"],
                )
                return cross_entropy(logits, y), changed

            grads, changed = jax.grad(loss, has_aux=True)(state.params)
            return state.apply_gradients(grads=grads, batch_stats=changed["batch_stats"], key=key)

        self._step = step

    def step(self, x, y):
        self.state = self._step(self.state, x, y)

    def tree(self):
        return self.state

    def take(self, tree):
        self.state = tree


class Equinox:
    """equinox: functions among the fields, a stateful layer, dropout."""

    def __init__(self, seed):
        import equinox as eqx

        class Net(eqx.Module):
            layers: list
            norm: eqx.nn.BatchNorm
            drop: eqx.nn.Dropout
            head: eqx.nn.MLP

            def __init__(self, key):
                one, other = jax.random.split(key)
                self.layers = [eqx.nn.Linear(64, 64, key=one), jax.nn.relu]
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # about its modes
                    self.norm = eqx.nn.BatchNorm(64, "batch")
                self.drop = eqx.nn.Dropout(0.2)
                self.head = eqx.nn.MLP(64, 10, 32, 1, key=other)

            def __call__(self, x, state, key):
                for layer in self.layers:
                    x = layer(x)
                x, state = self.norm(x, state)
                return self.head(self.drop(x, key=key)), state

        self.model, self.state = eqx.nn.make_with_state(Net)(jax.random.key(seed))
        self.key = jax.random.key(seed + 1, impl="rbg")
        transform = optimizer()
        self.opt_state = transform.init(eqx.filter(self.model, eqx.is_inexact_array))

        @eqx.filter_jit
        def step(model, state, opt_state, key, x, y):
            key, dropout = jax.random.split(key)

            def loss(model, state):
                batched = jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
                logits, state = batched(x, state, jax.random.split(dropout, len(x)))
                return cross_entropy(logits, y), state

            grads, state = eqx.filter_grad(loss, has_aux=True)(model, state)
            updates, opt_state = transform.update(grads, opt_state, eqx.filter(model, eqx.is_inexact_array))
            return eqx.apply_updates(model, updates), state, opt_state, key

        self._step = step

    def step(self, x, y):
        self.model, self.state, self.opt_state, self.key = self._step(
            self.model, self.state, self.opt_state, self.key, x, y
        )

    def tree(self):
        return {"model": self.model, "state": self.state, "optimizer": self.opt_state, "key": self.key}

    def take(self, tree):
        self.model, self.state, self.opt_state, self.key = tree.values()


class Haiku:
    """dm-haiku: nested dicts of parameters and of state."""

    def __init__(self, seed):
        import haiku as hk

        def net(x):
            x = jax.nn.relu(hk.Linear(64)(x))
            x = hk.BatchNorm(True, True, 0.9)(x, is_training=True)
            return hk.Linear(10)(hk.dropout(hk.next_rng_key(), 0.2, x))

        transformed = hk.transform_with_state(net)
        self.key = jax.random.PRNGKey(seed)
        self.params, self.state = transformed.init(self.key, IMAGES[:2])
        transform = optimizer()
        self.opt_state = transform.init(self.params)

        @jax.jit
        def step(params, state, opt_state, key, x, y):
            key, dropout = jax.random.split(key)

            def loss(params):
                logits, changed = transformed.apply(params, state, dropout, x)
                return cross_entropy(logits, y), changed

            grads, state = jax.grad(loss, has_aux=True)(params)
            updates, opt_state = transform.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), state, opt_state, key

        self._step = step

    def step(self, x, y):
        self.params, self.state, self.opt_state, self.key = self._step(
            self.params, self.state, self.opt_state, self.key, x, y
        )

    def tree(self):
        return {"params": self.params, "state": self.state, "optimizer": self.opt_state, "key": self.key}

    def take(self, tree):
        self.params, self.state, self.opt_state, self.key = tree.values()


class Penzai:
    """penzai: named arrays, and parameters that are variables."""

    def __init__(self, seed):
        from penzai import pz
        from penzai.models.simple_mlp import MLP

        self.model = MLP.from_config(jax.random.key(seed), [64, 32, 10])
        unbound, values = pz.unbind_params(self.model, freeze=True)
        transform = optax.adam(1e-2)
        self.opt_state = transform.init(values)

        @jax.jit
        def step(values, opt_state, x, y):
            def loss(values):
                logits = pz.bind_variables(unbound, values)(pz.nx.wrap(x).tag("batch", "features"))
                return cross_entropy(logits.untag("batch", "features").unwrap(), y)

            updates, opt_state = transform.update(jax.grad(loss)(values), opt_state, values)
            return optax.apply_updates(values, updates), opt_state

        self._step = step
        self._pz = pz

    def step(self, x, y):
        _, variables = self._pz.unbind_params(self.model)
        values, self.opt_state = self._step(tuple(v.freeze() for v in variables), self.opt_state, x, y)
        for variable, value in zip(variables, values):
            variable.update(value)

    def tree(self):
        return {"model": self.model, "optimizer": self.opt_state}

    def take(self, tree):
        self.model, self.opt_state = tree.values()


class Brainstate:
    """brainstate: a module with batch statistics and dropout, an optimizer of braintools, the default generator."""

    def __init__(self, seed):
        import brainstate
        import braintools

        brainstate.random.seed(seed)

        class Net(brainstate.nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = brainstate.nn.Linear(64, 64)
                self.norm = brainstate.nn.BatchNorm0d((64,))
                self.drop = brainstate.nn.Dropout(0.8)
                self.head = brainstate.nn.Linear(64, 10)

            def update(self, x):
                return self.head(self.drop(self.norm(jax.nn.relu(self.inner(x)))))

        self.model = Net()
        self.optimizer = braintools.optim.Adam(lr=1e-2)
        weights = self.model.states(brainstate.ParamState)
        self.optimizer.register_trainable_weights(weights)
        self._rng = brainstate.random.DEFAULT

        @brainstate.transform.jit
        def step(x, y):
            with brainstate.environ.context(fit=True):
                grads = brainstate.transform.grad(lambda: cross_entropy(self.model(x), y), weights)()
            self.optimizer.update(grads)

        self.step = step

    def tree(self):
        return {"model": self.model, "optimizer": self.optimizer, "random": self._rng}

    def take(self, tree):
        assert tree["model"] is self.model


LIBRARIES = {"nnx": Nnx, "linen": Linen, "equinox": Equinox, "haiku": Haiku, "penzai": Penzai, "brainstate": Brainstate}


def train(run, order):
    for _ in range(STEPS):
        batch = order.integers(0, len(IMAGES), 64)
        run.step(jnp.asarray(IMAGES[batch]), jnp.asarray(LABELS[batch]))


def everything(run, order):
    return {"run": run.tree(), "order": order, "python": random.getstate()}


def main(part, library, folder):
    path = Path(folder) / "checkpoint"
    seed = 0 if part == "first" else 7
    random.seed(seed)
    run, order = LIBRARIES[library](seed), np.random.default_rng(seed)
    if part == "first":
        train(run, order)
        bt.msgpack_save(path, everything(run, order))
    elif part == "rest":
        loaded = bt.msgpack_load(path, target=everything(run, order))
        run.take(loaded["run"])
        order = loaded["order"]
        random.setstate(loaded["python"])
    train(run, order)
    random.random()
    print(hashlib.sha256(bt.msgpack_dumps(everything(run, order))).hexdigest())


if __name__ == "__main__":
    main(*sys.argv[1:])
