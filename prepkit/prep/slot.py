"""Slot: where one tensor lies in a PRep, and which tensors of a network get a slot."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from prepkit.errors import LayoutMismatch, listed
from prepkit.support.text import is_unicode
from prepkit.tensors import BITS, as_tensor, dtype_name

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["parameter", "buffer"]

MAX_VALUES = 1 << 56  # of one tensor, so that sizes and bytes of whole PReps fit 64 bits
RUNNING_STATISTICS = ("running_mean", "running_var")
INTEGER_BUFFERS = ("num_batches_tracked", "position_ids", "relative_position_index")  # names that torch and timm give


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
    """Check one slot that was read from JSON and return it."""
    if not isinstance(item, dict):
        raise LayoutMismatch(f"{place}: expected an object.")
    name, shape, dtype, kind = (item.get(key) for key in ("name", "shape", "dtype", "kind"))
    if not isinstance(name, str) or not is_unicode(name):
        raise LayoutMismatch(f"{place}.name: expected Unicode text, found {name!r}.")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise LayoutMismatch(f"{place}.shape: expected whole numbers, found {shape!r}.")
    if math.prod(shape) > MAX_VALUES:
        raise LayoutMismatch(f"{place}.shape: a tensor of more than {MAX_VALUES:,} values is too large.")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise LayoutMismatch(f"{place}.dtype: expected one of {listed(BITS)}, found {dtype!r}.")
    if kind not in ("parameter", "buffer"):
        raise LayoutMismatch(f"{place}.kind: expected 'parameter' or 'buffer', found {kind!r}.")
    return Slot(name, tuple(shape), dtype, kind, start)


def classified(tensors: Mapping[str, Tensor], is_parameter: Callable[[str, Tensor], bool]) -> dict[str, Kind]:
    """Return the kind of each tensor that gets a slot. Integer buffers get none: they are stored beside the PRep.

    is_parameter: tells by its name and value whether a tensor is a parameter
    raises LayoutMismatch for an integer parameter, and as `check_dense` does
    """
    kinds: dict[str, Kind] = {}
    for name, tensor in tensors.items():
        check_dense(name, tensor)
        if tensor.is_floating_point():
            kinds[name] = "parameter" if is_parameter(name, tensor) else "buffer"
        elif is_parameter(name, tensor) and not is_integer_buffer(name, tensor):
            raise LayoutMismatch(
                f"'{name}' is an integer parameter ({dtype_name(tensor.dtype)}); a PRep holds {listed(BITS)}. "
                "Cast it or leave it out."
            )
    return kinds


def as_tensors(values: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Return named tensors; arrays of numpy among them become tensors.

    raises LayoutMismatch for values that are no tensors, or tensors without a shape
    """
    import torch

    if {torch.Tensor, torch.nn.Parameter}.issuperset(map(type, values.values())):  # this is fast, and nearly always so
        return values
    tensors = {name: as_tensor(value, str(name)) for name, value in values.items()}
    for name, tensor in tensors.items():
        _check_shaped(name, tensor)
    return values if all(tensors[name] is value for name, value in values.items()) else tensors  # it may know more


def check_dense(name: str, tensor: object) -> None:
    """Raise LayoutMismatch unless this is a dense tensor of real numbers whose shape is known."""
    import torch

    if not isinstance(tensor, torch.Tensor):
        as_tensor(tensor, name)
        raise LayoutMismatch(f"'{name}' is an array; make a tensor of it with torch.from_numpy.")
    _check_shaped(name, tensor)
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        what = "quantised" if tensor.is_quantized else "complex" if tensor.is_complex() else "sparse"
        raise LayoutMismatch(f"'{name}' is {what} ({dtype_name(tensor.dtype)}); a PRep holds dense {listed(BITS)}.")


def _check_shaped(name: str, tensor: Tensor) -> None:
    from torch.nn.parameter import is_lazy

    if is_lazy(tensor):
        raise LayoutMismatch(f"'{name}' is not initialised yet; run the network once on an input.")


def is_integer_buffer(name: str, tensor: Tensor) -> bool:
    """Whether an integer tensor is a buffer: a counter, a mask or a table of indices. A state dict hides its kind."""
    import torch

    return tensor.dtype == torch.bool or tensor.dim() == 0 or name.rpartition(".")[2] in INTEGER_BUFFERS


def is_running_statistic(name: str) -> bool:
    """Whether a tensor's name is that of a BatchNorm's mean or variance."""
    return name.rpartition(".")[2] in RUNNING_STATISTICS


def is_pair_of_names(value: object) -> bool:
    """Whether a value that was read from JSON is `[str, str]`."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(n, str) and is_unicode(n) for n in value)


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key that orders numbers in names by value: `layers.2.weight` before `layers.10.weight`."""
    parts = re.split(r"([0-9]+)", name)  # every second part is a number
    return tuple((0, int(part), part) if index % 2 else (1, 0, part) for index, part in enumerate(parts))
