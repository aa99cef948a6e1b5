"""Evaluation and validation against the same judged one network at a time, by hand."""

from dataclasses import replace

import pytest
import torch
from small_zoos import CHAIRS, DIGITS, SMALL

import netspace
import prepkit
from netspace.data import Data, ZooMismatch
from netspace.recipe import load_recipe
from netspace.run.run import new_space
from netspace.space.evaluation import evaluate
from netspace.space.prediction import predict
from netspace.training import _validation
from netspace.training._validation import Validation

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


@pytest.fixture
def ready(small_zoo):
    """Recipe, zoo, data and an untrained space whose predicted networks differ."""

    def made(name, **changes):
        recipe = load_recipe(name, {**SMALL[name], **changes})
        network = recipe.network
        zoo = prepkit.open_zoo(small_zoo(name), width=network.width, height=network.height)
        space = new_space(recipe).eval()
        with torch.no_grad():
            space.decoder.scale.mul_(30)
        return recipe, zoo, Data(recipe, zoo, CPU), space

    return made


def accuracy_of(network, split):
    images, labels = prepkit.load_task(DIGITS).normalised(split)
    with torch.no_grad():
        return float((network(images).argmax(1) == labels).double().mean())


def test_images(ready):
    _, zoo, data, space = ready("digits_multi")
    view = zoo.split("train")
    found = evaluate(space, data.registry, view, data.task, "test")
    assert found.table["id"].to_pylist() == view.table["id"].to_pylist()
    for row, line in enumerate(found.table.to_pylist()):
        with torch.no_grad():
            latent = space.encode(view.preps([row]))
            class_id = int(space.classify(latent).argmax())
        name = list(data.registry.class_ids)[class_id]
        predicted = predict(space, latent, data.registry)
        assert line["predicted_class_id"] == class_id
        assert line["predicted_architecture"] == name
        assert line["class_id"] == view.metadata(row)["class_id"]
        assert line["target_accuracy"] == pytest.approx(accuracy_of(view.network(row), "test"), abs=1e-12)
        assert line["predicted_accuracy"] == pytest.approx(accuracy_of(predicted.network(0), "test"), abs=1e-12)
    target, guess = (torch.tensor(found.table[f"{kind}_accuracy"].to_pylist()) for kind in ("target", "predicted"))
    summary = found.summary()
    assert summary["instances"] == len(view) == 12
    assert summary["mean_difference"] == pytest.approx(float((target - guess).abs().mean()), abs=1e-6)
    rows = [row for row, name in enumerate(found.table["architecture"].to_pylist()) if name == "resnet8@digits"]
    assert summary["by_architecture"]["resnet8@digits"]["target_accuracy"] == pytest.approx(float(target[rows].mean()))
    right = [
        a == b
        for a, b in zip(found.table["class_id"].to_pylist(), found.table["predicted_class_id"].to_pylist(), strict=True)
    ]
    assert summary["class_id_accuracy"] == pytest.approx(sum(right) / len(right))


def test_chunks_and_known_targets_change_nothing(ready, monkeypatch):
    _, zoo, data, space = ready("digits_multi")
    view = zoo.split("train")
    whole = evaluate(space, data.registry, view, data.task, "test")
    told = []
    monkeypatch.setattr("netspace.space.evaluation.chunks.__defaults__", (5,))
    parts = evaluate(
        space,
        data.registry,
        view,
        data.task,
        "test",
        targets=whole.table["target_accuracy"].to_pylist(),
        progress=told.append,
    )
    assert parts.table.drop_columns("predicted_accuracy") == whole.table.drop_columns("predicted_accuracy")
    for ours, theirs in zip(parts.column("predicted_accuracy"), whole.column("predicted_accuracy"), strict=True):
        assert abs(ours - theirs) <= 1 / 60 + 1e-9  # a logit on the fence, if at all
    assert told == [5, 5, 2]


def test_signals(ready):
    _, zoo, data, space = ready("chairs_mini")
    view = zoo.split("train")
    found = evaluate(space, data.registry, view, data.task, "validation")
    task = prepkit.load_task(CHAIRS)
    for row, line in enumerate(found.table.to_pylist()):
        points, distances = task.points(view.metadata(row)["item"], "validation")
        with torch.no_grad():
            predicted = predict(space, space.encode(view.preps([row])), data.registry).network(0)(points)[:, 0]
            target = view.network(row)(points)[:, 0]
        close = (predicted - target).abs() <= 1e-2
        assert line["closeness"] == pytest.approx(float(close.double().mean()), abs=1e-12)
        assert line["closeness_near"] == pytest.approx(float(close[target.abs() <= 0.1].double().mean()), abs=1e-12)
        expected = float(((target - distances).abs() <= 1e-2).double().mean())
        assert line["target_accuracy"] == pytest.approx(expected, abs=1.5 / 64)
    assert found.summary()["closeness"] == pytest.approx(float(found.column("closeness").mean()))


