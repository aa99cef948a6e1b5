"""`netspace interpolate` and `optimize`: walks through a trained space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from netspace.cli.common import (
    PATH,
    RESULT,
    data_option,
    load_embeddings,
    open_run,
    print_written,
    refuse_unused,
    run_argument,
    seed_option,
    share,
    space_options,
    try_to_draw,
    working,
    zoo_option,
)
from prepkit.cli.common import force_option
from prepkit.cli.completion import zoo_ids
from prepkit.cli.examples import examples
from prepkit.cli.output import Output, json_option
from prepkit.support.json_values import json_value
from prepkit.support.text import table

if TYPE_CHECKING:
    from torch import Tensor

    from netspace.cli.common import Opened
    from netspace.explore.interpolation import Interpolation
    from netspace.explore.optimization import Optimisation
    from netspace.space.prediction import Prediction

PAIRS = 8  # drawn where the user names neither pairs nor their number


@click.command(
    epilog=examples(
        "netspace interpolate run resnet8-3 resnet8-7 --steps 11", "netspace interpolate run --pairs 16 -o line"
    )
)
@run_argument
@click.argument("first", required=False, shell_complete=zoo_ids)
@click.argument("second", required=False, shell_complete=zoo_ids)
@zoo_option
@click.option(
    "--steps", type=click.IntRange(2, 100_000), default=11, show_default=True, help="Number of points along each line."
)
@click.option(
    "--pairs",
    type=click.IntRange(min=1),
    help=f"Number of random pairs, in place of FIRST and SECOND. [default: {PAIRS}, or all]",
)
@click.option("--split", default="test", show_default=True, help="Split of the zoo that random pairs are drawn from.")
@click.option(
    "--resolution", type=click.IntRange(min=2), default=64, show_default=True, help="Grid points an axis for meshes."
)
@click.option("-o", "--output", type=PATH, metavar="DIR", help="Folder for table, picture, networks and meshes.")
@data_option
@seed_option("drawing pairs")
@space_options
@force_option
@json_option
def interpolate(
    run: Path | str,
    first: str | None,
    second: str | None,
    zoo: Path | str | None,
    steps: int,
    pairs: int | None,
    split: str,
    resolution: int,
    output: Path | None,
    data: Path | None,
    seed: int,
    kind: str,
    device: str,
    force: bool,
    out: Output,
) -> None:
    """Walk between instances, along embeddings and along weights.

    With several architectures, random pairs join the smallest and the largest one; with one architecture, they go from
    the worse instance to the better one. DIR gets table.csv, result.json, figure.png, embeddings.npy, and the networks
    (and meshes) along the first pair's line.
    """
    from netspace.data import task_of
    from netspace.explore.interpolation import interpolate as interpolate_space
    from netspace.explore.sampling import num_pairs, random_pairs
    from prepkit.support.files import check_folder_writable
    from prepkit.zoo.read.accuracy import zoo_accuracies

    if (first is None) != (second is None):
        raise click.UsageError("a line has two ends: give FIRST and SECOND, or neither.")
    if first is not None and pairs is not None:
        raise click.UsageError("give FIRST and SECOND, or --pairs, not both.")
    if first is not None:
        refuse_unused({"split": "is where random pairs are drawn from", "seed": "draws random pairs"})
    if output is None:
        refuse_unused({"resolution": "is of the meshes that --output gets"})
    else:
        check_folder_writable(output, mark=RESULT, overwrite=force)
    opened = open_run(run, zoo, kind, device)
    signals = opened.run.recipe.setting == "sdf"
    if not signals:
        refuse_unused({"resolution": "is of meshes, which image classifiers have none of"})
    task = task_of(opened.zoo, opened.device, data)
    if first is not None and second is not None:
        ends = [first], [second]
    else:
        view, accuracies = opened.zoo.split(split), None
        if opened.run.recipe.setting == "single":
            accuracies = zoo_accuracies(view, task, "test")
        count = min(PAIRS, num_pairs(opened.run, view)) if pairs is None else pairs
        ends = random_pairs(opened.run, view, count, seed=seed, accuracies=accuracies)
    lines = 1 if opened.run.recipe.has_classes and first is None else 2
    with working(lines * steps * len(ends[0]), "interpolating", "point", out) as advance:
        walk = interpolate_space(opened.run, opened.zoo, *ends, steps, space=opened.space, task=task, progress=advance)
        document = {"run": str(run), "kind": kind, **json_value(walk.summary())}
        notes = list(walk.notes)
        if output is not None:
            notes += _write_lines(walk, opened, output, document, resolution if signals else None, force)
    print_written(out, document, _lines_text(walk), notes, output)


def _lines_text(walk: Interpolation) -> str:
    """A table with a row for each step: mean and deviation of each line, and the predicted architectures."""
    lines, names = walk.summary()["lines"], list(walk.registry.class_ids)
    header = ["gamma"]
    for line in lines:
        header += [f"{line}: {walk.value}", "+-"]
    class_ids = walk.class_ids()
    rows = []
    for step, gamma in enumerate(walk.gammas):
        row = [f"{gamma:.3f}"]
        for means in lines.values():
            row += [share(means["mean"][step]), share(means["deviation"][step])]
        counts = class_ids[:, step].bincount(minlength=len(names)).tolist()
        rows.append((*row, ", ".join(name for name, count in zip(names, counts, strict=True) if count)))
    return table(rows, (*header, "predicted architecture"))


def _write_lines(
    walk: Interpolation, opened: Opened, output: Path, document: dict[str, Any], resolution: int | None, force: bool
) -> list[str]:
    """Write an interpolation's folder, with meshes if there is a resolution; returns notes on what is missing."""
    from netspace.explore.figures import interpolation_figure
    from prepkit.figures import save_figure
    from prepkit.support.files import replacing_folder, write_json

    notes = []
    with replacing_folder(output, mark=RESULT, overwrite=force) as folder:
        _write_tables(folder, walk.latents, table=walk.table)
        notes += try_to_draw(lambda: save_figure(interpolation_figure(walk), folder / "figure.png"), "figure.png")
        predicted = walk.predicted(0)
        _write_networks(predicted, folder / "networks", "step")
        if resolution is not None:
            meshes = folder / "meshes"
            notes += try_to_draw(lambda: _write_meshes(walk, opened, predicted, meshes, resolution), "meshes")
        write_json(folder / RESULT, {**document, "notes": [*walk.notes, *notes]})
    return notes


