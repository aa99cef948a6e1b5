"""Build architectures and networks from what a zoo stores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from prepkit.errors import ZooError
from prepkit.families.registry import Architecture
from prepkit.tensors import storage_identity
from prepkit.zoo.format.manifest import StoredArchitecture

if TYPE_CHECKING:
    from torch import Tensor, nn


def architecture_of(stored: StoredArchitecture, place: str, *, trust_code: bool) -> Architecture:
    """Return the Architecture; its builder is imported when it first builds a network.

    place: names the manifest in errors
    raises ZooError if only its layout is known
    """
    if stored.config is None or stored.input_shape is None:
        raise ZooError(
            f"the zoo knows only the layout of '{stored.name}', so no network can be built; zoo[index][0].tensors() "
            "gives the tensors."
        )
    data = {
        "name": stored.name,
        "family": stored.family or stored.name,
        "input_shape": list(stored.input_shape),
        "num_parameters": stored.layout.num_parameters,
        "num_trainable": stored.num_trainable or stored.layout.num_parameters,
        "layout": stored.layout.to_dict(),
        "config": dict(stored.config),
    }
    return Architecture.from_dict(data, f"{place}, {stored.name}", trust_code=trust_code)


def network_of(stored: StoredArchitecture, tensors: Mapping[str, Tensor], place: str, *, trust_code: bool) -> nn.Module:
    """Build a network in eval mode that owns copies of these tensors; tied tensors stay tied.

    raises ZooError if only the layout is known, RegistryError if the builder is not trusted
    """
    import torch

    architecture = architecture_of(replace(stored, name=stored.trained_name), place, trust_code=trust_code)
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced; no generator of the caller may move
        network = architecture.build_folded() if stored.fused else architecture.build()
    # A BatchNorm that was kept counts its batches, and no PRep holds that number.
    network.load_state_dict(_own_copies(network, tensors), strict=stored.fused, assign=True)
    return network.eval()


def _own_copies(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy each memory once, as a Parameter where the network has one, so that tied parameters stay tied."""
    from torch.nn import Parameter

    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    copies: dict[object, Tensor] = {}
    for name, tensor in tensors.items():
        copy = Parameter(tensor.clone()) if name in parameters else tensor.clone()
        copies.setdefault(storage_identity(tensor), copy)
    return {name: copies[storage_identity(tensor)] for name, tensor in tensors.items()}
