"""Tests of `prepkit pack` and `unpack`."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_samples import assert_same_function, entries, run, save, trained, with_random_statistics
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

import prepkit

WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_bits(a: Tensor, b: Tensor) -> bool:
    words = WORDS[a.element_size()]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(words), b.view(words))


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
        "stays": [],
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
