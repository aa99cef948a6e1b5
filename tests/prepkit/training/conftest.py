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
