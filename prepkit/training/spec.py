"""The spec of a zoo: what is trained, how, and how many; read from TOML and checked key by key.

Built-in specs lie in zoo_specs/, and docs/keys.md lists all keys. `load_spec` takes the name of a spec, or a path.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any

from prepkit.errors import InvalidShape, PrepkitError, RegistryError, ZooError, counted, listed, nearest
from prepkit.families.registry import Architecture, architecture
from prepkit.prep.shape import PRepShape
from prepkit.support.reading import (
    LINE,
    NOT_A_KEY,
    TABLE,
    TEXT,
    Key,
    Place,
    Reader,
    as_toml,
    checked,
    given,
    keys_of,
    list_of,
    parse_toml,
    read_file,
    read_keys,
    unknown,
    whole,
    wrong,
)
from prepkit.support.text import Brief
from prepkit.training._hyperparameters import Training, TrainingTable, trainings
from prepkit.training._start import OF_ITS_OWN, check_fitted
from prepkit.training._values import Keep

SUFFIX = ".toml"
SPLITS = ("train", "validation", "test")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
COUNTS = dict.fromkeys(SPLITS, Key(whole(1)))


# Readers ------------------------------------------------------------------------------------------------------


def registered(name: str, place: Place) -> Architecture:
    """The architecture of this name; raises RegistryError with the place if there is none."""
    try:
        return architecture(name)
    except RegistryError as error:
        raise RegistryError(f"{place}: {error}") from None


def _architectures(value: Any, place: Place) -> tuple[str, ...]:
    names: tuple[str, ...] = list_of(TEXT, ARCHITECTURES.words, least=1)(value, place)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ZooError(f"{place}: names each architecture once; found twice: {listed(twice)}.")
    return tuple(registered(name, place).name for name in names)


def _instances(value: Any, place: Place) -> dict[str, dict[str, int]]:
    if not TABLE(value, place):
        raise wrong(place, INSTANCES.words, value)
    counts = {name: given(COUNTS, splits, place[name]) for name, splits in value.items()}
    for name, each in counts.items():
        if not each:
            raise wrong(place[name], f"a number of instances of at least one of {listed(SPLITS)}", each)
    return counts


def _task(value: Any, place: Place) -> dict[str, Any]:
    """The record of a task, checked by the task itself; no data is loaded."""
    from prepkit.tasks import check_record

    record: dict[str, Any] = TABLE(value, place)
    try:
        json.dumps(record, allow_nan=False)
        check_record(record)
    except (TypeError, ValueError) as error:
        if isinstance(error, PrepkitError):
            raise ZooError(f"{place.file}, {error}") from None
        raise ZooError(f"{place}: holds a value that JSON cannot: {error}.") from None
    return record


ZOO_NAME = checked(
    "a name of up to 100 letters, digits and _ . -, the first one no . or -",
    lambda value: isinstance(value, str) and NAME.fullmatch(value),
)
ARCHITECTURES = Reader("a list of names of architectures", _architectures)
INSTANCES = Reader('instances such as "lenet_like@digits" = {train = 60, test = 16}', _instances)
TASK = Reader("a table with the task's kind", _task)


@dataclass(frozen=True, repr=False)
class Teacher(Brief):
    """One network that is kept beside the instances, and how it is trained."""

    architecture: str
    training: Training


@dataclass(frozen=True, repr=False)
class Spec(Brief):
    """What a zoo is to hold.

    text:  the TOML that the spec was read from
    sizes: what `with_sizes` was asked for, as a record of a trial run
    """

    name: Annotated[str, ZOO_NAME, "name of the zoo"]
    description: Annotated[str, LINE, "one sentence"]
    license: Annotated[str, LINE, 'an identifier such as "mit"']
    width: Annotated[int, whole(1), "width of the PReps, a multiple of 8"]
    architectures: Annotated[
        tuple[str, ...], ARCHITECTURES, "names in ClassId order; those without instances are registered only"
    ]
    task: Annotated[Mapping[str, Any], TASK, "the task record, see below"]
    instances: Annotated[
        Mapping[str, Mapping[str, int]], INSTANCES, "how many instances of each architecture each split has"
    ]
    training: Annotated[
        Mapping[str, Training],
        TABLE,
        'how instances are trained, see below; a table such as `[training."resnet8@digits"]` overrides keys for one '
        "architecture",
    ]
    teacher: Annotated[
        Teacher | None,
        TABLE,
        "one network that is trained beside the instances: its `architecture`, and keys that override `[training]`",
    ] = None
    height: Annotated[
        int | None, whole(1), "height of the PReps, a multiple of 4; if missing, the least that holds all architectures"
    ] = None
    seed: Annotated[int, whole(0), "all random choices of the zoo follow from it"] = 0
    text: Annotated[str, NOT_A_KEY] = ""
    sizes: Annotated[Mapping[str, int], NOT_A_KEY] = field(default_factory=dict)

    def with_sizes(self, instances: int | None = None, epochs: int | None = None) -> Spec:
        """The same spec for a trial run.

        instances: of each architecture in each split that has any
        epochs:    in place of a number of epochs; of several numbers that are dealt, those up to it remain. Schedules
                   and trajectories are drawn together with them
        raises ZooError for a number below 1
        """
        asked = {"instances": instances, "epochs": epochs}
        sizes = {name: size for name, size in asked.items() if size is not None}
        for name, size in sizes.items():
            if type(size) is not int or size < 1:
                raise ZooError(f"{name}: expected a whole number of at least 1; found {as_toml(size)}.")
        spec = replace(self, sizes={**self.sizes, **sizes})
        if instances is not None:
            spec = replace(
                spec, instances={name: dict.fromkeys(splits, instances) for name, splits in self.instances.items()}
            )
        if epochs is not None:
            shorter = {name: training.with_epochs(epochs) for name, training in self.training.items()}
            teacher = self.teacher and replace(self.teacher, training=self.teacher.training.with_epochs(epochs))
            spec = replace(spec, training=shorter, teacher=teacher)
        return spec


# Finding ------------------------------------------------------------------------------------------------------


def spec_names() -> list[str]:
    """The names of the built-in specs, sorted."""
    return sorted(entry.name.removesuffix(SUFFIX) for entry in folder().iterdir() if entry.name.endswith(SUFFIX))


def load_spec(name_or_path: str | os.PathLike[str]) -> Spec:
    """The built-in spec of this name, or the one in a file: what ends in .toml or names a folder too is a path.

    raises ZooError if there is none, or with the place of what is wrong in it
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise ZooError(
            f"spec: expected a Spec, the name of a built-in one or the path of a TOML file; found a "
            f"{type(name_or_path).__name__}."
        )
    asked = os.fspath(name_or_path)
    if not isinstance(name_or_path, str) or asked.endswith(SUFFIX) or any(s in asked for s in "/\\"):
        return parse_spec(read_file(Path(asked), Place(asked), _built_in_hint(asked)), asked)
    return parse_spec(spec_text(asked), f"zoo_specs/{asked}{SUFFIX}")


