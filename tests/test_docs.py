"""Every code block of docs/ does what the page says.

Blocks of `python` run in one namespace a page, and those of `console` are typed: a line after `$ ` is a command, and
the lines behind it must stand in what it prints, whatever their numbers are; a line `...` stands for any lines. Blocks
of `py` and `sh` are not run: a comment before each says why, `<!-- not run: needs a GPU -->`. What a page needs and
does not show stands in comments `<!-- run: ... -->`, as Python. Pages of a chapter share a folder.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import torch

import netspace.cli
import prepkit.cli

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$|<!-- run:\n(.*?)-->", re.DOTALL | re.MULTILINE)
NOT_RUN = re.compile(r"<!-- not run: [^\n]+ -->\n+ *$")
COMMANDS = {"prepkit": prepkit.cli.main, "netspace": netspace.cli.main}
CHAPTERS = [
    ["index.md"],
    [f"tutorial/{page}.md" for page in ("index", "1-pack", "2-zoo", "3-look", "4-learn", "5-publish", "6-space")],
    *([f"howto/{page.name}"] for page in sorted((DOCS / "howto").glob("*.md"))),
    ["concepts.md"],
    ["../README.md"],
]


@dataclass(frozen=True)
class Block:
    """A block of code; `place` is for messages."""

    kind: str
    text: str
    place: str


def blocks_of(page: str) -> Iterator[Block]:
    text = (DOCS / page).read_text()
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        indent, kind, code, hidden = found.groups()
        if hidden is not None:
            yield Block("python", hidden, f"{page}:{line}")
            continue
        if kind in ("py", "sh"):
            assert NOT_RUN.search(text[: found.start()]), f"{page}:{line}: say why this block is not run"
        yield Block(kind, textwrap.dedent(indent + code), f"{page}:{line}")


def numberless(text: str) -> str:
    """A line without its numbers, the units and dots beside them, and its spaces."""
    return re.sub(r"[\s\d.,:%+-]+|\b([KMGT]i?)?B\b|\bm?s\b", "", text)


def typed(command: str) -> str:
    """What a command prints to the terminal; it must end well."""
    name, *arguments = shlex.split(re.sub(r" +# .*", "", command))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        status: Any = 0
        try:
            if name == "python":
                run_script(arguments)
            else:
                COMMANDS[name].main(arguments, prog_name=name, standalone_mode=False)
        except click.exceptions.Exit as error:
            status = error.exit_code
        except SystemExit as error:
            status = error.code or 0
    assert status == 0, f"{command}: {status}\n{printed.getvalue()}"
    return printed.getvalue()


def run_script(arguments: list[str]) -> None:
    """Run a Python file as `python FILE ARGUMENTS` does."""
    path = Path(arguments[0])
    before, sys.argv, sys.path = (sys.argv, sys.path), arguments, [str(path.parent), *sys.path]
    try:
        exec(compile(path.read_text(), str(path), "exec"), {"__name__": "__main__", "__file__": str(path)})
    finally:
        sys.argv, sys.path = before


def run_console(block: Block) -> None:
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        lines = part.replace("\\\n", "").splitlines()
        printed = [numberless(line) for line in typed(lines[0]).splitlines()]
        for line in filter(None, lines[1:]):
            if line.strip() == "...":
                continue
            assert numberless(line) in printed, (
                f"{block.place}: `{lines[0]}` does not print\n{line}\nbut\n" + "\n".join(printed)
            )


@pytest.mark.parametrize("pages", CHAPTERS, ids=lambda pages: pages[0].removesuffix(".md"))
def test_blocks_run(pages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "nets", raising=False)  # a page's own module, of which a test may have another
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for page in pages:
        torch.manual_seed(0)
        names: dict[str, Any] = {"__name__": "__main__", "hub": hub}
        for block in blocks_of(page):
            if block.kind == "python":
                exec(compile("\n" * int(block.place.split(":")[1]) + block.text, str(DOCS / page), "exec"), names)
            elif block.kind == "console":
                run_console(block)
            else:
                assert block.kind in ("py", "sh", "toml", "text", ""), (
                    f"{block.place}: blocks have a kind that is known"
                )


def test_pages_are_those_of_chapters() -> None:
    """A page with code that no chapter holds would not be run."""
    tested = {page for pages in CHAPTERS for page in pages}
    for path in DOCS.rglob("*.md"):
        page = str(path.relative_to(DOCS))
        if page not in tested:
            assert not [block for block in blocks_of(page) if block.kind in ("python", "console")], page
