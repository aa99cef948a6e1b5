"""`prepkit bench` of a zoo of digits_single's size, and novelty of networks beside it, against loading all weights."""

from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import prepkit
from benchmarks.timing import interleaved, record, summary
from prepkit.auditing.novelty import novelty
from prepkit.auditing.novelty_result import Novelty
from prepkit.benching.run import BASELINE_NAMES, Bench

NAME = "resnet8@digits"
TASK = {"kind": "images", "dataset": "digits", "mean": [0.3], "std": [0.4]}
TASK["split"] = {"seed": 0, "test": 360, "validation": 180}
SIZES = {"train": 100, "validation": 16, "test": 16}
GENERATED = 32
ROUNDS = 3


def written(root: Path, sizes: dict[str, int], seed: int) -> Path:
    """Networks whose column `score` is the size of their weights."""
    generator = torch.Generator().manual_seed(seed)
    state = prepkit.architecture(NAME).build_folded().state_dict()
    with prepkit.ZooWriter(root, width=128, task=TASK) as writer:
        for split, count in sizes.items():
            for number in range(count):
                score = 0.5 + torch.rand((), generator=generator).item()
                tensors = {
                    name: score * torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()
                }
                name = f"{split}{seed}-{number}"
                writer.add(tensors, architecture=NAME, id=name, run=name, split=split, score=score)
    return root


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("benching") / "zoo", SIZES, 0)


def test_bench(benchmark: BenchmarkFixture, zoo: Path) -> None:
    found: list[Bench] = []

    def loading() -> None:
        prepkit.open_zoo(zoo).preps()

    ways = {"loading": loading, "bench": lambda: found.append(prepkit.bench(zoo, "score"))}
    seconds = interleaved(ways, rounds=ROUNDS)
    rows = found[-1].rows
    assert set(rows) == set(BASELINE_NAMES)
    assert not any(row.error or row.left_out for row in rows.values())
    assert rows["statistics + ridge"].measures["r2"] > 0.99
    benchmark.pedantic(loading, rounds=1)
    result = summary(seconds, "loading")
    result["bench"]["learners"] = {name: row.seconds for name, row in rows.items()}
    record(benchmark, "benching", f"bench of {sum(SIZES.values())} ResNet8 of digits, all baselines", result)


def test_novelty(benchmark: BenchmarkFixture, zoo: Path, tmp_path: Path) -> None:
    generated, found = written(tmp_path / "generated", {"made": GENERATED - 1}, 1), list[Novelty]()
    copy = prepkit.open_zoo(zoo).network(5).state_dict()
    with prepkit.ZooWriter(tmp_path / "copy", width=128, task=TASK) as writer:
        writer.add(copy, architecture=NAME, id="copy", split="made")
    prepkit.merge(tmp_path / "both", [generated, tmp_path / "copy"])

    def loading() -> None:
        prepkit.open_zoo(zoo).preps()

    ways = {"loading": loading, "novelty": lambda: found.append(novelty(tmp_path / "both", zoo))}
    seconds = interleaved(ways, rounds=ROUNDS)
    assert found[-1].groups["generated"].copies == ("copy",)
    benchmark.pedantic(loading, rounds=1)
    name = f"novelty of {GENERATED} ResNet8 of digits against {SIZES['train']}, with controls"
    record(benchmark, "benching", name, summary(seconds, "loading"))
