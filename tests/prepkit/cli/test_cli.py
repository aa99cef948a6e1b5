"""The command line: what it prints for what people type, the files that it leaves, and its answers to mistakes."""

import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
import textwrap
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import conv2d, leaky_relu, linear

import prepkit
from prepkit.cli import main
from prepkit.cli.common import notes
from prepkit.errors import OutputError, RecordingFailed
from prepkit.prep.layout import Layout

WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, empty, in which commands run; sys.path and modules are as before afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    modules = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - modules:
        if name.startswith("cli_nets"):
            del sys.modules[name]


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


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


def same_bits(a: Tensor, b: Tensor) -> bool:
    words = WORDS[a.element_size()]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(words), b.view(words))


@pytest.fixture
def model(folder: Path) -> nn.Module:
    """A trained resnet8@digits in model.pt."""
    network = trained()
    torch.save(network.state_dict(), "model.pt")
    return network


# pack and unpack ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_the_main_job(suffix: str, folder: Path) -> None:
    """A trained ResNet8 with BatchNorm becomes a PRep, and comes back as a network without BatchNorm."""
    network = trained("resnet8@cifar10")
    if suffix == ".pt":
        torch.save(network.state_dict(), "model.pt")
    else:
        save_file(network.state_dict(), "model.safetensors")
    packed = run("pack", f"model{suffix}", "--width", 512)
    lines = packed.stdout.splitlines()
    assert lines[0] == f"model{suffix} -> model.prep.safetensors"
    assert lines[1:4] == [
        "  architecture  resnet8@cifar10 (ClassId 2)",
        "  parameters    77,706 (78,042 before folding)",
        "  PRep          152 x 512 float32, 99.8% filled",
    ]
    folded = re.fullmatch(
        r"  folded        9 BatchNorm layers; outputs equal within (\S+) in float64, (\S+) after the cast back",
        lines[4],
    )
    assert folded is not None
    assert 0 < float(folded[1]) < 1e-12
    assert 0 < float(folded[2]) < 1e-5
    assert lines[5:] == ["  round trip    exact: 20 tensors come back bit for bit"]
    assert packed.stderr == ""

    run("unpack", "model.prep.safetensors", "-o", "out.pt")
    run("unpack", "model.prep.safetensors", "-o", "out.safetensors")
    tensors = torch.load("out.pt", weights_only=True)
    assert tensors.keys() == load_file("out.safetensors").keys()
    assert all(same_bits(tensor, tensors[name]) for name, tensor in load_file("out.safetensors").items())
    assert_same_function(network, tensors)
    prepkit.architecture("resnet8@cifar10").build_folded().load_state_dict(tensors)
    assert sorted(entries(folder)) == sorted([f"model{suffix}", "model.prep.safetensors", "out.pt", "out.safetensors"])


def test_pack_as_json(model: nn.Module) -> None:
    result = run("pack", "model.pt", "--width", 64, "--json")
    (record,) = json.loads(result.stdout)["packed"]
    errors = record.pop("error_before_cast"), record.pop("error_after_cast")
    assert 0 < errors[0] < 1e-12 < errors[1] < 1e-5
    assert (len(record.pop("folded")), record.pop("affine"), record.pop("notes")) == (9, [], [])
    assert record == {
        "source": "model.pt",
        "source_format": "torch zip",
        "source_sha256": hashlib.sha256(Path("model.pt").read_bytes()).hexdigest(),
        "output": "model.prep.safetensors",
        "architecture": "resnet8@digits",
        "class_id": 2,
        "num_parameters": 5_058,
        "height": 80,
        "width": 64,
        "dtype": "float32",
        "fill": 5_058 / (80 * 64),
        "layout_sha256": prepkit.architecture("resnet8@digits").layout.sha256,
        "renamed": [],
    }


def test_a_height_may_be_larger_than_needed(model: nn.Module) -> None:
    assert "PRep          40 x 512 float32, 24.7% filled" in run("pack", "model.pt", "--height", 40).stdout
    prep = prepkit.load_prep("model.prep.safetensors")
    assert prep.values.shape == (40, 512)
    assert not prep.values.flatten()[5_058:].any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_a_dtype_is_cast_to_after_folding(dtype: str, model: nn.Module) -> None:
    plain = run("pack", "model.pt", "-o", "plain.prep.safetensors")
    assert "float16" not in plain.stdout
    result = run("pack", "model.pt", "--dtype", dtype)
    assert f"PRep          12 x 512 {dtype}" in result.stdout
    assert f"after the cast back, before the cast to {dtype}" in result.stdout  # the errors are those before the cast
    assert result.stdout.endswith(f"exact: 20 tensors come back bit for bit in {dtype}\n")
    run("unpack", "model.prep.safetensors", "-o", "out.pt")
    tensors, expected = torch.load("out.pt", weights_only=True), prepkit.load_prep("plain.prep.safetensors").tensors()
    assert all(same_bits(tensor, expected[name].to(getattr(torch, dtype))) for name, tensor in tensors.items())
    assert_same_function(model, tensors, {"float64": 1e-5, "float16": 3e-2, "bfloat16": 2e-1}[dtype])


NOTE_ON_WIDTH = (
    "the PRep is in float32, to hold 'norm' exactly; 95.2% of its values are bfloat16, and --dtype bfloat16 would "
    "store all in 50% of the bytes."
)


@pytest.mark.usefixtures("folder")
def test_few_values_that_make_the_file_large_are_told() -> None:
    mixed = {"weight": torch.randn(20, 10).bfloat16(), "norm": torch.randn(10)}
    torch.save(mixed, "mixed.pt")
    assert run("pack", "mixed.pt").stderr == f"note: {NOTE_ON_WIDTH}\n"
    (document,) = json.loads(run("pack", "mixed.pt", "--force", "--json").stdout)["packed"]
    assert document["notes"] == [NOTE_ON_WIDTH]
    assert run("pack", "mixed.pt", "--force", "--dtype", "bfloat16").stderr == ""
    torch.save({"weight": torch.randn(10), "norm": torch.randn(20).bfloat16()}, "even.pt")
    torch.save({"weight": mixed["weight"].float(), "norm": mixed["norm"].bfloat16()}, "wide.pt")
    for file in ("even.pt", "wide.pt"):
        assert ("note:" in run("pack", file).stderr) == (file == "even.pt")


