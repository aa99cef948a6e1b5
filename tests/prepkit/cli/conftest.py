"""Fixtures that test modules of this folder share. The cards of all zoos here lack their picture."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_samples import NETS, ZOO_NAMES, trained
from command_line import prepkit
from torch import nn

from prepkit.families.registry import architecture


@pytest.fixture(scope="module", autouse=True)
def _undrawn(undrawn_cards):
    pass


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


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """Four models, their table, and the zoo of them."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("originals")
    (root / "models").mkdir()
    for number in range(4):
        torch.save(architecture(ZOO_NAMES[number % 2]).build().state_dict(), root / "models" / f"m{number}.pt")
    lines = ["file,id,split,accuracy,epoch,run,best,comment", "m0.pt,a,train,0.5,1,1,true,", "m1,b,train,1,2,1,False,x"]
    lines += ["m2.pt,c,,,3,2,,7", "m3.pt,d,test,nan,4,2,TRUE,é"]
    (root / "table.csv").write_text("\n".join(lines))
    files = sorted((root / "models").iterdir())
    prepkit("zoo", "create", root / "zoo", *files, "--table", root / "table.csv", "--license", "mit")
    return root


@pytest.fixture
def files(originals, tmp_path):
    return sorted(shutil.copytree(originals / "models", tmp_path / "models").iterdir())


@pytest.fixture
def csv(originals, tmp_path):
    return shutil.copy(originals / "table.csv", tmp_path / "table.csv")


@pytest.fixture
def zoo(originals, tmp_path):
    return shutil.copytree(originals / "zoo", tmp_path / "zoo")
