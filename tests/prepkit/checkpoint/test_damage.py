"""Tests of files that claim too much memory, and of damaged ones."""

from __future__ import annotations

import struct
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_samples import MEGABYTE, SAVERS, assert_same, refusal, rewritten, saved, unsafe, weights
from forked_python import ForkedPython

from prepkit.checkpoint.load import load_checkpoint

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")


def test_an_expanded_tensor_is_refused(tmp_path: Path) -> None:
    for stored in ("torch zip", "torch legacy"):
        path = tmp_path / stored.replace(" ", "-")
        SAVERS[stored]({**weights(), "huge": torch.zeros(1).expand(1_000_000_000)}, path)
        assert path.stat().st_size < 10_000
        assert torch.load(path, weights_only=True)["huge"].numel() == 1_000_000_000
        assert "'huge' of shape [1000000000] takes 4,000,000,000 bytes but only 4 are stored" in unsafe(path)


def test_storages_larger_than_the_file_are_refused(tmp_path: Path) -> None:
    path = saved({"a": torch.arange(10.0)}, tmp_path)
    assert_same(load_checkpoint(rewritten(path, lambda _, content: content)), {"a": torch.arange(10.0)})
    ten, more = b"cpuq\x06K\x0at", b"cpuq\x06K\x0bt"
    longer = rewritten(path, lambda _, content: content.replace(ten, more))
    assert torch.load(longer, weights_only=True, mmap=True)["a"].untyped_storage().nbytes() == 44
    assert "claims 44 bytes of tensors but stores 40" in unsafe(longer)
    made = b"\x80\x02}X\x01\x00\x00\x00actorch\nFloatTensor\nJ\xff\xff\xff\x0f\x85Rs."
    assert "claims 1,073,741,820 bytes of tensors" in unsafe(
        rewritten(path, lambda name, content: made if name == "data.pkl" else content)
    )


def test_a_bytearray_is_refused(tmp_path: Path) -> None:
    for stored in ("torch zip", "torch legacy"):
        SAVERS[stored]({**weights(), "a": bytearray(5)}, tmp_path / "m")
        assert torch.load(tmp_path / "m", weights_only=True)["a"] == bytearray(5)
        assert "makes a bytearray" in unsafe(tmp_path / "m")


PROBE = """
import sys
from prepkit.checkpoint.load import load_checkpoint
from prepkit.errors import PrepkitError
def told(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key)) << 10
load_checkpoint(sys.argv[1])  # torch and safetensors are imported now
before, peak = told("RssAnon"), told("VmHWM")  # not ru_maxrss: it starts at the peak of the process that forked
try:
    found = load_checkpoint(sys.argv[2])
    total = sum(float(tensor.sum(dtype=float)) for tensor in found.values())
except PrepkitError as error:
    total = type(error).__name__
print(told("RssAnon") - before, told("VmHWM") - peak, total)
"""


def memory_of(path: Path, forked_python: ForkedPython) -> tuple[int, int, str]:
    """Bytes of anonymous memory, bytes of new peak and the sum of all values, for reading a file in a fresh process."""
    small = saved({"a": torch.ones(1)}, path.parent, "small.pt")
    done = forked_python.run("-c", PROBE, small, path)
    assert done.returncode == 0, done.stderr
    output = done.stdout.split()
    return int(output[0]), int(output[1]), output[2]


@pytest.mark.xdist_group("time and memory")
@ON_LINUX
@pytest.mark.parametrize("stored", SAVERS)
def test_reading_stays_mapped(stored: str, tmp_path: Path, forked_python: ForkedPython) -> None:
    tensors = {name: torch.full((5 * MEGABYTE,), value) for name, value in (("a", 1.0), ("b", 2.0))}  # 40 MB
    path = tmp_path / "model"
    SAVERS[stored](tensors, path)
    anonymous, _, total = memory_of(path, forked_python)
    assert float(total) == 15 * MEGABYTE
    if stored == "torch legacy":
        assert anonymous > 39 * MEGABYTE, "a format that cannot be mapped shows that the meter works"
    else:
        assert anonymous < 6 * MEGABYTE


