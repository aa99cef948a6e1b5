"""What `prepkit zoo create` reads: models one by one, and the file that says what they were trained on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.address import HubAddress
from prepkit.errors import ZooError
from prepkit.version import __version__

if TYPE_CHECKING:
    from prepkit.checkpoint.load import Checkpoint
    from prepkit.prep.file import PRep
    from prepkit.zoo.change.csv_columns import Record

SOURCE = "source"  # the address of a model of the Hub, with its commit
SOURCE_SHA256 = "source_sha256"


def read_source(file: Path) -> tuple[Checkpoint | PRep, str | None]:
    """A checkpoint or a PRep, and the sha256 of the checkpoint; None for a PRep that does not know it.

    raises CheckpointError, PRepFileError
    """
    from prepkit.checkpoint.load import load_checkpoint, sha256_of
    from prepkit.packing import check_finite, check_packable
    from prepkit.prep.file import is_prep_file, load_prep
    from prepkit.zoo.write.instance_rows import ONLY_FINITE

    if is_prep_file(file):
        prep = load_prep(file)
        return prep, prep.origin.source_sha256
    checkpoint = load_checkpoint(file)
    check_packable(checkpoint, f"'{file}'")
    check_finite(checkpoint, f"'{file}'", remedy=ONLY_FINITE)  # before it is folded, and with the name of the file
    return checkpoint, sha256_of(file)


def check_columns(records: Iterable[Record], table: Path | None) -> None:
    """Raise ZooError if the user's table fills a column that is filled from the models."""
    records = list(records)
    filled = (SOURCE, SOURCE_SHA256) if are_of_hub(records) else (SOURCE_SHA256,)
    for name in filled:
        if any(name in record.columns for record in records):
            raise ZooError(f"{table}: the column '{name}' is filled from the models themselves; rename it.")


def are_of_hub(records: Iterable[Record]) -> bool:
    """Whether any of the models is of the Hub: the zoo then tells of each where it is from."""
    return any(isinstance(record.file, HubAddress) for record in records)


def provenance_of_sources(count: int) -> dict[str, Any]:
    """How a zoo was made of files: without paths and times, so that the same files give the same bytes."""
    import safetensors
    import torch

    versions = {"prepkit": __version__, "torch": str(torch.__version__), "safetensors": safetensors.__version__}
    return {"command": "zoo create", "sources": count, "versions": versions}


def read_task(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    raises ZooError naming the file, the line where it is not JSON, and what to do
    """
    try:
        task = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise ZooError(f"{path}, line {error.lineno}: not JSON: {error.msg}. {_remedy()}") from None
    except (ValueError, RecursionError) as error:
        raise ZooError(f"{path}: not JSON in UTF-8: {error}. {_remedy()}") from None
    except OSError as error:
        raise ZooError(f"{path}: cannot be read: {error.strerror}. {_remedy()}") from None
    if not isinstance(task, dict):
        raise ZooError(f"{path}: holds a {type(task).__name__}, not an object. {_remedy()}")
    return task


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _remedy() -> str:
    return """Write an object such as {"kind": "images", "dataset": "digits"} in it."""
