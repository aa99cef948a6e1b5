"""The runs of a network on its example input, in copies, and how far their outputs may be apart."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd as Dropout
from torch.utils import _pytree as pytree

from prepkit.fusion._watch import UnfoldableNetwork
from prepkit.fusion.norm import is_norm
from prepkit.support.device import is_out_of_memory
from prepkit.support.storages import own_tensors, storage_key, tensors_in
from prepkit.support.text import readable_bytes

MARGIN = 100  # a fold may change as much as this many times the network's reaction to rounding

PASS_ANOTHER = "pass an input that the network runs on in eval mode."
Inputs = Tensor | tuple[Any, ...] | dict[str, Any]


@dataclass(frozen=True)
class Precision:
    """The dtype in which a network is run and compared.

    limit:   relative error that is always allowed
    noise:   relative noise in the input, a few times the rounding, to which a network's reaction is measured
    ceiling: relative error that is never allowed, however strongly the network reacts
    """

    dtype: torch.dtype
    complex_dtype: torch.dtype
    limit: float
    noise: float
    ceiling: float

    @property
    def name(self) -> str:
        """Name of the dtype."""
        return str(self.dtype).removeprefix("torch.")

    def cast(self, tensor: Tensor) -> Tensor:
        """Return a floating-point or complex tensor in this precision, and any other as it is."""
        if tensor.is_complex():
            return tensor.to(self.complex_dtype)
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def shaken(self, inputs: Tensor) -> Tensor:
        """Return inputs with relative noise as small as rounding, the same each time."""
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(inputs.shape, dtype=inputs.dtype, generator=generator, device="cpu")
        return inputs * (1 + self.noise * values.to(inputs.device))


# Rounding leaves about 1e-15 in float64, and the mildest wrong fold far more than 1e-9.
FLOAT64 = Precision(torch.float64, torch.complex128, 1e-9, 1e-15, 1e-5)
FLOAT32 = Precision(torch.float32, torch.complex64, 1e-4, 1e-6, 1e-2)  # for networks that cannot run in float64


@dataclass(frozen=True)
class Example:
    """The arguments of the network's runs, their device, and the precision.

    device:      the network's own, but the CPU in place of mps
    in_training: whether copies take the path of training; BatchNorms and dropouts still do what they do in evaluation
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    device: torch.device | None
    precision: Precision = FLOAT64
    in_training: bool = False

    @staticmethod
    def of(network: nn.Module, value: Inputs) -> Example:
        """Return the example for a network, from what the user gave."""
        first = next(own_tensors(network), None)
        device = None if first is None else first.device
        if device is not None and device.type == "mps":
            device = torch.device("cpu")  # mps has no float64
        if isinstance(value, dict):
            return Example((), dict(value), device)
        return Example(value if isinstance(value, tuple) else (value,), {}, device)

    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return args and kwargs for one run. They are copies, because a network may overwrite its input."""
        args, kwargs = pytree.tree_map(self._own, (self.args, self.kwargs))
        return args, kwargs

    def run(self, network: nn.Module) -> Any:
        """Return what a network in the precision returns for the example."""
        return self._run(network, self.inputs())

    def _run(self, network: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
        self.seed()
        return network(*inputs[0], **inputs[1])

    def seed(self) -> None:
        """On the path of training, make the next run draw the same random numbers as every other."""
        if self.in_training:
            torch.manual_seed(0)

    def _own(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return self.precision.cast(
            leaf.detach().clone() if self.device is None else leaf.detach().to(self.device, copy=True)
        )

    def copy_of(self, network: nn.Module) -> nn.Module:
        """Return a deep copy in eval mode and in the precision; integers stay integers."""
        copied = copied_network(network)
        if any(tensor.device.type == "mps" for tensor in own_tensors(copied)):
            copied.cpu()
        copied._apply(self.precision.cast)  # type: ignore[no-untyped-call]
        if self.in_training:
            for module in copied.modules():
                module.training = not is_norm(module) and not isinstance(module, Dropout)
        return copied

    def allows(self, error: float, network: nn.Module, results: Sequence[Tensor]) -> bool:
        """Return whether an error is rounding: below the limit, or no more than the network makes of rounded inputs.

        results: what the network returns for the example
        """
        if error <= self.precision.limit:
            return True
        return error <= min(MARGIN * self._reaction(network, results), self.precision.ceiling)

    def _reaction(self, network: nn.Module, results: Sequence[Tensor]) -> float:
        """Return the relative change of the outputs for tiny noise in the inputs."""

        def shaken(leaf: Any) -> Any:
            return self.precision.shaken(leaf) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

        return relative_error(results, tensors_in(self._run(network, pytree.tree_map(shaken, self.inputs()))))

    def error(self, network: nn.Module, expected: list[Tensor]) -> float:
        """Return the relative error of a folded network in the precision."""
        with self.explained("The folded network"):
            return relative_error(expected, tensors_in(self.run(network)))

    @contextmanager
    def explained(self, what: str) -> Iterator[None]:
        """Turn any exception of a run into an UnfoldableNetwork with the input's shapes and the cause, in one line."""
        try:
            yield
        except UnfoldableNetwork:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise _no_memory() from error
            shapes = ", ".join(f"{list(t.shape)} {str(t.dtype)[6:]}" for t in tensors_in((self.args, self.kwargs)))
            cause = f"{what} fails on the example input {shapes or 'without tensors'}: {one_line(error)}"
            raise UnfoldableNetwork(f"{cause}; {PASS_ANOTHER}") from error

    def kept_random_state(self) -> Any:
        """Return a context that restores torch's random state, since networks may draw numbers in eval mode too."""
        if self.device is None or self.device.type in ("cpu", "meta"):
            return torch.random.fork_rng(devices=[])
        return torch.random.fork_rng(devices=[self.device], device_type=self.device.type)


