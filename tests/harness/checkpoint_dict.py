"""A training whose checkpoint is one dict, as trainers write it: model, optimizer, scheduler, epoch, step and rng.

Run as ``python checkpoint_dict.py FOLDER EPOCHS SEED``: it goes on from the latest checkpoint there to that many
epochs, and prints the SHA-256 of all that it has in the end.
"""

from __future__ import annotations

import hashlib
import sys

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_breast_cancer

import braintools_ckpt as bt

BATCH = 64


class Plateau:
    """A scheduler of one's own, with the methods that they have: the rate is halved when the loss does not fall."""

    def __init__(self, rate):
        self.rate, self.best, self.bad = rate, float("inf"), 0

    def step(self, loss):
        self.best, self.bad = (loss, 0) if loss < self.best else (self.best, self.bad + 1)
        if self.bad == 2:
            self.rate, self.bad = self.rate / 2, 0

    def state_dict(self):
        return dict(vars(self))

    def load_state_dict(self, state):
        vars(self).update(state)


class Net(nnx.Module):
    def __init__(self, rngs, classes=2):
        self.hidden = nnx.Linear(30, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(16, classes, rngs=rngs)

    def __call__(self, x):
        return self.head(self.drop(self.norm(nnx.relu(self.hidden(x)))))


def checkpoint(seed, classes=2):
    """Give a training that has not begun."""
    model = Net(nnx.Rngs(seed), classes)
    return {
        "model": model,
        "optimizer": nnx.Optimizer(model, optax.inject_hyperparams(optax.adam)(1e-2), wrt=nnx.Param),
        "scheduler": Plateau(1e-2),
        "epoch": 0,
        "step": 0,
        "rng": {"jax": jax.random.key(seed), "numpy": np.random.default_rng(seed)},
    }


@nnx.jit
def train_step(model, optimizer, x, y, rate):
    loss, grads = nnx.value_and_grad(lambda model: optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean())(
        model
    )
    optimizer.opt_state.hyperparams["learning_rate"][...] = rate
    optimizer.update(model, grads)
    return loss


def train_epoch(run, images, labels):
    order = run["rng"]["numpy"].permutation(len(images))
    losses = []
    for start in range(0, len(order) - BATCH, BATCH):
        rows = order[start : start + BATCH]
        run["rng"]["jax"], key = jax.random.split(run["rng"]["jax"])
        noisy = images[rows] + 0.01 * jax.random.normal(key, images[rows].shape)
        losses.append(train_step(run["model"], run["optimizer"], noisy, labels[rows], run["scheduler"].rate))
    run["scheduler"].step(float(sum(losses)))
    run["epoch"] += 1
    run["step"] += len(losses)


def main(folder, epochs, seed):
    images, labels = load_breast_cancer(return_X_y=True)
    images = ((images - images.mean(0)) / images.std(0)).astype(np.float32)
    with bt.CheckpointManager(folder, keep=2) as manager:
        _, run = manager.restore_or(checkpoint(seed))
        while run["epoch"] < epochs:
            train_epoch(run, images, labels)
            manager.save(run["epoch"], run)
    print(hashlib.sha256(bt.msgpack_dumps(run)).hexdigest())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
