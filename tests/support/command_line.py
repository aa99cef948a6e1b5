"""Commands of `prepkit` run in this process, and what they print."""

import json

from click.testing import CliRunner

from prepkit.cli import main


def prepkit(*arguments, status=0):
    """Run a command, whose exit status is to be `status`."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == status, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result


def told(*arguments, status=2):
    """The one line that a failing command prints."""
    result = prepkit(*arguments, status=status)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    return line.removeprefix("Error: ")


def as_json(*arguments, status=0):
    """What a command prints with --json."""
    return json.loads(prepkit(*arguments, "--json", status=status).stdout)