def relative_error(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> float:
    """Return the largest max|a - b| / max|a| over pairs of tensors; infinite if shapes differ or values are not finite.

    If `a` is zero, it is max|b|. Integer and boolean tensors are compared as numbers.
    """
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in actual]:
        return math.inf
    return max((_relative(number(a), number(b)) for a, b in zip(expected, actual, strict=True)), default=0.0)


def _relative(a: Tensor, b: Tensor) -> float:
    if not a.numel():
        return 0.0
    error = (a - b.to(a.device)).abs().max().item() / (a.abs().max().item() or 1.0)
    return error if math.isfinite(error) else math.inf


def number(tensor: Tensor) -> Tensor:
    """Return a tensor of any kind as dense numbers in float64."""
    dense = tensor.to_dense() if tensor.layout != torch.strided else tensor
    return dense.to(torch.complex128 if dense.is_complex() else torch.float64)


def copied_network(network: nn.Module) -> nn.Module:
    """Return a deep copy in eval mode that shares nothing with the network."""
    # torch refuses to copy tensors that an operation under autograd made, such as the weight that weight_norm caches.
    cached = {
        id(value): value.detach().clone()
        for module in network.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        copied = copy.deepcopy(network, cached)
    except Exception as error:
        if is_out_of_memory(error):
            raise _no_memory(network) from error
        raise UnfoldableNetwork(f"The network cannot be deep-copied: {one_line(error)}") from error
    if _identities(copied) & _identities(network):
        raise UnfoldableNetwork("The network cannot be deep-copied: its copy shares modules or tensors with it.")
    copied.eval()  # do not use its result: a network may override `train` without returning itself
    return copied


def _no_memory(network: nn.Module | None = None) -> UnfoldableNetwork:
    """Return the error for a network whose copies or runs do not fit the memory."""
    values = sum(tensor.numel() for tensor in own_tensors(network)) if network else 0
    size = f", {readable_bytes(8 * values)} each" if values else ""
    return UnfoldableNetwork(
        f"There is no memory to prove the fold, which runs copies of the network in float64{size}. Fold it where there "
        "is more memory, or keep the BatchNorms: pack_checkpoint(keep_batch_norm=True)."
    )


def _identities(network: nn.Module) -> set[tuple[str, int | None]]:
    storages = {storage_key(tensor) for tensor in own_tensors(network)} - {None}
    return {("module", id(module)) for module in network.modules()} | {("storage", key) for key in storages}


def one_line(error: Exception) -> str:
    """Return an exception's type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
