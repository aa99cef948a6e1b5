"""Tests of `prepkit fuse`, `show`, `inspect`, `arch` and of the help."""

import hashlib
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from cli_samples import assert_same_function, run, save
from safetensors.torch import load_file
from torch import nn

import prepkit
from prepkit.cli import main
from prepkit.prep.layout import Layout


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
    listed = result.stdout.partition("Commands:")[2]
    assert "..." not in listed, "the list of commands cuts a short help"
    shown = " ".join(result.stdout.split())
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{path}: {parameter.name} has no help"
            assert parameter.opts[-1] in shown
            assert parameter.help.split()[0] in shown
        else:
            assert parameter.make_metavar(click.Context(command)) in shown


def test_the_commands_are_those_of_the_contract() -> None:
    expected = ("pack", "unpack", "fuse", "show", "inspect", "arch list", "arch show", "arch symmetries")
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
