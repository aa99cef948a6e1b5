"""What rounding folded values to their dtype costs is said when a zoo is trained."""

from __future__ import annotations

import pytest
import torch
from killed_training import TEXTS, spec
from torch import nn

from prepkit.families.folding import fold_stack
from prepkit.families.registry import architecture_from_callable
from prepkit.support.progress import Progress
from prepkit.training import _results
from prepkit.training.run import train_zoo

WIDTH = 32


def deep() -> nn.Module:
    """A network in which each block more than doubles the smallest difference."""
    blocks = [m for _ in range(80) for m in (nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh())]
    network = nn.Sequential(*blocks)
    for module in network:
        if isinstance(module, nn.BatchNorm1d):
            nn.init.constant_(module.weight, 2)
            module.momentum = 1.0
    network(torch.randn(64, WIDTH))  # gives it statistics
    return network.eval()


def test_a_stack_is_measured_network_by_network():
    architecture = architecture_from_callable(f"{__name__}:deep", (WIDTH,))
    torch.manual_seed(0)
    networks = [deep(), deep().double()]  # values in float64 are not rounded
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

    notes: list[str] = []

    class Notes(Progress):
        def say(self, text: str) -> None:
            notes.append(text)

    monkeypatch.setattr(_results, "fold_stack", costly)
    train_zoo(spec(TEXTS["last"]), tmp_path / "zoo", device="cpu", threads=1, progress=Notes())
    said = [note for note in notes if note.startswith("note: rounding the folded values changes the outputs of ")]
    assert said == notes
    assert said
    assert all("by up to 8.1% (" in note or "1 instance by 8.1% (" in note for note in said)
    assert all(note.endswith("The table has the scores of the rounded networks.") for note in said)
