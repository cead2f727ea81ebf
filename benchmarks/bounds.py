"""What has to hold: the bounds that were set, checked against the numbers of one run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .results import MIB, find
from .runner import TreeResults
from .trees import TREES

_BIG = ("f32", "bf16")


class Bound(NamedTuple):
    """A value that may be at most (or at least) its bound."""

    what: str
    value: float | None
    bound: float
    unit: str
    least: bool = False

    @property
    def holds(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.bound if self.least else self.value <= self.bound


Trees = Mapping[str, TreeResults]


def check(trees: Trees, imports: Mapping[str, Any] | None) -> list[Bound]:
    """Check all bounds; the value is None where a number is missing."""
    bounds = [*_large(trees), *_small(trees)]
    if imports is not None:
        bounds.append(Bound("import braintools_ckpt", imports["extra"] * 1e3, 60, "ms"))
        bounds.append(Bound("import braintools_ckpt: modules of jax", float(imports["jax_modules"]), 0, ""))
    return bounds


def _large(trees: Trees) -> Iterator[Bound]:
    for tree in (name for name in _BIG if name in trees):
        for case in ("save", "save_durable"):
            yield _ratio(trees, tree, case, "limit", 1.1)
        yield _faster(trees, tree, "save", "braintools", 6)
        yield _ratio(trees, tree, "load_jax", "limit", 1.0)
        yield _faster(trees, tree, "load_jax", "safetensors.flax", 2.5)
        yield _value(trees, tree, "load_mmap.seconds", 1e3, 20, "ms")
        yield _value(trees, tree, "load_mmap.memory", 1 / MIB, 64, "MiB")
        yield _value(trees, tree, "save.memory", 1 / MIB, 64, "MiB")
        yield _value(trees, tree, "load_jax.memory", 1 / MIB, trees[tree].payload / MIB + 64, "MiB")
        yield _blocked(trees, tree)
    if "numpy8" in trees:
        blocked = _quotient(trees, "numpy8", "save_async.blocked", "ours", "limit")
        yield Bound("numpy8: async save, blocked / memcpy", blocked, 1.5, "x")
    if "bf16" in trees:
        yield _value(trees, "bf16", "load_leaf.seconds", 1e3, 10, "ms")


def _small(trees: Trees) -> Iterator[Bound]:
    if "numpy100k" in trees:
        yield _ratio(trees, "numpy100k", "save", "flax", 0.5)
        yield _ratio(trees, "numpy100k", "load_numpy", "flax", 0.7)
        yield _ratio(trees, "numpy100k", "load_free", "flax", 0.7)
    if "jax20k" in trees:
        yield _ratio(trees, "jax20k", "save", "flax", 0.7)
        yield _ratio(trees, "jax20k", "load_jax", "limit", 1.15)
    if "simulation" in trees:
        for case in ("save", "load_jax", "load_numpy"):
            yield _faster(trees, "simulation", case, "braintools", 2)
    for tree, results in trees.items():
        if find(results, "ours", "save_compressed.seconds"):
            yield _faster(trees, tree, "save_compressed", "savez", 8)
            yield _ratio(trees, tree, "save_compressed", "savez", 1.0, "size")


def _quotient(trees: Trees, tree: str, name: str, upper: str, lower: str) -> float | None:
    above, below = find(trees[tree], upper, name), find(trees[tree], lower, name)
    return None if above is None or below is None or not below.median else above.median / below.median


def _ratio(trees: Trees, tree: str, case: str, peer: str, bound: float, key: str = "seconds") -> Bound:
    value = _quotient(trees, tree, f"{case}.{key}", "ours", peer)
    return Bound(f"{tree}: {case}, ours / {peer}{'' if key == 'seconds' else f' ({key})'}", value, bound, "x")


def _faster(trees: Trees, tree: str, case: str, peer: str, bound: float) -> Bound:
    value = _quotient(trees, tree, f"{case}.seconds", peer, "ours")
    return Bound(f"{tree}: {case}, {peer} / ours", value, bound, "x", least=True)


def _value(trees: Trees, tree: str, name: str, factor: float, bound: float, unit: str) -> Bound:
    found = find(trees[tree], "ours", name)
    what = "one leaf of 1 MiB" if name == "load_leaf.seconds" else name.replace(".seconds", "").replace(".", ", ")
    return Bound(f"{tree}: {what}", None if found is None else found.median * factor, bound, unit)


def _blocked(trees: Trees, tree: str) -> Bound:
    blocked = find(trees[tree], "ours", "save_async.blocked")
    whole = find(trees[tree], "ours", "save_durable.seconds")
    value = None if blocked is None or whole is None else 100 * blocked.median / whole.median
    return Bound(f"{tree}: async save, blocked / durable save", value, 1.0, "%")


def is_full_size(trees: Trees) -> bool:
    """Tell whether the trees have the sizes that the bounds are meant for."""
    return all(
        results.text == TREES[name].describe(TREES[name].amount)
        for name, results in trees.items()
        if not TREES[name].missing()
    )
