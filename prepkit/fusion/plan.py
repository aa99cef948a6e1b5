"""Which BatchNorms can be folded after a watched run, the folded parameters, and the reasons against the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd as TransposedConvolution
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from prepkit.errors import counted
from prepkit.fusion.watch import BatchNorm, Convolution, Output, Refusal, UnfoldableNetwork, Watch, quoted

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


@dataclass(frozen=True)
class Step:
    """A fold to be done: `layer` gets `weight` and `bias` (in float64), and `batch_norm` is removed."""

    layer: str
    batch_norm: str
    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class _Site:
    """A BatchNorm in the run that was watched.

    name:    name of the BatchNorm's module
    network: the float64 copy that ran
    seen:    what the run did
    steps:   folds of the BatchNorms before it, by their names
    """

    name: str
    network: nn.Module
    seen: Watch
    steps: Mapping[str, Step]

    @property
    def batch_norm(self) -> Any:
        return self.network.get_submodule(self.name)

    @property
    def source(self) -> Output:
        source = self.seen.sources[self.name]
        if isinstance(source, str):
            raise TypeError(f"{self.name} follows no module: {source}")
        return source

    @property
    def layer_name(self) -> str:
        """Name of the layer before it, or before a row of BatchNorms, if all earlier ones in the row are folded."""
        previous = self.steps.get(self.source.module)
        return previous.layer if previous else self.source.module

    @property
    def layer(self) -> Any:
        return self.network.get_submodule(self.layer_name)


def plan(network: nn.Module, original: nn.Module, seen: Watch) -> tuple[list[Step], list[Refusal]]:
    """Return the folds that the run allows, and the BatchNorms that cannot be folded, in the order of the run."""
    steps: dict[str, Step] = {}
    refusals = [Refusal(f"F.batch_norm in {quoted(place)}", _FUNCTIONAL) for place in seen.functional]
    names = [name for name, module in original.named_modules() if isinstance(module, BatchNorm)]
    for name in [*seen.sources, *(name for name in names if name not in seen.sources)]:
        site = _Site(name, original, seen, steps)
        reason = next(filter(None, (check(site) for check in _CHECKS)), None)
        if reason is None:
            step = _step(site)
            reason = _overflow(step, network.get_submodule(step.layer))
        if reason is None:
            steps[name] = step
        else:
            refusals.append(Refusal(name, reason))
    return list(steps.values()), refusals


_FUNCTIONAL = "batch_norm is called as a function; use a BatchNorm module, of which the statistics are known"


def _own_values(site: _Site) -> str | None:
    return _tampering("it", site.name, site.batch_norm, site.seen)


def _ran_once(site: _Site) -> str | None:
    if (calls := site.seen.calls[site.name]) == 1:
        return None
    if calls == 0:
        return "the run on the example input never called it"
    return f"it is shared: it ran {calls} times in one run"


def _has_statistics(site: _Site) -> str | None:
    if site.batch_norm.running_mean is None or site.batch_norm.running_var is None:
        return "it has no running statistics (track_running_stats=False): its output depends on the batch"
    return None


def _follows_output(site: _Site) -> str | None:
    source = site.seen.sources[site.name]
    if not isinstance(source, str):
        return None
    return source + _before_convolution(site)


def _before_convolution(site: _Site) -> str:
    """Return a remark on pre-activation networks, where the convolution comes after the BatchNorm."""
    readers = site.seen.outputs[site.name].readers if site.name in site.seen.outputs else ()
    place = next((reader.place for reader in readers), "")
    following = site.network.get_submodule(place)
    if not isinstance(following, Convolution):
        return ""
    if any(following._reversed_padding_repeated_twice):
        return f"; it comes before {quoted(place)}, whose padding adds zeros after the normalisation (pre-activation)"
    return f"; it comes before {quoted(place)} (pre-activation), and only a layer before it can take it in"


def _follows_layer(site: _Site) -> str | None:
    module = site.source.module
    previous = site.network.get_submodule(module)
    if not isinstance(previous, BatchNorm):
        return None
    if module not in site.steps:
        return f"it follows BatchNorm {quoted(module)}, which cannot be folded"
    if any(True for _ in previous.children()):
        return f"it follows {quoted(module)}, which applies modules of its own after normalising"
    return None


def _layer_values(site: _Site) -> str | None:
    name, layer = site.layer_name, site.layer
    if (calls := site.seen.calls[name]) != 1:
        return f"its layer {quoted(name)} is shared: it ran {calls} times in one run"
    if reason := _tampering(f"its layer {quoted(name)}", name, layer, site.seen):
        return reason
    if layer._parameters.get("weight") is None or layer._parameters.get("bias") is not layer.bias:
        return f"weight or bias of its layer {quoted(name)} is no parameter"
    return None


def _only_reader(site: _Site) -> str | None:
    output = site.source
    others = {reader.place: reader for reader in reversed(output.readers) if reader.place != site.name}
    others_words = " and ".join(str(reader) for reader in reversed(others.values()))
    if others:
        return f"the output of {quoted(output.module)} is also read by {others_words}"
    if output.held:
        return f"the output of {quoted(output.module)} is still held after the run (an attribute, a list or a hook)"
    return None


def _normalises_features(site: _Site) -> str | None:
    """Check that layer and BatchNorm mean the same axis.

    The features of a convolution are on axis 1 of a batch, which a BatchNorm normalises; those of Linear are on the
    last axis.
    """
    layer, axes = site.layer, site.seen.outputs[site.layer_name].axes
    if axes != layer.weight.dim():
        kind = "Linear over tokens" if isinstance(layer, nn.Linear) else "an input without batch axis"
        return f"{quoted(site.layer_name)} gives {axes} axes ({kind}): axis 1, which it normalises, is not the features"
    features = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if features != site.batch_norm.num_features:
        return f"it normalises {site.batch_norm.num_features} features, {quoted(site.layer_name)} has {features}"
    if layer.bias is not None and layer.bias.shape != (features,):
        return f"the bias of {quoted(site.layer_name)} has shape {list(layer.bias.shape)}, not one value a feature"
    return None


_CHECKS: tuple[Callable[[_Site], str | None], ...] = (
    _own_values,
    _ran_once,
    _has_statistics,
    _follows_output,
    _follows_layer,
    _layer_values,
    _only_reader,
    _normalises_features,
)


def _tampering(subject: str, name: str, module: nn.Module, seen: Watch) -> str | None:
    """Return why a module may do something else with its tensors than its class says; None if it does not."""
    hooks = [hook for kind in _HOOKS for hook in getattr(module, kind).values()]
    if hooks:
        names = ", ".join(getattr(hook, "__qualname__", type(hook).__name__) for hook in hooks)
        return f"{subject} carries hooks ({names}), which would see other values; remove them first"
    if _has_any_global_hook():  # type: ignore[no-untyped-call]
        return "hooks on all modules are set (torch.nn.modules.module.register_module_*); remove them first"
    if is_parametrized(module):
        return f"{subject} is parametrised; first use torch.nn.utils.parametrize.remove_parametrizations"
    if "forward" in vars(module):
        return f"{subject} has a forward of its own, set on the instance"
    if name in seen.outside:
        return f"{subject} has tensors that are also read outside its calls, by {seen.outside[name]}"
    return None


def _step(site: _Site) -> Step:
    previous = site.steps.get(site.source.module)
    weight, bias = (previous.weight, previous.bias) if previous else (site.layer.weight, site.layer.bias)
    return Step(site.layer_name, site.name, *folded_parameters(site.layer, weight, bias, site.batch_norm))


def folded_parameters(layer: Any, weight: Tensor, bias: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
    """Return the layer's weight and bias `[features]` with the BatchNorm folded into them (Supplementary VI)."""
    scale = (1.0 if norm.weight is None else norm.weight) / torch.sqrt(norm.running_var + norm.eps)
    centred = -norm.running_mean if bias is None else bias - norm.running_mean
    shift = centred * scale + (0.0 if norm.bias is None else norm.bias)
    return _scaled(layer, weight, scale), shift


