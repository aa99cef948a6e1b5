"""Differences of two sets of named tensors: names, shapes, dtypes and values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prepkit.errors import PrepkitError
from prepkit.inspecting._pieces import pieces, plain
from prepkit.tensors import dtype_name


@dataclass(frozen=True)
class TensorDifference:
    """How a tensor of A differs from the one of the same name in B.

    shapes, dtypes: those in A and in B; None where only the other one has the name
    differing:      number of values that differ by more than the tolerance; NaN equals NaN and nothing else
    largest, mean:  of |a - b|, over the values that are finite in both; None if the shapes differ or there are none
    at:             where the largest difference lies, by index
    is_same:        whether shapes and dtypes are equal and no value differs
    """

    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    dtypes: tuple[str | None, str | None]
    is_same: bool
    differing: int | None = None
    largest: float | None = None
    mean: float | None = None
    at: tuple[int, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all of it for a JSON document."""
        return {
            "same": self.is_same,
            "shapes": [None if shape is None else list(shape) for shape in self.shapes],
            "dtypes": list(self.dtypes),
            "differing": self.differing,
            "largest": self.largest,
            "mean": self.mean,
            "at": None if self.at is None else list(self.at),
        }


def differences(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], *, atol: float = 0.0, rtol: float = 0.0
) -> dict[str, TensorDifference]:
    """Return how each tensor differs, by name: those of A in its order, then those that only B has.

    atol, rtol: a value differs if |a - b| > atol + rtol |b|; both are 0 or larger
    raises PrepkitError for another tolerance

    >>> differences({"w": torch.zeros(2)}, {"w": torch.tensor([0.0, 0.5])})["w"].largest
    0.5
    """
    for name, tolerance in (("atol", atol), ("rtol", rtol)):
        if not tolerance >= 0:
            raise PrepkitError(f"`{name}`: expected a number of at least 0; found {tolerance}.")
    names = [*a, *(name for name in b if name not in a)]
    return {name: _of_pair(a.get(name), b.get(name), atol, rtol) for name in names}


def prefixes(a: Iterable[str], b: Iterable[str]) -> tuple[str, str]:
    """Return what stands before all names of A, or of B, where only without it any name is in both, else "" and "".

    >>> prefixes(["model.0.weight", "model.0.bias"], ["0.weight", "0.bias"])
    ('model.', '')
    """
    names_of_a, names_of_b = set(a), set(b)
    if names_of_a & names_of_b:
        return "", ""
    for prefix in _common(names_of_a):
        if names_of_b & {name.removeprefix(prefix) for name in names_of_a}:
            return prefix, ""
    for prefix in _common(names_of_b):
        if names_of_a & {name.removeprefix(prefix) for name in names_of_b}:
            return "", prefix
    return "", ""


def _common(names: set[str]) -> list[str]:
    """Return the dotted texts that all names begin with, the shortest first: `["model.", "model.net."]`."""
    one = min(names, default="")
    starts = [one[: place + 1] for place, letter in enumerate(one) if letter == "."]
    return [start for start in starts if all(name.startswith(start) for name in names)]


def _of_pair(a: Tensor | None, b: Tensor | None, atol: float, rtol: float) -> TensorDifference:
    pair = (a, b)
    shapes: Any = tuple(None if tensor is None else tuple(tensor.shape) for tensor in pair)
    dtypes: Any = tuple(None if tensor is None else dtype_name(tensor.dtype) for tensor in pair)
    if a is None or b is None or a.shape != b.shape:
        return TensorDifference(shapes, dtypes, is_same=False)
    if a.is_complex() != b.is_complex():
        return TensorDifference(shapes, dtypes, is_same=False)
    differing, largest, place, total, number, start = 0, -1.0, 0, 0.0, 0, 0
    for piece_of_a, piece_of_b in pieces(plain(a), plain(b)):
        x, y = piece_of_a.to(torch.float64), piece_of_b.to(torch.float64)
        distance = (x - y).abs_()
        finite_total = float(distance.sum())
        if math.isfinite(finite_total):
            number += len(x)
        else:
            both = x.isfinite() & y.isfinite()
            finite_total = float(distance[both].sum())
            number += int(both.sum())
            agrees = (x == y) | (x.isnan() & y.isnan())
            differing += int((~agrees & ~both).sum())
            distance = distance.where(both, -1.0)  # less than any tolerance and any difference
        total += finite_total
        # 64-bit integers are compared as they are, since float64 does not tell all of them apart.
        if a.dtype == b.dtype == torch.int64 and not (atol or rtol):
            differing += int((piece_of_a != piece_of_b).sum())
        else:
            differing += int((distance > (rtol * y.abs() + atol if rtol else atol)).sum())
        highest = float(distance.max())
        if highest > largest:
            largest, place = highest, start + int(distance.argmax())
        start += len(x)
    return TensorDifference(
        shapes,
        dtypes,
        is_same=a.dtype == b.dtype and not differing,
        differing=differing,
        largest=largest if number else None,
        mean=total / number if number else None,
        at=_index(place // (1 + a.is_complex()), a.shape) if number else None,
    )


def _index(place: int, shape: torch.Size) -> tuple[int, ...]:
    """Return the index of the value at a place of a row-major tensor."""
    index = []
    for size in reversed(shape):
        place, rest = divmod(place, size)
        index.append(rest)
    return tuple(reversed(index))
