"""Common parts of all commands: errors without tracebacks, and options that mean the same everywhere."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import StringIO
from typing import IO, Any, TypeVar

import click

from prepkit.cli import colour
from prepkit.cli.output import print_error, print_note, with_flags
from prepkit.cli.verbosity import is_quiet, log_traceback
from prepkit.errors import CopiesDiffer, FormerSpelling, PrepkitError, RecordingFailed, ZooChanged
from prepkit.program import INTERRUPTED, MESSAGE
from prepkit.support.progress import show_progress
from prepkit.support.signals import noted_interruption

F = TypeVar("F", bound=Callable[..., Any])
JSON_ASKED = "prepkit.json"
EXIT_STATUS = """Results go to stdout, progress and errors to stderr. Exit status: 0 done, 1 the operation failed,
2 wrong usage or input, 130 interrupted."""


class Interrupted(PrepkitError):
    """The user ended a command, by Ctrl-C, before its result was there."""

    exit_code = INTERRUPTED


class Failure(click.ClickException):
    """An error on its way out: its message goes to stderr, and its exit code to the shell.

    notes: what the library added to the error, such as how much is kept
    """

    def __init__(self, error: Exception, exit_code: int, notes: Sequence[str] = ()) -> None:
        super().__init__(with_flags(str(error)))
        self.kind = type(error).__name__
        self.notes = [with_flags(note) for note in notes]
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it from the instance

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message and the notes; an interruption is not called an error, since the user asked for it."""
        word = "" if self.exit_code == INTERRUPTED else f"{colour.bad('Error:')} "
        for text in (f"{word}{self.format_message()}", *self.notes):
            click.echo(text, file=file, err=True, color=colour.wanted())


class WrongUsage(click.UsageError):
    """An error of click's own on its way out, of which the word Error gets a colour."""

    def __init__(self, error: click.UsageError) -> None:
        super().__init__(error.format_message(), error.ctx)

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the usage, where help is found, and the message."""
        text = StringIO()
        super().show(text)
        before, word, message = text.getvalue().rpartition(f"Error: {self.message}")
        shown = f"{before}{colour.bad('Error:')}{word.removeprefix('Error:')}{message}"
        click.echo(shown, file=file, nl=False, err=True, color=colour.wanted())


class Commands(click.Group):
    """A group whose commands fail with one line, and with one JSON document too where --json was given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Note whether JSON is asked for before anything is parsed, so that errors of parsing are JSON too."""
        ctx.meta[JSON_ASKED] = "--json" in args
        ctx.color = colour.wanted()
        with failures(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        shown = not ctx.meta[JSON_ASKED] and not is_quiet(ctx)
        before = show_progress.set(shown)  # for bars that the library shows by itself
        try:
            with failures(ctx), notes():
                return super().invoke(ctx)
        finally:
            show_progress.reset(before)


@contextmanager
def failures(ctx: click.Context) -> Iterator[None]:
    """Turn errors of prepkit and of the system into Failures, and print each as JSON too where it was asked for.

    After Ctrl-C every error is an interruption, whatever became of it on its way out of other libraries.
    """
    with noted_interruption() as interruptions:
        try:
            yield
            return
        except (click.exceptions.NoArgsIsHelpError, click.exceptions.Exit):
            raise
        except BaseException as error:
            failure = _failure(error, interrupted=bool(interruptions))
            if failure is None:
                raise
            log_traceback(ctx, error)
    if ctx.meta[JSON_ASKED]:
        try:
            print_error(getattr(failure, "kind", "UsageError"), failure.format_message())
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            _error_of_stdout()
    raise failure from None


def _failure(error: BaseException, interrupted: bool) -> click.ClickException | None:
    """Return what to tell of an error; None for a bug, and for what click deals with."""
    added = getattr(error, "__notes__", ())
    if isinstance(error, PrepkitError) and (error.exit_code == INTERRUPTED or not interrupted):
        return Failure(error, error.exit_code, added)
    if interrupted or isinstance(error, KeyboardInterrupt):
        return Failure(Interrupted(MESSAGE), INTERRUPTED, added)
    if isinstance(error, OSError):
        if error.errno == errno.EPIPE:  # `| head` has read enough; click exits quietly
            return None
        return Failure(_error_of_stdout() or _with_advice(error), 1, added)
    if isinstance(error, MemoryError):
        return Failure(MemoryError("not enough memory; close other programs or use a smaller input."), 1, added)
    if isinstance(error, click.UsageError):
        return WrongUsage(error)
    return error if isinstance(error, click.ClickException) else None


@contextmanager
def notes() -> Iterator[None]:
    """Print a note on stderr, in one line, for each of the warnings that this package has of its own."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def note(message: Warning | str, category: type[Warning], *where: Any, **details: Any) -> None:
            if issubclass(category, CopiesDiffer | FormerSpelling | RecordingFailed | ZooChanged):
                print_note(str(message))
            else:
                show(message, category, *where, **details)

        warnings.showwarning = note
        yield


def force_option(command: F) -> F:
    """Add `--force`."""
    return click.option("--force", is_flag=True, help="Replace the output if it exists.")(command)


def device_option(command: F) -> F:
    """Add `--device`."""
    return click.option(
        "--device",
        default="auto",
        show_default=True,
        metavar="D",
        help="cpu, cuda, cuda:N or mps; auto takes a GPU if there is one.",
    )(command)


def _with_advice(error: OSError) -> OSError:
    """Return an error of the system as a sentence that names the file and says what to do."""
    if error.filename is None or not error.strerror:
        return error
    advice = "check its permissions" if isinstance(error, PermissionError) else "check its name and its disk"
    return type(error)(f"'{os.fsdecode(error.filename)}' cannot be used: {error.strerror}; {advice}.")


def _error_of_stdout() -> OSError | None:
    """Return why stdout does not take what was printed, such as a full disk; None if it takes it.

    What it did not take is dropped; otherwise Python would try again at its end and fail with a second message.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError):  # stdout may be no file of the system
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
        return OSError(f"cannot write to the standard output: {error.strerror}.")
    return None
