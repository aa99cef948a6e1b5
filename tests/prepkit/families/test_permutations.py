"""Units in another order: the networks themselves say whether their function is the same."""

import pytest
import torch

import prepkit
from prepkit.families.permutations import NoPermutations, permutation, permute, unit_groups

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = (
    "lenet_like@digits",
    "vanilla_cnn@digits",
    "resnet8@digits",
    "resnet14@digits",
    "sine_mlp@sdf_small",
    "lenet_like@cifar10",
    "vanilla_cnn@tiny_imagenet",
    "resnet8@tiny_imagenet",  # average pooling leaves four values a channel
)
# Widths of hidden layers, counted by hand; a ResNet has those within each block and those of the sums of each stage.
UNITS = {
    "lenet_like@digits": [4, 8, 20, 16],
    "vanilla_cnn@digits": [6, 12, 12, 16],
    "resnet8@digits": [4, 4, 8, 8, 16, 16],
    "resnet14@digits": [4, 4, 4, 8, 8, 8, 16, 16, 16],
    "sine_mlp@sdf_small": [64, 64],
}


@pytest.fixture(params=NAMES)
def architecture(request):
    return prepkit.architecture(request.param)


def values_of(architecture):
    """A flat PRep of random values in float64; biases are large, so that a wrong order shows."""
    torch.manual_seed(0)
    network = architecture.build_folded().double()
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            if name.endswith("bias"):
                tensor.normal_(0, 0.5)
    flat = torch.cat([tensor.detach().flatten() for tensor in network.state_dict().values()])
    assert len(flat) == architecture.layout.total
    return flat


def outputs(architecture, flat):
    """Return the outputs of the network itself, its state dict filled value after value."""
    network = architecture.build_folded().double().eval()
    state, start = {}, 0
    for name, tensor in network.state_dict().items():
        state[name] = flat[start : start + tensor.numel()].view(tensor.shape)
        start += tensor.numel()
    network.load_state_dict(state)
    with torch.no_grad():
        return network(architecture.example_input(4).double())


def test_the_function_stays_and_the_values_move(architecture):
    flat = values_of(architecture)
    places = permutation(architecture, torch.Generator().manual_seed(1))
    assert torch.equal(places.sort().values, torch.arange(len(flat)))
    moved = flat[places]
    assert (moved != flat).double().mean() > 0.8
    before, after = outputs(architecture, flat), outputs(architecture, moved)
    assert before.std(0).min() > 1e-6
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", UNITS)
def test_units_are_all_there_are(name):
    groups = unit_groups(prepkit.architecture(name))
    assert sorted(group.units for group in groups) == sorted(UNITS[name])


@pytest.mark.parametrize("name", UNITS)
def test_every_axis_of_a_group_is_needed(name, monkeypatch):
    """Without one of its axes, a group changes the function: the outputs would show a mistake in any of them."""
    architecture = prepkit.architecture(name)
    flat = values_of(architecture)
    before = outputs(architecture, flat)
    for group in unit_groups(architecture):
        for missing in group.axes:
            kept = type(group)(group.units, tuple(axis for axis in group.axes if axis != missing))
            monkeypatch.setattr("prepkit.families.permutations.unit_groups", lambda _, kept=kept: [kept])
            places = permutation(architecture, torch.Generator().manual_seed(2))
            assert (outputs(architecture, flat[places]) - before).abs().max() > 1e-7, missing


def test_padding_stays_and_instances_move_together():
    architecture = prepkit.architecture("lenet_like@digits")
    total = architecture.layout.total
    preps = torch.arange(2 * 20 * 128, dtype=torch.float32).view(2, 20, 128)
    places = permutation(architecture, torch.Generator().manual_seed(0))
    moved = permute(preps, places)
    assert moved.shape == preps.shape
    assert torch.equal(moved.flatten(1)[:, total:], preps.flatten(1)[:, total:])
    assert torch.equal(moved.flatten(1)[:, :total], preps.flatten(1)[:, places])


def test_the_generator_decides():
    architecture = prepkit.architecture("resnet8@digits")
    first, again, other = (permutation(architecture, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_another_family_is_refused():
    architecture = prepkit.Architecture(
        "mine", "linear", (3,), "torch.nn:Linear", {"in_features": 3, "out_features": 2}
    )
    with pytest.raises(NoPermutations, match=r"'mine' is of family 'linear'; .* known for lenet_like, vanilla_cnn"):
        unit_groups(architecture)
