"""Recipe: how a NetSpace is trained, as one frozen tree, read from a TOML file and saved with every run.

    recipe = load_recipe("digits_multi")                       # built in, or the path of a file
    recipe = load_recipe("my.toml", {"optimiser.learning_rate": 3e-4, "training.steps": 100})

The settings are the paper's four: `single` (one architecture, Eq. 1), `multi` (several, Eq. 3 to 12), `unseen` (multi,
with the boundary architectures alone in the zoo) and `sdf` (signals, Eq. 2). A recipe says all that a training depends
on, except the zoo and the device.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_type_hints

import prepkit
from prepkit.errors import listed, nearest

SETTINGS = ("single", "multi", "unseen", "sdf")
PRECISIONS = ("float32", "bf16")
SCHEDULES = ("constant", "cosine")
INITIALISATIONS = ("paper", "small_zoos", "without_scale", "from_preps")  # initialisation.py says what they are
SUFFIX = ".toml"


class RecipeError(prepkit.PrepkitError, ValueError):
    """A recipe is unknown, cannot be read, or asks for what cannot be."""


@dataclass(frozen=True)
class NetworkSettings:
    """What `NetSpace` is built from.

    height, width:  of the PReps
    embedding_size: E = 4^k, k >= 4
    initialisation: "paper", "small_zoos", "without_scale" or "from_preps" (see initialisation.py)
    columns:        of the decoder's first reshape; about W / 2 if missing
    """

    height: int
    width: int
    embedding_size: int
    initialisation: str = "paper"
    columns: int | None = None


@dataclass(frozen=True)
class BatchSettings:
    """What one step sees.

    instances:       of the zoo, over all processes
    samples:         images of the task that all instances see, or points of each instance's own shape
    boundary_share:  (multi) share of the batches that are made of pairs of the two boundary architectures; the others
                     are drawn at random
    accumulate:      batches whose gradients are added up before a step of the optimiser
    """

    instances: int
    samples: int
    boundary_share: float = 0.0
    accumulate: int = 1


@dataclass(frozen=True)
class LossSettings:
    """Of Eq. 1 to 5: T, and alpha, the teacher's share of L_kd.

    interpolation: (multi, unseen) Eq. 7 to 12; false to see what they are good for
    weights:  (single, sdf) learn the target's weights, by their mean squared error, instead of its outputs; true to see
              what the outputs are good for
    identity: (multi, unseen) weight of Eq. 1 towards the target's own outputs, beside L_kd, which never uses them:
              without it the decoder writes one network a class. Not in the paper
    """

    temperature: float = 4.0
    alpha: float = 0.9
    identity: float = 0.0
    interpolation: bool = True
    weights: bool = False


@dataclass(frozen=True)
class OptimiserSettings:
    """Adam, and its learning rate over the steps: warm-up from 0, constant, cosine to a last value.

    schedule:       "constant", or "cosine" after `constant_share` of all steps
    constant_share: of the steps, before the cosine begins
    final_share:    the last learning rate, as a share of `learning_rate`
    warmup_steps:   over which the learning rate rises linearly
    clip:           largest norm of all gradients together; no limit if missing
    """

    learning_rate: float = 1e-4
    schedule: str = "constant"
    constant_share: float = 0.0
    final_share: float = 0.01
    warmup_steps: int = 0
    clip: float | None = None

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step 0 .. steps - 1."""
        rate = self.learning_rate
        if step < self.warmup_steps:
            return rate * (step + 1) / self.warmup_steps
        begin = self.constant_share * steps
        if self.schedule == "constant" or step < begin:
            return rate
        share = min(1.0, (step - begin) / max(1.0, steps - begin))
        return rate * (self.final_share + (1 - self.final_share) * (1 + math.cos(math.pi * share)) / 2)


