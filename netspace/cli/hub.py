"""`netspace push`: a run becomes a model repository on the Hub."""

from __future__ import annotations

from pathlib import Path

import click

from prepkit.cli.examples import examples
from prepkit.cli.output import Output, json_option


@click.command(epilog=examples("netspace push run user/space --dry-run", "netspace push run user/space --private"))
@click.argument("folder", type=click.Path(path_type=Path), metavar="RUN")
@click.argument("repo", metavar="REPO")
@click.option("--license", "license_", metavar="L", help="Licence of the weights. [default: that of the zoo]")
@click.option("--private", is_flag=True, help="Create the repository for its owner only.")
@click.option("--dry-run", is_flag=True, help="List what would be sent; change nothing.")
@json_option
def push(folder: Path, repo: str, license_: str | None, private: bool, dry_run: bool, out: Output) -> None:
    """Push a run\'s best NetSpace to a model repository on the Hub.

    Then `netspace.load("hf://user/space")` gives it back anywhere. Files that the repository has are not sent again.
    """
    from netspace.run.hub import run_bundle
    from netspace.run.run import Run
    from prepkit.cli.hub import send

    send(run_bundle(Run(folder), repo, license_), "run", folder, private, dry_run, out)
