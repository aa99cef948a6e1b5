"""Networks that prepkit does not know."""

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of networks that prepkit does not know."""
    (tmp_path / "packing_nets.py").write_text(
        textwrap.dedent("""
        import torch
        from torch import nn

        class Tied(nn.Module):
            def __init__(self, norm):
                super().__init__()
                self.last, self.first = nn.Linear(4, 4), nn.Linear(4, 4)
                self.first.weight = self.last.weight
                self.conv, self.norm = nn.Conv1d(4, 4, 1), norm(4)
                self.register_buffer("table", torch.arange(6).reshape(2, 3))
                self.register_buffer("scale", torch.ones(3))

            def forward(self, x):
                return self.last(self.first(self.norm(self.conv(x)).mean(2))) + self.scale.sum()

        def tied():
            return Tied(nn.BatchNorm1d)

        def unfoldable():
            return nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4), nn.ReLU())

        def plain():
            return Tied(lambda channels: nn.Identity())
    """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "packing_nets"
    sys.modules.pop("packing_nets", None)
