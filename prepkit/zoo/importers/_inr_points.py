"""A check of SIRENs of shapes by the points that their files hold, where they should say a distance of 0."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from prepkit.errors import ZooError
from prepkit.zoo.importers._inr_files import PARAMS, read_points, read_shape

if TYPE_CHECKING:
    from prepkit.families.architecture import Architecture
    from prepkit.zoo.importers._tensor_shapes import TensorShapes

POINTS = {PARAMS: "pcd", "params_incomplete": "incomplete", "params_complete": "complete"}  # by dataset of parameters
MOST_POINTS = 256
FARTHEST = 0.1  # distance at which a sigmoid of 0 stands; farther points count as that
FAR = 0.03  # a network that was never trained says 0.05


def mean_distances(models: Iterable[tuple[Path, str]], architecture: Architecture, shapes: TensorShapes) -> list[float]:
    """Return for each model, a file and its dataset of parameters, the mean distance that it says of its points.

    Models without points, and files that cannot be read, which is for the import to tell, are left out.
    """
    import torch

    with torch.random.fork_rng(devices=[]):  # its fresh weights are not used
        network = architecture.build().eval()
    distances = []
    for file, dataset in models:
        with suppress(ZooError):
            points = read_points(file, POINTS[dataset], MOST_POINTS)
            values, _ = read_shape(file, dataset)
            if points is None or len(values) != shapes.size:
                continue
            tensors = {name: tensor.float() for name, tensor in shapes.tensors(values).items()}
            with torch.no_grad():
                logits = torch.func.functional_call(network, tensors, torch.from_numpy(points))
            distance = FARTHEST * (1 - logits.sigmoid()).mean().item()
            distances += [distance] if distance == distance else []  # NaN if the model holds NaN
    return distances
