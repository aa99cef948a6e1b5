"""Correlations, ceilings and ridge regression, compared with slow transcriptions and other libraries."""

import math
from itertools import combinations

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from prepkit.support.statistics import (
    RIDGE_STRENGTHS,
    along_line,
    evenly,
    from_straight_line,
    grouped,
    kendall,
    largest_fall,
    nearest_mean_is_own,
    pearson,
    principal_components,
    r2,
    ridge_guess,
    spearman,
    tau_of_halves,
    tau_of_perfect_ranker,
    tau_of_ties,
    variance_within,
)


@pytest.fixture
def random():
    return np.random.default_rng(0)


def some(random, count, ties):
    """Two lists that go together a little, with equal values among them if asked for."""
    first = random.normal(size=count)
    second = first + random.normal(size=count)
    return (first.round(), second.round()) if ties else (first, second)


def slow_ranks(values):
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2 for value in values
    ]


def slow_tau_b(first, second):
    signs = [
        (np.sign(first[i] - first[j]), np.sign(second[i] - second[j])) for i, j in combinations(range(len(first)), 2)
    ]
    return sum(a * b for a, b in signs) / np.sqrt(sum(a != 0 for a, _ in signs) * sum(b != 0 for _, b in signs))


@pytest.mark.parametrize("ties", [False, True])
def test_correlations(random, ties):
    first, second = some(random, 30, ties)
    assert pearson(first, second) == pytest.approx(np.corrcoef(first, second)[0, 1])
    assert pearson(first, second) == pytest.approx(scipy.stats.pearsonr(first, second).statistic)
    assert spearman(first, second) == pytest.approx(np.corrcoef(slow_ranks(first), slow_ranks(second))[0, 1])
    assert spearman(first, second) == pytest.approx(scipy.stats.spearmanr(first, second).statistic)
    assert kendall(first, second) == pytest.approx(slow_tau_b(first, second))
    assert r2(first, second) == pytest.approx(r2_score(first, second))


def test_correlations_over_the_last_axis(random):
    first, second = random.normal(size=(2, 5, 12))
    assert spearman(first, second) == pytest.approx([spearman(a, b) for a, b in zip(first, second, strict=True)])


@pytest.mark.parametrize("statistic", [pearson, spearman, kendall, r2])
@pytest.mark.parametrize(("first", "second"), [([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]), ([2.0], [3.0])])
def test_what_does_not_exist_is_nan(statistic, first, second):
    assert np.isnan(statistic(first, second))


def test_the_ceiling_of_ties_is_what_a_perfect_guess_gets(random):
    truth = np.array([0.0, 0.0, 0.0, 1.0, 1.0, 2.0, 3.0])
    perfect = truth + 0.01 * np.arange(len(truth))
    assert tau_of_ties(truth) == pytest.approx(slow_tau_b(truth, perfect))
    assert tau_of_ties(truth) < 1
    for _ in range(200):
        assert slow_tau_b(truth, truth + random.normal(size=len(truth))) <= tau_of_ties(truth) + 1e-12
    assert tau_of_ties([1.0, 2.0, 3.0]) == 1.0
    assert np.isnan(tau_of_ties([1.0, 1.0]))


def test_the_ceiling_of_halves(random):
    chances = np.array([0.1, 0.5, 0.9])
    many = random.random((3, 2000)) < chances[:, None]
    assert tau_of_halves(many, 20, seed=0) == 1.0
    luck = random.random((40, 60)) < 0.5
    assert abs(tau_of_halves(luck, 50, seed=0)) < 0.15
    assert np.isnan(tau_of_halves(np.ones((4, 10)), 5, seed=0))
    # Every sample is in exactly one half: with two of them each is a half of its own.
    pair = np.array([[1, 0], [0, 1], [1, 1], [0, 0]])
    assert tau_of_halves(pair, 3, seed=0) == pytest.approx(slow_tau_b(pair[:, 0], pair[:, 1])) == 0.0


@pytest.mark.parametrize(("spread", "samples"), [(0.02, 400), (0.04, 400), (0.1, 100)])
def test_the_tau_of_a_perfect_ranker_is_that_of_true_accuracies(spread, samples):
    """True accuracies are known here, so that the tau of ranking by them can be measured."""
    draw = np.random.default_rng(0)
    true = np.clip(0.7 + spread * draw.standard_normal(1500), 0, 1)
    right = (draw.random((1500, samples)) < true[:, None]).astype(float)
    expected = scipy.stats.kendalltau(true, right.mean(1)).statistic
    halves = tau_of_halves(right, 5, seed=0)
    assert tau_of_perfect_ranker(halves) == pytest.approx(expected, abs=0.03)
    assert halves < expected - 0.05
    assert np.isnan(tau_of_perfect_ranker(-0.1))
    assert np.isnan(tau_of_perfect_ranker(float("nan")))


