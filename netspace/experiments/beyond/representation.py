"""Is an instance's accuracy, or how it was trained, written in its embedding?

A linear guess (ridge) from the embedding is compared with the same guess from what needs no NetSpace: statistics of the
layers, the PRep itself, and as many principal components of it as the embedding has values.
Shapes: N instances, R draws of the bootstrap, F features, B images, V values.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import prepkit
from netspace.data import TEST, TRAIN, VALIDATION, ZooMismatch
from netspace.experiments._subject import runs_of
from netspace.experiments.result import Claim, Column, Result, claim, table_of_measures
from netspace.explore import colours
from netspace.explore.embedding import encode
from netspace.space.evaluation import preps_of
from prepkit.figures import panels
from prepkit.support.bootstrap import Draws, drawn, middle, taus_of_draws
from prepkit.support.statistics import finite_mean, kendall, library, r2, ridge_guess, tau_of_halves, tau_of_ties
from prepkit.zoo.read.accuracy import right_on_samples
from prepkit.zoo.read.groups import layer_statistics, rows_by_architecture

if TYPE_CHECKING:
    from netspace.experiments._subject import Subject
    from netspace.space.network import NetSpace

SPLITS = (TRAIN, VALIDATION, TEST)
HALVINGS = 50
# These columns of a zoo's table say how an instance was trained; those that vary are guessed.
HYPERPARAMETERS = ("epochs", "epoch", "learning_rate", "momentum", "weight_decay", "batch_size")
WIDE = 10.0  # largest over smallest value from which a hyper-parameter is guessed on a logarithmic scale
SPREAD = 0.5  # ceiling of tau below which accuracies differ by luck and nothing is claimed
EMBEDDING, STATISTICS, RAW, COMPONENTS = "embedding", "layer statistics", "PRep", "principal components"
COLOURS = {
    EMBEDDING: colours.PREDICTED,
    STATISTICS: colours.STATISTICS,
    RAW: colours.WEIGHTS,
    COMPONENTS: colours.WEIGHTS_REDUCED,
}
COLUMNS = (
    Column("values", "values"),
    Column("R2", "r2", digits=3),
    Column("tau", "tau", digits=3),
    Column("tau over ceiling", "tau_over_ceiling", digits=3),
    Column("tau within architectures", "tau_within_architectures", digits=3),
    Column("mean error", "mean_error", digits=3),
    Column("ceiling", "ceiling", digits=3),
)


@dataclass(frozen=True)
class Label:
    """A number that is guessed for each instance.

    values:  true values `[N]` by split
    ceiling: the tau that a guess can be expected to reach at best on the test instances
    """

    name: str
    values: Mapping[str, np.ndarray]
    ceiling: float


def run(subject: Subject) -> Result:
    """Fit on training instances, choose the strength of the penalty on validation ones, measure on test ones."""
    views = {split: subject.view(split) for split in SPLITS}
    if len(views[TRAIN]) < 2:
        raise ZooMismatch(f"zoo '{subject.zoo.name}' has one training instance; a linear guess is fitted on 2 or more.")
    subject.progress("accuracies of all instances, and guesses from embeddings, layer statistics and PReps")
    accuracy = accuracy_label(subject, views)
    labels = [accuracy, *hyperparameter_labels(views)]
    features = features_of(subject.space, views)
    measured: dict[str, dict[str, dict[str, float]]] = {}
    guesses: dict[str, dict[str, np.ndarray]] = {}
    for label in labels:
        measured[label.name], guesses[label.name] = {}, {}
        for kind, by_split in features.items():
            train, validation = ((by_split[split], label.values[split]) for split in (TRAIN, VALIDATION))
            # Principal components are not brought to equal variance, which would blow up the least of them.
            guess, strength = ridge_guess(train, validation, by_split[TEST], each=kind != COMPONENTS)
            measured[label.name][kind] = measures(label, guess, views[TEST]) | {"strength": strength}
            guesses[label.name][kind] = guess
    sizes = {kind: by_split[TEST].shape[1] for kind, by_split in features.items()}
    rows = {
        (label.name, kind): {**values, "values": sizes[kind], "ceiling": label.ceiling}
        for label in labels
        for kind, values in measured[label.name].items()
    }
    figure = guesses_figure(accuracy, guesses[accuracy.name], measured[accuracy.name])
    drawn_RN = drawn(np.array(runs_of(views[TEST])), subject.seed)
    title = "Linear guesses, measured on test instances"
    return Result(
        name="representation",
        title="What an embedding knows of its instance",
        text=_text(views, sizes, accuracy.ceiling),
        numbers={
            "features": sizes,
            "instances": {split: len(view) for split, view in views.items()},
            "labels": {label.name: {"ceiling": label.ceiling, **measured[label.name]} for label in labels},
        },
        claims=_claims(measured, labels, guesses, drawn_RN),
        tables=(table_of_measures(title, ("guessed", "from"), rows, COLUMNS),),
        pictures=(subject.picture("Guessed and true accuracy of test instances", "representation.png", figure),),
    )


# What is guessed --------------------------------------------------------------------------------------------------


def accuracy_label(subject: Subject, views: Mapping[str, prepkit.Zoo]) -> Label:
    """Return accuracies on the task's test images; their ceiling is the tau between two halves of the images."""
    right = {split: right_on_samples(view, subject.task, TEST) for split, view in views.items()}
    ceiling = tau_of_halves(right[TEST], HALVINGS, subject.seed)
    return Label("accuracy", {split: right_NB.mean(1) for split, right_NB in right.items()}, ceiling)


