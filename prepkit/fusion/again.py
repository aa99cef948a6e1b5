"""Folding a network by steps that were proved for another network of the same architecture.

Which BatchNorm goes into which layer depends on the architecture alone, so it needs to be found out and proved once.
Other networks take the same formula, and for each of them the outputs before and after are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from prepkit.errors import VerificationError
from prepkit.fusion.example import Example, Inputs, Precision
from prepkit.fusion.step import Step, Values, applied, new_values, overflow
from prepkit.support.storages import tensors_in


def fold_again(
    network: nn.Module, same: nn.Module, example_input: Inputs, steps: Sequence[Step], precision: Precision
) -> tuple[nn.Module, float, float]:
    """Do these steps in a network in eval mode, and return it if it gives the same outputs as before.

    The relative errors of its outputs come with it: in the precision, and once values are rounded to their own dtypes.

    same:             the network once more, with parameters of its own; both are changed
    steps, precision: those of a fold of another network; the steps' values are not used
    raises VerificationError if the outputs differ, or if the network's dtypes cannot hold the folded values
    """
    example = replace(Example.of(network, example_input), precision=precision)
    with torch.no_grad(), example.kept_random_state():
        own = _with_values(steps, network)
        if reason := next(filter(None, (overflow(step, network) for step in own)), None):
            raise VerificationError(f"{reason}.")
        same = same._apply(precision.cast)  # type: ignore[no-untyped-call]
        args, kwargs = example.inputs()
        with example.explained("The network"):
            expected = [tensor.clone() for tensor in tensors_in(same(*args, **kwargs))]
        wide = applied(own, same)
        error = example.error(wide, expected)
        if error > precision.limit:  # a network that makes much of rounding is judged by `fold`
            raise VerificationError(f"relative error {error:.1e} between the outputs before and after folding.")
        folded = applied(own, network)
        state = folded.state_dict()
        for name, tensor in wide.state_dict().items():
            tensor.copy_(state[name])
        return folded, error, example.error(wide, expected)


def _with_values(steps: Sequence[Step], network: nn.Module) -> list[Step]:
    """Return the same steps with the values that they give to this network."""
    values: Values = {}
    own = []
    for step in steps:
        own.append(replace(step, values=new_values(step, network, values)))
        values |= own[-1].values
    return own
