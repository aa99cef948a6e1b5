"""Running networks: whose outputs are the same for all inputs or not finite, and which hidden units are never active.

Inputs are those of the zoo's task, where its images are on this machine; else random ones, of which only outputs tell.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from prepkit.auditing._values import FEATURES, Measured, OneLayout, key_of, projected
from prepkit.errors import PrepkitError, counted
from prepkit.running.instances import forward_flops
from prepkit.support.progress import Advance
from prepkit.tasks import test_set
from prepkit.views.source import Source
from prepkit.zoo.read.in_shard_order import batches

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prepkit.families.registry import Architecture
    from prepkit.zoo.read.zoo import Zoo

INPUTS = 128
MAX_NETWORKS = 10_000  # that are run
MAX_ARCHITECTURES = 100
MAX_FLOPS = 1e12  # of all runs together, about half a minute on two cores
SAME = 1e-6  # difference of outputs, as a share of the largest, that rounding alone makes
RELUS = frozenset(
    (nn.functional.relu, nn.functional.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, nn.functional.relu6)
)


@dataclass
class Outputs:
    """What running networks found.

    constant:   rows whose outputs are the same for all inputs
    not_finite: rows whose outputs hold NaN or infinity, though their weights do not
    dead:       by row, how many hidden units are 0 for all inputs, and how many there are
    sketches:   by the key of a layout, the networks whose outputs say which function they are
    checked:    sentences on what was run
    left:       sentences on what was not
    """

    constant: list[int] = field(default_factory=list)
    not_finite: list[int] = field(default_factory=list)
    dead: dict[int, tuple[int, int]] = field(default_factory=dict)
    sketches: dict[bytes, list[Sketch]] = field(default_factory=dict)
    checked: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Sketch:
    """What a network's outputs are like, less their mean over the inputs, on the inputs of the audit.

    row:      of the table
    features: random projections, whose distance is about that of the outputs
    norm:     of the outputs
    """

    row: int
    features: NDArray[np.float64]
    norm: float


def run(zoo: Zoo, measured: Measured, progress: Advance, like: Zoo | None = None) -> Outputs:
    """Run the networks whose weights are finite and not all one value; of many, some that are spread evenly.

    progress: is called with numbers of networks, the sum of which is that of all networks of the zoo
    like:     another zoo, on whose images they run; the zoo's own if missing
    """
    images, why_none = _images(zoo if like is None else like)
    runs = _Runs(zoo, images, progress)
    if why_none:
        runs.found.left.append(f"Hidden units that are never active were not searched: {why_none}.")
    layouts, alike = list(measured.layouts.values()), set(measured.one_value)
    most = MAX_NETWORKS // max(1, min(len(layouts), MAX_ARCHITECTURES))
    for own in _spread(layouts, MAX_ARCHITECTURES):
        if rows := [row for row in own.rows.tolist() if row not in alike]:
            runs.add(own, rows, most)
    if len(layouts) > MAX_ARCHITECTURES:
        runs.found.left.append(f"Only networks of {MAX_ARCHITECTURES} of {len(layouts):,} architectures were run.")
    progress(len(zoo) - runs.done)
    return runs.found


def _images(zoo: Zoo) -> tuple[Tensor | None, str]:
    """Return test images of the zoo's task, or why there are none."""
    if zoo.manifest.task is None:
        return None, "the zoo names no task whose data they could see"
    try:
        return test_set(zoo.manifest.task)[0][:INPUTS], ""
    except PrepkitError as error:
        return None, str(error).splitlines()[0].rstrip(".")


