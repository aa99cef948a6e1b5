"""layout.csv of the Small CNN Zoo: where each variable stands in a row of weights.npy, and how it becomes a tensor.

    varname                      start_idx  end_idx  shape
    sequential/conv2d/bias:0             0       16  (16,)
    sequential/conv2d/kernel:0          16      160  (3, 3, 1, 16)

Variables are those of TensorFlow: a row has each in C order, kernels of convolutions as `[height, width, in, out]` and
those of dense layers as `[in, out]`. PyTorch's have the axes `[out, in, height, width]` and `[out, in]`.
"""

from __future__ import annotations

import ast
import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.errors import ZooError, listed

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

COLUMNS = ("varname", "start_idx", "end_idx", "shape")
KERNEL, BIAS = "kernel", "bias"
AXES = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}  # by the number of axes in TensorFlow


@dataclass(frozen=True)
class Variable:
    """A variable of TensorFlow in a row of the matrix.

    name:  name of the tensor that it becomes
    shape: shape in TensorFlow
    """

    name: str
    start: int
    end: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class FlatLayout:
    """All variables of a row, and the arguments of the network that they belong to.

    arguments: those of SmallCNN but its activation
    """

    variables: tuple[Variable, ...]
    arguments: Mapping[str, Any]

    @property
    def size(self) -> int:
        """Number of values in a row."""
        return self.variables[-1].end

    def tensors(self, values: np.ndarray) -> dict[str, Tensor]:
        """Return a row's values `[size]` as PyTorch's tensors, by name, in memory of their own."""
        import torch

        return {
            variable.name: torch.from_numpy(values[variable.start : variable.end].reshape(variable.shape))
            .permute(AXES[len(variable.shape)])
            .contiguous()
            for variable in self.variables
        }


def read_layout(file: Path) -> FlatLayout:
    """Read layout.csv.

    raises ZooError naming the line that is wrong, or if the variables are not those of convolutions and a dense layer
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            rows = list(csv.DictReader(opened))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ZooError(f"{file}: cannot be read ({error}).") from None
    missing = [name for name in COLUMNS if not rows or name not in rows[0]]
    if missing:
        raise ZooError(f"{file}: no column {listed(missing)}; a layout has the columns {listed(COLUMNS)}.")
    variables: list[Variable] = []
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    for line, row in enumerate(rows, 2):
        start = variables[-1].end if variables else 0
        layer, variable = _variable(row, start, f"{file}, line {line}")
        kind = variable.name
        if kind in layers.setdefault(layer, {}):
            raise ZooError(f"{file}, line {line}: the layer '{layer}' has a second {kind}.")
        layers[layer][kind] = variable.shape
        variables.append(Variable(f"{layer}/{kind}", variable.start, variable.end, variable.shape))
    arguments = _arguments(layers, str(file))
    modules = [*(f"convs.{place}" for place in range(len(layers) - 1)), "linear"]
    names = dict(zip(layers, modules, strict=True))
    kinds = {KERNEL: "weight", BIAS: "bias"}
    return FlatLayout(
        tuple(
            Variable(f"{names[layer]}.{kinds[kind]}", each.start, each.end, each.shape)
            for each in variables
            for layer, _, kind in [each.name.rpartition("/")]
        ),
        arguments,
    )


def _variable(row: Mapping[str, Any], expected: int, place: str) -> tuple[str, Variable]:
    """Return the layer's name, and the variable with its kind as its name."""
    layer, _, kind = str(row["varname"]).partition(":")[0].rpartition("/")
    try:
        start, end = int(row["start_idx"]), int(row["end_idx"])
        shape = ast.literal_eval(str(row["shape"]))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ZooError(f"{place}: start_idx and end_idx are numbers, and shape is one such as (3, 3, 1, 16).") from None
    if not isinstance(shape, tuple) or not all(type(size) is int and size > 0 for size in shape):
        raise ZooError(f"{place}: {row['shape']!r} is no shape such as (3, 3, 1, 16).")
    if kind not in (KERNEL, BIAS) or len(shape) not in ((1,) if kind == BIAS else (2, 4)):
        raise ZooError(
            f"{place}: '{row['varname']}' of shape {shape} is neither the bias nor the kernel of a convolution or of a "
            "dense layer."
        )
    if start != expected or end - start != math.prod(shape):
        raise ZooError(
            f"{place}: '{row['varname']}' of shape {shape} is {math.prod(shape):,} values from {expected:,} on; the "
            f"line says {start:,} to {end:,}."
        )
    return layer, Variable(kind, start, end, shape)


def _arguments(layers: Mapping[str, Mapping[str, tuple[int, ...]]], place: str) -> dict[str, Any]:
    """Return the network's arguments.

    raises ZooError unless the layers are convolutions and then one dense layer, which follow each other
    """
    *convolutions, dense = layers.values()
    kernels = [layer.get(KERNEL, ()) for layer in convolutions]
    last = dense.get(KERNEL, ())
    fits = len(last) == 2 and bool(kernels) and all(len(kernel) == 4 for kernel in kernels)
    if fits:
        inputs = [*(kernel[2] for kernel in kernels), last[0]]
        outputs = [*(kernel[3] for kernel in kernels), last[1]]
        biases = [layer.get(BIAS) for layer in layers.values()]
        fits = inputs[1:] == outputs[:-1] and biases == [(size,) for size in outputs]
    if not fits:
        raise ZooError(
            f"{place}: these are not the variables of convolutions and then one dense layer, each with bias and "
            f"kernel, whose channels follow each other: {listed(layers, 12)}."
        )
    return {
        "channels": [kernels[0][2], *(kernel[3] for kernel in kernels)],
        "kernels": [list(kernel[:2]) for kernel in kernels],
        "outputs": last[1],
    }
