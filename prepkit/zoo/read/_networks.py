"""The architectures of an open zoo, and networks of its instances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from prepkit.families.registry import Architecture, Registry
from prepkit.zoo.format.manifest import MANIFEST, StoredArchitecture
from prepkit.zoo.format.networks import architecture_of
from prepkit.zoo.read.store import Store

if TYPE_CHECKING:
    from torch import Tensor, nn


def registry_of(store: Store, trust_code: bool) -> Registry:
    """Return the zoo's architectures with their ClassIds, and the teacher's.

    raises ZooError if the zoo knows only the layout of one
    """
    place = str(store.root / MANIFEST)
    stored = store.manifest.architectures
    known = [architecture_of(each, place, trust_code=trust_code) for each in stored]
    numbered = {each.name: each.class_id for each in stored if each.class_id is not None}
    return Registry(
        tuple(architecture for architecture in known if architecture.name in numbered),
        tuple(architecture for architecture in known if architecture.name not in numbered),
        numbered,
    )


def trained_architecture(store: Store, stored: StoredArchitecture, trust_code: bool) -> Architecture:
    """Return an architecture of the zoo under the name under which it is registered, the same object each time.

    raises ZooError if only its layout is known
    """
    known, key = store.architectures, (stored.name, trust_code)
    if key not in known:
        trained = replace(stored, name=stored.trained_name)
        known[key] = architecture_of(trained, str(store.root / MANIFEST), trust_code=trust_code)
    return known[key]


def network_of(store: Store, stored: StoredArchitecture, tensors: Mapping[str, Tensor], trust_code: bool) -> nn.Module:
    """Return a network in eval mode that holds copies of these tensors."""
    from prepkit.families.loading import network_with_copies

    architecture = trained_architecture(store, stored, trust_code)
    return network_with_copies(tensors, architecture, folded=stored.fused)
