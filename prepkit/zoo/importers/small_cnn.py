"""The Small CNN Zoo (Unterthiner et al.): one matrix with a model a row, a table, and the layout of a row.

    weights.npy       [N, 4970], floating-point numbers: N checkpoints of the same small CNN
    metrics.csv.gz    N lines in the same order: the hyper-parameters, the run (modeldir), the step and the metrics
    layout.csv        see `_flat_layout`

The matrix is read a row at a time, so memory does not grow with it. Tensors become those of PyTorch.
"""

from __future__ import annotations

import csv
import gzip
import os
import zlib
from collections.abc import Collection, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.errors import ZooError, counted, listed
from prepkit.families.registry import Architecture
from prepkit.families.small_cnn import ACTIVATIONS
from prepkit.packing import chosen_options
from prepkit.support.files import sha256_of_file
from prepkit.zoo.format.columns import OWN_COLUMNS
from prepkit.zoo.importers._flat_layout import FlatLayout, read_layout
from prepkit.zoo.importers._image_tasks import image_task
from prepkit.zoo.importers._matrix import Matrix
from prepkit.zoo.importers._paper_split import paper_splits, read_order, strict_splits
from prepkit.zoo.importers._strict import PAPER, STRICT, check_splits
from prepkit.zoo.write.adding import Model, Source, Told
from prepkit.zoo.write.cell_types import Column, typed

if TYPE_CHECKING:
    import pyarrow as pa

WEIGHTS, LAYOUT, METRICS = "weights.npy", "layout.csv", ("metrics.csv.gz", "metrics.csv")
ACTIVATION, DATASET, RUN, STEP, ACCURACY = "config.activation", "config.dataset", "modeldir", "step", "test_accuracy"
NAMES = {RUN: "run", ACCURACY: "accuracy"}  # of columns that all zoos call so
SIZES = {"mnist": 28, "fashion_mnist": 28}  # height and width of the pictures; others have OTHER_SIZE
OTHER_SIZE = 32
DATASETS = {  # the makers' names, and those of tasks; all but the first two have coloured images
    "mnist": "mnist",
    "fashion_mnist": "fashion_mnist",
    "cifar10": "cifar10",
    "svhn_cropped": "svhn",
}
# Of 10,000 pictures as many as 10 may be told otherwise by arithmetic that is not TensorFlow's on the makers' machines;
# another convention changes far more.
TOLERANCE = 0.001
HOW_TO_RUN: dict[str, Any] = {
    "measure": "accuracy",
    "tolerance": TOLERANCE,
    "assumed": "pixels are scaled to -1 to 1, and the channels of coloured images averaged into one",
    "mean": [0.5],
    "std": [0.5],
    "activation": ACTIVATION,
    "order": "convolution and activation, three times; the mean over height and width; a linear layer",
    "stride": "2",
    "padding": "none",
}


def found(
    folder: Path,
    *,
    steps: int | Collection[int] | None = None,
    activation: str | None = None,
    splits: str | None = None,
    order: str | os.PathLike[str] | None = None,
) -> Source:
    """Find the models in a folder of the Small CNN Zoo.

    steps:      checkpoints to take, by their step (0, 1, 2, 3, 20, 40, 60, 80 and 86); all if missing
    activation: take only the networks with this one, "relu" or "tanh"
    splits:     "paper", which takes the last step only, or "strict"; see `_paper_split`. None if missing
    order:      the CSV file that orders the rows, for "paper"
    raises ZooError for a file that is missing, not whole, or does not fit the others
    """
    if not folder.is_dir():
        kind = "a file; unpack an archive first, and name the folder" if folder.exists() else "not there"
        raise ZooError(f"'{folder}' is {kind}.")
    missing = [name for name in (WEIGHTS, LAYOUT) if not (folder / name).is_file()]
    metrics = next((folder / name for name in METRICS if (folder / name).is_file()), None)
    if missing or metrics is None:
        absent = listed([*missing, *([] if metrics else [METRICS[0]])])
        raise ZooError(f"'{folder}' lacks {absent}; a Small CNN Zoo has {WEIGHTS}, {METRICS[0]} and {LAYOUT}.")
    check_splits(splits, (PAPER, STRICT))
    if (splits == PAPER) != (order is not None):
        raise ZooError("`splits` paper and `order`, the CSV file that orders the rows, go together.")
    matrix, layout = Matrix(folder / WEIGHTS), read_layout(folder / LAYOUT)
    if layout.size != matrix.columns:
        raise ZooError(
            f"{folder / LAYOUT}: ends at {layout.size:,}, but a row of {WEIGHTS} has {matrix.columns:,} values."
        )
    table, types = _read_metrics(metrics)
    if len(table) != matrix.rows:
        raise ZooError(
            f"{metrics}: has {counted(len(table), 'row')}, but {WEIGHTS} has {matrix.rows:,}; so nothing tells which "
            "row is of which model. Fetch both again."
        )
    wanted = {steps} if isinstance(steps, int) else None if steps is None else set(steps)
    source = SmallCNNSource(matrix, layout, table, metrics, wanted, activation, splits, order)
    source.types = types
    return source


