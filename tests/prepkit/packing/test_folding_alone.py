"""Folding without packing, describing what would be packed, and plain state dicts."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packed_samples import DIGITS, folded_by_hand, saved, trained
from safetensors.torch import load_file
from torch import nn

import prepkit
from prepkit.checkpoint.export import save_state_dict
from prepkit.cli.show import facts_of_checkpoint
from prepkit.errors import (
    FusionError,
    OutputError,
)
from prepkit.packing import (
    fold_checkpoint,
    pack_checkpoint,
)

# Folding alone, and describing --------------------------------------------------------------------------------


def test_folding_alone(tmp_path: Path) -> None:
    state = trained().state_dict()
    tensors, fusion = fold_checkpoint(saved(state, tmp_path))
    expected = folded_by_hand(state)
    assert list(tensors) == list(expected)
    for name, tensor in tensors.items():
        np.testing.assert_allclose(tensor.numpy(), expected[name], rtol=3e-7, atol=1e-9)
    assert len(fusion.folded) == 9


def test_what_cannot_be_folded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = saved(prepkit.architecture("lenet_like@digits").build().state_dict(), tmp_path)
    with pytest.raises(FusionError, match="has no BatchNorm to fold; `prepkit pack` takes it as it is"):
        fold_checkpoint(path)
    path = saved(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).state_dict(), tmp_path)
    with pytest.raises(FusionError, match="has BatchNorm") as caught:
        fold_checkpoint(path)
    assert "(architecture=...)" in str(caught.value)
    assert "keep_batch_norm" not in str(caught.value)  # which `prepkit fuse` does not have


def test_describing(tmp_path: Path) -> None:
    facts, layout = facts_of_checkpoint(saved({"model": dict(trained().state_dict())}, tmp_path))
    assert facts == {
        "format": "torch zip",
        "key": "model",
        "prefix": None,
        "architecture": DIGITS,
        "class_id": 2,
        "num_parameters": 5_142,
        "batch_norms": 9,
    }
    assert layout.num_parameters == 5_142


@pytest.mark.parametrize("keep", [True, False])
def test_a_description_has_the_order_in_which_it_is_packed(keep: bool, tmp_path: Path) -> None:
    path = saved(dict(trained().state_dict()), tmp_path, ".safetensors")
    if not keep:
        path = saved(dict(fold_checkpoint(path)[0]), tmp_path, ".safetensors")
    assert facts_of_checkpoint(path)[1] == pack_checkpoint(path, keep_batch_norm=keep).prep.layout


@pytest.mark.parametrize("function", [pack_checkpoint, fold_checkpoint])
def test_weights_that_fold_to_no_number_name_the_file_and_the_way_out(
    function: Callable[..., Any], tmp_path: Path
) -> None:
    state = dict(trained().state_dict())
    next(iter(state.values())).view(-1)[0] = math.nan
    path = saved(state, tmp_path)
    options = {"allow_nonfinite": True} if function is pack_checkpoint else {}
    with pytest.raises(FusionError, match=rf"^'{path}': .* is not finite: .* pack_checkpoint\(keep_batch_norm=True\)"):
        function(path, **options)


# Plain state dicts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors", ".PT"])
def test_a_state_dict_is_read_without_prepkit(suffix: str, tmp_path: Path) -> None:
    weight = torch.randn(3, 4)
    tensors = {"b": weight, "a": weight, "n": torch.tensor(7), "t": torch.randn(4, 3).t()}
    path = tmp_path / f"model{suffix}"
    save_state_dict(tensors, path)
    read = load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert (read["a"].data_ptr() == read["b"].data_ptr()) == (suffix != ".safetensors")
    assert os.listdir(tmp_path) == [path.name]


def test_a_view_does_not_take_its_whole_storage_along(tmp_path: Path) -> None:
    large = torch.randn(100_000)
    save_state_dict({"w": large[:10]}, tmp_path / "model.pt")
    assert (tmp_path / "model.pt").stat().st_size < 5_000


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_the_same_tensors_give_the_same_bytes_under_any_name(suffix: str, tmp_path: Path) -> None:
    tensors = {"b": torch.arange(3.0), "a": torch.ones(2)}
    for name in ("one", "another"):
        save_state_dict(tensors, tmp_path / f"{name}{suffix}")
    assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"another{suffix}").read_bytes()


def test_state_dicts_that_are_not_written(tmp_path: Path) -> None:
    for name in ("model.onnx", "model"):
        with pytest.raises(OutputError, match=r"the suffix says the format of a model; use one of \.pt, \.pth, \.safe"):
            save_state_dict({"w": torch.ones(1)}, tmp_path / name)
    (tmp_path / "model.pt").write_text("old")
    with pytest.raises(OutputError, match="exists already"):
        save_state_dict({"w": torch.ones(1)}, tmp_path / "model.pt")
    assert (tmp_path / "model.pt").read_text() == "old"
    save_state_dict({"w": torch.ones(1)}, tmp_path / "model.pt", overwrite=True)
    assert torch.load(tmp_path / "model.pt", weights_only=True)["w"] == 1
