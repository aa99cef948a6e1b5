"""Beyond the paper: is a predicted instance its own target's, or the same good network for all targets of its class?

Eq. 1 learns a target's outputs; Eq. 3 to 6 never use them, only the teacher's, the labels and the ClassId.
Shapes: N instances of an architecture, B images, C classes.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

import prepkit
from netspace.data import TEST, TRAIN
from netspace.experiments.judged import Judged, inputs_of, judge, mean_or_nan, off_diagonal, short
from netspace.experiments.preps import measures as prep_measures
from netspace.experiments.result import Claim, Picture, Progress, Result, Table, claim, new_figure, save_figure

if TYPE_CHECKING:
    from netspace.run.run import Run

NAME = "identity"
KEPT = 0.75  # of comparisons; chance is 0.5
INSTANCES = {TEST: "unseen", TRAIN: "training"}
SHOWN = 0.95  # of the values lie within the range of colours
LEAST_RANGE = 1.0  # points: less is an image or two
ROUNDING = 1e-12  # of sums of float64 near 1


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
    """Compare each predicted instance, of test and of training, with every target of its class, on the test images."""
    space = run.space(device=device)
    of_split: dict[str, dict[str, dict[str, Any]]] = {}
    tables: dict[str, tuple[Tensor, Tensor]] = {}
    for split in (TRAIN, TEST):
        if progress is not None:
            progress(f"outputs of the {split} instances and of what is predicted for them, on all test images")
        judged = judge(run, space, zoo, split)
        of_split[split], tables = found_of(run, judged, task)  # the last ones are drawn
    found = of_split[TEST]
    means = {split: _means(by_architecture) for split, by_architecture in of_split.items()}
    return Result(
        name=NAME,
        title="Identity: its own target, or any of its class?",
        text=_text(run, len(judged.view), task.splits[TEST], means),
        numbers={"means": means, "by_architecture": found, "training_instances": of_split[TRAIN]},
        claims=_claims(means[TEST]),
        tables=(_agreement_table(of_split), _spread_table(found)),
        pictures=(Picture("Agreement of every prediction with every target of its class", draw(tables, folder)),),
    )


def found_of(run: Run, judged: Judged, task: Any) -> tuple[dict[str, dict[str, Any]], dict[str, tuple[Tensor, Tensor]]]:
    """Of each architecture all that is measured, and the agreement `[N, N]` and the accuracy `[N]` of the targets."""
    target_NBC, predicted_NBC = judged.outputs(inputs_of(run, judged.view, task))
    labels_B = task.normalised(TEST)[1].cpu()
    found, tables = {}, {}
    for name, rows in judged.groups().items():
        agreement_NN, kl_NN = compare(predicted_NBC[rows], target_NBC[rows])
        accuracy_N = (target_NBC[rows].argmax(-1) == labels_B).double().mean(1)
        preps = prep_measures(*judged.values(rows))
        found[name] = {
            "instances": len(rows),
            "agreement": measures(agreement_NN, accuracy_N),
            "kl": measures(-kl_NN, accuracy_N, sign=-1),
            "agreement_among_targets": mean_or_nan(off_diagonal(compare(target_NBC[rows], target_NBC[rows])[0])),
            "agreement_among_predicted": mean_or_nan(
                off_diagonal(compare(predicted_NBC[rows], predicted_NBC[rows])[0])
            ),
            "prep_distance_among_targets": preps["among_targets"],
            "prep_distance_among_predicted": preps["among_predicted"],
        }
        tables[name] = agreement_NN, accuracy_N
    return found, tables


def _means(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Over the architectures that have two instances or more."""
    several = [one for one in found.values() if one["instances"] > 1]
    return {
        kind: {
            name: _mean([one[kind][name] for one in several]) for name in ("own_preferred", "paired", "paired_nearest")
        }
        for kind in ("agreement", "kl")
    }


def _claims(unseen: dict[str, dict[str, float]]) -> list[Claim]:
    agreement, divergence = unseen["agreement"], unseen["kl"]
    text = "Unseen instances of nearest accuracy that are paired rightly with their targets, by {} (chance: 50 %)"
    found = {
        "Unseen instances agree with their own target more than with another (chance: 50 %)": agreement[
            "own_preferred"
        ],
        text.format("agreement"): agreement["paired_nearest"],
        text.format("divergence"): divergence["paired_nearest"],
    }
    return [claim(words, share, ">=", KEPT, kind="beyond", unit="%") for words, share in found.items()]


