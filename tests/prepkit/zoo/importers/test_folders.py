"""Folders below the one that is imported: those that cannot be read are refused, and links are followed once."""

import os

import pytest
import torch

import prepkit
from prepkit.errors import ZooError
from prepkit.zoo.importers._folders import walked


@pytest.mark.parametrize("kind", ["ray-tree", "peft", "model-j", "create"])
def test_a_folder_that_cannot_be_read_is_told(kind, tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / "src" / name).mkdir(parents=True)
        torch.save({"w": torch.ones(2, 2)}, tmp_path / "src" / name / "net.pt")
    listing = os.scandir

    def scandir(path="."):
        if os.fspath(path).endswith("b"):
            raise PermissionError(13, "Permission denied", path)
        return listing(path)

    monkeypatch.setattr(os, "scandir", scandir)
    zoo, source = tmp_path / "zoo", tmp_path / "src"
    with pytest.raises(ZooError, match=r"src/b' cannot be read: Permission denied\. Make it readable"):
        prepkit.create_zoo(zoo, [source]) if kind == "create" else prepkit.import_zoo(kind, source, zoo)
    assert not zoo.exists()


def test_links_to_runs_are_followed_once(tmp_path):
    (tmp_path / "elsewhere" / "checkpoint_1").mkdir(parents=True)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "run").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "src")
    places = [place.relative_to(tmp_path).as_posix() for place, _, _ in walked(tmp_path / "src")]
    assert places == ["src", "src/run", "src/run/checkpoint_1"]
