"""Zoo: an open zoo with its instances, table, splits, task and teacher; subsets are views.

    zoo = prepkit.open_zoo("my-zoo")
    good = zoo.split("train").where("accuracy > 0.8 and architecture == 'resnet8@cifar10'")
    preps = good.preps()                     # [N, H, W], padded to the common shape
    prep, metadata = good[0]                 # one instance at its own height; good["id"] gives that of an id
    first = good[:10]                        # a view of several
    network = good.network(0)                # a ready nn.Module

Shapes: `N` instances in the zoo or view, `B` instances in a batch, `H` height, `W` width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np

from prepkit.errors import ZooError, counted, listed
from prepkit.prep.contents import note_contents
from prepkit.prep.file import Origin, PRep, load_prep
from prepkit.prep.layout import Layout, PRepShape
from prepkit.support.files import sha256_of_file
from prepkit.tensors import torch_dtype
from prepkit.zoo.format.manifest import StoredArchitecture
from prepkit.zoo.format.sources import names_at
from prepkit.zoo.format.split_rule import split_rule
from prepkit.zoo.format.tables import row_of
from prepkit.zoo.read._for_training import ForTraining
from prepkit.zoo.read._indices import is_single
from prepkit.zoo.read._networks import network_of, registry_of
from prepkit.zoo.read._one_tensor import tensors_named
from prepkit.zoo.read.gather import batch_memory, gather, new_memory
from prepkit.zoo.read.shapes import common_shape
from prepkit.zoo.read.store import LocalStore

if TYPE_CHECKING:
    from torch import Tensor, nn

    from prepkit.families.registry import Registry
    from prepkit.zoo.read.adapters import Adapters


class Zoo(ForTraining):
    """An open zoo, or a view of some of its instances; indices count within the view."""

    # What it is -----------------------------------------------------------------------------------------------

    @property
    def task(self) -> Mapping[str, Any] | None:
        """The record of what the instances were trained on."""
        return self.manifest.task

    @property
    def split_rule(self) -> str | None:
        """How the splits were made, such as `paper` or `strict` of an import; see `prepkit.zoo.format.split_rule`."""
        return split_rule(self.manifest)

    @cached_property
    def registry(self) -> Registry:
        """The zoo's architectures with their ClassIds, and the teacher's.

        raises ZooError if the zoo knows only the layout of one
        """
        return registry_of(self._store, self._trust_code)

    @cached_property
    def teacher(self) -> nn.Module | None:
        """The teacher as a network in eval mode, or None."""
        record = self.manifest.teacher
        if record is None:
            return None
        file = self._store.file(record.path)
        if not file.is_file() or sha256_of_file(file) != record.sha256:
            raise ZooError(f"{file}: missing or damaged, it does not match the sha256 in the manifest. Fetch it again.")
        prep = load_prep(file, verify=False, mmap=self._store.is_mapped)
        return self._network(self.manifest.architecture(record.architecture), prep.tensors())

    def __getstate__(self) -> dict[str, Any]:
        """Return the view for another process, without what was derived from it."""
        return {key: self.__dict__[key] for key in ("_store", "_instances", "shape", "_trust_code")}

    def __repr__(self) -> str:
        part = "" if self._instances is None else f"{len(self):,} of "
        total = counted(len(self._store.shard_of), "instance")
        return f"<Zoo '{self.name}': {part}{total}, PReps {self.shape} {self.manifest.dtype}>"

    def __iter__(self) -> Iterator[tuple[PRep, dict[str, Any]]]:
        return (self[index] for index in range(len(self)))

    # Instances ------------------------------------------------------------------------------------------------

    @overload
    def __getitem__(self, key: int | str) -> tuple[PRep, dict[str, Any]]: ...

    @overload
    def __getitem__(self, key: slice | Sequence[int] | list[str] | np.ndarray) -> Self: ...

    def __getitem__(self, key: Any) -> tuple[PRep, dict[str, Any]] | Self:
        """Return one instance by index or id, or a view of several by a slice or a row of indices or ids.

        One instance is its PRep at its architecture's own height, in memory of its own, and its row of the table.
        raises IndexError, ZooError for an unknown id
        """
        if not is_single(key):
            return self.select(key)
        number = self._number(key)
        return self._prep(number, copy=True), self.metadata(number)

    def metadata(self, key: int | str) -> dict[str, Any]:
        """Return an instance's row of the table, by index or id."""
        return row_of(self.table, self._number(key))

    def layout(self, key: int | str) -> Layout:
        """Return the layout of an instance's PRep."""
        return self._stored_of(self._number(key)).layout

    def network(self, key: int | str) -> nn.Module:
        """Return an instance as a ready network in eval mode, with parameters of its own.

        raises ZooError if the zoo knows only its layout, RegistryError if its builder is not trusted
        """
        number = self._number(key)
        return self._network(self._stored_of(number), self._prep(number).state_dict(prefix=False))

    def export(
        self, key: int | str, output: str | os.PathLike[str], *, prefix: bool = True, overwrite: bool = False
    ) -> dict[str, Tensor]:
        """Write one instance as a plain state dict, which torch or safetensors read without prepkit, and return it.

        output: MODEL.pt or MODEL.safetensors, outside the zoo
        prefix: put a prefix of all names back that `zoo create` took off, such as `module.`
        raises IndexError, ZooError for an unknown id, OutputError if the file cannot be written
        """
        from prepkit.zoo.read._exporting import export

        root, read = self._store.root, lambda: self._prep(self._number(key), copy=True).state_dict(prefix=prefix)
        return export(Path(output), read, root, overwrite=overwrite)

    def adapters(self) -> Adapters:
        """Return the LoRA adapters of a zoo that `zoo import peft` made; see prepkit.zoo.read.adapters."""
        from prepkit.zoo.read.adapters import Adapters

        return Adapters(self)

    def class_ids(self, indices: Any = None) -> Tensor:
        """Return the ClassIds `[B]`, int64."""
        import torch

        return torch.from_numpy(self._store.class_ids[self._instances_of(indices)])

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
        note_contents(out, gather(self._store, instances, out.view(len(instances), shape.cells)))
        return out

    def tensors(self, name: str, indices: Any = None) -> Tensor:
        """Return one tensor of each of these instances (all if None), `[B, *shape]`, such as a layer's weights.

        Only the bytes of that tensor are read, of a zoo on this machine. It comes in the dtype that the networks have.
        raises ZooError if an instance has no tensor of this name, or the tensors of several architectures differ in
        shape

        >>> zoo.tensors("conv1.weight").shape    # [N, out, in, height, width]
        """
        return tensors_named(self._store, self._instances_of(indices), name)

    def values(self, indices: Any = None) -> Tensor:
        """Return the values `[B, V]` of instances of one architecture, as they lie in its PReps, without padding.

        raises ZooError if they are of several architectures
        """
        instances = self._instances_of(indices)
        numbers = np.unique(self._store.shard_of[instances]).tolist()
        found = {stored.name: stored.layout.total for stored in map(self._store.architecture_of_shard, numbers)}
        if len(found) > 1:
            raise ZooError(f"values are of one architecture; these instances are of {listed(found)}.")
        total = next(iter(found.values()), 0)
        out = new_memory((len(instances), total), torch_dtype(self.manifest.dtype))
        gather(self._store, instances, out)
        return out

    def masks(self, indices: Any = None, *, width: int | None = None, height: int | None = None) -> Tensor:
        """Return booleans `[B, H, W]`: True where a PRep of `preps` holds a parameter, False where it is padding."""
        import torch

        shape = self._shape(width, height)
        totals = torch.from_numpy(self._store.totals[self._store.shard_of[self._instances_of(indices)]])
        masks = new_memory((len(totals), shape.height, shape.width), torch.bool)
        torch.lt(torch.arange(shape.cells), totals[:, None], out=masks.view(-1, shape.cells))
        return masks

    # Inside ---------------------------------------------------------------------------------------------------

    def _shape(self, width: int | None, height: int | None) -> PRepShape:
        if width is None and height is None:
            return self.shape
        return common_shape(self.manifest, self.shape.width if width is None else width, height)

    def _prep(self, number: int, *, copy: bool = False) -> PRep:
        """Return an instance's PRep; without `copy`, its values may be those of a mapped file, which all views share.

        A zoo may have a wider dtype than the network, whose values then come back exactly in the network's dtype.
        """
        instance, stored = self._instance(number), self._stored_of(number)
        flat = self._store.shard(int(self._store.shard_of[instance])).row(int(self._store.row_of[instance]))
        copy = copy and self._store.is_mapped  # else they were read for this call alone
        values = flat.view(stored.height, self.manifest.width).to(torch_dtype(stored.layout.dtype), copy=copy)
        prefix, versions = names_at(self.table, number, f"'{self.name}', instance {number}")
        return PRep(values, stored.layout, Origin(stored.name, stored.class_id, prefix=prefix, versions=versions))

    def _stored_of(self, number: int) -> StoredArchitecture:
        return self._store.architecture_of_shard(int(self._store.shard_of[self._instance(number)]))

    def _network(self, stored: StoredArchitecture, tensors: Mapping[str, Tensor]) -> nn.Module:
        return network_of(self._store, stored, tensors, self._trust_code)


def local_zoo(root: str | os.PathLike[str]) -> Zoo:
    """Open the zoo in a folder in its own shape.

    raises ZooError
    """
    store = LocalStore(root)
    return Zoo(store, None, store.manifest.shape)
