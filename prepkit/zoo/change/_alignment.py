"""The alignment of the instances of one architecture of a zoo: reference, passes over shards, and what they show.

Shapes: n instances of a chunk, H x W the architecture's own PRep.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils import _pytree as pytree

from prepkit.errors import (
    FusionError,
    LayoutMismatch,
    RegistryError,
    SymmetryError,
    VerificationError,
    ZooError,
    counted,
)
from prepkit.support.progress import Advance
from prepkit.symmetry.aligning import Aligner, Scrambled, scrambled_copies
from prepkit.symmetry.derive import symmetries
from prepkit.tasks.randomness import generator
from prepkit.tensors import torch_dtype
from prepkit.zoo.change.copying import ShardRows
from prepkit.zoo.format.manifest import StoredArchitecture
from prepkit.zoo.read.zoo import Zoo

CHUNK_BYTES = 16 << 20  # of PReps that are read at once
TRIED = 4  # instances of which a scrambled copy is aligned, and whose outputs are compared
ROUNDING = 200  # times the precision of a dtype: outputs may differ by so much where phases are rounded


class Spread:
    """The mean of PReps, and their mean squared distance from it, summed as they come."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares = 0, torch.zeros(()), 0.0

    def add(self, preps: Tensor) -> None:
        """Add PReps `[n, H, W]`."""
        values = preps.double()
        self.count += len(values)
        self.sum = self.sum + values.sum(0)
        self.squares += float(values.square().sum())

    @property
    def mean(self) -> Tensor:
        """The mean `[H, W]` in float64."""
        return self.sum / self.count

    @property
    def deviation(self) -> float:
        """Root of the mean squared distance from the mean."""
        return math.sqrt(max(0.0, self.squares / self.count - float(self.mean.square().sum())))


@dataclass(eq=False)
class Alignment:
    """How instances of one architecture are aligned, and what came of it.

    rows:      the instances, as they are numbered in the zoo
    reference: `[H, W]`; those that train the centroid are in the split `train`, or all without splits
    named:     the id of the instance that is the reference, or "centroid of N"
    """

    stored: StoredArchitecture
    aligner: Aligner
    rows: np.ndarray
    reference: Tensor
    named: str
    scrambled: Scrambled = field(default_factory=lambda: Scrambled(0, 0))
    before: list[Tensor] = field(default_factory=list)
    after: list[Tensor] = field(default_factory=list)
    spread_before: Spread = field(default_factory=Spread)
    spread_after: Spread = field(default_factory=Spread)

    def add(self, preps: Tensor, aligned: Tensor) -> None:
        """Take down what the alignment of some instances did."""
        for own, distances, spread in (
            (preps, self.before, self.spread_before),
            (aligned, self.after, self.spread_after),
        ):
            distances.append(self.aligner.distances(own, self.reference[None]))
            spread.add(own)


def aligner_of(zoo: Zoo, stored: StoredArchitecture) -> Aligner:
    """Return the aligner of an architecture of a zoo.

    raises ZooError if its network cannot be built, or its symmetries cannot be derived
    """
    if stored.config is None:
        raise ZooError(
            f"'{zoo.name}' knows only the tensors of {stored.name}, not its network, so its symmetries cannot be "
            "derived. `prepkit zoo cut --where` leaves its instances out; `prepkit zoo create --arch` names a network."
        )
    try:
        architecture = zoo.architecture_named(stored.name)
        return Aligner(symmetries(architecture, keep_batch_norm=not stored.fused), stored.layout)
    except (SymmetryError, FusionError, RegistryError, LayoutMismatch) as error:
        raise ZooError(f"{stored.name} of '{zoo.name}' cannot be aligned: {error}") from None


