"""Random numbers that depend on nothing but what they are for: a stream of its own for each purpose and its numbers."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SEED_BITS = 63  # what a torch seed holds on every device without a sign


def generator(purpose: str, *numbers: int) -> torch.Generator:
    """A generator on the CPU, seeded by the sha256 of `purpose:number,number`.

    purpose: what the numbers are for, such as "order": two purposes never share a stream
    numbers: whatever the stream may depend on, such as an instance's seed and the epoch
    """
    import torch

    return torch.Generator().manual_seed(stream_seed(purpose, *numbers))


def stream_seed(purpose: str, *numbers: int) -> int:
    """The seed of `generator(purpose, *numbers)`, `0 <= seed < 2**63`."""
    text = f"{purpose}:{','.join(str(int(number)) for number in numbers)}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> (64 - SEED_BITS)
