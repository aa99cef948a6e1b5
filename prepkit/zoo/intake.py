"""From what `ZooWriter.add` was given to a row of values: recognised, folded, checked, in the zoo's dtype.

Everything that can be wrong with an instance is found here, before anything is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prepkit.errors import LayoutMismatch, ZooError, listed
from prepkit.layout import Layout
from prepkit.packing import batch_norms, check_finite, prepared
from prepkit.prep_file import PRep
from prepkit.registry import Architecture, detect
from prepkit.tensors import BITS, torch_dtype
from prepkit.zoo.manifest import KEPT_BATCH_NORM, StoredArchitecture

if TYPE_CHECKING:
    from torch import Tensor, nn

COUNTERS = "num_batches_tracked"


@dataclass(frozen=True)
class Packable:
    """Tensors and what they are, ready to be packed at any width.

    tensors: of one network, or of N with a leading axis
    """

    tensors: Mapping[str, Tensor]
    layout: Layout
    architecture: Architecture | None
    fused: bool

    @property
    def name(self) -> str:
        """The architecture's name in the zoo; a layout of unknown origin is named by its sha256."""
        if self.architecture is None:
            return f"layout-{self.layout.sha256[:12]}"
        return self.architecture.name if self.fused else self.architecture.name + KEPT_BATCH_NORM

    def stored(self, width: int) -> StoredArchitecture:
        """How the zoo's manifest describes it, without a ClassId."""
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


def packable(model: nn.Module | Mapping[str, Tensor] | PRep, architecture: Architecture | None, place: str) -> Packable:
    """What was given for one network, recognised and with its BatchNorm folded.

    raises LayoutMismatch, FusionError; ZooError for integer buffers, which a zoo has no place for
    """
    from torch import nn

    if isinstance(model, PRep):
        return _of_prep(model, architecture, place)
    tensors = model.state_dict() if isinstance(model, nn.Module) else model
    if not isinstance(tensors, Mapping):
        raise ZooError(f"{place}: expected a network, a state dict or a PRep, found a {type(model).__name__}.")
    tensors, layout, _, architecture = prepared(tensors, architecture, False, place)
    if architecture is None and isinstance(model, nn.Module):
        layout = Layout.of(model)  # its registration order says more than the order of its names
    _check_buffers(tensors, layout, place)
    return Packable(tensors, layout, architecture, fused=True)


def packable_stack(tensors: Mapping[str, Tensor], architecture: Architecture, place: str) -> Packable:
    """N networks of one architecture without BatchNorm: each tensor `[N, *shape]`.

    raises LayoutMismatch if names or shapes differ from the architecture's packed form
    """
    layout = architecture.layout
    missing = [slot.name for slot in layout if slot.name not in tensors]
    if missing:
        bn = " Fold BatchNorm first, or use `add` for each network." if batch_norms(tensors) else ""
        raise LayoutMismatch(f"{place}: {architecture.name} needs {listed(missing)}.{bn}")
    return Packable(tensors, layout.with_dtypes_of(tensors), architecture, fused=True)


def rows_of(item: Packable, width: int, dtype: str, batch: tuple[int, ...], place: str) -> Tensor:
    """The PReps `[*batch, height, width]` in the zoo's dtype.

    raises CheckpointError for NaN or infinity, ZooError for values that the dtype cannot hold exactly
    """
    import torch

    target = torch_dtype(dtype)
    found = torch_dtype(item.layout.dtype)
    if torch.promote_types(found, target) != target:
        raise ZooError(
            f"{place}: values of {item.layout.dtype} do not fit the zoo's {dtype} exactly; cast them first, or give "
            f"ZooWriter(dtype=...), one of {listed(BITS)}."
        )
    shape = item.layout.shape(width)
    values = item.layout.pack(item.tensors, out=torch.empty(*batch, shape.height, shape.width, dtype=target))
    if not has_finite_sum(values):
        check_finite({slot.name: item.tensors[slot.name] for slot in item.layout}, place)
    return values


def has_finite_sum(values: Tensor) -> bool:
    """True only if all values are finite: one NaN or infinity makes the sum one. Many large values may do so too."""
    import torch

    wide = torch.float32 if values.element_size() == 2 else None
    return bool(torch.isfinite(values.sum(dtype=wide)))


def bytes_of(values: Tensor) -> memoryview:
    """The values' own memory as bytes, without a copy."""
    import torch

    return values.reshape(-1).view(torch.uint8).numpy().data


def _of_prep(prep: PRep, architecture: Architecture | None, place: str) -> Packable:
    tensors = prep.layout.unpack(prep.values)
    if set(prep.buffers) - {name for name in prep.buffers if name.endswith(COUNTERS)}:
        raise ZooError(f"{place}: a zoo has no place for the integer buffers {listed(prep.buffers)}.")
    if batch_norms(tensors):
        return Packable(tensors, prep.layout, architecture or _named(prep), fused=False)
    detection = detect(tensors, None if architecture is None else [architecture])
    if architecture is not None and detection is None:
        raise LayoutMismatch(f"{place}: the PRep's layout is not that of {architecture.name}.")
    if detection is None:
        return Packable(tensors, prep.layout, None, fused=True)
    known = detection.architecture
    return Packable(tensors, known.layout.with_dtypes_of(tensors), known, fused=True)


def _named(prep: PRep) -> Architecture | None:
    from prepkit.registry import architecture, architectures

    name = prep.origin.architecture
    return architecture(name) if name in architectures() else None


def _check_buffers(tensors: Mapping[str, Tensor], layout: Layout, place: str) -> None:
    beside = [name for name in tensors if name not in layout.names and not name.endswith(COUNTERS)]
    if beside:
        raise ZooError(
            f"{place}: a zoo has no place for the integer buffers {listed(beside)}; leave them out of the state dict."
        )
