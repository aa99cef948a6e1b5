"""Folding BatchNorms of heads that run in training only, in a run on the path of training.

An evaluation never calls such a head, so that nothing can be proved of it there. The same proof holds in a copy that
takes the path of training, with BatchNorms and dropouts as in evaluation and the same random numbers in each run.
Layers that evaluation uses do not change.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from prepkit.fusion._plan import NEVER_CALLED, Faults, Plan, plan_heads
from prepkit.fusion._proof import faults_of
from prepkit.fusion._watch import UnfoldableNetwork, Watch, quoted, watch
from prepkit.fusion.example import Example, one_line
from prepkit.fusion.step import Step, applied

NEITHER = "neither did one in training mode"


def with_heads_folded(network: nn.Module, planned: Plan, seen: Watch, example: Example) -> Plan:
    """Return the plan with folds in place of the affine maps of heads, where folds can be proved.

    A map that stays gets the reason why it could not be folded.

    seen: the run in evaluation
    """
    heads = [step.batch_norm for step in planned.steps if step.kind == "affine" and step.reason == NEVER_CALLED]
    if not heads:
        return planned
    folds, reasons = _folds_of(network, heads, seen, replace(example, in_training=True))
    steps = [
        folds.get(step.batch_norm) or (_explained(step, reasons) if step.batch_norm in heads else step)
        for step in planned.steps
    ]
    return replace(planned, steps=steps)


def _explained(step: Step, reasons: dict[str, str]) -> Step:
    return replace(step, reason=f"{step.reason}; {reasons[step.batch_norm]}")


def _folds_of(
    network: nn.Module, heads: list[str], seen: Watch, example: Example
) -> tuple[dict[str, Step], dict[str, str]]:
    """Return the folds of heads that are proved on the path of training, and the reasons against others."""
    original = example.copy_of(network)
    busy = {name for name in seen.layers if seen.calls[name] or name in seen.outside}
    try:
        example.seed()
        there = watch(original, *example.inputs(), network)
        if idle := [name for name in heads if name not in there.sources]:
            why = f"a run in training mode never called {quoted(idle[0])}, which may share its layer"
            return {}, {name: NEITHER if name in idle else why for name in heads}
        faults = Faults()
        while True:
            folds, left = plan_heads(network, original, there, faults, heads, busy)
            wrong = faults_of(network, original, list(folds.values()), there, example) if folds else {}
            faults.folds |= wrong
            if not wrong:
                break
        error = example.error(applied(list(folds.values()), example.copy_of(network)), there.results)
        if not example.allows(error, original, there.results):
            return {}, dict.fromkeys(
                heads, f"in training mode, a fold changes the outputs (relative error {error:.1e})"
            )
    except UnfoldableNetwork as error:
        return {}, dict.fromkeys(heads, f"in training mode: {str(error).rstrip('.')}")
    except Exception as error:
        return {}, dict.fromkeys(heads, f"in training mode, the network fails on the example: {one_line(error)}")
    return folds, {name: f"in training mode, {reason}" for name, reason in left.items()}
