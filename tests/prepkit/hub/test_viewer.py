"""What is pushed shows its splits in the Hub's viewer, which reads it as `datasets.load_dataset` does."""

import datetime as dt

import datasets
import huggingface_hub
import pytest
import torch
from pushed_zoos import network, write_zoo

from prepkit.api import open_zoo, verify
from prepkit.hub.pull import pull
from prepkit.hub.push import push
from prepkit.hub.snapshot import fetch_folder
from prepkit.zoo.card.card import MARK, README, write_card
from prepkit.zoo.change.cleaning import clean
from prepkit.zoo.change.splitting import split
from prepkit.zoo.format.manifest import read_manifest
from prepkit.zoo.write.writer import ZooWriter

pytestmark = pytest.mark.usefixtures("one_thread")
LENET = network("lenet_like@digits", 0)


def write(root, splits, **columns):
    """Write a zoo with an instance of each split."""
    with ZooWriter(root, license="mit", dtype="float32") as writer:
        for number, name in enumerate(splits):
            row = {column: values[number] for column, values in columns.items()}
            writer.add(LENET, id=f"m{number}", split=name, **row)
    write_card(root)
    return root


def loaded(folder, tmp_path):
    """The ids in each split, as other programs see them."""
    found = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "datasets"))
    return {name: list(rows["id"]) for name, rows in found.items()}


@pytest.fixture(autouse=True)
def _quiet():
    datasets.disable_progress_bars()


@pytest.mark.parametrize(
    ("splits", "expected", "copies"),
    [
        (["test", "train", "validation", "train"], {"train": ["m1", "m3"], "validation": ["m2"], "test": ["m0"]}, 3),
        (["train", None, "train"], {"train": ["m0", "m2"], "unsplit": ["m1"]}, 2),
        (["my test/1", "my_test_1", "all", None, "unsplit"], None, 5),
        (["test", "test"], {"test": ["m0", "m1"]}, 0),
        ([None, None], {"train": ["m0", "m1"]}, 0),
    ],
)
def test_splits_are_splits(hub, tmp_path, splits, expected, copies):
    push(write(tmp_path / "zoo", splits), "me/zoo")
    folder, _ = fetch_folder("hf://me/zoo", repo_type="dataset")
    expected = expected or {
        "my_test_1": ["m1"],
        "unsplit": ["m4"],
        "all_2": ["m2"],
        "my_test_1_2": ["m0"],
        "unsplit_2": ["m3"],
    }
    assert loaded(folder, tmp_path) == expected
    assert len(list(folder.glob("viewer/*"))) == copies
    text = (folder / README).read_text()
    assert ("read each split from a file of its own in the folder `viewer`" in text) == bool(copies)
    assert ("`my_test_1_2`: my test/1" in text) == ("my test/1" in splits)
    assert ("`unsplit`: no split" in text) == (splits == ["train", None, "train"])


def test_columns_of_all_kinds_arrive_on_both_ways(hub, tmp_path):
    columns = {
        "loss": [[0.5, 0.25], None, [1.0]],
        "day": [dt.date(2026, 11, 27), None, dt.date(2026, 11, 28)],
        "at": [dt.datetime(2026, 11, 27, 13, 50, tzinfo=dt.UTC), None, None],
        "nothing": [None, None, None],
    }
    root = write(tmp_path / "zoo", ["train", "test", "train"], **columns)
    push(root, "me/zoo")
    folder, _ = fetch_folder("hf://me/zoo", repo_type="dataset")
    found = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "datasets"), split="train")
    assert list(found["loss"]) == [[0.5, 0.25], [1.0]]
    assert list(found["day"]) == [dt.date(2026, 11, 27), dt.date(2026, 11, 28)]
    assert [at and at.astimezone(dt.UTC) for at in found["at"]] == [columns["at"][0], None]
    for pulled in (pull("me/zoo", tmp_path / "all"), pull("me/zoo", tmp_path / "part", where="day < '2027-01-01'")):
        table = open_zoo(pulled).table
        rows = [0, 1, 2] if pulled.name == "all" else [0, 2]
        assert {name: table[name].to_pylist() for name in columns} == {
            name: [values[row] for row in rows] for name, values in columns.items()
        }
    streamed = open_zoo("hf://me/zoo").where("at >= '2026-11-27 13:50'")
    assert streamed.table["id"].to_pylist() == ["m0"]
    assert torch.equal(streamed.preps(), open_zoo(root).preps([0]))


