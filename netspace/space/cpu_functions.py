"""Which functions compute encoder and decoder on a CPU: netspace's own ones, or those of the plain network.

Which are faster is the processor's: where it multiplies matrices in bfloat16, the own ones win by far; elsewhere they
may gain nothing. So a training tries both at its start, and its run keeps to the choice, as the two round differently.
Shapes: N instances, H x W the PRep, E embedding values.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from netspace.space import fast
from netspace.space.network import NetSpace
from prepkit.support.device import bf16_autocast
from prepkit.support.progress import Progress

OWN, PLAIN = "own", "plain"
ROUNDS = 4  # of each way, after one that is not counted
BUDGET = 20.0  # seconds for a part, after which no other round begins
WORTH = 0.95  # The plain network must take less than this share of the time, since it takes more memory.

Way = Callable[[Tensor], Tensor]


def follow(space: NetSpace, chosen: Mapping[str, Any] | str) -> None:
    """Let encoder and decoder use what was chosen for each, or for both; where that is not "plain", their own."""
    of = chosen if isinstance(chosen, Mapping) else {"encoder": chosen, "decoder": chosen}
    space.encoder.own_on_cpu = of.get("encoder") != PLAIN
    space.decoder.own_on_cpu = of.get("decoder") != PLAIN


def choose(
    space: NetSpace, preps_NHW: Tensor, *, halved: bool, fits: bool, progress: Progress
) -> dict[str, Any] | None:
    """Choose for encoder and decoder by a measurement; None where the plain network is all that applies.

    preps_NHW: as many as a step has
    halved:    whether products are in bfloat16
    fits:      whether the memory has room for the plain network, which is not tried otherwise
    returns what a run records: "own" or "plain" for each part that has the choice, and the least `seconds` of both
    """
    latent_NE = torch.linspace(-1, 1, len(preps_NHW) * space.embedding_size).view(len(preps_NHW), -1).requires_grad_()
    parts: dict[str, tuple[nn.Module, Way, Tensor]] = {}
    if fast.encodes(preps_NHW, space.encoder):
        parts["encoder"] = (space.encoder, space.encoder.plain, preps_NHW)
    if fast.decodes(latent_NE, space.decoder, space.width, space.columns):
        parts["decoder"] = (space.decoder, space.decoder.plain, latent_NE)
    if not parts:
        return None
    if not fits:
        progress.say("The memory has no room for the plain network, so netspace's own functions are used.")
        return dict.fromkeys(parts, OWN)
    follow(space, OWN)
    seconds = {name: least_seconds(part, plain, given, halved) for name, (part, plain, given) in parts.items()}
    chosen = {name: PLAIN if took[PLAIN] < WORTH * took[OWN] else OWN for name, took in seconds.items()}
    for name, took in seconds.items():
        found = f"a batch takes {took[OWN]:.2g} s by own functions, {took[PLAIN]:.2g} s by plain ones"
        progress.say(f"{name} on this CPU: {found}; the run keeps to {chosen[name]} ones.")
    return {**chosen, "seconds": seconds}


def least_seconds(part: nn.Module, plain: Way, given: Tensor, halved: bool) -> dict[str, float]:
    """Time forward and backward passes of both ways in turn; the least seconds of each, with four digits.

    Gradients and random states stay as they are.
    """
    asked = [tensor for tensor in (given, *part.parameters()) if tensor.requires_grad]
    ways: dict[str, Way] = {OWN: part, PLAIN: plain}
    found: dict[str, list[float]] = {name: [] for name in ways}
    begin = time.perf_counter()
    for turn in range(ROUNDS + 1):
        if turn > 1 and time.perf_counter() - begin > BUDGET:
            break
        for name, way in ways.items():
            found[name].append(seconds_of(way, given, asked, halved))
    return {name: float(f"{min(seconds[1:]):.4g}") for name, seconds in found.items()}


def seconds_of(way: Way, given: Tensor, asked: list[Tensor], halved: bool) -> float:
    """Seconds of one forward and backward pass."""
    begin = time.perf_counter()
    with bf16_autocast(given.device, halved):
        outputs = way(given)
    torch.autograd.grad(outputs.float().sum(), asked)
    return time.perf_counter() - begin
