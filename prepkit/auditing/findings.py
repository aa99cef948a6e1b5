"""What an audit found, as data: for JSON, for the text of the command line and for the page."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from prepkit.support.json_values import json_value
from prepkit.support.text import Brief

# Each kind of finding, with what it means. `--fail-on` takes these names.
KINDS: Mapping[str, str] = {
    "leaks": "networks or runs that stand in several splits, or in the other zoo too",
    "seeds": "seeds that stand in several splits",
    "duplicates": "networks with equal weights, byte by byte",
    "near-duplicates": "networks of different runs with nearly equal weights, also in another form of hidden units",
    "same-run": "networks of one run with nearly equal weights, such as neighbouring checkpoints",
    "nan": "networks that hold NaN or infinity",
    "constant": "networks whose weights are all one value, or whose outputs are the same for all inputs",
    "zeros": "networks in which all values of a weight tensor are 0",
    "dead": "hidden units that are 0 for all inputs",
    "columns": "columns of the table that are empty, constant, or contradict",
    "lineage": "what is not known of licence, task, origin and function",
}


@dataclass(frozen=True, repr=False)
class Finding(Brief):
    """Something that an audit found.

    kind:     one of KINDS
    sentence: what was found, for people
    count:    number of networks, seeds, runs or columns that it is about
    groups:   their ids; those of one group belong together, such as copies of each other
    """

    kind: str
    sentence: str
    count: int
    groups: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, repr=False)
class Audit(Brief):
    """The result of auditing a zoo.

    zoo:       its name
    sha256:    the sum in its zoo.json
    instances: number of its instances
    against:   name of the other zoo, None if there is none
    tolerance: largest distance of nearly equal weights, as a share of the norm of all weights
    checked:   sentences that say what was compared, and how much of it
    unchecked: sentences that say what could not be checked, and why
    """

    zoo: str
    sha256: str
    instances: int
    against: str | None
    tolerance: float
    findings: tuple[Finding, ...]
    checked: tuple[str, ...] = field(default=())
    unchecked: tuple[str, ...] = field(default=())

    @property
    def counts(self) -> dict[str, int]:
        """The number of networks, runs, seeds or columns found of each kind."""
        return {kind: sum(found.count for found in self.findings if found.kind == kind) for kind in KINDS}

    def of(self, kind: str) -> tuple[Finding, ...]:
        """Return the findings of a kind."""
        return tuple(found for found in self.findings if found.kind == kind)

    def has(self, kinds: Collection[str]) -> bool:
        """Whether anything was found of one of these kinds."""
        return any(found.kind in kinds for found in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON-able data."""
        own = {key: value for key, value in vars(self).items() if key != "findings"}
        findings = [json_value(vars(found)) for found in self.findings]
        return {**json_value(own), "counts": self.counts, "findings": findings}
