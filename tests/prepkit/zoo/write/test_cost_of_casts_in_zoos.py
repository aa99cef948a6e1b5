"""What rounding folded values to their dtype costs is said when a zoo is made of models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from deep_networks import WIDTH, deep
from torch import nn

from prepkit.api import create_zoo, open_zoo
from prepkit.cli import main
from prepkit.families.registry import architecture_from_callable


def shallow() -> nn.Module:
    return deep(2)


def saved(folder: Path, network: nn.Module, *names: str) -> list[Path]:
    files = [folder / name for name in names]
    for file in files:
        torch.save(network.state_dict(), file)
    return files


@pytest.fixture
def architecture():
    return architecture_from_callable("deep_networks:deep", (WIDTH,))


def test_create_zoo_says_how_much_a_cast_costs(tmp_path, architecture):
    """The first network is proved and the second takes its steps: both are measured, in float64."""
    network = deep()
    files = saved(tmp_path, network, "a.pt", "b.pt")
    written = create_zoo(tmp_path / "zoo", files, architecture=architecture)
    (note,) = written.notes
    found = re.match(r"rounding the folded values changes the outputs of 2 models by up to ([0-9.]+)% \('a'", note)
    assert found, note
    x = architecture.example_input().double()
    with torch.no_grad():
        expected = network.double()(x)
        for index in range(2):
            stored = open_zoo(tmp_path / "zoo", trust_code=True).network(index).double()(x)
            cost = float((stored - expected).abs().max() / expected.abs().max())
            assert cost == pytest.approx(float(found[1]) / 100, abs=6e-4)
            assert cost > 1e-3


def test_the_command_prints_it(tmp_path, monkeypatch):
    (file,) = saved(tmp_path, deep(), "a.pt")
    call = ["zoo", "create", str(tmp_path / "zoo"), str(file), "--arch", "deep_networks:deep", "--input", str(WIDTH)]
    result = CliRunner().invoke(main, call)
    assert result.exit_code == 0, result.output
    assert "note: rounding the folded values changes the outputs of 1 model by " in result.stderr
    assert "pack it with its BatchNorm (--keep-bn)" in result.stderr


def test_a_network_that_does_not_react_strongly_gets_no_note(tmp_path):
    files = saved(tmp_path, shallow(), "a.pt", "b.pt")
    known = architecture_from_callable(f"{__name__}:shallow", (WIDTH,))
    assert create_zoo(tmp_path / "zoo", files, architecture=known).notes == ()
