"""Checkpoints whose names differ from an architecture's, though the network itself would load them.

Networks may rename what they load: torch's weight_norm of today takes the names of the old one (`weight_g`), and many
modules carry hooks of their own. torch.compile and others put a name of theirs inside others (`enc._orig_mod.weight`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from prepkit.families.architecture import Architecture, floating_shapes
from prepkit.tensors import with_versions

if TYPE_CHECKING:
    from torch import Tensor

WRAPPERS = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))


def under_own_names(
    tensors: Mapping[str, Tensor], architecture: Architecture, versions: Mapping[str, int]
) -> Mapping[str, Tensor] | None:
    """Return a checkpoint's tensors under the names of the architecture's network; None if it would not load them all.

    versions: version of each module as the checkpoint notes it
    """
    unwrapped = _with_wrappers_of(architecture.trainable_shapes, tensors)
    if floating_shapes(unwrapped) == architecture.trainable_shapes:
        return unwrapped
    for candidate in (tensors, unwrapped):
        if (loaded := _loaded(candidate, architecture, versions)) is not None:
            return loaded
    return None


def _with_wrappers_of(own: Iterable[str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors whose names have wrappers inside where those of the network have them, and nowhere else."""
    names = {_bare(name): name for name in own}
    renamed = {names.get(_bare(name), _bare(name)): tensor for name, tensor in tensors.items()}
    return renamed if len(renamed) == len(tensors) else dict(tensors)


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _loaded(
    tensors: Mapping[str, Tensor], architecture: Architecture, versions: Mapping[str, int]
) -> Mapping[str, Tensor] | None:
    """Load tensors into a new network, and return its state dict; None if it lacks some, or has no place for some."""
    import torch

    with torch.random.fork_rng(devices=[]):
        network = architecture.build()
    try:
        keys = network.load_state_dict(with_versions(dict(tensors), versions), strict=False, assign=True)
    except Exception:  # other shapes, or a hook that asks for more
        return None
    expected = architecture.trainable_shapes
    strange = [name for name in keys.unexpected_keys if name in tensors and tensors[name].is_floating_point()]
    if strange or any(name in expected for name in keys.missing_keys):
        return None
    own = network.state_dict()
    for name in [name for name, tensor in own.items() if not tensor.is_floating_point() and name not in tensors]:
        del own[name]
    if floating_shapes(own) != expected or _num_values(own) != _num_values(tensors):
        return None  # a hook threw some away
    return own


def _num_values(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point())
