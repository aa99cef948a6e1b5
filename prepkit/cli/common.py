"""What all commands share: errors without tracebacks, one JSON document, options that mean the same everywhere."""

from __future__ import annotations

import errno
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from prepkit.errors import FormerSpelling, PrepkitError

if TYPE_CHECKING:
    from prepkit.families.registry import Architecture

F = TypeVar("F", bound=Callable[..., Any])
JSON_ASKED = "prepkit.json"
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


# Options of commands by the keyword arguments that the library's messages name.
FLAGS = {  # what the library's messages name, and what the command line says instead
    "keep_unfoldable=True keeps these and folds the rest; ": "",
    "pack_checkpoint(keep_batch_norm=True)": "`prepkit pack --keep-bn`",
    "keep_batch_norm=True": "--keep-bn",
    "allow_nonfinite=True": "--allow-nonfinite",
    "architecture=...": "--arch NAME, or --arch module:callable --input CxHxW",
    "key=...": "--key",
    "overwrite=True": "--force",
    "force=True": "--force",
    "resume=True": "--resume",
    "prefix=True": "--prefix",
    "license=": "--license",
}


class Interrupted(PrepkitError):
    """The user ended a command, by Ctrl-C, before its result was there."""

    exit_code = INTERRUPTED


class Failure(click.ClickException):
    """A PrepkitError on its way out: its message on stderr, its exit code."""

    def __init__(self, error: Exception, exit_code: int) -> None:
        super().__init__(with_flags(str(error)))
        self.kind = type(error).__name__
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it from the instance

    def show(self, file: IO[Any] | None = None) -> None:
        """The message on stderr; what the user asked for, an interruption, is not called an error."""
        if self.exit_code == INTERRUPTED:
            click.echo(self.format_message(), file=file, err=True)
        else:
            super().show(file)


class Commands(click.Group):
    """A group whose commands fail with one line, and with one JSON document too where --json was given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Note whether JSON is asked for before anything is parsed, so that errors of parsing are JSON too."""
        ctx.meta[JSON_ASKED] = "--json" in args
        with failures(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with failures(ctx), notes():
            return super().invoke(ctx)


@contextmanager
def failures(ctx: click.Context) -> Iterator[None]:
    """Turn errors that prepkit or the system raised into Failures, and print all as JSON where it was asked for."""
    try:
        yield
        return
    except PrepkitError as error:
        print_notes(error)
        failure: click.ClickException = Failure(error, error.exit_code)
    except KeyboardInterrupt as error:
        print_notes(error)
        failure = Failure(Interrupted("interrupted; no file is half written."), INTERRUPTED)
    except OSError as error:
        if error.errno == errno.EPIPE:  # `| head` has read enough; click exits quietly
            raise
        failure = Failure(_of_stdout() or error, 1)
    except MemoryError:
        failure = Failure(MemoryError("not enough memory; close other programs or use a smaller input."), 1)
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.ClickException as error:
        failure = error
    if ctx.meta[JSON_ASKED]:
        try:
            print_error(getattr(failure, "kind", "UsageError"), failure.format_message())
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            _of_stdout()
    raise failure


@contextmanager
def notes() -> Iterator[None]:
    """Print a note on stderr, in one line, for what is read in a former spelling."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def note(message: Warning | str, category: type[Warning], *where: Any, **details: Any) -> None:
            if issubclass(category, FormerSpelling):
                click.echo(f"note: {message}", err=True)
            else:
                show(message, category, *where, **details)

        warnings.showwarning = note
        yield


def _of_stdout() -> OSError | None:
    """What keeps stdout from taking what was printed, such as a full disk; None if nothing does.

    What it did not take is dropped, or Python would try again at its end and fail with a second message.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError):  # not a file of the system
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
        return OSError(f"cannot write to the standard output: {error.strerror}.")
    return None


def with_flags(message: str) -> str:
    """A message of the library with the options of the command line in place of Python's keyword arguments."""
    for keyword, flag in FLAGS.items():
        message = message.replace(keyword, flag)
    return message


def print_notes(error: BaseException) -> None:
    """Print what the library added to an error, such as how much is kept."""
    for note in getattr(error, "__notes__", ()):
        click.echo(with_flags(note), err=True)


def print_error(kind: str, message: str) -> None:
    """The one JSON document of a command that failed, on stdout."""
    print_json({"error": {"kind": kind, "message": message}})


def print_json(document: dict[str, Any]) -> None:
    """The one JSON document of a command, on stdout."""
    click.echo(json.dumps(document, indent=2))


def json_option(command: F) -> F:
    """`--json`; see Commands for how errors learn of it."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document, on failure too.")(command)


def force_option(command: F) -> F:
    """`--force`."""
    return click.option("--force", is_flag=True, help="Replace an existing target.")(command)


def device_option(command: F) -> F:
    """`--device`."""
    return click.option(
        "--device",
        default="auto",
        show_default=True,
        metavar="D",
        help="cpu, cuda, cuda:N or mps; auto takes a GPU if there is one.",
    )(command)


class InputShape(click.ParamType[tuple[int, ...]]):
    """`3x32x32` -> (3, 32, 32): the shape of one input, without the batch axis."""

    name = "CxHxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Parse, or fail with an example."""
        if isinstance(value, tuple):
            return value
        parts = str(value).lower().split("x")
        if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is not a shape such as 3x32x32.", param, ctx)
        return tuple(int(part) for part in parts)


def architecture_options(command: F) -> F:
    """`--arch` and `--input`, which name a network."""
    command = click.option(
        "--input",
        "input_shape",
        type=InputShape(),
        metavar="CxHxW",
        help="Shape of one input of a module:callable, without the batch.",
    )(command)
    return click.option(
        "--arch",
        "architecture",
        metavar="NAME|module:callable",
        help="The network: a registered name (see `prepkit arch list`) or a Python callable that builds it. "
        "Recognised by itself if it is a registered one.",
    )(command)


def find_architecture(name: str | None, input_shape: tuple[int, ...] | None) -> Architecture | None:
    """The Architecture that `--arch` and `--input` name, or None if neither was given."""
    if name is None:
        if input_shape is not None:
            raise click.UsageError("--input goes with --arch module:callable.")
        return None
    from prepkit.families import registry

    if ":" not in name:
        if input_shape is not None:
            raise click.UsageError(f"--input goes with --arch module:callable; '{name}' has its own.")
        return registry.architecture(name)
    if input_shape is None:
        raise click.UsageError(f"--arch {name} also needs --input, the shape of one input such as 3x32x32.")
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` does: the callable may lie in the user's folder
    return registry.architecture_from_callable(name, input_shape)
