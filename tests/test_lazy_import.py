"""What an import brings with it: nothing of jax, until a tree needs it."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

#: What must not be imported by the way.
HEAVY = (
    "jax",
    "jaxlib",
    "brainunit",
    "saiunit",
    "brainstate",
    "braintools",
    "flax",
    "equinox",
    "optax",
    "orbax",
    "ml_dtypes",
    "tqdm",
)


def imported_by(code, heavy=HEAVY):
    """Run code in a fresh interpreter and tell which of the heavy modules it has imported."""
    report = f"\nimport sys\nprint('imported:', *[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-W",
            "ignore::DeprecationWarning",
            "-c",
            textwrap.dedent(code) + report,
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.rpartition("imported:")[2].split()


def test_import_brings_nothing_heavy():
    assert imported_by("import braintools_ckpt") == []


def test_looking_at_the_names_brings_nothing_heavy():
    assert imported_by("import braintools_ckpt; dir(braintools_ckpt); braintools_ckpt.__version__") == []


@pytest.mark.parametrize(
    "name",
    ["msgpack_save", "msgpack_load", "serializable", "AsyncManager", "open_checkpoint", "MismatchError"],
)
def test_taking_a_name_brings_nothing_heavy(name):
    assert imported_by(f"from braintools_ckpt import {name}", HEAVY[:-2]) == []


NUMPY_ONLY = """
    import collections, datetime, enum, dataclasses, pathlib, io
    import numpy as np
    import braintools_ckpt as bt

    class Color(enum.Enum):
        RED = 1

    @dataclasses.dataclass
    class Layer:
        w: object

    @bt.serializable
    class Net:
        def __init__(self, w):
            self.w = w

    tree = {
        "a": np.arange(3.0), "list": [1, (2.5, None)], 3: "x", "when": datetime.datetime(2024, 1, 1),
        "s": np.float32(1), "m": np.ma.masked_array([1, 2], [0, 1]), "g": np.random.default_rng(0),
        "o": collections.OrderedDict(a=1), "p": pathlib.Path("x"), "big": 10**30, "set": {1, 2},
    }
    full = dict(tree, e=Color.RED, l=Layer(np.zeros(2)), n=Net(np.ones(2)))
"""


def test_a_numpy_tree_is_saved_and_loaded_without_jax(tmp_path):
    code = f"""
    path = bt.msgpack_save({str(tmp_path / "x.msgpack")!r}, tree, metadata={{"step": 1}})
    back = bt.msgpack_load(path)
    assert (back["a"] == tree["a"]).all()
    bt.msgpack_load(path, tree)
    bt.msgpack_loads(bt.msgpack_dumps(full), full)
    bt.msgpack_load(path, tree, mismatch="warn")
    bt.msgpack_load(path, raw=True)
    bt.msgpack_load(path, arrays="numpy", mmap=True)
    bt.msgpack_from_state_dict([0], bt.msgpack_to_state_dict([1]))
    with bt.open_checkpoint(path) as ckpt:
        assert ckpt.metadata == {{"step": 1}}
        repr(ckpt), ckpt.paths, ckpt.specs, ckpt["a"], ckpt.read("a", slice(1))
        ckpt.verify()
    """
    assert imported_by(textwrap.dedent(NUMPY_ONLY) + textwrap.dedent(code), HEAVY[:-2]) == []


def test_errors_are_made_without_jax():
    code = """
    for load in (
        lambda: bt.msgpack_loads(b"nonsense"),
        lambda: bt.msgpack_loads(bt.msgpack_dumps(tree), {"a": 1}),
        lambda: bt.msgpack_dumps({"f": object()}),
        lambda: bt.msgpack_load("no such file"),
    ):
        try:
            load()
        except bt.CheckpointError:
            pass
        else:
            raise SystemExit("no error")
    """
    assert imported_by(textwrap.dedent(NUMPY_ONLY) + textwrap.dedent(code), HEAVY[:-2]) == []


def test_a_legacy_file_is_read_and_written_without_jax():
    code = """
    data = bt.msgpack_dumps({"a": np.arange(3.0), "n": [1, 2]}, format="flax")
    assert (bt.msgpack_loads(data)["a"] == np.arange(3.0)).all()
    bt.msgpack_loads(data, {"a": np.zeros(3), "n": [0, 0]})
    """
    assert imported_by(textwrap.dedent(NUMPY_ONLY) + textwrap.dedent(code), HEAVY[:-2]) == []


def test_the_metadata_of_a_jax_file_is_read_without_jax(tmp_path):
    path = str(tmp_path / "x.msgpack")
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, jax.numpy as jnp, brainunit as u, braintools_ckpt as bt\n"
            "bt.msgpack_save(sys.argv[1], {'w': jnp.ones(3, 'bfloat16') * u.mV}, metadata={'step': 7})",
            path,
        ],
        check=True,
    )
    code = f"""
    import braintools_ckpt as bt
    with bt.open_checkpoint({path!r}) as ckpt:
        assert ckpt.metadata == {{"step": 7}}
        assert ckpt.paths == ["w"]
        assert ckpt.specs["w"].shape == (3,), ckpt.specs
        assert ckpt.specs["w"].unit == "mV", ckpt.specs
        repr(ckpt)
        ckpt.verify()
    """
    assert imported_by(code, HEAVY[:-2]) == []


# --- the test can fail --------------------------------------------------------------------------------------


def test_this_test_can_fail():
    assert imported_by("import braintools_ckpt, jax") == ["jax", "jaxlib", "ml_dtypes"]
    assert "brainunit" in imported_by("import brainunit")


def test_jax_comes_with_the_first_jax_array():
    code = """
    import braintools_ckpt as bt
    import sys
    assert "jax" not in sys.modules
    import jax.numpy as jnp
    bt.msgpack_loads(bt.msgpack_dumps(jnp.ones(3)))
    """
    found = imported_by(code)
    assert "jax" in found
    assert "brainunit" not in found
    assert "brainstate" not in found
