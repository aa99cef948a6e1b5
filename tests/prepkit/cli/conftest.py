"""Fixtures that test modules of this folder share."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_samples import NETS, trained
from torch import nn


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, empty, in which commands run; sys.path and modules are as before afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    modules = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - modules:
        if name.startswith("cli_nets"):
            del sys.modules[name]


@pytest.fixture
def model(folder: Path) -> nn.Module:
    """A trained resnet8@digits in model.pt."""
    network = trained()
    torch.save(network.state_dict(), "model.pt")
    return network


@pytest.fixture
def nets(folder: Path) -> Any:
    """cli_nets.py in the current folder, imported as the user's own code would be."""
    Path("cli_nets.py").write_text(NETS)
    scope: dict[str, Any] = {}
    exec(NETS, scope)
    return scope
