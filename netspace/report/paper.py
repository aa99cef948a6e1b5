"""Make the paper in miniature in one folder: train zoos, train spaces on them, make the experiments, write a page.

    out/
      paper.json        the size that was asked for
      zoos/<name>/      a zoo of each embedded spec
      runs/<name>/      a NetSpace each, with its experiments
      report.html       every claim with its number; report.md and report.json are beside it

A finished stage is not repeated and an interrupted one goes on, so the same call always gets nearer to the end. Nothing
is downloaded.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import prepkit
from netspace.experiments import experiment_names
from netspace.recipe import Recipe, load_recipe
from netspace.report.make import report
from netspace.report.model import Progress, Report, StageProgress, announce, is_finished, remaining_text
from netspace.run.run import BEST, LATEST, RECORD, Run
from netspace.training.trainer import train
from prepkit.errors import listed
from prepkit.support.files import replacing
from prepkit.support.progress import SHARE, ProgressInWords
from prepkit.zoo.format.manifest import MANIFEST, read_manifest

FORMAT = "netspace-paper/1"
RECIPES = ("digits_single", "digits_multi", "digits_multi_identity", "digits_unseen", "chairs_mini")
EASIER = ("digits_shared", "digits_multi_shared", "chairs_fitted")  # zoos whose instances share their starts
STRONG = ("digits_single_strong",)
# Variants that are trained once: three leave something out, the last one adds a loss.
ABLATIONS = ("digits_single_weights", "digits_multi_no_interpolation", "digits_multi_no_scale", "digits_multi_line")
# Modules that experiments import, with the names under which they are installed.
LIBRARIES = {"matplotlib": "matplotlib", "scipy": "scipy", "sklearn": "scikit-learn", "skimage": "scikit-image"}
PAPER, ZOOS, RUNS, PAGE = "paper.json", "zoos", "runs", "report.html"


class PaperError(prepkit.PrepkitError, ValueError):
    """The folder holds something else than was asked for, or a library is missing."""


@dataclass(frozen=True)
class Size:
    """How much is trained and measured.

    title:       title of the page
    note:        a sentence that the reader must know before all others
    zoos:        by spec, `instances` and `epochs` in place of the spec's own
    recipes:     by recipe, changed values by dotted key
    others:      recipes beside RECIPES, on zoos of other kinds than the paper's
    seeds:       seeds of NetSpace's training; each is trained on the same zoos
    ablations:   whether each ablation is trained too, with the first seed
    experiments: by experiment, settings of its function
    """

    title: str
    note: str = ""
    zoos: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    ablations: bool = False
    experiments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


TRIAL_RUN = "This is a trial run: everything is made once in small, and trained too shortly for the claims to hold."
TRIAL = {"training.steps": 150, "training.validate_every": 50}
SIZES = {
    # Shows that everything works and what the page looks like. The trainings are too short for the claims to hold.
    "quick": Size(
        "The paper in miniature, a trial run",
        TRIAL_RUN,
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
            "novelty": {"networks": 4, "controls": 2, "steps": 5},
        },
    ),
    "mini": Size("The paper in miniature", others=EASIER),
    "full": Size(
        "The paper in miniature, three seeds and ablations",
        others=(*EASIER, *STRONG),
        seeds=(0, 1, 2),
        ablations=True,
    ),
}


@dataclass(frozen=True)
class ZooStage:
    """The training of a zoo from the spec of the same name."""

    name: str
    path: Path
    sizes: Mapping[str, int]
    kind: ClassVar[str] = "zoo"

    def is_done(self) -> bool:
        """Whether the zoo is complete; raises PaperError if another one is there."""
        if not (self.path / MANIFEST).exists():
            return False
        provenance = read_manifest(self.path).provenance or {}
        if provenance.get("spec") != prepkit.load_spec(self.name).text or provenance.get("sizes") != dict(self.sizes):
            raise PaperError(
                f"'{self.path}' is not the zoo of spec '{self.name}' at this size; move it away, or name a new folder."
            )
        return True

    def run(self, device: str, say: Callable[[str], None]) -> None:
        """Train the zoo, or go on with it."""
        words, instances, epochs = ProgressInWords(SHARE, say), self.sizes.get("instances"), self.sizes.get("epochs")
        prepkit.train_zoo(self.name, self.path, device=device, instances=instances, epochs=epochs, progress=words)


@dataclass(frozen=True)
class TrainingStage:
    """The training of a NetSpace."""

    name: str
    path: Path
    recipe: Recipe
    zoo: Path
    kind: ClassVar[str] = "training"

    def is_done(self) -> bool:
        """Whether all steps were taken or the score to stop at was reached; raises PaperError for another recipe."""
        if not (self.path / RECORD).exists():
            return False
        run = Run(self.path)
        if run.recipe != self.recipe:
            raise PaperError(f"'{self.path}' was trained with another recipe than '{self.recipe.name}'; move it away.")
        return run.facts(LATEST) is not None and run.facts(BEST) is not None and is_finished(run)

    def run(self, device: str, say: Callable[[str], None]) -> None:
        """Train the NetSpace, or go on with its training."""
        resume, words = (self.path / RECORD).exists(), ProgressInWords("step", say)
        train(self.recipe, self.zoo, self.path, resume=resume, device=device, progress=words)


def paper(
    out: str | os.PathLike[str],
    size: str = "mini",
    *,
    device: str = "auto",
    progress: Progress | None = None,
) -> Report:
    """Run the stages that are left, and write the page.

    out:  a new folder, or one that this function began with the same size
    size: "quick", "mini" or "full"
    raises PaperError for another folder or missing libraries, and what trainings raise
    """
    root = Path(out)
    if size not in SIZES:
        raise PaperError(f"unknown size '{size}'; use one of {', '.join(SIZES)}.")
    check_libraries()
    begin(root, size)
    wanted, recipes = SIZES[size], recipes_of(SIZES[size])
    zoos = [ZooStage(name, root / ZOOS / name, wanted.zoos.get(name, {})) for name in zoo_names(recipes)]
    trainings = [
        TrainingStage(name, root / RUNS / name, recipe, root / ZOOS / recipe.zoo) for name, recipe in recipes.items()
    ]
    stages: list[ZooStage | TrainingStage] = [*zoos, *trainings]
    due = [stage for stage in stages if not stage.is_done()]
    experiments = sum(len(experiment_names(recipe.setting)) for recipe in recipes.values())
    total = len(stages) + experiments
    for place, stage in enumerate(due, 1):
        number = len(stages) - len(due) + place
        remaining = remaining_text(**Counter(later.kind for later in due[place:]), experiment=experiments)
        stage.run(device, announce(progress, StageProgress(f"{stage.kind} {stage.name}", number, total, "", remaining)))

    def after_stages(experiment: StageProgress) -> None:
        if progress is not None:
            progress(replace(experiment, number=len(stages) + experiment.number, total=total))

    return report(
        [Run(stage.path) for stage in trainings],
        root / PAGE,
        title=wanted.title,
        note=wanted.note,
        device=device,
        zoos=[stage.path for stage in zoos],
        sizes=wanted.experiments,
        overwrite=True,
        progress=after_stages,
    )


def check_libraries() -> None:
    """Raise PaperError if experiments lack a library, before hours are spent on trainings."""
    missing = [package for module, package in LIBRARIES.items() if find_spec(module) is None]
    if missing:
        raise PaperError(f"the experiments also need {listed(missing)}; pip install 'prepkit[train,plots]'.")


def begin(root: Path, size: str) -> None:
    """Begin a folder, or accept one that was begun with the same size.

    raises PaperError if something else is there
    """
    file, documents = root / PAPER, {name: json.dumps({"format": FORMAT, "size": name}) for name in SIZES}
    if not file.exists():
        if root.exists() and (not root.is_dir() or os.listdir(root)):
            raise PaperError(f"'{root}' exists and was not begun by this command; name a new or empty folder.")
        root.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            temporary.write_text(documents[size] + "\n", encoding="utf-8")
    begun = file.read_text(encoding="utf-8", errors="replace").strip()
    sizes = [name for name, document in documents.items() if document == begun]
    if not sizes:
        raise PaperError(f"{file}: damaged, or of another version; name a new folder.")
    if sizes != [size]:
        raise PaperError(
            f"'{root}' was begun in the size '{sizes[0]}', and '{size}' was asked for; ask for the first, or name "
            "a new folder."
        )
    for folder in (ZOOS, RUNS):
        (root / folder).mkdir(exist_ok=True)


def recipes_of(size: Size) -> dict[str, Recipe]:
    """Return the recipes that are trained, with all their seeds, by name of the run."""
    recipes = {}
    for name in (*RECIPES, *size.others, *(ABLATIONS if size.ablations else ())):
        for seed in size.seeds[:1] if name in ABLATIONS else size.seeds:
            changes = {**size.recipes.get(name, {}), "training.seed": seed}
            recipes[name if seed == size.seeds[0] else f"{name}-seed-{seed}"] = load_recipe(name, changes)
    return recipes


def zoo_names(recipes: Mapping[str, Recipe]) -> list[str]:
    """Return the zoos that recipes are trained on, each once."""
    return list(dict.fromkeys(recipe.zoo for recipe in recipes.values()))
