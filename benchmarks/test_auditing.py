"""`prepkit zoo audit` of 10,000 small networks, among them copies, against reading and hashing the same files."""

import hashlib
import resource
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.timing import interleaved, record, summary
from prepkit.auditing.audit import audit
from prepkit.auditing.findings import Audit
from prepkit.families.registry import architecture
from prepkit.zoo.write.writer import ZooWriter

NAME = "lenet_like@digits"
TASK = {"kind": "images", "dataset": "digits", "mean": [0.3], "std": [0.4], "split": {"seed": 0, "test": 360}}
COUNT, STACK = 10_000, 500
ROUNDS = 3


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks with the deviations of a drawn one; of 500, one is a copy of the first, one is moved, and one scaled."""
    root = tmp_path_factory.mktemp("auditing") / "zoo"
    deviations = {name: tensor.std() for name, tensor in architecture(NAME).build().state_dict().items()}
    shapes = {name: tensor.shape for name, tensor in architecture(NAME).build().state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    with ZooWriter(root, task=TASK, license="mit") as writer:
        for first in range(0, COUNT, STACK):
            stack = {
                name: torch.randn(STACK, *shape, generator=generator) * deviations[name]
                for name, shape in shapes.items()
            }
            for tensor in stack.values():
                tensor[1] = tensor[0]
                tensor[2] = tensor[0] * (1 + 1e-4)
                tensor[3] = tensor[0]
            for name in ("convs.0.weight", "convs.0.bias"):  # LeakyReLU gives the number on to what reads it
                stack[name][3] *= 3
            stack["convs.1.weight"][3] /= 3
            numbers = list(range(first, first + STACK))
            writer.add_stack(stack, architecture=NAME, split="train", run=numbers, seed=numbers)
    return root


def test_audit(benchmark: BenchmarkFixture, zoo: Path) -> None:
    found: list[Audit] = []

    def hashes() -> None:
        for path in (zoo / "shards").iterdir():
            with path.open("rb") as file:
                hashlib.file_digest(file, "sha256")

    seconds = interleaved({"sha256": hashes, "audit": lambda: found.append(audit(zoo))}, rounds=ROUNDS)
    assert found[0].counts["duplicates"] == 2 * COUNT // STACK
    assert found[0].counts["near-duplicates"] == 3 * COUNT // STACK
    benchmark.pedantic(hashes, rounds=1)
    result = summary(seconds, "sha256")
    result["audit"]["largest_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    record(benchmark, "auditing", f"audit of {COUNT:,} LeNetLike of digits", result)
