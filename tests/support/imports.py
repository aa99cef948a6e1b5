"""What the modules of a package import, and circles of them."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path


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


def is_private_to_another_folder(target: str, module: str) -> bool:
    """Whether an imported name has a private part that the importing module does not stand beside or below."""
    parts = target.split(".")
    for position, part in enumerate(parts):
        if part.startswith("_") and not part.startswith("__"):
            home = ".".join(parts[:position])
            if module != home and not module.startswith(f"{home}."):
                return True
    return False


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
