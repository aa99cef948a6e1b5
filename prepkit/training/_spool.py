"""Finished units that wait on the disk until all units before them in the zoo are finished too."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from prepkit.errors import ZooError
from prepkit.support.files import replacing
from prepkit.training._results import Rows
from prepkit.training._stack import Diverged
from prepkit.training._step import Tensors
from prepkit.training._units import FinishedUnit, Unit


def done_file(folder: Path, unit: Unit) -> Path:
    """The file in which a finished unit waits."""
    return folder / f"done-{unit.number:05d}.safetensors"


def save_done(finished: FinishedUnit, folder: Path) -> None:
    """Write a finished unit, whole or not at all; raises OutputError."""
    from safetensors.torch import save_file

    rows = finished.rows
    facts = {"ids": rows.ids, "splits": rows.splits, "columns": rows.columns}
    facts["diverged"] = [asdict(attempt) for attempt in finished.diverged]
    with replacing(done_file(folder, finished.unit), overwrite=True) as path:
        save_file(
            {name: tensor.contiguous() for name, tensor in rows.tensors.items()}, path, {"facts": json.dumps(facts)}
        )


def load_start(unit: Unit, folder: Path) -> Tensors:
    """The tensors of a start that was fitted.

    raises ZooError if its file is damaged or not there
    """
    finished = load_done(unit, folder)
    if finished is None:
        raise ZooError(f"{done_file(folder, unit)}: is missing. Begin the same training again to fit the start anew.")
    return {name: tensor[0] for name, tensor in finished.rows.tensors.items()}


def load_done(unit: Unit, folder: Path) -> FinishedUnit | None:
    """The finished unit that waits; None if there is none.

    raises ZooError if its file is damaged
    """
    from safetensors import SafetensorError, safe_open

    file = done_file(folder, unit)
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            facts = json.loads(opened.metadata()["facts"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it is no dict
        if tuple(facts["ids"]) != unit.ids:
            raise ZooError("it holds other instances")
        rows = Rows(facts["ids"], facts["splits"], tensors, facts["columns"])
        return FinishedUnit(unit, rows, [Diverged(**attempt) for attempt in facts["diverged"]])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise ZooError(f"{file}: cannot be read: {error}. Delete it to train its instances anew.") from None
