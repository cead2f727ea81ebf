"""Linen, equinox, optax, haiku, penzai, brainstate, braintools and brainpy: what they hold, and as targets."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import random
import warnings
from pathlib import Path

import brainstate
import brainunit as u
import equinox as eqx
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict
from flax.training.train_state import TrainState

from braintools_ckpt import HandlerError, MismatchError, SerializationError, msgpack_dumps, msgpack_load, msgpack_loads


def bits(tree):
    """Give all leaves of a tree by path, bit for bit."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf) if not callable(leaf) else None
        found[jax.tree_util.keystr(path)] = leaf if array is None else (str(array.dtype), array.shape, array.tobytes())
    return found


def loaded_into(saved, target):
    return msgpack_loads(msgpack_dumps(saved), target=target)


# Linen.


def test_frozen_dicts_fit_where_dicts_do():
    frozen = FrozenDict({"dense": {"kernel": jnp.ones((2, 3))}, "1": np.zeros(2)})
    zeros = jax.tree.map(lambda x: x * 0, frozen.unfreeze())
    again = msgpack_loads(msgpack_dumps(frozen))
    assert type(again) is FrozenDict
    assert bits(again) == bits(frozen)
    for saved in (frozen, frozen.unfreeze()):
        for target in (FrozenDict(zeros), zeros):
            loaded = loaded_into(saved, target)
            assert type(loaded) is type(target)
            assert bits(loaded) == bits(target) | bits(saved)
    with pytest.raises(MismatchError, match=r"expected float32\[2, 3\], got float32\[3\] at path dense/kernel"):
        loaded_into({"dense": {"kernel": jnp.ones(3)}, "1": np.zeros(2)}, frozen)


def test_struct_dataclasses_have_static_fields():
    @flax.struct.dataclass
    class Train:
        step: int
        weights: jax.Array
        apply: object = flax.struct.field(pytree_node=False)

    loaded = loaded_into(Train(3, jnp.ones(2), len), Train(0, jnp.zeros(2), abs))
    assert (loaded.step, loaded.apply) == (3, abs)
    np.testing.assert_array_equal(loaded.weights, [1, 1])


def test_a_train_state():
    def state(value):
        made = TrainState.create(apply_fn=len, params=FrozenDict(w=jnp.full(2, value)), tx=optax.adam(value))
        return made.apply_gradients(grads=made.params)

    saved, target = state(0.5), state(0.25)
    loaded = loaded_into(saved, target)
    assert (type(loaded), loaded.tx, loaded.step) == (TrainState, target.tx, saved.step)
    assert bits(loaded) == bits(saved)


# Equinox.


class Net(eqx.Module):
    layers: list
    scale: float
    mask: jax.Array | None
    activation: object
    name: str = eqx.field(static=True)

    def __init__(self, seed, name="net"):
        keys = jax.random.split(jax.random.key(seed), 2)
        self.layers = [eqx.nn.Linear(3, 4, key=keys[0]), jax.nn.relu, eqx.nn.MLP(4, 2, 5, 1, key=keys[1])]
        self.scale = float(seed)
        self.mask = None
        self.activation = jnp.tanh
        self.name = name


def test_modules_with_functions_among_their_fields():
    saved, target = Net(1, "saved"), Net(2, "target")
    loaded = loaded_into(saved, target)
    assert (loaded.name, loaded.activation, loaded.scale) == ("target", target.activation, 1.0)
    assert loaded.layers[1] is jax.nn.relu
    assert bits(loaded) == bits(saved)
    assert bits(target) == bits(Net(2))
    x = jnp.ones(3)
    np.testing.assert_array_equal(loaded.layers[2](loaded.layers[0](x)), saved.layers[2](saved.layers[0](x)))


def test_modules_are_matched_by_name_and_never_by_position():
    class One(eqx.Module):
        a: jax.Array
        b: jax.Array

    class Turned(eqx.Module):
        b: jax.Array
        a: jax.Array

    class Other(eqx.Module):
        a: jax.Array
        c: jax.Array

    saved = One(jnp.zeros(2), jnp.ones(2))
    loaded = loaded_into(saved, Turned(a=jnp.full(2, 9.0), b=jnp.full(2, 9.0)))
    np.testing.assert_array_equal(loaded.b, [1, 1])
    with pytest.raises(MismatchError, match=r"contains keys \{'c'\} which are not present"):
        loaded_into(saved, Other(jnp.zeros(2), jnp.zeros(2)))


