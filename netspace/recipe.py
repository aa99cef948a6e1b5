"""Recipe: how a NetSpace is trained, as one frozen tree, read from a TOML file and saved with every run.

    recipe = load_recipe("digits_multi")                       # built in, or the path of a file
    recipe = load_recipe("my.toml", {"optimizer.learning_rate": 3e-4, "training.steps": 100})

The settings are the paper's four: `single` (one architecture, Eq. 1), `multi` (several, Eq. 3 to 12), `unseen` (multi,
with the boundary architectures alone in the zoo) and `sdf` (signals, Eq. 2). A recipe says all that a training depends
on, except the zoo and the device.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import prepkit
from prepkit.errors import FormerSpelling, expect, listed, nearest
from prepkit.support.reading import Place, between, keys_of, number, parse_toml, read, read_file, whole
from prepkit.support.text import Brief

SUFFIX = ".toml"
FORMER_TABLES = {"optimiser": "optimizer"}  # former spellings, which are still read, and the present ones
FORMER_PRECISIONS = {"bf16": "bfloat16"}
Initialisation = Literal["paper", "small_zoos", "without_scale", "from_preps", "from_centroid"]
FROM_PREPS = ("from_preps", "from_centroid")  # starts that are made from the PReps of a zoo


class RecipeError(prepkit.PrepkitError, ValueError):
    """A recipe is unknown, cannot be read, or asks for what cannot be."""


@dataclass(frozen=True)
class NetworkSettings:
    """Sizes and start of the NetSpace."""

    height: Annotated[int, "height of the PReps"]
    width: Annotated[int, "width of the PReps"]
    embedding_size: Annotated[int, "values of an embedding: E = 4^k with k >= 4"]
    initialisation: Annotated[
        Initialisation | None,
        "how weights start: as in the paper, or with another scale and bias of the decoder: larger for small zoos, "
        "none (an ablation), or such that predictions begin near the PRep of a fresh network (`from_preps`, for single "
        "and sdf) or about the mean of the training PReps (`from_centroid`, for zoos whose instances share starts). "
        "If missing, `from_centroid` for a zoo whose column `start` says that its instances share starts, else `paper`",
    ] = None
    columns: Annotated[int | None, "columns of the decoder's first reshape; about width / 2 if missing"] = None


@dataclass(frozen=True)
class BatchSettings:
    """What one step sees."""

    instances: Annotated[int, whole(1), "instances of the zoo, over all processes"]
    samples: Annotated[
        int, whole(1), "images of the task, which all instances see, or points of each instance's own shape"
    ]
    boundary_share: Annotated[
        float,
        between(0, 1),
        "(multi) share of batches that are made of pairs of the two boundary architectures; the others are drawn at "
        "random. At 0, instances are shown in turn, in another order at each pass over them",
    ] = 0.0
    fixed_pairs: Annotated[
        bool,
        "(unseen) true: instances of the boundary architectures are paired once, in the zoo's order; false: anew at "
        "each pass over them",
    ] = False
    accumulate: Annotated[int, whole(1), "batches whose gradients are added up before a step of the optimizer"] = 1
    line_instances: Annotated[
        int,
        whole(1),
        "(multi) instances of each architecture, over all processes, that are encoded for `loss.line` alone",
    ] = 4


@dataclass(frozen=True)
class LossSettings:
    """Which losses of Eq. 1 to 12 there are, and how they are weighted."""

    temperature: Annotated[float, between(1e-3), "T, which softens the outputs of teacher and prediction in L_kd"] = 4.0
    alpha: Annotated[float, between(0, 1), "share of the teacher's outputs in L_kd; labels have the rest"] = 0.9
    identity: Annotated[
        float,
        between(0),
        "(multi, unseen) weight of Eq. 1 towards the target's own outputs, which L_kd never uses: without it the "
        "decoder writes one network a class. Not in the paper",
    ] = 0.0
    line: Annotated[
        float,
        between(0),
        "(multi) weight of the line loss, which asks the encoder to put the centre of each architecture at its gamma "
        "on the line between the centres of the boundary architectures; Eq. 7 to 12 only ask what is decoded there. "
        "Not in the paper",
    ] = 0.0
    line_from: Annotated[
        float,
        between(0, 1),
        "(multi) share of all steps before the line loss begins. From the first step on, it pulled clusters together "
        "before they were told apart",
    ] = 0.5
    interpolation: Annotated[bool, "(multi, unseen) false: ablation without Eq. 7 to 12"] = True
    weights: Annotated[
        bool, "(single, sdf) true: ablation that learns the target's weights, by their mean squared error, not outputs"
    ] = False


@dataclass(frozen=True)
class OptimizerSettings:
    """Adam's learning rate over the steps: it warms up from 0, stays constant, and may fall along a cosine."""

    learning_rate: Annotated[float, between(0), "the constant rate, after the warm-up"] = 1e-4
    schedule: Annotated[Literal["constant", "cosine"], "whether the rate falls after `constant_share`"] = "constant"
    constant_share: Annotated[float, between(0, 1), "share of all steps before the cosine begins"] = 0.0
    final_share: Annotated[float, between(0, 1), "last rate of the cosine, as a share of `learning_rate`"] = 0.01
    warmup_steps: Annotated[int, whole(0), "steps over which the rate rises linearly"] = 0
    clip: Annotated[
        float | None,
        number("a number above 0", lambda value: value > 0),
        "largest norm of all gradients together; no limit if missing",
    ] = None

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
class LatentSettings:
    """How `netspace optimize` moves embeddings of the trained space; a training does not depend on it."""

    learning_rate: Annotated[float, between(0), "Adam's constant rate on an embedding; small spaces want 1e-2"] = 1e-4
    alpha: Annotated[
        float | None,
        between(0, 1),
        "(single, multi, unseen) share of the teacher's outputs in L_kd: 1 is the divergence alone; that of `[loss]` "
        "if missing",
    ] = None


