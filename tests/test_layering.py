"""Who may import whom. ORDERS is the one home of both packages' order: a new module takes its place in it.

Imports inside functions count, because they too make one module need another; those for type checkers count as well.
A module whose name starts with an underscore is private to the folder that it stands in.
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

import prepkit

ROOT = Path(__file__).parent.parent

# A module imports only what stands above it. A folder stands for all modules in it that have no place of their own;
# they import each other in any order but without circles.
ORDERS = {
    "prepkit": (
        "version",
        "program",
        "errors",
        "support",
        "tensors",
        "address",
        "licence",
        "checkpoint",
        "prep",
        "figures",
        "fusion",
        "families",
        "symmetry",
        "tasks",
        "running",
        "views",
        "casting",
        "packing",
        "zoo",
        "zoo.format",
        "zoo.read",
        "zoo.card",
        "zoo.write",
        "zoo.importers",
        "zoo.change",
        "zoo.opened",
        "training",
        "hub",
        "api",
        "benching",
        "inspecting",
        "auditing",
        "browsing",
        "cli",
        "__main__",
    ),
    "netspace": (
        "recipes",
        "recipe",
        "data",
        "alignment",
        "space",
        "run",
        "training",
        "explore",
        "experiments",
        "report",
        "cli",
        "__main__",
    ),
}

# All of prepkit that netspace may import beside the public names. Each is general: none of it is there for netspace.
OPEN_TO_NETSPACE = {
    "prepkit.address",
    "prepkit.auditing.novelty",
    "prepkit.auditing.novelty_report",
    "prepkit.auditing.novelty_result",
    "prepkit.checkpoint.export",
    "prepkit.cli.allocator",
    "prepkit.cli.colour",
    "prepkit.cli.common",
    "prepkit.cli.completion",
    "prepkit.cli.examples",
    "prepkit.cli.hub",
    "prepkit.cli.output",
    "prepkit.cli.verbosity",
    "prepkit.support.background",
    "prepkit.support.bootstrap",
    "prepkit.support.device",
    "prepkit.support.graphs",
    "prepkit.errors",
    "prepkit.figures",
    "prepkit.support.files",
    "prepkit.hub.bundle",
    "prepkit.hub.snapshot",
    "prepkit.hub.upload",
    "prepkit.support.json_values",
    "prepkit.support.lazy",
    "prepkit.licence",
    "prepkit.support.lock",
    "prepkit.support.logs",
    "prepkit.support.markdown",
    "prepkit.support.processes",
    "prepkit.program",
    "prepkit.support.progress",
    "prepkit.support.reading",
    "prepkit.running.groups",
    "prepkit.running.instance_losses",
    "prepkit.running.instances",
    "prepkit.running.likeness",
    "prepkit.support.signals",
    "prepkit.symmetry.aligning",
    "prepkit.support.statistics",
    "prepkit.support.table_files",
    "prepkit.tasks.chairs",
    "prepkit.tasks.distance_grid",
    "prepkit.tasks.images",
    "prepkit.tasks.randomness",
    "prepkit.tasks.shape_measures",
    "prepkit.support.text",
    "prepkit.version",
    "prepkit.zoo.format.manifest",
    "prepkit.zoo.read.accuracy",
    "prepkit.zoo.read.groups",
    "prepkit.zoo.read.memory",
    "prepkit.zoo.read.overlap",
}

# What `prepkit --help`, `arch list` and `zoo info` import: none of it may import a heavy module before it is used.
LIGHT = (
    "support.lazy",
    "version",
    "errors",
    "support",
    "support.text",
    "support.json_values",
    "support.files",
    "support.reading",
    "support.signals",
    "support.progress",
    "program",
    "__main__",
    "address",
    "tensors",
    "checkpoint",
    "checkpoint.formats",
    "checkpoint.opening",
    "checkpoint._beside",
    "checkpoint._inert",
    "checkpoint.sharded",
    "checkpoint._torch_files",
    "checkpoint.load",
    "checkpoint.export",
    "checkpoint.objects",
    "checkpoint.safetensors_header",
    "casting",
    "prep",
    "prep.slot",
    "prep.shape",
    "prep.contents",
    "prep.layout",
    "prep.file",
    "figures",
    "families",
    "families.table",
    "families.importing",
    "families.architecture",
    "families.registry",
    "families.detection",
    "hub",
    "zoo",
    "zoo.format",
    "zoo.format.counts",
    "zoo.format.appends",
    "zoo.format.drawn_split",
    "zoo.format.function",
    "zoo.format.manifest",
    "zoo.format.paths",
    "zoo.format.split_rule",
    "cli",
    "cli.allocator",
    "cli.adapters",
    "cli.aligning",
    "cli.arch",
    "cli.auditing",
    "cli.batch",
    "cli.bench",
    "cli.browsing",
    "cli.changing",
    "cli.colour",
    "cli.common",
    "cli.completion",
    "cli.examples",
    "cli.hub",
    "cli.import_classifiers",
    "cli.import_kinds",
    "cli.import_packed",
    "cli.import_published",
    "cli.import_ray_tree",
    "cli.importing",
    "cli.information",
    "cli.inspecting",
    "cli.models",
    "cli.network_options",
    "cli.normalising",
    "cli.novelty",
    "cli.output",
    "cli.pairs",
    "cli.pack",
    "cli.show",
    "cli.symmetry_text",
    "cli.targets",
    "cli.train",
    "cli.verbosity",
    "cli.zoo",
    "cli.zoo_progress",
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
    "pandas",
    "safetensors",
    "ray",
    "tqdm",
}


@dataclass(frozen=True)
class Import:
    """One imported module or name: `target` is `a.b` for `import a.b`, and `a.b.c` for `from a.b import c`."""

    target: str
    line: int
    eager: bool  # the import runs when the importing module is imported


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
    pending: list[tuple[ast.AST, bool]] = [(ast.parse(path.read_text(encoding="utf-8")), True)]
    while pending:
        node, eager = pending.pop()
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, eager) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module
            yield from (Import(f"{base}.{alias.name}", node.lineno, eager) for alias in node.names)
        late = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        pending += [(child, eager and not late and not typing) for child in ast.iter_child_nodes(node)]


def owner(target: str, modules: dict[str, Path]) -> str | None:
    """The module of ours that an imported name comes from."""
    while target and target not in modules:
        target = target.rpartition(".")[0]
    return target or None


def place(module: str) -> int:
    """Position of a module, or of the folder it is in, in the order of its package; -1 if it has none."""
    package, _, name = module.partition(".")
    matches = [entry for entry in ORDERS[package] if name == entry or name.startswith(f"{entry}.")]
    return ORDERS[package].index(max(matches, key=len)) if matches else -1


def is_private_to_another_folder(target: str, module: str) -> bool:
    """Whether an imported name has a private part that the importing module does not stand beside or below."""
    parts = target.split(".")
    for position, part in enumerate(parts):
        if part.startswith("_") and not part.startswith("__"):
            home = ".".join(parts[:position])
            if module != home and not module.startswith(f"{home}."):
                return True
    return False


def faults(package: Path) -> list[str]:
    """All imports of a package, prepkit or netspace, that break the rules."""
    modules = module_files(package)
    root = package.name
    found = []
    for module, path in modules.items():
        if module == root:
            continue  # the public names come from everywhere
        if place(module) < 0:
            found.append(f"{module} has no place in ORDERS")
        for item in imports_of(module, path):
            source = owner(item.target, modules)
            where = f"{module}:{item.line} imports {item.target}"
            if root == "prepkit" and item.target.partition(".")[0] == "netspace":
                found.append(f"{where}, but prepkit stands alone")
            if root == "netspace" and item.target.startswith("prepkit.") and not open_to_netspace(item.target):
                found.append(f"{where}, which is not in OPEN_TO_NETSPACE")
            if source == root:
                found.append(f"{where} from the public names, which come from everywhere")
            elif source and place(source) > place(module):
                found.append(f"{where}, which stands below it")
            if source and is_private_to_another_folder(item.target, module):
                found.append(f"{where}, which is private")
    return found


def open_to_netspace(target: str) -> bool:
    """Whether netspace may import a name: a public one of prepkit's, or one of a module that is open to it."""
    public = target.partition(".")[2]
    return public in prepkit.__all__ or any(target == one or target.startswith(f"{one}.") for one in OPEN_TO_NETSPACE)


