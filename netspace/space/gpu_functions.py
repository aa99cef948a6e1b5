"""How a GPU computes the decoder's third convolution: by its library's convolution, or as a matrix product of our own.

The product spares the library from turning the map around in memory, but copies each value to the taps that read it.
Which is faster depends on the GPU and on the size of the PReps. So a training tries both at its start, and its run
keeps to the choice, as the two round differently. Shapes: M predicted instances, E embedding values.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from netspace.space import fast
from netspace.space.network import Decoder, NetSpace
from prepkit.support.device import bf16_autocast
from prepkit.support.progress import Progress

CONVOLUTION, PRODUCT = "convolution", "product"
THIRD = "third_convolution"  # the key of a run's record that holds one of the two
WARMUPS, ROUNDS, STEPS = 2, 3, 4  # passes that are not counted; rounds of each way, and passes of a round


def follow(space: NetSpace, chosen: Mapping[str, Any]) -> None:
    """Let the decoder compute its third convolution as it was chosen; where nothing was, by the library."""
    space.decoder.third_as_product = chosen.get(THIRD) == PRODUCT


def choose(space: NetSpace, count: int, *, halved: bool, progress: Progress) -> dict[str, Any] | None:
    """Choose by a measurement; None where the decoder has no choice on its device.

    count:  M, number of instances that a step predicts at once
    halved: whether products are in bfloat16
    returns what a run records: "convolution" or "product", and the least `seconds` of both; a product that does not fit
            the memory has none
    """
    decoder = space.decoder
    size = count * space.embedding_size
    latent_ME = torch.linspace(-1, 1, size, device=decoder.scale.device).view(count, -1).requires_grad_()
    if not fast.decodes_channels_last(latent_ME, decoder, decoder.conv1.out_channels) or space.columns % 4:
        return None
    seconds = {}
    for name in (CONVOLUTION, PRODUCT):
        follow(space, {THIRD: name})
        try:
            seconds[name] = float(f"{least_seconds(decoder, latent_ME, halved):.4g}")
        except torch.OutOfMemoryError:
            if name == CONVOLUTION:
                raise
    if latent_ME.is_cuda:
        torch.cuda.empty_cache()
    chosen = min(seconds, key=lambda name: seconds[name])
    follow(space, {THIRD: chosen})
    found = ", ".join(f"{took * 1e3:.3g} ms with a {name}" for name, took in seconds.items())
    progress.say(f"The decoder's third convolution: a batch is decoded in {found}; the run keeps to the {chosen}.")
    return {THIRD: chosen, "seconds": seconds}


def least_seconds(decoder: Decoder, latent_ME: Tensor, halved: bool) -> float:
    """Time forward and backward passes; the least seconds of a pass. Gradients and random states stay as they are."""
    device = latent_ME.device
    asked = [latent_ME, *(parameter for parameter in decoder.parameters() if parameter.requires_grad)]

    def passes(number: int) -> None:
        for _ in range(number):
            with bf16_autocast(device, halved):
                preps_MHW = decoder(latent_ME)
            torch.autograd.grad(preps_MHW.sum(), asked)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    passes(WARMUPS)
    return min(clocked(passes) for _ in range(ROUNDS)) / STEPS


def clocked(passes: Callable[[int], None]) -> float:
    """The seconds that STEPS passes take."""
    began = time.perf_counter()
    passes(STEPS)
    return time.perf_counter() - began
