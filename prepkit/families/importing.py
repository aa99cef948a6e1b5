"""Importing code of others by name: builders `module:callable`, and plug-ins, which are entry points.

Nothing is imported before it is needed. Whatever goes wrong in it becomes one RegistryError that names its place.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.errors import RegistryError, nearest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINT_GROUP = "prepkit.architectures"


def load_builder(spec: str, noun: str = "network builder", does: str = "builds a network") -> Callable[..., Any]:
    """Import the callable behind `module:callable`.

    noun, does: what the callable is, and what it does, for errors
    raises RegistryError with the spec and the reason if there is no such callable
    """
    module_name, _, path = spec.partition(":")
    if not module_name or not path:
        raise RegistryError(f"'{spec}' does not name a {noun}; write module:callable.")
    try:
        value: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a script without `if __name__ == "__main__"` may well exit
        remedy = _remedy(module_name, path, error)
        raise RegistryError(f"'{spec}': module '{module_name}' cannot be imported: {reason(error)}.{remedy}") from error
    for name in path.split("."):
        if not hasattr(value, name):
            raise RegistryError(f"'{spec}': there is no '{name}' in it.{nearest(name, dir(value))}")
        value = getattr(value, name)
    if not callable(value):
        raise RegistryError(f"'{spec}' is of type {type(value).__name__}, not a callable that {does}.")
    builder: Callable[..., Any] = value
    return builder


def _remedy(module: str, path: str, error: BaseException) -> str:
    """Return what to do about a module that is not found; nothing where it is found and fails."""
    if not isinstance(error, ModuleNotFoundError) or not f"{module}.".startswith(f"{error.name}."):
        return ""
    if module.endswith(".py"):
        return f" Write '{module.removesuffix('.py').replace('/', '.')}:{path}', without .py."
    here = [file.stem for file in Path().glob("*.py")]
    like = nearest(module, here)
    return like or " It must lie in the current folder, or be installed."


def plugins() -> tuple[EntryPoint, ...]:
    """Return the entry points of our group in all installed distributions, in the order of their names."""
    return plugins_on(tuple(sys.path))


@lru_cache(maxsize=8)
def plugins_on(path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Return `plugins` for this sys.path. It is searched once, since a large environment takes tens of milliseconds."""
    from importlib.metadata import entry_points

    return tuple(sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name))


def plugins_named(name: str) -> list[EntryPoint]:
    """Return the plug-ins that register an architecture of this name; more than one are in conflict."""
    return [entry for entry in plugins() if entry.name == name]


def origin(entry: EntryPoint) -> str:
    """Return the distribution that a plug-in is from, such as `distribution 'nets 1.2'`."""
    if entry.dist is None:
        return "an unknown distribution"
    return f"distribution '{entry.dist.name} {entry.dist.version}'"


@cache
def load_plugin(entry: EntryPoint) -> object:
    """Import a plug-in once; return its value, or what its value returns if that is a function.

    raises RegistryError with the distribution and the reason if it cannot be loaded
    """
    try:
        value = entry.load()
        return value() if callable(value) else value
    except (Exception, SystemExit) as error:
        raise RegistryError(
            f"architecture '{entry.name}' of {origin(entry)} ({entry.value}) cannot be loaded: {reason(error)}. "
            "Fix or uninstall it."
        ) from error


def reason(error: BaseException) -> str:
    """Return an exception as one line without a full stop: `ValueError: depth 9 is not 6n + 2`."""
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
