"""Whose PReps a tensor holds, as noted by the zoo that read them, so that no other layout unpacks them.

A PRep's values do not tell its architecture: read at a common height, a small network's PRep looks like a large one
whose last parameters are zero, and a network that predicts PReps leaves values in the padding. So neither heights nor
zeros are asked. The zoo knows, and notes it beside the tensor. The note is gone with the tensor, after a write into it
(which inference mode does not count), and in any tensor that is computed from it, such as a selection of rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prepkit.errors import LayoutMismatch, listed

if TYPE_CHECKING:
    from torch import Tensor

Contents = Mapping[str, list[tuple[int, ...]]]  # the shapes of the tensors in order, by architecture
_NOTES: list[Any] = []  # holds one WeakIdKeyDictionary, as soon as there is a note


def note_contents(preps: Tensor, contents: Contents) -> None:
    """Note which architectures the PReps of a tensor belong to."""
    from torch.utils.weak import WeakIdKeyDictionary

    if not _NOTES:
        _NOTES.append(WeakIdKeyDictionary())
    _NOTES[0][preps] = (_version(preps), contents)


def contents_of(preps: Tensor) -> Contents:
    """Return what was noted of a tensor; nothing if it was written to since."""
    if not _NOTES:
        return {}
    version, contents = _NOTES[0].get(preps, (None, {}))
    return contents if version == _version(preps) else {}


def refuse_others(preps: Tensor, own: list[tuple[int, ...]]) -> None:
    """Raise LayoutMismatch for PReps of an architecture whose tensors have other shapes than these."""
    others = [name for name, shapes in contents_of(preps).items() if shapes != own]
    if others:
        raise LayoutMismatch(
            f"these PReps were read as those of {listed(others)}, whose tensors have other shapes than this "
            "layout; unpack those of one architecture at a time: zoo.where(\"architecture == 'NAME'\").preps()."
        )


def _version(preps: Tensor) -> int | None:
    """Return how many writes into a tensor torch has counted."""
    return None if preps.is_inference() else preps._version