@dataclass(frozen=True)
class TrainingSettings:
    """How long, how precisely, and from which seed.

    steps:           of the optimiser
    validate_every:  steps; the paper's epoch is one pass over the images
    precision:       "float32" (TF32 on a GPU), or "bf16" for convolutions, with weights and losses in float32
    recompute:       forget what the decoder puts out and compute it again in the backward pass, and run predicted
                     instances one by one: slower, for PReps that would not fit (activation checkpointing)
    stop_at:         (sdf) end when this share of outputs on training instances is within 1e-2 of the target's
    seed:            of the start, of the order of instances, and of the samples
    """

    steps: int
    validate_every: int
    precision: str = "float32"
    recompute: bool = False
    stop_at: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Recipe:
    """All that a training depends on, except the zoo and the device.

    architectures: names by ClassId, as the zoo's registry has them
    zoo:           the spec that `prepkit zoo train` makes a fitting zoo from, for messages
    """

    name: str
    description: str
    setting: str
    architectures: tuple[str, ...]
    zoo: str
    network: NetworkSettings
    batch: BatchSettings
    training: TrainingSettings
    loss: LossSettings = LossSettings()
    optimiser: OptimiserSettings = OptimiserSettings()

    @property
    def num_architectures(self) -> int | None:
        """A, as NetSpace takes it: None without a classifier."""
        return len(self.architectures) if self.has_classes else None

    @property
    def has_classes(self) -> bool:
        """Whether ClassIds are predicted."""
        return self.setting in ("multi", "unseen")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


def recipe_names() -> list[str]:
    """The names of all built-in recipes."""
    folder = resources.files("netspace.recipes")
    return sorted(file.name[: -len(SUFFIX)] for file in folder.iterdir() if file.name.endswith(SUFFIX))


