"""The names that netspace offers, and that they come from the package and not from this folder."""

from pathlib import Path

import netspace
import netspace.network


def test_names() -> None:
    assert netspace.__all__ == ["NetSpace"]
    assert netspace.NetSpace is netspace.network.NetSpace
    assert Path(netspace.__file__).parent != Path(__file__).parent
