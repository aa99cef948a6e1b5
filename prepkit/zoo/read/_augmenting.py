"""Augmentation: each time that an instance is loaded, its hidden units stand in another order, its function as it is.

    for preps, class_ids, indices in zoo.loader(32, augment="permute"):

The changes of a batch depend on the loader's seed, the epoch, the batch's number and the rank, and on nothing else, so
that a loader that goes on in an epoch gives the same batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from prepkit.errors import FusionError, RegistryError, SymmetryError, ZooError, listed, nearest
from prepkit.prep.contents import contents_of, note_contents

if TYPE_CHECKING:
    from torch import Tensor

    from prepkit.families.registry import Architecture
    from prepkit.symmetry.acting import Action
    from prepkit.symmetry.spec import Symmetries

KINDS = ("permute", "sign", "scale", "phase")


class Augmentation:
    """What a loader does to PReps, with the symmetries of each architecture of the zoo.

    kinds: "permute", "sign", "scale", "phase", or several of them
    raises ZooError for another kind, for one that no architecture of the zoo has, or where symmetries cannot be derived
    """

    def __init__(self, zoo: Any, kinds: str | Sequence[str]) -> None:
        self.kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
        for kind in self.kinds:
            if kind not in KINDS:
                close = nearest(kind, KINDS) if isinstance(kind, str) else ""
                raise ZooError(f"augment is {listed(KINDS)}, or several of them; found {kind!r}.{close}")
        if not self.kinds:
            raise ZooError(f"augment names nothing; give {listed(KINDS)}, or None.")
        class_ids = sorted(set(zoo.class_ids().tolist()))
        stored = {one.class_id: one for one in zoo.manifest.architectures}
        self.actions = {class_id: _action(zoo, stored[class_id]) for class_id in class_ids}
        for kind in self.kinds:
            if not any(_has(action, kind) for action in self.actions.values()):
                names = listed(stored[class_id].name for class_id in class_ids)
                raise ZooError(
                    f"augment={kind!r} would change nothing: no hidden unit of {names} has such a symmetry. "
                    "`prepkit arch symmetries NAME` shows those that there are."
                )

    def __call__(self, preps: Tensor, class_ids: Tensor, *numbers: int) -> Tensor:
        """Change PReps `[B, H, W]` of these ClassIds in place and return them, by numbers that say how."""
        from prepkit.tasks.randomness import generator

        stream, contents = generator("augment", *numbers), contents_of(preps)
        own_ids = class_ids.tolist()
        for class_id, action in self.actions.items():
            rows = [row for row, own in enumerate(own_ids) if own == class_id]
            if not rows:
                continue
            change = action.draw(stream, count=len(rows), kinds=self.kinds)
            if len(rows) == len(own_ids):
                action.on_preps(change, preps, out=preps)
            else:
                preps[rows] = action.on_preps(change, preps[rows])
        note_contents(preps, contents)
        return preps


def _action(zoo: Any, stored: Any) -> Action:
    from prepkit.symmetry.acting import Action

    try:
        found = _derived(zoo.architecture_named(stored.name), not stored.fused)
    except (SymmetryError, FusionError, RegistryError) as error:
        raise ZooError(f"the symmetries of {stored.name} of '{zoo.name}' cannot be derived: {error}") from None
    own = [(slot.name, slot.shape) for slot in stored.layout]
    if own != [(slot.name, slot.shape) for slot in found.layout]:
        raise ZooError(f"the tensors of {stored.name} lie in another order in '{zoo.name}' than in the network.")
    return Action(found)


@lru_cache(maxsize=16)
def _derived(architecture: Architecture, keep_batch_norm: bool) -> Symmetries:
    """Derive symmetries once, as a training may make a loader for each epoch."""
    from prepkit.symmetry.derive import symmetries

    return symmetries(architecture, keep_batch_norm=keep_batch_norm)


def _has(action: Action, kind: str) -> bool:
    found = action.symmetries
    return bool(found.movable) if kind == "permute" else any(scaling.kind == kind for scaling in found.scalings)
