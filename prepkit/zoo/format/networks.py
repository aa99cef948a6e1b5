"""Build architectures from what a zoo stores, and compare what two zoos store."""

from __future__ import annotations

from prepkit.errors import ZooError
from prepkit.families.registry import Architecture
from prepkit.support.json_values import canonical_json
from prepkit.zoo.format.manifest import StoredArchitecture, architecture_to_dict

# These must agree where two zoos have an architecture of one name.
FACTS = ("layout", "fused", "family", "input_shape", "num_trainable", "config")


def differing_facts(first: StoredArchitecture, second: StoredArchitecture) -> list[str]:
    """Return the names of the facts that differ between two architectures of one name."""
    both = architecture_to_dict(first), architecture_to_dict(second)
    one, other = ({fact: canonical_json(data[fact]) for fact in FACTS} for data in both)
    return [fact for fact in FACTS if one[fact] != other[fact]]


def architecture_of(stored: StoredArchitecture, place: str, *, trust_code: bool) -> Architecture:
    """Return the Architecture; its builder is imported when it first builds a network.

    place: names the manifest in errors
    raises ZooError if only its layout is known
    """
    if stored.config is None or stored.input_shape is None:
        raise ZooError(
            f"the zoo knows only the layout of '{stored.name}', so no network can be built; zoo[index][0].tensors() "
            "gives the tensors. `prepkit zoo create --arch NAME` makes a zoo whose networks can be built."
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
