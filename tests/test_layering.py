"""Who may import whom, and how long a module may be. ORDERS is the one home of both packages' order: a new module takes
its place in it.

Imports inside functions count, because they too make one module need another; those for type checkers count as well.
A module whose name starts with an underscore is private to the folder that it stands in.
"""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from imports import circle, circle_of_folders, imports_of, is_private_to_another_folder, module_files, owner

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

MOST_LINES = 400  # a module that is longer has more than one subject; most have half as many
CODE = ("prepkit", "netspace", "tests", "benchmarks", "examples", "docs")


def place(module: str) -> int:
    """Position of a module, or of the folder it is in, in the order of its package; -1 if it has none."""
    package, _, name = module.partition(".")
    matches = [entry for entry in ORDERS[package] if name == entry or name.startswith(f"{entry}.")]
    return ORDERS[package].index(max(matches, key=len)) if matches else -1


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


def too_long(root: Path) -> list[str]:
    """Modules of all code that stands below a clone's root and has more than MOST_LINES."""
    found = []
    for path in sorted(path for folder in CODE for path in (root / folder).rglob("*.py")):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MOST_LINES:
            found.append(
                f"{path.relative_to(root)} has {lines} lines, and {MOST_LINES} is the most: give one of its subjects "
                "a module of its own that is named after it, and keep what both need in a third."
            )
    return found


def of_one_name(root: Path) -> list[str]:
    """Modules of tests that have the name of another one: pytest and `import` would take one for the other."""
    places: dict[str, list[str]] = {}
    for path in sorted((root / "tests").rglob("*.py")):
        if path.name != "conftest.py":
            places.setdefault(path.name, []).append(str(path.relative_to(root)))
    return [f"{' and '.join(paths)} have one name; rename one." for paths in places.values() if len(paths) > 1]


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


def test_no_two_test_modules_share_a_name() -> None:
    # pytest imports them by name alone, and one run of tests/prepkit and tests/netspace would stop at the second.
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_light_modules_import_nothing_heavy() -> None:
    assert weights(ROOT / "prepkit") == []


def test_importing_all_light_modules_loads_nothing_heavy() -> None:
    names = [f"prepkit.{name}" for name in LIGHT]
    code = f"import sys, {', '.join(names)}; print(*(name for name in {sorted(HEAVY)} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_no_module_is_too_long() -> None:
    assert too_long(ROOT) == []


def test_modules_of_tests_have_names_of_their_own() -> None:
    assert of_one_name(ROOT) == []