def load_recipe(name: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of a built-in name or of a TOML file.

    changes: values by dotted key, such as {"training.steps": 100}, in place of the file's
    raises RecipeError with the place of what is wrong
    """
    if isinstance(name, str) and name in recipe_names():
        text = resources.files("netspace.recipes").joinpath(name + SUFFIX).read_text(encoding="utf-8")
        return recipe_of(_parsed(text, name), name, changes)
    path = Path(name)
    if path.suffix != SUFFIX and not path.exists():
        names = recipe_names()
        raise RecipeError(
            f"unknown recipe '{name}'; built in are {listed(names, 20)}; or give the path of a .toml file."
            f"{nearest(str(name), names)}"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error}).") from None
    return recipe_of(_parsed(text, str(path)), str(path), changes)


def recipe_of(data: Mapping[str, Any], place: str, changes: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe that a document holds, checked.

    raises RecipeError with the place of what is wrong
    """
    document = {key: dict(value) if isinstance(value, Mapping) else value for key, value in data.items()}
    for key, value in (changes or {}).items():
        _change(document, key, value)
    recipe: Recipe = _read(Recipe, document, place)
    _check(recipe, place)
    return recipe


def _parsed(text: str, place: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{place}: not TOML: {error}.") from None


def _change(document: dict[str, Any], key: str, value: Any) -> None:
    *tables, last = key.split(".")
    for table in tables:
        document = document.setdefault(table, {})
        if not isinstance(document, dict):
            raise RecipeError(f"{key}: '{table}' is a value, not a table.")
    document[last] = value


# From TOML to the tree ------------------------------------------------------------------------------------------


def _read(kind: type, value: Any, place: str) -> Any:
    """A dataclass of a table; each key is checked against the field's type."""
    if not isinstance(value, Mapping):
        raise RecipeError(f"{place}: expected a table; found {value!r}.")
    known = {field.name: field for field in fields(kind)}
    for key in value:
        if key not in known:
            raise RecipeError(f"{place}: unknown key '{key}'; known are {listed(known, 20)}.{nearest(key, known)}")
    hints, made = get_type_hints(kind), {}
    for key, field in known.items():
        if key in value:
            made[key] = _value(hints[key], value[key], f"{place}, {key}")
        elif field.default is MISSING:
            raise RecipeError(f"{place}: '{key}' is missing.")
    return kind(**made)


def _value(hint: Any, value: Any, place: str) -> Any:
    if is_dataclass(hint):
        return _read(hint, value, place)  # type: ignore[arg-type]  # the class, not an instance
    if hint == tuple[str, ...]:
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise RecipeError(f"{place}: expected a list of names; found {value!r}.")
        return tuple(value)
    kinds = get_args(hint) or (hint,)
    if float in kinds and type(value) is int:
        value = float(value)
    if type(value) not in kinds:
        words = " or ".join(WORDS[one] for one in kinds if one in WORDS)
        raise RecipeError(f"{place}: expected {words}; found {value!r}.")
    return value


WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


# What cannot be -------------------------------------------------------------------------------------------------


def _check(recipe: Recipe, place: str) -> None:
    _choice(recipe.setting, SETTINGS, f"{place}, setting")
    _choice(recipe.network.initialisation, INITIALISATIONS, f"{place}, network.initialisation")
    _choice(recipe.training.precision, PRECISIONS, f"{place}, training.precision")
    _choice(recipe.optimiser.schedule, SCHEDULES, f"{place}, optimiser.schedule")
    batch, training, optimiser = recipe.batch, recipe.training, recipe.optimiser
    _range(place, "batch.instances", batch.instances, 1)
    _range(place, "batch.samples", batch.samples, 1)
    _range(place, "batch.accumulate", batch.accumulate, 1)
    _range(place, "batch.boundary_share", batch.boundary_share, 0, 1)
    _range(place, "training.steps", training.steps, 1)
    _range(place, "training.validate_every", training.validate_every, 1)
    _range(place, "training.seed", training.seed, 0, 2**62)
    _range(place, "optimiser.learning_rate", optimiser.learning_rate, 0)
    _range(place, "optimiser.warmup_steps", optimiser.warmup_steps, 0)
    _range(place, "optimiser.constant_share", optimiser.constant_share, 0, 1)
    _range(place, "optimiser.final_share", optimiser.final_share, 0, 1)
    _range(place, "loss.alpha", recipe.loss.alpha, 0, 1)
    _range(place, "loss.temperature", recipe.loss.temperature, 1e-3)
    _range(place, "loss.identity", recipe.loss.identity, 0)
    if recipe.network.initialisation == "from_preps" and recipe.has_classes:
        raise RecipeError(
            f"{place}, network.initialisation: 'from_preps' starts around one architecture; use 'small_zoos' or "
            f"'paper' in '{recipe.setting}'."
        )
    if recipe.loss.weights and recipe.has_classes:
        raise RecipeError(
            f"{place}, loss.weights: setting '{recipe.setting}' has a teacher, not weights; leave it out."
        )
    if not recipe.loss.interpolation and not recipe.has_classes:
        raise RecipeError(f"{place}, loss.interpolation: setting '{recipe.setting}' has no such loss; leave it out.")
    if recipe.loss.identity and not recipe.has_classes:
        raise RecipeError(
            f"{place}, loss.identity: setting '{recipe.setting}' learns from targets alone; leave it out."
        )
    if optimiser.clip is not None:
        _range(place, "optimiser.clip", optimiser.clip, 1e-12)
    if training.stop_at is not None:
        _range(place, "training.stop_at", training.stop_at, 0, 1)
    if training.stop_at is not None and recipe.setting != "sdf":
        raise RecipeError(f"{place}, training.stop_at: is for the setting 'sdf'; leave it out in '{recipe.setting}'.")
    if batch.boundary_share and recipe.setting != "multi":
        raise RecipeError(f"{place}, batch.boundary_share: is for the setting 'multi'; leave it out.")
    count = len(recipe.architectures)
    if recipe.has_classes and count < 2:
        raise RecipeError(f"{place}, architectures: setting '{recipe.setting}' needs at least 2; found {count}.")
    if not recipe.has_classes and count != 1:
        raise RecipeError(f"{place}, architectures: setting '{recipe.setting}' has exactly 1; found {count}.")
    pairs = recipe.setting == "unseen" or batch.boundary_share > 0
    if pairs and batch.instances % 2:
        raise RecipeError(
            f"{place}, batch.instances: pairs of boundary architectures need an even number; found {batch.instances}."
        )


def _choice(value: str, choices: tuple[str, ...], place: str) -> None:
    if value not in choices:
        raise RecipeError(f"{place}: {value!r} is none of {listed(choices)}.{nearest(value, choices)}")


def _range(place: str, key: str, value: float, least: float, most: float = math.inf) -> None:
    if not least <= value <= most:  # false for nan too
        limits = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise RecipeError(f"{place}, {key}: {value:g} is out of range; use {limits}.")
