"""Tests of the statistics of tensors, against numpy."""

import numpy as np
import pytest
import torch

from prepkit.inspecting._pieces import PIECE
from prepkit.inspecting.statistics import statistics


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64])
@pytest.mark.parametrize("size", [1, 10, 2 * PIECE + 3])
def test_measures_are_those_of_numpy(dtype: torch.dtype, size: int) -> None:
    tensor = (torch.randn(size, generator=torch.Generator().manual_seed(0)) * 3 + 100).to(dtype)
    tensor[size // 2] = 0
    found, values = statistics({"w": tensor})["w"], tensor.to(torch.float64).numpy()
    assert (found.shape, found.size, found.zeros, found.nan, found.infinite) == ((size,), size, 1, 0, 0)
    assert (found.minimum, found.maximum) == (values.min(), values.max())
    assert found.mean == pytest.approx(values.mean(), rel=1e-13)
    assert found.deviation == pytest.approx(values.std(), rel=1e-12)
    assert found.norm == pytest.approx(np.linalg.norm(values), rel=1e-13)


def test_values_that_are_not_finite_are_counted_and_left_out() -> None:
    values = np.arange(3 * PIECE, dtype=np.float32)
    values[[5, PIECE + 1]] = np.nan
    values[[7, 8, 9]] = [np.inf, -np.inf, np.inf]
    values[2 * PIECE :] = np.nan
    found, finite = statistics({"w": torch.from_numpy(values)})["w"], values[np.isfinite(values)].astype(np.float64)
    assert (found.nan, found.infinite, found.zeros) == (PIECE + 2, 3, 1)
    assert (found.minimum, found.maximum) == (finite.min(), finite.max())
    assert found.mean == pytest.approx(finite.mean(), rel=1e-13)
    assert found.deviation == pytest.approx(finite.std(), rel=1e-12)


def test_tensors_without_measures() -> None:
    tensors = {
        "empty": torch.ones(0, 3),
        "all NaN": torch.full((2,), torch.nan),
        "complex": torch.ones(2, dtype=torch.complex64),
    }
    found = statistics(tensors)
    assert [found[name].mean for name in tensors] == [None] * 3
    assert [found[name].nan for name in tensors] == [0, 2, None]
    assert found["empty"].shape == (0, 3)


def test_a_sum_that_overflows_is_no_infinity() -> None:
    found = statistics({"w": torch.full((4,), 1e308, dtype=torch.float64)})["w"]
    assert (found.infinite, found.minimum) == (0, 1e308)