def test_filtered_modules():
    saved, target = Net(1), Net(2)
    arrays, _ = eqx.partition(saved, eqx.is_array)
    into, rest = eqx.partition(target, eqx.is_array)
    assert bits(eqx.combine(loaded_into(arrays, into), rest)) == bits(saved) | {".scale": bits(target)[".scale"]}
    with pytest.raises(MismatchError) as caught:
        loaded_into(arrays, target)  # all of it: a number is missing, functions are not
    assert [(m.kind, m.path) for m in caught.value.mismatches] == [("leaf", ("scale",))]
    shapes = eqx.filter_eval_shape(Net, 1)
    assert bits(loaded_into(saved, shapes)) == bits(saved)


def test_the_state_of_stateful_layers():
    class Layers(eqx.Module):
        one: eqx.nn.BatchNorm
        two: eqx.nn.StateIndex

        def __init__(self):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.one = eqx.nn.BatchNorm(2, "batch")
            self.two = eqx.nn.StateIndex(jnp.zeros(3))

    model, state = eqx.nn.make_with_state(Layers)()
    state = state.set(model.two, jnp.arange(3.0))
    other, its = eqx.nn.make_with_state(Layers)()
    loaded = loaded_into((model, state), (other, its))
    np.testing.assert_array_equal(loaded[1].get(loaded[0].two), [0, 1, 2])
    assert bits(loaded[1]) == bits(state)
    with pytest.warns(UserWarning, match=r"an equinox.nn.State: without a target"):
        names = msgpack_loads(msgpack_dumps(state))
    assert len(names) == 3


def test_states_without_names_are_refused():
    class Layers(eqx.Module):
        one: eqx.nn.StateIndex

        def __init__(self):
            self.one = eqx.nn.StateIndex(jnp.zeros(3))

    with pytest.raises(SerializationError, match="at path . has no names for its states"):
        msgpack_dumps(eqx.nn.State(Layers()))


def test_what_an_equinox_module_is_without_a_target():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        loaded = msgpack_loads(msgpack_dumps(Net(1)))
    assert loaded["activation"] is None
    assert loaded["layers"][0]["weight"].shape == (4, 3)
    assert any("functions in it" in str(warning.message) for warning in seen)


def test_functions_elsewhere_are_still_refused():
    with pytest.raises(SerializationError, match="Functions and classes are not saved"):
        msgpack_dumps({"f": jax.nn.relu})
    with pytest.raises(SerializationError, match="Functions and classes are not saved"):
        msgpack_dumps([Net(0), len])

    class Holder(eqx.Module):
        held: object

    class Unknown:
        pass

    with pytest.raises(SerializationError, match="at path held: no handler is registered"):
        msgpack_dumps(Holder(Unknown()))


def test_functions_that_hold_no_data_and_those_that_do():
    activation = functools.partial(jax.nn.leaky_relu, negative_slope=0.2)
    saved = eqx.nn.MLP(2, 2, 4, 1, activation=activation, key=jax.random.key(0))
    target = eqx.nn.MLP(2, 2, 4, 1, activation=activation, key=jax.random.key(1))
    assert bits(loaded_into(saved, target)) == bits(saved)

    class Holder(eqx.Module):
        f: object

    for method in (random.Random(3).random, {"k": jnp.ones(1)}.get, functools.partial(jnp.add, jnp.ones(1))):
        with pytest.raises(SerializationError):
            msgpack_dumps(Holder(method))
    with pytest.raises(MismatchError, match=r"expected a function, got float32\[1\] at path f"):
        loaded_into(Holder(jnp.ones(1)), Holder(jax.nn.relu))
    assert loaded_into(Holder(jax.nn.relu), Holder(None)).f is None


def test_tied_parts_of_equinox():
    class Tied(eqx.Module):
        shared: eqx.nn.Shared

        def __init__(self, seed):
            one, other = jax.random.split(jax.random.key(seed))
            pair = eqx.nn.Embedding(3, 2, key=one), eqx.nn.Linear(2, 3, key=other)
            self.shared = eqx.nn.Shared(pair, lambda pair: pair[1].weight, lambda pair: pair[0].weight)

    saved, target = Tied(0), Tied(1)
    loaded = loaded_into(saved, target)
    np.testing.assert_array_equal(loaded.shared()[1].weight, saved.shared()[0].weight)


