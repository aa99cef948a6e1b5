"""Alignment, canonical form and orbit distance: against all permutations of tiny networks, and on outputs."""

import sys
from itertools import pairwise, permutations, product

import pytest
import symmetry_samples
import torch
from torch import nn
from torch.func import functional_call

import prepkit
from prepkit.symmetry.aligning import Aligner, scrambled_copies

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = (
    "resnet8@digits",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("lenet_like@digits", "sine_mlp@sdf_small")),
)


class Sine(nn.Module):
    def forward(self, x):
        return torch.sin(3.0 * x)


def mlp(activation, *sizes):
    layers = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after, dtype=torch.float64), activation()]
    return nn.Sequential(*layers[:-1])


def random_preps(found, count, seed=0, scale=0.5):
    """Random instances in float64, with something in the padding."""
    generator = torch.Generator().manual_seed(seed)
    shape = found.layout.shape(16)
    return torch.randn(count, shape.height, shape.width, generator=generator, dtype=torch.float64) * scale


def outputs_of(network, found, preps, inputs):
    return torch.stack([functional_call(network, found.layout.unpack(prep), inputs) for prep in preps])


def norm(layout, a, b):
    return float((layout.pack(a, layout.shape(16)) - layout.pack(b, layout.shape(16))).norm())


def reordered(own, orders):
    """Reorder the hidden units of an MLP by hand: orders of the layers 0, 2, ..."""
    moved = dict(own)
    for place, order in enumerate(orders):
        layer, after = 2 * place, 2 * place + 2
        moved[f"{layer}.weight"] = moved[f"{layer}.weight"][list(order)]
        moved[f"{layer}.bias"] = moved[f"{layer}.bias"][list(order)]
        moved[f"{after}.weight"] = moved[f"{after}.weight"][:, list(order)]
    return moved


def best_by_force(found, own, other, sizes):
    """Return the least distance over all orders of the hidden units of an MLP."""
    layout = found.layout
    own, other = layout.unpack(own), layout.unpack(other)
    every = product(*(permutations(range(size)) for size in sizes))
    return min(norm(layout, reordered(own, orders), other) for orders in every)


# Against all permutations ---------------------------------------------------------------------------------------


def test_one_hidden_layer_is_aligned_as_well_as_any_order_can():
    network = mlp(nn.ReLU, 2, 5, 2)
    found = prepkit.symmetries(network, torch.randn(3, 2, dtype=torch.float64))
    preps = random_preps(found, 7)
    aligned = prepkit.align(found, preps[1:], preps[0])
    expected = [best_by_force(found, prep, preps[0], (5,)) for prep in preps[1:]]
    assert aligned.after.tolist() == pytest.approx(expected, rel=1e-12)
    assert (aligned.after < aligned.before).sum() >= 5
    distances = prepkit.orbit_distance(found, preps[1:], preps[0])
    assert distances.tolist() == pytest.approx(expected, rel=1e-12)


def test_two_hidden_layers_of_networks_that_are_near_are_aligned_as_well_as_any_order_can():
    network = mlp(nn.ReLU, 2, 4, 4, 2)
    found = prepkit.symmetries(network, torch.randn(3, 2, dtype=torch.float64))
    first = random_preps(found, 1, scale=1.0)
    near = first.repeat(5, 1, 1) + random_preps(found, 5, seed=1, scale=0.2)
    aligner = Aligner(found)
    copies = aligner.scrambled(near, torch.Generator().manual_seed(1))
    assert (aligner.distances(copies, near) > 1).all()
    aligned = prepkit.align(found, copies, first[0])
    expected = [best_by_force(found, prep, first[0], (4, 4)) for prep in copies]
    assert aligned.after.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("activation", [nn.Tanh, Sine])
