"""A NetSpace step of ResNet8@cifar10 against the same step written plainly, and running predicted instances.

PRep 8 x 10,000, E = 4096, 8 instances, 128 images, the single-architecture loss. Both ways go on from a state that 50
steps of training left: in the first steps predicted weights are so small that denormal numbers slow both down. The C
library's allocator is a condition of its own, once as it is and once told to keep what is freed, as `netspace train`
does; it belongs to a process, so each condition has one, in which all ways are interleaved.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn.functional import cosine_similarity

import prepkit
from benchmarks.baselines import evaluate_one_at_a_time, netspace_step
from benchmarks.timing import interleaved, record, summary
from netspace import NetSpace
from netspace.data import Batch
from netspace.recipe import load_recipe
from netspace.training._objective import Objective
from prepkit.cli.allocator import keep_freed_memory

ROOT = Path(__file__).parent.parent
INSTANCES, IMAGES, STEPS = 8, 128, 50
ROUNDS = int(os.environ.get("PREPKIT_ROUNDS", "5"))
PRECISIONS = ("float32", "bfloat16")


class Case:
    """A NetSpace with its optimiser, targets and images; `ours` and `plain` are steps that return the loss."""

    def __init__(self, state: Path | None = None) -> None:
        torch.manual_seed(0)
        self.architecture = prepkit.architecture("resnet8@cifar10")
        self.network = self.architecture.build_folded().requires_grad_(False).eval()
        self.layout, shape = self.architecture.layout, prepkit.PRepShape(8, 10_000)
        states = [self.architecture.build_folded().state_dict() for _ in range(INSTANCES)]
        self.preps = torch.stack([self.layout.pack(tensors, shape) for tensors in states])
        self.images = torch.randn(IMAGES, 3, 32, 32)
        self.space = NetSpace(height=8, width=10_000, embedding_size=4096)
        if state is not None:
            self.space.load_state_dict(torch.load(state))
        registry, positions = prepkit.Registry([self.architecture]), tuple(range(INSTANCES))
        labels = torch.zeros(IMAGES, dtype=torch.int64)  # Eq. 1 uses none
        self.batch = Batch(self.preps, (0,) * INSTANCES, positions, self.images, labels)
        self.objectives = {
            name: Objective(self.space, load_recipe("cifar10_single", {"training.precision": name}), registry)
            for name in PRECISIONS
        }
        self.optimisers = {
            "plain": torch.optim.Adam(self.space.parameters(), lr=1e-4),
            "ours": torch.optim.Adam(self.space.parameters(), lr=1e-4, fused=True),
        }

    def plain(self) -> float:
        """A step of the baseline."""
        return float(
            netspace_step(self.space, self.optimisers["plain"], self.network, self.layout, self.preps, self.images)
        )

    def ours(self, precision: str) -> float:
        """A step as `netspace train` makes it."""
        loss = self.objectives[precision](self.batch).total
        self.optimisers["ours"].zero_grad()
        loss.backward()
        self.optimisers["ours"].step()
        return loss.item()

    def way(self, name: str) -> Callable[[], float]:
        """A step by its name."""
        return self.plain if name == "plain" else lambda: self.ours(name)

    def gradient(self, name: str) -> tuple[float, Tensor]:
        """Loss and all gradients of a way, in one row; the state is left as it is."""
        before = {key: value.clone() for key, value in self.space.state_dict().items()}
        loss = self.way(name)()
        self.space.load_state_dict(before)
        return loss, torch.cat([p.grad.flatten() for p in self.space.parameters() if p.grad is not None])


def train(state: str) -> dict[str, Any]:
    """The trained state, and how near losses and gradients are there."""
    keep_freed_memory()
    case = Case()
    losses = [case.ours("float32") for _ in range(STEPS)]
    torch.save(case.space.state_dict(), state)
    found = {name: case.gradient(name) for name in ("plain", *PRECISIONS)}
    base_loss, base = found["plain"]
    cosines = {name: float(cosine_similarity(base.double(), found[name][1].double(), dim=0)) for name in PRECISIONS}
    return {
        "loss at the start and after training": [losses[0], losses[-1]],
        "losses": {name: loss for name, (loss, _) in found.items()},
        "relative difference of the loss": {name: abs(found[name][0] / base_loss - 1) for name in PRECISIONS},
        "gradient cosine": cosines,
    }


def time_steps(state: str, kept: str) -> dict[str, Any]:
    """Seconds of steps, all ways interleaved."""
    if kept == "kept":
        keep_freed_memory()
    case = Case(Path(state))
    seconds = interleaved({name: case.way(name) for name in ("plain", *PRECISIONS)}, ROUNDS)
    middle = statistics.median(seconds["plain"])
    times = {name: round(middle / statistics.median(seconds[name]), 2) for name in PRECISIONS}
    pairs = {
        name: [round(a / b, 2) for a, b in zip(seconds["plain"], seconds[name], strict=True)] for name in PRECISIONS
    }
    return {
        **summary(seconds, "plain"),
        "times as fast": times,
        "in each round": pairs,
        "threads": torch.get_num_threads(),
    }


def peak(state: str, kept: str, name: str) -> dict[str, Any]:
    """Peak memory of this process after three steps, in MiB, and before the first."""
    if kept == "kept":
        keep_freed_memory()
    case = Case(Path(state))
    before = _high_water()
    for _ in range(3):
        case.way(name)()
    return {"MiB": _high_water(), "before": before}


def _high_water() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return round(int(line.split()[1]) / 1024, 1)


def alone(function: str, *arguments: str) -> dict[str, Any]:
    """The result of a function of this file in a process of its own."""
    code = f"import json, benchmarks.test_netspace_step as b; print(json.dumps(b.{function}(*{arguments!r})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """A state after 50 steps, in a file, and what was found there."""
    state = str(tmp_path_factory.mktemp("netspace") / "state.pt")
    return state, alone("train", state)


def test_gradients(benchmark: BenchmarkFixture, trained: tuple[str, dict[str, Any]]) -> None:
    """The loss of both precisions and their gradients against the plain step's, in the trained state."""
    _, found = trained
    assert found["relative difference of the loss"]["float32"] < 1e-5
    assert found["gradient cosine"]["float32"] > 0.9999
    assert found["gradient cosine"]["bfloat16"] > 0.998
    benchmark.pedantic(lambda: None, rounds=1)
    record(benchmark, "netspace_step", "after 50 steps", found)


