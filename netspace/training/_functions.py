"""Which functions compute encoder and decoder in a training: measured at its start, and recorded by its run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from netspace.data import Data
from netspace.recipe import Recipe
from netspace.run.run import CPU_FUNCTIONS, GPU_FUNCTIONS, Run
from netspace.space import cpu_functions, gpu_functions
from netspace.space.network import NetSpace
from netspace.training.memory import predicted_at_once, step_bytes
from prepkit.support.processes import Ranks
from prepkit.support.progress import Progress
from prepkit.zoo.read.memory import free_bytes


def choose_functions(
    run: Run, space: NetSpace, data: Data, ranks: Ranks, device: torch.device, progress: Progress
) -> None:
    """Measure which functions are faster on the device, unless recipe or run says already which are used."""
    training = data.recipe.training
    chosen: dict[str, Any] | None = None
    follow: Callable[[NetSpace, dict[str, Any]], None]
    if device.type == "cpu" and CPU_FUNCTIONS not in run.record and training.cpu_functions == "measured":
        key, follow, measure = CPU_FUNCTIONS, cpu_functions.follow, _on_cpu
    # A choice by timing may be another one the next time, and then a training would not be repeated bit for bit.
    elif device.type == "cuda" and GPU_FUNCTIONS not in run.record and not training.deterministic:
        key, follow, measure = GPU_FUNCTIONS, gpu_functions.follow, _on_gpu
    else:
        return
    if ranks.first:
        chosen = measure(space, data, ranks, progress)
    chosen = ranks.agree(chosen)
    if chosen is not None:
        follow(space, chosen)
        if ranks.first:
            run.note(key, chosen)


def _on_cpu(space: NetSpace, data: Data, ranks: Ranks, progress: Progress) -> dict[str, Any] | None:
    recipe = data.recipe
    own = range(recipe.batch.instances)[ranks.block(recipe.batch.instances)]
    count = 1 if recipe.training.recompute else len(own)
    free = free_bytes(data.device)
    fits = free is None or step_bytes(recipe, data.registry, data.device) < free
    return cpu_functions.choose(space, data.preps_NHW[:count], halved=_halved(recipe), fits=fits, progress=progress)


def _on_gpu(space: NetSpace, data: Data, ranks: Ranks, progress: Progress) -> dict[str, Any] | None:
    count = max(1, predicted_at_once(data.recipe) // ranks.size)
    return gpu_functions.choose(space, count, halved=_halved(data.recipe), progress=progress)


def _halved(recipe: Recipe) -> bool:
    return recipe.training.precision == "bfloat16"
