"""What the check for a GPU measures with: a sheet of figures, steps a second, kernels, and waits for the device."""

import json
import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

Figures = dict[str, Any]
SETTINGS = ("single", "multi", "sdf")


class Sheet:
    """The figures of a part, written to its file after each case."""

    def __init__(self, path: Path, device: torch.device, tiny: bool, settings: Sequence[str] = SETTINGS) -> None:
        self.path, self.device, self.tiny, self.settings = path, device, tiny, settings
        self.figures: Figures = {}

    def case(self, name: str, measure: Callable[[], Figures]) -> None:
        """Measure a case; an error becomes its figure."""
        start = time.perf_counter()
        try:
            found = measure()
        except Exception as error:  # the next case shall run all the same
            found = {"error": f"{type(error).__name__}: {str(error)[:600]}", "at": traceback.format_exc()[-2500:]}
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        found["seconds of the case"] = round(time.perf_counter() - start, 1)
        self.figures[name] = found
        short = {key: value for key, value in found.items() if key not in ("at", "kernels", "waits")}
        print(f"{self.path.stem}, {name}: {json.dumps(short, default=str)}", flush=True)
        self.path.write_text(json.dumps(self.figures, indent=1, default=str))


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def wait(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(step: Callable[[], object], device: torch.device, steps: int = 20, rounds: int = 3, warm: int = 5) -> Figures:
    """Steps a second (median, least, most of the rounds), launches a step, and the peak of memory."""
    for _ in range(warm):
        step()
    wait(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rates = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(steps):
            step()
        wait(device)
        rates.append(steps / (time.perf_counter() - start))
    found: Figures = {
        "steps a second": round(statistics.median(rates), 2),
        "spread": [round(min(rates), 2), round(max(rates), 2)],
    }
    if device.type == "cuda":
        found["peak MiB"] = round(torch.cuda.max_memory_allocated() / 2**20)
        found |= profile(step)
    return found


def profile(step: Callable[[], object], rows: int = 14) -> Figures:
    """Launches a step, the time in which the device works, and the kernels that take the most of it."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as run:
        step()
        torch.cuda.synchronize()
    averages = run.key_averages()
    launches = sum(event.count for event in averages if "LaunchKernel" in event.key or "GraphLaunch" in event.key)
    copies = sum(event.count for event in averages if event.key == "cudaMemcpyAsync")
    kernels = [(event.self_device_time_total / 1e3, event.count, short_name(event.key)) for event in averages]
    kernels = sorted((row for row in kernels if row[0] > 0 and not row[2].startswith(("aten::", "cuda"))), reverse=True)
    return {
        "launches": launches,
        "copies": copies,
        "device ms": round(sum(row[0] for row in kernels), 3),
        "kernels": [f"{milliseconds:.3f} ms {count} x {name}" for milliseconds, count, name in kernels[:rows]],
    }


def short_name(kernel: str) -> str:
    """A kernel's name without what all kernels' names share."""
    for common in (
        "void ",
        "at::native::",
        "(anonymous namespace)::",
        "cudnn::engines_precompiled::",
        "gpu_kernel_impl_nocast",
    ):
        kernel = kernel.replace(common, "")
    return kernel[:170]


@contextmanager
def no_waits(device: torch.device) -> Iterator[None]:
    """Make every wait for the device an error."""
    if device.type != "cuda":
        yield
        return
    wait(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def counted_waits(device: torch.device) -> Iterator[Counter[str]]:
    """Count the places in our code that wait for the device; none elsewhere than on a GPU."""
    places: Counter[str] = Counter()
    if device.type != "cuda":
        yield places
        return

    def note(message: Any, category: Any, filename: str, lineno: int, *_: Any) -> None:
        if "synchroniz" not in str(message):
            return
        frames = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_stack()[:-1]
                  if "/prepkit/" in frame.filename or "/netspace/" in frame.filename]  # fmt: skip
        places[" < ".join(reversed(frames[-4:])) or f"{Path(filename).name}:{lineno}"] += 1

    wait(device)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note  # type: ignore[assignment]
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")
