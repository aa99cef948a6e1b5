"""SIRENs of shapes, as inr2vec (De Luigi et al.) saves them: an HDF5 file a shape, in a folder for each split.

    train/0.h5, train/1.h5, ..., val/0.h5, ..., test/0.h5

Files for the completion of shapes hold two SIRENs, which become two instances. See `_inr_files` for what is in a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from prepkit.errors import ZooError, counted, listed
from prepkit.packing import chosen_options
from prepkit.support.files import sha256_of_file
from prepkit.zoo.format.sources import SOURCE_SHA256
from prepkit.zoo.importers._inr_files import PARTS, count_of, parts_of, read_shape, sizes_of
from prepkit.zoo.importers._inr_points import FAR, FARTHEST, mean_distances
from prepkit.zoo.importers._siren_files import OMEGA, Convention, SirenShape
from prepkit.zoo.importers._strict import StrictSource, check_splits
from prepkit.zoo.importers._tensor_shapes import TensorShapes
from prepkit.zoo.importers.tree import Paths, Tables, TreeSource, Types, check_folder, in_folder, listed_tables
from prepkit.zoo.write.adding import Model, Source, Told

PATTERN = "{split}/{index:int}.h5"
LABEL, PART, PAIR = "label", "part", "pair"
CLASS_ID = "class_id"  # the zoo has a column of this name for architectures
INR2VEC = Convention("inr2vec", 0.0, "xy", (0.0,), (1.0,))
SAMPLE = 8  # models that are run at the points of their shapes
HOW_TO_RUN = {
    "convention": INR2VEC.name,
    "activation": "sine",
    "order": "linear, then sin(w0 * x); after the last layer no sine",
    "w0": OMEGA,
    "output_offset": 0.0,
    "input": "three coordinates from -1 to 1",
    "output": "a logit: its sigmoid is 1 - distance / 0.1 for point clouds, with distances of at most 0.1, "
    "(signed distance + 0.1) / 0.2 for meshes, and the occupancy for voxels",
}


def found(
    folder: Path,
    *,
    sizes: Sequence[int] | None = None,
    pattern: str | None = None,
    files: Paths | None = None,
    table: Tables = None,
    on: Mapping[str, str] | None = None,
    types: Types | None = None,
    splits: str | None = None,
) -> Source:
    """Find the SIRENs of shapes in a folder.

    sizes: numbers of inputs, of each hidden layer and of outputs, such as [3, 512, 512, 512, 512, 1]; if missing, those
           that fit the number of parameters
    pattern, files, table, on, types: as for "tree"; the pattern is "{split}/{index:int}.h5" if missing
    splits: "strict", which leaves equal models out and keeps the models of a file in one split; by folder if missing
    raises ZooError if nothing fits, the first file is damaged, or its parameters fit no sizes or several
    """
    check_folder(folder)
    check_splits(splits)
    if sizes is not None and (len(sizes) < 2 or not all(type(size) is int and size > 0 for size in sizes)):
        raise ZooError(f"`sizes`: {list(sizes)} are no sizes of layers such as 3x512x512x512x512x1.")
    given = [folder] if files is None else in_folder(folder, files)
    tree = TreeSource(given, pattern or PATTERN, listed_tables(table), on or {}, types or {}, None, None)
    source = Inr2vecSource(tree, None if sizes is None else tuple(sizes))
    return source if splits is None else StrictSource(source, source.pair_of)


class Inr2vecSource(Source):
    """SIRENs of shapes; of those for completion each file holds two.

    tree: the files, their fields and their rows in tables
    """

    how_to_run = HOW_TO_RUN

    def __init__(self, tree: TreeSource, sizes: tuple[int, ...] | None) -> None:
        self._tree = tree
        first = Path(tree.files[0])
        self._datasets = parts_of(first)
        taken = [name for name in (LABEL, PART, PAIR) if name in tree.types or name in tree.pattern.kinds]
        if taken:
            raise ZooError(f"the columns {listed(taken)} are filled by the importer; rename those of the table.")
        count = len(read_shape(first, self._datasets[0])[0])
        sizes_found = _solved(count, sizes, f"'{first}', {self._datasets[0]}")
        hidden = len(sizes_found) - 2
        names = (*(f"layers.{layer}.0" for layer in range(hidden)), f"layers.{hidden}")
        self._shape = SirenShape(names, sizes_found)
        self._architecture = self._shape.architecture(INR2VEC)
        self._tensors = TensorShapes(_shapes(self._shape))
        self._sha256 = lru_cache(maxsize=1)(sha256_of_file)
        self.types, self.has_mixed_tables = tree.types, tree.has_mixed_tables
        self.options = {**tree.options, **chosen_options(sizes=None if sizes is None else list(sizes))}
        suffixes = [f"/{PARTS[name]}" for name in self._datasets] if self._is_paired else [""]
        self.ids = [f"{id_}{suffix}" for id_ in tree.ids for suffix in suffixes]
        self._has_classes = False
        self._check_points()

    @property
    def _is_paired(self) -> bool:
        return len(self._datasets) > 1

    def pair_of(self, index: int) -> str:
        """Return what the models of one file share."""
        return self._tree.ids[index // len(self._datasets)]

    def name(self, index: int) -> str:
        """Return the id and the file of a model."""
        return f"'{self.ids[index]}' ({self._file(index)})"

    def read(self, index: int) -> Model:
        """Read a model's numbers, and what its file says beside them."""
        file, dataset = self._file(index), self._dataset(index)
        values, shape = read_shape(file, dataset)
        place = f"'{file}', {dataset}" if self._is_paired else f"'{file}'"
        if len(values) != self._tensors.size:
            fits = f"; those of {' or '.join(map(_written, sizes_of(len(values))))}" if sizes_of(len(values)) else ""
            raise ZooError(
                f"{place}: has {counted(len(values), 'parameter')}{fits}; the first file has {self._tensors.size:,}, "
                f"those of {_written(self._shape.sizes)}. Import it alone."
            )
        told = self.told(index)
        said = {LABEL if name == CLASS_ID else name: value for name, value in shape.said.items()}
        self._has_classes |= CLASS_ID in shape.said
        columns = {**told.columns, SOURCE_SHA256: self._sha256(file)}
        tensors = self._tensors.tensors(values)
        return Model(tensors, place, columns, said, shape.left, told.split, self._architecture)

    def told(self, index: int) -> Told:
        """Return what path and tables say of a model, and for completion which part it is, of which pair."""
        told = self._tree.told(index // len(self._datasets))
        if not self._is_paired:
            return told
        return Told({**told.columns, PART: PARTS[self._dataset(index)], PAIR: self.pair_of(index)}, told.split)

    def sha256(self, index: int) -> str | None:
        """Return the sha256 of a model's file."""
        return self._sha256(self._file(index))

    def notes(self) -> Sequence[str]:
        """Return sentences on the sizes, on columns, and on files and tables that were left out."""
        notes = [f"All have the sizes {_written(self._shape.sizes)}.", *self._said_of_points]
        if self._has_classes:
            notes.append(f"The column {LABEL} is {CLASS_ID} of the files.")
        return [*notes, *self._tree.notes()]

    def _check_points(self) -> None:
        """Run some models, spread evenly, at the points of their shapes, and note which distance they say."""
        total = len(self.ids)
        spread = dict.fromkeys(number * total // SAMPLE for number in range(SAMPLE))
        models = [(self._file(index), self._dataset(index)) for index in spread]
        distances = mean_distances(models, self._architecture, self._tensors)
        self._said_of_points: list[str] = []
        if distances:
            mean = sum(distances) / len(distances)
            far = " That is far: they may have been trained or stored otherwise." if mean > FAR else ""
            self._said_of_points.append(
                f"Running {counted(len(distances), 'model')} at points of their shapes, where the distance is 0: they "
                f"say {mean:.4f} in the mean, of at most {FARTHEST:g}.{far}"
            )
            self.record = {"points_run": {"models": len(distances), "distance": mean}}

    def _file(self, index: int) -> Path:
        return Path(self._tree.files[index // len(self._datasets)])

    def _dataset(self, index: int) -> str:
        return self._datasets[index % len(self._datasets)]


def _solved(count: int, sizes: tuple[int, ...] | None, place: str) -> tuple[int, ...]:
    """Return the sizes of the SIREN that has so many parameters.

    raises ZooError if those that the user gave have another number, or without them none or several fit
    """
    if sizes is not None:
        if count_of(sizes) != count:
            raise ZooError(
                f"{place}: has {count:,} parameters, {_written(sizes)} has {count_of(sizes):,}; see `sizes`."
            )
        return sizes
    fitting = sizes_of(count)
    if len(fitting) != 1:
        fit = f"those of {' and of '.join(map(_written, fitting))}" if fitting else "which fit no equal hidden layers"
        raise ZooError(
            f"{place}: has {count:,} parameters, {fit}. Say which with `sizes`, such as 3x512x512x512x512x1: the "
            "numbers of inputs, of each hidden layer and of outputs."
        )
    return fitting[0]


def _shapes(siren: SirenShape) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (inputs, outputs) in zip(siren.names, pairwise(siren.sizes), strict=True):
        shapes |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
    return shapes


def _written(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))
