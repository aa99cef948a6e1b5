"""What networks answer on one set of inputs, and the training network whose answers are nearest.

Classifiers run on images of the task; networks of shapes on a grid of the cube; all others on random inputs.
Shapes: N networks, M training networks, B inputs, C outputs of an input, V values of a network.
"""

# ruff: noqa: N803, N806, N815 - names of tensors end in their axes

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from prepkit.auditing._nearest import same_run
from prepkit.auditing._stacks import Stack
from prepkit.errors import PrepkitError, counted
from prepkit.families.registry import Architecture
from prepkit.running.instances import runner, stacking_pays
from prepkit.tasks.distance_grid import grid_points
from prepkit.tasks.task import EVALUATION_BATCH

INPUTS = 1000  # images, at most
RANDOM_INPUTS = 128
RESOLUTION = 16  # grid points along an axis of the cube
MOST_VALUES = 1 << 26  # outputs of all training networks that are held: 256 MiB
LEAST_INPUTS = 100
NETWORKS_AT_ONCE = 64

Kind = Literal["classes", "shapes", "values"]


@dataclass(frozen=True, eq=False)
class Probe:
    """The inputs on which networks are compared.

    kind:    "classes": the largest output is the answer; "shapes": outputs are distances, negative inside; "values"
    inputs:  by the shape of one input, `[B, *shape]`
    labels:  the true classes `[B]`, or None
    words:   what the inputs are, such as `360 test images`
    """

    kind: Kind
    inputs: Mapping[tuple[int, ...], Tensor]
    labels: Tensor | None
    words: str

    def of(self, architecture: Architecture) -> Tensor | None:
        """Return the inputs of an architecture; None if there are none of its shape."""
        return self.inputs.get(tuple(architecture.input_shape))

    def first(self, count: int) -> Probe:
        """Return the same with fewer inputs."""
        most = max(len(inputs) for inputs in self.inputs.values())
        if count >= most:
            return self
        inputs = {shape: own[:count] for shape, own in self.inputs.items()}
        words = f"the first {count:,} of {self.words}"
        return replace(self, inputs=inputs, labels=None if self.labels is None else self.labels[:count], words=words)


def probe_of_task(task: Any, split: str = "test") -> Probe:
    """Return the inputs of a task of images, at most 1,000 of them, or points in the cube of a task of shapes."""
    if task.record["kind"] == "images":
        images, labels = (each.cpu() for each in task.normalised(split))
        probe = Probe("classes", {tuple(images.shape[1:]): images}, labels, counted(len(images), f"{split} image"))
        return probe.first(INPUTS)
    points = grid_points(RESOLUTION)
    return Probe("shapes", {(3,): points}, None, f"{len(points):,} points of the cube")


def random_probe(stacks: Sequence[Stack]) -> Probe:
    """Return random inputs for the architectures of some stacks, as they are known."""
    known = [stack.source.architecture for stack in stacks if stack.source.architecture is not None]
    inputs = {tuple(each.input_shape): each.example_input(RANDOM_INPUTS) for each in known}
    return Probe("values", inputs, None, f"{RANDOM_INPUTS} random inputs")


