"""A simulation of spiking neurons that saves every 100 steps, and goes on from the last save when it is started again.

Run as ``python simulation.py FOLDER STEPS WAY``, with ``WAY`` one of ``manager`` (an AsyncManager in a Python loop
around compiled ones) and ``loop`` (save_in_loop in one compiled loop). The last state goes to ``FOLDER/final``.
"""

from __future__ import annotations

import os
import sys

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
from jax import lax

import braintools_ckpt as bt

EVERY = 100
N = 400


def start():
    """Give the states at the beginning."""
    return {
        "V": brainstate.HiddenState(jnp.linspace(-70, -50, N) * u.mV),
        "g": brainstate.HiddenState(jnp.zeros(N) * u.nS),
        "w": brainstate.ParamState(jax.random.normal(jax.random.key(1), (N, N)) * 0.2 * u.nS),
        "spikes": brainstate.ShortTermState(jnp.zeros(N, jnp.int32)),
        "key": brainstate.State(jax.random.key(0)),
        "step": brainstate.State(jnp.int32(0)),
    }


def advance(values):
    """Give the values one step of 0.1 ms later."""
    key, noise = jax.random.split(values["key"])
    v, g = values["V"], values["g"]
    current = g * (0 * u.mV - v) + jax.random.normal(noise, (N,)) * 300 * u.pA
    v = v + 0.1 * u.ms * ((-65 * u.mV - v) / (20 * u.ms) + current / (200 * u.pF))
    spiked = v > -50 * u.mV
    g = g * 0.98 + values["w"] @ spiked.astype(jnp.float32)
    return {
        "V": u.math.where(spiked, -65 * u.mV, v),
        "g": g,
        "w": values["w"],
        "spikes": values["spikes"] + spiked,
        "key": key,
        "step": values["step"] + 1,
    }


def values_of(states):
    return {name: state.value for name, state in states.items()}


def run_with_manager(path, states, steps):
    chunk = jax.jit(lambda values: lax.fori_loop(0, EVERY, lambda _, values: advance(values), values), donate_argnums=0)
    with bt.AsyncManager() as manager:
        while int(states["step"].value) < steps:
            for name, value in chunk(values_of(states)).items():  # what was saved is donated while it is written
                states[name].value = value
            bt.msgpack_save(path, states, async_manager=manager)


def run_in_loop(path, states, steps):
    with bt.AsyncManager() as manager:
        save = bt.save_in_loop(path, EVERY, async_manager=manager)

        def body(values):
            values = advance(values)
            save(values["step"], {name: brainstate.State(value) for name, value in values.items()})
            return values

        run = jax.jit(lambda values: lax.while_loop(lambda values: values["step"] < steps, body, values))
        for name, value in run(values_of(states)).items():
            states[name].value = value


def main(folder, steps, way):
    path = os.path.join(folder, "checkpoint")
    states = start()
    if os.path.exists(path):
        bt.msgpack_load(path, states)
    print(f"at {int(states['step'].value)}", flush=True)
    {"manager": run_with_manager, "loop": run_in_loop}[way](path, states, steps)
    bt.msgpack_save(os.path.join(folder, "final"), states)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
