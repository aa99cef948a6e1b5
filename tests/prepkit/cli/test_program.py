"""Both programs as processes of their own: their settings, and Ctrl-C at moments at which other code would hide it."""

import io
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

import prepkit
from prepkit.cli import main
from prepkit.program import ENVIRONMENT, MESSAGE, spins

PROGRAMS = ["prepkit", "netspace"]
each_program = pytest.mark.parametrize("program", PROGRAMS)
PRINT_SETTINGS = f"""
import atexit, json, os, sys
def tell():
    settings = {{name: os.environ.get(name) for name in {list(ENVIRONMENT)}}}
    print(json.dumps(settings), file=sys.stderr)
atexit.register(tell)
"""
INTERRUPT_IMPORT = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
"""


def python(tmp_path, arguments, first, **environment):
    """Run Python with code that it runs before anything else."""
    (tmp_path / "sitecustomize.py").write_text(first)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    settings = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**settings, "PYTHONPATH": path, **environment},
    )


def needs(program):
    if program == "netspace":
        pytest.importorskip("netspace")


@each_program
def test_a_program_makes_settings_and_keeps_those_of_the_user(program, tmp_path):
    needs(program)
    done = python(tmp_path, ["-m", program, "--version"], PRINT_SETTINGS)
    made = json.loads(done.stderr)
    assert made["GOMP_SPINCOUNT"] in ("1000", "10000")
    assert {**made, "GOMP_SPINCOUNT": None} == {**ENVIRONMENT, "GOMP_SPINCOUNT": None}
    assert done.stdout.startswith(f"{program}, version ")
    done = python(tmp_path, ["-m", program, "--version"], PRINT_SETTINGS, OMP_WAIT_POLICY="ACTIVE")
    assert json.loads(done.stderr) == {**ENVIRONMENT, "OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": None}
    done = python(tmp_path, ["-m", program, "--version"], PRINT_SETTINGS, GOMP_SPINCOUNT="7")
    assert json.loads(done.stderr) == {**ENVIRONMENT, "GOMP_SPINCOUNT": "7"}


@pytest.mark.parametrize(
    ("load", "expected"),
    [("0.5 0.4 0.3 2/99 7", "10000"), ("0.5 0.4 0.3 3/99 7", "1000"), ("0.5", "1000"), (None, "1000")],
    ids=["half of the cores", "more", "unknown", "missing"],
)
def test_threads_wait_long_for_work_on_a_quiet_machine_only(tmp_path, monkeypatch, load, expected):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    if load is not None:
        (tmp_path / "loadavg").write_text(load)
    assert spins(tmp_path / "loadavg") == expected


def test_the_library_makes_no_settings(tmp_path):
    code = "import prepkit.cli, prepkit.training.run, prepkit.program; prepkit.pack_checkpoint, prepkit.train_zoo"
    done = python(tmp_path, ["-c", code], PRINT_SETTINGS)
    assert json.loads(done.stderr) == dict.fromkeys(ENVIRONMENT)


@each_program
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_ctrl_c_amid_imports_is_one_line(program, options, tmp_path):
    needs(program)
    done = python(tmp_path, ["-m", program, "--version", *options], INTERRUPT_IMPORT)
    assert (done.returncode, done.stderr) == (130, f"{MESSAGE}\n")
    error = {"error": {"kind": "Interrupted", "message": MESSAGE}}
    assert done.stdout == "" if not options else json.loads(done.stdout) == error


def test_ctrl_c_while_torch_writes_is_one_line_and_leaves_no_file(tmp_path, monkeypatch):
    """torch.save makes a RuntimeError of an exception in a write that its C++ code calls."""
    tensors = {"w": torch.ones(1000)}
    layout = prepkit.Layout.of_tensors(tensors)
    source = tmp_path / "model.prep.safetensors"
    prepkit.save_prep(prepkit.PRep(layout.pack(tensors, layout.shape(8)), layout), source)
    save = torch.save

    class Interrupting(io.BytesIO):
        written = 0

        def write(self, content):
            self.written += 1
            if self.written == 3:
                signal.raise_signal(signal.SIGINT)
            return super().write(content)

    monkeypatch.setattr(torch, "save", lambda tensors, file: save(tensors, Interrupting()))
    before = signal.getsignal(signal.SIGINT)
    done = CliRunner().invoke(main, ["unpack", str(source), "-o", str(tmp_path / "model.pt")])
    assert (done.exit_code, done.stdout, done.stderr) == (130, "", f"{MESSAGE}\n")
    assert os.listdir(tmp_path) == [source.name]
    assert signal.getsignal(signal.SIGINT) == before
