"""`netspace push`: a run becomes a model repository on the Hub."""

from __future__ import annotations

from pathlib import Path

import click

from prepkit.cli.common import Interrupted, json_option, print_json, table


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="RUN")
@click.argument("repo", metavar="REPO")
@click.option("--license", "license_", metavar="L", help="Of the weights. [default: that of the zoo]")
@click.option("--private", is_flag=True, help="Create the repository for its owner only.")
@click.option("--dry-run", is_flag=True, help="List what would be sent; change nothing.")
@json_option
def push(folder: Path, repo: str, license_: str | None, private: bool, dry_run: bool, as_json: bool) -> None:
    """Make a run's best NetSpace the newest version of a model repository on the Hub.

    \b
    netspace push run user/space --dry-run
    netspace push run user/space

    Then `netspace.load("hf://user/space")` gives it back anywhere. What the repository has already is not sent again.
    """
    from netspace.run.hub import files_of, push_run
    from netspace.run.run import Run
    from prepkit.cli.hub import bytes_progress
    from prepkit.zoo.format.counts import readable

    run = Run(folder)
    total = sum(file.size for file in files_of(run, repo, license_))
    try:
        with bytes_progress("pushing", total, as_json or dry_run) as progress:
            done = push_run(run, repo, license=license_, private=private, dry_run=dry_run, progress=progress)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; what was sent is kept. The same command goes on.") from None
    if as_json:
        print_json(
            {
                "run": str(folder),
                "repo": done.repo,
                "url": done.url,
                "dry_run": dry_run,
                "commit": done.commit,
                "new_bytes": done.new_bytes,
                "files": [dict(vars(file)) for file in done.files],
            }
        )
        return
    if dry_run:
        rows = [(file.path, file.bytes, "there" if file.there else "new") for file in done.files]
        click.echo(table(rows, ("file", "bytes", "")))
    verb = "would send" if dry_run else "sent"
    click.echo(f"{folder} -> {done.repo}: {verb} {readable(done.new_bytes)}; commit {done.commit}\n{done.url}")
