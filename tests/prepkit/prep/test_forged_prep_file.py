"""Files that are no PRep, or of another version, or forged."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from prep_samples import contents, small_prep
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from prepkit.errors import PRepFileError
from prepkit.prep.file import (
    is_prep_file,
    load_prep,
    read_prep_header,
    save_prep,
)


def forged(path: Path, change: Callable[[dict[str, Any]], Any], tensors: dict[str, Tensor] | None = None) -> None:
    """A PRep file whose metadata was changed and its header's sum made right again."""
    prep = small_prep()
    save_prep(prep, path)
    with safe_open(path, framework="pt") as file:
        data = json.loads(file.metadata()["prepkit"])
        stored = {name: file.get_tensor(name).clone() for name in file.keys()} if tensors is None else tensors  # noqa: SIM118
    data = change(data) or data
    if isinstance(data, dict):
        rest = {key: value for key, value in data.items() if key != "sha256"}
        described = {name: [str(tensor.dtype)[6:], list(tensor.shape)] for name, tensor in stored.items()}
        canonical = json.dumps([rest, described], sort_keys=True, separators=(",", ":"))
        data["sha256"] = hashlib.sha256(canonical.encode()).hexdigest()
    save_file(stored, path, {"prepkit": json.dumps(data)})


def test_forging_without_a_change_is_accepted(path: Path) -> None:
    forged(path, lambda data: None)
    assert contents(load_prep(path)) == contents(small_prep())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(format="prepkit-prep/2"), "has format 'prepkit-prep/2'; this prepkit reads"),
        (lambda data: data.update(format="other/1"), "is no PRep file: its format is 'other/1', not 'prepkit-prep/1'."),
        (lambda data: data.pop("format") and None, "is no PRep file: its format is None"),
        (lambda data: [data], "is no PRep file: its format is None"),
        (lambda data: "text", "is no PRep file: its format is None"),
        (
            lambda data: data.update(architecture=3),
            "architecture, class_id, source_sha256 or folded has the wrong type",
        ),
        (lambda data: data.update(class_id=True), "architecture, class_id, source_sha256 or folded has the wrong type"),
        (lambda data: data.update(class_id="2"), "architecture, class_id, source_sha256 or folded has the wrong type"),
        (lambda data: data.update(source_sha256=[]), "architecture, class_id, source_sha256 or folded has the wrong"),
        (lambda data: data.update(folded="conv"), "architecture, class_id, source_sha256 or folded has the wrong type"),
        (lambda data: data.update(prefix=3), "prefix, versions or options has the wrong type"),
        (lambda data: data.update(versions={"a": "1"}), "prefix, versions or options has the wrong type"),
        (lambda data: data.update(options=["key"]), "prefix, versions or options has the wrong type"),
        (lambda data: data.update(options={"key": 3}), "prefix, versions or options has the wrong type"),
        (lambda data: data.update(layout=None), "layout: a layout is an object with a list `slots`."),
        (lambda data: data["layout"].update(slots=[]), "nothing to pack"),
        (lambda data: data["layout"]["slots"][0].update(shape=["2"]), "layout.slots[0].shape: expected whole numbers"),
        (lambda data: data["layout"]["slots"][0].update(dtype="int8"), "layout.slots[0].dtype: expected one of"),
        (lambda data: data["layout"]["slots"][0].update(dtype=["float32"]), "layout.slots[0].dtype: expected one of"),
        (lambda data: data["layout"]["slots"][0].update(name="\ud800"), "text that is not Unicode"),
        (lambda data: data.update(architecture="\udfff"), "text that is not Unicode"),
        (lambda data: data["layout"]["slots"][0].update(shape=[10**6]), "1,000,003 parameters do not fit a PRep of"),
        (lambda data: data["layout"]["slots"][0].update(shape=[10**400]), "too large"),
        (lambda data: data["layout"].update(ties=[["b.weight"]]), "layout.ties: expected pairs of names."),
        (lambda data: data.update(content_sha256=None), "its content does not match the sha256 it carries"),
    ],
)
def test_metadata_of_the_wrong_type_or_version(
    change: Callable[[dict[str, Any]], Any], message: str, path: Path
) -> None:
    forged(path, change)
    with pytest.raises(PRepFileError) as caught:
        load_prep(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"'{path}'")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "has no matrix 'prep' of floats"),
        ({"prep": torch.zeros(32)}, "has no matrix 'prep' of floats"),
        ({"prep": torch.zeros(4, 8, dtype=torch.int32)}, "has no matrix 'prep' of floats"),
        ({"prep": torch.zeros(4, 12)}, "width 12 is not a multiple of 8"),
        ({"prep": torch.zeros(3, 8)}, "height 3 is not a multiple of 4"),
        ({"prep": torch.zeros(0, 8)}, "height 0 is not positive"),
        (
            {"prep": torch.zeros(4, 8), "extra": torch.tensor(1)},
            "beside 'prep' stand extra, which are no integer buffers",
        ),
        ({"prep": torch.zeros(4, 8), "buffer.a.weight": torch.ones(6)}, "stand buffer.a.weight, which are no integer"),
    ],
)
def test_tensors_that_a_prep_file_does_not_have(tensors: dict[str, Tensor], message: str, path: Path) -> None:
    forged(path, lambda data: None, tensors)
    with pytest.raises(PRepFileError) as caught:
        read_prep_header(path)
    assert message in str(caught.value)


def test_other_files(path: Path) -> None:
    cases: list[tuple[bytes, str]] = [
        (b"", "is no PRep file: it has 0 bytes and no header."),
        (b"1", "is no PRep file: it has 1 byte and no header."),
        (b"PK\x03\x04" + bytes(100), "`prepkit pack` makes one of a checkpoint."),
        ((1000).to_bytes(8, "little") + b"{", "it may be truncated"),
        ((2).to_bytes(8, "little") + b"[]", "its header is not an object"),
        ((4).to_bytes(8, "little") + b"{]{]", "its header is not JSON"),
        ((16).to_bytes(8, "little") + b'{"a":{}, "a":{}}', "its header is not JSON (a name stands twice)"),
        ((20_000).to_bytes(8, "little") + b"[" * 20_000, "its header is not JSON"),
    ]
    for content, message in cases:
        path.write_bytes(content)
        assert not is_prep_file(path)
        with pytest.raises(PRepFileError) as caught:
            load_prep(path)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_metadata_that_is_not_json(path: Path) -> None:
    for text in ("", "{", "[" * 20_000, "NaN"):
        save_file({"prep": torch.zeros(4, 8)}, path, {"prepkit": text})
        assert is_prep_file(path)
        with pytest.raises(PRepFileError, match="is no PRep file"):
            load_prep(path)


def test_plain_safetensors_are_pointed_to_pack(path: Path) -> None:
    save_file({"prep": torch.zeros(4, 8)}, path)
    assert not is_prep_file(path)
    with pytest.raises(
        PRepFileError, match=r"is a safetensors checkpoint, not a PRep; make one with `prepkit pack .*`\.$"
    ):
        load_prep(path)


def test_missing_files_directories_and_pipes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    for name, message in (
        ("missing", "does not exist."),
        (".", "is a directory, not a PRep file."),
        ("pipe", "is no PRep file: it has 0 bytes"),
    ):
        assert not is_prep_file(tmp_path / name)
        for read in (load_prep, read_prep_header):
            with pytest.raises(PRepFileError) as caught:
                read(tmp_path / name)
            assert message in str(caught.value)
