"""Symmetries that are derived: against specifications written by hand, and value by value on outputs."""

import by_hand
import pytest
import symmetry_samples
import torch
from symmetry_samples import NETWORKS
from torch import nn

import prepkit
from prepkit.symmetry import _proof
from prepkit.symmetry.acting import Action
from prepkit.symmetry.spec import term_text

pytestmark = pytest.mark.usefixtures("one_thread")

# What runs along each axis, written by hand. Letters are groups; what is left out has no hidden unit.
EXPECTED = {
    "dense_net": {
        "first.weight": "a - - -",
        "layers.0.weight": "b a - -",
        "layers.1.weight": "c a+b - -",
        "last.weight": "- a+b+c",
    },
    "depthwise": {
        "stem.weight": "a - - -",
        "wide.weight": "b a - -",
        "each.weight": "b - - -",
        "each.bias": "b",
        "narrow.0.weight": "a b - -",
        "narrow.1.weight": "a",
        "narrow.1.running_mean": "a",
        "narrow.1.running_var": "a",
        "last.weight": "- a",
    },
    "grouped": {
        "0.weight": "axbxc - - -",
        "2.weight": "axbxd c - -",
        "4.weight": "axe bxd - -",
        "7.weight": "- axex9",
    },
    "transformer": {
        "token": "- - a",
        "places": "- - a",
        "patches.weight": "a - - -",
        "encoder.layers.0.self_attn.in_proj_weight": "bxc+bxc+bxd a",
        "encoder.layers.0.self_attn.in_proj_bias": "bxc+bxc+bxd",
        "encoder.layers.0.self_attn.out_proj.weight": "a bxd",
        "encoder.layers.0.linear1.weight": "e a",
        "encoder.layers.0.linear2.weight": "a e",
        "encoder.layers.0.norm1.weight": "a",
        "encoder.layers.1.self_attn.in_proj_weight": "fxg+fxg+fxh a",
        "encoder.layers.1.self_attn.out_proj.weight": "a fxh",
        "encoder.layers.1.linear1.bias": "i",
        "norm.bias": "a",
        "head.weight": "- a",
    },
    "hand_made_attention": {
        "table.weight": "- a",
        "norm.weight": "a",
        "attention.qkv.weight": "bxc+bxc+bxd a",
        "attention.out.weight": "a bxd",
        "last.weight": "a a",
        "last.bias": "a",
    },
    "tied": {"encoder.weight": "a -", "encoder.bias": "a", "again.weight": "a a", "again.bias": "a"},
    "still": {"first.weight": "- -", "second.weight": "- -", "third.weight": "a+1+b -", "last.weight": "- a+1+b"},
    "blocks": {"first.weight": "a - - -", "second.weight": "bx4 ax9", "second.bias": "bx4", "third.weight": "b - - -"},
    "group_normed": {
        "0.weight": "axb - - -",
        "1.weight": "axb",
        "3.weight": "c axb - -",
        "4.bias": "c",
        "7.weight": "- cx9",
    },
    "unet": {
        "down.weight": "a - - -",
        "middle.weight": "b a - -",
        "up.weight": "b c - -",
        "up.bias": "c",
        "after.weight": "d a+c - -",
        "last.weight": "- d - -",
    },
    "recurrent": {
        "lstm.weight_ih_l0": "a+a+a+a -",
        "lstm.weight_hh_l0": "a+a+a+a a",
        "lstm.weight_ih_l1": "b+b+b+b a",
        "lstm.weight_hh_l1": "b+b+b+b b",
        "gru.weight_ih_l0": "c+c+c b",
        "gru.bias_hh_l0": "c+c+c",
        "last.weight": "- c",
    },
    "one_dimensional": {"0.weight": "a - -", "1.running_var": "a", "4.weight": "b a -", "8.weight": "- bx2"},
    "mixer": {
        "stem.weight": "a -",
        "norm1.weight": "a",
        "tokens.0.weight": "b -",
        "tokens.2.weight": "- b",
        "channels.0.weight": "c a",
        "channels.2.weight": "a c",
        "head.weight": "- a",
    },
    "shuffled": {
        "second.weight": "b+c ax2 - -",
        "third.weight": "d c - -",
        "last.weight": "- b+d - -",
    },
    "interleaved": {
        "first.weight": "a+b - - -",
        "second.weight": "a+b - - -",
        "third.weight": "c bx2 - -",
        "last.weight": "- ax2+c - -",
    },
    "sines": {"first.weight": "a -", "second.weight": "b a", "third.weight": "c b", "last.weight": "- c"},
    "padded_shortcut": {
        "stem.weight": "a - - -",
        "first.weight": "b a - -",
        "second.weight": "c+a+d b - -",
        "last.weight": "- c+a+d",
    },
}
# Groups at each unit of which others have an order of their own: heads, and groups of channels.
OVER = {
    "grouped": "b:a c:ab d:ab e:a",
    "transformer": "c:b d:b g:f h:f",
    "hand_made_attention": "c:b d:b",
    "group_normed": "b:a",
}


