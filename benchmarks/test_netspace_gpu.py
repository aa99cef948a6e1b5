"""NetSpace's steps on a GPU, the paper's sizes: bf16 as `netspace train` makes them, against the plain step in TF32.

single: PRep 8 x 10,000, 8 ResNet8@cifar10, 128 images
multi:  PRep 88 x 10,000, a LeNetLike and a ResNet32 with the two points between them, teacher ResNet56, 128 images
Also evaluating 64 predicted ResNet8@cifar10 on 10,000 images against one at a time.
"""

import json
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

import prepkit
from benchmarks.baselines import evaluate_one_at_a_time, netspace_step
from benchmarks.timing import interleaved, record, summary
from netspace.data import Batch
from netspace.recipe import Recipe, load_recipe
from netspace.run.run import new_space
from netspace.training._objective import Objective
from netspace.training.losses import boundary_pairs, gammas, interpolate, interpolated_class_ids, loss_kd
from prepkit.support.device import use_tf32

CUDA = torch.device("cuda")
STEPS, ROUNDS = 20, 9
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Case:
    """A setting with random instances and images on a device."""

    def __init__(self, recipe: Recipe, class_ids: tuple[int, ...], device: torch.device) -> None:
        torch.manual_seed(0)
        use_tf32(device)
        self.recipe, self.device = recipe, device
        network = recipe.network
        shape = prepkit.PRepShape(network.height, network.width)
        built_in = prepkit.built_in_registry("cifar10")
        self.registry = built_in if recipe.has_classes else prepkit.Registry([built_in["resnet8@cifar10"]])
        self.networks = [one.build_folded().requires_grad_(False).eval().to(device) for one in self.registry]
        self.layouts = [one.layout for one in self.registry]
        states = [self.registry.by_class_id(class_id).build_folded().state_dict() for class_id in class_ids]
        packed = [self.layouts[class_id].pack(state, shape) for class_id, state in zip(class_ids, states, strict=True)]
        samples = recipe.batch.samples
        images, labels = torch.randn(samples, 3, 32, 32), torch.randint(10, (samples,))
        self.batch = Batch(torch.stack(packed).to(device), class_ids, (), images.to(device), labels.to(device))
        teacher = built_in.teacher
        assert teacher is not None
        self.teacher = teacher.build().requires_grad_(False).eval().to(device)
        self.space = new_space(recipe).to(device)
        self.objective = Objective(self.space, recipe, self.registry, self.teacher)
        self.optimisers = {
            "plain": torch.optim.Adam(self.space.parameters(), lr=1e-4),
            "ours": torch.optim.Adam(self.space.parameters(), lr=1e-4, fused=True),
        }

    def ours(self) -> Tensor:
        """A step of `netspace train`."""
        losses = self.objective(self.batch)
        losses.total.backward()
        self.optimisers["ours"].step()
        self.optimisers["ours"].zero_grad(set_to_none=True)
        return losses.parts["loss"]

    def plain(self) -> Tensor:
        """The same step, one instance after another, the teacher for each."""
        batch = self.batch
        if not self.recipe.has_classes:
            optimiser, (network,), (layout,) = self.optimisers["plain"], self.networks, self.layouts
            return netspace_step(self.space, optimiser, network, layout, batch.preps, batch.inputs)
        count = len(self.registry)
        latents = self.space.encoder.plain(batch.preps)
        pairs, factors = boundary_pairs(batch.class_ids, count), gammas(count)
        latents = torch.cat([latents, interpolate(latents, pairs, factors).flatten(0, 1)])
        asked = [*batch.class_ids, *(interpolated_class_ids(factors, count) * len(pairs))]
        logits = self.space.classify(latents)
        loss = torch.zeros((), device=self.device)
        for latent, logit, class_id in zip(latents, logits, asked, strict=True):
            prep, named = self.space.decoder.plain(latent[None])[0], int(logit.argmax())
            outputs = functional_call(self.networks[named], dict(self.layouts[named].unpack(prep)), (batch.inputs,))
            with torch.no_grad():
                taught = self.teacher(batch.inputs)
            loss = loss + loss_kd(outputs[None], taught, batch.labels).sum()
            loss = loss + cross_entropy(logit[None], torch.tensor([class_id], device=self.device))
        self.optimisers["plain"].zero_grad()
        loss.backward()
        self.optimisers["plain"].step()
        return loss.detach()


