"""Reading many checkpoints that are alike, such as those of one training, without unpickling each of them.

torch.save writes the names, shapes and places of the tensors as a pickle, and their values beside it. Files whose
archives are equal but for these values give the same tensors with other values. So torch reads the first two files of
a form, and a third is taken apart here, where its sums and sizes are checked as `load_checkpoint` checks them.
`load_checkpoint` reads every file of another form, and every file that is not sound, and so finds the words for it.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import ZIP_STORED, ZipFile, ZipInfo
from zlib import crc32

from prepkit.checkpoint._torch_files import BYTEARRAY, lies_in, load_weights
from prepkit.checkpoint.formats import Content
from prepkit.checkpoint.load import Checkpoint, checkpoint_of, load_checkpoint, sha256_of
from prepkit.checkpoint.sharded import check_not_a_part
from prepkit.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_BYTES = 4 << 20  # of a file; for larger ones torch's own time hardly counts
MAX_FORMS = 64  # that are remembered; the one that was used longest ago makes room
MAX_STORAGES = 255  # of a form: each is marked with a byte of its own
DATA = "data/"
ORDER = "byteorder"
SERIAL = ".data/serialization_id"  # a member that differs in all files, and says nothing of the tensors
HEADER_BYTES = 30  # of a member, before its name
OTHER_FLAGS = 0x61  # encrypted, or a patch of another file


@dataclass(frozen=True)
class _Archive:
    """An archive that is sound, whose members lie in one folder.

    key:     what two archives of one form share: the names and sizes of all members, and the content of those that say
             what the tensors are
    offsets: where the content of each member begins, by its name inside the folder
    sizes:   bytes of each member
    """

    content: bytearray
    key: tuple[object, ...]
    offsets: Mapping[str, int]
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class _View:
    """A tensor as a view of a storage.

    member: name of the member that is the storage
    count:  number of values in the storage
    start:  index of the tensor's first value in it
    """

    member: str
    dtype: torch.dtype
    count: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class _Form:
    """What the checkpoints in all archives of one form have in common; `common` holds no tensors."""

    common: Checkpoint
    views: Mapping[str, _View]

    def tensors(self, archive: _Archive) -> dict[str, Tensor]:
        """Return the tensors of an archive, in memory that is the archive's; those of one storage share it."""
        import torch

        storages: dict[tuple[str, torch.dtype], Tensor] = {}
        tensors = {}
        for name, view in self.views.items():
            storage = storages.get((view.member, view.dtype))
            if storage is None:
                offset = archive.offsets[view.member]
                storage = torch.frombuffer(archive.content, dtype=view.dtype, count=view.count, offset=offset)
                storages[view.member, view.dtype] = storage
            tensors[name] = storage.as_strided(view.shape, view.stride, view.start)
        return tensors


class CheckpointReader:
    """Reads one checkpoint after another, as `load_checkpoint` does, and is quick where they are alike.

    key, prefix: as in `load_checkpoint`
    """

    def __init__(self, key: str | None = None, prefix: str | None = None) -> None:
        self._key, self._prefix = key, prefix
        self._names: set[tuple[str, ...]] = set()  # of all members of archives that load_checkpoint read
        self._forms: OrderedDict[tuple[object, ...], _Form | None] = OrderedDict()  # None: torch read one such file

    def read(self, path: Path) -> tuple[Checkpoint, str]:
        """Return the checkpoint in a file, and the sha256 of the file.

        raises CheckpointError, UnsafeCheckpoint as `load_checkpoint` does
        """
        archive = _archive_in(path)
        if archive is None:
            return load_checkpoint(path, self._key, self._prefix), sha256_of(path)
        sha256 = hashlib.sha256(archive.content).hexdigest()
        is_known = archive.key in self._forms
        form = self._forms.get(archive.key)
        if form is not None:
            check_not_a_part(path)
            self._forms.move_to_end(archive.key)
            return replace(form.common, path=path, _tensors=form.tensors(archive)), sha256
        checkpoint = self._unpickled(path, archive)
        self._remember(archive.key, self._learned(archive, checkpoint) if is_known else None)
        return checkpoint, sha256

    def _unpickled(self, path: Path, archive: _Archive) -> Checkpoint:
        """Let torch read an archive, which was found to be sound; what names tell is checked once for equal names."""
        names = tuple(archive.sizes)
        if names in self._names and BYTEARRAY not in archive.content:
            size = sum(size for name, size in archive.sizes.items() if name.startswith(DATA))
            return checkpoint_of(
                path, Content("torch zip", load_weights(path, mapped=True), size), self._key, self._prefix
            )
        checkpoint = load_checkpoint(path, self._key, self._prefix)
        if len(self._names) < MAX_FORMS:
            self._names.add(names)
        return checkpoint

    def _remember(self, key: tuple[object, ...], form: _Form | None) -> None:
        self._forms[key] = form
        self._forms.move_to_end(key)
        if len(self._forms) > MAX_FORMS:
            self._forms.popitem(last=False)

    def _learned(self, archive: _Archive, checkpoint: Checkpoint) -> _Form | None:
        """Find where each tensor of a checkpoint lies in its archive: torch reads a copy whose storages are marked.

        returns None if that cannot be told, or what the file says beside its tensors may hang on their values
        """
        storages = [name for name in archive.sizes if name.startswith(DATA)]
        if checkpoint.said or len(storages) > MAX_STORAGES or not all(map(_is_plain, checkpoint.values())):
            return None
        marked = _with_marks(archive, storages)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, "marked.pt")
            copy.write_bytes(marked)
            try:
                read = load_checkpoint(copy, self._key, self._prefix)
                views = {name: _view_of(tensor, storages, archive) for name, tensor in read.items()}
            except CheckpointError:
                return None
            del read  # it maps the file
        if None in views.values():
            return None
        form = _Form(replace(checkpoint, _tensors={}), {name: view for name, view in views.items() if view})
        found = form.tensors(archive)
        is_same = found.keys() == checkpoint.keys() and all(_is_same(found[name], checkpoint[name]) for name in found)
        return form if is_same else None


