"""The examples that end the help of every command are command lines that its parser takes."""

import re
import shlex
from importlib import import_module

import click
import pytest
from click.testing import CliRunner

PROGRAMS = ("prepkit", "netspace")


def walk(command, path):
    yield path, command
    if isinstance(command, click.Group):
        for name, member in command.commands.items():
            yield from walk(member, [*path, name])


def all_commands(program):
    pytest.importorskip(program)
    return walk(import_module(f"{program}.cli").main, [program])


def examples_of(path):
    """The command lines that the help of a command ends with, lines that go on joined."""
    root = import_module(f"{path[0]}.cli").main
    shown = CliRunner().invoke(root, [*path[1:], "--help"], prog_name=path[0]).stdout
    _, heading, after = shown.partition("\n  Example")
    assert heading, f"{' '.join(path)}: no examples"
    lines = after.partition("\n")[2].replace("\\\n", "").splitlines()
    assert all(line.startswith("    ") for line in lines), f"{' '.join(path)}: the help goes on after the examples"
    return lines


def words_of(line):
    """The words of our own program in a line of a shell, whatever stands around it."""
    inner = re.search(r"\$\((.+?)\)", line)
    words = shlex.split(inner[1] if inner else re.sub(r" # .*", "", line))
    while "|" in words:
        words = words[words.index("|") + 1 :]
    if "-m" in words:
        words = words[words.index("-m") + 1 :]
    for redirection in {"<", ">", ">>"} & set(words):
        words = words[: words.index(redirection)]
    return words


def parse(words):
    """Parse a whole command line without running it; return the path of its command."""
    command, path = import_module(f"{words[0]}.cli").main, [words[0]]
    parent = click.Context(command, **command.context_settings)
    while isinstance(command, click.Group) and len(words) > len(path) and not words[len(path)].startswith("-"):
        path.append(words[len(path)])
        command = command.commands[path[-1]]
    with CliRunner().isolation():
        command.make_context(path[-1], words[len(path) :], parent=parent)
    return path


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_command_ends_its_help_with_examples_that_parse(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    count = 0
    for path, command in all_commands(program):
        lines = examples_of(path)
        assert 1 <= len(lines) <= 3, path
        for line in lines:
            words = words_of(line)
            if words[0] not in path[:1]:
                assert len(path) == 1, f"{line}: another program's command"
                pytest.importorskip(words[0])
            asked = parse(words)
            is_here = asked[: len(path)] == path if isinstance(command, click.Group) else asked == path
            assert is_here or len(path) == 1, f"{line}: an example of another command than {' '.join(path)}"
            count += 1
    assert count > 20


@pytest.mark.parametrize(
    "words",
    [
        "prepkit pack",
        "prepkit pack model.pt --widht 512",
        "prepkit zoo merge both",
        "prepkit zoo import siren a b --from",
    ],
)
def test_what_is_no_command_line_does_not_parse(words):
    with pytest.raises(click.UsageError):
        parse(words.split())
