"""Image sets of the Hub: a snapshot of the repository is read by the `datasets` library and decoded once.

The snapshot is that of `hf download OWNER/NAME --repo-type dataset`, which prepares a machine without network.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.errors import ZooError, counted, listed, nearest
from prepkit.support.logs import logger
from prepkit.support.progress import show_progress, without_bars_of
from prepkit.tasks._image_cache import load_cached, store_cached
from prepkit.tasks._image_record import ImageRecord
from prepkit.tasks._image_set import ImageSet, Part, as_channels, count_classes, decode_all, fingerprint
from prepkit.tasks.task import DataMissing

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, Features

LOG = logger(__name__)
COMMIT = re.compile(r"[0-9a-f]{40}")
RESOLVE_SECONDS = 10.0
ROWS = 512  # rows that are read from the data set at a time


def hub_images(record: ImageRecord, data: Path | None) -> ImageSet:
    """The decoded images of the parts that a record uses, from the cache if they were decoded before.

    data: a copy of the repository, instead of the Hub's own cache
    raises ZooError if the set does not have what the record says
    raises DataMissing if there is no such set, or neither a network nor a copy of it
    """
    if data is not None:
        if not data.is_dir():
            raise ZooError(f"'{data}' is no folder with a copy of '{record.dataset}'.")
        return _decoded(record, data, record.revision if _is_commit(record.revision) else None)
    commit = record.revision if _is_commit(record.revision) else _resolve(record)
    cached = load_cached(_cache_name(record, commit)) if commit else None
    if cached is not None:
        LOG.info("took '%s' of commit %s from the cache of decoded images", record.dataset, commit)
        return cached
    LOG.info("'%s' is not in the cache of decoded images, so it is fetched and decoded", record.dataset)
    found = _decoded(record, _snapshot(record, commit), commit)
    store_cached(_cache_name(record, commit), found)
    return found


def _is_commit(revision: str | None) -> bool:
    return revision is not None and COMMIT.fullmatch(revision) is not None


def _cache_name(record: ImageRecord, commit: str | None) -> str:
    columns = (record.columns.image, record.columns.label)
    what = f"{record.dataset}:{commit}:{record.config}:{columns}:{sorted(record.split.parts)}"
    what += f":{record.size}" if record.size else ""
    return f"{record.dataset.replace('/', '--')}-{hashlib.sha256(what.encode()).hexdigest()[:16]}"


# The repository -----------------------------------------------------------------------------------------------


def _resolve(record: ImageRecord) -> str | None:
    """The commit of a branch or tag, or of the main branch: as the Hub has it, else as the Hub's own cache has it."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    if not _offline():
        try:
            info = HfApi().dataset_info(record.dataset, revision=record.revision, timeout=RESOLVE_SECONDS)
        except RevisionNotFoundError:
            raise ZooError(f"task, revision: '{record.dataset}' has no revision '{record.revision}'.") from None
        except RepositoryNotFoundError:
            raise DataMissing(
                f"the Hub has no data set '{record.dataset}' that you may see; if it is private or gated: hf auth login"
            ) from None
        except Exception:  # the Hub's client lets errors of its own HTTP library through
            return _kept_commit(record)
        return info.sha
    return _kept_commit(record)


def _kept_commit(record: ImageRecord) -> str:
    return _snapshot(record, record.revision, local=True).name


