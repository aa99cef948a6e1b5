"""Outputs of layers and BatchNorms in a watched run, what reads them, and what is made of them by moving values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree

_METADATA = """
    shape size dim ndim ndimension numel nelement stride storage_offset element_size itemsize nbytes dtype device layout
    names has_names get_device requires_grad is_leaf is_floating_point is_complex is_signed is_contiguous is_same_size
    is_cpu is_cuda is_mps is_xpu is_meta is_sparse is_sparse_csr is_mkldnn is_quantized is_nested __len__ __hash__
    empty_like zeros_like ones_like full_like new_empty new_empty_strided new_zeros new_ones new_full
"""
METADATA = frozenset(_METADATA.split())  # operations that tell nothing about a tensor's values
_VIEWS = """
    view _unsafe_view reshape _reshape_alias transpose t permute expand slice select unsqueeze squeeze split
    split_with_sizes unbind alias detach narrow unfold
"""
_COPIES = """
    clone cat stack repeat roll flip pixel_shuffle channel_shuffle mean avg_pool1d avg_pool2d avg_pool3d
    adaptive_avg_pool1d _adaptive_avg_pool2d _adaptive_avg_pool3d upsample_nearest1d upsample_nearest2d
    upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d
"""
_COMPOSED = """
    flatten unflatten reshape_as view_as expand_as swapaxes swapdims movedim moveaxis mT T contiguous chunk tensor_split
    hstack vstack concat concatenate __getitem__ ravel interpolate adaptive_avg_pool2d adaptive_avg_pool3d
"""
VIEWS = frozenset(_VIEWS.split())  # operations that give other views of memory
COPIES = frozenset(_COPIES.split())  # operations that move values into new memory, or average them
MOVES = VIEWS | COPIES | frozenset(_COMPOSED.split())  # Python functions that may be made of these


def quoted(name: str) -> str:
    """Return a module's name for a message; the root has no name."""
    return f"'{name}'" if name else "the network itself"


@dataclass(frozen=True)
class Reader:
    """An operation that reads a tensor, and the innermost module in which it runs.

    moves: whether it only moves values about, or averages them, as view, cat and avg_pool2d do
    view:  what it reads of the tensor's storage; None if it may read more than the tensor that it was given
    """

    operation: str
    place: str
    moves: bool = False
    view: View | None = None

    def __str__(self) -> str:
        return f"{self.operation} in {quoted(self.place)}" if self.operation else "the network's return"


@dataclass(frozen=True)
class View:
    """How a tensor lies in its storage, and whose output that is; None if it is no output that is tracked."""

    output: Output | None
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: Tensor, output: Output | None) -> View:
        """Return how a tensor lies in its storage."""
        return cls(output, tuple(tensor.size()), tuple(tensor.stride()), int(tensor.storage_offset()))


@dataclass(eq=False)
class Output:
    """The tensor that a call of a layer or a BatchNorm returned, or that an operation which moves values made of one.

    module:  name of the layer or BatchNorm; of the module in which the operation ran
    view:    how it lies in its storage
    length:  number of values in its storage
    storage: weak reference to the tensor's storage
    call:    function, args and kwargs of the operation, with a View for each tensor; None for a module's output
    readers: operations that read it after the call, in order
    held:    whether something still held it, or a view of it, after the run, and may read it later
    """

    module: str
    view: View
    length: int
    storage: StorageWeakRef
    call: tuple[Any, Any, Any] | None = None
    readers: dict[Reader, None] = field(default_factory=dict)
    held: bool = False

    @property
    def axes(self) -> int:
        """Number of axes of the tensor."""
        return len(self.view.size)

    @property
    def parents(self) -> list[Output | None]:
        """The outputs that an operation read; None for a tensor of which nothing is known."""
        return [leaf.output for leaf in pytree.tree_leaves(self.call) if isinstance(leaf, View)]
