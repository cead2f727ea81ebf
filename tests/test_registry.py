"""The registry's lookup, and what the library changes in the interpreter while it walks over a tree."""

from __future__ import annotations

import dataclasses
import gc
import importlib
import io
import pickle
import subprocess
import sys
import textwrap
import threading

import jax
import numpy as np
import pytest

import braintools_ckpt as bt
from braintools_ckpt.tree.registry import Handler, Registry
from braintools_ckpt.walking import walking


class Pair:
    def __init__(self, a, b):
        self.a, self.b = a, b


def test_a_class_that_jax_learns_of_later():
    with pytest.raises(bt.SerializationError, match="no handler is registered"):
        bt.msgpack_dumps(Pair(1, 2))
    jax.tree_util.register_pytree_with_keys(
        Pair,
        lambda p: (((jax.tree_util.GetAttrKey("a"), p.a), (jax.tree_util.GetAttrKey("b"), p.b)), None),
        lambda _, children: Pair(*children),
    )
    loaded = bt.msgpack_loads(bt.msgpack_dumps(Pair(1, 2)), Pair(0, 0))
    assert (loaded.a, loaded.b) == (1, 2)


def test_the_most_specific_handler_wins():
    class Base:
        pass

    class Left(Base):
        pass

    class Right(Base):
        pass

    class Both(Left, Right):
        pass

    registry, handlers = Registry(), {ty: Handler() for ty in (Base, Right)}
    for ty, handler in handlers.items():
        registry.register(ty, handler)
    assert registry.lookup(Left()) is handlers[Base]
    assert registry.lookup(Both()) is handlers[Right]
    left = Handler()
    registry.register(Left, left)  # what was looked up before is looked up anew
    assert registry.lookup(Both()) is left


def test_an_adapter_that_fails_to_import_is_tried_again(monkeypatch):
    registry, tries = Registry(), []

    def fail(name, package=None):
        tries.append(name)
        raise ImportError("broken")

    monkeypatch.setattr(importlib, "import_module", fail)
    for _ in range(2):
        with pytest.raises(ImportError, match="broken"):
            registry.activate("brainunit")
    assert len(tries) == 2


def test_many_threads_may_meet_a_library_first():
    code = """
        import threading, numpy as np, brainunit as u, braintools_ckpt as bt
        tree, results = {"q": np.ones(3) * u.mV}, []
        start = threading.Barrier(8)
        def work():
            start.wait()
            results.append(str(bt.msgpack_loads(bt.msgpack_dumps(tree))["q"].unit))
        threads = [threading.Thread(target=work) for _ in range(8)]
        [t.start() for t in threads]; [t.join() for t in threads]
        assert results == ["mV"] * 8, results
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=120)


def test_walking_puts_the_interpreter_back():
    limit = sys.getrecursionlimit()
    inside, leave = threading.Event(), threading.Event()

    def other():
        with walking():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with walking():
        thread.start()
        inside.wait(10)
    assert not gc.isenabled()
    assert sys.getrecursionlimit() > limit
    leave.set()
    thread.join()
    assert gc.isenabled()
    assert sys.getrecursionlimit() == limit
    gc.disable()
    try:
        with walking():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "error",
    [
        bt.AlreadyExistsError("a/b"),
        bt.CheckpointNotFoundError("a/b", ". Did you mean 'c'?"),
        bt.CorruptCheckpointError("text"),
    ],
)
def test_errors_can_be_pickled(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)


def test_metadata_is_small():
    class Text(str):
        pass

    @dataclasses.dataclass
    class Wide:
        x: np.ndarray

    data = bt.msgpack_dumps(1, metadata={Text("a"): 1})
    assert bt.open_checkpoint(io.BytesIO(data)).metadata == {"a": 1}
    with pytest.raises(bt.SerializationError, match="The keys of metadata must be valid text"):
        bt.msgpack_dumps(1, metadata={"\ud800": 1})
    with pytest.raises(bt.SerializationError, match="the array at path metadata/w/x has 80000 bytes"):
        bt.msgpack_dumps(1, metadata={"w": Wide(np.zeros(10_000))})
    tree = [1]
    for _ in range(40):
        tree = [tree, tree]
    with pytest.raises(bt.SerializationError, match="Metadata is for small values: it has more than 1048576"):
        bt.msgpack_dumps(1, metadata={"t": tree})
