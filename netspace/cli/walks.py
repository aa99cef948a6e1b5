"""`netspace interpolate` and `optimize`: walks through a trained space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from netspace.cli.exploring import (
    RESULT,
    check_folder,
    data_option,
    figure,
    load_embeddings,
    new_folder,
    open_run,
    plain,
    refuse_unused,
    run_argument,
    seed_option,
    space_options,
    tell_notes,
    try_to_draw,
    working,
    write_json,
    zoo_option,
)
from prepkit.cli.common import force_option, json_option, print_json
from prepkit.text import table

if TYPE_CHECKING:
    from torch import Tensor

    from netspace.cli.exploring import Opened
    from netspace.explore.interpolation import Interpolation
    from netspace.explore.optimization import Optimisation
    from netspace.space.prediction import Prediction

FOLDER = click.Path(path_type=Path)


# interpolate ----------------------------------------------------------------------------------------------------


@click.command()
@run_argument
@click.argument("first", required=False)
@click.argument("second", required=False)
@zoo_option
@click.option("--steps", type=click.IntRange(2, 100_000), default=11, show_default=True, help="Points of a line.")
@click.option("--pairs", type=click.IntRange(min=1), help="Random pairs of a split instead; 8 if no ids are given.")
@click.option("--split", default="test", show_default=True, help="Of the zoo, where random pairs are drawn from.")
@click.option("--resolution", type=click.IntRange(min=2), default=64, show_default=True, help="Of meshes.")
@click.option("-o", "--output", type=FOLDER, metavar="DIR", help="Folder for table, picture, networks and meshes.")
@data_option
@seed_option("the pairs")
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
    as_json: bool,
) -> None:
    """Walk from instance FIRST to SECOND through the space, and from weight to weight beside it.

    \b
    netspace interpolate run resnet8-3 resnet8-7 --steps 11
    netspace interpolate run --pairs 16 -o line

    Random pairs of several architectures join the smallest and the largest one; of one architecture, they go from the
    worse instance to the better one. DIR gets table.csv, result.json, figure.png, embeddings.npy, and the networks
    (and meshes) along the first pair's line.
    """
    from netspace.data import task_of
    from netspace.explore.interpolation import interpolate as walk
    from netspace.explore.sampling import random_pairs
    from netspace.space.evaluation import target_accuracy

    if (first is None) != (second is None):
        raise click.UsageError("a line has two ends: give FIRST and SECOND, or neither.")
    if first is not None and pairs is not None:
        raise click.UsageError("give FIRST and SECOND, or --pairs, not both.")
    if first is not None:
        refuse_unused({"split": "is where random pairs are drawn from", "seed": "draws random pairs"})
    if output is None:
        refuse_unused({"resolution": "is of the meshes that --output gets"})
    else:
        check_folder(output, force=force)
    opened = open_run(run, zoo, kind, device)
    if opened.run.recipe.setting != "sdf":
        refuse_unused({"resolution": "is of meshes, which image classifiers have none of"})
    task = task_of(opened.zoo, opened.device, data)
    signals = opened.run.recipe.setting == "sdf"
    if first is not None and second is not None:
        ends = [first], [second]
    else:
        view, accuracies = opened.zoo.split(split), None
        if opened.run.recipe.setting == "single":
            accuracies = target_accuracy(opened.run.registry, view, task, "test")
        ends = random_pairs(opened.run, view, pairs or 8, seed=seed, accuracies=accuracies)
    lines = 1 if opened.run.recipe.has_classes and first is None else 2
    with working(lines * steps * len(ends[0]), "interpolating", "point", as_json) as advance:
        found = walk(opened.run, opened.zoo, *ends, steps, space=opened.space, task=task, progress=advance)
        document = {"run": str(run), "kind": kind, **plain(found.summary())}
        notes = [] if output is None else _write_line(found, opened, output, document, resolution, signals, force)
    if as_json:
        print_json({**document, "output": None if output is None else str(output), "notes": [*found.notes, *notes]})
        return
    tell_notes([*found.notes, *notes])
    click.echo(_line_text(found))
    if output is not None:
        click.echo(str(output))


def _line_text(found: Interpolation) -> str:
    """A row a step: mean and deviation of each line, and which architectures were predicted."""
    summary, names = found.summary(), list(found.registry.class_ids)
    header = ["gamma"]
    for line in summary["lines"]:
        header += [f"{line}: {found.value}", "+-"]
    class_ids = found.class_ids()
    rows = []
    for step, gamma in enumerate(found.gammas):
        row = [f"{gamma:.3f}"]
        for means in summary["lines"].values():
            row += [figure(means["mean"][step]), figure(means["deviation"][step])]
        counts = class_ids[:, step].bincount(minlength=len(names)).tolist()
        predicted = [f"{names[class_id]}" for class_id, count in enumerate(counts) if count]
        rows.append((*row, ", ".join(predicted)))
    return table(rows, (*header, "predicted architecture"))


def _write_line(
    found: Interpolation,
    opened: Opened,
    output: Path,
    document: dict[str, Any],
    resolution: int,
    signals: bool,
    force: bool,
) -> list[str]:
    """Write an interpolation's folder; returns notes on what is missing."""
    from netspace.explore.figures import interpolation_figure
    from prepkit.figures import save_figure

    notes = []
    with new_folder(output, force=force) as folder:
        _write_tables(folder, found.latents, table=found.table)
        notes += try_to_draw(lambda: save_figure(interpolation_figure(found), folder / "figure.png"), "figure.png")
        predicted = found.predicted(0)
        _write_networks(predicted, folder / "networks", "step")
        if signals:
            notes += try_to_draw(
                lambda: _write_meshes(found, opened, predicted, folder / "meshes", resolution), "meshes"
            )
        write_json(folder / RESULT, {**document, "notes": [*found.notes, *notes]})
    return notes


