"""A push arrives bit for bit, in one commit, and sends nothing twice.

The Hub's own client talks to a small server that speaks its protocol.
"""

import hashlib
import json
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from push_samples import command, content_of, without_card
from pushed_zoos import write_zoo

from prepkit.errors import HubError
from prepkit.hub import upload
from prepkit.hub.bundle import Bundle, Upload
from prepkit.hub.client import hub_cache_folder
from prepkit.hub.push import push
from prepkit.hub.upload import push_bundle
from prepkit.zoo.card.card import PICTURE, README

pytestmark = pytest.mark.usefixtures("one_thread")


# What arrives -------------------------------------------------------------------------------------------------


def test_it_arrives_bit_for_bit_in_one_commit(hub, zoo):
    before = content_of(zoo)
    told = []
    done = push(zoo, "me/zoo", progress=told.append)
    assert (done.created, done.commits, done.others) == (True, 1, ())
    files = hub.files("me/zoo")
    assert without_card(files) == before
    assert b'open_zoo("hf://me/zoo")' in files[README]
    assert files[PICTURE] == (zoo / PICTURE).read_bytes()
    assert done.commit == hub.head("me/zoo")
    assert sum(told) == sum(file.bytes for file in done.files) == done.new_bytes
    assert min(told) >= 0
    assert content_of(zoo) == before


def test_the_same_again_sends_nothing_and_makes_no_commit(hub, zoo):
    first = push(zoo, "me/zoo")
    hub.forget()
    told = []
    again = push(zoo, "me/zoo", progress=told.append)
    assert (again.commit, again.commits, again.created, again.new_bytes) == (first.commit, 0, False, 0)
    assert {method for method, _ in hub.requests} <= {"GET", "HEAD"}
    assert sum(told) == sum(file.bytes for file in again.files)


def test_a_new_version_sends_what_is_new_and_the_old_one_stays(hub, zoo, tmp_path):
    first = push(zoo, "me/zoo")
    old = hub.files("me/zoo")
    root = write_zoo(tmp_path / "zoo", count=8, teacher=True)  # its first six instances are those of `zoo`
    hub.forget()
    told = []
    second = push(root, "me/zoo", progress=told.append)
    assert sum(told) == sum(file.bytes for file in second.files)
    assert any(file.there for file in second.files if file.path.startswith("shards/"))
    files = hub.files("me/zoo")
    new = {file.path for file in second.files if not file.there}
    assert set(hub.uploaded()) <= {hashlib.sha256(files[path]).hexdigest() for path in new}
    assert len(hub.uploaded()) == len(set(hub.uploaded()))
    assert hub.files("me/zoo", first.commit) == old
    assert without_card(files) == {**without_card(old), **content_of(root)}
    assert set(second.others) == old.keys() - {".gitattributes"} - {file.path for file in second.files}


def test_more_files_than_a_commit_has_go_with_the_manifest_last(hub, zoo, other, monkeypatch):
    first = push(other, "me/zoo")
    monkeypatch.setattr(upload, "FILES_PER_COMMIT", 4)
    done = push(zoo, "me/zoo")
    assert done.commits == 3
    versions = [hub.files("me/zoo", commit) for commit in hub.commits("me/zoo")]
    assert without_card(versions[-1]) == {**without_card(versions[-4]), **content_of(zoo)}
    for version in versions[-3:-1]:  # the older zoo is whole in them
        assert {path: version[path] for path in content_of(other)} == content_of(other)
    assert first.commit in hub.commits("me/zoo")


def test_a_private_repository(hub, zoo):
    push(zoo, "me/zoo", private=True)
    assert hub.is_private("me/zoo")
    push(zoo, "me/zoo", private=True)
    push(zoo, "me/open")
    assert not hub.is_private("me/open")
    with pytest.raises(HubError, match=r"'me/open' is there already and public; make it private in its settings"):
        push(zoo, "me/open", private=True)


def test_a_model_repository_through_the_same_code(hub, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"weights" * 100)
    files = [Upload.of("a/w.safetensors", tmp_path / "w.safetensors"), Upload.of("README.md", b"---\n---\nrun")]
    done = push_bundle(Bundle("me/run", "model", "a run", tuple(files)))
    assert (done.created, done.commits) == (True, 1)
    held = hub.files("me/run", repo_type="model")
    assert held["a/w.safetensors"] == b"weights" * 100
    assert held["README.md"] == b"---\n---\nrun"
    assert push_bundle(Bundle("me/run", "model", "again", tuple(files))).commits == 0


