"""Numbers that papers print, for zoos whose kind, data set and split are those of the papers; see published.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from prepkit.zoo.format.manifest import Manifest

FILE = "published.toml"
IMPORT = "zoo import "
CHANGES = ("cut", "merged")  # keys of the provenance of a zoo that is a part of another one, or of several


@dataclass(frozen=True)
class Published:
    """One number that a paper prints: of a method, by a metric of ours, and where it was read."""

    method: str
    metric: str
    value: float
    source: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return dict(vars(self))


def published_for(manifest: Manifest, column: str) -> tuple[Published, ...]:
    """Return the numbers that papers print for a whole zoo on its split; none for all zoos that are not theirs."""
    about = _about(manifest)
    if about is None:
        return ()
    tables = tomllib.loads(files(__package__).joinpath(FILE).read_text(encoding="utf-8"))["table"]
    fitting = [one for one in tables if all(one[key] == value for key, value in {**about, "column": column}.items())]
    return tuple(
        Published(method, one["metric"], value, one["source"])
        for one in fitting
        for method, value in one["values"].items()
    )


def _about(manifest: Manifest) -> dict[str, Any] | None:
    """Return the keys by which numbers are found; None for a zoo that was not imported, or changed afterwards."""
    provenance = manifest.provenance
    command, options = str(provenance.get("command")), provenance.get("options")
    if not command.startswith(IMPORT) or any(key in provenance for key in CHANGES) or not isinstance(options, Mapping):
        return None
    return {
        "kind": command.removeprefix(IMPORT),
        "dataset": (manifest.task or {}).get("dataset"),
        "splits": None if "drawn_split" in provenance else options.get("splits"),
        "activation": options.get("activation") or "all",
    }
