"""`prepkit zoo`: make, describe, check and change zoos. `info` imports neither torch nor pyarrow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from prepkit.cli.common import force_option
from prepkit.cli.completion import zoo_ids
from prepkit.cli.examples import examples
from prepkit.cli.models import ZooPlace
from prepkit.cli.output import Output, json_option
from prepkit.cli.zoo_progress import appending_note, progress_document, progress_in, progress_text
from prepkit.cli.zoo_text import (
    cleaning_document,
    cleaning_text,
    description,
    facts,
    print_written,
    split_text,
    verification,
    verification_text,
)
from prepkit.errors import counted
from prepkit.support.json_values import json_value
from prepkit.zoo.format.counts import num_bytes_of

if TYPE_CHECKING:
    from prepkit.address import HubAddress, UrlAddress
    from prepkit.zoo.format.manifest import Manifest


FORMATS = click.Choice(("safetensors", "hdf5"))
folder = click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
folder_or_address = click.argument("folder", type=ZooPlace(), metavar="DIR")


@click.group(
    epilog=examples(
        "prepkit zoo create my-zoo runs/ --license cc-by-4.0",
        "prepkit zoo info my-zoo",
        "prepkit zoo audit my-zoo -o audit.html",
    )
)
def zoo() -> None:
    """Make, describe, check and change zoos.

    A zoo is a folder of many networks as PReps, with a table that says what each of them is.
    """


# Describing and checking --------------------------------------------------------------------------------------


@zoo.command(epilog=examples("prepkit zoo info my-zoo --columns", "prepkit zoo info hf://user/zoo --splits --json"))
@folder_or_address
@click.option("--columns", "with_columns", is_flag=True, help="Also list the table's columns and their types.")
@click.option("--splits", "with_sums", is_flag=True, help="Also show the sha256 of each split's ids.")
@json_option
def info(folder: Path | HubAddress | UrlAddress, with_columns: bool, with_sums: bool, out: Output) -> None:
    """Describe a zoo: networks, splits, size, task, licence.

    DIR may be an address on the Hub, hf://user/zoo or hf://user/zoo@revision, or in a store that fsspec reads, such as
    s3://bucket/zoo or https://host/zoo. Then only zoo.json is fetched.
    --columns and --splits also read the table. The sha256 of a split is that of its ids, sorted and each followed by a
    line feed; it is `zoo.split(NAME).sha256` too.

    Of a zoo that is being written or trained, or whose writing was interrupted, it tells how many instances are
    finished, of how many that `zoo train` has planned, and which process writes it since when. Of a zoo to which
    instances are being appended, a note tells how many are finished.
    """
    progress = progress_in(folder) if isinstance(folder, Path) else None
    if progress is not None and isinstance(folder, Path):
        for flag, given in (("--columns", with_columns), ("--splits", with_sums)):
            if given:
                raise click.UsageError(f"{flag} goes with a finished zoo.")
        out.result(progress_document(progress), progress_text(folder, progress))
        return
    manifest = _manifest_of(folder)
    sums = columns = None
    if with_sums or with_columns:
        from prepkit.api import open_zoo

        opened = open_zoo(str(folder))
        if with_sums:
            sums = {name: opened.split(name).sha256 for name in manifest.splits}
        if with_columns:
            columns = {field.name: str(field.type) for field in opened.table.schema}
    note = appending_note(folder) if isinstance(folder, Path) else None
    document = {**facts(manifest, sums, columns), **({} if note is None else {"notes": [note]})}
    out.notes([] if note is None else [note])
    out.result(document, description(manifest, sums, columns))


@zoo.command(
    epilog=examples("prepkit zoo verify my-zoo", "prepkit zoo verify my-zoo --rerun 100 --data cifar-10-batches-py")
)
@folder_or_address
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Threads that read and hash. [default: up to 8]")
@click.option("--rerun", "reruns", type=click.IntRange(min=1), metavar="N", help="Also run N instances on test data.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Folder of the task's data or pictures, for --rerun.",
)
@json_option
def verify(
    folder: Path | HubAddress | UrlAddress, jobs: int | None, reruns: int | None, data: Path | None, out: Output
) -> None:
    """Check that every file is what the manifest says.

    Every file is compared with its sha256, and the table and all headers with the manifest. --rerun N also runs N
    instances on the test data of the zoo's task, if it is on this machine, and compares the accuracy with the table, or
    the PSNR where instances are pictures. An imported zoo is `function: unverified` until then; afterwards it records
    what was compared and the largest difference. The exit status is 1 if there is a fault.

    DIR may be an address on the Hub, hf://user/zoo. Then shards in the cache are hashed, damaged ones are removed from
    it, and the sums that the Hub lists are compared with the manifest; shards are not fetched for it. Other stores,
    such as s3://bucket/zoo, list no such sums: every file is fetched from there, compared, and not kept.
    """
    if data is not None and reruns is None:
        raise click.UsageError("--data goes with --rerun N.")
    if jobs is not None and not isinstance(folder, Path):
        raise click.UsageError("--jobs goes with a local zoo.")
    from prepkit.api import verify as verify_zoo

    with out.bar("verifying", "B") as bar:
        bar.begin(bytes_in(folder) if isinstance(folder, Path) else num_bytes_of(_manifest_of(folder)))
        result = verify_zoo(folder, jobs=jobs, rerun=reruns or 0, data=data, progress=bar.advance)
    out.result(verification(result), verification_text(result))
    if not result.ok:
        click.get_current_context().exit(1)


def _manifest_of(folder: Path | HubAddress | UrlAddress) -> Manifest:
    if isinstance(folder, Path):
        from prepkit.zoo.format.manifest import read_manifest

        return read_manifest(folder)
    from prepkit.hub.store import manifest_at

    return manifest_at(folder)


# Making -------------------------------------------------------------------------------------------------------


@zoo.command(epilog=examples("prepkit zoo convert my-zoo my-zoo-h5 --format hdf5"))
@click.argument("source", type=click.Path(path_type=Path), metavar="SRC")
@click.argument("target", type=click.Path(path_type=Path), metavar="DST")
@click.option("--format", "format_", type=FORMATS, required=True, help="Format of the new zoo's shards.")
@json_option
def convert(source: Path, target: Path, format_: str, out: Output) -> None:
    """Write a zoo again with shards of another format.

    The new zoo is compared with the old one, value by value.
    """
    from prepkit.zoo.change.convert import convert as convert_zoo

    with out.bar("converting", "B") as bar:
        bar.begin(bytes_in(source))
        written = convert_zoo(source, target, format_, progress=bar.advance)
    print_written(written, out)


@zoo.command(
    epilog=examples(
        "prepkit zoo merge both first-zoo second-zoo", "prepkit zoo merge all part-0 part-1 part-2 --link --prefix"
    )
)
@click.argument("target", type=click.Path(path_type=Path), metavar="DST")
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SRC SRC...")
@click.option("--name", help="Name of the new zoo. [default: the folder's name]")
@click.option("--license", "license_", help="Licence of the new zoo, needed if the licences differ.")
@click.option("--format", "format_", type=FORMATS, help="Format of the shards. [default: that of the first zoo]")
@click.option("--prefix", is_flag=True, help="Put each zoo's name before its ids and runs.")
@click.option("--link", is_flag=True, help="Take the shards as they are, by hard links, in seconds.")
@json_option
def merge(
    target: Path,
    sources: tuple[Path, ...],
    name: str | None,
    license_: str | None,
    format_: str | None,
    prefix: bool,
    link: bool,
    out: Output,
) -> None:
    """Make one zoo of several.

    Architectures of the same name become one, and all get new ClassIds. Zoos of one width and format are merged in
    seconds by --link: their shards get second names in the new zoo, or are copied where the disk has no hard links.
    Values are not read then, so `prepkit zoo verify` is left to do. So N processes may write N zoos of one data set.
    """
    from prepkit.zoo.change.merge import merge as merge_zoos

    with out.bar("merging", "B") as bar:
        bar.begin(sum(map(bytes_in, sources)))
        written = merge_zoos(
            target,
            sources,
            name=name,
            license=license_,
            format=format_,
            prefix=prefix,
            link=link,
            progress=bar.advance,
        )
    print_written(written, out)


@zoo.command(
    epilog=examples(
        "prepkit zoo split my-zoo",
        "prepkit zoo split my-zoo --train 0.5 --validation 0 --test 0.5 --seed 1 --group run --force",
    )
)
@folder
@click.option("--train", default=0.8, show_default=True, help="Share of the instances for training.")
@click.option("--validation", default=0.1, show_default=True, help="Share for validation.")
@click.option("--test", default=0.1, show_default=True, help="Share for testing.")
@click.option("--seed", default=0, show_default=True, help="Seed for drawing the split.")
@click.option(
    "--group", help="Column whose equal values stay in one split, or none. [default: run, if there is that column]"
)
@click.option("--force", is_flag=True, help="Replace the split that is there, and keep it as a column split.NAME.")
@click.option(
    "--keep-as", metavar="NAME", help="NAME of that column. [default: original, or seedN if it was drawn with seed N]"
)
@json_option
def split(
    folder: Path,
    train: float,
    validation: float,
    test: float,
    seed: int,
    group: str | None,
    force: bool,
    keep_as: str | None,
    out: Output,
) -> None:
    """Draw the splits of a zoo.

    The shares are the same for each architecture, and instances of one run stay in one split. The zoo records how the
    split was drawn. Others may read the zoo meanwhile: the old table stays until `prepkit zoo clean`.
    """
    if keep_as is not None and not force:
        raise click.UsageError("--keep-as goes with --force.")
    from prepkit.zoo.change.splitting import split as split_zoo

    shares = {"train": train, "validation": validation, "test": test}
    result = split_zoo(
        folder, shares, seed=seed, group=False if group == "none" else group, force=force, keep_as=keep_as
    )
    out.notes(result.notes)
    out.result({"zoo": str(folder), **vars(result), "notes": list(result.notes)}, split_text(result))


@zoo.command(epilog=examples("prepkit zoo clean my-zoo --dry-run", "prepkit zoo clean my-zoo"))
@folder
@click.option("--dry-run", is_flag=True, help="List what would be removed; change nothing.")
@json_option
def clean(folder: Path, dry_run: bool, out: Output) -> None:
    """Remove files that a zoo needs no more.

    These are tables and shards that `split`, `annotate` or `drop` replaced, and files of an interrupted pull. Only
    files that prepkit wrote and the zoo does not name are removed. Programs that opened the zoo before it was changed
    still read the old files, so let them finish first.
    """
    from prepkit.zoo.change.cleaning import clean as clean_zoo

    cleaning = clean_zoo(folder, dry_run=dry_run)
    out.result(cleaning_document(folder, cleaning, dry_run), cleaning_text(folder, cleaning, dry_run))


@zoo.command(
    epilog=examples(
        "prepkit zoo export my-zoo net-57 -o net-57.pt",
        "prepkit zoo export hf://user/zoo net-57 -o net-57.safetensors --force",
    )
)
@folder_or_address
@click.argument("id_", metavar="ID", shell_complete=zoo_ids)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="MODEL.pt or MODEL.safetensors.")
@click.option("--strip-prefix", is_flag=True, help="Leave out a prefix of all names such as `module.`.")
@force_option
@json_option
def export(
    folder: Path | HubAddress | UrlAddress, id_: str, output: Path, strip_prefix: bool, force: bool, out: Output
) -> None:
    """Write one instance as a plain state dict.

    torch.load or safetensors reads it without prepkit. The names are those of the checkpoint that `zoo create` read.
    DIR may be an address on the Hub, hf://user/zoo, or in another store, s3://bucket/zoo. Then the one shard that holds
    the instance is fetched.
    """
    from prepkit.api import open_zoo

    opened = open_zoo(str(folder))
    tensors = opened.export(id_, output, prefix=not strip_prefix, overwrite=force)
    row = opened.metadata(opened.index(id_))
    out.result(
        {"output": str(output), "tensors": len(tensors), "metadata": json_value(row, not_finite=str)},
        f"{folder} {id_} -> {output}: {row['architecture']}, {counted(len(tensors), 'tensor')}",
    )


# Inside -------------------------------------------------------------------------------------------------------


def bytes_in(folder: Path) -> int:
    """Sum the sizes of all files in a folder; 0 if there is none."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