def test_batch_norm_may_be_kept(model: nn.Module) -> None:
    result = run("pack", "model.pt", "--keep-bn")
    assert "folded" not in result.stdout
    assert "parameters    5,142\n" in result.stdout
    run("unpack", "model.prep.safetensors", "-o", "out.pt")
    tensors = torch.load("out.pt", weights_only=True)
    assert tensors.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert same_bits(tensors[name], tensor), name
    prepkit.architecture("resnet8@digits").build().load_state_dict(tensors)


def test_several_models_go_into_a_folder(model: nn.Module, folder: Path) -> None:
    torch.manual_seed(1)
    torch.save(prepkit.architecture("lenet_like@digits").build().state_dict(), "lenet.pt")
    (folder / "out").mkdir()
    result = run("pack", "model.pt", "lenet.pt", "-o", "out")
    assert "model.pt -> out/model.prep.safetensors" in result.stdout
    assert "lenet.pt -> out/lenet.prep.safetensors" in result.stdout
    assert "architecture  lenet_like@digits (ClassId 0)" in result.stdout
    records = json.loads(run("pack", "model.pt", "lenet.pt", "-o", "out", "--force", "--json").stdout)["packed"]
    assert [record["architecture"] for record in records] == ["resnet8@digits", "lenet_like@digits"]
    assert sorted(os.listdir("out")) == ["lenet.prep.safetensors", "model.prep.safetensors"]


def test_one_model_into_a_folder_and_into_the_current_one(model: nn.Module, folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "elsewhere").mkdir()
    os.rename("model.pt", "elsewhere/model.pt")
    run("pack", "elsewhere/model.pt", "-o", "out")
    run("pack", "elsewhere/model.pt")
    content = Path("out/model.prep.safetensors").read_bytes()
    assert Path("model.prep.safetensors").read_bytes() == content
    assert os.listdir("elsewhere") == ["model.pt"]


