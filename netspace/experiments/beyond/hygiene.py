"""Split hygiene: nothing that a NetSpace is tested on had a part in its training or in the choice of its best state.

Training reads the split `train`; the best state is chosen on `validation` (for signals on `train`); experiments measure
on `test`. Ids, training runs, seeds and shapes of instances, the values of their PReps, and images are compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import prepkit
from netspace.data import TEST, TRAIN, VALIDATION, split_sizes
from netspace.experiments.result import Cell, Result, Table, claim
from prepkit.errors import listed
from prepkit.tasks.images import ImageTask
from prepkit.zoo.read.accuracy import ITEM
from prepkit.zoo.read.overlap import VALUES, contents_of_split, image_digests

if TYPE_CHECKING:
    from netspace.experiments._subject import Subject
    from netspace.run.run import Run

SPLITS = (TRAIN, VALIDATION, TEST)
TEXT = """\
A test instance must not have been seen. Training reads the zoo's split `train`, the best state is chosen on \
`validation` (for signals on `train` itself), and claims about unseen instances are measured on `test`. The table \
counts what the test split shares with the data of training and of model selection: ids, training runs, seeds (of one \
architecture), shapes, the values of the PReps bit for bit, and the images themselves. A task without validation \
images has its best state chosen on test images, which then count as shared."""
WORDS = {"id": "ids", "run": "training runs", "seed": "seeds", ITEM: "shapes", VALUES: "PReps", "images": "images"}


def run(subject: Subject) -> Result:
    """Count what the test split shares with the others; all counts in `shared` should be 0."""
    zoo, task = subject.zoo, subject.task
    kinds = ("id", "run", "seed", *((ITEM,) if subject.signals else ()), VALUES)
    contents = {kind: {split: contents_of_split(zoo, split, kind) for split in SPLITS} for kind in kinds}
    missing = [WORDS[kind] for kind in kinds if not contents[kind][TEST]]
    if isinstance(task, ImageTask):
        selection = VALIDATION if task.splits.get(VALIDATION) else TEST
        images = zip(SPLITS, (TRAIN, selection, TEST), strict=True)
        contents["images"] = {split: image_digests(task, source) for split, source in images}
    contents = {kind: by_split for kind, by_split in contents.items() if by_split[TEST]}
    shared = {
        kind: {split: len(by_split[split] & by_split[TEST]) for split in (TRAIN, VALIDATION)}
        for kind, by_split in contents.items()
    }
    total = sum(sum(counts.values()) for counts in shared.values())
    compared = listed([WORDS[kind] for kind in shared], len(WORDS))
    text = f"Test items also used for training or model selection ({compared})"
    claims = [claim(text, total, "==", 0, kind="check", unit="items")]
    if subject.run.recipe.setting == "unseen":
        text = "Instances of unseen architectures also used for training or model selection"
        claims.append(claim(text, len(between_boundaries(subject.run, zoo)), "==", 0, kind="check", unit="items"))
    absent = f" The zoo does not record {listed(missing)}; they were not compared." if missing else ""
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (WORDS[kind], len(contents[kind][TEST]), *counts.values()) for kind, counts in shared.items()
    )
    table = Table("What the test split shares", ("kind", "in test", "also in train", "also in validation"), rows)
    numbers = {"shared": shared, "instances": split_sizes(zoo)}
    return Result("hygiene", "Split hygiene", TEXT + absent, numbers, claims, [table])


def between_boundaries(run: Run, zoo: prepkit.Zoo) -> list[str]:
    """Return ids of instances for training or validation whose architecture is not a boundary one."""
    boundary = (run.recipe.architectures[0], run.recipe.architectures[-1])
    rows = zip(*(zoo.table[name].to_pylist() for name in ("id", "architecture", "split")), strict=True)
    return [id for id, name, split in rows if name not in boundary and split in (TRAIN, VALIDATION)]
