"""Boundaries: what is named along them is counted a second time by hand, on small zoos."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from experiment_samples import accuracy_by_hand, complete
from small_zoos import digits_zoo

import prepkit
from netspace.experiments import boundaries
from netspace.experiments.result import Result
from prepkit.support import bootstrap

pytestmark = pytest.mark.usefixtures("one_thread")


def class_id_of(step):
    """Return the only ClassId that is predicted at a step."""
    (name,) = step["architectures"]
    return list(prepkit.built_in_registry("digits").class_ids).index(name)


def test_boundaries(ready):
    subject = ready("digits_multi")
    run, zoo = subject.run, subject.zoo
    found = complete(boundaries.run(subject, pairs=2), subject.folder)
    space, test = run.space(), zoo.split("test")
    ids = test.class_ids().tolist()
    with torch.no_grad():
        latents = space.encode(test.preps())
        first, last = latents[ids.index(0)], latents[ids.index(3)]
        for class_id, name in enumerate(run.registry.class_ids):
            latent = first + (last - first) * class_id / 3
            named = int(space.classify(latent[None]).argmax())
            assert found.numbers["at_gamma"][name]["right"] == float(named == class_id)
    steps = found.numbers["along_the_line"]
    assert len(steps) == 13
    assert all(sum(one["share"] for one in step["architectures"].values()) == pytest.approx(1) for step in steps)
    ids = [class_id_of(step) for step in steps]
    assert found.claims[0].number == found.numbers["class_ids_in_order"] == float(ids == sorted(ids))


def in_order(space, zoo):
    """Make a space name ClassId i at gamma i / 3 between the two test instances."""
    space.encoder.conv4.weight.mul_(100)
    space.decoder.conv1.weight.mul_(10)
    test = zoo.split("test")
    first, last = space.encode(test.preps())[[test.class_ids().tolist().index(end) for end in (0, 3)]]
    points = torch.stack([first + (last - first) * step / 12 for step in range(13)])
    classifier = space.classifier
    features = torch.nn.functional.leaky_relu(classifier.conv(classifier.image.view(points)), 0.01).flatten(1)
    nearest = [[-((step / 12 - class_id / 3) ** 2) for class_id in range(4)] for step in range(13)]
    classifier.linear.weight.copy_((torch.linalg.pinv(features.double()) @ torch.tensor(nearest).double()).T)
    classifier.linear.bias.zero_()


def test_unseen_architectures_are_held_against_the_mean_of_the_trained(ready):
    subject = ready("digits_unseen", change=in_order)
    run, zoo, task = subject.run, subject.zoo, subject.task
    found = complete(boundaries.run(subject, pairs=8), subject.folder)
    assert found.numbers["pairs"] == 1, "there is one test instance of each boundary"
    space, test = run.space(), zoo.split("test")
    accuracies = []
    with torch.no_grad():
        first, last = space.encode(test.preps())[[test.class_ids().tolist().index(end) for end in (0, 3)]]
        for class_id in range(4):
            prep = space.decode((first + (last - first) * class_id / 3)[None])[0]
            architecture = run.registry.by_class_id(class_id)
            network = architecture.build_folded().eval()
            network.load_state_dict(architecture.layout.unpack(prep))
            accuracies.append(accuracy_by_hand(network, task))
    assert [one["accuracy"] for one in found.numbers["at_gamma"].values()] == pytest.approx(accuracies)
    assert [one["named"] for one in found.numbers["at_gamma"].values()] == [1, 1, 1, 1]
    mean, worst = (accuracies[0] + accuracies[3]) / 2, min(accuracies[0], accuracies[3])
    assert mean != worst, "an example that shows something"
    unseen = found.numbers["unseen"]
    assert list(unseen) == ["vanilla_cnn@digits", "resnet8@digits"]
    for one, accuracy in zip(unseen.values(), accuracies[1:3], strict=True):
        assert one == {"from_mean": pytest.approx(accuracy - mean), "from_worst": pytest.approx(accuracy - worst)}
    assert [claim.number for claim in found.claims] == pytest.approx([1, 1, mean - min(accuracies[1:3])])
    assert found.claims[-1].unit == "points"
    assert "vanilla_cnn on 1 of 1, resnet8 on 1 of 1" in found.text
    assert f"resnet8 {100 * (accuracies[2] - mean):+.1f} from the mean of the trained" in found.text


def line_of(class_ids, accuracies):
    """Return an Interpolation of these ClassIds and accuracies, both `[P, S]`."""
    names = dict.fromkeys(("one", "two", "three"))
    gammas = tuple(step / (len(class_ids[0]) - 1) for step in range(len(class_ids[0])))
    tensors = torch.tensor(accuracies, dtype=torch.float64), torch.tensor(class_ids)
    registry = SimpleNamespace(class_ids=names)
    return SimpleNamespace(gammas=gammas, registry=registry, values=lambda: tensors[0], class_ids=lambda: tensors[1])


def test_accuracy_counts_only_where_the_architecture_is_named():
    class_ids = [[0, 0, 1, 2, 2], [0, 1, 0, 1, 1], [0, 1, 1, 2, 1]]
    accuracies = [[0.5, 0.1, 0.8, 0.2, 0.9], [0.6, 0.3, 0.1, 0.4, 0.2], [0.7, 0.5, 0.6, 0.6, 0.3]]
    found = boundaries.at_gammas(line_of(class_ids, accuracies))
    assert [one["named"] for one in found.values()] == [3, 2, 1]
    assert [one["pairs"] for one in found.values()] == [3, 3, 3]
    assert [one["right"] for one in found.values()] == pytest.approx([1, 2 / 3, 1 / 3])
    assert [one["accuracy"] for one in found.values()] == pytest.approx([0.6, 0.7, 0.9])
    beside = boundaries.compared_with_trained(found, {"one": 0.7, "three": 0.8})
    assert beside == {"two": {"from_mean": pytest.approx(-0.05), "from_worst": pytest.approx(0.0)}}
    assert boundaries.claims_of(1.0, found, beside)[-1].number == pytest.approx(0.05)
    at_own = boundaries.accuracies_at_gammas(line_of(class_ids, accuracies), ["two", "three"])
    assert at_own["two"] == pytest.approx([0.8, math.nan, 0.6], nan_ok=True)
    assert at_own["three"] == pytest.approx([0.9, math.nan, math.nan], nan_ok=True)


def test_the_interval_of_the_largest_shortfall():
    unseen = {"two": [0.8, math.nan, 0.6], "three": [0.9, 0.5, 0.7]}
    trained = [([0.9, 0.95], ["a", "b"]), ([0.8, 0.7, 0.75], ["c", "d", "e"])]
    found = boundaries.shortfall_interval(unseen, trained, 0)
    groups = [([0.8, 0.6], range(2)), (unseen["three"], range(3)), *trained]
    draws = [bootstrap.drawn(np.array(runs), seed) for seed, (_, runs) in enumerate(groups)]
    slow = []
    for times in zip(*draws, strict=True):
        two, three, first, second = (
            np.average(values, weights=own) for (values, _), own in zip(groups, times, strict=True)
        )
        slow.append(max((first + second) / 2 - two, (first + second) / 2 - three))
    assert found == pytest.approx(np.quantile(slow, [0.025, 0.975]))


def test_a_line_that_names_one_class_throughout_has_no_order():
    accuracies = [[0.5] * 5] * 2
    one, other = line_of([[1] * 5, [2] * 5], accuracies), line_of([[1] * 5, [1, 1, 1, 2, 2]], accuracies)
    assert boundaries.names_one_class(one)
    assert not boundaries.names_one_class(other)
    claims = boundaries.claims_of(1.0, boundaries.at_gammas(one), None, None, boundaries.names_one_class(one))
    assert [claim.verdict for claim in claims] == ["not told", "not held"]
    assert claims[0].reason == "each line names one class throughout, so there is no order to keep"
    assert boundaries.claims_of(1.0, boundaries.at_gammas(other), None)[0].held


def test_an_unseen_architecture_that_is_never_named_does_not_hold():
    found = boundaries.at_gammas(line_of([[0, 0, 2]], [[0.5, 0.9, 0.5]]))
    assert math.isnan(found["two"]["accuracy"])
    unseen = {"other": {"from_mean": 0.0, "from_worst": 0.0}}
    unseen |= boundaries.compared_with_trained(found, {"one": 0.5, "three": 0.5})
    for order in (list(unseen), list(unseen)[::-1]):
        claims = boundaries.claims_of(1.0, found, {name: unseen[name] for name in order})
        assert [claim.held for claim in claims] == [True, False, False]
        assert claims[-1].reason == "two is never predicted at its own gamma"
    assert Result("b", "", "", tables=[boundaries.table_of({}, found, unseen)]).tables[0].rows[1][4:] == (
        None,
        "0 of 1",
        None,
        None,
    )


def test_no_instance_is_in_two_pairs_of_boundaries(tmp_path):
    names = ("lenet_like@digits", "vanilla_cnn@digits", "resnet14@digits")
    counts = {name: {"test": count} for name, count in zip(names, (4, 2, 3), strict=True)}
    zoo = prepkit.open_zoo(digits_zoo(tmp_path / "zoo", counts, teacher=False, height=88))
    for pairs, expected in ((2, 2), (8, 3)):
        first, second = boundaries.boundary_ids(zoo, 4, pairs, 0)
        assert len(set(first)) == len(set(second)) == len(first) == len(second) == expected
        assert all("lenet_like" in one and "resnet14" in other for one, other in zip(first, second, strict=True))


def test_steps_are_ends_gammas_of_the_loss_or_between():
    assert [boundaries.kind_of(step, 13)[0] for step in (0, 1, 4, 11, 12)] == ["e", "b", "g", "b", "e"]
