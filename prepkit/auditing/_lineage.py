"""What the manifest and the table tell of licence, task, origin and function, and what they do not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prepkit.auditing.findings import Finding
from prepkit.errors import counted
from prepkit.licence import OTHER, UNKNOWN, licence_of_card

if TYPE_CHECKING:
    from prepkit.zoo.read.zoo import Zoo

SHOWN = 5
LINEAGE = ("run", "seed")  # columns that tell which networks have the same origin


def findings_of_lineage(zoo: Zoo) -> Iterator[Finding]:
    """Yield what is not known of a zoo."""
    for sentence in _missing(zoo):
        yield Finding("lineage", sentence, 1)


def known_of(zoo: Zoo) -> tuple[str, ...]:
    """Return sentences on what the zoo tells of itself."""
    manifest = zoo.manifest
    said = [f"The licence is {manifest.license}."] if manifest.license else []
    if manifest.task is not None:
        data = manifest.task.get("dataset")
        said.append(f"The task is {manifest.task.get('kind', 'recorded')}" + (f", {data}." if data else "."))
    if manifest.function is not None:
        said.append(f"The function is {manifest.function}.")
    said += [f"Column {name} tells the {name} of {_coverage(zoo, name)}." for name in LINEAGE if _rows_with(zoo, name)]
    if manifest.created_by:
        said.append(f"It was made by {manifest.created_by}.")
    return tuple(said)


def _missing(zoo: Zoo) -> Iterator[str]:
    manifest = zoo.manifest
    if not manifest.license or licence_of_card(manifest.license)[0] == UNKNOWN:
        yield "No licence is given, so that nobody knows what may be done with the zoo."
    elif licence_of_card(manifest.license) == (OTHER, None):
        yield f"The licence {manifest.license!r} has no name."
    if manifest.task is None:
        yield "No task is recorded, so that it is not known what the networks were trained on."
    if not manifest.provenance:
        yield "No provenance is recorded: neither how the zoo was made, nor of what."
    if manifest.function is not None and manifest.function.verified is None:
        why = manifest.function.how.unverifiable
        yield (
            "The function is unverified: the zoo was imported, and no run has shown that networks compute what those "
            + (
                f"of the makers did, since {why}."
                if why
                else "of the makers did; `prepkit zoo verify --rerun` shows it."
            )
        )
        if manifest.function.how_to_run is None:
            yield "The zoo does not say how its networks are run."
    unknown = [stored.name for stored in manifest.architectures if stored.config is None]
    if unknown:
        shown = ", ".join(unknown[:SHOWN]) + (f" and {len(unknown) - SHOWN:,} more" if len(unknown) > SHOWN else "")
        yield f"Only the layout is known of {counted(len(unknown), 'architecture')}, which cannot be built: {shown}."
    for name in LINEAGE:
        count = _rows_with(zoo, name)
        if not count:
            yield f"No column tells the {name} of a network."
        elif count < len(zoo):
            yield f"Column {name} is empty in {counted(len(zoo) - count, 'row')} of {len(zoo):,}."
    unsplit = zoo.table["split"].null_count
    if unsplit and manifest.splits:
        yield f"{counted(unsplit, 'network')} of {len(zoo):,} {'is' if unsplit == 1 else 'are'} in no split."


def _rows_with(zoo: Zoo, name: str) -> int:
    return len(zoo) - zoo.table[name].null_count if name in zoo.table.column_names else 0


def _coverage(zoo: Zoo, name: str) -> str:
    count = _rows_with(zoo, name)
    return "all networks" if count == len(zoo) else f"{count:,} of {counted(len(zoo), 'network')}"
