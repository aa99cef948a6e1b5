"""Beyond the paper: is an instance's accuracy, or how it was trained, written in its embedding?

A linear guess (ridge) from the embedding, beside the same guess from what needs no NetSpace: statistics of the layers,
the PRep itself, and as many principal components of it as the embedding has values.
Shapes: N instances, F features, B images, V values.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import prepkit
from netspace.data import TEST, TRAIN, VALIDATION
from netspace.experiments.beyond.ridge import fit
from netspace.experiments.judged import groups_of, inputs_of, outputs_of, split_of
from netspace.experiments.result import Cell, Picture, Progress, Result, Table, claim, new_figure, save_figure
from netspace.experiments.statistics import kendall, r2, tau_of_halves, tau_of_ties
from netspace.explore.embedding import encode

if TYPE_CHECKING:
    from netspace.run.run import Run
    from netspace.space.network import NetSpace

NAME = "representation"
SPLITS = (TRAIN, VALIDATION, TEST)
HALVINGS = 50
# Columns of a zoo's table that say how an instance was trained; those that vary are guessed.
HYPERPARAMETERS = ("epochs", "epoch", "learning_rate", "momentum", "weight_decay", "batch_size")
WIDE = 10.0  # largest over smallest value from which a hyper-parameter is guessed on a logarithmic scale
SPREAD = 0.5  # ceiling of tau below which accuracies differ by luck and nothing is claimed
EMBEDDING, STATISTICS, RAW, COMPONENTS = "embedding", "layer statistics", "PRep", "principal components"
COLOURS = {EMBEDDING: "#1f77b4", STATISTICS: "#ff7f0e", RAW: "#7f7f7f", COMPONENTS: "#2ca02c"}


@dataclass(frozen=True)
class Label:
    """What is guessed of each instance.

    values:  `[N]` of all splits
    ceiling: the tau that a guess can be expected to reach at best, on the test instances
    """

    name: str
    values: dict[str, np.ndarray]
    ceiling: float


def run(
    run: Run,
    zoo: prepkit.Zoo,
    task: Any,
    device: torch.device,
    folder: Path,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Fit on training instances, choose the strength of the penalty on validation ones, judge on test ones."""
    space = run.space(device=device)
    views = {split: split_of(zoo, split) for split in SPLITS}
    if progress is not None:
        progress("accuracies of all instances, and guesses from embeddings, layer statistics and PReps")
    accuracy = accuracy_label(run, views, task, device, seed)
    labels = [accuracy, *hyperparameter_labels(views)]
    features = features_of(space, views)
    found: dict[str, dict[str, dict[str, float]]] = {}
    guesses: dict[str, np.ndarray] = {}  # of accuracy
    for label in labels:
        found[label.name] = {}
        for kind, of_split in features.items():
            # Principal components are not brought to equal variance, which would blow up the least of them.
            train, validation = ((of_split[split], label.values[split]) for split in (TRAIN, VALIDATION))
            ridge = fit(train, validation, each=kind != COMPONENTS)
            guess = ridge(of_split[TEST])
            found[label.name][kind] = measures(label, guess, views[TEST]) | {"strength": ridge.strength}
            if label is accuracy:
                guesses[kind] = guess
    sizes = {kind: of_split[TEST].shape[1] for kind, of_split in features.items()}
    return Result(
        name=NAME,
        title="What an embedding knows of its instance",
        text=_text(views, sizes, accuracy.ceiling),
        numbers={
            "features": sizes,
            "instances": {split: len(view) for split, view in views.items()},
            "labels": {label.name: {"ceiling": label.ceiling, **found[label.name]} for label in labels},
        },
        claims=_claims(found, labels),
        tables=(_table(found, labels, sizes),),
        pictures=(
            Picture(
                "Guessed and true accuracy of test instances", draw(accuracy, guesses, found[accuracy.name], folder)
            ),
        ),
    )


# What is guessed --------------------------------------------------------------------------------------------------


