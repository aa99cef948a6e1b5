"""The lists of NetSpace's reference code, each line of which names a network, and folders of its distance functions.

    prepkit zoo import netspace-lists netspace/models/input_lists/cifar10/multi zoo

The lists train.txt, val.txt and test.txt are the split. Networks become those that are built in (`lenet_like@cifar10`),
with BatchNorms folded, so that a zoo of them goes straight into netspace. Where a folder holds no list, its files are
signed distance functions with their points.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from prepkit.checkpoint.load import load_checkpoint, sha256_of
from prepkit.errors import CheckpointError, PrepkitError, ZooError, counted, listed
from prepkit.families.architecture import floating_shapes
from prepkit.families.detection import explain_mismatch
from prepkit.prep.slot import natural_key
from prepkit.zoo.format.sources import SOURCE_SHA256
from prepkit.zoo.importers._netspace_lines import (
    ListedNet,
    check_class_ids,
    check_no_copies,
    in_split,
    read_line,
    read_list,
)
from prepkit.zoo.importers._netspace_sdf import HOW_TO_RUN as HOW_SDF_RUNS
from prepkit.zoo.importers._netspace_sdf import KEY, POINTS, errors_at_points, sine_mlp
from prepkit.zoo.importers.tree import Types
from prepkit.zoo.write.adding import Model, Source, Told
from prepkit.zoo.write.csv_columns import ModelRows, rows_of_models
from prepkit.zoo.write.model_files import FileSource, LocalModel, check_columns

LISTS, SDF_FILES = "*.txt", "*.pt"
SAMPLE = 8  # distance functions that are run on their points
ORDER = ("train", "val", "valid", "test")  # of lists; others follow
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
HOW_TO_RUN = {
    "measure": "accuracy",
    "activation": "leaky_relu",
    "order": "convolution, then activation; ResNets add the shortcut before the second activation of a block",
    "mean": MEAN,
    "std": STD,
}
# Images that networks of the lists were trained and tested on. Their makers kept the last 10,000 of CIFAR-10's training
# images for validation. Those of Tiny-ImageNet were drawn and are listed by the names of files, which the Hub
# does not have: there no image that a record would draw for validation is new to the networks.
TASKS: dict[str, dict[str, Any]] = {
    name: {
        "kind": "images",
        "dataset": dataset,
        "mean": MEAN,
        "std": STD,
        "split": split,
        "augmentation": {"crop_padding": padding, "horizontal_flip": True},
    }
    for name, dataset, split, padding in (
        ("cifar10", "uoft-cs/cifar10", {"validation": 10_000, "last": True, "test": "test"}, 4),
        ("tiny-imagenet-200", "zh-plus/tiny-imagenet", {"seed": 0, "test": "valid"}, 8),
    )
}


def found(
    folder: Path,
    *,
    lists: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    root: str | os.PathLike[str] | None = None,
    teacher: str | None = None,
    table: str | os.PathLike[str] | None = None,
    types: Types | None = None,
) -> Source:
    """Find the networks of lists, or the signed distance functions in a folder without lists.

    folder: holds train.txt and the like, or is one such list; or holds the .pt files of distance functions
    lists:  the lists to take, from the folder or the current one; all *.txt in the folder if missing
    root:   folder that the paths in the lists start from; if missing, the first of the folder, those above it and the
            current one where a file of the lists is
    teacher: a line such as "resnet_fusedbn;d4;d56;scifar10;teacher.pt", whose network is kept as the zoo's teacher
    table:  a table whose column `file` names networks by path
    types:  types of its columns, as in `create_zoo`
    raises ZooError naming list and line
    """
    files = _lists(folder, lists)
    csv = None if table is None else Path(table)
    if files:
        kept = None if teacher is None else read_line(teacher, "`teacher`")
        return _of_lists(folder, files, None if root is None else Path(root), kept, csv, types)
    if root is not None or teacher is not None:
        option = "`root`" if root is not None else "`teacher`"
        raise ZooError(f"{option} goes with lists, and '{folder}' holds no list (*.txt).")
    functions = sorted(folder.glob(SDF_FILES), key=lambda file: natural_key(file.name))
    if not functions:
        raise ZooError(f"'{folder}' holds no list (train.txt, ...) and no distance function ({SDF_FILES}).")
    return SdfSource(_rows(functions, csv, types))


def _lists(folder: Path, lists: Any) -> list[Path]:
    """Return the lists that were asked for or are in the folder; those for training first."""
    if folder.is_file() and folder.suffix == ".txt" and lists is None:
        return [folder]
    if not folder.is_dir():
        kind = "a file; unpack an archive first, and name the folder" if folder.exists() else "not there"
        raise ZooError(f"'{folder}' is {kind}.")
    if lists is None:
        files = sorted(folder.glob(LISTS), key=lambda file: natural_key(file.name))
    else:
        named = [lists] if isinstance(lists, str | os.PathLike) else lists
        files = [folder / name if (folder / name).is_file() else Path(name) for name in named]
    places = {name: number for number, name in enumerate(ORDER)}
    return sorted(files, key=lambda file: places.get(file.stem, len(ORDER)))


def _of_lists(
    folder: Path,
    files: Sequence[Path],
    root: Path | None,
    teacher: ListedNet | None,
    csv: Path | None,
    types: Types | None,
) -> Source:
    by_list = [(read_list(file), in_split(file.stem)) for file in files]
    nets = [net for listed_nets, _ in by_list for net in listed_nets]
    splits = [split for listed_nets, split in by_list for _ in listed_nets]
    taken, again = check_no_copies(nets, splits)
    nets, splits = [nets[number] for number in taken], [splits[number] for number in taken]
    class_ids = check_class_ids(nets)
    notes = []
    if again:
        lines = counted(again, "line")
        notes.append(f"{lines} left out, as an earlier line of the same list names the file.")
    if root is None:
        root = _root(folder, nets)
        notes.append(f"Paths in the lists start from '{root}'.")
    paths = [root / net.path for net in nets]
    absent = [net for net in (*nets, *([teacher] if teacher else [])) if not (root / net.path).is_file()]
    if absent:
        are = "is no file" if len(absent) == 1 else "are no files"
        places = listed(f"{net.path} ({net.place})" for net in absent)
        raise ZooError(
            f"{len(absent):,} of {counted(len(nets), 'network')} {are} in '{root}': {places}. Fetch them, or take the "
            "lines out."
        )
    source = NetSource(nets, splits, _rows(paths, csv, types), class_ids, notes)
    if teacher is not None:
        source.keep_teacher(teacher, root / teacher.path)
    return source


def _rows(paths: Sequence[Path], csv: Path | None, types: Types | None) -> ModelRows:
    rows = rows_of_models(paths, csv, types)
    check_columns(rows.rows, csv)
    return rows


def _root(folder: Path, nets: Sequence[ListedNet]) -> Path:
    """Return the first folder in which a file of the lists is."""
    start = folder.absolute() if folder.is_dir() else folder.absolute().parent
    for place in (start, *start.parents, Path.cwd()):
        if any((place / net.path).is_file() for net in nets):
            return place
    raise ZooError(
        f"no file of the lists is in '{start}', a folder above it or the current one, such as {nets[0].path} "
        f"({nets[0].place}). Say with `root` which folder the paths start from."
    )


class _Files(FileSource):
    """Files on the disk, whose tensors get the names of the networks here."""

    def __init__(self, rows: ModelRows) -> None:
        super().__init__(rows, lambda path: nullcontext(LocalModel(Path(str(path)), str(path))))

    def file(self, index: int) -> Path:
        """Return the path of a model."""
        return Path(str(self.rows[index].model))


class NetSource(_Files):
    """Classifiers that lists name.

    nets:   what the lists say of each
    splits: split of each
    """

    how_to_run = HOW_TO_RUN

    def __init__(
        self,
        nets: Sequence[ListedNet],
        splits: Sequence[str],
        rows: ModelRows,
        class_ids: Mapping[str, int],
        notes: Sequence[str],
    ) -> None:
        super().__init__(rows)
        self.nets, self.splits = nets, splits
        self._teacher: tuple[ListedNet, Path] | None = None
        self.record = {"class_ids_of_lists": dict(class_ids)}
        datasets = {net.dataset for net in nets}
        self.task = TASKS[datasets.pop()] if len(datasets) == 1 else None
        self._found = [*notes, *_note_on_class_ids(nets, class_ids)]
        for row, split in zip(self.rows, splits, strict=True):
            if row.split not in (None, split):
                raise ZooError(f"the table gives '{row.id}' the split '{row.split}', and its list is of '{split}'.")

    def name(self, index: int) -> str:
        """Return the id, the file and the line of a network."""
        return f"'{self.ids[index]}' ({self.file(index)}; {self.nets[index].place})"

    def read(self, index: int) -> Model:
        """Read a network's file, under the names of the built-in network."""
        model, told = _read(self.nets[index], self.file(index)), self.told(index)
        return replace(model, columns={**told.columns, **model.columns}, split=told.split)

    def keep_teacher(self, net: ListedNet, file: Path) -> None:
        """Note which network is the teacher.

        raises ZooError for one of another data set
        """
        others = sorted({other.dataset for other in self.nets} - {net.dataset})
        if others:
            raise ZooError(f"{net.place}: is for {net.dataset}, and networks of the lists for {listed(others)}.")
        self._teacher = net, file
        self.options = {"teacher": net.path}

    def teacher(self) -> Model | None:
        """Read the teacher's file."""
        return None if self._teacher is None else _read(*self._teacher)

    def told(self, index: int) -> Told:
        """Return the data set of a network, its row in the table, and its split."""
        return Told({"dataset": self.nets[index].dataset, **self.rows[index].columns}, self.splits[index])

    def notes(self) -> Sequence[str]:
        """Return sentences on lists and rows."""
        return *self._found, *super().notes()


