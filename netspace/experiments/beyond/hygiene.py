"""Split hygiene: nothing that a NetSpace is judged on had a part in its training or in the choice of its best state.

Training reads the split `train`; the best state is chosen on `validation` (for signals on `train`); experiments judge
on `test`. Compared are the instances' ids, training runs, seeds and shapes, the values of their PReps, and the samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import torch

import prepkit
from netspace.data import ITEM, TEST, TRAIN, VALIDATION
from netspace.experiments.result import Cell, Progress, Result, Table, claim
from netspace.run.run import Run
from prepkit.errors import listed
from prepkit.tasks.images import ImageTask

TEXT = """\
A test instance must not have been seen. Training reads the zoo's split `train`, the best state is chosen on \
`validation` (for signals on `train` itself), and what is claimed of unseen instances is judged on `test`. The table \
counts what the test split shares with what was trained on and what was chosen by: ids, training runs, seeds (of one \
architecture), shapes, the values of the PReps bit for bit, and the images themselves. A task without validation \
images has its best state chosen on test images, and they are counted so."""
WORDS = {"id": "ids", "run": "training runs", "seed": "seeds", ITEM: "shapes", "values": "PReps", "images": "images"}


def run(
    run: Run,
    zoo: prepkit.Zoo,
    task: Any,
    device: torch.device,
    folder: Path,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Count what the test split shares with the others; see netspace.experiments.

    The numbers hold `shared`: for each kind, how many things of test are in train and in validation; all should be 0.
    """
    kinds = ("id", "run", "seed", *((ITEM,) if run.recipe.setting == "sdf" else ()), "values")
    shared = {kind: {TRAIN: 0, VALIDATION: 0} for kind in kinds}
    counts: dict[str, int] = {}
    for kind in list(shared):
        found = {split: things(zoo, split, kind) for split in (TRAIN, VALIDATION, TEST)}
        if not found[TEST]:
            del shared[kind]  # the zoo's table has no such column, or there is no test split
            continue
        counts[kind] = len(found[TEST])
        shared[kind] = {split: len(found[split] & found[TEST]) for split in (TRAIN, VALIDATION)}
    if isinstance(task, ImageTask):
        chosen = VALIDATION if task.splits.get(VALIDATION) else TEST
        images = {split: image_digests(task, of) for split, of in ((TRAIN, TRAIN), (VALIDATION, chosen), (TEST, TEST))}
        counts["images"] = len(images[TEST])
        shared["images"] = {split: len(images[split] & images[TEST]) for split in (TRAIN, VALIDATION)}
    total = sum(sum(of.values()) for of in shared.values())
    compared = listed([WORDS[kind] for kind in shared], len(WORDS))
    text = f"Of the test split, {compared} that were trained on or chosen by"
    claims = [claim(text, total, "==", 0, kind="check")]
    if run.recipe.setting == "unseen":
        text = "Instances of unseen architectures that were trained on or chosen by"
        claims.append(claim(text, len(between(run, zoo)), "==", 0, kind="check"))
    missing = [WORDS[kind] for kind in kinds if kind not in shared]
    words = f"{TEXT} The zoo says nothing of {listed(missing)}: these were not compared." if missing else TEXT
    rows: tuple[tuple[Cell, ...], ...] = tuple((WORDS[kind], counts[kind], *of.values()) for kind, of in shared.items())
    table = Table("What the test split shares", ("kind", "in test", "also in train", "also in validation"), rows)
    splits = dict(zoo.manifest.splits)
    return Result("hygiene", "Split hygiene", words, {"shared": shared, "instances": splits}, claims, [table])


def things(zoo: prepkit.Zoo, split: str, kind: str) -> set[Hashable]:
    """The ids, runs, seeds, shapes or values of a split's instances; empty if it has none."""
    if not zoo.manifest.splits.get(split):
        return set()
    view = zoo.split(split)
    if kind == "values":
        return {digest(prep) for prep in view.preps()}
    if kind not in view.table.column_names:
        return set()
    found: Iterable[Hashable] = view.table[kind].to_pylist()
    if kind == "seed":  # the same number for two architectures starts two different networks
        rows = zip(view.table["architecture"].to_pylist(), found, strict=True)
        found = [(name, one) for name, one in rows if one is not None]
    return {one for one in found if one is not None}


def image_digests(task: ImageTask, split: str) -> set[str]:
    """Of all images of a split; empty if it has none."""
    return {digest(image) for image in task.normalised(split)[0]} if task.splits.get(split) else set()


def between(run: Run, zoo: prepkit.Zoo) -> list[str]:
    """Ids of instances for training or validation that are of no boundary architecture."""
    boundary = (run.recipe.architectures[0], run.recipe.architectures[-1])
    rows = zip(*(zoo.table[name].to_pylist() for name in ("id", "architecture", "split")), strict=True)
    return [id for id, name, split in rows if name not in boundary and split in (TRAIN, VALIDATION)]


def digest(values: torch.Tensor) -> str:
    """Of a tensor's bytes."""
    return hashlib.sha256(values.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
