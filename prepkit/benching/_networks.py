"""Two small networks that read networks: a transformer on tokens, and a graph network.

The graph network predicts the same of a network and of the same network with its hidden units in another order: nodes
are told apart only by what is the same for all units of a layer, but for inputs and outputs, which have an order.
Shapes: N instances, T tokens, S the size of a token, V nodes, E edges, K weights on an edge, D features.
"""

# ruff: noqa: N803, N806, N815 - names of tensors end in their axes

from __future__ import annotations

import torch
from torch import Tensor, nn

from prepkit import views

WIDTH_OF_TRANSFORMER, HEADS, BLOCKS = 64, 4, 2
WIDTH_OF_GRAPH, ROUNDS = 32, 3
LEAST_SCALE = 1e-8  # of weights that are all equal


class TokenTransformer(nn.Module):
    """Map PReps `[N, H, W]` to `[N, outputs]`: a transformer encoder on tokens, and the mean over them.

    Tokens are divided by the root mean square of their layer in the training instances. A vector is learned for each
    place.
    preps: those of the training instances
    """

    scale_T: Tensor

    def __init__(self, view: views.Tokens, preps: Tensor, outputs: int) -> None:
        super().__init__()
        self.view = view
        count, size = view.shapes["tokens"]
        layer_T = view.position[:, 1]
        self.register_buffer("scale_T", _scales(view(preps), view.mask, layer_T))
        self.entry = nn.Linear(size, WIDTH_OF_TRANSFORMER)
        self.places = nn.Parameter(torch.randn(count, WIDTH_OF_TRANSFORMER) * 0.02)
        block = nn.TransformerEncoderLayer(
            WIDTH_OF_TRANSFORMER, HEADS, 2 * WIDTH_OF_TRANSFORMER, dropout=0.0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, BLOCKS, enable_nested_tensor=False)
        self.end = nn.Sequential(nn.LayerNorm(WIDTH_OF_TRANSFORMER), nn.Linear(WIDTH_OF_TRANSFORMER, outputs))

    def forward(self, preps: Tensor) -> Tensor:
        """Return `[N, outputs]`."""
        tokens_NTD = self.entry(self.view(preps) / self.scale_T[:, None]) + self.places
        outputs: Tensor = self.end(self.blocks(tokens_NTD).mean(1))
        return outputs


class GraphNetwork(nn.Module):
    """Map PReps `[N, H, W]` to `[N, outputs]`: messages along the edges both ways, and means over each layer.

    Biases and weights are divided by the root mean square of their layer in the training instances.
    preps: those of the training instances
    """

    node_scale_V: Tensor
    edge_scale_E: Tensor
    source_E: Tensor
    target_E: Tensor
    node_group_V: Tensor
    edge_group_E: Tensor
    name_V: Tensor
    shares_of_nodes: Tensor
    shares_of_edges: Tensor
    heard: Tensor
    told: Tensor

    def __init__(self, view: views.Graph, preps: Tensor, outputs: int) -> None:
        super().__init__()
        self.view = view
        graphs = view(preps)
        source_E, target_E = view.edge_index
        node_group_V, num_groups = _numbered(torch.stack([view.node_kind, view.node_layer]))
        edge_group_E, num_edge_groups = _numbered(torch.stack([view.edge_kind, view.edge_layer]))
        name_V, num_names = _names(view)
        constants = {
            "node_scale_V": _scales(graphs.nodes, view.node_mask, node_group_V),
            "edge_scale_E": _scales(graphs.edges, view.edge_mask, edge_group_E),
            "source_E": source_E,
            "target_E": target_E,
            "node_group_V": node_group_V,
            "edge_group_E": edge_group_E,
            "name_V": name_V,
            "shares_of_nodes": 1 / torch.bincount(node_group_V).clamp(min=1).to(preps.dtype),
            "shares_of_edges": 1 / torch.bincount(edge_group_E).clamp(min=1).to(preps.dtype),
            "heard": 1 / torch.bincount(target_E, minlength=len(name_V)).clamp(min=1).to(preps.dtype),
            "told": 1 / torch.bincount(source_E, minlength=len(name_V)).clamp(min=1).to(preps.dtype),
        }
        for name, tensor in constants.items():
            self.register_buffer(name, tensor)
        width = WIDTH_OF_GRAPH
        self.nodes = nn.Linear(graphs.nodes.shape[2], width)
        self.edges = nn.Linear(graphs.edges.shape[2], width)
        self.node_groups, self.edge_groups = nn.Embedding(num_groups, width), nn.Embedding(num_edge_groups, width)
        self.names = nn.Embedding(num_names, width)
        self.rounds = nn.ModuleList(_Round(width) for _ in range(ROUNDS))
        self.end = nn.Sequential(
            nn.Linear((num_groups + num_edge_groups) * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, outputs)
        )

    def forward(self, preps: Tensor) -> Tensor:
        """Return `[N, outputs]`."""
        nodes_NVF, edges_NEK = self.view(preps)
        nodes_NVD = self.nodes(nodes_NVF / self.node_scale_V[:, None])
        nodes_NVD = nodes_NVD + self.node_groups(self.node_group_V) + self.names(self.name_V)
        edges_NED = self.edges(edges_NEK / self.edge_scale_E[:, None]) + self.edge_groups(self.edge_group_E)
        for step in self.rounds:
            nodes_NVD, edges_NED = step(nodes_NVD, edges_NED, self.source_E, self.target_E, self.heard, self.told)
        of_nodes = _means(nodes_NVD, self.node_group_V, self.shares_of_nodes)
        of_edges = _means(edges_NED, self.edge_group_E, self.shares_of_edges)
        outputs: Tensor = self.end(torch.cat([of_nodes, of_edges], dim=1).flatten(1))
        return outputs


