"""A part of a zoo that is pulled is a zoo of just these instances, and says what it was cut from."""

from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from pull_samples import add, assert_same_instances, files_of, flip, shards_with
from pushed_zoos import write_zoo

from prepkit.api import open_zoo, verify
from prepkit.errors import OutputError, WhereError, ZooError
from prepkit.hub._target import WORK
from prepkit.hub.pull import pull
from prepkit.zoo.format.manifest import read_manifest, write_manifest
from prepkit.zoo.format.tables import write_table_at_once

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("asked", "view"),
    [
        ({"where": "accuracy >= 0.3"}, lambda zoo: zoo.where("accuracy >= 0.3")),
        ({"split": "train"}, lambda zoo: zoo.split("train")),
        ({"split": ["train", "test"], "where": "id != 'm4'"}, lambda zoo: zoo.where("id != 'm4'")),
        ({"architecture": "vanilla_cnn@digits"}, lambda zoo: zoo.where("class_id == 1")),
        (
            {"where": "accuracy < 0.4", "split": "train", "architecture": "lenet_like@digits"},
            lambda zoo: zoo.split("train").where("accuracy < 0.4"),
        ),
        ({"where": "id == 'm4'"}, lambda zoo: zoo.where("id == 'm4'")),
        ({"where": "id in ('m0', 'm1', 'm2', 'm3', 'm4', 'm5')"}, lambda zoo: zoo),
    ],
)
def test_a_part_is_a_zoo_of_just_these_instances(hub, source, tmp_path, asked, view):
    add(hub, source)
    whole = open_zoo(source)
    meant = view(whole)
    states = []
    root = pull("me/zoo", tmp_path / "part", **asked, progress=states.append)
    part = open_zoo(root)
    assert_same_instances(part, meant)
    assert verify(root).ok
    assert verify(root).notes == ()
    assert part.manifest.shape == whole.manifest.shape
    assert part.manifest.architectures == whole.manifest.architectures
    assert part.manifest.teacher == whole.manifest.teacher
    assert part.manifest.splits == {
        name: meant.table["split"].to_pylist().count(name)
        for name in ("test", "train")
        if name in meant.table["split"].to_pylist()
    }
    needed = shards_with(meant)
    served = hub.served()
    assert {path for path in served if path.startswith("shards/")} == needed
    teacher = whole.manifest.teacher.path
    assert sum(served.values()) == sum(
        (source / path).stat().st_size for path in {*needed, teacher, "zoo.json", whole.manifest.table.path}
    )
    assert states[-1].bytes == states[-1].total_bytes == sum((source / path).stat().st_size for path in needed)
    assert states[-1].instances == states[-1].total_instances == len(meant)
    assert not (root / WORK).exists()


def test_a_part_says_what_it_was_cut_from(hub, source, tmp_path):
    commit = add(hub, source)
    part = pull("me/zoo", tmp_path / "part", split="train", where="accuracy > 0.1")
    card = (part / "README.md").read_text()
    assert "| train |" in card
    assert "| test |" not in card  # the card of the whole zoo has both
    about = read_manifest(part).provenance["cut"]
    manifest = read_manifest(source)
    assert about == {
        "repo": "me/zoo",
        "commit": commit,
        "where": "accuracy > 0.1",
        "splits": ["train"],
        "architectures": [],
        "name": "zoo",
        "sha256": manifest.to_dict()["sha256"],
        "instances": 6,
        "license": "mit",
        "provenance": dict(manifest.provenance),
    }


@pytest.mark.parametrize("settings", [{"format": "hdf5"}, {"dtype": "float64"}, {"width": 64}])
def test_a_part_of_another_kind_of_zoo(hub, tmp_path, settings):
    root = write_zoo(tmp_path / "source", count=10, shard_bytes=200_000, **settings)
    hub.add("me/zoo", files_of(root))
    part = open_zoo(pull("me/zoo", tmp_path / "part", where="accuracy < 0.25 or accuracy > 0.65"))
    assert len(part) == 6
    assert_same_instances(part, open_zoo(root).where("accuracy < 0.25 or accuracy > 0.65"))
    assert verify(tmp_path / "part").ok


def test_rows_of_a_table_in_any_order(hub, tmp_path):
    """The table of a merged or edited zoo need not be in the order of shards and rows."""
    root = write_zoo(tmp_path / "source", count=8, shard_bytes=200_000)
    manifest = read_manifest(root)
    table = pq.read_table(root / manifest.table.path).take([5, 0, 7, 2, 4, 6, 1, 3])
    stored = write_table_at_once(table, root)
    write_manifest(replace(manifest, table=stored), root, overwrite=True)
    hub.add("me/zoo", files_of(root))
    part = open_zoo(pull("me/zoo", tmp_path / "part", where="id not in ('m2', 'm1')"))
    assert part.table["id"].to_pylist() == ["m5", "m0", "m7", "m4", "m6", "m3"]
    assert_same_instances(part, open_zoo(root).where("id not in ('m2', 'm1')"))


def test_a_part_that_is_there(hub, source, tmp_path):
    commit = add(hub, source)
    asked = {"split": "train", "revision": commit}
    root = pull("me/zoo", tmp_path / "part", **asked)
    hub.forget()
    assert pull("me/zoo", root, **asked) == root
    assert hub.requests == []
    with pytest.raises(OutputError, match=r"holds split train of me/zoo at \w{12}, not the whole zoo of me/zoo at"):
        pull("me/zoo", root)
    with pytest.raises(OutputError, match="not split test of me/zoo"):
        pull("me/zoo", root, split="test")
    assert_same_instances(open_zoo(root), open_zoo(source).split("train"))


def test_a_damaged_part_is_told_and_can_be_pulled_again(hub, source, tmp_path):
    add(hub, source)
    root = pull("me/zoo", tmp_path / "part", split="train")
    shard = root / read_manifest(root).shards[0].path
    flip(shard)
    with pytest.raises(ZooError, match=r"is damaged: shards/.*force=True"):
        pull("me/zoo", root, split="train")
    pull("me/zoo", root, split="train", force=True)
    assert verify(root).ok
    assert_same_instances(open_zoo(root), open_zoo(source).split("train"))


@pytest.mark.parametrize(
    ("asked", "error", "told"),
    [
        ({"where": "acuracy > 0.5"}, WhereError, "Did you mean 'accuracy'"),
        ({"where": "accuracy >"}, WhereError, "accuracy >"),
        ({"where": "id > 3"}, WhereError, "id > 3"),
        ({"split": "validation"}, ZooError, "has no split 'validation'; it has test, train"),
        ({"architecture": "lenet_lik@digits"}, ZooError, "Did you mean 'lenet_like@digits'"),
        ({"where": "accuracy > 5"}, ZooError, "none of the 6 instances of 'zoo' matches: where accuracy > 5"),
    ],
)
def test_what_cannot_be_meant(hub, source, tmp_path, asked, error, told):
    add(hub, source)
    with pytest.raises(error, match=told):
        pull("me/zoo", tmp_path / "part", **asked)
    assert not (tmp_path / "part").exists()
    assert not any(path.startswith("shards/") for path in hub.served())