def accuracy_label(run: Run, views: dict[str, prepkit.Zoo], task: Any, device: torch.device, seed: int) -> Label:
    """Accuracy on the task's test images; its ceiling is the tau between accuracies on two halves of them."""
    images, truth_B = inputs_of(run, views[TEST], task), task.normalised(TEST)[1].cpu()
    right = {}
    for split, view in views.items():
        preps = view.preps().to(device, torch.float32)
        outputs = outputs_of(run.registry, view.class_ids().tolist(), preps, images)
        right[split] = (outputs.argmax(-1) == truth_B).double().numpy()
    ceiling = tau_of_halves(right[TEST], HALVINGS, seed)
    return Label("accuracy", {split: one.mean(1) for split, one in right.items()}, ceiling)


def hyperparameter_labels(views: dict[str, prepkit.Zoo]) -> list[Label]:
    """The numbers in the zoo's table that say how its instances were trained, where they vary in every split."""
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
            name, values = f"log of {name}", {split: np.log(one) for split, one in values.items()}
        known = (label.values for label in labels)
        if not any(all(np.array_equal(one[split], values[split]) for split in values) for one in known):
            labels.append(Label(name, values, tau_of_ties(values[TEST])))
    return labels


# What it is guessed from ------------------------------------------------------------------------------------------


def features_of(space: NetSpace, views: dict[str, prepkit.Zoo]) -> dict[str, dict[str, np.ndarray]]:
    """Features `[N, F]` of each kind and split, float64."""
    preps = {split: view.preps().flatten(1).double().numpy() for split, view in views.items()}
    return {
        EMBEDDING: {split: encode(space, view).cpu().double().numpy() for split, view in views.items()},
        STATISTICS: statistics_of(views),
        RAW: preps,
        COMPONENTS: components(preps, space.embedding_size),
    }


def statistics_of(views: dict[str, prepkit.Zoo]) -> dict[str, np.ndarray]:
    """Seven statistics of each tensor in a row, zeros after an architecture's last, and its ClassId as 0s and a 1."""
    layouts = [architecture.layout for architecture in next(iter(views.values())).registry]
    most = 7 * max(len(layout.slots) for layout in layouts)
    found = {}
    for split, view in views.items():
        rows_NF = np.zeros((len(view), most + len(layouts)))
        preps_NV = view.preps().flatten(1).double()
        for rows in groups_of(view).values():
            class_id = int(view.class_ids()[rows[0]])
            parts = [seven(preps_NV[rows, slot.start : slot.stop]) for slot in layouts[class_id].slots]
            own_NF = np.concatenate(parts, axis=1)
            rows_NF[rows, : own_NF.shape[1]] = own_NF
            rows_NF[rows, most + class_id] = 1.0
        found[split] = rows_NF
    return found


def seven(values_NV: Tensor) -> np.ndarray:
    """`[N, 7]`: mean, variance, quantiles 0, 1/4, 1/2, 3/4 and 1, as in Unterthiner et al., arXiv 2002.11448."""
    values = values_NV.numpy()
    quantiles = np.quantile(values, [0.0, 0.25, 0.5, 0.75, 1.0], axis=1)
    return np.stack([values.mean(1), values.var(1), *quantiles], axis=1)