def several(step: Callable[[], Tensor], device: torch.device, steps: int) -> Callable[[], None]:
    """Steps in a row, and waiting for the last."""

    def run() -> None:
        for _ in range(steps):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def measured(case: Case, steps: int, rounds: int) -> dict[str, object]:
    """Times of both ways, steps a second, memory, and FLOPs of our step."""
    found: dict[str, object] = {}
    losses = {name: float(way()) for name, way in (("plain", case.plain), ("ours", case.ours))}
    ways = {name: several(way, case.device, steps) for name, way in (("plain", case.plain), ("ours", case.ours))}
    if case.device.type == "cuda":
        for name, way in ways.items():
            torch.cuda.reset_peak_memory_stats()
            way()
            found[f"peak memory, {name}, MiB"] = torch.cuda.max_memory_allocated() / 2**20
    with FlopCounterMode(display=False) as counter:
        case.ours()
    seconds = interleaved(ways, rounds)
    best = sorted(seconds["ours"])[len(seconds["ours"]) // 2] / steps
    flops = counter.get_total_flops()
    return {
        **summary(seconds, "plain"),
        **found,
        "first losses": losses,
        "steps a second": 1 / best,
        "TFLOP a step": flops / 1e12,
        "TFLOP a second": flops / best / 1e12,
    }


@needs_gpu
@pytest.mark.parametrize("setting", ["single", "multi"])
def test_step_on_a_gpu(benchmark: BenchmarkFixture, setting: str) -> None:
    recipe = load_recipe(f"cifar10_{setting}")
    case = Case(recipe, (0,) * 8 if setting == "single" else (0, 3), CUDA)
    found = measured(case, STEPS, ROUNDS)
    benchmark.pedantic(several(case.ours, CUDA, STEPS), rounds=1)
    name = torch.cuda.get_device_name().replace(" ", "-")
    record(benchmark, "netspace_gpu", f"{setting}, {name}", json.loads(json.dumps(found)))


@needs_gpu
def test_evaluating_on_a_gpu(benchmark: BenchmarkFixture) -> None:
    case = Case(load_recipe("cifar10_single"), (0,) * 64, CUDA)
    images = torch.randn(10_000, 3, 32, 32, device=CUDA)
    (network,), (layout,), architecture = case.networks, case.layouts, case.registry.by_class_id(0)

    def one_at_a_time() -> None:
        for part in images.split(500):
            evaluate_one_at_a_time(network, layout, case.batch.preps, part)
        torch.cuda.synchronize()

    def ours() -> None:
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            for part in images.split(500):
                prepkit.run_instances(architecture, case.batch.preps, part)
        torch.cuda.synchronize()

    began = time.monotonic()
    ours()
    seconds = interleaved({"one at a time": one_at_a_time, "ours, bf16": ours}, 5)
    benchmark.pedantic(ours, rounds=1)
    found = {**summary(seconds, "one at a time"), "first call, seconds": time.monotonic() - began}
    record(benchmark, "netspace_gpu", f"evaluating, {torch.cuda.get_device_name().replace(' ', '-')}", found)


def test_both_ways_agree_on_a_small_case() -> None:
    """On the CPU and in float32, so that the baseline is known to be the same step."""
    for setting, class_ids in (("single", (0, 0)), ("multi", (0, 3))):
        recipe = load_recipe(f"cifar10_{setting}", {"training.precision": "float32", "batch.samples": 4})
        network = replace(
            recipe.network, height=recipe.network.height * 8, width=1256, embedding_size=256, columns=None
        )
        losses = []
        for way in ("plain", "ours"):
            case = Case(replace(recipe, network=network), class_ids, torch.device("cpu"))
            losses += [float(getattr(case, way)()) for _ in range(2)]
        assert losses[2:] == pytest.approx(losses[:2], rel=1e-4)
