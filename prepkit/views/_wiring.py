"""Which channels feed which layer, found by running a network once beside tensors of node numbers.

Each activation has a companion of its own shape that holds the number of the node (the channel) that each value belongs
to. Operations that only move values do the same to the companion; activations leave it as it is; pooling keeps the
channel; sums of two activations make new nodes, which is how residual edges are found. An operation that is none of
these is named and refused, so no edge is guessed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from prepkit.errors import LayoutMismatch

# fmt: off
MOVES = frozenset((
    "T", "__getitem__", "cat", "channel_shuffle", "chunk", "clone", "concat", "concatenate", "contiguous",
    "detach", "expand", "expand_as", "flatten", "flip", "index_select", "moveaxis", "movedim", "narrow",
    "permute", "pixel_shuffle", "pixel_unshuffle", "ravel", "repeat", "repeat_interleave", "reshape",
    "reshape_as", "roll", "select", "split", "squeeze", "stack", "swapaxes", "swapdims", "tensor_split", "tile",
    "transpose", "unbind", "unflatten", "unsqueeze", "view", "view_as",
))
VALUES = frozenset((
    "abs", "absolute", "alpha_dropout", "bfloat16", "celu", "clamp", "clip", "cos", "data", "div", "divide",
    "double", "dropout", "dropout1d", "dropout2d", "dropout3d", "elu", "exp", "feature_alpha_dropout", "float",
    "gelu", "half", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "log", "log1p",
    "log_softmax", "logsigmoid", "mish", "nan_to_num", "neg", "negative", "pow", "rdiv", "reciprocal", "relu",
    "relu6", "requires_grad_", "rpow", "rrelu", "rsqrt", "rtruediv", "selu", "sigmoid", "sign", "silu", "sin",
    "softmax", "softmin", "softplus", "softshrink", "softsign", "sqrt", "square", "tanh", "tanhshrink",
    "threshold", "to", "true_divide", "truediv", "type", "type_as",
))
# fmt: on
TWO = {"add": "sum", "sub": "sum", "rsub": "sum", "subtract": "sum", "mul": "product", "multiply": "product"}
POOLS = ("avg_pool", "max_pool", "lp_pool", "interpolate", "upsample", "fractional_max_pool")
REDUCTIONS = frozenset(("mean", "sum", "amax", "amin", "logsumexp"))
CONSTANT = -1  # stands for values that no node gives, such as padding with zeros
SPELLINGS = ("__i", "__r", "__")


class Untraceable(LayoutMismatch):
    """The graph of a network cannot be followed."""


@dataclass
class Wiring:
    """What a run tells.

    count:  number of nodes
    inputs: for each layer that ran, the nodes that it reads, in the order of its input features
    first:  for each layer, the number of its first node; the others follow
    joins:  for each sum and product, what it is, its first node, and the nodes of both sides `[2, nodes]`
    given:  the nodes of the network's input: their first and their number; those of an embedding's entries by its name
    """

    count: int = 0
    inputs: dict[str, Tensor] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)
    joins: list[tuple[str, int, Tensor]] = field(default_factory=list)
    given: dict[str, tuple[int, int]] = field(default_factory=dict)

    def new(self, number: int) -> int:
        """Return the number of the first of new nodes."""
        first, self.count = self.count, self.count + number
        return first


def wiring_of(network: nn.Module, channels: dict[str, int], inputs: Tensor) -> Wiring:
    """Run a network in evaluation and return its wiring.

    channels: the number of output channels of each layer, by the name of its module
    raises Untraceable for a network with other operations, or one that does not run
    """
    like = next((tensor for tensor in network.parameters() if tensor.is_floating_point()), inputs)
    inputs = inputs.to(like.device, like.dtype if inputs.is_floating_point() else inputs.dtype)
    failure: Untraceable | None = None
    for axis in (1, inputs.dim() - 1):  # channels of images, then features of tokens
        try:
            return _Run(network, channels, inputs, axis).wiring
        except Untraceable as error:
            failure = failure or error
            if axis == inputs.dim() - 1:
                raise failure from None
    raise AssertionError("there are two axes")


class _Run(TorchFunctionMode):
    """One run; `wiring` is its result."""

    def __init__(self, network: nn.Module, channels: dict[str, int], inputs: Tensor, axis: int) -> None:
        super().__init__()
        self.wiring = Wiring()
        self.channels = channels
        self.nodes: dict[int, tuple[Tensor, Tensor]] = {}  # by id: the activation, which stays alive, and its companion
        self._inside = 0
        if inputs.is_floating_point():
            first = self.wiring.new(inputs.shape[axis])
            self.wiring.given["input"] = (first, inputs.shape[axis])
            self._keep(inputs, _along(first, inputs.shape, axis))
        handles = [
            handle
            for name, module in network.named_modules()
            if name in channels
            for handle in (
                module.register_forward_pre_hook(self._enter),
                module.register_forward_hook(self._leave(name), always_call=True),
            )
        ]
        try:
            with torch.no_grad(), self:
                network(inputs)
        except Untraceable:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise Untraceable(
                f"the network does not run on inputs {list(inputs.shape)}: {reason[0].rstrip('.')}. Give other ones: "
                "graph(of, inputs)."
            ) from None
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, tensor: Tensor, companion: Tensor) -> None:
        self.nodes[id(tensor)] = (tensor, companion)

    def _of(self, value: Any) -> Tensor | None:
        """Return the companion of a tensor that comes from nodes."""
        known = self.nodes.get(id(value))
        return None if known is None else known[1]

    # Layers ---------------------------------------------------------------------------------------------------

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._inside += 1

    def _leave(self, name: str) -> Callable[..., None]:
        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self._inside -= 1
            if isinstance(output, Tensor):
                self._layer(name, module, args, output)

        return leave

    def _layer(self, name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        if name in self.wiring.first:
            raise Untraceable(f"'{name}' runs more than once, so its weights would stand on several edges.")
        given = args[0] if len(args) == 1 else None
        axis = 1 if _is_spatial(module, output) else output.dim() - 1
        with torch._C.DisableTorchFunction():
            if isinstance(module, nn.Embedding | nn.EmbeddingBag):
                first = self.wiring.new(module.num_embeddings)
                self.wiring.given[name] = (first, module.num_embeddings)
                reads = torch.arange(first, first + module.num_embeddings)
            else:
                companion = self._of(given)
                if companion is None:
                    raise Untraceable(f"the input of '{name}' does not come from the network's input alone.")
                reads = _constant_but_along(companion, axis, f"the input of '{name}'")
            self.wiring.inputs[name] = reads
            self.wiring.first[name] = first = self.wiring.new(self.channels[name])
            self._keep(output, _along(first, output.shape, axis))

    # Operations -----------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._inside or not any(self._of(leaf) is not None for leaf in pytree.tree_leaves((args, kwargs))):
            return result
        given = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        with torch._C.DisableTorchFunction():
            if _name(func) == "setitem":
                self._write(*args)
            elif given:
                self._operation(_name(func), func, args, kwargs, given)
        return result

    def _write(self, target: Tensor, place: Any, value: Any) -> None:
        """Do to the companions what `target[place] = value` does."""
        own, written = self._of(target), self._of(value)
        if own is None:
            self._keep(target, own := torch.full(target.shape, CONSTANT))
        own[place] = CONSTANT if written is None else written

    def _operation(self, name: str, func: Any, args: Any, kwargs: Any, given: list[Tensor]) -> None:
        known = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if self._of(leaf) is not None]
        companion = self._of(known[0])
        assert companion is not None
        if name in MOVES:
            self._move(func, args, kwargs, given)
        elif name in TWO and len(known) == 2:
            self._join(TWO[name], known, given[0], companion)
        elif (name in VALUES or name in TWO) and len(known) == 1:
            if given[0] is not known[0]:  # in place, the companion stays
                self._keep(given[0], companion.expand(given[0].shape).clone())
        elif any(pool in name for pool in POOLS):
            kept = _spread(companion, 2, given[0].shape, f"the input of {name}")
            self._keep(given[0], kept)
        elif name in REDUCTIONS:
            self._reduce(name, args, kwargs, given[0], companion)
        elif name == "pad":
            mode = kwargs.get("mode", args[2] if len(args) > 2 else "constant")
            pads = kwargs.get("pad", args[1] if len(args) > 1 else None)
            if mode == "constant":
                self._keep(given[0], nn.functional.pad(companion, pads, value=CONSTANT))
            else:
                self._keep(given[0], nn.functional.pad(companion.double(), pads, mode=mode).long())
        else:
            raise Untraceable(
                f"{name}() of {len(known)} activations is no operation that a graph can follow: it follows layers, "
                "activation functions, sums, products, pooling, concatenation and reshaping."
            )

    def _move(self, func: Any, args: Any, kwargs: Any, given: list[Tensor]) -> None:
        """Do the same to the companions; values that no node gives are constants."""

        def companion(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                return leaf
            known = self._of(leaf)
            return torch.full(leaf.shape, CONSTANT) if known is None else known

        moved = func(*pytree.tree_map(companion, args), **pytree.tree_map(companion, kwargs))
        for tensor, own in zip(given, pytree.tree_leaves(moved), strict=True):
            self._keep(tensor, own)

    def _join(self, kind: str, known: list[Tensor], result: Tensor, companion: Tensor) -> None:
        sides = [self._of(side) for side in known]
        left, right = (side.expand(result.shape).flatten() for side in sides if side is not None)
        base = self.wiring.count + 1  # a number for each pair sorts faster than pairs do
        codes, places = torch.unique((left - CONSTANT) * base + (right - CONSTANT), return_inverse=True)
        pairs = torch.stack([codes // base, codes % base]) + CONSTANT
        if torch.equal(pairs[0], pairs[1]):  # x + x, or x times a function of x
            nodes = pairs[0]
        else:
            first = self.wiring.new(pairs.shape[1])
            self.wiring.joins.append((kind, first, pairs))
            nodes = torch.arange(first, first + pairs.shape[1])
        joined = nodes[places].view(result.shape)
        if any(result is side for side in known):  # in place: views of the same companion change too
            own = self._of(result)
            assert own is not None
            own.copy_(joined)
        else:
            self._keep(result, joined)

    def _reduce(self, name: str, args: Any, kwargs: Any, result: Tensor, companion: Tensor) -> None:
        dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
        keep = kwargs.get("keepdim", args[2] if len(args) > 2 else False)
        axes = list(range(companion.dim())) if dims is None else dims
        low, high = companion.amin(dim=axes, keepdim=keep), companion.amax(dim=axes, keepdim=keep)
        if not torch.equal(low, high):
            raise Untraceable(f"{name}() over channels is no operation that a graph can follow.")
        self._keep(result, low)


def _name(func: Any) -> str:
    """Return the name of a function without what marks it as in place, reflected or a method of an operator."""
    name = str(getattr(func, "__name__", "an operation"))
    if name == "__get__":
        return str(getattr(func.__self__, "__name__", name))
    if name == "__getitem__":
        return name
    for mark in SPELLINGS:
        stem = name.removeprefix(mark).strip("_")
        if name.startswith(mark) and (stem in TWO or stem in VALUES or stem == "setitem"):
            return stem
    return name.rstrip("_") if name != "requires_grad_" else name


def _along(first: int, shape: torch.Size, axis: int) -> Tensor:
    """Return a companion of this shape whose nodes stand along an axis."""
    sizes = [1] * len(shape)
    sizes[axis] = shape[axis]
    return torch.arange(first, first + shape[axis]).view(sizes).expand(shape).contiguous()


def _constant_but_along(companion: Tensor, axis: int, what: str) -> Tensor:
    """Return the nodes along an axis; raises Untraceable if they differ elsewhere."""
    rows = companion.movedim(axis, 0).flatten(1)
    if not bool((rows == rows[:, :1]).all()):
        raise Untraceable(f"{what} has features of several channels in one, or positions with features of their own.")
    return rows[:, 0].clone()


def _spread(companion: Tensor, axes: int, shape: torch.Size, what: str) -> Tensor:
    """Return a companion of another size in space: the first `axes` axes stay."""
    flat = companion.reshape(*companion.shape[:axes], -1)
    if not bool((flat == flat[..., :1]).all()):
        raise Untraceable(f"{what} has channels that differ from place to place.")
    sizes = (*companion.shape[:axes], *[1] * (len(shape) - axes))
    return flat[..., 0].reshape(sizes).expand(shape).contiguous()


def _is_spatial(module: nn.Module, output: Tensor) -> bool:
    """Whether channels are axis 1 of a layer's output, and not the last one."""
    last = nn.Linear | nn.LayerNorm | nn.RMSNorm | nn.Embedding | nn.EmbeddingBag
    return not isinstance(module, last) and output.dim() > 1
