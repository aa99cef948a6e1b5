"""What packing refuses, and what the message names."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from packed_samples import DIGITS, saved, trained
from torch import Tensor, nn

import prepkit
from prepkit.errors import (
    CheckpointError,
    FusionError,
    InvalidShape,
    LayoutMismatch,
    PrepkitError,
)
from prepkit.packing import (
    fold_checkpoint,
    pack_checkpoint,
)
from prepkit.prep.file import save_prep


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, about quantised and sparse tensors
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.arange(6).reshape(2, 3), "there is nothing to pack: no floating-point parameters were found."),
        (lambda: torch.ones(3, dtype=torch.complex64), "'w' is complex (complex64); a PRep holds dense"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "'w' is quantised (qint8)"),
        (lambda: torch.ones(3).to(torch.float8_e4m3fn), "'w' has dtype float8_e4m3fn; a PRep holds"),
        (lambda: torch.ones(3, 3).to_sparse(), "'w' is sparse (float32)"),
        (lambda: torch.ones(3, 3).to_sparse_csr(), "'w' is sparse (float32)"),
        (lambda: torch.ones(3, device="meta"), "'w' is on the meta device, so it has no values"),
        (lambda: torch.ones(0, 3), "there is nothing to pack: its tensors hold no values."),
        (lambda: torch.tensor(3), "there is nothing to pack: no floating-point parameters were found."),
        (lambda: torch.tensor([1.0, float("nan")]), "'w' holds 1 NaN and 0 infinite of 2 values; pass allow_nonf"),
    ],
)
def test_tensors_that_a_prep_cannot_hold(make: Callable[[], Tensor], message: str, tmp_path: Path) -> None:
    path = saved({"w": make()}, tmp_path)
    with pytest.raises(PrepkitError) as caught:
        pack_checkpoint(path)
    assert str(caught.value).startswith(f"'{path}': {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("convert", "message", "named"),
    [
        (lambda t: t.long(), "is an integer parameter (int64)", True),  # else it may be a table of indices
        (lambda t: t.to(torch.complex64), "is complex", True),
        (lambda t: t.to(torch.complex64), "is complex", False),
    ],
)
def test_a_wrong_dtype_is_said_also_where_the_network_is_known(
    convert: Callable[[Tensor], Tensor], message: str, named: bool, tmp_path: Path
) -> None:
    state = dict(trained().state_dict())
    state["stages.1.0.conv1.weight"] = convert(state["stages.1.0.conv1.weight"])
    architecture = prepkit.architecture(DIGITS) if named else None
    with pytest.raises(LayoutMismatch) as caught:
        pack_checkpoint(saved(state, tmp_path), architecture=architecture)
    assert f"'stages.1.0.conv1.weight' {message}" in str(caught.value)


def test_names_and_shapes_that_do_not_match_are_listed(tmp_path: Path) -> None:
    state = dict(trained().state_dict())
    del state["linear.bias"]
    state["extra"], state["linear.weight"] = torch.ones(2), torch.ones(11, 16)
    with pytest.raises(LayoutMismatch) as caught:
        pack_checkpoint(saved(state, tmp_path), architecture=prepkit.architecture(DIGITS))
    for part in ("missing (linear.bias)", "unexpected (extra)", "linear.weight is [11, 16], expected [10, 16]", DIGITS):
        assert part in str(caught.value)


def test_batch_norm_of_an_unknown_network_names_both_ways_out(tmp_path: Path) -> None:
    state = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).state_dict()
    path = saved(dict(state), tmp_path)
    with pytest.raises(FusionError) as caught:
        pack_checkpoint(path)
    for part in (f"'{path}' has BatchNorm ('1')", "(architecture=...)", "(keep_batch_norm=True)"):
        assert part in str(caught.value)
    assert pack_checkpoint(path, keep_batch_norm=True).prep.layout.num_parameters == 18 + 2 + 2 + 2


def test_a_prep_is_not_packed_again(tmp_path: Path) -> None:
    path = tmp_path / "model.prep.safetensors"
    save_prep(pack_checkpoint(saved({"w": torch.ones(3)}, tmp_path)).prep, path)
    for function in (pack_checkpoint, fold_checkpoint):
        with pytest.raises(CheckpointError, match="is a PRep already; `prepkit unpack` makes a checkpoint of it"):
            function(path)


@pytest.mark.parametrize("height", [4 * 10**13, 4 * 10**30])
def test_a_height_beyond_all_memory(height: int, tmp_path: Path) -> None:
    with pytest.raises(
        InvalidShape, match=rf"no memory for a PRep of {height} x 512 float32 \(.* bytes\); use a smaller"
    ):
        pack_checkpoint(saved({"w": torch.ones(3)}, tmp_path), height=height)


def test_a_width_beyond_all_memory_is_what_should_be_smaller(tmp_path: Path) -> None:
    with pytest.raises(InvalidShape, match=r"no memory for a PRep of 4 x 80+ float32 .*; use a smaller width\.$"):
        pack_checkpoint(saved({"w": torch.ones(3)}, tmp_path), width=8 * 10**13)


def test_a_wrong_width_is_said_before_the_file_is_opened(tmp_path: Path) -> None:
    with pytest.raises(InvalidShape, match="width 12 is not a multiple of 8"):
        pack_checkpoint(tmp_path / "missing.pt", width=12)
