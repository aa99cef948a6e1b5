"""Networks of the Small Transformer Zoo: what tensors tell of them, what they do not, and what runs prove.

Tensors tell all sizes but the number of attention heads, and not whether residual sums are there. The makers' program
has no residual sums, and their settings two heads. With test images running decides.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.errors import ZooError, counted
from prepkit.families.registry import Architecture
from prepkit.families.table import SMALL_TRANSFORMER
from prepkit.prep.layout import canonical_json
from prepkit.zoo.format.function import ACCURACY

if TYPE_CHECKING:
    from torch import Tensor, nn

    from prepkit.tasks.task import Task

SIDE = 28  # pixels of MNIST
TOKENS = 512  # the longest text of the makers' settings; the networks take any length
PROJECTIONS = ("queries", "keys", "values", "out_projection")
BLOCK = re.compile(r"encoder\.([0-9]{1,4})\.")
CONV, POSITIONS = "embedding.conv1.weight", "embedding.pos_embedding"
HEADS = (1, 2, 4)
USUAL_HEADS = 2
TEST = "test"
TOLERANCE = 0.002  # names cut accuracies to four digits, and a GPU that rounds to TF32 changes some of 10,000 classes
ORDER = (
    "patches by a convolution, and their places; in each block LayerNorm without weights, attention without biases, "
    "LayerNorm without weights, linear, ReLU, linear; LayerNorm without weights, the mean over the sequence, linear, "
    "ReLU, linear"
)
SUMS = {
    True: "the input of a block's attention is added to its output, and that of its two layers to theirs",
    False: "none: what a block's attention and its two layers give replaces their inputs",
}


@dataclass(frozen=True)
class Convention:
    """What tensors do not tell: residual sums, and the number of heads; None where each model's is known."""

    sums: bool
    heads: int | None

    @property
    def name(self) -> str:
        """Both in words."""
        sums = "with residual sums" if self.sums else "without residual sums"
        return sums if self.heads is None else f"{counted(self.heads, 'head')} {sums}"


@dataclass(frozen=True)
class Sizes:
    """What tensors tell of a network, as arguments of SmallTransformer."""

    width: int
    depth: int
    hidden: int
    outputs: int
    patches: tuple[int, int] | None
    positions: tuple[int, ...] | None

    def architecture(self, heads: int, sums: bool, place: str) -> Architecture:
        """Return what builds the network; raises ZooError if the heads do not divide the width."""
        if heads < 1 or self.width % heads:
            raise ZooError(f"{place}: {counted(heads, 'attention head')} do not divide its width of {self.width}.")
        arguments = {**asdict(self), "heads": heads, "sums": sums}
        digest = hashlib.sha256(canonical_json(arguments).encode()).hexdigest()[:12]
        shape: tuple[int, ...] = (TOKENS, self.width)
        if self.patches is not None:
            channels, size = self.patches
            side = SIDE if self.positions is None else size * math.isqrt(self.positions[-2])
            shape = (channels, side, side)
        name = f"small_transformer_{digest}"
        return Architecture(name, "small_transformer", shape, SMALL_TRANSFORMER, arguments, {})

    def told_by_table(self, row: Mapping[str, Any]) -> tuple[str, Any, int] | None:
        """Return the first setting of the makers' table that is another size: its name, its value and the size."""
        sizes = {"embed_dim": self.width, "n_layers": self.depth, "n_classes": self.outputs}
        if self.patches is not None:
            sizes |= {"n_channels": self.patches[0], "patch_size": self.patches[1]}
        if type(row.get("forward_mul")) is int:
            sizes["forward_mul"] = self.hidden // self.width
        wrong = (name for name, size in sizes.items() if row.get(name) is not None and row[name] != size)
        name = next(wrong, None)
        return None if name is None else (name, row[name], sizes[name])