def _write_meshes(found: Interpolation, opened: Opened, predicted: Prediction, folder: Path, resolution: int) -> None:
    """The surfaces along the first pair's lines; none where there is no surface."""
    from netspace.explore.interpolation import distance_grids, weights_between
    from prepkit.tasks.distance_grid import surface, write_mesh

    folder.mkdir()
    lines: dict[str, tuple[Sequence[int], Tensor]] = {"embedding": (predicted.class_ids, predicted.preps)}
    if not found.notes:
        steps = [(0, step) for step in range(len(found.gammas))]
        ends = found.first, found.second
        lines["weights"] = weights_between(opened.zoo, *ends, steps, found.gammas, opened.device)
    for line, (class_ids, preps) in lines.items():
        for step in range(len(preps)):
            one = slice(step, step + 1)
            mesh = surface(distance_grids(found.registry, class_ids[one], preps[one], resolution)[0])
            if mesh is not None:
                write_mesh(mesh, folder / f"{line}-{step:03d}.obj")


# optimize -------------------------------------------------------------------------------------------------------


@click.command()
@run_argument
@click.argument("ids", nargs=-1, metavar="[ID]...")
@zoo_option
@click.option("--embedding", type=FOLDER, metavar="FILE.npy", help="Start from embeddings instead of instances.")
@click.option("--each", type=click.IntRange(min=1), default=4, show_default=True, help="Without ids: so many a class.")
@click.option("--split", default="test", show_default=True, help="Of the zoo, where those are drawn from.")
@click.option(
    "--class-id", type=click.IntRange(min=0), help="The class to stay in or go to; the start's own if missing."
)
@click.option(
    "--item", "items", multiple=True, type=int, help="For shapes: the one to fit; the start's own if missing."
)
@click.option("--steps", type=click.IntRange(min=1), default=300, show_default=True)
@click.option(
    "--learning-rate", type=float, default=1e-4, show_default=True, help="The paper's; small spaces want 1e-2."
)
@click.option("--validate-every", type=click.IntRange(min=1), default=25, show_default=True, metavar="STEPS")
@click.option(
    "--noise", type=float, default=0.0, show_default=True, help="Disturb the start by this share of its length."
)
@click.option("--batch", type=click.IntRange(min=1), help="Samples a step; the recipe's if missing.")
@click.option("-o", "--output", type=FOLDER, metavar="DIR", help="Folder for tables, picture and networks.")
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
    learning_rate: float,
    validate_every: int,
    noise: float,
    batch: int | None,
    output: Path | None,
    data: Path | None,
    seed: int,
    kind: str,
    device: str,
    force: bool,
    as_json: bool,
) -> None:
    """Move embeddings to where better networks are (latent space optimisation), many start points at once.

    \b
    netspace optimize run resnet8-3 --learning-rate 1e-2 --steps 150 -o better
    netspace optimize run --each 4 --noise 0.5 -o better

    The best instance on the validation samples is kept; accuracy is told on the test samples. DIR gets table.csv,
    history.csv, result.json, figure.png, embeddings.npy and the networks.
    """
    from netspace.data import task_of
    from netspace.explore.figures import optimisation_figure
    from netspace.explore.optimization import POINTS_AT_ONCE
    from netspace.explore.optimization import optimize as search
    from netspace.explore.sampling import random_instances
    from prepkit.figures import save_figure

    if ids and embedding is not None:
        raise click.UsageError("start from ids or from --embedding, not both.")
    if ids or embedding is not None:
        refuse_unused({"split": "is where instances are drawn from", "each": "is how many are drawn"})
    if output is not None:
        check_folder(output, force=force)
    opened = open_run(run, zoo, kind, device)
    start: Any = list(ids) or random_instances(opened.zoo.split(split), each, seed)
    if embedding is not None:
        start = load_embeddings(embedding, opened.space.embedding_size)
    task = task_of(opened.zoo, opened.device, data)
    groups = -(-len(start) // POINTS_AT_ONCE)
    notes: list[str] = []
    with working(groups * steps, "optimising", "step", as_json) as advance:
        found = search(
            opened.run,
            opened.zoo,
            start,
            steps=steps,
            learning_rate=learning_rate,
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
        notes += found.notes
        document = {
            "run": str(run),
            "kind": kind,
            "steps": steps,
            "learning_rate": learning_rate,
            "noise": noise,
            "seed": seed,
            "by_architecture": plain(found.summary()),
            "start_points": plain(found.table.to_pylist()),
        }
        if output is not None:
            with new_folder(output, force=force) as folder:
                _write_tables(folder, found.latents, table=found.table, history=found.history)
                panels = {f"{len(found.latents)} start points": found}
                notes += try_to_draw(
                    lambda: save_figure(optimisation_figure(panels), folder / "figure.png"), "figure.png"
                )
                _write_networks(found.predicted, folder / "networks", "start")
                write_json(folder / RESULT, {**document, "notes": notes})
    if as_json:
        print_json({**document, "output": None if output is None else str(output), "notes": notes})
        return
    tell_notes(notes)
    click.echo(_optimised_text(found))
    if output is not None:
        click.echo(str(output))


def _optimised_text(found: Optimisation) -> str:
    rows = [
        (
            row["start"],
            row["architecture"],
            row["best_step"],
            *(figure(row[name]) for name in ("initial_validation_accuracy", "validation_accuracy")),
            *(figure(row[name]) for name in ("initial_accuracy", "accuracy")),
        )
        for row in found.table.to_pylist()
    ]
    return table(rows, ("start", "architecture", "best step", "validation before", "after", "test before", "after"))


# What they write ------------------------------------------------------------------------------------------------


def _write_tables(folder: Path, latents: Any, **tables: Any) -> None:
    import numpy as np

    from netspace.explore.embedding import write_table

    for name, one in tables.items():
        write_table(one, folder / f"{name}.csv")
    np.save(folder / "embeddings.npy", latents.cpu().numpy())


def _write_networks(predicted: Prediction, folder: Path, what: str) -> None:
    import prepkit

    folder.mkdir()
    for number in range(len(predicted)):
        name = predicted.architecture(number).name
        prepkit.save_state_dict(predicted.tensors(number), folder / f"{what}-{number:03d}-{name}.pt")
