"""`prepkit zoo train`: a spec becomes a zoo."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prepkit.cli.common import Interrupted, json_option, print_json
from prepkit.cli.zoo_text import description, facts

if TYPE_CHECKING:
    from prepkit.progress import Standing
    from prepkit.training.run import Trained

LINE_SECONDS = 10.0  # between plain lines where there is no terminal


@click.command()
@click.argument("spec", metavar="SPEC")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--device", metavar="D", help="cpu, cuda, cuda:1 or mps. [default: a GPU if there is one]")
@click.option("--stack", type=click.IntRange(min=1), metavar="K", help="Instances at once. [default: by device]")
@click.option("--threads", type=click.IntRange(min=1), help="Of the CPU, for each stack. [default: all cores]")
@click.option("--data", type=click.Path(path_type=Path), metavar="PATH", help="Folder of the task's data.")
@click.option("--instances", type=click.IntRange(min=1), metavar="N", help="Of each architecture and split: a trial.")
@click.option("--epochs", type=click.IntRange(min=1), metavar="E", help="At most so many: a trial.")
@click.option("--ray", metavar="ADDRESS", help="Train on a Ray cluster: its address, auto, or local to start one.")
@click.option(
    "--gpus",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Share of a GPU that each stack takes on Ray.",
)
@json_option
def train(spec: str, folder: Path, as_json: bool, **settings: Any) -> None:
    """Train a zoo from a spec: the path of a TOML file, or the name of a built-in one (`prepkit zoo specs`).

    \b
    prepkit zoo train digits_single my-zoo
    prepkit zoo train cifar10_multi trial --instances 1 --epochs 2

    Instances of one architecture are trained together where that is faster, each as if it were alone. If it is
    interrupted, the same command goes on; nothing that is finished is trained again.
    """
    from prepkit.cli.allocator import keep_freed_memory
    from prepkit.training.run import train_zoo
    from prepkit.zoo.format.manifest import read_manifest

    keep_freed_memory()
    bar = progress(as_json)
    try:
        with redirect_stdout(sys.stderr):  # Ray prints of workers that are lost, on stdout
            trained = train_zoo(spec, folder, progress=bar, **settings)
    except KeyboardInterrupt:
        kept = f"interrupted; what is finished is kept in '{folder}'. The same command goes on."
        raise Interrupted(kept) from None
    finally:
        bar.close()
    tell(trained, read_manifest(folder), as_json)


@click.command()
@json_option
def specs(as_json: bool) -> None:
    """List the zoo specs that are built in."""
    from prepkit.cli.common import table
    from prepkit.training.spec import load_spec, spec_names

    known = [load_spec(name) for name in spec_names()]
    counts = [sum(sum(of.values()) for of in spec.instances.values()) for spec in known]
    if as_json:
        rows = [
            {"name": spec.name, "instances": count, "license": spec.license, "description": spec.description}
            for spec, count in zip(known, counts, strict=True)
        ]
        print_json({"specs": rows})
        return
    rows_of_text = [(spec.name, count, spec.description) for spec, count in zip(known, counts, strict=True)]
    click.echo(table(rows_of_text, ("name", "instances", "description")))


def tell(trained: Trained, manifest: Any, as_json: bool) -> None:
    """What was trained, as text or as one JSON document."""
    if as_json:
        engine = trained.engine.to_dict()
        print_json({"output": str(trained.path), **facts(manifest), "diverged": trained.diverged, "engine": engine})
        return
    if trained.diverged:
        click.echo(f"note: {trained.diverged} attempts diverged and were replaced; zoo.json tells which.", err=True)
    click.echo(description(manifest))


def progress(quiet: bool) -> Any:
    """A Progress that draws a bar on a terminal, writes plain lines elsewhere, and nothing with --json."""
    from tqdm import tqdm

    from prepkit.progress import Progress

    class Bar(Progress):
        """A bar over the work that is left; instances and accuracy beside it."""

        def __init__(self) -> None:
            self.lines = not sys.stderr.isatty()
            self.bar: Any = None
            self.told = self.started = time.monotonic()
            self.done = self.work = 0.0
            self.now: Standing | None = None

        def begin(self, work: float, standing: Standing) -> None:
            """Draw it, or say how much there is to do."""
            self.work, self.now, self.started = work, standing, time.monotonic()
            if self.lines:
                self._say(f"training: {standing.of - standing.instances} of {standing.of} instances are left")
                return
            form = "{desc} {percentage:3.0f}%|{bar}| {unit} [{elapsed}<{remaining}]"
            self.bar = tqdm(total=work, desc="training", bar_format=form, disable=quiet, unit=text_of(standing))

        def advance(self, work: float) -> None:
            """Move on by some work."""
            self.done += work
            if self.bar is not None:
                self.bar.update(work)
            elif time.monotonic() - self.told >= LINE_SECONDS:
                self._line()

        def finished(self, standing: Standing) -> None:
            """Show what is finished."""
            self.now = standing
            if self.bar is not None:
                self._beside(standing)
            elif standing.instances == standing.of or time.monotonic() - self.told >= LINE_SECONDS:
                self._line()

        def note(self, text: str) -> None:
            """A line of its own, above the bar."""
            if not quiet:
                tqdm.write(f"note: {text}", file=sys.stderr)

        def close(self) -> None:
            """Leave the bar as it is."""
            if self.bar is not None:
                self.bar.close()

        def _beside(self, standing: Standing) -> None:
            self.bar.unit = text_of(standing)  # where tqdm's own postfix would begin with a comma
            self.bar.refresh()

        def _line(self) -> None:
            if self.now is None:
                return
            self.told = time.monotonic()
            share = min(1.0, self.done / self.work) if self.work else 1.0
            left = (self.told - self.started) * (1 - share) / share if share else 0.0
            self._say(f"training: {share:4.0%}, {text_of(self.now)}, {duration(left)} left")

        def _say(self, text: str) -> None:
            if not quiet:
                click.echo(text, err=True)

    return Bar()


def text_of(standing: Standing) -> str:
    """`24/368 instances, accuracy 0.962`."""
    accuracy = "" if standing.accuracy is None else f", accuracy {standing.accuracy:.3f}"
    return f"{standing.instances}/{standing.of} instances{accuracy}"


def duration(seconds: float) -> str:
    """`1:02:03`, or `02:03`."""
    from tqdm import tqdm

    interval: Callable[[float], str] = tqdm.format_interval
    return interval(seconds)
