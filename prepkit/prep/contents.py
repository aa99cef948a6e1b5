"""Whose PReps a tensor holds, as noted by the zoo that read them, so that no other layout unpacks them.

A PRep's values do not tell its architecture: read at a common height, a small network's PRep looks like a large one
whose last parameters are zero, and a network that predicts PReps leaves values in the padding. So neither heights nor
zeros are asked. The zoo knows, and notes it beside the tensor. The note is gone with the tensor, after a write into it
(which inference mode does not count), and in any tensor that is computed from it, such as a selection of rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import ref

from prepkit.errors import LayoutMismatch, listed

if TYPE_CHECKING:
    from torch import Tensor

Contents = Mapping[str, list[tuple[int, ...]]]  # the shapes of the tensors in order, by architecture


class _Key(ref["Tensor"]):
    """A reference to a tensor that does not keep it, and takes its note away when it is gone.

    torch.utils.weak has a dictionary for that, which takes as long for a note as copying a batch of tiny PReps does.
    """

    __slots__ = ("address",)
    address: int


def _forget(key: Any) -> None:
    note = _NOTES.get(key.address)
    if note is not None and note[0] is key:  # else another tensor has come to stand there
        _NOTES.pop(key.address, None)


_NOTES: dict[int, tuple[_Key, int | None, Contents]] = {}  # by `address`, the tensor's as an object


def note_contents(preps: Tensor, contents: Contents) -> None:
    """Note which architectures the PReps of a tensor belong to."""
    key = _Key(preps, _forget)
    key.address = id(preps)
    _NOTES[key.address] = (key, _version(preps), contents)


def contents_of(preps: Tensor) -> Contents:
    """Return what was noted of a tensor; nothing if it was written to since."""
    key, version, contents = _NOTES.get(id(preps), (None, None, {}))
    return contents if key is not None and key() is preps and version == _version(preps) else {}


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
