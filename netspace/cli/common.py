"""Common parts of the commands: options, opening a run, results as text and JSON, and a bar of progress."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from prepkit.cli.common import device_option
from prepkit.cli.completion import paths
from prepkit.cli.output import Output
from prepkit.support.progress import Advance

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    import prepkit
    from netspace.run.run import Run
    from netspace.space.network import NetSpace

F = TypeVar("F", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)
RESULT = "result.json"  # marks a folder that an exploring command wrote, which --force may replace


class Place(click.ParamType[Any]):
    """A folder's path, or an address, which stays a text.

    in_stores: whether it may lie in a store such as s3://bucket/zoo too, and not only on the Hub, hf://user/name
    """

    name = "PLACE"

    def __init__(self, *, in_stores: bool) -> None:
        self.in_stores = in_stores

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        """Tell paths from addresses by how they begin, and refuse an address that cannot be read."""
        from prepkit.address import is_remote, parse, parse_remote
        from prepkit.errors import HubError

        text: str = os.fspath(value)
        if not is_remote(text):
            return Path(text)
        try:
            (parse_remote if self.in_stores else parse)(text)
        except HubError as error:
            self.fail(str(error), param, ctx)
        return text

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Offer files and folders."""
        return paths(ctx, param, incomplete)


PLACE = Place(in_stores=False)
ZOO_PLACE = Place(in_stores=True)


# Options --------------------------------------------------------------------------------------------------------


def run_argument(command: F) -> F:
    """Add RUN, a folder or hf://user/run."""
    return click.argument("run", type=PLACE, metavar="RUN")(command)


def zoo_option(command: F) -> F:
    """Add `--zoo`, where the zoo of the run is now."""
    text = "Where the run's zoo is now: a folder, hf://user/zoo, s3://bucket/zoo. [default: where it was in training]"
    return click.option("--zoo", type=ZOO_PLACE, metavar="ZOO", help=text)(command)


def space_options(command: F) -> F:
    """Add `--kind` and `--device`: which weights are used, and where they run."""
    text = "Use the weights of the best validation, or the last ones."
    kinds = click.Choice(["best", "latest"])
    return click.option("--kind", type=kinds, default="best", show_default=True, help=text)(device_option(command))


def data_option(command: F) -> F:
    """Add `--data`, for tasks whose data are a folder of the user's."""
    return click.option("--data", type=PATH, metavar="PATH", help="Folder of the task's data.")(command)


def seed_option(purpose: str) -> Callable[[F], F]:
    """Add `--seed`; the purpose is what is drawn at random: "drawing pairs"."""
    text = f"Seed for {purpose}."
    return click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help=text)


def refuse_unused(options: Mapping[str, str]) -> None:
    """Refuse options that would do nothing.

    options: the purpose of each option: {"row": "goes with --embedding"}
    """
    from click.core import ParameterSource

    context = click.get_current_context()
    for name, use in options.items():
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')} {use}; leave it out here.")


# Runs and embeddings --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Opened:
    """A run that is ready to be explored, on a device.

    zoo_path: where the zoo is now; None if it is where it was in training
    any_zoo:  whether the zoo may be another one than the run was trained on
    """

    run: Run
    space: NetSpace
    device: torch.device
    zoo_path: Path | str | None
    any_zoo: bool

    @cached_property
    def zoo(self) -> prepkit.Zoo:
        """The zoo, opened when it is first needed.

        raises ZooMismatch, and what opening a zoo raises
        """
        if self.zoo_path is not None and self.any_zoo:
            return open_any_zoo(self.run, self.zoo_path)
        return self.run.open_zoo(self.zoo_path)


def open_run(run: Path | str, zoo: Path | str | None, kind: str, device: str, *, any_zoo: bool = False) -> Opened:
    """Open a run and load its NetSpace; the arguments are explained at Opened.

    raises RunError, DeviceError
    """
    from netspace.run.run import Run
    from prepkit.support.device import choose_device

    opened, chosen = Run(run), choose_device(device)
    return Opened(opened, opened.space(kind, chosen), chosen, zoo, any_zoo)


def open_any_zoo(run: Run, path: Path | str) -> prepkit.Zoo:
    """Open a zoo at the run's width, and at its height if that has room for every instance: padding is encoded too."""
    import prepkit

    network = run.recipe.network
    zoo = prepkit.open_zoo(path, width=network.width)
    if zoo.shape.height < network.height:
        zoo = prepkit.open_zoo(path, width=network.width, height=network.height)
    return zoo


def load_embeddings(path: Path, embedding_size: int) -> Tensor:
    """Read the embeddings `[N, E]` of a .npy file, which holds `[E]` or has any number of axes before it.

    raises PointError if it cannot be read or holds something else
    """
    import numpy as np
    import torch

    from netspace.explore.sampling import PointError

    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise PointError(f"{path}: cannot be read as an array of numpy ({error}).") from None
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        raise PointError(f"{path}: holds no array of numbers; give a .npy file of embeddings.")
    if values.ndim < 1 or values.shape[-1] != embedding_size or not values.size:
        shape = list(values.shape)
        raise PointError(f"{path}: an array of {shape}; embeddings of this run are [..., {embedding_size}].")
    if not np.isfinite(values).all():
        raise PointError(f"{path}: holds values that are not finite; give other embeddings.")
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).view(-1, embedding_size)


# Results --------------------------------------------------------------------------------------------------------


def try_to_draw(draw: Callable[[], None], name: str) -> list[str]:
    """Draw, or return a note that says which extra is missing: the numbers are worth having without a picture."""
    from prepkit.figures import PlotsMissing
    from prepkit.tasks.distance_grid import MeshesMissing

    try:
        draw()
    except (PlotsMissing, MeshesMissing) as error:
        return [f"no {name}: {error}"]
    return []


def print_written(
    out: Output, document: Mapping[str, Any], text: str, notes: list[str], path: Path | None, key: str = "output"
) -> None:
    """Print a result with its notes and the path that it was written to, if any, which has a key of the document."""
    out.notes(notes)
    more = {key: None if path is None else str(path), "notes": notes}
    out.result({**document, **more}, text if path is None else f"{text}\n{path}")


def share(value: float | None) -> str:
    """Return a share as text."""
    return "-" if value is None else f"{value:.4f}"


@contextmanager
def working(total: int, name: str, unit: str, out: Output) -> Iterator[Advance]:
    """Give the function that moves a bar on; refused memory becomes an error of one line."""
    from netspace.training.memory import OutOfMemory
    from prepkit.support.device import is_out_of_memory

    try:
        with out.bar(name, unit) as bar:
            bar.begin(total)
            yield bar.advance
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"{name}: not enough memory ({str(error).splitlines()[0]}); ask for fewer at once.") from None
