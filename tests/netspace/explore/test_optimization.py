"""Latent space optimisation, checked against the formulae written out and against scripted validations."""

import math
from types import SimpleNamespace

import pytest
import torch
from small_zoos import digits_zoo
from untrained import untrained_run

import prepkit
from netspace.data import ZooMismatch
from netspace.explore import optimization as module
from netspace.explore.optimization import disturbed, optimize
from netspace.explore.sampling import PointError, points_of

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = ["lenet_like@digits-test-0", "resnet14@digits-train-1", "resnet8@digits-train-0"]


@pytest.fixture(scope="module")
def multi(small_zoo, tmp_path_factory):
    run = untrained_run(tmp_path_factory.mktemp("runs") / "run", "digits_multi", small_zoo("digits_multi"), 2)
    return run, run.open_zoo()


@pytest.fixture(scope="module")
def shapes(small_zoo, tmp_path_factory):
    run = untrained_run(tmp_path_factory.mktemp("runs") / "run", "chairs_mini", small_zoo("chairs_mini"))
    return run, run.open_zoo()


@pytest.fixture
def rising(monkeypatch):
    """Each validation is better than the one before, so that the last embeddings are kept."""
    told = iter(range(1000))
    monkeypatch.setattr(
        module, "_accuracies", lambda run, predicted, *rest: [next(told) / 1000] * len(predicted.class_ids)
    )


def written_out_loss(run, zoo, space, latents, labels_of, images, labels):
    """Eq. 5 and 6 with softmax as it is defined, in plain modules: the sum over start points, differentiable."""
    total = 0
    teacher = torch.softmax(zoo.teacher(images) / 4, dim=1).detach()
    for latent, asked in zip(latents, labels_of, strict=True):
        logits = space.classifier(latent[None])[0]
        name = run.recipe.architectures[int(logits.argmax())]
        network = prepkit.architecture(name).build_folded()
        tensors = prepkit.architecture(name).layout.unpack(space.decoder(latent[None])[0])
        out = torch.func.functional_call(network, tensors, (images,))
        soft, hard = torch.softmax(out / 4, dim=1), torch.softmax(out, dim=1)
        kl = (teacher * (teacher / soft).log()).sum(1).mean() * 16
        task = -hard[torch.arange(len(labels)), labels].log().mean()
        class_loss = -torch.softmax(logits, 0)[asked].log()
        total = total + 0.9 * kl + 0.1 * task + class_loss
    return total


def test_one_step_is_adams_on_the_equations(multi, rising, monkeypatch):
    run, zoo = multi
    space = run.space()
    with torch.no_grad():
        space.classifier.linear.bias.zero_()[2] = 3.0  # an L_class that is neither 0 nor infinite
    found = optimize(run, zoo, IDS, steps=1, learning_rate=1e-3, batch_size=32, seed=4, space=space)
    start = points_of(space, zoo, IDS).latents
    assert torch.equal(found.initial, start)
    batch = next(iter(prepkit.load_task(zoo.task).batches([4], [0], 0, 32)))
    samples = batch.inputs[0], batch.targets[0]
    latents = start.clone().requires_grad_(True)
    total = written_out_loss(run, zoo, space, latents, (0, 3, 2), *samples)
    (gradient,) = torch.autograd.grad(total, latents)
    assert found.history["loss"].to_pylist()[3:] == pytest.approx(
        [
            written_out_loss(run, zoo, space, start[k : k + 1], (asked,), *samples).item()
            for k, asked in enumerate((0, 3, 2))
        ],
        rel=1e-4,
    )
    # The first step of Adam: the learning rate times g / (|g| + eps).
    expected = start - 1e-3 * gradient / (gradient.abs() + 1e-8)
    sure = gradient.abs() > 1e-4 * gradient.abs().max()
    torch.testing.assert_close(found.latents[sure], expected[sure], rtol=1e-3, atol=2e-6)
    assert sure.double().mean() > 0.5


