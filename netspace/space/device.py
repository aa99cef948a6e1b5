"""The device that NetSpace runs on, and the precision of its arithmetic."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch

from prepkit.device import choose_device
from prepkit.errors import DeviceError


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


def use_tf32(device: torch.device) -> None:
    """Let float32 matrix products and convolutions on a GPU use TF32, as the paper's PyTorch did."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
