"""`netspace report` and `netspace paper`: every claim with its number, on one page."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from netspace.cli.common import PATH, data_option, seed_option
from prepkit.cli import colour
from prepkit.cli.common import Interrupted, device_option, force_option
from prepkit.cli.examples import examples
from prepkit.cli.output import Output, json_option, with_flags
from prepkit.support.progress import StatusLine
from prepkit.support.text import readable_seconds

if TYPE_CHECKING:
    from netspace.report.model import Report, StageProgress


@click.command(
    epilog=examples("netspace report run -o report.html", "netspace report run-a run-b --only accuracy --only lines")
)
@click.argument("runs", nargs=-1, required=True, type=PATH, metavar="RUN...")
@click.option(
    "-o",
    "--output",
    type=PATH,
    default=Path("report.html"),
    show_default=True,
    metavar="FILE.html",
    help="File of the page.",
)
@click.option("--only", multiple=True, metavar="NAME", help="Make this experiment; repeat for more. [default: all]")
@click.option("--zoo", "zoos", multiple=True, type=PATH, metavar="DIR", help="Folder of a moved zoo; repeat for more.")
@click.option("--title", metavar="TEXT", help="Title of the page.")
@click.option("--again", is_flag=True, help="Make saved experiments again.")
@seed_option("what experiments draw")
@device_option
@data_option
@force_option
@json_option
def report(
    runs: tuple[Path, ...],
    output: Path,
    only: tuple[str, ...],
    title: str | None,
    force: bool,
    out: Output,
    **settings: Any,
) -> None:
    """Make all experiments on runs, and one page of results.

    The page shows claims, pictures, numbers, recipes, versions and times; FILE.md and FILE.json are written beside it.
    Results are saved in RUN/experiments. An experiment is made again for another state, zoo or seed, and when any code
    of prepkit or netspace or the version of a numerical library has changed. Exit status 1 if an experiment could not
    be made: the page says why.
    """
    from netspace.report.make import report as make_report
    from netspace.run.run import Run

    if title is not None:
        settings["title"] = title
    opened = [Run(path) for path in runs]
    with StageLine() as line:
        try:
            made = make_report(opened, output, only=only or None, overwrite=force, progress=line, **settings)
        except KeyboardInterrupt:
            raise Interrupted("interrupted; finished experiments are kept. The same command goes on.") from None
    print_report(made, output, out)


@click.command(
    epilog=examples(
        "netspace paper paper-mini              # takes about 50 min with two threads of a 2-core Xeon",
        "netspace paper paper-quick --quick     # takes 4 min 22 s there",
    )
)
@click.argument("folder", type=PATH, metavar="OUT")
@click.option("--quick", is_flag=True, help="Train and measure little, too little for the claims.")
@click.option("--full", is_flag=True, help="Train three seeds, and the ablations.")
@device_option
@json_option
def paper(folder: Path, quick: bool, full: bool, device: str, out: Output) -> None:
    """Make the paper in miniature, from zoos to one page.

    The embedded zoos are trained, spaces are trained on them, and all experiments are made for OUT/report.html. Claims
    on zoos whose networks share their starts, which are easier, are counted apart from the paper's.

    Nothing is downloaded. If the command is interrupted, call it again: nothing that is finished is done twice.
    """
    from netspace.report.paper import PAGE
    from netspace.report.paper import paper as make_paper
    from netspace.training.trainer import Interrupted as TrainingInterrupted
    from prepkit.cli.allocator import keep_freed_memory

    if quick and full:
        raise click.UsageError("--quick and --full are two sizes; give one, or neither for the usual one.")
    keep_freed_memory()
    size = "quick" if quick else "full" if full else "mini"
    with StageLine() as line:
        try:
            made = make_paper(folder, size, device=device, progress=line)
        except (KeyboardInterrupt, TrainingInterrupted):
            raise Interrupted(
                f"interrupted; what is finished is kept in '{folder}'. The same command goes on."
            ) from None
    print_report(made, folder / PAGE, out)


def print_report(report: Report, page: Path, out: Output) -> None:
    """Print which claims held, as text or as one JSON document; exit with 1 if an experiment could not be made."""
    from netspace.experiments.verdict import HELD, NOT_HELD
    from netspace.report.words import bound, heading, measured, tally, verdict

    marks = {HELD: colour.good, NOT_HELD: colour.bad}
    lines = [report.note] if report.note else []
    for kind, count in report.counts.items():
        if count["of"]:
            lines.append(heading(report, kind))
        for claim in (claim for claim in report.claims if claim.kind == kind):
            why = "".join(f"; {reason}" for reason in claim.reasons)
            text = f"{claim.recipe}: {claim.text}: {measured(claim)} (must be {bound(claim)}){why}"
            said = verdict(claim)
            lines.append(f"  {marks.get(said, colour.remarkable)(f'{said:9}')}  {text}")
    out.notes(report.unfinished)
    out.result({"output": str(page), **report.to_dict()}, "\n".join([*lines, f"{page}: {tally(report)}"]))
    for failure in report.failures:
        click.echo(f"{colour.bad('could not be made:')} {with_flags(failure)}", err=True)
    if report.failures:
        raise click.exceptions.Exit(1)


class StageLine(StatusLine):
    """One line that says which stage runs now, how far it is, and what comes after it."""

    def __init__(self) -> None:
        super().__init__()
        self.began = time.monotonic()

    def __call__(self, stage: StageProgress) -> None:
        """Show a stage."""
        self.show(stage.stage, stage_text(stage, time.monotonic() - self.began))


def stage_text(stage: StageProgress, seconds: float) -> str:
    """`[ 3/41] 02:10 training digits_multi: 300 of 1,500 steps | then: 36 experiments, the page`."""
    text = f": {stage.text}" if stage.text else ""
    remaining = f" | then: {stage.remaining}" if stage.remaining else ""
    number = f"{stage.number:>{len(str(stage.total))}}"
    return f"[{number}/{stage.total}] {readable_seconds(seconds)} {stage.stage}{text}{remaining}"


COMMANDS: tuple[click.Command, ...] = (report, paper)
