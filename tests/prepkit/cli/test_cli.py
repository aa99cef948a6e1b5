"""Tests of failures that are not the user's, and of prepkit as a process of its own."""

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_samples import assert_same_function, entries, error_of, good, prep_of, run
from click.testing import CliRunner
from forked_python import ForkedPython
from torch import Tensor, nn

import prepkit
from prepkit.cli import main
from prepkit.cli.common import notes
from prepkit.errors import OutputError, RecordingFailed
from prepkit.prep.layout import Layout


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
        (
            OSError(5, "Input/output error", "good.pt"),
            "OSError",
            "'good.pt' cannot be used: Input/output error; check its name and its disk.",
        ),
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


def test_as_a_process(model: nn.Module, folder: Path, forked_python: ForkedPython) -> None:
    script = Path(sys.executable).with_name("prepkit")
    command = [script, "pack", "model.pt", "--width", "512"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "12 x 512 float32" in done.stdout
    done = forked_python.run("-m", "prepkit", "unpack", "model.prep.safetensors", "-o", "out.pt")
    assert (done.returncode, done.stderr) == (0, "")
    assert_same_function(model, torch.load("out.pt", weights_only=True))
    done = forked_python.run("-m", "prepkit", "pack", "out.pt", "--width", "12")
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
def test_an_output_that_takes_nothing_is_one_line(
    options: list[str], model: nn.Module, folder: Path, forked_python: ForkedPython
) -> None:
    with open("/dev/full", "w") as full:
        done = forked_python.run("-m", "prepkit", "inspect", "model.pt", *options, stdout=full)
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
