"""Importing a tree: 40,000 small networks from a list, with a table a run, against a loop that only loads them.

One round each, as it takes minutes; each way is a process of its own, whose peak memory is read at its end.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import prepkit
from benchmarks.timing import record

FILES, EPOCHS = 40_000, 50
SHAPES = {"0": (8, 1, 5, 5), "3": (6, 8, 5, 5), "6": (4, 6, 2, 2), "9": (20, 36), "11": (10, 20)}
LOAD = "import sys, torch\nfor line in open(sys.argv[1]): torch.load(line.strip(), weights_only=True)\n"
COMMAND = ["--pattern", "{run}/checkpoint_{epoch:int}/checkpoints", "--table", "{run}/result.json"]
MEASURE = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
cpu = used.ru_utime + used.ru_stime
print(json.dumps({"seconds": time.perf_counter() - start, "cpu": cpu, "MiB": used.ru_maxrss / 1024}))
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Runs as ray writes them, and a list of all checkpoints."""
    generator = torch.Generator().manual_seed(0)
    files = []
    for run in range(FILES // EPOCHS):
        folder = tmp_path / f"src/NN_tune_trainable_{run}"
        folder.mkdir(parents=True)
        rows = [{"training_iteration": epoch, "epoch": epoch, "test_acc": epoch / 50} for epoch in range(EPOCHS + 1)]
        (folder / "result.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for epoch in range(1, EPOCHS + 1):
            tensors = {}
            for name, shape in SHAPES.items():
                tensors[f"module_list.{name}.weight"] = torch.randn(shape, generator=generator)
                tensors[f"module_list.{name}.bias"] = torch.randn(shape[0], generator=generator)
            files.append(folder / f"checkpoint_{epoch:06d}/checkpoints")
            files[-1].parent.mkdir()
            torch.save(tensors, files[-1])
    (tmp_path / "list").write_text("\n".join(map(str, files)))
    (tmp_path / "tenth").write_text("\n".join(map(str, files[: FILES // 10])))
    return tmp_path


def measured(*command: object) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, sys.executable, *map(str, command)], capture_output=True, check=True, text=True
    )
    return {name: round(value, 2) for name, value in json.loads(done.stdout).items()}


def test_import_40_000_files_from_a_list(benchmark: BenchmarkFixture, tree: Path) -> None:
    importing = ["-m", "prepkit", "zoo", "import", "tree", tree / "src"]
    result = {
        f"{FILES // 10:,} files": measured(*importing, tree / "small", "--from", tree / "tenth", *COMMAND),
        f"torch.load of {FILES:,} files": measured("-c", LOAD, tree / "list"),
        f"{FILES:,} files": measured(*importing, tree / "zoo", "--from", tree / "list", *COMMAND),
    }
    zoo = prepkit.open_zoo(tree / "zoo")
    assert len(zoo) == FILES
    assert zoo.table["test_acc"].to_pylist()[:EPOCHS] == [epoch / 50 for epoch in range(1, EPOCHS + 1)]
    benchmark.pedantic(lambda: None, rounds=1)
    record(benchmark, "importing", "import a tree from a list", result)
