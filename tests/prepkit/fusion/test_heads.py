"""BatchNorms of heads that run in training only: folded where it can be proved, else affine maps with the reason.

What a head computes is written out by hand in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fusion_samples import with_random_values
from torch import Tensor, nn

from prepkit.fusion.fold import UnfoldableNetwork, fold

IMAGES = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(3))
FEATURES = torch.randn(3, 5, 4, 4, generator=torch.Generator().manual_seed(4))


def head() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(5, 5, 1, bias=False), nn.BatchNorm2d(5), nn.ReLU())


class Net(nn.Module):
    """A trunk, which evaluation returns, and heads; a function says what the network returns in training."""

    def __init__(self, in_training: Callable[[Any, Tensor], Any], **heads: nn.Module) -> None:
        super().__init__()
        self.in_training = in_training
        self.conv, self.norm = nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)
        for name, module in heads.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Any:
        x = self.norm(self.conv(x))
        return self.in_training(self, x) if self.training else x


def normalised(values: Tensor, norm: Any) -> Tensor:
    mean, var, gamma, beta = (
        tensor.double()[:, None, None] for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (values - mean) / (var + norm.eps).sqrt() * gamma + beta


def by_hand(module: Any, x: Tensor) -> Tensor:
    """What a head gives."""
    mixed = torch.einsum("oc,nchw->nohw", module[0].weight.double()[:, :, 0, 0], x.double())
    return normalised(mixed, module[1]).clamp_min(0)


def assert_same_head(original: Any, folded: nn.Module) -> None:
    with torch.no_grad():
        torch.testing.assert_close(
            folded.double()(FEATURES.double()), by_hand(original, FEATURES), rtol=1e-5, atol=1e-6
        )


FOLD = {
    "two heads": lambda n, x: (x, n.aux(x), n.aux2(x.relu())),
    "dictionary": lambda n, x: {"out": x, "aux": [n.aux(x), n.aux2(x)]},
    "dropout": lambda n, x: x + F.dropout(n.aux(x)) * n.aux2(F.dropout2d(x, 0.3)),
    "noise": lambda n, x: x + n.aux(x + torch.rand_like(x)) * n.aux2(x),
}


@pytest.mark.parametrize("name", FOLD)
def test_a_head_folds_on_the_path_of_training(name):
    network = with_random_values(Net(FOLD[name], aux=head(), aux2=head()))
    before = torch.random.get_rng_state()
    result = fold(network, IMAGES)
    assert torch.equal(before, torch.random.get_rng_state())
    assert [pair.batch_norm for pair in result.folded] == ["norm", "aux.1", "aux2.1"]
    assert not any("running" in key or ".1." in key for key in result.network.state_dict())
    assert not any(module.training for module in result.network.modules())
    for own in ("aux", "aux2"):
        assert_same_head(getattr(network, own), getattr(result.network, own))
    with torch.no_grad():
        x = F.conv2d(IMAGES.double(), network.conv.weight.double(), network.conv.bias.double())
        torch.testing.assert_close(
            result.network.double()(IMAGES.double()), normalised(x, network.norm), rtol=1e-5, atol=1e-6
        )


def with_targets(n: Any, x: Tensor) -> Tensor:
    raise ValueError("In training mode, targets should be passed")


def activated(n: Any, x: Tensor) -> Tensor:
    return x + n.aux[2](n.aux[1](n.aux[0](x).relu()))


def counting(n: Any, x: Tensor) -> Tensor:
    n.count = getattr(n, "count", 0) + 1
    return x + n.aux(x) * n.count


STAYS = {
    "needs targets": (
        with_targets,
        "; in training mode, the network fails on the example: ValueError: In training mode",
    ),
    "never called": (lambda n, x: x, "; neither did one in training mode"),
    "activation between": (activated, "; in training mode, its input comes from relu"),
    "layer read elsewhere": (
        lambda n, x: x + n.aux(x) * n.aux[0].weight.norm(),
        "; in training mode, its layer 'aux.0' has tensors that are also read outside its calls",
    ),
    "state": (counting, "; in training mode: Two runs of the network on the same input differ"),
}


@pytest.mark.parametrize("name", STAYS)
def test_a_head_that_cannot_be_proved_becomes_a_map_that_says_why(name):
    in_training, reason = STAYS[name]
    network = with_random_values(Net(in_training, aux=head()))
    result = fold(network, IMAGES)
    assert [pair.batch_norm for pair in result.folded] == ["norm"]
    (item,) = result.affine
    assert item.batch_norm == "aux.1"
    assert item.reason.startswith(f"the run on the example input never called it{reason}")
    assert_same_head(network.aux, result.network.aux)


def test_a_layer_that_evaluation_uses_takes_nothing_of_a_head():
    """The trunk's layer runs twice in training, once for the head, whose BatchNorm would change the evaluation."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.aux = nn.Conv2d(4, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

        def forward(self, x: Tensor) -> Any:
            return (self.aux[1](self.conv(x)), self.aux[0](x)) if self.training else self.conv(x)

    network = with_random_values(Shared())
    result = fold(network, IMAGES)
    assert result.folded == ()
    (item,) = result.affine
    assert item.reason.endswith("in training mode, it would go into 'conv', which also runs in evaluation")
    assert torch.equal(result.network.conv.weight, network.conv.weight)


def test_heads_of_which_training_calls_some_stay_maps():
    """Another head may use the same layer at another time."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norms = nn.Conv2d(5, 5, 1), nn.ModuleDict({"a": nn.BatchNorm2d(5), "b": nn.BatchNorm2d(5)})

        def forward(self, x: Tensor) -> Tensor:
            return self.norms["a"](self.layer(x))

    network = with_random_values(Net(lambda n, x: x + n.aux(x), aux=Heads()))
    result = fold(network, IMAGES)
    assert {item.batch_norm: item.reason.partition("; ")[2] for item in result.affine} == {
        "aux.norms.a": "a run in training mode never called 'aux.norms.b', which may share its layer",
        "aux.norms.b": "neither did one in training mode",
    }
    assert torch.equal(result.network.aux.layer.weight, network.aux.layer.weight)


def test_a_batch_norm_chosen_by_hand_is_no_head():
    network = with_random_values(Net(lambda n, x: n.other(x), other=nn.BatchNorm2d(5)))
    with pytest.raises(UnfoldableNetwork, match="other: the run on the example input never called it"):
        fold(network, IMAGES)
