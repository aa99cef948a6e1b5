"""Models that commands are given: files, or addresses on the Hub, which are fetched when their turn comes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from prepkit.address import HUB_SCHEME, HubAddress, UrlAddress, check_served, is_remote, parse, parse_remote
from prepkit.cli.completion import paths
from prepkit.errors import HubError
from prepkit.support.progress import show_progress

if TYPE_CHECKING:
    from prepkit.zoo.write.model_files import LocalModel


class Model(click.ParamType[Path | HubAddress]):
    """A path, or hf://user/model[@revision][/path]."""

    name = "MODEL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | HubAddress:
        """Make an address of a text that begins with hf://, and a path of any other."""
        if isinstance(value, Path | HubAddress):
            return value
        text = os.fspath(value)
        try:
            check_served(text)
            return parse(text) if text.startswith(HUB_SCHEME) else Path(text)
        except HubError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Offer files and folders."""
        return paths(ctx, param, incomplete)


class ZooPlace(click.ParamType[Path | HubAddress | UrlAddress]):
    """A zoo's folder, or its address on the Hub or in another store."""

    name = "DIR"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path | HubAddress | UrlAddress:
        """Make an address of a text that begins like one, and a path of any other."""
        if isinstance(value, Path | HubAddress | UrlAddress):
            return value
        text = os.fspath(value)
        try:
            return parse_remote(text) if is_remote(text) else Path(text)
        except HubError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Offer files and folders."""
        return paths(ctx, param, incomplete)


def check_models(models: Iterable[Path | HubAddress]) -> None:
    """Raise CheckpointError for a file that is missing or cannot be opened, before torch is imported, in seconds."""
    from prepkit.checkpoint.opening import opened
    from prepkit.checkpoint.sharded import model_file

    for model in models:
        if isinstance(model, Path):
            with opened(model_file(model)):
                pass


@contextmanager
def model_on_disk(model: Path | HubAddress) -> Iterator[LocalModel]:
    """Give a model on the disk; one on the Hub is fetched, and errors in the block name its address."""
    from prepkit.api import local_model

    with hub_bars([model]), local_model(model) as local:
        yield local


@contextmanager
def hub_bars(models: Iterable[Path | HubAddress]) -> Iterator[None]:
    """Let the Hub's client draw its bars on a terminal only, and where progress is shown."""
    if all(isinstance(model, Path) for model in models) or (sys.stderr.isatty() and show_progress.get()):
        yield
        return
    from prepkit.hub.client import quiet as without_bars

    with without_bars():
        yield
