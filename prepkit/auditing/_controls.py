"""What needs no generator: training networks with noise, averages of two of them, and networks that were held out.

Shapes: N networks, V values of a network.
"""

# ruff: noqa: N806 - names of tensors end in their axes

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from prepkit.auditing._nearest import Known
from prepkit.auditing._stacks import Stack, rows_evenly
from prepkit.tasks.randomness import generator

# Of the norm of each tensor. They go from what is still a copy to what is no trained network any more.
NOISES = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0)
TRAINING, HELD_OUT, AVERAGES = "training networks", "held-out networks", "averages of two"
TRIES = 20  # to find a partner of another run


def noise_name(share: float) -> str:
    """Return the name of a control: `noise of 10 %`."""
    return f"noise of {100 * share:g} %"


def is_simple(name: str) -> bool:
    """Whether a group is made of training networks alone, without training or generating anything."""
    return name == AVERAGES or name in map(noise_name, NOISES)


def controls(
    known: Sequence[Known], held_out: Sequence[Stack], count: int, seed: int
) -> Iterator[tuple[str, list[Stack]]]:
    """Yield the controls by name, each a stack for each architecture.

    held_out: networks of another split
    count:    of each control and architecture, at most
    """
    yield TRAINING, [each.stack.select(rows_evenly(len(each.stack), count)) for each in known]
    if held_out:
        yield HELD_OUT, [stack.select(rows_evenly(len(stack), count)) for stack in held_out]
    for share in NOISES:
        yield noise_name(share), [with_noise(each.stack, share, count, seed) for each in known]
    pairs = [averages(each, count, seed) for each in known]
    if any(map(len, pairs)):
        yield AVERAGES, [stack for stack in pairs if len(stack)]


def with_noise(stack: Stack, share: float, count: int, seed: int) -> Stack:
    """Return training networks, each tensor of which is moved in a random direction by a share of its norm."""
    chosen = stack.select(rows_evenly(len(stack), count))
    stream = generator(f"noise on {stack.source.name}", seed, round(1e6 * share))
    values_NV = chosen.values_NV.clone()
    for slot in stack.source.layout:
        own_NV = values_NV[:, slot.start : slot.stop]
        noise_NV = torch.randn(own_NV.shape, generator=stream)
        scale_N1 = share * own_NV.norm(dim=1, keepdim=True) / noise_NV.norm(dim=1, keepdim=True).clamp(min=1e-30)
        own_NV += scale_N1 * noise_NV
    return chosen.with_values(values_NV, [f"{id_} with {noise_name(share)}" for id_ in chosen.ids])


def averages(known: Known, count: int, seed: int) -> Stack:
    """Return means of two training networks of different runs, the second of which is aligned to the first."""
    stack, pairs = known.stack, list[tuple[int, int]]()
    stream = generator(f"pairs of {stack.source.name}", seed)
    for row in rows_evenly(len(stack), count):
        for other in torch.randint(len(stack), (TRIES,), generator=stream).tolist():
            if stack.runs[row] != stack.runs[other]:
                pairs.append((row, other))
                break
    first, second = (stack.select([pair[side] for pair in pairs]) for side in (0, 1))
    other_NV: Tensor = second.values_NV
    if known.aligner is not None and pairs:
        other_NV = known.aligner.aligned(other_NV[:, None], first.values_NV[:, None]).squeeze(1)
    ids = [f"{a} and {b}" for a, b in zip(first.ids, second.ids, strict=True)]
    return first.with_values((first.values_NV + other_NV) / 2, ids)
