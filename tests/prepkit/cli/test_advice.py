"""Tests that no message advises an option which the command that prints it does not have."""

import ast
import re
from pathlib import Path

import click
import pytest

import prepkit
from prepkit.cli import main
from prepkit.cli.output import COMMAND, FLAGS, _commands, _options, with_flags

COMMANDS = dict(_commands(main, "prepkit"))
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
OTHER_PROGRAMS = {"--nproc-per-node", "--repo-type", "--revision", "--head"}  # options of torchrun, hf and ray
# Commands that print the messages of a folder; messages of all other folders name no option by itself.
PRINTING = {
    "browsing": ["prepkit zoo view"],
    "tasks": ["prepkit zoo train", "prepkit zoo verify"],
    "training": ["prepkit zoo train"],
}
LIBRARY = [file for file in Path(prepkit.__file__).parent.rglob("*.py") if "cli" not in file.parts]


def foreign_options(message, command):
    """List the options in a message that neither the command has nor the command that is quoted with them."""
    foreign = []
    for quoted in re.findall(r"`(prepkit [^`]*)`", message):
        known = [_options(other) for name, other in COMMANDS.items() if quoted.startswith(name)]
        assert known, quoted
        foreign += [option for option in OPTION.findall(quoted) if option not in known[0]]
    rest = re.sub(r"`prepkit [^`]*`", "", message)
    return foreign + [option for option in OPTION.findall(rest) if option not in _options(command)]


@pytest.mark.parametrize("name", COMMANDS)
def test_keywords_become_options_that_the_command_has(name):
    command = COMMANDS[name]
    with click.Context(main, info_name="prepkit") as context:
        context.meta[COMMAND] = command
        for keyword in FLAGS:
            assert not foreign_options(with_flags(f"do it again ({keyword})."), command), keyword


def test_another_command_is_named_where_this_one_has_no_such_option():
    with click.Context(main, info_name="prepkit") as context:
        context.meta[COMMAND] = COMMANDS["prepkit fuse"]
        assert with_flags("pass allow_nonfinite=True") == "pass `prepkit pack --allow-nonfinite`"
        assert with_flags("choose with key='NAME'") == "choose with --key NAME"
        context.meta[COMMAND] = COMMANDS["prepkit pack"]
        assert with_flags("pass allow_nonfinite=True") == "pass --allow-nonfinite"


@pytest.mark.parametrize("file", LIBRARY, ids=lambda file: file.stem)
def test_the_library_names_options_only_with_their_command(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    documents = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(getattr(node, "body", None), list) and node.body and isinstance(node.body[0], ast.Expr)
    }
    commands = [COMMANDS[name] for name in PRINTING.get(file.parent.name, [])] or [click.Command("none")]
    for node in ast.walk(tree):
        text = getattr(node, "value", None)
        if isinstance(node, ast.Constant) and isinstance(text, str) and id(node) not in documents:
            is_option = OPTION.fullmatch(text) is not None  # not a sentence
            foreign = {option for command in commands for option in foreign_options(text, command)}
            assert is_option or foreign <= OTHER_PROGRAMS, (node.lineno, text)


def test_every_command_is_known_when_its_messages_are_written():
    for name, command in COMMANDS.items():
        assert "--json" in _options(command), name


def test_a_zoo_is_made_with_the_options_of_pack():
    """All but those of the one file that pack writes, and of values that a zoo never takes."""
    other = {"--height", "--allow-nonfinite", "--allow-underflow", "-o", "--output", "--force"}
    assert set(_options(COMMANDS["prepkit pack"])) - other <= set(_options(COMMANDS["prepkit zoo create"]))
