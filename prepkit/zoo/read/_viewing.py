"""Views of a zoo: the one architecture that its instances have in common, and views by their names.

The functions of prepkit.views take a zoo; this module is what a zoo answers them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from prepkit import views
from prepkit.errors import PrepkitError, ZooError, listed, nearest
from prepkit.views.source import Source
from prepkit.zoo.read._networks import trained_architecture
from prepkit.zoo.read._rows import Change

if TYPE_CHECKING:
    from torch import Tensor

    from prepkit.prep.layout import PRepShape
    from prepkit.zoo.read.preprocessing import Preprocessing
    from prepkit.zoo.read.store import Store

BY_NAME = ("prep", "flat", "layers", "tokens", "graph", "statistics")


def source_of(store: Store, shard_numbers: np.ndarray, shape: PRepShape, trust_code: bool) -> Source:
    """Return the architecture of all instances of a zoo or view, which stand in these shards.

    raises ZooError if there are several or none
    """
    found = {store.architecture_of_shard(number).name for number in np.unique(shard_numbers).tolist()}
    names = [stored.name for stored in store.manifest.architectures if stored.name in found]
    if len(names) != 1:
        if not names:
            raise ZooError(f"'{store.manifest.name}' has no instances here, so there is no architecture to view.")
        raise ZooError(
            f"a view is of one architecture; '{store.manifest.name}' has instances of {listed(names)}. Take one at a "
            f"time: zoo.where(\"architecture == '{names[0]}'\")."
        )
    stored = store.manifest.architecture(names[0])
    known = None if stored.config is None else trained_architecture(store, stored, trust_code)
    return Source(stored.name, stored.layout, shape, known, stored.fused)


@dataclass(frozen=True)
class Viewing:
    """What a loader makes of PReps: it normalises them, then makes a view of them; each of the two may be missing."""

    view: views.View | None
    preprocessing: Preprocessing | None

    def __call__(self, preps: Tensor, class_ids: Tensor) -> Any:
        """Return what a learner reads of PReps `[B, H, W]`, whose ClassIds are `[B]`."""
        values = preps if self.preprocessing is None else self.preprocessing.forward(preps, class_ids)
        return values if self.view is None else self.view(values)


def change_of(zoo: Any, view: str | views.View, normalise: bool) -> Change | None:
    """Return what a loader makes of PReps and their ClassIds; None if they stay as they are.

    raises ZooError if the zoo has no preprocessing, and as `view_of` does
    """
    form = None if isinstance(view, str) and view == "prep" else view_of(zoo, view)
    preprocessing = zoo.preprocessing if normalise else None
    if normalise and preprocessing is None:
        raise ZooError(f"'{zoo.name}' has no preprocessing to normalise by; `prepkit zoo normalise` computes one.")
    return None if form is None and preprocessing is None else Viewing(form, preprocessing)


def view_of(zoo: Any, view: str | views.View) -> views.View:
    """Return a view by its name, or a view that was made already, after a look whether it is one of this zoo.

    raises PrepkitError for another name or view, ZooError for a zoo of several architectures
    """
    if isinstance(view, views.View):
        if view.source.layout.slot_shapes != zoo.view_source().layout.slot_shapes:
            raise PrepkitError(
                f"{view!r} is no view of '{zoo.name}', whose tensors have other shapes; make one of this zoo."
            )
        return view
    if view == "outputs":
        raise PrepkitError("view='outputs' needs inputs: view=prepkit.views.outputs(zoo, probes).")
    if view not in BY_NAME:
        close = nearest(view, BY_NAME) if isinstance(view, str) else ""
        raise PrepkitError(f"view is {listed(BY_NAME)} or a view of prepkit.views; found {view!r}.{close}")
    made: views.View = getattr(views, view)(zoo)
    return made
