"""How far a long task is: what the task tells, and the one bar or line that shows it to people.

A task that only counts calls an `Advance`; a training, which also has something to say, calls a `Progress`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any, Self

from prepkit.errors import counted
from prepkit.support.text import readable_bytes, readable_seconds

Advance = Callable[[int], None]  # is called with how much more is finished
LINE_SECONDS = 10.0  # between plain lines where there is no terminal
DRAWN_SECONDS = 0.1  # between two drawings of a StatusLine on a terminal
show_progress = ContextVar("show_progress", default=True)  # a command sets False that prints JSON or is quiet
SHARE = ""  # the unit of work of which only the share that is done means something
SHARE_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {unit} [{elapsed}<{remaining}]"


@contextmanager
def without_bars_of(library: Any) -> Iterator[None]:
    """Switch a library's own progress bars off, and on again if they were.

    library: a module with the switches of huggingface_hub, or of datasets, which has the same
    """
    change = not library.are_progress_bars_disabled()
    if change:
        library.disable_progress_bars()
    try:
        yield
    finally:
        if change:
            library.enable_progress_bars()


def one_at_a_time(advance: Advance | None) -> Advance:
    """Make an Advance that several threads may call; None hears nothing."""
    lock = Lock()

    def locked(amount: int) -> None:
        if advance is not None:
            with lock:
                advance(amount)

    return locked


class Progress:
    """Hears how far a training is. This class shows nothing; a subclass overrides what it wants to know."""

    def begin(self, total: float, done: float = 0, text: str = "") -> None:
        """The training begins, or goes on where `done` of `total` is finished; the text tells more."""

    def advance(self, amount: float, text: str | None = None) -> None:
        """More is finished; a new text takes the place of the last one."""

    def say(self, text: str) -> None:
        """Something happened that the user should know."""


class ProgressInWords(Progress):
    """Puts how far a training is into words, `20 of 1,500 steps, loss 0.31`, and hands them to a function.

    unit: a noun, "B" for bytes, or SHARE
    """

    def __init__(self, unit: str, hear: Callable[[str], None]) -> None:
        self.unit, self.total, self.done, self.text = unit, 0.0, 0.0, ""
        self._hear = hear

    def begin(self, total: float, done: float = 0, text: str = "") -> None:
        """Hand on where the training begins."""
        self.total, self.done, self.text = total, done, text
        self._hear(self.words)

    def advance(self, amount: float, text: str | None = None) -> None:
        """Hand on how far it is now."""
        self.done += amount
        self.text = self.text if text is None else text
        self._hear(self.words)

    @property
    def words(self) -> str:
        """How much is finished, and the text."""
        if self.unit == SHARE:
            amount = f"{min(1.0, self.done / self.total) if self.total else 1.0:.0%}"
        elif self.unit == "B":
            amount = readable_bytes(self.done) + (f" of {readable_bytes(self.total)}" if self.total else "")
        elif self.total:
            amount = f"{self.done:,.0f} of {counted(round(self.total), self.unit)}"
        else:
            amount = counted(round(self.done), self.unit)
        return f"{amount}, {self.text}" if self.text else amount


class ProgressBar(ProgressInWords):
    """A bar on a terminal, elsewhere a plain line now and then, both on stderr.

    name:  the task, such as "pulling"
    unit:  what is counted: a noun, "B" for bytes, or SHARE
    quiet: whether nothing is shown, as also where show_progress says so

    >>> with ProgressBar("packing", "model") as bar:
    ...     bar.begin(total=3)
    ...     bar.advance(1)
    """

    def __init__(self, name: str, unit: str, *, quiet: bool = False) -> None:
        super().__init__(unit, self._print)
        self.name, self.quiet = name, quiet or not show_progress.get()
        self._terminal = sys.stderr.isatty()
        self._bar: Any = None
        self._began = self._printed = time.monotonic()
        self._done_before = 0.0
        self._last = ""

    def begin(self, total: float, done: float = 0, text: str = "") -> None:
        """Draw the bar; without a terminal print a line if there is a text. A total of 0 is one that is not known."""
        self.close()
        self._began = self._printed = time.monotonic()
        self._done_before, self._last = done, ""
        if text:
            self._printed -= LINE_SECONDS
        if self._terminal and not self.quiet:
            from tqdm import tqdm

            self._bar = tqdm(
                desc=self.name,
                total=total or None,
                initial=done,
                unit=text if self.unit == SHARE else self.unit,
                unit_scale=self.unit == "B",
                bar_format=SHARE_FORMAT if self.unit == SHARE else None,
                dynamic_ncols=True,
            )
        super().begin(total, done, text)

    def advance(self, amount: float, text: str | None = None) -> None:
        """Move the bar on, or print a line if the last one was a while ago."""
        super().advance(amount, text)
        if self._bar is None:
            return
        if text is not None and self.unit == SHARE:
            self._bar.unit = text  # tqdm would put a comma before a postfix
        elif text is not None:
            self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(amount)
        if not amount:
            self._bar.refresh()

    def say(self, text: str) -> None:
        """Print a line of its own, above the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif not self.quiet:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Take the bar off the terminal while something else is printed."""
        if self._bar is None:
            yield
        else:
            with self._bar.external_write_mode():
                yield

    def close(self) -> None:
        """Leave the bar as it is; where lines were printed, the last one tells where the task ended."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif self._last and self._last != self.words:
            self._printed -= LINE_SECONDS
            self._print(self.words)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Leave the bar as it is; one at its beginning goes where the task was refused, as it tells nothing."""
        if kind is not None and self._bar is not None and self.done == self._done_before:
            self._bar.leave = False
        self.close()

    def _print(self, words: str) -> None:
        now = time.monotonic()
        if self._bar is not None or self.quiet or now - self._printed < LINE_SECONDS:
            return
        self._printed, self._last = now, words
        newly_done, remaining = self.done - self._done_before, self.total - self.done
        if newly_done and remaining > 0:
            words += f", {readable_seconds((now - self._began) / newly_done * remaining)} left"
        self.say(f"{self.name}: {words}")


class StatusLine:
    """One line that says what runs now: on a terminal drawn over and over, elsewhere printed now and then.

    quiet: whether nothing is shown, as also where show_progress says so
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet, self._terminal = quiet or not show_progress.get(), sys.stderr.isatty()
        self._shown, self._topic, self._width = 0.0, "", 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def show(self, topic: str, text: str) -> None:
        """Show a text: at once if its topic is a new one, else only if the last text was a while ago."""
        now = time.monotonic()
        pause = DRAWN_SECONDS if self._terminal else LINE_SECONDS
        if self._quiet or (topic == self._topic and now - self._shown < pause):
            return
        self._shown, self._topic = now, topic
        if not self._terminal:
            print(text, file=sys.stderr, flush=True)
            return
        import shutil

        text = text[: shutil.get_terminal_size().columns - 1]
        print(f"\r{text.ljust(self._width)}", end="", file=sys.stderr, flush=True)
        self._width = len(text)

    def close(self) -> None:
        """Leave the line as it is."""
        if self._width:
            print(file=sys.stderr)
            self._width = 0
