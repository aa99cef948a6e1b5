"""Indices that a caller gives, as one number or an array of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from prepkit.errors import counted


def numbers_of(indices: Any, length: int) -> np.ndarray:
    """Return indices as int64 numbers from 0 to length - 1.

    indices: a number, several, or a slice; negative ones count from the end
    raises IndexError
    """
    if isinstance(indices, slice):
        return np.arange(length)[indices]
    numbers: np.ndarray = np.atleast_1d(np.asarray(indices))
    if numbers.ndim > 1:
        raise IndexError(f"indices are one number or a row of them, not an array of shape {numbers.shape}.")
    if numbers.dtype == bool:
        raise IndexError("give indices, not a mask; np.flatnonzero(mask) makes them.")
    if numbers.size and not np.issubdtype(numbers.dtype, np.integer):
        raise IndexError(f"indices are whole numbers, not {_kind(numbers)}; zoo.index(id) returns that of an id.")
    numbers = numbers.astype(np.int64, copy=False)
    if numbers.size and numbers.min() >= 0 and numbers.max() < length:
        return numbers
    positive = np.where(numbers < 0, numbers + length, numbers)
    is_wrong = (positive < 0) | (positive >= length)
    if is_wrong.any():
        raise IndexError(f"index {int(numbers[is_wrong.argmax()])} of {counted(length, 'instance')}.")
    return positive


def is_single(key: Any) -> bool:
    """Whether a key stands for one instance; a slice or a row of indices stands for several, even if for one only."""
    return not isinstance(key, slice) and np.ndim(key) == 0


def number_of(index: Any, length: int) -> int:
    """Return one index as a number from 0 to length - 1; negative ones count from the end.

    raises IndexError, also for several indices
    """
    if not is_single(index):
        kind = "a slice" if isinstance(index, slice) else f"a {type(index).__name__} of several"
        raise IndexError(f"one index or id was expected, not {kind}; zoo[...] and zoo.select(...) give views.")
    return int(numbers_of(index, length)[0])


def _kind(numbers: np.ndarray) -> str:
    return {"U": "text", "O": "objects"}.get(numbers.dtype.kind, str(numbers.dtype))
