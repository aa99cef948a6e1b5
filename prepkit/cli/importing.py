"""`prepkit zoo create`, the group `prepkit zoo import`, and the options of commands that make a zoo of models."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from prepkit.cli.examples import examples
from prepkit.cli.models import Model, hub_bars
from prepkit.cli.network_options import DTYPES, NetworkOptions, keep_bn_option, network_options
from prepkit.cli.output import Output, json_option
from prepkit.cli.pairs import Pairs
from prepkit.cli.zoo_text import print_written

if TYPE_CHECKING:
    from prepkit.address import HubAddress
    from prepkit.zoo.write.adding import Source

FORMATS = click.Choice(("safetensors", "hdf5"))


@dataclass(frozen=True)
class Making:
    """What the user gave for the options of `making_options`."""

    about: dict[str, Any]
    append: bool
    keep_going: bool
    drop_nan: bool

    def write_found(
        self,
        kind: str,
        source: Path,
        options: dict[str, Any],
        folder: Path,
        out: Output,
        packing: dict[str, Any] | None = None,
    ) -> None:
        """Find the models of a kind of layout in `source`, and write them as `write` does."""
        from prepkit.zoo.importers.kinds import found_by

        self.write(folder, found_by(kind, source, options), packing or {}, out, command=f"zoo import {kind}")

    def write(
        self,
        folder: Path,
        source: Source,
        packing: dict[str, Any],
        out: Output,
        *,
        command: str,
        resume: bool = True,
        how_to_go_on: str | None = None,
    ) -> None:
        """Write the models of a source as a zoo, with a bar, and print what was written.

        packing: arguments of Packing
        """
        from prepkit.zoo.importers.kinds import HOW_TO_GO_ON
        from prepkit.zoo.importers.making import IMPORT, make_zoo
        from prepkit.zoo.write.adding import Packing
        from prepkit.zoo.write.model_files import read_task

        task = self.about["task"]
        with out.bar("adding", "model") as bar:
            bar.begin(len(source.ids))
            written = make_zoo(
                folder,
                source,
                Packing(**packing),
                command=command,
                resume=resume,
                append=self.append,
                keep_going=self.keep_going,
                drop_nan=self.drop_nan,
                progress=bar.advance,
                how_to_go_on=how_to_go_on or HOW_TO_GO_ON,
                **{**self.about, "task": None if task is None else read_task(task)},
            )
        if command.startswith(IMPORT) and written.manifest.license is None:
            out.notes(["No licence is noted: --license names the one under which the zoo's makers gave it."])
        print_written(written, out)


MAKING_OPTIONS = (
    click.option("--width", type=int, help="Columns of the PReps, a multiple of 8. [default: 512]"),
    click.option("--format", type=FORMATS, help="Format of the shards. [default: safetensors]"),
    click.option("--name", help="Name of the zoo. [default: the folder's name]"),
    click.option("--license", help="Licence of the zoo, such as mit or cc-by-4.0."),
    click.option("--task", type=click.Path(path_type=Path), help="JSON file: the task of the models."),
    click.option("--dtype", type=click.Choice(DTYPES), help="Dtype of the zoo, which must hold all values exactly."),
    click.option("--append", is_flag=True, help="Add the models to a finished zoo, which others may read meanwhile."),
    click.option("--keep-going", is_flag=True, help="After a failure add the other models, and list the failures."),
    click.option("--drop-nan", is_flag=True, help="Leave out models that hold NaN or infinity, and count them."),
)
TREE_OPTIONS = (
    click.option(
        "--from", "list_", type=click.File("rb"), help="File that lists models, one a line; - for standard input."
    ),
    click.option(
        "--pattern",
        metavar="PATH",
        help="Path of each model below a folder, whose fields become columns: {run}/checkpoint_{epoch:int}/weights.pt.",
    ),
    click.option(
        "--table",
        "tables",
        multiple=True,
        metavar="FILE",
        help="CSV, TSV, JSON or JSONL with columns to keep; {run}/result.json is one for each run. Repeatable: "
        "the first value counts.",
    ),
    click.option(
        "--on",
        type=Pairs("FIELD=COLUMN,...", "fields and columns such as epoch=training_iteration"),
        help="Columns of the tables for fields of the pattern that are called otherwise there.",
    ),
    click.option(
        "--types",
        type=Pairs("COLUMN=TYPE,...", "types such as accuracy=float,code=text"),
        help="Types of columns, such as day=date,loss=list. [default: by their cells]",
    ),
)


def source_and_folder(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the arguments of each import: SRC, where the models are, and DST, the folder of the new zoo."""
    command = click.argument("folder", type=click.Path(path_type=Path), metavar="DST")(command)
    return click.argument("source", type=click.Path(path_type=Path), metavar="SRC")(command)


