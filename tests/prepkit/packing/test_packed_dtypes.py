"""Casts and mixed dtypes of packed checkpoints: exact where they can be, told or refused where not."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from packed_samples import same, saved, trained

from prepkit.errors import (
    CheckpointError,
)
from prepkit.packing import (
    pack_checkpoint,
)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_cast_is_torchs_cast_of_the_folded_network(dtype: str, tmp_path: Path) -> None:
    path = saved(trained().state_dict(), tmp_path)
    plain, cast = pack_checkpoint(path).prep, pack_checkpoint(path, dtype=dtype)
    assert same(cast.prep.values, plain.values.to(getattr(torch, dtype)))
    assert {slot.dtype for slot in cast.prep.layout} == {dtype}
    assert cast.cast == dtype
    assert cast.prep.origin == replace(plain.origin, options={"dtype": dtype})


def test_a_cast_leaves_integers_alone(tmp_path: Path) -> None:
    packed = pack_checkpoint(saved(trained().state_dict(), tmp_path), keep_batch_norm=True, dtype="float16")
    assert {tensor.dtype for tensor in packed.prep.buffers.values()} == {torch.int64}


def test_values_that_a_dtype_cannot_hold(tmp_path: Path) -> None:
    state = {"small": torch.ones(4), "large": torch.tensor([1.0, 70_000.0, -70_000.0])}
    path = saved(state, tmp_path)
    with pytest.raises(CheckpointError) as caught:
        pack_checkpoint(path, dtype="float16")
    assert str(caught.value) == (
        f"'{path}': 'large' holds 0 NaN and 2 infinite of 3 values after the cast to float16; "
        "pass allow_nonfinite=True if they are meant."
    )
    packed = pack_checkpoint(path, dtype="float16", allow_nonfinite=True)
    assert packed.prep.tensors()["large"].tolist() == [1.0, float("inf"), float("-inf")]
    assert pack_checkpoint(path, dtype="bfloat16").prep.tensors()["large"].isfinite().all()


def test_values_that_a_cast_would_turn_into_zero(tmp_path: Path) -> None:
    state = {"a": torch.tensor([0.5, 0.0]), "tiny": torch.tensor([1.0, 1e-9, -2e-12, 0.0, 3e-7])}
    path = saved(state, tmp_path)
    with pytest.raises(CheckpointError) as caught:
        pack_checkpoint(path, dtype="float16")
    assert str(caught.value) == (
        f"'{path}': 'tiny' holds 2 of 5 values, such as 2.0e-12, that the cast to float16 turns into 0; use a dtype "
        "with a wider range, or pass allow_underflow=True if zeros will do."
    )
    packed = pack_checkpoint(path, dtype="float16", allow_underflow=True)
    assert packed.prep.tensors()["tiny"].tolist()[:4] == [1, 0, 0, 0]
    assert packed.rounding is not None
    assert (packed.rounding.num_values, packed.rounding.num_changed, packed.rounding.num_zeroed) == (7, 3, 2)
    assert packed.rounding.largest == 1.0
    assert pack_checkpoint(path).rounding is None


def test_a_cast_says_how_many_values_it_changed_and_by_how_much(tmp_path: Path) -> None:
    shared = torch.tensor([1.0, 1 + 2**-12, -3.0, float("inf"), float("nan")])
    state = {
        "a": shared,
        "b": shared,
        "half": torch.tensor([1.5]).half(),
        "i": torch.tensor(3),
        "big": torch.tensor(1e6),
    }
    path = saved(state, tmp_path)
    rounding = pack_checkpoint(path, dtype="float16", allow_nonfinite=True).rounding
    assert rounding is not None
    assert (rounding.num_values, rounding.num_changed, rounding.num_zeroed) == (7, 2, 0)  # tied values count once
    assert rounding.largest == pytest.approx(2**-12, rel=1e-3)  # 1e6 becomes infinite, which has no size
    rounding = pack_checkpoint(path, dtype="float64", allow_nonfinite=True).rounding
    assert rounding is not None
    assert (rounding.num_values, rounding.num_changed, rounding.largest) == (7, 0, 0.0)


def test_mixed_dtypes_come_back_in_their_own(tmp_path: Path) -> None:
    state = {"a": torch.randn(3).half(), "b": torch.randn(4), "c": torch.randn(5).bfloat16()}
    packed = pack_checkpoint(saved(state, tmp_path))
    assert packed.prep.values.dtype == torch.float32
    assert all(same(tensor, state[name]) for name, tensor in packed.prep.tensors().items())
