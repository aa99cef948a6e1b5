"""Split hygiene: a clean zoo is proved clean, and each kind of leak is counted."""

import pytest
import torch
from small_zoos import CHAIRS, DIGITS, digits_zoo
from untrained import untrained_run

import prepkit
from netspace.experiments.beyond import hygiene
from netspace.experiments.running import ExperimentRunner

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_clean_zoo_is_proved_clean(tmp_path, small_zoo):
    for name, kinds in (("digits_multi", {"id", "values", "images"}), ("chairs_mini", {"id", "item", "values"})):
        run = untrained_run(tmp_path / name, name, small_zoo(name))
        result = ExperimentRunner(run, "cpu").result("hygiene")
        assert set(result.numbers["shared"]) == kinds
        assert all(set(of.values()) == {0} for of in result.numbers["shared"].values())
        assert [one.held for one in result.claims] == [True]


def test_every_leak_is_counted(tmp_path):
    """One instance is in train and test under two ids; one run and seed gave a training and a test instance."""
    torch.manual_seed(0)
    registry = prepkit.Registry([prepkit.architecture("resnet8@digits")])
    rows = [("a", "train", "r0", 1), ("b", "train", "r1", 2), ("c", "validation", "r2", 3), ("d", "test", "r3", 4)]
    with prepkit.ZooWriter(tmp_path / "zoo", width=128, task=DIGITS, registry=registry) as writer:
        networks = [registry.by_class_id(0).build() for _ in rows]
        for (id, split, made_by, seed), network in zip(rows, networks, strict=True):
            writer.add(network, id=id, split=split, run=made_by, seed=seed)
        writer.add(networks[0], id="a-again", split="test", run="r4", seed=5)
        writer.add(registry.by_class_id(0).build(), id="e", split="test", run="r1", seed=2)
        writer.add(registry.by_class_id(0).build(), id="f", split="test", run="r2", seed=6)
    run = untrained_run(tmp_path / "run", "digits_single", tmp_path / "zoo")
    result = ExperimentRunner(run, "cpu").result("hygiene")
    assert "does not record" not in result.text
    none, train = {"train": 0, "validation": 0}, {"train": 1, "validation": 0}
    shared = {"id": none, "run": {"train": 1, "validation": 1}, "seed": train, "values": train, "images": none}
    assert result.numbers["shared"] == shared
    assert [(one.number, one.held) for one in result.claims] == [(4, False)]
    rows = {row[0]: row[1:] for row in result.tables[0].rows}
    assert rows["training runs"] == (4, 1, 1)


def test_images_that_chose_the_best_state_count(tmp_path):
    """Without validation images the best state is chosen on test images."""
    task = {"kind": "images", "dataset": "digits", "split": {"seed": 0, "test": 60}}
    counts = {"resnet8@digits": {"train": 2, "validation": 1, "test": 1}}
    zoo = digits_zoo(tmp_path / "zoo", counts, teacher=False, single=True, task=task)
    result = ExperimentRunner(untrained_run(tmp_path / "run", "digits_single", zoo), "cpu").result("hygiene")
    assert result.numbers["shared"]["images"]["validation"] == result.tables[0].rows[-1][1] > 50
    assert not result.claims[0].held
    assert "does not record training runs, seeds" in result.text


def test_shapes_that_were_seen_are_counted(tmp_path):
    registry = prepkit.Registry([prepkit.architecture("sine_mlp@sdf_small")])
    with prepkit.ZooWriter(tmp_path / "zoo", width=64, task=CHAIRS, registry=registry) as writer:
        for id, split, item in (("a", "train", 0), ("b", "train", 1), ("c", "test", 1), ("d", "test", 2)):
            writer.add(registry.by_class_id(0).build(), id=id, split=split, item=item)
    result = ExperimentRunner(untrained_run(tmp_path / "run", "chairs_mini", tmp_path / "zoo"), "cpu").result("hygiene")
    assert result.numbers["shared"]["item"] == {"train": 1, "validation": 0}
    assert not result.claims[0].held


def test_an_unseen_architecture_that_was_chosen_by_is_found(tmp_path, small_zoo):
    run = untrained_run(tmp_path / "run", "digits_unseen", small_zoo("digits_unseen"))
    clean = hygiene.between_boundaries(run, prepkit.open_zoo(small_zoo("digits_unseen")))
    counts = {"lenet_like@digits": {"train": 1}, "resnet8@digits": {"validation": 1, "test": 1}}
    assert clean == []
    assert hygiene.between_boundaries(run, prepkit.open_zoo(digits_zoo(tmp_path / "zoo", counts, height=88))) == [
        "resnet8@digits-validation-0"
    ]
