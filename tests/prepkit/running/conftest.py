"""Ways in which instances run."""

import pytest

from prepkit.running import instances


@pytest.fixture
def in_a_loop(monkeypatch):
    monkeypatch.setattr(instances, "stacking_pays", lambda *args, **kwargs: False)


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(instances, "stacking_pays", lambda *args, **kwargs: True)
