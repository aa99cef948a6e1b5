"""What a fold leaves as it was, and what can be done with its result."""

from __future__ import annotations

import pytest
import torch
from fusion_samples import net, noise, plain, randomised
from refused_networks import REFUSALS, Beside

from prepkit.errors import FusionError
from prepkit.fusion.fold import Folded, fold, fuse_batch_norm


def test_random_state_is_untouched():
    network = randomised(net(lambda n, x: n.bn(n.conv(x)) + 0 * torch.rand(1)))
    before = torch.random.get_rng_state()
    fold(network, noise(2, 4, 5, 5))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_device():
    network = randomised(net(lambda n, x: n.bn(n.conv(x)) + 0 * torch.rand(1, device=x.device))).cuda().half()
    before = torch.cuda.get_rng_state()
    result = fold(network, noise(2, 4, 5, 5))  # the input is brought to the network
    assert torch.equal(before, torch.cuda.get_rng_state())
    assert {(p.device.type, p.dtype) for p in result.network.parameters()} == {("cuda", torch.float16)}
    assert result.error_before_cast <= 1e-9
    with pytest.raises(FusionError, match=r"the output of 'inner\.conv' is also read by relu in"):
        fold(Beside(REFUSALS["output used twice"].build()).cuda(), noise(2, 4, 5, 5))


def test_default_device_does_not_matter():
    network = randomised(plain())
    with torch.device("meta"):
        assert fold(network, noise(2, 4, 5, 5)).folded == (Folded("conv", "bn"),)


def test_result_can_be_trained():
    folded = fuse_batch_norm(randomised(plain()), noise(2, 4, 5, 5)).train()
    folded(noise(2, 4, 5, 5)).sum().backward()
    assert all(parameter.grad is not None for parameter in folded.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in folded.modules())


def test_import_is_light(forked_python):
    """Only our own modules come on top of torch; not even a run loads the compiler."""
    code = """
import sys, torch
before = set(sys.modules)
from prepkit.fusion.fold import fuse_batch_norm
print(sorted(name for name in set(sys.modules) - before if not name.startswith("prepkit")))
fuse_batch_norm(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)), torch.ones(1, 2))
print("torch._dynamo" in sys.modules)
"""
    printed = forked_python.run("-c", code).stdout
    assert printed.split("\n")[:2] == ["[]", "False"]
