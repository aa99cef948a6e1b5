"""Make or check the folder of a zoo that is to be written, and the folder `.writing` in it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock

from prepkit.errors import OutputError, ZooError, ZooLocked, listed
from prepkit.support.files import output_error
from prepkit.support.lock import take_lock
from prepkit.support.logs import logger
from prepkit.zoo.format.manifest import MANIFEST
from prepkit.zoo.format.paths import APPENDING
from prepkit.zoo.write._journal import Journal, has_begun
from prepkit.zoo.write._settings import check_same
from prepkit.zoo.write.staging import SHARDS

LOG = logger(__name__)
WRITING = ".writing"
JOURNAL = "journal.jsonl"


def take_folder(root: Path, folder: Path) -> BaseFileLock:
    """Make or check the folders of a zoo that is to be written, and take its lock.

    raises what `prepare` and `take_lock` raise
    """
    prepare(root, folder)
    try:
        return take_lock(folder / "lock", root)
    finally:
        prepare(root, folder)  # another process may have finished the zoo meanwhile


def prepare(root: Path, folder: Path) -> None:
    """Make the zoo's folder and the working folder in it, unless they are there.

    raises ZooError if the zoo is finished or the folder holds other files, ZooLocked if it is what another process has
    just finished to append, OutputError if it cannot be made
    """
    if (root / MANIFEST).exists():
        shutil.rmtree(folder, ignore_errors=True)  # a writer was killed after its last step
        if root.name == APPENDING:
            raise ZooLocked(f"'{root.parent}' was written by another process, which has just finished; try again.")
        raise ZooError(f"'{root}' is a finished zoo; append=True adds instances to it, or write another folder.")
    try:
        root.mkdir(parents=True, exist_ok=True)
        others = sorted(entry.name for entry in root.iterdir() if entry.name != WRITING)
        if others and not folder.exists():
            raise ZooError(f"'{root}' holds other files ({listed(others, 3)}); name an empty folder.")
        folder.mkdir(exist_ok=True)
        (root / SHARDS).mkdir(exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise OutputError(f"'{root}' is a file, not a folder.") from None
    except OSError as error:
        raise output_error(root, error) from error


def open_journal(root: Path, folder: Path, settings: Mapping[str, Any], resume: bool) -> tuple[Journal, bool]:
    """Open the journal, and return it with True if there was one; a journal without a whole first line does not count.

    raises ZooError if there is a journal but `resume` is false, or its settings are others
    """
    path = folder / JOURNAL
    if not has_begun(path):
        return Journal.create(path, settings), False
    if not resume:
        raise ZooError(f"'{root}' is an unfinished zoo; go on with resume=True, or delete the folder first.")
    journal = Journal.reopen(path)
    try:
        check_same(journal.settings(), settings, root)
    except BaseException:
        journal.close()
        raise
    LOG.info("'%s' is unfinished; its finished instances are kept, and writing goes on", root)
    return journal, True


def remove_unbegun(root: Path) -> None:
    """Remove the folder of a zoo if a kill at the very start left nothing in it, and nobody writes it."""
    folder = root / WRITING
    with suppress(OSError):
        root.rmdir()
    if (root / MANIFEST).exists() or not folder.is_dir():
        return
    with suppress(ZooLocked, OutputError):
        lock = take_lock(folder / "lock", root)
        try:
            if not has_begun(folder / JOURNAL):
                shutil.rmtree(root, ignore_errors=True)
        finally:
            lock.release()


def remove_folder(folder: Path) -> None:
    """Remove the working folder of a zoo that is finished.

    raises OutputError if that cannot be done
    """
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        raise OutputError(f"'{folder.parent}' is finished and whole, but '{folder}' cannot be removed; delete it.")


def remove_unfinished(root: Path, folder: Path, *, is_new: bool) -> None:
    """Remove what is in the folder of an unfinished zoo, and the zoo's folder too if it is new."""
    for part in (root / SHARDS, folder):
        shutil.rmtree(part, ignore_errors=True)
    if is_new:
        with suppress(OSError):  # somebody else has put files there
            root.rmdir()


def remove_litter(root: Path) -> None:
    """Remove the files that a killed `close` had put beside the shards."""
    for litter in ("models-*.parquet", ".prepkit-*.tmp"):
        for file in root.glob(litter):
            file.unlink()
