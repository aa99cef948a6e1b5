"""verify: whether a zoo is what its manifest says. Every file is hashed, every header and the table are checked."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from prepkit.errors import OutputError, PrepkitError, ZooError, counted
from prepkit.support.files import sha256_of_file
from prepkit.support.lock import changing
from prepkit.support.logs import logger
from prepkit.support.progress import Advance, one_at_a_time
from prepkit.support.text import Brief
from prepkit.zoo.card.card import README, replace_card
from prepkit.zoo.change.cleaning import is_ours
from prepkit.zoo.change.rerun import Rerun, proven, run_again
from prepkit.zoo.format.function import Function
from prepkit.zoo.format.manifest import MANIFEST, Manifest, Shard, read_manifest, write_manifest
from prepkit.zoo.format.paths import inside, unnamed_files
from prepkit.zoo.format.shards import Extent, offset_of_values, shard_format
from prepkit.zoo.read.preprocessing import read_preprocessing

if TYPE_CHECKING:
    import pyarrow as pa

LOG = logger(__name__)
MAX_JOBS = 8
MAX_FAULTS_OF_TABLE = 5  # a table that is wrong everywhere is not reported row by row


@dataclass(frozen=True)
class Fault:
    """A contradiction of the manifest: the file, the place in the manifest or in the file, and the problem."""

    file: str
    place: str
    problem: str

    def __str__(self) -> str:
        return f"{self.file} ({self.place}): {self.problem}"


@dataclass(frozen=True, repr=False)
class Verification(Brief):
    """The result of verifying a zoo.

    path:      the zoo's folder
    instances: number of instances that the manifest names
    files:     number of files that were read
    bytes:     number of bytes that were hashed
    notes:     sentences on what is no fault but good to know, such as files that belong to nothing
    reruns:    instances that were run again; none where there are faults
    function:  what zoo.json says of the function of an imported zoo, after the reruns; else None
    """

    path: str
    instances: int
    files: int
    bytes: int
    faults: tuple[Fault, ...]
    notes: tuple[str, ...] = ()
    reruns: tuple[Rerun, ...] = ()
    function: Function | None = None

    @property
    def ok(self) -> bool:
        """True if there is no fault and each instance that was run again has the stored accuracy."""
        return not self.faults and all(rerun.agrees for rerun in self.reruns)


@dataclass(frozen=True)
class _ExpectedFile:
    """A file that the manifest names."""

    path: str
    sha256: str
    place: str
    bytes: int | None = None
    shard: Shard | None = None


def verify_folder(
    root: Path,
    *,
    jobs: int | None = None,
    rerun: int = 0,
    data: str | os.PathLike[str] | None = None,
    progress: Advance | None = None,
) -> Verification:
    """Verify a zoo in a folder; arguments and errors as for `prepkit.verify`."""
    try:
        manifest = read_manifest(root)
    except ZooError as error:
        if not os.path.isfile(root / MANIFEST):  # a folder that may not be read is no zoo either
            raise
        return Verification(str(root), 0, 1, 0, (_fault(root, MANIFEST, "manifest", error),))
    expected = list(_expected(manifest))
    faults, num_bytes = find_faults(root, manifest, jobs, progress)
    reruns = _reruns(root, rerun, data) if rerun and not faults else ()
    function, note = _kept_function(root, manifest, reruns)
    return Verification(
        path=str(root),
        instances=manifest.table.rows,
        files=len(expected) + 1,
        bytes=num_bytes,
        faults=tuple(faults),
        notes=(*_notes(root, manifest), *note),
        reruns=reruns,
        function=function,
    )


def find_faults(
    root: Path, manifest: Manifest, jobs: int | None = None, progress: Advance | None = None
) -> tuple[list[Fault], int]:
    """Compare every file of a zoo with a manifest, which need not lie in its folder yet.

    Returns the faults, and the number of bytes that were hashed.
    """
    advance = one_at_a_time(progress)
    with ThreadPoolExecutor(jobs or min(MAX_JOBS, os.cpu_count() or 1), "prepkit-verify") as pool:
        checked = list(pool.map(lambda item: _check_file(root, manifest, item, advance), _expected(manifest)))
    faults = [fault for _, fault in checked if fault is not None]
    LOG.info("hashed %s of '%s', faults: %d", counted(len(checked), "file"), root, len(faults))
    if manifest.table.path not in {fault.file for fault in faults}:
        faults += _table_faults(root, manifest)
    return faults, sum(num_bytes for num_bytes, _ in checked)


def _reruns(root: Path, count: int, data: str | os.PathLike[str] | None) -> tuple[Rerun, ...]:
    from prepkit.zoo.read.zoo import local_zoo

    return run_again(local_zoo(root), count, data)


def _kept_function(
    root: Path, manifest: Manifest, reruns: tuple[Rerun, ...]
) -> tuple[Function | None, tuple[str, ...]]:
    """Write what reruns say of an imported zoo's function into its zoo.json and its card, and return it.

    Also returns a sentence for a zoo that cannot be written.
    """
    if manifest.function is None or not reruns:
        return manifest.function, ()
    function = proven(manifest.function, reruns)
    try:
        with changing(root):
            latest = read_manifest(root)
            if latest.function != function:
                write_manifest(replace(latest, function=function), root, overwrite=True)
                if (root / README).exists():
                    replace_card(root)
    except OutputError as error:
        return manifest.function, (f"The zoo cannot keep that its function is {function.status}: {error}",)
    return function, ()


def _expected(manifest: Manifest) -> Iterator[_ExpectedFile]:
    table = manifest.table
    yield _ExpectedFile(table.path, table.sha256, "table", table.bytes)
    for index, shard in enumerate(manifest.shards):
        yield _ExpectedFile(shard.path, shard.sha256, f"shards[{index}]", shard.bytes, shard)
    for path, sha256 in manifest.beside.items():
        yield _ExpectedFile(path, sha256, manifest.key_of(path))


def _check_file(root: Path, manifest: Manifest, item: _ExpectedFile, progress: Advance) -> tuple[int, Fault | None]:
    """Return the number of bytes hashed, and the fault of a file if it has one."""
    count = 0
    try:
        file = inside(root, item.path, str(root / MANIFEST))
        size = file.stat().st_size
        if item.bytes is not None and size != item.bytes:
            problem = "truncated" if size < item.bytes else "too long"
            raise ZooError(
                f"{problem}: it has {counted(size, 'byte')}, the manifest says {item.bytes:,}. Fetch it again."
            )
        sha256, count = sha256_of_file(file, progress), size
        header = _header_problem(file, manifest, item)
        if sha256 != item.sha256:
            where = header or "its header is sound, so its content differs."
            wrong = f"its sha256 is {sha256[:12]}..., not {item.sha256[:12]}..."
            raise ZooError(f"damaged: {wrong}; {where} Fetch it again.")
        if header is not None:
            raise ZooError(header)
    except FileNotFoundError:
        return count, Fault(item.path, item.place, "missing. Fetch it again.")
    except OSError as error:
        return count, Fault(item.path, item.place, f"cannot be read: {error.strerror or error}.")
    except ZooError as error:
        return count, _fault(root, item.path, item.place, error)
    return count, None


def _header_problem(file: Path, manifest: Manifest, item: _ExpectedFile) -> str | None:
    """Return the problem of the header of a shard or teacher, or None."""
    try:
        if item.shard is not None:
            height = manifest.architecture(item.shard.architecture).height
            extent = Extent(item.shard.rows, height, manifest.width, manifest.dtype)
            offset_of_values(file, shard_format(manifest.shard_format), extent)
        elif item.place == "teacher":
            _check_teacher(file, manifest)
        elif item.place == "preprocessing":
            read_preprocessing(file, manifest)
    except PrepkitError as error:
        return str(error)
    except Exception as error:  # h5py raises errors of many types for a damaged file
        return f"its header cannot be read ({type(error).__name__})."
    return None


def _check_teacher(file: Path, manifest: Manifest) -> None:
    from prepkit.prep.file import read_prep_header

    teacher = manifest.teacher
    header = read_prep_header(file)
    if teacher is not None and header.layout != manifest.architecture(teacher.architecture).layout:
        raise ZooError(f"it is no {teacher.architecture}: its layout is another one.")


def _table_faults(root: Path, manifest: Manifest) -> list[Fault]:
    """Find where table and manifest disagree, with few rows in memory at once."""
    from prepkit.zoo.format.tables import table_in_parts

    path = manifest.table.path
    try:
        return table_faults(lambda: table_in_parts(root / path, manifest.table), manifest)
    except ZooError as error:
        return [_fault(root, path, "table", error)]


def table_faults(parts: Callable[[], Iterable[pa.Table]], manifest: Manifest) -> list[Fault]:
    """Find where a table and a manifest disagree: each row of each shard must belong to exactly one instance.

    parts: gives the table in parts, from its first row on each time
    """
    return [Fault(manifest.table.path, place, problem) for place, problem in _table_problems(parts, manifest)]


def _table_problems(parts: Callable[[], Iterable[pa.Table]], manifest: Manifest) -> list[tuple[str, str]]:
    """Return place and problem of each disagreement."""
    problems: list[tuple[str, str]] = []
    splits: Counter[str] = Counter()
    taken = [bytearray(shard.rows) for shard in manifest.shards]
    hashes = array("q")
    for part in parts():
        problems += islice(_misplaced(part, len(hashes), taken, manifest), MAX_FAULTS_OF_TABLE - len(problems))
        splits.update(part["split"].to_pylist())
        hashes.extend(map(hash, part["id"].to_pylist()))
    if _stands_twice(parts, hashes):
        problems.insert(0, ("column id", "an id stands twice."))
    counts = {name: count for name, count in splits.items() if name is not None}
    if counts != dict(manifest.splits):
        problems.append(("column split", f"the table counts {counts}, the manifest {dict(manifest.splits)}."))
    return problems


def _stands_twice(parts: Callable[[], Iterable[pa.Table]], hashes: array[int]) -> bool:
    """Return whether an id stands in the table twice; only ids whose hash stands twice are compared."""
    import numpy as np

    in_order = np.frombuffer(hashes, dtype=np.int64)
    in_order.sort()
    twice = set(in_order[1:][in_order[1:] == in_order[:-1]].tolist())
    seen = set()
    for part in parts() if twice else ():
        for id in part["id"].to_pylist():
            if hash(id) in twice:
                if id in seen:
                    return True
                seen.add(id)
    return False


def _misplaced(part: pa.Table, start: int, taken: list[bytearray], manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the rows of a part of the table that are wrong, and mark the places of all in `taken`, 1 for each row.

    start: number of the part's first row
    """
    class_ids = {stored.name: stored.class_id for stored in manifest.architectures}
    columns = (part[name].to_pylist() for name in ("architecture", "class_id", "shard", "row"))
    for index, (name, class_id, shard, row) in enumerate(zip(*columns, strict=True), start):
        if not (0 <= shard < len(taken) and 0 <= row < len(taken[shard])) or taken[shard][row]:
            yield f"row {index}", f"row {row} of shard {shard} is not there, or another instance's already."
            continue
        taken[shard][row] = 1
        holds = manifest.shards[shard].architecture
        if (name, class_id) != (holds, class_ids.get(name)):
            yield (
                f"row {index}",
                f"'{name}' with ClassId {class_id}, but shard {shard} holds {holds}, {class_ids[holds]}.",
            )


def _notes(root: Path, manifest: Manifest) -> tuple[str, ...]:
    """Name the files in the folder that belong to nothing."""
    remedies = (
        (path, "`prepkit zoo clean` removes it" if is_ours(path) else "it can be deleted")
        for path in unnamed_files(root, manifest.paths)
    )
    return tuple(f"{path}: the manifest does not name it; {remedy}." for path, remedy in remedies)


def _fault(root: Path, file: str, place: str, error: PrepkitError) -> Fault:
    """Make a fault of an error, whose message may begin with the file."""
    text = str(error)
    for start in (f"{root / file}: ", f"{root / file}, "):
        text = text.removeprefix(start)
    return Fault(file, place, text)