@pytest.fixture(scope="module")
def derived():
    """Networks, their inputs and symmetries, by name, each made once."""
    cache = {}

    def of(name):
        if name not in cache:
            torch.manual_seed(0)
            network, inputs = NETWORKS[name]()
            cache[name] = network.eval(), inputs, prepkit.symmetries(network, inputs)
        return cache[name]

    return of


def letters(symmetries, expected):
    """Return which group each letter of a specification means, and check that the specification holds."""
    meaning = {}
    for name, text in expected.items():
        terms = symmetries.axes[name]
        words = text.split()
        assert len(words) == len(terms), name
        for word, term in zip(words, terms, strict=True):
            found = term_text(term).replace(" ", "")
            assert len(found.split("+")) == len(word.split("+")), (name, word, found)
            for part, own in zip(word.split("+"), found.split("+"), strict=True):
                assert len(part.split("x")) == len(own.split("x")), (name, word, found)
                for letter, group in zip(part.split("x"), own.split("x"), strict=True):
                    if letter.isalpha():
                        assert meaning.setdefault(letter, group) == group, (name, word, found)
                    else:
                        assert letter == group, (name, word, found)
    assert len(set(meaning.values())) == len(meaning), meaning
    return meaning


@pytest.mark.parametrize("name", NETWORKS)
def test_what_runs_along_each_axis_is_what_was_written_by_hand(name, derived):
    _, _, found = derived(name)
    meaning = letters(found, EXPECTED[name])
    assert {group.name for group in found.movable} == set(meaning.values())
    over = {}
    for entry in OVER.get(name, "").split():
        inner, outer = entry.split(":")
        over[meaning[inner]] = {meaning[letter] for letter in outer}
    assert {group.name: set(group.over) for group in found.groups if group.over} == over


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_stay_when_units_are_reordered_value_by_value(name, derived):
    network, inputs, found = derived(name)
    tensors = by_hand.values(network)
    before = by_hand.outputs(network, tensors, inputs)
    assert before.std() > 1e-6
    moved = by_hand.permuted(found, tensors, by_hand.orders(found))
    assert any(not torch.equal(moved[key], tensors[key]) for key in moved)
    torch.testing.assert_close(by_hand.outputs(network, moved, inputs), before, rtol=1e-9, atol=1e-9)
    for group in found.movable:
        orders = by_hand.orders(found, seed=2)
        for other in found.groups:
            if other.name != group.name:
                orders[other.name] = by_hand.still([found.group[one].size for one in other.over], other.size)
                orders[other.name].over = other.over
        alone = by_hand.permuted(found, tensors, orders)
        torch.testing.assert_close(by_hand.outputs(network, alone, inputs), before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "name", ["dense_net", "grouped", "hand_made_attention", "blocks", "recurrent", "padded_shortcut"]
)
def test_every_axis_of_a_group_is_needed(name, derived):
    """If one axis is left as it is, the outputs change: they would show a mistake in any of them."""
    network, inputs, found = derived(name)
    tensors = by_hand.values(network)
    before = by_hand.outputs(network, tensors, inputs)
    orders = by_hand.orders(found)
    aliases = dict(found.layout.ties)
    for key, terms in found.axes.items():
        for axis, term in enumerate(terms):
            if term is not None and key not in aliases:
                moved = by_hand.permuted(found, tensors, orders, without=(key, axis))
                assert (by_hand.outputs(network, moved, inputs) - before).abs().max() > 1e-7, (key, axis)


