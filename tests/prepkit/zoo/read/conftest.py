"""A zoo that several modules read and none changes."""

import pytest
from writer_samples import write_digits

from prepkit.api import open_zoo


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("zoo") / "digits"
    task = {"kind": "images", "dataset": "digits", "mean": [0.5]}
    return write_digits(root, task=task, license="mit", provenance={"spec": "hand"})


@pytest.fixture
def zoo(root):
    return open_zoo(root)