class _Round(nn.Module):
    """One round of messages: an edge hears both of its nodes, then each node hears its edges."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.of_source, self.of_target = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.of_edge = nn.Linear(width, width)
        self.of_node = nn.Sequential(nn.Linear(3 * width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(
        self, nodes_NVD: Tensor, edges_NED: Tensor, source_E: Tensor, target_E: Tensor, heard: Tensor, told: Tensor
    ) -> tuple[Tensor, Tensor]:
        both_NED = self.of_source(nodes_NVD)[:, source_E] + self.of_target(nodes_NVD)[:, target_E]
        messages_NED = torch.relu(both_NED + self.of_edge(edges_NED))
        forward_NVD = _means(messages_NED, target_E, heard)
        backward_NVD = _means(messages_NED, source_E, told)
        change_NVD = self.of_node(torch.cat([nodes_NVD, forward_NVD, backward_NVD], dim=2))
        return nodes_NVD + change_NVD, edges_NED + messages_NED


def _means(values_NMD: Tensor, group_M: Tensor, shares_G: Tensor) -> Tensor:
    """Return the mean of each group, `[N, G, D]`; shares: one over the sizes of the groups."""
    sums = values_NMD.new_zeros(len(values_NMD), len(shares_G), values_NMD.shape[2])
    return sums.index_add(1, group_M, values_NMD) * shares_G[:, None]


def _scales(values_NMK: Tensor, mask_MK: Tensor, group_M: Tensor) -> Tensor:
    """Return for each of M entries the root mean square of all values of its group; 1 for a group without values."""
    scale_M = torch.ones(len(group_M), dtype=values_NMK.dtype)
    for group in sorted(set(group_M.tolist())):
        own = group_M == group
        values = values_NMK[:, own][:, mask_MK[own]]
        if values.numel():
            scale_M[own] = values.square().mean().sqrt().clamp(min=LEAST_SCALE)
    return scale_M


def _numbered(keys: Tensor) -> tuple[Tensor, int]:
    """Return a number for each column of keys `[2, M]`, equal ones for equal columns, and how many there are."""
    columns = list(zip(*keys.tolist(), strict=True))
    number = {column: place for place, column in enumerate(sorted(set(columns)))}
    return torch.tensor([number[column] for column in columns]), len(number)


def _names(view: views.Graph) -> tuple[Tensor, int]:
    """Return numbers that tell inputs and outputs of the network apart, 0 for hidden units; and how many there are.

    Outputs are the nodes from which no edge leads on.
    """
    is_output_V = torch.ones(len(view.node_kind), dtype=torch.bool)
    is_output_V[view.edge_index[0]] = False
    is_input_V = view.node_kind == view.node_kinds.index("input")
    name_V = torch.zeros_like(view.node_kind)
    num_inputs = int(is_input_V.sum())
    name_V[is_input_V] = 1 + torch.arange(num_inputs)
    is_last_V = is_output_V & ~is_input_V
    num_outputs = int(is_last_V.sum())
    name_V[is_last_V] = 1 + num_inputs + torch.arange(num_outputs)
    return name_V, 1 + num_inputs + num_outputs
