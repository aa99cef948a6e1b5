"""Tests of sharded models and their indexes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from checkpoint_samples import MEGABYTE, SAVERS, assert_same, refusal, save_index, save_legacy, unsafe, weights
from safetensors import safe_open
from safetensors.torch import save_file, save_model
from torch import nn

from prepkit.checkpoint.load import load_checkpoint, sha256_of
from prepkit.errors import CheckpointError


@pytest.fixture
def index(tmp_path: Path) -> Path:
    save_index(weights(), tmp_path / "model.safetensors.index.json")
    return tmp_path / "model.safetensors.index.json"


def with_map(index: Path, changes: Mapping[str, object]) -> Path:
    content = json.loads(index.read_text())
    content["weight_map"].update(changes)
    index.write_text(json.dumps(content))
    return index


@pytest.mark.parametrize(
    "shard", ["/etc/passwd", "../part-0.safetensors", "a/../../b", "C:x", "C:\\x", "\\\\server\\share", "a\\b", "..\\x"]
)
def test_shards_outside_the_folder_are_refused(shard: str, index: Path) -> None:
    assert "names shards outside its folder" in unsafe(with_map(index, {"conv.weight": shard}))


@pytest.mark.parametrize("shard", ["nothing", "x" * 5000, "a\0b", "\ud800", "part-0.safetensors/below"])
def test_a_shard_that_cannot_exist_is_missing(shard: str, index: Path) -> None:
    message = refusal(with_map(index, {"conv.weight": shard}))
    assert "missing beside it" in message
    message.encode()


def test_a_missing_shard_is_named(index: Path) -> None:
    (index.parent / "part-1.safetensors").unlink()
    assert "needs 'part-1.safetensors', missing beside it" in refusal(index)
    with pytest.raises(CheckpointError, match=r"part-1\.safetensors"):
        sha256_of(index)


def test_a_shard_and_the_index_must_agree_on_names(index: Path) -> None:
    with_map(index, {"ghost": "part-0.safetensors"})
    assert "the shard 'part-0.safetensors' lacks 'ghost'" in refusal(index)
    save_index(weights(), index)
    save_file({**weights(), "extra": torch.ones(1)}, index.parent / "part-1.safetensors")
    assert "'part-1.safetensors' has, unknown to the index, 'conv.weight', 'extra', 'norm." in refusal(index)


def test_a_shard_must_be_a_file_of_weights(index: Path) -> None:
    shutil.copy(index, index.parent / "part-0.safetensors")
    assert "in format 'safetensors index'" in refusal(index)
    (index.parent / "part-0.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        load_checkpoint(index)
    torch.save([torch.ones(1)], index.parent / "part-0.safetensors")
    assert "the shard 'part-0.safetensors' lacks 'conv.weight'" in refusal(index)


def test_parts_may_be_in_several_formats(index: Path) -> None:
    first = {name: weights()[name] for name in list(weights())[::2]}
    save_legacy(first, index.parent / "part-0.safetensors")
    checkpoint = load_checkpoint(index)
    assert_same(checkpoint, weights())
    assert checkpoint.format == "torch index"
    save_legacy({**first, "conv.weight": torch.zeros(1).expand(2, 3, 4)}, index.parent / "part-0.safetensors")
    assert "an expanded tensor" in unsafe(index)


class TwoNames(nn.Module):
    """An encoder and a decoder that share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.dec = nn.Linear(3, 3), nn.Linear(3, 3)
        self.enc.weight = self.dec.weight


def test_a_tied_name_that_safetensors_left_out_comes_back(tmp_path: Path) -> None:
    network = TwoNames()
    save_model(network, str(tmp_path / "m.safetensors"))
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        assert len(file.keys()) == 3, "safetensors keeps one of the two names"
    found = load_checkpoint(tmp_path / "m.safetensors")
    assert_same(found, network.state_dict())
    assert found["enc.weight"].data_ptr() == found["dec.weight"].data_ptr()
    fresh = TwoNames()
    assert fresh.load_state_dict(dict(found)).missing_keys == []


