"""Running many instances of one architecture, differentiable with respect to their weights.

    outputs = run_instances(architecture, preps, inputs)        # [K, B, outputs]

One forward serves both the training of zoos, where tensors are leaves, and predicted instances, where tensors are views
of PReps that a network wrote. Only this module chooses how instances run: at once (stacking.py) where one instance
would leave the device idle, and one after another where the matrix products of one instance fill it.
Shapes: K instances, B inputs, H x W the PRep.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from prepkit.errors import LayoutMismatch
from prepkit.families.registry import Architecture
from prepkit.families.registry import architecture as registered
from prepkit.running._stacking import EVEN, PACK, StackedNetwork, Unstackable, stack_network
from prepkit.tensors import as_tensor

# This was measured on two cores (benchmarks/results). Below it, calls cost more than arithmetic, and stacked
# channels-last convolutions are 1.5 to 6 times as fast; above it, a loop is faster. On an accelerator, instances of any
# size are stacked.
STACKED_FLOPS_ON_CPU = 1.5e8  # operations in the forward of one instance on its batch


@dataclass(frozen=True, eq=False)
class Runner:
    """The forward of many instances of one network; `runner` makes it.

    network:       the network itself, or a StackedNetwork
    input_axes:    number of axes of one input
    channels_last: whether images are laid out so, which was faster wherever it was measured
    """

    network: nn.Module
    input_axes: int
    channels_last: bool = True

    @property
    def stacked(self) -> bool:
        """Whether instances run at once, not one after another."""
        return isinstance(self.network, StackedNetwork)

    @cached_property
    def _aliases(self) -> frozenset[str]:
        """Second names of tied tensors; functional_call takes only one name of each."""
        own = {name for name, _ in (*self.network.named_parameters(), *self.network.named_buffers())}
        return frozenset(self.network.state_dict().keys() - own)

    @cached_property
    def _constants(self) -> dict[str, Tensor]:
        """Floating-point buffers that no state dict holds; they follow the dtype of the tensors."""
        kept = self.network.state_dict()
        buffers = self.network.named_buffers()
        return {name: buffer for name, buffer in buffers if name not in kept and buffer.is_floating_point()}

    def __call__(self, tensors: Mapping[str, Tensor], inputs: Tensor, training: bool = False) -> Tensor:
        """Return the outputs `[K, B, ...]`.

        tensors:  `[K, *shape]` by name, for all of the network's state dict; running statistics are updated in place
        inputs:   `[B, *input_shape]` shared by all, or `[K, B, *input_shape]`
        training: whether BatchNorm normalises by the batch and Dropout drops
        """
        shared = inputs.dim() == self.input_axes + 1
        network = self.network.train(training)
        if isinstance(network, StackedNetwork):
            return network.call(tensors, inputs, shared, self.channels_last)
        count = next(iter(tensors.values())).shape[0]
        # One instance is no copy of a row, nor is its gradient.
        rows = {
            name: tensor.unbind(0) if count > 1 else (tensor.squeeze(0),)
            for name, tensor in tensors.items()
            if name not in self._aliases
        }
        dtype = next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())
        constants = {name: buffer.to(dtype) for name, buffer in self._constants.items()}
        given = self._laid_out(inputs) if shared else inputs
        outputs = []
        for index in range(count):
            given = given if shared else self._laid_out(inputs[index])
            own = {name: row[index] for name, row in rows.items()}
            outputs.append(functional_call(network, {**constants, **own}, (given,)))
        return torch.stack(outputs) if count > 1 else outputs[0].unsqueeze(0)

    def _laid_out(self, inputs: Tensor) -> Tensor:
        images = self.channels_last and inputs.dim() == 4
        return inputs.contiguous(memory_format=torch.channels_last) if images else inputs


@lru_cache(maxsize=64)
def runner(
    architecture: Architecture,
    folded: bool,
    stacked: bool,
    device: torch.device,
    dense: bool | None = None,
    padded: bool = False,
) -> Runner:
    """Return the forward of many instances.

    folded:  whether the network is the one without BatchNorm, whose tensors PReps hold, or the one that is trained
    stacked: whether instances run at once or one after another
    dense:   whether convolutions of instances that run at once have no groups; None where that is faster
    padded:  whether those without groups read a multiple of 8 channels, the last of which are 0
    raises Unstackable if they cannot run at once; RegistryError, FusionError if the network cannot be built
    """
    # The result is cached for all callers, so it and its proof must not depend on the first caller's mode.
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        with torch.random.fork_rng(devices=[]):
            network = architecture.build_folded() if folded else architecture.build()
        network = network.requires_grad_(False)
        if stacked:
            network = stack_network(network, architecture.input_shape, dense, padded)
    return Runner(network.to(device), len(architecture.input_shape))


@lru_cache(maxsize=64)
def is_stackable(architecture: Architecture, folded: bool) -> bool:
    """Whether instances of an architecture can run at once, which is proved by running some."""
    try:
        runner(architecture, folded, True, torch.device("cpu"), dense=False)
    except Unstackable:
        return False
    return True


@dataclass(frozen=True)
class Cost:
    """Cost of one instance's forward on one input.

    flops:  floating-point operations in convolutions and matrix products
    values: number of values that the layers return
    """

    flops: int
    values: int


@lru_cache(maxsize=64)
def forward_cost(architecture: Architecture) -> Cost:
    """Measure the cost of a forward by running one input."""
    with torch.random.fork_rng(devices=[]):
        network = architecture.build().eval()
    counts: list[int] = []

    def count(module: nn.Module, arguments: object, output: object) -> None:
        counts.extend(leaf.numel() for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor))

    for module in network.modules():
        module.register_forward_hook(count)
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        network(architecture.example_input(1))
    return Cost(int(counter.get_total_flops()), sum(counts))


def forward_flops(architecture: Architecture, batch: int) -> int:
    """Return the floating-point operations in one instance's forward on `batch` inputs."""
    return forward_cost(architecture).flops * batch


