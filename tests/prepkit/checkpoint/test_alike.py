"""Checkpoints that are alike are read without unpickling each, and as load_checkpoint reads or refuses them."""

import io
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from checkpoint_samples import weights

from prepkit.checkpoint import alike
from prepkit.checkpoint.alike import CheckpointReader
from prepkit.checkpoint.load import checkpoint_of, load_checkpoint, sha256_of
from prepkit.errors import CheckpointError, UnsafeCheckpoint


def views(number):
    """Tensors that share a storage, lie across it, or begin inside it."""
    base = torch.arange(24.0).reshape(4, 6) + 100 * number
    return {
        "t": base.T,
        "row": base[2],
        "tied": base,
        "again": base,
        "every": torch.arange(8, dtype=torch.int16)[::2] + number,
        "zero": torch.tensor(number, dtype=torch.uint8),
        "flag": torch.tensor([number % 2 == 0]),
    }


def versioned(number):
    state = OrderedDict(weights(number + 1))
    state._metadata = {"norm": {"version": 2}}
    return state


SAVED = {
    "plain": lambda number: weights(number + 1),
    "wrapped": lambda number: {"params": weights(number + 1)},
    "parallel": lambda number: {f"module.{name}": value for name, value in weights(number + 1).items()},
    "views": views,
    "versions": versioned,
    "parameters": lambda number: {"w": torch.nn.Parameter(torch.full((3,), float(number)))},
    "epoch": lambda number: {"model": weights(number + 1), "epoch": number},
    "loss in the weights' storage": lambda number: {"model": (w := weights(number + 1)), "loss": w["conv.weight"][0, 1, 1]},  # noqa: E501
    "optimizer": lambda number: {"model": weights(number + 1), "optimizer": {"state": {0: torch.ones(3)}, "param_groups": []}},  # noqa: E501
}  # fmt: skip
QUICK = {"plain", "wrapped", "parallel", "views", "versions", "parameters", "optimizer"}


def save_all(folder, make, count=5):
    files = [folder / f"net_{number * 37}.pt" for number in range(count)]  # names of several lengths
    for number, file in enumerate(files):
        torch.save(make(number), file)
    return files


def bits(tensor):
    return tensor.dtype, tensor.shape, tensor.stride(), tensor.contiguous().flatten().view(torch.uint8).tolist()


def described(checkpoint):
    shared = {(name, other) for name, a in checkpoint.items() for other, b in checkpoint.items()
              if a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()}  # fmt: skip
    said = (checkpoint.key, checkpoint.prefix, checkpoint.dropped, dict(checkpoint.versions), dict(checkpoint.said))
    return {name: bits(tensor) for name, tensor in checkpoint.items()}, list(checkpoint), shared, said, checkpoint.path


@pytest.mark.parametrize("kind", SAVED)
def test_it_reads_what_load_checkpoint_reads(kind, tmp_path, monkeypatch):
    files = save_all(tmp_path, SAVED[kind])
    expected = [(load_checkpoint(file), sha256_of(file)) for file in files]
    reader = CheckpointReader()
    asked = []

    def noting(function):
        return lambda path, *rest: asked.append(path) or function(path, *rest)

    monkeypatch.setattr(alike, "load_checkpoint", noting(load_checkpoint))
    monkeypatch.setattr(alike, "checkpoint_of", noting(checkpoint_of))
    for file, (checkpoint, sha256) in zip(files, expected, strict=True):
        read, its_sha256 = reader.read(file)
        assert described(read) == described(checkpoint)
        assert its_sha256 == sha256
        assert read.others == checkpoint.others
    quick = [file for file in files if file not in asked]
    assert quick == (files[2:] if kind in QUICK else [])  # torch reads two files before one is taken apart


def test_key_and_prefix(tmp_path):
    def make(number):
        return {
            "model": {"body.w": torch.full((2,), float(number)), "head.w": torch.ones(1)},
            "ema": {"w": torch.ones(2)},
        }

    reader = CheckpointReader("model", "body")
    for file in save_all(tmp_path, make):
        read, expected = reader.read(file)[0], load_checkpoint(file, "model", "body")
        assert described(read) == described(expected)
        assert read.dropped == ("head.w",)


def test_forms_in_turn(tmp_path):
    reader = CheckpointReader()
    for number in range(12):
        file = tmp_path / f"{number}.pt"
        torch.save({"w": torch.full((2 + number % 3,), float(number)), "b": torch.ones(1, dtype=torch.float64)}, file)
        assert described(reader.read(file)[0]) == described(load_checkpoint(file))


@pytest.fixture
def reader(tmp_path):
    """A reader that knows the form of plain weights."""
    reader = CheckpointReader()
    for file in save_all(tmp_path, SAVED["plain"], 3):
        reader.read(file)
    return reader


