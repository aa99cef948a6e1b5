"""Splits of the Small CNN Zoo: the one that papers use, and one that lets nothing leak.

paper:  that of NFN, which NG and ScaleGMN inherit. A CSV file orders the rows of the matrix; only those of the last
        step are kept. The second half is for testing. The first is shuffled by Python's `random.Random(0)`, and four
        fifths of it are for training, one for validation. The files have a stray 0 before the first row's number,
        which is read as a row: row 0 stands twice. Where it is of the last step, every later place moves by one, and
        the same model may be for training and for testing.
strict: of rows with equal weights only the first is kept, and all steps of a run are in one split: runs, by the sha256
        of their names, are for testing (half), training (four tenths) and validation (one tenth).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from prepkit.errors import ZooError, counted

TRAIN, VALIDATION, TEST = "train", "validation", "test"


def read_order(file: Path, rows: int) -> list[int]:
    """Return the numbers of rows in the order that a file gives, with its stray leading 0 if it has one.

    raises ZooError naming the line that is wrong
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ZooError(f"{file}: cannot be read ({error}).") from None
    numbers = []
    for line, text in enumerate(lines, 1):
        number = int(text) if text.isdecimal() and len(text) < 19 else rows
        if number >= rows:
            raise ZooError(f"{file}, line {line}: '{text[:40]}' is not the number of one of {counted(rows, 'row')}.")
        numbers.append(number)
    without_stray = numbers[1:] if len(numbers) == rows + 1 and numbers[0] == 0 else numbers
    if len(without_stray) != rows or len(set(without_stray)) != rows:
        raise ZooError(
            f"{file}: has {counted(len(numbers), 'number')}, {len(set(numbers)):,} of them different; it has to name "
            f"each of {counted(rows, 'row')} once. Is it the file of another zoo?"
        )
    return numbers


def paper_splits(order: Sequence[int], last: Iterable[int]) -> tuple[dict[int, str], list[str]]:
    """Return the split of each row of the last step, and notes.

    order: rows as the file orders them
    last:  rows of the last step
    """
    kept = set(last)
    rows = [row for row in order if row in kept]
    half = int(0.5 * len(rows))
    first = list(range(half))
    random.Random(0).shuffle(first)
    trained = int(0.8 * half)
    by_place = dict.fromkeys(first[:trained], TRAIN) | dict.fromkeys(first[trained:], VALIDATION)
    splits: dict[int, str] = {}
    notes = []
    for place, row in enumerate(rows):
        split = by_place.get(place, TEST)
        if row in splits:
            notes.append(
                f"Row {row} stands twice in the order, for {splits[row]} and for {split}; it is in the zoo once, for "
                f"{splits[row]}."
            )
        splits.setdefault(row, split)
    return splits, notes


def strict_splits(runs: Iterable[str]) -> dict[str, str]:
    """Return the split of each run."""
    ordered = sorted(set(runs), key=lambda run: hashlib.sha256(run.encode()).digest())
    half, trained = len(ordered) // 2, len(ordered) * 9 // 10
    return {
        run: TEST if place < half else TRAIN if place < trained else VALIDATION for place, run in enumerate(ordered)
    }
