"""The command line `netspace`: thin commands over the Python API. torch is imported only by commands that need it."""

from __future__ import annotations

import click

from netspace.cli.explore import COMMANDS
from netspace.cli.hub import push
from netspace.cli.probe import probe
from netspace.cli.report import COMMANDS as REPORTS
from netspace.cli.train import recipes, train
from prepkit.cli.common import EXIT_STATUS, Commands
from prepkit.cli.completion import completion_command
from prepkit.cli.examples import examples
from prepkit.cli.verbosity import add_verbosity
from prepkit.version import __version__

EXAMPLES = examples(
    "prepkit zoo train digits_multi zoo    # makes a zoo to learn from",
    "netspace train digits_multi --zoo zoo --out run",
    "netspace interpolate run --steps 13 -o line",
)


@click.group(
    cls=Commands,
    epilog=f"{EXIT_STATUS}\n\n{EXAMPLES}",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="netspace")
def main() -> None:
    """Learn a space of networks from a zoo; interpolate, optimise and sample networks in it."""


for command in (probe, train, recipes, *COMMANDS, *REPORTS, push, completion_command("netspace")):
    main.add_command(command)
add_verbosity(main)