@pytest.mark.parametrize("name", NETWORKS)
def test_fast_acting_is_acting_value_by_value(name, derived):
    network, _, found = derived(name)
    tensors = by_hand.values(network)
    orders = by_hand.orders(found)
    change = Action(found).draw(torch.Generator())
    change = type(change)({key: torch.tensor(orders[key]) for key in change.sources})
    slow = by_hand.permuted(found, tensors, orders)
    fast = Action(found).on_tensors(change, tensors)
    assert slow.keys() == fast.keys()
    assert all(torch.equal(slow[key], fast[key]) for key in slow)


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_stay_under_each_scaling(name, derived):
    network, inputs, found = derived(name)
    tensors = by_hand.values(network)
    before = by_hand.outputs(network, tensors, inputs)
    action = Action(found)
    drawn = action.draw(torch.Generator().manual_seed(3), kinds=("scale", "sign", "phase"))
    for names in [[scaling.name] for scaling in found.scalings] + [list(drawn.numbers)]:
        moved = action.on_tensors(drawn.only(names), tensors)
        assert not names or any(not torch.equal(moved[key], tensors[key]) for key in moved)
        torch.testing.assert_close(by_hand.outputs(network, moved, inputs), before, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", NETWORKS)
def test_all_that_is_derived_passes_the_proof(name, derived, monkeypatch):
    """The rules are right by themselves: the proof has nothing to take away."""
    network, inputs, found = derived(name)
    monkeypatch.setattr(_proof._Trial, "culprits", lambda self, names: pytest.fail(f"the proof refuses one of {names}"))
    assert prepkit.symmetries(network, inputs).to_dict() == found.to_dict()


def test_interleaved_channels_scale_together_with_what_reads_them(derived):
    _, _, found = derived("interleaved")
    assert kinds(found) == {
        "scale first.weight+1 first.bias+1 second.weight+1 second.bias+1 last.weight-1",
        "scale first.weight+1 first.bias+1 second.weight+1 second.bias+1 third.weight-1",
        "scale third.weight+1 third.bias+1 last.weight-1",
    }


def kinds(found):
    """Return the kind and the tensors with their powers of each scaling, as text."""
    return {
        " ".join([one.kind, *(f"{key}{power:+d}" for (key, _), power in one.powers.items())]) for one in found.scalings
    }


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (nn.ReLU(), {"scale 0.weight+1 0.bias+1 2.weight-1"}),
        (nn.LeakyReLU(), {"scale 0.weight+1 0.bias+1 2.weight-1"}),
        (nn.Tanh(), {"sign 0.weight+1 0.bias+1 2.weight+1"}),
        (nn.Identity(), {"scale 0.weight+1 0.bias+1 2.weight-1", "sign 0.weight+1 0.bias+1 2.weight+1"}),
        (nn.GELU(), set()),
        (nn.Sigmoid(), set()),
        (nn.Softsign(), {"sign 0.weight+1 0.bias+1 2.weight+1"}),
        (nn.Hardtanh(), set()),
        (nn.ReLU6(), set()),
        (nn.Dropout(), {"scale 0.weight+1 0.bias+1 2.weight-1", "sign 0.weight+1 0.bias+1 2.weight+1"}),
        (nn.LayerNorm(4), {"scale 1.weight+1 1.bias+1 2.weight-1", "sign 1.weight+1 1.bias+1 2.weight+1"}),
        (nn.Softmax(-1), set()),
        (nn.Threshold(0.1, 0.0), set()),
        (nn.Threshold(0.0, 0.0), {"scale 0.weight+1 0.bias+1 2.weight-1"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_scalings_of_an_activation(activation, expected):
    network = nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 2))
    found = prepkit.symmetries(network, torch.randn(5, 3))
    assert kinds(found) == expected
    assert [group.size for group in found.movable] == [4]


def test_phases_take_the_frequency_into_account():
    found = prepkit.symmetries("sine_mlp@sdf_small")
    phases = [one for one in found.scalings if one.kind == "phase"]
    assert [dict(one.shifts) for one in phases] == [
        {"hidden.0.bias": pytest.approx(torch.pi / 30)},
        {"hidden.1.bias": pytest.approx(torch.pi / 30)},
    ]
    assert [dict(one.powers) for one in phases] == [{("hidden.1.weight", 1): 1}, {("linear.weight", 1): 1}]
    torch.manual_seed(0)
    other = prepkit.symmetries(*symmetry_samples.sines())  # its third layer is read by a sum too
    shifts = [dict(one.shifts) for one in other.scalings if one.kind == "phase"]
    assert shifts == [{"first.bias": pytest.approx(torch.pi / 30)}, {"second.bias": pytest.approx(torch.pi / 2.5)}]


def test_batch_norm_stops_scales_and_lets_signs_through():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    found = prepkit.symmetries(network, torch.randn(2, 1, 4, 4))
    assert kinds(found) == {"scale 1.weight+1 1.bias+1 3.weight-1", "sign 0.weight+1 1.weight+1 1.running_mean+1"}


def test_what_stays_has_a_reason(derived):
    _, _, found = derived("still")
    reasons = {(one.tensor, one.axis, one.size): one.reason for one in found.fixtures}
    assert reasons["first.weight", 0, 5] == "`cumsum` reads it, and it depends on the order of its units"
    assert reasons["second.weight", 0, 4] == "it stands beside what `arange` makes"
    assert reasons["third.weight", 0, 1] == "it is taken by itself, apart from the units beside it"


def test_an_operation_without_a_rule_fixes_what_it_reads_and_is_named():
    class Transformed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.last(torch.linalg.matrix_exp(torch.diag_embed(self.first(x))).diagonal(dim1=1, dim2=2))

    found = prepkit.symmetries(Transformed(), torch.randn(2, 3))
    assert found.movable == ()
    assert any("of which nothing is known" in one.reason for one in found.fixtures)
