"""Novelty of the networks that a space writes: what they are, and that copies among them are found."""

import math

import pytest
import torch
from untrained import subject_of, untrained_run

from netspace.experiments.beyond import novelty
from netspace.experiments.result import Result
from prepkit.auditing.novelty import Made

pytestmark = pytest.mark.usefixtures("one_thread")
FEW = {"networks": 4, "controls": 1, "steps": 1}


@pytest.fixture
def subject(request, small_zoo, tmp_path):
    run = untrained_run(tmp_path / "run", request.param, small_zoo(request.param))
    return subject_of(run, tmp_path)


def of_group(result, name):
    return {row["id"]: row for row in result.numbers["groups"][name]["networks"]}


@pytest.mark.parametrize("subject", ["digits_single"], indirect=True)
def test_one_architecture(subject, tmp_path):
    result = novelty.run(subject, **FEW)
    assert repr(Result.load(result.save(tmp_path))) == repr(result)
    assert (tmp_path / result.pictures[0].file).read_bytes().startswith(b"\x89PNG")
    between = of_group(result, novelty.BETWEEN)
    assert len(between) == 4
    assert list(of_group(result, novelty.OF_UNSEEN)) == [f"for {id_}" for id_ in subject.predicted("test").ids]
    # Half-way means half-way between the embeddings of the two that are named.
    id_, row = next(iter(between.items()))
    ends = id_.split(" and ")
    assert all("-train-" in end for end in ends)
    space, zoo = subject.run.space(), subject.zoo
    with torch.no_grad():
        latents = torch.cat([space.encode(zoo.preps([zoo.index(end)])) for end in ends])
        prep = space.decode(latents.mean(0, keepdim=True))
    network = zoo.registry.by_class_id(0).build_folded()
    layout = zoo.registry.by_class_id(0).layout
    network.load_state_dict(layout.unpack(prep[0]))
    images, labels = subject.task.normalised("test")
    with torch.no_grad():
        assert row["accuracy"] == pytest.approx(float((network.eval()(images).argmax(1) == labels).float().mean()))
    table = {row[0]: row for row in result.tables[0].rows}
    assert table["noise of 10 %"][result.tables[0].columns.index("distance of weights")] == pytest.approx(0.1, abs=1e-3)
    assert table["best training network"][-1] > 0
    assert [claim.verdict for claim in result.claims][:1] == ["held"]


@pytest.mark.parametrize("subject", ["digits_single"], indirect=True)
def test_copies_are_found(subject, monkeypatch):
    """A space that gives training networks back, unchanged or with noise, has made nothing new."""
    view = subject.zoo.split("train")
    preps = view.preps()[[0, 1]]
    copies = Made(subject.run.registry, [0, 0], torch.stack([preps[0], 1.5 * preps[1]]), ["copy", "other"])
    monkeypatch.setattr(novelty, "_from_new_points", lambda *arguments: {novelty.BETWEEN: copies})
    result = novelty.run(subject, **FEW)
    (found, gain) = result.claims
    assert result.numbers["groups"][novelty.BETWEEN]["copies"] == ["copy"]
    assert found.verdict == "not held"
    assert found.number == pytest.approx(1 / 4)  # of two between and two for unseen instances
    assert gain.text.startswith("Networks half-way between training instances: accuracy minus that of the best control")
    assert "1 of 2 networks is a copy of a training network (copy)" in result.text


@pytest.mark.slow
@pytest.mark.parametrize("subject", ["digits_unseen"], indirect=True)
def test_unseen_architectures_have_no_training_network_of_their_own(subject):
    subject.space.classifier.linear.bias.data[1] = 1e3
    result = novelty.run(subject, **FEW)
    sampled = of_group(result, novelty.SAMPLED).values()
    assert {row["architecture"] for row in sampled} == {"vanilla_cnn@digits"}
    assert all("distance" not in row and row["overlap"] > 0 for row in sampled)
    assert len(of_group(result, novelty.OPTIMISED)) == 2  # there is one test instance of each architecture
    assert "No training network has the tensors of vanilla_cnn@digits" in result.text


@pytest.mark.slow
@pytest.mark.parametrize("subject", ["digits_multi", "chairs_mini"], indirect=True)
def test_other_settings(subject):
    result = novelty.run(subject, **FEW)
    groups = result.numbers["groups"]
    names = [novelty.OF_TRAINING, novelty.OF_UNSEEN]
    names += [novelty.BETWEEN] if subject.signals else [novelty.SAMPLED, novelty.OPTIMISED]
    assert [name for name, group in groups.items() if group["is_generated"]] == names
    for group in groups.values():
        for row in group["networks"]:
            assert 0 <= row["overlap"] <= 1
            assert math.isfinite(row["distance"])
            assert ("accuracy" in row) != subject.signals
    assert len(result.claims) == (1 if subject.signals else 2)
