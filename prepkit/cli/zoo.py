"""`prepkit zoo`: make, describe, check, convert, merge and split zoos. `info` imports neither torch nor pyarrow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from prepkit.cli.common import (
    architecture_options,
    find_architecture,
    force_option,
    json_option,
    print_json,
    with_flags,
)
from prepkit.cli.models import Model, hub_bars
from prepkit.cli.zoo_text import description, facts, split_text, verification, verification_text, without_nan
from prepkit.progress import ProgressBar

if TYPE_CHECKING:
    from prepkit.address import HubAddress
    from prepkit.zoo.write.written import WrittenZoo

FORMATS = click.Choice(("safetensors", "hdf5"))
folder = click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")


@click.group()
def zoo() -> None:
    """Make, describe, check, convert, merge and split zoos: many networks as PReps, with a table of what they are."""


# Describing and checking --------------------------------------------------------------------------------------


@zoo.command()
@folder
@json_option
def info(folder: Path, as_json: bool) -> None:
    """Tell what a zoo's manifest says: architectures, splits, sizes, task, licence."""
    from prepkit.zoo.format.manifest import read_manifest

    manifest = read_manifest(folder)
    if as_json:
        print_json(facts(manifest))
    else:
        click.echo(description(manifest))


@zoo.command()
@folder
@click.option("--jobs", type=click.IntRange(min=1), help="Threads that read and hash. [default: up to 8]")
@click.option("--rerun", "reruns", type=click.IntRange(min=1), metavar="N", help="Also run N instances on test data.")
@click.option(
    "--data", type=click.Path(path_type=Path), metavar="PATH", help="With --rerun: folder of the task's data."
)
@json_option
def verify(folder: Path, jobs: int | None, reruns: int | None, data: Path | None, as_json: bool) -> None:
    """Compare every file with its sha256, and the table and all headers with the manifest.

    --rerun N also runs N instances on the test data of the zoo's task, if it is at hand, and compares the accuracy.
    Exit status 1 when a fault is found.
    """
    if data is not None and reruns is None:
        raise click.UsageError("--data goes with --rerun N.")
    from prepkit.zoo.change.verify import verify as verify_zoo

    with ProgressBar("verifying", "B", quiet=as_json) as bar:
        bar.begin(_bytes_in(folder))
        found = verify_zoo(folder, jobs=jobs, rerun=reruns or 0, data=data, progress=bar.advance)
    if as_json:
        print_json(verification(found))
    else:
        click.echo(verification_text(found))
    if not found.ok:
        click.get_current_context().exit(1)


# Making -------------------------------------------------------------------------------------------------------


@zoo.command()
@folder
@click.argument("models", nargs=-1, required=True, type=Model(), metavar="MODEL...")
@click.option("--table", "csv", type=click.Path(path_type=Path), help="CSV with a column `file`, and what to keep.")
@click.option("--width", default=512, show_default=True, help="Columns of the PReps, a multiple of 8.")
@click.option("--format", "format_", type=FORMATS, default="safetensors", show_default=True, help="Of the shards.")
@click.option("--name", help="Of the zoo. [default: the folder's]")
@click.option("--license", "license_", help="Of the zoo, an identifier such as mit or cc-by-4.0.")
@click.option(
    "--task", "task_file", type=click.Path(path_type=Path), help="JSON file: what the models were trained on."
)
@architecture_options
@click.option("--resume", is_flag=True, help="Go on with a zoo whose writing was interrupted.")
@json_option
def create(
    folder: Path,
    models: tuple[Path | HubAddress, ...],
    csv: Path | None,
    width: int,
    format_: str,
    name: str | None,
    license_: str | None,
    task_file: Path | None,
    architecture: str | None,
    input_shape: tuple[int, ...] | None,
    resume: bool,
    as_json: bool,
) -> None:
    """Make a zoo of checkpoints and PRep files; BatchNorm is folded.

    A MODEL may be one of the Hub, hf://user/model or hf://user/model@revision/file.safetensors; the column `source`
    then tells the commit of each.

    The column `file` of the CSV names models by file name, with or without suffix, or by address; the columns `id`
    and `split` are the zoo's, all others are kept with the instances, as whole numbers, numbers, booleans (true,
    false) or text. The column `source_sha256` is filled with the sum of each checkpoint.

    The task is a JSON object such as {"kind": "images", "dataset": "digits", "split": {"seed": 0, "test": 360}}.
    """
    from prepkit.api import create_zoo

    network = find_architecture(architecture, input_shape)
    with hub_bars(models, as_json), ProgressBar("adding", "model", quiet=as_json) as bar:
        bar.begin(len(models))
        written = create_zoo(
            folder,
            models,
            table=csv,
            width=width,
            format=format_,
            name=name,
            license=license_,
            task=task_file,
            architecture=network,
            resume=resume,
            progress=bar.advance,
        )
    _tell(written, as_json)


