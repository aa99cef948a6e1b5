"""Files that torch.save wrote, checked before torch reads them: torch itself checks neither sizes nor sums."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from mmap import ACCESS_READ, mmap
from pathlib import Path, PureWindowsPath
from typing import IO
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from prepkit.checkpoint._inert import Inert, is_harmless, other_kind, stand_in_for
from prepkit.checkpoint.opening import FETCH_AGAIN, explained, opened, quoted, reason
from prepkit.errors import CheckpointError, UnsafeCheckpoint, counted, listed

LOCAL_HEADER_BYTES = 30 + 2 * 0xFFFF  # the most that stands between a zip member's offset and its content
BYTEARRAY = b"bytearray\n"  # in a pickle
SAVE_WEIGHTS = "save the tensors alone where the network is defined: torch.save(model.state_dict(), path)"
SAVE_AGAIN = "write it again with torch.save"

# Other kinds of zip archives, which the name of a member inside the top folder gives away.
ZIP_REFUSALS: tuple[tuple[str, type[CheckpointError], str, str], ...] = (
    (
        r"constants\.pkl$|code/",
        UnsafeCheckpoint,
        "a TorchScript archive, which is a program",
        "where you trust it, save its weights: torch.save(torch.jit.load(path).state_dict(), 'weights.pt')",
    ),
    (
        r"archive_format$|models/model\.json$|serialized_exported_program\.json$",
        CheckpointError,
        "a torch.export archive, which is a graph",
        "save its weights: torch.save(torch.export.load(path).state_dict, 'weights.pt')",
    ),
    (r".*\.npy$", CheckpointError, "an .npz archive of numpy arrays", "save them with safetensors.numpy.save_file"),
    (r".*\.weights\.h5$", CheckpointError, "a Keras archive", "save its weights as .safetensors from Keras"),
)


HOLDS_DTENSORS = (
    "holds DTensors, whose values are spread over processes; save whole tensors: "
    "{name: value.full_tensor() for name, value in model.state_dict().items()}"
)


def check_kind_of_zip(path: Path) -> None:
    """Raise CheckpointError for a zip archive that torch.save did not write, saying what it is."""
    with opened(path) as file, zip_of(path, file) as archive:
        names = [inner_name(member) for member in archive.infolist()]
    for pattern, error, kind, remedy in ZIP_REFUSALS:
        if any(re.match(pattern, name) for name in names):
            raise error(f"{path} is {kind}; {remedy}.")
    if "data.pkl" not in names:
        raise CheckpointError(f"{path} is a zip archive without weights (no data.pkl); pass the file that is in it.")


def inner_name(member: ZipInfo) -> str:
    """Return a member's name inside the one top folder that torch.save makes; the full name if there is no folder."""
    return member.filename.partition("/")[2] or member.filename


@contextmanager
def zip_of(path: Path, file: IO[bytes]) -> Iterator[ZipFile]:
    """Open the archive in a file; raises CheckpointError if it is cut short or damaged."""
    with explained(path, "is a truncated or damaged zip archive", FETCH_AGAIN), ZipFile(file) as archive:
        yield archive


def read_torch_zip(path: Path) -> tuple[object, int]:
    """Check every member of the archive, then map it.

    returns the object that was saved, and the most bytes that its tensors may take together
    """
    with opened(path) as file, zip_of(path, file) as archive:
        members = {inner_name(member): member for member in archive.infolist()}
        check_members(path, archive.infolist())
        check_sums(path, archive)
        pickled = members["data.pkl"]
        file.seek(pickled.header_offset)
        check_pickle(path, file.read(LOCAL_HEADER_BYTES + pickled.file_size))
    data_bytes = sum(member.file_size for name, member in members.items() if name.startswith("data/"))
    return load_weights(path, mapped=True), data_bytes


def check_members(path: Path, members: list[ZipInfo]) -> None:
    """Raise UnsafeCheckpoint for an archive that torch.save would not write, before anything is read from it."""
    folder = members[0].filename.partition("/")[0]
    names = Counter(member.filename.lower() for member in members)  # torch finds members whatever their case
    faults = {
        "compressed, so they could expand to any size": [m.filename for m in members if m.compress_type != ZIP_STORED],
        "there twice, so two readers may see two files": [name for name, count in names.items() if count > 1],
        f"outside the folder {folder!r}": [m.filename for m in members if not lies_in(folder, m.filename)],
    }
    for fault, culprits in faults.items():
        if culprits:
            raise UnsafeCheckpoint(f"{path}: members {quoted(culprits)} are {fault}; {SAVE_AGAIN}.")
    claimed, actual = sum(member.file_size for member in members), path.stat().st_size
    if claimed > actual:
        raise UnsafeCheckpoint(
            f"{path} claims {counted(claimed, 'byte')} of content in {counted(actual, 'byte')} of file; {SAVE_AGAIN}."
        )


def lies_in(folder: str, member: str) -> bool:
    """Whether a member's name stays below the archive's top folder."""
    return member.partition("/")[0] == folder and ".." not in PureWindowsPath(member).parts


