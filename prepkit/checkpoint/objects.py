"""What torch.save wrote of objects of other people's classes: their attributes, without importing or running anything.

saved = saved_objects("dataset.pt")
saved.value["trainset"]                    # a stand-in for an object of a class that is not imported
attributes_of(saved.value["trainset"])     # ("checkpoints_to_datasets.dataset_base.ModelDatasetBase", {...})
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.checkpoint._beside import plain_value
from prepkit.checkpoint._inert import Inert
from prepkit.checkpoint.formats import read_content
from prepkit.checkpoint.load import check_entries, check_memory

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SavedObjects:
    """The object in a file. Its tensors are mapped from the file, unless torch before 1.6 wrote it.

    data_bytes: the most bytes that all tensors may take together; None where the format guarantees their sizes
    """

    path: Path
    value: object
    data_bytes: int | None

    def checked_state(self, state: Mapping[str, Tensor], place: str) -> Mapping[str, Tensor]:
        """Return a state dict that stands somewhere in the object.

        raises CheckpointError for a value that is no tensor, UnsafeCheckpoint for tensors larger than the file
        """
        check_entries(self.path, place, state)
        if self.data_bytes is not None:
            check_memory(self.path, state, self.data_bytes)
        return state


def saved_objects(path: Path) -> SavedObjects:
    """Read the object that torch.save wrote; objects of classes that are not imported become stand-ins.

    raises UnsafeCheckpoint for what may run code, CheckpointError for a file that cannot be read
    """
    content = read_content(path)
    return SavedObjects(path, content.value, content.data_bytes)


def attributes_of(value: object) -> tuple[str, Mapping[str, Any]] | None:
    """Return the name of an object's class and its attributes; None for what is not a stand-in for one."""
    if not isinstance(value, Inert):
        return None
    return type(value).__name__, value.state if isinstance(value.state, Mapping) else {}


def plain(value: object) -> Any:
    """Return a number, text, time or path (as text), or a list of such; None for everything else."""
    return plain_value(value)
