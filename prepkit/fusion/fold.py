"""Folding BatchNorm into the layer before it, with a proof that the network stays the same function.

In evaluation a BatchNorm is a fixed affine map of each channel, so it can be folded into the layer before it:
    w' = w * gamma / sqrt(var + eps)        b' = (b - mean) * gamma / sqrt(var + eps) + beta
(Learning the Space of Deep Models, Supplementary VI). This is right only if nothing else reads that layer's output,
which a list of modules does not tell. So one run of the network is watched (watch.py), the folds that it allows are
planned (plan.py), each fold is compared with the original in its place, and the folded network is compared as a whole
before it is returned. The proof holds for the path that the example input takes.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prepkit.fusion.plan import Step, cannot_fold, plan, refuse_without_values
from prepkit.fusion.watch import Refusal as Refusal
from prepkit.fusion.watch import UnfoldableNetwork as UnfoldableNetwork
from prepkit.fusion.watch import Watch, own_tensors, quoted, storage_key, tensors_in, watch

LIMIT = 1e-9  # relative error in float64; rounding leaves about 1e-15, and the mildest wrong fold far more

Inputs = Tensor | tuple[Any, ...] | dict[str, Any]


@dataclass(frozen=True)
class Folded:
    """The names of a layer and of the BatchNorm that was folded into it."""

    layer: str
    batch_norm: str


@dataclass(frozen=True)
class Fusion:
    """A folded network and its record.

    network:           an equivalent copy in eval mode, in the original's dtypes and on its device
    folded:            the folds, in the order of the run
    kept:              the BatchNorms that were not folded, with reasons; empty unless `keep_unfoldable`
    error_before_cast: max|a - b| / max|a| between the outputs of the original and the folded network in float64
    error_after_cast:  the same once the folded parameters are rounded to their own dtypes (float32: about 1e-7)
    """

    network: nn.Module
    folded: tuple[Folded, ...]
    kept: tuple[Refusal, ...]
    error_before_cast: float
    error_after_cast: float


def fuse_batch_norm(network: nn.Module, example_input: Inputs, *, keep_unfoldable: bool = False) -> nn.Module:
    """Return an equivalent network without BatchNorm, in eval mode; arguments and errors as in `fold`.

    The proof holds for the path that the example input takes through the network, and for evaluation only.

    >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    >>> prepkit.fuse_batch_norm(network, torch.randn(1, 3, 32, 32))
    Sequential(
      (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
      (1): Identity()
      (2): ReLU()
    )
    """
    return fold(network, example_input, keep_unfoldable=keep_unfoldable).network


def fold(network: nn.Module, example_input: Inputs, *, keep_unfoldable: bool = False) -> Fusion:
    """Fold every BatchNorm of a network into the layer before it; the network itself is not changed.

    network:         any module; it is run as in evaluation, in copies, in float64
    example_input:   a tensor, a tuple of positional or a dict of keyword arguments; floating-point values are cast,
                     and all go to the network's device. Put an argument that is a tuple or a dict into `(argument,)`
    keep_unfoldable: leave BatchNorms that cannot be folded in place instead of raising
    raises UnfoldableNetwork, a FusionError, naming every BatchNorm that cannot be folded and why (`.refusals`); also if
    the network cannot be copied or run, if two runs of it differ, or if the folded network is not the same function
    """
    refuse_without_values(network)
    example = _Example.of(network, example_input)
    with torch.no_grad(), example.kept_random_state():
        original = example.float64_copy(network)
        with example.explained("A float64 copy of the network"):
            seen = watch(original, *example.inputs(), network)
            _refuse_without_results(seen)
        steps, refusals = plan(network, original, seen)
        steps, refusals = _without_faults(steps, refusals, _faults(original, steps, seen, example))
        if refusals and not keep_unfoldable:
            raise cannot_fold(refusals, len(seen.batch_norms) + len(seen.functional))
        before = example.error(_apply(example.float64_copy(network), steps), seen.results)
        _refuse_difference(before, LIMIT, "in float64")
        folded = _apply(_copied(network), steps)
        after = example.error(example.float64_copy(folded), seen.results)
        _refuse_difference(after, math.inf, "after the cast to its own dtypes")
    return Fusion(folded, tuple(Folded(s.layer, s.batch_norm) for s in steps), tuple(refusals), before, after)


@dataclass(frozen=True)
class _Example:
    """The arguments of the network's runs, and their device: the network's own, but the CPU in place of mps."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    device: torch.device | None

    @staticmethod
    def of(network: nn.Module, value: Inputs) -> _Example:
        first = next(own_tensors(network), None)
        device = None if first is None else first.device
        if device is not None and device.type == "mps":
            device = torch.device("cpu")  # mps has no float64
        if isinstance(value, dict):
            return _Example((), dict(value), device)
        return _Example(value if isinstance(value, tuple) else (value,), {}, device)

    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return args and kwargs for one run. They are copies, because a network may overwrite its input."""
        args, kwargs = pytree.tree_map(self._own, (self.args, self.kwargs))
        return args, kwargs

    def _own(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return _wide(leaf.detach().clone() if self.device is None else leaf.detach().to(self.device, copy=True))

    def float64_copy(self, network: nn.Module) -> nn.Module:
        """Return a deep copy in eval mode and float64; integers stay integers."""
        copied = _copied(network)
        if any(tensor.device.type == "mps" for tensor in own_tensors(copied)):
            copied.cpu()
        copied._apply(_wide)  # type: ignore[no-untyped-call]
        return copied

    def error(self, network: nn.Module, expected: list[Tensor]) -> float:
        """Return the relative error of a folded float64 network."""
        with self.explained("The folded network"):
            args, kwargs = self.inputs()
            return relative_error(expected, tensors_in(network(*args, **kwargs)))

    @contextmanager
    def explained(self, what: str) -> Iterator[None]:
        """Turn any exception of a run into an UnfoldableNetwork with the input's shapes and the cause, in one line."""
        try:
            yield
        except UnfoldableNetwork:
            raise
        except Exception as error:
            shapes = ", ".join(f"{list(t.shape)} {str(t.dtype)[6:]}" for t in tensors_in((self.args, self.kwargs)))
            cause = f"{what} fails on the example input {shapes or 'without tensors'}: {_one_line(error)}"
            raise UnfoldableNetwork(f"{cause}; pass an input that the network runs on in eval mode.") from error

    def kept_random_state(self) -> Any:
        """Return a context that restores torch's random state, since networks may draw numbers in eval mode too."""
        if self.device is None or self.device.type in ("cpu", "meta"):
            return torch.random.fork_rng(devices=[])
        return torch.random.fork_rng(devices=[self.device], device_type=self.device.type)


def _faults(original: nn.Module, steps: Sequence[Step], seen: Watch, example: _Example) -> dict[str, str]:
    """Return the faults of folds: for each BatchNorm that its folded layer does not replace exactly, the reason.

    Each fold is compared with the original twice in float64: on random input of the shape that was seen, because an
    example of zeros proves little, and in its place in a second run on the example, which must equal the first run.
    """
    trials = [_Trial(step, original) for step in steps]
    faults: dict[str, str] = {}
    for layer in {step.layer: None for step in steps}:
        chain = [trial for trial in trials if trial.step.layer == layer]
        faults.update(_faults_on_noise(original, chain, seen.arguments[layer]))
    with ExitStack() as hooks:
        for trial in trials:
            _compare_in_run(hooks, original, trial, faults)
        with example.explained("A second run of the network"):
            args, kwargs = example.inputs()
            error = relative_error(seen.results, tensors_in(original(*args, **kwargs)))
    if error > LIMIT:
        raise UnfoldableNetwork(
            f"Two runs of the network on the same input differ by {error:.1e}: it draws random numbers or keeps state "
            "in eval mode. Nothing can be proved of it; make it deterministic in eval mode."
        )
    return faults


class _Trial:
    """A folded layer and the replacement of its BatchNorm, to be compared in their place."""

    def __init__(self, step: Step, original: nn.Module) -> None:
        self.step = step
        self.batch_norm = original.get_submodule(step.batch_norm)
        self.layer = copy.deepcopy(original.get_submodule(step.layer))
        _set_parameters(self.layer, step)
        self.replacement = _replacement(self.batch_norm)

    def run(self, args: Any, kwargs: Any) -> Tensor | str:
        """Return the folded output for the layer's arguments, or why the folded layer fails on them."""
        try:
            output: Tensor = self.replacement(self.layer(*args, **kwargs))
        except Exception as problem:
            return f"{quoted(self.step.layer)}, folded, fails in its place: {_one_line(problem)}"
        return output

    def fault(self, expected: Any, folded: Any) -> str | None:
        """Return why the `folded` output is not the `expected` output of the BatchNorm; None if it is."""
        if isinstance(folded, str):
            return folded
        error = relative_error([expected], [folded]) if isinstance(expected, Tensor) else math.inf
        if error <= LIMIT:
            return None
        kinds = f"{type(self.layer).__name__}, {type(self.batch_norm).__name__}"
        return (
            f"{quoted(self.step.layer)}, folded, gives something else in its place (relative error {error:.1e}): "
            f"the forward of one of the two ({kinds}) is more than its class promises"
        )


def _faults_on_noise(original: nn.Module, chain: list[_Trial], arguments: Any) -> dict[str, str]:
    """Compare the trials of one layer, in order, on random values of the shapes in `arguments`; return their faults."""
    args, kwargs = pytree.tree_map(_noise(next(own_tensors(chain[0].layer)).device), arguments)
    faults = {}
    try:
        value = original.get_submodule(chain[0].step.layer)(*args, **kwargs)
        for trial in chain:
            value = trial.batch_norm(value)
            if fault := trial.fault(value, trial.run(args, kwargs)):
                faults[trial.step.batch_norm] = fault
    except Exception as problem:
        reason = f"{quoted(chain[0].step.layer)} and it do not run on random input: {_one_line(problem)}"
        return {trial.step.batch_norm: reason for trial in chain}
    return faults


def _noise(device: torch.device) -> Callable[[Any], Any]:
    """Return a function that gives meta tensors the same random values each time, without the global generator."""
    generator = torch.Generator().manual_seed(0)

    def fill(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_meta:
            return leaf
        return torch.randn(leaf.shape, dtype=leaf.dtype, generator=generator, device="cpu").to(device)

    return fill


_NOT_AGAIN = "it did not return from a second run, so that nothing could be compared"


def _compare_in_run(hooks: ExitStack, original: nn.Module, trial: _Trial, faults: dict[str, str]) -> None:
    """Compare a trial in the next run of `original`; the entry of its BatchNorm in `faults` is the result.

    The folded layer runs right after the original layer, before anything can overwrite their input.
    """
    folded_outputs: list[Any] = []
    name = trial.step.batch_norm
    faults.setdefault(name, _NOT_AGAIN)

    def after_layer(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        folded_outputs.append(trial.run(args, kwargs))

    def after_batch_norm(module: nn.Module, args: Any, output: Any) -> None:
        if fault := trial.fault(output, folded_outputs.pop()):
            faults[name] = fault
        elif faults.get(name) == _NOT_AGAIN:
            del faults[name]

    layer = original.get_submodule(trial.step.layer)
    hooks.enter_context(layer.register_forward_hook(after_layer, with_kwargs=True))
    hooks.enter_context(trial.batch_norm.register_forward_hook(after_batch_norm))


def _without_faults(
    steps: Sequence[Step], refusals: Sequence[Refusal], faults: Mapping[str, str]
) -> tuple[list[Step], list[Refusal]]:
    """Move folds with a fault, and folds into the same layer after them, from the steps to the refusals."""
    good: list[Step] = []
    refused, broken = list(refusals), dict[str, str]()
    for step in steps:
        reason = faults.get(step.batch_norm)
        if step.layer in broken:
            reason = f"it follows BatchNorm {quoted(broken[step.layer])}, which cannot be folded"
        if reason is None:
            good.append(step)
        else:
            broken.setdefault(step.layer, step.batch_norm)
            refused.append(Refusal(step.batch_norm, reason))
    return good, refused


def _apply(network: nn.Module, steps: Sequence[Step]) -> nn.Module:
    """Fold in place and return the network."""
    for step in steps:
        _set_parameters(network.get_submodule(step.layer), step)
        batch_norm = network.get_submodule(step.batch_norm)
        replacement = _replacement(batch_norm)
        for parent in network.modules():  # a module may be registered under several names
            for name in [name for name, child in parent._modules.items() if child is batch_norm]:
                parent._modules[name] = replacement
    return network


def _set_parameters(layer: Any, step: Step) -> None:
    """Give a layer new parameters with the same dtype, device and strides; layers tied to the old ones keep them."""
    weight, bias = layer.weight, layer.bias
    template = weight.new_empty(step.bias.shape) if bias is None else torch.empty_like(bias)
    bias_learns = weight.requires_grad if bias is None else bias.requires_grad
    weight_values = torch.empty_like(weight).copy_(step.weight.to(weight.dtype))  # mps has no float64
    layer.weight = nn.Parameter(weight_values, requires_grad=weight.requires_grad)
    layer.bias = nn.Parameter(template.copy_(step.bias.to(template.dtype)), requires_grad=bias_learns)


def _replacement(batch_norm: nn.Module) -> nn.Module:
    """Return a folded BatchNorm's replacement: the modules that it applies after normalising, as timm's do, or none."""
    children = dict(batch_norm.named_children())
    return (nn.Sequential(OrderedDict(children)) if children else nn.Identity()).eval()


def relative_error(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> float:
    """Return the largest max|a - b| / max|a| over pairs of tensors; infinite if shapes differ or values are not finite.

    If `a` is zero, it is max|b|. Integer and boolean tensors are compared as numbers.
    """
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in actual]:
        return math.inf
    return max((_relative(_number(a), _number(b)) for a, b in zip(expected, actual, strict=True)), default=0.0)


def _relative(a: Tensor, b: Tensor) -> float:
    if not a.numel():
        return 0.0
    error = (a - b.to(a.device)).abs().max().item() / (a.abs().max().item() or 1.0)
    return error if math.isfinite(error) else math.inf


def _number(tensor: Tensor) -> Tensor:
    dense = tensor.to_dense() if tensor.layout != torch.strided else tensor
    return dense.to(torch.complex128 if dense.is_complex() else torch.float64)


def _copied(network: nn.Module) -> nn.Module:
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
        raise UnfoldableNetwork(f"The network cannot be deep-copied: {_one_line(error)}") from error
    if _identities(copied) & _identities(network):
        raise UnfoldableNetwork("The network cannot be deep-copied: its copy shares modules or tensors with it.")
    copied.eval()  # do not use its result: a network may override `train` without returning itself
    return copied


def _identities(network: nn.Module) -> set[tuple[str, int | None]]:
    storages = {storage_key(tensor) for tensor in own_tensors(network)} - {None}
    return {("module", id(module)) for module in network.modules()} | {("storage", key) for key in storages}


def _wide(tensor: Tensor) -> Tensor:
    """Return a floating-point tensor in float64, a complex one in complex128, and any other as it is."""
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.to(torch.float64) if tensor.is_floating_point() else tensor


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _refuse_without_results(seen: Watch) -> None:
    if not any(tensor.numel() for tensor in seen.results):
        raise UnfoldableNetwork(
            "The network's output holds no tensor with values: nothing can be compared. Fold a network that returns "
            "tensors, on an input that is not empty."
        )
    if not all(_number(tensor).isfinite().all() for tensor in seen.results):
        raise UnfoldableNetwork(
            "The network's output on the example input is not finite: nothing can be compared. Use weights without NaN "
            "and infinity, or keep the BatchNorms: pack_checkpoint(keep_batch_norm=True)."
        )


def _refuse_difference(error: float, limit: float, when: str) -> None:
    if error >= limit:
        raise UnfoldableNetwork(
            f"The folded network is not the same function: relative error {error:.1e} {when}. It is not returned; keep "
            "the BatchNorms: pack_checkpoint(keep_batch_norm=True)."
        )
