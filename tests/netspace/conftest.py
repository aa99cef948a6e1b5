"""Zoos that several test files share."""

import pytest
from small_zoos import MAKERS


@pytest.fixture(scope="session")
def small_zoo(tmp_path_factory):
    """The folder of a small zoo that fits a built-in recipe, made when it is first asked for."""
    made = {}

    def zoo(name):
        if name not in made:
            made[name] = MAKERS[name](tmp_path_factory.mktemp("zoos") / name)
        return made[name]

    return zoo