def making_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that every command has that makes a zoo of models, and hand them over as one `making`."""

    @functools.wraps(command)
    def with_making(
        *arguments: Any,
        width: int | None,
        format: str | None,
        name: str | None,
        license: str | None,
        task: Path | None,
        dtype: str | None,
        append: bool,
        keep_going: bool,
        drop_nan: bool,
        **others: Any,
    ) -> Any:
        about = {"width": width, "format": format, "name": name, "license": license, "task": task, "dtype": dtype}
        return command(*arguments, making=Making(about, append, keep_going, drop_nan), **others)

    for option in reversed(MAKING_OPTIONS):
        option(with_making)
    return with_making


def tree_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which files there are and which tables belong to them, and hand them over as `files`."""

    @functools.wraps(command)
    def with_files(
        *arguments: Any,
        list_: BinaryIO | None,
        pattern: str | None,
        tables: tuple[str, ...],
        on: dict[str, str] | None,
        types: dict[str, str] | None,
        **others: Any,
    ) -> Any:
        from prepkit.zoo.write.model_paths import paths_in

        listed = paths_in(list_.read()) if list_ else None
        files = {"files": listed, "pattern": pattern, "table": tables, "on": on, "types": types}
        return command(*arguments, files=files, **others)

    for option in reversed(TREE_OPTIONS):
        option(with_files)
    return with_files


def splits_option(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the option that says how to split; `names` are those that the importer knows."""
    return click.option(
        "--splits", type=click.Choice(names), help="How to split. [default: as SRC says, or not at all]"
    )


@click.command(
    epilog=examples(
        "prepkit zoo create my-zoo runs/ --license cc-by-4.0",
        "prepkit zoo create my-zoo runs/ --table scores.csv --keep-going",
        "find runs -name '*.pt' | prepkit zoo create my-zoo --from - --resume",
    )
)
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.argument("models", nargs=-1, type=Model(), metavar="MODEL...")
@tree_options
@making_options
@network_options
@keep_bn_option
@click.option("--resume", is_flag=True, help="Go on with a zoo whose writing was interrupted.")
@json_option
def create(
    folder: Path,
    models: tuple[Path | HubAddress, ...],
    files: dict[str, Any],
    making: Making,
    network: NetworkOptions,
    keep_bn: bool,
    resume: bool,
    out: Output,
) -> None:
    """Make a zoo of checkpoints and PRep files.

    BatchNorms are folded. A MODEL is a file, a folder, in which all files of models are taken, or an address on the
    Hub, hf://user/model or hf://user/model@revision/file.safetensors; the column `source` then names the commit of
    each. Integer buffers, and with --prefix all other names, are left out, and named.

    The column `file` of the table names models by path, from the table's folder or one that holds all models, with or
    without suffix, or by address. A name without folder will do where no other model has it. The columns `id` and
    `split` are those of the zoo; without `id`, models are called by their names, or by the parts of their paths that
    differ: a and b for runs/a/model.pt and runs/b/model.pt. All other columns are kept with the instances, and a note
    says of which type: whole numbers (int), numbers (float), booleans (bool: true, false), dates (date: 2026-11-27),
    dates with times (timestamp: 2026-11-27 13:50), lists of numbers (list: [0.9, 0.5]) or text, as fits all cells.
    --types accuracy=float,code=text chooses, reads 0,81 and 81% as numbers, and lists also as 0.9 0.5. The column
    `source_sha256` is filled with the sha256 of each checkpoint.

    With --pattern "{run}/checkpoint_{epoch:int}/weights.pt" the files in folders are those that fit, and `run` and
    `epoch` become columns and the id, run/epoch; `prepkit zoo import tree --help` says how tables are joined to them.

    A zoo is finished when all models are in it. If one fails, the others that were added are kept, and --resume goes on
    when it is mended, or without it.

    With --append, DIR is a finished zoo, and the models are added to it in one step when all of them are there; what is
    missing of width, format, dtype, name, licence and task is the zoo's. Its ClassIds stay, new architectures get the
    next ones, a column that the old or the new instances lack is empty for them, and splits are those that a table
    names. After an interruption, --append --resume goes on.

    The task is a JSON object such as {"kind": "images", "dataset": "digits", "split": {"seed": 0, "test": 360}}.
    """
    from prepkit.api import model_address, source_of_models

    if folder.is_file():
        raise click.UsageError(f"'{folder}' is a file; DIR, the folder of the zoo, comes first, and then each MODEL.")
    named = [*models, *map(model_address, files.pop("files") or ())]
    if not named:
        raise click.UsageError("name at least one MODEL, or a list of them with --from.")
    packing = packing_of(network, keep_bn)
    with hub_bars(named):
        source = source_of_models(named, **files, key=network.key, prefix=network.prefix)
        go_on = "go on with --append --resume" if making.append else "go on with --resume"
        making.write(folder, source, packing, out, command="zoo create", resume=resume, how_to_go_on=go_on)


def packing_of(network: NetworkOptions, keep_bn: bool) -> dict[str, Any]:
    """Return how networks are packed: arguments of Packing."""
    keywords = network.keywords()
    names = ("architecture", "keep_unfoldable")
    return {**{name: keywords[name] for name in names}, "keep_batch_norm": keep_bn}


@click.group(
    "import",
    epilog=examples(
        "prepkit zoo import peft adapters my-zoo",
        'prepkit zoo import tree runs my-zoo --pattern "{run}/checkpoint_{epoch:int}/weights.pt"',
    ),
)
def import_() -> None:
    """Import a zoo that lies on the disk in another layout.

    The same command goes on after an interruption, or when a file that failed was mended. With --append, DST is a
    finished zoo, and all models of SRC are added to it in one step, as by `prepkit zoo create --append`; width, format,
    dtype, name, licence and task that are missing are the zoo's.
    """
