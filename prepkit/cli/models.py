"""Models that commands are given: files, or addresses on the Hub, which are fetched when their turn comes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from prepkit.address import HUB_SCHEME, HubAddress, parse
from prepkit.errors import HubError


class Model(click.ParamType[Path | HubAddress]):
    """A path, or hf://user/model[@revision][/path]."""

    name = "MODEL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | HubAddress:
        """Tell the two apart by how they begin."""
        if not isinstance(value, str) or not value.startswith(HUB_SCHEME):
            return value if isinstance(value, Path | HubAddress) else Path(os.fspath(value))
        try:
            return parse(value)
        except HubError as error:
            self.fail(str(error), param, ctx)


@dataclass(frozen=True)
class AtHand:
    """A model's file, and where it is from: its path, or its address with the commit."""

    file: Path
    source: str


@contextmanager
def at_hand(model: Path | HubAddress, quiet: bool) -> Iterator[AtHand]:
    """A model on the disk; one of the Hub is fetched, and errors in the block name its address.

    quiet: no bars of the Hub's client; there are none in a log file either
    """
    if isinstance(model, Path):
        yield AtHand(model, str(model))
        return
    from prepkit.hub.checkpoints import fetch_checkpoint, naming_address
    from prepkit.hub.client import quiet as without_bars

    if quiet or not sys.stderr.isatty():
        with without_bars():
            found = fetch_checkpoint(model)
    else:
        found = fetch_checkpoint(model)
    with naming_address(found):
        yield AtHand(found.file, str(found.address))
