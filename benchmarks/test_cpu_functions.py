"""Encoder and decoder by netspace's own functions and by plain ones on a CPU, each part alone, forward and backward.

PReps of 8 x 10,000, E = 4096. The libraries that multiply matrices read what a processor can do when they are loaded,
so each condition has a process of its own: the processor as it is, and as one that has AVX2 and no more. One thread and
its processor time, so that other work beside it counts little; all ways are interleaved.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.timing import record, summary
from netspace import NetSpace
from netspace.space import fast
from netspace.space.cpu_functions import OWN, PLAIN, seconds_of
from prepkit.cli.allocator import keep_freed_memory

ROOT = Path(__file__).parent.parent
INSTANCES = 2
ROUNDS = int(os.environ.get("PREPKIT_ROUNDS", "5"))
PROCESSORS = {
    "as it is": {},
    "with AVX2 alone": {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
    },
}


def time_parts(rounds: int, precisions: tuple[str, ...]) -> dict[str, Any]:
    """Processor seconds of each part, precision and way; how many times as fast own functions are as plain ones."""
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    space = NetSpace(height=8, width=10_000, embedding_size=4096)
    preps_NHW = torch.randn(INSTANCES, 8, 10_000) * 0.05  # noqa: N806
    latent_NE = torch.randn(INSTANCES, 4096, requires_grad=True)  # noqa: N806
    assert fast.encodes(preps_NHW, space.encoder)
    assert fast.decodes(latent_NE, space.decoder, space.width, space.columns)
    found: dict[str, Any] = {}
    for precision in precisions:
        for name, part, given in (("encoder", space.encoder, preps_NHW), ("decoder", space.decoder, latent_NE)):
            asked = [tensor for tensor in (given, *part.parameters()) if tensor.requires_grad]
            ways = {PLAIN: part.plain, OWN: part}
            seconds: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(rounds + 1):
                for way, function in ways.items():
                    before = time.process_time()
                    seconds_of(function, given, asked, precision == "bfloat16")
                    seconds[way].append(time.process_time() - before)
            counted = {way: values[1:] for way, values in seconds.items()}
            pairs = [round(a / b, 2) for a, b in zip(counted[PLAIN], counted[OWN], strict=True)]
            measured = summary(counted, PLAIN)
            times = round(1 / measured[OWN]["ratio"], 2)
            found[f"{name}, {precision}"] = {**measured, "times as fast": times, "in each round": pairs}
    return found


@pytest.mark.parametrize("processor", PROCESSORS)
def test_parts(benchmark: BenchmarkFixture, processor: str) -> None:
    """Own functions may gain less on a processor that can do less, which is why trainings measure."""
    # Without instructions for bfloat16, oneDNN emulates it: a pass of the decoder takes minutes.
    precisions = ("float32",) if PROCESSORS[processor] else ("float32", "bfloat16")
    code = f"import json, benchmarks.test_cpu_functions as b; print(json.dumps(b.time_parts({ROUNDS}, {precisions})))"
    environment = {**os.environ, **PROCESSORS[processor]}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert all(each["times as fast"] > 0 for each in result.values())
    benchmark.pedantic(lambda: None, rounds=1)
    record(benchmark, "cpu_functions", f"processor {processor}, 1 thread", result)
