"""Files of weights: told apart by their first bytes, never by their names, and read without running code.

    zip with data.pkl                  torch zip           checked member by member, then mapped into memory
    pickle with torch's magic number   torch legacy        read into memory
    u64 and `{`                        safetensors         mapped into memory
    JSON with weight_map               safetensors index   each shard mapped into memory
    anything else                      refused by name, with what to do instead

A mapped file must keep its bytes while its tensors live: replace it by renaming, never write into it.
"""

from __future__ import annotations

import json
import os
import re
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from mmap import ACCESS_READ, mmap
from pathlib import Path, PureWindowsPath
from typing import IO, TYPE_CHECKING, Any, Literal
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from prepkit.errors import CheckpointError, PrepkitError, UnsafeCheckpoint, listed
from prepkit.files import is_zoo

if TYPE_CHECKING:
    from torch import Tensor

Format = Literal["torch zip", "torch legacy", "safetensors", "safetensors index"]

HEAD_BYTES = 512  # enough for every signature below, a tar's included
LOCAL_HEADER_BYTES = 30 + 2 * 0xFFFF  # the most that stands between a zip member's offset and its content
INDEX_BYTES = 10_000_000  # an index is metadata; huggingface_hub refuses larger ones too
LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # 0x1950a86a20f9469cfc6c as pickle writes it
SAVE_WEIGHTS = "save the tensors alone where the network is defined: torch.save(model.state_dict(), path)"
SAVE_AGAIN = "write it again with torch.save"
FETCH_AGAIN = "copy or download it again"
TORCH_ADVICE = ("Weights only load failed", "Please file an issue", "Check the documentation", "\t(")

# What people pass by mistake: first bytes, what they mean, what to do.
FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (rb"version https://git-lfs", "a Git LFS pointer, not the weights it points to", "run `git lfs pull`"),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file", "load it with h5py or Keras and save it as .safetensors"),
    (rb"\x1f\x8b", "compressed by gzip", "decompress it with `gunzip`"),
    (rb"\x93NUMPY", "a numpy array without names", "save named tensors as .safetensors"),
    (rb"GGUF", "a GGUF file, whose tensors are in llama.cpp's own formats", "use the checkpoint it was made from"),
    (rb"\x08[\x01-\x20]\x12", "an ONNX model", "use the PyTorch checkpoint it was exported from"),
    (rb".{257}ustar", "a tar archive", "unpack it with `tar -xf` and pass the checkpoint inside"),
    (rb"\s*<(!doctype|html|\?xml)", "a web page, so the download went wrong", "download the file itself"),
    (rb"\x80[\x02-\x05].{0,30}" + re.escape(LEGACY_MAGIC), "saved with a pickle_protocol other than 2", SAVE_WEIGHTS),
    (rb"(\xef\xbb\xbf)?\s*\{", "JSON, but no index of shards (it has no `weight_map`)", "pass the file of the weights"),
    (rb"[\t\n\r\x20-\x7e]+\Z", "text", "pass the .pt, .pth or .safetensors file"),
)

# What else a zip can be, by the name of a member inside its top folder.
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


@dataclass(frozen=True)
class Content:
    """What a file holds.

    format:     how it was stored
    value:      the object that was saved; for both safetensors formats a dict of names and CPU tensors
    data_bytes: the most that its tensors may take together; None where the format itself vouches for their sizes
    """

    format: Format
    value: object
    data_bytes: int | None = None


def read_content(path: Path) -> Content:
    """Read a file of weights by what it is; raises CheckpointError, or UnsafeCheckpoint, for all that cannot be."""
    return READERS[format_of(path)](path)


def format_of(path: Path) -> Format:
    """Which of the four formats a file is in; raises CheckpointError with what it is instead and what to do."""
    with opened(path) as file:
        head = file.read(HEAD_BYTES)
    if head[4:9] == b"\0\0\0\0{":  # the header's length, far below 2^32, and the header
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return zip_format(path)
    if head.startswith(b"\x80\x02" + LEGACY_MAGIC):
        return "torch legacy"
    if is_index(path):
        return "safetensors index"
    raise foreign(path, head)


