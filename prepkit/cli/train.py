"""`prepkit zoo train` and `prepkit zoo specs`: zoos from the specs of their training."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from prepkit.cli.common import Interrupted, device_option
from prepkit.cli.completion import names
from prepkit.cli.completion import specs as known_specs
from prepkit.cli.examples import examples
from prepkit.cli.output import Output, json_option
from prepkit.cli.zoo_text import description, facts
from prepkit.errors import counted
from prepkit.support.progress import SHARE
from prepkit.support.text import table


@click.command(
    epilog=examples(
        "prepkit zoo train digits_single my-zoo", "prepkit zoo train cifar10_multi trial --instances 1 --epochs 2"
    )
)
@click.argument("spec", metavar="SPEC", shell_complete=names(known_specs, or_path=True))
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@device_option
@click.option("--stack", type=click.IntRange(min=1), metavar="K", help="Instances per stack. [default: by device]")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads per stack. [default: all cores]")
@click.option("--data", type=click.Path(path_type=Path), metavar="PATH", help="Folder of the task's data.")
@click.option(
    "--instances", type=click.IntRange(min=1), metavar="N", help="Instances per architecture and split, for a trial."
)
@click.option("--epochs", type=click.IntRange(min=1), metavar="E", help="Largest number of epochs, for a trial.")
@click.option("--ray", metavar="ADDRESS", help="Address of a Ray cluster, `auto` to find one, or `local` to start one.")
@click.option(
    "--gpus",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Share of a GPU that each stack takes on Ray.",
)
@json_option
def train(spec: str, folder: Path, out: Output, **settings: Any) -> None:
    """Train a zoo from a spec.

    SPEC is a TOML file or the name of a built-in spec (`prepkit zoo specs`). Instances of one architecture are trained
    in stacks where that is faster, each as if it were alone. After an interruption the same command goes on; nothing
    that is finished is trained again.
    """
    from prepkit.cli.allocator import keep_freed_memory
    from prepkit.training.run import train_zoo
    from prepkit.zoo.format.manifest import read_manifest

    keep_freed_memory()
    try:
        with redirect_stdout(sys.stderr), out.bar("training", SHARE) as bar:  # Ray reports lost workers on stdout
            trained = train_zoo(spec, folder, progress=bar, **settings)
    except KeyboardInterrupt:
        kept = f"interrupted; what is finished is kept in '{folder}'. The same command goes on."
        raise Interrupted(kept) from None
    manifest = read_manifest(folder)
    if trained.diverged:
        were = "was" if trained.diverged == 1 else "were"
        out.notes([f"{counted(trained.diverged, 'attempt')} diverged and {were} replaced; zoo.json tells which."])
    engine = trained.engine.to_dict()
    document = {"output": str(trained.path), **facts(manifest), "diverged": trained.diverged, "engine": engine}
    out.result(document, description(manifest))


@click.command(epilog=examples("prepkit zoo specs", "prepkit zoo specs digits_single > mine.toml"))
@click.argument("name", required=False, shell_complete=names(known_specs))
@json_option
def specs(name: str | None, out: Output) -> None:
    """List the built-in specs of zoos, or print one of them.

    With NAME the spec itself is printed, a TOML file. Save it, change it, and give its path to `prepkit zoo train`.
    """
    from prepkit.training.spec import load_spec, spec_names, spec_text

    if name is not None:
        text = spec_text(name)
        out.result({"name": name, "toml": text}, text.rstrip("\n"))
        return
    known = [load_spec(name) for name in spec_names()]
    counts = [sum(sum(splits.values()) for splits in spec.instances.values()) for spec in known]
    documents = [
        {"name": spec.name, "instances": count, "license": spec.license, "description": spec.description}
        for spec, count in zip(known, counts, strict=True)
    ]
    rows = [(spec.name, count, spec.description) for spec, count in zip(known, counts, strict=True)]
    out.result({"specs": documents}, table(rows, ("name", "instances", "description")))
