"""One colour an idea: no two ideas share one, and no picture of netspace has a colour of its own."""

import re
from pathlib import Path

from matplotlib.colors import to_rgb

import netspace
from netspace.explore import colours
from prepkit import figures


def test_no_two_ideas_share_a_colour():
    ideas = [value for name, value in vars(colours).items() if name.isupper() and not name.startswith("_")]
    every = [to_rgb(colour) for colour in (*ideas, *(colours.of_architecture(number) for number in range(8)))]
    assert len(ideas) == 8
    assert len(set(every)) == len(every) == 16
    closest = min(sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) ** 0.5 for x in every for y in every if x != y)
    assert closest > 0.1
    assert colours.of_architecture(8) == colours.of_architecture(0)


def test_no_picture_has_a_colour_of_its_own():
    own = re.compile(r'#[0-9a-fA-F]{6}"|f?"C(\d|\{)')
    folder = Path(netspace.__file__).parent
    files = [file for file in folder.rglob("*.py") if file.name != "colours.py"]
    assert len(files) > 40
    assert [str(file) for file in files if own.search(file.read_text(encoding="utf-8"))] == []


def test_signed_weights_are_red_and_blue_in_every_picture():
    source = Path(figures.__file__).read_text(encoding="utf-8")
    assert set(re.findall(r'cmap="(\w+)"|"cmap": "(\w+)"', source)) == {("", "RdBu_r")}
