"""What instances were trained on: the task record of a zoo, and the data behind it when it is at hand.

A task record is JSON with a `kind`, which says what the rest means:
    images      classify images; see prepkit.tasks.images
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prepkit.errors import ZooError, listed, nearest

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("images",)


def test_set(task: Mapping[str, Any] | None) -> tuple[Tensor, Tensor]:
    """The inputs `[N, ...]` float32 and labels `[N]` int64 on which a task's instances are judged.

    raises ZooError if the zoo names no task, or its data is not at hand
    """
    if task is None:
        raise ZooError("the zoo names no task, so there is no data to run its instances on.")
    kind = task.get("kind")
    if kind not in KINDS:
        near = nearest(str(kind), KINDS)
        raise ZooError(f"task kind {kind!r} has no data at hand; kinds at hand: {listed(KINDS)}.{near}")
    from prepkit.tasks import images

    return images.test_set(task)


test_set.__test__ = False  # type: ignore[attr-defined]  # pytest takes imported functions of this name for tests
