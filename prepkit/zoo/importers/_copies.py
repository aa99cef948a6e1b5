"""Copies: tells which models have the weights of an earlier one, where both are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from prepkit.errors import counted, listed
from prepkit.zoo.write.adding import digest_of

if TYPE_CHECKING:
    from torch import Tensor


class Copies:
    """Hears of models one after the other, in 16 bytes and an id each; a resumed import hears of the new ones."""

    def __init__(self) -> None:
        self._first: dict[bytes, str] = {}
        self._copies: dict[str, str] = {}

    def hear(self, id_: str, tensors: Mapping[str, Tensor]) -> None:
        """Compare a model with those before."""
        first = self._first.setdefault(digest_of(tensors), id_)
        if first != id_:
            self._copies[id_] = first

    def notes(self) -> list[str]:
        """Return a sentence if there are copies."""
        if not self._copies:
            return []
        have, stay = ("has", "stays") if len(self._copies) == 1 else ("have", "stay")
        pairs = listed(f"{copy} (as {first})" for copy, first in self._copies.items())
        return [
            f"{counted(len(self._copies), 'model')} {have} the weights of an earlier one and {stay} in the zoo; "
            f"`splits` strict leaves such models out: {pairs}."
        ]