def rewritten(file: Path, change, **options):
    """Write an archive again, after `change` has had its members by name."""
    with zipfile.ZipFile(file) as old:
        members = {name: old.read(name) for name in old.namelist()}
    change(members)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", **options) as new:
        for name, values in members.items():
            new.writestr(name, values)
    file.write_bytes(content.getvalue())


def test_a_damaged_value_is_found(reader, tmp_path):
    file = tmp_path / "net_0.pt"
    content = bytearray(file.read_bytes())
    at = content.find(torch.arange(24.0).numpy().tobytes())
    content[at + 5] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"net_0\.pt is damaged: .* 'net_0/data/0' differ from its CRC-32"):
        reader.read(file)


@pytest.mark.parametrize("length", [0, 3, 200, 1000, -1])
def test_a_file_that_is_cut_short_is_refused(length, reader, tmp_path):
    file = tmp_path / "net_0.pt"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"net_0\.pt"):
        reader.read(file)


def test_compressed_archives_are_refused(reader, tmp_path):
    file = tmp_path / "net_0.pt"
    rewritten(file, lambda members: None, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UnsafeCheckpoint, match="compressed"):
        reader.read(file)


def test_other_contents_under_the_same_pickle_are_not_taken_for_the_same(reader, tmp_path):
    file = tmp_path / "net_0.pt"
    rewritten(file, lambda members: members.update({"net_0/byteorder": b"big"}))
    assert described(reader.read(file)[0]) == described(load_checkpoint(file))
    assert reader.read(file)[0]["conv.weight"][0, 0, 1] != 1
    rewritten(file, lambda members: members.update({"net_0/byteorder": b"little", "net_0/data/0": b"1234"}))
    with pytest.raises(CheckpointError):
        reader.read(file)
    torch.save(weights(1.0), file)
    rewritten(file, lambda members: members.update({"net_0/byteorder": b"middle"}))
    with pytest.raises(CheckpointError):  # no size differs
        reader.read(file)


def test_values_of_the_other_byte_order_are_turned_round(tmp_path):
    reader = CheckpointReader()
    for number in (0, 0, 3):  # zeros look the same in both orders, and would teach a reader a wrong form
        file = tmp_path / f"{number}.pt"
        torch.save({"w": torch.full((4,), number, dtype=torch.int32)}, file)
        file.write_bytes(aligned(file, b"big"))
        assert reader.read(file)[0]["w"].tolist() == [number << 24] * 4


def aligned(file: Path, order: bytes) -> bytes:
    """Return an archive as torch.save writes it, with values at multiples of 64, and another byte order noted."""
    content = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(content, "w") as new:
        for member in old.infolist():
            moved = zipfile.ZipInfo(member.filename)
            padding = -(content.tell() + 30 + len(moved.filename) + 4) % 64
            moved.extra = b"FB" + padding.to_bytes(2, "little") + bytes(padding)
            new.writestr(moved, order if member.filename.endswith("/byteorder") else old.read(member))
    return content.getvalue()


def test_two_archives_in_one_file_are_read_as_torch_reads_them(reader, tmp_path):
    file = tmp_path / "two.pt"
    file.write_bytes((tmp_path / "net_0.pt").read_bytes() + (tmp_path / "net_37.pt").read_bytes())
    expected = torch.load(file, weights_only=True)
    assert all(torch.equal(reader.read(file)[0][name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"\x80\x02c__builtin__\nbytearray\nK\x05\x85R.", "makes a bytearray"),
        (b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.", r"would import and call .*system"),
    ],
)
def test_code_under_known_names_is_refused(pickled, message, reader, tmp_path):
    file = tmp_path / "net_0.pt"
    rewritten(file, lambda members: members.update({"net_0/data.pkl": pickled}))
    with pytest.raises(UnsafeCheckpoint, match=message):
        reader.read(file)


@pytest.mark.parametrize("member", ["constants.pkl", "DATA/0"])
def test_archives_of_other_kinds_are_refused(member, reader, tmp_path):
    file = tmp_path / "net_0.pt"
    rewritten(file, lambda members: members.update({f"net_0/{member}": b"1"}))
    with pytest.raises(UnsafeCheckpoint, match="TorchScript" if member == "constants.pkl" else "there twice"):
        reader.read(file)


def test_an_archive_without_sums_is_read(reader, tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(weights(9), tmp_path / "new.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert described(reader.read(tmp_path / "new.pt")[0]) == described(load_checkpoint(tmp_path / "new.pt"))


def test_a_part_of_a_sharded_model_is_refused(reader, tmp_path):
    (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "net_0.pt", "b": "net_37.pt"}}')
    with pytest.raises(CheckpointError, match="one of the 2 parts"):
        reader.read(tmp_path / "net_0.pt")


def test_tensors_outlive_their_files(reader, tmp_path):
    first = reader.read(tmp_path / "net_37.pt")[0]
    (tmp_path / "net_37.pt").write_bytes(b"")
    second = reader.read(tmp_path / "net_0.pt")[0]
    assert torch.equal(first["conv.weight"], 2 * second["conv.weight"])
