"""Networks of which nothing can be proved are refused as a whole."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fusion_samples import (
    Net,
    Standardised,
    a_hook,
    assert_unchanged,
    conv,
    net,
    noise,
    norm,
    plain,
    randomised,
    snapshot,
)
from torch import Tensor, nn

from prepkit.errors import FusionError
from prepkit.fusion.fold import Folded, UnfoldableNetwork, fold


class Uncopyable(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.lock = inner, threading.Lock()

    def forward(self, x):
        return self.inner(x)


class Unshared(nn.Module):
    """Says that it can be copied, and hands out itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = conv(), norm()

    def __deepcopy__(self, memo):
        return self

    def forward(self, x):
        return self.bn(self.conv(x))


def closure(swallow: bool) -> nn.Module:
    """A lambda keeps the original network, whose BatchNorm in training mode would change with each run of a copy."""
    network = plain().double()

    def forward(n: Any, x: Tensor) -> Tensor:
        try:
            return network.bn(n.conv(x))
        except FusionError:
            if not swallow:
                raise
            return n.bn(n.conv(x))

    network.run = forward
    return network


def counting(n: Any, x: Tensor) -> Tensor:
    n.count = getattr(n, "count", 0) + 1
    return n.bn(n.conv(x)) * n.count


def infinite() -> Net:
    network = plain()
    network.bn.weight.data[0] = math.inf
    return network


class NoMemory(nn.Module):
    """A module of which neither a copy nor a run fits the memory."""

    def __init__(self, error: Exception, *, copies: bool) -> None:
        super().__init__()
        self.error, self.copies = error, copies

    def __deepcopy__(self, memo: Any) -> NoMemory:
        if not self.copies:
            raise self.error
        return NoMemory(self.error, copies=True)

    def forward(self, inputs: Tensor) -> Tensor:
        raise self.error


REFUSED = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")
NO_MEMORY = r"^There is no memory to prove the fold, which runs copies of the network in float64"

WHOLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "lazy": (
        lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d()),
        r"0: LazyConv2d is not initialised; run",
    ),
    "meta": (lambda: plain().to("meta"), r"conv: Conv2d is on the meta device"),
    "cannot be copied": (lambda: Uncopyable(plain()), r"cannot be deep-copied: TypeError: cannot pickle"),
    "copy that shares": (lambda: nn.Sequential(Unshared()), r"cannot be deep-copied: its copy shares modules"),
    "closure": (lambda: closure(False), r"cannot be deep-copied: .*original, by add_ in the network itself"),
    "closure, swallowed": (lambda: closure(True), r"cannot be deep-copied: its copy runs on tensors of the original"),
    "fails": (
        lambda: nn.Sequential(conv(), norm(), nn.Linear(9, 2)),
        r"^A float64 copy of the network fails on the example input \[2, 4, 5, 5\] float32: RuntimeError: mat1 [^\n]*$",
    ),
    "no tensors": (lambda: net(lambda n, x: "words"), r"output holds no tensor"),
    "random": (
        lambda: net(lambda n, x: F.dropout(n.bn(n.conv(x)), training=True)),
        r"Two runs of the network on the same input differ by .*random numbers or keeps state",
    ),
    "state": (lambda: net(counting), r"Two runs .* differ"),
    "no memory for a copy": (
        lambda: nn.Sequential(conv(), norm(), NoMemory(REFUSED, copies=False)),
        NO_MEMORY + r", [0-9.]+ KiB each\. .*keep_batch_norm=True",
    ),
    "no memory for a copy, Python": (
        lambda: nn.Sequential(conv(), norm(), NoMemory(MemoryError(), copies=False)),
        NO_MEMORY,
    ),
    "no memory for a run": (lambda: nn.Sequential(conv(), norm(), NoMemory(REFUSED, copies=True)), NO_MEMORY + r"\."),
    "not finite": (infinite, r"output on the example input is not finite"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("name", WHOLE)
def test_network_refused_as_a_whole(name):
    build, reason = WHOLE[name]
    network = build()
    before = snapshot(network) if name not in ("lazy", "meta") else []
    for keep in (False, True):
        with pytest.raises(UnfoldableNetwork, match=reason):
            fold(network, noise(2, 4, 5, 5), keep_unfoldable=keep)
    if before:
        assert_unchanged(network, before)


def test_empty_input_proves_nothing():
    with pytest.raises(FusionError, match="on an input that is not empty"):
        fold(randomised(plain()), noise(0, 4, 5, 5))


def test_example_of_zeros_does_not_hide_a_subclass_that_does_more():
    """On zeros a standardised weight gives the bias, as a plain one does: noise at the place tells them apart."""
    network = randomised(plain(conv=Standardised(4, 4, 3)))
    with pytest.raises(FusionError, match="gives something else in its place"):
        fold(network, torch.zeros(2, 4, 5, 5))
    assert fold(randomised(plain()), torch.zeros(2, 4, 5, 5)).folded == (Folded("conv", "bn"),)


def test_batch_norm_out_of_the_reach_of_replacement():
    """A list holds the BatchNorm too: the replaced module is not the one that runs; only the final comparison sees."""
    network = plain()
    network.norms = [network.bn]
    network.run = lambda n, x: n.norms[0](n.conv(x))
    with pytest.raises(FusionError, match=r"not the same function: relative error .* in float64\. It is not returned"):
        fold(randomised(network), noise(2, 4, 5, 5), keep_unfoldable=True)


def test_hooks_on_all_modules_are_refused():
    handle = nn.modules.module.register_module_forward_hook(a_hook)
    try:
        with pytest.raises(FusionError, match="hooks on all modules are set"):
            fold(randomised(plain()), noise(2, 4, 5, 5))
    finally:
        handle.remove()
