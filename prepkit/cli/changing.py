"""`prepkit zoo cut`, `drop` and `annotate`: other instances, or other columns, of a zoo."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import click

from prepkit.cli.examples import examples
from prepkit.cli.output import Output, json_option
from prepkit.cli.pairs import Pairs
from prepkit.cli.zoo import bytes_in, folder
from prepkit.cli.zoo_text import annotation_text, print_written, removal_text

where_option = click.option("--where", metavar="EXPR", help='Condition on the table: "accuracy > 0.8".')
ids_option = click.option("--ids", type=click.File("rb"), metavar="FILE", help="File of ids, one a line; - for stdin.")


@click.command(
    epilog=examples(
        'prepkit zoo cut my-zoo good --where "accuracy > 0.8 and epoch == 50"',
        "prepkit zoo cut my-zoo chosen --ids - < chosen.txt",
    )
)
@click.argument("source", type=click.Path(path_type=Path), metavar="SRC")
@click.argument("target", type=click.Path(path_type=Path), metavar="DST")
@where_option
@ids_option
@click.option("--name", help="Name of the new zoo. [default: the folder's name]")
@json_option
def cut(source: Path, target: Path, where: str | None, ids: BinaryIO | None, name: str | None, out: Output) -> None:
    """Make a zoo of some instances of another.

    Instances are chosen by a condition, by a list of ids, or by both. ClassIds, task and teacher stay.

    """
    _check_choice(where, ids)
    from prepkit.zoo.change.choosing import cut as cut_zoo

    with out.bar("cutting", "B") as bar:
        bar.begin(bytes_in(source))
        written = cut_zoo(source, target, where=where, ids=ids_in(ids), name=name, progress=bar.advance)
    print_written(written, out)


@click.command(
    epilog=examples(
        'prepkit zoo drop my-zoo --where "accuracy < 0.15" --dry-run', "prepkit zoo drop my-zoo --ids - < broken.txt"
    )
)
@folder
@where_option
@ids_option
@click.option("--dry-run", is_flag=True, help="Only count what would be removed.")
@json_option
def drop(folder: Path, where: str | None, ids: BinaryIO | None, dry_run: bool, out: Output) -> None:
    """Remove instances from a zoo.

    A condition or a list of ids says which, or both do. Only shards that lose some of their instances are written anew.
    The old files stay until `prepkit zoo clean`, so that others may read the zoo meanwhile; a kill leaves the zoo as it
    was or as it should be.

    """
    _check_choice(where, ids)
    from prepkit.zoo.change.choosing import drop as drop_instances

    with out.bar("removing", "B") as bar:
        bar.begin(bytes_in(folder))
        removal = drop_instances(folder, where=where, ids=ids_in(ids), dry_run=dry_run, progress=bar.advance)
    out.notes(removal.notes)
    document = {"zoo": str(folder), "dry_run": dry_run, **vars(removal), "notes": list(removal.notes)}
    out.result(document, removal_text(folder, removal, dry_run))


@click.command(
    epilog=examples(
        "prepkit zoo annotate my-zoo --table robustness.csv",
        "prepkit zoo annotate my-zoo --table runs.jsonl --on run,epoch=training_iteration",
        "prepkit zoo annotate my-zoo --rename acc=accuracy --drop note",
    )
)
@folder
@click.option(
    "--table", "file", type=click.Path(path_type=Path), metavar="FILE", help="CSV, TSV, JSON or JSONL of columns."
)
@click.option(
    "--on",
    type=Pairs("COLUMN[=COLUMN],...", "the zoo's columns and the table's, such as run,epoch=step", or_name_only=True),
    help="The zoo's columns, and the table's, by which rows are found. [default: id, else file]",
)
@click.option(
    "--types",
    type=Pairs("COLUMN=TYPE,...", "types such as accuracy=float,code=text"),
    help="Types of columns, such as day=date,loss=list. [default: by their cells]",
)
@click.option("--rename", type=Pairs("OLD=NEW,...", "columns such as acc=accuracy"), help="Give columns other names.")
@click.option("--drop", multiple=True, metavar="NAME", help="Remove a column. Repeatable.")
@json_option
def annotate(
    folder: Path,
    file: Path | None,
    on: dict[str, str] | None,
    types: dict[str, str] | None,
    rename: dict[str, str] | None,
    drop: tuple[str, ...],
    out: Output,
) -> None:
    """Add, replace, rename or drop columns of a zoo.

    Rows of the table are found by a column `id`, else by `file`, the path that the id was made of, else by --on. A row
    counts for all instances of its key, so one row a run will do: --on run. A column that the zoo has gets the new
    values where there is one, and keeps the others. Columns are dropped first, then renamed. Only the table is written,
    beside the old one, which stays until `prepkit zoo clean`; zoo.json tells what was changed when.

    """
    if file is None and (on or types):
        raise click.UsageError("--on and --types go with --table FILE.")
    if file is None and not rename and not drop:
        raise click.UsageError("give --table FILE, --rename OLD=NEW or --drop NAME.")
    from prepkit.zoo.change.annotating import annotate as annotate_zoo

    result = annotate_zoo(folder, file, on=on, types=types, rename=rename, drop=drop)
    out.notes(result.notes)
    document = {"zoo": str(folder), **vars(result), "notes": list(result.notes)}
    out.result(document, annotation_text(folder, result))


def _check_choice(where: str | None, ids: BinaryIO | None) -> None:
    if where is None and ids is None:
        raise click.UsageError("choose instances with --where EXPR or --ids FILE.")


def ids_in(file: BinaryIO | None) -> list[str] | None:
    """Return the ids in a list, one a line."""
    if file is None:
        return None
    from prepkit.zoo.write.model_paths import paths_in

    return paths_in(file.read())
