"""A zoo as a table of embeddings.

    table = embed(run, zoo, split="test")
    table["embedding"]                         # fixed-size list [E] of float32

Shapes: N instances, H x W the PRep, E embedding values.
"""

# ruff: noqa: N806 - names of tensors end in their axes

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import prepkit
from netspace.data import ZooMismatch
from netspace.run.run import run_and_zoo
from netspace.space.evaluation import PREPS_AT_ONCE, preps_of
from netspace.space.network import NetSpace
from prepkit.support.progress import Advance
from prepkit.zoo.read.accuracy import chunks

if TYPE_CHECKING:
    import pyarrow as pa

    from netspace.run.run import Run

STORAGE = ("shard", "row")  # columns that say where an instance is stored, not what it is
EMBEDDING = "embedding"
PREDICTED = ("predicted_architecture", "predicted_class_id", EMBEDDING)


def encode(
    space: NetSpace, zoo: prepkit.Zoo, rows: Sequence[int] | None = None, progress: Advance | None = None
) -> Tensor:
    """Encode a zoo's instances to embeddings `[N, E]` on the space's device, without gradients.

    rows:     rows of the zoo or view; all if missing
    progress: called with the number of instances that were finished since the last call
    """
    device = next(space.parameters()).device
    chosen = zoo if rows is None else zoo.select(rows)
    parts = [torch.empty(0, space.embedding_size, device=device)]
    with torch.no_grad():
        for places in chunks(len(chosen)):
            preps_NHW = preps_of(space, chosen, places)
            parts.extend(space.encoder(few) for few in torch.split(preps_NHW, PREPS_AT_ONCE))
            if progress is not None:
                progress(len(places))
    return torch.cat(parts)


def embed(
    run: Run | str | os.PathLike[str],
    zoo: prepkit.Zoo | str | os.PathLike[str],
    split: str | None = None,
    *,
    space: NetSpace | None = None,
    progress: Advance | None = None,
) -> pa.Table:
    """Embed a zoo's instances in a run's space, one row an instance.

    zoo:   the zoo that the run was trained on or another one; PReps may have another size than the predicted ones
    split: split of the zoo; all instances if missing
    space: the run's NetSpace if it is loaded already; else that of the best validation is loaded, on the CPU
    returns the zoo's table (id, architecture, class_id, split and the user's columns) with `predicted_architecture`,
            `predicted_class_id` and `embedding`, a fixed-size list `[E]` of float32
    raises ZooMismatch if there is no instance, ZooError for an unknown split
    """
    import pyarrow as pa

    run, zoo = run_and_zoo(run, zoo)
    chosen = zoo if split is None else zoo.split(split)
    if not len(chosen):
        raise ZooMismatch(f"zoo '{zoo.name}': no instances to embed.")
    space = run.space() if space is None else space
    latent_NE = encode(space, chosen, progress=progress)
    class_ids = [0] * len(latent_NE)
    if space.num_architectures is not None:
        with torch.no_grad():
            class_ids = space.classify(latent_NE).argmax(1).tolist()
    table = chosen.table.drop_columns([*STORAGE, *(name for name in PREDICTED if name in chosen.table.column_names)])
    names = [run.registry.by_class_id(class_id).name for class_id in class_ids]
    values = pa.array(latent_NE.cpu().flatten().numpy(), pa.float32())
    table = table.append_column("predicted_architecture", pa.array(names))
    table = table.append_column("predicted_class_id", pa.array(class_ids, pa.int64()))
    return table.append_column(EMBEDDING, pa.FixedSizeListArray.from_arrays(values, space.embedding_size))


def embeddings(table: pa.Table) -> Tensor:
    """Return the column `embedding` of a table as `[N, E]` float32."""
    column = table[EMBEDDING].combine_chunks()
    flat = torch.from_numpy(column.flatten().to_numpy(zero_copy_only=False).copy())
    return flat.view(len(table), -1) if len(table) else flat.view(0, column.type.list_size)
