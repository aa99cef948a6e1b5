"""BatchNorms that have no layer to go into become affine maps, and frozen ones are known by what they hold.

Statistics are random throughout: fresh ones (mean 0, variance 1) would hide every mistake.
"""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prepkit
from prepkit.families.architecture import Architecture
from prepkit.families.registry import architecture_from_callable
from prepkit.fusion.fold import FusionError, UnfoldableNetwork, fold, fuse_batch_norm


class FrozenBatchNorm2d(nn.Module):
    """As torchvision's: four buffers, and an affine map of them."""

    def __init__(self, features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(features))
        self.register_buffer("bias", torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.reshape(1, -1, 1, 1) * (self.running_var.reshape(1, -1, 1, 1) + self.eps).rsqrt()
        return x * scale + (self.bias.reshape(1, -1, 1, 1) - self.running_mean.reshape(1, -1, 1, 1) * scale)


class Squared(FrozenBatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square()


def randomised(network: nn.Module) -> nn.Module:
    """The network with random parameters and statistics, in training mode as it comes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in network.modules():
            for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                if tensor.is_floating_point():
                    values = torch.randn(tensor.shape, generator=generator)
                    tensor.copy_(0.5 + 1.5 * torch.rand(tensor.shape, generator=generator) if "var" in name else values)
    return network


def error(network: nn.Module, folded: nn.Module, inputs: Tensor) -> float:
    """How far the folded network's outputs are from the trained network's, both in float64."""
    with torch.no_grad():
        expected = copy.deepcopy(network).double().eval()(inputs.double())
        found = copy.deepcopy(folded).double().eval()(inputs.double())
    assert expected.shape == found.shape
    return float((expected - found).abs().max() / expected.abs().max())


def norms_left(network: nn.Module) -> list[str]:
    return [name for name in network.state_dict() if name.endswith(("running_mean", "running_var"))]


IMAGES = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(3))


# Known by what they hold --------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_a_frozen_batch_norm_folds(eps):
    network = randomised(nn.Sequential(nn.Conv2d(4, 5, 3, bias=False), FrozenBatchNorm2d(5, eps), nn.ReLU()))
    result = fold(network, IMAGES)
    assert [pair.batch_norm for pair in result.folded] == ["1"]
    assert list(result.network.state_dict()) == ["0.weight", "0.bias"]
    assert error(network, result.network, IMAGES) < 1e-6
    factor = (network[1].weight / (network[1].running_var + eps).sqrt()).numpy()
    np.testing.assert_allclose(
        result.network[0].weight.detach().numpy(),
        network[0].weight.detach().numpy() * factor[:, None, None, None],
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    "norm",
    [
        nn.SyncBatchNorm(5),
        nn.InstanceNorm2d(5, affine=True, track_running_stats=True),
        nn.InstanceNorm2d(5, track_running_stats=True),
    ],
)
def test_other_modules_with_running_statistics_fold(norm):
    network = randomised(nn.Sequential(nn.Conv2d(4, 5, 3), norm, nn.ReLU()))
    result = fold(network, IMAGES)
    assert norms_left(result.network) == []
    assert error(network, result.network, IMAGES) < 1e-6


@pytest.mark.parametrize("keep", [False, "affine"])
def test_a_module_that_does_more_with_its_statistics_is_refused(keep):
    network = randomised(nn.Sequential(nn.Conv2d(4, 5, 3), Squared(5)))
    with pytest.raises(UnfoldableNetwork, match=r"1 of 1 BatchNorm .*\n  1: .*Squared"):
        fold(network, IMAGES, keep_unfoldable=keep)


class Standardised(nn.Conv2d):
    """Weight standardisation through batch_norm, as timm has it."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, weight=(self.bias * 0.1).view(-1), training=True)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias)


def test_weight_standardisation_is_no_batch_norm():
    network = randomised(nn.Sequential(Standardised(4, 5, 3), nn.ReLU(), nn.Conv2d(5, 5, 1), nn.BatchNorm2d(5)))
    result = fold(network, IMAGES)
    assert [pair.batch_norm for pair in result.folded] == ["3"]
    assert error(network, result.network, IMAGES) < 1e-6


# Affine maps --------------------------------------------------------------------------------------------------


class PreActivation(nn.Module):
    """DenseNet's order: BatchNorm, activation, convolution, concatenation."""

    def __init__(self, growth: int = 3, layers: int = 4) -> None:
        super().__init__()
        widths = [4 + growth * index for index in range(layers)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.convs = nn.ModuleList(nn.Conv2d(width, growth, 3, padding=1) for width in widths)
        self.last = nn.BatchNorm2d(growth)

    def forward(self, x: Tensor) -> Tensor:
        for norm, conv in zip(self.norms, self.convs, strict=True):
            new = conv(norm(x).relu())
            x = torch.cat([x, new], 1)
        return self.last(torch.sigmoid(new)).flatten(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_has_no_layer_becomes_an_affine_map(dtype):
    network = randomised(PreActivation()).to(dtype)
    result = fold(network, IMAGES, keep_unfoldable="affine")
    assert [refusal.batch_norm for refusal in result.affine] == [*(f"norms.{index}" for index in range(4)), "last"]
    assert (result.folded, result.kept) == ((), ())
    assert norms_left(result.network) == []
    assert {parameter.dtype for parameter in result.network.parameters()} == {dtype}
    assert error(network, result.network, IMAGES) < {torch.bfloat16: 0.1}.get(dtype, 1e-5)
    norm, scale = network.norms[2], result.network.norms[2]
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * factor
    assert torch.equal(scale.weight, factor.to(dtype))
    assert torch.equal(scale.bias, shift.to(dtype))
    before = {name: p.shape for name, p in network.named_parameters()}
    assert {name: p.shape for name, p in result.network.named_parameters()} == before  # 2 C of the 4 C values are left


def test_a_refusal_is_summed_by_kind_and_names_the_way_out():
    network = randomised(PreActivation(layers=8))
    with pytest.raises(UnfoldableNetwork) as caught:
        fold(network, IMAGES)
    lines = str(caught.value).splitlines()
    assert lines[0] == "9 of 9 BatchNorms cannot be folded without changing the network:"
    assert re.match(r"  7 BatchNorms \(norms\.1, norms\.2, norms\.3 and 4 more\): its input comes from cat", lines[2])
    assert len(lines) == 5
    assert lines[-1].startswith('keep_unfoldable="affine" makes each of these a scale and a shift per channel; ')
    assert len(caught.value.refusals) == 9


def test_a_refusal_names_a_method_that_merges_branches():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.identity = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return (self.norm(self.conv(x)) + self.identity(x)).relu()

        def reparameterize(self) -> None: ...

    with pytest.raises(
        UnfoldableNetwork, match=r" '0' has a method reparameterize\(\), which may merge .* call it first.$"
    ):
        fold(randomised(nn.Sequential(Branches())), IMAGES)


def test_no_way_out_is_named_where_there_is_none():
    network = randomised(nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False), nn.Conv2d(4, 2, 3, padding=1)))
    with pytest.raises(UnfoldableNetwork) as caught:
        fold(network, IMAGES, keep_unfoldable="affine")
    assert "affine" not in str(caught.value).splitlines()[-1]
    with pytest.raises(FusionError, match="keep_unfoldable is 'afine'"):
        fold(network, IMAGES, keep_unfoldable="afine")


def test_the_network_itself_becomes_a_map():
    network = randomised(nn.BatchNorm2d(4))
    result = fold(network, IMAGES, keep_unfoldable="affine")
    assert list(result.network.state_dict()) == ["weight", "bias"]
    assert error(network, result.network, IMAGES) < 1e-6


def test_a_shared_batch_norm_is_one_map():
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.norm = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.one(x)) + self.norm(self.two(x))

    network = randomised(Network())
    result = fold(network, IMAGES, keep_unfoldable="affine")
    assert [refusal.batch_norm for refusal in result.affine] == ["norm"]
    assert error(network, result.network, IMAGES) < 1e-6


class Activated(nn.BatchNorm2d):
    """timm's: normalises, then applies its child."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.act = nn.PReLU(features)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


def test_modules_that_a_batch_norm_applies_stay_behind_its_map():
    network = randomised(nn.Sequential(Activated(4), nn.Conv2d(4, 2, 3)))
    result = fold(network, IMAGES, keep_unfoldable="affine")
    assert list(result.network.state_dict()) == ["0.weight", "0.bias", "0.act.weight", "1.weight", "1.bias"]
    assert error(network, result.network, IMAGES) < 1e-6


# Beside the path of the run -----------------------------------------------------------------------------------


class WithHead(nn.Module):
    """A head runs in training only, as those of GoogLeNet and of segmentation networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)
        self.aux = nn.Sequential(nn.Conv2d(5, 5, 1), nn.BatchNorm2d(5), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return x + self.aux(x) if self.training else x


def test_a_head_that_runs_in_training_only_folds_into_its_own_layer():
    network = randomised(WithHead())
    result = fold(network, IMAGES)
    assert [(pair.layer, pair.batch_norm) for pair in result.folded] == [("conv", "norm"), ("aux.0", "aux.1")]
    assert (result.affine, result.kept) == ((), ())
    assert norms_left(result.network) == []
    assert list(result.network.state_dict()) == ["conv.weight", "conv.bias", "aux.0.weight", "aux.0.bias"]
    assert error(network, result.network, IMAGES) < 1e-6
    assert error(network.aux, result.network.aux, torch.randn(2, 5, 3, 3)) < 1e-6


class OfDomains(nn.Module):
    """One layer for all domains, and a BatchNorm for each: folding the one that ran would break the others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norms = nn.Conv2d(4, 5, 3), nn.ModuleList(nn.BatchNorm2d(5) for _ in range(3))
        self.domain = 1

    def forward(self, x: Tensor) -> Tensor:
        return self.norms[self.domain](self.conv(x))


def test_batch_norms_among_which_a_network_chooses_are_all_mapped():
    network = randomised(OfDomains())
    with pytest.raises(UnfoldableNetwork, match="2 of 3"):
        fold(network, IMAGES)
    result = fold(network, IMAGES, keep_unfoldable="affine")
    assert (len(result.folded), len(result.affine)) == (0, 3)
    for domain in range(3):
        network.domain = result.network.domain = domain
        assert error(network, result.network, IMAGES) < 1e-6


# As architectures ---------------------------------------------------------------------------------------------

NETWORKS = {"PreActivation": PreActivation, "WithHead": WithHead, "OfDomains": OfDomains}


@pytest.mark.parametrize("name", NETWORKS)
def test_an_architecture_builds_the_network_of_its_record(name):
    """Also where another version of prepkit would fold another set of BatchNorms."""
    architecture = architecture_from_callable(f"{__name__}:{name}", (4, 6, 6))
    network = randomised(architecture.build())
    folded = fuse_batch_norm(network, IMAGES, keep_unfoldable="affine")
    stored = Architecture.from_dict(architecture.to_dict(), trust_code=True)
    rebuilt = stored.build_folded()
    rebuilt.load_state_dict(folded.state_dict())
    assert list(rebuilt.state_dict()) == list(folded.state_dict()) == list(architecture.folded_shapes)
    assert error(network, rebuilt, IMAGES) < 1e-5


def test_a_zoo_holds_and_rebuilds_affine_maps(tmp_path):
    architecture = architecture_from_callable(f"{__name__}:PreActivation", (4, 6, 6))
    networks = [randomised(architecture.build()) for _ in range(2)]
    networks[1].norms[1].running_mean.add_(1)
    with prepkit.ZooWriter(tmp_path / "zoo", width=16) as writer:
        with pytest.raises(UnfoldableNetwork, match='keep_unfoldable="affine"'):
            writer.add(networks[0].state_dict(), architecture=architecture)
        for network in networks:
            writer.add(network.state_dict(), architecture=architecture, keep_unfoldable="affine")
    (stored,) = prepkit.open_zoo(tmp_path / "zoo").manifest.architectures
    assert stored.fused
    assert not any("running" in slot.name for slot in stored.layout)
    zoo = prepkit.open_zoo(tmp_path / "zoo", trust_code=True)
    for index, network in enumerate(networks):
        assert error(network, zoo.network(index), IMAGES) < 1e-5
    assert prepkit.verify(tmp_path / "zoo").ok


class WithFrozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.alias = nn.Conv2d(4, 5, 3, bias=False), FrozenBatchNorm2d(5), None
        self.alias = self.norm

    def forward(self, x: Tensor) -> Tensor:
        return self.alias(self.conv(x))


def test_a_record_of_an_earlier_version_builds_what_it_holds():
    """Frozen BatchNorms were once left as they are, and the record said nothing of it but the names in its layout."""
    architecture = architecture_from_callable(f"{__name__}:WithFrozen", (4, 6, 6))
    network = randomised(architecture.build())
    assert list(architecture.folded_shapes) == ["conv.weight", "conv.bias"]
    data = architecture.to_dict()
    data |= {"layout": prepkit.Layout.of(network).to_dict(), "num_parameters": 180}
    earlier = Architecture.from_dict(data, trust_code=True).build_folded()
    earlier.load_state_dict(network.state_dict())
    assert error(network, earlier, IMAGES) == 0
