"""Accuracy, PReps and identity of unseen instances, compared with the same measures of one network at a time."""

import json
from dataclasses import replace
from functools import lru_cache
from itertools import permutations

import numpy as np
import pytest
import scipy.stats
import torch
from small_zoos import DIGITS, digits_zoo
from torch.nn.functional import kl_div, log_softmax
from untrained import subject_of, untrained_run

import prepkit
from netspace.data import ZooMismatch
from netspace.experiments import accuracy, latent_map, lines, optimisation, preps
from netspace.experiments.beyond import identity
from netspace.experiments.result import Result
from netspace.run.run import State

pytestmark = pytest.mark.usefixtures("one_thread")
COUNTS = {"train": 3, "validation": 1, "test": 5}


class ReadyRun:
    """A run on a small zoo, on which experiments are run."""

    def __init__(self, root, setting, zoo, **changes):
        self.run = untrained_run(root / setting, f"digits_{setting}", zoo, **changes)
        space = self.run.space()
        with torch.no_grad():
            space.decoder.scale.mul_(5)  # or all predicted networks would name one class for every image
        self.run.save("best", State(8, space.state_dict(), {"scores": {}}))
        self.root, folder = root, root / "pictures"
        folder.mkdir()
        self.subject = subject_of(self.run, folder)
        self.zoo = self.subject.zoo

    def __call__(self, experiment, **settings):
        folder = self.subject.folder
        result = experiment.run(replace(self.subject, **settings))
        assert all((folder / picture.file).read_bytes().startswith(b"\x89PNG") for picture in result.pictures)
        assert repr(Result.load(result.save(folder))) == repr(result)  # a NaN is not equal to itself
        return result


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    root = tmp_path_factory.mktemp("single")
    zoo = digits_zoo(root / "zoo", {"resnet8@digits": COUNTS}, teacher=False, single=True)
    return ReadyRun(root, "single", zoo)


@pytest.fixture(scope="module")
def multi(tmp_path_factory):
    root = tmp_path_factory.mktemp("multi")
    names = ("lenet_like@digits", "vanilla_cnn@digits", "resnet8@digits", "resnet14@digits")
    return ReadyRun(root, "multi", digits_zoo(root / "zoo", dict.fromkeys(names, COUNTS), height=88))


@lru_cache
def pairs_of(ready, split="test"):
    """Return the table row, the target network, the predicted network and the predicted PRep of each instance."""
    space, view = ready.run.space(), ready.zoo.split(split)
    found = []
    for row in range(len(view)):
        with torch.no_grad():
            latent = space.encode(view.preps([row]))
            class_id = int(space.classify(latent).argmax()) if space.num_architectures else 0
            prep = space.decode(latent)[0]
        architecture = ready.run.registry.by_class_id(class_id)
        network = architecture.build_folded().eval()
        network.load_state_dict(architecture.layout.unpack(prep))
        found.append((view.metadata(row) | {"predicted_class_id": class_id}, view.network(row), network, prep))
    return found


@lru_cache
def images_and_labels():
    return prepkit.load_task(DIGITS).normalised("test")


def logits_of(network):
    with torch.no_grad():
        return network(images_and_labels()[0])


def accuracy_of(network):
    _, labels = images_and_labels()
    return float((logits_of(network).argmax(1) == labels).double().mean())


