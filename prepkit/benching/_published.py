"""Numbers that papers print, for zoos whose kind, data set and split are those of the papers; see published.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from prepkit.zoo.format.manifest import Manifest

FILE = "published.toml"
IMPORT = "zoo import "
CHANGES = ("cut", "merged", "appends", "drops")  # keys of the provenance of a zoo with other instances than an import
SAYS = ("metric", "source", "values")  # keys of a table of numbers that say what they are; all others must fit the zoo


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


def published_for(manifest: Manifest, column: str, metrics: Collection[str]) -> tuple[Published, ...]:
    """Return the numbers that papers print for a whole zoo on its split; none for all zoos that are not theirs.

    metrics: those that are asked for, such as "accuracy" where classes are predicted
    """
    about = _about(manifest)
    if about is None:
        return ()
    tables = tomllib.loads(files(__package__).joinpath(FILE).read_text(encoding="utf-8"))["table"]
    about["column"] = column
    fitting = [
        one
        for one in tables
        if one["metric"] in metrics and all(about[key] == value for key, value in one.items() if key not in SAYS)
    ]
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
    sizes = {stored.layout.slots[-1].shape[0] for stored in manifest.architectures if stored.layout.slots[-1].shape}
    return {
        "kind": command.removeprefix(IMPORT),
        "dataset": (manifest.task or {}).get("dataset"),
        "splits": None if "drawn_split" in provenance else options.get("splits"),
        "activation": options.get("activation") or "all",
        "pattern": options.get("pattern"),
        "convention": options.get("convention"),
        "outputs": sizes.pop() if len(sizes) == 1 else None,
    }