class SmallCNNSource(Source):
    """Rows of the matrix, with their rows in the table.

    rows: number of each model's row
    """

    how_to_run = HOW_TO_RUN

    def __init__(
        self,
        matrix: Matrix,
        layout: FlatLayout,
        table: pa.Table,
        metrics: Path,
        steps: set[int] | None,
        activation: str | None,
        splits: str | None,
        order: str | os.PathLike[str] | None,
    ) -> None:
        self._matrix, self._layout, self._table, self._metrics = matrix, layout, table, metrics
        self.task = _task(table)
        self._notes = [
            f"Columns of {metrics.name} have other names: {listed(f'{a} is {b}' for a, b in NAMES.items())}."
        ]
        self._architectures: dict[tuple[str, str], Architecture] = {}
        self.options: dict[str, Any] = {
            **chosen_options(steps=None if steps is None else sorted(steps), activation=activation, splits=splits)
        }
        runs, of_step = table[RUN].to_pylist(), table[STEP].to_pylist()
        last = max(of_step)
        unknown = sorted((steps or set()) - set(of_step))
        if unknown:
            raise ZooError(
                f"{metrics}: no row is of step {listed(unknown)}; there are {listed(sorted(set(of_step)), 12)}."
            )
        if splits == PAPER:
            if steps not in (None, {last}):
                raise ZooError(f"`splits` paper is of the last step, {last}; leave out `steps`.")
            steps = {last}
        rows = [row for row, step in enumerate(of_step) if steps is None or step in steps]
        self._split: dict[int, str] = {}
        if order is not None:
            self._split, notes = paper_splits(read_order(Path(order), matrix.rows), rows)
            self._notes += notes
            self.options["order"] = {"name": Path(order).name, "sha256": sha256_of_file(Path(order))}
        if activation is not None:
            rows = self._of_activation(rows, activation)
        rows = self._without_copies(rows, leave_out=splits == STRICT)
        if splits == STRICT:
            of_run = strict_splits(runs[row] for row in rows)
            self._split = {row: of_run[runs[row]] for row in rows}
        self.rows = rows
        self.ids = self._ids(runs, of_step)

    def name(self, index: int) -> str:
        """Return the id of a model, and its row."""
        return f"'{self.ids[index]}' ({self._place(index)})"

    def read(self, index: int) -> Model:
        """Read a model's row of the matrix and of the table."""
        row = self.rows[index]
        architecture = self._architecture(self._columns(row), row)
        told = self.told(index)
        tensors = self._layout.tensors(self._matrix.row(row))
        return Model(tensors, self._place(index), told.columns, split=told.split, architecture=architecture)

    def told(self, index: int) -> Told:
        """Return a model's row of the table, and its split."""
        row = self.rows[index]
        return Told({_column(name): value for name, value in self._columns(row).items()}, self._split.get(row))

    def notes(self) -> Sequence[str]:
        """Return sentences on columns and on rows that stand twice."""
        return self._notes

    def _columns(self, row: int) -> dict[str, Any]:
        columns: dict[str, Any] = self._table.slice(row, 1).to_pylist()[0]
        return columns

    def _place(self, index: int) -> str:
        return f"{self._matrix.file}, row {self.rows[index]}"

    def _of_activation(self, rows: list[int], activation: str) -> list[int]:
        own = self._table[ACTIVATION].to_pylist()
        kept = [row for row in rows if own[row] == activation]
        if not kept:
            known = listed(sorted(set(map(str, own))))
            raise ZooError(f"{self._metrics}: no row has {ACTIVATION} '{activation}'; there are {known}.")
        return kept

    def _without_copies(self, rows: list[int], leave_out: bool) -> list[int]:
        """Tell how many rows have the weights of an earlier one, and leave them out if asked."""
        digests = self._matrix.digests(rows)
        first: dict[bytes, int] = {}
        copies = {row for row, digest in zip(rows, digests, strict=True) if first.setdefault(digest, row) != row}
        if copies:
            fate, rows_of = "left out" if leave_out else "kept", f"{counted(len(copies), 'row')} of {WEIGHTS}"
            self._notes.append(f"{rows_of} with the weights of an earlier row, {fate}: {listed(sorted(copies))}.")
        return [row for row in rows if row not in copies] if leave_out else rows

    def _ids(self, runs: Sequence[str], of_step: Sequence[int]) -> list[str]:
        """Return run/step for each row, without the folders that all runs share; a row that has it too ends in #2."""
        parts = {run: run.rstrip("/").split("/") for run in set(runs)}
        first, last = min(parts.values()), max(parts.values())  # what these two share, all share that lie between
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first[:-1], last[:-1], strict=False)))
        short = {run: "/".join(names[shared:]) for run, names in parts.items()}
        counts: dict[str, int] = {}
        ids, again = [], []
        for row in self.rows:
            id_ = f"{short[runs[row]]}/{of_step[row]}"
            counts[id_] = counts.get(id_, 0) + 1
            if counts[id_] > 1:
                id_ = f"{id_}#{counts[id_]}"
                again.append(id_)
            ids.append(id_)
        if again:
            have = "has" if len(again) == 1 else "have"
            self._notes.append(
                f"{counted(len(again), 'row')} {have} the run and step of an earlier row, so their ids have a number: "
                f"{listed(again)}."
            )
        return ids

    def _architecture(self, columns: dict[str, Any], row: int) -> Architecture:
        key = str(columns[ACTIVATION]), str(columns.get(DATASET))
        if key not in self._architectures:
            activation, dataset = key
            if activation not in ACTIVATIONS:
                raise ZooError(
                    f"{self._metrics}, line {row + 2}: no {ACTIVATION} '{activation}' is known; there are "
                    f"{listed(ACTIVATIONS)}."
                )
            arguments = {**self._layout.arguments, "activation": activation}
            channels = arguments["channels"]
            size = SIZES.get(dataset, OTHER_SIZE)
            widths = "-".join(map(str, channels[1:]))
            at = "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in dataset)[:40]
            self._architectures[key] = Architecture(
                f"small_cnn_{widths}_{activation}@{at}",
                "small_cnn",
                (channels[0], size, size),
                "prepkit.families.small_cnn:SmallCNN",
                arguments,
                {},
            )
        return self._architectures[key]


