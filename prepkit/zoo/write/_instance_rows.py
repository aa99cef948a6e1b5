"""Turn what `ZooWriter.add` is given into rows of values: recognised, folded, checked, and in the zoo's dtype.

All that can be wrong with the values of an instance is found here, before anything is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from prepkit.casting import check_finite
from prepkit.checkpoint.load import versions_of
from prepkit.errors import LayoutMismatch, ZooError, listed
from prepkit.families.detection import detect
from prepkit.families.registry import Architecture, architectures
from prepkit.families.registry import architecture as looked_up
from prepkit.packing import batch_norms, naming, no_memory, prepare
from prepkit.prep.file import PRep
from prepkit.prep.layout import Layout
from prepkit.prep.shape import WIDTH_MULTIPLE, PRepShape
from prepkit.prep.slot import as_tensors
from prepkit.tensors import BITS, as_tensor, holds_exactly, same_values, torch_dtype
from prepkit.zoo.format.manifest import KEPT_BATCH_NORM, StoredArchitecture
from prepkit.zoo.read.gather import words
from prepkit.zoo.write._buffers import Buffers, Piece

if TYPE_CHECKING:
    from torch import Tensor, nn

ONLY_FINITE = "leave it out: a zoo holds finite values only"
COUNTERS = "num_batches_tracked"
PIECE_BYTES = 2 << 20  # of a stack are packed at once, which is little enough to be written and hashed in the cache


@dataclass(frozen=True)
class Packable:
    """One network, or N networks of one architecture, ready to be packed at any width.

    tensors:  by name; those of N networks have a leading axis
    versions: versions of modules that differ from 1, torch's default, as far as they were noted
    """

    tensors: Mapping[str, Tensor]
    layout: Layout
    architecture: Architecture | None
    fused: bool
    versions: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The architecture's name in the zoo; a layout of unknown origin is named by its sha256."""
        if self.architecture is None:
            return f"layout-{self.layout.sha256[:12]}"
        return self.architecture.name if self.fused else self.architecture.name + KEPT_BATCH_NORM

    def stored(self, width: int) -> StoredArchitecture:
        """Return how the zoo's manifest describes the architecture, without a ClassId."""
        known = self.architecture
        return StoredArchitecture(
            class_id=None,
            name=self.name,
            layout=self.layout,
            height=self.layout.shape(width).height,
            fused=self.fused,
            family=known.family if known else None,
            input_shape=known.input_shape if known else None,
            num_trainable=known.num_trainable if known else None,
            config=known.config if known else None,
        )


def packable(
    model: nn.Module | Mapping[str, Tensor] | PRep | Packable,
    architecture: Architecture | str | None,
    place: str,
    keep_unfoldable: Literal["affine"] | None = None,
    *,
    keep_batch_norm: bool = False,
    left_out: set[str] | None = None,
    costs: dict[str, float] | None = None,
) -> Packable:
    """Recognise one network, and fold its BatchNorm; `keep_unfoldable` and `keep_batch_norm` as in `pack_checkpoint`.

    left_out: gets the names of integer buffers, which a zoo has no place for; if missing, they are refused
    costs:    gets, under `place`, how far rounding the folded values changes the outputs, if that is more than usual
    raises LayoutMismatch, FusionError, ZooError
    """
    from torch import nn

    if isinstance(model, Packable):
        return model
    known = looked_up(architecture) if isinstance(architecture, str) else architecture
    if isinstance(model, PRep):
        return _of_prep(model, known, place, left_out)
    tensors = model.state_dict() if isinstance(model, nn.Module) else model
    if not isinstance(tensors, Mapping):
        raise ZooError(f"{place}: expected a network, a state dict or a PRep, found a {type(model).__name__}.")
    with naming(place):
        tensors = as_tensors(tensors)
    tensors, layout, fusion, known = prepare(tensors, known, keep_batch_norm, place, keep_unfoldable, prove_each=False)
    if fusion and fusion.cost_of_cast and costs is not None:
        costs[place] = fusion.cost_of_cast
    if known is None and isinstance(model, nn.Module):
        layout = Layout.of(model)  # the network registers them in the order of its layers
    versions = _versions(versions_of(tensors), tensors, layout)
    tensors = _without_buffers(tensors, layout, place, left_out)
    return Packable(tensors, layout, known, not (keep_batch_norm and batch_norms(tensors)), versions)