# The command --------------------------------------------------------------------------------------------------


def test_a_dry_run_tells_files_and_sizes_and_changes_nothing(hub, zoo):
    told = command(zoo, "me/zoo", "--dry-run", "--private").stdout
    for path, content in content_of(zoo).items():
        assert any(line.split() == [path, f"{len(content):,}", "new"] for line in told.splitlines())
    assert "would send to a new private repository me/zoo: 12 files" in told
    assert not hub.exists("me/zoo")
    document = json.loads(command(zoo, "me/zoo", "--dry-run", "--json").stdout)
    assert (document["commit"], document["created"], document["dry_run"]) == (None, True, True)
    assert document["bytes"] == document["new_bytes"] == sum(file["bytes"] for file in document["files"])
    push(zoo, "me/zoo")
    assert "there already" in command(zoo, "me/zoo", "--dry-run").stdout


def test_the_command_tells_commit_and_page(hub, zoo):
    told = command(zoo, "hf://me/zoo").stdout
    assert f"{zoo} -> me/zoo: 12 files" in told
    assert hub.head("me/zoo") in told
    assert told.endswith(f"{hub.url}/datasets/me/zoo\n")
    document = json.loads(command(zoo, "me/zoo", "--json").stdout)
    assert document["commit"] == hub.head("me/zoo")
    assert all(file["there"] for file in document["files"])
    assert "has all of" in command(zoo, "me/zoo").stdout


def test_a_licence_is_given_on_the_way(hub, tmp_path):
    root = write_zoo(tmp_path / "zoo", count=2, license=None)
    assert "no licence" in command(root, "me/zoo", status=2).stderr
    assert not hub.exists("me/zoo")
    command(root, "me/zoo", "--license", "cc-by-4.0")
    assert json.loads(hub.files("me/zoo")["zoo.json"])["license"] == "cc-by-4.0"
    assert (root / "zoo.json").read_bytes() == hub.files("me/zoo")["zoo.json"]


@pytest.mark.parametrize(
    ("repo", "told"),
    [
        ("zoo", "write USER/zoo, with the name of its owner"),
        ("me/zoo@main", "newest version of a whole repository; write me/zoo."),
        ("me/zoo/shards", "newest version of a whole repository; write me/zoo."),
        ("me/zoo--x", "is no name of a repository"),
    ],
)
def test_what_is_no_repository_is_told(hub, zoo, repo, told):
    assert told in command(zoo, repo, status=1).stderr
    assert hub.requests == []


@pytest.mark.parametrize("path", ["large.safetensors", "small.txt"])
def test_other_content_of_the_same_size_is_sent(hub, path):
    for content in (b"before", b"after.", b"after."):
        files = [Upload.of(path, content)]
        done = push_bundle(Bundle("me/zoo", "dataset", "m", tuple(files)))
        assert hub.files("me/zoo")[path] == content
    assert done.commits == 0


def test_trees_of_several_pages_are_read_whole(hub, zoo):
    push(zoo, "me/zoo")
    hub.page_size = 2
    assert push(zoo, "me/zoo").commits == 0


def test_a_push_says_nothing_on_its_own(hub, zoo, capfd):
    push(zoo, "me/zoo")
    assert capfd.readouterr() == ("", "")


def test_a_zoo_in_the_hubs_own_cache_is_pushed_on(hub, zoo):
    commit = push(zoo, "me/zoo").commit
    snapshot = HfApi(endpoint=hub.url).snapshot_download(
        "me/zoo", repo_type="dataset", revision=commit, cache_dir=hub_cache_folder()
    )
    push(snapshot, "me/copy")
    assert without_card(hub.files("me/copy")) == content_of(zoo)
    assert b'open_zoo("hf://me/copy")' in hub.files("me/copy")[README]


@pytest.mark.parametrize("settings", [{"count": 0}, {"count": 2, "format": "hdf5"}, {"count": 2, "dtype": "float64"}])
def test_zoos_of_all_kinds_are_pushed(hub, tmp_path, settings):
    root = write_zoo(tmp_path / "zoo", **settings)
    push(root, "me/zoo")
    assert without_card(hub.files("me/zoo")) == content_of(root)


def test_a_folder_called_tilde_is_no_home(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("~").mkdir()
    Path("~/a.bin").write_bytes(b"a")
    push_bundle(Bundle("me/run", "model", "m", (Upload.of("a.bin", Path("~/a.bin")),)))
    assert hub.files("me/run", repo_type="model")["a.bin"] == b"a"
