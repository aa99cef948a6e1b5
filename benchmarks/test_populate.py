"""Training zoos: instances a second against the plain loop over instances, same data, epochs, batches and threads.

Ours is `train_unit`, from seeds to rows: it also folds BatchNorm with proof. Both judge each instance on all three
splits. Data is in memory in both; nothing is augmented.
"""

import statistics
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

import prepkit
from benchmarks.baselines import accuracy, train_one_at_a_time
from benchmarks.timing import interleaved, record, summary
from prepkit.cli.allocator import keep_freed_memory
from prepkit.running.instances import runner
from prepkit.tasks._augmentation import Normalisation
from prepkit.tasks._image_record import Augmentation
from prepkit.tasks._image_set import Part
from prepkit.tasks.images import Dealt, ImageTask
from prepkit.tasks.task import Task
from prepkit.training._engine import choose_engine
from prepkit.training._plan import plan
from prepkit.training._units import FinishedUnit, train_unit, units_of
from prepkit.training.spec import Spec, parse_spec

CPU = torch.device("cpu")
SGD = 'optimizer = "sgd"\nlearning_rate = 0.05\nmomentum = 0.9\nweight_decay = 5e-4'
ADAM = 'optimizer = "adam"\nlearning_rate = 1e-4'


def spec_of(name: str, task: str, count: int, epochs: int, batch_size: int, optimizer: str, precision: str) -> Spec:
    text = f"""
name = "benchmark"
description = "A benchmark."
license = "mit"
width = 64
architectures = ["{name}"]
[task]
{task}
[instances]
"{name}" = {{train = {count}}}
[training]
{optimizer}
batch_size = {batch_size}
epochs = {epochs}
precision = "{precision}"
"""
    return parse_spec(text, "benchmark.toml")


def ours(spec: Spec, task: Task) -> list[FinishedUnit]:
    keep_freed_memory()  # as the command line does
    jobs = plan(spec)
    engine = choose_engine(spec, jobs, CPU)
    return [train_unit(unit, task, engine, CPU) for unit in units_of(spec, jobs, engine)]


def per_instance(seconds: Mapping[str, list[float]], counts: Mapping[str, int]) -> dict[str, list[float]]:
    return {name: [value / counts[name] for value in values] for name, values in seconds.items()}


def faster(seconds: Mapping[str, list[float]], base: str, other: str) -> float:
    return round(statistics.median(seconds[base]) / statistics.median(seconds[other]), 2)


def sgd(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)


DIGITS = """
kind = "images"
dataset = "digits"
mean = [0.3053]
std = [0.3761]
split = {seed = 0, test = 360, validation = 180}
"""


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["lenet_like@digits", "vanilla_cnn@digits", "resnet8@digits", "resnet14@digits"])
def test_digits(benchmark: BenchmarkFixture, name: str, precision: str) -> None:
    """64 instances, 5 epochs; the loop is timed on 8 of them."""
    epochs, alone = 5, 8
    task = prepkit.load_task({"kind": "images", "dataset": "digits", "mean": [0.3053], "std": [0.3761],
                              "split": {"seed": 0, "test": 360, "validation": 180}})  # fmt: skip
    spec = spec_of(name, DIGITS, 64, epochs, 64, SGD, precision)
    parts = {split: task.normalised(split) for split in ("train", "validation", "test")}
    build = prepkit.architecture(name).build
    found: dict[str, Any] = {}

    def loop() -> None:
        networks = train_one_at_a_time(build, list(range(alone)), *parts["train"], cross_entropy, sgd, epochs, 64)
        found["loop"] = [[accuracy(network, *part) for part in parts.values()] for network in networks]

    def zoo() -> None:
        found["zoo"] = ours(spec, task)

    seconds = per_instance(interleaved({"loop": loop, "zoo train": zoo}, rounds=3), {"loop": alone, "zoo train": 64})
    accuracies = [value for done in found["zoo"] for value in done.rows.columns["accuracy"]]
    means = {"loop": statistics.mean(row[2] for row in found["loop"]), "zoo train": statistics.mean(accuracies)}
    assert len(accuracies) == 64
    assert abs(means["loop"] - means["zoo train"]) < 0.06  # other seeds, and 8 of them: equality is the tests' matter
    result: dict[str, Any] = summary(seconds, "loop")
    result |= {"times as fast": faster(seconds, "loop", "zoo train"), "mean accuracy": means}
    benchmark.pedantic(zoo, rounds=1)
    record(benchmark, "populate", f"{name}, 64 instances, {precision}", result)


