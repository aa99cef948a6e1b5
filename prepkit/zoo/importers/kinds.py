"""import_zoo, and the kinds of zoos that it takes: each a module with a function `found`, which returns a Source."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prepkit.errors import ZooError, listed, nearest
from prepkit.support.progress import Advance

if TYPE_CHECKING:
    from prepkit.families.registry import Architecture
    from prepkit.zoo.write.adding import Source
    from prepkit.zoo.write.written import WrittenZoo

KINDS = {  # kind: the module with its `found`
    "siren": "prepkit.zoo.importers.siren",
    "tree": "prepkit.zoo.importers.tree",
    "peft": "prepkit.zoo.importers.peft",
    "dataset-pt": "prepkit.zoo.importers.dataset_pt",
    "model-j": "prepkit.zoo.importers.model_j",
    "netspace-lists": "prepkit.zoo.importers.netspace_lists",
    "small-cnn-zoo": "prepkit.zoo.importers.small_cnn",
    "nino": "prepkit.zoo.importers.nino",
    "gpt-lmdb": "prepkit.zoo.importers.gpt_lmdb",
    "inr2vec": "prepkit.zoo.importers.inr2vec",
    "cnn-wild-park": "prepkit.zoo.importers.cnn_wild_park",
    "small-transformer-zoo": "prepkit.zoo.importers.small_transformer_zoo",
    "ray-tree": "prepkit.zoo.importers.ray_tree",
}
TASK = "task"
HOW_TO_GO_ON = "the same command goes on"


def import_zoo(
    kind: str,
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    width: int | None = None,
    format: str | None = None,
    name: str | None = None,
    license: str | None = None,
    task: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    dtype: str | None = None,
    architecture: Architecture | str | None = None,
    keep_batch_norm: bool = False,
    keep_unfoldable: Literal["affine"] | None = None,
    append: bool = False,
    keep_going: bool = False,
    drop_nan: bool = False,
    progress: Advance | None = None,
    **options: Any,
) -> WrittenZoo:
    """Make a zoo of one that stands on the disk in another layout; the same call goes on after an interruption.

    kind:       what the layout is called, such as "tree" (see `prepkit zoo import`)
    source:     the folder
    path:       the new zoo's folder; with `append` a finished zoo
    append:     add the models to a finished zoo; settings that are missing are its own, and its ClassIds stay. A
                teacher that the other layout has is not taken
    drop_nan:   leave out models that hold NaN or infinity, and count them
    keep_going: add the other models too before an error is raised whose notes tell of each that failed
    progress:   is called with a number of models each time that many more were added
    options:    those of the kind, such as `pattern` and `table` of "tree"; all others are those of `create_zoo`
    raises ZooError for an unknown kind or option, and what `create_zoo` raises

    >>> import_zoo("tree", "runs", "my-zoo", pattern="{run}/checkpoint_{epoch:int}/checkpoints").manifest.table.rows
    20
    """
    from prepkit.zoo.importers.making import make_zoo
    from prepkit.zoo.write.adding import Packing
    from prepkit.zoo.write.model_files import read_task

    task = read_task(Path(task)) if isinstance(task, str | os.PathLike) else task
    return make_zoo(
        path,
        found_by(kind, source, options, task),
        Packing(architecture, keep_batch_norm, keep_unfoldable),
        command=f"zoo import {kind}",
        resume=True,
        append=append,
        keep_going=keep_going,
        drop_nan=drop_nan,
        progress=progress,
        how_to_go_on=HOW_TO_GO_ON,
        width=width,
        format=format,
        name=name,
        license=license,
        task=task,
        dtype=dtype,
    )


def found_by(
    kind: str, source: str | os.PathLike[str], options: Mapping[str, Any], task: Mapping[str, Any] | None = None
) -> Source:
    """Return what the importer of a kind finds in a folder.

    task: the user's record of the task, for importers that run models
    raises ZooError for an unknown kind or option, and what the importer raises
    """
    if kind not in KINDS:
        raise ZooError(f"there is no importer '{kind}'; there are {listed(KINDS)}.{nearest(kind, KINDS)}")
    found = import_module(KINDS[kind]).found
    known = list(inspect.signature(found).parameters)[1:]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ZooError(f"the importer '{kind}' has no option {listed(unknown)}; it has {listed(known, 12) or 'none'}.")
    if task is not None and TASK in known:
        options = {**options, TASK: task}
    source_of_kind: Source = found(Path(source), **options)
    return source_of_kind