def test_a_tied_name_may_be_left_out_of_a_shard(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    save_index(weights(), index)
    first = {name: weights()[name] for name in list(weights())[::2]}
    save_file(first, tmp_path / "part-0.safetensors", {"format": "pt", "lm_head": "head.weight", "conv.weight": "x"})
    expected = {**weights(), "lm_head": weights()["head.weight"]}  # head.weight lies in the other shard
    assert_same(load_checkpoint(index), expected)


def test_metadata_that_names_no_tensor_ties_nothing(tmp_path: Path) -> None:
    texts = {"format": "pt", "author": "conv.weigh", "conv.weight": "conv.bias", "conv.bias": "pt"}
    save_file({**weights(), "pt": torch.ones(1)}, tmp_path / "m.safetensors", texts)
    assert_same(load_checkpoint(tmp_path / "m.safetensors"), {**weights(), "pt": torch.ones(1)})


@pytest.mark.parametrize("stored", ["safetensors index", "torch index"])
def test_a_part_is_no_network_and_its_folder_is_one(stored: str, tmp_path: Path) -> None:
    index = tmp_path / (
        "model.safetensors.index.json" if stored == "safetensors index" else "pytorch_model.bin.index.json"
    )
    SAVERS[stored](weights(), index)
    for part in tmp_path.glob("part-*"):
        message = refusal(part)
        assert message.endswith(
            f"is one of the 2 parts of a sharded model, not a network of its own; pass its index {index}."
        )
    assert_same(load_checkpoint(tmp_path), weights())
    assert load_checkpoint(tmp_path).path == index
    assert sha256_of(tmp_path) == sha256_of(index)


def test_a_part_without_its_index_is_known_by_its_name(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "model-00001-of-00002.safetensors")
    save_file(weights(), tmp_path / "model-00001-of-00001.safetensors")
    assert "by its name part 1 of 2 of a sharded model" in refusal(tmp_path / "model-00001-of-00002.safetensors")
    assert_same(load_checkpoint(tmp_path / "model-00001-of-00001.safetensors"), weights())
    (tmp_path / "x.index.json").write_text('{"weight_map": 3}')  # it says nothing of the file beside it
    (tmp_path / "whole.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(weights(), "model-00001-of-00001.safetensors")})
    )
    assert_same(load_checkpoint(tmp_path / "model-00001-of-00001.safetensors"), weights())


def test_an_index_may_begin_with_a_byte_order_mark_and_space(index: Path) -> None:
    index.write_bytes(b"\xef\xbb\xbf\n  " + index.read_bytes())
    assert_same(load_checkpoint(index), weights())


def test_shards_below_the_index_are_read(index: Path) -> None:
    (index.parent / "below").mkdir()
    (index.parent / "part-0.safetensors").rename(index.parent / "below" / "part-0.safetensors")
    moved = dict.fromkeys(list(weights())[::2], "below/part-0.safetensors")
    assert_same(load_checkpoint(with_map(index, moved)), weights())


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    for name, content in (("a", b""), ("b.json", b'{"a": 1}'), ("c", os.urandom(3 * MEGABYTE))):
        (tmp_path / name).write_bytes(content)
        assert sha256_of(tmp_path / name) == hashlib.sha256(content).hexdigest()
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(CheckpointError, match=str(path)):
            sha256_of(path)


def test_sha256_of_an_index_covers_its_shards(index: Path) -> None:
    def digest(content: bytes) -> bytes:
        return hashlib.sha256(content).digest()

    shards = [(index.parent / f"part-{number}.safetensors").read_bytes() for number in (0, 1)]
    expected = digest(index.read_bytes() + digest(shards[0]) + digest(shards[1])).hex()
    assert sha256_of(index) == expected
    changed = bytearray(shards[1])
    changed[-1] ^= 1
    (index.parent / "part-1.safetensors").write_bytes(changed)
    assert sha256_of(index) != expected