@pytest.mark.parametrize("allocator", ["default", "kept"])
def test_step(benchmark: BenchmarkFixture, trained: tuple[str, dict[str, Any]], allocator: str) -> None:
    """Seconds a step, and peak memory of a process a way."""
    state, _ = trained
    result = alone("time_steps", state, allocator)
    memory = {name: alone("peak", state, allocator, name) for name in ("plain", *PRECISIONS)}
    ratios = {name: round(memory["plain"]["MiB"] / memory[name]["MiB"], 2) for name in PRECISIONS}
    result |= {"peak memory": memory, "times as small": ratios}
    benchmark.pedantic(lambda: None, rounds=1)
    record(benchmark, "netspace_step", f"step, allocator {allocator}, {result['threads']} threads", result)


def test_evaluating_predicted_instances(benchmark: BenchmarkFixture) -> None:
    """10,000 random images in 20 batches, a round each; 8 of the 64 instances, which run one after another."""
    case = Case()
    labels = torch.randint(10, (10_000,))
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(500, 3, 32, 32, generator=generator) for _ in range(20)]
    right: dict[str, list[Tensor]] = {"loop": [], **{name: [] for name in PRECISIONS}}
    turn = dict.fromkeys(right, 0)

    def judged(name: str, run: Callable[[Tensor], Tensor]) -> None:
        number = turn[name] % len(batches)
        turn[name] += 1
        with torch.no_grad():
            chosen = run(batches[number]).argmax(2)
        right[name].append((chosen == labels[500 * number : 500 * number + 500]).double().mean(1))

    def ours(precision: str, images: Tensor) -> Tensor:
        half = torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" else contextlib.nullcontext()
        with half:
            return prepkit.run_instances(case.architecture, case.preps, images)

    ways: dict[str, Callable[[], object]] = {
        "loop": lambda: judged(
            "loop", lambda images: evaluate_one_at_a_time(case.network, case.layout, case.preps, images)
        )
    }
    for name in PRECISIONS:
        ways[name] = lambda name=name: judged(name, lambda images: ours(name, images))  # type: ignore[misc]
    seconds = interleaved(ways, len(batches))
    accuracy = {name: torch.stack(values).mean(0) for name, values in right.items()}
    off = {name: float((accuracy[name] - accuracy["loop"]).abs().max()) * 100 for name in PRECISIONS}
    assert max(off.values()) < 0.2
    middle = statistics.median(seconds["loop"])
    times = {name: round(middle / statistics.median(seconds[name]), 2) for name in PRECISIONS}
    result: dict[str, Any] = {**summary(seconds, "loop"), "times as fast": times, "points of accuracy off": off}
    benchmark.pedantic(lambda: None, rounds=1)
    record(benchmark, "netspace_step", f"evaluating, {torch.get_num_threads()} threads", result)
