"""What was recognised of networks that are alike: most networks of a zoo share names, shapes and dtypes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prepkit.checkpoint.load import versions_of
from prepkit.prep.file import PRep
from prepkit.zoo.write._instance_rows import Packable, packable

if TYPE_CHECKING:
    from torch import Tensor

    from prepkit.families.registry import Architecture

MAX_KNOWN = 256  # forms that are remembered
Form = tuple[object, ...]


class Recognised:
    """Recognises networks as `packable` does, and those alike only once.

    A network is only taken for one like another where nothing was folded or renamed, and no tensors are tied: all that
    `packable` finds then follows from names, shapes and dtypes.
    options: arguments of `packable` that are the same for all networks
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        # An architecture is kept beside what was found, since its id is part of the key.
        self._known: dict[object, tuple[Packable, object]] = {}

    def like(self, model: Mapping[str, Tensor] | PRep, architecture: Architecture | str | None) -> Packable | None:
        """Return a network that is like one which was recognised before; None if it is like none."""
        if isinstance(model, PRep):
            return None
        known = self._known.get(_key(model, architecture))
        return None if known is None else replace(known[0], tensors=model)

    def packable(
        self, model: Mapping[str, Tensor] | PRep, architecture: Architecture | str | None, place: str, **heard: Any
    ) -> Packable:
        """Recognise one network, and fold its BatchNorm.

        heard: `left_out` and `costs` as `packable` takes them
        raises as `packable` does
        """
        item = packable(model, architecture, place, **self._options, **heard)
        key = None if isinstance(model, PRep) else _key(model, architecture)
        if key is not None and item.tensors is model:
            if len(self._known) == MAX_KNOWN:
                self._known.clear()
            self._known[key] = replace(item, tensors={}), architecture
        return item


def _key(model: Mapping[str, Tensor], architecture: Architecture | str | None) -> object:
    form = form_of(model)
    name = architecture if isinstance(architecture, str) else id(architecture)
    return None if form is None else (form, name, tuple(versions_of(model).items()))


def form_of(tensors: Mapping[str, Tensor]) -> Form | None:
    """Return names, dtypes and shapes of dense tensors that do not share memory; None for all others."""
    import torch

    described = []
    places = set()
    for name, tensor in tensors.items():
        if type(tensor) is not torch.Tensor or tensor.layout is not torch.strided or tensor.is_meta:
            return None
        described.append((name, tensor.dtype, tensor.shape))
        places.add(tensor.data_ptr())
    return tuple(described) if len(places) == len(described) else None
