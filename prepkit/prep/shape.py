"""PRepShape: which heights and widths a PRep can have, and the least height that holds a number of values."""

from __future__ import annotations

import math
from dataclasses import dataclass

from prepkit.errors import InvalidShape

# NetSpace's decoder trades depth for space in three steps. W / 8 and H / 4 must be whole numbers at the last one.
WIDTH_MULTIPLE = 8
HEIGHT_MULTIPLE = 4


@dataclass(frozen=True)
class PRepShape:
    """Height and width of a PRep. The same row-major values can be read at any width.

    raises InvalidShape if the width is not a positive multiple of 8 or the height one of 4
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        check_multiple("width", self.width, WIDTH_MULTIPLE)
        check_multiple("height", self.height, HEIGHT_MULTIPLE)

    @classmethod
    def least(cls, num_values: int, width: int) -> PRepShape:
        """Return the shape of least height that holds `num_values`: ceil(P / W), rounded up to a multiple of 4."""
        check_multiple("width", width, WIDTH_MULTIPLE)
        rows = max(1, math.ceil(num_values / width))
        return cls(math.ceil(rows / HEIGHT_MULTIPLE) * HEIGHT_MULTIPLE, width)

    @property
    def cells(self) -> int:
        """Number of values that the PRep has room for."""
        return self.height * self.width

    def __str__(self) -> str:
        return f"{self.height} x {self.width}"


def check_multiple(name: str, value: int, multiple: int) -> None:
    """Raise InvalidShape unless `value` is a positive multiple of `multiple`, naming the nearest ones that are."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidShape(f"{name} must be a whole number, not {value!r}.")
    if value <= 0:
        raise InvalidShape(f"{name} {value} is not positive; use a multiple of {multiple}.")
    if value % multiple:
        below = value // multiple * multiple
        choices = f"{below} or {below + multiple}" if below else str(multiple)
        raise InvalidShape(f"{name} {value} is not a multiple of {multiple}; use {choices}.")