def hyperparameter_labels(views: Mapping[str, prepkit.Zoo]) -> list[Label]:
    """Return the numbers in the zoo's table that say how its instances were trained, if they vary in every split."""
    labels: list[Label] = []
    for name in HYPERPARAMETERS:
        if any(name not in view.table.column_names for view in views.values()):
            continue
        columns = {split: view.table[name].to_pylist() for split, view in views.items()}
        if any(None in column or len(set(column)) < 2 for column in columns.values()):
            continue
        values = {split: np.array(column, np.float64) for split, column in columns.items()}
        together = np.concatenate(list(values.values()))
        if together.min() > 0 and together.max() >= WIDE * together.min():
            name, values = f"log of {name}", {split: np.log(column) for split, column in values.items()}
        known = (label.values for label in labels)
        if not any(all(np.array_equal(other[split], values[split]) for split in values) for other in known):
            labels.append(Label(name, values, tau_of_ties(values[TEST])))
    return labels


# From what it is guessed ------------------------------------------------------------------------------------------


def features_of(space: NetSpace, views: Mapping[str, prepkit.Zoo]) -> dict[str, dict[str, np.ndarray]]:
    """Return features `[N, F]` of each kind and split, float64."""
    preps = {split: preps_of(space, view).flatten(1).cpu().double().numpy() for split, view in views.items()}
    return {
        EMBEDDING: {split: encode(space, view).cpu().double().numpy() for split, view in views.items()},
        STATISTICS: {split: layer_statistics(view) for split, view in views.items()},
        RAW: preps,
        COMPONENTS: components(preps, space.embedding_size),
    }


