"""bench: predict a column of a zoo's table from weights, by baselines and by learners of the user.

    result = prepkit.bench("my-zoo", "accuracy")
    result.rows["statistics + boosting"].measures["tau"]

A learner of the user is a function of three Parts that returns one prediction for each test instance:

    def nearest(train, validation, test):
        known, asked = (part.zoo.preps().flatten(1) for part in (train, test))
        return train.target[torch.cdist(asked, known).argmin(1)]

    prepkit.bench("my-zoo", "accuracy", learners={"nearest": nearest})
"""

# ruff: noqa: N803, N806 - names of arrays end in their axes

from __future__ import annotations

import os
import random
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prepkit.api import open_zoo
from prepkit.benching._baselines import BASELINES, Learner, LeftOut
from prepkit.benching._meter import metered
from prepkit.benching._published import Published, published_for
from prepkit.benching._training import graph_network, token_transformer
from prepkit.benching.ceiling import Ceiling, ceiling_of
from prepkit.benching.measures import measures_of
from prepkit.benching.target import Kind, Question, asked
from prepkit.errors import PrepkitError, counted, listed, nearest
from prepkit.support.json_values import json_value
from prepkit.support.progress import Progress
from prepkit.support.statistics import library
from prepkit.support.text import Brief
from prepkit.version import __version__
from prepkit.zoo.read.zoo import Zoo

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = "prepkit-bench/1"
TRAINED: dict[str, Callable[[str], Learner]] = {
    "tokens + transformer": token_transformer,
    "graph + equivariant network": graph_network,
}
BASELINE_NAMES = (*BASELINES, *TRAINED)
MEASURES: dict[Kind, tuple[str, ...]] = {"number": ("r2", "tau"), "class": ("accuracy",)}
VERSIONS = ("torch", "numpy", "scikit-learn", "scipy")


@dataclass(frozen=True, repr=False)
class Row(Brief):
    """What one learner reached.

    measures:   see prepkit.benching.measures.measures_of; empty if there are no predictions
    guesses:    its predictions of the test instances `[N]`; classes by their numbers
    seconds:    of learning and predicting
    peak_bytes: memory of the process at its peak beyond what it held before; None where the system does not tell
    left_out:   why a baseline was not run, or None
    error:      what went wrong in the learner, or None
    """

    measures: Mapping[str, Any] = field(default_factory=dict)
    guesses: NDArray[Any] | None = None
    seconds: float = 0.0
    peak_bytes: int | None = None
    left_out: str | None = None
    error: str | None = None


