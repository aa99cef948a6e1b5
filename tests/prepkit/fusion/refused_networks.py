"""Networks whose BatchNorms cannot be folded, each with the place and the reason."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from fusion_samples import (
    BatchNormAct,
    Net,
    Relu,
    Standardised,
    a_hook,
    conv,
    huge_in_half,
    net,
    never_returns,
    norm,
    plain,
    randomised,
)
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def hooked(module: str, kind: str) -> Net:
    network = plain()
    getattr(network.get_submodule(module), f"register_{kind}_hook")(a_hook)
    return network


def parametrised(module: str) -> Net:
    network = plain()
    nn.utils.parametrize.register_parametrization(network.get_submodule(module), "weight", nn.Tanh())
    return network


def own_forward() -> Net:
    network = plain()
    network.bn.forward = MethodType(lambda self, x: F.relu(nn.BatchNorm2d.forward(self, x)), network.bn)
    return network


def read_in_numpy(n: Any, x: Tensor) -> Tensor:
    y = n.conv(x)
    return n.bn(y) + float(y.numpy().sum())


def read_from_a_list(n: Any, x: Tensor) -> Tensor:
    maps = [n.conv(x)]
    return torch.cat([n.bn(maps[-1]), *maps])


def kept_in_an_attribute(n: Any, x: Tensor) -> Tensor:
    n.last = {"maps": n.conv(x)}
    return n.bn(n.last["maps"])


def in_place(n: Any, x: Tensor) -> Tensor:
    y = n.conv(x)
    y += 1
    return n.bn(y)


def caught(n: Any, x: Tensor) -> Tensor:
    """A BatchNorm that fails must not go on to count as the reader of what follows."""
    y = n.conv(x)
    try:
        return n.bn(x.flatten())
    except ValueError:
        return n.bn2(y) + y


class Doubler(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Silu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


class TwoInputs(nn.BatchNorm2d):
    def forward(self, input, skip):
        return super().forward(input) + skip


class TupleNorm(nn.BatchNorm2d):
    def forward(self, input):
        return (super().forward(input),)


class Repeated(nn.Conv2d):
    """Gives more channels than it says."""

    def forward(self, input):
        return super().forward(input).repeat(1, 2, 1, 1)


class OddBias(nn.Conv2d):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.bias = nn.Parameter(torch.zeros(1, self.out_channels, 1, 1))

    def forward(self, input):
        return self._conv_forward(input, self.weight, None) + self.bias


@dataclasses.dataclass
class Case:
    build: Callable[[], nn.Module]
    reasons: dict[str, str]
    shape: tuple[int, ...]


def case(build: Callable[[], nn.Module], shape: tuple[int, ...] = (2, 4, 5, 5), **reasons: str) -> Case:
    """Reasons by name; `{}` stands for the place of the network, `functional` for a batch_norm without module."""
    names = {"functional": "F.batch_norm in 'inner'"}
    return Case(build, {names.get(name, f"inner.{name}"): text for name, text in reasons.items()}, shape)


ACTIVATION_NORM = nn.Sequential(conv(), BatchNormAct(4, Silu()))
OUTSIDE = "has tensors that are also read outside its calls, by"
REFUSALS: dict[str, Case] = {
    "activation between": case(
        lambda: net(lambda n, x: n.bn(n.act(n.conv(x))), "conv act bn"),
        bn="its input comes from relu in 'inner.act', not straight from a convolution or Linear layer$",
    ),
    "in-place activation between": case(
        lambda: net(lambda n, x: n.bn(n.act(n.conv(x))), act=nn.ReLU(inplace=True)),
        bn="^the output of 'inner.conv' is also read by relu_ in 'inner.act'$",
    ),
    "in-place arithmetic between": case(
        lambda: net(in_place), bn="output of 'inner.conv' is also read by add_ in 'inner'"
    ),
    "output used twice": case(
        lambda: net(lambda n, x: n.bn(y := n.conv(x)) + n.act(y), "conv act bn"),
        bn="^the output of 'inner.conv' is also read by relu in 'inner.act'$",
    ),
    "output used three times": case(
        lambda: net(lambda n, x: n.bn(y := n.conv(x)) + n.act(y) + y.sum(), "conv act bn"),
        bn="^the output of 'inner.conv' is also read by relu in 'inner.act' and sum in 'inner'$",
    ),
    "output into two BatchNorms": case(
        lambda: net(lambda n, x: n.bn(y := n.conv(x)) + n.bn2(y), "conv bn bn2"),
        bn="also read by batch_norm in 'inner.bn2'",
        bn2="also read by batch_norm in 'inner.bn'",
    ),
    "output returned": case(
        lambda: net(lambda n, x: {"y": [y := n.conv(x)], "z": n.bn(y)}),
        bn="the output of 'inner.conv' is also read by the network's return",
    ),
    "view of the output returned": case(
        lambda: net(lambda n, x: (n.conv(x), n.bn(y := n.conv2(x)), y.mT), "conv conv2 bn"),
        bn="the output of 'inner.conv2' is also read by mT in 'inner'",
    ),
    "output in a list": case(
        lambda: net(read_from_a_list), bn="the output of 'inner.conv' is also read by cat in 'inner'"
    ),
    "output kept": case(
        lambda: net(kept_in_an_attribute),
        bn=r"the output of 'inner.conv' is still held after the run \(an attribute, a list or a hook\)",
    ),
    "output into numpy": case(lambda: net(read_in_numpy), bn="'inner.conv' is also read by numpy in 'inner'"),
    "output's address": case(
        lambda: net(lambda n, x: n.bn(y := n.conv(x)) + 0 * y.data_ptr()), bn="also read by data_ptr in 'inner'"
    ),
    "output into TorchScript": case(
        lambda: net(lambda n, x: n.script(y := n.conv(x)) + n.bn(y), script=torch.jit.script(Doubler())),
        bn="the output of 'inner.conv' is also read by mul in 'inner'",
    ),
    "shared convolution": case(
        lambda: net(lambda n, x: n.bn(n.conv(x)) + n.bn2(n.conv(2 * x)), "conv bn bn2"),
        bn="its layer 'inner.conv' is shared: it ran 2 times in one run",
        bn2="its layer 'inner.conv' is shared",
    ),
    "shared BatchNorm": case(
        lambda: net(lambda n, x: n.bn(n.conv(x)) + n.bn(n.conv2(x)), "conv conv2 bn"), bn="it is shared: it ran 2 times"
    ),
    "no statistics": case(
        lambda: plain(bn=norm(track_running_stats=False)), bn=r"no running statistics \(track_running_stats=False\)"
    ),
    "at the input, before padding": case(
        lambda: net(lambda n, x: n.conv(n.bn(x))),
        bn=r"the network's input: .*before 'inner.conv', whose padding adds zeros after .*\(pre-activation\)",
    ),
    "row of BatchNorms without a layer": case(
        lambda: net(lambda n, x: n.bn2(n.bn(x)), "bn bn2"),
        bn="its input is the network's input",
        bn2="it follows BatchNorm 'inner.bn', which cannot be folded",
    ),
    "after a BatchNorm with an activation": case(
        lambda: net(lambda n, x: n.bn(n.pair(x)), "bn", pair=copy.deepcopy(ACTIVATION_NORM)),
        bn="it follows 'inner.pair.1', which applies modules of its own after normalising",
    ),
    "Linear over tokens": case(
        lambda: plain(conv=nn.Linear(7, 4), bn=nn.BatchNorm1d(4)),
        (2, 4, 7),
        bn=r"'inner.conv' gives 3 axes \(Linear over tokens\): axis 1, which it normalises, is not the features",
    ),
    "convolution without batch axis": case(
        lambda: plain(bn=nn.BatchNorm1d(4)), (4, 4, 4), bn=r"'inner.conv' gives 3 axes \(an input without batch axis\)"
    ),
    "hook on the layer": case(lambda: hooked("conv", "forward"), bn=r"its layer 'inner.conv' carries hooks \(a_hook\)"),
    "pre-hook on the layer": case(lambda: hooked("conv", "forward_pre"), bn="its layer 'inner.conv' carries hooks"),
    "hook on the BatchNorm": case(
        lambda: hooked("bn", "forward"), bn=r"it carries hooks \(a_hook\).*remove them first"
    ),
    "pre-hook on the BatchNorm": case(lambda: hooked("bn", "forward_pre"), bn="it carries hooks"),
    "backward hook": case(lambda: hooked("bn", "full_backward"), bn="it carries hooks"),
    "backward pre-hook": case(lambda: hooked("conv", "full_backward_pre"), bn="its layer 'inner.conv' carries hooks"),
    "parametrised layer": case(
        lambda: parametrised("conv"), bn="its layer 'inner.conv' is parametrised; first use .*remove_parametrizations"
    ),
    "parametrised BatchNorm": case(lambda: parametrised("bn"), bn="it is parametrised"),
    "weight_norm of old": case(
        lambda: plain(conv=nn.utils.weight_norm(conv())), bn=r"its layer 'inner.conv' carries hooks \(WeightNorm\)"
    ),
    "spectral_norm of old": case(
        lambda: plain(conv=nn.utils.spectral_norm(conv())), bn=r"its layer 'inner.conv' carries hooks \(SpectralNorm\)"
    ),
    "forward set on the instance": case(own_forward, bn="it has a forward of its own, set on the instance"),
    "functional": case(
        lambda: net(lambda n, x: F.batch_norm(n.conv(x), n.g.weight, n.g.bias.exp()), "conv", g=nn.GroupNorm(2, 4)),
        functional="batch_norm is called as a function; use a BatchNorm module",
    ),
    "functional in TorchScript": case(
        lambda: net(lambda n, x: n.script(n.conv(x)), "conv", script=torch.jit.script(randomised(norm()).eval())),
        functional="batch_norm is called as a function",
    ),
    "functional with a module's statistics": case(
        lambda: net(lambda n, x: F.batch_norm(n.conv(x), n.bn.running_mean, n.bn.running_var)),
        functional="batch_norm is called as a function",
        bn=f"it {OUTSIDE} batch_norm in 'inner'",
    ),
    "forward called past the module": case(
        lambda: net(lambda n, x: n.bn.forward(n.conv(x))),
        functional="batch_norm is called as a function",
        bn=f"it {OUTSIDE} batch_norm in 'inner'",
    ),
    "never reached": case(lambda: net(lambda n, x: n.conv(x)), bn="the run on the example input never called it"),
    "weight read elsewhere": case(
        lambda: net(lambda n, x: n.bn(n.conv(x)) * n.conv.weight.norm()), bn=f"'inner.conv' {OUTSIDE} norm in 'inner'"
    ),
    "weight returned": case(
        lambda: net(lambda n, x: (n.bn(n.conv(x)), n.conv.weight)), bn=f"'inner.conv' {OUTSIDE} the network's return"
    ),
    "subclass that does more": case(
        lambda: plain(bn=Relu(4)),
        bn=r"'inner.conv', folded, gives something else in its place \(relative error .*Relu\) is more than its class",
    ),
    "subclass with two inputs": case(
        lambda: net(lambda n, x: n.bn(n.conv(x), x), "conv", bn=TwoInputs(4)),
        bn="it is called with more than one tensor",
    ),
    "subclass that returns a tuple": case(
        lambda: net(lambda n, x: n.bn(n.conv(x))[0], "conv", bn=TupleNorm(4)), bn="gives something else in its place"
    ),
    "convolution subclass that does more": case(
        lambda: plain(conv=Standardised(4, 4, 3)), bn=r"'inner.conv', folded, gives .* \(Standardised, BatchNorm2d\)"
    ),
    "convolution subclass with other channels": case(
        lambda: plain(conv=Repeated(4, 2, 3)), bn="it normalises 4 features, 'inner.conv' has 2"
    ),
    "convolution subclass with a bias of its own": case(
        lambda: plain(conv=OddBias(4, 4, 3)),
        bn=r"the bias of 'inner.conv' has shape \[1, 4, 1, 1\], not one value a feature",
    ),
    "exception in the BatchNorm": case(
        lambda: net(never_returns, "conv", bn=nn.BatchNorm1d(4)),
        bn="'inner.conv' and it do not run on random input: ValueError",
    ),
    "exception on the way": case(
        lambda: net(caught, "conv bn bn2"),
        bn="its input comes from flatten in 'inner'",
        bn2="the output of 'inner.conv' is also read by add in 'inner'",
    ),
    "too large for half": case(huge_in_half, bn="folding it into 'inner.conv' gives .*beyond float16"),
}


class Beside(nn.Module):
    """A network, and a pair beside it which folds whatever the network does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.layer, self.norm = inner, nn.Linear(16, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.inner(x), self.norm(self.layer(x.flatten(1)[:, :16]))


def outputs(network: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        leaves = pytree.tree_leaves(network.eval()(x))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]