# Ridge ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def regression():
    random = np.random.default_rng(2)
    features = random.normal(size=(50, 80)) * random.uniform(0.1, 10, size=80) + 3
    features[:, 7] = 0.1  # never changes
    labels = 3 * features[:, 8:12] @ [1.0, -0.5, 0.3, 0.8] + 3 * random.normal(size=50)
    return (features[:30], labels[:30]), (features[30:40], labels[30:40]), features[40:]


@pytest.mark.parametrize("each", [True, False])
def test_ridge_is_scikit_learns_at_the_strength_that_validation_chooses(regression, each):
    train, validation, test = regression
    guess, strength = ridge_guess(train, validation, test, each=each)
    scale = StandardScaler().fit(train[0])
    if not each:
        scale.scale_ = np.full(80, np.sqrt(scale.var_.mean()))
    errors, guesses = [], []
    for weight in RIDGE_STRENGTHS:
        slow = Ridge(alpha=weight * len(train[1])).fit(scale.transform(train[0]), train[1])
        errors.append(((slow.predict(scale.transform(validation[0])) - validation[1]) ** 2).mean())
        guesses.append(slow.predict(scale.transform(test)))
    best = int(np.argmin(errors))
    assert 0 < best < len(errors) - 1
    assert strength == RIDGE_STRENGTHS[best]
    assert guess == pytest.approx(guesses[best], rel=1e-6)


def test_features_that_never_changed_count_for_nothing(regression):
    train, validation, test = regression
    changed = test.copy()
    changed[:, 7] += 100
    assert np.array_equal(ridge_guess(train, validation, changed)[0], ridge_guess(train, validation, test)[0])


# Principal components ---------------------------------------------------------------------------------------------


def test_principal_components_are_scikit_learns():
    values = np.random.default_rng(0).normal(size=(20, 6)) * [5, 3, 1, 1, 1, 0.5] + 2
    places, explained = principal_components(torch.from_numpy(values), 2)
    expected = PCA(2).fit(values)
    there = expected.transform(values)
    signs = np.sign((there * places.numpy()).sum(0))
    np.testing.assert_allclose(places.numpy() * signs, there, atol=1e-9)
    np.testing.assert_allclose(explained, expected.explained_variance_ratio_, atol=1e-9)
    one, shares = principal_components(torch.ones(1, 6, dtype=torch.float64), 2)
    assert one.shape == (1, 2)
    assert shares == [0.0, 0.0]


def test_the_nearest_mean_is_that_of_known_points():
    known = torch.tensor([[0.0, 0], [2, 0], [10, 0], [12, 0]]).double()
    asked = torch.tensor([[4, 0], [1, 1], [11, 0], [7, 0]]).double()
    # Means are at 1 and 11: the point at (1, 1) of class 2 and the one at 7 of class 0 are nearer to the other's.
    classes = torch.tensor([0, 0, 2, 2])
    assert nearest_mean_is_own(known, classes, asked, torch.tensor([0, 2, 2, 0])) == 0.5


def test_even_choices():
    assert evenly("abcde", 3) == ["a", "c", "e"]
    assert evenly("ab", 3) == ["a", "b"]
    assert evenly("abc", 1) == ["a"]
    assert evenly("", 3) == []


def test_places_along_a_line():
    """The line goes from (1, 1) to (1, 5): its length is 4."""
    points = torch.tensor([[2.0, 2], [4, 4]]).double()
    position, off = along_line(points, torch.ones(2).double(), torch.tensor([1.0, 5]).double())
    assert (position.tolist(), off.tolist()) == ([0.25, 0.75], [0.25, 0.75])


def test_values_along_lines():
    values = torch.tensor([[1.0, 3, 2, 0, 4], [0, 1, 2, 3, 4]]).double()
    assert largest_fall(values).tolist() == [3, 0]
    assert from_straight_line(values, values[:, [0, -1]], (0, 0.25, 0.5, 0.75, 1)) == pytest.approx(5 / 10)


def test_variance_within_groups():
    groups = torch.tensor([[[0.0], [2]], [[10], [12]]]).double()
    assert variance_within(groups) == pytest.approx(4 / 104)
    assert math.isnan(variance_within(torch.ones(2, 2, 1)))


def test_groups_keep_the_order_of_their_items():
    assert grouped(["bb", "a", "cc", "d"], len) == {2: ["bb", "cc"], 1: ["a", "d"]}
    assert list(grouped(["bb", "a"], len)) == [2, 1]
