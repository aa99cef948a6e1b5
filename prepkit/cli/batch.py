"""Many models by one command: after one fails, the command stops, or goes on and sums up at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import click

from prepkit.cli import colour
from prepkit.cli.output import Output, with_flags
from prepkit.errors import PrepkitError, counted, listed
from prepkit.support.files import is_disk_full
from prepkit.support.progress import ProgressBar
from prepkit.support.signals import noted_interruption


@dataclass
class Batch:
    """Counts what became of each model.

    total:      number of models
    keep_going: whether the other models are packed after one has failed
    """

    total: int
    keep_going: bool
    out: Output
    bar: ProgressBar
    packed: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int = 0

    @contextmanager
    def one(self, model: object) -> Iterator[None]:
        """Work on one model; an error is kept for the summary, or ends the command with a note on how to go on."""
        with noted_interruption() as interruptions:
            try:
                yield
            except (Exception, KeyboardInterrupt) as error:
                if interruptions and not isinstance(error, KeyboardInterrupt):
                    error = KeyboardInterrupt()  # of which other libraries make errors of their own
                is_about_one = isinstance(error, PrepkitError | OSError | MemoryError) and not is_disk_full(error)
                if not self.keep_going or self.total == 1 or not is_about_one:
                    self._note_how_to_go_on(error)
                    raise error from None
                self._keep(model, error)
        self.bar.advance(1)

    def add(self, document: dict[str, Any], text: str) -> None:
        """Note that a model was packed, and print what a text and the notes of its document say."""
        self.packed.append(document)
        with self.bar.hidden():
            self.out.part(text)
            self.out.notes(document["notes"])

    def skip(self, model: object, target: object) -> None:
        """Note that a model was packed before."""
        self.skipped.append({"source": str(model), "output": str(target)})
        with self.bar.hidden():
            self.out.part(
                f"{model} -> {target}\n  skipped       it holds this file's network already, packed in this way"
            )

    def end(self) -> None:
        """Print the summary or the JSON document, and leave with an exit status that tells of failures."""
        if self.keep_going and self.total > 1:
            counts = [f"{len(self.packed):,} of {counted(self.total, 'model')} packed"]
            counts += [f"{len(self.skipped):,} skipped"] if self.skipped else []
            names = listed(failure["source"] for failure in self.failed)
            counts += [f"{len(self.failed):,} failed: {names}"] if self.failed else []
            self.out.part("\n" + ", ".join(counts))
        self.out.end({"packed": self.packed, "skipped": self.skipped, "failed": self.failed})
        if self.exit_code:
            click.get_current_context().exit(self.exit_code)

    def _keep(self, model: object, error: BaseException) -> None:
        message = with_flags(str(error)) or type(error).__name__
        self.failed.append({"source": str(model), "error": {"kind": type(error).__name__, "message": message}})
        self.exit_code = max(self.exit_code, getattr(error, "exit_code", 1))
        if not self.out.as_json:
            with self.bar.hidden():
                click.echo(f"{colour.bad('failed:')} {message}", err=True)

    def _note_how_to_go_on(self, error: BaseException) -> None:
        finished = len(self.packed) + len(self.skipped)
        if self.total == 1:
            return
        if not finished:
            error.add_note("--keep-going packs the other models.")
        else:
            goes_on = "the same command" if self.keep_going else "--keep-going skips these and"
            are = "is" if finished == 1 else "are"
            error.add_note(f"{finished:,} of {self.total:,} models {are} packed; {goes_on} goes on.")