@dataclass(frozen=True)
class TrainingSettings:
    """How long, how precisely, and from which seed."""

    steps: Annotated[int, whole(1), "steps of the optimizer"]
    validate_every: Annotated[int, whole(1), "steps between validations; the paper's epoch is one pass over the images"]
    precision: Annotated[
        Literal["float32", "bfloat16"],
        "float32 (TF32 on a GPU), or bfloat16 for convolutions, with weights and losses in float32",
    ] = "float32"
    cpu_functions: Annotated[
        Literal["measured", "own", "plain"],
        "on a CPU, whether wide PReps are computed by netspace's own functions or by those of the plain network, or by "
        "what is faster when the training begins; the run records that and keeps to it",
    ] = "measured"
    deterministic: Annotated[
        bool, "on a GPU, use convolutions that give the same bits at every run, and are slower; a CPU's always do"
    ] = False
    recompute: Annotated[
        bool,
        "forget the decoder's activations, compute them again in the backward pass, and run predicted instances one by "
        "one: slower, for PReps that would not fit the memory",
    ] = False
    stop_at: Annotated[
        float | None,
        between(0, 1),
        "(sdf) end when this share of outputs on training instances is within 1e-2 of the target's",
    ] = None
    seed: Annotated[int, whole(0, 2**62), "seed of the start, of the order of instances, and of the samples"] = 0


@dataclass(frozen=True, repr=False)
class Recipe(Brief):
    """All that a training depends on, except the zoo and the device."""

    name: Annotated[str, "name of the recipe"]
    description: Annotated[str, "one sentence"]
    setting: Annotated[Literal["single", "multi", "unseen", "sdf"], "which of the paper's four settings"]
    architectures: Annotated[tuple[str, ...], "names in ClassId order, as in the zoo's registry"]
    zoo: Annotated[str, "spec from which `prepkit zoo train` makes a fitting zoo; for messages"]
    network: NetworkSettings
    batch: BatchSettings
    training: TrainingSettings
    loss: LossSettings = LossSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    latent: LatentSettings = LatentSettings()
    align: Annotated[
        bool,
        "true: before a PRep is encoded, its hidden units are put into the order of a reference, the mean of the "
        "aligned training instances, so that an embedding does not depend on their order. Not in the paper",
    ] = False

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


def recipe_text(name: str) -> str:
    """The TOML text of the built-in recipe of this name: what a recipe of your own begins with.

    raises RecipeError if there is none
    """
    if name not in recipe_names():
        raise _unknown(name)
    return resources.files("netspace.recipes").joinpath(name + SUFFIX).read_text(encoding="utf-8")


def _unknown(name: str) -> RecipeError:
    names = recipe_names()
    return RecipeError(
        f"unknown recipe '{name}'; built in are {listed(names, 40)}; or give the path of a .toml file."
        f"{nearest(name, names)}"
    )