def check_sums(path: Path, archive: ZipFile) -> None:
    """Raise CheckpointError if a member's bytes differ from its CRC-32. This is one pass over the file at 3 GB/s."""
    if not any(member.CRC for member in archive.infolist()):
        return  # torch.serialization.set_crc32_options(False) leaves zeros in place of sums
    damaged = archive.testzip()
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: the bytes of {damaged!r} differ from its CRC-32; {FETCH_AGAIN}.")


def read_torch_legacy(path: Path) -> tuple[object, int]:
    """Read a file of torch before 1.6, whose tensors follow the pickles and cannot be mapped; see read_torch_zip."""
    with opened(path) as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        check_pickle(path, content)
    return load_weights(path, mapped=False), path.stat().st_size


def check_pickle(path: Path, pickled: bytes | mmap) -> None:
    """Raise UnsafeCheckpoint for `bytearray(n)`, which torch's weights_only allows: it fills any n bytes of memory."""
    if pickled.find(BYTEARRAY) >= 0:
        raise UnsafeCheckpoint(f"{path} makes a bytearray, which no tensor needs; {SAVE_WEIGHTS}.")


# Those of the last file that needed some. Files that one program wrote need the same, which are found by failing once.
EARLIER_STAND_INS: dict[str, type] = {}


def load_weights(path: Path, *, mapped: bool) -> object:
    """Call torch.load with weights_only, on the CPU; other objects beside the tensors become inert stand-ins.

    raises UnsafeCheckpoint with the names that it would run
    """
    import torch
    from torch.serialization import safe_globals

    # torch.load takes any path that ends in .safetensors for safetensors; an open file has no suffix.
    by_path = mapped and not path.name.endswith(".safetensors")

    def load(stand_ins: Mapping[str, type]) -> object:
        file.seek(0)
        with safe_globals([(stand_in, name) for name, stand_in in stand_ins.items()]):
            return torch.load(path if by_path else file, map_location="cpu", weights_only=True, mmap=by_path)

    stand_ins: dict[str, type] = {}
    with opened(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are about torch's own insides; faults of the file are raised below
        if earlier := dict(EARLIER_STAND_INS):
            with suppress(Exception):  # a file of another program, or a damaged one, is read anew
                return load(earlier)
        while True:
            try:
                loaded = load(stand_ins)
                if stand_ins:
                    EARLIER_STAND_INS.clear()
                    EARLIER_STAND_INS.update(stand_ins)
                return loaded
            except Exception as error:
                better = {name: kind for name, kind in other_kind(error).items() if was_inert(stand_ins.get(name))}
                names = unsafe_globals(path, error)
                # A legacy file names its globals one at a time.
                new = {name: stand_in_for(name) for name in names if name not in stand_ins} | better
                if not new or not all(map(is_harmless, names)):
                    raise refused(path, error, [name for name in names if name not in stand_ins]) from error
                stand_ins |= new


def was_inert(stand_in: type | None) -> bool:
    """Whether a stand-in is of the usual kind, which may be replaced by another kind once."""
    return stand_in is not None and issubclass(stand_in, Inert)


def refused(path: Path, error: Exception, names: list[str]) -> CheckpointError:
    """Return the error for a file that torch.load did not read: it holds code or another pickle, or is damaged.

    names: globals that the file would import
    """
    if any(name.startswith("torch.distributed.tensor.") for name in names):
        return CheckpointError(f"{path} {HOLDS_DTENSORS}.")
    if "torch.nn.parameter.UninitializedParameter" in names:
        return CheckpointError(f"{path} holds lazy layers without values; run the network once, then save it again.")
    if names:
        return UnsafeCheckpoint(
            f"{path} holds more than tensors: reading it would import and call {listed(names)}, so it was not read. "
            f"Instead, {SAVE_WEIGHTS}. {where_trusted(path)}"
        )
    fault, remedy = "is truncated or damaged", FETCH_AGAIN
    if "Unsupported operand" in str(error):
        fault, remedy = "is damaged or was saved with a pickle_protocol other than 2", SAVE_WEIGHTS
    return CheckpointError(f"{path} {fault} ({reason(error)}); {remedy}.")


def where_trusted(path: Path) -> str:
    """Say how to take the weights out of a pickled network, which runs what is in the file."""
    load = f"m = torch.load({str(path)!r}, 'cpu', weights_only=False)"
    return (
        "If you have the file alone and trust it, run "
        f"`import torch; {load}; torch.save(m.state_dict(), 'weights.pt')` where its classes can be imported, and pass "
        "weights.pt; in a dict, the network may be m['model']."
    )


def unsafe_globals(path: Path, error: Exception) -> list[str]:
    """Return the names of the globals that a refused file would import, without importing them."""
    from torch.serialization import get_unsafe_globals_in_checkpoint

    try:
        return sorted(get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # torch cannot list them for legacy files and some pickles, but its error names the first
        first = re.findall(r"GLOBAL (\S+) (?:was not|whose)", str(error))[:1]
        return [name if "." in name else f"builtins.{name}" for name in first]
