"""Train, save in the background, lose everything, resume: bit for bit the run that was never interrupted.

A small brainstate network learns scikit-learn's handwritten digits while a population of spiking neurons is
simulated beside it in millivolts and milliseconds. One file holds all of it. Run it with

    python -m pip install '.[demo]' && python tutorials/quickstart.py

Every claim that is printed is checked first; the script exits with an error where one does not hold.
"""

import dataclasses
import os
import tempfile
import time
import warnings

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import braintools_ckpt as ckpt

STEPS, SAVE_EVERY, CRASH_AT, BATCH = 300, 50, 170, 64
DT = 0.1 * u.ms


def section(title):
    print(f"\n{title}\n{'-' * len(title)}")


def check(claim, holds):
    """Print a claim that holds; stop the script (exit code 1) at one that does not."""
    if not holds:
        raise SystemExit(f"FAILED: {claim}")
    print(f"ok  {claim}")


# --- What is trained and simulated: ordinary brainstate code, nothing in it knows of checkpoints. --------


class Network(brainstate.nn.Module):
    """64 pixels, one hidden layer with dropout, 10 digits."""

    def __init__(self, hidden):
        super().__init__()
        self.hidden = brainstate.nn.Linear(64, hidden)
        self.dropout = brainstate.nn.Dropout(prob=0.8)
        self.output = brainstate.nn.Linear(hidden, 10)

    def update(self, pixels):
        return self.output(self.dropout(jax.nn.relu(self.hidden(pixels))))


class Population(brainstate.nn.Module):
    """Leaky integrate-and-fire neurons with a noisy input current and a refractory time of 2 ms."""

    def __init__(self, size=100):
        super().__init__()
        self.voltage = brainstate.HiddenState(brainstate.random.uniform(-70.0, -50.0, size) * u.mV)
        self.last_spike = brainstate.ShortTermState(jnp.full(size, -1000.0) * u.ms)
        self.spikes = brainstate.ShortTermState(jnp.zeros(size, dtype=jnp.int32))
        self.time = brainstate.ShortTermState(jnp.zeros(()) * u.ms)

    def update(self):
        voltage, now = self.voltage.value, self.time.value + DT
        current = (0.16 + 0.3 * brainstate.random.normal(size=voltage.shape)) * u.nA
        drift = (-65.0 * u.mV - voltage + 100.0 * u.Mohm * current) / (20.0 * u.ms)
        refractory = now - self.last_spike.value < 2.0 * u.ms
        voltage = u.math.where(refractory, -65.0 * u.mV, voltage + drift * DT)
        spike = voltage > -50.0 * u.mV
        self.voltage.value = u.math.where(spike, -65.0 * u.mV, voltage)
        self.last_spike.value = u.math.where(spike, now, self.last_spike.value)
        self.spikes.value += spike
        self.time.value = now


# --- A class of the user's own: one line makes it a node of any checkpoint. ------------------------------


@ckpt.serializable(name="quickstart/TrainingLog")
@dataclasses.dataclass
class TrainingLog:
    """The loss of every step; NaN where training has not been yet."""

    losses: np.ndarray
    lowest: float = float("inf")

    def add(self, step, loss):
        self.losses[step] = loss
        self.lowest = min(self.lowest, loss)


# --- One experiment: `tree()` is all that a checkpoint needs. --------------------------------------------


def read_digits():
    images, labels = load_digits(return_X_y=True)
    return train_test_split((images / 16).astype(np.float32), labels, test_size=0.25, random_state=0)


TRAIN_X, TEST_X, TRAIN_Y, TEST_Y = read_digits()
OPTIMIZER = optax.adamw(optax.cosine_decay_schedule(1e-2, STEPS), weight_decay=1e-3)


class Experiment:
    """A training and a simulation that take their steps together, and all that they need to go on."""

    def __init__(self, seed):
        brainstate.random.seed(seed)  # one generator for initial values, shuffling, dropout and input noise
        self.network = Network(hidden=128)
        self.population = Population()
        self.parameters = self.network.states(brainstate.ParamState)
        self.optimizer = OPTIMIZER.init(self.parameters.to_dict_values())
        self.step = 0
        self.order = np.arange(len(TRAIN_X), dtype=np.int32)
        self.log = TrainingLog(np.full(STEPS, np.nan, dtype=np.float32))
        self.learn = brainstate.transform.jit(self.learn)
        self.simulate = brainstate.transform.jit(self.simulate)

    def tree(self):
        return {
            "network": self.network.states(),
            "population": self.population.states(),
            "optimizer": self.optimizer,
            "rng": brainstate.random.DEFAULT,  # a brainstate State around a typed JAX key
            "step": self.step,
            "order": self.order,  # a checkpoint may fall into the middle of an epoch
            "log": self.log,
        }

    def save(self, directory, manager):
        path = os.path.join(directory, f"step_{self.step:04d}.ckpt")
        metadata = {"data": "scikit-learn digits", "step": self.step}
        return ckpt.msgpack_save(path, self.tree(), async_manager=manager, metadata=metadata)

    def load(self, path):
        loaded = ckpt.msgpack_load(path, target=self.tree())  # States are filled in place ...
        for name in ("optimizer", "step", "order", "log"):  # ... and plain values come back
            setattr(self, name, loaded[name])

    def learn(self, optimizer, pixels, digits):
        def loss():
            return optax.softmax_cross_entropy_with_integer_labels(self.network(pixels), digits).mean()

        with brainstate.environ.context(fit=True):
            gradients, value = brainstate.transform.grad(loss, self.parameters, return_value=True)()
        values = self.parameters.to_dict_values()
        updates, optimizer = OPTIMIZER.update(gradients, optimizer, values)
        self.parameters.assign_dict_values(optax.apply_updates(values, updates))
        return optimizer, value

    def simulate(self):
        brainstate.transform.for_loop(lambda _: self.population(), jnp.arange(50))

    def run(self, until, directory=None, manager=None):
        batches = len(TRAIN_X) // BATCH
        while self.step < until:
            batch = self.step % batches
            if batch == 0:
                self.order = np.asarray(brainstate.random.permutation(len(TRAIN_X)))
            rows = self.order[batch * BATCH : (batch + 1) * BATCH]
            self.optimizer, loss = self.learn(self.optimizer, TRAIN_X[rows], TRAIN_Y[rows])
            self.simulate()
            self.log.add(self.step, float(loss))
            self.step += 1
            if manager is not None and self.step % SAVE_EVERY == 0:
                self.save(directory, manager)

    def accuracy(self):
        with brainstate.environ.context(fit=False):
            return float(jnp.mean(self.network(TEST_X).argmax(axis=1) == TEST_Y))

    def report(self):
        simulated, spikes = self.population.time.value, self.population.spikes.value
        rate = (spikes.mean() / simulated).to_decimal(u.Hz)
        trained = f"step {self.step}: test accuracy {self.accuracy():.1%}, lowest loss {self.log.lowest:.3f}"
        print(f"{trained}; {simulated.to_decimal(u.ms):.0f} ms simulated, {rate:.1f} spikes/s per neuron")