def test_a_sharded_model_is_named_after_its_index(folder: Path) -> None:
    state = {"a.weight": torch.randn(3, 4), "b.weight": torch.randn(5)}
    index = {}
    for number, (name, tensor) in enumerate(state.items()):
        save_file({name: tensor}, f"model-{number}.safetensors")
        index[name] = f"model-{number}.safetensors"
    Path("model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    run("pack", "model.safetensors.index.json")
    tensors = prepkit.load_prep("model.prep.safetensors").tensors()
    assert all(same_bits(tensors[name], tensor) for name, tensor in state.items())


def test_an_architecture_by_name(model: nn.Module) -> None:
    run("pack", "model.pt", "-o", "detected.prep.safetensors")
    run("pack", "model.pt", "--arch", "resnet8@digits", "-o", "named.prep.safetensors")
    assert Path("detected.prep.safetensors").read_bytes() == Path("named.prep.safetensors").read_bytes()


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


@pytest.fixture
def nets(folder: Path) -> Any:
    """cli_nets.py in the current folder, imported as the user's own code would be."""
    Path("cli_nets.py").write_text(NETS)
    scope: dict[str, Any] = {}
    exec(NETS, scope)
    return scope


def test_any_network_that_python_can_build(nets: Any) -> None:
    torch.manual_seed(0)
    network = with_random_statistics(nets["Net"]())
    torch.save(network.state_dict(), "net.pt")
    result = run("pack", "net.pt", "--arch", "cli_nets:Net", "--input", "3x32x32")
    assert "architecture  cli_nets.Net\n" in result.stdout
    assert "folded        1 BatchNorm layer;" in result.stdout
    run("unpack", "net.prep.safetensors", "-o", "out.pt")
    tensors = torch.load("out.pt", weights_only=True)
    assert list(tensors) == ["body.0.weight", "body.0.bias", "head.weight", "head.bias"]
    images = torch.randn(5, 3, 9, 9)
    features = conv2d(images, tensors["body.0.weight"], tensors["body.0.bias"]).relu().mean((2, 3))
    found = linear(features, tensors["head.weight"], tensors["head.bias"])
    assert torch.allclose(found, network(images), rtol=1e-4, atol=1e-5)

    run("pack", "out.pt", "--arch", "cli_nets:Net", "--input", "3X32X32", "-o", "again.prep.safetensors")
    again = prepkit.load_prep("again.prep.safetensors")
    assert torch.equal(again.values, prepkit.load_prep("net.prep.safetensors").values)
    assert again.origin.folded == ()  # it was folded already


def test_tied_parameters_are_packed_once_and_come_back_tied(nets: Any) -> None:
    network = nets["tied"]()
    torch.save(network.state_dict(), "tied.pt")
    result = run("pack", "tied.pt")
    assert "parameters    16\n" in result.stdout
    assert "2 tensors come back" in result.stdout
    assert "2.weight is tied to 0.weight" in run("inspect", "tied.prep.safetensors").stdout
    run("unpack", "tied.prep.safetensors", "-o", "out.pt")
    tensors = torch.load("out.pt", weights_only=True)
    assert tensors["0.weight"].data_ptr() == tensors["2.weight"].data_ptr()
    assert same_bits(tensors["0.weight"], network[0].weight.detach())
    run("unpack", "tied.prep.safetensors", "-o", "out.safetensors")  # safetensors has no ties
    run("pack", "out.safetensors", "--arch", "cli_nets:tied", "--input", "4")
    assert prepkit.load_prep("out.prep.safetensors").layout.ties == (("2.weight", "0.weight"),)


def test_wrapped_state_dicts(model: nn.Module) -> None:
    torch.manual_seed(5)
    other = with_random_statistics(prepkit.architecture("resnet8@digits").build())
    prefixed = {f"module.{name}": tensor for name, tensor in other.state_dict().items()}
    torch.save({"model": model.state_dict(), "ema": prefixed, "epoch": 3}, "both.pt")
    message = run("pack", "both.pt", code=2).stderr
    assert "holds 2 state dicts: 'model' (56 tensors), 'ema' (56 tensors); choose one with --key" in message
    for key, network in (("model", model), ("ema", other)):
        run("pack", "both.pt", "--key", key, "--force")
        assert_same_function(network, prepkit.load_prep("both.prep.safetensors").tensors())
    assert json.loads(run("inspect", "both.pt", "--key", "ema", "--json").stdout)["prefix"] == "module."


def test_an_unknown_network_without_batch_norm_is_packed_in_natural_order(folder: Path) -> None:
    state = {f"layers.{index}.weight": torch.full((2,), float(index)) for index in (10, 9, 2)}
    torch.save(state, "net.pt")
    result = run("pack", "net.pt", "--width", 8)
    assert "architecture  unknown; tensors in natural name order" in result.stdout
    assert prepkit.load_prep("net.prep.safetensors").values[0, :7].tolist() == [2, 2, 9, 9, 10, 10, 0]


def test_values_that_are_not_finite_keep_their_bits_when_they_are_meant(folder: Path) -> None:
    patterns = torch.tensor([0x7FC00001, 0x7F800000, -0x00800000, 0x7FA12345, -0x80000000], dtype=torch.int32)
    torch.save({"w": patterns.view(torch.float32)}, "odd.pt")
    run("pack", "odd.pt", "--allow-nonfinite")
    run("unpack", "odd.prep.safetensors", "-o", "out.safetensors")
    assert load_file("out.safetensors")["w"].view(torch.int32).tolist() == patterns.tolist()


def test_unpack_chooses_a_name(model: nn.Module) -> None:
    run("pack", "model.pt", "-o", "a.b.prep.safetensors")
    result = run("unpack", "a.b.prep.safetensors")
    assert result.stdout == "a.b.prep.safetensors -> a.b.unpacked.pt: 20 tensors\n"
    document = json.loads(run("unpack", "a.b.prep.safetensors", "--force", "--json").stdout)
    assert document == {"output": "a.b.unpacked.pt", "tensors": 20, "prefix": None}
    assert_same_function(model, torch.load("a.b.unpacked.pt", weights_only=True))


def test_the_folder_for_several_models_is_made(folder: Path) -> None:
    for name in ("a.pt", "b.pt"):
        save({"w": torch.ones(3)}, name)
    run("pack", "a.pt", "b.pt", "-o", "out")
    assert sorted(os.listdir("out")) == ["a.prep.safetensors", "b.prep.safetensors"]
    assert "cannot be made: No such file" in run("pack", "a.pt", "b.pt", "-o", "x/y", code=2).stderr


def test_a_missing_file_is_said_without_torch(folder: Path) -> None:
    for command in (
        ["pack", "nope.pt"],
        ["fuse", "nope.pt", "-o", "x.pt"],
        ["unpack", "nope.pt"],
        ["inspect", "nope.pt"],
    ):
        code = f"""
import sys
from prepkit.cli import main
try:
    main({command!r})
finally:
    assert "torch" not in sys.modules
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        assert "nope.pt" in done.stderr


def test_unpack_puts_a_prefix_back(folder: Path) -> None:
    save({"module.weight": torch.ones(2, 3)}, "w.pt")
    assert "names         without 'module.', which unpack puts back" in run("pack", "w.pt").stdout
    assert "'module.*' as in the checkpoint" in run("unpack", "w.prep.safetensors").stdout
    assert list(torch.load("w.unpacked.pt", weights_only=True)) == ["module.weight"]
    run("unpack", "w.prep.safetensors", "--strip-prefix", "--force")
    assert list(torch.load("w.unpacked.pt", weights_only=True)) == ["weight"]


# fuse, show, inspect ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["folded.pt", "folded.safetensors"])
def test_fuse(output: str, model: nn.Module) -> None:
    result = run("fuse", "model.pt", "-o", output)
    assert result.stdout.startswith(f"model.pt -> {output}\n  folded        9 BatchNorm layers; outputs equal within ")
    tensors = load_file(output) if output.endswith("safetensors") else torch.load(output, weights_only=True)
    assert_same_function(model, tensors)
    prepkit.architecture("resnet8@digits").build_folded().load_state_dict(tensors)
    document = json.loads(run("fuse", "model.pt", "-o", output, "--force", "--json").stdout)
    assert (document["output"], len(document["folded"])) == (output, 9)
    assert document["error_after_cast"] < 1e-5


def test_fuse_takes_the_network_under_a_prefix(model: nn.Module) -> None:
    save(
        {**{f"net.{name}": tensor for name, tensor in model.state_dict().items()}, "loss.weight": torch.ones(3)}, "n.pt"
    )
    run("fuse", "n.pt", "--prefix", "net.", "-o", "folded.pt")
    assert_same_function(model, torch.load("folded.pt", weights_only=True))


def test_show_draws_a_picture(model: nn.Module) -> None:
    from matplotlib.image import imread

    run("pack", "model.pt")
    assert run("show", "model.prep.safetensors").stdout == "model.prep.safetensors -> model.png\n"
    assert Path("model.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert np.unique(imread("model.png")[..., 0]).size > 100
    document = json.loads(run("show", "model.prep.safetensors", "-o", "other.png", "--json").stdout)
    assert document == {"output": "other.png"}
    assert Path("other.png").read_bytes() == Path("model.png").read_bytes()


def test_inspect_a_prep(model: nn.Module) -> None:
    run("pack", "model.pt", "--keep-bn")
    result = run("inspect", "model.prep.safetensors")
    lines = result.stdout.splitlines()
    for line in (
        "  format          PRep file",
        "  architecture    resnet8@digits",
        "  num parameters  5,142",
        "  height          12",
        "  dtype           float32",
        "  folded          -",
    ):
        assert line in lines
    start = next(index for index, line in enumerate(lines) if line.startswith("start"))
    assert lines[start].split() == ["start", "name", "shape", "values", "dtype", "kind"]
    assert lines[start + 2].split() == ["0", "conv.weight", "4x1x3x3", "36", "float32", "parameter"]
    assert lines[start + 5].split() == ["44", "bn.running_mean", "4", "4", "float32", "buffer"]
    assert len(lines) == start + 2 + 47

    document = json.loads(run("inspect", "model.prep.safetensors", "--json").stdout)
    assert document["path"] == "model.prep.safetensors"
    assert document["source_sha256"] == hashlib.sha256(Path("model.pt").read_bytes()).hexdigest()
    assert document["buffers"] == sorted(name for name in model.state_dict() if name.endswith("tracked"))
    assert Layout.from_dict(document["layout"]) == prepkit.load_prep("model.prep.safetensors").layout


def test_inspect_a_checkpoint(model: nn.Module) -> None:
    torch.save({"state_dict": model.state_dict()}, "wrapped.pt")
    lines = run("inspect", "wrapped.pt").stdout.splitlines()
    for line in ("  format          torch zip", "  key             state_dict", "  batch norms     9"):
        assert line in lines
    document = json.loads(run("inspect", "wrapped.pt", "--json").stdout)
    assert (document["architecture"], document["class_id"], document["num_parameters"]) == ("resnet8@digits", 2, 5_142)
    assert len(document["layout"]["slots"]) == 47


# arch ---------------------------------------------------------------------------------------------------------


def test_arch_list() -> None:
    lines = run("arch", "list").stdout.splitlines()
    assert lines[0].split() == ["name", "ClassId", "parameters", "with", "BatchNorm", "input"]
    rows = [line.split() for line in lines[2:]]
    assert ["resnet8@cifar10", "2", "77,706", "78,042", "3x32x32"] in rows
    assert ["resnet56@cifar10", "-", "853,642", "855,770", "3x32x32"] in rows
    assert [row[0] for row in rows] == prepkit.architectures()
    document = json.loads(run("arch", "list", "--json").stdout)
    assert [item["name"] for item in document["architectures"]] == prepkit.architectures()
    assert document["architectures"][2] == {
        "name": "resnet8@cifar10",
        "family": "resnet",
        "class_id": 2,
        "input_shape": [3, 32, 32],
        "num_parameters": 77_706,
        "num_trainable": 78_042,
    }


def test_arch_show() -> None:
    lines = run("arch", "show", "lenet_like@digits").stdout.splitlines()
    assert lines[0] == "lenet_like@digits: family lenet_like, ClassId 0, input 1x8x8"
    assert lines[1] == "2,302 packed parameters (2,302 with BatchNorm), PRep 8 x 512 (56.2% filled)"
    assert lines[-1].split() == ["2,292", "linear.bias", "10", "10", "float32", "parameter"]
    assert "PRep 36 x 64" in run("arch", "show", "lenet_like@digits", "--width", 64).stdout
    document = json.loads(run("arch", "show", "lenet_like@digits", "--json").stdout)
    assert (document["height"], document["width"], document["class_id"]) == (8, 512, 0)
    assert Layout.from_dict(document["layout"]) == prepkit.architecture("lenet_like@digits").layout


# Help ---------------------------------------------------------------------------------------------------------


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(child, (*path, name))


COMMANDS = {" ".join(("prepkit", *path)): (path, command) for path, command in commands(main)}


@pytest.mark.parametrize(("path", "command"), COMMANDS.values(), ids=COMMANDS.keys())
def test_help_of_every_command_tells_of_every_option(path: tuple[str, ...], command: click.Command) -> None:
    result = run(*path, "--help")
    assert result.stdout == run(*path, "-h").stdout
    assert result.stderr == ""
    assert command.help
    assert not path or len(command.get_short_help_str(200)) <= 60, "a list of commands would cut it"
    shown = " ".join(result.stdout.split())
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{path}: {parameter.name} has no help"
            assert parameter.opts[-1] in shown
            assert parameter.help.split()[0] in shown
        else:
            assert parameter.make_metavar(click.Context(command)) in shown


def test_the_commands_are_those_of_the_contract() -> None:
    expected = ("pack", "unpack", "fuse", "show", "inspect", "arch list", "arch show")
    assert {f"prepkit {name}" for name in expected} <= COMMANDS.keys()


def test_help_names_every_exit_status() -> None:
    status = "Exit status: 0 done, 1 the operation failed, 2 wrong usage or input, 130 interrupted."
    assert status in " ".join(run("--help").stdout.split())


def test_version() -> None:
    assert prepkit.__version__ in run("--version").stdout


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["pack", "--help"], ["arch", "list"], ["arch", "list", "--json"], ["inspect", "PREP"]],
    ids=" ".join,
)
def test_light_commands_import_no_torch(arguments: list[str], tmp_path: Path) -> None:
    prep = tmp_path / "x.prep.safetensors"
    layout = Layout.of_tensors({"w": torch.ones(3)})
    prepkit.save_prep(prepkit.PRep(layout.pack({"w": torch.ones(3)}, layout.shape(8)), layout), prep)
    code = """
        import sys
        from prepkit.cli import main
        main(sys.argv[1:], prog_name="prepkit", standalone_mode=False)
        heavy = ("torch", "numpy", "safetensors", "h5py", "pyarrow", "huggingface_hub", "matplotlib", "tqdm")
        print(*(name for name in heavy if name in sys.modules), file=sys.stderr)
    """
    arguments = [str(prep) if argument == "PREP" else argument for argument in arguments]
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.split() == []
    assert len(done.stdout) > 10


# Mistakes -----------------------------------------------------------------------------------------------------


class Attack:
    """Unpickling this creates the file SENTINEL in the current folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("SENTINEL", "w"))


