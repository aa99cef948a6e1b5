"""paper: the whole paper in one folder: zoos are trained, spaces are trained on them, experiments made, a page written.

    out/
      paper.json        what was begun: the size
      zoos/<name>/      zoos of the embedded specs
      runs/<name>/      a NetSpace each, its experiments in it
      report.html       every claim with its number; report.md and report.json beside it

Stages that are finished are not done again, and one that was interrupted goes on where it was, so the same call always
gets nearer to the end. Nothing is downloaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import prepkit
from netspace.experiments import experiment_names
from netspace.recipe import Recipe, load_recipe
from netspace.report.make import report
from netspace.report.model import Progress, Report, StageProgress
from netspace.run.run import BEST, LATEST, RECORD, Run
from netspace.training.trainer import train
from prepkit.files import replacing
from prepkit.progress import SHARE, ProgressInWords
from prepkit.zoo.format.manifest import MANIFEST, read_manifest

FORMAT = "netspace-paper/1"
RECIPES = ("digits_single", "digits_multi", "digits_multi_identity", "digits_unseen", "chairs_mini")
ABLATIONS = ("digits_single_weights", "digits_multi_no_interpolation", "digits_multi_no_scale")
LIBRARIES = ("matplotlib", "scipy", "sklearn", "skimage")
PAPER, ZOOS, RUNS, PAGE = "paper.json", "zoos", "runs", "report.html"


class PaperError(prepkit.PrepkitError, ValueError):
    """A folder cannot be gone on with as it was asked."""


@dataclass(frozen=True)
class Size:
    """How much of everything.

    title:       of the page
    zoos:        by spec, `instances` and `epochs` of a trial run; the spec's own, if missing
    recipes:     by recipe, changed values by dotted key
    seeds:       of NetSpace's training; all of them on the same zoos
    ablations:   whether those are trained too, once each
    experiments: by experiment, settings of its function
    """

    title: str
    zoos: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    ablations: bool = False
    experiments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


TRIAL = {"training.steps": 150, "training.validate_every": 50}
SIZES = {
    # Everything once, in under four minutes on two cores: it shows that all works, and what the page looks like. The
    # spaces are too young for the claims to hold.
    "quick": Size(
        "The paper in miniature, a trial run: too short for its claims",
        zoos={
            "digits_single": {"instances": 16, "epochs": 12},
            "digits_multi": {"instances": 6, "epochs": 8},
            "digits_unseen": {"instances": 8, "epochs": 8},
            "chairs_mini": {"instances": 8, "epochs": 15},
        },
        recipes=dict.fromkeys(RECIPES, TRIAL),
        experiments={
            "lines": {"pairs": 3},
            "boundaries": {"pairs": 2},
            "chairs": {"pairs": 2, "steps": 3, "resolution": 24},
            "optimisation": {"starts": 1, "steps": 10},
        },
    ),
    "mini": Size("The paper in miniature"),
    "full": Size("The paper in miniature, three seeds and ablations", seeds=(0, 1, 2), ablations=True),
}


@dataclass(frozen=True)
class Stage:
    """Something to be done before the page.

    kind: "zoo" or "training"
    done: whether it was; raises PaperError if what is there is something else
    go:   do it, telling how far it is
    """

    kind: str
    name: str
    done: Callable[[], bool]
    go: Callable[[Callable[[str], None]], object]


def paper(
    out: str | os.PathLike[str],
    size: str = "mini",
    *,
    device: str = "auto",
    progress: Progress | None = None,
) -> Report:
    """Do what is left of the paper's miniature, and write its page.

    out:  folder: new, or one to go on with
    size: "quick", "mini" or "full"
    raises PaperError if the folder was begun with another size, or without the libraries, and what trainings raise
    """
    root = Path(out)
    if size not in SIZES:
        raise PaperError(f"size '{size}' is none of {', '.join(SIZES)}.")
    check_libraries()
    begin(root, size)
    wanted, recipes = SIZES[size], recipes_of(SIZES[size])
    stages = [*zoo_stages(root, wanted, recipes, device), *training_stages(root, recipes, device)]
    due = [stage for stage in stages if not stage.done()]
    experiments = sum(len(experiment_names(recipe.setting)) for recipe in recipes.values())
    of = len(stages) + experiments
    for place, stage in enumerate(due):
        number = len(stages) - len(due) + place + 1
        rest = left(due[place + 1 :], experiments)

        def say(text: str, stage: Stage = stage, number: int = number, rest: str = rest) -> None:
            if progress is not None:
                progress(StageProgress(f"{stage.kind} {stage.name}", number, of, text, rest))

        say("")
        stage.go(say)

    def judging(doing: StageProgress) -> None:
        if progress is not None:
            progress(replace(doing, number=len(stages) + doing.number, total=of))

    return report(
        [Run(root / RUNS / name, trust_code=False) for name in recipes],
        root / PAGE,
        title=wanted.title,
        device=device,
        zoos=[root / ZOOS / name for name in zoo_names(recipes)],
        sizes=wanted.experiments,
        overwrite=True,
        progress=judging,
    )


def check_libraries() -> None:
    """raises PaperError without what experiments need, before hours are spent on trainings."""
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise PaperError(f"{', '.join(missing)} missing; pip install 'prepkit[train,plots]'.")


def begin(root: Path, size: str) -> None:
    """Begin a folder, or go on with one of the same size.

    raises PaperError if something else is there
    """
    file = root / PAPER
    if not file.exists():
        if root.exists() and (not root.is_dir() or os.listdir(root)):
            raise PaperError(f"'{root}' is there and was not begun by this command; name a new or empty folder.")
        root.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            temporary.write_text(json.dumps({"format": FORMAT, "size": size}) + "\n", encoding="utf-8")
    try:
        begun = json.loads(file.read_text(encoding="utf-8"))
        form, before = begun["format"], begun["size"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PaperError(f"{file}: cannot be read ({error!r}). Name a new folder.") from None
    if form != FORMAT or before != size:
        raise PaperError(f"'{root}' was begun as '{before}' ({form}), not '{size}'; go on with that, or name another.")
    for folder in (ZOOS, RUNS):
        (root / folder).mkdir(exist_ok=True)


def recipes_of(size: Size) -> dict[str, Recipe]:
    """What is trained, by name of the run, each recipe with all its seeds."""
    found = {}
    for name in (*RECIPES, *(ABLATIONS if size.ablations else ())):
        for seed in size.seeds if name in RECIPES else size.seeds[:1]:
            changes = {**size.recipes.get(name, {}), "training.seed": seed}
            found[name if seed == size.seeds[0] else f"{name}-seed-{seed}"] = load_recipe(name, changes)
    return found


def zoo_names(recipes: Mapping[str, Recipe]) -> list[str]:
    """The zoos that recipes are trained on, each once."""
    return list(dict.fromkeys(recipe.zoo for recipe in recipes.values()))


def left(due: list[Stage], experiments: int) -> str:
    """What comes after a stage, in words."""
    parts = []
    for kind, words in (("zoo", "zoos"), ("training", "trainings")):
        names = [stage.name for stage in due if stage.kind == kind]
        if names:
            parts.append(f"{kind if len(names) == 1 else words} {', '.join(names)}")
    return "; ".join([*parts, f"{experiments} experiments", "the page"])


# Zoos -----------------------------------------------------------------------------------------------------------


def zoo_stages(root: Path, size: Size, recipes: Mapping[str, Recipe], device: str) -> list[Stage]:
    """One for each zoo."""
    return [zoo_stage(name, root / ZOOS / name, size.zoos.get(name, {}), device) for name in zoo_names(recipes)]


def zoo_stage(name: str, path: Path, sizes: Mapping[str, int], device: str) -> Stage:
    """Train a zoo from the spec of this name."""

    def done() -> bool:
        if not (path / MANIFEST).exists():
            return False
        provenance = read_manifest(path).provenance or {}
        if provenance.get("spec") != prepkit.load_spec(name).text or provenance.get("sizes") != dict(sizes):
            raise PaperError(f"'{path}' is not the zoo of spec '{name}' at this size; move it away, or name another.")
        return True

    def go(say: Callable[[str], None]) -> object:
        instances, epochs = sizes.get("instances"), sizes.get("epochs")
        words = ProgressInWords(SHARE, say)
        return prepkit.train_zoo(name, path, device=device, instances=instances, epochs=epochs, progress=words)

    return Stage("zoo", name, done, go)


# Trainings ------------------------------------------------------------------------------------------------------


def training_stages(root: Path, recipes: Mapping[str, Recipe], device: str) -> list[Stage]:
    """One for each run."""
    return [
        training_stage(name, recipe, root / ZOOS / recipe.zoo, root / RUNS / name, device)
        for name, recipe in recipes.items()
    ]


def training_stage(name: str, recipe: Recipe, zoo: Path, path: Path, device: str) -> Stage:
    """Train a NetSpace, or go on with its training."""

    def done() -> bool:
        if not (path / RECORD).exists():
            return False
        run = Run(path)
        if run.recipe != recipe:
            raise PaperError(f"'{path}' was trained with another recipe than '{recipe.name}' is now; move it away.")
        return finished(run)

    def go(say: Callable[[str], None]) -> object:
        forget_unborn(path)
        resume = (path / RECORD).exists()
        return train(recipe, zoo, path, resume=resume, device=device, progress=ProgressInWords("step", say))

    return Stage("training", name, done, go)


def finished(run: Run) -> bool:
    """Whether all steps were taken, or enough was learnt to stop before."""
    latest, best, training = run.facts(LATEST), run.facts(BEST), run.recipe.training
    if latest is None or best is None:
        return False
    enough = training.stop_at is not None and float(best["scores"]["score"]) >= training.stop_at
    return enough or int(latest["step"]) >= training.steps


def forget_unborn(path: Path) -> None:
    """Remove the empty folders of a run that was killed before its record was written; anything else stays."""
    if path.is_dir() and not (path / RECORD).exists():
        for folder in [*path.iterdir(), path]:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
