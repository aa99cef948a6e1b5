"""SIRENs that draw pictures, in the layouts of DWSNets, nfn and Implicit-Zoo.

    prepkit zoo import siren mnist-inrs zoo --data mnist_png

With the pictures, running decides which convention a zoo follows, and each model's PSNR becomes a column. The names of
files and tensors are only asked where there are no pictures.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.errors import CheckpointError, PrepkitError, ZooError, counted, listed, nearest
from prepkit.packing import chosen_options
from prepkit.prep.file import PRep
from prepkit.tasks.pictures import PICTURE, psnr, read_picture
from prepkit.zoo.format.function import PSNR
from prepkit.zoo.importers._pattern import FIELD, PathPattern, walk
from prepkit.zoo.importers._siren_files import (
    CONVENTIONS,
    LAYOUTS,
    STORED_BEFORE,
    Convention,
    SirenShape,
    likely_convention,
    shape_of,
    stored_psnr,
)
from prepkit.zoo.importers._siren_splits import PaperSplits, paper_splits
from prepkit.zoo.importers._split_file import NAMES
from prepkit.zoo.importers._strict import PAPER, STRICT, StrictSource, check_splits, run_in_columns
from prepkit.zoo.importers.tree import Paths, Tables, TreeSource, Types, check_folder, in_folder, listed_tables
from prepkit.zoo.write.adding import Model, Source, Told

if TYPE_CHECKING:
    from torch import nn

    from prepkit.checkpoint.load import Checkpoint
    from prepkit.families.registry import Architecture

SAMPLE = 8  # models that are run to find the convention
LEAST_PSNR = 15.0  # dB: no convention is right if it draws the pictures worse than this
LEAST_LEAD = 1.0  # dB by which a convention draws better than others if running tells them apart
# A run finds again what was measured by the same convention, right or wrong; so it must also draw the picture.
FAINT = "draws its picture faintly"  # what `Model.counts` calls a model that was measured below LEAST_PSNR
MEASURED = {"measured_by": "prepkit", "least": LEAST_PSNR}
NOT_OF_PICTURES = ("seed", "prefix")  # fields in which models of the same picture differ


def found(
    folder: Path,
    *,
    data: Path | str | None = None,
    picture: str | None = None,
    convention: str | None = None,
    pattern: str | None = None,
    files: Paths | None = None,
    table: Tables = None,
    on: Mapping[str, str] | None = None,
    types: Types | None = None,
    splits: str | None = None,
    split_file: str | os.PathLike[str] | None = None,
) -> Source:
    """Find the SIRENs in a folder.

    data:       folder of the pictures that they draw
    picture:    path of a model's picture below it, by the fields of the pattern, such as "{label}/{index}.png"
    convention: "dws", "nfn" or "implicit-zoo"; if missing, running decides, or the names of tensors without pictures
    pattern:    path of a model below the folder, with fields as for "tree"; that of the known layout if missing
    files, table, on, types: as for "tree"
    splits:     "paper" (see `_siren_splits`), or "strict", in which models of the same picture are in the same split
    split_file: a file of splits, for "paper"; one that the folder holds if missing
    raises ZooError if nothing fits, or no convention draws the pictures
    """
    if convention is not None and convention not in CONVENTIONS:
        near = nearest(convention, CONVENTIONS)
        raise ZooError(f"`convention`: there is no '{convention}'; there are {listed(CONVENTIONS)}.{near}")
    check_splits(splits, (PAPER, STRICT))
    if split_file is not None and splits != PAPER:
        raise ZooError(f"`split_file` goes with `splits` {PAPER}.")
    check_folder(folder)
    if pattern is None:
        layout = next((layout for layout in LAYOUTS if _has_any(folder, layout.pattern)), None)
        if layout is None:
            patterns = "; ".join(layout.pattern for layout in LAYOUTS)
            raise ZooError(
                f"'{folder}' holds none of the known layouts ({patterns}). Name the folder that holds one, or give "
                "`pattern`."
            )
        pattern, picture = layout.pattern, picture or layout.picture
    source = SirenSource(
        [folder] if files is None else in_folder(folder, files),
        folder,
        pattern,
        listed_tables(table),
        on or {},
        types or {},
        None if data is None else Path(data),
        picture,
        convention,
    )
    if splits == PAPER:
        source.split_as_paper(folder, split_file)
    return StrictSource(source, source.run_of) if splits == STRICT else source


class SirenSource(TreeSource):
    """SIRENs, with their pictures if there are any.

    convention: the one that they follow
    """

    def __init__(
        self,
        paths: Sequence[Path],
        folder: Path,
        pattern: str,
        tables: Sequence[str],
        on: Mapping[str, str],
        types: Types,
        data: Path | None,
        picture: str | None,
        convention: str | None,
    ) -> None:
        super().__init__(paths, pattern, tables, on, types, None, None)
        self._data, self._picture = data, picture
        self._architectures: dict[SirenShape, Architecture] = {}
        self._networks: dict[tuple[SirenShape, str], nn.Module] = {}
        self._decision: list[str] = []
        self._paper: PaperSplits | None = None
        self._check_picture()
        self._stored = self._newest(stored_psnr(folder))
        asked = None if convention is None else CONVENTIONS[convention]
        self.convention = self._named(asked) if data is None else self._drawn(asked)
        self.options = {**self.options, **chosen_options(picture=picture), "convention": self.convention.name}
        how = self.convention.how_to_run(STORED_BEFORE if self._stored else None)
        self.how_to_run = {**how, **(MEASURED if self._is_measured() else {})}

    def split_as_paper(self, folder: Path, split_file: str | os.PathLike[str] | None) -> None:
        """Give each model its published split.

        raises ZooError if there is none, or the file does not fit the models
        """
        rule = next((layout.rule for layout in LAYOUTS if layout.pattern == self.pattern.text), None)
        fields = [fit.fields for fit in self.fits]
        self._paper = paper_splits(rule, self.ids, self.files, fields, len(self.pattern.parts), folder, split_file)
        self.options = {**self.options, "splits": PAPER, **self._paper.options}

    def run_of(self, index: int) -> str:
        """Return what models of the same picture share: all fields but the seed and the prefix, or the column `run`.

        raises ZooError if nothing tells it
        """
        own = {name: value for name, value in self.fits[index].fields.items() if name not in NOT_OF_PICTURES}
        return _fields(own) if "index" in own else run_in_columns(self, index)

    def read(self, index: int) -> Model:
        """Read a model's file, with its fields, its rows in tables and its PSNR."""
        model = super().read(index)
        if isinstance(model.tensors, PRep):
            raise ZooError(f"{model.place}: is a PRep already; `prepkit zoo create` takes it.")
        shape = shape_of(model.tensors, model.place)
        if not self.convention.fits(shape.sizes[-1]):
            raise ZooError(
                f"{model.place}: has {counted(shape.sizes[-1], 'output')}, the convention '{self.convention.name}' has "
                f"{len(self.convention.mean)} channels."
            )
        if shape not in self._architectures:
            self._architectures[shape] = shape.architecture(self.convention)
        columns = dict(model.columns)
        if columns.get(PSNR) is None and self._data is not None:
            measured = self._psnr(index, model.tensors, shape, self.convention)  # NaN if the model holds NaN
            columns[PSNR] = measured if math.isfinite(measured) else None
            if measured < LEAST_PSNR:
                model = replace(model, counts={**model.counts, FAINT: 1})
        return replace(model, columns=columns, architecture=self._architectures[shape])

    def told(self, index: int) -> Told:
        """Return a model's fields and rows in tables, its picture, and its PSNR if that is not to be measured."""
        told = self._told(index, {})
        return replace(told, columns={k: v for k, v in told.columns.items() if k != PSNR or v is not None})

    def notes(self) -> Sequence[str]:
        """Return sentences on how the convention was found, and on what was left out."""
        faint = []
        if count := self.counts.get(FAINT, 0):
            draw = "draws its picture" if count == 1 else "draw their pictures"
            faint.append(
                f"{counted(count, 'model')} {draw} with less than {LEAST_PSNR:g} dB, and "
                "verifying by a run refuses such models."
            )
        return [*self._decision, *faint, *(self._paper.notes if self._paper else ()), *super().notes()]

    def _told(self, index: int, differing: dict[str, int]) -> Told:
        told = super()._told(index, differing)
        columns = dict(told.columns)
        if self._picture is not None:
            columns[PICTURE] = self._picture_of(index)
        if columns.get(PSNR) is None and index in self._stored:
            columns[PSNR] = self._stored[index]
        if self._paper is not None:
            if self._paper.columns:
                columns = {**self._paper.columns[index], **columns}
            return Told(columns, self._paper.splits[index])
        return Told(columns, None if told.split is None else NAMES.get(told.split, told.split))

    def _is_measured(self) -> bool:
        """Return whether nothing stores the PSNR of some model, so that it is measured here."""
        return self._data is not None and any(PSNR not in self.told(index).columns for index in range(len(self.ids)))

    def _check_picture(self) -> None:
        if self._picture is None:
            if self._data is not None:
                raise ZooError(
                    'data=PATH needs `picture`, such as "{label}/{index}.png": the pattern is none that is known.'
                )
            return
        fields = PathPattern.parse(self._picture).kinds
        unknown = [name for name in fields if name not in self.pattern.kinds]
        if unknown:
            raise ZooError(f"`picture` has the field {listed(unknown)}; '{self.pattern.text}' has none of that name.")

    def _picture_of(self, index: int) -> str:
        texts = self.fits[index].texts
        return FIELD.sub(lambda match: texts[match[1].partition(":")[0]], self._picture or "")

    def _newest(self, stored: Mapping[int, float]) -> dict[int, float]:
        """Return the PSNR of models by their number; of several seeds of a picture the last one's was stored."""
        by_index: dict[Any, int] = {}
        others: dict[Any, dict[str, Any]] = {}
        for fit in self.fits if stored else ():
            index = fit.fields.get("index")
            own = {name: value for name, value in fit.fields.items() if name not in ("index", "seed")}
            if index in stored and others.setdefault(index, own) != own:
                raise ZooError(
                    f"files such as 0_50000.json store the PSNR by index alone, but index {index} has both "
                    f"{_fields(others[index])} and {_fields(own)}, and nothing tells whose PSNR it is. Take those "
                    "files away; with data=PATH it is measured."
                )
        for number in sorted(range(len(self.fits)), key=lambda number: self.fits[number].fields.get("seed", 0)):
            by_index[self.fits[number].fields.get("index")] = number
        return {number: stored[index] for index, number in by_index.items() if index in stored}

    # The convention -------------------------------------------------------------------------------------------

    def _named(self, asked: Convention | None) -> Convention:
        """Return the convention that was asked for, or that whose makers name tensors so."""
        if asked is not None:
            return asked
        _, checkpoint, shape = next(self._samples(SAMPLE))
        convention = likely_convention(shape, checkpoint.key)
        self._decision.append(
            f"The names of tensors are those of the convention '{convention.name}', which nothing proves: name the "
            "folder of the pictures, data=PATH, and running decides."
        )
        return convention

    def _drawn(self, asked: Convention | None) -> Convention:
        """Return the convention by which some models draw their pictures best.

        raises ZooError if none of them does, or another one than was asked for
        """
        sums: dict[str, list[float]] = {}
        likely: Convention | None = None
        for index, checkpoint, shape in self._samples(SAMPLE):
            likely = likely or likely_convention(shape, checkpoint.key)
            for convention in CONVENTIONS.values():
                if convention.fits(shape.sizes[-1]):
                    value = self._psnr(index, checkpoint, shape, convention)
                    if math.isfinite(value):
                        sums.setdefault(convention.name, []).append(value)
        means = {name: sum(values) / len(values) for name, values in sums.items()}
        if not means:
            raise ZooError("no model could be compared with its picture: all hold NaN or infinity.")
        ranked = sorted(means, key=lambda name: -means[name])
        figures = ", ".join(f"{name} {means[name]:.1f} dB" for name in ranked)
        ran = counted(len(sums[ranked[0]]), "model")
        if means[ranked[0]] < LEAST_PSNR:
            raise ZooError(
                f"no convention draws the pictures: {figures} for {ran}. See whether '{self._data}' holds the right "
                f"ones, and whether '{self._picture}' is the path of each."
            )
        near = [name for name in ranked if means[ranked[0]] - means[name] < LEAST_LEAD]
        if asked is not None and asked.name not in near:
            raise ZooError(
                f"the convention '{asked.name}' does not draw the pictures: {figures} for {ran}. Leave "
                f"`convention` out, or name '{ranked[0]}'."
            )
        preferred = [name for convention in (asked, likely) if convention for name in near if name == convention.name]
        chosen = CONVENTIONS[(preferred or near)[0]]
        told = "decided for" if len(near) == 1 else "cannot tell apart some conventions; taken is"
        self._decision.append(f"Running {ran} {told} '{chosen.name}': {figures}.")
        self.record = {"conventions_run": {"models": len(sums[ranked[0]]), PSNR: means}}
        return chosen

    def _samples(self, count: int) -> Iterator[tuple[int, Checkpoint, SirenShape]]:
        """Yield number, file and layers of some models, spread evenly; files that cannot be read are left to `read`."""
        from prepkit.checkpoint.load import load_checkpoint

        total = len(self.files)
        failure: PrepkitError | None = None
        were_read = 0
        for index in dict.fromkeys(number * total // count for number in range(count)):
            try:
                checkpoint = load_checkpoint(self.files[index])
                shape = shape_of(checkpoint, f"'{self.files[index]}'")
            except (CheckpointError, ZooError) as error:
                failure = failure or error
                continue
            were_read += 1
            yield index, checkpoint, shape
        if not were_read and failure is not None:
            raise failure

    def _psnr(self, index: int, tensors: Any, shape: SirenShape, convention: Convention) -> float:
        """Run a model by a convention, and compare it with its picture."""
        import torch

        key = (shape, convention.name)
        if key not in self._networks:
            with torch.random.fork_rng(devices=[]):  # its fresh weights are not used
                self._networks[key] = shape.architecture(convention).build()
        network = self._networks[key]
        values = {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
        try:
            pixels = read_picture(self._data, self._picture_of(index))
            return psnr(
                lambda points: torch.func.functional_call(network, values, points),
                pixels,
                convention.grid,
                convention.mean,
                convention.std,
            )
        except ZooError as error:
            raise ZooError(f"'{self.files[index]}' cannot be compared with its picture: {error}") from None


def _fields(fields: Mapping[str, Any]) -> str:
    return " ".join(f"{name} {value}" for name, value in fields.items())


def _has_any(folder: Path, pattern: str) -> bool:
    try:
        return bool(walk(folder, PathPattern.parse(pattern)).files)
    except ZooError:
        return False
