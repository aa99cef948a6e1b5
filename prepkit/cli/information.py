"""`prepkit info`: what is installed on what machine, for a report of a bug."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from prepkit.cli.examples import examples
from prepkit.cli.output import Output, json_option
from prepkit.errors import counted
from prepkit.support.text import readable_bytes


@click.command(epilog=examples("prepkit info", "prepkit info --json > info.json"))
@json_option
def info(out: Output) -> None:
    """Tell versions, devices, extras and caches, for reports.

    Tokens and passwords in variables of the environment are left out, and the home folder is written as ~.
    """
    from prepkit.inspecting.installation import installation

    found = installation()
    out.result(found, _text(found))


def _text(found: Mapping[str, Any]) -> str:
    lines = [
        f"prepkit {found['version']} in {found['path']}",
        f"  Python     {found['python']}",
        f"  system     {found['system']}",
        *_torch(found["torch"]),
        *_packages(found["packages"]),
        *_extras(found["extras"]),
    ]
    for name, cache in found["caches"].items():
        size = f"{counted(cache['files'], 'file')}, {readable_bytes(cache['bytes'])}"
        lines.append(f"  cache      of {'the Hub' if name == 'hub' else name}: {cache['path']}, {size}")
    lines += [f"  plug-in    {name}, of {source}" for name, source in found["architectures"].items()]
    lines += [f"  variable   {name}={value}" for name, value in found["variables"].items()]
    return "\n".join(lines)


def _torch(facts: Mapping[str, Any]) -> list[str]:
    if "error" in facts:
        return [f"  torch      {facts['error']}"]
    cuda = "without CUDA" if facts["cuda"] is None else f"for CUDA {facts['cuda']}"
    cudnn = f", cuDNN {facts['cudnn']}" if facts["cudnn"] is not None else ""
    lines = [f"  torch      {facts['version']}, {cuda}{cudnn}, {counted(facts['threads'], 'thread')}"]
    for name, device in facts["devices"].items():
        size = "" if device["bytes"] is None else f", {readable_bytes(device['bytes'])}"
        lines.append(f"  device     {name}: {device['hardware']}{size}")
    return lines


def _packages(versions: Mapping[str, str | None]) -> list[str]:
    if not versions:
        return ["  packages   prepkit runs from its source, without being installed, so what it needs is not known"]
    listed = ", ".join(f"{name} {'is missing' if version is None else version}" for name, version in versions.items())
    return [f"  packages   {listed}"]


def _extras(extras: Mapping[str, Mapping[str, str | None]]) -> list[str]:
    lines = []
    for extra, versions in extras.items():
        missing = [name for name, version in versions.items() if version is None]
        state = ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)
        if missing:
            state = f"{', '.join(missing)} not installed; pip install 'prepkit[{extra}]'"
        lines.append(f"  extra      {extra}: {state}")
    return lines