def test_an_empty_zoo_is_refused(ready):
    _, zoo, data, space = ready("digits_multi")
    with pytest.raises(ZooMismatch, match="no instances to evaluate"):
        evaluate(space, data.registry, zoo.select([]), data.task, "test")


# Validation: what the best state is -----------------------------------------------------------------------------


def test_single_and_signals_are_judged_by_their_own_measure(ready):
    recipe, zoo, data, space = ready("digits_single")
    scores = Validation(recipe, zoo, data)(space)
    found = evaluate(space, data.registry, zoo.split("validation"), data.task, "validation")
    assert scores["score"] == -scores["mean_difference"] == pytest.approx(-found.summary()["mean_difference"])
    recipe, zoo, data, space = ready("chairs_mini")
    scores = Validation(recipe, zoo, data)(space)
    found = evaluate(space, data.registry, zoo.split("train"), data.task, "validation")
    assert scores["score"] == scores["closeness"] == pytest.approx(found.summary()["closeness"])


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [("cuda", "bfloat16", True), ("cuda", "float32", False), ("cpu", "bfloat16", False)],
)
def test_a_gpu_validates_in_the_recipes_precision(ready, device, precision, expected):
    recipe, zoo, data, _ = ready("digits_multi")
    recipe = replace(recipe, training=replace(recipe.training, precision=precision))
    data.device = torch.device(device)
    assert Validation(recipe, zoo, data).bf16 == expected


def test_a_validation_in_bfloat16_is_the_evaluation_in_bfloat16(ready, monkeypatch):
    recipe, zoo, data, space = ready("digits_multi")
    halved = []
    real = _validation.accuracies_of
    monkeypatch.setattr(_validation, "accuracies_of", lambda *a, **o: halved.append(o["bf16"]) or real(*a, **o))
    validation = Validation(recipe, zoo, data)
    validation.bf16 = True
    scores = validation(space)
    found = evaluate(space, data.registry, zoo.split("validation"), data.task, "validation", bf16=True).summary()
    assert scores["predicted_accuracy"] == found["predicted_accuracy"]
    assert scores["class_id_accuracy"] == found["class_id_accuracy"]
    assert halved == [True]


def test_several_architectures_count_where_the_class_is_right(ready):
    recipe, zoo, data, space = ready("digits_multi")
    scores = Validation(recipe, zoo, data)(space)
    view = zoo.split("validation")
    counted = []
    with torch.no_grad():
        latents = space.encode(view.preps())
        first, last = (latents[view.class_ids().tolist().index(boundary)] for boundary in (0, 3))
        asked = list(zip(latents, view.class_ids().tolist(), strict=True))
        asked += [((1 - gamma / 3) * first + gamma / 3 * last, gamma) for gamma in (1, 2)]
        for latent, class_id in asked:
            one = predict(space, latent[None], data.registry)
            counted.append(accuracy_of(one.network(0), "validation") if one.class_ids[0] == class_id else 0.0)
    assert 0 < sum(count > 0 for count in counted) < len(counted)
    assert scores["score"] == pytest.approx(sum(counted) / len(counted), abs=1e-6)


def test_the_best_state_is_kept_and_signals_end_early(tmp_path, small_zoo, monkeypatch):
    given = iter([0.2, 0.5, 0.4, 0.7, 0.9])
    monkeypatch.setattr("netspace.training._validation.Validation.__call__", lambda self, space: {"score": next(given)})
    changes = {**SMALL["chairs_mini"], "training.steps": 5, "training.validate_every": 1, "training.stop_at": 0.65}
    run = netspace.train(load_recipe("chairs_mini", changes), small_zoo("chairs_mini"), tmp_path / "run", device="cpu")
    assert [line["best"] for line in run.metrics() if "best" in line] == [True, True, False, True]
    assert run.facts("best")["step"] == run.facts("latest")["step"] == 4
    best, latest = run.space("best").state_dict(), run.space("latest").state_dict()
    assert all(torch.equal(best[name], latest[name]) for name in best)
