"""From a checkpoint on the disk to a PRep: read, recognise, fold, pack, and prove that nothing was lost.

What `prepkit pack` does, as a function. The order of a PRep is the registration order of the network when the network
is known, the natural order of names when only a state dict is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.checkpoint.load import Checkpoint, load_checkpoint, sha256_of
from prepkit.errors import CheckpointError, FusionError, InvalidShape, LayoutMismatch, VerificationError, listed
from prepkit.families.registry import Architecture, default_class_id, detect, explain_mismatch, floating_shapes
from prepkit.fusion.fold import Fusion, UnfoldableNetwork, fold
from prepkit.prep.file import Origin, PRep, is_prep_file
from prepkit.prep.layout import Layout, PRepShape
from prepkit.tensors import BITS, dtype_name, same_bits, stands_beside, storage_identity, torch_dtype

if TYPE_CHECKING:
    from torch import Tensor, nn

EXAMPLE_BATCH = 2


@dataclass(frozen=True)
class Packed:
    """A packed checkpoint and how it came about.

    num_trained: values of the parameters before folding
    fusion:      None where no BatchNorm was folded, else what was, with both equality errors
    cast:        the dtype that was asked for, None where each tensor kept its own
    """

    prep: PRep
    source: Path
    source_format: str
    num_trained: int
    fusion: Fusion | None
    cast: str | None


def pack_checkpoint(
    path: str | os.PathLike[str],
    *,
    width: int = 512,
    height: int | None = None,
    architecture: Architecture | None = None,
    key: str | None = None,
    keep_batch_norm: bool = False,
    dtype: str | None = None,
    allow_nonfinite: bool = False,
) -> Packed:
    """Pack a checkpoint file into a PRep; its tensors come back bit for bit.

    width, height:   of the PRep; the least height if none is given
    architecture:    of the network; recognised among the registered ones if None
    key:             of the state dict inside the file, where several fit
    keep_batch_norm: pack BatchNorm with its running statistics instead of folding it
    dtype:           cast the tensors to it; None keeps each in its own
    allow_nonfinite: pack NaN and infinity too
    raises InvalidShape, CheckpointError, LayoutMismatch, FusionError; VerificationError if the round trip fails
    """
    PRepShape.least(1, width)  # a wrong width is said before a large file is read
    checkpoint = _read(path, key)
    if not allow_nonfinite:
        check_finite(checkpoint, path)
    tensors, layout, fusion, architecture = prepared(checkpoint, architecture, keep_batch_norm, path)
    if dtype is not None:
        tensors = _cast(tensors, dtype)
        layout = layout.with_dtypes_of(tensors)
        if not allow_nonfinite:
            check_finite(tensors, path, after=f" after the cast to {dtype}")
    prep = PRep(
        layout.pack(tensors, out=_empty(layout, width, height)),
        layout,
        Origin(
            architecture=architecture.name if architecture else None,
            class_id=default_class_id(architecture.name) if architecture else None,
            source_sha256=sha256_of(path),
            folded=tuple(pair.layer for pair in fusion.folded) if fusion else (),
        ),
        {name: tensor for name, tensor in tensors.items() if name not in layout.names},
    )
    check_round_trip(prep, tensors)
    num_trained = architecture.num_trainable if architecture and fusion else layout.num_parameters
    return Packed(prep, Path(path), checkpoint.format, num_trained, fusion, dtype)


def fold_checkpoint(
    path: str | os.PathLike[str], architecture: Architecture | None = None, *, key: str | None = None
) -> tuple[dict[str, Tensor], Fusion]:
    """The state dict of a checkpoint's network without BatchNorm, and what was folded.

    raises CheckpointError, LayoutMismatch; FusionError if there is nothing to fold or it cannot be
    """
    checkpoint = _read(path, key)
    architecture, folded = _recognised(checkpoint, architecture, path)
    if folded or not batch_norms(checkpoint):
        raise FusionError(f"'{path}' has no BatchNorm to fold; `prepkit pack` takes it as it is.")
    if architecture is None:
        raise FusionError(_unknown_with_batch_norm(checkpoint, path, "") + ".")
    fusion = _folded(_loaded(architecture, checkpoint, path), architecture, path)
    return dict(fusion.network.state_dict()), fusion


def describe_checkpoint(path: str | os.PathLike[str], key: str | None = None) -> tuple[dict[str, Any], Layout]:
    """Facts about a checkpoint, and the layout in which its tensors as they are would be packed.

    raises CheckpointError, LayoutMismatch
    """
    checkpoint = load_checkpoint(path, key)
    detection = detect(checkpoint)
    layout = _natural_layout(checkpoint, path)
    if detection:  # then its own order counts, as in `prepared`
        layout = (
            detection.architecture.layout.with_dtypes_of(checkpoint)
            if detection.folded
            else Layout.of(_loaded(detection.architecture, checkpoint, path))
        )
    return {
        "format": checkpoint.format,
        "key": checkpoint.key,
        "prefix": checkpoint.prefix or None,
        "architecture": detection.architecture.name if detection else None,
        "class_id": default_class_id(detection.architecture.name) if detection else None,
        "num_parameters": layout.num_parameters,
        "batch_norms": len(batch_norms(checkpoint)),
    }, layout


def check_packable(tensors: Mapping[str, Tensor], path: object) -> None:
    """Raise LayoutMismatch for a tensor that no PRep can hold; integer ones may be buffers, which the layout says."""
    for name, tensor in tensors.items():
        with _named(path):
            beside = stands_beside(name, tensor, "buffer")
        if tensor.is_meta:
            raise LayoutMismatch(f"'{path}': '{name}' is on the meta device, so it has no values; save real tensors.")
        if not beside and dtype_name(tensor.dtype) not in BITS:
            raise LayoutMismatch(
                f"'{path}': '{name}' has dtype {dtype_name(tensor.dtype)}; a PRep holds {listed(BITS)}. Cast it first."
            )


def check_finite(
    tensors: Mapping[str, Tensor],
    path: object,
    after: str = "",
    remedy: str = "pass --allow-nonfinite if they are meant",
) -> None:
    """Raise CheckpointError if a tensor holds NaN or infinity, saying which and how many."""
    import torch

    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        least, greatest = torch.aminmax(tensor)  # NaN wins in both; no mask as large as the tensor
        if bool(torch.isfinite(least)) and bool(torch.isfinite(greatest)):
            continue
        num_nan, num_infinite = int(tensor.isnan().sum()), int(tensor.isinf().sum())
        raise CheckpointError(
            f"'{path}': '{name}' holds {num_nan:,} NaN and {num_infinite:,} infinite of {tensor.numel():,} values"
            f"{after}; {remedy}."
        )


def batch_norms(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the modules that keep running statistics."""
    return [name.rpartition(".")[0] for name in tensors if name.rpartition(".")[2] == "running_var"]


