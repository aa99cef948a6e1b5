"""Symmetries of the built-in architectures, of grown networks, and as the field's specifications."""

import json
import random

import pytest
import torch
from hand_written_units import GROUPS_OF_FAMILY, unit_groups
from torch import nn
from torch.nn import functional

import prepkit
from prepkit.symmetry.spec import term_text

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = [name for name in prepkit.architectures() if name.endswith(("@digits", "@sdf_small"))]
# Widths of hidden layers, counted by hand; a ResNet has those within each block and those of the sums of each stage.
UNITS = {
    "lenet_like@digits": [4, 8, 20, 16],
    "vanilla_cnn@digits": [6, 12, 12, 16],
    "resnet8@digits": [4, 4, 8, 8, 16, 16],
    "resnet14@digits": [4, 4, 4, 8, 8, 8, 16, 16, 16],
    "sine_mlp@sdf_small": [64, 64],
}
OTHERS = [name for name in prepkit.architectures() if name not in SMALL]


def check_built_in(name):
    """Compare with hand_written_units, which was written by hand for each family."""
    architecture = prepkit.architecture(name)
    found = prepkit.symmetries(architecture)
    by_place = {}
    for group in unit_groups(architecture):
        for along in group.axes:
            by_place[along.tensor, along.axis] = (id(group), group.units, along.block)
    groups = {}
    for tensor, terms in found.axes.items():
        for axis, term in enumerate(terms):
            if term is None:
                assert (tensor, axis) not in by_place
                continue
            identity, units, block = by_place.pop((tensor, axis))
            own = term_text(term).split(" x ")[0]
            assert groups.setdefault(own, identity) == identity
            assert found.group[own].size == units
            assert found.block(own, tensor, axis) == block
    assert by_place == {}
    assert len(groups) == len(set(groups.values())) == len(found.movable) == len(found.groups)
    assert found.fixtures == ()
    assert found.proof < 1e-12
    scales = [one for one in found.scalings if one.kind == "scale"]
    assert len(scales) == (0 if architecture.family == "sine_mlp" else len(groups))


@pytest.mark.parametrize("name", SMALL)
def test_a_built_in_architecture(name):
    check_built_in(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_another_built_in_architecture(name):
    check_built_in(name)


@pytest.mark.parametrize("name", UNITS)
def test_units_are_all_there_are(name):
    assert sorted(group.size for group in prepkit.symmetries(name).movable) == sorted(UNITS[name])


def test_every_family_is_among_the_small_ones():
    assert {prepkit.architecture(name).family for name in SMALL} == set(GROUPS_OF_FAMILY)


# As git-re-basin and universal neural functionals write them ------------------------------------------------------


def test_an_mlp_as_it_is_written_by_hand():
    network = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    found = prepkit.symmetries(network, torch.randn(2, 7))
    assert found.permutation_spec() == {
        "0.weight": ("P_0", None),
        "0.bias": ("P_0",),
        "2.weight": ("P_1", "P_0"),
        "2.bias": ("P_1",),
        "4.weight": (None, "P_1"),
        "4.bias": (None,),
    }
    assert found.integer_spec() == {
        "0.weight": (0, -1),
        "0.bias": (0,),
        "2.weight": (1, 0),
        "2.bias": (1,),
        "4.weight": (-2, 1),
        "4.bias": (-2,),
    }


def test_a_vgg_as_it_is_written_by_hand():
    def block(inputs, outputs):
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]

    network = nn.Sequential(
        *block(3, 4),
        nn.MaxPool2d(2),
        *block(4, 6),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 5),
        nn.ReLU(),
        nn.Linear(5, 2),
    )
    found = prepkit.symmetries(network, torch.randn(2, 3, 8, 8))
    norm = ("weight", "bias", "running_mean", "running_var")
    assert found.permutation_spec() == {
        "0.weight": ("P_0", None, None, None),
        "0.bias": ("P_0",),
        **{f"1.{kind}": ("P_0",) for kind in norm},
        "4.weight": ("P_1", "P_0", None, None),
        "4.bias": ("P_1",),
        **{f"5.{kind}": ("P_1",) for kind in norm},
        "9.weight": ("P_2", {"product": ["P_1", 4]}),
        "9.bias": ("P_2",),
        "11.weight": (None, "P_2"),
        "11.bias": (None,),
    }
    with pytest.raises(prepkit.SymmetryError, match=r"axis 1 of '9.weight' is P_1 x 4, which .* cannot say"):
        found.integer_spec()


