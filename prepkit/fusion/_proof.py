"""The proof that steps change nothing: each BatchNorm, or the layer that takes it in, is compared in its place."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prepkit.fusion._site import standard_layer
from prepkit.fusion._watch import UnfoldableNetwork, Watch, quoted
from prepkit.fusion.example import Example, one_line, relative_error
from prepkit.fusion.norm import affine, num_channels, scale_and_shift
from prepkit.fusion.step import Step, applied, replacement, set_parameters, tensor_name
from prepkit.support.storages import own_tensors, storage_key, tensors_in

_NOT_AGAIN = "it did not return from a second run, so that nothing could be compared"


def faults_of(
    network: nn.Module, original: nn.Module, steps: Sequence[Step], seen: Watch, example: Example
) -> dict[str, str]:
    """Return the faults of steps: for each BatchNorm that its replacement does not equal, the reason.

    Each step is compared with the original twice: on random input of the shape that was seen, because an example of
    zeros proves little, and in its place in a second run on the example, which must equal the first run. Folds that
    reach over other operations are compared in a run of the whole folded network.

    network: the network in its own dtypes; `original` is its copy that ran
    """
    trials = [_Trial(step, original, example) for step in steps if step.is_direct]
    faults: dict[str, str] = {}
    for layer in {trial.step.layer: None for trial in trials}:
        chain = [trial for trial in trials if trial.step.layer == layer]
        faults.update(_faults_on_noise(original, chain, seen.arguments[layer]))
    for step in steps:
        if step.is_direct:
            continue
        fault = _fault_as_map(original, step, seen, example) or _fault_of_layers(original, step, seen, example)
        if fault:
            faults[step.batch_norm] = fault
    far = [step for step in steps if step.parts and not step.is_direct]
    kept: dict[str, list[Tensor]] = {}
    with ExitStack() as hooks:
        for trial in trials:
            _compare_in_run(hooks, original, trial, faults)
        for step in steps:
            if step.kind == "affine" and seen.calls[step.batch_norm]:
                _compare_map_in_run(hooks, original, step, example, faults)
        for name in dict.fromkeys(name for step in far for name in places_of(step, steps)):
            keep_outputs(hooks, original.get_submodule(name), kept.setdefault(name, []))
        with example.explained("A second run of the network"):
            error = relative_error(seen.results, tensors_in(example.run(original)))
    if error > example.precision.limit:
        raise UnfoldableNetwork(
            f"Two runs of the network on the same input differ by {error:.1e}: it draws random numbers or keeps state "
            "in eval mode. Nothing can be proved of it; make it deterministic in eval mode."
        )
    if far and not faults:
        faults.update(first_fault_in_folded(network, steps, kept, seen.results, example))
    return faults


class _Trial:
    """A folded layer and the replacement of its BatchNorm, to be compared in their place."""

    def __init__(self, step: Step, original: nn.Module, example: Example) -> None:
        self.step, self.limit = step, example.precision.limit
        self.batch_norm = original.get_submodule(step.batch_norm)
        self.layer = copy.deepcopy(original.get_submodule(step.layer))
        weight, bias = (step.values[tensor_name(step.layer, kind)] for kind in ("weight", "bias"))
        set_parameters(self.layer, weight, bias)
        self.replacement = replacement(step, self.batch_norm)

    def run(self, args: Any, kwargs: Any) -> Tensor | str:
        """Return the folded output for the layer's arguments, or why the folded layer fails on them."""
        try:
            output: Tensor = self.replacement(self.layer(*args, **kwargs))
        except Exception as problem:
            return f"{quoted(self.step.layer)}, folded, fails in its place: {one_line(problem)}"
        return output

    def fault(self, expected: Any, folded: Any) -> str | None:
        """Return why the `folded` output is not the `expected` output of the BatchNorm; None if it is."""
        if isinstance(folded, str):
            return folded
        error = relative_error([expected], [folded]) if isinstance(expected, Tensor) else math.inf
        if error <= self.limit:
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
        reason = f"{quoted(chain[0].step.layer)} and it do not run on random input: {one_line(problem)}"
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


