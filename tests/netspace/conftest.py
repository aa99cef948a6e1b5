"""Zoos and a run that several test files share."""

import pytest
from small_zoos import MAKERS
from untrained import untrained_run


@pytest.fixture(scope="session")
def small_zoo(tmp_path_factory):
    """The folder of a small zoo that fits a built-in recipe, made when it is first asked for."""
    made = {}

    def zoo(name):
        if name not in made:
            made[name] = MAKERS[name](tmp_path_factory.mktemp("zoos") / name)
        return made[name]

    return zoo


@pytest.fixture(scope="session")
def run(small_zoo, tmp_path_factory):
    """A run of an untrained space on networks of several architectures."""
    return untrained_run(tmp_path_factory.mktemp("runs") / "run", "digits_multi", small_zoo("digits_multi"))


@pytest.fixture(scope="session")
def zoo(run):
    """The zoo of that run."""
    return run.open_zoo()
