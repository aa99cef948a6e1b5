"""Tests of `prepkit pack` and `zoo create` with many models: failures on the way, and the same command once more."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from command_line import as_json, prepkit
from safetensors import SafetensorError
from safetensors.torch import load_file

from prepkit import packing
from prepkit.api import create_zoo, open_zoo
from prepkit.errors import OutputError, ZooError
from prepkit.prep.file import Origin, load_prep, read_prep_header

MODELS = ("a.pt", "bad.pt", "c.pt")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Three models, of which the second is none."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(MODELS):
        torch.save({"weight": torch.full((2, 3), float(number))}, name)
    Path("bad.pt").write_text("no model")


def sources(entries):
    return [entry["source"] for entry in entries]


def test_the_others_are_packed_and_a_summary_ends_the_output():
    result = prepkit("pack", *MODELS, "-o", "out", "--keep-going", status=2)
    assert sorted(os.listdir("out")) == ["a.prep.safetensors", "c.prep.safetensors"]
    assert result.stderr == "failed: bad.pt is text; pass the .pt, .pth or .safetensors file.\n"
    assert result.stdout.endswith("\n2 of 3 models packed, 1 failed: bad.pt\n")
    assert load_prep("out/c.prep.safetensors").tensors()["weight"].unique().tolist() == [2.0]


def test_the_same_command_skips_what_is_done_and_packs_what_is_mended():
    prepkit("pack", *MODELS, "-o", "out", "--keep-going", status=2)
    before = {path.name: path.stat().st_mtime_ns for path in Path("out").iterdir()}
    torch.save({"weight": torch.ones(2, 3)}, "bad.pt")
    document = as_json("pack", *MODELS, "-o", "out", "--keep-going")
    assert (sources(document["packed"]), sources(document["skipped"]), document["failed"]) == (
        ["bad.pt"],
        ["a.pt", "c.pt"],
        [],
    )
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in Path("out").iterdir()}.items()
    assert prepkit("pack", *MODELS, "-o", "out", "--keep-going").stdout.endswith("\n0 of 3 models packed, 3 skipped\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--width", "64"), "was packed in the shape 4 x 512, not 4 x 64; use another name, or give --force"),
        (("--height", "8"), "was packed in the shape 4 x 512, not 8 x 512; use another name"),
        (("--dtype", "float16"), "was packed with the options none, not with dtype=float16; use another name"),
        (("--prefix", ""), "was packed with the options none, not with prefix=; use another name"),
        (("--arch", "nets:net", "--input", "3"), "was packed as an unknown network, not as nets.net; use another name"),
    ],
)
def test_what_was_packed_in_another_way_is_not_skipped(options, message, monkeypatch):
    Path("nets.py").write_text("from torch import nn\ndef net():\n    return nn.Linear(3, 2, bias=False)\n")
    prepkit("pack", "a.pt", "c.pt", "-o", "out")
    document = as_json("pack", "a.pt", "c.pt", "-o", "out", "--keep-going", *options, status=2)
    assert (document["packed"], document["skipped"]) == ([], [])
    assert [message in failure["error"]["message"] for failure in document["failed"]] == [True, True]
    assert sources(as_json("pack", "a.pt", "c.pt", "-o", "out", "--keep-going", *options, "--force")["packed"]) == [
        "a.pt",
        "c.pt",
    ]
    assert len(as_json("pack", "a.pt", "c.pt", "-o", "out", "--keep-going", *options)["skipped"]) == 2


def test_another_network_of_the_same_file_is_not_skipped():
    torch.save({"ema": {"weight": torch.ones(2, 3)}, "model": {"weight": torch.zeros(2, 3)}}, "a.pt")
    prepkit("pack", "a.pt", "--key", "ema")
    assert read_prep_header("a.prep.safetensors").origin.options == {"key": "ema"}
    assert json.loads(prepkit("inspect", "a.prep.safetensors", "--json").stdout)["options"] == {"key": "ema"}
    error = prepkit("pack", "a.pt", "--key", "model", "--keep-going", status=2).stderr
    assert "was packed with the options key=ema, not with key=model; use another name" in error
    assert "skipped" in prepkit("pack", "a.pt", "--key", "ema", "--keep-going").stdout


def test_a_changed_model_and_a_damaged_prep_are_not_skipped():
    prepkit("pack", "a.pt", "c.pt", "-o", "out")
    torch.save({"weight": torch.full((2, 3), 7.0)}, "a.pt")
    damaged = Path("out/c.prep.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x01")
    document = as_json("pack", "a.pt", "c.pt", "-o", "out", "--keep-going", status=2)
    first, second = (failure["error"]["message"] for failure in document["failed"])
    assert first == (
        "'out/a.prep.safetensors' was packed from another file; use another name, or give --force to replace it."
    )
    assert "is damaged" in second
    assert "delete it, or give --force" in second


def test_options_change_no_other_bytes_of_a_prep():
    prepkit("pack", "a.pt")
    assert "options" not in Path("a.prep.safetensors").read_bytes().decode("latin1")
    prepkit("pack", "a.pt", "-o", "b.prep.safetensors", "--keep-bn")
    assert load_prep("b.prep.safetensors").origin.options == {"keep_batch_norm": True}
    assert torch.equal(load_file("a.prep.safetensors")["prep"], load_file("b.prep.safetensors")["prep"])
    assert Origin().options == {}


def test_without_the_option_the_first_failure_ends_the_command_and_says_how_to_go_on():
    result = prepkit("pack", *MODELS, "-o", "out", status=2)
    assert os.listdir("out") == ["a.prep.safetensors"]
    assert "1 of 3 models is packed; --keep-going skips these and goes on." in result.stderr
    assert "--keep-going packs the other models." in prepkit("pack", "bad.pt", "a.pt", "-o", "new", status=2).stderr
    assert "keep-going" not in prepkit("pack", "bad.pt", status=2).stderr
    one = prepkit("pack", "bad.pt", "--keep-going", status=2)
    assert one.stderr == "Error: bad.pt is text; pass the .pt, .pth or .safetensors file.\n"


@pytest.mark.parametrize("keep_going", [True, False])
@pytest.mark.parametrize("becomes_another_error", [True, False])
def test_ctrl_c_ends_the_command_and_says_how_to_go_on(monkeypatch, keep_going, becomes_another_error):
    """Libraries in C++ make errors of their own of Ctrl-C, which must not pass for the failure of one model."""
    pack = packing.pack_checkpoint

    def interrupted(path, **keywords):
        if path.name == "c.pt":
            return pack(path, **keywords)
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            if becomes_another_error:
                raise OutputError("cannot write") from None
            raise

    monkeypatch.setattr(packing, "pack_checkpoint", interrupted)
    options = ["--keep-going"] if keep_going else []
    result = prepkit("pack", "c.pt", "a.pt", "c.pt", *options, status=2)  # two of one name
    assert "two models would both become" in result.stderr
    result = prepkit("pack", "c.pt", "a.pt", "-o", "out", *options, status=130)
    how = "the same command goes on" if keep_going else "--keep-going skips these and goes on"
    assert result.stderr == f"interrupted; no file is half written.\n1 of 2 models is packed; {how}.\n"
    assert os.listdir("out") == ["c.prep.safetensors"]


@pytest.mark.parametrize(
    "cause", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left (os error 28)")]
)
def test_a_full_disk_ends_the_command(monkeypatch, cause):
    def full(*arguments, **keywords):
        raise OutputError("cannot write 'x': the disk is full.") from cause

    monkeypatch.setattr("prepkit.prep.file.save_prep", full)
    result = prepkit("pack", "a.pt", "c.pt", "-o", "out", "--keep-going", status=2)
    assert result.stderr.startswith("Error: cannot write 'x': the disk is full.\n")
    assert "failed" not in result.output


# zoo create ---------------------------------------------------------------------------------------------------


def test_a_zoo_takes_the_other_models_and_goes_on_when_they_are_mended():
    result = prepkit("zoo", "create", "zoo", *MODELS, "--keep-going", status=2)
    assert result.stderr == (
        "Error: 1 of 3 models cannot be added, so the zoo is not finished. "
        "Mend them, or leave them out of the command.\n"
        "failed: bad.pt is text; pass the .pt, .pth or .safetensors file.\n"
        "2 of 3 models are kept; go on with --resume, or delete 'zoo'.\n"
    )
    torch.save({"weight": torch.ones(2, 3)}, "bad.pt")
    prepkit("zoo", "create", "zoo", *MODELS, "--keep-going", "--resume")
    assert open_zoo("zoo").table["id"].to_pylist() == ["a", "c", "bad"]


def test_python_gets_each_failure_as_a_note():
    with pytest.raises(ZooError, match="1 of 3 models cannot be added") as caught:
        create_zoo("zoo", MODELS, keep_going=True)
    assert caught.value.__notes__ == [
        "failed: bad.pt is text; pass the .pt, .pth or .safetensors file.",
        "2 of 3 models are kept; go on with resume=True, or delete 'zoo'.",
    ]
    create_zoo("zoo", ["a.pt", "c.pt"], resume=True)
    assert len(open_zoo("zoo")) == 2
    with pytest.raises(ZooError, match="1 of 1 model cannot be added"):
        create_zoo("none", ["bad.pt"], keep_going=True)
    assert not Path("none").exists()


def test_a_full_disk_ends_the_making_of_a_zoo(monkeypatch):
    tried = []

    def full(self, item, *, id, **columns):
        tried.append(id)
        raise OutputError("the disk is full")

    monkeypatch.setattr("prepkit.zoo.write.writer.ZooWriter.add", full)
    assert "Error: the disk is full" in prepkit("zoo", "create", "zoo", *MODELS, "--keep-going", status=2).stderr
    assert tried == ["a"]
