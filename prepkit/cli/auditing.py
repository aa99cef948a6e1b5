"""`prepkit zoo audit`: what is wrong with a zoo as a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from prepkit.cli import colour
from prepkit.cli.common import force_option
from prepkit.cli.examples import examples
from prepkit.cli.models import ZooPlace
from prepkit.cli.output import Output, json_option
from prepkit.cli.targets import check_page

if TYPE_CHECKING:
    from prepkit.address import HubAddress, UrlAddress

FOUND = 1  # exit status where something of --fail-on was found


def _kinds(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[str, ...]:
    from prepkit.auditing.findings import KINDS

    kinds = tuple(dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip()))
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise click.BadParameter(f"there is no kind '{unknown[0]}'; the kinds are {', '.join(KINDS)}.")
    if text is not None and not kinds:
        raise click.BadParameter(f"name one or more of {', '.join(KINDS)}.")
    return kinds


STATUS = "Exit status: 0 done, 1 something of --fail-on was found, or the operation failed, 2 wrong usage or input."
EXAMPLES = examples(
    "prepkit zoo audit my-zoo -o audit.html", "prepkit zoo audit my-zoo --against hf://user/zoo --fail-on leaks,nan"
)


@click.command(epilog=f"{STATUS}\n\n{EXAMPLES}")
@click.argument("folder", type=ZooPlace(), metavar="DIR")
@click.option("--against", type=ZooPlace(), metavar="OTHER", help="Another zoo, whose networks DIR should not hold.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="PAGE.html", help="Also write a page.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1, max_open=True),
    default=1e-3,
    show_default=True,
    metavar="X",
    help="Largest distance of nearly equal weights, as a share of their norm.",
)
@click.option("--fail-on", callback=_kinds, metavar="KIND,...", help="Kinds of findings that make the exit status 1.")
@force_option
@json_option
@click.pass_context
def audit(
    context: click.Context,
    folder: Path | HubAddress | UrlAddress,
    against: Path | HubAddress | UrlAddress | None,
    output: Path | None,
    tolerance: float,
    fail_on: tuple[str, ...],
    force: bool,
    out: Output,
) -> None:
    """Find copies, leaks between splits and broken networks.

    Copies are found by their bytes; near copies by their weights, also where the hidden units stand in another order,
    as far as it is known which may change places, or were scaled or had their signs turned. Each pair that is told was
    compared value by value; what could not be checked is told too. The table is searched for columns that are empty,
    constant or contradict, and the manifest for licence, task, origin and function. Both zoos may be addresses, such as
    hf://user/zoo.

    \b
    Kinds of findings: leaks, seeds, duplicates, near-duplicates, same-run, nan,
    constant, zeros, dead, columns, lineage.
    """
    if force and output is None:
        raise click.UsageError("--force goes with -o PAGE.html.")
    from prepkit.auditing.audit import audit as audit_zoo
    from prepkit.auditing.report import save_page, text_of

    if output is not None:
        check_page(output, force)
    with out.bar("auditing", "network") as bar:
        found = audit_zoo(str(folder), None if against is None else str(against), tolerance=tolerance, progress=bar)
    if output is not None:
        save_page(found, output, overwrite=force)
    text = _coloured(text_of(found), fail_on) + ("" if output is None else f"\n  page             {output}")
    out.result({**found.to_dict(), "page": None if output is None else str(output)}, text)
    if found.has(fail_on):
        context.exit(FOUND)


def _coloured(text: str, fail_on: tuple[str, ...]) -> str:
    """Colour the kinds of findings at the beginnings of lines."""
    from prepkit.auditing.findings import KINDS

    for kind in KINDS:
        mark = colour.bad if kind in fail_on else colour.remarkable
        text = text.replace(f"\n  {kind} ", f"\n  {mark(kind)} ")
    return text
