"""The plain ways, as the field writes them today, with the same threads and allocator. Never weakened."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import kl_div, log_softmax, softmax

from prepkit import Layout


def memory_copy(source: Tensor, out: Tensor) -> Tensor:
    """The same bytes from one buffer to another with torch's own parallel copy: the limit of packing."""
    return out.copy_(source)


def allocate_and_copy(source: Tensor) -> Tensor:
    """The same bytes into a fresh buffer: the limit of packing without `out`."""
    return torch.empty_like(source).copy_(source)


def pack_row_by_row(tensors: list[Tensor], height: int, width: int) -> np.ndarray:
    """A matrix filled row by row in Python from the flat values: the usual research code."""
    flat = np.concatenate([tensor.detach().numpy().ravel() for tensor in tensors])
    matrix = np.zeros((height, width), dtype=flat.dtype)
    for row in range(height):
        values = flat[row * width : (row + 1) * width]
        matrix[row, : len(values)] = values
    return matrix


def pack_vector_and_pad(tensors: list[Tensor], height: int, width: int) -> Tensor:
    """`parameters_to_vector`, then padding, then a view."""
    vector = torch.nn.utils.parameters_to_vector(tensors)
    return torch.nn.functional.pad(vector, (0, height * width - vector.numel())).view(height, width)


def unpack_by_slices(prep: Tensor, shapes: list[tuple[str, tuple[int, ...]]]) -> dict[str, Tensor]:
    """Slice, view and clone a tensor at a time."""
    flat = prep.view(-1)
    tensors, start = {}, 0
    for name, shape in shapes:
        size = int(np.prod(shape))
        tensors[name] = flat[start : start + size].view(shape).clone()
        start += size
    return tensors


def train_one_at_a_time(
    build: Callable[[], nn.Module],
    seeds: list[int],
    inputs: Tensor,
    targets: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    optimiser: Callable[[nn.Module], torch.optim.Optimizer],
    epochs: int,
    batch_size: int,
) -> list[nn.Module]:
    """The loop that everybody writes, with the data in memory already: no loader, no augmentation, no copies."""
    networks = []
    for seed in seeds:
        torch.manual_seed(seed)
        network = build().train()
        updates = optimiser(network)
        for _ in range(epochs):
            for chosen in torch.randperm(len(inputs)).split(batch_size):
                updates.zero_grad()
                loss(network(inputs[chosen]), targets[chosen]).backward()
                updates.step()
        networks.append(network.eval())
    return networks


@torch.no_grad()
def accuracy(network: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Share of images classified correctly."""
    return float((network(inputs).argmax(1) == labels).double().mean())


def netspace_step(
    space: nn.Module,
    optimiser: torch.optim.Optimizer,
    network: nn.Module,
    layout: Layout,
    preps: Tensor,
    images: Tensor,
) -> Tensor:
    """A step of the single-architecture setting as it is usually written: float32, one instance after another.

    space:   with `encoder.plain` and `decoder.plain`, the network as the paper defines it
    network: one instance's, without BatchNorm; its values come from PReps
    returns the loss before the step
    """
    predicted = space.decoder.plain(space.encoder.plain(preps))  # type: ignore[union-attr, operator]
    losses = []
    for target_prep, predicted_prep in zip(preps, predicted, strict=True):
        with torch.no_grad():
            target = functional_call(network, layout.unpack(target_prep), (images,))
        outputs = functional_call(network, layout.unpack(predicted_prep), (images,))
        log_outputs, probabilities = log_softmax(outputs / 4, dim=1), softmax(target / 4, dim=1)
        losses.append(16 * kl_div(log_outputs, probabilities, reduction="batchmean"))
    loss = torch.stack(losses).mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.detach()


def evaluate_one_at_a_time(network: nn.Module, layout: Layout, preps: Tensor, images: Tensor) -> Tensor:
    """The outputs of instances, each loaded into the network and run."""
    outputs = []
    with torch.no_grad():
        for prep in preps:
            network.load_state_dict(layout.unpack(prep))
            outputs.append(network(images))
    return torch.stack(outputs)
