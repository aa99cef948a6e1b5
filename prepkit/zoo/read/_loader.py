"""Loader: batches of a zoo for training, gathered from mapped files by a thread that stays ahead.

    for preps, class_ids, indices in zoo.loader(32, seed=0, device="cuda"):
        ...                                      # [B, H, W], [B], [B]

The tensors of a batch are valid until the next batch is asked for, which may use their memory again; clone tensors
that you keep.
Each `iter` begins the next epoch; its order is a function of seed and epoch only (see order.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import numpy as np

from prepkit.errors import counted
from prepkit.tensors import torch_dtype
from prepkit.zoo.read._order import Order, Position
from prepkit.zoo.read.memory import available_bytes, process_rank

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from prepkit.zoo.read._rows import Change, Rows

BATCHES_AHEAD = 2
THREAD_END_SECONDS = 1.0
Batch = tuple[Any, "Tensor", "Tensor"]  # the first are PReps, or what a view made of them


class Loader:
    """Batches (preps `[B, H, W]`, class_ids `[B]`, indices `[B]`) of a zoo or view; indices count within it.

    batch_size:       number of instances in a batch; the last batch may have fewer
    shuffle:          True for a new order each epoch, which depends on the seed; False for the zoo's own order;
                      "shards", for a zoo that is streamed: shards in random order, and instances shuffled within a
                      few shards (see order.py)
    device:           where the tensors are; copies to a CUDA device go through pinned memory, beside the computation
    drop_last:        leave out a last smaller batch
    rank, world_size: this process in distributed training; torch.distributed is asked if missing
    change:           makes what stands in place of the PReps, of them and their ClassIds, on the device
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
    ) -> None:
        from prepkit.support.device import choose_device

        self.zoo = zoo
        self.change = change
        self.device = choose_device(str(device))
        parts = process_rank(rank, world_size)
        self.order = Order(len(zoo), batch_size, shuffle, seed, drop_last, *parts, zoo.shard_numbers)
        self._position = Position(self.order)
        self._buffers: list[Buffer] = []  # left by an iterator that has ended, for the next one

    def __repr__(self) -> str:
        return f"<Loader of {self.zoo!r}: {counted(len(self), 'batch', 'batches')} an epoch>"

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        """Begin the next epoch, or go on in the epoch whose state was loaded."""
        run = self._position.begin()
        batches = self.order.batches(self._position.epoch, self._position.num_done)
        return self._batches(batches, run)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for another process, without the buffers, which may be pinned."""
        return {**self.__dict__, "_buffers": []}

    def state_dict(self) -> dict[str, Any]:
        """Return how far the loader is, JSON-able; a new loader that loads it gives the batches that remain."""
        return self._position.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called.

        raises ZooError if the state is from a loader with other settings
        """
        self._position.load_state_dict(state)

    def _batches(self, batches: list[np.ndarray], run: int) -> Iterator[Batch]:
        free, ready = SimpleQueue["Buffer | None"](), SimpleQueue["Filled | BaseException"]()
        buffers, self._buffers = self._buffers, []
        while len(buffers) < min(BATCHES_AHEAD + 1, len(batches)):
            buffers.append(Buffer(self.zoo, self.order.batch_size, self.device))
        for buffer in buffers:
            free.put(buffer)
        stop = Event()
        thread = Thread(target=fill, args=(self.zoo, batches, free, ready, stop), name="prepkit-loader", daemon=True)
        thread.start()
        ahead = ExitStack()
        try:
            ahead.enter_context(self.zoo.ahead(batches))
            for _ in batches:
                filled = ready.get()
                if isinstance(filled, BaseException):
                    raise filled
                batch = filled.ready_batch()
                self._position.advance(run)
                yield batch if self.change is None else (self.change(*batch[:2]), *batch[1:])
                free.put(filled.buffer)
        finally:
            stop.set()
            ahead.close()
            free.put(None)  # wakes the thread
            thread.join(THREAD_END_SECONDS)
            # Otherwise the thread still waits for a remote file and will write into these buffers; do not reuse them.
            if not thread.is_alive():
                self._buffers = buffers


class Buffer:
    """Memory that one batch after another uses; it is pinned for a CUDA device."""

    def __init__(self, zoo: Rows, batch_size: int, device: torch.device) -> None:
        import torch

        size = (min(batch_size, len(zoo)), zoo.shape.height, zoo.shape.width)
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.copied: torch.cuda.Event | None = None
        self.preps = torch.empty(size, dtype=torch_dtype(zoo.manifest.dtype), pin_memory=self.stream is not None)

    def fill(self, zoo: Rows, indices: np.ndarray) -> Filled:
        """Gather a batch, and begin to copy it to the device."""
        import torch

        if self.copied is not None:
            self.copied.synchronize()  # the device may still be reading what was here before
        preps = zoo.preps(indices, out=self.preps[: len(indices)])
        batch = (preps, zoo.class_ids(indices), torch.from_numpy(indices.copy()))
        if self.stream is None:
            return Filled(self, batch if self.device.type == "cpu" else self._moved(batch))
        with torch.cuda.stream(self.stream):
            moved = self._moved(batch)
            self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.copied.record(self.stream)
        return Filled(self, moved)

    def _moved(self, batch: Batch) -> Batch:
        preps, class_ids, indices = batch
        return (
            preps.to(self.device, non_blocking=self.stream is not None),
            class_ids.to(self.device),
            indices.to(self.device),
        )


@dataclass(frozen=True)
class Filled:
    """A batch, and the buffer that is free again when the next one is asked for."""

    buffer: Buffer
    batch: Batch

    def ready_batch(self) -> Batch:
        """Return the batch, made safe to use on the stream on which the caller computes."""
        import torch

        if self.buffer.copied is not None:
            stream = torch.cuda.current_stream(self.buffer.device)
            stream.wait_event(self.buffer.copied)
            for tensor in self.batch:
                tensor.record_stream(stream)
        return self.batch


def fill(
    zoo: Rows,
    batches: list[np.ndarray],
    free: SimpleQueue[Buffer | None],
    ready: SimpleQueue[Filled | BaseException],
    stop: Event,
) -> None:
    """Fill free buffers with batches, in order, until all are filled or `stop` is set; a thread of its own runs this.

    If the view takes less than half of the free memory, each shard is mapped as a whole when it is first touched, else
    page by page, so that a large zoo does not push other data out of memory.
    """
    try:
        populate = zoo.num_bytes < available_bytes() / 2
        for indices in batches:
            buffer = free.get()
            if buffer is None or stop.is_set():
                return
            if populate:
                zoo.populate(indices)
            ready.put(buffer.fill(zoo, indices))
    except BaseException as error:
        ready.put(error)
