"""`netspace evaluate`, `embed` and `decode`; the walks through a space stand in walks.py."""

from __future__ import annotations

from pathlib import Path

import click

from netspace.cli.common import (
    PATH,
    ZOO_PLACE,
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
from netspace.cli.walks import interpolate, optimize
from prepkit.cli.common import force_option
from prepkit.cli.examples import examples
from prepkit.cli.output import Output, json_option
from prepkit.errors import counted, listed
from prepkit.support.json_values import json_value
from prepkit.support.text import table

EVALUATED = {
    "target_accuracy": "target",
    "predicted_accuracy": "predicted",
    "mean_difference": "difference",
    "class_id_accuracy": "ClassId",
    "closeness": "within 1e-2",
    "closeness_near": "near surface",
}


@click.command(
    epilog=examples("netspace evaluate run", "netspace evaluate run --zoo hf://user/zoo --split validation --json")
)
@run_argument
@zoo_option
@click.option("--split", default="test", show_default=True, help="Split of the zoo's instances.")
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
    out: Output,
) -> None:
    """Compare the instances of a split with the predicted ones.

    Writes evaluation-SPLIT.csv (one row an instance) and .json (the means) into the run, and a picture into its
    figures; a run on the Hub stays as it is.
    """
    from netspace.data import task_of
    from netspace.explore.figures import evaluation_figure
    from netspace.explore.sampling import check_samples
    from netspace.space.evaluation import evaluate as evaluate_space
    from prepkit.figures import save_figure
    from prepkit.support.files import write_json
    from prepkit.support.table_files import write_table

    opened = open_run(run, zoo, kind, device)
    view = opened.zoo.split(split)
    task = task_of(opened.zoo, opened.device, data)
    check_samples(task, samples)
    with working(len(view), "evaluating", "instance", out) as advance:
        evaluation = evaluate_space(opened.space, opened.run.registry, view, task, samples, progress=advance)
    document = {"run": str(run), "kind": kind, "split": split, "samples": samples, **json_value(evaluation.summary())}
    table_path, notes = None, []
    if isinstance(run, Path):
        name = f"evaluation-{split}" + ("" if samples == "test" else f"-on-{samples}")
        name += "" if kind == "best" else f"-{kind}"
        table_path, picture = run / f"{name}.csv", run / "figures" / f"{name}.png"
        write_table(evaluation.table, table_path, overwrite=True)
        write_json(run / f"{name}.json", document)
        picture.parent.mkdir(exist_ok=True)
        notes = try_to_draw(lambda: save_figure(evaluation_figure(evaluation), picture, overwrite=True), "picture")
    columns = [name for name in EVALUATED if name in document]
    groups = [*document["by_architecture"].items(), ("all", document)]
    rows = [(group, means["instances"], *(share(means[name]) for name in columns)) for group, means in groups]
    text = table(rows, ("architecture", "instances", *(EVALUATED[name] for name in columns)))
    print_written(out, document, text, notes, table_path, "table")


@click.command(
    epilog=examples("netspace embed run zoo", "netspace embed run zoo --split test -o embeddings.csv --force")
)
@run_argument
@click.argument("zoo", type=ZOO_PLACE, metavar="ZOO")
@click.option("--split", help="Split of the zoo's instances. [default: all instances]")
@click.option(
    "-o",
    "--output",
    type=PATH,
    metavar="FILE",
    default=Path("embeddings.parquet"),
    show_default=True,
    help=".parquet, .csv or .npz.",
)
@space_options
@force_option
@json_option
def embed(
    run: Path | str,
    zoo: Path | str,
    split: str | None,
    output: Path,
    kind: str,
    device: str,
    force: bool,
    out: Output,
) -> None:
    """Write the embeddings of a zoo's instances as a table.

    The table is that of ZOO with a column `embedding`. ZOO may be another one than the run was trained on.
    """
    from netspace.explore.embedding import embed as embed_zoo
    from prepkit.support.table_files import check_table_path, write_table

    check_table_path(output, overwrite=force)
    opened = open_run(run, zoo, kind, device, any_zoo=True)
    view = opened.zoo if split is None else opened.zoo.split(split)
    with working(len(view), "embedding", "instance", out) as advance:
        embeddings = embed_zoo(opened.run, view, space=opened.space, progress=advance)
        write_table(embeddings, output, overwrite=force)
    strange = sorted(set(view.table["architecture"].to_pylist()) - set(opened.run.registry.class_ids))
    if strange:
        out.notes([f"the space was trained without {listed(strange)}, so that their embeddings may say nothing."])
    size = opened.space.embedding_size
    out.result(
        {"output": str(output), "instances": len(embeddings), "embedding_size": size},
        f"{output}: {counted(len(embeddings), 'instance')}, embeddings of {size:,} values",
    )


@click.command(
    epilog=examples(
        "netspace decode run --class-id 1 -o vanilla_cnn.pt",
        "netspace decode run --embedding line/embeddings.npy --row 5 -o model.safetensors",
    )
)
@run_argument
@zoo_option
@click.option("--id", "id", help="Decode the embedding of this instance of the zoo.")
@click.option("--embedding", type=PATH, metavar="FILE.npy", help="Decode an embedding of a file.")
@click.option("--row", type=click.IntRange(min=0), default=0, show_default=True, help="Row of FILE.npy.")
@click.option(
    "--class-id", type=click.IntRange(min=0), help="Sample an instance of this class, also one never trained on."
)
@click.option("--gamma", type=click.FloatRange(0, 1), help="Sample between the smallest and the largest architecture.")
@click.option("-o", "--output", required=True, type=PATH, metavar="FILE", help="model.pt or model.safetensors.")
@seed_option("drawing the ends for --class-id and --gamma")
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
    out: Output,
) -> None:
    """Write one predicted network as a plain state dict.

    --id, --embedding, --class-id or --gamma says which; torch.load or safetensors reads it without this package.

    """
    import torch

    import prepkit
    from netspace.explore.sampling import PointError, points_of, sample, sample_class_id
    from netspace.space.prediction import predict
    from prepkit.checkpoint.export import writer_for
    from prepkit.support.files import check_writable

    if sum(choice is not None for choice in (id, embedding, class_id, gamma)) != 1:
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
                held, last = counted(len(latents), "embedding"), len(latents) - 1
                raise PointError(f"{embedding} holds {held}; --row {row} is past the last, {last}.")
            latents = latents[row : row + 1]
        else:
            latents = points_of(opened.space, opened.zoo, id or "").latents
        with torch.no_grad():
            predicted = predict(opened.space, latents, opened.run.registry)
    prepkit.save_state_dict(predicted.tensors(0), output, overwrite=force)
    architecture = predicted.architecture(0)
    facts = {"architecture": architecture.name, "class_id": predicted.class_ids[0], "between": ends, "gamma": gamma}
    between = f", at gamma {gamma:g} between {ends[0]} and {ends[1]}" if ends else ""
    text = f"{output}: {architecture.name}, {architecture.num_parameters:,} parameters{between}"
    out.result({"output": str(output), **facts}, text)


COMMANDS: tuple[click.Command, ...] = (evaluate, embed, interpolate, optimize, decode)
