"""Checking a folded network on an input of another size, since networks may branch on the size of their input.

The proof holds for the path that the example takes. Where the network also runs on a larger or smaller input, folded
and original network are compared there once more, and a fold that changes the network there is at fault.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prepkit.fusion._proof import first_fault_in_folded, keep_outputs, places_of
from prepkit.fusion._watch import Watch
from prepkit.fusion.example import Example, number, relative_error
from prepkit.fusion.step import Step
from prepkit.support.storages import tensors_in

MOST_DOUBLED = 2**11  # values in an input that is still doubled; a larger one is halved, which costs less


@dataclass(frozen=True)
class OtherRun:
    """A run of the original network on an input of another size.

    example: the input
    results: copies of the tensors that the network returned
    calls:   how often each module ran
    """

    example: Example
    results: list[Tensor]
    calls: Counter[str]


def run_at_other_size(network: nn.Module, example: Example) -> OtherRun | None:
    """Run a network on the first input of another size that it accepts; return None if it accepts none."""
    for other in _others(example):
        calls: Counter[str] = Counter()
        try:
            original = other.copy_of(network)
            with ExitStack() as hooks, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for name, module in original.named_modules():
                    if not isinstance(module, torch.jit.ScriptModule):
                        hooks.enter_context(module.register_forward_pre_hook(_counting(calls, name)))
                results = [tensor.clone() for tensor in tensors_in(other.run(original))]
        except Exception:  # most networks that take one size only fail in some layer
            continue
        if any(tensor.numel() for tensor in results) and all(number(t).isfinite().all() for t in results):
            return OtherRun(other, results, calls)
    return None


def _counting(calls: Counter[str], name: str) -> Callable[..., None]:
    def count(module: nn.Module, args: Any) -> None:
        calls[name] += 1

    return count


def faults_at_other_size(
    network: nn.Module, folded: nn.Module, steps: Sequence[Step], seen: Watch, other: OtherRun
) -> dict[str, str]:
    """Return the folds that change a network on the input of another size, each with the reason; none if it is equal.

    Only the first that gives something else in its place is at fault for sure.

    network: the network in its own dtypes; `folded` is its folded copy in the precision, `seen` its first run
    """
    example, folds = other.example, [step for step in steps if step.parts]
    found = _results(folded, example)
    error = relative_error(other.results, found)
    if error <= example.precision.limit:
        return {}
    original = example.copy_of(network)
    if example.allows(error, original, other.results):
        return {}
    kept: dict[str, list[Tensor]] = {}
    with ExitStack() as hooks:
        for name in dict.fromkeys(name for step in folds for name in places_of(step, steps)):
            keep_outputs(hooks, original.get_submodule(name), kept.setdefault(name, []))
        again = _results(original, example)
    if relative_error(other.results, again) > example.precision.limit:
        return {}  # there the network draws random numbers, so that nothing can be compared
    parted = [step for step in folds if _is_parted(step, seen.calls, other.calls)][:1]
    faults = {} if parted else _first_fault(network, steps, kept, other)
    if not faults:
        faults = {step.batch_norm: "the network runs other modules there" for step in parted or folds}
    sizes = _sizes(example)
    return {
        name: f"on an input of another size, {sizes}, the network takes another path: {why}"
        for name, why in faults.items()
    }


def _first_fault(
    network: nn.Module, steps: Sequence[Step], kept: dict[str, list[Tensor]], other: OtherRun
) -> dict[str, str]:
    try:
        return first_fault_in_folded(network, steps, kept, other.results, other.example)
    except Exception:  # the folded network fails where the original does not
        return {}


def _results(network: nn.Module, example: Example) -> list[Tensor]:
    try:
        return tensors_in(example.run(network))
    except Exception:  # it then equals no run of the original
        return []


def _is_parted(step: Step, calls: Counter[str], other_calls: Counter[str]) -> bool:
    """Return whether a BatchNorm and its layers ran as often as each other in one of two runs only."""
    norm, layers = step.batch_norm, [part.layer for part in step.parts if part.function is None]
    return any(calls[norm] * other_calls[layer] != calls[layer] * other_calls[norm] for layer in layers)


def _sizes(example: Example) -> str:
    return " and ".join("x".join(map(str, tensor.shape)) for tensor in tensors_in((example.args, example.kwargs)))


# Inputs of another size ---------------------------------------------------------------------------------------


def _others(example: Example) -> Iterator[Example]:
    """Yield examples of other sizes: the axes of images first, then the axis after the batch, as of tokens."""
    tensors = tensors_in((example.args, example.kwargs))
    largest = max((tensor.numel() for tensor in tensors), default=0)
    factors = (2.0, 0.5) if largest <= MOST_DOUBLED else (0.5,)
    for first in (2, 1):
        for factor in factors:
            resized = pytree.tree_map(_resized(factor, first), (example.args, example.kwargs))
            if any(a.shape != b.shape for a, b in zip(tensors, tensors_in(resized), strict=True)):
                yield replace(example, args=resized[0], kwargs=resized[1])


def _resized(factor: float, first: int) -> Callable[[Any], Any]:
    """Return a function that scales the axes of a tensor from the third on, or the second axis alone.

    The new values are drawn from those of the tensor, so that images stay in their range and token ids are known ones.
    """
    generator = torch.Generator().manual_seed(0)

    def resized(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() <= first or not leaf.numel():
            return leaf
        axes = range(2, leaf.dim()) if first == 2 else [1]
        shape = [max(1, int(size * factor)) if axis in axes else size for axis, size in enumerate(leaf.shape)]
        values = leaf.detach().flatten().cpu()
        chosen = torch.randint(len(values), (int(torch.Size(shape).numel()),), generator=generator, device="cpu")
        return values[chosen].reshape(shape).to(leaf.device)

    return resized
