"""The tables as a picture: one panel a tree, one line a case, one dot a library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .lineup import PEERS
from .results import ROWS, find
from .runner import TreeResults

_SHOWN = (
    "save.seconds",
    "save_durable.seconds",
    "save_async.blocked",
    "load_jax.seconds",
    "load_numpy.seconds",
    "load_free.seconds",
    "load_mmap.seconds",
    "load_leaf.seconds",
    "open_list.seconds",
)

#: Too much like the colour of ours.
_RED = (0.8392156862745098, 0.15294117647058825, 0.1568627450980392)


def draw(trees: Mapping[str, TreeResults], path: Path) -> None:
    """Draw the times of all trees into a PNG file."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(2, len(trees))
    lines = -(-len(trees) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(7 * columns, 3.6 * lines + 0.8), squeeze=False)
    for axis, tree in zip(axes.flat, trees.values(), strict=False):
        _panel(axis, tree)
    for axis in axes.flat[len(trees) :]:
        axis.set_axis_off()
    handles = {label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels())}  # noqa: B905
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=6, frameon=False)
    figure.tight_layout(rect=(0, 0.8 / (3.6 * lines + 0.8), 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _panel(axis: Any, tree: TreeResults) -> None:
    import matplotlib as mpl
    from matplotlib.ticker import NullFormatter

    names = [name for name in _SHOWN if any(find(tree, peer, name) for peer in tree.peers)]
    colors = [color for color in mpl.color_sequences["tab10"] if color != _RED]
    others = [peer for peer in PEERS if peer not in ("limit", "ours")]
    for peer in sorted(tree.peers, key=lambda name: name == "ours"):  # ours on top
        found = [(find(tree, peer, name), place) for place, name in enumerate(names)]
        x = [value.median for value, _ in found if value]
        y = [place for value, place in found if value]
        label = PEERS[peer].title.strip("*")
        if peer == "limit":
            axis.plot(x, y, "|", color="black", markersize=22, label=label)
        elif peer == "ours":
            axis.plot(x, y, "D", color="crimson", markersize=8, label=label)
        else:
            axis.plot(x, y, "o", color=colors[others.index(peer) % len(colors)], markersize=5, alpha=0.85, label=label)
    axis.set_yticks(range(len(names)), [ROWS[name].title for name in names])
    if names:  # a log scale needs a number
        axis.set_xscale("log")
        axis.set_ylim(len(names) - 0.5, -0.5)
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("seconds")
    axis.grid(axis="both", alpha=0.3)
    axis.set_title(f"{tree.title}\n{tree.text}", fontsize=10)
