"""Indices that a caller gives, as an array of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np


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
        raise IndexError(f"indices are whole numbers, not {numbers.dtype}.")
    numbers = numbers.astype(np.int64, copy=False)
    if numbers.size and numbers.min() >= 0 and numbers.max() < length:
        return numbers
    positive = np.where(numbers < 0, numbers + length, numbers)
    is_wrong = (positive < 0) | (positive >= length)
    if is_wrong.any():
        raise IndexError(f"index {int(numbers[is_wrong.argmax()])} of {length:,} instances.")
    return positive
