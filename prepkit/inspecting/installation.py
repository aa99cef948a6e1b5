"""What is installed here, and on what machine it runs: the facts that a report of a bug needs."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prepkit.program import ENVIRONMENT
from prepkit.support.cache import cache_folder
from prepkit.version import __version__

DISTRIBUTION = "prepkit"
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)[^;]*(;.*\bextra\s*==\s*['\"](?P<extra>[\w.-]+)['\"])?")
VARIABLES = re.compile(r"(PREPKIT|HF|OMP|GOMP|MKL|CUDA|NCCL|PYTORCH|TORCH|RAY|FSSPEC)_\w+")
SECRETS = re.compile(r"TOKEN|KEY|SECRET|PASSWORD")
CREDENTIALS = re.compile(r"(?<=//)[^/@\s]+@")  # in an address: https://user:password@host


def installation() -> dict[str, Any]:
    """Return versions, extras, devices, caches and settings as a document of JSON.

    torch is imported for it. What cannot be told, as where torch is broken, is told as the reason in its place.
    """
    return {
        "version": __version__,
        "path": _without_home(str(Path(__file__).parent.parent)),
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": platform.platform(),
        "packages": packages(None),
        "extras": {extra: needed for extra in extras() if (needed := packages(extra))},
        "torch": _torch(),
        "caches": {"prepkit": _cache(cache_folder()), "hub": _cache(_hub_cache())},
        "architectures": _plugins(),
        "variables": {
            name: "(set)" if SECRETS.search(name) else _without_home(CREDENTIALS.sub("(set)@", value))
            for name, value in sorted(os.environ.items())
            if VARIABLES.fullmatch(name) and ENVIRONMENT.get(name) != value  # what our own programs set
        },
    }


def extras() -> list[str]:
    """Return the names of prepkit's extras; none where the metadata of an installation is missing."""
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        return metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except PackageNotFoundError:
        return []


def packages(extra: str | None) -> dict[str, str | None]:
    """Return the versions of the packages that an extra needs, or prepkit itself; None is one that is missing.

    An extra that only stands for others needs none.
    """
    from importlib.metadata import PackageNotFoundError, requires, version

    found: dict[str, str | None] = {}
    try:
        needed = [REQUIREMENT.match(line) for line in requires(DISTRIBUTION) or []]
    except PackageNotFoundError:
        return found
    for name in (match["name"] for match in needed if match is not None and match["extra"] == extra):
        if name == DISTRIBUTION:
            continue
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _without_home(text: str) -> str:
    """Return a text with ~ in place of the home folder, which often has a person's name."""
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


def _torch() -> dict[str, Any]:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library that cannot be loaded
        return {"error": f"torch cannot be imported: {error}"}
    from prepkit.support.device import hardware

    cuda = torch.cuda.is_available()
    devices = {"cpu": {"hardware": hardware(torch.device("cpu")), "bytes": _memory()}}
    for index in range(torch.cuda.device_count() if cuda else 0):
        device = torch.device("cuda", index)
        total = torch.cuda.get_device_properties(device).total_memory
        devices[str(device)] = {"hardware": hardware(device), "bytes": total}
    if torch.backends.mps.is_available():
        devices["mps"] = {"hardware": platform.machine(), "bytes": _memory()}
    return {
        "version": str(torch.__version__),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,  # type: ignore[no-untyped-call]
        "threads": torch.get_num_threads(),
        "devices": devices,
    }


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return None


def _hub_cache() -> Path:
    from prepkit.hub.client import hub_cache_folder

    return hub_cache_folder()


def _cache(folder: Path) -> dict[str, Any]:
    sizes = list(_sizes(folder))
    return {"path": _without_home(str(folder)), "files": len(sizes), "bytes": sum(sizes)}


def _sizes(folder: Path) -> Iterator[int]:
    """Yield the sizes of all files; links count nothing, since the Hub's cache points at each file by several."""
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.lstat(os.path.join(place, name))
            except OSError:  # removed meanwhile
                continue
            if not os.path.islink(os.path.join(place, name)):
                yield status.st_size


def _plugins() -> dict[str, str]:
    from prepkit.families.importing import origin, plugins

    return {entry.name: origin(entry) for entry in plugins()}
