"""Acting on stacked tensors and on PReps: the networks themselves say whether their functions are the same."""

import by_hand
import pytest
import symmetry_samples
import torch

import prepkit
from prepkit.symmetry.acting import KINDS, Action

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("lenet_like@digits", "resnet8@digits", "sine_mlp@sdf_small")


def preps_of(architecture, count=3, width=64):
    """Random PReps in float64, with something in the padding."""
    generator = torch.Generator().manual_seed(0)
    shape = architecture.layout.shape(width)
    return torch.randn(count, shape.height, shape.width, generator=generator, dtype=torch.float64) * 0.2


@pytest.mark.parametrize("name", NAMES)
def test_each_instance_of_a_batch_is_changed_by_itself_and_computes_the_same(name):
    architecture = prepkit.architecture(name)
    action = Action(prepkit.symmetries(architecture))
    preps, inputs = preps_of(architecture), architecture.example_input(4).double()
    change = action.draw(torch.Generator().manual_seed(1), count=len(preps), kinds=KINDS)
    moved = action.on_preps(change, preps)
    before = prepkit.run_instances(architecture, preps, inputs)
    assert before.std(1).min() > 1e-6
    torch.testing.assert_close(prepkit.run_instances(architecture, moved, inputs), before, rtol=1e-8, atol=1e-8)
    total = architecture.layout.total
    assert torch.equal(moved.flatten(1)[:, total:], preps.flatten(1)[:, total:])
    assert (moved != preps).flatten(1)[:, :total].double().mean() > 0.5
    tensors = action.on_tensors(change, architecture.layout.unpack(preps))
    unpacked = architecture.layout.unpack(moved)
    assert all(torch.equal(tensors[key], unpacked[key]) for key in unpacked)


@pytest.mark.parametrize("name", NAMES)
def test_places_are_those_of_one_network_after_another(name):
    architecture = prepkit.architecture(name)
    action = Action(prepkit.symmetries(architecture))
    change = action.draw(torch.Generator().manual_seed(2), count=4)
    places = action.places(change)
    total = architecture.layout.total
    assert places.shape == (4, total)
    assert torch.equal(places.sort(1).values, torch.arange(total).expand(4, -1))
    flat = torch.arange(total, dtype=torch.float64)
    for row in range(4):
        own = type(change)({key: value[row] for key, value in change.sources.items()})
        assert torch.equal(action.places(own), places[row])
        orders = {key: by_hand.Order(value.tolist()) for key, value in own.sources.items()}
        tensors = {slot.name: flat[slot.start : slot.stop].view(slot.shape) for slot in architecture.layout}
        moved = by_hand.permuted(action.symmetries, tensors, orders) if total < 3000 else None
        if moved:
            assert torch.equal(
                torch.cat([moved[slot.name].flatten() for slot in architecture.layout]), flat[places[row]]
            )


def test_one_change_for_all_instances():
    architecture = prepkit.architecture("lenet_like@digits")
    action = Action(prepkit.symmetries(architecture))
    preps = preps_of(architecture)
    change = action.draw(torch.Generator().manual_seed(1), kinds=KINDS)
    moved = action.on_preps(change, preps)
    for row in range(len(preps)):
        assert torch.equal(action.on_preps(change, preps[row : row + 1])[0], moved[row])


def test_groups_within_groups_of_many_instances():
    """Heads and what is within them: each instance by itself, against one after another."""
    torch.manual_seed(0)
    network, inputs = symmetry_samples.hand_made_attention()
    network.eval()
    action = Action(prepkit.symmetries(network, inputs))
    states = [by_hand.values(network, seed) for seed in range(3)]
    stacked = {key: torch.stack([state[key] for state in states]) for key in states[0]}
    change = action.draw(torch.Generator().manual_seed(4), count=3, kinds=KINDS)
    assert change.sources["P_2"].shape == (3, 2, 4)
    moved = action.on_tensors(change, stacked)
    for row, state in enumerate(states):
        own = {key: value[row] for key, value in moved.items()}
        before, after = (by_hand.outputs(network, tensors, inputs) for tensors in (state, own))
        torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


def test_dtypes_stay_and_gradients_flow():
    architecture = prepkit.architecture("sine_mlp@sdf_small")
    action = Action(prepkit.symmetries(architecture))
    preps = preps_of(architecture).float().requires_grad_()
    moved = action.on_preps(action.draw(torch.Generator().manual_seed(1), count=3, kinds=KINDS), preps)
    assert moved.dtype == torch.float32
    moved.sum().backward()
    assert preps.grad is not None
    assert set(preps.grad.flatten(1)[:, : architecture.layout.total].abs().unique().tolist()) == {1.0}


def test_the_generator_decides():
    action = Action(prepkit.symmetries("resnet8@digits"))
    first, again, other = (action.draw(torch.Generator().manual_seed(seed)).sources for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_values_of_another_network_are_refused():
    architecture = prepkit.architecture("lenet_like@digits")
    action = Action(prepkit.symmetries(architecture))
    change = action.draw(torch.Generator(), count=2)
    with pytest.raises(prepkit.LayoutMismatch, match=r"expected PReps \[N, H, W\] of 2,302 values, found \[3, 4, 64\]"):
        action.on_preps(change, torch.zeros(3, 4, 64))
    with pytest.raises(prepkit.SymmetryError, match="a change of 2 networks does not fit 3 of them"):
        action.on_preps(change, preps_of(architecture))
    with pytest.raises(
        prepkit.LayoutMismatch, match=r"'linear.weight' has shape \[3, 3\]; the network's is \[10, 16\]"
    ):
        action.on_tensors(change, {"linear.weight": torch.zeros(3, 3)})
    with pytest.raises(prepkit.SymmetryError, match="unknown kind of symmetry 'turn'; use permute, scale, sign, phase"):
        action.draw(torch.Generator(), kinds=("turn",))
