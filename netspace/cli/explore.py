"""`netspace evaluate`, `embed`, `interpolate`, `optimize` and `decode`: what a trained space is for."""

from __future__ import annotations

import click

COMMANDS: tuple[click.Command, ...] = ()
