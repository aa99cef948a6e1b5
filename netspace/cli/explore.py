"""`netspace evaluate`, `embed` and `decode`, beside the walks: what a trained space is for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from netspace.cli.exploring import (
    PLACE,
    data_option,
    figure,
    load_embeddings,
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
from netspace.cli.walks import interpolate, optimize
from prepkit.cli.common import force_option, json_option, print_json
from prepkit.text import table

if TYPE_CHECKING:
    from netspace.cli.exploring import Opened
    from netspace.space.prediction import Prediction

FOLDER = click.Path(path_type=Path)


# evaluate -------------------------------------------------------------------------------------------------------


@click.command()
@run_argument
@zoo_option
@click.option("--split", default="test", show_default=True, help="Of the zoo's instances.")
@click.option("--samples", default="test", show_default=True, help="Split of the task's samples to judge them on.")
@data_option
@space_options
@json_option
def evaluate(
    run: Path | str,
    zoo: Path | str | None,
    split: str,
    samples: str,
    data: Path | None,
    kind: str,
    device: str,
    as_json: bool,
) -> None:
    """Compare the instances of a split with the ones that the space predicts for them.

    Writes evaluation-SPLIT.csv (one row an instance) and .json (the means) into the run, and a picture into its
    figures; nothing into one on the Hub.
    """
    from netspace.data import task_of
    from netspace.explore.embedding import write_table
    from netspace.explore.figures import evaluation_figure
    from netspace.explore.sampling import samples_of
    from netspace.space.evaluation import evaluate as judge
    from prepkit.figures import save_figure
    from prepkit.files import replacing

    opened = open_run(run, zoo, kind, device)
    chosen = opened.zoo.split(split)
    task = task_of(opened.zoo, opened.device, data)
    samples_of(task, samples)
    with working(len(chosen), "evaluating", "instance", as_json) as advance:
        found = judge(opened.space, opened.run.registry, chosen, task, samples, progress=advance)
    document = {"run": str(run), "kind": kind, "split": split, "samples": samples, **plain(found.summary())}
    table_path, notes = None, []
    if isinstance(run, Path):
        name = f"evaluation-{split}" + ("" if samples == "test" else f"-on-{samples}")
        name += "" if kind == "best" else f"-{kind}"
        table_path, figures = run / f"{name}.csv", run / "figures"
        write_table(found.table, table_path, overwrite=True)
        with replacing(run / f"{name}.json", overwrite=True) as temporary:
            write_json(temporary, document)
        figures.mkdir(exist_ok=True)
        picture = figures / f"{name}.png"
        notes = try_to_draw(lambda: save_figure(evaluation_figure(found), picture, overwrite=True), "picture")
    if as_json:
        print_json({**document, "table": None if table_path is None else str(table_path), "notes": notes})
        return
    tell_notes(notes)
    rows, wanted = [], [name for name in EVALUATED if name in document]
    for group, means in [*document["by_architecture"].items(), ("all", document)]:
        rows.append((group, means["instances"], *(figure(means[column]) for column in wanted)))
    click.echo(table(rows, ("architecture", "instances", *(EVALUATED[column] for column in wanted))))
    if table_path is not None:
        click.echo(str(table_path))


EVALUATED = {
    "target_accuracy": "target",
    "predicted_accuracy": "predicted",
    "mean_difference": "difference",
    "class_id_accuracy": "ClassId",
    "closeness": "within 1e-2",
    "closeness_near": "near surface",
}


# embed ----------------------------------------------------------------------------------------------------------


@click.command()
@run_argument
@click.argument("zoo", type=PLACE, metavar="ZOO")
@click.option("--split", help="Of the zoo's instances; all if missing.")
@click.option(
    "-o", "--output", type=FOLDER, metavar="FILE", help=".parquet, .csv or .npz; embeddings.parquet if missing."
)
@space_options
@force_option
@json_option
def embed(
    run: Path | str,
    zoo: Path | str,
    split: str | None,
    output: Path | None,
    kind: str,
    device: str,
    force: bool,
    as_json: bool,
) -> None:
    """Write where the instances of ZOO stand: its table with a column `embedding`.

    ZOO may be another one than the run was trained on.
    """
    from netspace.explore.embedding import check_table_path, write_table
    from netspace.explore.embedding import embed as table_of

    target = output or Path("embeddings.parquet")
    check_table_path(target, overwrite=force)
    opened = open_run(run, zoo, kind, device, any_zoo=True)
    chosen = opened.zoo if split is None else opened.zoo.split(split)
    with working(len(chosen), "embedding", "instance", as_json) as advance:
        found = table_of(opened.run, chosen, space=opened.space, progress=advance)
        write_table(found, target, overwrite=force)
    size = opened.space.embedding_size
    if as_json:
        print_json({"output": str(target), "instances": len(found), "embedding_size": size})
        return
    click.echo(f"{target}: {len(found):,} instances, embeddings of {size:,} values")


# decode ---------------------------------------------------------------------------------------------------------


@click.command()
@run_argument
@zoo_option
@click.option("--id", "id", help="The instance that is predicted for this one of the zoo.")
@click.option("--embedding", type=FOLDER, metavar="FILE.npy", help="The instance at an embedding.")
@click.option("--row", type=click.IntRange(min=0), default=0, show_default=True, help="Of the embeddings in FILE.npy.")
@click.option("--class-id", type=click.IntRange(min=0), help="One of this class, also one that was never trained on.")
@click.option(
    "--gamma", type=click.FloatRange(0, 1), help="One from between the smallest and the largest architecture."
)
@click.option("-o", "--output", required=True, type=FOLDER, metavar="FILE", help="model.pt or .safetensors")
@seed_option("the pair of instances that --class-id and --gamma go between")
@space_options
@force_option
@json_option
def decode(
    run: Path | str,
    zoo: Path | str | None,
    id: str | None,
    embedding: Path | None,
    row: int,
    class_id: int | None,
    gamma: float | None,
    output: Path,
    seed: int,
    kind: str,
    device: str,
    force: bool,
    as_json: bool,
) -> None:
    """Write one predicted network as a plain state dict, which PyTorch reads without this package.

    \b
    netspace decode run --class-id 1 -o vanilla_cnn.pt
    netspace decode run --embedding line/embeddings.npy --row 5 -o model.safetensors
    """
    import prepkit
    from netspace.explore.sampling import PointError, points_of, sample, sample_class_id
    from prepkit.checkpoint.export import writer_for
    from prepkit.files import check_writable

    if sum(one is not None for one in (id, embedding, class_id, gamma)) != 1:
        raise click.UsageError("say what to decode: one of --id, --embedding, --class-id or --gamma.")
    if embedding is None:
        refuse_unused({"row": "is one of --embedding's"})
    if class_id is None and gamma is None:
        refuse_unused({"seed": "draws the ends for --class-id and --gamma"})
    writer_for(output)
    check_writable(output, overwrite=force)
    opened = open_run(run, zoo, kind, device)
    ends: list[str] = []
    if class_id is not None or gamma is not None:
        if class_id is not None:
            drawn = sample_class_id(opened.run, opened.zoo, class_id, seed=seed, space=opened.space)
        else:
            drawn = sample(opened.run, opened.zoo, (gamma or 0.0,), seed=seed, space=opened.space)
        predicted, gamma = drawn.predicted, drawn.gammas[0]
        ends = [drawn.first[0], drawn.second[0]]
    else:
        if embedding is not None:
            latents = load_embeddings(embedding, opened.space.embedding_size).to(opened.device)
            if row >= len(latents):
                last = len(latents) - 1
                raise PointError(f"{embedding} holds {last + 1} embeddings; --row {row} is past the last, {last}.")
            latents = latents[row : row + 1]
        else:
            latents = points_of(opened.space, opened.zoo, id or "").latents
        predicted = predict_at(opened, latents)
    prepkit.save_state_dict(predicted.tensors(0), output, overwrite=force)
    architecture = predicted.architecture(0)
    if as_json:
        facts = {"architecture": architecture.name, "class_id": predicted.class_ids[0]}
        print_json({"output": str(output), **facts, "between": ends, "gamma": gamma})
        return
    between = f", at gamma {gamma:g} between {ends[0]} and {ends[1]}" if ends else ""
    click.echo(f"{output}: {architecture.name}, {architecture.num_parameters:,} parameters{between}")


def predict_at(opened: Opened, latents: Any) -> Prediction:
    """The instances at embeddings."""
    import torch

    from netspace.space.prediction import predict

    with torch.no_grad():
        return predict(opened.space, latents, opened.run.registry)


COMMANDS: tuple[click.Command, ...] = (evaluate, embed, interpolate, optimize, decode)
