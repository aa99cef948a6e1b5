"""Deriving the symmetries of a network: one run tells what may change places, and further runs prove it.

found = symmetries("resnet8@cifar10")
found.permutation_spec()["conv.weight"]     # ("P_0", None, None, None)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prepkit.errors import FusionError, SymmetryError
from prepkit.families.registry import Architecture
from prepkit.families.registry import architecture as registered
from prepkit.fusion.example import FLOAT32, Example, Inputs
from prepkit.prep.layout import Layout
from prepkit.support.device import is_out_of_memory
from prepkit.support.storages import leaves, tensors_in
from prepkit.symmetry import _rules_layers, _rules_shapes, _rules_values
from prepkit.symmetry._finish import finish
from prepkit.symmetry._proof import proved, spread
from prepkit.symmetry._trace import OUTPUT, Rule, trace
from prepkit.symmetry.spec import Symmetries

SMALL = 64  # rows and columns of pictures on which most runs of the proof are made, where larger ones are not needed
RULES: dict[str, Rule] = {**_rules_values.RULES, **_rules_shapes.RULES, **_rules_layers.RULES}


def symmetries(
    network: Architecture | nn.Module | str, inputs: Inputs | None = None, *, keep_batch_norm: bool = False
) -> Symmetries:
    """Derive the symmetries of a network from one run of a copy in evaluation, and prove them in float64.

    network:         an architecture, the name of a registered one, or a network itself, which stays as it is
    inputs:          what the network runs on: a tensor, a tuple of arguments or a dict of named ones; for an
                     architecture, its example input if missing
    keep_batch_norm: whether an architecture's network keeps its BatchNorms, as `pack_checkpoint` can; by default the
                     symmetries are those of the network whose tensors PReps hold
    returns which hidden units may change places, and what their values can be multiplied by. What cannot be proved
            stays fixed and has a reason. An operation that is not known fixes all that it reads.
    raises SymmetryError if the network does not run on the inputs, or twice differently; RegistryError, FusionError if
           an architecture cannot be built or folded

    >>> found = prepkit.symmetries("resnet8@digits")
    >>> found.permutation_spec()["stages.0.0.conv1.weight"]
    ('P_1', 'P_0', None, None)
    """
    if isinstance(network, str):
        network = registered(network)
    if isinstance(network, Architecture):
        architecture = network
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
            network = architecture.build() if keep_batch_norm else architecture.build_folded()
        inputs = architecture.example_for(network) if inputs is None else inputs
    if not issubclass(type(network), nn.Module):
        kind = type(network).__name__
        raise SymmetryError(f"symmetries takes an architecture, its name or a torch.nn.Module, not a {kind}.")
    if inputs is None:
        raise SymmetryError(
            "a network is run to find its symmetries; give what it runs on: symmetries(network, inputs)."
        )
    with torch.inference_mode(False), torch.autocast("cpu", enabled=False):
        return _derived(network, Layout.of(network), Example.of(network, inputs))


def _derived(network: nn.Module, layout: Layout, example: Example) -> Symmetries:
    try:
        with example.kept_random_state():
            try:
                return _proved(network, layout, example)
            except FusionError:  # it may have numbers in float32 in its code
                try:
                    return _proved(network, layout, replace(example, precision=FLOAT32))
                except FusionError:
                    pass
                raise
    except FusionError as error:
        if isinstance(error.__cause__, Exception) and is_out_of_memory(error.__cause__):
            raise SymmetryError(
                "there is no memory for copies of the network in float64, which the proof runs."
            ) from error
        raise SymmetryError(str(error)) from error


def _proved(network: nn.Module, layout: Layout, example: Example) -> Symmetries:
    own = example.copy_of(network)
    spread(own, 0)
    args, kwargs = example.inputs()
    with example.explained("The network"):
        run, result = trace(own, args, kwargs, RULES.get)
    outputs = tensors_in(result)
    if not outputs:
        raise SymmetryError("the network returns no tensor, so that there is nothing to compare.")
    for tensor in outputs:
        run.notes.fix(run.label_of(tensor).axes, OUTPUT)
    found = finish(run, layout)

    def outputs_of(copy: nn.Module) -> Sequence[Tensor]:
        with example.explained("The network"):
            return tensors_in(example.run(copy))

    return proved(found, own, outputs_of, _on_small_pictures(own, example), example.precision.dtype)


def _on_small_pictures(network: nn.Module, example: Example) -> Callable[[nn.Module], Sequence[Tensor]] | None:
    """Return a function that runs a network on a corner of the pictures; None if these are small, or it fails there."""
    args, kwargs = pytree.tree_map(_corner, (example.args, example.kwargs))
    small = replace(example, args=args, kwargs=kwargs)
    pairs = zip(leaves((args, kwargs)), leaves((example.args, example.kwargs)), strict=True)
    if all(own.shape == other.shape for own, other in pairs):
        return None
    try:
        with torch.no_grad():
            tensors_in(small.run(network))
    except Exception:  # most networks that take one size only fail in some layer
        return None
    return lambda copy: tensors_in(small.run(copy))


def _corner(leaf: object) -> object:
    if isinstance(leaf, Tensor) and leaf.dim() == 4 and leaf.is_floating_point():
        return leaf[..., :SMALL, :SMALL]
    return leaf
