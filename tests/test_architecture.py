"""How the package hangs together: which module may know which, and what every public name tells about itself."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import sys
import types
from pathlib import Path

import pytest

import braintools_ckpt

ROOT = Path(braintools_ckpt.__file__).parent
PACKAGE = "braintools_ckpt"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
    if "__pycache__" not in path.parts
}

#: The layers, from below: a module knows its own layer and those below it.
LAYERS = [
    {"errors", "lockfree", "recursion", "warn"},
    {"claims", "dtypes", "threads", "walking"},
    {"document"},
    {"tree", "format", "storage"},
    {"arguments", "progress"},
    {"opening", "saving"},
    {"api"},
    {"async_manager", "at_exit", "checkpoint", "in_loop", "manager", "distributed", "convert"},
    {"cli"},
]
#: Within the layer in the middle, these do not know each other at all; but the format is written through storage.
ACROSS = {"format": {"storage"}, "tree": set(), "storage": set()}
#: Beside these, adapters know the library that they are for.
BELOW_ADAPTERS = {"tree", "document", "errors", "warn"}

#: The libraries that are not Python's own, and where they may be imported.
THIRD_PARTY = {
    "numpy": None,  # anywhere
    "msgpack": {"format", "tree"},
    "xxhash": {"format"},
    "zstandard": {"format"},
    "ml_dtypes": {"dtypes"},
    "tqdm": {"progress"},
    "jax": {"adapters.jax", "adapters.nnx"},
    "brainunit": {"adapters.brainunit"},
    "brainstate": {"adapters.brainstate", "adapters.brainpy", "adapters.braintools"},
    "braintools": {"adapters.braintools"},
    "flax": {"adapters.flax", "adapters.nnx"},
    "equinox": {"adapters.equinox"},
    "penzai": {"adapters.penzai"},
    "brainpy": {"adapters.brainpy"},
    "typing_extensions": {"storage"},  # for type checkers alone
}


class Import:
    """One import: by which module, of which, and whether it stands at the top, in a function, or for types alone."""

    def __init__(self, by: str, of: str, where: str, line: int) -> None:
        self.by, self.of, self.where, self.line = by, of, where, line

    def __repr__(self) -> str:
        return f"{self.by}:{self.line} imports {self.of} ({self.where})"


def imports_of(name: str, source: str, is_package: bool) -> list[Import]:
    """List the imports of a module; names within the package begin with a dot."""
    found: list[Import] = []

    def visit(node: ast.AST, where: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = where
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                inner = "function"
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                inner = "types"
            if isinstance(child, ast.Import):
                found.extend(Import(name, alias.name, where, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                found.extend(Import(name, target, where, child.lineno) for target in targets(child, name, is_package))
            visit(child, inner)

    visit(ast.parse(source), "top")
    return found


def targets(node: ast.ImportFrom, name: str, is_package: bool) -> list[str]:
    if not node.level:
        return [node.module or ""]
    base = name.split(".") if name else []
    base = base[: len(base) - (node.level - (1 if is_package else 0))]
    base += (node.module or "").split(".") if node.module else []
    prefix = ".".join(base)
    # ``from . import a`` names modules; ``from .a import b`` names b of the module a.
    names = [f"{prefix}.{alias.name}".lstrip(".") for alias in node.names]
    return ["." + (full if full in MODULES else prefix) for full in names]


ALL = [
    item
    for name, path in MODULES.items()
    if name != "__init__"
    for item in imports_of(name, path.read_text(), path.name == "__init__.py")
]


def part(module: str) -> str:
    return module.lstrip(".").partition(".")[0]


def layer(module: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if part(module) in names)


def points_down(item: Import) -> bool:
    """Tell whether an import within the package keeps to the layers."""
    by, of = part(item.by), part(item.of)
    if item.where == "types" or of in ("", "__init__"):  # the root holds nothing but the version
        return True
    if by == "adapters":  # and a library that is built on another may use what that one's does
        return of in BELOW_ADAPTERS or (item.by, item.of) in {
            ("adapters.brainpy", ".adapters.brainstate"),
            ("adapters.braintools", ".adapters.brainstate"),
        }
    if of == "adapters":
        return by in ("tree", "in_loop") and item.where == "function"
    if by == of:
        return True
    if layer(item.of) == layer(item.by):
        return of in ACROSS.get(by, {of})
    return layer(item.of) < layer(item.by)


def test_every_module_has_a_layer():
    known = set().union(*LAYERS) | {"adapters", "__init__", ""}
    assert {part(name) for name in MODULES} - known == set()


def test_imports_point_one_way():
    inside = [item for item in ALL if item.of.startswith(".")]
    assert len(inside) > 50
    assert [item for item in inside if not points_down(item)] == []


@pytest.mark.parametrize(
    ("by", "source"),
    [
        ("errors", "from .document import Document"),
        ("format.reader", "from ..tree.encode import encode"),
        ("storage.local", "from ..format import layout"),
        ("tree.merge", "from ..adapters.jax import place"),
        ("adapters.jax", "from ..format import layout"),
        ("tree.merge", "from ..api import msgpack_save"),
        ("document", "from . import api"),
    ],
)
def test_an_import_that_points_up_is_found(by, source):
    (item,) = imports_of(by, source, is_package=False)
    assert not points_down(item)


def test_no_module_imports_the_package_by_its_own_name():
    assert [item for item in ALL if item.of.partition(".")[0] == PACKAGE] == []


def test_only_the_allowed_libraries_are_imported():
    bad = []
    for item in ALL:
        library = item.of.partition(".")[0]
        if item.of.startswith(".") or library in sys.stdlib_module_names:
            continue
        allowed = THIRD_PARTY.get(library, set())
        if allowed is not None and not {item.by, part(item.by)} & allowed:
            bad.append(item)
        if library in ("ml_dtypes", "tqdm") and item.where != "function":
            bad.append(item)
        if library == "typing_extensions" and item.where != "types":
            bad.append(item)
    assert bad == []


def test_the_root_imports_nothing_but_on_demand():
    top = [i for i in imports_of("", (ROOT / "__init__.py").read_text(), True) if i.where == "top"]
    assert {item.of for item in top} == {"__future__", "importlib", "typing"}


# --- docstrings -----------------------------------------------------------------------------------------------


def modules() -> list[types.ModuleType]:
    names = [info.name for info in pkgutil.walk_packages([str(ROOT)], PACKAGE + ".")]
    return [braintools_ckpt, *map(importlib.import_module, names)]


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.__name__)
def test_every_module_and_what_is_public_in_it_has_a_docstring(module):
    assert module.__doc__
    missing = [
        name
        for name, item in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(item) or inspect.isfunction(item))
        and item.__module__ == module.__name__
        and not inspect.getdoc(item)
    ]
    assert missing == []


PUBLIC = [name for name in braintools_ckpt.__all__ if name != "__version__"]


def callables() -> dict[str, types.FunctionType]:
    found = {}
    for name in PUBLIC:
        item = getattr(braintools_ckpt, name)
        if inspect.isfunction(item):
            found[name] = item
        elif inspect.isclass(item) and not issubclass(item, Exception):
            methods = {n: f for n, f in vars(item).items() if inspect.isfunction(f) and not n.startswith("_")}
            found.update({f"{name}.{n}": f for n, f in methods.items()})
    return found


@pytest.mark.parametrize("name", callables())
def test_public_functions_say_what_they_take_and_give(name):
    function = callables()[name]
    text = inspect.getdoc(function) or ""
    first, *rest = text.split("\n")
    assert first.endswith("."), first
    assert not rest or rest[0] == ""
    signature = inspect.signature(function)
    parameters = [p for p in signature.parameters if p != "self"]
    refers = re.search(r"are those of :func:|As in :func:", text)  # to the function whose parameters these are
    if parameters and not refers:
        section = re.search(r"^Parameters\n-+\n(.*?)(?=\n\n\w+[\w ]*\n-+\n|\Z)", text, re.DOTALL | re.MULTILINE)
        assert section, "no section Parameters"
        heads = re.findall(r"^(\S.*?)(?: : .*)?$", section[1], re.MULTILINE)
        documented = {word.strip(" *") for head in heads for word in head.split(",")}
        assert set(parameters) - documented == set()
    returns = signature.return_annotation
    if returns not in (None, "None", "Self", inspect.Signature.empty) and not refers:
        assert re.search(r"^Returns\n-+$", text, re.MULTILINE), "no section Returns"


@pytest.mark.parametrize("name", [name for name in callables() if "." not in name])
def test_public_functions_have_an_example(name):
    assert ">>> " in (inspect.getdoc(callables()[name]) or "")


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.__name__)
def test_the_examples_run(module):
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL
    result = doctest.testmod(module, optionflags=flags)
    assert result.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    assert sum(len(test.examples) for module in modules() for test in finder.find(module)) > 40


# --- sizes: reported, not held --------------------------------------------------------------------------------


def test_sizes_are_reported(record_property, capsys):
    lines = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    functions = [
        (node.end_lineno - node.lineno + 1, f"{name}.{node.name}")
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    ordered, sizes = sorted(lines.values()), sorted(functions)
    report = {
        "files": len(lines),
        "median file": ordered[len(ordered) // 2],
        "files over 400 lines": {name: n for name, n in lines.items() if n > 400},
        "median function": sizes[len(sizes) // 2][0],
        "longest functions": sizes[-3:],
    }
    for key, item in report.items():
        record_property(key, item)
    print(report)
    assert "longest functions" in capsys.readouterr().out