def components(features: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Return the first principal components of the training instances, `count` or as many as there can be."""
    instances, values = features[TRAIN].shape
    kept = min(count, instances - 1, values)
    pca = library("sklearn.decomposition").PCA(kept, svd_solver="full").fit(features[TRAIN])
    return {split: pca.transform(values_NF) for split, values_NF in features.items()}


# How well ---------------------------------------------------------------------------------------------------------


def measures(label: Label, guess_N: np.ndarray, view: prepkit.Zoo) -> dict[str, float]:
    """Return R2, tau, tau over its ceiling, mean error, and the mean of the architectures' own taus."""
    truth_N = label.values[TEST]
    tau = kendall(truth_N, guess_N)
    within = [kendall(truth_N[rows], guess_N[rows]) for rows in rows_by_architecture(view).values()]
    return {
        "r2": r2(truth_N, guess_N),
        "tau": tau,
        "tau_over_ceiling": tau / label.ceiling if label.ceiling > 0 else float("nan"),
        "mean_error": float(np.abs(truth_N - guess_N).mean()),
        "tau_within_architectures": finite_mean(within),
    }


def _claims(
    measured: Mapping[str, Mapping[str, Mapping[str, float]]],
    labels: Sequence[Label],
    guesses: Mapping[str, Mapping[str, np.ndarray]],
    drawn_RN: Draws,
) -> list[Claim]:
    claims = []
    for label in labels:
        if not label.ceiling >= SPREAD:
            continue
        taus = {kind: values["tau"] for kind, values in measured[label.name].items()}
        others = max(tau if np.isfinite(tau) else -1.0 for kind, tau in taus.items() if kind != EMBEDDING)
        text = f"Guessing the {label.name}: Kendall's tau from embeddings minus that of the best baseline"
        taus_R = {
            kind: taus_of_draws(label.values[TEST], guess, drawn_RN) for kind, guess in guesses[label.name].items()
        }
        others_R = np.fmax.reduce([tau_R for kind, tau_R in taus_R.items() if kind != EMBEDDING])
        interval = middle(taus_R[EMBEDDING] - others_R)
        claims.append(claim(text, taus[EMBEDDING] - others, ">=", 0.0, kind="beyond", interval=interval))
    return claims


def _text(views: Mapping[str, prepkit.Zoo], sizes: Mapping[str, int], ceiling: float) -> str:
    luck = (
        f"Two halves of the test images rank the test instances with tau {ceiling:.2f}, which is the ceiling for "
        "accuracy: the rest is the luck of the images. The ceiling is low, because half of the images leave more to "
        "luck than all of them, so a guess may pass it."
        if np.isfinite(ceiling)
        else "Two halves of the test images do not rank the test instances at all."
    )
    if not ceiling >= SPREAD:
        luck += " Accuracies of this zoo differ by little more than luck, so nothing is claimed about them."
    return (
        f"A linear guess (ridge) is fitted on {len(views[TRAIN])} training instances, its penalty is chosen on "
        f"{len(views[VALIDATION])} validation instances, and it is measured on {len(views[TEST])} test instances. It "
        f"guesses from the embedding ({sizes[EMBEDDING]} values). The baselines guess from seven statistics of each "
        f"tensor ({sizes[STATISTICS]}), from the PRep itself ({sizes[RAW]:,}), and from its first {sizes[COMPONENTS]} "
        "principal components, as many as the embedding has values, or as the training instances allow. The encoder "
        "saw the same training instances, but never their accuracy or hyper-parameters.\n\n"
        f"R2 is 1 for perfect guesses and 0 for always guessing the mean; Kendall's tau compares orders. {luck} For "
        "hyper-parameters the ceiling comes from equal values, which a guess without equal values cannot match."
    )


def guesses_figure(label: Label, guesses: Mapping[str, np.ndarray], measured: Mapping[str, Mapping[str, float]]) -> Any:
    """Draw true and guessed values, one panel a kind of features."""
    figure, plots = panels(len(guesses), 2.6, 3.0, sharex=True, sharey=True)
    truth = 100 * label.values[TEST]
    low, high = float(truth.min()), float(truth.max())
    margin = 0.05 * (high - low) or 1.0
    for axes, (kind, guess) in zip(plots, guesses.items(), strict=True):
        axes.plot([low, high], [low, high], color="0.7", linewidth=1)
        axes.scatter(truth, 100 * guess, s=18, color=COLOURS[kind], alpha=0.8)
        axes.set_title(f"{kind}\nR2 {measured[kind]['r2']:.2f}, tau {measured[kind]['tau']:.2f}", fontsize="medium")
        axes.set_xlabel("true accuracy, %")
    # The range follows the truth, because some guesses may be far out.
    plots[0].set(xlim=(low - margin, high + margin), ylim=(low - 6 * margin, high + 6 * margin))
    plots[0].set_ylabel("guessed accuracy, %")
    return figure
