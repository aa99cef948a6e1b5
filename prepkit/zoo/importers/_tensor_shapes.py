"""TensorShapes: names and shapes of the tensors whose values stand one after the other in a row of numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.errors import ZooError
from prepkit.support.reading import Place, checked, read_file, wrong

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

MOST_VALUES = 2**40
SHAPE = checked(
    "a shape such as [16, 3, 3, 3]",
    lambda value: isinstance(value, list) and all(type(size) is int and 0 < size <= MOST_VALUES for size in value),
    tuple,
)


@dataclass(frozen=True)
class TensorShapes:
    """Names and shapes of tensors, in the order in which their values follow each other."""

    shapes: Mapping[str, tuple[int, ...]]

    @property
    def size(self) -> int:
        """Number of values in a row."""
        return sum(map(math.prod, self.shapes.values()))

    def tensors(self, values: np.ndarray) -> dict[str, Tensor]:
        """Return a row's values `[size]`, which can be written to, as tensors by name that share their memory."""
        import torch

        tensors, start = {}, 0
        flat = torch.from_numpy(values)
        for name, shape in self.shapes.items():
            end = start + math.prod(shape)
            tensors[name] = flat[start:end].view(shape)
            start = end
        return tensors


def read_json(file: Path) -> tuple[Any, Place]:
    """Return what a JSON file of the user's holds, and its place for errors.

    raises ZooError if it cannot be read
    """
    place = Place(str(file))
    try:
        return json.loads(read_file(file, place)), place
    except (ValueError, RecursionError) as error:
        raise ZooError(f"{place}: is not JSON: {error}.") from None


def tensor_shapes(value: Any, place: Place) -> TensorShapes:
    """Read a JSON object of names and shapes, such as {"fc1.weight": [10, 784], "fc1.bias": [10]}.

    raises ZooError with the place of what is wrong
    """
    if not isinstance(value, dict) or not value:
        raise wrong(place, 'names and shapes in their order, {"fc1.weight": [10, 784], "fc1.bias": [10]}', value)
    return TensorShapes({name: SHAPE(shape, place[name]) for name, shape in value.items()})
