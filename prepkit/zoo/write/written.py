"""WrittenZoo: the result of creating, converting or merging."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prepkit.support.text import Brief
from prepkit.zoo.format.manifest import Manifest


@dataclass(frozen=True, repr=False)
class WrittenZoo(Brief):
    """A zoo that was written, finished and whole.

    path:     its folder
    manifest: the content of its zoo.json
    notes:    sentences that its owner should read, such as that a teacher was left out
    types:    what each column of the user's table became, such as "float, 2 of 55 empty"
    """

    path: Path
    manifest: Manifest
    notes: tuple[str, ...] = ()
    types: Mapping[str, str] = field(default_factory=dict)
