"""The device that is meant by a name."""

from __future__ import annotations

import torch

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