def circle(package: Path) -> list[str]:
    """Modules that import each other in a circle, also for types alone; empty if there is none."""
    modules = module_files(package)
    graph = {
        module: {owner(item.target, modules) for item in imports_of(module, path)} - {None, module, package.name}
        for module, path in modules.items()
        if module != package.name
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def circle_of_folders(package: Path) -> list[str]:
    """Folders that import each other in a circle, however deep they lie; empty if there is none."""
    modules = module_files(package)
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        for item in imports_of(module, path):
            source = owner(item.target, modules)
            if source and module != package.name and source != package.name:
                here, there = parting(module, source)
                if here != there:
                    graph.setdefault(here, set()).add(there)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def parting(module: str, source: str) -> tuple[str, str]:
    """The two neighbours, modules or folders of one folder, that hold a module and what it imports."""
    here, there = module.split("."), source.split(".")
    depth = 0
    while depth < min(len(here), len(there)) and here[depth] == there[depth]:
        depth += 1
    if depth in (len(here), len(there)):  # a folder's own __init__ and a module in it
        return module, module
    return ".".join(here[: depth + 1]), ".".join(there[: depth + 1])


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

PACKAGES = [ROOT / name for name in ORDERS if (ROOT / name).is_dir()]  # prepkit also stands alone
each_package = pytest.mark.parametrize("package", PACKAGES, ids=[package.name for package in PACKAGES])


@each_package
def test_modules_import_only_what_stands_above_them(package: Path) -> None:
    assert faults(package) == []


@each_package
def test_no_module_or_folder_needs_itself(package: Path) -> None:
    assert circle(package) == []
    assert circle_of_folders(package) == []


@each_package
def test_each_place_in_the_order_is_taken(package: Path) -> None:
    names = module_files(package)
    assert [entry for entry in ORDERS[package.name] if f"{package.name}.{entry}" not in names] == []


def test_netspace_uses_all_that_is_open_to_it() -> None:
    files, open_ones = module_files(ROOT / "netspace"), module_files(ROOT / "prepkit")
    used = {owner(item.target, open_ones) for name, path in files.items() for item in imports_of(name, path)}
    assert not files or OPEN_TO_NETSPACE - used == set()  # there are no files where the folder was left out


def test_light_modules_import_nothing_heavy() -> None:
    assert weights(ROOT / "prepkit") == []


def test_importing_all_light_modules_loads_nothing_heavy() -> None:
    names = [f"prepkit.{name}" for name in LIGHT]
    code = f"import sys, {', '.join(names)}; print(*(name for name in {sorted(HEAVY)} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# The rules find what breaks them --------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package like prepkit that keeps all rules."""
    sources = {
        "__init__.py": "from prepkit.cli import main",
        "errors.py": "import json",
        "prep/__init__.py": "",
        "prep/layout.py": "from prepkit.errors import E\ndef f():\n    import torch",
        "families/__init__.py": "",
        "families/registry.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor",
        "running/__init__.py": "",
        "running/_stacking.py": "import torch",
        "running/instances.py": "from prepkit.running._stacking import stack",
        "packing.py": "import torch\nfrom prepkit.prep import layout\nfrom .families.registry import detect",
        "zoo/__init__.py": "",
        "zoo/format/__init__.py": "",
        "zoo/format/paths.py": "from prepkit.errors import E",
        "cli/__init__.py": "from prepkit.cli import common\ndef f():\n    from prepkit.packing import pack",
        "cli/common.py": "from prepkit import errors",
    }
    for name, source in sources.items():
        path = tmp_path / "prepkit" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return tmp_path / "prepkit"


def test_a_package_that_keeps_the_rules(package: Path) -> None:
    assert (faults(package), circle(package), circle_of_folders(package), weights(package)) == ([], [], [], [])


@pytest.mark.parametrize(
    ("file", "source", "fault"),
    [
        (
            "errors.py",
            "from prepkit.prep.layout import L",
            "errors:1 imports prepkit.prep.layout.L, which stands",
        ),
        ("errors.py", "def f():\n    import prepkit.cli", "errors:2 imports prepkit.cli, which stands below"),
        ("errors.py", "if TYPE_CHECKING:\n    import prepkit.cli", "errors:2 imports prepkit.cli, which stands below"),
        ("errors.py", "class A:\n  def f(self):\n    from . import cli", "errors:3 imports prepkit.cli, which"),
        (
            "zoo/format/paths.py",
            "from ...cli import main",
            "paths:1 imports prepkit.cli.main, which stands below",
        ),
        ("zoo/format/paths.py", "from prepkit import Layout", "paths:1 imports prepkit.Layout from the public names"),
        ("zoo/format/paths.py", "import prepkit", "paths:1 imports prepkit from the public names"),
        ("zoo/format/paths.py", "import netspace.run", "imports netspace.run, but prepkit stands alone"),
        (
            "zoo/format/paths.py",
            "from prepkit.prep.layout import _f",
            "prepkit.prep.layout._f, which is private",
        ),
        ("zoo/format/paths.py", "import prepkit.running._stacking", "prepkit.running._stacking, which is private"),
        ("novelty.py", "", "prepkit.novelty has no place in ORDERS"),
    ],
)
def test_what_breaks_the_rules_is_found(file: str, source: str, fault: str, package: Path) -> None:
    (package / file).write_text(source)
    (found,) = faults(package)
    assert fault in found


def test_what_netspace_may_not_import_is_found(tmp_path: Path) -> None:
    package = tmp_path / "netspace"
    package.mkdir()
    (package / "recipe.py").write_text("import prepkit\nfrom prepkit import Layout\nfrom prepkit.errors import E")
    assert faults(package) == []
    (package / "data.py").touch()
    (package / "recipe.py").write_text("from prepkit.zoo.read.store import Store\nfrom netspace.data import D")
    first, second = sorted(faults(package))
    assert "netspace.data.D, which stands below it" in second or "netspace.data.D, which stands below it" in first
    assert "not in OPEN_TO_NETSPACE" in first + second


@pytest.mark.parametrize("how", ["def f():\n    ", "if TYPE_CHECKING:\n    "])
def test_a_circle_is_found(how: str, package: Path) -> None:
    (package / "zoo/format/paths.py").write_text(f"{how}from prepkit.zoo.format import store")
    (package / "zoo/format/store.py").write_text("from prepkit.zoo.format.paths import f")
    assert faults(package) == []
    assert set(circle(package)) == {"prepkit.zoo.format.paths", "prepkit.zoo.format.store"}


def test_a_circle_of_folders_is_found(package: Path) -> None:
    """No module of it is in a circle: a imports b, and another module beside b imports another beside a."""
    for name, source in {
        "hub/a/one.py": "from prepkit.hub.b.one import f",
        "hub/a/two.py": "",
        "hub/b/one.py": "",
        "hub/b/two.py": "from prepkit.hub.a.two import f",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(source)
    assert circle(package) == []
    assert set(circle_of_folders(package)) == {"prepkit.hub.a", "prepkit.hub.b"}


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


def test_a_fault_in_reality_would_be_found() -> None:
    """The files that the rules look at are the ones that are installed."""
    assert prepkit.__file__ is not None
    assert Path(prepkit.__file__).parent.samefile(ROOT / "prepkit")
    assert len(module_files(ROOT / "prepkit")) > 25