def check_round_trip(prep: PRep, tensors: Mapping[str, Tensor]) -> None:
    """Unpack a PRep and compare every tensor bit for bit with what was packed.

    raises VerificationError with the names that differ
    """
    unpacked = prep.tensors()
    wrong = [name for name, tensor in tensors.items() if name not in unpacked or not same_bits(unpacked[name], tensor)]
    if wrong or len(unpacked) != len(tensors):
        raise VerificationError(f"the round trip failed for {listed(wrong)}; nothing was written. Please report this.")


def prepared(
    checkpoint: Mapping[str, Tensor], architecture: Architecture | None, keep_batch_norm: bool, path: object
) -> tuple[Mapping[str, Tensor], Layout, Fusion | None, Architecture | None]:
    """What a state dict is packed as: tensors, their layout, what was folded, and the architecture.

    path: names the state dict in errors
    raises LayoutMismatch, FusionError as `pack_checkpoint` does
    """
    architecture, folded = _recognised(checkpoint, architecture, path)
    fold_it = bool(batch_norms(checkpoint)) and not folded and not keep_batch_norm
    if architecture is None:
        layout = _natural_layout(checkpoint, path)
        if fold_it:
            raise FusionError(
                _unknown_with_batch_norm(checkpoint, path, ", or pack it with its BatchNorm (--keep-bn)") + "."
            )
        return checkpoint, layout, None, None
    if folded:
        return checkpoint, architecture.layout.with_dtypes_of(checkpoint), None, architecture
    network = _loaded(architecture, checkpoint, path)
    if not fold_it:
        return checkpoint, Layout.of(network), None, architecture
    fusion = _folded(network, architecture, path)
    return fusion.network.state_dict(), Layout.of(fusion.network), fusion, architecture


def _read(path: str | os.PathLike[str], key: str | None) -> Checkpoint:
    """A checkpoint whose tensors can all be packed."""
    if is_prep_file(path):
        raise CheckpointError(f"'{path}' is a PRep already; `prepkit unpack` makes a checkpoint of it.")
    checkpoint = load_checkpoint(path, key)
    check_packable(checkpoint, path)
    return checkpoint


@contextmanager
def _named(path: object) -> Iterator[None]:
    """Put the file's name before a LayoutMismatch that knows the tensor only."""
    try:
        yield
    except LayoutMismatch as error:
        raise LayoutMismatch(f"'{path}': {error}") from None