@dataclass(frozen=True, repr=False)
class Bench(Brief):
    """The results of a bench.

    about:     zoo, column, splits with their sha256, preprocessing, seed, versions and machine, as JSON has them
    question:  what was predicted, with the true values
    ceiling:   the tau that a perfect ranker can reach; None for classes
    rows:      learner -> what it reached, in the order in which they ran
    published: numbers that papers print for this zoo on this split
    notes:     sentences that the reader should know
    """

    about: Mapping[str, Any]
    question: Question
    ceiling: Ceiling | None
    rows: Mapping[str, Row]
    published: tuple[Published, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON has it, with the predictions beside the ids of the test instances."""
        classes = self.question.classes
        truth = self.question.truth

        def values(of_N: NDArray[Any]) -> list[Any]:
            return [classes[number] for number in of_N.tolist()] if classes else of_N.tolist()

        document = {
            "format": FORMAT,
            **self.about,
            "ceiling": None if self.ceiling is None else vars(self.ceiling),
            "results": {
                name: {
                    **row.measures,
                    "seconds": row.seconds,
                    "peak_bytes": row.peak_bytes,
                    "left_out": row.left_out,
                    "error": row.error,
                    "predictions": None if row.guesses is None else values(row.guesses),
                }
                for name, row in self.rows.items()
            },
            "published": [one.to_dict() for one in self.published],
            "test": {"ids": self.question.test.zoo.table["id"].to_pylist(), "truth": values(truth)},
            "notes": list(self.notes),
        }
        found: dict[str, Any] = json_value(document)
        return found


def bench(
    zoo: Zoo | str | os.PathLike[str],
    target: str,
    *,
    kind: Kind | None = None,
    log: bool = False,
    where: str | None = None,
    learners: Mapping[str, Learner] | None = None,
    baselines: Sequence[str] | None = None,
    rerun: bool = False,
    data: str | os.PathLike[str] | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Bench:
    """Predict a column of a zoo's table from weights, on the zoo's own split, and say how well.

    Training instances are learned from, validation instances choose, and test instances are measured. Baselines are
    fitted for each architecture by itself. Intervals are the middle 95 % of 1,000 draws of the test instances, of
    whole runs where the zoo has a column `run`.

    zoo:       an open zoo or view, or the path of one (hf:// too)
    target:    the column
    kind:      "number" or "class"; texts and booleans are classes, all else numbers, if missing
    log:       predict the logarithm, as for learning rates from 1e-4 to 1e-1
    where:     a condition that chooses instances
    learners:  name -> function (train, validation, test) -> predictions `[N]`, each a prepkit.benching.target.Part;
               classes are predicted by their numbers. What a learner raises is told in its row.
    baselines: names of the baselines to run (`BASELINE_NAMES`); all if missing
    rerun:     run the test instances on the test samples of the zoo's task, for a ceiling of tau that knows the luck of
               the samples; for the column `accuracy` only
    data:      folder of the task's data, for `rerun`
    seed:      what all random choices follow from
    device:    "cpu", "cuda", ... for the networks that are trained
    raises ZooError for a column that is not there or cannot be predicted, or a zoo without a split; StatisticsMissing
    without scikit-learn; DataMissing

    >>> bench("my-zoo", "accuracy").rows["statistics + ridge"].measures["tau"]
    0.93
    """
    library("sklearn"), library("scipy.stats")
    progress = progress or Progress()
    chosen = _learners(baselines, learners or {}, device)
    if type(seed) is not int or seed < 0:
        raise PrepkitError(f"seed: expected a whole number of at least 0; found {seed!r}.")
    opened = zoo if isinstance(zoo, Zoo) else open_zoo(zoo)
    view = opened if where is None else opened.where(where)
    progress.begin(len(chosen))
    question = asked(view, target, kind=kind, log=log, seed=seed)
    ceiling, notes = ceiling_of(question, rerun=rerun, data=data)
    rows: dict[str, Row] = {}
    for name, learner in chosen.items():
        progress.advance(0, name)
        rows[name] = _row(learner, question, ceiling, seed)
        progress.advance(1, name)
    return Bench(
        _about(opened, view, question, where, seed, device),
        question,
        ceiling,
        rows,
        _published(opened, question, whole=where is None and not log),
        (*question.notes, *notes),
    )


def _learners(baselines: Sequence[str] | None, own: Mapping[str, Learner], device: str) -> dict[str, Learner]:
    """Return all learners by name; raises PrepkitError for a name that is unknown or taken."""
    names = BASELINE_NAMES if baselines is None else tuple(baselines)
    unknown = [name for name in names if name not in BASELINE_NAMES]
    if unknown:
        raise PrepkitError(
            f"there is no baseline '{unknown[0]}'; there are {listed(BASELINE_NAMES)}."
            f"{nearest(unknown[0], BASELINE_NAMES)}"
        )
    taken = [name for name in own if name in BASELINE_NAMES]
    if taken:
        raise PrepkitError(f"'{taken[0]}' is the name of a baseline; give the learner another name.")
    wrong = [name for name, learner in own.items() if not callable(learner)]
    if wrong:
        raise PrepkitError(
            f"learner '{wrong[0]}': expected a function (train, validation, test) -> predictions; found "
            f"{type(own[wrong[0]]).__name__}."
        )
    if not names and not own:
        raise PrepkitError("there is nothing to run: no baseline and no learner.")
    found = {name: BASELINES[name] if name in BASELINES else TRAINED[name](device) for name in names}
    return found | dict(own)


# Running a learner ------------------------------------------------------------------------------------------------


def _row(learner: Learner, question: Question, ceiling: Ceiling | None, seed: int) -> Row:
    """Run one learner and measure what it predicts; what it raises is told in the row."""
    with metered() as meter, _seeded(seed):
        try:
            answer = learner(question.train, question.validation, question.test)
            guesses_N = predictions(answer, question)
        except LeftOut as error:
            return Row(left_out=str(error))
        except Exception as error:
            return Row(error=_told(error))
    measures = measures_of(
        question.truth,
        guesses_N,
        question.runs,
        is_class=question.kind == "class",
        ceiling=ceiling.tau if ceiling else float("nan"),
        seed=seed,
    )
    return Row(measures, guesses_N, round(meter.seconds, 3), meter.peak_bytes)


def predictions(answer: Any, question: Question) -> NDArray[Any]:
    """Return a learner's answer as an array `[N]` of float64, or of class numbers int64.

    raises PrepkitError for another shape, values that are not finite, or numbers of no class
    """
    tensor = answer.detach().cpu() if isinstance(answer, torch.Tensor) else answer
    try:
        found = np.asarray(tensor, np.float64)
    except (TypeError, ValueError):
        found = np.empty((0, 0))
    count = len(question.truth)
    if found.shape != (count,):
        shape = (
            list(np.shape(tensor))
            if hasattr(tensor, "shape") or isinstance(tensor, list | tuple)
            else type(answer).__name__
        )
        raise PrepkitError(
            f"expected {counted(count, 'prediction')} of shape [{count}], one a test instance; found {shape}."
        )
    if not np.isfinite(found).all():
        raise PrepkitError(f"{int((~np.isfinite(found)).sum())} of {counted(count, 'prediction')} are NaN or infinite.")
    if question.kind == "number":
        return found
    classes = len(question.classes)
    if (found != np.round(found)).any() or (found < 0).any() or (found >= classes).any():
        raise PrepkitError(f"expected numbers of classes, whole numbers from 0 to {classes - 1}; found others.")
    return found.astype(np.int64)


def _told(error: Exception) -> str:
    """Return an error with its place: the last line of code that is not of a library, as far as that can be told."""
    if isinstance(error, PrepkitError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename and frame.filename[:1] != "<"]
    frame = (own or frames)[-1]
    return f"{os.path.basename(frame.filename)}, line {frame.lineno}: {type(error).__name__}: {error}"


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the generators that code takes numbers from without asking, and put them back as they were afterwards."""
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


def _published(opened: Zoo, question: Question, *, whole: bool) -> tuple[Published, ...]:
    is_whole = whole and len(opened) == opened.manifest.table.rows
    return published_for(opened.manifest, question.column, MEASURES[question.kind]) if is_whole else ()


# What the results are of ------------------------------------------------------------------------------------------


def _about(opened: Zoo, view: Zoo, question: Question, where: str | None, seed: int, device: str) -> dict[str, Any]:
    preprocessing = opened.manifest.preprocessing
    hardware = import_module("prepkit.support.device")
    return {
        "zoo": {"name": opened.name, "sha256": opened.manifest.to_dict()["sha256"], "instances": len(opened)},
        "target": {
            "column": question.column,
            "kind": question.kind,
            "log": question.is_log,
            "classes": list(question.classes) or None,
        },
        "where": where,
        "split": {
            "rule": opened.split_rule,
            "grouped": question.grouped,
            **{
                name: {"instances": len(part), "sha256": part.zoo.sha256}
                for name, part in (
                    ("train", question.train),
                    ("validation", question.validation),
                    ("test", question.test),
                )
            },
        },
        "preprocessing": None if preprocessing is None else {"sha256": preprocessing.sha256},
        "seed": seed,
        "device": str(hardware.choose_device(device)),
        "threads": torch.get_num_threads(),
        "versions": {"prepkit": __version__, **{name: version(name) for name in VERSIONS}},
    }
