"""The tables, as Markdown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from . import bounds
from .cases import CASES
from .lineup import PEERS
from .results import MIB, ROWS, Number, Row, number, ratio, show
from .runner import TreeResults

_INTRODUCTION = """\
Medians of {rounds} rounds; each case, peer and round ran in a process of its own, peers in turn. Imports, the making of
trees and templates, and one save and load of a tiny tree are not timed. Caches are warm: what is loaded was read once
just before. Behind each number stands how many times ours it is: 3.0x took three times as long (or as much) as
braintools_ckpt. A dash is explained below its table; ¹ marks what was so slow that it ran once.

- *limit*: what the machine needs for the same bytes. Save: plain `write` from where the arrays lie. Load: `pread` by
  one thread into fresh memory; for small jax leaves, `jax.device_put` of the arrays alone. mmap: a view for each leaf.
  Async, numpy: a memcpy. Nothing about the arrays is recorded. flax has no async save of its own: it is a thread, and
  what changes meanwhile is written changed.
- *durable save*: the file, and the folder that names it, are on the disk. For libraries that do not wait for the disk,
  the benchmark syncs, and counts it; so it does for async saves in total. Orbax always waits.
- *load, jax template*: the result holds jax arrays. Libraries that give numpy arrays are followed by one
  `jax.device_put` of all of them, counted. braintools_ckpt (xxh3) and numpy.savez (CRC-32) check what they read.
- *a loop beside an async save*: how many times as long a step of a compiled loop (100,000 floats) takes while the save
  is written, blocking not counted.
- *peak memory*: resident pages above what was there before, the result included, and pages of mapped files, too.
"""


def markdown(results: Mapping[str, Any]) -> str:
    """Write the whole report."""
    trees: Mapping[str, TreeResults] = results["trees"]
    parts = ["# Benchmarks\n", _machine(results["machine"])]
    parts.append(_INTRODUCTION.format(rounds=results["rounds"]))
    if trees:
        parts.append("![The times of all libraries](benchmarks.png)\n")
    for tree in trees.values():
        parts += [f"## {tree.title[0].upper()}{tree.title[1:]}\n\n{tree.text}.\n", *_tree(tree)]
    parts += [f"Skipped: {text}.\n" for text in results.get("skipped", [])]
    if results.get("imports"):
        parts.append(_imports(results["imports"]))
    parts.append(_bounds(trees, results.get("imports")))
    return "\n".join(parts)


def _machine(machine: Mapping[str, str]) -> str:
    return "; ".join(f"{name} {text}" for name, text in machine.items()) + ".\n"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Write a table, its columns aligned."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |\n"
        for line in lines
    )


def _tree(tree: TreeResults) -> Iterator[str]:
    rows = [row for row in ROWS.values() if any(number(peer, row) for peer in tree.peers.values())]
    header = ["", *(PEERS[peer].title for peer in tree.peers)]
    spreads = [[row.title, *(_spread(number(peer, row), row) for peer in tree.peers.values())] for row in rows]
    lines = [[row.title, *(_cell(tree, peer, row) for peer in tree.peers)] for row in rows]
    if {"limit", "ours"} <= set(tree.peers):
        for line, row in zip([header, *lines], [None, *rows], strict=True):
            line.insert(3, "ours / limit" if row is None else _quotient(tree, "ours", "limit", row) or "-")
    yield table(header, lines)
    yield _reasons(tree)
    header = [title for title in header if title != "ours / limit"]
    yield f"<details><summary>Least and most of the rounds</summary>\n\n{table(header, spreads)}\n</details>\n"


def _cell(tree: TreeResults, peer: str, row: Row) -> str:
    found = number(tree.peers[peer], row)
    if found is None:
        return "-"
    once = "¹" if any(result.get("slow") for result in tree.peers[peer].cases.get(row.case, [])) else ""
    times = "" if peer in ("ours", "limit") else _quotient(tree, peer, "ours", row)
    return f"{show(found.median, row.key)}{once}{times and ' · '}{times}"


def _spread(found: Number | None, row: Row) -> str:
    return "-" if found is None else f"{show(found.least, row.key)} to {show(found.most, row.key)}"


def _quotient(tree: TreeResults, upper: str, lower: str, row: Row) -> str:
    """Write a ratio, where there are both numbers; that of two amounts of memory near none says nothing."""
    above, below = number(tree.peers[upper], row), number(tree.peers.get(lower), row)
    if above is None or below is None or (row.key == "memory" and below.median < MIB):
        return ""
    return ratio(above.median, below.median)


def _reasons(tree: TreeResults) -> str:
    """Say why there are dashes: cases with the same reason together."""
    lines = []
    for peer, found in tree.peers.items():
        reasons: dict[str, list[str]] = defaultdict(list)
        for case, reason in found.refused.items():
            reasons[reason].append(CASES[case].title)
        applicable = sum(tree.kind in CASES[case].trees for case in CASES if CASES[case].default)
        texts = [
            f"{'all' if len(titles) >= applicable else '*' + '*, *'.join(titles) + '*'}: {reason}"
            for reason, titles in reasons.items()
        ]
        if texts:
            lines.append(f"- {PEERS[peer].title}: {'; '.join(texts)}.\n")
    never = [case.title for case in CASES.values() if tree.kind not in case.trees]
    if never:
        lines.append(f"- Not measured with this tree: *{'*, *'.join(never)}*.\n")
    return ("Dashes:\n\n" + "".join(lines)) if lines else ""


def _imports(imports: Mapping[str, Any]) -> str:
    rows = [
        [name, f"{imports[key]['median'] * 1e3:.1f} ms", f"{imports[key]['least'] * 1e3:.1f} ms"]
        for name, key in (("python -c pass", "empty"), ("import braintools_ckpt", "ours"), ("import jax", "jax"))
    ]
    text = table(["whole process", "median", "least"], rows)
    return (
        f"## Import\n\n{text}\n`import braintools_ckpt` costs {imports['extra'] * 1e3:.1f} ms and imports "
        f"{imports['modules']} modules, {imports['jax_modules']} of them of jax.\n"
    )


def _bounds(trees: Mapping[str, TreeResults], imports: Mapping[str, Any] | None) -> str:
    rows = []
    for bound in bounds.check(trees, imports):
        value = "not measured" if bound.value is None else f"{bound.value:.4g} {bound.unit}"
        verdict = {None: "-", True: "ok", False: "**no**"}[bound.holds]
        rows.append([bound.what, value, f"{'>=' if bound.least else '<='} {bound.bound:.4g} {bound.unit}", verdict])
    note = "" if bounds.is_full_size(trees) else "The trees are smaller than those that the bounds are meant for.\n\n"
    return f"## Must show\n\n{note}{table(['what', 'value', 'bound', ''], rows)}"
