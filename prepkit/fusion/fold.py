"""Folding BatchNorm into the layers around it, with a proof that the network stays the same function.

In evaluation a BatchNorm is a fixed affine map of each channel, so it can be folded into the layer before it:
    w' = w * gamma / sqrt(var + eps)        b' = (b - mean) * gamma / sqrt(var + eps) + beta
(Learning the Space of Deep Models, Supplementary VI), or into the layers behind it, or it can stay as the affine map.
A fold is right only if nothing else reads that layer's output, which a list of modules does not tell. So one run of the
network is watched (watch.py), the folds that it allows are planned (plan.py, reach.py), each fold is compared with the
original in its place (proof.py), and the folded network is compared as a whole before it is returned. The proof holds
for the path that the example input takes, and where the network takes another size, for the path there (other_size.py).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from prepkit.errors import FusionError, counted
from prepkit.fusion._heads import with_heads_folded
from prepkit.fusion._other_size import faults_at_other_size, run_at_other_size
from prepkit.fusion._plan import Faults, Plan, foreign_norms, plan
from prepkit.fusion._proof import faults_of
from prepkit.fusion._refusing import cannot_fold, refuse_without_values
from prepkit.fusion._watch import Refusal as Refusal
from prepkit.fusion._watch import UnfoldableNetwork as UnfoldableNetwork
from prepkit.fusion._watch import Watch, watch
from prepkit.fusion.example import FLOAT32, Example, Inputs, Precision, copied_network, number
from prepkit.fusion.step import Step, applied
from prepkit.support.text import Brief

KeepUnfoldable = bool | Literal["affine"]


@dataclass(frozen=True)
class Folded:
    """The names of a layer and of the BatchNorm that was folded into it."""

    layer: str
    batch_norm: str


@dataclass(frozen=True, repr=False)
class Fusion(Brief):
    """A folded network and its record.

    network:           an equivalent copy in eval mode, in the original's dtypes and on its device
    folded:            the folds, in the order of the run; a BatchNorm that goes into several layers stands there often
    kept:              the BatchNorms that were not folded, with reasons; empty unless `keep_unfoldable` is True
    error_before_cast: max|a - b| / max|a| between the outputs of the original and the folded network in `precision`
    error_after_cast:  the same once the folded parameters are rounded to their own dtypes (float32: about 1e-7)
    affine:            the BatchNorms that became a scale and a shift of each channel, and why they were not folded
    steps:             what was done with each BatchNorm, to be done again on networks of the same architecture
    precision:         float64; float32 if the network runs in nothing else
    """

    network: nn.Module
    folded: tuple[Folded, ...]
    kept: tuple[Refusal, ...]
    error_before_cast: float
    error_after_cast: float
    affine: tuple[Refusal, ...] = ()
    steps: tuple[Step, ...] = ()
    precision: str = "float64"

    @property
    def cost_of_cast(self) -> float:
        """How far rounding the folded values to their dtypes changes the outputs; 0 where it is no more than usual."""
        return self.error_after_cast if self.error_after_cast > self._coarsest.eps**0.5 else 0.0

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about the fold; empty if there is nothing unusual."""
        if not self.cost_of_cast:
            return ()
        return (
            f"rounding the folded values to {self._coarsest.dtype} changes the outputs by {self.cost_of_cast:.1%}, "
            f"since this network reacts strongly to rounding. {REMEDY}",
        )

    @property
    def _coarsest(self) -> torch.finfo:
        dtypes = {tensor.dtype for tensor in self.network.state_dict().values() if tensor.is_floating_point()}
        return max(map(torch.finfo, dtypes or {torch.float64}), key=lambda info: info.eps)


REMEDY = (
    "Measure its accuracy, cast the checkpoint to float64 before folding, or pack it with its BatchNorm "
    "(keep_batch_norm=True)."
)


def note_on_costs(costs: Mapping[str, float], what: str, remedy: str = REMEDY) -> tuple[str, ...]:
    """Return a sentence on networks of which rounding the folded values changes the outputs; none if there is none.

    costs: for each name, `Fusion.cost_of_cast` where it is not 0
    what:  what the names name, such as "model"
    """
    if not costs:
        return ()
    largest = max(costs, key=costs.__getitem__)
    alone = len(costs) == 1
    return (
        f"rounding the folded values changes the outputs of {counted(len(costs), what)} by "
        f"{'' if alone else 'up to '}{costs[largest]:.1%} ({largest}), since "
        f"{'it reacts' if alone else 'they react'} strongly to rounding. {remedy}",
    )


def fuse_batch_norm(network: nn.Module, example_input: Inputs, *, keep_unfoldable: KeepUnfoldable = False) -> nn.Module:
    """Return an equivalent network without BatchNorm, in eval mode; arguments and errors as in `fold`.

    The proof holds for the path that the example input takes through the network, compared once more at another size
    of input where the network accepts one, and for evaluation only.

    >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    >>> prepkit.fuse_batch_norm(network, torch.randn(1, 3, 32, 32))
    Sequential(
      (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
      (1): Identity()
      (2): ReLU()
    )
    """
    return fold(network, example_input, keep_unfoldable=keep_unfoldable).network


