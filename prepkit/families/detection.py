"""Detection: which architecture a state dict belongs to, by the names and shapes of its tensors.

Importing this module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prepkit.errors import FusionError, RegistryError, listed
from prepkit.families.architecture import Architecture, Shapes, floating_shapes
from prepkit.families.importing import plugins
from prepkit.families.registry import architecture, built_in
from prepkit.families.table import TABLE
from prepkit.prep.slot import as_tensors, is_running_statistic
from prepkit.support.text import Brief

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, repr=False)
class Detection(Brief):
    """The architecture that a state dict belongs to, and in which form.

    folded: whether it is the form that is packed, without BatchNorm; a network without BatchNorm has only this form
    """

    architecture: Architecture
    folded: bool


def detect(tensors: Mapping[str, Tensor], candidates: Iterable[Architecture] | None = None) -> Detection | None:
    """Return the architecture whose names and shapes these are, in any order and dtype; integer buffers do not count.

    candidates: architectures to compare; if missing, the built-in ones, then those of plug-ins, which are imported
    raises LayoutMismatch for values that are no tensors; RegistryError if several match, or if a plug-in that had to
    be looked at is broken

    Only names and shapes are compared: a network of the same shapes with another activation looks the same.

    >>> detection = prepkit.detect(prepkit.architecture("resnet8@digits").build().state_dict())
    >>> detection.architecture.name, detection.folded
    ('resnet8@digits', False)
    """
    shapes = floating_shapes(as_tensors(tensors))
    if candidates is not None:
        return the_match(shapes, candidates)
    return the_match(shapes, likely(shapes)) or the_match(shapes, (architecture(entry.name) for entry in plugins()))


def likely(shapes: Shapes) -> list[Architecture]:
    """Return the built-in architectures with this number of parameters; only these few are built and compared."""
    count = sum(math.prod(shape) for name, shape in shapes.items() if not is_running_statistic(name))
    return [built_in()[row.name] for row in TABLE if count in (row.num_parameters, row.num_trainable)]


def the_match(shapes: Shapes, candidates: Iterable[Architecture]) -> Detection | None:
    """Return the one candidate with these names and shapes."""
    matches = [match for match in (fits(shapes, candidate) for candidate in candidates) if match]
    if len(matches) > 1:
        names = listed(match.architecture.name for match in matches)
        raise RegistryError(f"these tensors fit several architectures: {names}. Name the one that is meant.")
    return matches[0] if matches else None


def fits(shapes: Shapes, candidate: Architecture) -> Detection | None:
    """Return in which form these are the names and shapes of a candidate; None if they are not."""
    if any(map(is_running_statistic, shapes)) and shapes == candidate.trainable_shapes:
        return Detection(candidate, folded=False)
    # Folding changes no weight's shape, so most other networks are ruled out before anything is folded, or fails to be.
    if candidate.known.layout is None and any(
        candidate.trainable_shapes.get(name) != shape for name, shape in shapes.items() if not name.endswith("bias")
    ):
        return None
    return Detection(candidate, folded=True) if shapes == candidate.folded_shapes else None


def explain_mismatch(tensors: Mapping[str, Tensor], architecture: Architecture) -> str:
    """Say in one sentence which names and shapes differ from an architecture, in the nearer one of its two forms."""
    shapes = floating_shapes(tensors)
    forms = [(" with BatchNorm", architecture.trainable_shapes)]
    with suppress(FusionError):  # a network that cannot be folded has one form
        forms.insert(0, (" with BatchNorm folded", architecture.folded_shapes))
    form, differing = min(
        ((form, differences(shapes, expected)) for form, expected in forms),
        key=lambda candidate: sum(map(len, candidate[1].values())),
    )
    if all(expected == architecture.trainable_shapes for _, expected in forms) and len(forms) > 1:
        form = ""
    parts = [f"{len(names)} {what} ({listed(names)})" for what, names in differing.items() if names]
    if not parts:
        return f"the tensors fit {architecture.name}{form}."
    return f"the tensors do not fit {architecture.name}{form}: {'; '.join(parts)}."


def differences(shapes: Shapes, expected: Shapes) -> dict[str, list[str]]:
    """Return which names are missing, which are unexpected, and which have another shape."""
    return {
        "missing": [name for name in expected if name not in shapes],
        "unexpected": [name for name in shapes if name not in expected],
        "of another shape": [
            f"{name} is {list(shapes[name])}, expected {list(shape)}"
            for name, shape in expected.items()
            if name in shapes and shapes[name] != shape
        ],
    }
