"""`prepkit zoo train`: a spec becomes a zoo."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prepkit.cli.common import Interrupted, device_option, json_option, print_json
from prepkit.cli.zoo_text import description, facts
from prepkit.errors import counted
from prepkit.progress import SHARE, ProgressBar
from prepkit.text import table

if TYPE_CHECKING:
    from prepkit.training.run import Trained


@click.command()
@click.argument("spec", metavar="SPEC")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@device_option
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
    try:
        # Ray prints of workers that are lost, on stdout.
        with redirect_stdout(sys.stderr), ProgressBar("training", SHARE, quiet=as_json) as bar:
            trained = train_zoo(spec, folder, progress=bar, **settings)
    except KeyboardInterrupt:
        kept = f"interrupted; what is finished is kept in '{folder}'. The same command goes on."
        raise Interrupted(kept) from None
    tell(trained, read_manifest(folder), as_json)


@click.command()
@json_option
def specs(as_json: bool) -> None:
    """List the zoo specs that are built in."""
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
        were = "was" if trained.diverged == 1 else "were"
        attempts = f"{counted(trained.diverged, 'attempt')} diverged and {were} replaced"
        click.echo(f"note: {attempts}; zoo.json tells which.", err=True)
    click.echo(description(manifest))
