"""The folder that a zoo is pulled into: what it may hold, who works in it, and how it comes to hold the new zoo.

While a pull is under way, the folder has a folder `.pulling` with a lock and with what was asked for. An old zoo stays
whole until the new zoo.json takes the place of the old one: names carry hashes, so their files do not collide.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from prepkit.errors import OutputError, ZooError, listed
from prepkit.hub.selection import RECORD, PullRecord, read_record, write_record
from prepkit.support.files import flush, system_errors_as_output
from prepkit.support.lock import changing, take_lock
from prepkit.zoo.change.cleaning import is_ours
from prepkit.zoo.format.manifest import MANIFEST, Manifest, read_manifest

WORK = ".pulling"
REQUEST = "request.json"
ZOO_FILES = ("shards/*", "models-*.parquet", "teacher-*.prep.safetensors", "preprocessing-*.safetensors")


def known_zoo(root: Path) -> tuple[PullRecord, Manifest] | None:
    """Return where the zoo in a folder came from, and its manifest; None if it was not pulled, or changed since."""
    record = read_record(root / RECORD)
    try:
        manifest = read_manifest(root) if record is not None else None
    except ZooError:
        return None
    if record is None or manifest is None or record.manifest != manifest.to_dict()["sha256"]:
        return None
    return record, manifest


@dataclass(frozen=True)
class Target:
    """A folder to pull into, the version that is pulled, and whether another zoo may be replaced."""

    root: Path
    record: PullRecord
    force: bool

    @property
    def work(self) -> Path:
        """The folder that the pull works in."""
        return self.root / WORK

    def check_folder(self) -> None:
        """Raise OutputError unless the folder is new, empty, half pulled, or holds a zoo."""
        if not self.root.exists():
            return
        if not self.root.is_dir():
            raise OutputError(f"'{self.root}' is a file, not a folder; name a folder.")
        if (self.root / MANIFEST).exists() or self.work.is_dir():
            return
        if others := sorted(entry.name for entry in self.root.iterdir()):
            raise OutputError(f"'{self.root}' holds other files ({listed(others, 3)}); name a new or empty folder.")

    def check(self) -> None:
        """Raise OutputError if the folder holds what may not be replaced, or an unfinished pull of something else."""
        self.check_folder()
        if (self.root / MANIFEST).exists():
            if not self.force:
                raise OutputError(self._occupied())
            if not (self.root / RECORD).exists():  # without a record only its manifest shows that it is a zoo
                read_manifest(self.root)
        elif self.work.is_dir():
            self._check_request()

    @contextmanager
    def working(self) -> Iterator[Path]:
        """Lock the folder, and give the one to work in, which stays if the pull fails, so that it can go on.

        raises OutputError if it cannot be made, ZooLocked if another process pulls into it
        """
        is_new = not self.root.exists()
        self.check()
        # No other process may change a zoo that is about to be replaced; a folder without one has nothing to change.
        with changing(self.root) if (self.root / MANIFEST).exists() else nullcontext(), self._locked(is_new):
            write_record(self.record, self.work / REQUEST)
            yield self.work

    @contextmanager
    def _locked(self, is_new: bool) -> Iterator[None]:
        """Make the folder to work in, and lock it."""
        with system_errors_as_output(self.root):
            try:
                self.work.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise OutputError(f"'{self.root}' cannot be made: there is a file of that name.") from None
            lock = take_lock(self.work / "lock", self.root)
        try:
            yield
        except BaseException:
            self._leave(is_new)
            raise
        finally:
            lock.release()

    def finish(self, manifest: Manifest) -> None:
        """Give the folder the zoo.json that lies in the working folder, and remove the files of the zoo before.

        raises OutputError
        """
        with system_errors_as_output(self.root):
            old = self._old_files()
            self.note(manifest)
            flush(self.work / MANIFEST)
            os.replace(self.work / MANIFEST, self.root / MANIFEST)
            flush(self.root)
            for path in old - manifest.paths:
                (self.root / path).unlink(missing_ok=True)
            shutil.rmtree(self.work, ignore_errors=True)

    def note(self, manifest: Manifest) -> None:
        """Record where the folder's zoo came from."""
        record = replace(self.record, manifest=manifest.to_dict()["sha256"])
        if read_record(self.root / RECORD) != record:
            write_record(record, self.root / RECORD)

    def _leave(self, is_new: bool) -> None:
        """Remove, after a failure, what would not help to go on."""
        if next(self._half_pulled(), None) is None and not any(self.work.glob("cut/*.json")):
            shutil.rmtree(self.work, ignore_errors=True)
            if is_new:
                shutil.rmtree(self.root, ignore_errors=True)

    def _old_files(self) -> set[str]:
        """Return the files of the zoo that was there, and of unfinished pulls of other versions."""
        try:
            named = read_manifest(self.root).paths
        except ZooError:
            return set(self._half_pulled())  # before the first pull the folder was new or empty
        return {*named, *filter(is_ours, self._half_pulled())}

    def _half_pulled(self) -> Iterator[str]:
        """Give the files that are named like those of zoos."""
        for pattern in ZOO_FILES:
            for file in self.root.glob(pattern):
                yield file.relative_to(self.root).as_posix()

    def _check_request(self) -> None:
        begun = read_record(self.work / REQUEST)
        if begun is None or self.force or replace(begun, commit=self.record.commit) == self.record:
            return
        raise OutputError(
            f"'{self.root}' holds an unfinished pull of something else ({begun.repo}, {begun.selection}); finish that, "
            "name another folder, or force=True to begin anew."
        )

    def _occupied(self) -> str:
        known = known_zoo(self.root)
        if known is None:
            return (
                f"'{self.root}' holds a zoo that is not this one, or was changed; name another folder, or force=True."
            )
        record, _ = known
        return (
            f"'{self.root}' holds {record.selection} of {record.repo} at {record.commit[:12]}, not "
            f"{self.record.selection} of {self.record.repo} at {self.record.commit[:12]}; name another folder, or "
            "force=True to replace it."
        )
