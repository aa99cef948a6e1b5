"""A selection of numbered things, such as the states of a trajectory, as Python writes slices."""

from __future__ import annotations

import re
from collections.abc import Iterable

from prepkit.errors import ZooError, counted

Selection = str | int | Iterable[int]  # "0:2688:100", "0,5,-1", -1 or [0, 5]

SLICE = re.compile(r"(-?[0-9]{1,9})?:(-?[0-9]{1,9})?(?::([1-9][0-9]{0,8})?)?")
NUMBER = re.compile(r"-?[0-9]{1,9}")


def as_text(selection: Selection | None) -> str | None:
    """Return a selection as the command line writes it."""
    if selection is None or isinstance(selection, str | int):
        return None if selection is None else str(selection)
    return ",".join(map(str, selection))


def chosen(text: str | None, count: int, name: str, noun: str, where: str = "") -> list[int]:
    """Return the numbers from 0 to count - 1 that a selection names, ascending; all if it is None.

    name, noun, where: option, things that are numbered, and where they are, for errors
    raises ZooError for a text that is no selection, or one that names what is not there, twice or nothing
    """
    if text is None:
        return list(range(count))
    there = f"there are {counted(count, noun)}{where}, from 0 to {count - 1:,}"
    numbers: list[int] = []
    for part in map(str.strip, text.split(",")):
        found = SLICE.fullmatch(part)
        if found is not None:
            start, stop, step = (None if end is None else int(end) for end in found.groups())
            if any(end is not None and not -count <= end <= count for end in (start, stop)):
                raise ZooError(f"`{name}`: '{part}' goes beyond what is there; {there}.")
            numbers += range(count)[slice(start, stop, step)]
        elif NUMBER.fullmatch(part):
            if not -count <= int(part) < count:
                raise ZooError(f"`{name}`: {part} is not there; {there}.")
            numbers.append(int(part) % count)
        else:
            raise ZooError(f"`{name}`: '{part}' is neither a number nor a slice such as 0:{count}:10 or ::10; {there}.")
    if not numbers:
        raise ZooError(f"`{name}`: '{text}' names nothing; {there}.")
    if len(set(numbers)) < len(numbers):
        raise ZooError(f"`{name}`: '{text}' names the same {noun} twice.")
    return sorted(numbers)