def spec_text(name: str) -> str:
    """The TOML text of the built-in spec of this name, with its comments: what a spec of your own begins with.

    raises ZooError if there is none
    """
    names = spec_names()
    if name not in names:
        raise ZooError(
            f"unknown zoo spec '{name}'. Built in are: {listed(names, 20)}. A spec of your own is named by its path, "
            f"which ends in {SUFFIX}.{nearest(name, names)}"
        )
    return read_file(folder() / f"{name}{SUFFIX}", Place(f"zoo_specs/{name}{SUFFIX}"))


def folder() -> Traversable:
    """Where the built-in specs lie: in the installed package, or beside it in a clone."""
    installed = files("prepkit") / "zoo_specs"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "zoo_specs"


def _built_in_hint(asked: str) -> str:
    name = Path(asked).name.removesuffix(SUFFIX)
    return f" The built-in spec is named '{name}'." if name in spec_names() else " Is the path right?"


# Reading ------------------------------------------------------------------------------------------------------


def parse_spec(content: str, file: str) -> Spec:
    """The spec that a TOML text describes.

    file: where the text is from, for errors
    raises ZooError, RegistryError or InvalidShape with the place of what is wrong
    """
    place = Place(file)
    values = read_keys(keys_of(Spec), parse_toml(content, place), place)
    names, instances = values["architectures"], values["instances"]
    for name in instances:
        if name not in names:
            raise unknown(place["instances"][name], "architecture", name, names)
    trained = tuple(name for name in names if name in instances)
    base, training = trainings(values["training"], place["training"], trained)
    teacher = None if values.get("teacher") is None else read_teacher(values["teacher"], place["teacher"], base)
    values |= {"instances": {name: instances[name] for name in trained}, "training": training, "teacher": teacher}
    check_inputs([*names, *([teacher.architecture] if teacher else [])], place["architectures"])
    check_shape(names, values["width"], values.get("height"), place)
    check_validation(values["task"], [*training.values(), *([teacher.training] if teacher else [])], place)
    for name, each in training.items():
        check_fitted(each.start, name, values["task"], instances[name])
    return Spec(**values, text=content)


