"""The command line: ``python -m benchmarks [suite|import|scaling|phases|managers|report] [options]``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .cases import CASES
from .lineup import PEERS
from .runner import PeerResults, Settings, TreeResults, announce, measure_tree, merged, usable
from .trees import TREES, Tree

_COMMANDS = ("suite", "import", "scaling", "phases", "managers", "report")
_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def main(arguments: list[str]) -> None:
    """Run a command."""
    if arguments[:1] == ["worker"]:
        _worker(arguments[1])
        return
    if not arguments or (arguments[0] not in _COMMANDS and arguments[0] not in ("-h", "--help")):
        arguments = ["suite", *arguments]
    options = _parser().parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    commands = {"suite": _suite, "import": _import, "scaling": _scaling, "phases": _phases, "managers": _managers}
    {**commands, "report": _report}[options.command](options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure braintools_ckpt against its peers and the machine."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    suite = commands.add_parser("suite", help="all trees, cases and peers (the default)")
    suite.add_argument("--peers", nargs="+", default=list(PEERS), help=f"of {', '.join(PEERS)}")
    default = [name for name, case in CASES.items() if case.default]
    suite.add_argument("--cases", nargs="+", default=default, help=f"of {', '.join(CASES)}; +CASE adds to the default")
    suite.add_argument("--patience", type=float, default=20.0, help="what takes more seconds is not repeated")
    suite.add_argument("--keep", action="store_true", help="keep other results that stand in the folder")
    scaling = commands.add_parser("scaling", help="time against bytes and leaves")
    scaling.add_argument("--size", type=_bytes, default=8 << 30, help="the most bytes")
    scaling.add_argument("--leaves", type=int, default=1_000_000, help="the most leaves")
    phases = commands.add_parser("phases", help="where the time goes: ours, by phase")
    for command in (suite, phases):
        command.add_argument("--size", type=_bytes, default=1 << 30, help="bytes of the large trees, such as 32MiB")
        command.add_argument("--shrink", type=int, default=1, help="divide the leaves of the other trees by this")
        command.add_argument("--trees", nargs="+", default=list(TREES), help=f"of {', '.join(TREES)}")
    managers = commands.add_parser("managers", help="runs with a CheckpointManager: ours, and Orbax's")
    managers.add_argument("--size", type=_bytes, default=1 << 28, help="bytes that do not change")
    managers.add_argument("--steps", type=int, nargs="+", default=[1000], help="steps in a directory")
    importing = commands.add_parser("import", help="the time of `import braintools_ckpt`")
    report = commands.add_parser("report", help="write the report of results.json anew")
    for command in (suite, scaling, phases, managers, importing, report):
        command.add_argument("--out", type=Path, default=Path("benchmark-results"), help="the folder for results")
    for command in (suite, scaling, phases, managers):
        command.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), help="where to save")
    for command in (suite, scaling, phases):
        command.add_argument("--timeout", type=float, default=400.0, help="the most seconds of one process")
    for command, rounds in ((suite, 3), (scaling, 3), (phases, 3), (managers, 9), (importing, 15)):
        command.add_argument("--rounds", type=int, default=rounds)
    return parser


def _bytes(text: str) -> int:
    digits = text.rstrip("BKMGibkmg")
    return int(float(digits) * _UNITS[text[len(digits) :].upper()])


def _worker(job: str) -> None:
    """Do one job; the last line of the output is the result, whatever libraries print."""
    from .worker import Job, run

    result = run(Job.loads(job))
    print(f"\n{json.dumps(result)}", flush=True)
    os._exit(0)  # threads of libraries have nothing more to do


def _suite(options: argparse.Namespace) -> None:
    from . import importing
    from .machine import describe

    default = [name for name, case in CASES.items() if case.default]
    added = [name[1:] for name in options.cases if name.startswith("+")]
    named = [name for name in options.cases if not name.startswith("+")]
    cases = [*(named or default), *added]
    settings = Settings(
        usable(options.peers, list(PEERS), "peers"),
        usable(cases, list(CASES), "cases"),
        options.rounds,
        options.directory,
        options.timeout,
        options.patience,
    )
    known: dict[str, TreeResults] = _load(options.out)["trees"] if options.keep else {}
    trees = dict(known)
    results: dict[str, Any] = {
        "machine": describe(options.directory),
        "rounds": options.rounds,
        "trees": trees,
        "skipped": [],
        "imports": importing.measure(15),
    }
    for name in usable(options.trees, list(TREES), "trees"):
        tree = TREES[name]
        if missing := tree.missing():
            results["skipped"].append(f"{tree.title}: {missing}")
            continue
        amount = _amount(tree, options)
        announce(tree, amount, settings)

        def keep(found: TreeResults, name: str = name) -> None:
            trees[name] = merged(known.get(name), found)
            _store(options.out, results)

        measure_tree(tree, amount, settings, keep)
    _store(options.out, results)
    _report(options)


def _amount(tree: Tree, options: argparse.Namespace) -> int:
    if tree.unit == "bytes":
        return int(options.size)
    return tree.amount if tree.unit == "fixed" else max(1, tree.amount // options.shrink)


def _store(folder: Path, results: dict[str, Any]) -> None:
    plain = {**results, "trees": {name: asdict(tree) for name, tree in results["trees"].items()}}
    (folder / "results.json").write_text(json.dumps(plain, indent=1) + "\n")


def _load(folder: Path) -> dict[str, Any]:
    file = folder / "results.json"
    if not file.exists():
        return {"trees": {}}
    results: dict[str, Any] = json.loads(file.read_text())
    for name, tree in results["trees"].items():
        peers = {peer: PeerResults(**found) for peer, found in tree.pop("peers").items()}
        results["trees"][name] = TreeResults(**tree, peers=peers)
    order = [name for name in TREES if name in results["trees"]]
    return {**results, "trees": {name: results["trees"][name] for name in order}}


def _report(options: argparse.Namespace) -> None:
    from . import plot, report

    results = _load(options.out)
    text = report.markdown(results)
    (options.out / "benchmarks.md").write_text(text)
    if results["trees"]:
        plot.draw(results["trees"], options.out / "benchmarks.png")
    print(text)


def _import(options: argparse.Namespace) -> None:
    from . import importing

    found = importing.measure(options.rounds)
    (options.out / "import.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def _scaling(options: argparse.Namespace) -> None:
    from . import scaling
    from .machine import describe

    points: list[scaling.Point] = []
    notes: list[str] = []
    steps = scaling.amounts(options.size, options.leaves)
    for found in scaling.measure(options.directory, options.rounds, options.timeout, steps):
        if isinstance(found, str):
            notes.append(found)
        else:
            points.append(found)
        print(found, file=sys.stderr, flush=True)
    machine = describe(options.directory)
    stored = {"machine": machine, "points": [asdict(point) for point in points], "notes": notes}
    (options.out / "scaling.json").write_text(json.dumps(stored, indent=1) + "\n")
    text = scaling.markdown(points, notes)
    (options.out / "scaling.md").write_text(text)
    scaling.draw(points, options.out / "scaling.png")
    print(text)


def _phases(options: argparse.Namespace) -> None:
    from . import phases

    names = [name for name in usable(options.trees, list(TREES), "trees") if TREES[name].missing() is None]
    amounts = {name: _amount(TREES[name], options) for name in names}
    found = phases.measure(names, amounts, options.directory, options.rounds, options.timeout)
    text = phases.markdown(list(found))
    (options.out / "phases.md").write_text(text)
    print(text)


def _managers(options: argparse.Namespace) -> None:
    from . import managing

    unchanging = list(managing.unchanged(options.directory, options.size, options.rounds))
    filled = [cost for count in options.steps for cost in managing.many(options.directory, count, options.rounds)]
    text = managing.markdown(unchanging, filled, options.size)
    (options.out / "managers.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
