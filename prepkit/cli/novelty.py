"""`prepkit zoo novelty`: whether generated networks are copies, and better than simple controls."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from prepkit.cli.common import force_option
from prepkit.cli.examples import examples
from prepkit.cli.models import ZooPlace
from prepkit.cli.output import Output, json_option

if TYPE_CHECKING:
    from prepkit.address import HubAddress, UrlAddress


@click.command(
    epilog=examples(
        "prepkit zoo novelty generated --against training -o novelty",
        "prepkit zoo novelty generated --against hf://user/zoo --split test --controls 32 --json",
    )
)
@click.argument("folder", type=ZooPlace(), metavar="DIR")
@click.option(
    "--against", type=ZooPlace(), required=True, metavar="TRAINING", help="Zoo that the generator learned from."
)
@click.option("--split", metavar="NAME", help="Split of TRAINING that was learned from.  [default: train, or all]")
@click.option("--where", metavar="EXPR", help="Take only training networks that a condition chooses.")
@click.option("--data", type=click.Path(path_type=Path), metavar="PATH", help="Folder of the task's data.")
@click.option(
    "--controls",
    type=click.IntRange(1),
    default=12,
    show_default=True,
    metavar="N",
    help="Number of networks of each control, for each architecture.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed for drawing noise and pairs.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1, max_open=True),
    default=1e-3,
    show_default=True,
    metavar="X",
    help="Largest distance of a copy, as a share of the norm.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="OUT", help="Folder for table, picture and JSON."
)
@force_option
@json_option
def novelty(
    folder: Path | HubAddress | UrlAddress,
    against: Path | HubAddress | UrlAddress,
    split: str | None,
    where: str | None,
    data: Path | None,
    controls: int,
    seed: int,
    tolerance: float,
    output: Path | None,
    force: bool,
    out: Output,
) -> None:
    """Tell whether generated networks are new, or copies.

    DIR is a zoo of generated networks, which `prepkit zoo create` makes of files. Each is compared with the training
    networks in weights, after its hidden units were brought into their order, and in outputs: on the test images of the
    task, points in the cube for shapes, or random inputs. The same is done with controls that need no generator:
    training networks with noise, means of two of them, and networks of another split. The wrong images that a network
    has in common with the nearest training network tell copies of functions (Zeng et al., 2025).
    """
    if force and output is None:
        raise click.UsageError("--force goes with -o OUT.")
    from prepkit.auditing.novelty import novelty as measure
    from prepkit.auditing.novelty_report import check_folder, text_of, write_folder

    if output is not None:
        check_folder(output, overwrite=force)
    with out.bar("comparing", "network") as bar:
        found = measure(
            str(folder),
            str(against),
            split=split,
            where=where,
            data=data,
            controls=controls,
            seed=seed,
            tolerance=tolerance,
            progress=bar,
        )
    if output is not None:
        write_folder(found, output, overwrite=force)
    out.result({**found.to_dict(), "output": None if output is None else str(output)}, text_of(found))
