"""`prepkit zoo view`: a zoo as one web page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from prepkit.cli.common import force_option
from prepkit.cli.examples import examples
from prepkit.cli.models import ZooPlace
from prepkit.cli.output import Output, json_option
from prepkit.cli.targets import check_page

if TYPE_CHECKING:
    from prepkit.address import HubAddress, UrlAddress


@click.command(
    epilog=examples("prepkit zoo view my-zoo", 'prepkit zoo view hf://user/zoo --where "accuracy > 0.5" --serve')
)
@click.argument("folder", type=ZooPlace(), metavar="DIR")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="PAGE.html", help="Where the page is written.")
@click.option("--where", metavar="EXPR", help="Show only instances that a condition chooses.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=20_000,
    show_default=True,
    metavar="N",
    help="Largest number of instances on the page.",
)
@click.option("--no-audit", is_flag=True, help="Leave the audit out, which reads the zoo twice more.")
@click.option("--serve", is_flag=True, help="Serve the page to browsers of this machine, until Ctrl-C.")
@click.option("--port", type=click.IntRange(1, 65_535), metavar="N", help="Port for --serve. [default: a free one]")
@force_option
@json_option
def view(
    folder: Path | HubAddress | UrlAddress,
    output: Path | None,
    where: str | None,
    limit: int,
    no_audit: bool,
    serve: bool,
    port: int | None,
    force: bool,
    out: Output,
) -> None:
    """Write a zoo as one web page: table, charts, map, audit.

    The page needs no other file and loads nothing, so it can be sent by mail. It has the table, with sorting and
    filters, charts of any columns, a map of the weights, each instance with its PRep in small and the statistics of its
    layers, and what `prepkit zoo audit` finds. DIR may be an address, such as hf://user/zoo; its shards are fetched.

    The page is NAME.html in this folder, or PAGE.html. With --serve it is written only if -o asks for it. Of a zoo with
    more than N instances, N are shown, evenly spaced, and no audit is made.
    """
    if port is not None and not serve:
        raise click.UsageError("--port goes with --serve.")
    from prepkit.api import open_zoo
    from prepkit.browsing.page import check_built, page_of, save_page, summary, summary_text
    from prepkit.browsing.serving import PageServer

    check_built()
    opened = open_zoo(str(folder))
    target = Path(f"{opened.name.rpartition('/')[2]}.html") if output is None and not serve else output
    if target is not None:
        check_page(target, force)
    zoo = opened if where is None else opened.where(where)
    server = PageServer(port or 0) if serve else None
    with out.bar("looking at", "network") as bar:
        page = page_of(zoo, limit=limit, with_audit=not no_audit, progress=bar)
    if target is not None:
        save_page(page, target, overwrite=force)
    address = None if server is None else server.address
    places = [("page", target), ("served", address)]
    text = "".join(f"\n  {name:<6} {place}" for name, place in places if place is not None)
    out.result(
        {**summary(page), "page": None if target is None else str(target), "address": address},
        summary_text(page) + text,
    )
    if server is not None:
        server.serve(page.html)
