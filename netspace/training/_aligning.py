"""The alignment of a training's zoo, which is learnt before the first step, or read from the run that goes on."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

from torch import Tensor

import prepkit
from netspace.alignment import Alignment, num_steps
from netspace.data import Data
from netspace.space.evaluation import ARCHITECTURE
from prepkit.errors import CopiesDiffer, listed
from prepkit.support.processes import Ranks
from prepkit.support.progress import LINE_SECONDS, Progress, ProgressInWords


def align_data(data: Data, known: Alignment | None, ranks: Ranks, progress: Progress) -> Alignment:
    """Align the PReps of the training instances in place, and return the alignment.

    known: the alignment of the run that goes on; without one it is learnt from the training instances
    Warns, with CopiesDiffer, where scrambled copies of instances do not come back to the same PRep.
    """
    names: list[str] = data.train.table[ARCHITECTURE].to_pylist()
    words = _Lines("training instances are aligned", progress.say)
    words.begin(len(names) + (num_steps(len(names)) if known is None else 0))
    if known is None:
        learnt = Alignment.learnt_from(data.registry, data.preps_NHW, names, words.advance) if ranks.first else None
        known = ranks.agree(learnt)
        lost = {name: copies for name, copies in known.copies.items() if copies.returned < copies.copies}
        if lost and ranks.first:
            counts = listed(f"{one.copies - one.returned} of {one.copies} of {name}" for name, one in lost.items())
            warnings.warn(
                f"scrambled copies of training instances did not all come back to the same PRep ({counts} did not), so "
                "their embeddings depend on the order of their units. Units that are equal, or nearly so, do that.",
                CopiesDiffer,
                stacklevel=2,
            )
    data.preps_NHW = known(data.preps_NHW, names, words.advance)
    return known


def aligned_preps(alignment: Alignment, zoo: prepkit.Zoo) -> Tensor:
    """Read all PReps of a view in float32, aligned."""
    aligned: Tensor = alignment(zoo.preps().float(), zoo.table[ARCHITECTURE].to_pylist())
    return aligned


class _Lines(ProgressInWords):
    """Says how far a long task is, now and then; a short one says nothing."""

    def __init__(self, what: str, say: Callable[[str], None]) -> None:
        super().__init__("alignment", self._hear_words)
        self._what, self._say, self._said = what, say, time.monotonic()

    def _hear_words(self, words: str) -> None:
        if time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            self._say(f"{self._what}: {words}")
