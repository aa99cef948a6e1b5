"""Provenance: with which spec, sizes and engine a zoo's training was begun. Whoever resumes it keeps to them."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from prepkit.errors import ZooError, counted
from prepkit.support.files import replacing
from prepkit.training._engine import Engine
from prepkit.training._start_tensors import Facts
from prepkit.training.spec import Spec
from prepkit.version import __version__
from prepkit.zoo.write.working import WRITING

TRAINING = "training"
RECORD = "record.json"


@dataclass(frozen=True)
class Provenance:
    """How a zoo came about; it stands in its zoo.json.

    spec:     the TOML text
    sizes:    overrides of a trial run
    versions: versions of prepkit and torch
    machine:  name of the GPU, or architecture of the CPU
    starts:   what instances begin with where it is no draw of their own, by architecture and name: the sha256 of its
              values, once it is known, and where it is from
    """

    spec: str
    sizes: Mapping[str, int]
    engine: Engine
    versions: Mapping[str, str]
    machine: str
    starts: Facts = field(default_factory=dict)

    @classmethod
    def of(cls, spec: Spec, engine: Engine, device: torch.device, starts: Facts | None = None) -> Provenance:
        """The provenance of a zoo whose training begins here and now."""
        return cls(spec.text, dict(spec.sizes), engine, versions(), machine(device), starts or {})

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, as zoo.json has it."""
        return {
            "command": "zoo train",
            "spec": self.spec,
            "sizes": dict(self.sizes),
            "engine": self.engine.to_dict(),
            "versions": dict(self.versions),
            "machine": self.machine,
            **({"starts": self.starts} if self.starts else {}),
        }

    def write(self, root: Path) -> None:
        """Write it into the zoo's working folder; raises OutputError."""
        folder = training_folder(root)
        folder.mkdir(exist_ok=True)
        with replacing(folder / RECORD, overwrite=True) as path:
            path.write_text(json.dumps(self.to_dict(), indent=2), encoding="utf-8")


def training_folder(root: Path) -> Path:
    """The folder in which training keeps its files while a zoo is unfinished."""
    return root / WRITING / TRAINING


def read_provenance(root: Path) -> Provenance | None:
    """The provenance of the training that was begun in this folder, None if there is none.

    raises ZooError if its file is damaged
    """
    file = training_folder(root) / RECORD
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        engine = Engine.from_dict(data["engine"])
        starts = data.get("starts", {})
        return Provenance(data["spec"], data["sizes"], engine, data["versions"], data["machine"], starts)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ZooError(f"{file}: is damaged: {error!r}. Delete '{root}' and train it again.") from None


def check_same_training(begun: Provenance, spec: Spec, device: torch.device | None, root: Path) -> None:
    """Raise ZooError, saying what differs, unless the training that was begun is the one that is asked for.

    device: None if none was asked for
    """
    if begun.spec != spec.text:
        raise ZooError(
            f"'{root}' holds the unfinished zoo of another spec (or of this one before it was changed). Name another "
            "folder, or delete this one."
        )
    if dict(begun.sizes) != dict(spec.sizes):
        sizes = " ".join(f"`{name}` {size}" for name, size in begun.sizes.items()) or "neither `instances` nor `epochs`"
        raise ZooError(f"'{root}' was begun with {sizes}; go on with the same, or name another folder.")
    if device is not None and device.type != begun.engine.device:
        raise ZooError(
            f"'{root}' was begun on {begun.engine.device}, and goes on there: {device.type} gives other last bits. "
            f"Use `device` {begun.engine.device}, or name another folder."
        )
    if dict(begun.versions) != versions():
        have, had = (", ".join(f"{n} {v}" for n, v in each.items()) for each in (versions(), begun.versions))
        raise ZooError(f"'{root}' was begun with {had}; here is {have}. Install those to go on, or begin anew.")


def check_engine(begun: Provenance, chosen: Engine, stack: int | None, threads: int | None, root: Path) -> None:
    """Raise ZooError if another stack or number of threads is asked for than the training was begun with.

    chosen:         the engine that a training would have if it began now
    stack, threads: None if none was asked for
    """
    had = begun.engine
    other_stack = stack is not None and dict(chosen.stacks) != dict(had.stacks)
    if other_stack or (threads is not None and chosen.threads != had.threads):
        sizes = ", ".join(f"{name} {size}" for name, size in had.stacks.items())
        on = "" if had.threads is None else f" and {counted(had.threads, 'thread')}"
        raise ZooError(
            f"'{root}' was begun with stacks of {sizes}{on}, and goes on so: others give other last bits. Leave out "
            "`stack` and `threads`, or name another folder."
        )


def check_starts(begun: Provenance, starts: Facts, root: Path) -> None:
    """Raise ZooError unless instances begin with the same weights as when the training was begun."""
    for name, own in starts.items():
        for start, facts in own.items():
            if begun.starts.get(name, {}).get(start) != facts:
                what = f"the file {facts['file']}" if "file" in facts else f"the start {start}"
                raise ZooError(
                    f"'{root}' was begun with other weights: {what} of {name} has changed since. Give it back its "
                    "former values, or name another folder."
                )


def versions() -> dict[str, str]:
    """The versions of the packages that numbers depend on."""
    return {"prepkit": __version__, "torch": str(torch.__version__)}


def machine(device: torch.device) -> str:
    """The GPU's name, or the CPU's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
