"""What a zoo gives to a training: loaders, views, normalisation, and reading ahead. It is a part of Zoo."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from prepkit.errors import ZooError
from prepkit.zoo.read._rows import Rows
from prepkit.zoo.read._selection import Selection
from prepkit.zoo.read.gather import Gatherer

if TYPE_CHECKING:
    import datasets
    import torch

    from prepkit.families.registry import Architecture
    from prepkit.views import View
    from prepkit.views.source import Source
    from prepkit.zoo.read._batch import Transform
    from prepkit.zoo.read._dataset import ZooDataset
    from prepkit.zoo.read._loader import Loader
    from prepkit.zoo.read._resident import ResidentZoo
    from prepkit.zoo.read.preprocessing import Preprocessing


class ForTraining(Selection):
    """The part of Zoo that trainings use."""

    def loader(
        self: Rows,
        batch_size: int,
        *,
        shuffle: bool | str = True,
        seed: int = 0,
        device: str | torch.device = "cpu",
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        view: str | View = "prep",
        normalise: bool = False,
        columns: Sequence[str] | None = None,
        transform: Transform | None = None,
        augment: str | Sequence[str] | None = None,
    ) -> Loader:
        """Return a loader of batches (preps, class_ids, indices) for training; see prepkit.zoo.read._loader.

        A batch stays valid for as long as something refers to it, so that `list(loader)` keeps them all in memory.

        view:      what batches hold in place of PReps: "flat", "layers", "tokens", "graph", "statistics", or a view
                   that prepkit.views made
        normalise: whether PReps are normalised by `preprocessing`, before the view is made of them
        columns:   columns of the table, which batches then hold as a fourth item, tensors `[B]` by name: whole numbers
                   as int64, booleans, other numbers as float32
        transform: is called with each batch, and what it returns is given in the batch's place
        augment:   "permute" for hidden units in random order, another for each instance and each time; "sign", "scale"
                   and "phase" for random signs, scales and phases of units that have them; or several of these.
                   Functions stay as they are. It comes before `normalise`, and depends on seed, epoch and batch only
        raises ZooError if there is no preprocessing, for a view of several architectures, or a column that is unknown,
               holds no numbers, or has missing values; for symmetries that are not there or cannot be derived

        >>> for preps, class_ids, indices, columns in zoo.loader(32, columns=["accuracy"]):
        ...     columns["accuracy"]    # [32], float32
        """
        from prepkit.zoo.read._loader import Loader
        from prepkit.zoo.read._viewing import change_of

        change = change_of(self, view, normalise)
        augmentation = None
        if augment is not None:
            from prepkit.zoo.read._augmenting import Augmentation

            augmentation = Augmentation(self, augment)
        parts = (rank, world_size)
        return Loader(
            self, batch_size, shuffle, seed, device, drop_last, *parts, change, columns, transform, augmentation
        )

    def dataset(
        self: Rows, *, view: str | View = "prep", normalise: bool = False, columns: Sequence[str] | None = None
    ) -> ZooDataset:
        """Return a torch Dataset of (prep, class_id, index) for torch's own DataLoader; arguments as for `loader`.

        With columns, items have a fourth part, which a DataLoader makes tensors `[B]` by name of.
        raises as `loader` does
        """
        from prepkit.zoo.read._dataset import ZooDataset
        from prepkit.zoo.read._viewing import change_of

        return ZooDataset(self, change_of(self, view, normalise), columns)

    def to_hf_dataset(
        self: Rows, *, view: str | View = "prep", normalise: bool = False, column: str | None = None
    ) -> datasets.Dataset:
        """Return the table as a datasets.Dataset with a column of PReps `[H, W]` that are read when accessed.

        The dataset shares the table's memory, and copies of it for other processes open the zoo by its path. Until a
        value is read, the column holds {"instance": id}, which is what another format gives, such as
        `with_format(None)`, without which datasets cannot write the table to files. `map` and `filter` read the PReps
        of all rows unless they are given `input_columns`.

        view, normalise: as for `loader`
        column:          name of the column; the view's if missing, so "prep" for PReps
        raises ZooError if datasets is missing or the table has a column of this name

        >>> networks = zoo.to_hf_dataset().filter(lambda accuracy: accuracy > 0.5, input_columns="accuracy")
        >>> networks.shuffle(seed=0)[:32]["prep"].shape
        torch.Size([32, 36, 64])
        """
        from prepkit.zoo.read._dataset import ZooDataset
        from prepkit.zoo.read._frames import hf_dataset
        from prepkit.zoo.read._viewing import change_of

        name = column or (view if isinstance(view, str) else view.name)
        return hf_dataset(self.table, ZooDataset(self, change_of(self, view, normalise)), name)

    def to(self: Rows, device: str | torch.device) -> ResidentZoo:
        """Load the whole zoo or view into the memory of a device.

        raises ZooError if it does not fit
        """
        from prepkit.zoo.read._resident import ResidentZoo

        return ResidentZoo(self, device)

    @cached_property
    def preprocessing(self) -> Preprocessing | None:
        """What `prepkit zoo normalise` computed, or None; see prepkit.zoo.read.preprocessing.

        raises ZooError if its file is missing or damaged
        """
        from prepkit.zoo.read.preprocessing import preprocessing_of

        return preprocessing_of(self._store)

    def check_preprocessing(self, sha256: str) -> None:
        """Raise ZooError unless the zoo has the preprocessing of this sum, which a learner was trained with."""
        stored = self._store.manifest.preprocessing
        if stored is None or stored.sha256 != sha256:
            found = "has no preprocessing" if stored is None else f"has another one ({stored})"
            raise ZooError(
                f"the learner was trained with the preprocessing {sha256[:12]}; '{self._store.manifest.name}' {found}. "
                "Use the zoo that it was trained on, or train it again."
            )

    def architecture_named(self, name: str) -> Architecture:
        """Return an architecture of the zoo, which can build the networks of its instances.

        raises ZooError if only its layout is known
        """
        from prepkit.zoo.read._networks import trained_architecture

        return trained_architecture(self._store, self._store.manifest.architecture(name), self._trust_code)

    def view_source(self) -> Source:
        """Return what prepkit.views needs of the one architecture that all instances have.

        raises ZooError if there are several
        """
        from prepkit.zoo.read._viewing import source_of

        return source_of(self._store, self.shard_numbers, self.shape, self._trust_code)

    def gatherer(self, indices: np.ndarray, *, populate: bool) -> Gatherer:
        """Return what gathers the PReps of these instances, in this order, one batch after another; for loaders."""
        return Gatherer(self._store, self._instances_of(indices), populate=populate)

    @property
    def is_at_hand(self) -> bool:
        """Whether the values are in mapped files of this machine, so that reading them waits for nothing else."""
        return self._store.is_mapped and not self._store.is_remote

    @property
    def num_bytes(self) -> int:
        """The number of bytes of the files that hold instances of this zoo or view."""
        return sum(self._store.manifest.shards[number].bytes for number in np.unique(self.shard_numbers).tolist())

    @property
    def shard_numbers(self) -> np.ndarray:
        """The number of the shard that holds each instance, `[N]`."""
        numbers: np.ndarray = self._store.shard_of[self._instances_of(None)]
        return numbers

    def populate(self, indices: Any = None) -> None:
        """Read the files of these instances as a whole now; otherwise a shuffled pass pays for each page it touches."""
        for number in np.unique(self._store.shard_of[self._instances_of(indices)]).tolist():
            self._store.populate(number)

    def ahead(self, batches: Sequence[np.ndarray]) -> AbstractContextManager[None]:
        """While inside, fetch in the background the remote shards that these batches of indices need, in that order."""
        shards = (self._store.shard_of[self._instances_of(indices)] for indices in batches)
        return self._store.ahead(number for numbers in shards for number in dict.fromkeys(numbers.tolist()))
