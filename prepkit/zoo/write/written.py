"""WrittenZoo: the result of creating, converting or merging."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prepkit.zoo.format.manifest import Manifest


@dataclass(frozen=True)
class WrittenZoo:
    """A zoo that was written, finished and whole.

    path:     its folder
    manifest: the content of its zoo.json
    notes:    sentences that its owner should read, such as that a teacher was left out
    """

    path: Path
    manifest: Manifest
    notes: tuple[str, ...] = ()
