"""From a checkpoint file to a PRep: read, check, recognise, fold, lay out, pack, and prove that nothing was lost.

This is what `prepkit pack` does, as a function. Tensors are packed in the order in which the network registers them
where the network is known, else in the natural order of their names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prepkit.casting import Rounding, cast, check_finite
from prepkit.checkpoint.load import Checkpoint, load_checkpoint, sha256_of, versions_of
from prepkit.errors import (
    CheckpointError,
    FusionError,
    InvalidShape,
    LayoutMismatch,
    RegistryError,
    VerificationError,
    counted,
    listed,
)
from prepkit.families.architecture import Architecture, floating_shapes
from prepkit.families.detection import detect, explain_mismatch
from prepkit.families.folding import fold_known, fold_proved
from prepkit.families.loading import network_with
from prepkit.families.registry import default_class_id
from prepkit.families.renaming import under_own_names
from prepkit.fusion.fold import Fusion
from prepkit.prep.file import Origin, PRep, is_prep_file
from prepkit.prep.layout import Layout, PRepShape
from prepkit.prep.slot import check_dense, classified
from prepkit.support.logs import logger
from prepkit.support.text import Brief
from prepkit.tensors import BITS, dtype_name, is_float8, module_versions, same_bits, torch_dtype

if TYPE_CHECKING:
    from torch import Tensor

LOG = logger(__name__)


@dataclass(frozen=True, repr=False)
class Packed(Brief):
    """A packed checkpoint, and how it was made.

    num_trained: number of values in the parameters before folding
    fusion:      the folded BatchNorms with both equality errors; None where none was folded
    cast:        the dtype that was asked for; None where each tensor kept its own
    rounding:    what the cast changed; None without one
    left_out:    names in the checkpoint that were not packed
    stays:       names of what stands in the file beside the state dict, such as "epoch" and "optimizer"
    renamed:     names in the checkpoint for which the network has others, under which it loads and keeps them
    """

    prep: PRep
    source: Path
    source_format: str
    num_trained: int
    fusion: Fusion | None
    cast: str | None
    rounding: Rounding | None = None
    left_out: tuple[str, ...] = ()
    renamed: tuple[str, ...] = ()
    stays: tuple[str, ...] = ()


def pack_checkpoint(
    path: str | os.PathLike[str],
    *,
    width: int = 512,
    height: int | None = None,
    architecture: Architecture | None = None,
    key: str | None = None,
    prefix: str | None = None,
    keep_batch_norm: bool = False,
    keep_unfoldable: Literal["affine"] | None = None,
    dtype: str | None = None,
    allow_nonfinite: bool = False,
    allow_underflow: bool = False,
) -> Packed:
    """Pack a checkpoint file into a PRep; its tensors come back bit for bit.

    width, height:   shape of the PRep; the least height that holds all values if no height is given
    architecture:    the network that was saved; if None, it is recognised among the registered ones
    key:             where the state dict is inside the file, such as "ema.model", if several fit
    prefix:          take only names that begin with this, such as "model.", and leave the others out
    keep_batch_norm: pack BatchNorm with its running statistics instead of folding it
    keep_unfoldable: "affine" makes a BatchNorm that has no layer to go into a scale and a shift of each channel
    dtype:           cast all tensors to this dtype; None keeps each in its own
    allow_nonfinite: pack NaN and infinity too
    allow_underflow: let the cast turn values that are too small for the dtype into zero
    raises InvalidShape, CheckpointError, LayoutMismatch, FusionError; VerificationError if the round trip fails

    By default BatchNorm is folded, so the tensors that come back are those of an equivalent network without it. A
    network that is not recognised has no order of layers: its tensors are packed in the order of their names.

    >>> network = prepkit.architecture("resnet8@digits").build()
    >>> torch.save(network.state_dict(), "model.pt")
    >>> packed = prepkit.pack_checkpoint("model.pt", width=64)
    >>> packed.prep.values.shape, packed.prep.origin.architecture
    (torch.Size([80, 64]), 'resnet8@digits')
    >>> prepkit.save_prep(packed.prep, "model.prep.safetensors")
    """
    PRepShape.least(1, width)  # a wrong width is refused before a large file is read
    if not issubclass(type(path), str | os.PathLike):
        kind = type(path).__name__
        raise CheckpointError(
            f"pack_checkpoint takes the path of a file, not a {kind}; for a network, see Layout.of(network)."
        )
    checkpoint = _read(path, key, prefix, dtype)
    LOG.info("read '%s' (%s): %s", path, checkpoint.format, counted(len(checkpoint), "tensor"))
    if not allow_nonfinite:
        check_finite(checkpoint, f"'{path}'")
    tensors, layout, fusion, architecture = prepare(
        checkpoint, architecture, keep_batch_norm, f"'{path}'", keep_unfoldable
    )
    LOG.info("network: %s; folds: %d", architecture, len(fusion.folded) if fusion else 0)
    own_names = {*tensors, *(architecture.trainable_shapes if architecture else ())}
    renamed = tuple(name for name in floating_shapes(checkpoint) if name not in own_names)
    versions = module_versions(tensors) if fusion or renamed else checkpoint.versions
    rounding = None
    if dtype is not None:
        tensors, rounding = cast(tensors, dtype, f"'{path}'", allow_nonfinite, allow_underflow)
        layout = layout.with_dtypes_of(tensors)
    prep = PRep(
        layout.pack(tensors, out=_empty(layout, width, height)),
        layout,
        Origin(
            architecture=architecture.name if architecture else None,
            class_id=default_class_id(architecture.name) if architecture else None,
            source_sha256=sha256_of(path),
            folded=tuple(pair.layer for pair in fusion.folded) if fusion else (),
            prefix=checkpoint.prefix,
            versions={name: version for name, version in versions.items() if version != 1},
            options=chosen_options(
                key=key,
                prefix=prefix,
                keep_batch_norm=keep_batch_norm,
                keep_unfoldable=keep_unfoldable,
                dtype=dtype,
                allow_nonfinite=allow_nonfinite,
                allow_underflow=allow_underflow,
            ),
        ),
        {name: tensor for name, tensor in tensors.items() if name not in layout.names},
    )
    check_round_trip(prep, tensors)
    LOG.info("packed '%s' into %s, and compared every value", path, prep.shape)
    num_trained = architecture.num_trainable if architecture and fusion else layout.num_parameters
    return Packed(
        prep,
        Path(path),
        checkpoint.format,
        num_trained,
        fusion,
        dtype,
        rounding,
        checkpoint.dropped,
        renamed,
        stays=tuple(dict.fromkeys((*checkpoint.said, *checkpoint.others))),
    )


def chosen_options(**options: Any) -> dict[str, str | bool]:
    """Return those keyword arguments of `pack_checkpoint` that are not as they are by default."""
    return {name: value for name, value in options.items() if value is not None and value is not False}


def prepare(
    checkpoint: Mapping[str, Tensor],
    architecture: Architecture | None,
    keep_batch_norm: bool,
    place: str,
    keep_unfoldable: Literal["affine"] | None = None,
    prove_each: bool = True,
) -> tuple[Mapping[str, Tensor], Layout, Fusion | None, Architecture | None]:
    """Recognise the network of a state dict, fold its BatchNorm, and lay its tensors out.

    place:      names the state dict in errors
    prove_each: whether each fold is proved and recorded; if not, one network of an architecture is, and the outputs of
                the others are compared
    returns the tensors to pack, their layout, what was folded, and the architecture
    raises LayoutMismatch, FusionError as `pack_checkpoint` does
    """
    if keep_unfoldable not in (None, "affine"):
        raise FusionError(f'keep_unfoldable is {keep_unfoldable!r}; give "affine" or None.')
    checkpoint, architecture, is_folded = recognised(checkpoint, architecture, place)
    must_fold = bool(batch_norms(checkpoint)) and not is_folded and not keep_batch_norm
    if architecture is None:
        layout = _natural_layout(checkpoint, place)
        if must_fold:
            raise _unknown_with_batch_norm(checkpoint, place, can_keep=True)
        return checkpoint, layout, None, None
    if is_folded:
        return checkpoint, architecture.layout.with_dtypes_of(checkpoint), None, architecture
    fusion = None
    if must_fold and not prove_each:
        fusion = fold_known(checkpoint, architecture, place, keep_unfoldable or False)
    else:
        network = network_with(checkpoint, architecture, place)
        if must_fold:
            fusion = fold_proved(network, architecture, place, keep_unfoldable or False)
    if fusion is not None:
        network = fusion.network
    with naming(place):
        layout = Layout.of(network)
    return network.state_dict() if fusion else checkpoint, layout, fusion, architecture


def fold_checkpoint(
    path: str | os.PathLike[str],
    architecture: Architecture | None = None,
    *,
    key: str | None = None,
    prefix: str | None = None,
    keep_unfoldable: Literal["affine"] | None = None,
) -> tuple[dict[str, Tensor], Fusion]:
    """Return the state dict of a checkpoint's network without BatchNorm, and what was folded.

    prefix, keep_unfoldable: as in `pack_checkpoint`
    raises CheckpointError, LayoutMismatch; FusionError if there is nothing to fold or it cannot be folded
    """
    place = f"'{path}'"
    checkpoint, architecture, is_folded = recognised(_read(path, key, prefix), architecture, place)
    if is_folded or not batch_norms(checkpoint):
        raise FusionError(f"{place} has no BatchNorm to fold; `prepkit pack` takes it as it is.")
    if architecture is None:
        raise _unknown_with_batch_norm(checkpoint, place, can_keep=False)
    fusion = fold_proved(network_with(checkpoint, architecture, place), architecture, place, keep_unfoldable or False)
    return fusion.network.state_dict(), fusion


def batch_norms(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the modules that keep running statistics."""
    return [name.rpartition(".")[0] for name in tensors if name.rpartition(".")[2] == "running_var"]


