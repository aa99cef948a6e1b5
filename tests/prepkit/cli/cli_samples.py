"""What the tests of cli share."""

from pathlib import Path

import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn
from torch.nn.functional import conv2d, leaky_relu, linear

import prepkit
from prepkit.cli import main

ZOO_NAMES = ("resnet8@digits", "lenet_like@digits")  # in turn in the zoo of conftest.py


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def zoo_of_three() -> Path:
    """Write a zoo of the networks r1, r2 and r3 with a column acc into the current folder."""
    for number in (1, 2, 3):
        torch.save({"w": torch.full((4,), float(number))}, f"r{number}.pt")
    Path("acc.csv").write_text("file,acc\nr1.pt,0.1\nr2.pt,0.2\nr3.pt,0.3\n")
    run("zoo", "create", "zoo", "r1.pt", "r2.pt", "r3.pt", "--table", "acc.csv")
    return Path("zoo")


def entries(folder: Path) -> dict[str, bytes | None]:
    """Contents of all files in a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def with_random_statistics(network: nn.Module) -> nn.Module:
    """Give a network trained BatchNorms: fresh ones (mean 0, variance 1) would hide every mistake."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.3, 3.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return network.eval()


def trained(name: str = "resnet8@digits") -> nn.Module:
    torch.manual_seed(0)
    return with_random_statistics(prepkit.architecture(name).build())


def resnet8(tensors: dict[str, Tensor], images: Tensor) -> Tensor:
    """The ResNet8 without BatchNorm, written without prepkit: images `[B, C, h, w]` -> logits `[B, 10]`."""

    def conv(name: str, features: Tensor, stride: int = 1) -> Tensor:
        weight = tensors[f"{name}.weight"]
        return conv2d(features, weight, tensors[f"{name}.bias"], stride, padding=weight.shape[-1] // 2)

    features = leaky_relu(conv("conv", images))
    for block, stride in (("stages.0.0", 1), ("stages.1.0", 2), ("stages.2.0", 2)):
        residual = conv(f"{block}.conv2", leaky_relu(conv(f"{block}.conv1", features, stride)))
        shortcut = conv(f"{block}.shortcut.0", features, stride) if stride > 1 else features
        features = leaky_relu(residual + shortcut)
    return linear(features.mean(dim=(2, 3)), tensors["linear.weight"], tensors["linear.bias"])


@torch.no_grad()
def assert_same_function(network: nn.Module, tensors: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    channels, side = (1, 8) if tensors["conv.weight"].shape[1] == 1 else (3, 32)
    images = torch.randn(16, channels, side, side, generator=torch.Generator().manual_seed(1))
    expected, found = network(images), resnet8({name: tensor.float() for name, tensor in tensors.items()}, images)
    assert (found - expected).abs().max() < tolerance * expected.abs().max()


NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, images):
        return self.head(self.body(images).mean((2, 3)))

class Late(nn.Module):  # ReLU before the BatchNorm: it cannot be folded
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images):
        return self.bn(self.conv(images).relu())

class OwnNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(1, 3, 1, 1))
        self.register_buffer("running_var", torch.ones(1, 3, 1, 1))

    def forward(self, images):
        return (images - self.running_mean) / self.running_var.sqrt()

class Strange(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.conv = OwnNorm(), nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, images):
        return self.conv(self.norm(images))

def tied():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    net[2].weight = net[0].weight
    return net

def broken():
    raise ValueError("no such data set")

a_number = 3
"""


def save(value: object, name: str = "bad.pt") -> str:
    torch.save(value, name)
    return name


def good() -> str:
    return save({"w": torch.ones(100)}, "good.pt")


def prep_of(name: str = "good.prep.safetensors") -> str:
    run("pack", good(), "-o", name)
    return name


def error_of(result: Result, stdout: str = "") -> str:
    """The one line of an error; for wrong usage click puts three lines of advice before it."""
    assert result.stdout == stdout
    assert "Traceback" not in result.stderr
    *advice, line = result.stderr.splitlines()
    assert advice == [] or (len(advice) == 3 and advice[0].startswith("Usage: ") and advice[2] == "")
    assert line.startswith("Error: ")
    return line.removeprefix("Error: ")
