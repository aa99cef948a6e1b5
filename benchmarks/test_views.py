"""Views of a batch against building them instance by instance from state dicts, as the field's own loaders do.

The plain ways are the fastest forms that were thought of for one instance at a time: slices of the flat vector, and
torch.cat for tokens. Statistics are also compared with reading the same instances from the disk's cache.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import prepkit
from benchmarks.timing import interleaved, record, summary
from prepkit import views
from prepkit.zoo.change.normalising import normalise

BATCH = 256
ROUNDS = 9
Tensors = dict[str, Tensor]


def plain_flat(tensors: Tensors) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def plain_layers(tensors: Tensors) -> list[Tensor]:
    return [tensor[None] for tensor in tensors.values()]


def plain_tokens(tensors: Tensors, size: int) -> tuple[Tensor, Tensor, Tensor]:
    rows, masks, places = [], [], []
    for number, name in enumerate(name for name in tensors if name.endswith("weight")):
        values = torch.cat([tensors[name].flatten(1), tensors[name.replace("weight", "bias")][:, None]], dim=1)
        padded = torch.zeros(len(values), size)
        mask = torch.zeros(len(values), size, dtype=torch.bool)
        padded[:, : values.shape[1]] = values
        mask[:, : values.shape[1]] = True
        rows.append(padded)
        masks.append(mask)
        places += [(number, channel) for channel in range(len(values))]
    position = torch.tensor([(n, *place) for n, place in enumerate(places)])
    return torch.cat(rows), torch.cat(masks), position


def plain_statistics(tensors: Tensors) -> Tensor:
    found = []
    for tensor in tensors.values():
        values = tensor.flatten()
        quantiles = torch.quantile(values, torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
        found.append(torch.cat([torch.stack([values.mean(), values.var(correction=0)]), quantiles]))
    return torch.stack(found)


def plain_graph(tensors: Tensors) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes, edges and edge_index of a chain of layers; residual sums are left out, which favours this way."""
    pairs = [(tensors[name], tensors[name.replace("weight", "bias")]) for name in tensors if name.endswith("weight")]
    inputs, first = pairs[0][0].shape[1], 0
    nodes, edges, index = [torch.zeros(inputs)], [], []
    for weight, bias in pairs:
        given = inputs if first == 0 else len(nodes[-1])
        nodes.append(bias)
        edges.append(weight.flatten())
        each = weight[0].numel() // given
        target, source, _ = torch.cartesian_prod(*map(torch.arange, (len(bias), given, max(each, 1)))).T
        index.append(torch.stack([source + first, target + first + given]))
        first += given
    return torch.cat(nodes), torch.cat(edges), torch.cat(index, dim=1)


@pytest.fixture(params=["lenet_like@digits", "resnet8@cifar10"])
def batch(request: pytest.FixtureRequest) -> tuple[prepkit.Architecture, Tensor, list[Tensors]]:
    architecture = prepkit.architecture(request.param)
    shape = architecture.layout.shape(width=512)
    preps = torch.zeros(BATCH, shape.height, shape.width)
    preps.flatten(1)[:, : architecture.layout.total] = torch.randn(BATCH, architecture.layout.total)
    each = [architecture.layout.unpack(prep) for prep in preps]
    return architecture, preps, each


