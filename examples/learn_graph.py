"""Predict how accurate networks are from graphs, with two rounds of messages along the edges.

It prints its error on runs that it has not learned from, and that of a constant:
    python examples/digits_zoo.py digits-zoo
    python examples/learn_graph.py digits-zoo
"""

import torch
from learning import given_zoo, learn
from torch import nn

import prepkit

torch.manual_seed(0)
zoo = given_zoo(__doc__)
view = prepkit.views.graph(zoo)
source, target = view.edge_index


class Learner(nn.Module):
    """Messages are multiplied by the weights of edges; pixels start from embeddings, other nodes from biases."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(len(view.node_layer), width) * (view.node_layer < 0)[:, None])
        self.steps, self.head = nn.ModuleList([nn.Linear(width, width) for _ in range(2)]), nn.Linear(width, 1)

    def forward(self, graphs: prepkit.views.Graphs) -> torch.Tensor:
        """Return predictions `[N]` of nodes `[N, V, 1]` and edges `[N, E, 1]`."""
        nodes = self.start + graphs.nodes
        for step in self.steps:
            messages = torch.zeros_like(nodes).index_add(1, target, graphs.edges * nodes[:, source])
            nodes = nodes + torch.relu(step(messages))
        return self.head(nodes.mean(1)).squeeze(1)


learn(Learner(), zoo, view, epochs=6, rate=2e-2)
