"""`-v` and `-q` of every command: how much is told beside its result."""

from __future__ import annotations

import click

from prepkit.support.progress import show_progress

QUIET, LOGS = "prepkit.quiet", "prepkit.logs"  # keys of a context's meta


def is_quiet(context: click.Context | None = None) -> bool:
    """Whether -q was given to the command that runs."""
    context = context or click.get_current_context(silent=True)
    return context is not None and QUIET in context.meta


def log_traceback(context: click.Context, error: BaseException) -> None:
    """Log where an error that is told in one line came from; -vv shows it."""
    if LOGS in context.meta:
        from prepkit.support.logs import logger

        logger("prepkit.cli").debug("the error came from here:", exc_info=error)


def _hear_quiet(context: click.Context, parameter: click.Parameter, quiet: bool) -> None:
    if quiet:
        _refuse(LOGS, context)
        context.meta[QUIET] = True
        if context.parent is not None:
            show_progress.set(False)  # Commands.invoke takes it back, and sets it for a -q before the command's name


def _hear_verbose(context: click.Context, parameter: click.Parameter, count: int) -> None:
    if count and not context.resilient_parsing:
        _refuse(QUIET, context)
        if LOGS not in context.meta:
            from prepkit.cli.log_lines import LogLines

            root = context.find_root()
            context.meta[LOGS] = LogLines({"prepkit", root.info_name or "prepkit"})
            root.call_on_close(context.meta[LOGS].end)
        context.meta[LOGS].tell_more(count)


def _refuse(other: str, context: click.Context) -> None:
    if other in context.meta:
        raise click.UsageError("--quiet and --verbose ask for less and for more; give one of them.")


OPTIONS = (  # All commands have the same two objects, since to make some for each takes 5 ms at every start.
    click.Option(
        ["-v", "--verbose"],
        count=True,
        expose_value=False,
        callback=_hear_verbose,
        help="Tell what is done and when, on stderr; -vv tells more.",
    ),
    click.Option(
        ["-q", "--quiet"],
        is_flag=True,
        expose_value=False,
        callback=_hear_quiet,
        help="Print results and errors only, no progress and no notes.",
    ),
)


def add_verbosity(command: click.Command) -> None:
    """Give -v and -q to a command, or to a group and all commands in it."""
    command.params += OPTIONS
    if isinstance(command, click.Group):
        for member in command.commands.values():
            add_verbosity(member)
