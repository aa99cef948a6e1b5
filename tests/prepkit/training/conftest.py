"""Zoos that tests only read."""

import pytest
from killed_training import TEXTS
from run_samples import trained


@pytest.fixture(scope="session")
def zoos(tmp_path_factory):
    """A zoo of each spec, by name."""
    root = tmp_path_factory.mktemp("zoos")
    for name, text in TEXTS.items():
        trained(root / name, text)
    return root


@pytest.fixture(scope="session")
def alone(tmp_path_factory):
    """The zoo of the spec `last`, trained in stacks of one instance."""
    root = tmp_path_factory.mktemp("alone") / "zoo"
    trained(root, TEXTS["last"], stack=1)
    return root
