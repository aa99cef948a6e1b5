"""Runs of ray that several modules import. The cards of all zoos here lack their picture."""

import json

import pytest
from tree_samples import lines, save


@pytest.fixture(scope="module", autouse=True)
def _undrawn(undrawn_cards):
    pass


@pytest.fixture
def runs(tmp_path):
    """Two runs of ray with three checkpoints each; the value of all weights is 100 * run + epoch."""
    for run in (0, 1):
        for epoch in (0, 5, 10):
            save(tmp_path / f"runs/r{run}/checkpoint_{epoch:06d}/checkpoints", 100 * run + epoch)
        rows = [{"training_iteration": epoch, "acc": 100 * run + epoch} for epoch in range(11)]
        (tmp_path / f"runs/r{run}/result.json").write_text(lines(*rows))
        (tmp_path / f"runs/r{run}/params.json").write_text(
            json.dumps({"model::nlin": "relu", "optim": {"lr": run / 8}})
        )
    return tmp_path / "runs"
