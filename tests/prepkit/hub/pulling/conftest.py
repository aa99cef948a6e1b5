"""Two zoos that tests pull and none changes."""

import pytest
from pull_samples import files_of
from pushed_zoos import write_zoo

from prepkit.hub import _failures as failures
from prepkit.zoo.card.card import write_card


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """Six instances in five shards, with a teacher and a card."""
    root = write_zoo(tmp_path_factory.mktemp("source") / "zoo", teacher=True, provenance={"note": "ours"})
    write_card(root)
    return root


@pytest.fixture(scope="session")
def newer(tmp_path_factory):
    """Another version: other instances, other files, no teacher."""
    root = write_zoo(tmp_path_factory.mktemp("newer") / "zoo", count=4, seed=50)
    write_card(root)
    return root


@pytest.fixture
def filled(hub, source, monkeypatch):
    """The server with the zoo as me/zoo; nobody waits long between attempts."""
    monkeypatch.setattr(failures, "FIRST_PAUSE_SECONDS", 0.01)
    hub.add("me/zoo", files_of(source))
    return hub