def activation_bytes(architecture: Architecture, batch: int) -> int:
    """Return the bytes in float32 of all layers' outputs for `batch` inputs, which a backward keeps, about."""
    return forward_cost(architecture).values * batch * 4


@lru_cache(maxsize=64)
def is_linear(architecture: Architecture) -> bool:
    """Whether all tensors of the network belong to linear layers, so that the samples of a batch never meet."""
    with torch.random.fork_rng(devices=[]):
        network = architecture.build()
    own = [module for module in network.modules() if module._parameters or module._buffers]
    return all(type(module) is nn.Linear for module in own)


def stacking_pays(architecture: Architecture, batch: int, device: torch.device, folded: bool = True) -> bool:
    """Whether instances are run at once on a device with `batch` inputs each; the answer never depends on timing."""
    small = device.type != "cpu" or forward_flops(architecture, batch) <= STACKED_FLOPS_ON_CPU
    return small and is_stackable(architecture, folded)


def padding_matters(architecture: Architecture, count: int) -> bool:
    """Whether so many instances' inputs beside each other have channels that padding makes a multiple of 8."""
    return architecture.input_shape[0] * count % EVEN > 0


def pack_size(architecture: Architecture, device: torch.device) -> int:
    """How many instances run at once at most: on a GPU as many as fill a dense convolution, elsewhere any number."""
    return sys.maxsize if device.type != "cuda" or is_linear(architecture) else PACK


def run_instances(architecture: Architecture | str, preps: Tensor, inputs: Tensor, *, dense: bool = False) -> Tensor:
    """Return the outputs `[K, B, ...]` of K instances in evaluation, differentiable in PReps and inputs.

    architecture: an architecture, or the name of a registered one
    preps:        `[K, H, W]`, PReps of this architecture without BatchNorm
    inputs:       `[B, *input_shape]` shared by all, or `[K, B, *input_shape]`; on the PReps' device. Floating-point
                  ones are converted to the PReps' dtype.
    dense:        run four convolutions at once as one without groups where a GPU is faster so; an instance whose
                  values are not finite then spoils the outputs of the other three
    returns outputs in the dtype of the PReps, also under autocast
    raises LayoutMismatch if PReps or inputs have another shape

    All activations of the K instances are in memory at once where gradients are needed.

    >>> architecture = prepkit.architecture("resnet8@digits")
    >>> height, width = 80, 64                      # see `architecture.layout.shape(width=64)`
    >>> outputs = prepkit.run_instances(architecture, torch.randn(5, height, width), torch.randn(2, 1, 8, 8))
    >>> outputs.shape
    torch.Size([5, 2, 10])
    """
    if isinstance(architecture, str):
        architecture = registered(architecture)
    preps, inputs = as_tensor(preps, "preps"), as_tensor(inputs, "inputs")
    if inputs.is_floating_point():
        inputs = inputs.to(preps.dtype)
    axes = len(architecture.input_shape)
    if preps.dim() != 3:
        raise LayoutMismatch(f"expected PReps [K, H, W], found {list(preps.shape)}.")
    fits = inputs.dim() in (axes + 1, axes + 2) and tuple(inputs.shape[-axes:]) == architecture.input_shape
    if not fits or (inputs.dim() == axes + 2 and len(inputs) != len(preps)):
        shape = ", ".join(map(str, architecture.input_shape))
        raise LayoutMismatch(
            f"{architecture.name} reads inputs [B, {shape}], or [{len(preps)}, B, {shape}] to give each instance its "
            f"own; found {list(inputs.shape)}."
        )
    tensors = architecture.layout.unpack(preps)
    if not len(preps):
        raise LayoutMismatch("there are no PReps to run: found [0, H, W].")
    tied = {alias: tensors[name] for alias, name in architecture.layout.ties}
    pays = stacking_pays(architecture, inputs.shape[-axes - 1], preps.device)
    run = runner(architecture, True, pays, preps.device, dense=None if dense and preps.is_cuda else False)
    size = pack_size(architecture, preps.device) if dense else len(preps)
    tensors |= tied
    if len(preps) <= size:
        return run(tensors, inputs).to(preps.dtype)
    outputs = []
    for first in range(0, len(preps), size):
        pack = slice(first, first + size)
        own = inputs[pack] if inputs.dim() == axes + 2 else inputs
        outputs.append(run({name: tensor[pack] for name, tensor in tensors.items()}, own))
    return torch.cat(outputs).to(preps.dtype)
