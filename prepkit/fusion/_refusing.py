"""Errors for networks and BatchNorms that cannot be folded."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn
from torch.nn.parameter import is_lazy

from prepkit.errors import counted, listed
from prepkit.fusion._watch import Refusal, UnfoldableNetwork, quoted

_MERGING = ("reparameterize", "switch_to_deploy")  # what libraries call it


def refuse_without_values(network: nn.Module) -> None:
    """Raise UnfoldableNetwork for parameters and buffers that have no values yet."""
    refusals = []
    for name, module in network.named_modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if any(is_lazy(tensor) for tensor in own):
            refusals.append(Refusal(name, f"{type(module).__name__} is not initialised; run the network once first"))
        elif any(tensor.is_meta for tensor in own):
            refusals.append(Refusal(name, f"{type(module).__name__} is on the meta device; load its values first"))
    if refusals:
        raise UnfoldableNetwork(f"The network has no values yet:{_indented(refusals)}", refusals)


def cannot_fold(network: nn.Module, refusals: Sequence[Refusal], total: int, mappable: int) -> UnfoldableNetwork:
    """Return one error for all BatchNorms of a network that cannot be folded.

    total:    number of the network's BatchNorms
    mappable: how many of the refusals an affine map is the way out of
    """
    ways = [
        "keep_unfoldable=True keeps these and folds the rest",
        "pack_checkpoint(keep_batch_norm=True) packs it with all",
    ]
    if mappable:
        these = "each of these" if mappable == len(refusals) else f"{mappable} of these"
        ways.insert(0, f'keep_unfoldable="affine" makes {these} a scale and a shift per channel')
    return UnfoldableNetwork(
        f"{len(refusals)} of {counted(total, 'BatchNorm')} cannot be folded without changing the network:"
        f"{_indented(refusals)}\n{'; '.join(ways)}.{_merging(network)}",
        refusals,
    )


def _merging(network: nn.Module) -> str:
    """Return a sentence on modules that can merge their branches themselves, as those of RepVGG and MobileOne can."""
    for name, module in network.named_modules():
        for method in _MERGING:
            if callable(getattr(module, method, None)):
                return (
                    f" {quoted(name)} has a method {method}(), which may merge branches and BatchNorms: call it first."
                )
    return ""


def _indented(refusals: Sequence[Refusal]) -> str:
    """Return one line for each kind of refusal; reasons that differ only in names and numbers are one kind."""
    kinds: dict[str, list[Refusal]] = {}
    for refusal in refusals:
        kinds.setdefault(re.sub(r"'[^']*'|[0-9]+", "", refusal.reason), []).append(refusal)
    return "".join(f"\n  {_line(kind)}" for kind in kinds.values())


def _line(kind: Sequence[Refusal]) -> str:
    first = kind[0]
    if len(kind) == 1:
        return str(first)
    names = listed([refusal.batch_norm for refusal in kind], 3)
    alike = all(refusal.reason == first.reason for refusal in kind)
    return f"{len(kind)} BatchNorms ({names}){'' if alike else f', as for {first.batch_norm}'}: {first.reason}"
