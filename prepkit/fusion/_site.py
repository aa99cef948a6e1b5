"""A BatchNorm in a watched run, and whether it and its layers may do more than their classes say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils.parametrize import is_parametrized

from prepkit.fusion._output import Output
from prepkit.fusion._watch import Watch
from prepkit.fusion.step import Step

_LAYERS: tuple[type[nn.Module], ...] = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


@dataclass(frozen=True)
class Site:
    """A BatchNorm in the run that was watched.

    name:    name of the BatchNorm's module
    network: the float64 copy that ran
    seen:    what the run did
    steps:   steps for other BatchNorms that were planned before, by their names
    """

    name: str
    network: nn.Module
    seen: Watch
    steps: Mapping[str, Step]

    @property
    def batch_norm(self) -> Any:
        """The BatchNorm's module."""
        return self.network.get_submodule(self.name)

    @property
    def source(self) -> Output:
        """The output that its first call read."""
        source = self.seen.sources[self.name][0]
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
        """The module of that layer."""
        return self.network.get_submodule(self.layer_name)


def standard_layer(layer: nn.Module) -> type[nn.Module] | None:
    """Return torch's class of a layer; None if it is no Linear layer or convolution of torch's."""
    return next((kind for kind in _LAYERS if isinstance(layer, kind)), None)


def tampering(subject: str, name: str, module: nn.Module, seen: Watch) -> str | None:
    """Return why a module may do something else with its tensors than its class says; None if it does not."""
    hooks = [hook for kind in _HOOKS for hook in getattr(module, kind).values()]
    if hooks:
        names = ", ".join(getattr(hook, "__qualname__", type(hook).__name__) for hook in hooks)
        return f"{subject} carries hooks ({names}), which would see other values; remove them first"
    if any(getattr(torch_module, f"_global{kind}") for kind in _HOOKS):
        return "hooks on all modules are set (torch.nn.modules.module.register_module_*); remove them first"
    if is_parametrized(module):
        return f"{subject} is parametrised; first use torch.nn.utils.parametrize.remove_parametrizations"
    if "forward" in vars(module):
        return f"{subject} has a forward of its own, set on the instance"
    if name in seen.outside:
        return f"{subject} has tensors that are also read outside its calls, by {seen.outside[name]}"
    return None