def sizes_of(tensors: Mapping[str, Tensor], place: str) -> Sizes:
    """Return what the tensors of a file tell.

    raises ZooError for tensors that are no such network
    """
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    blocks = {int(match[1]) for name in found if (match := BLOCK.match(name))}
    first, last = found.get("encoder.0.fc1.weight", ()), found.get("classifier.fc2.weight", ())
    if len(first) != 2 or len(last) != 2 or not all(first + last):
        raise ZooError(
            f"{place}: no network of the Small Transformer Zoo, which has encoder.0.fc1.weight and "
            "classifier.fc2.weight, both with two axes."
        )
    conv, positions = found.get(CONV), found.get(POSITIONS)
    patches = (conv[1], conv[2]) if conv is not None and len(conv) == 4 else None
    if positions is not None and (len(positions) not in (2, 3) or math.isqrt(positions[-2]) ** 2 != positions[-2]):
        raise ZooError(f"{place}: {POSITIONS} is {list(positions)}, which are no places of patches of a square.")
    sizes = Sizes(first[1], len(blocks), first[0], last[0], patches, positions)
    expected = _shapes(sizes)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            should, is_ = (
                "not there" if shape is None else str(list(shape)) for shape in (expected.get(name), found.get(name))
            )
            raise ZooError(
                f"{place}: {name} is {is_}; by the other tensors it should be {should}. Fetch the file again, or leave "
                "it out."
            )
    return sizes


def _shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    width, hidden = sizes.width, sizes.hidden
    shapes: dict[str, tuple[int, ...]] = {}
    layers = [("classifier.fc1", width, width), ("classifier.fc2", sizes.outputs, width)]
    for block in range(sizes.depth):
        shapes |= {f"encoder.{block}.attention.{name}.weight": (width, width) for name in PROJECTIONS}
        layers += [(f"encoder.{block}.fc1", hidden, width), (f"encoder.{block}.fc2", width, hidden)]
    for name, outputs, inputs in layers:
        shapes |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
    if sizes.patches is not None:
        channels, size = sizes.patches
        shapes |= {CONV: (width, channels, size, size), "embedding.conv1.bias": (width,)}
    if sizes.positions is not None:
        shapes[POSITIONS] = (*sizes.positions[:-1], width)
    return shapes


# Deciding -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """A model that is run to find the convention, and the accuracy that is stored.

    heads: its own number of heads, if that is known
    """

    tensors: Mapping[str, Tensor]
    sizes: Sizes
    stored: float
    heads: int | None
    place: str

    def network(self, convention: Convention) -> nn.Module:
        """Return the network by a convention."""
        from prepkit.families.loading import network_with_copies

        heads = self.heads or convention.heads or USUAL_HEADS
        architecture = self.sizes.architecture(heads, convention.sums, self.place)
        return network_with_copies(dict(self.tensors), architecture, folded=False).float()


def decided(samples: Sequence[Sample], task: Task, data: Path) -> tuple[Convention, dict[str, float], str]:
    """Run models by each convention; return that by which their accuracies are the stored ones.

    returns the convention, the mean difference of accuracies by each that was run, and a sentence
    raises ZooError if none is right
    """
    heads: list[int | None] = [None]
    if any(sample.heads is None for sample in samples):
        heads = [number for number in HEADS if all(sample.sizes.width % number == 0 for sample in samples)]
    candidates = [Convention(sums, number) for sums in (False, True) for number in heads]
    differences = {
        convention.name: sum(abs(_accuracy(sample, convention, task, data) - sample.stored) for sample in samples)
        / len(samples)
        for convention in candidates
    }
    ranked = sorted(candidates, key=lambda convention: differences[convention.name])
    figures = ", ".join(f"{each.name} {differences[each.name]:.4f}" for each in ranked)
    models = counted(len(samples), "model")
    right = [each for each in ranked if differences[each.name] <= TOLERANCE]
    if not right:
        raise ZooError(
            f"no convention gives the accuracies that are stored; mean differences for {models}: {figures}. See "
            f"whether '{data}' holds the test images of this zoo."
        )
    usual = [each for each in right if not each.sums and each.heads in (None, USUAL_HEADS)]
    chosen = (usual or right)[0]
    told = "decided for" if len(right) == 1 else "cannot tell apart some conventions; taken is"
    return chosen, differences, f"Running {models} {told} '{chosen.name}'; mean differences of accuracy: {figures}."


def _accuracy(sample: Sample, convention: Convention, task: Task, data: Path) -> float:
    import torch

    network = sample.network(convention)

    def run(inputs: Tensor) -> Tensor:
        outputs: Tensor = network(inputs)
        return outputs[None]

    try:
        with torch.no_grad():
            return float(task.evaluate(run, [0], TEST)[ACCURACY].item())
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ZooError(f"{sample.place} does not run on the test images of '{data}': {reason}") from None
