"""A run whose zoo has grown since: its instances are found as they were, and nothing else is taken."""

import json
import shutil

import pytest
import torch

import netspace
import prepkit
from netspace.data import ZooMismatch, split_sizes
from netspace.recipe import load_recipe
from netspace.run.known_zoo import instances_of_run
from netspace.run.run import RunError
from prepkit.errors import ZooChanged
from prepkit.zoo.change.annotating import annotate
from prepkit.zoo.change.choosing import cut, drop
from prepkit.zoo.change.splitting import split

pytestmark = pytest.mark.usefixtures("one_thread")
NAME = "resnet8@digits"


def recipe(steps):
    small = {"batch.instances": 2, "batch.samples": 16, "training.validate_every": 1}
    return load_recipe("digits_single", {**small, "training.steps": steps})


@pytest.fixture(scope="module")
def begun(tmp_path_factory, small_zoo):
    """A run of one step on a zoo that has not grown yet, and the same run after a second step."""
    folder = tmp_path_factory.mktemp("begun")
    shutil.copytree(small_zoo("digits_single"), folder / "zoo")
    netspace.train(recipe(1), folder / "zoo", folder / "run", device="cpu")
    shutil.copytree(folder / "run", folder / "whole")
    netspace.train(recipe(2), folder / "zoo", folder / "whole", device="cpu", resume=True)
    return folder


@pytest.fixture
def place(begun, tmp_path):
    for name in ("zoo", "run"):
        shutil.copytree(begun / name, tmp_path / name)
    return tmp_path


def grow(root, *splits, name=NAME, **columns):
    with prepkit.ZooWriter(root, append=True) as writer:
        for number, split in enumerate(splits):
            torch.manual_seed(100 + number)
            writer.add(prepkit.architecture(name).build(), id=f"new-{number}", split=split, accuracy=0.5, **columns)


def record_of(folder, **changes):
    file = folder / "run.json"
    record = json.loads(file.read_text())
    record["zoo"] |= changes
    file.write_text(json.dumps({**record, "zoo": {key: value for key, value in record["zoo"].items() if value != "-"}}))


def test_its_instances_are_found_and_no_others(place, begun):
    grow(place / "zoo", "train", "validation", "extra", None, note="late")
    with pytest.warns(ZooChanged, match="4 instances that came since are left out"):
        zoo = netspace.open_run(place / "run").open_zoo(place / "zoo")
    before = prepkit.open_zoo(begun / "zoo", width=128)
    assert zoo.table.select(before.table.column_names).to_pylist() == before.table.to_pylist()
    assert torch.equal(zoo.preps(), before.preps())
    assert split_sizes(zoo) == {"test": 2, "train": 5, "validation": 2} == split_sizes(before)
    recorded = netspace.open_run(place / "run").record["zoo"]["splits"]
    assert {name: zoo.split(name).sha256 for name in recorded} == recorded


def test_training_goes_on_as_if_it_had_not_grown(place, begun):
    grow(place / "zoo", "train", "train", "validation")
    annotate(place / "zoo", {"id": ["new-0"], "seed": [3]}, card=False)
    with pytest.warns(ZooChanged, match="3 instances that came since are left out"):
        run = netspace.train(recipe(2), place / "zoo", place / "run", device="cpu", resume=True)
    whole = netspace.open_run(begun / "whole")
    for kind in ("latest", "best"):
        expected = whole.state(kind).tensors
        assert all(torch.equal(value, expected[key]) for key, value in run.state(kind).tensors.items())
    assert [line["step"] for line in run.metrics()] == [line["step"] for line in whole.metrics()]


def test_new_columns_are_no_other_zoo_but_other_values_are(place):
    annotate(place / "zoo", {"id": [f"{NAME}-train-0"], "robustness": [0.5]}, card=False)
    with pytest.warns(ZooChanged, match="its instances are as they were.$"):
        zoo = netspace.open_run(place / "run").open_zoo(place / "zoo")
    assert len(zoo) == 9
    annotate(place / "zoo", {"id": [f"{NAME}-train-0"], "accuracy": [0.123]}, card=False)
    with pytest.raises(ZooMismatch, match="does not begin with its instances as they were"):
        netspace.open_run(place / "run").open_zoo(place / "zoo")