def test_a_resnet20_as_git_re_basin_has_it():
    """Its specification, with the names of our network: stages, blocks, and 1x1 convolutions as shortcuts."""
    found = prepkit.symmetries("resnet20@digits", keep_batch_norm=True).permutation_spec()
    expected = {}

    def conv(name, inputs, outputs):
        expected[f"{name}.weight"] = (outputs, inputs, None, None)

    def norm(name, group):
        expected.update({f"{name}.{kind}": (group,) for kind in ("weight", "bias", "running_mean", "running_var")})

    conv("conv", None, "P_bg0")
    norm("bn", "P_bg0")
    for stage in range(3):
        for block in range(3):
            name, inner = f"stages.{stage}.{block}", f"P_bg{stage}_{block}_inner"
            inputs = f"P_bg{stage - 1}" if block == 0 and stage else f"P_bg{stage}"
            conv(f"{name}.conv1", inputs, inner)
            norm(f"{name}.bn1", inner)
            conv(f"{name}.conv2", inner, f"P_bg{stage}")
            norm(f"{name}.bn2", f"P_bg{stage}")
            if block == 0 and stage:
                conv(f"{name}.shortcut.0", inputs, f"P_bg{stage}")
                norm(f"{name}.shortcut.1", f"P_bg{stage}")
    expected["linear.weight"] = (None, "P_bg2")
    expected["linear.bias"] = (None,)
    assert found.keys() == expected.keys()
    names = {}
    for key, row in expected.items():
        assert [own is None for own in found[key]] == [own is None for own in row], key
        for own, ours in zip(row, found[key], strict=True):
            assert names.setdefault(own, ours) == ours, key
    assert len(set(names.values())) == len(names) == 1 + 3 + 9


def test_as_json():
    found = prepkit.symmetries("sine_mlp@sdf_small")
    data = json.loads(json.dumps(found.to_dict()))
    assert data["layout_sha256"] == prepkit.architecture("sine_mlp@sdf_small").layout.sha256
    assert data["groups"][0] == {"name": "P_0", "size": 64, "over": [], "reason": None}
    assert data["axes"]["hidden.1.weight"] == ["P_1", "P_0"]
    assert data["scalings"][1] == {
        "name": "S_1",
        "kind": "phase",
        "group": "P_0",
        "powers": [["hidden.1.weight", 1, 1]],
        "shifts": {"hidden.0.bias": pytest.approx(torch.pi / 30)},
    }
    assert data["fixed"] == []
    assert data["proof"] < 1e-12


# Networks that grow at random, whose groups are followed by hand while they grow ----------------------------------