def save(value: object, name: str = "bad.pt") -> str:
    torch.save(value, name)
    return name


def save_bytes(content: bytes, name: str = "bad.pt") -> str:
    Path(name).write_bytes(content)
    return name


def half(suffix: str) -> str:
    name = f"bad{suffix}"
    (torch.save if suffix == ".pt" else save_file)({"w": torch.ones(1000)}, name)
    return save_bytes(Path(name).read_bytes()[:2000], name)


def zip_bomb() -> str:
    with zipfile.ZipFile("bad.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for member in ("data.pkl", "data/0", "version"):
            archive.writestr(f"bad/{member}", bytes(50_000_000))
    return "bad.pt"


def mismatched() -> str:
    state = dict(trained().state_dict())
    del state["linear.bias"]
    state["extra.weight"], state["conv.weight"] = torch.ones(2), torch.ones(4, 3, 3, 3)
    return save(state)


def good() -> str:
    return save({"w": torch.ones(100)}, "good.pt")


def prep_of(name: str = "good.prep.safetensors") -> str:
    run("pack", good(), "-o", name)
    return name


def folder_named(name: str) -> str:
    Path(name).mkdir()
    return name


def zoo_named(name: str) -> str:
    (Path(folder_named(name)) / "zoo.json").write_text("{}")
    return name


def net_state() -> dict[str, Tensor]:
    """The state dict of cli_nets.Net."""
    scope: dict[str, Any] = {}
    exec(NETS, scope)
    state: dict[str, Tensor] = with_random_statistics(scope["Net"]()).state_dict()
    return state


def quantised() -> Tensor:
    return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


UNFOLDABLE = ("--arch", "cli_nets:Late", "--input", "3x8x8")


@dataclass(frozen=True)
class Mistake:
    """Arguments of a command, the kind of its error, and a part of the message."""

    arguments: Callable[[], tuple[object, ...]]
    kind: str
    parts: tuple[str, ...]


MISTAKES = {
    # Files that are no checkpoint
    "missing": Mistake(lambda: ("pack", "missing.pt"), "CheckpointError", ("missing.pt", "No such file or directory")),
    "empty": Mistake(lambda: ("pack", save_bytes(b"")), "CheckpointError", ("bad.pt is empty (0 bytes)",)),
    "directory": Mistake(lambda: ("pack", folder_named("d.pt")), "CheckpointError", ("d.pt is a folder; pass a file",)),
    "truncated pt": Mistake(
        lambda: ("pack", half(".pt")), "CheckpointError", ("bad.pt is a truncated or damaged zip",)
    ),
    "truncated safetensors": Mistake(
        lambda: ("pack", half(".safetensors")), "CheckpointError", ("bad.safetensors is a truncated or damaged",)
    ),
    "text": Mistake(lambda: ("pack", save_bytes(b"hello")), "CheckpointError", ("bad.pt is text",)),
    "hostile torch": Mistake(lambda: ("pack", save(Attack())), "UnsafeCheckpoint", ("bad.pt holds more than tensors",)),
    "hostile pickle": Mistake(
        lambda: ("pack", save_bytes(pickle.dumps(Attack()))), "UnsafeCheckpoint", ("a plain pickle, which runs code",)
    ),
    "zip bomb": Mistake(lambda: ("pack", zip_bomb()), "UnsafeCheckpoint", ("compressed, so they could expand",)),
    "network": Mistake(lambda: ("pack", save(nn.Linear(2, 2))), "UnsafeCheckpoint", ("nn.modules.linear.Linear",)),
    "prep": Mistake(lambda: ("pack", prep_of(), "-o", "x.prep.safetensors"), "CheckpointError", ("is a PRep already",)),
    "key": Mistake(
        lambda: ("pack", save({"model": {"w": torch.ones(2)}}), "--key", "modle"),
        "CheckpointError",
        ("has no key 'modle' among 'model'", "Did you mean 'model'?"),
    ),
    # Widths and heights
    "width 0": Mistake(lambda: ("pack", good(), "--width", 0), "InvalidShape", ("width 0 is not positive; use a mul",)),
    "width -8": Mistake(lambda: ("pack", good(), "--width", -8), "InvalidShape", ("width -8 is not positive",)),
    "width 12": Mistake(lambda: ("pack", good(), "--width", 12), "InvalidShape", ("multiple of 8; use 8 or 16.",)),
    "width x": Mistake(
        lambda: ("pack", good(), "--width", "x"),
        "UsageError",
        (
            "--width",
            "'x' is not a valid integer",
        ),
    ),
    "width 8.5": Mistake(
        lambda: ("pack", good(), "--width", "8.5"),
        "UsageError",
        (
            "--width",
            "not a valid integer",
        ),
    ),
    "low": Mistake(
        lambda: ("pack", good(), "--width", 8, "--height", 8),
        "InvalidShape",
        ("100 parameters do not fit a PRep of 8 x 8 (64 values); use height >= 16.",),
    ),
    "height 6": Mistake(lambda: ("pack", good(), "--height", 6), "InvalidShape", ("height 6 is not a multiple of 4",)),
    "height 0": Mistake(lambda: ("pack", good(), "--height", 0), "InvalidShape", ("height 0 is not positive",)),
    "height y": Mistake(
        lambda: ("pack", good(), "--height", "y"),
        "UsageError",
        (
            "--height",
            "not a valid integer",
        ),
    ),
    "height 10^20": Mistake(lambda: ("pack", good(), "--height", 10**20), "InvalidShape", ("there is no memory for",)),
    "arch width": Mistake(lambda: ("arch", "show", "resnet8@digits", "--width", 9), "InvalidShape", ("use 8 or 16",)),
    # Tensors
    "integer": Mistake(
        lambda: ("pack", save({"w": torch.arange(4)})), "LayoutMismatch", ("no floating-point parameters were found",)
    ),
    "complex": Mistake(
        lambda: ("pack", save({"w": torch.ones(2, dtype=torch.complex64)})), "LayoutMismatch", ("'w' is complex",)
    ),
    "quantised": Mistake(lambda: ("pack", save({"w": quantised()})), "LayoutMismatch", ("'w' is quantised (qint8)",)),
    "nan": Mistake(
        lambda: ("pack", save({"a": torch.ones(2), "w": torch.tensor([1.0, float("nan"), float("inf")])})),
        "CheckpointError",
        ("'w' holds 1 NaN and 1 infinite of 3 values; pass --allow-nonfinite if they are meant.",),
    ),
    "too large": Mistake(
        lambda: ("pack", save({"w": torch.tensor([1e5])}), "--dtype", "float16"),
        "CheckpointError",
        ("'w' holds 0 NaN and 1 infinite of 1 value after the cast to float16",),
    ),
    "nothing": Mistake(lambda: ("pack", save({})), "CheckpointError", ("holds no named tensors but an empty dict",)),
    "no floats": Mistake(
        lambda: ("pack", save({"n": torch.tensor(1)})), "LayoutMismatch", ("there is nothing to pack",)
    ),
    "no values": Mistake(lambda: ("pack", save({"w": torch.ones(0)})), "LayoutMismatch", ("there is nothing to pack",)),
    # Architectures
    "mismatch": Mistake(
        lambda: ("pack", mismatched(), "--arch", "resnet8@digits"),
        "LayoutMismatch",
        ("missing (linear.bias)", "unexpected (extra.weight)", "conv.weight is [4, 3, 3, 3], expected [4, 1, 3, 3]"),
    ),
    "unknown with bn": Mistake(
        lambda: ("pack", save(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).state_dict())),
        "FusionError",
        ("has BatchNorm ('1')", "--arch NAME, or --arch module:callable --input CxHxW", "--keep-bn"),
    ),
    "unknown name": Mistake(
        lambda: ("pack", good(), "--arch", "resnet88"), "RegistryError", ("Did you mean 'resnet8@cifar10'?",)
    ),
    "arch show": Mistake(
        lambda: ("arch", "show", "resnet8@cifar"), "RegistryError", ("Registered: ", "Did you mean 'resnet8@cifar10'?")
    ),
    "module": Mistake(
        lambda: ("pack", good(), "--arch", "no_such_module:f", "--input", "3"),
        "RegistryError",
        ("module 'no_such_module' cannot be imported",),
    ),
    "callable": Mistake(
        lambda: ("pack", good(), "--arch", "cli_nets:Nett", "--input", "3"), "RegistryError", ("Did you mean 'Net'?",)
    ),
    "number": Mistake(
        lambda: ("pack", good(), "--arch", "cli_nets:a_number", "--input", "3"), "RegistryError", ("not a callable",)
    ),
    "builder": Mistake(
        lambda: ("pack", good(), "--arch", "cli_nets:broken", "--input", "3"),
        "RegistryError",
        ("ValueError: no such data set",),
    ),
    "input size": Mistake(
        lambda: ("pack", save(net_state()), "--arch", "cli_nets:Net", "--input", "2x8x8"),
        "UnfoldableNetwork",
        ("[2, 2, 8, 8]", "3 channels"),
    ),
    "no input": Mistake(lambda: ("pack", good(), "--arch", "m:f"), "UsageError", ("also needs --input", "3x32x32")),
    "no arch": Mistake(lambda: ("pack", good(), "--input", "3x8x8"), "UsageError", ("--input goes with --arch",)),
    "both": Mistake(
        lambda: ("pack", good(), "--arch", "resnet8@digits", "--input", "3x8x8"), "UsageError", ("has its own",)
    ),
    # Targets
    "below a file": Mistake(
        lambda: ("pack", good(), "-o", "good.pt/x.prep.safetensors"), "OutputError", ("'good.pt' is not a directory.",)
    ),
    "no folder": Mistake(lambda: ("pack", good(), "-o", "no/x.safetensors"), "OutputError", ("'no' does not exist.",)),
    "no folder for two": Mistake(
        lambda: ("pack", good(), "other.pt", "-o", good()), "OutputError", ("is a file; name a folder for 2 models",)
    ),
    "two of one name": Mistake(
        lambda: ("pack", good(), "good.safetensors"), "OutputError", ("both become good.prep.safetensors; pack them",)
    ),
    "long name": Mistake(lambda: ("pack", good(), "-o", "x" * 300), "OutputError", ("File name too long.",)),
    "device": Mistake(lambda: ("pack", good(), "-o", "/dev/null", "--force"), "OutputError", ("a device or a pipe",)),
    "exists": Mistake(
        lambda: ("pack", good(), "-o", save_bytes(b"mine", "x.prep.safetensors")),
        "OutputError",
        ("'x.prep.safetensors' exists already; use another name, or --force",),
    ),
    "itself": Mistake(lambda: ("pack", good(), "-o", "good.pt", "--force"), "OutputError", ("is the file to be read",)),
    # Other commands
    "unpack a checkpoint": Mistake(
        lambda: ("unpack", good()),
        "PRepFileError",
        ("'good.pt' is a PyTorch checkpoint, not a PRep; make one with `prepkit pack good.pt`.",),
    ),
    "unpack missing": Mistake(lambda: ("unpack", "x.prep.safetensors"), "PRepFileError", ("does not exist.",)),
    "unpack suffix": Mistake(
        lambda: ("unpack", prep_of(), "-o", "x.onnx"), "OutputError", (".pt, .pth, .safetensors",)
    ),
    "unpack exists": Mistake(
        lambda: ("unpack", prep_of(), "-o", save_bytes(b"mine", "x.pt")), "OutputError", ("exists already",)
    ),
    "unpack itself": Mistake(
        lambda: ("unpack", prep_of(), "-o", "good.prep.safetensors", "--force"), "OutputError", ("file to be read",)
    ),
    "unpack damaged": Mistake(
        lambda: ("unpack", save_bytes(Path(prep_of()).read_bytes()[:-1] + b"\1", "x.prep.safetensors")),
        "PRepFileError",
        ("is damaged: its content does not match the sha256",),
    ),
    "fuse nothing": Mistake(lambda: ("fuse", good(), "-o", "x.pt"), "FusionError", ("has no BatchNorm to fold",)),
    "fuse suffix": Mistake(lambda: ("fuse", good(), "-o", "x"), "OutputError", (".pt, .pth, .safetensors",)),
    "fuse exists": Mistake(
        lambda: ("fuse", good(), "-o", save_bytes(b"mine", "x.pt")), "OutputError", ("exists already",)
    ),
    "fuse itself": Mistake(lambda: ("fuse", good(), "-o", "good.pt", "--force"), "OutputError", ("file to be read",)),
    "fuse without output": Mistake(lambda: ("fuse", good()), "UsageError", ("Missing option '-o'",)),
    "show a checkpoint": Mistake(lambda: ("show", good()), "PRepFileError", ("is a PyTorch checkpoint, not a PRep",)),
    "show a zoo": Mistake(
        lambda: ("show", zoo_named("zoo")), "PRepFileError", ("'zoo' is a zoo, not one PRep; `prepkit zoo info zoo`",)
    ),
    "inspect a zoo": Mistake(
        lambda: ("inspect", zoo_named("zoo")), "CheckpointError", ("zoo is a zoo, not one network; `prepkit zoo info",)
    ),
    "pack a zoo": Mistake(lambda: ("pack", zoo_named("zoo")), "CheckpointError", ("zoo is a zoo, not one network",)),
    "pack as another network": Mistake(
        lambda: ("pack", save(trained().state_dict()), "--arch", "resnet14@digits"),
        "LayoutMismatch",
        ("'bad.pt' is no resnet14@digits: ", ". Its tensors are those of resnet8@digits."),
    ),
    "show suffix": Mistake(lambda: ("show", prep_of(), "-o", "x.jpg"), "OutputError", ("a PNG; name it x.png.",)),
    "show exists": Mistake(
        lambda: ("show", prep_of(), "-o", save_bytes(b"mine", "x.png")), "OutputError", ("exists already",)
    ),
    "inspect missing": Mistake(lambda: ("inspect", "missing"), "CheckpointError", ("No such file",)),
    "inspect folder": Mistake(lambda: ("inspect", folder_named("d")), "CheckpointError", ("d is a folder",)),
    # Usage
    "no model": Mistake(lambda: ("pack",), "UsageError", ("Missing argument 'MODEL...'",)),
    "option": Mistake(lambda: ("pack", good(), "--wdith", 8), "UsageError", ("No such option '--wdith'",)),
    "dtype": Mistake(lambda: ("pack", good(), "--dtype", "int8"), "UsageError", ("'int8' is not one of 'float32'",)),
    "command": Mistake(lambda: ("pakc", "model.pt"), "UsageError", ("No such command 'pakc'",)),
    "subcommand": Mistake(lambda: ("arch", "shwo"), "UsageError", ("No such command 'shwo'",)),
    "input x": Mistake(
        lambda: ("pack", good(), "--arch", "m:f", "--input", "x"), "UsageError", ("'x' is not a shape",)
    ),
}