def test_signs_and_phases_are_the_best_of_all(activation):
    """Each pair of units has its best sign and phase, by trying all; the order is the best of all orders."""
    network = mlp(activation, 2, 4, 2)
    found = prepkit.symmetries(network, torch.randn(3, 2, dtype=torch.float64))
    preps = random_preps(found, 5, scale=1.5)
    turns = range(-5, 6) if activation is Sine else (0,)
    target = found.layout.unpack(preps[0])
    expected = []
    for prep in preps[1:]:
        own = found.layout.unpack(prep)
        cost = torch.full((4, 4), float("inf"), dtype=torch.float64)
        for i, j, sign, k in product(range(4), range(4), (1, -1), turns):
            parts = (
                sign * own["0.weight"][i] - target["0.weight"][j],
                sign * own["0.bias"][i] + k * torch.pi / 3 - target["0.bias"][j],
                sign * (-1) ** k * own["2.weight"][:, i] - target["2.weight"][:, j],
            )
            cost[i, j] = min(cost[i, j], sum(part.square().sum() for part in parts))
        rest = (own["2.bias"] - target["2.bias"]).square().sum()
        best = min(sum(cost[i, j] for j, i in enumerate(order)) for order in permutations(range(4)))
        expected.append(float((best + rest).sqrt()))
    aligned = prepkit.align(found, preps[1:], preps[0])
    assert aligned.after.tolist() == pytest.approx(expected, rel=1e-12)
    inputs = torch.randn(9, 2, dtype=torch.float64)
    before, after = (outputs_of(network, found, each, inputs) for each in (preps[1:], aligned.preps))
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)


# On outputs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_functions_stay_and_scrambled_copies_come_back(name):
    architecture = prepkit.architecture(name)
    found = prepkit.symmetries(architecture)
    aligner, preps, inputs = Aligner(found), random_preps(found, 3, scale=0.2), architecture.example_input(3).double()
    before = prepkit.run_instances(architecture, preps, inputs)
    assert before.std(1).min() > 1e-6
    copies = aligner.scrambled(preps, torch.Generator().manual_seed(0))
    changed = (copies != preps).flatten(1)[:, : found.layout.total].double().mean()
    assert changed > 0.5
    aligned, others = (prepkit.align(found, each, preps[0]) for each in (preps, copies))
    assert (aligned.after[1:] < aligned.before[1:]).all()
    assert aligned.after[0] < 1e-12
    torch.testing.assert_close(others.preps, aligned.preps, rtol=0, atol=1e-12)
    for each in (aligned.preps, others.preps, prepkit.canonical(found, preps)):
        torch.testing.assert_close(prepkit.run_instances(architecture, each, inputs), before, rtol=1e-9, atol=1e-9)
        assert torch.equal(each.flatten(1)[:, found.layout.total :], preps.flatten(1)[:, found.layout.total :])
    assert scrambled_copies(aligner, preps, preps[0], torch.Generator().manual_seed(1)).returned == 3
    forms, form_of_copies = (prepkit.canonical(found, each) for each in (preps, copies))
    torch.testing.assert_close(form_of_copies, forms, rtol=0, atol=0 if "sine" not in name else 1e-12)
    assert torch.equal(prepkit.canonical(found, forms), forms)
    assert prepkit.orbit_distance(found, preps, copies).max() < 1e-12