def _task(table: pa.Table) -> dict[str, Any] | None:
    """Return the record of the makers' task; None if the rows name several data sets, or an unknown one."""
    named = set(table[DATASET].to_pylist()) if DATASET in table.column_names else set()
    if len(named) != 1 or not named <= DATASETS.keys():
        return None
    dataset = DATASETS[named.pop()]
    record = image_task(dataset, HOW_TO_RUN["mean"], HOW_TO_RUN["std"])
    return record if dataset in SIZES else {**record, "gray": True}


def _column(name: str) -> str:
    """Return the name that a column of the table has in the zoo's table."""
    return f"metrics.{name}" if name in OWN_COLUMNS else NAMES.get(name, name)


def _read_metrics(file: Path) -> tuple[pa.Table, dict[str, str]]:
    """Read the table, which takes little memory as a table of Arrow, and what each of its columns became.

    Arrow's own reader is not used, since it leaves a thread behind that may abort the process at its end.
    raises ZooError naming the line that is wrong, or if a column is missing
    """
    import pyarrow as pa

    header, cells, numbers = _read_cells(file)
    missing = [name for name in (ACTIVATION, RUN, STEP, ACCURACY) if name not in header]
    if missing:
        raise ZooError(f"{file}: no column {listed(missing)}; there are {listed(header, 30)}.")
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise ZooError(f"{file}: the columns {listed(repeated)} stand twice.")
    arrays, types = {}, {}
    for name in header:
        texts = cells.pop(0)
        if not name:  # pandas writes its index so
            continue
        column = Column(texts, "text") if name in (RUN, ACTIVATION, DATASET) else typed(texts, lines=numbers)
        wrong = next((line for line, text in zip(numbers, texts, strict=True) if not text), None)
        if (name == STEP and column.kind != "int") or (name in (STEP, RUN) and wrong):
            at = f", line {wrong}" if wrong else ""
            raise ZooError(f"{file}{at}: each row needs a {RUN}, and a {STEP} that is a whole number.")
        arrays[name], types[_column(name)] = pa.array(column.values), str(column)
    return pa.table(arrays), types


def _read_cells(file: Path) -> tuple[list[str], list[list[str]], list[int]]:
    """Return the header, the texts of each column and the number of each row's line."""
    opener = gzip.open if file.suffix == ".gz" else open
    numbers: list[int] = []
    known: dict[str, str] = {}  # most columns hold few texts, each of which is kept once
    try:
        with opener(file, "rt", encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(opened, strict=True)
            header = next(reader, [])
            columns: list[list[str]] = [[] for _ in header]
            for cells in filter(None, reader):
                if len(cells) != len(header):
                    have = counted(len(cells), "cell")
                    raise ZooError(
                        f"{file}, line {reader.line_num}: {have}, but the first line names "
                        f"{counted(len(header), 'column')}."
                    )
                numbers.append(reader.line_num)
                for column, cell in zip(columns, cells, strict=True):
                    column.append(known.setdefault(cell, cell))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ZooError(f"{file}: not a whole CSV file ({reason[:200]}); fetch it again.") from None
    return header, columns, numbers
