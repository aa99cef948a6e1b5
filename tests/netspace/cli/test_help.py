"""Help of netspace's commands."""

import click
import pytest
from click.testing import CliRunner

pytest.importorskip("netspace")

from netspace.cli import main
from netspace.recipe import load_recipe


@pytest.mark.parametrize("name", main.commands)
def test_help_of_every_command_is_whole(name):
    command = main.commands[name]
    shown = " ".join(CliRunner().invoke(main, [name, "-h"]).stdout.split())
    assert 0 < len(command.get_short_help_str(200)) <= 60, "a list of commands would cut it"
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{option.name} has no help"
            assert option.opts[-1] in shown


def test_help_names_every_exit_status():
    status = "Exit status: 0 done, 1 the operation failed, 2 wrong usage or input, 130 interrupted."
    assert status in " ".join(CliRunner().invoke(main, ["-h"]).stdout.split())


def test_a_recipe_is_printed_and_read_as_the_built_in_one(tmp_path):
    printed = CliRunner().invoke(main, ["recipes", "digits_multi"]).stdout
    (tmp_path / "mine.toml").write_text(printed)
    assert load_recipe(tmp_path / "mine.toml") == load_recipe("digits_multi")
    refused = CliRunner().invoke(main, ["recipes", "digits_mult"])
    assert refused.exit_code == 2
    assert "Did you mean 'digits_multi'?" in refused.stderr