# Accuracy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["single", "multi"])
def test_accuracy(setting, request):
    ready = request.getfixturevalue(setting)
    told = []
    result = ready(accuracy, progress=told.append)
    assert len(told) == 2
    for split, numbers in (("test", result.numbers), ("train", result.numbers["training_instances"])):
        found = pairs_of(ready, split)
        target, predicted = (np.array([accuracy_of(one[place]) for one in found]) for place in (1, 2))
        assert numbers["instances"] == len(found)
        assert numbers["target_accuracy"] == pytest.approx(target.mean())
        assert numbers["predicted_accuracy"] == pytest.approx(predicted.mean())
        assert numbers["mean_difference"] == pytest.approx(np.abs(target - predicted).mean())
        assert numbers["largest_difference"] == pytest.approx(np.abs(target - predicted).max())
        if np.ptp(target) and np.ptp(predicted):
            assert numbers["spearman"] == pytest.approx(scipy.stats.spearmanr(target, predicted).statistic)
            assert numbers["pearson"] == pytest.approx(np.corrcoef(target, predicted)[0, 1])
        right = [row["class_id"] == row["predicted_class_id"] for row, *_ in found]
        assert numbers["class_id_accuracy"] == pytest.approx(np.mean(right))
        if split == "train":
            guess = np.sort(target)[(len(target) - 1) // 2]  # torch's median: of two in the middle the lower
        for name, own in numbers["by_architecture"].items():
            of_name = [place for place, one in enumerate(found) if one[0]["architecture"] == name]
            assert own["mean_difference"] == pytest.approx(np.abs(target - predicted)[of_name].mean())
    assert result.numbers["spearman"] is not None  # the small zoo shows what is tested
    test_target = np.array([accuracy_of(one[1]) for one in pairs_of(ready)])
    assert result.numbers["of_constant_guess"] == pytest.approx(np.abs(test_target - guess).mean())
    claims = {claim.bound: claim for claim in result.claims}
    test = pairs_of(ready)
    lost = {}
    for row, target, predicted, _ in test:
        lost.setdefault(row["architecture"], []).append(accuracy_of(target) - accuracy_of(predicted))
    worst = max(np.mean(one) for one in lost.values())
    mean = result.numbers["mean_difference"]
    assert claims["<= 0.03"].number == pytest.approx(mean if setting == "single" else worst)
    assert set(claims) == {"<= 0.03", ">= 0.95" if setting == "single" else "== 1"}
    assert [row[0] for row in result.tables[1].rows] == ready.zoo.split("test").table["id"].to_pylist()


def test_pictures_and_numbers_are_the_same_every_time(single):
    first = single(accuracy, seed=3)
    picture = (single.root / "pictures" / first.pictures[0].file).read_bytes()
    assert repr(single(accuracy, seed=3)) == repr(first)
    assert (single.root / "pictures" / first.pictures[0].file).read_bytes() == picture


# PReps ------------------------------------------------------------------------------------------------------------


def written_interval(groups):
    """The middle 95 % of the least of the groups' means, when the instances of each are drawn 40,000 times."""
    chance = np.random.RandomState(5)
    least = np.full(40_000, np.inf)
    for values in groups:
        drawn = chance.choice(np.array(values), (len(least), len(values)))
        least = np.where(drawn.mean(1) < least, drawn.mean(1), least)
    least.sort()
    return least[1_000], least[39_000]


@pytest.mark.parametrize("setting", ["single", "multi"])
def test_prep_distances(setting, request):
    ready = request.getfixturevalue(setting)
    result = ready(preps)
    found = pairs_of(ready)
    view = ready.zoo.split("test")
    means, apart_of = [], []
    for name, numbers in result.numbers["by_architecture"].items():
        rows = [row for row, one in enumerate(found) if one[0]["architecture"] == name]
        total = prepkit.architecture(name).num_parameters
        target = [view.preps([row])[0].flatten()[:total].double() for row in rows]
        predicted = [found[row][3].flatten()[:total].double() for row in rows]
        pairs = list(permutations(range(len(rows)), 2))
        to_target = [float((p - t).norm() / t.norm()) for p, t in zip(predicted, target, strict=True)]
        means.append(np.mean(to_target))
        apart_of.append(to_target)
        assert numbers["to_target"] == pytest.approx(np.mean(to_target), rel=1e-5)
        for key, first, second in (
            ("to_other_targets", predicted, target),
            ("among_targets", target, target),
            ("among_predicted", predicted, predicted),
        ):
            apart = [float((first[i] - second[j]).norm() / second[j].norm()) for i, j in pairs]
            # the reference sees one instance at a time; matrix products round in another order
            assert numbers[key] == pytest.approx(np.mean(apart), rel=1e-3)
        cosines = [torch.nn.functional.cosine_similarity(p, t, 0) for p, t in zip(predicted, target, strict=True)]
        assert numbers["cosine"] == pytest.approx(float(torch.stack(cosines).mean()), abs=1e-5)
        ratios = [float(p.norm() / t.norm()) for p, t in zip(predicted, target, strict=True)]
        assert numbers["norm_ratio"] == pytest.approx(np.mean(ratios), rel=1e-5)
    assert result.claims[0].number == pytest.approx(min(means), rel=1e-5)
    low, high = result.claims[0].interval
    assert low <= min(means) <= high or len(means) > 1  # the least of several means may lie outside
    assert (low, high) == pytest.approx(written_interval(apart_of), abs=0.05 * (high - low))


def test_one_network_for_all_targets_tells_nothing(single, monkeypatch):
    """Predictions are 0.04 apart where targets are 1.43 apart: their distance to the targets is no property of each."""
    measured = preps.measures

    def collapsed(*values):
        return measured(*values) | {"among_predicted": 0.04, "among_targets": 1.43}

    monkeypatch.setattr(preps, "measures", collapsed)
    (claim,) = single(preps).claims
    assert claim.verdict == "not told"
    assert claim.reason == (
        "predictions of resnet8 are nearly one network for all targets: they are 0.04 apart, where the targets are "
        "1.4 apart"
    )
    assert preps.collapsed({"a": {"among_predicted": 0.144, "among_targets": 1.43}}) == ""
    assert preps.collapsed({"a": {"among_predicted": np.nan, "among_targets": np.nan}}) == ""


def test_examples_are_the_worst_the_middle_and_the_best(single, multi):
    for ready, expected in ((single, [0.0, 0.2, 0.4]), (multi, [0.2] * 4)):  # accuracy in small zoos is the number / 10
        split = ready.subject.predicted()
        chosen = preps.examples(split)
        assert [split.view.metadata(row)["accuracy"] for row in chosen] == pytest.approx(expected)
    assert [split.view.metadata(row)["class_id"] for row in chosen] == [0, 1, 2, 3]


# Identity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["single", "multi"])
@pytest.mark.parametrize("split", ["test", "train"])
def test_identity(setting, split, request):
    ready = request.getfixturevalue(setting)
    result = ready(identity)
    found = pairs_of(ready, split)
    by_architecture = result.numbers["by_architecture" if split == "test" else "training_instances"]
    claimed = {"preferred": [], "agreement": [], "kl": []}
    for name, numbers in by_architecture.items():
        own = [one for one in found if one[0]["architecture"] == name]
        target, predicted = ([logits_of(one[place]).double() for one in own] for place in (1, 2))
        count = range(len(own))
        agreement = [
            [float((predicted[i].argmax(1) == target[j].argmax(1)).double().mean()) for j in count] for i in count
        ]
        divergence = [
            [
                float(
                    kl_div(
                        log_softmax(predicted[i], 1), log_softmax(target[j], 1), reduction="batchmean", log_target=True
                    )
                )
                for j in count
            ]
            for i in count
        ]
        pairs = list(permutations(count, 2))
        for kind, likeness, sign in (("agreement", np.array(agreement), 1), ("kl", -np.array(divergence), -1)):
            measured = numbers[kind]
            near = {"rel": 1e-3, "abs": 1e-5}  # float32 outputs, one network at a time
            assert measured["own"] == pytest.approx(sign * likeness.diagonal().mean(), **near)
            assert measured["others"] == pytest.approx(sign * np.mean([likeness[i, j] for i, j in pairs]), **near)
            if kind == "agreement":  # of whole numbers of images; divergences may be equal but for rounding
                wins = [np.sign(round(360 * (likeness[i, i] - likeness[i, j]))) for i, j in pairs]
                assert measured["own_preferred"] == pytest.approx(np.mean(wins) / 2 + 0.5)
                both = [likeness[i, i] + likeness[j, j] - likeness[i, j] - likeness[j, i] for i, j in pairs]
                assert measured["paired"] == pytest.approx(np.mean(np.sign(np.round(both, 6))) / 2 + 0.5)
                claimed["preferred"].append(measured["own_preferred"])
            claimed[kind].append(measured["paired_nearest"])
        among = [float((target[i].argmax(1) == target[j].argmax(1)).double().mean()) for i, j in pairs]
        assert numbers["agreement_among_targets"] == pytest.approx(np.mean(among))
    if split == "test":
        for claim, numbers in zip(result.claims, claimed.values(), strict=True):
            assert claim.number == pytest.approx(np.mean(numbers))
            low, high = claim.interval
            assert low <= claim.number <= high
    assert {row[0] for row in result.tables[0].rows} == {"unseen", "training"}


def test_instances_of_one_training_run_have_no_interval(single, monkeypatch):
    monkeypatch.setattr(accuracy, "runs_of", lambda view: ["one"] * len(view))
    found = single(accuracy)
    assert found.numbers["spearman"] is not None
    assert "the test instances are all of one training run, so there are no other draws of them" in found.text
    assert [claim.verdict for claim in found.claims] == ["undecided"] * 2


# All of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("experiment", [accuracy, preps, identity])
def test_one_instance_of_each_architecture_is_enough(experiment, small_zoo, tmp_path):
    """Without pairs, measures of pairs are unknown and their claims do not hold; they are no errors."""
    result = ReadyRun(tmp_path, "multi", small_zoo("digits_multi"))(experiment)
    assert json.loads((tmp_path / "pictures" / f"{result.name}.json").read_text())["numbers"]
    if experiment is identity:
        assert not any(claim.held for claim in result.claims)
        assert set(result.numbers["means"]["test"]["kl"].values()) == {None}


def test_signals_have_preps_too(small_zoo, tmp_path):
    run = untrained_run(tmp_path / "run", "chairs_mini", small_zoo("chairs_mini"))
    result = preps.run(subject_of(run, tmp_path))
    assert result.numbers["by_architecture"]["sine_mlp@sdf_small"]["instances"] == 1


@pytest.mark.parametrize("column", ["recorded", "missing", "empty", "per cent", "text"])
def test_accuracies_that_are_not_recorded_as_shares_are_measured(tmp_path, column):
    """A zoo of the user's may record none; one in per cent would be a gain of thousands of points."""
    count = 4
    values = {"recorded": [0.5] * count, "empty": [0.5, None] * 2, "per cent": [10, 20, 30, 40], "text": ["10 %"] * 4}
    registry = prepkit.Registry([prepkit.architecture("resnet8@digits")])
    torch.manual_seed(0)
    with prepkit.ZooWriter(tmp_path / "zoo", width=128, task=DIGITS, registry=registry) as writer:
        for row in range(count):
            own = values[column][row] if column in values else None
            recorded = {} if own is None else {"accuracy": own}
            network = registry["resnet8@digits"].build()
            writer.add(network, id=str(row), split=("train", "validation", "test", "test")[row], **recorded)
        writer.set_teacher(prepkit.architecture("resnet20@digits").build())
    run = untrained_run(tmp_path / "run", "digits_single", tmp_path / "zoo")
    subject = subject_of(run, tmp_path)
    images, labels = subject.task.normalised("test")
    expected = []
    for row in (2, 3):
        with torch.no_grad():
            expected.append(float((subject.zoo.network(row)(images).argmax(1) == labels).double().mean()))
    found = subject.accuracies(subject.view("test"))
    assert found == ([0.5, 0.5] if column == "recorded" else pytest.approx(expected))
    if column == "text":
        assert len(lines.run(subject, pairs=1, steps=3).claims) == 5
        assert len(optimisation.run(subject, starts=1, steps=1).claims) == 3
        assert latent_map.run(subject).numbers["instances"] == count


def test_an_empty_split_is_refused(single):
    with pytest.raises(ZooMismatch, match="no instances in the split 'test'"):
        replace(single.subject, zoo=single.zoo.select(range(3))).predicted()