def test_views_of_a_batch(
    benchmark: BenchmarkFixture, batch: tuple[prepkit.Architecture, Tensor, list[Tensors]]
) -> None:
    """Batches of 256; the state dicts of the plain way are in memory already, which favours it."""
    architecture, preps, each = batch
    made = {name: getattr(views, name)(architecture) for name in ("flat", "layers", "tokens", "graph", "statistics")}
    size = made["tokens"].size
    plain: dict[str, Callable[[], object]] = {
        "flat": lambda: torch.stack([plain_flat(tensors) for tensors in each]),
        "layers": lambda: [torch.cat(parts) for parts in zip(*map(plain_layers, each), strict=True)],
        "tokens": lambda: [torch.stack(p) for p in zip(*[plain_tokens(t, size) for t in each], strict=True)],
        "graph": lambda: [torch.stack(p) for p in zip(*map(plain_graph, each), strict=True)],
        "statistics": lambda: torch.stack([plain_statistics(tensors) for tensors in each]),
    }
    assert torch.equal(made["flat"](preps), plain["flat"]())  # type: ignore[arg-type]
    tokens, masks, positions = plain["tokens"]()  # type: ignore[misc]
    assert torch.equal(made["tokens"](preps), tokens)
    assert torch.equal(made["tokens"].mask, masks[0])
    assert torch.equal(made["tokens"].position, positions[0])
    nodes, edges, index = plain["graph"]()  # type: ignore[misc]
    weighted = made["graph"].edge_mask[:, 0]
    assert torch.equal(made["graph"](preps).edges[:, weighted, 0], edges)
    if "lenet" in architecture.name:
        assert torch.equal(made["graph"](preps).nodes[:, :, 0], nodes)
        assert torch.equal(made["graph"].edge_index, index[0])
    weights, biases, _ = made["layers"](preps)
    pairs = [tensor for pair in zip(weights, biases, strict=True) for tensor in pair]
    assert all(map(torch.equal, pairs, plain["layers"]()))  # type: ignore[arg-type]
    torch.testing.assert_close(made["statistics"](preps), plain["statistics"]())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, view in made.items():
            record(benchmark, "views", f"{name}, {BATCH} x {architecture.name}", _compared(view, plain[name], preps))
    finally:
        torch.set_num_threads(threads)
    benchmark.pedantic(lambda: made["tokens"](preps), rounds=ROUNDS)


def _compared(view: views.View, plain: Callable[[], object], preps: Tensor) -> dict[str, dict[str, float]]:
    """Figures of a view; flat and layers share the PReps' memory, so they are also copied, as the plain way does."""
    values = view(preps)
    ways: dict[str, Callable[[], object]] = {"one by one": plain, "view": lambda: view(preps)}
    if view.name in ("flat", "layers"):
        ways["view, copied"] = lambda: [part.clone() for part in _parts(view(preps))]
    if view.name != "statistics":
        ways["inverse"] = lambda: view.inverse(values)
    return summary(interleaved(ways, rounds=ROUNDS), "one by one")


def _parts(values: Any) -> list[Tensor]:
    return [values] if isinstance(values, Tensor) else [tensor for part in values for tensor in part]


def test_statistics_of_a_zoo(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """Statistics of 10,000 instances, and what normalises them, against reading: page cache, fresh maps, one thread."""
    architecture = prepkit.architecture("resnet8@digits")
    count, total = 10_000, architecture.layout.total
    shape = architecture.layout.shape(width=512)
    with prepkit.ZooWriter(tmp_path / "zoo", width=512) as writer:
        for first in range(0, count, 1000):
            preps = torch.zeros(1000, shape.height, shape.width)
            preps.flatten(1)[:, :total] = torch.randn(1000, total, generator=torch.Generator().manual_seed(first))
            writer.add_stack(preps, architecture=architecture)

    def read(view: str) -> Tensor:
        zoo = prepkit.open_zoo(tmp_path / "zoo")
        return torch.cat([values.clone() for values, _, _ in zoo.loader(250, shuffle=False, view=view)])

    found = read("statistics")
    values = read("prep").flatten(1)[:, :total].double().numpy()
    for number, slot in enumerate(architecture.layout):
        own = values[:, slot.start : slot.stop]
        expected = np.stack([own.mean(1), own.var(1), *np.quantile(own, [0, 0.25, 0.5, 0.75, 1], axis=1)], axis=1)
        np.testing.assert_allclose(found[:, number].numpy(), expected, rtol=1e-5, atol=1e-6)
    preprocessing = normalise(tmp_path / "zoo", card=False)
    assert preprocessing.stored.rows == count
    normal = prepkit.open_zoo(tmp_path / "zoo").preprocessing.normals[architecture.name]
    np.testing.assert_allclose(normal.mean, values.mean(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(normal.deviation, values.std(0), rtol=1e-9)
    del values
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ways: dict[str, Callable[[], object]] = {
            "reading": lambda: read("prep"),
            "statistics": lambda: read("statistics"),
            "normalise": lambda: normalise(tmp_path / "zoo", force=True, card=False),
        }
        record(benchmark, "views", "statistics of 10,000 resnet8@digits", summary(interleaved(ways, 5), "reading"))
    finally:
        torch.set_num_threads(threads)
    benchmark.pedantic(ways["statistics"], rounds=1)
