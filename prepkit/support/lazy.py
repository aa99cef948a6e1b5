"""Public names of a package that are loaded when they are first used."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def attach(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` of a package, made from the stub beside its `__init__.py`.

    The stub `__init__.pyi` has a line `from home import name as name` for each public name. Type checkers read the same
    lines, so a name is listed once. A name whose home is the package itself is a module of it.
    """
    imports = [line.split() for line in Path(file).with_suffix(".pyi").read_text(encoding="utf-8").splitlines()]
    homes = {words[3]: words[1] for words in imports if words[:1] == ["from"]}
    namespace = vars(sys.modules[package])

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        if homes[name] == package:
            namespace[name] = import_module(f"{package}.{name}")
        else:
            namespace[name] = getattr(import_module(homes[name]), name)
        return namespace[name]

    return load, lambda: sorted({*namespace, *homes}), list(homes)