def random_images(shape: tuple[int, int, int], count: int) -> ImageTask:
    """A task of random images, as many for judging as CIFAR-10 has in relation to training."""
    generator = torch.Generator().manual_seed(0)

    def part(size: int) -> Dealt:
        images = torch.randint(0, 256, (size, *shape), dtype=torch.uint8, generator=generator)
        return Dealt(Part(images, torch.randint(0, 10, (size,), generator=generator)))

    parts = {"train": part(count), "validation": part(count // 10), "test": part(count // 10)}
    normalisation = Normalisation(255, (0.5,) * shape[0], (0.25,) * shape[0])
    return ImageTask({"kind": "images"}, parts, 10, normalisation, Augmentation())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["resnet8@cifar10", "lenet_like@cifar10", "vanilla_cnn@cifar10"])
def test_cifar10(benchmark: BenchmarkFixture, name: str, precision: str) -> None:
    """Eight epochs of ten batches of 128, no augmentation: so few that folding once still weighs about 5 %."""
    task = random_images((3, 32, 32), 1_280)
    record_text = 'kind = "images"\ndataset = "uoft-cs/cifar10"\nsplit = {seed = 0, test = "test", validation = 10}'
    epochs, count = 8, 2 if name.startswith("resnet") else 8
    spec = spec_of(name, record_text, count, epochs, 128, SGD, precision)
    parts = {split: task.normalised(split) for split in ("train", "validation", "test")}
    build = prepkit.architecture(name).build
    found: dict[str, Any] = {}

    def loop() -> None:
        networks = train_one_at_a_time(build, list(range(count)), *parts["train"], cross_entropy, sgd, epochs, 128)
        found["loop"] = [[accuracy(network, *part) for part in parts.values()] for network in networks]

    def zoo() -> None:
        found["zoo"] = ours(spec, task)

    seconds = interleaved({"loop": loop, "zoo train": zoo}, rounds=3)
    assert sum(len(done.rows.ids) for done in found["zoo"]) == count
    result: dict[str, Any] = summary(seconds, "loop")
    result |= {"times as fast": faster(seconds, "loop", "zoo train"), "stacked": len(found["zoo"]) == 1}
    benchmark.pedantic(zoo, rounds=1)
    record(benchmark, "populate", f"{name}, {count} instances, {precision}", result)


@pytest.mark.parametrize(("name", "points"), [("sine_mlp@sdf_small", 512), ("sine_mlp@sdf", 20_000)])
def test_sine_mlps(benchmark: BenchmarkFixture, name: str, points: int) -> None:
    """20 steps of each of 4 (large) or 16 (small) instances."""
    count = 4 if points > 1_000 else 16
    given = {"kind": "shapes", "dataset": "procedural_chairs", "count": 64, "seed": 0, "steps_per_epoch": 20,
             "points": {"pool": 65_536}, "split": {"seed": 0, "test": 2_048, "validation": 2_048}}  # fmt: skip
    text = 'kind = "shapes"\ndataset = "procedural_chairs"\ncount = 64\nseed = 0\nsteps_per_epoch = 20\n'
    text += "points = {pool = 65_536}\nsplit = {seed = 0, test = 2048, validation = 2048}"
    spec = spec_of(name, text, count, 1, points, ADAM, "float32")
    build = prepkit.architecture(name).build
    found: dict[str, Any] = {}

    def judged(network: nn.Module, inputs: Tensor, distances: Tensor) -> tuple[float, float]:
        with torch.no_grad():
            outputs = network(inputs)[:, 0]
        return float(mse_loss(outputs, distances)), float(((outputs - distances).abs() < 1e-2).double().mean())

    def loop() -> None:
        task = prepkit.load_task(given)  # both draw each shape's points anew, as the first training does
        for item in range(count):
            parts = {split: task.points(item, split) for split in ("train", "validation", "test")}
            torch.manual_seed(item)
            network = build()
            updates = torch.optim.Adam(network.parameters(), 1e-4)
            inputs, distances = parts["train"]
            for _ in range(20):
                chosen = torch.randint(len(inputs), (points,))
                updates.zero_grad()
                mse_loss(network(inputs[chosen])[:, 0], distances[chosen]).backward()
                updates.step()
            found["loop"] = [judged(network, *part) for part in parts.values()]

    def zoo() -> None:
        found["zoo"] = ours(spec, prepkit.load_task(given))

    seconds = interleaved({"loop": loop, "zoo train": zoo}, rounds=5)
    assert sum(len(done.rows.ids) for done in found["zoo"]) == count
    result: dict[str, Any] = summary(seconds, "loop")
    result |= {"times as fast": faster(seconds, "loop", "zoo train"), "stacked": len(found["zoo"]) == 1}
    benchmark.pedantic(zoo, rounds=1)
    record(benchmark, "populate", f"{name}, {points} points, {count} instances", result)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resnet8_on_a_gpu(benchmark: BenchmarkFixture, precision: str) -> None:
    """32 ResNet8 at once against the loop, whole epochs of 40,000 images; instances an hour at 300 epochs."""
    device = torch.device("cuda")
    task = random_images((3, 32, 32), 40_000).to(device)
    record_text = 'kind = "images"\ndataset = "uoft-cs/cifar10"\nsplit = {seed = 0, test = "test", validation = 10}'
    spec = spec_of("resnet8@cifar10", record_text, 32, 1, 128, SGD, precision)
    inputs, labels = task.normalised("train")
    build = prepkit.architecture("resnet8@cifar10").build

    def loop() -> None:
        train_one_at_a_time(lambda: build().to(device), [0], inputs, labels, cross_entropy, sgd, 1, 128)
        torch.cuda.synchronize()

    def zoo() -> None:
        jobs = plan(spec)
        engine = replace(choose_engine(spec, jobs, device), stacks={"resnet8@cifar10": 32})
        train_unit(units_of(spec, jobs, engine)[0], task, engine, device)
        torch.cuda.synchronize()

    runner(prepkit.architecture("resnet8@cifar10"), False, True, device)
    seconds = per_instance(interleaved({"loop": loop, "zoo train": zoo}, rounds=3), {"loop": 1, "zoo train": 32})
    result: dict[str, Any] = summary(seconds, "loop")
    epoch = statistics.median(seconds["zoo train"])
    flops = 3 * 25e6 * 40_000 / epoch  # forward 25 MFLOP an image, backward twice that
    result |= {
        "times as fast": faster(seconds, "loop", "zoo train"),
        "instances an hour at 300 epochs": round(3600 / (300 * epoch), 1),
        "TFLOP/s": round(flops / 1e12, 2),
    }
    benchmark.pedantic(zoo, rounds=1)
    record(benchmark, "populate", f"resnet8@cifar10, 32 instances, {precision}, {torch.cuda.get_device_name()}", result)
