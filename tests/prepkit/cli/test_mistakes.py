"""Tests of mistakes: each ends in one line that says what to do."""

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_samples import entries, error_of, good, prep_of, run, save, trained
from mistake_samples import (
    Attack,
    folder_named,
    half,
    mismatched,
    net_state,
    quantised,
    save_bytes,
    zip_bomb,
    zoo_named,
)
from torch import nn


@dataclass(frozen=True)
class Mistake:
    """Arguments of a command, the kind of its error, and a part of the message."""

    arguments: Callable[[], tuple[object, ...]]
    kind: str
    parts: tuple[str, ...]


MISTAKES = {
    # Files that are no checkpoint
    "missing": Mistake(lambda: ("pack", "missing.pt"), "CheckpointError", ("missing.pt", "No such file or directory")),
    "no suffix": Mistake(
        lambda: ("pack", good().removesuffix(".pt")), "CheckpointError", ("good cannot", "Did you mean 'good.pt'?")
    ),
    "model before the zoo": Mistake(
        lambda: ("zoo", "create", good(), "new"),
        "UsageError",
        ("'good.pt' is a file; DIR, the folder of the zoo, comes",),
    ),
    "address before the folder": Mistake(
        lambda: ("push", "user/zoo", folder_named("zoo")),
        "UsageError",
        ("comes before REPO: prepkit push zoo user/zoo",),
    ),
    "one zoo to merge": Mistake(
        lambda: ("zoo", "merge", zoo_named("one"), "new"),
        "ZooError",
        ("not 1; the folder of the new zoo comes before",),
    ),
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
    "arch symmetries": Mistake(
        lambda: ("arch", "symmetries", "resnet8@cifar"), "RegistryError", ("Did you mean 'resnet8@cifar10'?",)
    ),
    "arch symmetries without input": Mistake(
        lambda: ("arch", "symmetries", "cli_nets:Net"),
        "RegistryError",
        ("'cli_nets:Net' needs the shape of one input too: give --input, such as 3x32x32, or have the builder set",),
    ),
    "arch symmetries of another size": Mistake(
        lambda: ("arch", "symmetries", "cli_nets:Net", "--input", "2x8x8", "--keep-bn"),
        "SymmetryError",
        ("The network fails on the example input [2, 2, 8, 8]", "3 channels"),
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
    "no input": Mistake(
        lambda: ("pack", good(), "--arch", "cli_nets:Net"), "RegistryError", ("too: give --input, such as 3x32x32",)
    ),
    "a file as a module": Mistake(
        lambda: ("pack", good(), "--arch", "cli_nets.py:Net", "--input", "3"),
        "RegistryError",
        ("module 'cli_nets.py' cannot be imported", "Write 'cli_nets:Net', without .py."),
    ),
    "a slip in a module's name": Mistake(
        lambda: ("pack", good(), "--arch", "cli_net:Net", "--input", "3"),
        "RegistryError",
        ("module 'cli_net' cannot be imported", "Did you mean 'cli_nets'?"),
    ),
    # Names of results, and of what is not there
    "a name that may be a folder's": Mistake(
        lambda: ("pack", good(), "-o", "results/"), "OutputError", ("name the file, 'results.prep.safetensors'",)
    ),
    "a page of another kind": Mistake(
        lambda: ("zoo", "audit", zoo_named("zoo"), "-o", "a.pdf"), "OutputError", ("use a name that ends in .html",)
    ),
    "a slip in a zoo's name": Mistake(
        lambda: ("zoo", "info", zoo_named("my-zoo")[:-1]), "ZooError", ("does not exist. Did you mean 'my-zoo'?",)
    ),
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


def test_an_option_without_its_value(folder: Path) -> None:
    result = run("pack", "model.pt", "--json", "--width", code=2)
    error = json.loads(result.stdout)["error"]
    assert error == {"kind": "UsageError", "message": "Option '--width' requires an argument."}


@pytest.mark.parametrize("text", ["x", "3x", "x3", "3xx4", "0x3", "3x-1", "", "3 x 32", "3*32", "٣", "1e3", "3x32.0"])
def test_input_shapes_that_are_none(text: str, folder: Path) -> None:
    message = error_of(run("pack", "m.pt", "--arch", "m:f", "--input", text, code=2))
    assert message == f"Invalid value for '--input': {text!r} is not a shape such as 3x32x32."


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


def test_an_error_of_the_system_names_the_file_and_says_what_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", "runs/a")

    monkeypatch.setattr("prepkit.zoo.importers.kinds.found_by", refuse)
    message = run("zoo", "import", "siren", "runs", "zoo", code=1).stderr
    assert message == "Error: 'runs/a' cannot be used: Permission denied; check its permissions.\n"
