"""Ids that are given where a user names none: the next whole number, in six digits or more.

It stands above all such numbers that an instance of the zoo has, or had before it was dropped. So a note of an id, in a
paper or a list, never comes to mean another network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

DROPS = "drops"  # key of the provenance, which lists each removal
HIGHEST = "highest_number"  # key of a removal: what `highest_number` is of the ids that went
DIGITS = 6
MOST_DIGITS = 18  # a longer text of digits is nobody's running number


def numbered_id(number: int) -> str:
    """Return the id of a number."""
    return f"{number:0{DIGITS}d}"


def highest_number(ids: Iterable[str]) -> int:
    """Return the highest number among ids that may have been given so; -1 if there is none."""
    numbers = (id for id in ids if DIGITS <= len(id) <= MOST_DIGITS and id.isascii() and id.isdigit())
    return max(map(int, numbers), default=-1)


def first_number(ids: Iterable[str], count: int, provenance: Mapping[str, Any]) -> int:
    """Return the number from which on no instance of a zoo has or had an id.

    ids:        of the zoo's instances, of which there are `count`
    provenance: of the zoo; a removal by a version of prepkit that noted no number counts as if numbers alone had gone
    """
    found = provenance.get(DROPS)
    drops = [drop for drop in found if isinstance(drop, Mapping)] if isinstance(found, list) else []
    noted = [_whole(drop[HIGHEST]) for drop in drops if HIGHEST in drop]
    untold = sum(_whole(drop.get("instances")) for drop in drops if HIGHEST not in drop)
    return max(count + untold, highest_number(ids) + 1, *(number + 1 for number in noted))


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0