def _compare_in_run(hooks: ExitStack, original: nn.Module, trial: _Trial, faults: dict[str, str]) -> None:
    """Compare a trial in the next run of `original`; the entry of its BatchNorm in `faults` is the result.

    The folded layer runs right after the original layer, before anything can overwrite their input.
    """
    folded_outputs: dict[int | None, Any] = {}  # by the storage of the layer's output, which the BatchNorm reads
    name = trial.step.batch_norm
    source = original.get_submodule(trial.step.layer)
    faults.setdefault(name, _NOT_AGAIN)

    def after_layer(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        folded_outputs[storage_key(output)] = trial.run(args, kwargs)

    def after_batch_norm(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        key = next((storage_key(read) for read in [*args, *kwargs.values()] if isinstance(read, Tensor)), None)
        if key not in folded_outputs:  # it reads another BatchNorm's output
            key = next(iter(folded_outputs))
        if fault := trial.fault(output, folded_outputs.pop(key)):
            faults[name] = fault
        elif faults.get(name) == _NOT_AGAIN:
            del faults[name]

    hooks.enter_context(source.register_forward_hook(after_layer, with_kwargs=True))
    hooks.enter_context(trial.batch_norm.register_forward_hook(after_batch_norm, with_kwargs=True))


def _map_of(original: nn.Module, step: Step) -> nn.Module:
    """Return the affine map that a BatchNorm is, whatever the step makes of it."""
    norm = original.get_submodule(step.batch_norm)
    return replacement(step, norm) if step.kind == "affine" else affine(norm, *scale_and_shift(norm))


def _fault_as_map(original: nn.Module, step: Step, seen: Watch, example: Example) -> str | None:
    """Return why a BatchNorm is not its affine map on random input; None if it is."""
    norm = original.get_submodule(step.batch_norm)
    fill = _noise(next(own_tensors(norm)).device)
    if step.batch_norm in seen.arguments:
        shapes = [seen.arguments[step.batch_norm]]
    else:  # it never ran, so that any shape that it takes will do
        sizes = [(2, num_channels(norm), *space) for space in ([3, 3], [3], [], [3, 3, 3])]
        shapes = [((torch.empty(size, dtype=example.precision.dtype, device="meta"),), {}) for size in sizes]
    reason = ""
    for arguments in shapes:
        args, kwargs = pytree.tree_map(fill, arguments)
        try:
            expected, found = norm(*args, **kwargs), _map_of(original, step)(*args, **kwargs)
        except Exception as problem:
            reason = reason or f"it or its affine map does not run on random input: {one_line(problem)}"
            continue
        return _map_fault(norm, expected, found, example)
    return reason


def _map_fault(norm: nn.Module, expected: Any, found: Any, example: Example) -> str | None:
    error = relative_error([expected], [found]) if isinstance(expected, Tensor) else math.inf
    if error <= example.precision.limit:
        return None
    return (
        f"it is not the affine map of its weight, bias and statistics (relative error {error:.1e}): "
        f"the forward of {type(norm).__name__} does something else"
    )


def _compare_map_in_run(
    hooks: ExitStack, original: nn.Module, step: Step, example: Example, faults: dict[str, str]
) -> None:
    """Compare a BatchNorm with its affine map in the next run of `original`."""
    name, affine_map = step.batch_norm, _map_of(original, step)
    faults.setdefault(name, _NOT_AGAIN)

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        try:
            fault = _map_fault(module, output, affine_map(*args, **kwargs), example)
        except Exception as problem:
            fault = f"its affine map fails in its place: {one_line(problem)}"
        if fault:
            faults[name] = fault
        elif faults.get(name) == _NOT_AGAIN:
            del faults[name]

    hooks.enter_context(original.get_submodule(name).register_forward_hook(after, with_kwargs=True))


def _fault_of_layers(original: nn.Module, step: Step, seen: Watch, example: Example) -> str | None:
    """Return which layer of a step does not compute what torch's class does on random input; None if all do."""
    for part in step.parts:
        if part.function is not None:
            continue
        layer: Any = original.get_submodule(part.layer)
        plain = copy.copy(layer)  # shares the parameters
        plain.__class__ = standard_layer(layer)
        if type(layer) is type(plain):
            continue
        args, kwargs = pytree.tree_map(_noise(next(own_tensors(layer)).device), seen.arguments[part.layer])
        try:
            error = relative_error([plain(*args, **kwargs)], [layer(*args, **kwargs)])
        except Exception as problem:
            return f"{quoted(part.layer)} does not run on random input: {one_line(problem)}"
        if error > example.precision.limit:
            return (
                f"{quoted(part.layer)} computes something else than torch's {type(plain).__name__} "
                f"(relative error {error:.1e}): the forward of {type(layer).__name__} is more"
            )
    return None


# Folds that reach over other operations -----------------------------------------------------------------------


def places_of(step: Step, steps: Sequence[Step]) -> list[str]:
    """Return the modules whose outputs are the same before and after a fold; none if later folds change them all."""
    if step.kind == "into":
        later = steps[steps.index(step) + 1 :]
        return [] if any(other.kind == "into" and _meet(step, other) for other in later) else [step.batch_norm]
    # A layer that takes in a BatchNorm from behind too has its old output only after that BatchNorm.
    last = {part.layer: into.batch_norm for into in steps if into.kind == "into" for part in into.parts}
    return [last.get(part.layer, part.layer) for part in step.parts]


def _meet(step: Step, other: Step) -> bool:
    """Return whether two BatchNorms go into one feature of a layer, so that one reads the other's output."""
    for part in step.parts:
        for another in other.parts:
            if part.layer == another.layer:
                if part.channels is None or another.channels is None:
                    return True
                if bool(((part.channels >= 0) & (another.channels >= 0)).any()):
                    return True
    return False


def keep_outputs(hooks: ExitStack, module: nn.Module, kept: list[Tensor]) -> None:
    """Append a copy of each output of a module to `kept`, as long as the hooks live."""

    def after(module: nn.Module, args: Any, output: Any) -> None:
        kept.append(output.detach().clone())

    hooks.enter_context(module.register_forward_hook(after))


def first_fault_in_folded(
    network: nn.Module,
    steps: Sequence[Step],
    kept: dict[str, list[Tensor]],
    results: Sequence[Tensor],
    example: Example,
) -> dict[str, str]:
    """Run the folded network, and return the first fold that does not give what the original gave in its place.

    Only the first is at fault for sure: what comes later may read its output.

    kept:    outputs of the original's modules on the example, call by call; folds without them are not compared
    results: what the original returned for the example
    """
    faults: dict[str, str] = {}
    folded, original = applied(steps, example.copy_of(network)), example.copy_of(network)

    def compared(step: Step, outputs: list[Tensor]) -> Callable[..., None]:
        def after(module: nn.Module, args: Any, output: Any) -> None:
            error = relative_error(outputs[:1], [output])
            del outputs[:1]
            if not faults and not example.allows(error, original, results):
                layers = " and ".join(quoted(part.layer) for part in step.parts)
                faults[step.batch_norm] = f"{layers}, folded, give something else in place (relative error {error:.1e})"

        return after

    with ExitStack() as hooks:
        for step in steps:
            for name in places_of(step, steps) if step.parts else ():
                if name in kept:
                    module = folded.get_submodule(name)
                    hooks.enter_context(module.register_forward_hook(compared(step, [*kept[name]])))
        with example.explained("The folded network"):
            example.run(folded)
    return faults