def fewer(probe: Probe, stacks: Sequence[Stack]) -> Probe:
    """Return a probe with so few images that memory holds the outputs of all training networks, at least 100."""
    if probe.kind != "classes":
        return probe
    of_one = max(_outputs_of_one(stack, probe) for stack in stacks)
    return probe.first(max(LEAST_INPUTS, MOST_VALUES // max(1, of_one * sum(map(len, stacks)))))


def _outputs_of_one(stack: Stack, probe: Probe) -> int:
    found = answers_of(stack.select([0]), probe.first(1))
    return found.size if isinstance(found, Answers) else 1


@dataclass(frozen=True, eq=False)
class Answers:
    """What networks answered.

    outputs_NBC: outputs in float32; those of classes less their mean over the classes, which decides nothing
    runs:        see Stack
    """

    stack: Stack
    outputs_NBC: Tensor
    probe: Probe

    def __len__(self) -> int:
        return len(self.outputs_NBC)

    @property
    def size(self) -> int:
        """The number of outputs of a network on all inputs; only networks of equal sizes are compared."""
        return self.outputs_NBC[0].numel()

    @property
    def classes(self) -> Tensor:
        """The class that each network names for each input, `[N, B]`."""
        return self.outputs_NBC.argmax(2)

    @property
    def marked(self) -> Tensor | None:
        """Whether a network is wrong about an image, or a point is inside its shape, `[N, B]`; None for other kinds."""
        if self.probe.labels is not None:
            return self.classes != self.probe.labels
        return self.outputs_NBC[..., 0] < 0 if self.probe.kind == "shapes" else None

    @property
    def accuracies(self) -> Tensor | None:
        """The share of images that each network is right about, `[N]` in float64; None without labels."""
        return None if self.probe.labels is None else (self.classes == self.probe.labels).double().mean(1)


def answers_of(stack: Stack, probe: Probe, advance: Callable[[int], None] = lambda count: None) -> Answers | str:
    """Run networks, and return what they answered, or why they cannot be run.

    advance: is called with a number of networks each time that many were run
    """
    architecture = stack.source.architecture
    if architecture is None:
        return "the zoo knows only their layout"
    inputs = probe.of(architecture)
    if inputs is None:
        return f"their inputs have another shape than {probe.words}"
    layout, outputs = stack.source.layout, []
    try:
        pays = stacking_pays(architecture, len(inputs), torch.device("cpu"), stack.source.folded)
        run = runner(architecture, stack.source.folded, pays, torch.device("cpu"))
        with torch.no_grad():
            for values_NV in torch.split(stack.values_NV, NETWORKS_AT_ONCE):
                tensors = dict(layout.unpack(values_NV[:, None]))
                tensors |= {alias: tensors[name] for alias, name in layout.ties}
                parts = [run(tensors, part.float()) for part in torch.split(inputs, EVALUATION_BATCH)]
                outputs.append(torch.cat(parts, dim=1).float().unsqueeze(-1).flatten(2))
                advance(len(values_NV))
    except (PrepkitError, RuntimeError, ValueError, TypeError) as error:
        return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
    found_NBC = torch.cat(outputs)
    if probe.kind == "classes":
        found_NBC = found_NBC - found_NBC.mean(2, keepdim=True)
    return Answers(stack, found_NBC, probe)


class KnownAnswers:
    """What the training networks answered whose outputs have one size, of all architectures together."""

    def __init__(self, answers: Sequence[Answers]) -> None:
        stacks = [one.stack for one in answers]
        self.ids = tuple(id_ for stack in stacks for id_ in stack.ids)
        self._runs = tuple(run for stack in stacks for run in stack.runs)
        self._flat_MV = torch.cat([one.outputs_NBC.flatten(1) for one in answers]).double()
        spread = torch.cat([one.outputs_NBC - one.outputs_NBC.mean(1, keepdim=True) for one in answers])
        self._size_M = spread.flatten(1).double().norm(dim=1)
        self._classes_MB = torch.cat([one.classes for one in answers])
        marked = [each for each in (one.marked for one in answers) if each is not None]
        self._marked_MB = torch.cat(marked) if marked else None

    def nearest(self, answers: Answers, *, other_runs: bool = False) -> dict[str, tuple[Tensor, Tensor]]:
        """Return by measure the nearest value `[N]` and the training network `[N]` that has it.

        difference: least distance of all outputs, as a share of the spread of the training network's over the inputs
        agreement:  largest share of inputs with the same class; of classes only
        overlap:    largest intersection over union of the wrong images, or of the insides of shapes
        other_runs: see Known.nearest
        """
        left_out_NM = same_run(answers.stack.runs, self._runs) if other_runs else None
        flat_NV = answers.outputs_NBC.flatten(1).double()
        apart_NM = torch.cdist(flat_NV, self._flat_MV) / self._size_M.clamp(min=1e-300)
        difference_N, row_N = _extreme(apart_NM.nan_to_num(nan=float("inf")), left_out_NM, least=True)
        there_N = row_N >= 0
        own_NV, known_NV = flat_NV[there_N], self._flat_MV[row_N[there_N]]  # cdist is not exact for equal outputs
        exact = (own_NV - known_NV).norm(dim=1)
        difference_N[there_N] = torch.where(exact == 0, 0.0, exact / self._size_M[row_N[there_N]])
        found = {"difference": (difference_N, row_N)}
        if answers.probe.kind == "classes":
            rows = [(own_B == self._classes_MB).double().mean(1) for own_B in answers.classes]
            found["agreement"] = _extreme(torch.stack(rows), left_out_NM, least=False)
        marked = answers.marked
        if marked is not None and self._marked_MB is not None:
            found["overlap"] = _extreme(overlaps(marked, self._marked_MB), left_out_NM, least=False)
        return found


def overlaps(marked_NB: Tensor, known_MB: Tensor) -> Tensor:
    """Return the intersection over union of each two sets, `[N, M]` in float64; that of two empty sets is 1."""
    own_NB, other_MB = marked_NB.double(), known_MB.double()
    both_NM = own_NB @ other_MB.T
    either_NM = own_NB.sum(1)[:, None] + other_MB.sum(1) - both_NM
    return torch.where(either_NM == 0, 1.0, both_NM / either_NM.clamp(min=1))


def _extreme(values_NM: Tensor, left_out_NM: Tensor | None, *, least: bool) -> tuple[Tensor, Tensor]:
    """Return the least or largest value of each row and its column; NaN and -1 where all are left out."""
    worst = float("inf") if least else float("-inf")
    own_NM = values_NM.clone()
    if left_out_NM is not None:
        own_NM[left_out_NM] = worst
    value_N, row_N = own_NM.min(1) if least else own_NM.max(1)
    none_N = value_N == worst
    return torch.where(none_N, float("nan"), value_N), torch.where(none_N, -1, row_N)
