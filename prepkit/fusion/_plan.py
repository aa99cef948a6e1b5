"""Which BatchNorms can be folded after a watched run, and the reasons against the others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Set
from dataclasses import dataclass, field

import torch
from torch import nn

from prepkit.fusion._output import Output
from prepkit.fusion._reach import parts_before, parts_behind
from prepkit.fusion._site import Site, tampering
from prepkit.fusion._watch import Refusal, Watch, quoted
from prepkit.fusion.norm import Convolution, is_norm, num_channels, num_features, own_tensor
from prepkit.fusion.step import Kind, Part, Step, Values, new_values, overflow

NEVER_CALLED = "the run on the example input never called it"
FOREIGN = "it holds running statistics, but not a mean and a variance of one value a channel as a BatchNorm does"
FUNCTIONAL = "batch_norm is called as a function; use a BatchNorm module, of which the statistics are known"


@dataclass
class Faults:
    """What the proof has found wrong so far, by BatchNorm, each with the reason.

    folds: BatchNorms that do not fold into layers
    maps:  BatchNorms that are no affine map either
    """

    folds: dict[str, str] = field(default_factory=dict)
    maps: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What is to become of each BatchNorm.

    steps:    folds and affine maps, in the order in which they are done
    refusals: BatchNorms that can become neither, in the order of the run
    mappable: how many of the refusals an affine map would be the way out of
    """

    steps: list[Step]
    refusals: list[Refusal]
    mappable: int

    @property
    def has_folds(self) -> bool:
        """Whether any BatchNorm goes into a layer."""
        return any(step.parts for step in self.steps)


def plan(network: nn.Module, original: nn.Module, seen: Watch, faults: Faults, with_maps: bool) -> Plan:
    """Return what the run allows for each BatchNorm.

    network:   the network in its own dtypes; `original` is its copy that ran
    with_maps: whether a BatchNorm that has no layer to go into becomes an affine map
    """
    draft = _Draft(network, original, seen)
    norms = [name for name, module in original.named_modules() if is_norm(module)]
    idle = [name for name in norms if name not in seen.sources]
    in_heads = {name for name in idle if _is_in_idle_head(original, seen, name)}
    left = dict.fromkeys(idle, NEVER_CALLED)
    if with_maps and len(in_heads) < len(idle):
        # A BatchNorm beside the path of the run may share its layer with one on the path: no layer may change.
        beside = next(name for name in idle if name not in in_heads)
        left |= dict.fromkeys(seen.sources, f"the run never called {quoted(beside)}, which may share its layer")
    else:
        left |= _fold(draft, faults, seen.sources)
    refusals = [Refusal(f"F.batch_norm in {quoted(place)}", FUNCTIONAL) for place in seen.functional]
    mappable = 0
    for name in [name for name in [*seen.sources, *idle] if name in left]:
        against = _no_map(draft.site(name), faults)
        if against is None and (with_maps or name in in_heads):
            against = draft.take("affine", name, (), left[name])
            if against is None:
                continue
        elif against is None:
            mappable += 1
        refusals.append(Refusal(name, against or left[name]))
    refusals += [Refusal(name, FOREIGN) for name in foreign_norms(original)]
    return Plan(list(draft.steps.values()), refusals, mappable)


def foreign_norms(network: nn.Module) -> list[str]:
    """Return the modules with running statistics of which it is unknown what they do with them.

    TorchScript has such modules too; what they do is seen when they run.
    """
    names = [key.rpartition(".")[0] for key in network.state_dict() if key.rpartition(".")[2] == "running_var"]
    modules = [(name, network.get_submodule(name)) for name in names]
    return [name for name, module in modules if not is_norm(module) and not isinstance(module, torch.jit.ScriptModule)]


@dataclass
class _Draft:
    """Steps that were planned so far, by BatchNorm, and the parameters after them."""

    network: nn.Module
    original: nn.Module
    seen: Watch
    steps: dict[str, Step] = field(default_factory=dict)
    values: Values = field(default_factory=dict)
    busy: Set[str] = frozenset()  # layers that may not change

    def site(self, name: str) -> Site:
        return Site(name, self.original, self.seen, self.steps)

    def take(self, kind: Kind, name: str, parts: tuple[Part, ...], why: str = "") -> str | None:
        """Plan a step; return why it cannot be done, as where the network's dtypes cannot hold it; None if it can."""
        for part in parts:
            if part.layer in self.busy:
                return f"it would go into {quoted(part.layer)}, which also runs in evaluation"
        step = Step(name, kind, parts, {}, why)
        step = Step(name, kind, parts, new_values(step, self.original, self.values), why)
        reason = overflow(step, self.network)
        if reason is None:
            self.steps[name] = step
            self.values |= step.values
        return reason


def plan_heads(
    network: nn.Module, original: nn.Module, seen: Watch, faults: Faults, heads: Collection[str], busy: Set[str]
) -> tuple[dict[str, Step], dict[str, str]]:
    """Return folds of the BatchNorms of heads in a run on the path of training, and those that are left, with reasons.

    busy: layers that run in evaluation, and so may not change
    """
    # A function's parameters may be read in evaluation by another name, so that functions take nothing in.
    draft = _Draft(network, original, seen, busy={*busy, *seen.layer_functions})
    left = _fold(draft, faults, [name for name in seen.sources if name in heads])
    return draft.steps, left


