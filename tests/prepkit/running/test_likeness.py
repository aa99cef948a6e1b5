"""Whether networks match their counterparts, on matrices that can be checked by hand."""

import pytest
import torch

from prepkit.running.likeness import beyond_margins, compare, matching_measures


def test_measures_of_identity_by_hand() -> None:
    accuracy_N = torch.tensor([0.1, 0.9, 0.2, 0.8])
    likeness = torch.tensor(
        [[0.9, 0.1, 0.9, 0.1], [0.2, 0.8, 0.2, 0.9], [0.1, 0.1, 0.9, 0.1], [0.0, 0.9, 0.0, 0.8]]
    ).double()
    found = matching_measures(likeness, accuracy_N)
    assert found["own"] == pytest.approx(0.85)
    assert found["others"] == pytest.approx(3.6 / 12)
    # nearest in accuracy: 0 -> 2, 3;  1 -> 3, 2;  2 -> 0, 3;  3 -> 1, 2
    assert found["nearest_in_accuracy"] == pytest.approx((0.9 + 0.1 + 0.9 + 0.2 + 0.1 + 0.1 + 0.9 + 0.0) / 8)
    assert found["own_preferred"] == pytest.approx((2.5 + 2 + 3 + 2) / 12)
    assert found["own_first"] == pytest.approx(1 / 4)
    # pairs 0-1, 0-2, 0-3, 1-2, 2-3 fit better rightly, 1-3 crosswise
    assert found["paired"] == pytest.approx(5 / 6)
    assert found["paired_nearest"] == pytest.approx(6 / 8)


def test_margins_are_taken_away() -> None:
    values = torch.tensor([1.0, 2.0, 3.0])[:, None] + torch.tensor([10.0, 20.0])
    extra = torch.tensor([[1.0, -1.0], [-2.0, 2.0], [1.0, -1.0]])
    torch.testing.assert_close(beyond_margins(values + extra), extra)


def test_one_network_for_all_has_no_identity_and_copies_have_it() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(6, 300, 10, generator=generator)
    accuracy_N = torch.linspace(0, 1, 6)
    for predicted, expected in ((targets[:1].expand(6, -1, -1), 0.5), (targets, 1.0)):
        agreement, divergence = compare(predicted, targets)
        for likeness in (agreement, -divergence):
            assert matching_measures(likeness, accuracy_N)["paired"] == expected
    assert divergence.diagonal().abs().max() < 1e-12