@pytest.mark.xdist_group("time and memory")
@ON_LINUX
def test_a_deflate_bomb_is_refused_without_inflating(tmp_path: Path, forked_python: ForkedPython) -> None:
    path = saved({"a": torch.zeros(20 * MEGABYTE)}, tmp_path)
    bomb = rewritten(path, lambda _, content: content, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < MEGABYTE
    _, peak, outcome = memory_of(bomb, forked_python)
    assert outcome == "UnsafeCheckpoint"
    assert peak < 20 * MEGABYTE
    assert "are compressed, so they could expand to any size" in unsafe(bomb)


def archive_with(path: Path, change: Callable[[zipfile.ZipFile, Callable[[str], bytes]], None]) -> Path:
    """A copy of the archive that `change` writes to after all members."""
    target = path.with_name("changed.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as copy, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of members there twice
        for name in source.namelist():
            copy.writestr(name, source.read(name))
        change(copy, source.read)
    return target


def test_members_that_torch_would_not_write_are_refused(tmp_path: Path) -> None:
    path = saved(weights(), tmp_path)
    twice = archive_with(path, lambda copy, read: copy.writestr("model/data.pkl", read("model/data.pkl")))
    assert "'model/data.pkl' are there twice" in unsafe(twice)
    climbing = archive_with(path, lambda copy, _: copy.writestr("model/../../evil", b""))
    assert "'model/../../evil' are outside the folder 'model'" in unsafe(climbing)
    second = archive_with(path, lambda copy, read: copy.writestr("other/data.pkl", read("model/data.pkl")))
    assert "'other/data.pkl' are outside the folder 'model'" in unsafe(second)
    capital = archive_with(path, lambda copy, read: copy.writestr("model/DATA.pkl", read("model/data.pkl")))
    assert "'model/data.pkl' are there twice" in unsafe(capital)
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 20 : entry + 28] = struct.pack("<II", 1 << 30, 1 << 30)  # the sizes of the first member
    path.write_bytes(content)
    assert "bytes of content in" in unsafe(path)


def test_a_flipped_bit_in_the_data_is_refused(tmp_path: Path) -> None:
    path = saved({"a": torch.arange(1000.0)}, tmp_path)
    content = bytearray(path.read_bytes())
    place = content.index(torch.arange(1000.0).numpy().tobytes()) + 402
    content[place] ^= 1
    path.write_bytes(content)
    flipped = torch.load(path, weights_only=True)["a"]
    assert int((flipped != torch.arange(1000.0)).sum()) == 1, "torch itself loads it"
    assert "is damaged: the bytes of 'model/data/0' differ from its CRC-32" in refusal(path)


@pytest.mark.parametrize("stored", ["torch zip", "torch legacy", "safetensors"])
def test_every_truncation_is_refused(stored: str, tmp_path: Path) -> None:
    SAVERS[stored](weights(), tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    path = tmp_path / "cut"
    for length in (*range(40), *range(40, len(content), 53), len(content) - 1):
        path.write_bytes(content[:length])
        refusal(path)
    path.write_bytes(content[: len(content) * 3 // 4])
    assert "truncated or damaged" in refusal(path)
    path.write_bytes(content)
    assert_same(load_checkpoint(path), weights())


def safetensors_bytes(header: str, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + data


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', None),
        ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', "truncated or damaged safetensors"),
        ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}', "truncated or damaged safetensors"),
        ('{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}', "overflow"),
        ('{"a":{"dtype":"X9","shape":[1],"data_offsets":[0,4]}}', "truncated or damaged safetensors"),
        ('{"a":', "truncated or damaged safetensors"),
        (
            '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}',
            "'a' stands twice",
        ),
    ],
)
def test_crafted_safetensors(header: str, expected: str | None, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors_bytes(header, struct.pack("<f", 2.5)))
    if expected is None:
        assert_same(load_checkpoint(path), {"a": torch.tensor([2.5])})
    else:
        assert expected in refusal(path)