# Reading and checking -----------------------------------------------------------------------------------------


def _read(
    path: str | os.PathLike[str], key: str | None, prefix: str | None = None, dtype: str | None = None
) -> Checkpoint:
    """Read a checkpoint whose tensors can all be packed, once they are cast if a dtype is given."""
    if is_prep_file(path):
        raise CheckpointError(f"'{path}' is a PRep already; `prepkit unpack` makes a checkpoint of it.")
    checkpoint = load_checkpoint(path, key, prefix)
    if dtype is not None:  # other tensors are cast after they were folded; torch can do little with 8 bits
        target = torch_dtype(dtype)
        cast_now = {name: t.to(target) if is_float8(t) else t for name, t in checkpoint.items()}
        checkpoint = replace(checkpoint, _tensors=cast_now)
    check_packable(checkpoint, f"'{path}'", "Pass dtype='float32' to cast it.")
    return checkpoint


def check_packable(tensors: Mapping[str, Tensor], place: str, remedy: str = "Cast it first.") -> None:
    """Raise LayoutMismatch for a tensor that no PRep can hold. Integer tensors pass: they may be buffers.

    remedy: what to do about a dtype that a PRep cannot hold
    """
    for name, tensor in tensors.items():
        with naming(place):
            check_dense(name, tensor)
        if tensor.is_meta:
            raise LayoutMismatch(f"{place}: '{name}' is on the meta device, so it has no values; save real tensors.")
        if tensor.is_floating_point() and dtype_name(tensor.dtype) not in BITS:
            raise LayoutMismatch(
                f"{place}: '{name}' has dtype {dtype_name(tensor.dtype)}; a PRep holds {listed(BITS)}. {remedy}"
            )


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Put the place before the message of a LayoutMismatch, which knows only the tensor."""
    try:
        yield
    except LayoutMismatch as error:
        raise LayoutMismatch(f"{place}: {error}") from None


# Recognising and folding --------------------------------------------------------------------------------------


def recognised(
    checkpoint: Mapping[str, Tensor], architecture: Architecture | None, place: str
) -> tuple[Mapping[str, Tensor], Architecture | None, bool]:
    """Return a checkpoint under its network's names, its architecture, and whether the checkpoint is its folded form.

    raises LayoutMismatch if the architecture that was asked for has other names or shapes
    """
    if architecture is None:
        detection = detect(checkpoint)
        return (checkpoint, detection.architecture, detection.folded) if detection else (checkpoint, None, False)
    if floating_shapes(checkpoint) == architecture.trainable_shapes:
        return checkpoint, architecture, False
    if detect(checkpoint, [architecture]) is None:
        if (renamed := under_own_names(checkpoint, architecture, versions_of(checkpoint))) is not None:
            return renamed, architecture, False
        shared = {name: tensor for name, tensor in checkpoint.items() if name in architecture.trainable_shapes}
        with naming(place):
            classified(shared, lambda name, tensor: True)  # an integer parameter is not missing, but has no slot
        mismatch = explain_mismatch(checkpoint, architecture)
        raise LayoutMismatch(f"{place} is no {architecture.name}: {mismatch}{_another(checkpoint, architecture)}")
    return checkpoint, architecture, True


def _another(checkpoint: Mapping[str, Tensor], architecture: Architecture) -> str:
    """Return a sentence on the prefix under which the network lies, or on another architecture that does fit."""
    first = next(iter(architecture.trainable_shapes))
    for name in checkpoint:
        prefix = name.removesuffix(first)
        if name.endswith(f".{first}") and all(prefix + other in checkpoint for other in architecture.trainable_shapes):
            others = [other for other in checkpoint if not other.startswith(prefix)]
            return (
                f" All its names stand after '{prefix}', beside {listed(others)}; pass prefix='{prefix}' to take them."
            )
    with suppress(RegistryError):  # several fit, or a plug-in is broken
        if detection := detect(checkpoint):
            return f" Its tensors are those of {detection.architecture.name}."
    return ""


def _unknown_with_batch_norm(checkpoint: Mapping[str, Tensor], place: str, can_keep: bool) -> FusionError:
    keep_it = ", or pack it with its BatchNorm (keep_batch_norm=True)" if can_keep else ""
    names = listed([f"'{name}'" for name in batch_norms(checkpoint)], 3)
    return FusionError(
        f"{place} has BatchNorm ({names}), and its architecture is none of the registered ones, so it cannot be "
        f"folded. Name the network (architecture=...){keep_it}."
    )


# Laying out and packing ---------------------------------------------------------------------------------------


def _natural_layout(tensors: Mapping[str, Tensor], place: str) -> Layout:
    """Return the layout of a state dict whose network is unknown."""
    with naming(place):
        layout = Layout.of_tensors(tensors)
    if not layout.total:
        raise LayoutMismatch(f"{place}: there is nothing to pack: its tensors hold no values.")
    return layout


def _empty(layout: Layout, width: int, height: int | None) -> Tensor:
    """Return memory for a PRep.

    raises InvalidShape if there is not enough, with the side that should be smaller
    """
    import torch

    shape = layout.shape(width, height)
    try:
        return torch.empty(shape.height, shape.width, dtype=torch_dtype(layout.dtype))
    except (RuntimeError, TypeError):  # too little memory, or more rows than a 64-bit number counts
        taller = shape.height > layout.shape(width).height
        raise no_memory(shape, layout.dtype, "height, or none" if taller else "width") from None


def no_memory(shape: PRepShape, dtype: str, smaller: str) -> InvalidShape:
    """Return the error for a PRep that does not fit into memory; `smaller` is what should be smaller."""
    size = shape.cells * BITS[dtype] // 8
    return InvalidShape(
        f"there is no memory for a PRep of {shape} {dtype} ({counted(size, 'byte')}); use a smaller {smaller}."
    )


def check_round_trip(prep: PRep, tensors: Mapping[str, Tensor]) -> None:
    """Unpack a PRep and compare every tensor bit for bit with what was packed.

    raises VerificationError with the names that differ
    """
    unpacked = prep.tensors()
    wrong = [name for name, tensor in tensors.items() if name not in unpacked or not same_bits(unpacked[name], tensor)]
    if wrong or len(unpacked) != len(tensors):
        raise VerificationError(f"the round trip failed for {listed(wrong)}; nothing was written. Please report this.")