def test_objects_with_the_same_fields_fit_each_other():
    class Module(eqx.Module):
        w: jax.Array

    @flax.struct.dataclass
    class Struct:
        w: jax.Array

    for saved in (Module(jnp.ones(1)), Struct(jnp.ones(1))):
        for target in (Module(jnp.zeros(1)), Struct(jnp.zeros(1))):
            loaded = loaded_into(saved, target)
            assert (type(loaded), loaded.w[0]) == (type(target), 1)


def test_a_class_that_refuses_what_was_loaded_is_no_corrupt_file():
    @jax.tree_util.register_pytree_node_class
    class Strict:
        def __init__(self, w):
            self.w = w

        def tree_flatten(self):
            return (self.w,), None

        @classmethod
        def tree_unflatten(cls, _, parts):
            if isinstance(parts[0], np.ndarray) and parts[0][0] == 1:
                raise ValueError("invalid")
            return cls(*parts)

    with pytest.raises(HandlerError, match="The class .*Strict failed to make its object .* ValueError: invalid"):
        loaded_into(Strict(np.ones(1)), Strict(np.zeros(1)))


# Optax.

PARAMS = {"w": jnp.linspace(-1, 1, 6).reshape(2, 3), "b": jnp.ones(3)}
ALIASES = (
    "adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamaxw", "adamw", "adan", "amsgrad",
    "fromage", "lamb", "lars", "lbfgs", "lion", "nadam", "nadamw", "novograd", "optimistic_gradient_descent",
    "radam", "rmsprop", "rprop", "sgd", "sign_sgd", "sm3", "yogi",
)  # fmt: skip
TRANSFORMS = {
    **{name: getattr(optax, name) for name in ALIASES if hasattr(optax, name)},
    "scheduled": lambda lr: optax.adam(optax.warmup_cosine_decay_schedule(0.0, lr, 2, 10)),
    "masked": lambda lr: optax.masked(optax.adam(lr), {"w": True, "b": False}),
    "parts": lambda lr: optax.multi_transform({"x": optax.adam(lr), "y": optax.sgd(lr, 0.9)}, {"w": "x", "b": "y"}),
    "injected": lambda lr: optax.inject_hyperparams(optax.adam)(optax.linear_schedule(lr, 0.0, 10)),
    "steps": lambda lr: optax.MultiSteps(optax.chain(optax.clip(1.0), optax.adam(lr)), 2).gradient_transformation(),
    "guarded": lambda lr: optax.apply_if_finite(optax.adam(lr), 3),
    "looking ahead": lambda lr: optax.chain(optax.add_noise(0.1, 0.5, 3), optax.ema(0.9), optax.trace(0.9)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_states_of_optax(name):
    transform = TRANSFORMS[name](0.1)

    def train(state, params, steps):
        for _ in range(steps):
            extra = {}
            if name == "lbfgs":
                extra = {"value": jnp.float32(1.0), "grad": params, "value_fn": lambda p: optax.tree.norm(p) ** 2}
            updates, state = transform.update(params, state, params, **extra)
            params = optax.apply_updates(params, updates)
        return state, params

    state, params = train(transform.init(PARAMS), PARAMS, 3)
    loaded, its = loaded_into((state, params), (transform.init(PARAMS), PARAMS))
    assert jax.tree.structure(loaded) == jax.tree.structure(state)
    assert bits(loaded) == bits(state)
    assert bits(train(loaded, its, 2)) == bits(train(state, params, 2))


# Brainstate, braintools, brainpy.


class Neurons(brainstate.nn.Module):
    def __init__(self, seed=0, unit=u.mV):
        super().__init__()
        self.weights = brainstate.ParamState({"w": jnp.full(3, float(seed)) * u.nS, "b": jnp.zeros(2) + seed})
        self.v = brainstate.HiddenState(jnp.full(3, -60.0 - seed) * unit)
        self.spikes = brainstate.ShortTermState(jnp.zeros(3, jnp.int32) + seed)
        self.noise = brainstate.random.RandomState(seed)
        self.layers = [brainstate.nn.Linear(2, 2)]


def values(module):
    """Give the values of all states but generators, bit for bit."""
    states = brainstate.graph.states(module)
    generator = brainstate.random.RandomState
    return {path: bits(state.value) for path, state in states.items() if not isinstance(state, generator)}


def test_every_kind_of_state_is_filled_in_place():
    saved, target = Neurons(1), Neurons(2)
    states = dict(brainstate.graph.states(target))
    assert loaded_into(saved, target) is target
    assert values(target) == values(saved)
    assert all(state is states[path] for path, state in brainstate.graph.states(target).items())
    assert target.weights.value["w"].unit == u.nS
    assert str(target.v.value.unit) == "mV"
    np.testing.assert_array_equal(target.noise.rand(3), saved.noise.rand(3))


def test_only_some_states_of_a_module():
    saved, target = Neurons(1), Neurons(2)
    with pytest.warns(UserWarning, match="leaves out random state, which is not saved: noise"):
        data = msgpack_dumps(saved, only=brainstate.ParamState)
    assert set(msgpack_loads(data, raw=True)) == {"weights", "layers"}
    before = values(target)
    msgpack_loads(data, target, only=brainstate.ParamState)
    after, wanted = values(target), values(saved)
    for path in after:
        assert after[path] == (wanted if path[0] in ("weights", "layers") else before)[path]
    other = Neurons(3)
    loaded_whole = msgpack_dumps(saved)
    for data in (loaded_whole, msgpack_dumps(saved.states().to_nest())):
        msgpack_loads(data, other, only=(brainstate.HiddenState, brainstate.random.RandomState))
        assert values(other)[("v",)] == wanted[("v",)]
        assert values(other)[("spikes",)] == values(Neurons(3))[("spikes",)]
    from brainstate.util.filter import All, Not

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        msgpack_dumps(saved, only=All(brainstate.ParamState, Not(brainstate.random.RandomState)))


def test_units_of_a_model():
    data = msgpack_dumps(Neurons(1))
    with pytest.raises(MismatchError, match="Unit mismatch: expected ms, got mV at path v"):
        msgpack_loads(data, Neurons(2, unit=u.ms))
    volts = Neurons(2, unit=u.volt)
    before = values(volts)
    with pytest.raises(MismatchError, match="Unit mismatch: expected V, got mV at path v"):
        msgpack_loads(data, volts)
    assert values(volts) == before
    msgpack_loads(data, volts, units="convert")
    assert str(volts.v.value.unit) == "V"
    np.testing.assert_allclose(volts.v.value.mantissa, -0.061, rtol=1e-6)


def test_an_optimizer_of_braintools():
    braintools = pytest.importorskip("braintools")

    def made(seed):
        module = Neurons(seed)
        optimizer = braintools.optim.Adam(lr=0.1)
        optimizer.register_trainable_weights(module.layers[0].states(brainstate.ParamState))
        return module, optimizer

    def train(module, optimizer):
        loss = lambda: (module.layers[0](jnp.ones(2)) ** 2).sum()  # noqa: E731
        optimizer.update(brainstate.transform.grad(loss, module.layers[0].states(brainstate.ParamState))())

    (module, optimizer), (other, its) = made(0), made(1)
    before = values(module)
    train(module, optimizer)
    assert values(module) != before
    loaded_into({"module": module, "optimizer": optimizer}, {"module": other, "optimizer": its})
    train(module, optimizer)
    train(other, its)
    assert values(module) == values(other)


def test_delays_go_on():
    class Delayed(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.delay = brainstate.nn.Delay(jax.ShapeDtypeStruct((2,), jnp.float32), entries={"a": 3 * u.ms})

        def update(self, i):
            with brainstate.environ.context(i=i, t=i * u.ms):
                self.delay.update(jnp.full(2, float(i)))
                return self.delay.at("a")

    with brainstate.environ.context(dt=1 * u.ms):
        one, other = Delayed(), Delayed()
        for module in (one, other):
            brainstate.nn.init_all_states(module)
        for i in range(5):
            one.update(i)
        loaded_into(one, other)
        np.testing.assert_array_equal(one.update(5), other.update(5))


def test_networks_of_brainpy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bp = pytest.importorskip("brainpy")

        class Network(bp.DynSysGroup):
            def __init__(self):
                super().__init__()
                self.one, self.two = bp.dyn.LifRef(4), bp.dyn.LifRef(2)

        saved, target = Network(), Network()
        for variable in saved.vars().unique().values():
            variable.value = variable.value + 1 if variable.dtype != bool else ~variable.value
        assert loaded_into(saved, target) is target
        assert set(saved.vars()) != set(target.vars())  # names that count on
        found, wanted = ({k: bits(v.value) for k, v in n.vars(method="relative").items()} for n in (target, saved))
        assert found == wanted


def test_neurons_of_brainpy_state():
    bp = pytest.importorskip("brainpy_state")
    with brainstate.environ.context(dt=0.1 * u.ms):
        one, other = (bp.LIF(3, V_rest=-60 * u.mV, V_th=-50 * u.mV, tau=20 * u.ms) for _ in range(2))
        for module in (one, other):
            brainstate.nn.init_all_states(module)
        one.V.value = one.V.value + 3 * u.mV
        loaded_into(one, other)
        assert values(one) == values(other)


def test_states_of_many_hidden_variables_keep_their_units():
    made = lambda scale: brainstate.HiddenTreeState(  # noqa: E731
        {"v": jnp.full(2, 7.0 * scale) * u.mV, "g": jnp.full(2, 1.0 * scale) * u.mS}
    )
    loaded = msgpack_loads(msgpack_dumps({"h": made(1)}))["h"]
    assert type(loaded) is brainstate.HiddenTreeState
    assert loaded.get_value("v")[0] == 7 * u.mV
    turned = brainstate.HiddenTreeState({"g": jnp.zeros(2) * u.mS, "v": jnp.zeros(2) * u.mV})
    loaded_into({"h": made(1)}, {"h": turned})
    assert (turned.get_value("v")[0], turned.get_value("g")[0]) == (7 * u.mV, 1 * u.mS)
    other = brainstate.HiddenTreeState({"v": jnp.zeros(2) * u.ms, "g": jnp.zeros(2) * u.mS})
    with pytest.raises(MismatchError, match="Unit mismatch: expected ms, got mV at path h/v"):
        loaded_into({"h": made(1)}, {"h": other})
    assert other.get_value("g")[0] == 0 * u.mS


def test_schedulers_of_braintools_travel_with_their_optimizer():
    optim = pytest.importorskip("braintools").optim

    def made(seed):
        module = Neurons(seed)
        optimizer = optim.SGD(lr=optim.StepLR(base_lr=0.1, step_size=2))
        optimizer.register_trainable_weights(module.layers[0].states(brainstate.ParamState))
        return module, optimizer

    def train(module, optimizer):
        loss = lambda: (module.layers[0](jnp.ones(2)) ** 2).sum()  # noqa: E731
        optimizer.update(brainstate.transform.grad(loss, module.layers[0].states(brainstate.ParamState))())
        optimizer.lr_scheduler.step()

    (module, optimizer), (other, its) = made(0), made(1)
    for _ in range(3):
        train(module, optimizer)
    loaded_into({"module": module, "optimizer": optimizer}, {"module": other, "optimizer": its})
    assert its.lr_scheduler.last_epoch.value == 3
    assert its.lr_scheduler.current_lrs.value == optimizer.lr_scheduler.current_lrs.value
    for each in ((module, optimizer), (other, its)):
        train(*each)
    assert values(module) == values(other)
    alone = optim.StepLR(base_lr=0.1, step_size=2)
    msgpack_loads(msgpack_dumps({"s": optimizer.lr_scheduler}), {"s": alone})
    assert alone.last_epoch.value == 4


def test_states_of_brainstate_in_objects_of_brainpy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bp = pytest.importorskip("brainpy")
        bm = bp.math

        class Network(bp.DynamicalSystem):
            def __init__(self, seed):
                super().__init__()
                self.v = bm.Variable(jnp.zeros(2) + seed)
                self.rng = bm.random.RandomState(seed)
                self.hidden = brainstate.ShortTermState(jnp.zeros(2) + seed)
                self.linear = Neurons(seed)

        saved, target = Network(1), Network(2)
        loaded_into(saved, target)
        assert (target.v[0], target.hidden.value[0]) == (1, 1)
        assert values(target.linear) == values(saved.linear)
        np.testing.assert_array_equal(target.rng.rand(2), saved.rng.rand(2))


def test_filters_of_states_in_mappings():
    module, target = Neurons(1), Neurons(2)
    only = (brainstate.ParamState, brainstate.random.RandomState)
    for form in (lambda m: m.states(), lambda m: m.states().to_nest()):
        saved = msgpack_loads(msgpack_dumps({"s": form(module)}, only=only), raw=True)["s"]
        assert set(saved) == {"weights", "layers", "noise"}
        msgpack_loads(msgpack_dumps({"s": form(module)}), {"s": form(target)}, only=only)
        assert values(target)[("v",)] == values(Neurons(2))[("v",)]
        assert values(target)[("weights",)] == values(module)[("weights",)]


# Penzai.


def test_named_axes_are_checked():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("penzai")
        from penzai import pz
    saved = pz.nx.wrap(jnp.arange(4.0).reshape(2, 2)).tag("a", "b")
    loaded = loaded_into(saved, pz.nx.wrap(jnp.zeros((2, 2))).tag("a", "b"))
    np.testing.assert_array_equal(loaded.untag("a", "b").unwrap(), [[0, 1], [2, 3]])
    again = msgpack_loads(msgpack_dumps(saved))
    np.testing.assert_array_equal(again.untag("b", "a").unwrap(), [[0, 2], [1, 3]])
    with pytest.raises(MismatchError, match=r"Named axes mismatch: expected \['b', 'a'\], got \['a', 'b'\]"):
        loaded_into(saved, pz.nx.wrap(jnp.zeros((2, 2))).tag("b", "a"))


def test_variables_of_penzai_are_filled_in_place():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("penzai")
        from penzai import pz
        from penzai.models.simple_mlp import MLP
    saved, target = (MLP.from_config(jax.random.key(seed), [3, 4, 2]) for seed in range(2))
    variables = pz.unbind_params(target)[1]
    loaded = loaded_into(saved, target)
    frozen = [pz.unbind_params(model, freeze=True)[1] for model in (saved, target, loaded)]
    assert bits(frozen[0]) == bits(frozen[1]) == bits(frozen[2])
    assert [id(v) for v in pz.unbind_params(loaded)[1]] == [id(v) for v in variables]


# A new head on a trunk that was trained before.


def test_surgery_with_a_report():
    trained = {"encoder": {"w": jnp.ones((3, 4)), "b": jnp.ones(4)}, "head": {"w": jnp.ones((4, 10)), "old": 1}}
    fresh = lambda: {"trunk": {"w": jnp.zeros((3, 4)), "b": jnp.zeros(4)}, "head": {"w": jnp.zeros((4, 2))}}  # noqa: E731
    data, target = msgpack_dumps(trained), fresh()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        loaded = msgpack_loads(data, target, mismatch="warn", rename={"encoder": "trunk"})
    assert sorted(str(warning.message) for warning in seen) == [
        "Array shape mismatch: expected float32[4, 2], got float32[4, 10] at path head/w.",
        "The target dict keys and state dict keys do not match, state dict contains keys {'old'} which are not present "
        "in target dict at path head.",
    ]
    np.testing.assert_array_equal(loaded["trunk"]["w"], trained["encoder"]["w"])
    np.testing.assert_array_equal(loaded["head"]["w"], 0)
    assert bits(target) == bits(fresh())
    part = msgpack_loads(data, {"encoder": fresh()["trunk"]}, partial=True)
    np.testing.assert_array_equal(part["encoder"]["b"], 1)


# Classes of one's own.


def test_plain_pytrees_are_matched_by_key():
    @jax.tree_util.register_pytree_with_keys_class
    class Pair:
        def __init__(self, one, two):
            self.one, self.two = one, two

        def tree_flatten_with_keys(self):
            key = jax.tree_util.GetAttrKey
            return [(key("one"), self.one), (key("two"), self.two)], None

        @classmethod
        def tree_unflatten(cls, _, parts):
            return cls(*parts)

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Turned:
        two: jax.Array
        one: jax.Array

    loaded = loaded_into(Pair(jnp.zeros(1), jnp.ones(1)), Turned(jnp.full(1, 9.0), jnp.full(1, 9.0)))
    np.testing.assert_array_equal([loaded.one[0], loaded.two[0]], [0, 1])


# Files of earlier versions.

GOLDEN = Path(__file__).parent / "golden" / "v1" / "modules"


def golden_trees():
    spec = importlib.util.spec_from_file_location("golden_modules", GOLDEN / "expected.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TREES


def test_every_golden_file_of_modules_is_known():
    assert {path.stem for path in GOLDEN.glob("*.msgpack")} == set(golden_trees())


@pytest.mark.parametrize("name", ["flax_nnx", "flax_linen", "equinox"])
def test_golden_files_of_modules_load_for_ever(name):
    make = golden_trees()[name]
    target = make(1000)
    assert bits(target) != bits(make())
    loaded = msgpack_load(GOLDEN / f"{name}.msgpack", target=target)
    assert bits(loaded) == bits(make())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        free = msgpack_load(GOLDEN / f"{name}.msgpack")
    assert jax.tree.leaves(free)
