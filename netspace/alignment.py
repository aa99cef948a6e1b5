"""Alignment before encoding: hidden units in the order of references, one for each architecture, which a run keeps.

    alignment = Alignment.learnt_from(registry, preps, architectures)  # once, from the instances that are trained on
    aligned = alignment(preps, architectures)                          # [N, H, W]: the same functions

A network whose hidden units are in another order, with other signs or phases of sines, computes the same, but its PRep
holds other values. Aligned to one reference, both come to the same PRep, and so to the same embedding.
Shapes: N instances, H x W the PRep, V values of an architecture's PRep.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

import prepkit
from prepkit.errors import counted, listed
from prepkit.support.files import replacing
from prepkit.support.progress import Advance
from prepkit.support.statistics import evenly, grouped
from prepkit.symmetry.aligning import UPDATES, Aligner, Scrambled, centroid, checked, scrambled_copies
from prepkit.tasks.randomness import generator

TRIED = 4  # instances of each architecture of which a scrambled copy is aligned

Architectures = str | Sequence[str] | None  # the name of each instance's architecture, or one for all


class AlignmentError(prepkit.PrepkitError, ValueError):
    """PReps cannot be aligned before they are encoded: it is not known to which reference."""


class Alignment:
    """The references of architectures, ready to align PReps.

    references: `[V]` by the name of the architecture
    copies:     by the same name, how many scrambled copies of instances came back to where these are aligned to
    """

    def __init__(
        self,
        registry: prepkit.Registry,
        references: Mapping[str, Tensor],
        copies: Mapping[str, Scrambled] | None = None,
    ) -> None:
        self.registry, self.references, self.copies = registry, dict(references), dict(copies or {})
        self._aligners: dict[str, Aligner] = {}

    def __repr__(self) -> str:
        return f"<Alignment to references of {listed(self.references)}>"

    @classmethod
    def learnt_from(
        cls, registry: prepkit.Registry, preps_NHW: Tensor, names: Sequence[str], progress: Advance | None = None
    ) -> Alignment:
        """Return the alignment to the mean of instances that are aligned to it; at first, to the first instance.

        names:    the name of each instance's architecture
        progress: called with numbers of instances, whose sum is `UPDATES` times all of them
        raises SymmetryError where scipy is missing, or the symmetries of an architecture cannot be derived
        """
        alignment = cls(registry, {})
        for name, rows in grouped(range(len(names)), names.__getitem__).items():
            aligner, own_NHW = alignment._aligner(name), preps_NHW[rows].cpu()  # where float64 is known
            checked(aligner, own_NHW, f"the instances of {name}")
            parts = [own_NHW[part] for part in aligner.chunks(len(rows))]
            mean_HW = centroid(aligner, lambda parts=parts: parts, progress=progress)  # type: ignore[misc]
            reference_V = mean_HW.flatten()[: aligner.layout.total].cpu().clone()
            some_NHW, stream = own_NHW[evenly(range(len(rows)), TRIED)], generator("scrambled copies")
            alignment.references[name] = reference_V
            alignment.copies[name] = scrambled_copies(aligner, some_NHW, reference_V, stream)
        return alignment

    def __call__(self, preps_NHW: Tensor, names: Architectures = None, progress: Advance | None = None) -> Tensor:
        """Return PReps of the same functions, aligned to the reference of their architecture, on their device.

        names:    the name of each instance's architecture, or one for all; needless where there is one reference
        progress: called with numbers of instances that were aligned
        raises AlignmentError for an architecture without a reference, and for PReps through which a gradient should go
        """
        if preps_NHW.requires_grad and torch.is_grad_enabled():
            raise AlignmentError(
                "no gradient goes through an alignment; align the PReps first, by space.align(preps.detach()), and "
                "give the result to space.encoder."
            )
        aligned_NHW = preps_NHW.clone()
        each = self._name_of_each(names, len(preps_NHW))
        for name, rows in grouped(range(len(each)), each.__getitem__).items():
            aligner = self._aligner(name)
            for part in aligner.chunks(len(rows)):
                own_NHW = preps_NHW[rows[part]]
                checked(aligner, own_NHW, f"the instances of {name}")
                aligned_NHW[rows[part]] = aligner.aligned(own_NHW, self.references[name][None])
                if progress is not None:
                    progress(len(own_NHW))
        return aligned_NHW

    def _aligner(self, name: str) -> Aligner:
        """Return what aligns an architecture; its symmetries are derived when they are first asked for."""
        if name not in self._aligners:
            architecture = self.registry[name]
            with torch.inference_mode(False):
                self._aligners[name] = Aligner(prepkit.symmetries(architecture), architecture.layout)
        return self._aligners[name]

    def _name_of_each(self, names: Architectures, count: int) -> list[str]:
        known = listed(self.references)
        if names is None and len(self.references) > 1:
            raise AlignmentError(
                f"PReps are aligned before they are encoded, each to the reference of its architecture, {known}; "
                "name them: space.encode(preps, zoo.table['architecture'].to_pylist())."
            )
        if names is None or isinstance(names, str):
            each = [next(iter(self.references)) if names is None else names] * count
        else:
            each = list(map(str, names))
        if len(each) != count:
            given = counted(len(each), "architecture")
            raise AlignmentError(f"{given} for {counted(count, 'PRep')}: name one for each.")
        unknown = [name for name in dict.fromkeys(each) if name not in self.references]
        if unknown:
            raise AlignmentError(
                f"this space aligns PReps before it encodes them, and has no reference of {listed(unknown)}, of which "
                f"no instance was trained on; it has those of {known}."
            )
        return each

    # The file -----------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write the references, by name of the architecture; raises OutputError if that fails."""
        with replacing(path, overwrite=True) as temporary:
            safetensors.torch.save_file(self.references, temporary, metadata={"format": "pt"})

    @classmethod
    def load(cls, path: Path, registry: prepkit.Registry, copies: Mapping[str, Scrambled] | None = None) -> Alignment:
        """Read references that `save` wrote."""
        return cls(registry, safetensors.torch.load_file(path), copies)


def num_steps(instances: int) -> int:
    """Return how many instances `learnt_from` reports to its progress."""
    return UPDATES * instances