def _read(net: ListedNet, file: Path) -> Model:
    """Read a network's file, under the names of the built-in network.

    raises ZooError, CheckpointError naming the line
    """
    try:
        checkpoint = load_checkpoint(file)
    except CheckpointError as error:
        raise type(error)(f"{net.place}: {error}") from None
    tensors = net.renamed(checkpoint)
    shapes, known = floating_shapes(tensors), net.architecture
    if shapes not in (known.trainable_shapes, known.folded_shapes):
        raise ZooError(
            f"{net.place}: '{file}' holds no {net.kind} for {net.dataset}. Under the names of prepkit, "
            f"{explain_mismatch(tensors, known)}"
        )
    columns = {SOURCE_SHA256: sha256_of(file)}
    place = f"'{file}' ({net.place})"
    return Model(tensors, place, columns, checkpoint.said, checkpoint.others, architecture=known)


def _note_on_class_ids(nets: Sequence[ListedNet], class_ids: Mapping[str, int]) -> Iterator[str]:
    """Tell where the ClassIds of the zoo, which ascend in packed parameters, are not those of the lists."""
    known = {net.architecture.name: net.architecture for net in nets}
    order = sorted(known, key=lambda name: (known[name].num_parameters, name))
    if [class_ids[name] for name in order] != list(range(len(order))):
        pairs = listed(f"{name} is {number} (list {class_ids[name]})" for number, name in enumerate(order))
        yield f"ClassIds of a zoo are 0, 1, ..., so they are not all those of the lists: {pairs}."


