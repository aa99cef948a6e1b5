"""Slot: where one tensor lies in a PRep."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from prepkit.errors import LayoutMismatch, listed
from prepkit.tensors import BITS

Kind = Literal["parameter", "buffer"]


@dataclass(frozen=True)
class Slot:
    """Where one tensor lies in a PRep.

    name:  the tensor's name in the state dict
    shape: its shape, `()` for a scalar
    dtype: its own dtype: float32, float64, float16 or bfloat16
    kind:  "parameter", or "buffer" for running statistics of a BatchNorm that was kept
    start: index of its first value in the row-major PRep
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: Kind
    start: int

    @cached_property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def stop(self) -> int:
        """Index after its last value."""
        return self.start + self.size


def slot_from_dict(item: object, start: int, place: str) -> Slot:
    """One slot out of JSON, checked."""
    if not isinstance(item, dict):
        raise LayoutMismatch(f"{place}: expected an object.")
    name, shape, dtype, kind = (item.get(key) for key in ("name", "shape", "dtype", "kind"))
    if not isinstance(name, str):
        raise LayoutMismatch(f"{place}.name: expected text, found {name!r}.")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise LayoutMismatch(f"{place}.shape: expected whole numbers, found {shape!r}.")
    if dtype not in BITS:
        raise LayoutMismatch(f"{place}.dtype: expected one of {listed(BITS)}, found {dtype!r}.")
    if kind not in ("parameter", "buffer"):
        raise LayoutMismatch(f"{place}.kind: expected 'parameter' or 'buffer', found {kind!r}.")
    return Slot(name, tuple(shape), dtype, kind, start)
