"""What mkdocs calls while it builds the pages: the reference of commands, made of the commands themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import click

import netspace.cli
import prepkit.cli

GROUPS = {"prepkit": prepkit.cli.main, "netspace": netspace.cli.main}
PLACE = re.compile(r"^<!-- commands of (\w+) -->$", re.MULTILINE)
WIDTH = 96


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the help of all commands in the place of `<!-- commands of prepkit -->`."""
    return PLACE.sub(lambda found: "\n\n".join(parts(found[1], GROUPS[found[1]])), markdown)


def parts(name: str, command: click.Command, parent: click.Context | None = None) -> Iterator[str]:
    """Yield a heading and the help of a command, then those of its own commands."""
    shown = name.rpartition(" ")[2]
    names = command.context_settings.get("help_option_names")  # those of a program's root are those of its commands
    context = click.Context(command, info_name=shown, parent=parent, terminal_width=WIDTH, help_option_names=names)
    context.max_content_width = WIDTH
    yield f"{'#' * min(2 + name.count(' '), 4)} {name}\n\n```text\n{command.get_help(context)}\n```"
    if isinstance(command, click.Group):
        for part in command.list_commands(context):
            own = command.get_command(context, part)
            if own is not None and not own.hidden:
                yield from parts(f"{name} {part}", own, context)