def is_torch_file(path: Path) -> bool:
    """Whether torch.save wrote a file, in either of its formats."""
    try:
        return format_of(path) in ("torch zip", "torch legacy")
    except CheckpointError:
        return False


def foreign(path: Path, head: bytes) -> CheckpointError:
    """The error for a file in none of our formats."""
    if not head:
        return CheckpointError(f"{path} is empty (0 bytes); {FETCH_AGAIN}.")
    for pattern, found, remedy in FOREIGN:
        if re.match(pattern, head, re.DOTALL | re.IGNORECASE):
            return CheckpointError(f"{path} is {found}; {remedy}.")
    if re.match(rb"\x80[\x02-\x05]", head):
        return UnsafeCheckpoint(f"{path} is a plain pickle, which runs code when read; {SAVE_WEIGHTS}.")
    start = head[:8].hex(" ")
    return CheckpointError(f"{path} is no checkpoint: it begins with the bytes {start}; pass a .pt or .safetensors.")


# Opening files


@contextmanager
def explained(path: Path, found: str, remedy: str) -> Iterator[None]:
    """Raise CheckpointError for whatever a library or the system raises inside; errors of ours pass through."""
    try:
        yield
    except PrepkitError:
        raise
    except Exception as error:  # torch.load, zipfile and json raise a dozen kinds for damaged input
        raise CheckpointError(f"{path} {found} ({reason(error)}); {remedy}.") from error


def reason(error: Exception) -> str:
    """The first line of an error that says something, printable and short."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith(TORCH_ADVICE)]
    text = "".join(letter for letter in (lines or [""])[0] if letter.isprintable())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file; raises CheckpointError with the system's reason, or what to pass instead of a folder."""
    with explained(path, "cannot be read", "check its name and permissions"):
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise CheckpointError(f"{path} is {instead_of_folder(path)}.")
        if not stat.S_ISREG(mode):
            raise CheckpointError(f"{path} is a device or a pipe; pass a file, which can be checked and mapped.")
        with path.open("rb") as file:
            yield file


def instead_of_folder(folder: Path) -> str:
    """Return what kind of folder was passed, and what to do instead."""
    if is_zoo(folder):
        return f"a zoo, not one network; `prepkit zoo info {folder}` describes it"
    return f"a folder; {remedy_for_folder(folder)}"


def remedy_for_folder(folder: Path) -> str:
    """Return what to pass instead of a folder that is no zoo."""
    if (folder / ".metadata").is_file():
        return "convert it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt"
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    for found in (
        [name for name in names if name.endswith(".safetensors.index.json")],
        [name for name in names if name == "model.safetensors"],
        [name for name in names if name.endswith((".safetensors", ".pt", ".pth", ".bin", ".ckpt"))],
    ):
        if found:
            return f"pass a file in it: {listed(folder / name for name in found)}"
    return "pass a file; there is no .pt, .pth or .safetensors in it"


# torch.save


def zip_format(path: Path) -> Format:
    """`torch zip`, or an error that says what else the zip is."""
    with opened(path) as file, zip_of(path, file) as archive:
        names = [inner_name(member) for member in archive.infolist()]
    for pattern, error, found, remedy in ZIP_REFUSALS:
        if any(re.match(pattern, name) for name in names):
            raise error(f"{path} is {found}; {remedy}.")
    if "data.pkl" not in names:
        raise CheckpointError(f"{path} is a zip archive without weights (no data.pkl); pass the file that is in it.")
    return "torch zip"


def inner_name(member: ZipInfo) -> str:
    """A member's name inside the one top folder that torch.save makes; the whole name if there is none."""
    return member.filename.partition("/")[2] or member.filename


@contextmanager
def zip_of(path: Path, file: IO[bytes]) -> Iterator[ZipFile]:
    """The archive in an open file; raises CheckpointError if it is cut short or damaged."""
    with explained(path, "is a truncated or damaged zip archive", FETCH_AGAIN), ZipFile(file) as archive:
        yield archive


def read_torch_zip(path: Path) -> Content:
    """Check every member of the archive, then map it: torch itself checks neither sizes nor sums."""
    with opened(path) as file, zip_of(path, file) as archive:
        members = {inner_name(member): member for member in archive.infolist()}
        check_members(path, archive.infolist())
        check_sums(path, archive)
        pickled = members["data.pkl"]
        file.seek(pickled.header_offset)
        check_pickle(path, file.read(LOCAL_HEADER_BYTES + pickled.file_size))
    data_bytes = sum(member.file_size for name, member in members.items() if name.startswith("data/"))
    return Content("torch zip", load_weights(path, mapped=True), data_bytes)


