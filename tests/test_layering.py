"""Who may import whom. ORDER is the one home of the order: a new module takes its place in it.

Imports inside functions count, because they too make one module need another; those under TYPE_CHECKING as well.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A module imports only what stands above it. A package stands for all modules in it that have no place of their own;
# they import each other in any order but without cycles.
ORDER = (
    "errors",
    "prep.shape",
    "tensors",
    "prep.slot",
    "prep.layout",
    "files",
    "address",
    "checkpoint.safetensors_header",
    "fusion.watch",
    "fusion.plan",
    "fusion.fold",
    "checkpoint.formats",
    "checkpoint.load",
    "families",
    "families.registry",
    "prep.file",
    "checkpoint.export",
    "packing",
    "figures",
    "running.stacking",
    "running.instances",
    "zoo",
    "tasks",
    "zoo.change.verify",
    "zoo.change.convert",  # verifies what it wrote
    "zoo.change.merge",
    "zoo.change.cutting",
    "zoo.card.picture",
    "licence",
    "zoo.card.card",
    "training",
    "hub",
    "api",
    "cli",
)

# What `prepkit --help`, `arch list` and `zoo info` import: none of it may import a heavy module before it is used.
LIGHT = (
    "errors",
    "prep.shape",
    "tensors",
    "prep.slot",
    "prep.layout",
    "files",
    "checkpoint.safetensors_header",
    "checkpoint.formats",
    "checkpoint.load",
    "families",
    "families.table",
    "families.importing",
    "families.architecture",
    "families.registry",
    "prep.file",
    "checkpoint.export",
    "figures",
    "hub",
    "address",
    "zoo",
    "zoo.format.counts",
    "zoo.format.manifest",
    "zoo.format.paths",
    "cli",
    "cli.arch",
    "cli.common",
    "cli.hub",
    "cli.models",
    "cli.pack",
    "cli.train",
    "cli.zoo",
    "cli.zoo_text",
)
HEAVY = {
    "torch",
    "numpy",
    "scipy",
    "h5py",
    "pyarrow",
    "matplotlib",
    "sklearn",
    "skimage",
    "datasets",
    "huggingface_hub",
    "safetensors",
    "ray",
    "tqdm",
}


@dataclass(frozen=True)
class Import:
    """One imported module or name: `target` is `a.b` for `import a.b`, and `a.b.c` for `from a.b import c`."""

    target: str
    line: int
    eager: bool  # run when the importing module is imported
    typing: bool  # for type checkers only


def module_files(package: Path) -> dict[str, Path]:
    """Dotted name -> file of all modules of a package, the package itself among them."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(module: str, path: Path) -> Iterator[Import]:
    """All imports of a module, wherever they stand."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    pending: list[tuple[ast.AST, bool, bool]] = [(ast.parse(path.read_text(encoding="utf-8")), True, False)]
    while pending:
        node, eager, typing = pending.pop()
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, eager, typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module
            yield from (Import(f"{base}.{alias.name}", node.lineno, eager, typing) for alias in node.names)
        late = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing = typing or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        pending += [(child, eager and not late and not typing, typing) for child in ast.iter_child_nodes(node)]


def owner(target: str, modules: dict[str, Path]) -> str | None:
    """The module of ours that an imported name comes from."""
    while target and target not in modules:
        target = target.rpartition(".")[0]
    return target or None


def place(module: str) -> int:
    """Position in ORDER of a module or of the package it is in; -1 if it has none."""
    name = module.partition(".")[2]
    matches = [entry for entry in ORDER if name == entry or name.startswith(f"{entry}.")]
    return ORDER.index(max(matches, key=len)) if matches else -1


def faults(package: Path) -> list[str]:
    """All imports of a package laid out like prepkit that break the order."""
    modules = module_files(package)
    root = package.name
    found = []
    for module, path in modules.items():
        if module == root:
            continue  # the public names come from everywhere
        if place(module) < 0:
            found.append(f"{module} has no place in ORDER")
        for item in imports_of(module, path):
            source = owner(item.target, modules)
            if item.target == f"{root}.__version__":
                continue  # the one thing that the package itself defines
            where = f"{module}:{item.line} imports {item.target}"
            if item.target.partition(".")[0] == "netspace":
                found.append(f"{where}, but {root} stands alone")
            if source == root:
                found.append(f"{where} from the public names, which come from everywhere")
            elif source and place(source) > place(module):
                found.append(f"{where}, which stands below it")
            if source and item.target.rpartition(".")[2].startswith("_"):
                found.append(f"{where}, which is private")
    return found


def cycle(package: Path) -> list[str]:
    """Modules that import each other in a circle, empty if there is none; a type alone may be named both ways."""
    modules = module_files(package)
    graph = {
        module: {owner(item.target, modules) for item in imports_of(module, path) if not item.typing}
        - {None, module, package.name}
        for module, path in modules.items()
        if module != package.name
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def weights(package: Path) -> list[str]:
    """Imports that make light modules heavy: of a heavy library, or of a module that is not light."""
    modules = module_files(package)
    light = {f"{package.name}.{name}" for name in LIGHT} | {package.name}
    found = []
    for module in sorted(light & modules.keys()):
        for item in imports_of(module, modules[module]):
            library, source = item.target.partition(".")[0], owner(item.target, modules)
            if item.eager and (library in HEAVY or (source and source not in light)):
                found.append(f"{module}:{item.line} imports {item.target} when it is imported itself")
    return found


# The rules ----------------------------------------------------------------------------------------------------


def test_modules_import_only_what_stands_above_them() -> None:
    assert faults(ROOT / "prepkit") == []


def test_no_module_needs_itself() -> None:
    assert cycle(ROOT / "prepkit") == []


def test_light_modules_import_nothing_heavy() -> None:
    assert weights(ROOT / "prepkit") == []


def test_importing_all_light_modules_loads_nothing_heavy() -> None:
    present = [f"prepkit.{name}" for name in LIGHT if f"prepkit.{name}" in module_files(ROOT / "prepkit")]
    code = f"import sys, {', '.join(present)}; print(*(name for name in {sorted(HEAVY)} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_netspace_uses_public_names_only() -> None:
    private = [
        f"{module}:{item.line} imports {item.target}"
        for module, path in module_files(ROOT / "netspace").items()  # none where the folder was left out
        for item in imports_of(module, path)
        if item.target.partition(".")[0] == "prepkit" and any(part.startswith("_") for part in item.target.split("."))
    ]
    assert private == []


# The rules find what breaks them --------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package like prepkit that keeps all rules."""
    sources = {
        "__init__.py": "from prepkit.cli import main",
        "errors.py": "import json",
        "layout.py": "from prepkit.errors import E\ndef f():\n    import torch",
        "registry.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor",
        "packing.py": "import torch\nfrom prepkit import layout\nfrom .registry import detect",
        "zoo/__init__.py": "",
        "zoo/paths.py": "from prepkit.errors import E",
        "cli/__init__.py": "from prepkit.cli import common\ndef f():\n    from prepkit.packing import pack",
        "cli/common.py": "from prepkit import errors",
    }
    for name, source in sources.items():
        path = tmp_path / "prepkit" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return tmp_path / "prepkit"