@pytest.mark.filterwarnings("ignore:.*[Qq]uantiz.*:UserWarning")  # torch's own
@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_message_and_leaves_nothing(mistake: Mistake, nets: Any, folder: Path) -> None:
    arguments = mistake.arguments()
    before = entries(folder)
    plain = run(*arguments, code=2)
    document = run(*arguments, "--json", code=2)
    assert entries(folder) == before
    message = error_of(plain)
    for part in mistake.parts:
        assert part in message
    error = json.loads(document.stdout)["error"]
    assert list(json.loads(document.stdout)) == ["error"]
    assert error == {"kind": mistake.kind, "message": message}
    assert error_of(document, stdout=document.stdout) == message


def error_of(result: Result, stdout: str = "") -> str:
    """The one line of an error; for wrong usage click puts three lines of advice before it."""
    assert result.stdout == stdout
    assert "Traceback" not in result.stderr
    *advice, line = result.stderr.splitlines()
    assert advice == [] or (len(advice) == 3 and advice[0].startswith("Usage: ") and advice[2] == "")
    assert line.startswith("Error: ")
    return line.removeprefix("Error: ")


def test_an_option_without_its_value(folder: Path) -> None:
    result = run("pack", "model.pt", "--json", "--width", code=2)
    error = json.loads(result.stdout)["error"]
    assert error == {"kind": "UsageError", "message": "Option '--width' requires an argument."}