def packable_stack(stack: Mapping[str, Tensor] | Tensor, architecture: Architecture | str | None) -> Packable:
    """Take N networks of one architecture without BatchNorm: tensors `[N, *shape]` by name, or PReps `[N, H, W]`.

    raises LayoutMismatch if names or shapes differ from the architecture's packed form
    """
    known = looked_up(architecture) if isinstance(architecture, str) else architecture
    if known is None:
        raise ZooError("a stack needs its architecture.")
    layout, place = known.layout, f"stack of {known.name}"
    with naming(place):
        tensors = as_tensors(stack) if isinstance(stack, Mapping) else layout.unpack(as_tensor(stack, "stack"))
    missing = [slot.name for slot in layout if slot.name not in tensors]
    if missing:
        bn = " Fold BatchNorm first, or use `add` for each network." if batch_norms(tensors) else ""
        raise LayoutMismatch(f"{place}: {known.name} needs {listed(missing)}.{bn}")
    return Packable(tensors, layout.with_dtypes_of(tensors), known, fused=True)


def packed_pieces(
    item: Packable, width: int, dtype: str, count: int | None, place: str, buffers: Buffers
) -> Iterator[Piece]:
    """Pack one network, or the N of a stack, in the zoo's dtype, piece by piece.

    All values were checked when this returns.
    count: N; None for one network, whose tensors have no leading axis
    raises CheckpointError for NaN or infinity, ZooError for values that the dtype cannot hold exactly, LayoutMismatch,
    InvalidShape if the memory cannot hold one
    """
    check_dtype(item, dtype, place)
    if count is not None:
        check_stack(item, count, place)
        return _pieces(item, width, dtype, count, buffers)
    shape = item.layout.shape(width)
    try:
        with buffers.filled(shape.cells * BITS[dtype] // 8) as (values, piece):
            out = values.view(torch_dtype(dtype)).view(shape.height, shape.width)
            item.layout.pack(item.tensors, out=out)
            if not has_finite_sum(out):
                check_finite({slot.name: item.tensors[slot.name] for slot in item.layout}, place, remedy=ONLY_FINITE)
    except MemoryError:
        raise no_memory(shape, dtype, "width") from None
    return iter([piece])


def _pieces(item: Packable, width: int, dtype: str, count: int, buffers: Buffers) -> Iterator[Piece]:
    cells = item.layout.shape(width).cells
    row_bytes = cells * BITS[dtype] // 8
    rows = max(1, PIECE_BYTES // row_bytes)
    for start in range(0, count, rows):
        stop = min(start + rows, count)
        with buffers.filled((stop - start) * row_bytes) as (values, piece):
            pack_rows(item, slice(start, stop), values.view(torch_dtype(dtype)).view(stop - start, cells))
        yield piece


def pack_rows(item: Packable, rows: slice, out: Tensor) -> None:
    """Pack some networks of a stack into `out` `[rows, cells]`.

    numpy copies here because torch would divide each copy among all cores, which hashing and writing keep busy, and
    torch's threads would wait for one another.
    """
    import torch

    target = words(out)
    for slot in item.layout:
        values = item.tensors[slot.name][rows].reshape(len(out), slot.size)
        if values.dtype == out.dtype and values.device.type == "cpu":
            target[:, slot.start : slot.stop] = words(values)
        else:
            with torch.no_grad():
                out[:, slot.start : slot.stop] = values
    target[:, item.layout.total :] = 0


def check_dtype(item: Packable, dtype: str, place: str) -> None:
    """Raise ZooError for values that the zoo's dtype cannot hold exactly."""
    if not holds_exactly(dtype, item.layout.dtype):
        raise ZooError(
            f"{place}: values of {item.layout.dtype} do not fit the zoo's {dtype} exactly; cast them first, or give "
            f"ZooWriter(dtype=...), one of {listed(BITS)}."
        )


def check_stack(item: Packable, count: int, place: str) -> None:
    """Check all tensors `[N, *shape]` of a stack before the first of its rows is written.

    raises LayoutMismatch for other names or shapes or an alias with other values, CheckpointError for NaN or infinity
    """
    layout = item.layout
    for slot in layout:
        tensor = item.tensors[slot.name]
        if tuple(tensor.shape) != (count, *slot.shape):
            raise LayoutMismatch(
                f"{place}: '{slot.name}' has shape {list(tensor.shape)}; in a stack of {count} it has "
                f"{[count, *slot.shape]}."
            )
        if not has_finite_sum(tensor):
            check_finite({slot.name: tensor}, place, remedy=ONLY_FINITE)
    for alias, name in layout.ties:
        if alias in item.tensors and not same_values(item.tensors[alias], item.tensors[name]):
            raise LayoutMismatch(f"{place}: '{alias}' is tied to '{name}' in the layout, but their values differ.")
    no_rows = {name: tensor[:0] if tensor.dim() else tensor for name, tensor in item.tensors.items()}
    layout.pack(no_rows, PRepShape.least(layout.total, WIDTH_MULTIPLE))  # checks the names


def has_finite_sum(values: Tensor) -> bool:
    """Return whether the sum of all values is finite; if it is, so are they, but large values may overflow too."""
    import numpy as np
    import torch

    if values.device.type != "cpu" or values.dtype == torch.bfloat16:
        wide = torch.float32 if values.element_size() == 2 else None
        return bool(torch.isfinite(values.detach().sum(dtype=wide)))
    with np.errstate(over="ignore", invalid="ignore"):
        total = values.detach().numpy().sum(dtype=np.float32 if values.element_size() == 2 else None)
    return math.isfinite(total)


def _of_prep(prep: PRep, architecture: Architecture | None, place: str, left_out: set[str] | None) -> Packable:
    tensors = prep.layout.unpack(prep.values)
    versions = _versions(prep.origin.versions, prep.buffers, prep.layout)
    _without_buffers(prep.buffers, prep.layout, place, left_out)
    if batch_norms(tensors):
        return Packable(tensors, prep.layout, architecture or _named(prep), False, versions)
    detection = detect(tensors, None if architecture is None else [architecture])
    if architecture is not None and detection is None:
        raise LayoutMismatch(f"{place}: the PRep's layout is not that of {architecture.name}.")
    if detection is None:
        return Packable(tensors, prep.layout, None, True, versions)
    known = detection.architecture
    return Packable(tensors, known.layout.with_dtypes_of(tensors), known, True, versions)


def _versions(noted: Mapping[str, int], tensors: Mapping[str, Tensor], layout: Layout) -> dict[str, int]:
    """Return the versions that the zoo keeps: not of a module that has lost a buffer, such as BatchNorm its counter.

    A BatchNorm of version 2 would miss the counter when it loads; one of version 1 begins a new one.
    """
    robbed = {name.rpartition(".")[0] for name in tensors if name not in layout.names}
    return {name: version for name, version in noted.items() if version != 1 and name not in robbed}


def _named(prep: PRep) -> Architecture | None:
    name = prep.origin.architecture
    return looked_up(name) if name in architectures() else None


def _without_buffers(
    tensors: Mapping[str, Tensor], layout: Layout, place: str, left_out: set[str] | None
) -> Mapping[str, Tensor]:
    """Return the tensors without integer buffers, whose names `left_out` gets.

    raises ZooError if there are any and `left_out` is None
    """
    beside = [name for name in tensors if name not in layout.names and not name.endswith(COUNTERS)]
    if not beside:
        return tensors
    if left_out is None:
        raise ZooError(
            f"{place}: a zoo has no place for the integer buffers {listed(beside)}; leave them out of the state dict."
        )
    left_out.update(beside)
    return {name: tensor for name, tensor in tensors.items() if name not in beside}