def _write_meshes(walk: Interpolation, opened: Opened, predicted: Prediction, folder: Path, resolution: int) -> None:
    """Write the surfaces along the first pair's lines, where there are any."""
    from netspace.explore.interpolation import weights_between
    from prepkit.running.groups import distance_grids
    from prepkit.tasks.distance_grid import surface, write_mesh

    folder.mkdir()
    lines: dict[str, tuple[Sequence[int], Tensor]] = {"embedding": (predicted.class_ids, predicted.preps)}
    if not walk.notes:
        steps = [(0, step) for step in range(len(walk.gammas))]
        ends = walk.first, walk.second
        lines["weights"] = weights_between(opened.space, opened.zoo, *ends, steps, walk.gammas, opened.device)
    for line, (class_ids, preps) in lines.items():
        for step in range(len(preps)):
            only = slice(step, step + 1)
            mesh = surface(distance_grids(walk.registry, class_ids[only], preps[only], resolution)[0])
            if mesh is not None:
                write_mesh(mesh, folder / f"{line}-{step:03d}.obj")


@click.command(
    epilog=examples(
        "netspace optimize run resnet8-3 -o better",
        "netspace optimize run --each 4 --noise 0.5 --patience 20 -o better",
    )
)
@run_argument
@click.argument("ids", nargs=-1, metavar="[ID]...", shell_complete=zoo_ids)
@zoo_option
@click.option("--embedding", type=PATH, metavar="FILE.npy", help="Start from embeddings instead of instances.")
@click.option(
    "--each",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Without ids: number of random instances of each class.",
)
@click.option("--split", default="test", show_default=True, help="Without ids: split of the zoo to draw from.")
@click.option("--class-id", type=click.IntRange(min=0), help="Class to stay in or go to. [default: the start's own]")
@click.option(
    "--item",
    "items",
    multiple=True,
    type=int,
    help="Number of the shape to fit. [default: the start's own]",
)
@click.option(
    "--steps", type=click.IntRange(min=1), default=10_000, show_default=True, help="Number of steps, at most."
)
@click.option(
    "--patience",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    metavar="VALIDATIONS",
    help="Stop a start point after so many validations without a better accuracy.",
)
@click.option("--learning-rate", type=float, help="Step size. [default: the recipe's]")
@click.option(
    "--alpha",
    type=float,
    help="Share of the teacher in Eq. 5; 1 is the divergence alone. [default: the recipe's]",
)
@click.option(
    "--validate-every",
    type=click.IntRange(min=1),
    default=25,
    show_default=True,
    metavar="STEPS",
    help="Steps between two validations.",
)
@click.option(
    "--noise", type=float, default=0.0, show_default=True, help="Disturb each start by this share of its length."
)
@click.option("--batch", type=click.IntRange(min=1), help="Samples per step. [default: the recipe's]")
@click.option("-o", "--output", type=PATH, metavar="DIR", help="Folder for tables, picture and networks.")
@data_option
@seed_option("start points, disturbance and samples")
@space_options
@force_option
@json_option
def optimize(
    run: Path | str,
    ids: tuple[str, ...],
    zoo: Path | str | None,
    embedding: Path | None,
    each: int,
    split: str,
    class_id: int | None,
    items: tuple[int, ...],
    steps: int,
    patience: int,
    learning_rate: float | None,
    alpha: float | None,
    validate_every: int,
    noise: float,
    batch: int | None,
    output: Path | None,
    data: Path | None,
    seed: int,
    kind: str,
    device: str,
    force: bool,
    out: Output,
) -> None:
    """Move embeddings to where better networks are.

    This is latent space optimisation. Many start points move at once, each until its accuracy on the validation samples
    does not improve any more. The best instance is kept, and its accuracy on the test samples is printed. DIR gets
    table.csv, history.csv, result.json, figure.png, embeddings.npy and the networks.
    """
    from netspace.data import task_of
    from netspace.explore.figures import optimisation_figure
    from netspace.explore.optimization import optimize as optimize_embeddings
    from netspace.explore.sampling import random_instances
    from prepkit.figures import save_figure
    from prepkit.support.files import check_folder_writable, replacing_folder, write_json

    if ids and embedding is not None:
        raise click.UsageError("start from ids or from --embedding, not both.")
    if ids or embedding is not None:
        refuse_unused({"split": "is where instances are drawn from", "each": "is how many are drawn"})
    if output is not None:
        check_folder_writable(output, mark=RESULT, overwrite=force)
    opened = open_run(run, zoo, kind, device)
    start: Any = list(ids) or random_instances(opened.zoo.split(split), each, seed)
    if embedding is not None:
        start = load_embeddings(embedding, opened.space.embedding_size)
    task = task_of(opened.zoo, opened.device, data)
    latent = opened.run.recipe.latent
    with working(0, "optimising", "step", out) as advance:  # nobody knows when the points will stop
        optimisation = optimize_embeddings(
            opened.run,
            opened.zoo,
            start,
            steps=steps,
            patience=patience,
            learning_rate=learning_rate,
            alpha=alpha,
            validate_every=validate_every,
            class_ids=class_id,
            items=items or None,
            noise=noise,
            batch_size=batch,
            seed=seed,
            space=opened.space,
            task=task,
            progress=advance,
        )
        notes = list(optimisation.notes)
        document = {
            "run": str(run),
            "kind": kind,
            "steps": steps,
            "patience": patience,
            "learning_rate": latent.learning_rate if learning_rate is None else learning_rate,
            "noise": noise,
            "seed": seed,
            "by_architecture": json_value(optimisation.summary()),
            "start_points": json_value(optimisation.table.to_pylist()),
        }
        if output is not None:
            with replacing_folder(output, mark=RESULT, overwrite=force) as folder:
                _write_tables(folder, optimisation.latents, table=optimisation.table, history=optimisation.history)
                panels, picture = {"": optimisation}, folder / "figure.png"
                notes += try_to_draw(lambda: save_figure(optimisation_figure(panels), picture), "figure.png")
                _write_networks(optimisation.predicted, folder / "networks", "start")
                write_json(folder / RESULT, {**document, "notes": notes})
    print_written(out, document, _optimised_text(optimisation), notes, output)


def _optimised_text(optimisation: Optimisation) -> str:
    measures = ("initial_validation_accuracy", "validation_accuracy", "initial_accuracy", "accuracy")
    rows = []
    for row in optimisation.table.to_pylist():
        name, at_first = row["architecture"], row["initial_architecture"]
        name = name if name == at_first else f"{name} (at first {at_first})"
        rows.append((row["start"], name, row["best_step"], row["last_step"], *(share(row[key]) for key in measures)))
    header = ("start", "architecture", "best step", "last step", "validation before", "after", "test before", "after")
    return table(rows, header)


def _write_tables(folder: Path, latents: Tensor, **tables: Any) -> None:
    import numpy as np

    from prepkit.support.table_files import write_table

    for name, rows in tables.items():
        write_table(rows, folder / f"{name}.csv")
    np.save(folder / "embeddings.npy", latents.cpu().numpy())


def _write_networks(predicted: Prediction, folder: Path, prefix: str) -> None:
    import prepkit

    folder.mkdir()
    for number in range(len(predicted)):
        name = predicted.architecture(number).name
        prepkit.save_state_dict(predicted.tensors(number), folder / f"{prefix}-{number:03d}-{name}.pt")
