"""Colour of errors, notes and verdicts: on terminals only, unless NO_COLOR or FORCE_COLOR says otherwise."""

from __future__ import annotations

import os

import click


def wanted() -> bool | None:
    """Return whether to colour, as no-color.org and force-color.org have it; None leaves it to each stream."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return False if os.environ.get("TERM") == "dumb" else None


def good(text: str) -> str:
    """Return a verdict that all is well, in green."""
    return click.style(text, fg="green")


def bad(text: str) -> str:
    """Return what failed, or is wrong, in red."""
    return click.style(text, fg="red", bold=True)


def remarkable(text: str) -> str:
    """Return what the user should look at, in yellow."""
    return click.style(text, fg="yellow")
