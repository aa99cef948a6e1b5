"""Tests of cut and drop: which instances stay, that each is as it was, and what a kill or a damaged shard leaves."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from folder_contents import files_of
from killed_changes import killed
from zoo_samples import write_zoo

from prepkit.api import open_zoo, verify
from prepkit.errors import OutputError, ZooError
from prepkit.zoo.change.choosing import chosen_rows, cut, drop
from prepkit.zoo.change.cleaning import clean
from prepkit.zoo.change.cutting import _ascending

TEACHER = "resnet8@digits"


@pytest.fixture(scope="module", params=["safetensors", "hdf5"])
def source(request, tmp_path_factory):
    """Seven instances m0 ... m6 with accuracies of 0.50 ... 0.56, in shards of several."""
    folder = tmp_path_factory.mktemp("source")
    return write_zoo(folder / "zoo", count=7, teacher=TEACHER, format=request.param)


@pytest.fixture
def root(source, tmp_path):
    shutil.copytree(source, tmp_path / "zoo")
    return tmp_path / "zoo"


def assert_same(part: Path, whole: Path, ids: list[str]) -> None:
    """Check that a zoo holds these instances of another, in its order, each as it was there."""
    some, all_of_them = open_zoo(part), open_zoo(whole)
    assert some.table["id"].to_pylist() == ids
    for id in ids:
        (prep, row), (expected, expected_row) = some[id], all_of_them[id]
        assert torch.equal(prep.values, expected.values)
        assert {**row, "shard": 0, "row": 0} == {**expected_row, "shard": 0, "row": 0}
    assert verify(part).ok
    assert some.manifest.task == all_of_them.manifest.task
    assert some.manifest.teacher == all_of_them.manifest.teacher


def test_cut_by_a_condition_and_by_ids(root, tmp_path):
    before = files_of(root)
    written = cut(root, tmp_path / "good", where="accuracy > 0.525", card=False)
    assert_same(tmp_path / "good", root, ["m3", "m4", "m5", "m6"])
    assert written.manifest.name == "good"
    assert written.manifest.splits == {"test": 1, "train": 1}
    origin = written.manifest.provenance["cut"]
    assert (origin["name"], origin["instances"], origin["where"]) == ("zoo", 7, "accuracy > 0.525")
    cut(root, tmp_path / "named", ids=["m5", "m0", "m4"], card=False)
    assert_same(tmp_path / "named", root, ["m0", "m4", "m5"])
    cut(root, tmp_path / "both", ids=["m5", "m0"], where="accuracy > 0.5", name="other", card=False)
    assert_same(tmp_path / "both", root, ["m5"])
    assert open_zoo(tmp_path / "both").name == "other"
    assert files_of(root) == before


def test_a_shard_that_stays_whole_keeps_its_bytes(root, tmp_path):
    rows = open_zoo(root).table.to_pylist()
    ids = [row["id"] for row in rows if row["shard"] == rows[0]["shard"]]
    cut(root, tmp_path / "one", ids=ids, card=False)
    (shard,) = open_zoo(tmp_path / "one").manifest.shards
    assert shard.sha256 == open_zoo(root).manifest.shards[rows[0]["shard"]].sha256


def test_drop_in_place(root, source):
    shards = {shard.path for shard in open_zoo(root).manifest.shards}
    assert drop(root, where="accuracy < 0.525", ids=["m1", "m0"], dry_run=True).instances == 2
    assert_same(root, source, [f"m{n}" for n in range(7)])
    removal = drop(root, ids=["m1", "m0"], card=False)
    assert (removal.instances, removal.left) == (2, 5)
    assert_same(root, source, ["m2", "m3", "m4", "m5", "m6"])
    after = {shard.path for shard in open_zoo(root).manifest.shards}
    assert len(after - shards) == removal.rewritten
    assert after & shards
    (record,) = open_zoo(root).manifest.provenance["drops"]
    assert (record["instances"], record["ids"]) == (2, True)
    drop(root, where="accuracy > 0.555", card=False)
    assert len(open_zoo(root).manifest.provenance["drops"]) == 2
    clean(root)
    assert_same(root, source, ["m2", "m3", "m4", "m5"])


def test_the_card_tells_of_what_is_left(root):
    drop(root, ids=["m0"])
    assert "6 " in (root / "README.md").read_text()


def test_whoever_reads_the_zoo_goes_on(root):
    zoo = open_zoo(root)
    drop(root, ids=["m0"], card=False)
    assert len(zoo.preps()) == 7


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({}, "name the instances by a condition, by ids, or by both."),
        ({"where": "accuracy > 2"}, "'zoo': no instance is chosen"),
        ({"ids": []}, "'zoo': no instance is chosen"),
        ({"ids": ["m0", "m9", "q"]}, "'m9', 'q' are not ids of the zoo's 7 instances. Did you mean 'm6'?"),
        ({"where": "acuracy > 2"}, "acuracy"),
        ({"where": "accuracy > 0.525", "ids": ["m0"]}, "no instance is chosen"),
    ],
)
def test_mistakes_write_nothing(root, tmp_path, monkeypatch, choice, message):
    monkeypatch.chdir(tmp_path)
    before = files_of(tmp_path)
    for change in (lambda: cut("zoo", "new", **choice), lambda: drop("zoo", **choice)):
        with pytest.raises(ZooError) as raised:
            change()
        assert message in str(raised.value)
    assert files_of(tmp_path) == before


def test_a_zoo_keeps_an_instance(root):
    with pytest.raises(ZooError, match="all 7 instances would go; delete the folder, or choose fewer"):
        drop(root, where="accuracy > 0")


def test_the_target_is_new_and_outside(root, tmp_path):
    with pytest.raises(OutputError, match="exists already"):
        cut(root, root, ids=["m0"])
    with pytest.raises(OutputError, match="lies in the zoo"):
        cut(root, root / "in", ids=["m0"])


def test_a_damaged_shard_gets_no_right_sum(root, tmp_path):
    shard = open_zoo(root).manifest.shards[0]
    content = bytearray((root / shard.path).read_bytes())
    content[-5] ^= 1
    (root / shard.path).write_bytes(content)
    for change in (lambda: cut(root, tmp_path / "new", ids=["m0"]), lambda: drop(root, ids=["m0"])):
        with pytest.raises(ZooError, match="damaged, its content does not match"):
            change()
    assert not (tmp_path / "new").exists()
    assert len(open_zoo(root)) == 7


def drop_one(root: Path) -> None:
    drop(root, ids=["m0"], card=False)


def test_killed_at_any_call_all_instances_are_there_or_one_is_gone(tmp_path):
    root = write_zoo(tmp_path / "zoo", count=7)
    lengths = set()
    for copy in killed(drop_one, root, tmp_path):
        lengths.add(len(open_zoo(copy)))
        if len(open_zoo(copy)) == 7:
            drop_one(copy)
        assert_same(copy, root, ["m1", "m2", "m3", "m4", "m5", "m6"])
        clean(copy)
        assert not [name for name in files_of(copy) if name.startswith(".")]
    assert lengths == {6, 7}


def test_ids_may_stand_twice_and_in_any_order(root):
    table = open_zoo(root).table
    assert chosen_rows(table, None, ["m5", "m0", "m5", "m3"]).tolist() == [0, 3, 5]
    assert chosen_rows(table, "id != 'm3'", ["m5", "m3", "m0"]).tolist() == [0, 5]
    for numbers in ([4], [3, 1, 3, 2, 1], list(range(50)), [0, 0]):
        assert _ascending(np.array(numbers)).tolist() == np.unique(numbers).tolist()
