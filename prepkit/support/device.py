"""Devices by name, the precision of their arithmetic, their memory, and the hardware behind them."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from prepkit.errors import DeviceError, counted


def choose_device(name: str | None = None) -> torch.device:
    """Return the device of a name; None and "auto" mean a GPU if there is one, else the CPU.

    name: "auto", "cpu", "cuda", "cuda:1" or "mps"
    raises DeviceError if the name is unknown or there is no such device here
    """
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    has_mps = torch.backends.mps.is_available()
    if name in (None, "auto"):
        return torch.device("cuda" if num_gpus else "mps" if has_mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"unknown device '{name}'; use cpu, cuda, cuda:N or mps.")
    index = device.index or 0
    if index >= {"cpu": 1, "cuda": num_gpus, "mps": int(has_mps)}[device.type]:
        seen = counted(num_gpus, "CUDA device") if num_gpus else "an mps device" if has_mps else "no GPU"
        raise DeviceError(f"device '{name}' was asked for, but this torch sees {seen}; use another one, such as cpu.")
    return device


def own_device(name: str = "auto") -> torch.device:
    """Return the device of a name for this process; each of torchrun's processes gets a GPU of its own.

    raises DeviceError
    """
    device = choose_device(name)
    if device.type != "cuda" or ":" in str(device):
        return device
    rank, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if rank >= count:
        raise DeviceError(
            f"process {rank} of this machine has no GPU of its own, torch sees {count}; use --nproc-per-node {count}."
        )
    return torch.device("cuda", rank)


def bf16_autocast(device: torch.device, wanted: bool) -> AbstractContextManager[object]:
    """Compute convolutions and matrix products in bfloat16 if wanted; weights and results stay in float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if wanted else nullcontext()


@contextmanager
def gpu_kernels(device: torch.device, deterministic: bool = False) -> Iterator[None]:
    """Choose a GPU's kernels until the block ends; on other devices, nothing changes.

    float32 matrix products and convolutions use TF32, as the paper's PyTorch did.
    deterministic: whether convolutions use kernels that give the same bits at every run
    """
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=deterministic, allow_tf32=True):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of torch or Python says that memory was refused."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


@cache
def constant(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers as a tensor on a device, the same one at every call, so that only the first waits for a copy.

    Callers must not change it. It is kept for good, as recorded graphs read it too, so ask for few different ones.
    """
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=dtype, device=device)


class HostCopy:
    """Integers of the device on their way to the host; `wait` waits for this copy alone."""

    def __init__(self, values: Tensor) -> None:
        self.event: torch.cuda.Event | None = None
        self.values = values
        if values.is_cuda:
            self.values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self.values.copy_(values, non_blocking=True)
            self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.event.record()

    def wait(self) -> tuple[int, ...]:
        """Wait until the values have arrived, and return them."""
        if self.event is not None:
            self.event.synchronize()
        return tuple(self.values.tolist())


def hardware(device: torch.device) -> str:
    """Describe the hardware behind a device: `Intel(R) Xeon(R), 2 cores`, or the GPU's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cores = os.cpu_count() or 1
    return f"{model}, {counted(cores, 'core')}"
