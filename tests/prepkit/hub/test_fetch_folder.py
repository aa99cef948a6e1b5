"""fetch_folder brings a whole repository into the Hub's cache, and compares each file with its sum."""

import pytest
from folder_contents import files_of
from huggingface_hub import constants

from prepkit.errors import HubError
from prepkit.hub.snapshot import fetch_folder

FILES = {
    "run.json": b'{"a": 1}',
    "checkpoints/best.safetensors": b"x" * 5000,
    "a/b/c.txt": b"c",
    "README.md": b"# run",
}


def test_all_files_come_and_the_commit_is_told(hub):
    commit = hub.add("me/run", FILES, repo_type="model")
    folder, address = fetch_folder("hf://me/run")
    assert files_of(folder) == FILES
    assert str(address) == f"hf://me/run@{commit}"
    hub.forget()
    assert fetch_folder(address) == (folder, address)
    assert hub.requests == []


def test_files_in_folders_only(hub):
    files = {"a/b/c.txt": b"c", "a/d.txt": b"d"}
    hub.add("me/run", files, repo_type="model")
    assert files_of(fetch_folder("hf://me/run")[0]) == files


def test_versions_and_kinds(hub):
    old = hub.add("me/run", FILES, repo_type="model")
    hub.add("me/run", {"run.json": b"new"}, repo_type="model")
    assert files_of(fetch_folder("me/run")[0]) == FILES | {"run.json": b"new"}
    assert files_of(fetch_folder(f"hf://me/run@{old}")[0]) == FILES
    with pytest.raises(HubError, match="no dataset repository"):
        fetch_folder("hf://me/run", repo_type="dataset")
    with pytest.raises(HubError, match="names a file"):
        fetch_folder("hf://me/run/run.json")


@pytest.mark.parametrize("path", FILES)
def test_damage_is_found(hub, path):
    hub.add("me/run", FILES, repo_type="model")
    hub.fault("flip", path)
    assert files_of(fetch_folder("hf://me/run")[0]) == FILES
    hub.add("me/other", FILES, repo_type="model")
    hub.fault("flip", path, times=9)
    with pytest.raises(HubError, match=f"{path} came damaged"):
        fetch_folder("hf://me/other")


def test_offline(hub, monkeypatch):
    hub.add("me/run", FILES, repo_type="model")
    folder, _ = fetch_folder("hf://me/run")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch_folder("hf://me/run")[0] == folder
    (folder / "run.json").unlink()
    with pytest.raises(
        HubError, match=r"the Hub cannot be reached, and the .* is not fully cached; unset HF_HUB_OFFLINE"
    ):
        fetch_folder("hf://me/run")


@pytest.mark.parametrize("path", ["../../evil.txt", "/etc/evil"])
def test_a_malicious_path(hub, tmp_path, path):
    hub.add("me/run", FILES, repo_type="model")
    hub.extra = [path]
    with pytest.raises(HubError):
        fetch_folder("hf://me/run")
    assert not list(tmp_path.rglob("evil*"))