def read_teacher(data: Mapping[str, Any], place: Place, base: TrainingTable) -> Teacher:
    """The teacher: its architecture, and training where it differs from that of the instances."""
    own = {key: item for key, item in data.items() if key != "architecture"}
    (asked,) = read_keys({"architecture": Key(TEXT)}, data, place, strict=False).values()
    name = registered(asked, place["architecture"]).name
    override = TrainingTable.read(own, place)
    training = base.training(override)
    if len(training.epochs.candidates) > 1:
        raise ZooError(f"{place['epochs']}: expected one number, as there is one teacher; several are to be dealt.")
    if "start" not in own:  # a start of the instances is none of the teacher's
        training = replace(training, start=OF_ITS_OWN)
    elif training.start != OF_ITS_OWN:
        raise wrong(place["start"], '"own", as other starts are for instances', own["start"])
    if training.keep.every is None:
        return Teacher(name, training)
    if "keep" in own:
        raise wrong(place["keep"], '"last" or "best_validation", as one teacher is kept', own["keep"])
    return Teacher(name, replace(training, keep=Keep()))  # a trajectory is meant for the instances


# Checks of several values together ----------------------------------------------------------------------------


def check_inputs(names: list[str], place: Place) -> None:
    """Raise ZooError unless all networks take the same input: they are trained on the same task."""
    shapes = {name: "x".join(map(str, architecture(name).input_shape)) for name in names}
    first = names[0]
    for name, shape in shapes.items():
        if shape != shapes[first]:
            raise ZooError(
                f"{place}: {first} takes inputs of {shapes[first]}, but {name} of {shape}; the networks of a zoo are "
                "trained on the same data."
            )


def check_shape(names: tuple[str, ...], width: int, height: int | None, place: Place) -> None:
    """Raise InvalidShape unless PReps of this width and height are legal and hold every architecture."""
    try:
        least = {name: PRepShape.least(architecture(name).num_parameters, width) for name in names}
        shape = PRepShape(height, width) if height is not None else None
    except InvalidShape as error:
        raise InvalidShape(f"{place.file}, {error}") from None
    for name, needed in least.items():
        if shape is not None and needed.height > shape.height:
            raise InvalidShape(
                f"{place['height']}: {architecture(name).num_parameters:,} parameters of {name} do not fit a PRep of "
                f"{shape} ({counted(shape.cells, 'value')}); use height >= {needed.height}."
            )


def check_validation(task: Mapping[str, Any], trainings: list[Training], place: Place) -> None:
    """Raise ZooError if the best weights in validation are to be kept, but the task has no validation split."""
    split = task.get("split")
    if any(training.keep.kind == "best_validation" for training in trainings) and (
        not isinstance(split, dict) or not split.get("validation")
    ):
        raise ZooError(f"{place['task']['split']}: needs a validation part, as best_validation is to be kept.")