def test_a_package_that_keeps_the_rules(package: Path) -> None:
    assert (faults(package), cycle(package), weights(package)) == ([], [], [])


@pytest.mark.parametrize(
    ("file", "source", "fault"),
    [
        (
            "errors.py",
            "from prepkit.prep.layout import Layout",
            "errors:1 imports prepkit.prep.layout.Layout, which stands below",
        ),
        ("errors.py", "def f():\n    import prepkit.cli", "errors:2 imports prepkit.cli, which stands below"),
        (
            "errors.py",
            "class A:\n  def f(self):\n    from . import registry",
            "errors:3 imports prepkit.families.registry, which",
        ),
        ("zoo/paths.py", "from ..cli import main", "zoo.paths:1 imports prepkit.cli.main, which stands below"),
        ("zoo/paths.py", "from prepkit import Layout", "paths:1 imports prepkit.Layout from the public names"),
        ("zoo/paths.py", "import prepkit", "paths:1 imports prepkit from the public names"),
        ("zoo/paths.py", "import netspace.space.network", "imports netspace.space.network, but prepkit stands alone"),
        (
            "zoo/paths.py",
            "from prepkit.prep.layout import _secret",
            "imports prepkit.prep.layout._secret, which is private",
        ),
        ("novelty.py", "", "prepkit.novelty has no place in ORDER"),
    ],
)
def test_what_breaks_the_order_is_found(file: str, source: str, fault: str, package: Path) -> None:
    (package / file).write_text(source)
    (found,) = faults(package)
    assert fault in found


def test_a_cycle_of_types_alone_is_none(package: Path) -> None:
    (package / "zoo/paths.py").write_text("if TYPE_CHECKING:\n    from prepkit.zoo.read.store import Store")
    (package / "zoo/store.py").write_text("from prepkit.zoo.format.paths import f")
    assert (faults(package), cycle(package)) == ([], [])


def test_a_cycle_is_found(package: Path) -> None:
    (package / "zoo/paths.py").write_text("def f():\n    from prepkit.zoo import store")
    (package / "zoo/store.py").write_text("from prepkit.zoo.format.paths import f")
    assert faults(package) == []
    assert set(cycle(package)) == {"prepkit.zoo.format.paths", "prepkit.zoo.read.store"}


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("errors.py", "import numpy as np"),
        ("errors.py", "try:\n    from torch import nn\nexcept ImportError:\n    pass"),
        ("cli/common.py", "from prepkit.packing import pack_checkpoint"),
        ("cli/common.py", "class A:\n    import h5py"),
    ],
)
def test_what_makes_a_light_module_heavy_is_found(file: str, source: str, package: Path) -> None:
    (package / file).write_text(source)
    assert len(weights(package)) == 1


def test_a_fault_in_reality_would_be_found(tmp_path: Path) -> None:
    """The files that the rules look at are the ones that are installed."""
    import prepkit

    assert prepkit.__file__ is not None
    assert Path(prepkit.__file__).parent.samefile(ROOT / "prepkit")
    assert len(module_files(ROOT / "prepkit")) > 25