@pytest.mark.parametrize("text", ["x", "3x", "x3", "3xx4", "0x3", "3x-1", "", "3 x 32", "3*32", "٣", "1e3", "3x32.0"])
def test_input_shapes_that_are_none(text: str, folder: Path) -> None:
    message = error_of(run("pack", "m.pt", "--arch", "m:f", "--input", text, code=2))
    assert message == f"Invalid value for '--input': {text!r} is not a shape such as 3x32x32."


def test_batch_norm_that_cannot_be_folded_says_where_and_why(nets: Any, folder: Path) -> None:
    torch.save(with_random_statistics(nets["Late"]()).state_dict(), "late.pt")
    run("pack", "late.pt", *UNFOLDABLE, "--keep-bn", "-o", "kept.prep.safetensors")
    before = entries(folder)
    result = run("pack", "late.pt", *UNFOLDABLE, code=2)
    assert "1 of 1 BatchNorm cannot be folded" in result.stderr
    assert "bn" in result.stderr
    assert "--keep-bn" in result.stderr
    assert "--bn affine makes each of these a scale and a shift per channel" in result.stderr
    assert "keep_unfoldable" not in result.stderr
    assert "Traceback" not in result.stderr
    assert entries(folder) == before


@pytest.mark.parametrize("command", ["pack", "fuse"])
def test_batch_norm_that_cannot_be_folded_becomes_an_affine_map(nets: Any, command: str) -> None:
    torch.manual_seed(0)
    network = with_random_statistics(nets["Late"]()).eval()
    torch.save(network.state_dict(), "late.pt")
    if command == "pack":
        result = run("pack", "late.pt", *UNFOLDABLE, "--bn", "affine")
        run("unpack", "late.prep.safetensors", "-o", "out.pt")
    else:
        result = run("fuse", "late.pt", *UNFOLDABLE, "--bn", "affine", "-o", "out.pt")
    assert "folded        0 BatchNorm layers, 1 made affine (bn); outputs equal within " in result.stdout
    tensors = torch.load("out.pt", weights_only=True)
    assert list(tensors) == ["conv.weight", "conv.bias", "bn.weight", "bn.bias"]
    images = torch.randn(5, 3, 9, 9)
    features = conv2d(images, tensors["conv.weight"], tensors["conv.bias"]).relu()
    found = features * tensors["bn.weight"][:, None, None] + tensors["bn.bias"][:, None, None]
    torch.testing.assert_close(found, network(images), rtol=1e-4, atol=1e-5)
    again = run("pack", "out.pt", *UNFOLDABLE, "--json")  # it is known as the packed form of this network
    assert json.loads(again.stdout)["packed"][0]["architecture"] == "cli_nets.Late"