def _scaled(layer: Any, weight: Tensor, scale: Tensor) -> Tensor:
    """Multiply `weight` by `scale` `[features]` along its output axis."""
    space = [1] * (weight.dim() - 2)
    if not isinstance(layer, TransposedConvolution):
        return weight * scale.reshape(-1, 1, *space)
    # A transposed weight is [inputs, features / groups, ...], and group g of the inputs makes group g of the features.
    grouped = weight.reshape(layer.groups, -1, *weight.shape[1:]) * scale.reshape(layer.groups, 1, -1, *space)
    return grouped.reshape(weight.shape)


def _overflow(step: Step, layer: Any) -> str | None:
    """Return why the layer's own dtypes cannot hold the folded layer; None if they can."""
    bias = layer.weight if layer.bias is None else layer.bias
    for folded, dtype in ((step.weight, layer.weight.dtype), (step.bias, bias.dtype)):
        if not folded.isfinite().all():
            return f"folding it into {quoted(step.layer)} gives values that are not finite"
        if not folded.to(dtype).isfinite().all():
            return f"folding it into {quoted(step.layer)} gives {folded.abs().max():.3g}, beyond {str(dtype)[6:]}"
    return None


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


def cannot_fold(refusals: Sequence[Refusal], total: int) -> UnfoldableNetwork:
    """Return one error for all BatchNorms that cannot be folded; the network has `total` BatchNorms."""
    return UnfoldableNetwork(
        f"{len(refusals)} of {counted(total, 'BatchNorm')} cannot be folded without changing the network:"
        f"{_indented(refusals)}\n"
        "keep_unfoldable=True keeps these and folds the rest; pack_checkpoint(keep_batch_norm=True) packs it with all.",
        refusals,
    )


def _indented(refusals: Sequence[Refusal]) -> str:
    return "".join(f"\n  {refusal}" for refusal in refusals)
