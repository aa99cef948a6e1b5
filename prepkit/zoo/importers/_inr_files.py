"""Files of inr2vec: HDF5, a shape each, with the numbers of the SIREN that represents it and with what it represents.

    params      all numbers, in the order of the layers, weight before bias
    class_id    class of the shape; pcd, vertices, triangles, coords and so on are the shape itself

Files for the completion of shapes have params_incomplete and params_complete in place of params.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.errors import PrepkitError, ZooError, counted, listed

if TYPE_CHECKING:
    import h5py
    import numpy as np

PARAMS = "params"
PARTS = {"params_incomplete": "incomplete", "params_complete": "complete"}  # datasets, and what the zoo calls them
INPUTS, OUTPUTS = 3, 1
MOST_LAYERS = 16
MOST_PACKED = 1000  # a dataset is refused that is as many times as large as its file


@dataclass(frozen=True)
class ShapeFile:
    """What a file holds.

    said: values that a table can hold, by the name of their dataset
    left: names of all else but the parameters
    """

    said: Mapping[str, Any]
    left: tuple[str, ...]


@contextmanager
def opened(file: Path) -> Iterator[h5py.File]:
    """Open a file for reading; raises ZooError with its name if it is damaged, here or while it is read."""
    import h5py

    try:
        with h5py.File(file, "r", locking=False) as found:
            yield found
    except PrepkitError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:  # h5py has all of them for damaged files
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ZooError(f"'{file}': not a whole HDF5 file ({reason}); fetch it again.") from None


def parts_of(file: Path) -> tuple[str, ...]:
    """Return the datasets of parameters in a file.

    raises ZooError if there is none
    """
    with opened(file) as found:
        if PARAMS in found:
            return (PARAMS,)
        if all(name in found for name in PARTS):
            return tuple(PARTS)
        names = listed(found) or "nothing"
    raise ZooError(f"'{file}': has neither {PARAMS} nor both of {listed(PARTS)}; it has {names}.")


def read_shape(file: Path, dataset: str) -> tuple[np.ndarray, ShapeFile]:
    """Return a file's parameters `[P]` in the machine's byte order, and what it says beside them.

    raises ZooError if they are not there, or no row of floating-point numbers
    """
    with opened(file) as found:
        values = _plain(found, dataset)
        if values is None:
            raise ZooError(f"'{file}': has no {dataset}, unlike the first file; it has {listed(found)}.")
        if len(values.shape) != 1 or values.dtype.kind != "f" or not values.size:
            raise ZooError(f"'{file}': {dataset} is {values.dtype} {list(values.shape)}; expected a row of numbers.")
        if values.nbytes > MOST_PACKED * file.stat().st_size:
            raise ZooError(f"'{file}': {dataset} would take {counted(values.nbytes, 'byte')}, far more than the file.")
        said, left = {}, []
        for name in found:
            if name == PARAMS or name in PARTS:
                continue
            scalar = _scalar(found, name)
            if scalar is None:
                left.append(name)
            else:
                said[name] = scalar
        array = values[()]
        return array.astype(array.dtype.newbyteorder("="), copy=False), ShapeFile(said, tuple(left))


def read_points(file: Path, name: str, most: int) -> np.ndarray | None:
    """Return the first points `[N, 3]` of a shape as float32; None if the file has no such points."""
    with opened(file) as found:
        points = _plain(found, name)
        if (
            points is None
            or points.ndim != 2
            or points.shape[1] != INPUTS
            or points.dtype.kind != "f"
            or not len(points)
        ):
            return None
        values: np.ndarray = points[:most].astype("f4")
        return values


def _plain(found: h5py.File, name: str) -> h5py.Dataset | None:
    """Return a dataset whose values stand in this file; None if there is none."""
    import h5py

    if not isinstance(found.get(name, getlink=True), h5py.HardLink):
        return None
    dataset = found[name]
    is_plain = isinstance(dataset, h5py.Dataset) and not dataset.external and not dataset.is_virtual
    return dataset if is_plain and dataset.shape is not None else None


def _scalar(found: h5py.File, name: str) -> Any:
    """Return a single number or text as Python has it; None for all else."""
    dataset = _plain(found, name)
    if dataset is None or dataset.size != 1:
        return None
    value = dataset[()]
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    return value if isinstance(value, bool | int | float | str) else None


def sizes_of(parameters: int) -> list[tuple[int, ...]]:
    """Return the sizes of all SIRENs of three inputs, equal hidden layers and one output with so many parameters.

    With L layers from H to H numbers they have L H^2 + (L + 5) H + 1 parameters.
    """
    found = []
    for layers in range(1, MOST_LAYERS + 1):
        half = layers + INPUTS + 1 + OUTPUTS
        root = half**2 + 4 * layers * (parameters - OUTPUTS)
        width, rest = divmod(math.isqrt(root) - half, 2 * layers)
        if width > 0 and not rest and math.isqrt(root) ** 2 == root:
            found.append((INPUTS, *[width] * (layers + 1), OUTPUTS))
    return found


def count_of(sizes: tuple[int, ...]) -> int:
    """Return the number of parameters of a SIREN of these sizes."""
    return sum((inputs + 1) * outputs for inputs, outputs in pairwise(sizes))
