"""Deriving and proving the symmetries of a ResNet50, and changing a batch of PReps by them; every result is checked."""

from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

import prepkit
from benchmarks.timing import interleaved, record, summary
from prepkit.symmetry.acting import Action

BATCH = 256


class Bottleneck(nn.Module):
    """Three convolutions, the middle one 3x3 and strided, and a shortcut, as torchvision has it."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.downsample = shortcut if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, inputs, h, w]` to `[B, 4 * width, h / stride, w / stride]`."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def resnet50() -> nn.Module:
    """Return a ResNet50 for 1,000 classes, as torchvision has it."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    widths = [(64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)]
    for (before, *_), (width, blocks, stride) in pairwise([(16, 0, 0), *widths]):
        layers.append(Bottleneck(4 * before, width, stride))
        layers += [Bottleneck(4 * width, width, 1) for _ in range(blocks - 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


def test_symmetries_of_a_resnet50(benchmark: BenchmarkFixture) -> None:
    network = resnet50()
    inputs = torch.randn(1, 3, 224, 224)
    found = prepkit.symmetries(network, inputs)
    assert sum(parameter.numel() for parameter in network.parameters()) == 25_557_032
    assert len(found.movable) == 1 + 4 + 2 * 16
    assert sum(group.size for group in found.movable) == 64 + 4 * sum((64, 128, 256, 512)) + 2 * 64 * (3 + 8 + 24 + 24)
    assert found.proof < 1e-10
    assert found.fixtures == ()

    def forward() -> None:
        with torch.no_grad():
            own(inputs.double())

    own = resnet50().double().eval()
    result = summary(
        interleaved({"derive": lambda: prepkit.symmetries(network, inputs), "run": forward}, rounds=5), "run"
    )
    record(benchmark, "symmetries", "resnet50", result)
    benchmark.pedantic(forward, rounds=1)


def test_a_batch_of_changed_preps(benchmark: BenchmarkFixture) -> None:
    architecture = prepkit.architecture("lenet_like@cifar10")
    action = Action(prepkit.symmetries(architecture))
    shape = architecture.layout.shape(512)
    preps = torch.randn(BATCH, shape.height, shape.width)
    generator = torch.Generator().manual_seed(0)
    change = action.draw(generator, count=BATCH)
    moved = action.on_preps(change, preps)
    inputs = architecture.example_input(2)
    before, after = (prepkit.run_instances(architecture, own[:8], inputs) for own in (preps, moved))
    torch.testing.assert_close(before, after, rtol=1e-3, atol=1e-3)

    def permuted() -> Tensor:
        return action.on_preps(action.draw(generator, count=BATCH), preps)

    everything = torch.cat([preps, preps])
    rows = torch.randperm(len(everything))[:BATCH]
    ways = {"gather rows": lambda: everything[rows], "permute": permuted}
    result = summary(interleaved(ways, rounds=11), "gather rows")
    record(benchmark, "symmetries", "batch of 256 LeNetLike", result)
    benchmark.pedantic(permuted, rounds=1)


def test_a_loader_that_permutes(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """Batches of 256 LeNetLike, plain and with hidden units in another order each."""
    architecture = prepkit.architecture("lenet_like@cifar10")
    shape, count = architecture.layout.shape(512), 2 * BATCH
    preps = torch.zeros(count, shape.height, shape.width)
    preps.flatten(1)[:, : architecture.layout.total] = torch.randn(count, architecture.layout.total) * 0.1
    with prepkit.ZooWriter(tmp_path / "zoo") as writer:
        writer.add_stack(preps, architecture=architecture, ids=[f"m{number}" for number in range(count)])
    zoo = prepkit.open_zoo(tmp_path / "zoo")
    loaders = {"plain": zoo.loader(BATCH), "permuted": zoo.loader(BATCH, augment="permute")}
    inputs = architecture.example_input(2)
    for moved, _, indices in loaders["permuted"]:
        before, after = (prepkit.run_instances(architecture, own[:8], inputs) for own in (preps[indices], moved))
        torch.testing.assert_close(before, after, rtol=1e-3, atol=1e-3)

    def epoch(name: str) -> None:
        for _ in loaders[name]:
            pass

    ways = {name: partial(epoch, name) for name in loaders}
    record(benchmark, "symmetries", "loader of LeNetLike", summary(interleaved(ways, rounds=11), "plain"))
    benchmark.pedantic(partial(epoch, "permuted"), rounds=1)


def test_aligning_a_hundred_resnet8(benchmark: BenchmarkFixture) -> None:
    architecture = prepkit.architecture("resnet8@cifar10")
    shape = architecture.layout.shape(512)
    states = [architecture.build_folded().state_dict() for _ in range(100)]
    preps = torch.stack([architecture.layout.pack(state, shape) for state in states])
    aligned = prepkit.align(architecture, preps, preps[0])
    inputs = architecture.example_input(2)
    before, after = (prepkit.run_instances(architecture, own[:8], inputs) for own in (preps, aligned.preps))
    torch.testing.assert_close(before, after, rtol=1e-3, atol=1e-3)
    assert (aligned.after[1:] < aligned.before[1:]).all()
    ways = {"align": lambda: prepkit.align(architecture, preps, preps[0]), "copy": preps.clone}
    record(benchmark, "symmetries", "100 ResNet8", summary(interleaved(ways, rounds=3), "copy"))
    benchmark.pedantic(preps.clone, rounds=1)
