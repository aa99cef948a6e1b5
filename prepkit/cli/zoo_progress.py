"""What `prepkit zoo info` tells of a zoo that is not finished, or of instances that are not appended to it yet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.errors import counted
from prepkit.support.text import duration, table
from prepkit.zoo.format.counts import ARCHITECTURES_SHOWN
from prepkit.zoo.format.manifest import MANIFEST
from prepkit.zoo.format.paths import APPENDING

if TYPE_CHECKING:
    from prepkit.training.watching import ZooProgress


def progress_in(folder: Path) -> ZooProgress | None:
    """Return how far the unfinished zoo in a folder is; None if the folder holds none, or a finished one."""
    if (folder / MANIFEST).exists() or not (folder / ".writing").is_dir():
        return None  # without the second, which takes torch to import
    from prepkit.training.watching import progress_of

    progress = progress_of(folder)
    return None if (folder / MANIFEST).exists() else progress  # it may have been finished meanwhile


def appending_note(folder: Path) -> str | None:
    """Tell of instances that are being appended to a finished zoo, or of which appending was interrupted."""
    appending = folder / APPENDING
    if not appending.is_dir():
        return None  # without what follows, which takes torch to import
    found = _finished_in(appending)
    if found is None:
        return None
    finished, holder = found
    if holder is not None:
        return f"{holder} is appending to the zoo; {counted(finished, 'finished instance')} will be in it at the end."
    return (
        f"Appending to the zoo was interrupted; {counted(finished, 'finished instance')} will be in it when the "
        f"command that began it is given again: `zoo import` as it was, `zoo create` with --resume. Delete "
        f"'{appending}' to give that up."
    )


def _finished_in(appending: Path) -> tuple[int, str | None] | None:
    """Return how many instances are finished, and which process writes them; None if nothing was begun."""
    from prepkit.training.watching import progress_of
    from prepkit.zoo.format.manifest import read_manifest

    if (appending / MANIFEST).exists():
        return read_manifest(appending).table.rows, None
    progress = progress_of(appending)
    return None if progress is None else (progress.finished, progress.holder)


def progress_document(progress: ZooProgress) -> dict[str, Any]:
    """Return the document of `prepkit zoo info` for an unfinished zoo."""
    return {"unfinished": True, **vars(progress)}


def progress_text(folder: Path, progress: ZooProgress) -> str:
    """Return the text of `prepkit zoo info` for an unfinished zoo."""
    share = counted(progress.finished, "instance")
    if progress.planned is not None:
        percent = 100 * progress.finished // max(1, progress.planned)
        share += f" of {progress.planned:,} ({percent} %)"
    waiting = f"; {progress.waiting:,} more are trained and wait for those before them" if progress.waiting else ""
    state = "its writing was interrupted, and goes on with the command that began it"
    if progress.holder is not None:
        state = f"{progress.holder} has been writing it for {duration(progress.seconds or 0)}"
    last = "the last one" if progress.finished else "it was begun"
    splits = ", ".join(f"{name} {count:,}" for name, count in progress.splits.items()) or "none"
    lines = [
        f"{progress.name}: unfinished; {state}",
        f"  finished {share}, {last} {duration(progress.idle_seconds)} ago{waiting}",
        f"  splits   {splits}",
    ]
    rows = list(progress.architectures.items())
    if rows:
        more = len(rows) - ARCHITECTURES_SHOWN
        lines += ["", table(rows[:ARCHITECTURES_SHOWN], ("architecture", "finished"))]
        lines += [f"and {counted(more, 'more architecture')}, which --json lists"] if more > 0 else []
        lines += ["", f"prepkit.open_zoo({str(folder)!r}, unfinished=True) reads what is finished."]
    return "\n".join(lines)
