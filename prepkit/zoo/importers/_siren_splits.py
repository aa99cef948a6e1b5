"""The splits of the zoos of SIRENs that papers use, by `splits="paper"`.

nfn:      by the number of the picture: up to 44,999 for training, up to 49,999 for validation, all others for testing.
          The pictures are the training pictures of a data set and then its test pictures, so that of MNIST and
          Fashion-MNIST the last 10,000 training pictures are for testing too. (nfn's inr2array has its points at 55,000
          and 60,000 for Fashion-MNIST; its classifiers have not.) nfn looks for files by `PREFIX_*`, which also fits
          the folders of augmented copies, PREFIX_aug0_5s, and takes for each number the file that it finds last. Here
          every file is a model, and a copy has the split of its picture.
DWSNets:  models of test pictures are for testing. Of the 60,000 for training, 5,000 are drawn for validation by
          scikit-learn's `train_test_split` without a seed, so nobody can draw them again. A file that was written then
          can be given: `mnist_splits.json` of neural-graphs, or `splits.json`, which comes with the models of
          Fashion-MNIST. Without one, a twelfth of MNIST's training models is for validation here, those whose ids have
          the least sha256, and a note says so.
others:   nothing was published for Implicit-Zoo; a file of splits can be given.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prepkit.errors import ZooError, counted
from prepkit.zoo.importers._paper_split import TEST, TRAIN, VALIDATION
from prepkit.zoo.importers._split_file import NAMES, SplitFile
from prepkit.zoo.importers._strict import PAPER

NFN_POINTS = (45_000, 50_000)  # first numbers of pictures for validation and for testing
VALIDATION_SHARE = 12  # one of so many training models: 5,000 of 60,000
FILES = ("splits.json", "mnist_splits.json", "fmnist_splits.json")  # as they are called where they were published


@dataclass(frozen=True)
class PaperSplits:
    """The split of each model, and how it was found.

    splits:  of each model; None for one that the file of splits does not name
    columns: what the file says of each model beside its split
    options: for the zoo's provenance
    """

    splits: Sequence[str | None]
    notes: Sequence[str]
    columns: Sequence[Mapping[str, Any]] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def paper_splits(
    rule: str | None,
    ids: Sequence[str],
    files: Sequence[str],
    fields: Sequence[Mapping[str, Any]],
    parts: int,
    folder: Path,
    split_file: str | os.PathLike[str] | None,
) -> PaperSplits:
    """Return the published split of some SIRENs.

    rule:       of their layout: "nfn", "drawn" (DWSNets, MNIST), "file", or None if nothing was published
    ids, files, fields: of each model
    parts:      number of parts at the end of a path that say which model it is
    split_file: a file of splits; one in the folder is taken if it is missing
    raises ZooError if there is no such split, or the file does not fit the models
    """
    found = split_file or next((folder / name for name in FILES if (folder / name).is_file()), None)
    if found is not None:
        return _by_file(SplitFile.read(found, parts), files, fields)
    if rule == "nfn":
        return PaperSplits([_of_number(int(each["index"])) for each in fields], [])
    if rule == "drawn":
        return _drawn(ids, [str(each["split"]) for each in fields])
    if rule == "file":
        raise ZooError(
            f"`splits` {PAPER}: the split of these models is in the file {FILES[0]} that comes with them, and "
            f"'{folder}' does not hold it. Name it, `split_file`."
        )
    raise ZooError(
        f"`splits` {PAPER}: no split of this layout was published. Name a file of splits, `split_file`, or take "
        "`splits` strict."
    )


def _by_file(split_file: SplitFile, files: Sequence[str], fields: Sequence[Mapping[str, Any]]) -> PaperSplits:
    rows, notes = split_file.joined(files)
    for row, own, file in zip(rows, fields, files, strict=True):
        for name, value in (row.values if row else {}).items():
            if name in own and str(own[name]) != str(value):
                raise ZooError(
                    f"{split_file.file}: has {name} {value} for '{file}', whose path has {name} {own[name]}. Is it the "
                    "file of another zoo?"
                )
    return PaperSplits(
        [row.split if row else None for row in rows],
        [f"The splits are those of '{split_file.file}'.", *notes],
        [row.values if row else {} for row in rows],
        {"split_file": split_file.record},
    )


def _of_number(number: int) -> str:
    validation, test = NFN_POINTS
    return TRAIN if number < validation else VALIDATION if number < test else TEST


def _drawn(ids: Sequence[str], folders: Sequence[str]) -> PaperSplits:
    splits = [NAMES.get(folder, folder) for folder in folders]
    trained = [index for index, split in enumerate(splits) if split == TRAIN]
    count = len(trained) // VALIDATION_SHARE
    for index in sorted(trained, key=lambda index: hashlib.sha256(ids[index].encode()).digest())[:count]:
        splits[index] = VALIDATION
    note = (
        f"DWSNets drew 5,000 of 60,000 training models for validation without a seed, so nobody can draw them again: "
        f"here {counted(count, 'model')} of {len(trained):,}, those whose ids have the least sha256. Models of test "
        "pictures are for testing, as in the paper. With `split_file`, the splits are those of a file such as "
        "mnist_splits.json."
    )
    return PaperSplits(splits, [note])