def _fold(draft: _Draft, faults: Faults, names: Iterable[str]) -> dict[str, str]:
    """Plan folds of BatchNorms into layers; return those that are left, with reasons, in the order of the run."""
    left: dict[str, str] = {}
    for name in names:
        site = draft.site(name)
        reason = faults.folds.get(name) or _own_reason(site)
        if reason is None:
            reason = next(filter(None, (check(site) for check in _CHECKS)), None)
            parts = (Part(site.layer_name),) if reason is None else parts_before(site)
            if parts is not None:
                reason = draft.take("into", name, parts)
        if reason is not None:
            left[name] = reason
    for name in reversed(list(left)):
        site = draft.site(name)
        if name in faults.folds or _own_reason(site) is not None or (parts := parts_behind(site)) is None:
            continue
        if draft.take("ahead", name, parts) is None:
            del left[name]
    return left


def _own_reason(site: Site) -> str | None:
    return _own_values(site) or _has_statistics(site)


def _no_map(site: Site, faults: Faults) -> str | None:
    """Return why a BatchNorm can be no affine map; None if it can."""
    return _own_reason(site) or faults.maps.get(site.name)


def _is_in_idle_head(network: nn.Module, seen: Watch, name: str) -> bool:
    """Return whether a BatchNorm that never ran is in a module that never ran, behind a layer of that module.

    Heads that run in training only are such modules. A BatchNorm that is chosen among several at a shared layer is not.
    """
    names = name.split(".")
    for length in range(1, len(names)):
        module = network.get_submodule(head := ".".join(names[:length]))
        if seen.calls[head] or isinstance(module, nn.ModuleList | nn.ModuleDict):
            continue
        before = [n for n, _ in module.named_modules(prefix=head)]
        return any(n in seen.layers for n in before[: before.index(name)])
    return False


def _own_values(site: Site) -> str | None:
    return tampering("it", site.name, site.batch_norm, site.seen)


def _ran_once(site: Site) -> str | None:
    """Check that a BatchNorm ran once, or each time right after one layer that ran as often."""
    if (calls := site.seen.calls[site.name]) == 1:
        return None
    sources = site.seen.sources[site.name]
    outputs = [source for source in sources if not isinstance(source, str)]
    as_often = len({output.module for output in outputs}) == 1 and site.seen.calls[site.layer_name] == calls
    if as_often and len(set(outputs)) == len(sources) == calls:
        return None
    return f"it is shared: it ran {calls} times in one run"


def _has_statistics(site: Site) -> str | None:
    if own_tensor(site.batch_norm, "running_mean") is None or own_tensor(site.batch_norm, "running_var") is None:
        return "it has no running statistics (track_running_stats=False): its output depends on the batch"
    return None


def _follows_output(site: Site) -> str | None:
    reason = next((source for source in site.seen.sources[site.name] if isinstance(source, str)), None)
    return None if reason is None else reason + _before_convolution(site)


def _before_convolution(site: Site) -> str:
    """Return a remark on pre-activation networks, where the convolution comes after the BatchNorm."""
    outputs = site.seen.outputs.get(site.name, [])
    place = next((reader.place for output in outputs for reader in output.readers), "")
    following = site.network.get_submodule(place)
    if not isinstance(following, Convolution):
        return ""
    if any(following._reversed_padding_repeated_twice):
        return f"; it comes before {quoted(place)}, whose padding adds zeros after the normalisation (pre-activation)"
    return f"; it comes before {quoted(place)} (pre-activation), which cannot take it in"


def _follows_layer(site: Site) -> str | None:
    module = site.source.module
    previous = site.network.get_submodule(module)
    if not is_norm(previous):
        return None
    if module not in site.steps or not site.steps[module].is_direct:
        return f"it follows BatchNorm {quoted(module)}, which cannot be folded"
    if any(True for _ in previous.children()):
        return f"it follows {quoted(module)}, which applies modules of its own after normalising"
    return None


def _layer_values(site: Site) -> str | None:
    name, layer = site.layer_name, site.layer
    if (calls := site.seen.calls[name]) != site.seen.calls[site.name]:
        return f"its layer {quoted(name)} is shared: it ran {calls} times in one run"
    if reason := tampering(f"its layer {quoted(name)}", name, layer, site.seen):
        return reason
    if layer._parameters.get("weight") is None or layer._parameters.get("bias") is not layer.bias:
        return f"weight or bias of its layer {quoted(name)} is no parameter"
    return None


def _only_reader(site: Site) -> str | None:
    for output in site.seen.outputs[site.source.module]:
        if reason := _other_reader(site, output):
            return reason
    return None


def _other_reader(site: Site, output: Output) -> str | None:
    others = {reader.place: reader for reader in reversed(output.readers) if reader.place != site.name}
    others_words = " and ".join(str(reader) for reader in reversed(others.values()))
    if others:
        return f"the output of {quoted(output.module)} is also read by {others_words}"
    if output.held:
        return f"the output of {quoted(output.module)} is still held after the run (an attribute, a list or a hook)"
    return None


def _normalises_features(site: Site) -> str | None:
    """Check that layer and BatchNorm mean the same axis.

    The features of a convolution are on axis 1 of a batch, which a BatchNorm normalises; those of Linear are on the
    last axis.
    """
    layer, axes = site.layer, site.seen.outputs[site.layer_name][0].axes
    if axes != layer.weight.dim():
        kind = "Linear over tokens" if isinstance(layer, nn.Linear) else "an input without batch axis"
        return f"{quoted(site.layer_name)} gives {axes} axes ({kind}): axis 1, which it normalises, is not the features"
    features = num_features(layer)
    if features != num_channels(site.batch_norm):
        return f"it normalises {num_channels(site.batch_norm)} features, {quoted(site.layer_name)} has {features}"
    if layer.bias is not None and layer.bias.shape != (features,):
        return f"the bias of {quoted(site.layer_name)} has shape {list(layer.bias.shape)}, not one value a feature"
    return None


_CHECKS: tuple[Callable[[Site], str | None], ...] = (
    _ran_once,
    _follows_output,
    _follows_layer,
    _layer_values,
    _only_reader,
    _normalises_features,
)
