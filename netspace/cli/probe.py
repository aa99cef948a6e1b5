"""`netspace probe`: whether a space can learn a zoo, without training one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from netspace.cli.common import ZOO_PLACE, data_option, seed_option
from prepkit.cli.common import device_option
from prepkit.cli.examples import examples
from prepkit.cli.output import Output, json_option
from prepkit.errors import counted
from prepkit.support.text import table

if TYPE_CHECKING:
    from netspace.explore.probing import Probe

# Title, key, factor and digits of each column of the table.
COLUMNS = {
    "images": (
        ("explained, %", "explained", 100, 0),
        ("told apart, %", "told_apart", 100, 0),
        ("KL own", "own", 1, 3),
        ("KL others", "others", 1, 3),
        ("points off", "points_off", 100, 1),
        ("Spearman", "spearman", 1, 2),
        ("half-way, %", "halfway", 100, 1),
        ("ends, %", "ends", 100, 1),
    ),
    "shapes": (
        ("explained, %", "explained", 100, 0),
        ("told apart, %", "told_apart", 100, 0),
        ("IoU own", "own", 1, 3),
        ("IoU others", "others", 1, 3),
        ("near own, %", "close_own", 100, 1),
        ("near others, %", "close_others", 100, 1),
        ("half-way IoU", "halfway", 1, 3),
        ("IoU of ends", "ends", 1, 3),
    ),
}


@click.command(epilog=examples("netspace probe my-zoo", "netspace probe hf://user/zoo --json"))
@click.argument("zoo", type=ZOO_PLACE, metavar="ZOO")
@click.option("--split", default="test", show_default=True, help="Split of the unseen instances.")
@data_option
@seed_option("drawing pairs and the bootstrap")
@device_option
@json_option
def probe(zoo: Path | str, split: str, data: Path | None, seed: int, device: str, out: Output) -> None:
    """Tell in seconds whether a space can learn a zoo.

    A kernel ridge regression learns the outputs of training instances from their PReps and guesses those of unseen
    ones; where it fails, the outputs of an instance do not follow from its PRep, and a training could
    only learn it by heart. A second test runs networks half-way between the weights of training instances.

    In the table, `own` tells how near guesses come to their own instance, and `others` how near guesses for other
    instances come to it. `Told apart` is the share of pairs of unseen instances (for classifiers, those of nearest
    accuracy) whose two guesses fit better as they are than swapped.
    """
    from netspace.explore.probing import probe as probe_zoo

    with out.bar("probing", "instance") as bar:
        found = probe_zoo(zoo, split=split, data=data, seed=seed, device=device, progress=bar)
    out.notes(found.notes)
    out.result(found.to_dict(), text_of(found))


def text_of(found: Probe) -> str:
    """Return a line on what was probed, the table and the two sentences."""
    columns = COLUMNS[found.about["outputs"]["kind"]]
    rows = []
    for name, row in found.rows.items():
        values = {**row, **row["halfway"]}
        cells = [_cell(values.get(key, float("nan")) * factor, digits) for _, key, factor, digits in columns]
        rows.append((name, row["training_instances"], row["unseen_instances"], *cells))
    outputs = found.about["outputs"]
    where = (
        f"a grid of {outputs['resolution']} points an axis"
        if found.is_shapes
        else counted(outputs["images"], "test image")
    )
    lead = f"{found.about['zoo']['name']}: outputs on {where}, read from PReps; unseen: split {found.about['split']}"
    header = ("architecture", "training", "unseen", *(title for title, *_ in columns))
    return "\n".join([lead, "", table(rows, header), "", found.text])


def _cell(value: float, digits: int) -> str:
    return "-" if value != value else f"{round(value, digits) + 0.0:.{digits}f}"  # no minus before zero
