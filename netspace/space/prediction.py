"""Predicted instances: PReps that a NetSpace decoded, each run by the architecture of its predicted ClassId.

    predicted = predict(space, latent_NE, registry)
    predicted.class_ids                       # one for each instance
    predicted.outputs(images)                 # [N, B, C], all instances of an architecture at once
    network = predicted.network(0)            # a ready nn.Module

Shapes: N instances, H x W the PRep, B inputs, E embedding values, A architectures.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import prepkit
from netspace.space.network import NetSpace
from prepkit.errors import expect
from prepkit.running.groups import run_by_class_id
from prepkit.support.text import Brief


@dataclass(frozen=True, repr=False)
class Prediction(Brief):
    """Instances that a NetSpace predicted.

    preps:     `[N, H, W]`
    class_ids: the predicted ClassIds, argmax of the classifier; all 0 in the single-architecture setting
    logits:    the classifier's logits `[N, A]`; None in the single-architecture setting
    registry:  which architecture a ClassId stands for
    """

    preps: Tensor
    class_ids: tuple[int, ...]
    logits: Tensor | None
    registry: prepkit.Registry

    def __len__(self) -> int:
        return len(self.class_ids)

    def architecture(self, index: int) -> prepkit.Architecture:
        """The architecture that runs an instance."""
        return self.registry.by_class_id(self.class_ids[index])

    def tensors(self, index: int) -> dict[str, Tensor]:
        """An instance's tensors by name, tied ones under each of their names: a state dict of the folded network."""
        layout = self.architecture(index).layout
        tensors = dict(layout.unpack(self.preps[index].detach()))
        return tensors | {alias: tensors[name] for alias, name in layout.ties}

    def network(self, index: int) -> nn.Module:
        """Build an instance as a network without BatchNorm, in eval mode, with parameters of its own."""
        with torch.random.fork_rng(devices=[]):
            network = self.architecture(index).build_folded()
        network.load_state_dict(self.tensors(index), strict=False)  # integer buffers are not in a PRep
        return network.to(self.preps.device).eval()

    def outputs(self, inputs: Tensor) -> Tensor:
        """Compute outputs `[N, B, ...]`, differentiable with respect to PReps and inputs.

        inputs: `[B, *input_shape]` that all share, or `[N, B, *input_shape]`
        """
        return run_by_class_id(self.registry, self.class_ids, self.preps, inputs)


def predict(space: NetSpace, latent_NE: Tensor, registry: prepkit.Registry) -> Prediction:
    """Predict the instances at embeddings `[N, E]`.

    registry: has the ClassIds that the space was trained on
    """
    expect(space, NetSpace, "space", "a NetSpace, which netspace.load(run) gives")
    expect(latent_NE, Tensor, "latent_NE", "embeddings [N, E]")
    expect(registry, prepkit.Registry, "registry", "the registry of a run")
    logits_NA = None if space.num_architectures is None else space.classify(latent_NE)
    class_ids = (0,) * len(latent_NE) if logits_NA is None else tuple(logits_NA.argmax(1).tolist())
    return Prediction(space.decode(latent_NE), class_ids, logits_NA, registry)
