"""An audit as text, and as a page that needs no other file and loads nothing."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from prepkit.auditing.findings import KINDS, Audit, Finding
from prepkit.errors import counted
from prepkit.support.files import replacing
from prepkit.version import __version__

if TYPE_CHECKING:
    from jinja2 import Template

GROUPS_IN_TEXT = 3  # of networks that belong together, for each finding
GROUPS_ON_PAGE = 200
IDS_OF_GROUP = 6
WIDTH = 110


def text_of(audit: Audit) -> str:
    """Return an audit as text for a terminal."""
    lines = [f"{audit.zoo}: {counted(audit.instances, 'network')}{_against(audit)}"]
    for kind in KINDS:
        for found in audit.of(kind):
            lines += _wrapped(kind, found.sentence)
            lines += [f"{'':19}{line}" for line in _groups(found, GROUPS_IN_TEXT)]
    if none := kinds_without(audit):
        lines += _wrapped("none found", ", ".join(none))
    for sentence in audit.unchecked:
        lines += _wrapped("not checked", sentence)
    return "\n".join(lines)


def page_of(audit: Audit) -> str:
    """Return an audit as one HTML document; all text of the zoo is escaped in it."""
    return _template().render(
        audit=audit,
        against=_against(audit),
        kinds=KINDS,
        none=kinds_without(audit),
        groups=lambda found: list(_groups(found, GROUPS_ON_PAGE)),
        version=__version__,
    )


def save_page(audit: Audit, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write the page, whole or not at all.

    raises OutputError if the file exists and `overwrite` is false, or cannot be written
    """
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_text(page_of(audit), encoding="utf-8")


def kinds_without(audit: Audit) -> list[str]:
    """Return the kinds of which nothing was found."""
    return [kind for kind in KINDS if not audit.of(kind)]


def _against(audit: Audit) -> str:
    return "" if audit.against is None else f", compared with '{audit.against}'"


def _wrapped(name: str, sentence: str) -> list[str]:
    indent = " " * 19
    return textwrap.wrap(sentence, WIDTH, initial_indent=f"  {name:<17}", subsequent_indent=indent)


def _groups(found: Finding, most: int) -> Iterator[str]:
    """Yield the ids of each group, and how many are not shown."""
    singles = [ids[0] for ids in found.groups if len(ids) == 1]
    several = [ids for ids in found.groups if len(ids) > 1]
    for ids in several[:most]:
        yield " = ".join(_short(ids[:IDS_OF_GROUP])) + _more(len(ids) - IDS_OF_GROUP)
    if len(several) > most:
        yield f"and {counted(len(several) - most, 'more group')}"
    if singles:
        shown = most * IDS_OF_GROUP
        yield ", ".join(_short(singles[:shown])) + _more(len(singles) - shown)


def _short(ids: tuple[str, ...] | list[str]) -> list[str]:
    return [id_ if len(id_) <= 60 else f"{id_[:57]}..." for id_ in ids]


def _more(count: int) -> str:
    return f" and {count:,} more" if count > 0 else ""


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.jinja")
