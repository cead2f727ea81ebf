"""What is measured: each case is one action of a peer, on a scene that was prepared outside of the timing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .trees import Kind, Specs, Tree

if TYPE_CHECKING:
    from .peers import Peer


class Unsupported(Exception):  # noqa: N818  (it is an answer, not an error)
    """A peer cannot do a case; the message says why."""


@dataclass
class Scene:
    """What an action needs."""

    tree: Tree
    specs: Specs
    #: Where the file stands that is loaded.
    path: Path
    #: Where to save to; nothing stands there.
    out: Path
    #: The tree to save, or the template to load into.
    live: Any
    #: The peer's own preparation of it.
    ready: Any = None
    marks: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        #: The name of the leaf that is read alone.
        self.leaf = self.tree.pick(self.specs)


Action = Callable[["Peer", Scene], Any]


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    ``live`` says what is made beforehand; ``checks`` whether the result has to equal the tree (``leaf``: that leaf).
    """

    name: str
    title: str
    live: Literal["tree", "jax", "numpy", None]
    action: Action
    checks: Literal["tree", "leaf", None] = None
    #: The title of the row of peak memory, if it gets one.
    memory: str | None = None
    trees: tuple[Kind, ...] = ("jax", "numpy", "state")
    default: bool = True

    @property
    def saves(self) -> bool:
        return self.live == "tree"


def _save(peer: Peer, scene: Scene) -> None:
    if peer.synced:
        raise Unsupported("always waits for the disk: see the durable save")
    peer.save(scene, durable=False)


def _save_durable(peer: Peer, scene: Scene) -> None:
    peer.save(scene, durable=True)


def _save_async(peer: Peer, scene: Scene) -> None:
    start = time.perf_counter()
    wait = peer.save_async(scene)
    scene.marks["blocked"] = time.perf_counter() - start
    wait()


def _loop(peer: Peer, scene: Scene) -> None:
    """Run a compiled loop alone, and while a save is written."""
    import jax
    import jax.numpy as jnp

    step = jax.jit(lambda x: jnp.sin(x) * jnp.exp(-x * x) + 0.5)
    step(jnp.ones(100_000)).block_until_ready()
    end = time.perf_counter() + 1
    alone = _pace(step, lambda: time.perf_counter() > end)
    wait = peer.save_async(scene)
    waiting = threading.Thread(target=wait)
    waiting.start()
    scene.marks["slower"] = _pace(step, lambda: not waiting.is_alive()) / alone
    waiting.join()


def _pace(step: Callable[[Any], Any], is_over: Callable[[], bool]) -> float:
    """Give the seconds of a step."""
    import jax.numpy as jnp

    x = jnp.ones(100_000)
    count, start = 0, time.perf_counter()
    while count == 0 or not is_over():
        x = step(x).block_until_ready()
        count += 1
    return (time.perf_counter() - start) / count


def _load_jax(peer: Peer, scene: Scene) -> Any:
    import jax

    loaded = peer.load_jax(scene)
    if scene.tree.kind == "state" and peer.exact:
        jax.block_until_ready({name: state.value for name, state in loaded.items()})
        return loaded
    return jax.block_until_ready(loaded)


def _load_free(peer: Peer, scene: Scene) -> Any:
    loaded = peer.load_free(scene)
    if scene.tree.kind == "jax":
        import jax

        jax.block_until_ready(loaded)
    return loaded


CASES = {
    case.name: case
    for case in (
        Case("save", "save", "tree", _save, memory="save"),
        Case("save_durable", "durable save", "tree", _save_durable),
        Case("load_jax", "load, jax template", "jax", _load_jax, "tree", "load, jax template", ("jax", "state")),
        Case(
            "load_numpy",
            "load, numpy template",
            "numpy",
            lambda peer, scene: peer.load_numpy(scene),
            "tree",
            "load, numpy template",
        ),
        Case("load_free", "load, no template", None, _load_free, "tree", "load, no template"),
        Case("load_mmap", "load, memory-mapped", None, lambda peer, scene: peer.load_mmap(scene), "tree", "load, mmap"),
        Case("load_leaf", "load one leaf", None, lambda peer, scene: peer.load_leaf(scene), "leaf"),
        Case("open_list", "open and list", None, lambda peer, scene: peer.open_list(scene)),
        Case("save_async", "async save", "tree", _save_async, memory="async save"),
        Case("loop", "a loop beside an async save", "tree", _loop),
        # Not measured unless asked for: `--cases +save_compressed`.
        Case(
            "save_compressed",
            "compressed save",
            "tree",
            lambda peer, scene: peer.save_compressed(scene),
            default=False,
        ),
    )
}