def is_leaf(node):
    return isinstance(node, (brainstate.State, u.Quantity))


def leaves(experiment):
    """List every leaf as (path, dtype, shape, unit, bytes): the measure of "identical, bit for bit"."""
    tree = experiment.tree()
    tree["log"] = vars(experiment.log)
    tree = jax.tree.map(lambda x: x.value if isinstance(x, brainstate.State) else x, tree, is_leaf=is_leaf)
    tree["rng"] = jax.random.key_data(tree["rng"])
    rows = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf):
        array, unit = np.asarray(u.get_mantissa(leaf)), str(u.get_unit(leaf))
        rows.append((jax.tree_util.keystr(path), array.dtype, array.shape, unit, array.tobytes()))
    return rows


# --- The story. ------------------------------------------------------------------------------------------


def lose_everything(directory):
    """Train, save every 50 steps in the background, stop in the middle: only the files are left."""
    experiment = Experiment(seed=1)
    with ckpt.AsyncManager() as manager:
        experiment.run(CRASH_AT, directory, manager)
    experiment.report()


def load_into_another_size(path, mode):
    """Load the network of a file into one with 96 hidden units: what it changed, and what it said."""
    network = Network(hidden=96)
    before = weights(network)
    said = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            ckpt.msgpack_load(path, target={"network": network.states()}, mismatch=mode, partial=True)
        except ckpt.MismatchError as error:
            said += [mismatch.message for mismatch in error.mismatches]
    said += [str(warning.message) for warning in caught]
    after = weights(network)
    return [name for name in after if not np.array_equal(before[name], after[name])], said


def weights(network):
    states = network.states(brainstate.ParamState)
    return {f"{path[0]} {name}": leaf for path, state in states.items() for name, leaf in state.value.items()}


def main(directory):
    started = time.perf_counter()
    print(f"{len(TRAIN_X) + len(TEST_X)} handwritten digits: {len(TRAIN_X)} to learn, {len(TEST_X)} to test")

    section("1. A run that is never interrupted")
    straight = Experiment(seed=1)
    straight.run(STEPS)
    straight.report()
    check("the network has learned: more than 95% of the test digits are right", straight.accuracy() > 0.95)
    expected = leaves(straight)

    section(f"2. The same run, saved every {SAVE_EVERY} steps in the background, lost after {CRASH_AT}")
    lose_everything(directory)
    files = sorted(os.listdir(directory))
    print("left on disk:", ", ".join(files))
    path = os.path.join(directory, files[-1])

    section("3. Rebuild from nothing, load into the template, resume")
    resumed = Experiment(seed=2)  # another seed: nothing agrees by chance
    resumed.load(path)
    print(f"loaded {files[-1]}: at step {resumed.step}, lowest loss so far {resumed.log.lowest:.3f}")
    resumed.run(STEPS)
    resumed.report()
    found = leaves(resumed)
    check(f"all {len(expected)} leaves of the resumed run are identical, bit for bit", found == expected)
    check("among them the random generator of dropout and shuffling", any("rng" in row[0] for row in found))

    section("4. What the file holds")
    with ckpt.open_checkpoint(path) as checkpoint:
        print(checkpoint)
        units = {spec.unit for spec in checkpoint.specs.values()}
        known = checkpoint.metadata["step"] == 150 and {"mV", "ms"} <= units
    check("metadata and units are known before any data is read", known)

    section("5. Load into a model that has changed: 96 hidden units instead of 128")
    changed, said = load_into_another_size(path, "error")
    print("\n".join(said))
    check("'error' reports all three mismatches at once and changes nothing", (changed, len(said)) == ([], 3))
    changed, said = load_into_another_size(path, "warn")
    check("'warn' gives three warnings and loads what fits", (changed, len(said)) == (["output bias"], 3))
    changed, said = load_into_another_size(path, "ignore")
    check("'ignore' loads what fits without a word", (changed, said) == (["output bias"], []))

    print(f"\nAll claims hold ({time.perf_counter() - started:.0f} s).")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(temporary)
