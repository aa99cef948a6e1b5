"""Ask the system how much memory is free, and torch.distributed which process this is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from prepkit.errors import ZooError

if TYPE_CHECKING:
    import torch


def available_bytes() -> int:
    """Return the bytes of memory that can be used without swapping; 0 where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), 0)


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes of free memory of a device; None where it does not tell."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return (available_bytes() or None) if device.type == "cpu" else None


def process_rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return rank and world size: those given, else those of torch.distributed if it is running, else (0, 1).

    raises ZooError if only one of them is given
    """
    if rank is not None and world_size is not None:
        return rank, world_size
    if rank is not None or world_size is not None:
        raise ZooError("give both rank and world_size, or neither.")
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
