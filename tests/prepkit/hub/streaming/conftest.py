"""A zoo on the Hub, and the same on the disk."""

import pytest
from folder_contents import files_of
from pushed_zoos import write_zoo

from prepkit.api import open_zoo
from prepkit.hub import _failures as failures


@pytest.fixture(scope="session")
def local(tmp_path_factory):
    """Twelve instances in nine shards, opened from the disk."""
    return open_zoo(write_zoo(tmp_path_factory.mktemp("source") / "zoo", count=12, teacher=True))


@pytest.fixture
def filled(hub, local, monkeypatch):
    monkeypatch.setattr(failures, "FIRST_PAUSE_SECONDS", 0.01)
    hub.add("me/zoo", files_of(local._store.root))
    return hub
