"""Training the networks of a bench: steps of AdamW, and the weights that were best on validation instances."""

# ruff: noqa: N803 - names of tensors end in their axes

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from prepkit import views
from prepkit.benching._baselines import LeftOut, by_architecture
from prepkit.benching._networks import WIDTH_OF_GRAPH, GraphNetwork, TokenTransformer
from prepkit.benching.target import Part
from prepkit.errors import LayoutMismatch
from prepkit.support.device import choose_device

BATCH, EPOCHS, WARM_UP, JUDGED_EVERY = 16, 30, 20, 20
LEAST_STEPS, MOST_STEPS = 300, 5000
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 1e-2
MOST_TOKENS = 2048
MOST_EDGE_VALUES = 1 << 24  # numbers in the messages of a batch: 64 MiB of float32 in each round
Build = Callable[[Part, Tensor, int], nn.Module]


def token_transformer(device: str) -> Callable[[Part, Part, Part], np.ndarray]:
    """Return the learner of a transformer on tokens."""

    def build(train: Part, preps: Tensor, outputs: int) -> nn.Module:
        view = views.tokens(train.zoo)
        count = view.shapes["tokens"][0]
        if count > MOST_TOKENS:
            raise LeftOut(f"a network is {count:,} tokens, and attention among more than {MOST_TOKENS:,} takes hours.")
        return TokenTransformer(view, preps, outputs)

    return by_architecture(lambda train, validation, test: trained(build, train, validation, test, device))


def graph_network(device: str) -> Callable[[Part, Part, Part], np.ndarray]:
    """Return the learner of a graph network, whose predictions do not depend on the order of hidden units."""

    def build(train: Part, preps: Tensor, outputs: int) -> nn.Module:
        try:
            view = views.graph(train.zoo, kernels="joined")
        except LayoutMismatch as error:
            raise LeftOut(str(error)) from None
        edges = view.edge_index.shape[1]
        if edges * BATCH * WIDTH_OF_GRAPH > MOST_EDGE_VALUES:
            raise LeftOut(f"a network is a graph of {edges:,} edges, and messages along so many take hours.")
        return GraphNetwork(view, preps, outputs)

    return by_architecture(lambda train, validation, test: trained(build, train, validation, test, device))


def trained(build: Build, train: Part, validation: Part, test: Part, device: str) -> np.ndarray:
    """Train a network on training instances and return what it predicts of test instances, `[N]`.

    build: makes the network from the training part, its PReps in float32, and the number of outputs
    """
    place = choose_device(device)
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(train.seed)
        preps = train.zoo.preps().float()
        target = _Target(train)
        network = build(train, preps, max(1, train.num_classes)).to(place)
        _fit(network, preps, target(train), _inputs(validation), target(validation), train.seed, place)
        outputs = _outputs(network, _inputs(test), place)
    return target.guesses(outputs)


class _Target:
    """Brings numbers to mean 0 and deviation 1 of the training instances, and back; classes stay as they are."""

    def __init__(self, train: Part) -> None:
        self.is_class = bool(train.num_classes)
        known = train.known.astype(np.float64)
        self.mean, self.deviation = float(known.mean()), float(known.std())

    def __call__(self, part: Part) -> Tensor:
        if self.is_class:
            return torch.from_numpy(part.known)
        return torch.from_numpy((part.known - self.mean) / self.deviation).float()

    def guesses(self, outputs: Tensor) -> np.ndarray:
        if self.is_class:
            return outputs.argmax(1).numpy()
        found: np.ndarray = outputs[:, 0].double().numpy() * self.deviation + self.mean
        return found


def _fit(
    network: nn.Module,
    preps: Tensor,
    target_N: Tensor,
    validation: Tensor,
    validation_target: Tensor,
    seed: int,
    device: torch.device,
) -> None:
    """Train, and give the network the weights that were best on validation instances."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    batches = _batches(len(preps), generator)
    best, kept = math.inf, copy.deepcopy(network.state_dict())
    steps = min(max(LEAST_STEPS, EPOCHS * len(preps) // BATCH), MOST_STEPS)
    for step in range(1, steps + 1):
        share = min(1.0, step / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * share
        rows = next(batches)
        loss = _loss(network(preps[rows].to(device)), target_N[rows].to(device))
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        if step % JUDGED_EVERY == 0:
            error = float(_loss(_outputs(network, validation, device), validation_target))
            if error < best:
                best, kept = error, copy.deepcopy(network.state_dict())
    network.load_state_dict(kept)


def _batches(count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the rows of one batch after another, each row once before any of them twice."""
    while True:
        yield from torch.split(torch.randperm(count, generator=generator), BATCH)


def _loss(outputs: Tensor, target: Tensor) -> Tensor:
    if target.is_floating_point():
        return nn.functional.mse_loss(outputs[:, 0], target)
    return nn.functional.cross_entropy(outputs, target)


def _inputs(part: Part) -> Tensor:
    return part.zoo.preps().float()


def _outputs(network: nn.Module, preps: Tensor, device: torch.device) -> Tensor:
    with torch.no_grad():
        return torch.cat([network(rows.to(device)).cpu() for rows in torch.split(preps, 4 * BATCH)])