def chunks(zoo: Zoo, stored: StoredArchitecture, rows: np.ndarray) -> Iterator[Tensor]:
    """Read PReps `[n, H, W]` of instances at the height of their architecture."""
    width, height = zoo.manifest.width, stored.height
    size = max(1, CHUNK_BYTES // (8 * height * width))
    for first in range(0, len(rows), size):
        some = zoo.preps(rows[first : first + size])  # they have the zoo's common height
        preps = some.flatten(1)[:, : height * width].view(len(some), height, width)
        check_finite(preps, f"'{zoo.name}', {stored.name}")
        yield preps


def check_finite(preps: Tensor, place: str) -> None:
    """Raise ZooError if there is NaN or infinity in a chunk, which other programs may have written."""
    finite = preps.flatten(1).isfinite().all(1)
    if not finite.all():
        number = counted(int((~finite).sum()), "instance")
        raise ZooError(
            f"{place}: there is NaN or infinity in {number}, which cannot be matched. `prepkit zoo cut` makes a zoo "
            "without some instances."
        )


def some_of(rows: np.ndarray, count: int = TRIED) -> np.ndarray:
    """Return up to `count` of the rows, spread evenly."""
    return rows if len(rows) <= count else rows[np.arange(count) * len(rows) // count]


def try_copies(zoo: Zoo, alignment: Alignment, seed: int) -> Scrambled:
    """Align scrambled copies of some instances, and count those that come back to the aligned instances."""
    preps = torch.cat(list(chunks(zoo, alignment.stored, some_of(alignment.rows))))
    stream = generator("scrambled copies", seed)
    return scrambled_copies(alignment.aligner, preps, alignment.reference, stream, seed)


def prove(zoo: Zoo, alignment: Alignment, seed: int) -> float:
    """Compare the outputs of some instances in float64 before and after, and return the largest relative difference.

    raises VerificationError if it is more than rounding phases explains
    """
    stored, aligner = alignment.stored, alignment.aligner
    architecture = zoo.architecture_named(stored.name)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        network = (architecture.build_folded() if stored.fused else architecture.build()).eval()
        inputs = pytree.tree_map(_wide, architecture.example_for(network))
        network = network.double()
    largest = 0.0
    for row in some_of(alignment.rows):
        (prep,) = chunks(zoo, stored, np.array([row]))
        aligned = aligner.aligned(prep, alignment.reference[None], seed)
        with torch.no_grad():
            before, after = (_outputs(network, aligner, own, inputs) for own in (prep, aligned))
        for own, other in zip(before, after, strict=True):
            largest = max(largest, float((own - other).abs().max() / own.abs().max().clamp(min=1e-300)))
    dtype = torch_dtype(zoo.manifest.dtype)
    allowed = ROUNDING * torch.finfo(dtype if aligner.standing.signs else torch.float64).eps
    if not largest <= allowed:
        raise VerificationError(
            f"aligned instances of {stored.name} compute something else: their outputs differ by {largest:.1e} of "
            f"their size in float64, and {allowed:.1e} is allowed; nothing was kept."
            + (" Phases need more digits than the zoo's dtype has." if dtype.itemsize < 4 else " Please report.")
        )
    return largest


def _wide(leaf: object) -> object:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _outputs(network: torch.nn.Module, aligner: Aligner, prep: Tensor, inputs: object) -> list[Tensor]:
    tensors = {name: tensor[0] for name, tensor in aligner.tensors(prep).items()}
    args = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, dict) else (inputs,)
    outputs = functional_call(network, tensors, args, inputs if isinstance(inputs, dict) else {}, strict=False)
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


@dataclass(frozen=True)
class AlignedRows(ShardRows):
    """The rows of a shard, aligned as they are read."""

    alignment: Alignment
    seed: int
    advance: Advance

    @property
    def rows_a_piece(self) -> int:
        """The number of rows that are read and aligned at once."""
        return max(1, CHUNK_BYTES // (8 * self.extent.height * self.extent.width))

    def pieces(self, rows_a_piece: int) -> Iterator[np.ndarray]:
        """Read all rows in order and align them, as bytes `[rows, row_bytes]`."""
        dtype = torch_dtype(self.extent.dtype)
        for piece in super().pieces(rows_a_piece):
            preps = torch.from_numpy(piece.copy()).view(dtype).view(-1, self.extent.height, self.extent.width)
            check_finite(preps, str(self.file))
            aligned = self.alignment.aligner.aligned(preps, self.alignment.reference[None], self.seed)
            self.alignment.add(preps, aligned)
            self.advance(len(preps))
            yield aligned.flatten(1).view(torch.uint8).numpy()
