"""Importing trees of small networks, with a table a run, against a loop that only loads the checkpoints.

Each way is a process of its own, whose processor time and peak memory are read at its end; the ways take turns.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import prepkit
from benchmarks.timing import record

FILES, TIMED, EPOCHS, ROUNDS = 40_000, 20_000, 50, 3
SHAPES = {"0": (8, 1, 5, 5), "3": (6, 8, 5, 5), "6": (4, 6, 2, 2), "9": (20, 36), "11": (10, 20)}
LOAD = "import sys, torch\nfor line in open(sys.argv[1]): torch.load(line.strip(), weights_only=True)\n"
PATTERN = ("--pattern", "{run}/checkpoint_{epoch:int}/checkpoints", "--table", "{run}/result.json")
SETTINGS = {"model::type": "CNN", "model::nlin": "tanh", "model::o_dim": 10, "seed": 1}
MEASURE = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
cpu = used.ru_utime + used.ru_stime
print(json.dumps({"seconds": time.perf_counter() - start, "cpu": cpu, "MiB": used.ru_maxrss / 1024}))
"""


def checkpoint(epoch: int, generator: torch.Generator, beside: bool) -> object:
    """A state dict of 2,464 values, as ModelZooDataset has them; with its epoch beside it, no two pickles are equal."""
    tensors = {}
    for name, shape in SHAPES.items():
        tensors[f"module_list.{name}.weight"] = torch.randn(shape, generator=generator)
        tensors[f"module_list.{name}.bias"] = torch.randn(shape[0], generator=generator)
    accuracy = float(torch.rand((), generator=generator))
    return {"model": tensors, "epoch": epoch, "accuracy": accuracy} if beside else tensors


def write_tree(root: Path, count: int, beside: bool = False, first: int = 0) -> list[Path]:
    """Write runs as ray does, numbered from the first on, and return all checkpoints."""
    generator = torch.Generator().manual_seed(first)
    files = []
    for run in range(first, first + count // EPOCHS):
        folder = root / f"NN_tune_trainable_{run}"
        folder.mkdir(parents=True)
        rows = [{"training_iteration": epoch, "epoch": epoch, "test_acc": epoch / 50} for epoch in range(EPOCHS + 1)]
        (folder / "result.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "params.json").write_text(json.dumps(SETTINGS))
        for epoch in range(1, EPOCHS + 1):
            files.append(folder / f"checkpoint_{epoch:06d}/checkpoints")
            files[-1].parent.mkdir()
            torch.save(checkpoint(epoch, generator, beside), files[-1])
    return files


def write_list(file: Path, files: list[Path]) -> Path:
    file.write_text("\n".join(map(str, files)))
    return file


def measured(*command: object) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, sys.executable, *map(str, command)], capture_output=True, check=True, text=True
    )
    return {name: round(value, 2) for name, value in json.loads(done.stdout).items()}


def importing(kind: str, *arguments: object) -> tuple[object, ...]:
    return "-m", "prepkit", "zoo", "import", kind, *arguments


def compared(root: Path, ways: dict[str, tuple[object, ...]], base: str) -> dict[str, object]:
    """Run the ways in turn, and give medians, extremes, and the median of the ratios to the base in the same round."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for number in range(ROUNDS):
        for name, way in ways.items():
            runs[name].append(measured(*[root / f"zoo-{number}" if part == "ZOO" else part for part in way]))
            subprocess.run(["rm", "-rf", str(root / f"zoo-{number}")], check=True)
    result: dict[str, object] = {}
    for name, rounds in runs.items():
        told: dict[str, object] = {"rounds": ROUNDS, "MiB": round(max(one["MiB"] for one in rounds))}
        for what in ("cpu", "seconds"):
            values = [one[what] for one in rounds]
            ratios = [one[what] / other[what] for one, other in zip(rounds, runs[base], strict=True)]
            told[what] = [round(value, 1) for value in (statistics.median(values), min(values), max(values))]
            told[f"{what}, ratio"] = [
                round(value, 2) for value in (statistics.median(ratios), min(ratios), max(ratios))
            ]
        result[name] = told
    return result


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tree of 20,000 files and a list of them."""
    root = tmp_path_factory.mktemp("timed")
    write_list(root / "list", write_tree(root / "src", TIMED))
    return root


def test_import_20_000_checkpoints(benchmark: BenchmarkFixture, timed: Path) -> None:
    loop = f"a loop of torch.load over {TIMED:,} files"
    ways = {
        loop: ("-c", LOAD, timed / "list"),
        "zoo import tree": importing("tree", timed / "src", "ZOO", *PATTERN),
        "zoo import ray-tree": importing("ray-tree", timed / "src", "ZOO"),
    }
    result = compared(timed, ways, loop)
    benchmark.pedantic(lambda: None, rounds=1)
    record(benchmark, "importing", "import 20,000 checkpoints", result)


def test_import_checkpoints_that_differ_beside_their_tensors(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    files = write_tree(tmp_path / "src", TIMED // 4, beside=True)
    loop = f"a loop of torch.load over {len(files):,} files"
    ways = {
        loop: ("-c", LOAD, write_list(tmp_path / "list", files)),
        "zoo import tree": importing("tree", tmp_path / "src", "ZOO", *PATTERN),
    }
    benchmark.pedantic(lambda: None, rounds=1)
    record(benchmark, "importing", "import checkpoints with epoch and accuracy", compared(tmp_path, ways, loop))


def test_import_40_000_files_from_a_list(benchmark: BenchmarkFixture, timed: Path) -> None:
    files = (timed / "list").read_text().split("\n")
    files += map(str, write_tree(timed / "src", FILES - TIMED, first=TIMED // EPOCHS))
    (timed / "all").write_text("\n".join(files))
    (timed / "tenth").write_text("\n".join(files[: FILES // 10]))
    small = importing("tree", timed / "src", timed / "small", "--from", timed / "tenth", *PATTERN)
    large = importing("tree", timed / "src", timed / "zoo", "--from", timed / "all", *PATTERN)
    result = {f"{FILES // 10:,} files": measured(*small), f"{FILES:,} files": measured(*large)}
    zoo = prepkit.open_zoo(timed / "zoo")
    assert len(zoo) == FILES
    assert zoo.table["test_acc"].to_pylist()[:EPOCHS] == [epoch / 50 for epoch in range(1, EPOCHS + 1)]
    benchmark.pedantic(lambda: None, rounds=1)
    record(benchmark, "importing", "import a tree from a list", result)
