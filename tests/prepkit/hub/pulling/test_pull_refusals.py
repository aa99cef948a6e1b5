"""What a pull refuses to fetch: paths that lead elsewhere, what is no zoo, is not there or may not be seen."""

import shutil
from dataclasses import replace

import pytest
from huggingface_hub import constants
from pull_samples import files_of

from prepkit.errors import HubError, ZooError
from prepkit.hub.pull import pull, pull_zoo
from prepkit.zoo.format.manifest import MANIFEST, manifest_bytes, read_manifest

pytestmark = pytest.mark.usefixtures("one_thread")


# What a repository may hold -----------------------------------------------------------------------------------


def test_a_repository_that_is_no_zoo(hub, tmp_path):
    hub.add("me/data", {"train.csv": b"a,b"})
    with pytest.raises(ZooError, match=r"hf://me/data@\w{40} is no zoo: the repository has no zoo.json"):
        pull("me/data", tmp_path / "here")
    hub.add("me/data", {"zoo.json": b'{"animals": ["lion"]}'})
    with pytest.raises(ZooError, match=r"hf://me/data@\w{40}/zoo.json: not a prepkit zoo, its format is None"):
        pull("me/data", tmp_path / "here")
    hub.add("me/data", {"zoo.json": b'{"format": "prepkit-zoo/9"}'})
    with pytest.raises(ZooError, match="upgrade prepkit"):
        pull("me/data", tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_a_malicious_path_in_the_tree_is_never_asked_for(filled, source, tmp_path):
    filled.extra = ["../../evil.txt", "shards/../../evil.txt", "/etc/evil"]
    before = set(tmp_path.iterdir())
    root = pull("me/zoo", tmp_path / "a" / "b" / "here")
    assert files_of(root) == files_of(source)
    assert {path.name for path in set(tmp_path.iterdir()) - before} <= {"a", "hf_home"}
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize("path", ["../evil.safetensors", "/tmp/evil.safetensors", "shards/../../evil", "zoo.json/x/.."])
@pytest.mark.parametrize("kind", ["shards", "table", "teacher"])
def test_a_malicious_path_in_the_manifest_is_refused(hub, source, tmp_path, path, kind):
    data = read_manifest(source)
    if kind == "shards":
        data = replace(data, shards=(replace(data.shards[0], path=path), *data.shards[1:]))
    else:
        data = replace(data, **{kind: replace(getattr(data, kind), path=path)})
    hub.add("me/zoo", {**files_of(source), MANIFEST: manifest_bytes(data)})
    with pytest.raises(ZooError, match="is refused; a zoo names files inside itself"):
        pull("me/zoo", tmp_path / "here")
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("path", [MANIFEST, "README.md", ".cache/prepkit/pulled.json", ".pulling/lock"])
def test_a_manifest_that_names_a_file_of_ours(hub, source, tmp_path, path):
    """A manifest may name zoo.json as a shard: its sum is another one, or the path is refused."""
    data = read_manifest(source)
    data = replace(data, shards=(replace(data.shards[0], path=path), *data.shards[1:]))
    hub.add("me/zoo", {**files_of(source), MANIFEST: manifest_bytes(data)})
    with pytest.raises((ZooError, HubError)):
        pull("me/zoo", tmp_path / "here")
    assert not (tmp_path / "here" / MANIFEST).exists()


def test_a_link_in_the_folder_is_not_written_through(filled, source, tmp_path):
    root = pull("me/zoo", tmp_path / "here")
    shutil.rmtree(root / "shards")
    (tmp_path / "outside").mkdir()
    (root / "shards").symlink_to(tmp_path / "outside")
    with pytest.raises(ZooError, match="links are refused"):
        pull("me/zoo", root)
    assert not list((tmp_path / "outside").iterdir())


# Who may, and where -------------------------------------------------------------------------------------------


def test_names_that_are_not_there(filled, tmp_path):
    with pytest.raises(HubError, match="no dataset repository 'me/none' that you may see; check the name"):
        pull("me/none", tmp_path / "here")
    with pytest.raises(HubError, match="has no revision 'v9'"):
        pull("me/zoo", tmp_path / "here", revision="v9")
    with pytest.raises(HubError, match=r"has no revision '0{40}'"):
        pull("me/zoo", tmp_path / "here", revision="0" * 40)
    with pytest.raises(HubError, match="names a file"):
        pull("hf://me/zoo/zoo.json", tmp_path / "here")
    with pytest.raises(HubError, match="two versions"):
        pull("hf://me/zoo@a", tmp_path / "here", revision="b")
    assert not (tmp_path / "here").exists()


def test_a_private_zoo_needs_the_right_token(hub, source, tmp_path, monkeypatch):
    hub.token = "hf_right"
    hub.add("me/secret", files_of(source), private=True)
    for token in (None, "hf_wrong"):
        with pytest.raises(HubError, match="hf auth login"):
            pull("me/secret", tmp_path / "here", token=token)
    assert not (tmp_path / "here").exists()
    assert files_of(pull("me/secret", tmp_path / "here", token="hf_right")) == files_of(source)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert files_of(pull("me/secret", tmp_path / "there")) == files_of(source)


def test_offline(filled, source, tmp_path, monkeypatch):
    commit = filled.head("me/zoo")
    root = pull("me/zoo", tmp_path / "here")
    filled.forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pull_zoo("me/zoo", root).was_there  # the client remembers which version was the newest
    assert pull_zoo("me/zoo", root, revision=commit).was_there
    (root / read_manifest(root).shards[0].path).unlink()
    for revision in (None, commit):
        with pytest.raises(
            HubError, match=r"the Hub cannot be reached, and the .* is not fully cached; unset HF_HUB_OFFLINE"
        ):
            pull("me/zoo", root, revision=revision)
        with pytest.raises(
            HubError, match=r"the Hub cannot be reached, and the .* is not fully cached; unset HF_HUB_OFFLINE"
        ):
            pull("me/zoo", tmp_path / "other", revision=revision)
    assert not (tmp_path / "other").exists()
    assert filled.requests == []


def test_offline_from_the_cache_of_the_hub(filled, source, tmp_path, monkeypatch):
    from prepkit.hub.client import api, hub_cache_folder

    manifest = read_manifest(source)
    everything = {"repo_type": "dataset", "cache_dir": hub_cache_folder()}
    api().snapshot_download("me/zoo", **everything, ignore_patterns=[manifest.shards[0].path])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError):
        pull("me/zoo", tmp_path / "here")
    assert not (tmp_path / "here" / MANIFEST).exists()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    api().snapshot_download("me/zoo", **everything)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    filled.forget()
    assert files_of(pull("me/zoo", tmp_path / "here")) == files_of(source)
    assert filled.requests == []


def test_a_damaged_file_in_the_cache_of_the_hub_is_fetched_anew(filled, source, tmp_path):
    from prepkit.hub.client import api, hub_cache_folder

    path = read_manifest(source).shards[0].path
    folder = api().snapshot_download("me/zoo", repo_type="dataset", cache_dir=hub_cache_folder())
    with open(f"{folder}/{path}", "r+b") as file:
        file.seek(5000)
        file.write(b"\xff\xfe")
    filled.forget()
    assert files_of(pull("me/zoo", tmp_path / "here")) == files_of(source)
    assert [served for served, _ in filled.bodies] == [path]
