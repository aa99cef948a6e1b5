"""Which start a training takes, and the starts that are made from the PReps that are trained on.

Shapes: N instances, H x W the PRep.
"""

# ruff: noqa: N806 - names of tensors end in their axes

from __future__ import annotations

from dataclasses import replace

import torch

import prepkit
from netspace.data import Data, shares_starts
from netspace.recipe import Initialisation, Recipe
from netspace.space.network import NetSpace
from netspace.space.starts import start_from_centroid, start_from_preps


def initialisation_of(recipe: Recipe, zoo: prepkit.Zoo) -> Initialisation:
    """Return the start that a recipe names, or the one for a zoo with these starts."""
    named = recipe.network.initialisation
    return named or ("from_centroid" if shares_starts(zoo) else "paper")


def with_initialisation(recipe: Recipe, zoo: prepkit.Zoo) -> Recipe:
    """Return a recipe that names its start; two recipes that do so are the same training on a zoo if they are equal."""
    return replace(recipe, network=replace(recipe.network, initialisation=initialisation_of(recipe, zoo)))


def start_from_data(space: NetSpace, initialisation: str, recipe: Recipe, data: Data) -> None:
    """Give a NetSpace on the CPU one of FROM_PREPS, drawn with the recipe's seed.

    raises InitialisationError if there are too few PReps, or these are all the same
    """
    preps_NHW, registry = data.preps_NHW.cpu(), data.registry
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        if initialisation == "from_centroid":
            totals_N = [registry.by_class_id(class_id).layout.total for class_id in data.class_ids]
            return start_from_centroid(space, preps_NHW, totals_N)
        architecture = registry.by_class_id(0)
        tensors = {name: value.detach() for name, value in architecture.build_folded().state_dict().items()}
        instance_HW = architecture.layout.pack(tensors, prepkit.PRepShape(space.height, space.width))
        return start_from_preps(space, preps_NHW, instance_HW, architecture.layout)
