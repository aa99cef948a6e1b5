"""Each baseline against a script of its own that uses scikit-learn and networks alone."""

import numpy as np
import pytest
import torch
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import prepkit
from prepkit.benching import _baselines
from prepkit.support import statistics

STRENGTHS = statistics.RIDGE_STRENGTHS[::4]
SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def fewer_choices(monkeypatch):
    monkeypatch.setattr(statistics, "RIDGE_STRENGTHS", STRENGTHS)
    monkeypatch.setattr(_baselines, "TREES", 60)


def by_hand(folder, column):
    """Statistics and weights `[N, F]`, and the column `[N]`, of each split, from the networks' state dicts."""
    zoo = prepkit.open_zoo(folder)
    found = {}
    for split in SPLITS:
        view = zoo.split(split)
        states = [view.network(number).state_dict() for number in range(len(view))]
        flat = np.stack([torch.cat([t.flatten() for t in state.values()]).double().numpy() for state in states])
        statistics = []
        for state in states:
            arrays = [tensor.double().numpy().ravel() for tensor in state.values()]
            quantiles = (0, 0.25, 0.5, 0.75, 1)
            statistics.append(np.concatenate([[a.mean(), a.var(), *np.quantile(a, quantiles)] for a in arrays]))
        found[split] = np.stack(statistics), flat, np.array(view.table[column].to_pylist())
    return found


def fitted_ridge(x, y, targets):
    """The ridge regression whose penalty is best on validation instances."""
    models = [make_pipeline(StandardScaler(), Ridge(a * len(x["train"]))).fit(x["train"], y) for a in STRENGTHS]
    return min(models, key=lambda model: ((model.predict(x["validation"]) - targets) ** 2).mean())


def guesses(folder, column, baseline, **options):
    return prepkit.bench(folder, column, baselines=[baseline], **options).rows[baseline].guesses


@pytest.mark.parametrize(("baseline", "place"), [("statistics + ridge", 0), ("flat + ridge", 1)])
def test_ridge_on_numbers_and_classes(zoo_folder, baseline, place):
    own = by_hand(zoo_folder, "score")
    x = {split: own[split][place] for split in SPLITS}
    expected = fitted_ridge(x, own["train"][2], own["validation"][2]).predict(x["test"])
    np.testing.assert_allclose(guesses(zoo_folder, "score", baseline), expected, rtol=1e-5)
    sides = {split: (values[2] == "b").astype(int) for split, values in by_hand(zoo_folder, "side").items()}
    indicators = {split: np.eye(2)[side] for split, side in sides.items()}
    model = fitted_ridge(x, indicators["train"], indicators["validation"])
    assert np.array_equal(guesses(zoo_folder, "side", baseline), model.predict(x["test"]).argmax(1))


@pytest.mark.parametrize("column", ["score", "side"])
def test_boosting_on_statistics(zoo_folder, column):
    own = by_hand(zoo_folder, column)
    is_class = column == "side"
    kind = HistGradientBoostingClassifier if is_class else HistGradientBoostingRegressor
    truth = {split: (values[2] == "b").astype(int) if is_class else values[2] for split, values in own.items()}
    options = {"learning_rate": 0.1, "min_samples_leaf": 5, "early_stopping": False, "random_state": 3}
    model = kind(max_iter=60, **options).fit(own["train"][0], truth["train"])
    staged = list(model.staged_predict(own["validation"][0]))
    errors = [
        np.mean((guess != truth["validation"]) if is_class else (guess - truth["validation"]) ** 2) for guess in staged
    ]
    short = kind(max_iter=1 + int(np.argmin(errors)), **options).fit(own["train"][0], truth["train"])
    found = guesses(zoo_folder, column, "statistics + boosting", seed=3)
    np.testing.assert_allclose(found, short.predict(own["test"][0]), rtol=1e-6)


def test_the_constant_guess(zoo_folder):
    own = by_hand(zoo_folder, "score")["train"][2]
    assert guesses(zoo_folder, "score", "constant") == pytest.approx([own.mean()] * 12)
    sides = by_hand(zoo_folder, "side")["train"][2].tolist()
    assert set(guesses(zoo_folder, "side", "constant")) == {int(sides.count("b") > sides.count("a"))}
    assert sides.count("a") != sides.count("b")


def test_the_logarithm(zoo_folder):
    plain = guesses(zoo_folder, "score", "statistics + ridge")
    logs = guesses(zoo_folder, "wide", "statistics + ridge", log=True)
    np.testing.assert_allclose(logs, 5 * plain, atol=1e-2)  # the score is rounded to four digits