@zoo.command()
@click.argument("source", type=click.Path(path_type=Path), metavar="SRC")
@click.argument("target", type=click.Path(path_type=Path), metavar="DST")
@click.option("--format", "format_", type=FORMATS, required=True, help="Of the new zoo's shards.")
@json_option
def convert(source: Path, target: Path, format_: str, as_json: bool) -> None:
    """Write a zoo again with shards of another format, and prove that nothing was lost."""
    from prepkit.zoo.change.convert import convert as convert_zoo

    with ProgressBar("converting", "B", quiet=as_json) as bar:
        bar.begin(_bytes_in(source))
        written = convert_zoo(source, target, format_, progress=bar.advance)
    _tell(written, as_json)


@zoo.command()
@click.argument("target", type=click.Path(path_type=Path), metavar="DST")
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SRC SRC...")
@click.option("--name", help="Of the new zoo. [default: the folder's]")
@click.option("--license", "license_", help="Of the new zoo; needed where the licences differ.")
@click.option("--format", "format_", type=FORMATS, help="Of the shards. [default: the first zoo's]")
@click.option("--prefix", is_flag=True, help="Put each zoo's name before its ids and runs.")
@json_option
def merge(
    target: Path,
    sources: tuple[Path, ...],
    name: str | None,
    license_: str | None,
    format_: str | None,
    prefix: bool,
    as_json: bool,
) -> None:
    """Make one zoo of several; architectures are reconciled by name, and their ClassIds given anew."""
    from prepkit.zoo.change.merge import merge as merge_zoos

    with ProgressBar("merging", "B", quiet=as_json) as bar:
        bar.begin(sum(map(_bytes_in, sources)))
        written = merge_zoos(
            target, sources, name=name, license=license_, format=format_, prefix=prefix, progress=bar.advance
        )
    _tell(written, as_json)


@zoo.command()
@folder
@click.option("--train", default=0.8, show_default=True, help="Share of the instances for training.")
@click.option("--validation", default=0.1, show_default=True, help="Share for validation.")
@click.option("--test", default=0.1, show_default=True, help="Share for testing.")
@click.option("--seed", default=0, show_default=True, help="Another seed gives another split.")
@click.option("--group", help="Column whose values are kept together, or none. [default: run, if there is one]")
@json_option
def split(
    folder: Path, train: float, validation: float, test: float, seed: int, group: str | None, as_json: bool
) -> None:
    """Split a zoo anew: seeded, with the same shares of each architecture, instances of one run kept together."""
    from prepkit.zoo.change.splitting import split as split_zoo

    shares = {"train": train, "validation": validation, "test": test}
    found = split_zoo(folder, shares, seed=seed, group=False if group == "none" else group)
    if as_json:
        print_json({"zoo": str(folder), **vars(found), "notes": list(found.notes)})
        return
    _note(found.notes)
    click.echo(split_text(found))


@zoo.command()
@folder
@click.argument("id_", metavar="ID")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="MODEL.pt or MODEL.safetensors.")
@force_option
@json_option
def export(folder: Path, id_: str, output: Path, force: bool, as_json: bool) -> None:
    """Write one instance as a plain state dict that torch.load or safetensors reads without prepkit."""
    from prepkit.api import open_zoo

    opened = open_zoo(folder)
    tensors = opened.export(id_, output, overwrite=force)
    row = opened.metadata(opened.index(id_))
    if as_json:
        print_json({"output": str(output), "tensors": len(tensors), "metadata": without_nan(row)})
    else:
        click.echo(f"{folder} {id_} -> {output}: {row['architecture']}, {len(tensors)} tensors")


# Inside -------------------------------------------------------------------------------------------------------


def _bytes_in(folder: Path) -> int:
    """Sum the sizes of all files in a folder; 0 if there is none."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _note(notes: tuple[str, ...]) -> None:
    for note in notes:
        click.echo(f"note: {with_flags(note)}", err=True)


def _tell(written: WrittenZoo, as_json: bool) -> None:
    if as_json:
        print_json({"output": str(written.path), **facts(written.manifest), "notes": [*map(with_flags, written.notes)]})
        return
    _note(written.notes)
    click.echo(description(written.manifest))