def test_what_is_not_as_it_was_is_refused(place, begun):
    run = netspace.open_run(place / "run")
    grow(place / "zoo", "train", "train")
    drop(place / "zoo", ids=[f"{NAME}-test-0"], card=False)
    for act in (
        lambda: run.open_zoo(place / "zoo"),
        lambda: netspace.train(recipe(2), place / "zoo", place / "run", device="cpu", resume=True),
    ):
        with pytest.raises((ZooMismatch, RunError), match="begin with its instances as they were"):
            act()
    with prepkit.ZooWriter(place / "other", width=128, task=run.record["task"]) as writer:  # same ids, other values
        for row in prepkit.open_zoo(begun / "zoo").table.to_pylist():
            network = prepkit.architecture(NAME).build()
            writer.add(network, id=row["id"], split=row["split"], accuracy=row["accuracy"])
    with pytest.raises(ZooMismatch, match="does not begin"):
        run.open_zoo(place / "other")


def test_a_split_that_was_drawn_anew_is_refused_by_name(place):
    """Instances that were trained on would be reported as unseen."""
    split(place / "zoo", {"train": 0.5, "validation": 0.25, "test": 0.25}, seed=5, force=True, card=False)
    told = "Its splits were dealt in another way since, so instances that were trained on may stand among those for"
    with pytest.raises(ZooMismatch, match=told):
        netspace.open_run(place / "run").open_zoo(place / "zoo")
    with pytest.raises(RunError, match=told):
        netspace.train(recipe(2), place / "zoo", place / "run", device="cpu", resume=True)
    grow(place / "zoo", "train")  # what was appended to a zoo is no other way
    drop(place / "zoo", ids=[f"{NAME}-test-0"], card=False)
    noted = "drawn with seed 5, and 1 instance appended with a split"
    record_of(place / "run", split_rule="drawn with seed 5")
    assert prepkit.open_zoo(place / "zoo").split_rule == noted
    with pytest.raises(ZooMismatch, match="does not begin with its instances as they were"):
        netspace.open_run(place / "run").open_zoo(place / "zoo")


def test_cutting_gives_back_what_there_was(place):
    grow(place / "zoo", "train")
    ids = prepkit.open_zoo(place / "zoo").table["id"].to_pylist()[:-1]
    cut(place / "zoo", place / "cut", ids=ids, card=False)
    with pytest.warns(ZooChanged):
        assert len(netspace.open_run(place / "run").open_zoo(place / "cut")) == 9


def test_a_new_architecture_is_refused_for_training_alone(place):
    grow(place / "zoo", "train", name="lenet_like@digits")
    with pytest.warns(ZooChanged):
        assert len(netspace.open_run(place / "run").open_zoo(place / "zoo")) == 9
    with (
        pytest.warns(ZooChanged),
        pytest.raises(RunError, match="had no lenet_like@digits, and a space knows the architectures"),
    ):
        netspace.train(recipe(2), place / "zoo", place / "run", device="cpu", resume=True)


def test_runs_of_older_versions_noted_no_instances(place):
    record_of(place / "run", instances="-")
    assert len(netspace.open_run(place / "run").open_zoo(place / "zoo")) == 9
    grow(place / "zoo", "train")
    with pytest.raises(ZooMismatch, match="by an older version, which noted no instances; give a copy"):
        netspace.open_run(place / "run").open_zoo(place / "zoo")


@pytest.mark.parametrize(
    "noted", [3, {}, {"count": True}, {"count": 9, "columns": ["id", 3], "sha256": 0}, {"count": 99}]
)
def test_damaged_notes_find_nothing(place, noted):
    zoo = prepkit.open_zoo(place / "zoo")
    assert instances_of_run(zoo, {"sha256": "0" * 64, "instances": noted}, [NAME]) is None
