"""`prepkit zoo import KIND` for zoos that others packed into large files: arrays and data bases."""

from __future__ import annotations

from pathlib import Path

import click

from prepkit.cli.importing import Making, making_options
from prepkit.cli.output import Output, json_option


@click.command()
@click.argument("source", type=click.Path(path_type=Path), metavar="SRC")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DST")
@click.option("--dataset", metavar="NAME", help="Set to take, such as fm-16. [default: the only one in SRC]")
@click.option("--states", metavar="NUMBERS", help="States of each run, such as 0:2688:100 or -1. [default: all]")
@click.option("--runs", metavar="NUMBERS", help="Runs to take, such as 0:10. [default: all]")
@click.option("--layout", type=click.Path(path_type=Path), metavar="FILE", help="JSON file that describes another set.")
@making_options
@json_option
def nino(
    source: Path,
    folder: Path,
    dataset: str | None,
    states: str | None,
    runs: str | None,
    layout: Path | None,
    making: Making,
    out: Output,
) -> None:
    """Import trajectories of training that NiNo learned from.

    \b
    prepkit zoo import nino nino_metatrain zoo --dataset fm-16 --states ::100

    SRC holds NAME.dat, or its parts NAME_p1.dat and so on, and NAME_metrics.dat: float16 numbers in the order run,
    state, parameter. Sizes are checked, models are read one at a time, and their numbers stay float16. A whole set is
    as large as its file (fm-16 has 806,400 states, 23 GB), so --states and --runs take some: numbers that begin at 0
    and slices, with commas between them. Ids are RUN/STATE; run, state and the metrics become columns, test_acc
    also accuracy, from 0 to 1.

    fm-16, c10-16, lm1b-3-24 and lm1b-2-32 are known. The convnets of the first two are rebuilt to run; the language
    models are kept as tensors. Another set needs --layout FILE, whose tensors stand in the order of the numbers:
    {"states": 124, "runs": 200, "metrics": ["train_loss"], "tensors": {"fc.weight": [10, 32], "fc.bias": [10]}}.
    """
    from prepkit.zoo.importers.kinds import found_by

    options = {"dataset": dataset, "states": states, "runs": runs, "layout": layout}
    making.write(folder, found_by("nino", source, options), {}, out, command="zoo import nino")


COMMANDS = (nino,)
