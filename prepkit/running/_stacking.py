"""Many instances of one architecture as one network: tensors stacked along a first axis, channels side by side.

    stacked = stack_network(network, input_shape)    # the same forward with exchanged layers
    outputs = stacked.call(tensors, inputs, shared)

K convolutions become one convolution with K times the groups, K BatchNorms one BatchNorm over K times the channels, and
K linear layers one batched matrix product. Operations without parameters (activations, pooling, sums) work unchanged on
channels that lie side by side. Whether all this holds depends on a network's forward, so `stack_network` compares
outputs, gradients and running statistics with those of single instances in float64 before it returns the network.
Shapes: K instances, B inputs, C channels, [K, ...] a stacked tensor.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from prepkit.errors import PrepkitError, counted

# Measured on an H200: a GPU's matrix units want 64 channels and more, and grouped convolutions of few channels leave
# them idle. Packs of four ResNet8 (16 to 64 channels) in dense convolutions trained 1.6 times as fast as in groups.
PACK = 4  # largest number of instances whose convolutions become a dense one
DENSE_CHANNELS = 512  # largest number of channels of a dense convolution, whose work grows with their square
EVEN = 8  # A GPU's matrix units read so many values of bfloat16 at a time.
LIMIT = 1e-9  # relative error in float64; a layer that mixes instances is off by far more
TRIAL_INSTANCES, TRIAL_BATCH = 2, 3  # with two samples BatchNorm maps every value to +1 or -1


class Unstackable(PrepkitError):
    """The instances of a network cannot be run as one; run them one after another."""


class StackedConvolution(nn.Module):
    """K convolutions as one.

    Inputs are `[B, K * C, ...]`, or `[B, C, ...]` shared by all instances; outputs are `[B, K * outputs, ...]`.
    dense:  whether it is one convolution without groups, whose kernel is 0 between instances; None where that is
            faster. It multiplies by zeros, so the infinite numbers of one instance make those of all others NaN.
    padded: whether a convolution without groups reads a multiple of EVEN channels, the last of which are 0
    """

    dense: bool | None = None
    padded = False

    def __init__(self, layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> None:
        super().__init__()
        if layer.padding_mode != "zeros":
            raise Unstackable(f"padding mode {layer.padding_mode!r}")
        self.weight = _stacked(layer.weight)
        self.bias = _stacked_or_none(layer.bias)
        self.groups, self.channels = layer.groups, layer.in_channels
        self.arguments = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        self.convolve: Callable[..., Tensor] = _CONVOLUTIONS[type(layer)]

    def forward(self, features: Tensor) -> Tensor:
        """Convolve the features of each instance."""
        count = self.weight.shape[0]
        shared = features.shape[1] == self.channels
        bias = None if self.bias is None else self.bias.flatten()
        if shared and self.groups > 1:
            features, shared = _repeated(features, count), False
        is_dense = not shared and self.is_dense(features)
        groups = 1 if is_dense else self.groups if shared else self.groups * count
        weight = self._block_diagonal() if is_dense else self.weight.flatten(0, 1)
        if self.padded and groups == 1:
            features, weight = _widened(features), _widened(weight)
        return self.convolve(features, weight, bias, groups=groups, **self.arguments)

    def is_dense(self, features: Tensor) -> bool:
        """Whether one convolution without groups is faster although most of its weights are 0, as on a GPU."""
        count, channels = self.weight.shape[0], max(self.weight.shape[1:3])
        if self.groups > 1 or count == 1 or self.dense is not None:
            return bool(self.dense) and self.groups == 1
        return features.is_cuda and count <= PACK and count * channels <= DENSE_CHANNELS

    def _block_diagonal(self) -> Tensor:
        """The weights `[K * outputs, K * channels, ...]` of a convolution without groups, 0 between instances."""
        count, outputs, channels, *kernel = self.weight.shape
        own = torch.eye(count, dtype=self.weight.dtype, device=self.weight.device)
        own = own.view(count, 1, count, *[1] * (len(kernel) + 1))
        return (self.weight.unsqueeze(2) * own).reshape(count * outputs, count * channels, *kernel)


class StackedLinear(nn.Module):
    """K linear layers as one; inputs are `[B, K * C]`, `[B, C]` shared by all instances, or `[K, B, C]`."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = _stacked(layer.weight)
        self.bias = _stacked_or_none(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return `[B, K * outputs]`, or `[K, B, outputs]` for inputs `[K, B, C]`."""
        if features.dim() == 3:
            return self._apply_to(features)
        if features.dim() != 2:
            raise Unstackable(f"a linear layer reads a tensor of {counted(features.dim(), 'axis', 'axes')}")
        count, _, inputs = self.weight.shape
        if features.shape[1] == inputs:
            rows = features.expand(count, *features.shape)
        else:
            rows = features.reshape(len(features), count, inputs).transpose(0, 1)
        return self._apply_to(rows).transpose(0, 1).flatten(1)

    def _apply_to(self, rows: Tensor) -> Tensor:
        weight = self.weight.transpose(1, 2)
        return torch.bmm(rows, weight) if self.bias is None else torch.baddbmm(self.bias.unsqueeze(1), rows, weight)


class StackedBatchNorm(nn.Module):
    """K BatchNorms as one over `[B, K * C, ...]`; each channel has statistics of its own, so each instance has too."""

    running_mean: Tensor | None
    running_var: Tensor | None

    def __init__(self, layer: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> None:
        super().__init__()
        if layer.momentum is None:
            raise Unstackable("a BatchNorm with momentum=None counts its batches")
        self.momentum, self.eps, self.channels = layer.momentum, layer.eps, layer.num_features
        self.weight = _stacked_or_none(layer.weight)
        self.bias = _stacked_or_none(layer.bias)
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            buffer = getattr(layer, name)
            self.register_buffer(name, None if buffer is None else buffer.unsqueeze(0))

    def forward(self, features: Tensor) -> Tensor:
        """Normalise each channel of each instance; training uses the batch and updates the running statistics."""
        if features.shape[1] == self.channels:
            features = _repeated(features, self._count())
        return F.batch_norm(
            features,
            _flat(self.running_mean),
            _flat(self.running_var),
            _flat(self.weight),
            _flat(self.bias),
            self.training or self.running_mean is None,
            self.momentum,
            self.eps,
        )

    def _count(self) -> int:
        tensor = next((tensor for tensor in (self.weight, self.running_mean) if tensor is not None), None)
        if tensor is None:
            raise Unstackable("a BatchNorm without any tensor")
        return tensor.shape[0]


class StackedNetwork(nn.Module):
    """A network with stacked layers. Its tensors have the names of the single network's tensors, and a first axis K.

    instances_first: whether the network inside gets `[K, B, C]`, which suits linear layers alone, or `[B, K * C, ...]`
    dense, padded:   see StackedConvolution
    """

    def __init__(
        self, network: nn.Module, instances_first: bool, dense: bool | None = None, padded: bool = False
    ) -> None:
        super().__init__()
        self.network = _exchanged(copy.deepcopy(network), {})
        for module in self.network.modules():
            if isinstance(module, StackedConvolution):
                module.dense, module.padded = dense, padded
        self.instances_first = instances_first

    def forward(self, inputs: Tensor, shared: bool, channels_last: bool = False) -> Tensor:
        """Map inputs `[B, ...]` shared by all, or `[K, B, ...]`, to outputs `[K, B, ...]`."""
        count = next(self.parameters()).shape[0]
        if self.instances_first:
            rows = inputs.expand(count, *inputs.shape) if shared else inputs
            return self._checked(self.network(rows), count)
        features = inputs if shared else inputs.transpose(0, 1).flatten(1, 2)
        if channels_last and features.dim() == 4:
            features = features.contiguous(memory_format=torch.channels_last)
        outputs: Tensor = self.network(features)
        if outputs.shape[1] % count:
            raise Unstackable("its outputs do not stand instance by instance")
        rows = outputs.reshape(len(outputs), count, outputs.shape[1] // count, *outputs.shape[2:])
        return self._checked(rows.transpose(0, 1), count)

    @staticmethod
    def _checked(outputs: Tensor, count: int) -> Tensor:
        if outputs.shape[0] != count:
            raise Unstackable("its outputs do not stand instance by instance")
        return outputs

    def call(self, tensors: Mapping[str, Tensor], inputs: Tensor, shared: bool, channels_last: bool = False) -> Tensor:
        """Run with these tensors `[K, ...]`, named as in the single network, instead of its own."""
        named = {f"network.{name}": tensor for name, tensor in tensors.items()}
        outputs: Tensor = functional_call(self, named, (inputs, shared, channels_last))
        return outputs


def stack_network(
    network: nn.Module, input_shape: tuple[int, ...], dense: bool | None = None, padded: bool = False
) -> StackedNetwork:
    """Return a network that runs K instances of `network` at once, proved equal to running them one after another.

    dense, padded: whether convolutions have no groups and a multiple of EVEN channels (StackedConvolution)
    raises Unstackable with the reason
    """
    reasons = []
    for instances_first in (True, False) if len(input_shape) == 1 else (False,):
        try:
            stacked = StackedNetwork(network, instances_first, dense, padded).to(_device(network))
            _prove(network, stacked, input_shape)
            return stacked
        except Unstackable as reason:
            reasons.append(str(reason))
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            reasons.append(f"its forward does not run on stacked channels: {str(error).splitlines()[0]}")
    raise Unstackable(reasons[-1])


# Exchanging layers ------------------------------------------------------------------------------------------------

_CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
}
_LAYERS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    **dict.fromkeys(_CONVOLUTIONS, StackedConvolution),
    nn.Linear: StackedLinear,
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), StackedBatchNorm),
}


def _exchanged(module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """Exchange all layers of a module; a layer that stands in several places is exchanged once."""
    if module not in done:
        layer = _LAYERS.get(type(module))
        own = [*module._parameters, *module._buffers]
        if layer is not None:
            if module._forward_hooks or module._forward_pre_hooks:
                raise Unstackable(f"a {type(module).__name__} has hooks")
            done[module] = layer(module)
        elif own:
            raise Unstackable(f"{type(module).__name__} holds '{own[0]}' itself")
        else:
            done[module] = module
            for name, child in module._modules.items():
                if child is not None:
                    module._modules[name] = _exchanged(child, done)
    return done[module]


def _stacked(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().unsqueeze(0))


def _stacked_or_none(parameter: Tensor | None) -> nn.Parameter | None:
    return None if parameter is None else _stacked(parameter)


def _flat(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.flatten()


def _widened(tensor: Tensor) -> Tensor:
    """Add channels of zeros to features `[B, C, ...]` or weights `[O, C, ...]` up to a multiple of EVEN."""
    missing = -tensor.shape[1] % EVEN
    return F.pad(tensor, (*[0] * 2 * (tensor.dim() - 2), 0, missing)) if missing else tensor


def _repeated(features: Tensor, count: int) -> Tensor:
    """Repeat features `[B, C, ...]` for each instance: `[B, K * C, ...]`."""
    return features.repeat(1, count, *[1] * (features.dim() - 2))


def _device(network: nn.Module) -> torch.device:
    return next((tensor.device for tensor in network.state_dict().values()), torch.device("cpu"))


# The proof --------------------------------------------------------------------------------------------------------


def _prove(network: nn.Module, stacked: StackedNetwork, input_shape: tuple[int, ...]) -> None:
    """Compare outputs, gradients and statistics of random instances in training and in evaluation, in float64."""
    single = copy.deepcopy(network).double()
    stacked = copy.deepcopy(stacked).double()
    generator = torch.Generator().manual_seed(0)
    device = _device(network)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)

    tensors = {name: _trial_values(name, tensor, noise) for name, tensor in single.state_dict().items()}
    missing = tensors.keys() ^ {name.removeprefix("network.") for name in stacked.state_dict()}
    if missing:
        raise Unstackable(f"its tensors have other names once stacked: {sorted(missing)[0]}")
    inputs = noise(TRIAL_INSTANCES, TRIAL_BATCH, *input_shape)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for training, shared in ((True, False), (False, True)):
            given = inputs[0] if shared else inputs
            before = _generator_state(device)
            expected = _alone(single.train(training), tensors, given, shared)
            if not torch.equal(before, _generator_state(device)):  # outputs may be equal where little is dropped
                raise Unstackable("it draws random numbers, as Dropout does")
            _compare(expected, _results(stacked.train(training).call, tensors, (given, shared)))


def _generator_state(device: torch.device) -> Tensor:
    """Return the state of the global generator that layers draw from."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _trial_values(name: str, tensor: Tensor, noise: Callable[..., Tensor]) -> Tensor:
    """Return random values: variances above 0, and weights scaled by fan-in so that deep networks stay finite."""
    if not tensor.is_floating_point():
        return tensor.expand(TRIAL_INSTANCES, *tensor.shape).clone()
    values = noise(TRIAL_INSTANCES, *tensor.shape)
    if name.endswith("running_var"):
        return values.abs() + 0.5
    return values / math.sqrt(tensor[0].numel() if tensor.dim() > 1 else 1)


def _alone(network: nn.Module, tensors: Mapping[str, Tensor], inputs: Tensor, shared: bool) -> dict[str, Tensor]:
    """Return the results of single instances, run one after another."""

    def call(own: Mapping[str, Tensor], given: Tensor) -> Tensor:
        outputs: Tensor = functional_call(network, {name: tensor[0] for name, tensor in own.items()}, (given,))
        with_axis: Tensor = outputs[None]
        return with_axis

    rows = []
    for index in range(TRIAL_INSTANCES):
        own = {name: tensor[index : index + 1] for name, tensor in tensors.items()}
        rows.append(_results(call, own, (inputs if shared else inputs[index],)))
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def _results(
    call: Callable[..., Tensor], tensors: Mapping[str, Tensor], arguments: tuple[Any, ...]
) -> dict[str, Tensor]:
    """Return outputs, running statistics and gradients of a sum that weighs each output differently, all `[K, ...]`."""
    own = {name: tensor.clone() for name, tensor in tensors.items()}
    learning = [n for n, t in own.items() if t.is_floating_point() and not n.endswith(("running_mean", "running_var"))]
    for name in learning:
        own[name].requires_grad_()
    outputs = call(own, *arguments)
    weights = torch.linspace(-1, 1, outputs[0].numel(), dtype=outputs.dtype, device=outputs.device)
    gradients = torch.autograd.grad(
        (outputs * weights.view(outputs.shape[1:])).sum(), [own[name] for name in learning], allow_unused=True
    )
    results = {"output": outputs.detach()}
    results |= {name: own[name].detach() for name in own if name not in learning and own[name].is_floating_point()}
    for name, gradient in zip(learning, gradients, strict=True):
        results[f"gradient of {name}"] = torch.zeros_like(own[name]) if gradient is None else gradient
    return results


def _compare(expected: Mapping[str, Tensor], stacked: Mapping[str, Tensor]) -> None:
    """Raise Unstackable for the first difference.

    Errors of gradients are relative to the largest gradient, since some gradients are 0 up to rounding.
    """
    largest = max((g.abs().amax() for name, g in expected.items() if name.startswith("gradient")), default=0.0)
    for name, value in expected.items():
        if value.shape != stacked[name].shape:
            raise Unstackable(f"its {name} is {list(stacked[name].shape)}, one by one {list(value.shape)}")
        scale = largest if name.startswith("gradient") else value.abs().amax()
        error = float((value - stacked[name]).abs().amax() / max(float(scale), 1e-30)) if value.numel() else 0.0
        if not error <= LIMIT:
            raise Unstackable(f"its {name} differs from that of single instances by {error:.1e}")
