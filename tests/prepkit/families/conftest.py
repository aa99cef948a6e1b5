"""Fixtures that test modules of this folder share."""

import pytest
from registry_samples import COUNTER, NETS


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """The name of a fresh importable module with the builders above."""
    name = f"nets{next(COUNTER)}"
    (tmp_path / f"{name}.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    return name