def _natural_layout(tensors: Mapping[str, Tensor], path: object) -> Layout:
    """The layout of a state dict whose network is unknown."""
    with _named(path):
        layout = Layout.of_tensors(tensors)
    if not layout.total:
        raise LayoutMismatch(f"'{path}': there is nothing to pack: its tensors hold no values.")
    return layout


def _empty(layout: Layout, width: int, height: int | None) -> Tensor:
    import torch

    shape = layout.shape(width, height)
    try:
        return torch.empty(shape.height, shape.width, dtype=torch_dtype(layout.dtype))
    except (RuntimeError, TypeError):  # no memory, or more rows than a 64-bit number counts
        taller = shape.height > layout.shape(width).height
        raise no_memory(shape, layout.dtype, "height, or none" if taller else "width") from None


def no_memory(shape: PRepShape, dtype: str, smaller: str) -> InvalidShape:
    """The error for a PRep that the memory cannot hold, and what should be smaller."""
    size = shape.cells * BITS[dtype] // 8
    return InvalidShape(f"there is no memory for a PRep of {shape} {dtype} ({size:,} bytes); use a smaller {smaller}.")


def _unknown_with_batch_norm(checkpoint: Mapping[str, Tensor], path: object, other_way: str) -> str:
    names = listed([f"'{name}'" for name in batch_norms(checkpoint)], 3)
    return (
        f"'{path}' has BatchNorm ({names}), and its architecture is none of the registered ones, so it cannot be "
        f"folded. Name the network (--arch NAME, or --arch module:callable --input CxHxW){other_way}"
    )


def _recognised(
    checkpoint: Mapping[str, Tensor], architecture: Architecture | None, path: object
) -> tuple[Architecture | None, bool]:
    """The architecture of a checkpoint, and whether the checkpoint is its folded form.

    raises LayoutMismatch if the architecture that was named has other names or shapes
    """
    if architecture is None:
        detection = detect(checkpoint)
        return (detection.architecture, detection.folded) if detection else (None, False)
    if floating_shapes(checkpoint) == architecture.trainable_shapes:
        return architecture, False
    if detect(checkpoint, [architecture]) is None:
        for name in architecture.trainable_shapes.keys() & checkpoint.keys():
            with _named(path):
                stands_beside(name, checkpoint[name], "parameter")  # an integer parameter is there, but cannot be
        raise LayoutMismatch(f"'{path}' is no {architecture.name}: {explain_mismatch(checkpoint, architecture)}")
    return architecture, True


def _loaded(architecture: Architecture, checkpoint: Mapping[str, Tensor], path: object) -> nn.Module:
    """The architecture's network holding the checkpoint's own tensors, not copies cast to its dtype."""
    import torch

    with torch.random.fork_rng(devices=[]):  # fresh weights, drawn to be replaced
        network = architecture.build()
    try:
        tensors = _tied(network, checkpoint)
        network.load_state_dict(tensors, strict=False, assign=True)  # names and shapes were compared
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise LayoutMismatch(f"'{path}' does not load into {architecture.name}: {reason}.") from None
    return network.eval()


def _folded(network: nn.Module, architecture: Architecture, path: object) -> Fusion:
    """The network without BatchNorm; an error names the file."""
    try:
        return fold(network, architecture.example_input(EXAMPLE_BATCH))
    except UnfoldableNetwork as error:
        raise UnfoldableNetwork(f"'{path}': {error}", error.refusals) from error


def _tied(network: nn.Module, checkpoint: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, with one Parameter for all names of one: loading and copying keep such ties.

    A .safetensors file holds tied tensors once for each name; the network says that they are tied.
    raises LayoutMismatch if the values of such names differ
    """
    from torch.nn import Parameter

    tensors = dict(checkpoint)
    for alias, name in Layout.of(network).ties:
        if not same_bits(tensors[alias], tensors[name]):
            raise LayoutMismatch(f"'{alias}' and '{name}' are tied in the network, but their values differ")
        tensors[alias] = tensors[name]
    parameters: dict[object, Parameter] = {}
    for name, _ in network.named_parameters(remove_duplicate=False):
        if name in tensors:
            parameter = Parameter(tensors[name], requires_grad=False)
            tensors[name] = parameters.setdefault(storage_identity(parameter), parameter)
    return tensors


def _cast(tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    target = torch_dtype(dtype)
    cast: dict[object, Tensor] = {}  # each memory once, so that ties stay ties
    for tensor in tensors.values():
        if storage_identity(tensor) not in cast:
            cast[storage_identity(tensor)] = tensor.to(target) if tensor.is_floating_point() else tensor
    return {name: cast[storage_identity(tensor)] for name, tensor in tensors.items()}
