"""`prepkit zoo normalise`: the means and deviations that learners normalise a zoo by."""

from __future__ import annotations

from pathlib import Path

import click

from prepkit.cli.examples import examples
from prepkit.cli.output import Output, json_option
from prepkit.errors import counted


@click.command(epilog=examples("prepkit zoo normalise my-zoo", "prepkit zoo normalise my-zoo --per slot --force"))
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--per",
    type=click.Choice(("cell", "slot")),
    default="cell",
    show_default=True,
    help="For each value of a PRep (cell) or each tensor (slot).",
)
@click.option("--split", metavar="NAME", help="Split to compute from. [default: train, or all without splits]")
@click.option("--force", is_flag=True, help="Replace what the zoo is normalised by.")
@json_option
def normalise(folder: Path, per: str, split: str | None, force: bool, out: Output) -> None:
    """Compute what learners normalise a zoo by.

    Mean and deviation of each value of a PRep, or of each tensor, are computed over the training instances in one pass
    and kept in the zoo. `zoo.loader(normalise=True)` uses them. A learner keeps their sha256, and
    `zoo.check_preprocessing(sha256)` refuses a zoo that has others.

    """
    from prepkit.zoo.change.normalising import normalise as normalise_zoo
    from prepkit.zoo.format.manifest import read_manifest

    manifest = read_manifest(folder)
    with out.bar("reading", "instance") as bar:
        bar.begin(manifest.splits.get(split or "train", manifest.table.rows))
        result = normalise_zoo(folder, per=per, split=split, force=force, progress=bar.advance)  # type: ignore[arg-type]
    out.notes(result.notes)
    stored = result.stored
    document = {"zoo": str(folder), **vars(stored), "constant": result.constant, "notes": list(result.notes)}
    over = f"{stored.split or 'all'}, {counted(stored.rows, 'instance')}"
    out.result(document, f"{folder}: normalised per {stored.per} over {over}\n  sha256 {stored.sha256}")
