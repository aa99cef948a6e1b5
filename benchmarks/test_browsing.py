"""`prepkit zoo view` of 10,000 small networks without its audit, against reading all their values."""

from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import prepkit
from benchmarks.timing import interleaved, record, summary
from prepkit.browsing.page import Page, page_of

NAME = "lenet_like@digits"
COUNT, STACK = 10_000, 500
ROUNDS = 3


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("browsing") / "zoo"
    shapes = {name: tensor.shape for name, tensor in prepkit.architecture(NAME).build().state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    with prepkit.ZooWriter(root) as writer:
        for first in range(0, COUNT, STACK):
            stack = {name: torch.randn(STACK, *shape, generator=generator) for name, shape in shapes.items()}
            numbers = list(range(first, first + STACK))
            writer.add_stack(stack, architecture=NAME, split="train", run=numbers, seed=numbers)
    return root


def test_page(benchmark: BenchmarkFixture, zoo: Path) -> None:
    pages: list[Page] = []
    opened = prepkit.open_zoo(zoo)
    ways = {"reading": lambda: opened.values(), "page": lambda: pages.append(page_of(opened, with_audit=False))}
    seconds = interleaved(ways, rounds=ROUNDS)
    assert pages[0].instances == COUNT
    benchmark.pedantic(ways["reading"], rounds=1)
    result = summary(seconds, "reading")
    result["page"]["mib"] = round(len(pages[0].html) / 2**20, 1)
    record(benchmark, "browsing", f"page of {COUNT:,} LeNetLike of digits, without audit", result)
