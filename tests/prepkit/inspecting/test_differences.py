"""Tests of the differences of tensors, against numpy."""

import numpy as np
import pytest
import torch

from prepkit.errors import PrepkitError
from prepkit.inspecting._pieces import PIECE
from prepkit.inspecting.differences import differences, prefixes


def test_measures_are_those_of_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(3, PIECE, generator=generator)
    b = a.clone()
    b[2, 17] += 0.5
    b[0, 3] -= 0.25
    found, distance = differences({"w": a}, {"w": b})["w"], np.abs(a.double().numpy() - b.double().numpy())
    assert (found.is_same, found.differing, found.at) == (False, 2, (2, 17))
    assert found.largest == distance.max()
    assert found.mean == pytest.approx(distance.mean(), rel=1e-12)


@pytest.mark.parametrize(
    ("a", "b", "is_same", "differing"),
    [
        ([1.0, torch.nan], [1.0, torch.nan], True, 0),
        ([1.0, torch.nan], [torch.nan, 1.0], False, 2),
        ([torch.inf, -torch.inf], [torch.inf, -torch.inf], True, 0),
        ([torch.inf, 0.0], [-torch.inf, 0.0], False, 1),
        ([0.0], [-0.0], True, 0),
    ],
)
@pytest.mark.parametrize("atol", [0.0, 0.1])
def test_nan_equals_nan_alone(a: list[float], b: list[float], is_same: bool, differing: int, atol: float) -> None:
    found = differences({"w": torch.tensor(a)}, {"w": torch.tensor(b)}, atol=atol)["w"]
    assert (found.is_same, found.differing) == (is_same, differing)


@pytest.mark.parametrize(("atol", "rtol", "differing"), [(0, 0, 3), (0.1, 0, 2), (0, 0.01, 2), (0.1, 0.01, 1)])
def test_tolerances(atol: float, rtol: float, differing: int) -> None:
    a, b = torch.tensor([1.155, 0.05, 100.9]).double(), torch.tensor([1.0, 0, 100]).double()
    assert differences({"w": a}, {"w": b}, atol=atol, rtol=rtol)["w"].differing == differing
    assert int((~torch.isclose(a, b, rtol=rtol, atol=atol)).sum()) == differing


def test_names_shapes_and_dtypes() -> None:
    a = {"only a": torch.ones(1), "shape": torch.ones(2, 3), "dtype": torch.ones(2), "same": torch.ones(())}
    b = {"same": torch.ones(()), "dtype": torch.ones(2).half(), "shape": torch.ones(6), "only b": torch.ones(1)}
    found = differences(a, b)
    assert list(found) == ["only a", "shape", "dtype", "same", "only b"]
    assert [difference.is_same for difference in found.values()] == [False, False, False, True, False]
    assert found["dtype"].differing == 0
    assert found["shape"].shapes == ((2, 3), (6,))
    assert found["only b"].dtypes == (None, "float32")
    assert found["same"].at == ()


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (["model.a.w", "model.b.w"], ["a.w", "c.w"], ("model.", "")),
        (["a.w"], ["net.model.a.w", "net.model.b.w"], ("", "net.model.")),
        (["model.a.w", "model.b.w"], ["a.w", "model.a.w"], ("", "")),
        (["model.a.w", "head.w"], ["a.w"], ("", "")),
        (["x.w"], ["y.v"], ("", "")),
        ([], ["y.v"], ("", "")),
    ],
)
def test_a_prefix_of_all_names_is_found_where_only_without_it_names_meet(
    a: list[str], b: list[str], expected: tuple[str, str]
) -> None:
    assert prefixes(a, b) == expected


def test_large_integers_are_told_apart() -> None:
    a = torch.tensor([2**53])
    assert differences({"n": a}, {"n": a + 1})["n"].differing == 1


def test_complex_and_sparse_tensors() -> None:
    a = torch.tensor([1 + 1j, 2 + 2j])
    assert differences({"w": a}, {"w": a + torch.tensor([0, 1j])})["w"].at == (1,)
    assert differences({"w": a}, {"w": a.clone()})["w"].is_same
    sparse = torch.eye(3).to_sparse()
    assert differences({"w": sparse}, {"w": torch.eye(3)})["w"].is_same


@pytest.mark.parametrize("tolerance", [-1.0, float("nan")])
def test_a_negative_tolerance_is_refused(tolerance: float) -> None:
    with pytest.raises(PrepkitError, match="`rtol`: expected a number of at least 0"):
        differences({}, {}, rtol=tolerance)
