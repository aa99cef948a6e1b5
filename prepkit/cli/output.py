"""The one place that knows where a command's output goes: its result to stdout, all else to stderr.

With --json the result is one JSON document, on failure too; stderr then has only errors, and what -v tells.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import click

from prepkit.cli import colour
from prepkit.cli.verbosity import is_quiet
from prepkit.program import INTERRUPTED
from prepkit.support.progress import ProgressBar

F = TypeVar("F", bound=Callable[..., Any])
COMMAND = "prepkit.command"  # key of a context's meta under which the command that runs is kept
# The library's messages name its keyword arguments; the command line says this instead.
FLAGS = {
    'keep_unfoldable="affine"': "--bn affine",
    "keep_unfoldable=True keeps these and folds the rest; ": "",
    "pack_checkpoint(keep_batch_norm=True)": "`prepkit pack --keep-bn`",
    "keep_batch_norm=True": "--keep-bn",
    "allow_nonfinite=True": "--allow-nonfinite",
    "allow_underflow=True": "--allow-underflow",
    "arguments={...}": "--arch-arg NAME=VALUE",
    "architecture=...": "--arch NAME, or --arch module:callable --input CxHxW",
    "key='NAME'": "--key NAME",
    "prefix='": "--prefix '",
    "dtype='float32'": "--dtype float32",
    "keep_as=": "--keep-as ",
    "overwrite=True": "--force",
    "rerun=True": "--rerun",
    "where='...'": "--where EXPR",
    "kind='": "--kind '",
    "`input_shape`": "--input",
    "`log`": "--log",
    "force=True": "--force",
    "append=True, resume=True": "--append --resume",
    "append=True": "--append",
    "resume=True": "--resume",
    "link=True": "--link",
    "prefix=True": "--prefix",
    "drop_nan=True": "--drop-nan",
    "`source`": "SRC",
    "license=": "--license",
    "revision=": "--revision ",
    "types=": "--types",
    "`on`": "--on",
    "`pattern`": "--pattern",
    "`order`": "--order",
    "`root`": "--root",
    "`teacher`": "--teacher",
    "`activation`": "--activation",
    "`split_file`": "--split-file",
    "`splits`": "--splits",
    "`steps`": "--step",
    "`checkpoints`": "--checkpoints",
    "`dataset`": "--dataset",
    "`layout`": "--layout",
    "`runs`": "--runs",
    "`sizes`": "--sizes",
    "`states`": "--states",
    "`picture`": "--picture",
    "`convention`": "--convention",
    "`unfinished`": "--unfinished",
    "ZooWriter(dtype=...)": "--dtype",
    "load_recipe(name, {key: value})": "--set KEY=VALUE",
    "data=": "--data ",
    "`items`": "--item",
    **{f"`{name}`": f"--{name}" for name in ("device", "epochs", "gamma", "gpus", "instances", "ray", "stack")},
    **{f"`{name}`": f"--{name}" for name in ("alpha", "threads", "zoo", "atol", "rtol")},
}


class Output:
    """Prints a command's result, notes and progress.

    as_json: whether the result is printed as a JSON document
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def result(self, document: Mapping[str, Any], text: str) -> None:
        """Print the result of the command, as JSON or as text."""
        if self.as_json:
            print_json(document)
        else:
            click.echo(text)

    def part(self, text: str) -> None:
        """Print a part of the result that is ready before the rest; the JSON document holds all parts."""
        if not self.as_json:
            click.echo(text)

    def end(self, document: Mapping[str, Any]) -> None:
        """Print the JSON document after all parts."""
        if self.as_json:
            print_json(document)

    def notes(self, notes: Iterable[str]) -> None:
        """Print what the user should know about the result; the JSON document has a place for it."""
        for note in notes:
            if not self.as_json:
                print_note(with_flags(note))

    def bar(self, name: str, unit: str, *, quiet: bool = False) -> ProgressBar:
        """Make a progress bar, which shows nothing where JSON was asked for."""
        return ProgressBar(name, unit, quiet=quiet or self.as_json)

    def leave_interrupted(self, message: str) -> NoReturn:
        """End the process now, after Ctrl-C: threads that wait for a slow network would hold it."""
        click.echo(message, err=True)
        if self.as_json:
            print_error("Interrupted", message)
        os._exit(INTERRUPTED)


def json_option(command: F) -> F:
    """Add `--json`, and hand an Output to the command; see Commands for how errors learn of the option."""

    def output(context: click.Context, parameter: click.Parameter, as_json: bool) -> Output:
        context.meta[COMMAND] = context.command
        return Output(as_json)

    help_text = "Print one JSON document, on failure too."
    return click.option("--json", "out", is_flag=True, callback=output, help=help_text)(command)


def with_flags(message: str) -> str:
    """Return a message of the library with options of the command line in place of Python's keyword arguments.

    Where the command that runs has no such option, another one that has it is named; if none has, the keyword stays.
    """
    context = click.get_current_context(silent=True)
    for keyword, flag in FLAGS.items():
        if keyword in message:
            message = message.replace(keyword, flag if context is None else _advice(context, keyword, flag))
    return message


def _advice(context: click.Context, keyword: str, flag: str) -> str:
    words = flag.split(" ")
    needed = set(words) if all(word.startswith("--") for word in words) else {words[0]}
    command = context.meta.get(COMMAND)
    if command is None or not words[0].startswith("--") or needed <= _options(command):
        return flag
    root = context.find_root()
    homes = (name for name, other in _commands(root.command, root.info_name or "") if needed <= _options(other))
    home = next(homes, None)
    return keyword if home is None else f"`{home} {flag.partition(',')[0]}`"


def _options(command: click.Command) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


def _commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """Return all commands in a group, with their names as they are typed."""
    if not isinstance(command, click.Group):
        yield name, command
        return
    for part, member in command.commands.items():
        yield from _commands(member, f"{name} {part}")


def print_note(text: str) -> None:
    """Print what the user should know, unless -q was given."""
    if not is_quiet():
        click.echo(f"{colour.remarkable('note:')} {text}", err=True)


def print_error(kind: str, message: str) -> None:
    """Print the JSON document of a command that failed."""
    print_json({"error": {"kind": kind, "message": message}})


def print_json(document: Mapping[str, Any]) -> None:
    """Print the JSON document of a command."""
    click.echo(json.dumps(document, indent=2))
