"""An estimate of the memory that a step needs, and what to change in the recipe where it does not fit."""

from __future__ import annotations

from dataclasses import replace

import torch

import prepkit
from netspace.recipe import Recipe
from netspace.run.run import new_space
from netspace.training.losses import gammas
from prepkit.running.instances import activation_bytes, stacking_pays
from prepkit.support.text import readable_bytes
from prepkit.zoo.read.memory import free_bytes

COPIES = 4  # each weight is held with its gradient and Adam's two moments


class OutOfMemory(prepkit.PrepkitError):
    """A step does not fit the memory of its device."""

    exit_code = 1


def step_bytes(recipe: Recipe, registry: prepkit.Registry, device: torch.device) -> int:
    """Estimate the bytes that one step holds at once, on the plain path that every device has.

    These are the weights with gradients and moments, and what encoder, decoder and instances keep for the backward
    pass: 128 H K + 64 H W + 8 H W + H W values of a decoder, E / 32 H W of an encoder, twice for LeakyReLU. Instances
    are forgotten one by one (prepkit/running/instance_losses.py) unless they run at once.
    """
    network, batch = recipe.network, recipe.batch
    height, width = network.height, network.width
    columns = network.columns or min(2048, width // 2)
    decoded = 2 * height * (128 * columns + 73 * width)
    encoded = 2 * network.embedding_size // 32 * height * width
    at_once = predicted_at_once(recipe)
    run = max(
        activation_bytes(architecture, batch.samples)
        // 4
        * (at_once if stacking_pays(architecture, batch.samples, device) else 1)
        for architecture in registry
    )
    on_line = len(recipe.architectures) * batch.line_instances if recipe.loss.line > 0 else 0
    values = (batch.instances + on_line) * encoded + at_once * decoded + run
    bytes_each = 2 if recipe.training.precision == "bfloat16" else 4
    return values * bytes_each + COPIES * 4 * num_weights(recipe)


def predicted_at_once(recipe: Recipe) -> int:
    """How many instances a step decodes at once: those of the batch, and those between its boundary pairs."""
    if recipe.training.recompute:
        return 1
    between = len(gammas(len(recipe.architectures))) if recipe.has_classes else 0
    return recipe.batch.instances + (recipe.batch.instances // 2) ** 2 * between


def num_weights(recipe: Recipe) -> int:
    """Count the parameters of encoder, decoder and classifier, without memory for them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in new_space(recipe).parameters())


def advice(recipe: Recipe, registry: prepkit.Registry, device: torch.device) -> str:
    """Say what a step needs, what is free, and which of bf16, recomputing and a smaller batch would make it fit."""
    training, batch = recipe.training, recipe.batch
    choices = {}
    if training.precision != "bfloat16":
        choices["training.precision=bfloat16"] = replace(recipe, training=replace(training, precision="bfloat16"))
    if not training.recompute:
        choices["training.recompute=true"] = replace(recipe, training=replace(training, recompute=True))
    if len(choices) == 2:
        both = replace(training, precision="bfloat16", recompute=True)
        choices[" with ".join(choices)] = replace(recipe, training=both)
    if batch.instances % 4 == 0 or (batch.instances % 2 == 0 and not recipe.has_classes):
        smaller = replace(batch, instances=batch.instances // 2, accumulate=2 * batch.accumulate)
        name = f"batch.instances={smaller.instances} with batch.accumulate={smaller.accumulate}"
        choices[name] = replace(recipe, batch=smaller)

    def needed(changed: Recipe) -> str:
        return f"about {readable_bytes(step_bytes(changed, registry, device))}"

    free = free_bytes(device)
    room = "" if free is None else f", and {readable_bytes(free)} of {device} are free now"
    remedies = [f"{name} would take {needed(changed)}" for name, changed in choices.items()]
    remedy = "; ".join(remedies) or "a smaller batch.samples would take less"
    step = f"A step of '{recipe.name}' takes {needed(recipe)}{room}; {remedy}."
    return f"{step} Change it by load_recipe(name, {{key: value}})."