def test_the_loss_falls_and_the_space_stays(multi):
    run, zoo = multi
    space = run.space()
    with torch.no_grad():
        space.decoder.scale.mul_(30)  # at the start the bias outweighs all that an embedding says
    before = {name: value.clone() for name, value in space.state_dict().items()}
    flags = [parameter.requires_grad for parameter in space.parameters()]
    found = optimize(
        run, zoo, IDS[2], steps=15, learning_rate=1e-2, validate_every=5, batch_size=32, space=space, class_ids=2
    )
    losses = found.history["loss"].to_pylist()
    assert found.history["step"].to_pylist() == [0, 5, 10, 15]
    assert losses[0] is None
    assert losses[3] < losses[1] - 0.01
    assert all(torch.equal(value, before[name]) for name, value in space.state_dict().items())
    assert [parameter.requires_grad for parameter in space.parameters()] == flags
    assert all(parameter.grad is None for parameter in space.parameters())
    assert zoo.teacher is not None
    assert all(parameter.grad is None for parameter in zoo.teacher.parameters())


def test_start_points_do_not_know_each_other(multi, rising, monkeypatch):
    run, zoo = multi
    settings = {"steps": 2, "learning_rate": 1e-3, "batch_size": 16, "seed": 1, "noise": 0.1}
    together = optimize(run, zoo, IDS, **settings)
    monkeypatch.setattr(module, "POINTS_AT_ONCE", 2)
    parts = optimize(run, zoo, IDS, **settings)
    torch.testing.assert_close(parts.latents, together.latents, rtol=1e-4, atol=1e-5)
    assert parts.table["start"].to_pylist() == IDS
    assert sorted(parts.history["point"].to_pylist()) == [0, 0, 1, 1, 2, 2]
    alone = optimize(run, zoo, IDS[:1], **settings)
    torch.testing.assert_close(alone.latents, parts.latents[:1], rtol=1e-4, atol=1e-5)


