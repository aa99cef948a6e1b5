"""Two zoos that tests push and none changes."""

import pytest
from pushed_zoos import write_zoo

from prepkit.zoo.card.card import write_card


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    root = write_zoo(tmp_path_factory.mktemp("pushed") / "zoo", teacher=True)
    write_card(root)
    return root


@pytest.fixture(scope="session")
def other(tmp_path_factory):
    """Another zoo, none of whose files has the content of a file of the first."""
    root = write_zoo(tmp_path_factory.mktemp("other") / "zoo", count=8, seed=50)
    write_card(root)
    return root