@pytest.mark.parametrize(
    "sample",
    ["depthwise", "sines", *(pytest.param(name, marks=pytest.mark.slow) for name in ("transformer", "grouped"))],
)
def test_other_kinds_of_layers(sample):
    torch.manual_seed(0)
    network, inputs = getattr(symmetry_samples, sample)()
    network, inputs = network.double().eval(), inputs.double()
    found = prepkit.symmetries(network, inputs)
    shape = found.layout.shape(16)
    base = found.layout.pack({slot.name: network.state_dict()[slot.name] for slot in found.layout}, shape)
    preps = base + random_preps(found, 3, scale=0.05).abs()
    aligner = Aligner(found)
    copies = aligner.scrambled(preps, torch.Generator().manual_seed(0))
    aligned = prepkit.align(found, copies, preps[0])
    assert aligned.after[0] < 1e-12 < 0.1 < aligned.before[0]
    before = outputs_of(network, found, preps, inputs)
    for each in (aligned.preps, prepkit.canonical(found, copies)):
        torch.testing.assert_close(outputs_of(network, found, each, inputs), before, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(prepkit.align(found, preps, preps[0]).preps, aligned.preps, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        prepkit.canonical(found, copies),
        prepkit.canonical(found, preps),
        rtol=0,
        atol=1e-12 if sample == "sines" else 0,
    )


def test_units_are_ordered_by_norm_and_equal_ones_by_their_values():
    network = mlp(nn.ReLU, 2, 3, 1)
    found = prepkit.symmetries(network, torch.randn(3, 2, dtype=torch.float64))
    tensors = {
        "0.weight": torch.tensor([[3.0, 4.0], [4.0, 3.0], [9.0, 9.0]]),
        "0.bias": torch.zeros(3),
        "2.weight": torch.tensor([[1.0, 1.0, 0.0]]),
        "2.bias": torch.ones(1),
    }
    every = [found.layout.pack(reordered(tensors, [order]), found.layout.shape(16)) for order in permutations(range(3))]
    forms = prepkit.canonical(found, torch.stack(every))
    assert all(torch.equal(form, forms[0]) for form in forms)
    weight = found.layout.unpack(forms[0])["0.weight"]
    assert weight.tolist() == [[9.0, 9.0], [3.0, 4.0], [4.0, 3.0]]


def test_distances_between_orbits_are_the_same_in_both_directions_and_never_larger_than_plain_ones():
    found = prepkit.symmetries("lenet_like@digits")
    preps = random_preps(found, 6)
    there, back = (prepkit.orbit_distance(found, *pair) for pair in ((preps[:3], preps[3:]), (preps[3:], preps[:3])))
    assert torch.equal(there, back)
    assert (there < Aligner(found).distances(preps[:3], preps[3:])).all()


def test_a_centroid_is_the_mean_of_what_is_aligned_to_it():
    found = prepkit.symmetries("resnet8@digits")
    first, noise = random_preps(found, 1, scale=0.2), random_preps(found, 5, seed=1, scale=0.02)
    copies = Aligner(found).scrambled(first + noise, torch.Generator().manual_seed(0))
    aligned = prepkit.align(found, copies)
    total = found.layout.total
    torch.testing.assert_close(
        aligned.reference.flatten()[:total], aligned.preps.mean(0).flatten()[:total], rtol=0, atol=1e-5
    )
    assert aligned.after.mean() == pytest.approx(0.02 * (total * 4 / 5) ** 0.5, rel=0.05)
    assert aligned.before.mean() > 10 * aligned.after.mean()


def test_float32_comes_back_in_the_same_bits_where_only_the_order_changes():
    found = prepkit.symmetries("resnet8@digits")
    preps = random_preps(found, 3).float()
    copies = Aligner(found).scrambled(preps, torch.Generator().manual_seed(0))
    aligned, others = (prepkit.align(found, each, preps[0]).preps for each in (preps, copies))
    assert aligned.dtype == torch.float32
    assert torch.equal(aligned, others)
    assert torch.equal(aligned[0], preps[0])


def test_equal_units_keep_the_function_and_are_told_of_where_copies_do_not_come_back():
    architecture = prepkit.architecture("lenet_like@digits")
    found, inputs = prepkit.symmetries(architecture), architecture.example_input(4).double()
    preps = random_preps(found, 4, scale=0.2)
    for slot in found.layout:
        if slot.name in ("convs.0.weight", "convs.0.bias"):  # all channels see the same, only readers differ
            own = preps.flatten(1)[:, slot.start : slot.stop].view(4, *slot.shape)
            own[:] = own[:, :1].clone()
    aligned = prepkit.align(found, preps, preps[0])
    before, after = (prepkit.run_instances(architecture, each, inputs) for each in (preps, aligned.preps))
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
    told = scrambled_copies(Aligner(found), preps, preps[0], torch.Generator().manual_seed(0))
    assert told.copies == 4


# What cannot be aligned -----------------------------------------------------------------------------------------


def test_wrong_input_is_refused(monkeypatch):
    found = prepkit.symmetries("lenet_like@digits")
    preps = random_preps(found, 4)
    broken = preps.clone()
    broken[2, 0, 0] = float("nan")
    with pytest.raises(prepkit.SymmetryError, match=r"NaN or infinity in the instances \(row 2\), .* leave these out"):
        prepkit.align(found, broken, preps[0])
    with pytest.raises(prepkit.SymmetryError, match="NaN or infinity in the reference"):
        prepkit.align(found, preps, broken[2])
    with pytest.raises(prepkit.LayoutMismatch, match="found \\[0, H, W\\]"):
        prepkit.canonical(found, preps[:0])
    with pytest.raises(prepkit.LayoutMismatch, match="expected PReps \\[N, H, W\\] of 2,302 values"):
        prepkit.align(found, preps[0])
    with pytest.raises(prepkit.LayoutMismatch, match="the reference is"):
        prepkit.align(found, preps, preps)
    with pytest.raises(prepkit.LayoutMismatch, match="cannot be compared row by row"):
        prepkit.orbit_distance(found, preps, preps[:2])
    with pytest.raises(prepkit.LayoutMismatch, match=r"have other tensors .*: 'convs.0.weight'"):
        Aligner(found, prepkit.architecture("resnet8@digits").layout)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(prepkit.SymmetryError, match=r"needs scipy; install it by `pip install prepkit\[train\]`"):
        prepkit.align(found, preps, preps[0])