def test_running_statistics_that_no_fold_reaches_never_pass(nets: Any) -> None:
    """A module whose statistics are named as a BatchNorm's, in a shape that no BatchNorm has."""
    torch.save(nets["Strange"]().state_dict(), "strange.pt")
    result = run("pack", "strange.pt", "--arch", "cli_nets:Strange", "--input", "3x9x9", code=2)
    assert "norm: it holds running statistics, but not a mean and a variance of one value a channel" in result.stderr
    assert "--keep-bn" in result.stderr
    run("pack", "strange.pt", "--arch", "cli_nets:Strange", "--input", "3x9x9", "--keep-bn")


def test_a_hostile_pickle_runs_nothing(folder: Path) -> None:
    for name in (save(Attack(), "a.pt"), save_bytes(pickle.dumps(Attack()), "b.pt")):
        for command in ("pack", "inspect"):
            run(command, name, code=2)
    torch.save(Attack(), "c.pt", _use_new_zipfile_serialization=False)
    run("pack", "c.pt", code=2)
    assert "SENTINEL" not in os.listdir()
    pickle.loads(Path("b.pt").read_bytes()).close()
    assert "SENTINEL" in os.listdir()  # the attack works where pickles are not refused


def test_force_replaces(folder: Path) -> None:
    prep = prep_of()
    for arguments in (
        ("pack", "good.pt", "-o", "x.prep.safetensors"),
        ("unpack", prep, "-o", "x.pt"),
        ("show", prep, "-o", "x.png"),
    ):
        target = Path(str(arguments[-1]))
        target.write_bytes(b"old")
        told = f"'{target}' exists already; use another name, or --force to replace it."
        assert error_of(run(*arguments, code=2)) == told
        assert target.read_bytes() == b"old"
        run(*arguments, "--force")
        assert len(target.read_bytes()) > 100


