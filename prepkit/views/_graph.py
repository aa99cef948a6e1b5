"""The view `graph`: channels as nodes and weights as edges, as graph networks read networks.

Shapes: N instances, V nodes, E edges, F features of a node, K of an edge.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from prepkit.errors import LayoutMismatch, PrepkitError, counted, listed
from prepkit.prep.layout import PRepShape
from prepkit.tensors import as_tensor
from prepkit.views._edges import Edges, edges_between, edges_of_weights, middle_of, most_weights
from prepkit.views._moving import Block, Moved, OnDevices
from prepkit.views._structure import Layer, layers_of
from prepkit.views._view import View
from prepkit.views._wiring import CONSTANT, Untraceable, Wiring, wiring_of
from prepkit.views.source import Source

Kernels = Literal["apart", "joined"]

NODE_KINDS = ("input", "channel", "sum", "product", "constant")
EDGE_KINDS = ("weight", "normalisation", "sum", "product")


class Graphs(NamedTuple):
    """The graphs of N instances, which have the same edges.

    nodes: `[N, V, F]`
    edges: `[N, E, K]`
    """

    nodes: Tensor
    edges: Tensor


def graph(of: Any, inputs: Any = None, kernels: Kernels = "apart") -> Graph:
    """Return the view of graphs: a node for each channel, with its bias, and an edge for each weight.

    of:      a zoo, an architecture, its name, or a network
    inputs:  inputs `[B, ...]` to run the network on once; drawn if missing, which needs an architecture
    kernels: "apart" gives each weight of a kernel an edge of its own, with its place in the kernel; "joined" gives one
             edge for each pair of channels, which carries the kernel, padded around it to the size of the largest
    raises LayoutMismatch for a network that a graph has no place for, or whose operations cannot be followed

    Residual sums are found by running the network: each is a row of nodes with edges of value 1 from both sides. A
    normalisation is a row of nodes too: its scale stands on the edge, its shift, mean and variance on the node.

    >>> view = prepkit.views.graph("resnet8@digits")
    >>> view
    <Graph of resnet8@digits: nodes [N, 123, 1], edges [N, 5020, 1]>
    """
    return Graph(Source.of(of), inputs, kernels)


class Graph(View):
    """Graphs `[N, V, F]` and `[N, E, K]`; everything but the values is the same for all instances.

    edge_index:    `[2, E]` int64, source and target of each edge
    node_mask:     `[V, F]` bool, True where a node has a bias, running mean or running variance
    edge_mask:     `[E, K]` bool, True where an edge has a weight; sums and scales that are not there have the value 1
    node_kind:     `[V]`, a number in `node_kinds`: input, channel, sum, product, constant
    edge_kind:     `[E]`, a number in `edge_kinds`: weight, normalisation, sum, product
    node_layer:    `[V]`, the number of the layer in `names`; -1 for nodes of no layer
    edge_layer:    `[E]`, likewise
    node_channel:  `[V]`, the number of the channel in its layer, sum or input
    edge_position: `[E, 3]`, the place in the kernel along its axes, -1 where there is none. Where feature maps are
                   flattened before a layer, the number of the place in the map stands first.
    features:      the names of the F features of nodes
    """

    name = "graph"
    node_kinds, edge_kinds = NODE_KINDS, EDGE_KINDS

    def __init__(self, source: Source, inputs: Any, kernels: Kernels) -> None:
        super().__init__(source)
        if kernels not in ("apart", "joined"):
            raise PrepkitError(f"kernels is 'apart' or 'joined'; found {kernels!r}.")
        self.kernels = kernels
        self._layers = layers_of(source)
        try:
            wiring = self._wiring(inputs)
        except Untraceable as error:
            raise LayoutMismatch(f"the graph of {source.name} is not known: {error}") from None
        roles = [_roles(layer) for layer in self._layers]
        has_statistics = any("mean" in own or "variance" in own for own in roles)
        self.features = ("bias", "mean", "variance") if has_statistics else ("bias",)
        self._lay_out_nodes(wiring)
        edges, middle, width = self._edges(wiring, roles)
        self.edge_index = torch.from_numpy(
            np.stack([np.concatenate([e.source for e in edges]), np.concatenate([e.target for e in edges])])
        )
        self.edge_kind = _repeated([EDGE_KINDS.index(e.kind) for e in edges], edges)
        self.edge_layer = _repeated([e.layer for e in edges], edges)
        self.edge_position = torch.from_numpy(np.concatenate([e.position for e in edges]))
        num_features = len(self.features)
        size = len(self.node_kind) * num_features
        blocks = []
        for layer, own in zip(self._layers, roles, strict=True):
            start = wiring.first[str(layer.module)] * num_features
            for number, feature in enumerate(self.features):
                if feature in own:
                    blocks.append(Block(own[feature][:, None], start, num_features, number))
        start = size
        for group in edges:
            blocks += group.blocks(start, width)
            start += len(group.source) * width
        moved = Moved(blocks, (start,))
        self._moved, self._size = moved, size
        self.node_mask = moved.mask[:size].view(-1, num_features)
        self.edge_mask = moved.mask[size:].view(-1, width)
        self._ones = OnDevices(torch.nonzero(~self.edge_mask.any(dim=1)).flatten())
        self._middle = middle

    def _wiring(self, inputs: Any) -> Wiring:
        """Run the network once; raises LayoutMismatch for layers that a graph has no place for."""
        source, network = self.source, self.source.network
        if network is None:
            raise Untraceable("its network cannot be built here, and a layout does not tell which layers read which.")
        if source.layout.ties:
            raise Untraceable(f"{listed(alias for alias, _ in source.layout.ties)} is tied to another tensor.")
        wide = [layer.name for layer in self._layers if layer.kind == "normalisation" and layer.cells[0].ndim > 1]
        others = [layer.name for layer in self._layers if layer.kind == "parameter"]
        others += [layer.name for layer in self._layers if layer.kind != "parameter" and layer.module is None]
        modules = dict(network.named_modules())
        mixing = (nn.MultiheadAttention, nn.RNNBase)
        others += [layer.name for layer in self._layers if isinstance(modules.get(str(layer.module)), mixing)]
        if wide or others:
            raise Untraceable(
                f"a graph has nodes for the channels of linear layers, convolutions, embeddings and normalisations; "
                f"{listed([*others, *wide])} is none of them. prepkit.views.tokens has a place for all."
            )
        if inputs is None:
            if source.architecture is None:
                raise Untraceable("the network runs on inputs that are not known; give them: graph(network, inputs).")
            inputs = source.architecture.example_input(1)
        channels = {str(layer.module): layer.channels for layer in self._layers}
        wiring = wiring_of(source.running_network(), channels, as_tensor(inputs, "inputs"))
        idle = [layer.name for layer in self._layers if layer.module not in wiring.first]
        if idle:
            raise Untraceable(f"{listed(idle)} did not run, so nothing tells what it reads.")
        return wiring

    def _lay_out_nodes(self, wiring: Wiring) -> None:
        """Number the nodes, and note what they are; the constant is the last one."""
        count = wiring.count
        reads = [*wiring.inputs.values(), *(pairs.flatten() for _, _, pairs in wiring.joins)]
        constant = any(bool((nodes == CONSTANT).any()) for nodes in reads)
        self.node_kind = torch.full((count + constant,), NODE_KINDS.index("constant"))
        self.node_layer, self.node_channel = self.node_kind.new_full((2, count + constant), -1)
        numbers = {layer.name: number for number, layer in enumerate(self._layers)}
        rows = [("input", first, size, -1) for first, size in wiring.given.values()]
        rows += [("channel", wiring.first[str(one.module)], one.channels, numbers[one.name]) for one in self._layers]
        rows += [(kind, first, pairs.shape[1], -1) for kind, first, pairs in wiring.joins]
        for kind, first, size, layer in rows:
            self.node_kind[first : first + size] = NODE_KINDS.index(kind)
            self.node_layer[first : first + size] = layer
            self.node_channel[first : first + size] = torch.arange(size)
        for nodes in reads:
            nodes[nodes == CONSTANT] = count

    def _edges(self, wiring: Wiring, roles: list[dict[str, np.ndarray]]) -> tuple[list[Edges], int, int]:
        """Return all edges, the feature on which that of a 1 x 1 kernel stands, and the number of features."""
        largest = None
        if self.kernels == "joined":
            kernels = [layer.cells[0].shape[2:] for layer in self._layers if layer.kind == "convolution"]
            axes = max((len(kernel) for kernel in kernels), default=0)
            padded = [(*kernel, *[1] * (axes - len(kernel))) for kernel in kernels]
            largest = tuple(max(sizes) for sizes in zip(*padded, strict=True))
        edges: list[Edges] = []
        for number, (layer, own) in enumerate(zip(self._layers, roles, strict=True)):
            if layer.kind == "normalisation":
                first = wiring.first[str(layer.module)]
                targets = first + np.arange(layer.channels)
                reads = wiring.inputs[str(layer.module)].numpy()
                edges.append(edges_between("normalisation", number, reads, targets, own.get("weight"), largest))
            else:
                edges += edges_of_weights(layer, number, wiring, largest)
        for kind, first, pairs in wiring.joins:
            targets = first + np.arange(pairs.shape[1])
            edges += [edges_between(kind, -1, side.numpy(), targets, None, largest) for side in pairs]
        return edges, middle_of(largest), most_weights(edges, largest)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the layers, by their numbers in `node_layer` and `edge_layer`."""
        return tuple(layer.name for layer in self._layers)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The numbers of nodes and edges, and of their features."""
        return {"nodes": tuple(self.node_mask.shape), "edges": tuple(self.edge_mask.shape)}

    def forward(self, preps: Tensor) -> Graphs:
        """Return the features of nodes `[N, V, F]` and edges `[N, E, K]`, 0 where there is no value."""
        flat = self._moved.forward(self._flat(preps))
        nodes = flat[:, : self._size].view(len(flat), *self.node_mask.shape)
        edges = flat[:, self._size :].view(len(flat), *self.edge_mask.shape)
        edges[:, self._ones.on(flat.device), self._middle] = 1
        return Graphs(nodes, edges)

    def inverse(self, values: Any, shape: PRepShape | tuple[int, int] | None = None) -> Tensor:
        """Return the PReps `[N, H, W]` of nodes and edges; what stands where the masks are False does not matter."""
        wanted = self._prep_shape(shape)
        nodes, edges = values
        tensors = self._expect(nodes, self.shapes["nodes"], "nodes"), self._expect(edges, self.shapes["edges"], "edges")
        if len(nodes) != len(edges):
            raise LayoutMismatch(f"nodes are of {counted(len(nodes), 'instance')}, edges of {len(edges):,}.")
        return self._moved.inverse(torch.cat([tensor.flatten(1) for tensor in tensors], dim=1), wanted)

    def data(self, preps: Tensor) -> list[Any]:
        """Return a torch_geometric Data for each instance: x, edge_index, edge_attr, and all that is the same for all.

        raises PrepkitError where torch_geometric is not installed
        """
        try:
            from torch_geometric.data import Data
        except ImportError:
            raise PrepkitError(
                "torch_geometric is not installed (pip install torch-geometric); view(preps) and view.edge_index give "
                "the same as plain tensors."
            ) from None
        graphs = self(preps)
        device = graphs.nodes.device
        same = ("edge_index", "node_mask", "edge_mask", "node_kind", "node_layer", "node_channel", "edge_kind")
        shared = {name: getattr(self, name).to(device) for name in (*same, "edge_layer", "edge_position")}
        return [Data(x=x, edge_attr=attributes, **shared) for x, attributes in zip(*graphs, strict=True)]


def _roles(layer: Layer) -> dict[str, np.ndarray]:
    """Return where a layer's vectors stand by what they are: the bias; weight, mean and variance of a normalisation."""
    if layer.kind != "normalisation":
        return {"bias": layer.cells[1]} if layer.has_bias else {}
    known = {"weight": "weight", "bias": "bias", "running_mean": "mean", "running_var": "variance"}
    leaves = [slot.name.rpartition(".")[2] for slot in layer.slots]
    if not known.keys() >= set(leaves):  # a module of others: parameters are a scale and a shift in this order
        leaves = [*known][: len(leaves)]
    return {known[leaf]: cells for leaf, cells in zip(leaves, layer.cells, strict=True)}


def _repeated(values: list[int], edges: list[Edges]) -> Tensor:
    return torch.repeat_interleave(torch.tensor(values), torch.tensor([len(group.source) for group in edges]))
