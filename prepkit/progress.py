"""What a training tells while it goes on; the command line draws a bar of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Standing:
    """How far a training is.

    instances, of:      finished, and in all
    accuracy:           mean of the instances finished so far on test data; None without any
    diverged:           attempts that were given up
    """

    instances: int
    of: int
    accuracy: float | None
    diverged: int


class Progress:
    """Nothing is told; a subclass overrides what it wants to know."""

    def begin(self, work: float, standing: Standing) -> None:
        """Training begins or goes on; `work` is all that is left to do, in arbitrary units."""

    def advance(self, work: float) -> None:
        """Some of the work is done."""

    def finished(self, standing: Standing) -> None:
        """Instances were finished and are in the zoo."""

    def note(self, text: str) -> None:
        """Something that the user should know, such as instances that diverged."""
