"""What the exploring commands share: options, opening a run, folders that are written whole or not at all, progress."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from prepkit.cli.common import device_option
from prepkit.errors import OutputError, PrepkitError
from prepkit.progress import Advance, ProgressBar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    import prepkit
    from netspace.run.run import Run
    from netspace.space.network import NetSpace

F = TypeVar("F", bound=Callable[..., Any])
RESULT = "result.json"  # marks a folder as one of ours, which --force may replace


class Place(click.ParamType[Any]):
    """A folder's path, or hf://user/name[@revision], which stays a text."""

    name = "PLACE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        """Tell the two apart by how they begin."""
        from prepkit.address import HUB_SCHEME

        text = os.fspath(value)
        return text if text.startswith(HUB_SCHEME) else Path(text)


PLACE = Place()


@dataclass(frozen=True)
class Opened:
    """A run that is ready to be explored, on a device.

    zoo_path: where the zoo is; where it was if missing
    any_zoo:  whether it may be another one than the run was trained on
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
        from netspace.data import ZooMismatch
        from prepkit.address import HUB_SCHEME

        if self.zoo_path is not None and self.any_zoo:
            return open_any_zoo(self.run, self.zoo_path)
        recorded = self.run.record["zoo"]["path"]
        local = recorded is not None and not recorded.startswith(HUB_SCHEME)
        if self.zoo_path is None and local and not Path(recorded).exists():
            raise ZooMismatch(
                f"the run '{self.run.path}' was trained on a zoo at '{recorded}', which is not there; say --zoo DIR."
            )
        return self.run.open_zoo(self.zoo_path)


def run_argument(command: F) -> F:
    """RUN, a folder or hf://user/run."""
    return click.argument("run", type=PLACE, metavar="RUN")(command)


def zoo_option(command: F) -> F:
    """`--zoo`, where the zoo of the run is now."""
    return click.option(
        "--zoo",
        type=PLACE,
        metavar="ZOO",
        help="Where the run's zoo is now, a folder or hf://user/zoo; where it was if missing.",
    )(command)


def space_options(command: F) -> F:
    """`--kind`, `--device`: which weights, and where they run."""
    return click.option(
        "--kind",
        type=click.Choice(["best", "latest"]),
        default="best",
        show_default=True,
        help="The weights of the best validation, or the last ones.",
    )(device_option(command))


def data_option(command: F) -> F:
    """`--data`, for tasks that are a folder of the user's."""
    return click.option("--data", type=click.Path(path_type=Path), metavar="PATH", help="Folder of the task's data.")(
        command
    )


def seed_option(what: str) -> Callable[[F], F]:
    """`--seed`, of what is drawn at random."""
    return click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help=f"Of {what}.")


def refuse_unused(options: Mapping[str, str]) -> None:
    """Refuse options that would do nothing.

    options: what each, if it was given, is for: {"row": "goes with --embedding"}
    """
    from click.core import ParameterSource

    context = click.get_current_context()
    for name, use in options.items():
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')} {use}; leave it out here.")


def open_run(run: Path | str, zoo: Path | str | None, kind: str, device: str, *, any_zoo: bool = False) -> Opened:
    """The run and its NetSpace; see Opened.

    raises RunError, DeviceError
    """
    from netspace.run.run import Run
    from prepkit.device import choose_device

    opened, on = Run(run), choose_device(device)
    return Opened(opened, opened.space(kind, on), on, zoo, any_zoo)


def open_any_zoo(run: Run, path: Path | str) -> prepkit.Zoo:
    """A zoo read at the run's width, and at its height if that has room for every instance: padding is seen too."""
    import prepkit

    network = run.recipe.network
    zoo = prepkit.open_zoo(path, width=network.width)
    if zoo.shape.height < network.height:
        zoo = prepkit.open_zoo(path, width=network.width, height=network.height)
    return zoo


def load_embeddings(path: Path, embedding_size: int) -> Tensor:
    """The embeddings `[N, E]` of a .npy file: `[E]`, or any number of axes before it.

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
        raise PointError(
            f"{path}: an array of {list(values.shape)}; embeddings of this run are [..., {embedding_size}]."
        )
    if not np.isfinite(values).all():
        raise PointError(f"{path}: holds values that are not finite; give other embeddings.")
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).view(-1, embedding_size)


# Results --------------------------------------------------------------------------------------------------------


@contextmanager
def new_folder(target: Path, *, force: bool) -> Iterator[Path]:
    """Give a temporary folder beside `target`; on success it becomes `target`, else it is removed.

    force: whether a folder that an exploring command wrote is replaced
    raises OutputError if something else is there, or it cannot be written
    """
    check_folder(target, force=force)
    own = f".netspace-{os.getpid()}-{secrets.token_hex(4)}"
    temporary, old = target.with_name(f"{own}.tmp"), target.with_name(f"{own}.old")
    try:
        temporary.mkdir()
        yield temporary
        if target.exists():
            os.replace(target, old)
        os.replace(temporary, target)
    except PrepkitError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write '{target}': {error.strerror or error}.") from error
    finally:
        if old.exists() and not target.exists():
            os.replace(old, target)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def check_folder(target: Path, *, force: bool) -> None:
    """Raise OutputError before any work is done for a folder that could not be written."""
    if target.name in ("", ".."):
        raise OutputError(f"'{target}' cannot be replaced as a whole; name a new folder.")
    if target.exists() and not target.is_dir():
        raise OutputError(f"cannot write '{target}': it is a file; name a folder.")
    if target.exists() and any(target.iterdir()):
        if not (target / RESULT).is_file():
            raise OutputError(f"'{target}' is there and holds no result of netspace; name a new or empty folder.")
        if not force:
            raise OutputError(f"'{target}' exists already; use another name, or --force to replace it.")
    parent = target.parent
    if not parent.is_dir():
        raise OutputError(f"cannot write '{target}': '{parent}' is no directory.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write '{target}': no permission to write in '{parent}'.")


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """One JSON document."""
    import json

    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def try_to_draw(draw: Callable[[], None], what: str) -> list[str]:
    """Draw, or say in a note which extra is missing: the numbers are worth having without."""
    from prepkit.figures import PlotsMissing
    from prepkit.tasks.distance_grid import MeshesMissing

    try:
        draw()
    except (PlotsMissing, MeshesMissing) as error:
        return [f"no {what}: {error}"]
    return []


def plain(value: Any) -> Any:
    """The same with None in place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def figure(value: float | None) -> str:
    """A share as text."""
    return "-" if value is None else f"{value:.4f}"


# While it goes on -----------------------------------------------------------------------------------------------


@contextmanager
def working(total: int, what: str, unit: str, quiet: bool) -> Iterator[Advance]:
    """Give the function that moves a bar on; refused memory becomes an error of one line."""
    from netspace.training.memory import OutOfMemory, is_out_of_memory

    try:
        with ProgressBar(what, unit, quiet=quiet) as bar:
            bar.begin(total)
            yield bar.advance
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"{what}: not enough memory ({str(error).splitlines()[0]}); ask for fewer at once.") from None


def tell_notes(notes: list[str]) -> None:
    """On stderr."""
    for note in notes:
        click.echo(f"note: {note}", err=True)
