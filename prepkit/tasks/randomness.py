"""Streams of random numbers that depend on their purpose and its numbers alone; no two purposes share a stream."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SEED_BITS = 63  # A torch seed holds so many bits without a sign on every device.


def generator(purpose: str, *numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that is seeded by the sha256 of `purpose:number,number`.

    purpose: what the stream is for, such as "order"
    numbers: all that the stream depends on, such as an instance's seed and the epoch
    device:  where it draws; a GPU draws other numbers from the same seed than a CPU
    """
    import torch

    return torch.Generator(device).manual_seed(stream_seed(purpose, *numbers))


def stream_seed(purpose: str, *numbers: int) -> int:
    """The seed of `generator(purpose, *numbers)`, `0 <= seed < 2**63`."""
    text = f"{purpose}:{','.join(str(int(number)) for number in numbers)}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> (64 - SEED_BITS)


def others_of_each(count: int, most: int, stream: torch.Generator) -> list[list[int]]:
    """Draw up to `most` other numbers below `count` for each of them; all are drawn equally often."""
    import torch

    order = torch.randperm(count, generator=stream).tolist()
    place = {number: at for at, number in enumerate(order)}
    steps = range(1, min(count - 1, most) + 1)
    return [[order[(place[number] + step) % count] for step in steps] for number in range(count)]
