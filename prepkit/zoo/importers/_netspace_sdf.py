"""Signed distance functions of NetSpace's reference code: a file holds a network, and the points that it was fitted to.

    {"mlp": {"mlp.0.weight": ..., "mlp.0.bias": ..., "mlp.2.weight": ...}, "sdf": [2M, 4]}

Each row of `sdf` is a point (x, y, z) and its signed distance.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from prepkit.checkpoint.formats import read_content
from prepkit.errors import ZooError, listed
from prepkit.families.architecture import Architecture
from prepkit.families.registry import built_in
from prepkit.families.table import FAMILIES
from prepkit.prep.slot import natural_key

if TYPE_CHECKING:
    from torch import Tensor

KEY, POINTS = "mlp", "sdf"
OMEGA = 30.0
MOST_POINTS = 10_000  # of a file, spread evenly, on which its network is run
HOW_TO_RUN = {
    "activation": "sine",
    "order": "linear, then sin(w0 * x); after the last layer no sine",
    "w0": OMEGA,
}


def sine_mlp(tensors: Mapping[str, Tensor], place: str) -> tuple[Architecture, dict[str, Tensor]]:
    """Return the network of these tensors, and the tensors under its names.

    raises ZooError for tensors that are no chain of linear layers from three coordinates to one distance
    """
    names = sorted({name.rpartition(".")[0] for name in tensors}, key=natural_key)
    if set(tensors) != {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}:
        raise ZooError(f"{place}: its tensors are not weight and bias of layers mlp.0, mlp.2, ...: {listed(tensors)}.")
    sizes = [3]
    for name in names:
        weight, bias = (tuple(tensors[f"{name}.{kind}"].shape) for kind in ("weight", "bias"))
        if len(weight) != 2 or weight[1] != sizes[-1] or bias != weight[:1]:
            raise ZooError(
                f"{place}: {name} has weight {list(weight)} and bias {list(bias)}, where {sizes[-1]} numbers come in."
            )
        sizes.append(weight[0])
    if sizes[-1] != 1 or len(names) < 2:
        raise ZooError(f"{place}: layers of sizes {sizes} are no signed distance function, which ends in one number.")
    own = [f"hidden.{number}" for number in range(len(names) - 1)] + ["linear"]
    renamed = {
        f"{new}.{kind}": tensors[f"{old}.{kind}"]
        for old, new in zip(names, own, strict=True)
        for kind in ("weight", "bias")
    }
    return _architecture(sizes), renamed


def _architecture(sizes: list[int]) -> Architecture:
    arguments = {"sizes": sizes, "omega": OMEGA}
    for known in built_in().values():
        if known.family == "sine_mlp" and known.arguments == arguments:
            return known
    name = f"sine_mlp_{'x'.join(map(str, sizes))}@sdf"
    return Architecture(name, "sine_mlp", (3,), FAMILIES["sine_mlp"].builder, arguments, {})


def errors_at_points(
    file: Path, architecture: Architecture, tensors: Mapping[str, Tensor]
) -> tuple[float, float] | None:
    """Run a network on the points in its file.

    returns the mean absolute error, and that of the constant that fits the distances best; None if there are no points
    raises CheckpointError
    """
    import torch

    value = read_content(file).value
    points = value.get(POINTS) if isinstance(value, Mapping) else None
    if not isinstance(points, torch.Tensor) or points.ndim != 2 or points.shape[1] != 4 or not len(points):
        return None
    points = points[:: max(1, len(points) // MOST_POINTS)].float()
    points = points[points.isfinite().all(dim=1)]
    if not len(points):
        return None
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        network = architecture.build()
        found = torch.func.functional_call(network, dict(tensors), points[:, :3])[:, 0]
    distances = points[:, 3]
    return float((found - distances).abs().mean()), float((distances - distances.median()).abs().mean())