def components(features: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """The first principal components of the training instances, at most `count` and as many as there can be."""
    mean_F = features[TRAIN].mean(0)
    _, _, directions_RF = np.linalg.svd(features[TRAIN] - mean_F, full_matrices=False)
    kept_RF = directions_RF[: min(count, len(features[TRAIN]) - 1)]
    return {split: (one - mean_F) @ kept_RF.T for split, one in features.items()}


# How well ---------------------------------------------------------------------------------------------------------


def measures(label: Label, guess_N: np.ndarray, view: prepkit.Zoo) -> dict[str, float]:
    """R2, tau, tau over its ceiling, mean error; and the mean of the architectures' own taus."""
    truth_N = label.values[TEST]
    tau = kendall(truth_N, guess_N)
    within = [kendall(truth_N[rows], guess_N[rows]) for rows in groups_of(view).values()]
    finite = [one for one in within if np.isfinite(one)]
    return {
        "r2": r2(truth_N, guess_N),
        "tau": tau,
        "tau_over_ceiling": tau / label.ceiling if label.ceiling > 0 else float("nan"),
        "mean_error": float(np.abs(truth_N - guess_N).mean()),
        "tau_within_architectures": float(np.mean(finite)) if finite else float("nan"),
    }


def _claims(found: dict[str, dict[str, dict[str, float]]], labels: Sequence[Label]) -> list[Any]:
    claims = []
    for label in labels:
        if not label.ceiling >= SPREAD:
            continue
        taus = {kind: one["tau"] for kind, one in found[label.name].items()}
        others = max(tau if np.isfinite(tau) else -1.0 for kind, tau in taus.items() if kind != EMBEDDING)
        text = f"Guessing the {label.name}: tau from the embedding above that from the best of what needs no space"
        claims.append(claim(text, taus[EMBEDDING] - others, ">=", 0.0, kind="beyond"))
    return claims


def _text(views: dict[str, prepkit.Zoo], sizes: dict[str, int], ceiling: float) -> str:
    luck = (
        f"Two halves of the test images rank the test instances with tau {ceiling:.2f}, which is the ceiling for "
        "accuracy: the rest is the luck of the images. It is low, as a half is luckier than the whole, so a guess may "
        "pass it."
        if np.isfinite(ceiling)
        else "Two halves of the test images do not rank the test instances at all."
    )
    if not ceiling >= SPREAD:
        luck += " Accuracies of this zoo differ by little more than luck, so nothing is claimed about them."
    return (
        f"A linear guess (ridge) is fitted on {len(views[TRAIN])} training instances, its penalty chosen on "
        f"{len(views[VALIDATION])} validation instances, and judged on {len(views[TEST])} test instances. It guesses "
        f"from the embedding ({sizes[EMBEDDING]} values); from seven statistics of each tensor ({sizes[STATISTICS]}); "
        f"from the PRep itself ({sizes[RAW]:,}); and from its first {sizes[COMPONENTS]} principal components, as many "
        "as the embedding has values, or as the training instances allow. The encoder saw the same training instances, "
        "never their accuracy or hyper-parameters.\n\n"
        f"R2 is 1 for perfect guesses and 0 for always guessing the mean; Kendall's tau compares orders. {luck} For "
        "hyper-parameters the ceiling comes from equal values, which a guess without equal values cannot match."
    )


def _table(found: dict[str, dict[str, dict[str, float]]], labels: Sequence[Label], sizes: dict[str, int]) -> Table:
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            label.name,
            kind,
            sizes[kind],
            *(
                round(one[key], 3)
                for key in ("r2", "tau", "tau_over_ceiling", "tau_within_architectures", "mean_error")
            ),
            round(label.ceiling, 3),
        )
        for label in labels
        for kind, one in found[label.name].items()
    )
    columns = ("guessed", "from", "values", "R2", "tau", "tau over ceiling", "tau within architectures", "mean error")
    return Table("Linear guesses, judged on test instances", (*columns, "ceiling"), rows)


def draw(label: Label, guesses: dict[str, np.ndarray], found: dict[str, dict[str, float]], folder: Path) -> str:
    """True against guessed values, one panel a kind of features; the name of the file."""
    figure = new_figure(2.6 * len(guesses), 3.0)
    panels = figure.subplots(1, len(guesses), sharex=True, sharey=True, squeeze=False)[0]
    truth = 100 * label.values[TEST]
    low, high = float(truth.min()), float(truth.max())
    margin = 0.05 * (high - low) or 1.0
    for axes, (kind, guess) in zip(panels, guesses.items(), strict=True):
        axes.plot([low, high], [low, high], color="0.7", linewidth=1)
        axes.scatter(truth, 100 * guess, s=18, color=COLOURS[kind], alpha=0.8)
        axes.set_title(f"{kind}\nR2 {found[kind]['r2']:.2f}, tau {found[kind]['tau']:.2f}", fontsize="medium")
        axes.set_xlabel("true accuracy, %")
    # Some guesses may be far out; the range follows the truth.
    panels[0].set(xlim=(low - margin, high + margin), ylim=(low - 6 * margin, high + 6 * margin))
    panels[0].set_ylabel("guessed accuracy, %")
    return save_figure(figure, folder, f"{NAME}.png")