class Grown(nn.Module):
    """A random graph of layers on pictures; `symbols` has what runs along each axis, by hand."""

    def __init__(self, seed):
        super().__init__()
        self.choice = random.Random(seed)
        self.links, self.steps, self.symbols = {}, [], {}
        self.layers = nn.ModuleList()
        self.nodes = [[None]]  # for each node, (symbol, size) of its channels; the input has none
        self.sizes = [[(None, 2)]]
        self.unused = set()
        for _ in range(self.choice.randint(4, 9)):
            self.choice.choice(
                [self._convolve, self._convolve, self._convolve, self._add, self._join, self._norm, self._each]
            )()
        self._end()

    def _symbol(self):
        self.links[len(self.links)] = len(self.links)
        return len(self.links) - 1

    def _of(self, symbol):
        while symbol is not None and self.links[symbol] != symbol:
            symbol = self.links[symbol]
        return symbol

    def _node(self, step, parts, used):
        self.sizes.append(parts)
        self.steps.append(step)
        self.unused -= set(used)
        self.unused.add(len(self.sizes) - 1)

    def _pick(self):
        return self.choice.randrange(len(self.sizes))

    def _layer(self, layer, **axes):
        self.layers.append(layer)
        for name, symbols in axes.items():
            self.symbols[f"layers.{len(self.layers) - 1}.{name}"] = symbols
        return len(self.layers) - 1

    def _convolve(self):
        node, size = self._pick(), self.choice.choice([3, 4])
        new = [(self._symbol(), size)]
        inputs = sum(size for _, size in self.sizes[node])
        layer = self._layer(nn.Conv2d(inputs, size, 3, padding=1), weight=[new, self.sizes[node]], bias=[new])
        self._node(("apply", node, layer), new, [node])

    def _each(self):
        node = self._pick()
        size = sum(size for _, size in self.sizes[node])
        layer = nn.Conv2d(size, size, 3, padding=1, groups=size)
        own = self._layer(layer, weight=[self.sizes[node], []], bias=[self.sizes[node]])
        self._node(("apply", node, own), self.sizes[node], [node])

    def _norm(self):
        node = self._pick()
        size = sum(size for _, size in self.sizes[node])
        own = self._layer(nn.BatchNorm2d(size), weight=[self.sizes[node]], running_var=[self.sizes[node]])
        self._node(("apply", node, own), self.sizes[node], [node])

    def _add(self):
        node = self._pick()
        fitting = [
            other
            for other, parts in enumerate(self.sizes)
            if [size for _, size in parts] == [size for _, size in self.sizes[node]]
        ]
        other = self.choice.choice(fitting)
        for (a, _), (b, _) in zip(self.sizes[node], self.sizes[other], strict=True):
            a, b = self._of(a), self._of(b)
            if a is None or b is None:  # the input is fixed, and so is what is added to it
                self.links = {key: None if self._of(key) in (a, b) else link for key, link in self.links.items()}
            elif a != b:
                self.links[a] = b
        self._node(("add", node, other), self.sizes[node], [node, other])

    def _join(self):
        node, other = self._pick(), self._pick()
        self._node(("join", node, other), self.sizes[node] + self.sizes[other], [node, other])

    def _end(self):
        last = sorted(self.unused)
        parts = [part for node in last for part in self.sizes[node]]
        self.last = nn.Linear(9 * sum(size for _, size in parts), 2)
        self.ends, self.symbols["last.weight"] = last, [[], parts]

    def forward(self, x):
        nodes = [x]
        for kind, first, second in self.steps:
            if kind == "apply":
                nodes.append(functional.leaky_relu(self.layers[second](nodes[first]), 0.1))
            elif kind == "add":
                nodes.append(nodes[first] + nodes[second])
            else:
                nodes.append(torch.cat([nodes[first], nodes[second]], 1))
        return self.last(torch.cat([nodes[node] for node in self.ends], 1).flatten(1))


def check_grown(seed):
    torch.manual_seed(seed)
    network = Grown(seed)
    found = prepkit.symmetries(network, torch.randn(2, 2, 3, 3))
    names = {}
    for key, axes in network.symbols.items():
        for axis, parts in enumerate(axes):
            term = found.axes[key][axis]
            symbols = [(network._of(symbol), size) for symbol, size in parts]
            if all(symbol is None for symbol, _ in symbols):
                assert term is None, key
                continue
            text = term_text(term).removesuffix(" x 9").strip("()").split(" + ")
            flat = []
            for symbol, size in symbols:  # fixed neighbours are one part
                if symbol is None and flat and flat[-1][0] is None:
                    flat[-1] = (None, flat[-1][1] + size)
                else:
                    flat.append((symbol, size))
            assert len(text) == len(flat), (key, axis)
            for (symbol, size), own in zip(flat, text, strict=True):
                if symbol is None:
                    assert own == str(size), (key, axis)
                else:
                    assert names.setdefault(symbol, own) == own, (key, axis)
                    assert found.group[own].size == size
    assert len(set(names.values())) == len(names) == len(found.movable)
    assert found.proof < 1e-9


@pytest.mark.parametrize("seed", range(12))
def test_a_grown_network(seed):
    check_grown(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12, 300))
def test_another_grown_network(seed):
    check_grown(seed)
