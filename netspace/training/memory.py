"""What a step needs of memory, about, and what to change where it does not fit."""

from __future__ import annotations

from dataclasses import replace

import torch

import prepkit
from netspace.recipe import Recipe
from netspace.training.losses import gammas
from prepkit.running.instances import activation_bytes, stacking_pays
from prepkit.zoo.read.memory import free_bytes

STATES = 4  # of each weight: itself, its gradient and Adam's two moments


class OutOfMemory(prepkit.PrepkitError):
    """A step does not fit the memory of its device."""

    exit_code = 1


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch says that memory was refused."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def step_bytes(recipe: Recipe, registry: prepkit.Registry, device: torch.device) -> int:
    """An estimate of what one step holds at once, on the plain path that every device has.

    Weights with gradients and moments, and what encoder, decoder and instances put out and keep for the backward pass:
    128 H K + 64 H W + 8 H W + H W values of a decoder, E / 32 H W of an encoder, twice for LeakyReLU. Instances are
    forgotten one by one (instance_losses.py) unless they run at once.
    """
    network, batch = recipe.network, recipe.batch
    height, width = network.height, network.width
    columns = network.columns or min(2048, width // 2)
    decoded = 2 * height * (128 * columns + 73 * width)
    encoded = 2 * network.embedding_size // 32 * height * width
    points = batch.instances
    if recipe.has_classes:
        points += (batch.instances // 2) ** 2 * len(gammas(len(recipe.architectures)))
    at_once = 1 if recipe.training.recompute else points
    run = max(
        activation_bytes(architecture, batch.samples)
        // 4
        * (at_once if stacking_pays(architecture, batch.samples, device) else 1)
        for architecture in registry
    )
    values = batch.instances * encoded + at_once * decoded + run
    bytes_each = 2 if recipe.training.precision == "bfloat16" else 4
    return values * bytes_each + STATES * 4 * num_weights(recipe)


def num_weights(recipe: Recipe) -> int:
    """Parameters of encoder, decoder and classifier (METHOD), without building them."""
    from netspace.run.run import new_space

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in new_space(recipe).parameters())


def advice(recipe: Recipe, registry: prepkit.Registry, device: torch.device) -> str:
    """What a step needs, what is free, and which of batch, bf16 and recomputing would make it fit."""
    free = free_bytes(device)
    choices = {}
    if recipe.training.precision != "bfloat16":
        choices["training.precision=bfloat16"] = replace(
            recipe, training=replace(recipe.training, precision="bfloat16")
        )
    if not recipe.training.recompute:
        choices["training.recompute=true"] = replace(recipe, training=replace(recipe.training, recompute=True))
    both = replace(recipe.training, precision="bfloat16", recompute=True)
    if len(choices) == 2:
        choices["training.precision=bfloat16 --set training.recompute=true"] = replace(recipe, training=both)
    instances, accumulate = recipe.batch.instances, recipe.batch.accumulate
    if instances % 4 == 0 or (instances % 2 == 0 and not recipe.has_classes):
        smaller = replace(recipe.batch, instances=instances // 2, accumulate=2 * accumulate)
        name = f"batch.instances={instances // 2} --set batch.accumulate={2 * accumulate}"
        choices[name] = replace(recipe, batch=smaller)
    told = [f"--set {name} would take about {_gib(step_bytes(one, registry, device))}" for name, one in choices.items()]
    there = "" if free is None else f", and {_gib(free)} of {device} are free now"
    needs = f"A step of '{recipe.name}' takes about {_gib(step_bytes(recipe, registry, device))}{there}"
    return f"{needs}; {'; '.join(told) or 'use a smaller batch.samples'}."


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