def test_a_folder_without_permission(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good()
    locked = folder / "locked"
    locked.mkdir()
    # root may write anywhere
    monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK and Path(path).name == "locked"))
    message = error_of(run("pack", "good.pt", "-o", "locked", code=2))
    assert message == "cannot write 'locked/good.prep.safetensors': no permission to write in 'locked'."
    assert os.listdir("locked") == []


def test_of_several_models_those_before_the_mistake_are_kept(folder: Path) -> None:
    (folder / "out").mkdir()
    result = run("pack", good(), save({"w": torch.arange(3)}), "-o", "out", code=2)
    assert "good.pt -> out/good.prep.safetensors" in result.stdout
    assert result.stderr.startswith("Error: 'bad.pt': there is nothing to pack")
    assert os.listdir("out") == ["good.prep.safetensors"]


# Failures that are not the user's -------------------------------------------------------------------------------


def assert_fails(folder: Path, kind: str, message: str, *arguments: object) -> None:
    before = entries(folder)
    result = run(*arguments, "--json", code=1)
    assert json.loads(result.stdout) == {"error": {"kind": kind, "message": message}}
    assert result.stderr == f"Error: {message}\n"
    assert entries(folder) == before


def test_a_round_trip_that_fails_writes_nothing(
    model: nn.Module, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = Layout.pack

    def corrupt(self: Layout, *arguments: Any, **options: Any) -> Tensor:
        prep = pack(self, *arguments, **options)
        prep[3, 7] += 1
        return prep

    monkeypatch.setattr(Layout, "pack", corrupt)
    (name,) = [slot.name for slot in prepkit.architecture("resnet8@digits").layout if slot.start <= 1543 < slot.stop]
    message = f"the round trip failed for {name}; nothing was written. Please report this."
    assert_fails(folder, "VerificationError", message, "pack", "model.pt")


def test_without_matplotlib(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prep = prep_of()
    for module in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    message = "drawing needs matplotlib; pip install 'prepkit[plots]'."
    assert_fails(folder, "PlotsMissing", message, "show", prep)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (OSError(5, "Input/output error", "good.pt"), "OSError", "[Errno 5] Input/output error: 'good.pt'"),
        (MemoryError(), "MemoryError", "not enough memory; close other programs or use a smaller input."),
    ],
)
def test_what_the_system_raises(
    error: Exception, kind: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import prepkit.packing

    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(prepkit.packing, "sha256_of", fail)
    assert_fails(folder, kind, message, "pack", good())


def test_an_interruption_is_one_line_and_one_document(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import prepkit.packing

    def interrupt(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepkit.packing, "sha256_of", interrupt)
    before, message = ["good.pt"], "interrupted; no file is half written."
    done = run("pack", good(), code=130)
    assert (done.stdout, done.stderr) == ("", f"{message}\n")
    done = run("pack", "good.pt", "--json", code=130)
    assert json.loads(done.stdout) == {"error": {"kind": "Interrupted", "message": message}}
    assert (done.stderr, os.listdir()) == (f"{message}\n", before)


def test_a_bug_is_not_hidden(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import prepkit.packing

    def fail(*arguments: Any, **options: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(prepkit.packing, "sha256_of", fail)
    result = CliRunner().invoke(main, ["pack", good()])
    assert isinstance(result.exception, ZeroDivisionError)


# A real process -----------------------------------------------------------------------------------------------


def prepkit_process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    script = Path(sys.executable).with_name("prepkit")
    return subprocess.run([script, *arguments], capture_output=True, text=True, check=False, **options)


def test_as_a_process(model: nn.Module, folder: Path) -> None:
    done = prepkit_process("pack", "model.pt", "--width", "512")
    assert (done.returncode, done.stderr) == (0, "")
    assert "12 x 512 float32" in done.stdout
    done = prepkit_process("unpack", "model.prep.safetensors", "-o", "out.pt")
    assert (done.returncode, done.stderr) == (0, "")
    assert_same_function(model, torch.load("out.pt", weights_only=True))
    done = prepkit_process("pack", "out.pt", "--width", "12")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Error: width 12 is not a multiple of 8; use 8 or 16.\n"
    assert sorted(os.listdir()) == ["model.prep.safetensors", "model.pt", "out.pt"]


def test_a_reader_that_has_read_enough_is_no_error(folder: Path) -> None:
    """`prepkit arch list | head -1`, with a head that is gone before anything is written."""
    reading, writing = os.pipe()
    os.close(reading)
    script = Path(sys.executable).with_name("prepkit")
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run([script, "arch", "list"], stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr == ""


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_output_that_takes_nothing_is_one_line(options: list[str], model: nn.Module, folder: Path) -> None:
    script = Path(sys.executable).with_name("prepkit")
    with open("/dev/full", "w") as full:
        command = [script, "inspect", "model.pt", *options]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert re.fullmatch(r"Error: .*No space left on device\.?\n", done.stderr)
    assert done.returncode == 1


def test_messages_name_flags_at_the_command_line_and_keywords_in_python(folder: Path) -> None:
    prep = prep_of()
    assert "or --force to replace it" in error_of(run("pack", "good.pt", "-o", prep, code=2))
    with pytest.raises(OutputError, match="or overwrite=True to replace it"):
        prepkit.save_prep(prepkit.load_prep(prep), prep)


@pytest.mark.filterwarnings("default::prepkit.errors.RecordingFailed")
def test_a_step_that_runs_without_a_graph_is_a_note(capsys):
    for _ in range(2):
        with notes():
            warnings.warn("a step cannot be recorded as a CUDA graph", RecordingFailed, stacklevel=1)
    assert capsys.readouterr().err.splitlines()[0] == "note: a step cannot be recorded as a CUDA graph"
