"""Tests of `prepkit zoo audit`."""

import json
from pathlib import Path

import pytest
import torch
from cli_samples import run

from prepkit.auditing.findings import KINDS
from prepkit.cli.auditing import audit


@pytest.fixture
def zoo(folder: Path) -> Path:
    """A zoo of two equal networks, without a licence or a task."""
    for number in (1, 2):
        torch.save({"w": torch.arange(4.0)}, f"r{number}.pt")
    run("zoo", "create", "zoo", "r1.pt", "r2.pt")
    return Path("zoo")


def test_text_page_and_json(zoo: Path) -> None:
    result = run("zoo", "audit", "zoo", "-o", "page.html")
    assert result.stdout.startswith("zoo: 2 networks\n  duplicates       2 networks in 1 group have equal weights")
    assert "                   r1 = r2\n" in result.stdout
    assert result.stdout.endswith("page             page.html\n")
    assert "<title>Audit of zoo</title>" in Path("page.html").read_text()
    message = run("zoo", "audit", "zoo", "-o", "page.html", code=2).stderr
    assert "page.html" in message
    assert "--force" in message
    document = json.loads(run("zoo", "audit", "zoo", "-o", "page.html", "--force", "--json").stdout)
    assert (document["zoo"], document["counts"]["duplicates"], document["page"]) == ("zoo", 2, "page.html")
    assert run("zoo", "audit", "zoo", "--against", "zoo").stdout.startswith("zoo: 2 networks, compared with 'zoo'\n")


def test_the_exit_status(zoo: Path) -> None:
    run("zoo", "audit", "zoo", "--fail-on", "leaks,nan", code=0)
    run("zoo", "audit", "zoo", "--fail-on", "leaks, duplicates", code=1)
    assert (
        "no kind 'copies'; the kinds are leaks, seeds,"
        in run("zoo", "audit", "zoo", "--fail-on", "copies", code=2).stderr
    )
    assert "name one or more of" in run("zoo", "audit", "zoo", "--fail-on", ",", code=2).stderr
    assert "--force goes with -o" in run("zoo", "audit", "zoo", "--force", code=2).stderr
    assert "1" in run("zoo", "audit", "zoo", "--tolerance", "1", code=2).stderr


def test_what_is_no_zoo(folder: Path) -> None:
    assert "does not exist" in run("zoo", "audit", "nowhere", "-o", "page.html", code=2).stderr
    assert not Path("page.html").exists()


def test_the_help_names_all_kinds() -> None:
    assert audit.help is not None
    assert ", ".join(KINDS) in " ".join(audit.help.split())