class _Runs:
    """Runs networks of a zoo, one architecture after another."""

    def __init__(self, zoo: Zoo, images: Tensor | None, progress: Advance) -> None:
        self.found, self.done = Outputs(), 0
        self._zoo, self._images, self._progress = zoo, images, progress

    def add(self, own: OneLayout, rows: list[int], most: int) -> None:
        """Run at most so many of the networks in these rows, which are of one layout."""
        name, networks = own.architecture, counted(len(rows), "network")
        try:
            source = self._zoo.select(rows[:1]).view_source()
            if source.architecture is None:
                self.found.left.append(f"{name}: {networks} could not be run, as the zoo knows only the layout.")
                return
            inputs, is_task = self._inputs(source.architecture)
            flops = max(1, forward_flops(source.architecture, len(inputs)))
            chosen = _spread(rows, min(most, max(1, int(MAX_FLOPS // flops))))
            units = self._run(source, chosen, inputs, is_task, self.found.sketches.setdefault(key_of(own.layout), []))
        except (PrepkitError, RuntimeError, ValueError, TypeError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            self.found.left.append(f"{name}: {networks} could not be run: {reason}.")
            return
        what = "test images of the task" if is_task else "random inputs"
        some = networks if len(chosen) == len(rows) else f"{len(chosen):,} of {networks}"
        self.found.checked.append(f"{name}: {some} ran on {len(inputs)} {what}.")
        if not units:
            self.found.checked.append(f"{name} calls no ReLU, so that no unit can be 0 for all inputs.")
        if len(chosen) < len(rows):
            self.found.left.append(f"{name}: {len(rows) - len(chosen):,} of {networks} were not run.")

    def _inputs(self, architecture: Architecture) -> tuple[Tensor, bool]:
        """Return what an architecture's networks run on, and whether it is the data of the task."""
        if self._images is not None and tuple(self._images.shape[1:]) == tuple(architecture.input_shape):
            return self._images, True
        return architecture.example_input(INPUTS), False

    def _run(self, source: Source, rows: list[int], inputs: Tensor, is_task: bool, sketches: list[Sketch]) -> int:
        """Run these networks, and return how many units stand behind ReLUs."""
        units = 0
        network, kept = source.running_network(), inputs.clone()
        with torch.inference_mode():
            for numbers, _, layout, values in batches(self._zoo.select(rows)):
                tensors = layout.unpack(values.float().unsqueeze(1))
                for position, number in enumerate(numbers.tolist()):
                    own = {name: tensor[position] for name, tensor in tensors.items()}
                    with _Activity() as activity:
                        result = functional_call(network, own, (inputs,))
                    inputs.copy_(kept)  # a network may write into its input
                    sketches += _judge(rows[number], result, activity if is_task else None, self.found)
                    units = activity.units
                    self.done += 1
                    self._progress(1)
        return units


def _judge(row: int, result: Any, activity: _Activity | None, found: Outputs) -> list[Sketch]:
    """Note what is wrong with a network's outputs; returns their sketch if they tell functions apart."""
    outputs = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not all(bool(leaf.isfinite().all()) for leaf in outputs):
        found.not_finite.append(row)
    elif outputs and all(_is_constant(leaf) for leaf in outputs):
        found.constant.append(row)
    else:
        if activity is not None and activity.dead:
            found.dead[row] = (activity.dead, activity.units)
        return [_sketch(row, outputs)] if outputs else []
    return []


def _sketch(row: int, outputs: list[Tensor]) -> Sketch:
    flat = torch.cat([(leaf - leaf.mean(0)).flatten() for leaf in outputs]).double().numpy()
    signs = np.random.default_rng(0).integers(0, 2, len(flat)) * 2.0 - 1
    starts = np.unique(np.linspace(0, len(flat), FEATURES + 1)[:-1].astype(np.int64))
    features = projected((flat * signs)[None], starts)[0] * np.sqrt(len(flat) / max(1, len(starts)))
    return Sketch(row, features, float(np.sqrt(flat @ flat)))


def _is_constant(outputs: Tensor) -> bool:
    largest = float((outputs - outputs[:1]).abs().max())
    return largest <= SAME * float(outputs.abs().max())


class _Activity(TorchFunctionMode):
    """Counts the units behind each ReLU that a network calls, and those that are 0 for all inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.units = self.dead = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in RELUS and result.dim() > 1:
            axis = result.dim() - 1 if result.dim() == 3 else 1  # tokens have their features last
            active = (result > 0).movedim(axis, 0).flatten(1).any(1)
            self.units += len(active)
            self.dead += int((~active).sum())
        return result


def _spread(items: list[Any], count: int) -> list[Any]:
    """Return some items that are spread evenly over all."""
    if count >= len(items):
        return items
    return [items[number] for number in np.linspace(0, len(items) - 1, count).astype(int).tolist()]
