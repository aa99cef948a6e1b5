"""Loader: batches of a zoo for training, gathered from mapped files, by a thread that stays ahead where that helps.

    for preps, class_ids, indices in zoo.loader(32, seed=0, device="cuda"):
        ...                                      # [B, H, W], [B], [B]
    for preps, class_ids, indices, columns in zoo.loader(32, columns=["accuracy", "label"]):
        ...                                      # columns["accuracy"] is float32 [B], columns["label"] int64 [B]

A batch stays as it is for as long as something refers to it, so that `list(loader)` is right; its memory is used again
only when nothing does. A loop that keeps no batch therefore uses the memory of a few.
Each `iter` begins the next epoch; its order is a function of seed and epoch only (see _order.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from queue import SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import numpy as np

from prepkit.errors import ZooError, counted
from prepkit.zoo.read._batch import Beside, Transform
from prepkit.zoo.read._columns import column_tensors
from prepkit.zoo.read._filling import Filled, Filler, PinnedFiller, filler, starts
from prepkit.zoo.read._order import Order, Position
from prepkit.zoo.read.memory import available_bytes, process_rank

if TYPE_CHECKING:
    import torch

    from prepkit.zoo.read._augmenting import Augmentation
    from prepkit.zoo.read._rows import Change, Rows
    from prepkit.zoo.read.gather import Gatherer

AUGMENT = "augment"  # key of the state of a loader that augments
BATCHES_AHEAD = 2
THREAD_END_SECONDS = 1.0


class Loader:
    """Batches (preps `[B, H, W]`, class_ids `[B]`, indices `[B]`) of a zoo or view; indices count within it.

    batch_size:       number of instances in a batch; the last batch may have fewer
    shuffle:          True for a new order each epoch, which depends on the seed; False for the zoo's own order;
                      "shards", for a zoo that is streamed: shards in random order, and instances shuffled within a
                      few shards (see _order.py)
    device:           where the tensors are; copies to a CUDA device go through pinned memory, beside the computation
    drop_last:        leave out a last smaller batch
    rank, world_size: this process in distributed training; torch.distributed is asked if missing
    change:           makes what stands in place of the PReps, of them and their ClassIds, on the device
    columns:          columns of the table, which batches then hold as a fourth item: tensors `[B]` by name
    transform:        is called with each batch, as it would be given, and returns what is given in its place
    augment:          changes the PReps before `change` sees them; see _augmenting.py
    raises ZooError for a column of which no tensor can be made
    """

    def __init__(
        self,
        zoo: Rows,
        batch_size: int,
        shuffle: bool | str = True,
        seed: int = 0,
        device: str | torch.device = "cpu",
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        change: Change | None = None,
        columns: Sequence[str] | None = None,
        transform: Transform | None = None,
        augment: Augmentation | None = None,
    ) -> None:
        from prepkit.support.device import choose_device

        self.zoo = zoo
        self.change = change
        self.transform = transform
        self.augment = augment
        self.device = choose_device(str(device))
        parts = process_rank(rank, world_size)
        self.order = Order(len(zoo), batch_size, shuffle, seed, drop_last, *parts, zoo.shard_numbers)
        self.columns = None if columns is None else column_tensors(zoo.table, columns, zoo.name)
        self._position = Position(self.order)
        self._fits: bool | None = None  # whether memory holds the files with ease, as far as it was asked
        self._filler: Filler | PinnedFiller | None = None  # left by an iterator that has ended, for the next one

    def __repr__(self) -> str:
        return f"<Loader of {self.zoo!r}: {counted(len(self), 'batch', 'batches')} an epoch>"

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return len(self.order)

    def __iter__(self) -> Iterator[Any]:
        """Begin the next epoch, or go on in the epoch whose state was loaded.

        The batches are a `Batch` each, or a `BatchWithColumns`, or what `transform` returned; see _batch.py.
        """
        run = self._position.begin()
        batches = self.order.batches(self._position.epoch, self._position.num_done)
        return self._batches(batches, run)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for another process, without the memory of batches, which may be pinned."""
        return {**self.__dict__, "_filler": None, "_fits": None}

    def state_dict(self) -> dict[str, Any]:
        """Return how far the loader is, JSON-able; a new loader that loads it gives the batches that remain."""
        state = self._position.state_dict()
        return state if self.augment is None else {**state, AUGMENT: list(self.augment.kinds)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called.

        raises ZooError if the state is from a loader with other settings
        """
        own = None if self.augment is None else list(self.augment.kinds)
        if state.get(AUGMENT) != own:
            raise ZooError(
                f"the state is from a loader with augment={state.get(AUGMENT)} instead of {own}; make the loader with "
                "the same settings."
            )
        self._position.load_state_dict({key: value for key, value in state.items() if key != AUGMENT})

    def _batches(self, batches: list[np.ndarray], run: int) -> Iterator[Any]:
        if not batches:
            return
        indices = np.concatenate(batches)
        beside = Beside(self.zoo, indices, self.columns, self.device)
        change, transform, order = self.change, self.transform, self.order
        epoch, start = self._position.epoch, len(order) - len(batches)
        filled_batches = zip(starts(batches), self._filled(batches, indices), strict=True)
        for number, ((first, last), filled) in enumerate(filled_batches, start):
            preps = filled.ready()
            batch = beside.batch(preps, first, last)
            if self.augment is not None:
                self.augment(preps, batch.class_ids, order.seed, epoch, number, order.rank)
            if change is not None:
                batch = batch._replace(preps=change(preps, batch.class_ids))
            self._position.advance(run)
            yield batch if transform is None else transform(batch)

    def _filled(self, batches: list[np.ndarray], indices: np.ndarray) -> Iterator[Filled]:
        """Yield the PReps of each batch, which are gathered here or by a thread.

        The thread helps where there is something to wait for: the network, a disk whose files memory cannot hold, or
        the way to another device. Elsewhere handing over a batch costs more than copying a small one.
        If the view takes less than half of the free memory, each shard is mapped as a whole when it is first touched,
        else page by page, so that a large zoo does not push other data out of memory.
        """
        if self._fits is None:  # asking takes as long as several small batches
            self._fits = self.zoo.num_bytes < available_bytes() / 2
        populate = self._fits
        gatherer = self.zoo.gatherer(indices, populate=populate)
        memory, self._filler = self._filler or filler(self.zoo, self.order.batch_size, self.device), None
        if populate and self.device.type == "cpu" and self.zoo.is_at_hand:
            for first, last in starts(batches):
                yield memory.fill(gatherer, first, last)
            self._filler = memory
        else:
            yield from self._filled_by_thread(memory, gatherer, batches)

    def _filled_by_thread(
        self, memory: Filler | PinnedFiller, gatherer: Gatherer, batches: list[np.ndarray]
    ) -> Iterator[Filled]:
        free, ready = SimpleQueue["bool"](), SimpleQueue["Filled | BaseException"]()
        for _ in range(BATCHES_AHEAD + 1):
            free.put(True)
        stop = Event()
        thread = Thread(
            target=fill, args=(memory, gatherer, batches, free, ready, stop), name="prepkit-loader", daemon=True
        )
        thread.start()
        ahead = ExitStack()
        try:
            ahead.enter_context(self.zoo.ahead(batches))
            for _ in batches:
                filled = ready.get()
                if isinstance(filled, BaseException):
                    raise filled
                yield filled
                free.put(True)
        finally:
            stop.set()
            ahead.close()
            free.put(False)  # wakes the thread
            thread.join(THREAD_END_SECONDS)
            # Otherwise the thread still waits for a remote file and will write into this memory; do not use it again.
            if not thread.is_alive():
                self._filler = memory


def fill(
    memory: Filler | PinnedFiller,
    gatherer: Gatherer,
    batches: list[np.ndarray],
    free: SimpleQueue[bool],
    ready: SimpleQueue[Filled | BaseException],
    stop: Event,
) -> None:
    """Fill one batch after another, one for each True in `free`, until `stop` is set; a thread of its own runs this."""
    try:
        for first, last in starts(batches):
            if not free.get() or stop.is_set():
                return
            ready.put(memory.fill(gatherer, first, last))
    except BaseException as error:
        ready.put(error)
