"""PRep files: exact, deterministic and mapped; how they are saved."""

import hashlib
import json
import os
import stat
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from prep_samples import ORIGIN, bits, contents, small_prep
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from prepkit.errors import InvalidShape, OutputError, VerificationError
from prepkit.prep.file import (
    FORMAT,
    Origin,
    PRep,
    load_prep,
    read_prep_header,
    save_prep,
)
from prepkit.prep.layout import Layout

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


# There and back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_was_saved_is_loaded_bit_for_bit(dtype: torch.dtype, path: Path) -> None:
    prep = small_prep(dtype)
    save_prep(prep, path)
    loaded = load_prep(path)
    assert contents(loaded) == contents(prep)
    assert loaded.values.dtype == dtype
    assert loaded.tensors().keys() == prep.tensors().keys() == {*prep.layout.names, *prep.buffers}
    for name, tensor in prep.tensors().items():
        assert bits(loaded.tensors()[name]) == bits(tensor)
    assert os.listdir(path.parent) == [path.name]


def test_ties_come_back_tied(path: Path) -> None:
    save_prep(small_prep(), path)
    tensors = load_prep(path).tensors()
    assert tensors["b.weight"].data_ptr() == tensors["a.weight"].data_ptr()
    assert load_prep(path).layout.ties == (("b.weight", "a.weight"),)


def test_a_layout_of_mixed_dtypes_gives_each_tensor_its_own_back(path: Path) -> None:
    tensors = {"half": torch.randn(3).half(), "brain": torch.randn(5).bfloat16(), "double": torch.randn(2).double()}
    layout = Layout.of_tensors(tensors)
    save_prep(PRep(layout.pack(tensors, layout.shape(8)), layout), path)
    loaded = load_prep(path)
    assert loaded.values.dtype == torch.float64
    for name, tensor in tensors.items():
        assert loaded.tensors()[name].dtype == tensor.dtype
        assert bits(loaded.tensors()[name]) == bits(tensor)


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64]
)
def test_integer_buffers_of_every_kind(dtype: torch.dtype, path: Path) -> None:
    prep = small_prep()
    buffer = torch.tensor([0, 1, 100]).to(dtype)
    save_prep(PRep(prep.values, prep.layout, prep.origin, {"index.table": buffer}), path)
    loaded = load_prep(path).buffers
    assert list(loaded) == ["index.table"]
    assert (loaded["index.table"].dtype, loaded["index.table"].tolist()) == (dtype, [0, 1, 100])


def test_values_need_neither_be_contiguous_nor_without_gradient(path: Path) -> None:
    prep = small_prep()
    values = prep.values.t().contiguous().t().requires_grad_()
    assert not values.is_contiguous()
    save_prep(PRep(values, prep.layout, prep.origin, prep.buffers), path)
    assert contents(load_prep(path)) == contents(prep)


def test_an_origin_is_optional(path: Path) -> None:
    prep = small_prep()
    save_prep(PRep(prep.values, prep.layout), path)
    assert load_prep(path).origin == Origin(None, None, None, ())


def test_only_what_differs_from_the_usual_adds_keys(path: Path) -> None:
    """Files without a prefix and with usual versions keep the bytes that they always had."""
    prep = small_prep()
    for origin, added in (
        (ORIGIN, set()),
        (replace(ORIGIN, prefix="module.", versions={"": 2}), {"prefix", "versions"}),
    ):
        save_prep(PRep(prep.values, prep.layout, origin), path, overwrite=True)
        with safe_open(path, framework="pt") as file:
            assert {"prefix", "versions"} & json.loads(file.metadata()["prepkit"]).keys() == added
        assert load_prep(path).origin == origin


def test_the_header_alone(path: Path) -> None:
    prep = small_prep(torch.float16)
    save_prep(prep, path)
    header = read_prep_header(path)
    assert (header.layout, header.shape, header.dtype, header.origin) == (prep.layout, prep.shape, "float16", ORIGIN)
    assert header.buffer_names == ("bn.num_batches_tracked", "mask")