def _snapshot(record: ImageRecord, revision: str | None, local: bool = False) -> Path:
    """The folder of a whole snapshot, which is downloaded if it is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(
            snapshot_download(
                record.dataset, repo_type="dataset", revision=revision, local_files_only=local or _offline()
            )
        )
    except (OSError, HfHubHTTPError) as error:
        cause = "this machine is offline" if _offline() else f"the Hub cannot be reached ({type(error).__name__})"
        at = f" --revision {revision}" if revision else ""
        command = f"hf download {record.dataset} --repo-type dataset{at}"
        raise DataMissing(f"'{record.dataset}' is not at hand and {cause}; with a network: {command}") from error


def _offline() -> bool:
    from huggingface_hub import constants

    said = os.environ.get("HF_DATASETS_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return said or bool(constants.HF_HUB_OFFLINE)


# Reading ------------------------------------------------------------------------------------------------------


def _decoded(record: ImageRecord, folder: Path, commit: str | None) -> ImageSet:
    import torch

    with tempfile.TemporaryDirectory(prefix="prepkit-") as temporary:  # its tables are not needed after decoding
        opened = _open(record, folder, temporary)
        for name in record.split.parts:
            if name not in opened:
                near = nearest(name, opened)
                raise ZooError(f"task, split: '{record.dataset}' has no part '{name}'; it has {listed(opened)}.{near}")
        features = opened[record.split.train].features
        image, label = _columns(record, features)
        rows = {name: opened[name].select_columns([image, label]) for name in record.split.parts}
        pixels = as_channels({name: _pixels(part, image, name, record.size) for name, part in rows.items()})
        labels = {name: _labels(part, label, name) for name, part in rows.items()}
        del opened, rows  # Their files are mapped, and about to be deleted.
    parts = {name: Part(torch.from_numpy(pixels[name]), labels[name]) for name in pixels}
    names = getattr(features[label], "names", None)
    class_names = tuple(names) if names else None
    return ImageSet(parts, class_names, count_classes(parts, class_names), fingerprint(parts), revision=commit)


def _open(record: ImageRecord, folder: Path, temporary: str) -> DatasetDict:
    try:
        import datasets
    except ImportError:
        raise DataMissing(
            f"'{record.dataset}' is read by the library datasets, which is missing; pip install 'prepkit[train]'."
        ) from None
    with _no_bars_unless_wanted():
        try:
            found: DatasetDict = datasets.load_dataset(str(folder), name=record.config, cache_dir=temporary)
        except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
            reason = " ".join(str(error).split())
            place = "task, config" if "onfig" in reason else "task, dataset"
            raise ZooError(f"{place}: '{record.dataset}' cannot be read: {reason}") from error
    return found


def _no_bars_unless_wanted() -> AbstractContextManager[None]:
    """Keep the library's bars out of a log file, and from where no progress is shown."""
    from datasets import utils

    return nullcontext() if sys.stderr.isatty() and show_progress.get() else without_bars_of(utils)


def _columns(record: ImageRecord, features: Features) -> tuple[str, str]:
    """The names of the image and the label column."""
    from datasets import ClassLabel, Image, Value

    images = [name for name, feature in features.items() if isinstance(feature, Image)]
    labels = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    if not labels:
        numbers = [name for name, feature in features.items() if isinstance(feature, Value) and "int" in feature.dtype]
        labels = numbers
    return _column_for("image", record.columns.image, images, features), _column_for(
        "label", record.columns.label, labels, features
    )


def _column_for(what: str, asked: str | None, fitting: list[str], features: Features) -> str:
    if asked is not None:
        if asked in fitting:
            return asked
        near = nearest(asked, fitting)
        fault = f"'{asked}' is no column of {what}s" if asked in features else f"there is no column '{asked}'"
        raise ZooError(f"task, columns.{what}: {fault}; such columns are: {listed(fitting) or 'none'}.{near}")
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise ZooError(f"the data set has no column of {what}s; its columns are: {listed(features)}.")
    raise ZooError(
        f"the data set has several columns of {what}s: {listed(fitting)}; "
        f'choose one in the task: columns = {{{what} = "{fitting[0]}"}}.'
    )


def _pixels(part: Dataset, column: str, name: str, size: int | None) -> Any:
    from datasets import Image

    encoded = part.select_columns([column]).cast_column(column, Image(decode=False))

    def images() -> Iterator[tuple[str, Any]]:
        number = 0
        for rows in encoded.iter(ROWS):
            for value in rows[column]:
                place = f"{name}, image {number}"
                if value is None:
                    raise ZooError(f"{place} is missing.")
                yield place, value["bytes"] if value["bytes"] is not None else value["path"]
                number += 1

    return decode_all(images(), len(encoded), name, size)


def _labels(part: Dataset, column: str, name: str) -> Any:
    import torch

    values = part.data.column(column)
    if values.null_count:
        raise ZooError(f"part '{name}' has {counted(values.null_count, 'image')} without a label.")
    return torch.tensor(values.to_pylist(), dtype=torch.int64)
