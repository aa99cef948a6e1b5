"""What -v shows: the logs of the library, on stderr, each line with the seconds since the command began."""

from __future__ import annotations

import logging
import platform
import sys
import time
from collections.abc import Collection

import click

from prepkit.support.logs import logger
from prepkit.version import __version__

LEVELS = (logging.INFO, logging.DEBUG)  # of -v and -vv


class LogLines(logging.Handler):
    """Prints `  0.52 s  hub.pull: ...` for each record of some packages' loggers, above a bar if one is drawn."""

    def __init__(self, packages: Collection[str]) -> None:
        super().__init__()
        self.verbosity = 0
        self._began = time.time()
        self._loggers = [logging.getLogger(name) for name in packages]
        self._levels = [one.level for one in self._loggers]
        for one in self._loggers:
            one.addHandler(self)

    def tell_more(self, count: int) -> None:
        """Hear of `count` more -v."""
        begins = not self.verbosity
        self.verbosity += count
        for one in self._loggers:
            one.setLevel(LEVELS[min(self.verbosity, len(LEVELS)) - 1])
        if begins:
            about = f"Python {platform.python_version()}, {platform.platform()}"
            logger("prepkit.cli").info("prepkit %s, %s", __version__, about)

    def end(self) -> None:
        """Leave the loggers as they were."""
        logger("prepkit.cli").info("the command ends")
        for one, level in zip(self._loggers, self._levels, strict=True):
            one.removeHandler(self)
            one.setLevel(level)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, with the traceback where it has one."""
        name = record.name.removeprefix("prepkit.")
        return f"{max(0.0, record.created - self._began):6.2f} s  {name}: {super().format(record)}"

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        text, bars = self.format(record), sys.modules.get("tqdm")
        if bars is None:
            click.echo(text, err=True)
        else:
            with bars.tqdm.external_write_mode(file=sys.stderr):
                click.echo(text, err=True)