def check_members(path: Path, members: list[ZipInfo]) -> None:
    """Raise UnsafeCheckpoint for an archive that torch.save would not write, before anything is read from it."""
    folder = members[0].filename.partition("/")[0]
    names = Counter(member.filename.lower() for member in members)  # torch finds members whatever their case
    faults = {
        "compressed, so they could expand to any size": [m.filename for m in members if m.compress_type != ZIP_STORED],
        "there twice, so two readers may see two files": [name for name, count in names.items() if count > 1],
        f"outside the folder {folder!r}": [m.filename for m in members if not lies_in(folder, m.filename)],
    }
    for fault, found in faults.items():
        if found:
            raise UnsafeCheckpoint(f"{path}: members {quoted(found)} are {fault}; {SAVE_AGAIN}.")
    claimed, actual = sum(member.file_size for member in members), path.stat().st_size
    if claimed > actual:
        raise UnsafeCheckpoint(f"{path} claims {claimed} bytes of content in {actual} bytes of file; {SAVE_AGAIN}.")


def lies_in(folder: str, member: str) -> bool:
    """True for a member's name that stays below the archive's top folder."""
    return member.partition("/")[0] == folder and ".." not in PureWindowsPath(member).parts


def check_sums(path: Path, archive: ZipFile) -> None:
    """Raise CheckpointError where a member's bytes differ from its CRC-32: one pass over the file, 3 GB/s."""
    if not any(member.CRC for member in archive.infolist()):
        return  # written under torch.serialization.set_crc32_options(False), which leaves zeros
    damaged = archive.testzip()
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: the bytes of {damaged!r} differ from its CRC-32; {FETCH_AGAIN}.")


def read_torch_legacy(path: Path) -> Content:
    """Read a file of torch before 1.6, whose tensors follow the pickles and cannot be mapped."""
    with opened(path) as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        check_pickle(path, content)
    return Content("torch legacy", load_weights(path, mapped=False), path.stat().st_size)


def check_pickle(path: Path, pickled: bytes | mmap) -> None:
    """Raise UnsafeCheckpoint for `bytearray(n)`: weights_only allows it, and it fills any n bytes of memory."""
    if pickled.find(b"bytearray\n") >= 0:
        raise UnsafeCheckpoint(f"{path} makes a bytearray, which no tensor needs; {SAVE_WEIGHTS}.")