class SdfSource(_Files):
    """Signed distance functions. Some are run on the points in their files, to see that they fit them."""

    how_to_run = HOW_SDF_RUNS

    def __init__(self, rows: ModelRows) -> None:
        super().__init__(rows)
        self._ran = ""
        self._run_some()

    def read(self, index: int) -> Model:
        """Read a function's file, under the names of the sine MLPs here."""
        file = self.file(index)
        checkpoint = load_checkpoint(file, key=KEY)
        architecture, tensors = sine_mlp(checkpoint, f"'{file}'")
        told = self.told(index)
        columns = {**told.columns, SOURCE_SHA256: sha256_of(file)}
        return Model(tensors, f"'{file}'", columns, checkpoint.said, checkpoint.others, told.split, architecture)

    def notes(self) -> Sequence[str]:
        """Return sentences on the points, and on rows."""
        return *filter(None, [self._ran]), *super().notes()

    def _run_some(self) -> None:
        """Run some functions, spread evenly, on their points; files that cannot be read are left to `read`."""
        errors = []
        for index in dict.fromkeys(number * len(self.ids) // SAMPLE for number in range(SAMPLE)):
            try:
                checkpoint = load_checkpoint(self.file(index), key=KEY)
                errors.append(errors_at_points(self.file(index), *sine_mlp(checkpoint, "")))
            except PrepkitError:
                continue
        ran = [pair for pair in errors if pair is not None]
        if not ran:
            return
        own, constant = (sum(values) / len(ran) for values in zip(*ran, strict=True))
        self.record = {"run_on_points": {"models": len(ran), "mean_absolute_error": own, "of_a_constant": constant}}
        fit = "so they fit their points" if own < constant / 2 else "so they do NOT fit their points"
        self._ran = (
            f"Running {counted(len(ran), 'function')} with w0 = 30 on the points in '{POINTS}' gives a mean absolute "
            f"error of {own:.3g}, where the best constant gives {constant:.3g}, {fit}."
        )
