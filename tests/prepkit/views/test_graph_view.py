"""Graphs: each edge against the state dict, who feeds whom against gradients of a network that is cut at its layers."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from graph_samples import GRAPHS
from torch import nn
from view_samples import SAMPLES, packed, turned

import prepkit
from prepkit import views
from prepkit.errors import LayoutMismatch, PrepkitError

BUILT_IN = ("lenet", "resnet with BatchNorm", "siren", "without bias")


def built(name):
    """A network in evaluation, inputs for it, and three PReps."""
    if name in GRAPHS:
        build, inputs = GRAPHS[name]
        with torch.random.fork_rng():
            torch.manual_seed(1)
            network, given = build().eval(), inputs()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 2)
        layout = prepkit.Layout.of(network)
        prep = layout.pack(network.state_dict(), layout.shape(8)).detach()
        return network, given, torch.stack([prep, prep.flip(0).contiguous(), prep * 2])
    made, preps = packed(name)
    return made[0], SAMPLES[name].inputs(), preps


each = pytest.mark.parametrize("name", [*BUILT_IN, *GRAPHS])


@each
@pytest.mark.parametrize("kernels", ["apart", "joined"])
def test_there_and_back(name, kernels):
    network, inputs, preps = built(name)
    view = views.graph(network, inputs, kernels)
    total = view.source.layout.total
    preps.flatten(1)[:, total:] = 0
    graphs = view(preps)
    assert torch.equal(view.inverse(graphs, preps.shape[1:]), preps)
    assert view.shapes == {"nodes": tuple(graphs.nodes.shape[1:]), "edges": tuple(graphs.edges.shape[1:])}
    assert int(view.node_mask.sum() + view.edge_mask.sum()) == total, "each value stands once"
    tracked = view(preps.clone().requires_grad_())
    assert all(map(torch.equal, tracked, graphs))
    assert torch.equal(view.inverse(tracked, preps.shape[1:]), preps)


@each
def test_each_weight_stands_on_its_edge(name):
    network, inputs, preps = built(name)
    view = views.graph(network, inputs)
    nodes, edges = view(preps[:1])
    state = network.state_dict()
    source, target = view.edge_index
    for number, layer in enumerate(view.names):
        module = network.get_submodule(layer)
        own = view.edge_layer == number
        out = view.node_channel[target[own]]
        assert (view.node_layer[target[own]] == number).all()
        bias = state.get(f"{layer}.bias")
        of_layer = view.node_layer == number
        found = nodes[0, of_layer, 0]
        assert torch.equal(found, torch.zeros(len(found)) if bias is None else bias)
        values, place = edges[0, own, 0], view.edge_position[own]
        weight = state.get(f"{layer}.weight")
        if view.edge_kinds[view.edge_kind[own][0]] == "normalisation":
            assert torch.equal(values, weight[out])
            if "running_mean" in module._buffers:
                assert torch.equal(nodes[0, of_layer, 1], module.running_mean)
                assert torch.equal(nodes[0, of_layer, 2], module.running_var)
            continue
        if isinstance(module, nn.Embedding):
            assert torch.equal(values, weight[view.node_channel[source[own]], out])
            continue
        if isinstance(module, nn.ConvTranspose2d):
            weight = turned(weight, module.groups)
        places = torch.cartesian_prod(*map(torch.arange, weight.shape))  # (out, in, place in the kernel)
        assert torch.equal(values, weight[tuple(places.T)])
        assert torch.equal(out, places[:, 0])
        if weight.dim() > 2:
            assert torch.equal(place[:, :2], places[:, 2:])
            assert (place[:, 2] == -1).all()
    assert (edges[0, view.edge_layer < 0] == 1).all()


def feeding(network, inputs, names):
    """For each layer and each of its input features, all (layer, channel) that feed it through no other layer.

    The network is cut after each layer, so that gradients reach the outputs of the layers right before.
    """
    leaves, reads = {}, {}

    def cut(name):
        def hook(module, args, output):
            reads[name] = args[0]
            leaves[name] = output.detach().requires_grad_()
            return leaves[name].clone()

        return hook

    handles = [network.get_submodule(name).register_forward_hook(cut(name)) for name in names]
    given = inputs.clone()
    if given.is_floating_point():
        leaves["input"] = given.requires_grad_()
        given = given.clone()
    network(given)
    for handle in handles:
        handle.remove()
    found = {}
    for name, read in reads.items():
        if not read.is_floating_point():
            continue
        axis = -1 if isinstance(network.get_submodule(name), nn.Linear | nn.LayerNorm) else 1
        for feature in range(read.shape[axis]):
            values = read.select(axis, feature)
            gradients = torch.autograd.grad(
                (values * torch.rand_like(values)).sum(), list(leaves.values()), retain_graph=True, allow_unused=True
            )
            feeders = set()
            for (leaf, tensor), gradient in zip(leaves.items(), gradients, strict=True):
                if gradient is not None:
                    module = None if leaf == "input" else network.get_submodule(leaf)
                    last = isinstance(module, nn.Linear | nn.LayerNorm | nn.Embedding) or tensor.dim() == 2
                    per_channel = gradient.movedim(-1 if last else 1, 0).flatten(1).abs().sum(1)
                    feeders |= {(leaf, channel) for channel in per_channel.nonzero().flatten().tolist()}
            found[name, feature] = feeders
    return found


@each
def test_who_feeds_whom_by_gradients(name):
    network, inputs, _ = built(name)
    view = views.graph(network, inputs)
    source, target = view.edge_index.tolist()
    into = {}
    for one, other, layer in zip(source, target, view.edge_layer.tolist(), strict=True):
        if layer < 0:
            into.setdefault(other, []).append(one)

    def origins(node):
        """The channels behind a node, through sums and products."""
        kind = view.node_kinds[view.node_kind[node]]
        if kind in ("sum", "product"):
            return set().union(*map(origins, into[node]))
        if kind == "constant":
            return set()
        layer = int(view.node_layer[node])
        return {("input" if layer < 0 else view.names[layer], int(view.node_channel[node]))}

    expected = feeding(network, inputs, view.names)
    for number, layer in enumerate(view.names):
        module = network.get_submodule(layer)
        if isinstance(module, nn.Embedding):
            continue
        own = (view.edge_layer == number).nonzero().flatten()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            outputs = len(set(view.edge_index[1, own].tolist()))
            per_output = view.edge_index[0, own].view(outputs, -1)
            area = module.kernel_size[0] * module.kernel_size[1] if hasattr(module, "kernel_size") else 1
            groups = getattr(module, "groups", 1)
            reads = per_output[:: outputs // groups, ::area].flatten().tolist()  # the features in their order
        else:
            reads = view.edge_index[0, own].tolist()
        features = [feature for of, feature in expected if of == layer]
        assert len(reads) == len(features)
        for feature, node in zip(features, reads, strict=True):
            assert origins(node) == expected[layer, feature], (layer, feature)


def test_kernels_joined_are_centred():
    network = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, (3, 1)), nn.Flatten(), nn.Linear(8, 2)
    )
    layout = prepkit.Layout.of(network)
    preps = layout.pack(network.state_dict(), layout.shape(8))[None].detach()
    view = views.graph(network, torch.randn(1, 2, 6, 4)[:, :, :, :], "joined")
    assert view.shapes["edges"][1] == 9
    edges = view(preps).edges[0]
    for number, pads in ((0, (0, 0, 0, 0)), (1, (1, 1, 1, 1)), (2, (1, 1, 0, 0))):
        weight = network[number].weight.detach()
        assert torch.equal(edges[view.edge_layer == number], nn.functional.pad(weight, pads).flatten(2).flatten(0, 1))
    own = view.edge_layer == 3
    assert torch.equal(edges[own][:, :4], network[4].weight.detach().view(2, 2, 4).flatten(0, 1))
    assert not view.edge_mask[own][:, 4:].any()
    assert view.edge_mask[view.edge_layer == 1].nonzero()[:, 1].tolist() == [4] * 6


def test_a_map_that_was_flattened_tells_its_places():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 3))
    view = views.graph(network, torch.randn(1, 1, 2, 2))
    own = view.edge_layer == 1
    assert view.edge_position[own][:8].tolist() == [[place, -1, -1] for _ in range(2) for place in range(4)]
    assert view.node_channel[view.edge_index[0, own][:8]].tolist() == [0] * 4 + [1] * 4


class Twice(nn.Sequential):
    """Its layer runs twice."""

    def forward(self, inputs):
        """Map `[B, 3]` to `[B, 3]`."""
        return self[0](self[0](inputs))


class Idle(nn.Sequential):
    """Its second layer does not run."""

    def forward(self, inputs):
        """Map `[B, 3]` to `[B, 3]`."""
        return self[0](inputs)


class Odd(nn.Sequential):
    """It calls a function between its layers."""

    def __init__(self, function):
        super().__init__(nn.Linear(3, 3), nn.Linear(3, 3))
        self.function = function

    def forward(self, inputs):
        """Map `[B, 3]` to `[B, 3]`."""
        return self[1](self.function(self[0](inputs)))


class Tied(nn.Sequential):
    """Two layers share a weight."""

    def __init__(self):
        super().__init__(nn.Linear(3, 3), nn.Linear(3, 3))
        self[1].weight = self[0].weight


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Twice(nn.Linear(3, 3)), "'0' runs more than once"),
        (Idle(nn.Linear(3, 3), nn.Linear(3, 3)), "1 did not run"),
        (Tied(), "1.weight is tied to another tensor"),
        (Odd(lambda x: x.cumsum(1)), r"cumsum\(\) of 1 activation"),
        (Odd(lambda x: x @ x.T @ x), r"matmul\(\) of 2 activations"),
        (Odd(lambda x: x.sum(1, keepdim=True).expand(-1, 3)), r"sum\(\) over channels"),
        (Odd(lambda x: torch.ones(2, 3)), "input of '1' does not come from"),
        (Odd(lambda x: x[:, :2]), "does not run on inputs .*mat1 and mat2"),
        (nn.Sequential(nn.LayerNorm((1, 3))), "is none of them"),
        (nn.Sequential(nn.PReLU(3)), "0 is none of them"),
        (nn.Sequential(nn.RNN(3, 3), nn.Linear(3, 3)), "0.weight_ih_l0, 0.weight_hh_l0 is none of them"),
        (nn.TransformerEncoderLayer(4, 2, 8), "self_attn is none of them"),
    ],
)
def test_what_a_graph_has_no_place_for(network, words):
    with pytest.raises(LayoutMismatch, match=f"the graph of .* is not known: .*{words}"):
        views.graph(network, torch.ones(2, 3))


def test_a_network_in_another_dtype():
    network = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    view = views.graph(network, torch.randn(2, 3))
    preps = torch.randn(2, 4, 8, dtype=torch.float64)
    graphs = view(preps)
    assert graphs.edges.dtype == torch.float64
    assert view(preps[:0]).nodes.shape == (0, 6, 1)
    assert torch.equal(view.inverse(graphs, (4, 8)).flatten(1)[:, :11], preps.flatten(1)[:, :11])


def test_bad_input():
    with pytest.raises(LayoutMismatch, match="its network cannot be built here"):
        views.graph(prepkit.architecture("lenet_like@digits").layout)
    with pytest.raises(LayoutMismatch, match=r"give them: graph\(network, inputs\)"):
        views.graph(nn.Linear(3, 3))
    with pytest.raises(PrepkitError, match="kernels is 'apart' or 'joined'; found 'both'"):
        views.graph("lenet_like@digits", kernels="both")
    view = views.graph("lenet_like@digits")
    nodes, edges = view(torch.zeros(2, 8, 512))
    with pytest.raises(LayoutMismatch, match=r"edges of lenet_like@digits have shape \[N, 2244, 1\]"):
        view.inverse((nodes, edges[:, 1:]))
    with pytest.raises(LayoutMismatch, match="nodes are of 1 instance, edges of 2"):
        view.inverse((nodes[:1], edges))


def test_the_network_that_was_given_stays_as_it_was():
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    views.graph(network, torch.randn(4, 3))
    assert network.training
    assert network[1].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_data_of_torch_geometric(monkeypatch):
    view = views.graph("lenet_like@digits")
    preps = torch.arange(2 * 8 * 512.0).view(2, 8, 512)
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    monkeypatch.setitem(sys.modules, "torch_geometric.data", None)
    with pytest.raises(PrepkitError, match=r"torch_geometric is not installed \(pip install torch-geometric\)"):
        view.data(preps)
    stand_in = ModuleType("torch_geometric.data")
    stand_in.Data = SimpleNamespace
    monkeypatch.setitem(sys.modules, "torch_geometric", ModuleType("torch_geometric"))
    monkeypatch.setitem(sys.modules, "torch_geometric.data", stand_in)
    graphs, data = view(preps), view.data(preps)
    assert [torch.equal(one.x, nodes) for one, nodes in zip(data, graphs.nodes, strict=True)] == [True, True]
    assert torch.equal(data[1].edge_attr, graphs.edges[1])
    assert torch.equal(data[0].edge_index, view.edge_index)
