"""`prepkit zoo align`: a zoo with the hidden units of its instances in the order of a reference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prepkit.cli.completion import zoo_ids
from prepkit.cli.examples import examples
from prepkit.cli.output import Output, json_option, with_flags
from prepkit.cli.zoo_text import facts
from prepkit.support.text import table

if TYPE_CHECKING:
    from prepkit.zoo.change.aligning import AlignedArchitecture, AlignedZoo


@click.command(epilog=examples("prepkit zoo align my-zoo aligned", "prepkit zoo align my-zoo aligned --centroid"))
@click.argument("source", type=click.Path(path_type=Path), metavar="SRC")
@click.argument("target", type=click.Path(path_type=Path), metavar="DST")
@click.option(
    "--reference",
    "references",
    multiple=True,
    metavar="ID",
    shell_complete=zoo_ids,
    help="Instance that those of its architecture are aligned to. Repeatable. [default: the first training instance]",
)
@click.option("--centroid", is_flag=True, help="Align to the mean of the aligned training instances.")
@click.option("--seed", default=0, show_default=True, help="Seed of the order in which groups of units are matched.")
@click.option("--name", help="Name of the new zoo. [default: the folder's name]")
@click.option(
    "--data", type=click.Path(path_type=Path), metavar="PATH", help="Folder of the task's data, for half-way weights."
)
@json_option
def align(
    source: Path,
    target: Path,
    references: tuple[str, ...],
    centroid: bool,
    seed: int,
    name: str | None,
    data: Path | None,
    out: Output,
) -> None:
    """Put hidden units into the order of a reference.

    The new zoo holds the same functions, ids and columns. Units change places, and those of odd activations and sines
    their signs and phases, so that values come near those of the reference, one for each architecture (weight matching,
    Ainsworth et al., 2022). Scales of rectified units stay as they are. Outputs are compared in float64. The report
    gives distances before and after, how many of a few scrambled copies came back to the same PRep, and, if the task's
    data is on this machine, the accuracy half-way between the weights of pairs of instances of different runs.

    """
    if references and centroid:
        raise click.UsageError("give --reference ID or --centroid, not both.")
    from prepkit.zoo.change.aligning import align as align_zoo
    from prepkit.zoo.change.aligning import num_steps
    from prepkit.zoo.format.manifest import read_manifest

    manifest = read_manifest(source)
    with out.bar("aligning", "instance") as bar:
        bar.begin(num_steps(manifest, centroid))
        result = align_zoo(
            source,
            target,
            references=references,
            to_centroid=centroid,
            seed=seed,
            name=name,
            data=data,
            progress=bar.advance,
        )
    out.notes(result.written.notes)
    out.result(_document(result), _text(result))


def _document(result: AlignedZoo) -> dict[str, Any]:
    architectures = [
        {**vars(one), "halfway": one.halfway if isinstance(one.halfway, str) else dict(vars(one.halfway))}
        for one in result.architectures
    ]
    return {
        "output": str(result.written.path),
        **facts(result.written.manifest),
        "aligned": architectures,
        "notes": [with_flags(note) for note in result.written.notes],
    }


def _text(result: AlignedZoo) -> str:
    rows = [
        (
            one.name,
            one.instances,
            one.reference,
            f"{one.distance_before:.4g} to {one.distance_after:.4g}",
            f"{one.spread_before:.4g} to {one.spread_after:.4g}",
            f"{one.returned} of {one.copies}",
        )
        for one in result.architectures
    ]
    titles = ("architecture", "instances", "reference", "distance to it", "distance from the mean", "copies back")
    lines = [str(result.written.path), "", table(rows, titles), ""]
    return "\n".join([*lines, *(f"{one.name}: {_halfway(one)}" for one in result.architectures)])


def _halfway(one: AlignedArchitecture) -> str:
    if isinstance(one.halfway, str):
        return f"accuracy half-way between weights is not known: {with_flags(one.halfway)}"
    known = one.halfway
    pairs = "1 pair" if known.pairs == 1 else f"{known.pairs} pairs"
    return (
        f"accuracy half-way between the weights of {pairs}: {known.before:.1%} before, {known.after:.1%} after, and "
        f"{known.ends:.1%} of the instances themselves"
    )
