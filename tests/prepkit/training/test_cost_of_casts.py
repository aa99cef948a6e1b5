"""What rounding folded values to their dtype costs is said when a zoo is trained."""

from __future__ import annotations

import pytest
import torch
from deep_networks import WIDTH, deep
from killed_training import TEXTS, spec
from said import Said

from prepkit.families.folding import fold_stack
from prepkit.families.registry import architecture_from_callable
from prepkit.training import _results
from prepkit.training.run import train_zoo


def test_a_stack_is_measured_network_by_network():
    architecture = architecture_from_callable("deep_networks:deep", (WIDTH,))
    networks = [deep(), deep(seed=None).double()]  # values in float64 are not rounded
    costs: list[float] = []
    folded = [fold_stack(architecture, [network.state_dict()], costs) for network in networks]
    assert costs[1] == 0
    x = architecture.example_input().double()
    rebuilt = architecture.build_folded().double()
    rebuilt.load_state_dict({name: tensor[0].double() for name, tensor in folded[0].items()})
    with torch.no_grad():
        expected, found = networks[0].double()(x), rebuilt.eval()(x)
    assert float((found - expected).abs().max() / expected.abs().max()) == pytest.approx(costs[0], rel=0.5)
    assert costs[0] > 1e-3


def test_training_says_it(tmp_path, monkeypatch):
    real = fold_stack

    def costly(architecture, rows, costs=None):
        folded = real(architecture, rows, costs)
        costs[-1] = 0.081
        return folded

    progress = Said()
    monkeypatch.setattr(_results, "fold_stack", costly)
    train_zoo(spec(TEXTS["last"]), tmp_path / "zoo", device="cpu", threads=1, progress=progress)
    said = [
        note for note in progress.texts if note.startswith("note: rounding the folded values changes the outputs of ")
    ]
    assert said == progress.texts
    assert said
    assert all("by up to 8.1% (" in note or "1 instance by 8.1% (" in note for note in said)
    assert all(note.endswith("The table has the scores of the rounded networks.") for note in said)
