"""ResidentZoo: a zoo or view held in the memory of a device as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prepkit.errors import ZooError, counted
from prepkit.prep.contents import Contents, contents_of, note_contents
from prepkit.zoo.read._batch import Beside, Transform
from prepkit.zoo.read._columns import column_tensors
from prepkit.zoo.read._filling import starts
from prepkit.zoo.read._order import Order, Position
from prepkit.zoo.read.memory import free_bytes, process_rank

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from prepkit.views import View
    from prepkit.zoo.read._rows import Change, Rows

CHUNK_BYTES = 64 << 20


class ResidentZoo:
    """All PReps `[N, H, W]` of a zoo or view on a device, padded to one shape. Indices are those of the zoo.

    raises ZooError if they do not fit
    """

    def __init__(self, zoo: Rows, device: str | torch.device) -> None:
        from prepkit.support.device import choose_device

        self.zoo = zoo
        self.device = choose_device(str(device))
        self._values = self._loaded()
        self._class_ids = zoo.class_ids().to(self.device)

    def __repr__(self) -> str:
        return f"<ResidentZoo on {self.device} of {self.zoo!r}>"

    def __len__(self) -> int:
        return len(self.zoo)

    def preps(self, indices: Any = None) -> Tensor:
        """Return copies of the PReps `[B, H, W]` of these instances; if None, those of all instances, not copied."""
        return self._values if indices is None else self._values.index_select(0, self._on_device(indices))

    def class_ids(self, indices: Any = None) -> Tensor:
        """Return the ClassIds `[B]`."""
        return self._class_ids if indices is None else self._class_ids.index_select(0, self._on_device(indices))

    def loader(
        self,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        view: str | View = "prep",
        normalise: bool = False,
        columns: Sequence[str] | None = None,
        transform: Transform | None = None,
    ) -> ResidentLoader:
        """Return a loader of the same batches in the same order as from `Zoo.loader`, gathered on the device.

        raises ZooError, as `Zoo.loader` does
        """
        from prepkit.zoo.read._viewing import change_of

        order = Order(len(self), batch_size, shuffle, seed, drop_last, *process_rank(rank, world_size))
        values = None if columns is None else column_tensors(self.zoo.table, columns, self.zoo.name)
        return ResidentLoader(self, order, change_of(self.zoo, view, normalise), values, transform)

    def _on_device(self, indices: Any) -> Tensor:
        import torch

        if isinstance(indices, torch.Tensor):
            return indices.to(self.device)
        return torch.from_numpy(self.zoo.numbers(indices)).to(self.device)

    def _loaded(self) -> Tensor:
        import torch

        from prepkit.tensors import torch_dtype

        zoo = self.zoo
        size = (len(zoo), zoo.shape.height, zoo.shape.width)
        dtype = torch_dtype(zoo.manifest.dtype)
        needed, free = len(zoo) * zoo.shape.cells * dtype.itemsize, free_bytes(self.device)
        too_large = f"'{zoo.name}' needs {counted(needed, 'byte')} on {self.device}"
        remedy = "use a subset, or zoo.loader(device=...), which reads from the files."
        if free is not None and needed > free:
            raise ZooError(f"{too_large}, where {free:,} are free; {remedy}")
        try:
            values = torch.empty(size, dtype=dtype, device=self.device)
        except RuntimeError as error:
            raise ZooError(f"{too_large}, which it does not give ({str(error).splitlines()[0]}); {remedy}") from None
        rows = max(1, CHUNK_BYTES // (zoo.shape.cells * dtype.itemsize))
        contents: Contents = {}
        for start in range(0, len(zoo), rows):
            chunk = values[start : start + rows]
            if self.device.type == "cpu":
                preps = zoo.preps(slice(start, start + rows), out=chunk)
            else:
                preps = zoo.preps(slice(start, start + rows))
                chunk.copy_(preps)
            contents = {**contents, **contents_of(preps)}
        note_contents(values, contents)
        return values


class ResidentLoader:
    """Batches (preps `[B, H, W]`, class_ids `[B]`, indices `[B]`) of a resident zoo; see Loader."""

    def __init__(
        self,
        resident: ResidentZoo,
        order: Order,
        change: Change | None = None,
        columns: Mapping[str, Tensor] | None = None,
        transform: Transform | None = None,
    ) -> None:
        self.resident = resident
        self.order = order
        self.change = change
        self.columns = columns
        self.transform = transform
        self._position = Position(order)

    def __repr__(self) -> str:
        return f"<ResidentLoader of {counted(len(self), 'batch', 'batches')} an epoch>"

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return len(self.order)

    def __iter__(self) -> Iterator[Any]:
        """Begin the next epoch, or go on in the epoch whose state was loaded."""
        run = self._position.begin()
        return self._batches(self.order.batches(self._position.epoch, self._position.num_done), run)

    def state_dict(self) -> dict[str, Any]:
        """Return how far the loader is; see Loader."""
        return self._position.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called; see Loader."""
        self._position.load_state_dict(state)

    def _batches(self, batches: list[np.ndarray], run: int) -> Iterator[Any]:
        if not batches:
            return
        resident, device = self.resident, self.resident.device
        beside = Beside(resident.zoo, np.concatenate(batches), self.columns, device)
        for first, last in starts(batches):
            batch = beside.batch(None, first, last)
            preps = resident.preps(batch.indices)
            batch = batch._replace(preps=preps if self.change is None else self.change(preps, batch.class_ids))
            self._position.advance(run)
            yield batch if self.transform is None else self.transform(batch)
