"""What all commands share: errors without tracebacks, one JSON document, options that mean the same everywhere."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from prepkit.errors import PrepkitError

if TYPE_CHECKING:
    from prepkit.registry import Architecture

F = TypeVar("F", bound=Callable[..., Any])
JSON_ASKED = "prepkit.json"


class Failure(click.ClickException):
    """A PrepkitError on its way out: its message on stderr, its exit code."""

    def __init__(self, error: Exception, exit_code: int) -> None:
        super().__init__(str(error))
        self.kind = type(error).__name__
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it from the instance


class Commands(click.Group):
    """A group whose commands fail with one line, and with one JSON document too where --json was given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Note whether JSON is asked for before anything is parsed, so that errors of parsing are JSON too."""
        ctx.meta[JSON_ASKED] = "--json" in args
        with failures(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with failures(ctx):
            return super().invoke(ctx)


@contextmanager
def failures(ctx: click.Context) -> Iterator[None]:
    """Turn errors that prepkit or the system raised into Failures, and print all as JSON where it was asked for."""
    try:
        yield
        return
    except PrepkitError as error:
        failure: click.ClickException = Failure(error, error.exit_code)
    except OSError as error:
        if error.errno == errno.EPIPE:  # `| head` has read enough; click exits quietly
            raise
        failure = Failure(error, 1)
    except MemoryError:
        failure = Failure(MemoryError("not enough memory; close other programs or use a smaller input."), 1)
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.ClickException as error:
        failure = error
    if ctx.meta[JSON_ASKED]:
        kind = getattr(failure, "kind", "UsageError")
        print_json({"error": {"kind": kind, "message": failure.format_message()}})
    raise failure


def print_json(document: dict[str, Any]) -> None:
    """The one JSON document of a command, on stdout."""
    click.echo(json.dumps(document, indent=2))


def json_option(command: F) -> F:
    """`--json`; see Commands for how errors learn of it."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document, on failure too.")(command)


def force_option(command: F) -> F:
    """`--force`."""
    return click.option("--force", is_flag=True, help="Replace an existing target.")(command)


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
    from prepkit import registry

    if ":" not in name:
        if input_shape is not None:
            raise click.UsageError(f"--input goes with --arch module:callable; '{name}' has its own.")
        return registry.architecture(name)
    if input_shape is None:
        raise click.UsageError(f"--arch {name} also needs --input, the shape of one input such as 3x32x32.")
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` does: the callable may lie in the user's folder
    return registry.architecture_from_callable(name, input_shape)


def table(rows: list[tuple[Any, ...]], header: tuple[str, ...]) -> str:
    """Rows as aligned text: numbers to the right, the rest to the left."""
    cells = [header, *[tuple(f"{cell:,}" if type(cell) is int else str(cell) for cell in row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    right = [bool(rows) and all(isinstance(row[column], int) for row in rows) for column in range(len(header))]
    lines = []
    for row in cells:
        parts = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        lines.append("  ".join(parts).rstrip())
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
