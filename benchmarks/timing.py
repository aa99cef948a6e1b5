"""Interleaved timing: every way runs once in each round, so that a noisy machine is noisy for all of them."""

import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture

RESULTS = Path(__file__).parent / "results"


def interleaved(ways: Mapping[str, Callable[[], object]], rounds: int = 15, loops: int = 1) -> dict[str, list[float]]:
    """Seconds a call of each way in each round, after one round that is thrown away."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    gc.disable()
    try:
        for number in range(rounds + 1):
            for name, way in ways.items():
                start = time.perf_counter()
                for _ in range(loops):
                    way()
                if number:
                    seconds[name].append((time.perf_counter() - start) / loops)
    finally:
        gc.enable()
    return seconds


def summary(seconds: Mapping[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Median, quartiles and the ratio of medians to a base."""
    reference = statistics.median(seconds[base])
    result = {}
    for name, values in seconds.items():
        low, median, high = statistics.quantiles(values, n=4)
        result[name] = {
            "microseconds": round(median * 1e6, 2),
            "quartiles": [round(low * 1e6, 2), round(high * 1e6, 2)],
            "ratio": round(median / reference, 3),
            "rounds": len(values),
        }
    return result


def conditions() -> dict[str, Any]:
    """Hardware and versions of this run."""
    import torch

    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }


def record(benchmark: BenchmarkFixture, theme: str, name: str, result: Mapping[str, Any]) -> None:
    """Print the figures and give them to pytest-benchmark; PREPKIT_RESULTS=<suffix> keeps them in results/ too."""
    benchmark.extra_info.update(result)
    print(json.dumps({name: result}, indent=1), file=sys.stderr)
    if suffix := os.environ.get("PREPKIT_RESULTS"):
        path = RESULTS / f"{theme}_{suffix}.json"
        known = json.loads(path.read_text()) if path.exists() else {"results": {}}
        known["conditions"] = conditions()
        known["results"][name] = result
        path.write_text(json.dumps(known, indent=1) + "\n")
