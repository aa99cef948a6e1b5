"""The command line `netspace`: thin commands over the Python API. torch is imported only by commands that need it."""

from __future__ import annotations

import click

from netspace.cli.explore import COMMANDS
from netspace.cli.hub import push
from netspace.cli.probe import probe
from netspace.cli.report import COMMANDS as REPORTS
from netspace.cli.train import recipes, train
from prepkit.cli.common import EXIT_STATUS, Commands


@click.group(
    cls=Commands,
    epilog=EXIT_STATUS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="prepkit", prog_name="netspace")
def main() -> None:
    """Learn a space of networks from a zoo; interpolate, optimise and sample networks in it.

    \b
    prepkit zoo train digits_multi zoo              makes a zoo to learn from
    netspace probe zoo                              tells whether a space can learn it
    netspace train digits_multi --zoo zoo --out run
    netspace evaluate run
    netspace interpolate run --steps 13 -o line
    """


for command in (probe, train, recipes, *COMMANDS, *REPORTS, push):
    main.add_command(command)
