"""Every refusal of a BatchNorm by place and reason, and what is no reason."""

from __future__ import annotations

import pickle
import re
from typing import Any

import pytest
import torch
from fusion_samples import Relu, assert_unchanged, batch_norms, conv, net, noise, norm, randomised, snapshot
from refused_networks import REFUSALS, Beside, outputs
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from prepkit.errors import FusionError
from prepkit.fusion.fold import Folded, UnfoldableNetwork, fold, fuse_batch_norm


@pytest.mark.filterwarnings("ignore")  # the old weight_norm and TorchScript are deprecated, and still met
@pytest.mark.parametrize("name", REFUSALS)
def test_refusal_names_place_and_reason(name):
    build, reasons, shape = REFUSALS[name].build, REFUSALS[name].reasons, REFUSALS[name].shape
    network = build()
    network = Beside(network if "half" in name else randomised(network))
    randomised(network.layer), randomised(network.norm)
    network.to(next(network.inner.parameters()).dtype)
    x = noise(*shape, dtype=network.layer.weight.dtype)
    before = snapshot(network)
    with pytest.raises(UnfoldableNetwork) as caught_error:
        fold(network, x)
    assert_unchanged(network, before)
    refusals, message = caught_error.value.refusals, str(caught_error.value)
    assert {refusal.batch_norm for refusal in refusals} == set(reasons)
    for refusal in refusals:
        assert re.search(reasons[refusal.batch_norm], refusal.reason)
        assert refusal.batch_norm in message
    assert f": {refusals[0].reason}" in message
    assert message.startswith(f"{len(reasons)} of ")
    assert "keep_unfoldable=True keeps these and folds the rest" in message.splitlines()[-1]
    assert "pack_checkpoint(keep_batch_norm=True)" in message.splitlines()[-1]

    result = fold(network, x, keep_unfoldable=True)
    assert_unchanged(network, before)
    assert result.kept == refusals
    assert result.folded[-1] == Folded("layer", "norm")
    assert set(batch_norms(result.network)) == {place for place in reasons if "F.batch_norm" not in place}
    assert result.error_before_cast <= 1e-9
    tolerance = 1e-2 if "half" in name else 1e-4
    for expected, found in zip(outputs(network, x), outputs(result.network, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_all_refusals_stand_in_one_error():
    network = randomised(nn.Sequential(norm(), conv(), nn.ReLU(), norm(), conv(), norm(track_running_stats=False)))
    with pytest.raises(FusionError) as caught_error:
        fuse_batch_norm(network, noise(2, 4, 5, 5))
    assert [refusal.batch_norm for refusal in caught_error.value.refusals] == ["0", "3", "5"]
    assert str(caught_error.value).startswith("3 of 3 BatchNorms cannot be folded without changing the network:\n  0: ")
    assert pickle.loads(pickle.dumps(caught_error.value)).refusals == caught_error.value.refusals


def test_the_network_itself_is_a_batch_norm():
    with pytest.raises(FusionError, match="\n  the network itself: its input is the network's input"):
        fuse_batch_norm(randomised(norm()), noise(2, 4, 5, 5))


def test_row_of_batch_norms_of_which_a_later_one_stays():
    network = randomised(nn.Sequential(conv(), norm(), Relu(4), norm()))
    result = fold(network, noise(2, 4, 5, 5), keep_unfoldable=True)
    assert result.folded == (Folded("0", "1"),)
    assert [refusal.batch_norm for refusal in result.kept] == ["2", "3"]
    assert result.kept[1].reason == "it follows BatchNorm '2', which cannot be folded"


def test_layer_output_is_not_mistaken_for_a_later_tensor_at_its_address():
    def forward(n, x):
        for _ in range(20):
            n.conv(x)  # freed at once: its address is free for the next tensor
            x = x.relu()
        return n.bn(x)

    network = randomised(net(forward))
    with pytest.raises(FusionError, match="bn: its input comes from relu in the network itself"):
        fold(network, noise(2, 4, 5, 5))


def test_reference_cycle_is_no_holder_of_an_output():
    def forward(n, x):
        box = [n.conv(x)]
        box.append(box)
        return n.bn(box[0])

    assert fold(randomised(net(forward)), noise(2, 4, 5, 5)).folded == (Folded("conv", "bn"),)


def test_prehook_that_raises_is_no_reader():
    def forward(n, x):
        try:
            n.act(x)
        except ValueError:
            return n.bn(n.conv(x))

    def refuse(*_: Any) -> None:
        raise ValueError

    network = randomised(net(forward, "conv bn act"))
    network.act.register_forward_pre_hook(refuse)
    assert fold(network, noise(2, 4, 5, 5)).folded == (Folded("conv", "bn"),)


def test_activations_are_not_kept_during_the_run():
    alive: list[Any] = []
    most = 0

    def count(module: nn.Module, args: Any, output: Tensor) -> None:
        nonlocal most
        most = max(most, sum(not reference.expired() for reference in alive))
        with torch._C.DisableTorchFunction():
            alive.append(StorageWeakRef(output.untyped_storage()))

    layers = [module for _ in range(8) for module in (conv(), nn.Identity(), norm(), nn.ReLU(), nn.Identity())]
    network = randomised(nn.Sequential(*layers))
    for layer in layers:
        if isinstance(layer, nn.Identity):
            layer.register_forward_hook(count)
    assert len(fold(network, noise(2, 4, 5, 5)).folded) == 8
    # Two runs of the original and two of the folded network, and one of each on an input of another size.
    assert len(alive) == 6 * 16
    assert most <= 2