def test_the_file_is_what_the_format_says(path: Path) -> None:
    """Read by the format's own library, and by its definition: one metadata key, canonical JSON, two sums."""
    prep = small_prep()
    save_prep(prep, path)
    with safe_open(path, framework="pt") as file:
        assert sorted(file.keys()) == ["buffer.bn.num_batches_tracked", "buffer.mask", "prep"]
        assert list(file.metadata()) == ["prepkit"]
        text = file.metadata()["prepkit"]
        stored = {name: file.get_tensor(name) for name in sorted(file.keys())}
    data = json.loads(text)
    assert text == json.dumps(data, sort_keys=True, separators=(",", ":"))
    assert data["format"] == "prepkit-prep/1"
    assert (data["architecture"], data["class_id"], data["num_parameters"]) == ("resnet8@digits", 2, 7)
    assert (data["source_sha256"], data["folded"]) == ("ab" * 32, ["conv", "stages.0.0.conv1"])
    assert Layout.from_dict(data["layout"]) == prep.layout
    content = b"".join(tensor.numpy().tobytes() for tensor in stored.values())
    assert data["content_sha256"] == hashlib.sha256(content).hexdigest()
    described = {name: [str(tensor.dtype)[6:], list(tensor.shape)] for name, tensor in stored.items()}
    rest = {key: value for key, value in data.items() if key != "sha256"}
    canonical = json.dumps([rest, described], sort_keys=True, separators=(",", ":"))
    assert data["sha256"] == hashlib.sha256(canonical.encode()).hexdigest()


# Mapped -------------------------------------------------------------------------------------------------------


def test_values_are_mapped_and_writing_to_them_does_not_change_the_file(path: Path) -> None:
    layout = Layout.of_tensors({"w": torch.zeros(1 << 20)})
    save_prep(PRep(layout.pack({"w": torch.ones(1 << 20)}, layout.shape(512)), layout), path)
    before = path.read_bytes()
    values = load_prep(path).values
    address = values.data_ptr()
    with open("/proc/self/maps") as maps:
        ranges = [line.split() for line in maps if str(path) in line]
    assert any(int(start, 16) <= address < int(stop, 16) for start, stop in (r[0].split("-") for r in ranges))
    values.fill_(7.0)
    assert path.read_bytes() == before
    assert load_prep(path).values.eq(1.0).all()


def test_a_loaded_file_may_be_replaced_while_its_values_live(path: Path) -> None:
    prep = small_prep()
    save_prep(prep, path)
    loaded = load_prep(path)
    save_prep(PRep(torch.zeros(4, 8), prep.layout), path, overwrite=True)
    assert contents(loaded) == contents(prep)
    assert load_prep(path).values.eq(0).all()


# Saving -------------------------------------------------------------------------------------------------------


def test_two_processes_with_different_hash_seeds_write_the_same_bytes(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import sys, torch
        from prepkit.prep.layout import Layout
        from prepkit.prep.file import Origin, PRep, save_prep
        tensors = {name: torch.full((3,), float(i)) for i, name in enumerate("dcba")}
        layout = Layout.of_tensors(tensors)
        buffers = {name: torch.tensor(1) for name in {"x", "y", "z", "counter", "mask"}}  # in the order of the seed
        print(list(buffers))
        prep = PRep(layout.pack(tensors, layout.shape(8)), layout, Origin("n", 0, None, ("a",)), buffers)
        save_prep(prep, sys.argv[1])
    """)
    orders, files = [], []
    for seed in ("1", "2"):
        file = tmp_path / f"{seed}.prep.safetensors"
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code, str(file)]
        orders.append(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
        files.append(file.read_bytes())
    assert len(set(orders)) == 2
    assert len(set(files)) == 1


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions(mask: int, path: Path) -> None:
    before = os.umask(mask)
    try:
        save_prep(small_prep(), path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644 & ~mask


def test_an_existing_file_is_kept_unless_told(path: Path) -> None:
    path.write_text("old")
    with pytest.raises(OutputError, match="exists already"):
        save_prep(small_prep(), path)
    assert path.read_text() == "old"
    save_prep(small_prep(), path, overwrite=True)
    assert contents(load_prep(path)) == contents(small_prep())


def test_values_that_do_not_hold_the_layout_are_refused(path: Path) -> None:
    prep = small_prep()
    layout = Layout.of_tensors({"w": torch.zeros(100)})
    with pytest.raises(InvalidShape, match="100 parameters do not fit a PRep of 4 x 8"):
        save_prep(PRep(prep.values, layout), path)
    assert os.listdir(path.parent) == []


def test_a_disk_that_gives_other_bytes_back_is_noticed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch

    def save_and_flip(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
        save_file(tensors, file, metadata)
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)

    monkeypatch.setattr(safetensors.torch, "save_file", save_and_flip)
    with pytest.raises(VerificationError, match="the disk gave back other bytes"):
        save_prep(small_prep(), path)
    assert os.listdir(path.parent) == []


def test_format_name() -> None:
    assert FORMAT == "prepkit-prep/1"
