"""The licence of an imported zoo is asked for and never guessed, whatever its kind."""

from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

import prepkit
from prepkit.cli import main
from prepkit.zoo.card.card import card_text
from prepkit.zoo.importers.kinds import KINDS


@pytest.fixture
def source(tmp_path):
    (tmp_path / "src/r0").mkdir(parents=True)
    torch.save({"a.weight": torch.ones(2, 2)}, tmp_path / "src/r0/net.pt")
    return tmp_path / "src"


def imported(source, *options):
    arguments = ["zoo", "import", "tree", source, source.parent / "zoo", "--pattern", "{run}/net.pt", *options]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result, (source.parent / "zoo/README.md").read_text()


def test_without_one_the_card_says_whom_to_ask(source):
    result, card = imported(source)
    assert "note: No licence is noted: --license names the one" in result.stderr
    assert "licence  none given" in result.stdout
    assert card.startswith("---\nlicense: unknown\n")
    assert "none was given. The networks are those of others, whose zoo `prepkit zoo import tree` read: ask its" in card


def test_a_given_one_is_written(source):
    result, card = imported(source, "--license", "cc-by-4.0")
    assert "licence" not in result.stderr
    assert card.startswith("---\nlicense: cc-by-4.0\n")
    assert card.rstrip().endswith("## Licence\n\ncc-by-4.0")


def test_each_kind_tells_where_the_zoo_came_from(source):
    imported(source)
    zoo = prepkit.open_zoo(source.parent / "zoo")
    for kind in KINDS:
        zoo._store.manifest = replace(zoo.manifest, provenance={"command": f"zoo import {kind}"})
        card = card_text(zoo, False)
        assert "license: unknown" in card
        assert f"`prepkit zoo import {kind}` read: ask its makers" in card
    zoo._store.manifest = replace(zoo.manifest, provenance={"command": "zoo create"})
    assert card_text(zoo, False).rstrip().endswith("none was given.")
