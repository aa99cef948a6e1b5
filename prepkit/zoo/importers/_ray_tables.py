"""What params.json (or config.json) and result.json of a run say, as columns of the zoo's table.

A row of result.json belongs to the epoch that its `training_iteration` says, or its `epoch` where it has none; its line
says nothing, since a training that went on writes some epochs again. The last row of an epoch counts.

Accuracies become shares of 1, also where a run counts percent; -999 stands for a value that was not measured.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prepkit.errors import ZooError, listed
from prepkit.zoo.format.columns import OWN_COLUMNS
from prepkit.zoo.format.function import ACCURACY
from prepkit.zoo.importers._ray_runs import Run
from prepkit.zoo.importers._row_keys import as_field
from prepkit.zoo.write.tables import read_table

KEYS = ("training_iteration", "epoch")
RUN, EPOCH, PARENT = "run", "epoch", "parent"
OWN = (*OWN_COLUMNS, RUN, EPOCH, PARENT, ACCURACY)
TEST_ACCURACY = "test_acc"
NOT_MEASURED = -999
ACCURACIES = re.compile(r"(?:.*_)?acc|acc_class_[0-9]+")
GAPS = re.compile(r"late_window_gap|(?:.*_)?acc(?:uracy)?_gap")  # differences of accuracies; others may be of losses
MOST = 1.001  # that a share of 1 is with the rounding of its arithmetic
# What ray notes of a step beside the metrics: the settings again, and times, machines and counters.
OF_RAY = frozenset(
    (
        "agent_timesteps_total",
        "checkpoint_dir_name",
        "date",
        "done",
        "episodes_total",
        "experiment_id",
        "experiment_tag",
        "hostname",
        "iterations_since_restore",
        "node_ip",
        "pid",
        "should_checkpoint",
        "time_since_restore",
        "time_this_iter_s",
        "time_total_s",
        "timestamp",
        "timesteps_since_restore",
        "timesteps_total",
        "trial_id",
        "warmup_time",
    )
)


@dataclass
class TablesTold:
    """What is to be told of the tables of all runs; a run is counted once."""

    missing: set[str] = field(default_factory=set)
    notes: dict[str, None] = field(default_factory=dict)
    twice: dict[str, int] = field(default_factory=dict)
    rows_without: dict[str, int] = field(default_factory=dict)
    without_row: dict[str, int] = field(default_factory=dict)
    percent: set[str] = field(default_factory=set)
    not_measured: dict[str, int] = field(default_factory=dict)
    of_ray: set[str] = field(default_factory=set)
    unkept: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class RunTable:
    """The columns of a run.

    settings: those of all its models
    rows:     those of the model of each epoch
    """

    settings: Mapping[str, Any]
    rows: Mapping[int, Mapping[str, Any]]


def read_settings(run: Run) -> dict[str, Any]:
    """Return the settings of a run under their names, those of objects inside it with dotted names.

    raises ZooError naming the file that is not one JSON object
    """
    if run.settings is None:
        return {}
    _check_json(run.settings)
    return read_table(Path(run.settings), one_row=True, strict=False).rows[0]


def read_run(run: Run, settings: Mapping[str, Any], told: TablesTold) -> RunTable:
    """Return the columns of a run's models.

    raises ZooError naming the file and line of a result.json that is damaged
    """
    rows = _rows(run, told)
    found = [value for row in (settings, *rows.values()) for name, value in row.items() if ACCURACIES.fullmatch(name)]
    is_percent = any(isinstance(value, int | float) and value > MOST for value in found)
    if is_percent:
        told.percent.add(run.name)
    scale = 100 if is_percent else 1
    return RunTable(
        {_column(name, "params"): _scaled(name, value, scale) for name, value in settings.items()},
        {epoch: _measured(row, settings, scale) for epoch, row in rows.items()},
    )


def _rows(run: Run, told: TablesTold) -> dict[int, dict[str, Any]]:
    """Return the row of each epoch, without what ray notes and what was not measured."""
    if not Path(run.results).is_file():
        told.missing.add(run.name)
        return {}
    _check_json(run.results)
    table = read_table(Path(run.results), one_row=True, strict=False)
    told.notes.update(dict.fromkeys(table.notes))
    key = next((key for key in KEYS if key in table.columns), None)
    if key is None:
        raise ZooError(
            f"{run.results}: no {' or '.join(KEYS)} tells which row is of which epoch; there are "
            f"{listed(table.columns, 12)}."
        )
    rows: dict[int, dict[str, Any]] = {}
    twice = not_measured = 0
    for number, row in zip(table.numbers, table.rows, strict=True):
        epoch = as_field(row.get(key), "int")
        if not isinstance(epoch, int):
            raise ZooError(f"{run.results}, line {number}: {key} {row.get(key)!r} is no whole number.")
        twice += epoch in rows
        kept = rows[epoch] = {}
        for name, value in row.items():
            if name in OF_RAY or name.startswith("config."):
                told.of_ray.add(name.partition(".")[0])
            elif name not in KEYS:
                is_number = isinstance(value, int | float) and not isinstance(value, bool)
                missing = is_number and value == NOT_MEASURED
                not_measured += missing
                kept[name] = None if missing else value
    for counts, count in (
        (told.twice, twice),
        (told.rows_without, len(rows.keys() - run.epochs.keys())),
        (told.without_row, len(run.epochs.keys() - rows.keys())),
        (told.not_measured, not_measured),
    ):
        if count:
            counts[run.name] = count
    told.unkept.update({name: count for name, count in table.unkept.items() if not name.startswith("config.")})
    return rows


def _measured(row: Mapping[str, Any], settings: Mapping[str, Any], scale: int) -> dict[str, Any]:
    """Return a row's columns, of which `test_acc` is called accuracy."""
    columns = {}
    for name, value in row.items():
        value = _scaled(name, value, scale)
        if name == TEST_ACCURACY:
            columns[ACCURACY] = value
        elif name not in settings or settings[name] != value:
            columns[_column(name, "result", name in settings)] = value
    return columns


def _column(name: str, table: str, is_taken: bool = False) -> str:
    return f"{table}.{name}" if name in OWN or is_taken else name


def _scaled(name: str, value: Any, scale: int) -> Any:
    """Return accuracies and their differences as shares of 1, None where not measured, and all else as it is."""
    is_share = ACCURACIES.fullmatch(name) or GAPS.fullmatch(name)
    if not is_share or not isinstance(value, int | float) or isinstance(value, bool):
        return value
    return None if value != value else value / scale


def _check_json(file: str) -> None:
    """Raise ZooError for a file that does not begin as a JSON object does, such as an empty one or a page of HTML."""
    try:
        with open(file, "rb") as opened:
            start = opened.read(200).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError as error:
        raise ZooError(f"'{file}' cannot be read: {error.strerror}.") from None
    if not start.startswith(b"{"):
        what = "is empty" if not start else "holds no JSON object"
        raise ZooError(f"'{file}' {what}; fetch it again, or take the run away.")
