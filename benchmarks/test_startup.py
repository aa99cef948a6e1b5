"""What a user waits for: `prepkit --help`, `arch list`, `pack` of a ResNet8; and the memory of a large pack."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from safetensors.torch import save_file

import prepkit
from benchmarks.timing import interleaved, record, summary

PREPKIT = str(Path(sys.executable).with_name("prepkit"))


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def test_light_commands(benchmark: BenchmarkFixture) -> None:
    ways = {
        "python -c pass": lambda: run(sys.executable, "-c", "pass"),
        "prepkit --help": lambda: run(PREPKIT, "--help"),
        "prepkit arch list": lambda: run(PREPKIT, "arch", "list"),
    }
    result = summary(interleaved(ways, rounds=11), "python -c pass")
    benchmark.pedantic(ways["prepkit arch list"], rounds=3)
    record(benchmark, "startup", "light commands", result)


def test_pack_command(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    torch.save(prepkit.architecture("resnet8@cifar10").build().state_dict(), tmp_path / "model.pt")
    target = tmp_path / "model.prep.safetensors"
    ways = {
        "python -c 'import torch'": lambda: run(sys.executable, "-c", "import torch"),
        "prepkit pack resnet8": lambda: run(PREPKIT, "pack", str(tmp_path / "model.pt"), "-o", str(target), "--force"),
    }
    result = summary(interleaved(ways, rounds=9), "python -c 'import torch'")
    assert prepkit.load_prep(target).origin.architecture == "resnet8@cifar10"
    benchmark.pedantic(ways["prepkit pack resnet8"], rounds=3)
    record(benchmark, "startup", "pack a resnet8", result)


@pytest.mark.skipif(sys.platform != "linux", reason="reads VmHWM of /proc")
def test_memory_of_packing_100m_parameters(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    source = tmp_path / "large.safetensors"
    save_file({f"layers.{index}.weight": torch.randn(3_000, 3_000) for index in range(11)}, source)
    # VmHWM, not ru_maxrss: that one starts at the peak of the process that forked.
    script = (
        "import sys, json, torch\n"
        "def peak():\n"
        "    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "before = peak()\n"
        "from prepkit.cli import main\n"
        "main([*sys.argv[1:]], standalone_mode=False)\n"
        "print(json.dumps([before, peak()]))"
    )
    command = [sys.executable, "-c", script, "pack", str(source), "-o", str(tmp_path / "large.prep.safetensors")]
    done = benchmark.pedantic(lambda: subprocess.run(command, check=True, capture_output=True, text=True), rounds=1)
    output = done.stdout
    before, peak = json.loads(output.splitlines()[-1])
    size = source.stat().st_size
    ratio = (peak - before) * 1024 / size
    record(
        benchmark,
        "startup",
        "memory of packing 99M parameters",
        {"file bytes": size, "peak beyond import torch / file": round(ratio, 3)},
    )