def _text(run: Run, instances: int, images: int, means: dict[str, dict[str, dict[str, float]]]) -> str:
    learnt = (
        "In this setting the paper's loss knows the teacher, the labels and the ClassId, not the target's outputs"
        if run.recipe.has_classes
        else "In this setting the loss is the divergence from the target's own outputs (Eq. 1)"
    )
    added = f", but this recipe adds them with weight {run.recipe.loss.identity:g}" if run.recipe.loss.identity else ""
    unseen, seen = means[TEST]["kl"], means[TRAIN]["kl"]
    return (
        f"Each of {instances} predicted test instances is compared with all test targets of its architecture, on "
        f"{images} test images: the share of images that both put into the same class, and the divergence KL(target || "
        f"predicted) of their outputs. {learnt}{added}.\n\n"
        "Some targets are easy to agree with, whatever is predicted, and some predictions agree with all. So two "
        "predictions and their two targets are taken at a time, and asked whether pairing them rightly fits better "
        "than pairing them crosswise: half of the pairs if identity is lost, all if it is kept. As instances of equal "
        "accuracy are alike, a prediction that keeps nothing but the accuracy does better than half; so claims are "
        "made of the pairs of nearest accuracy, which show what is kept beyond it. In the picture the mean agreement "
        "of each prediction and of each target is taken away: a red diagonal is identity.\n\n"
        f"By divergence {_percent(unseen['paired'])} of the pairs of unseen instances are paired rightly, of those of "
        f"nearest accuracy {_percent(unseen['paired_nearest'])}; of training instances {_percent(seen['paired'])} and "
        f"{_percent(seen['paired_nearest'])}. What is not kept for those was not learnt; what is kept for them alone "
        "does not carry over to unseen ones."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if math.isfinite(share) else "none"


def compare(predicted_NBC: Tensor, target_MBC: Tensor) -> tuple[Tensor, Tensor]:
    """Of each prediction and each target: the share of images with the same largest output, and the mean KL divergence.

    predicted_NBC, target_MBC: logits
    returns `[N, M]` and `[N, M]`, float64; the divergence is KL(target || predicted) in nats
    """
    predicted_NB, target_MB = predicted_NBC.argmax(-1), target_MBC.argmax(-1)
    log_p_NBC, log_t_MBC = log_softmax(predicted_NBC.double(), -1), log_softmax(target_MBC.double(), -1)
    t_MBC = log_t_MBC.exp()
    entropy_M = -(t_MBC * log_t_MBC).sum(-1).mean(1)
    cross_NM = -torch.einsum("nbc,mbc->nm", log_p_NBC, t_MBC) / predicted_NB.shape[1]
    # A row at a time: [N, M, B] of a large test set would not fit.
    agreement_NM = torch.stack([(row_B == target_MB).double().mean(1) for row_B in predicted_NB])
    return agreement_NM, cross_NM - entropy_M


def measures(likeness_NN: Tensor, accuracy_N: Tensor, sign: int = 1) -> dict[str, float]:
    """How much better a prediction fits its own target than others.

    likeness_NN: of prediction (row) and target (column), the larger the more alike
    accuracy_N:  of the targets
    sign:        -1 if the likeness is a negated measure; means are given of the measure itself
    own_preferred: share of comparisons with another target that the own target wins
    own_first:     share of predictions whose own target wins all of them
    paired:        share of pairs i, j that fit better rightly (i, i and j, j) than crosswise (i, j and j, i)
    paired_nearest: the same, of each i and the two j of nearest accuracy
    Equal likeness counts half.
    """
    count = len(likeness_NN)
    own_N = likeness_NN.diagonal()
    wins_NN = _wins(own_N[:, None], likeness_NN)
    paired_NN = _wins(own_N[:, None] + own_N, likeness_NN + likeness_NN.T)
    apart_NN = (accuracy_N[:, None] - accuracy_N).abs().fill_diagonal_(float("inf"))
    nearest_NK = apart_NN.argsort(dim=1, stable=True)[:, : min(2, count - 1)]
    others_NN = likeness_NN.clone().fill_diagonal_(-float("inf"))
    return {
        "own": sign * mean_or_nan(own_N),
        "others": sign * mean_or_nan(off_diagonal(likeness_NN)),
        "nearest_in_accuracy": sign * mean_or_nan(likeness_NN.gather(1, nearest_NK)),
        "own_preferred": mean_or_nan(off_diagonal(wins_NN)),
        "paired": mean_or_nan(off_diagonal(paired_NN)),
        "paired_nearest": mean_or_nan(paired_NN.gather(1, nearest_NK)),
        "own_first": mean_or_nan((own_N > others_NN.amax(1)).double()) if count > 1 else float("nan"),
    }


def _wins(first: Tensor, second: Tensor) -> Tensor:
    """1 where the first is larger, 0.5 where both are equal, but for rounding."""
    difference = first - second
    return torch.where(difference.abs() <= ROUNDING, 0.5, (difference > 0).double())


def beyond_margins(values_NM: Tensor) -> Tensor:
    """What is left of each value when the means of its row and its column are taken away."""
    return values_NM - values_NM.mean(0) - values_NM.mean(1, keepdim=True) + values_NM.mean()


def draw(tables: dict[str, tuple[Tensor, Tensor]], folder: Path) -> str:
    """Agreement beyond the means of row and column, one panel an architecture; the name of the file."""
    figure = new_figure(5.2, 4.2) if len(tables) == 1 else new_figure(1.0 + 2.7 * len(tables), 3.4)
    panels = figure.subplots(1, len(tables), squeeze=False)[0]
    beyond = {name: 100 * beyond_margins(agreement) for name, (agreement, _) in tables.items()}
    # A few pairs may stand out; they would take the colour from all others.
    limit = max(LEAST_RANGE, float(torch.cat([one.flatten().abs() for one in beyond.values()]).quantile(SHOWN)))
    for axes, (name, (_, accuracy_N)) in zip(panels, tables.items(), strict=True):
        order = accuracy_N.argsort(stable=True)
        count = len(order)
        image = axes.imshow(
            beyond[name][order][:, order].numpy(),
            cmap="RdBu_r",
            vmin=-limit,
            vmax=limit,
            aspect="auto",
            interpolation="nearest",
            extent=(0.5, count + 0.5, count + 0.5, 0.5),
        )
        axes.set(xticks=[1, count], yticks=[1, count], xlabel="target")
        axes.set_title(short(name), parse_math=False, fontsize="medium")
    panels[0].set_ylabel("prediction")
    figure.supxlabel("from the least to the most accurate target", fontsize="small")
    figure.colorbar(
        image, ax=list(panels), fraction=0.046, pad=0.02, extend="both", label="agreement beyond the means, points"
    )
    return save_figure(figure, folder, f"{NAME}.png")


def _agreement_table(of_split: dict[str, dict[str, dict[str, Any]]]) -> Table:
    rows = []
    for split, name, one in [(split, *item) for split, found in of_split.items() for item in found.items()]:
        for kind, scale, digits, unit in (("agreement", 100, 2, "agreement, %"), ("kl", 1, 4, "KL divergence, nats")):
            measured = one[kind]
            means = (round(scale * measured[key], digits) for key in ("own", "others", "nearest_in_accuracy"))
            shares = (round(measured[key], 3) for key in ("own_preferred", "own_first", "paired", "paired_nearest"))
            rows.append((INSTANCES[split], name, unit, *means, *shares))
    columns = (
        *("instances", "architecture", "measure", "with its own target", "with others", "with the nearest in accuracy"),
        *("own is nearer than another", "own is the nearest", "paired rightly", "paired rightly, nearest in accuracy"),
    )
    return Table("A prediction and the targets of its class", columns, tuple(rows))


def _spread_table(found: dict[str, dict[str, Any]]) -> Table:
    rows = tuple(
        (
            name,
            round(100 * one["agreement_among_targets"], 2),
            round(100 * one["agreement_among_predicted"], 2),
            round(one["prep_distance_among_targets"], 4),
            round(one["prep_distance_among_predicted"], 4),
        )
        for name, one in found.items()
    )
    columns = (
        *("architecture", "agreement of two targets, %", "of two predictions, %"),
        *("distance of two targets' PReps", "of two predicted PReps"),
    )
    return Table("How different instances of an architecture are", columns, rows)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