def test_the_best_on_validation_samples_is_kept(multi, monkeypatch):
    run, zoo = multi
    scripted = {0: [0.5, 0.5], 2: [0.7, 0.4], 4: [0.7, 0.3], 6: [0.6, 0.5], 7: [0.2, 0.1]}
    preps, splits = {}, []
    steps = iter(scripted)

    def accuracies(run, predicted, task, items, split):
        splits.append(split)
        if split == "test":
            return [0.9] * len(predicted)
        step = next(steps)
        preps[step] = predicted.preps.clone()
        return scripted[step]

    monkeypatch.setattr(module, "_accuracies", accuracies)
    found = optimize(run, zoo, IDS[:2], steps=7, learning_rate=1e-2, validate_every=2, batch_size=16, class_ids=2)
    assert found.table["best_step"].to_pylist() == [2, 0]  # the earliest of equals
    assert found.table["validation_accuracy"].to_pylist() == [0.7, 0.5]
    assert found.table["initial_validation_accuracy"].to_pylist() == [0.5, 0.5]
    assert found.table["accuracy"].to_pylist() == [0.9, 0.9]
    torch.testing.assert_close(found.predicted.preps[0], preps[2][0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.predicted.preps[1], preps[0][1], rtol=1e-4, atol=1e-6)
    assert (preps[2][0] - preps[4][0]).abs().max() > 1e-4
    assert splits == ["validation"] * 5 + ["test"] * 2
    assert found.table["last_step"].to_pylist() == [7, 7]
    assert found.notes == ["2 start points of 2 still moved after 7 steps."]
    assert found.summary() == {
        "resnet8@digits": {
            "start_points": 2,
            "in_class": 2,
            "reached": 0,
            "improved": 0,  # no test accuracy rose
            "initial_validation_accuracy": pytest.approx(0.5),
            "validation_accuracy": pytest.approx(0.6),
            "initial_accuracy": pytest.approx(0.9),
            "accuracy": pytest.approx(0.9),
        }
    }


def test_a_point_stops_when_it_is_no_more_improved(multi, monkeypatch):
    run, zoo = multi
    scripted = {  # by step: the accuracy of each point that still moves
        0: {0: 0.5, 1: 0.5, 2: 0.1},
        2: {0: 0.6, 1: 0.5, 2: 0.1},
        4: {0: 0.6, 1: 0.4, 2: 0.2},
        6: {0: 0.5, 2: 0.3},
        8: {2: 0.3},
        10: {2: 0.2},
    }
    latents, steps = {}, iter(scripted.items())

    def accuracies(run, predicted, task, items, split):
        if split == "test":
            return [0.9] * len(predicted)
        step, values = next(steps)
        latents[step] = predicted.preps.clone()
        assert len(predicted) == len(values)
        return list(values.values())

    told = []
    settings = {"learning_rate": 1e-2, "validate_every": 2, "batch_size": 16, "class_ids": 2}
    monkeypatch.setattr(module, "_accuracies", accuracies)
    found = optimize(run, zoo, IDS, patience=2, progress=told.append, **settings)
    assert found.table["best_step"].to_pylist() == [2, 0, 6]
    assert found.table["last_step"].to_pylist() == [6, 4, 10]
    assert found.table["stopped"].to_pylist() == [True] * 3
    assert found.notes == []
    assert sum(told) == 10
    rows = [(row["step"], row["point"], row["validation_accuracy"]) for row in found.history.to_pylist()]
    assert rows == [(step, point, accuracy) for step, of in scripted.items() for point, accuracy in of.items()]
    # A point that goes on alone goes where it would have gone beside the others.
    steps = iter({step: dict(enumerate([0.5, 0.5, 0.1 * step])) for step in range(0, 8, 2)}.items())
    whole = optimize(run, zoo, IDS, steps=6, **settings)
    torch.testing.assert_close(found.latents[2], whole.latents[2], rtol=1e-4, atol=1e-5)


def test_a_change_of_class_is_no_gain(multi, monkeypatch):
    """Both points have another class at first: the one that comes to its own has a far better accuracy then."""
    run, zoo = multi
    tested = iter([[0.02, 0.5, 0.6], [0.95, 0.4, 0.7]])
    monkeypatch.setattr(
        module, "_accuracies", lambda *of: next(tested) if of[-1] == "test" else [0.5] * len(of[1].class_ids)
    )
    predict, class_ids = module.predict, iter([(0, 1, 3), (2, 1, 3), (2, 2, 3)])

    def scripted(space, latents, registry):
        if not torch.is_grad_enabled():
            return SimpleNamespace(class_ids=next(class_ids, (2, 1, 3)))
        return predict(space, latents, registry)

    monkeypatch.setattr(module, "predict", scripted)
    found = optimize(run, zoo, IDS, steps=1, class_ids=[2, 3, 3], batch_size=16)
    assert found.table["initial_class_id"].to_pylist() == [0, 1, 3]
    assert found.table["class_id"].to_pylist() == [2, 1, 3]
    summary = found.summary()
    resnet8, resnet14 = summary["resnet8@digits"], summary["resnet14@digits"]
    assert [resnet8[key] for key in ("start_points", "in_class", "reached", "improved")] == [1, 0, 1, 0]
    assert math.isnan(resnet8["accuracy"])
    assert [resnet14[key] for key in ("start_points", "in_class", "reached", "improved")] == [2, 1, 0, 1]
    assert (resnet14["initial_accuracy"], resnet14["accuracy"]) == (0.6, 0.7)


def test_the_recipe_has_rate_and_share_of_the_teacher(multi, rising):
    run, zoo = multi
    settings = {"steps": 1, "batch_size": 32, "seed": 4}
    by_default = optimize(run, zoo, IDS, **settings)
    latent, loss = run.recipe.latent, run.recipe.loss
    given = optimize(run, zoo, IDS, learning_rate=latent.learning_rate, alpha=loss.alpha, **settings)
    assert latent.learning_rate == 1e-2
    assert torch.equal(by_default.latents, given.latents)
    # KL alone: Eq. 5 without its labels, with softmax as it is defined.
    space = run.space()
    with torch.no_grad():
        space.classifier.linear.bias.zero_()[2] = 1e3  # so that L_class is 0
    alone = optimize(run, zoo, IDS[2], alpha=1, space=space, **settings)
    images = next(iter(prepkit.load_task(zoo.task).batches([4], [0], 0, 32))).inputs[0]
    with torch.no_grad():
        network = prepkit.architecture("resnet8@digits").build_folded()
        network.load_state_dict(alone_tensors(space, zoo))
        teacher, soft = (torch.softmax(one(images) / 4, dim=1) for one in (zoo.teacher, network))
    kl = (teacher * (teacher / soft).log()).sum(1).mean() * 16
    assert alone.history["loss"].to_pylist()[1] == pytest.approx(float(kl), rel=1e-4)


def alone_tensors(space, zoo):
    """The state that the space predicts for the third instance."""
    with torch.no_grad():
        prep = space.decode(points_of(space, zoo, IDS[2]).latents)[0]
    return prepkit.architecture("resnet8@digits").layout.unpack(prep)


def test_another_class_is_never_better(monkeypatch):
    walk = module._Walk(0, None, None, None, None, torch.zeros(1, 4), [1], [0], "validation", 0.9)
    seen = [(0, 0.9), (1, 0.2), (0, 0.95), (1, 0.1), (1, 0.3)]
    for step, (class_id, accuracy) in enumerate(seen):
        monkeypatch.setattr(module, "predict", lambda *_, c=class_id: SimpleNamespace(class_ids=(c,)))
        monkeypatch.setattr(module, "_accuracies", lambda *_, a=accuracy: [a])
        monkeypatch.setattr(walk, "run", SimpleNamespace(registry=None))
        walk._validate(step, torch.full((1, 4), float(step)), None)
        assert walk.best[0]["step"] == {0: 0, 1: 1, 2: 1, 3: 1, 4: 4}[step]
    assert torch.equal(walk.latents, torch.full((1, 4), 4.0))
    monkeypatch.setattr(module, "_accuracies", lambda *_: [1.0])
    walk._validate(5, torch.full((1, 4), math.nan), None)  # what is no number is no better point
    assert walk.best[0]["step"] == 4


def test_accuracies_are_those_of_plain_networks(multi):
    run, zoo = multi
    found = optimize(run, zoo, IDS[:2], steps=1, batch_size=16)
    images, labels = prepkit.load_task(zoo.task).normalised("test")
    for point, accuracy in enumerate(found.table["accuracy"].to_pylist()):
        with torch.no_grad():
            right = (found.predicted.network(point)(images).argmax(1) == labels).double().mean()
        assert accuracy == pytest.approx(float(right), abs=1 / 60 + 1e-9)
    assert found.table["asked_class_id"].to_pylist() == [0, 3]
    assert found.table["class_id"].to_pylist() == [2, 2]
    assert found.table["architecture"].to_pylist() == ["resnet8@digits"] * 2


def test_an_embedding_stays_in_its_own_class(multi):
    run, zoo = multi
    latents = points_of(run.space(), zoo, IDS).latents
    found = optimize(run, zoo, latents, steps=1, batch_size=16)
    assert found.table["asked_class_id"].to_pylist() == [2, 2, 2]
    assert torch.equal(found.initial, latents)


def test_disturbed():
    latents = torch.randn(3, 64)
    moved = disturbed(latents, 0.5, 7)
    ratio = (moved - latents).norm(dim=1) / latents.norm(dim=1)
    torch.testing.assert_close(ratio, torch.full((3,), 0.5))
    assert torch.equal(disturbed(latents, 0.5, 7), moved)
    assert not torch.equal(disturbed(latents, 0.5, 8), moved)
    assert torch.equal(disturbed(latents, 0.0, 7), latents)
    directions = torch.nn.functional.normalize(moved - latents)
    assert (directions @ directions.T).fill_diagonal_(0).abs().max() < 0.6


# Signals --------------------------------------------------------------------------------------------------------


def test_signals_learn_the_true_distances(shapes):
    run, zoo = shapes
    found = optimize(run, zoo, ["chair-1", "chair-4"], steps=10, learning_rate=1e-2, validate_every=5, batch_size=64)
    losses = [row["loss"] for row in found.history.to_pylist() if row["point"] == 1]
    assert losses[2] < losses[1]
    task = prepkit.load_task(zoo.task)
    for point, item in enumerate((1, 4)):
        at, distances = task.points(item, "test")
        with torch.no_grad():
            close = (found.predicted.network(point)(at)[:, 0] - distances).abs() <= 1e-2
        assert found.table["accuracy"].to_pylist()[point] == pytest.approx(float(close.double().mean()), abs=2 / 64)


def test_the_first_loss_of_signals_is_eq_2_of_the_own_shape(shapes):
    run, zoo = shapes
    latents = points_of(run.space(), zoo, ["chair-1", "chair-4"]).latents
    found = optimize(run, zoo, latents, items=[5, 2], steps=1, batch_size=32, seed=3)
    batch = next(iter(prepkit.load_task(zoo.task).batches([3, 3], [5, 2], 0, 32)))
    space = run.space()
    for point in range(2):
        layout = prepkit.architecture("sine_mlp@sdf_small").layout
        network = prepkit.architecture("sine_mlp@sdf_small").build()
        with torch.no_grad():
            network.load_state_dict(layout.unpack(space.decoder(latents[point : point + 1])[0]))
            loss = (network(batch.inputs[point]) - batch.targets[point]).square().mean()
        assert found.history["loss"].to_pylist()[2 + point] == pytest.approx(float(loss), rel=1e-4)


# What cannot be -------------------------------------------------------------------------------------------------


def test_no_teacher(tmp_path, small_zoo):
    zoo = small_zoo("digits_single")  # has none
    run = untrained_run(tmp_path / "run", "digits_single", zoo)
    with pytest.raises(
        ZooMismatch, match=r"has no teacher, which Eq. 5 learns from; .*prepkit zoo train digits_single"
    ):
        optimize(run, run.open_zoo(), "resnet8@digits-test-0", steps=1)


def test_one_architecture_with_a_teacher(tmp_path):
    zoo = digits_zoo(tmp_path / "zoo", {"resnet8@digits": {"train": 3, "validation": 1, "test": 1}}, single=True)
    run = untrained_run(tmp_path / "run", "digits_single", zoo)
    found = optimize(
        run, run.open_zoo(), "resnet8@digits-test-0", steps=10, learning_rate=1e-1, validate_every=5, batch_size=32
    )
    losses = found.history["loss"].to_pylist()
    assert losses[2] < losses[1]
    assert found.predicted.logits is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps 0 is out of range"),
        ({"learning_rate": math.nan}, "learning_rate nan is out of range"),
        ({"learning_rate": -1.0}, "learning_rate -1"),
        ({"noise": -0.1}, "noise -0.1"),
        ({"noise": math.inf}, "noise inf"),
        ({"validate_every": 0}, "validate_every 0"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"patience": 0}, "patience 0 is out of range; use at least 1"),
        ({"alpha": 1.5}, "alpha 1.5 is out of range; use 0 to 1"),
        ({"alpha": math.nan}, "alpha nan is out of range"),
        ({"class_ids": 4}, r"ClassId 4 is not in this run; it has 0 \(lenet_like@digits\)"),
        ({"class_ids": [0, 1]}, "2 ClassIds for 3 start points"),
    ],
)
def test_settings_that_cannot_be(multi, settings, message):
    with pytest.raises(PointError, match=message):
        optimize(*multi, IDS, **settings)


def test_an_embedding_needs_the_shape_it_is_to_fit(shapes):
    run, zoo = shapes
    latents = torch.zeros(2, run.recipe.network.embedding_size)
    with pytest.raises(PointError, match="which shape it is to fit; give `items`"):
        optimize(run, zoo, latents)
    with pytest.raises(PointError, match="`alpha` is the share of a teacher"):
        optimize(run, zoo, "chair-1", alpha=0.5)
    with pytest.raises(PointError, match="1 item for 2 start points"):
        optimize(run, zoo, latents, items=[3])
