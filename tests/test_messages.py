"""Messages of the library name keyword arguments; only the command line makes options of them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from prepkit.cli.output import with_flags

ROOT = Path(__file__).parent.parent
PROGRAM = ("cli", "program.py", "__main__.py")  # they are the command line
OPTION = re.compile(r"(?<![\w-])--[a-z]+(?:-[a-z]+)*")
OTHERS = {"--nproc-per-node", "--revision"}  # of torchrun, and of `hf download`


def texts(source: str) -> Iterator[tuple[int, str]]:
    """All strings of a module but docstrings, with `{}` for what is put into them."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) and id(node) not in docstrings:
            pieces = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield node.lineno, "".join(map(str, pieces))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (docstrings | parts):
            yield node.lineno, node.value


def options_in(text: str) -> list[str]:
    """Options that a text names outside of whole commands."""
    return [option for option in OPTION.findall(re.sub(r"`[^`]*`|hf download .*", "", text)) if option not in OTHERS]


@pytest.mark.parametrize("package", ["prepkit", "netspace"])
def test_no_message_of_the_library_names_an_option(package: str) -> None:
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        relative = path.relative_to(ROOT / package)
        if relative.parts[0] not in PROGRAM:
            found += [
                f"{relative}:{line}: {option}"
                for line, text in texts(path.read_text(encoding="utf-8"))
                for option in options_in(text)
            ]
    assert found == []


def test_an_option_in_a_message_would_be_found() -> None:
    source = (
        'def f(n):\n    """--doc."""\n    raise ValueError(f"{n} is small; give --least, or `zoo train --stack 2`.")'
    )
    assert [option for _, text in texts(source) for option in options_in(text)] == ["--least"]


@pytest.mark.parametrize(
    ("message", "with_options"),
    [
        ("a smaller `stack`.", "a smaller --stack."),
        ("was begun with `instances` 2 `epochs` 3;", "was begun with --instances 2 --epochs 3;"),
        ("name it: data=PATH", "name it: --data PATH"),
        ("batch.instances=8", "batch.instances=8"),
        ("give `items`, one each", "give --item, one each"),
    ],
)
def test_the_command_line_makes_options_of_keywords(message: str, with_options: str) -> None:
    assert with_flags(message) == with_options
