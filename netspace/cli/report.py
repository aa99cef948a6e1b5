"""`netspace report` and `netspace paper`: every claim with its number, on one page."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prepkit.cli.common import Interrupted, device_option, force_option, json_option, print_json
from prepkit.progress import StatusLine
from prepkit.text import readable_seconds

if TYPE_CHECKING:
    from netspace.report.model import Report, StageProgress

FOLDER = click.Path(path_type=Path)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=FOLDER, metavar="RUN...")
@click.option("-o", "--output", type=FOLDER, default=Path("report.html"), show_default=True, metavar="FILE.html")
@click.option("--only", multiple=True, metavar="NAME", help="This experiment; may be given again. [default: all]")
@click.option("--zoo", "zoos", multiple=True, type=FOLDER, metavar="DIR", help="Where a run's zoo is, if it was moved.")
@click.option("--title", metavar="TEXT", help="Of the page.")
@click.option("--again", is_flag=True, help="Make experiments again that were made before.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of what experiments draw.")
@device_option
@click.option("--data", type=FOLDER, metavar="PATH", help="Folder of the task's data.")
@force_option
@json_option
def report(
    runs: tuple[Path, ...],
    output: Path,
    only: tuple[str, ...],
    zoos: tuple[Path, ...],
    title: str | None,
    again: bool,
    seed: int,
    device: str,
    data: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Make all experiments on runs and write one page: claims, pictures, numbers, recipes, versions, times.

    \b
    netspace report run -o report.html
    netspace report run-a run-b --only accuracy --only lines

    FILE.md and FILE.json are written beside FILE.html. What an experiment found is kept in RUN/experiments and made
    again only for another state, zoo or seed, or where code changed that the experiment uses. Exit status 1 if an
    experiment could not be made: the page tells why.
    """
    from netspace.report.make import report as report_of
    from netspace.run.run import Run

    opened = [Run(path) for path in runs]
    line = StageLine(as_json)
    settings: dict[str, Any] = {} if title is None else {"title": title}
    try:
        found = report_of(
            opened,
            output,
            only=only or None,
            device=device,
            data=data,
            zoos=zoos,
            seed=seed,
            again=again,
            overwrite=force,
            progress=line,
            **settings,
        )
    except KeyboardInterrupt:
        line.close()
        raise Interrupted("interrupted; experiments that are finished are kept. The same command goes on.") from None
    finally:
        line.close()
    tell(found, output, as_json)


@click.command()
@click.argument("folder", type=FOLDER, metavar="OUT")
@click.option("--quick", is_flag=True, help="A trial run of a few minutes: too short for the claims.")
@click.option("--full", is_flag=True, help="Three seeds and the ablations: hours.")
@device_option
@json_option
def paper(folder: Path, quick: bool, full: bool, device: str, as_json: bool) -> None:
    """Train the embedded zoos, train spaces on them, make all experiments, and write OUT/report.html.

    \b
    netspace paper paper-mini            under an hour on two cores; nothing is downloaded
    netspace paper paper-quick --quick   minutes: everything once, in small

    If it is interrupted, the same command goes on; nothing that is finished is done again.
    """
    from netspace.report.paper import PAGE
    from netspace.report.paper import paper as paper_of
    from netspace.training.trainer import Interrupted as TrainingInterrupted
    from prepkit.cli.allocator import keep_freed_memory

    if quick and full:
        raise click.UsageError("--quick and --full are two sizes; give one, or neither for the usual one.")
    keep_freed_memory()
    line = StageLine(as_json)
    try:
        size = "quick" if quick else "full" if full else "mini"
        found = paper_of(folder, size, device=device, progress=line)
    except (KeyboardInterrupt, TrainingInterrupted):
        line.close()
        raise Interrupted(f"interrupted; what is finished is kept in '{folder}'. The same command goes on.") from None
    finally:
        line.close()
    tell(found, folder / PAGE, as_json)


def tell(found: Report, page: Path, as_json: bool) -> None:
    """Which claims held, as text or as one JSON document; exit status 1 if an experiment could not be made."""
    from netspace.report.words import bound, heading, measured, tally, verdict

    if as_json:
        print_json({"output": str(page), **found.to_dict()})
    else:
        for kind, count in found.counts.items():
            if count["of"]:
                click.echo(heading(found, kind))
            for one in (each for each in found.claims if each.kind == kind):
                text = f"{one.recipe}: {one.text}: {measured(one)} (must be {bound(one)})"
                click.echo(f"  {verdict(one):9}  {text}")
        click.echo(f"{page}: {tally(found)}")
    for failure in found.failures:
        click.echo(f"could not be made: {failure}", err=True)
    if found.failures:
        raise click.exceptions.Exit(1)


class StageLine(StatusLine):
    """One line that says which stage runs now, how far it is, and what comes after it."""

    def __init__(self, quiet: bool) -> None:
        super().__init__(quiet=quiet)
        self.began = time.monotonic()

    def __call__(self, progress: StageProgress) -> None:
        """Show a stage."""
        self.show(progress.stage, text_of(progress, time.monotonic() - self.began))


def text_of(doing: StageProgress, seconds: float) -> str:
    """`[ 3/41] 02:10 training digits_multi: step 300/1500 | then: 36 experiments; the page`."""
    text = f": {doing.text}" if doing.text else ""
    left = f" | then: {doing.remaining}" if doing.remaining else ""
    number = f"{doing.number:>{len(str(doing.total))}}"
    return f"[{number}/{doing.total}] {readable_seconds(seconds)} {doing.stage}{text}{left}"


COMMANDS: tuple[click.Command, ...] = (report, paper)
