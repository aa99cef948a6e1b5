"""A pull brings a zoo bit for bit, and fetches only what is needed.

The Hub's own client talks to a small server that speaks its protocol.
"""

import json

import pytest
from pull_samples import add, assert_same_instances, command, files_of

from prepkit.api import open_zoo, verify
from prepkit.hub.pull import pull, pull_zoo
from prepkit.hub.push import push
from prepkit.zoo.format.manifest import read_manifest

pytestmark = pytest.mark.usefixtures("one_thread")


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