def fold(network: nn.Module, example_input: Inputs, *, keep_unfoldable: KeepUnfoldable = False) -> Fusion:
    """Fold every BatchNorm of a network into a layer; the network itself is not changed.

    network:         any module; it is run as in evaluation, in copies, in float64
    example_input:   a tensor, a tuple of positional or a dict of keyword arguments; floating-point values are cast,
                     and all go to the network's device. Put an argument that is a tuple or a dict into `(argument,)`
    keep_unfoldable: what becomes of BatchNorms that cannot be folded: False raises, True leaves them in place, and
                     "affine" makes each a scale and a shift of each channel, which is what it is in evaluation
    raises UnfoldableNetwork, a FusionError, naming every BatchNorm that cannot be folded and why (`.refusals`); also if
    the network cannot be copied or run, if two runs of it differ, or if the folded network is not the same function
    """
    if keep_unfoldable not in (True, False, "affine"):
        raise FusionError(f'keep_unfoldable is {keep_unfoldable!r}; give True, False or "affine".')
    refuse_without_values(network)
    example = Example.of(network, example_input)
    with torch.no_grad(), example.kept_random_state(), _without_compiler():
        original, seen, example = _watched(network, example)
        planned, before = _proved_plan(network, original, seen, example, keep_unfoldable == "affine")
        if planned.refusals and keep_unfoldable is not True:
            total = len(seen.batch_norms) + len(seen.functional) + len(foreign_norms(original))
            raise cannot_fold(network, planned.refusals, total, planned.mappable)
        if not example.allows(before, original, seen.results):
            raise _another_function(before, f"in {example.precision.name}")
        planned = with_heads_folded(network, planned, seen, example)
        folded = applied(planned.steps, copied_network(network))
        after = example.error(example.copy_of(folded), seen.results)
        if not math.isfinite(after):
            raise _another_function(after, "after the cast to its own dtypes")
    fusion = fusion_of(folded, planned.steps, before, after, example.precision)
    return replace(fusion, kept=tuple(planned.refusals))


def fusion_of(folded: nn.Module, steps: Sequence[Step], before: float, after: float, precision: Precision) -> Fusion:
    """Return the record of a folded network in which all BatchNorms of the steps are gone."""
    return Fusion(
        folded,
        tuple(Folded(part.layer, step.batch_norm) for step in steps for part in step.parts),
        (),
        before,
        after,
        tuple(Refusal(step.batch_norm, step.reason) for step in steps if step.kind == "affine"),
        tuple(steps),
        precision.name,
    )


def _without_compiler() -> AbstractContextManager[object]:
    """Return a context in which compiled modules run as they were written, so that their operations can be watched."""
    compiler_is_loaded = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if compiler_is_loaded else nullcontext()


def _watched(network: nn.Module, example: Example) -> tuple[nn.Module, Watch, Example]:
    """Watch a run of a float64 copy; of a float32 copy, on an example in float32, if the network runs in that only."""
    try:
        return *_watched_copy(network, example), example
    except UnfoldableNetwork as error:
        if error.__cause__ is None:
            raise
        try:
            example = replace(example, precision=FLOAT32)
            return *_watched_copy(network, example), example
        except UnfoldableNetwork:
            raise error from error.__cause__


def _watched_copy(network: nn.Module, example: Example) -> tuple[nn.Module, Watch]:
    original = example.copy_of(network)
    with example.explained(f"A {example.precision.name} copy of the network"):
        seen = watch(original, *example.inputs(), network)
        _refuse_without_results(seen)
    return original, seen


def _proved_plan(
    network: nn.Module, original: nn.Module, seen: Watch, example: Example, with_maps: bool
) -> tuple[Plan, float]:
    """Plan until all steps are proved: what the proof finds wrong is planned in another way, or refused.

    Return the plan, and the relative error of the whole folded network, which may be too large.
    """
    faults = Faults()
    other = None
    while True:
        planned = plan(network, original, seen, faults, with_maps)
        wrong = faults_of(network, original, planned.steps, seen, example)
        if not wrong:
            folded = applied(planned.steps, example.copy_of(network))
            error = example.error(folded, seen.results)
            if not planned.has_folds or not example.allows(error, original, seen.results):
                return planned, error
            other = other or run_at_other_size(network, example)
            wrong = {} if other is None else faults_at_other_size(network, folded, planned.steps, seen, other)
        if not wrong:
            return planned, error
        layers = set[str]()
        for step in planned.steps:
            if step.batch_norm in wrong and step.kind == "affine":
                faults.maps[step.batch_norm] = wrong[step.batch_norm]
            elif step.batch_norm in wrong and step.layer not in layers:
                layers.add(step.layer)  # only the first in a row of BatchNorms is at fault for sure
                faults.folds[step.batch_norm] = wrong[step.batch_norm]


def _refuse_without_results(seen: Watch) -> None:
    if not any(tensor.numel() for tensor in seen.results):
        raise UnfoldableNetwork(
            "The network's output holds no tensor with values: nothing can be compared. Fold a network that returns "
            "tensors, on an input that is not empty."
        )
    if not all(number(tensor).isfinite().all() for tensor in seen.results):
        raise UnfoldableNetwork(
            "The network's output on the example input is not finite: nothing can be compared. Use weights without NaN "
            "and infinity, or keep the BatchNorms: pack_checkpoint(keep_batch_norm=True)."
        )


def _another_function(error: float, when: str) -> UnfoldableNetwork:
    return UnfoldableNetwork(
        f"The folded network is not the same function: relative error {error:.1e} {when}. It is not returned; keep "
        "the BatchNorms: pack_checkpoint(keep_batch_norm=True)."
    )
