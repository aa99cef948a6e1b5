"""Zoo: an open zoo with its instances, table, splits, task and teacher; subsets are views.

    zoo = prepkit.open_zoo("my-zoo")
    good = zoo.split("train").where("accuracy > 0.8 and architecture == 'resnet8@cifar10'")
    preps = good.preps()                     # [N, H, W], padded to the common shape
    prep, metadata = good[0]                 # one instance at its own height
    network = good.network(0)                # a ready nn.Module

Shapes: `N` instances in the zoo or view, `B` instances in a batch, `H` height, `W` width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prepkit.errors import OutputError, ZooError, counted, listed, nearest
from prepkit.families.registry import Registry
from prepkit.files import check_writable, sha256_of_file
from prepkit.prep.file import Origin, PRep, load_prep
from prepkit.prep.layout import Layout, PRepShape
from prepkit.tensors import torch_dtype
from prepkit.zoo.format.manifest import MANIFEST, Manifest, StoredArchitecture
from prepkit.zoo.format.networks import architecture_of, network_of
from prepkit.zoo.format.tables import rows_at, rows_with
from prepkit.zoo.read.gather import batch_memory, gather
from prepkit.zoo.read.indices import numbers_of
from prepkit.zoo.read.store import LocalStore, Store
from prepkit.zoo.read.where import matching_rows

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import Tensor, nn

    from prepkit.zoo.read.dataset import ZooDataset
    from prepkit.zoo.read.loader import Loader
    from prepkit.zoo.read.resident import ResidentZoo


class Zoo:
    """An open zoo, or a view of some of its instances; indices count within the view."""

    def __init__(
        self, store: Store, instances: np.ndarray | None, shape: PRepShape, *, trust_code: bool = False
    ) -> None:
        self._store = store
        self._instances = instances
        self.shape = shape
        self._trust_code = trust_code

    # What it is -----------------------------------------------------------------------------------------------

    @property
    def manifest(self) -> Manifest:
        """The content of zoo.json."""
        return self._store.manifest

    @property
    def name(self) -> str:
        """The zoo's name."""
        return self.manifest.name

    @property
    def task(self) -> Mapping[str, Any] | None:
        """The record of what the instances were trained on."""
        return self.manifest.task

    @cached_property
    def table(self) -> pa.Table:
        """The table, one row an instance: id, architecture, class_id, split, shard, row, and the user's columns."""
        return self._store.table if self._instances is None else rows_at(self._store.table, self._instances)

    @cached_property
    def registry(self) -> Registry:
        """The zoo's architectures with their ClassIds, and the teacher's.

        raises ZooError if the zoo knows only the layout of one
        """
        known = [
            architecture_of(stored, self._place, trust_code=self._trust_code) for stored in self.manifest.architectures
        ]
        numbered = {
            stored.name: stored.class_id for stored in self.manifest.architectures if stored.class_id is not None
        }
        return Registry(
            tuple(architecture for architecture in known if architecture.name in numbered),
            tuple(architecture for architecture in known if architecture.name not in numbered),
            numbered,
        )

    @cached_property
    def teacher(self) -> nn.Module | None:
        """The teacher as a network in eval mode, or None."""
        record = self.manifest.teacher
        if record is None:
            return None
        file = self._store.file(record.path)
        if not file.is_file() or sha256_of_file(file) != record.sha256:
            raise ZooError(f"{file}: missing or damaged, it does not match the sha256 in the manifest. Fetch it again.")
        prep = load_prep(file, verify=False)
        return self._network(self.manifest.architecture(record.architecture), prep.tensors())

    def __getstate__(self) -> dict[str, Any]:
        """Return the view for another process, without what was derived from it."""
        return {key: self.__dict__[key] for key in ("_store", "_instances", "shape", "_trust_code")}

    def __len__(self) -> int:
        return len(self._store.shard_of) if self._instances is None else len(self._instances)

    def __repr__(self) -> str:
        part = "" if self._instances is None else f"{len(self):,} of "
        total = counted(len(self._store.shard_of), "instance")
        return f"<Zoo '{self.name}': {part}{total}, PReps {self.shape} {self.manifest.dtype}>"

    # Views ----------------------------------------------------------------------------------------------------

    def where(self, condition: str) -> Zoo:
        """Return the instances that a condition on the table selects, as a view; see prepkit.zoo.read.where.

        raises WhereError
        """
        return self.select(matching_rows(self.table, condition))

    def split(self, name: str) -> Zoo:
        """Return the instances of a split, as a view.

        raises ZooError if the zoo has no such split
        """
        if name not in self.manifest.splits:
            splits = self.manifest.splits
            raise ZooError(
                f"'{self.name}' has no split '{name}'; it has {listed(splits) or 'none'}.{nearest(name, splits)}"
            )
        return self.select(rows_with(self.table["split"], name))

    def select(self, indices: Sequence[int] | np.ndarray | Tensor | slice) -> Zoo:
        """Return these instances in this order, as a view.

        raises IndexError
        """
        numbers = self.numbers(indices)
        instances = numbers.copy() if self._instances is None else self._instances[numbers]
        return Zoo(self._store, instances, self.shape, trust_code=self._trust_code)

    def __iter__(self) -> Iterator[tuple[PRep, dict[str, Any]]]:
        return (self[index] for index in range(len(self)))

    # Instances ------------------------------------------------------------------------------------------------

    def __getitem__(self, key: int | str) -> tuple[PRep, dict[str, Any]]:
        """Return an instance by index or id: its PRep at its architecture's own height, and its row of the table.

        The PRep is a view of the mapped file; writing into it changes neither the file nor the zoo on the disk.
        raises IndexError, ZooError for an unknown id
        """
        index = self.index(key) if isinstance(key, str) else self._number(key)
        instance = self._instance(index)
        shard = int(self._store.shard_of[instance])
        stored = self._store.architecture_of_shard(shard)
        flat = self._store.values(shard)[int(self._store.row_of[instance])]
        # A zoo may have a wider dtype than the network, whose values then come back exactly in the network's dtype.
        values = flat.view(stored.height, self.manifest.width).to(torch_dtype(stored.layout.dtype))
        return PRep(values, stored.layout, Origin(stored.name, stored.class_id)), self.metadata(index)

    def index(self, id: str) -> int:
        """Return the index of the instance with this id.

        raises ZooError if there is none
        """
        try:
            return self._ids[id]
        except KeyError:
            raise ZooError(f"'{self.name}' has no instance '{id}'.{nearest(id, self._ids)}") from None

    def metadata(self, index: int) -> dict[str, Any]:
        """Return one row of the table."""
        row: dict[str, Any] = self.table.slice(self._number(index), 1).to_pylist()[0]
        return row

    def layout(self, index: int) -> Layout:
        """Return the layout of an instance's PRep."""
        return self._stored_of(index).layout

    def network(self, index: int | str) -> nn.Module:
        """Return an instance as a ready network in eval mode, with parameters of its own.

        raises ZooError if the zoo knows only its layout, RegistryError if its builder is not trusted
        """
        prep, _ = self[index]
        number = self.index(index) if isinstance(index, str) else index
        return self._network(self._stored_of(number), prep.tensors())

    def export(self, key: int | str, output: str | os.PathLike[str], *, overwrite: bool = False) -> dict[str, Tensor]:
        """Write one instance as a plain state dict, which torch or safetensors read without prepkit, and return it.

        output: MODEL.pt or MODEL.safetensors, outside the zoo
        raises IndexError, ZooError for an unknown id, OutputError if the file cannot be written
        """
        from prepkit.checkpoint.export import save_state_dict, writer_for

        file = Path(output)
        writer_for(file)
        if file.resolve().is_relative_to(self._store.root.resolve()):
            raise OutputError(f"'{output}' lies in the zoo '{self._store.root}'; name a file outside it.")
        check_writable(file, overwrite=overwrite)
        prep, _ = self[key]
        tensors = prep.tensors()
        save_state_dict(tensors, file, overwrite=overwrite)
        return tensors

    def class_ids(self, indices: Any = None) -> Tensor:
        """Return the ClassIds `[B]`, int64."""
        import torch

        return torch.from_numpy(self._class_ids[self._instances_of(indices)])

    def preps(
        self,
        indices: Any = None,
        *,
        width: int | None = None,
        height: int | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Return the PReps `[B, H, W]` of these instances (all if None), padded with zeros to one shape.

        width, height: shape at which PReps are read; the zoo's shape if missing
        out:           `[B, H, W]` contiguous in the zoo's dtype, overwritten and returned
        raises InvalidShape if the parameters of an architecture do not fit
        """
        instances = self._instances_of(indices)
        shape = self._shape(width, height)
        out = batch_memory((len(instances), shape.height, shape.width), self.manifest.dtype, out)
        gather(self._store, instances, out.view(len(instances), shape.cells))
        return out

    def masks(self, indices: Any = None, *, width: int | None = None, height: int | None = None) -> Tensor:
        """Return booleans `[B, H, W]`: True where a PRep of `preps` holds a parameter, False where it is padding."""
        import torch

        shape = self._shape(width, height)
        totals = torch.from_numpy(self._totals[self._store.shard_of[self._instances_of(indices)]])
        return (torch.arange(shape.cells) < totals[:, None]).view(-1, shape.height, shape.width)

    # Training -------------------------------------------------------------------------------------------------

    def loader(
        self,
        batch_size: int,
        *,
        shuffle: bool | str = True,
        seed: int = 0,
        device: str | torch.device = "cpu",
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> Loader:
        """Return a loader of batches (preps, class_ids, indices) for training; see prepkit.zoo.read.loader."""
        from prepkit.zoo.read.loader import Loader

        return Loader(self, batch_size, shuffle, seed, device, drop_last, rank, world_size)

    def dataset(self) -> ZooDataset:
        """Return a torch Dataset of (prep, class_id, index) for torch's own DataLoader."""
        from prepkit.zoo.read.dataset import ZooDataset

        return ZooDataset(self)

    def to(self, device: str | torch.device) -> ResidentZoo:
        """Load the whole zoo or view into the memory of a device.

        raises ZooError if it does not fit
        """
        from prepkit.zoo.read.resident import ResidentZoo

        return ResidentZoo(self, device)

    @property
    def num_bytes(self) -> int:
        """The number of bytes of the files that hold instances of this zoo or view."""
        return sum(self.manifest.shards[number].bytes for number in self._shards.tolist())

    @property
    def shard_numbers(self) -> np.ndarray:
        """The number of the shard that holds each instance, `[N]`."""
        numbers: np.ndarray = self._store.shard_of[self._instances_of(None)]
        return numbers

    def populate(self, indices: Any = None) -> None:
        """Map the files of these instances as a whole now; otherwise a shuffled pass pays for each page it touches."""
        for number in np.unique(self._store.shard_of[self._instances_of(indices)]).tolist():
            self._store.populate(number)

    def ahead(self, batches: Sequence[np.ndarray]) -> AbstractContextManager[None]:
        """While inside, fetch in the background the remote shards that these batches of indices need, in that order."""
        shards = (self._store.shard_of[self._instances_of(indices)] for indices in batches)
        return self._store.ahead(number for numbers in shards for number in dict.fromkeys(numbers.tolist()))

    # Inside ---------------------------------------------------------------------------------------------------

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {id: index for index, id in enumerate(self.table["id"].to_pylist())}

    @cached_property
    def _shards(self) -> np.ndarray:
        return np.unique(self.shard_numbers)

    @cached_property
    def _class_ids(self) -> np.ndarray:
        """The ClassId of each instance of the store; -1 where its architecture has none."""
        ids = [self._store.architecture_of_shard(number).class_id for number in range(len(self.manifest.shards))]
        by_shard = np.array([-1 if class_id is None else class_id for class_id in ids], dtype=np.int64)
        class_ids: np.ndarray = by_shard[self._store.shard_of]
        return class_ids

    @cached_property
    def _totals(self) -> np.ndarray:
        """The number of parameters in a PRep of each shard."""
        shards = range(len(self.manifest.shards))
        return np.array([self._store.architecture_of_shard(number).layout.total for number in shards], dtype=np.int64)

    def _shape(self, width: int | None, height: int | None) -> PRepShape:
        if width is None and height is None:
            return self.shape
        return common_shape(self.manifest, self.shape.width if width is None else width, height)

    def _stored_of(self, index: int) -> StoredArchitecture:
        return self._store.architecture_of_shard(int(self._store.shard_of[self._instance(self._number(index))]))

    def _instance(self, index: int) -> int:
        return index if self._instances is None else int(self._instances[index])

    def _instances_of(self, indices: Any) -> np.ndarray:
        """Return the rows of the store's table for indices of this view."""
        if indices is None:
            return np.arange(len(self)) if self._instances is None else self._instances
        numbers = self.numbers(indices)
        return numbers if self._instances is None else self._instances[numbers]

    def numbers(self, indices: Any) -> np.ndarray:
        """Return indices as an array of numbers from 0 to N - 1.

        indices: a number, several, or a slice; negative ones count from the end
        raises IndexError
        """
        return numbers_of(indices, len(self))

    def _number(self, index: int) -> int:
        return int(self.numbers(index)[0])

    @property
    def _place(self) -> str:
        return str(self._store.root / MANIFEST)

    def _network(self, stored: StoredArchitecture, tensors: Mapping[str, Tensor]) -> nn.Module:
        return network_of(stored, tensors, self._place, trust_code=self._trust_code)


def local_zoo(root: str | os.PathLike[str]) -> Zoo:
    """Open the zoo in a folder in its own shape.

    raises ZooError
    """
    store = LocalStore(root)
    return Zoo(store, None, store.manifest.shape)


def common_shape(manifest: Manifest, width: int, height: int | None) -> PRepShape:
    """Return the least shape of this width that holds every architecture with a ClassId, or the height given.

    raises InvalidShape if one does not fit
    """
    layouts = [stored.layout for stored in manifest.architectures if stored.class_id is not None]
    if not layouts:
        return PRepShape(height or 4, width)
    return max(layouts, key=lambda layout: layout.total).shape(width, height)
