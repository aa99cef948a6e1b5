"""Networks of an architecture that hold given tensors. What building one tells is kept, so that more are cheap.

A built network is kept as a pickle without its tensors, from which the next ones are made: that takes a tenth of the
time of building, which draws weights only to have them replaced. A network that cannot be pickled is built each time.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from prepkit.checkpoint.load import versions_of
from prepkit.errors import LayoutMismatch
from prepkit.families.architecture import Architecture
from prepkit.fusion.example import one_line
from prepkit.tensors import module_versions, same_bits, storage_identity, with_versions


def network_with(tensors: Mapping[str, Tensor], architecture: Architecture, place: str) -> nn.Module:
    """Return the architecture's network in eval mode, holding these very tensors, not copies cast to its dtype.

    tensors: those of a state dict, by name; a tensor that is tied in the network may lack all names but its first
    place:   names the tensors in errors
    raises LayoutMismatch if the values of tied names differ, or if the network refuses the tensors
    """
    template = _template(architecture, False)
    try:
        given = _tied(tensors, template)
        # Names and shapes were compared before.
        return _loaded(given, versions_of(tensors), architecture, folded=False, strict=False)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise LayoutMismatch(f"{place} does not load into {architecture.name}: {reason}.") from None
    except Exception as error:  # modules may load in code of their own
        raise LayoutMismatch(f"{place} does not load into {architecture.name}: {one_line(error)}.") from error


def network_with_copies(tensors: Mapping[str, Tensor], architecture: Architecture, *, folded: bool) -> nn.Module:
    """Return the architecture's network in eval mode with copies of these tensors; tied tensors stay tied.

    folded: whether it is the network without BatchNorm; in the other one, counters of batches may be missing
    raises RegistryError, FusionError if the network cannot be built
    """
    parameters = _template(architecture, folded).parameters
    copies: dict[object, Tensor] = {}  # each memory is copied once
    for name, tensor in tensors.items():
        copied = Parameter(tensor.clone()) if name in parameters else tensor.clone()
        copies.setdefault(storage_identity(tensor), copied)
    given = {name: copies[storage_identity(tensor)] for name, tensor in tensors.items()}
    return _loaded(given, versions_of(tensors), architecture, folded, strict=folded)


def _loaded(
    given: dict[str, Tensor], versions: Mapping[str, int], architecture: Architecture, folded: bool, strict: bool
) -> nn.Module:
    """Load tensors into a new network, with the versions that modules may ask for, or as they are today."""
    template = _template(architecture, folded)
    network = template.network(given)
    if network is None:
        network = _built(architecture, folded)
    network.load_state_dict(with_versions(given, versions or template.versions), strict=strict, assign=True)
    return network.eval()


def _built(architecture: Architecture, folded: bool) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced; no generator of the caller may move
        return architecture.build_folded() if folded else architecture.build()


def _tied(given: Mapping[str, Tensor], template: _Template) -> dict[str, Tensor]:
    """Return tensors with one Parameter for all names of a tied tensor; loading keeps such ties.

    A .safetensors file holds a tied tensor once for each name. Only the network tells that they are tied.
    raises LayoutMismatch if the values of tied names differ
    """
    tensors = dict(given)
    parameters: dict[object, Parameter] = {}
    for name, first_name in template.first_names.items():
        if first_name in tensors:
            tensors.setdefault(name, tensors[first_name])
        if name not in template.shapes:
            continue
        if first_name != name:
            if not same_bits(tensors[name], tensors[first_name]):
                raise LayoutMismatch(f"'{name}' and '{first_name}' are tied in the network, but their values differ")
            tensors[name] = tensors[first_name]
        if name in template.parameters:
            parameter = Parameter(tensors[name], requires_grad=False)
            tensors[name] = parameters.setdefault(storage_identity(parameter), parameter)
    return tensors


@dataclass(frozen=True)
class _Template:
    """What is known of a network before tensors are loaded into it.

    shapes:      shapes of the floating-point tensors of its state dict
    parameters:  for those that are parameters, whether they learn
    first_names: for each name in its state dict, the first name of the same tensor
    others:      all other tensors: each network gets copies
    versions:    version of each module
    content:     the network without tensors; None if it cannot be pickled
    """

    shapes: Mapping[str, tuple[int, ...]]
    parameters: Mapping[str, bool]
    first_names: Mapping[str, str]
    others: tuple[Tensor, ...]
    versions: Mapping[str, int]
    content: bytes | None

    def network(self, given: Mapping[str, Tensor]) -> nn.Module | None:
        """Return a network that holds the given tensors; None if they are not all that it needs, in its shapes."""
        if self.content is None or any(
            name not in given or given[name].shape != shape for name, shape in self.shapes.items()
        ):
            return None
        for name, learns in self.parameters.items():
            given[name].requires_grad_(learns)
        return _with_tensors(self.content, given, copy.deepcopy(self.others))


@lru_cache(maxsize=64)
def _template(architecture: Architecture, folded: bool) -> _Template:
    """Build a network of an architecture, and keep what it tells.

    raises RegistryError, FusionError if it cannot be built
    """
    network = _built(architecture, folded)
    state = network.state_dict(keep_vars=True)
    floating = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    first_names: dict[object, str] = {}
    content, others = _without_tensors(network, floating)
    return _Template(
        shapes={name: tuple(tensor.shape) for name, tensor in floating.items()},
        parameters={name: t.requires_grad for name, t in floating.items() if isinstance(t, Parameter)},
        first_names={name: first_names.setdefault(storage_identity(tensor), name) for name, tensor in state.items()},
        others=others,
        versions=module_versions(state),
        content=content,
    )


def _without_tensors(network: nn.Module, named: Mapping[str, Tensor]) -> tuple[bytes | None, tuple[Tensor, ...]]:
    """Pickle a network with names in place of named tensors, and numbers in place of others, which come with it."""
    names = {id(tensor): name for name, tensor in reversed([*named.items()])}
    others: dict[int, tuple[int, Tensor]] = {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> str | int | None:
            if not isinstance(value, Tensor):
                return None
            return names.get(id(value)) or others.setdefault(id(value), (len(others), value))[0]

    file = io.BytesIO()
    try:
        Pickler(file, pickle.HIGHEST_PROTOCOL).dump(network)
        kept = copy.deepcopy(tuple(tensor for _, tensor in others.values()))
        again = _with_tensors(file.getvalue(), named, kept)
    except Exception:  # the code of any network may run here
        return None, ()
    return (file.getvalue(), kept) if _parts(again) == _parts(network) else (None, ())


def _with_tensors(content: bytes, named: Mapping[str, Tensor], others: tuple[Tensor, ...]) -> nn.Module:
    """Return a new network from what `_without_tensors` returned."""

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, key: str | int) -> Tensor:
            return named[key] if isinstance(key, str) else others[key]

    network: nn.Module = Unpickler(io.BytesIO(content)).load()
    return network


def _parts(network: nn.Module) -> list[object]:
    modules: list[object] = [(name, type(module), module.training) for name, module in network.named_modules()]
    return modules + list(network.state_dict())