def load_weights(path: Path, *, mapped: bool) -> object:
    """torch.load with weights_only, on the CPU; raises UnsafeCheckpoint with the names it would have to run."""
    import torch

    # torch.load reads a path that ends in .safetensors as safetensors, whatever it holds; an open file has no suffix.
    by_path = mapped and not path.name.endswith(".safetensors")
    with opened(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about torch's own insides; what concerns the file is raised below
        try:
            return torch.load(path if by_path else file, map_location="cpu", weights_only=True, mmap=by_path)
        except Exception as error:
            raise refused(path, error) from error


def refused(path: Path, error: Exception) -> CheckpointError:
    """The error for a file that torch.load did not read: code in it, another pickle protocol, or damage."""
    names = unsafe_globals(path, error)
    if names:
        return UnsafeCheckpoint(
            f"{path} holds more than tensors: reading it would import and call {listed(names)}, so it was not read. "
            f"Instead, {SAVE_WEIGHTS}."
        )
    found, remedy = "is truncated or damaged", FETCH_AGAIN
    if "Unsupported operand" in str(error):
        found, remedy = "is damaged or was saved with a pickle_protocol other than 2", SAVE_WEIGHTS
    return CheckpointError(f"{path} {found} ({reason(error)}); {remedy}.")


def unsafe_globals(path: Path, error: Exception) -> list[str]:
    """Names of the globals that a refused file would import; found without importing them."""
    from torch.serialization import get_unsafe_globals_in_checkpoint

    try:
        return sorted(get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # not a zip, or a pickle that cannot be walked: torch.load named the first one
        return re.findall(r"GLOBAL (\S+) (?:was not|whose)", str(error))[:1]


# safetensors


def mapped_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; the library checks offsets and sizes, we that no name stands twice."""
    from safetensors import safe_open

    with explained(path, "is a truncated or damaged safetensors file", FETCH_AGAIN):
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        with opened(path) as header:
            length = int.from_bytes(header.read(8), "little")  # at most 100 MB: safe_open has checked it
            json.loads(header.read(length), object_pairs_hook=unique)
    return tensors


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict; raises ValueError if a name stands twice, which JSON itself allows."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        raise ValueError(f"{quoted(twice)} stands twice")
    return found


def read_index(path: Path) -> Content:
    """Map all shards of a sharded model; each must hold exactly the tensors that the index places in it."""
    shards = shards_of(path)
    missing = [shard for shard in shards if not os.path.exists(path.parent / shard)]  # Path.exists may raise
    if missing:
        raise CheckpointError(f"{path} needs {quoted(missing)}, missing beside it; {FETCH_AGAIN}.")
    tensors: dict[str, Tensor] = {}
    for shard, names in shards.items():
        tensors |= read_shard(path, shard, names)
    return Content("safetensors index", tensors)


def read_shard(index: Path, shard: str, names: set[str]) -> dict[str, Tensor]:
    """The tensors of one shard; raises CheckpointError if it holds other names than the index says."""
    stored = format_of(index.parent / shard)
    if stored != "safetensors":
        raise CheckpointError(f"{index} names the shard {shard!r}, which is in format '{stored}', not safetensors.")
    tensors = mapped_tensors(index.parent / shard)
    for found, what in ((names - tensors.keys(), "lacks"), (tensors.keys() - names, "has, unknown to the index,")):
        if found:
            raise CheckpointError(f"{index}: the shard {shard!r} {what} {quoted(sorted(found))}; {FETCH_AGAIN}.")
    return tensors


def shards_of(index: Path) -> dict[str, set[str]]:
    """Shard -> names of its tensors, shards in ascending order; raises CheckpointError if the index is not sound."""
    shards: dict[str, set[str]] = {}
    for name, shard in weight_map(index).items():
        shards.setdefault(shard, set()).add(name)
    outside = [shard for shard in shards if leaves_folder(shard)]
    if outside:
        raise UnsafeCheckpoint(f"{index} names shards outside its folder: {quoted(outside)}; keep them beside it.")
    return dict(sorted(shards.items()))


def weight_map(index: Path) -> dict[str, str]:
    """The index's `weight_map`, names to shards; raises CheckpointError if it is not one."""
    with opened(index) as file, explained(index, "is no valid JSON", FETCH_AGAIN):
        text = file.read(INDEX_BYTES + 1)
        if len(text) > INDEX_BYTES:
            raise CheckpointError(f"{index} is JSON of over {INDEX_BYTES} bytes, too large for an index of shards.")
        found = json.loads(text.decode("utf-8-sig"), object_pairs_hook=unique)
    names = found.get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(shard, str) for shard in names.values()):
        raise CheckpointError(f"{index}, weight_map: not an object from tensor names to file names; {FETCH_AGAIN}.")
    return names


def leaves_folder(shard: str) -> bool:
    """True for a name that could lie outside the index's folder on some system; Windows' rules are the strictest."""
    windows = PureWindowsPath(shard)
    return "\\" in shard or bool(windows.drive or windows.root) or ".." in windows.parts


def is_index(path: Path) -> bool:
    """True for a JSON object with a `weight_map`, sound or not."""
    with opened(path) as file:
        text = file.read(HEAD_BYTES)
        if not text.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
            return False
        return b'"weight_map"' in text + file.read(INDEX_BYTES)


def quoted(names: Iterable[object]) -> str:
    """Names as they stand in a message: few, short, and with nothing in them that a terminal would obey."""
    return listed([repr(name)[:100] for name in names])


READERS: dict[Format, Callable[[Path], Content]] = {
    "torch zip": read_torch_zip,
    "torch legacy": read_torch_legacy,
    "safetensors": lambda path: Content("safetensors", mapped_tensors(path)),
    "safetensors index": read_index,
}
