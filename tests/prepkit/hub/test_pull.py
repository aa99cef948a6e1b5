"""A pull brings a zoo bit for bit, and fetches only what is needed.

The Hub's own client talks to a small server that speaks its protocol.
"""

import json
import os
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from pushed_zoos import write_zoo

from prepkit.api import open_zoo, verify
from prepkit.cli import main
from prepkit.errors import HubError, OutputError, WhereError, ZooError, ZooLocked
from prepkit.hub._target import WORK
from prepkit.hub.pull import pull, pull_zoo
from prepkit.hub.push import push
from prepkit.hub.selection import RECORD
from prepkit.support.lock import changing
from prepkit.zoo.card.card import write_card
from prepkit.zoo.change.splitting import split
from prepkit.zoo.format.manifest import read_manifest, write_manifest
from prepkit.zoo.format.tables import write_table_at_once

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Six instances in five shards, with a teacher and a card."""
    root = write_zoo(tmp_path_factory.mktemp("source") / "zoo", teacher=True, provenance={"note": "ours"})
    write_card(root)
    return root


@pytest.fixture(scope="module")
def newer(tmp_path_factory):
    """Another version: other instances, other files, no teacher."""
    root = write_zoo(tmp_path_factory.mktemp("newer") / "zoo", count=4, seed=50)
    write_card(root)
    return root


def files_of(root):
    """Contents of all files in a folder, without the record of where they came from."""
    files = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
    return {path: file.read_bytes() for path, file in files.items() if path != RECORD.as_posix()}


def add(hub, root, repo="me/zoo", **settings):
    return hub.add(repo, files_of(root), **settings)


def shards_with(zoo):
    """Paths of the shards that hold the instances of a view."""
    return {zoo.manifest.shards[number].path for number in zoo.table["shard"].to_pylist()}


def assert_same_instances(one, other):
    """Compare the PReps, ClassIds and rows of two zoos or views; their shards and rows may have other numbers."""
    assert torch.equal(one.preps(), other.preps())
    assert one.class_ids().tolist() == other.class_ids().tolist()
    rows, others = (zoo.table.drop_columns(["shard", "row"]).to_pylist() for zoo in (one, other))
    assert rows == others


def command(*arguments, status=0):
    result = CliRunner().invoke(main, ["pull", *map(str, arguments)])
    assert result.exit_code == status, (result.output, result.exception)
    return result


# The whole zoo ------------------------------------------------------------------------------------------------


def test_it_comes_bit_for_bit(hub, source, tmp_path):
    add(hub, source)
    states = []
    root = pull("me/zoo", tmp_path / "here", progress=states.append)
    assert root == tmp_path / "here"
    assert files_of(root) == files_of(source)
    assert verify(root).ok
    first, last = states[0], states[-1]
    manifest = read_manifest(source)
    whole = manifest.table.bytes + sum(shard.bytes for shard in manifest.shards)
    assert (first.bytes, first.total_bytes, first.instances, first.total_instances) == (0, whole, 0, 6)
    assert (last.bytes, last.total_bytes, last.instances, last.total_instances) == (whole, whole, 6, 6)
    assert [state.bytes for state in states] == sorted(state.bytes for state in states)


def test_what_was_pushed_is_what_comes(hub, source, tmp_path):
    push(source, "me/zoo")
    root = pull("hf://me/zoo", tmp_path / "here")
    assert files_of(root) == files_of(source)


def test_each_file_is_asked_for_once(hub, source, tmp_path):
    add(hub, source)
    pull("me/zoo", tmp_path / "here")
    bodies = [path for path, _ in hub.bodies]
    assert sorted(bodies) == sorted(files_of(source))


def test_the_folder_is_named_after_the_repository(hub, source, tmp_path, monkeypatch):
    add(hub, source)
    monkeypatch.chdir(tmp_path)
    assert str(pull("me/zoo")) == "zoo"
    assert files_of(tmp_path / "zoo") == files_of(source)


def test_again_it_asks_only_for_the_newest_version(hub, source, tmp_path):
    add(hub, source)
    root = pull("me/zoo", tmp_path / "here")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    hub.forget()
    done = pull_zoo("me/zoo", root)
    assert done.was_there
    assert len(hub.requests) == 1
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_a_pinned_version_that_is_there_needs_no_request(hub, source, tmp_path):
    commit = add(hub, source)
    root = pull("me/zoo", tmp_path / "here")
    hub.stop()
    hub.forget()
    assert pull_zoo("me/zoo", root, revision=commit).was_there
    assert pull_zoo(f"hf://me/zoo@{commit}", root).was_there
    assert hub.requests == []


def test_an_older_version_is_there_for_ever(hub, source, newer, tmp_path):
    old, new = add(hub, source), add(hub, newer)
    assert files_of(pull("me/zoo", tmp_path / "new"))["zoo.json"] == files_of(newer)["zoo.json"]
    assert files_of(pull("me/zoo", tmp_path / "old", revision=old)) == files_of(source)
    assert read_manifest(pull(f"hf://me/zoo@{new}", tmp_path / "pinned")) == read_manifest(newer)


def test_a_card_that_changed_alone_is_the_same_zoo(hub, source, tmp_path):
    add(hub, source)
    root = pull("me/zoo", tmp_path / "here")
    commit = hub.add("me/zoo", {"README.md": b"other words"})
    assert pull_zoo("me/zoo", root).was_there
    hub.forget()
    assert pull_zoo("me/zoo", root, revision=commit).was_there
    assert hub.requests == []


@pytest.mark.parametrize("left_out", ["README.md", "card.png"])
def test_a_zoo_without_card_or_picture(hub, source, tmp_path, left_out):
    files = files_of(source)
    del files[left_out]
    hub.add("me/zoo", files)
    pulled = files_of(pull("me/zoo", tmp_path / "here"))
    assert b"card.png" not in pulled.get("README.md", b"")
    assert {**pulled, "README.md": b""} == {**files, "README.md": b""}
    assert ("README.md" in pulled) == ("README.md" in files)


def test_files_that_no_zoo_needs_are_left_there(hub, source, tmp_path):
    hub.add("me/zoo", {**files_of(source), "shards/other.safetensors": b"x" * 100, ".gitattributes": b"y"})
    assert files_of(pull("me/zoo", tmp_path / "here")) == files_of(source)


def test_what_the_cache_of_the_hub_has_is_not_fetched(hub, source, tmp_path):
    from prepkit.hub.client import api, hub_cache_folder

    add(hub, source)
    api().snapshot_download("me/zoo", repo_type="dataset", cache_dir=hub_cache_folder())
    hub.forget()
    root = pull("me/zoo", tmp_path / "here")
    assert files_of(root) == files_of(source)
    assert hub.bodies == []
    assert not any(path.is_symlink() for path in root.rglob("*"))


# Some of it ---------------------------------------------------------------------------------------------------


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


# What lies there already --------------------------------------------------------------------------------------


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [flip, os.remove, lambda file: os.truncate(file, 100)])
@pytest.mark.parametrize("kind", ["shard", "table", "teacher"])
def test_damage_on_the_disk_is_found_and_mended(hub, source, tmp_path, kind, damage):
    commit = add(hub, source)
    root = pull("me/zoo", tmp_path / "here")
    manifest = read_manifest(root)
    path = {"shard": manifest.shards[1].path, "table": manifest.table.path, "teacher": manifest.teacher.path}[kind]
    damage(root / path)
    hub.forget()
    assert not pull_zoo("me/zoo", root, revision=commit).was_there
    assert [served for served, _ in hub.bodies] == [path]
    assert files_of(root) == files_of(source)


def test_another_version_is_refused_and_replaces_the_old_one_when_forced(hub, source, newer, tmp_path):
    add(hub, source)
    root = pull("me/zoo", tmp_path / "here")
    hub.add("me/zoo", files_of(newer))
    with pytest.raises(OutputError, match=r"holds the whole zoo of me/zoo at \w{12}, not .* force=True"):
        pull("me/zoo", root)
    assert files_of(root) == files_of(source)
    pull("me/zoo", root, force=True)
    assert files_of(root) == files_of(newer)


def test_an_old_zoo_stays_whole_until_the_new_one_is(hub, source, newer, tmp_path):
    add(hub, source)
    root = pull("me/zoo", tmp_path / "here")
    hub.add("me/zoo", files_of(newer))
    path = read_manifest(newer).shards[-1].path
    hub.fault("flip", path, times=99)
    with pytest.raises(HubError, match="came damaged"):
        pull("me/zoo", root, force=True)
    assert verify(root).ok
    assert read_manifest(root) == read_manifest(source)
    assert torch.equal(open_zoo(root).preps(), open_zoo(source).preps())
    hub.fault("flip", path, times=0)
    hub.forget()
    pull("me/zoo", root, force=True)
    assert files_of(root) == files_of(newer)


def test_a_zoo_that_was_changed_is_not_replaced(hub, source, tmp_path):
    add(hub, source)
    root = pull("me/zoo", tmp_path / "here")
    split(root, {"train": 1.0}, card=False, force=True)
    mine = read_manifest(root)
    with pytest.raises(OutputError, match="not this one, or was changed"):
        pull("me/zoo", root)
    assert read_manifest(root) == mine
    pull("me/zoo", root, force=True)
    assert files_of(root) == files_of(source)


def test_a_forced_pull_leaves_nothing_of_one_that_was_interrupted(hub, source, tmp_path):
    add(hub, source)
    root = write_zoo(tmp_path / "here", count=4, seed=50)
    path = read_manifest(source).shards[-1].path
    hub.fault("flip", path, times=99)
    with pytest.raises(HubError, match="damaged"):
        pull("me/zoo", root, force=True)
    other = write_zoo(tmp_path / "other", count=3, seed=70)
    add(hub, other, "me/other")
    assert any((root / shard.path).exists() for shard in read_manifest(source).shards)
    pull("me/other", root, force=True)
    assert verify(root).notes == ()
    assert files_of(root) == files_of(other)


def test_a_zoo_that_is_being_changed_is_not_replaced(hub, source, tmp_path):
    add(hub, source)
    root = write_zoo(tmp_path / "here", count=4, seed=50)
    before = files_of(root)
    with changing(root), pytest.raises(ZooLocked, match="is being written by process"):
        pull("me/zoo", root, force=True)
    assert files_of(root) == before
    pull("me/zoo", root, force=True)
    assert files_of(root) == files_of(source)


def test_a_zoo_whose_manifest_is_damaged_is_replaced_when_forced(hub, source, tmp_path):
    add(hub, source)
    root = pull("me/zoo", tmp_path / "here")
    (root / "zoo.json").write_text("{")
    with pytest.raises(OutputError, match="force=True"):
        pull("me/zoo", root)
    pull("me/zoo", root, force=True)
    assert files_of(root) == files_of(source)


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_with_other_files_is_left_alone(hub, source, tmp_path, force):
    add(hub, source)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(OutputError, match=r"holds other files \(thesis.tex\)"):
        pull("me/zoo", tmp_path / "mine", force=force)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        pull("me/zoo", tmp_path / "file", force=force)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "zoo.json").write_text('{"animals": 3}')
    with pytest.raises((OutputError, ZooError)):
        pull("me/zoo", tmp_path / "other", force=force)
    assert (tmp_path / "other" / "zoo.json").read_text() == '{"animals": 3}'


def test_an_empty_folder_is_filled(hub, source, tmp_path):
    add(hub, source)
    (tmp_path / "here").mkdir()
    assert files_of(pull("me/zoo", tmp_path / "here")) == files_of(source)


# The command --------------------------------------------------------------------------------------------------


def test_the_command(hub, source, tmp_path):
    commit = add(hub, source)
    told = command("me/zoo", tmp_path / "here").stdout
    assert told.startswith(f"me/zoo -> {tmp_path / 'here'}: 6 instances, ")
    assert f"commit {commit}; every file checked" in told
    assert "all of it was there" in command("me/zoo", tmp_path / "here").stdout
    assert files_of(tmp_path / "here") == files_of(source)


def test_the_command_for_a_part(hub, source, tmp_path):
    commit = add(hub, source)
    asked = ["--where", "accuracy < 0.4", "--split", "train", "--architecture", "lenet_like@digits"]
    result = command("me/zoo", tmp_path / "part", *asked, "--revision", commit, "--json")
    told = json.loads(result.stdout)
    selection = {"where": "accuracy < 0.4", "splits": ["train"], "architectures": ["lenet_like@digits"]}
    assert (told["instances"], told["commit"], told["selection"]) == (2, commit, selection)
    assert (tmp_path / "part" / "README.md").is_file()
    assert_same_instances(open_zoo(tmp_path / "part"), open_zoo(source).split("train").where("accuracy < 0.4"))


def test_the_command_fails_with_one_line(hub, source, tmp_path):
    add(hub, source)
    result = command("me/none", tmp_path / "here", "--json", status=1)
    assert json.loads(result.stdout)["error"]["kind"] == "HubError"
    assert command("not a name", status=1).stderr.startswith("Error: 'not a name' is no address on the Hub")
    assert "holds other files" in command("me/zoo", source.parent, status=2).stderr
    assert "Missing argument 'REPO'" in command(status=2).stderr


def test_the_command_tells_how_far_it_is(hub, source, tmp_path, monkeypatch):
    monkeypatch.setattr("prepkit.support.progress.LINE_SECONDS", 0.0)
    add(hub, source)
    lines = command("me/zoo", tmp_path / "here").stderr.splitlines()
    assert lines[-1].startswith("pulling: ")
    assert lines[-1].endswith("6 of 6 instances")