def _archive_in(path: Path) -> _Archive | None:
    """Return the archive in a file; None for a large one, one that is not sound, and whatever is none."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            return None
        content = bytearray(status.st_size)
        with open(path, "rb", buffering=0) as file:
            if file.readinto(content) != status.st_size or not content.startswith(b"PK\x03\x04"):
                return None
        with ZipFile(BytesIO(content)) as archive:
            members = archive.infolist()
    except Exception:  # zipfile raises several kinds of errors for what is damaged
        return None
    if not members or sum(member.file_size for member in members) > len(content):
        return None
    folder, _, first = members[0].filename.partition("/")
    # What stands before an archive moves it; torch then looks for members where zipfile does not.
    if not first or not lies_in(folder, members[0].filename) or min(member.header_offset for member in members):
        return None
    start = len(folder) + 1
    has_sums = any(member.CRC for member in members)
    view = memoryview(content)
    offsets, sizes, fixed = {}, {}, []
    for member in members:
        offset = _offset(member, content)
        values = view[offset : offset + member.file_size]
        if not member.filename.startswith(f"{folder}/") or offset < 0 or len(values) < member.file_size:
            return None
        if has_sums and crc32(values) != member.CRC:
            return None
        name = member.filename[start:]
        offsets[name], sizes[name] = offset, member.file_size
        if not name.startswith(DATA) and name != SERIAL:
            fixed.append(bytes(values))
    order = content[offsets[ORDER] : offsets[ORDER] + sizes[ORDER]] if ORDER in offsets else b"little"
    if len(offsets) < len(members) or order != sys.byteorder.encode():  # torch turns values of the other order round
        return None
    return _Archive(content, (*sizes.items(), *fixed), offsets, sizes)


def _offset(member: ZipInfo, content: bytearray) -> int:
    """Return where the content of a member begins, -1 if its own header is not that of the directory's entry."""
    at = member.header_offset
    is_stored = member.compress_type == ZIP_STORED and member.compress_size == member.file_size
    if not is_stored or member.flag_bits & OTHER_FLAGS or content[at : at + 4] != b"PK\x03\x04":
        return -1
    name = at + HEADER_BYTES
    length = int.from_bytes(content[name - 4 : name - 2], "little")
    if content[name : name + length] != member.orig_filename.encode():
        return -1
    return name + length + int.from_bytes(content[name - 2 : name], "little")


def _with_marks(archive: _Archive, storages: list[str]) -> bytearray:
    """Return an archive whose storages are filled with the number of each, without sums."""
    content = bytearray(archive.content)
    for number, name in enumerate(storages):
        offset, size = archive.offsets[name], archive.sizes[name]
        content[offset : offset + size] = bytes([number]) * size
    marked = BytesIO()
    with ZipFile(BytesIO(content)) as old, ZipFile(marked, "w") as new:
        folder = old.infolist()[0].filename.partition("/")[0]
        for name, offset in archive.offsets.items():
            new.writestr(f"{folder}/{name}", bytes(content[offset : offset + archive.sizes[name]]))
    return bytearray(marked.getvalue())


def _view_of(tensor: Tensor, storages: list[str], archive: _Archive) -> _View | None:
    """Return which view of which member a tensor of the marked archive is."""
    storage = tensor.untyped_storage()
    member = storages[storage[0]]
    size = tensor.element_size()
    if archive.sizes[member] != storage.nbytes() or storage.nbytes() % size or archive.offsets[member] % size:
        return None
    shape, stride = tuple(tensor.shape), tensor.stride()
    return _View(member, tensor.dtype, storage.nbytes() // size, shape, stride, int(tensor.storage_offset()))


def _is_plain(tensor: Tensor) -> bool:
    """Whether dtype, shape, stride and place in a storage say all of a tensor but its values."""
    import torch

    return (
        type(tensor) is torch.Tensor
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.numel() > 0
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
    )


def _is_same(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors agree in shape, dtype, stride and every bit."""
    import torch

    described = [(tensor.shape, tensor.dtype, tensor.stride()) for tensor in (first, second)]
    bits = [tensor.contiguous().flatten().view(torch.uint8) for tensor in (first, second)]
    return described[0] == described[1] and torch.equal(*bits)