def load_recipe(name: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of a built-in name or of a TOML file.

    changes: values by dotted key, such as {"training.steps": 100}, in place of the file's
    raises RecipeError with the place of what is wrong; warns, with FormerSpelling, of former spellings
    """
    expect(name, (str, Path), "name", "the name of a built-in recipe, or the path of a .toml file")
    expect(changes, (Mapping, type(None)), "changes", 'values by key, such as {"training.steps": 100}')
    place = Place(str(name), error=RecipeError)
    if isinstance(name, str) and name in recipe_names():
        content = recipe_text(name)
    elif Path(name).is_dir():
        raise RecipeError(
            f"'{name}' is a folder, not a recipe, which is a .toml file or built in: {listed(recipe_names(), 40)}. A "
            "zoo is named apart from it, with `zoo`."
        )
    elif (path := Path(name)).suffix == SUFFIX or path.exists():
        content = read_file(path, place)
    else:
        raise _unknown(str(name))
    document, former = _respelled(parse_toml(content, place), place)
    for key, value in (changes or {}).items():
        document, more = _respelled(_changed(document, key.split("."), value), place)
        former |= more
    for old, new in former.items():
        warnings.warn(f"{place}: '{old}' is now spelled '{new}'; the old spelling is still read.", FormerSpelling, 2)
    return recipe_of(document, str(name))


def recipe_of(data: Mapping[str, Any], file: str) -> Recipe:
    """The recipe that a document holds, checked; former spellings, which older runs have, are read without a warning.

    file: where the document is from, for errors
    raises RecipeError with the place of what is wrong
    """
    place = Place(file, error=RecipeError)
    recipe = read(Recipe, _respelled(data, place)[0], place)
    _check(recipe, place)
    return recipe


def _changed(document: Mapping[str, Any], keys: list[str], value: Any) -> dict[str, Any]:
    """The document with another value where the keys lead to."""
    first, *rest = keys
    first = first if first in document else FORMER_TABLES.get(first, first)
    if not rest:
        return {**document, first: value}
    table = document.get(first, {})
    if not isinstance(table, Mapping):
        raise RecipeError(f"{'.'.join(keys)}: '{first}' is a value, not a table.")
    return {**document, first: _changed(table, rest, value)}


def _respelled(document: Mapping[str, Any], place: Place) -> tuple[dict[str, Any], dict[str, str]]:
    """The document in present spellings, and the former ones that it had with the present ones.

    raises RecipeError for a table that is there in both spellings
    """
    result, former = dict(document), {}
    for old, new in FORMER_TABLES.items():
        if old in result:
            if new in result:
                raise RecipeError(f"{place[old]}: is the old spelling of '{new}', which is there too; keep '{new}'.")
            result[new], former[old] = result.pop(old), new
    training = result.get("training")
    if isinstance(training, Mapping) and (precision := str(training.get("precision"))) in FORMER_PRECISIONS:
        former[precision] = FORMER_PRECISIONS[precision]
        result["training"] = {**training, "precision": former[precision]}
    return result, former


# Checks of several values together ------------------------------------------------------------------------------

# Keys that mean something in some settings only; elsewhere they must have their default.
SETTINGS_OF = {
    ("loss", "weights"): ("single", "sdf"),
    ("loss", "interpolation"): ("multi", "unseen"),
    ("loss", "identity"): ("multi", "unseen"),
    ("loss", "line"): ("multi",),
    ("loss", "line_from"): ("multi",),
    ("batch", "line_instances"): ("multi",),
    ("training", "stop_at"): ("sdf",),
    ("batch", "boundary_share"): ("multi",),
    ("latent", "alpha"): ("single", "multi", "unseen"),
    ("batch", "fixed_pairs"): ("unseen",),
}


def _check(recipe: Recipe, place: Place) -> None:
    setting, batch, count = recipe.setting, recipe.batch, len(recipe.architectures)
    for (table, key), settings in SETTINGS_OF.items():
        section = getattr(recipe, table)
        if setting not in settings and getattr(section, key) != keys_of(type(section))[key].default:
            known = " and ".join(f"'{name}'" for name in settings)
            raise RecipeError(f"{place[table][key]}: is for {known} alone; leave it out in '{setting}'.")
    if recipe.network.initialisation == "from_preps" and recipe.has_classes:
        raise RecipeError(
            f"{place['network']['initialisation']}: 'from_preps' starts around one architecture; use 'from_centroid', "
            f"'small_zoos' or 'paper' in '{setting}'."
        )
    least = 3 if setting == "unseen" else 2  # without one between the boundaries, none is unseen
    if recipe.has_classes and count < least:
        raise RecipeError(f"{place['architectures']}: setting '{setting}' needs at least {least}; found {count}.")
    if not recipe.has_classes and count != 1:
        raise RecipeError(f"{place['architectures']}: setting '{setting}' has exactly 1; found {count}.")
    if recipe.loss.line > 0 and count < 3:
        raise RecipeError(f"{place['loss']['line']}: no architecture lies between {count}; leave it out.")
    for table, key in (("batch", "line_instances"), ("loss", "line_from")):
        section = getattr(recipe, table)
        if recipe.loss.line == 0 and getattr(section, key) != keys_of(type(section))[key].default:
            raise RecipeError(f"{place[table][key]}: is for a loss.line above 0 alone; leave it out.")
    if (setting == "unseen" or batch.boundary_share > 0) and batch.instances % 2:
        raise RecipeError(
            f"{place['batch']['instances']}: pairs of boundary architectures need an even number; found "
            f"{batch.instances}."
        )