def test_a_pulled_zoo_names_its_own_files(hub, tmp_path):
    source = write(tmp_path / "zoo", ["train", "test"])
    push(source, "me/zoo")
    root = pull("me/zoo", tmp_path / "here")
    assert (root / README).read_bytes() == (source / README).read_bytes()
    assert loaded(root, tmp_path) == {"train": ["m0", "m1"]}
    assert not (root / "viewer").exists()
    assert verify(root).notes == ()


def own_words(root):
    """Put a README of the user's own there, whose configs are those of the card."""
    text = (root / README).read_text().replace(MARK, "").partition("# zoo")[0] + "# Mine\n\nconfigs:\n- stay\n"
    (root / README).write_text(text)


def test_a_readme_of_the_users_own_follows_too(hub, tmp_path):
    root = write(tmp_path / "zoo", ["train", "test"])
    own_words(root)
    before = (root / README).read_text()
    push(root, "me/zoo")
    folder, _ = fetch_folder("hf://me/zoo", repo_type="dataset")
    assert loaded(folder, tmp_path) == {"train": ["m0"], "test": ["m1"]}
    assert (folder / README).read_text().endswith("# Mine\n\nconfigs:\n- stay\n")
    pulled = pull("me/zoo", tmp_path / "here")
    assert (pulled / README).read_text() == before
    split(pulled, {"train": 0.0, "test": 1.0}, force=True)
    push(pulled, "me/zoo")
    folder, _ = fetch_folder("hf://me/zoo", repo_type="dataset")
    assert loaded(folder, tmp_path) == {"test": ["m0", "m1"]}


def test_configs_of_the_users_own_stay(hub, tmp_path):
    root = write(tmp_path / "zoo", ["train", "test"])
    text = '---\nlicense: mit\nconfigs:\n- config_name: mine\n  data_files: "other/*.csv"\n---\nwords\n'
    (root / README).write_text(text)
    push(root, "me/zoo")
    data = huggingface_hub.DatasetCard(hub.files("me/zoo")[README].decode()).data.to_dict()
    assert data["configs"] == [{"config_name": "mine", "data_files": "other/*.csv"}]
    pulled = (pull("me/zoo", tmp_path / "here") / README).read_bytes()
    assert pulled == hub.files("me/zoo")[README]


def test_a_readme_that_is_no_text_comes_as_it_is(hub, tmp_path):
    root = write(tmp_path / "zoo", ["train"])
    push(root, "me/zoo")
    hub.add("me/zoo", {README: b"\xff\xfe"})
    assert (pull("me/zoo", tmp_path / "here") / README).read_bytes() == b"\xff\xfe"


def test_the_same_splits_are_not_sent_twice(hub, tmp_path):
    root = write_zoo(tmp_path / "zoo")
    push(root, "me/zoo")
    hub.forget()
    assert push(root, "me/zoo").new_bytes == 0
    manifest = read_manifest(root)
    assert {path for path in hub.files("me/zoo") if path.startswith("models-")} == {manifest.table.path}


def test_a_clone_of_the_repository_is_a_zoo(hub, tmp_path):
    """Its copies of splits belong to its card; those of an older version do not."""
    root = write(tmp_path / "zoo", ["train", "test"])
    push(root, "me/zoo")
    split(root, {"train": 0.0, "test": 0.5, "validation": 0.5}, seed=1, force=True)
    push(root, "me/zoo")
    clone = tmp_path / "clone"
    for path, content in hub.files("me/zoo").items():
        (clone / path).parent.mkdir(parents=True, exist_ok=True)
        (clone / path).write_bytes(content)
    old = [path for path in hub.files("me/zoo", hub.commits("me/zoo")[-2]) if path.startswith(("viewer/", "models-"))]
    assert len(old) == 3
    assert {note.partition(":")[0] for note in verify(clone).notes} == set(old)
    assert {file.path for file in clean(clone).removed} == set(old)
    assert loaded(clone, tmp_path).keys() == {"validation", "test"}
