"""-q and -v of commands, colour, and the library's logs in a program of its user."""

import json
import logging
import os
import pty
import re
import subprocess
import sys
from contextlib import redirect_stderr

import pytest
import torch
from cli_samples import good, run, save
from click.testing import CliRunner
from fake_terminal import Terminal

import prepkit
from prepkit.cli import main
from prepkit.support.progress import show_progress

RED = "\x1b[31m"


@pytest.fixture
def zoo_with_notes(folder):
    """The arguments that make a zoo of which a note tells the types of columns."""
    good()
    (folder / "scores.csv").write_text("file,accuracy\ngood.pt,0.5\n")
    return lambda name: ["zoo", "create", name, "good.pt", "--table", "scores.csv"]


@pytest.mark.parametrize("where", [0, 1, 99])
def test_quiet_leaves_results_and_takes_notes_away(where, zoo_with_notes):
    loud = run(*zoo_with_notes("zoo"))
    assert loud.stderr.startswith("note: column accuracy: ")
    arguments = zoo_with_notes("quiet-zoo")
    quiet = run(*arguments[:where], "-q", *arguments[where:])
    assert (quiet.stdout, quiet.stderr) == (loud.stdout.replace("zoo:", "quiet-zoo:", 1), "")


def test_quiet_leaves_errors(folder):
    broken = save({"w": "text"}, "broken.pt")
    done = run("pack", good(), broken, "--keep-going", "-o", "preps/", "-q", code=2)
    assert done.stderr.startswith("failed: broken.pt holds no named tensors")
    assert "1 of 2 models packed" in done.stdout
    assert run("pack", broken, "-q", code=2).stderr.startswith("Error: broken.pt holds no named tensors")


def test_quiet_shows_no_bar_on_a_terminal(folder):
    for name in ("a.pt", "b.pt"):
        save({"w": torch.ones(100)}, name)
    for flags, is_shown in (([], True), (["-q", "--force"], False)):
        with redirect_stderr(Terminal()) as shown:
            main(["pack", "a.pt", "b.pt", *flags], standalone_mode=False)
        assert ("packing" in shown.getvalue()) is is_shown
        assert bool(shown.getvalue()) is is_shown
    assert show_progress.get()


def test_verbose_tells_what_is_done_and_leaves_the_loggers_alone(folder):
    logger = logging.getLogger("prepkit")
    before = (logger.level, list(logger.handlers))
    told = run("pack", good(), "-v").stderr.splitlines()
    assert re.fullmatch(r" *\d+\.\d\d s  cli: prepkit \S+, Python 3\..*", told[0])
    assert any("packing: read 'good.pt'" in line for line in told)
    assert run("pack", "good.pt", "--force").stderr == ""
    assert (logger.level, logger.handlers) == before


def test_verbose_twice_tells_where_an_error_came_from(folder):
    message = "Error: nothing.pt cannot be read"
    once, twice = (run("inspect", "nothing.pt", flag, code=2).stderr for flag in ("-v", "-vv"))
    assert "Traceback" not in once
    assert "Traceback" in twice
    assert message in once
    assert message in twice
    document = json.loads(run("inspect", "nothing.pt", "-vv", "--json", code=2).stdout)
    assert document["error"]["kind"] == "CheckpointError"


def test_quiet_and_verbose_exclude_each_other(folder):
    for arguments in (["-q", "inspect", "x.pt", "-v"], ["-v", "inspect", "x.pt", "-q"], ["inspect", "x.pt", "-qv"]):
        assert "give one of them" in run(*arguments, code=2).stderr


# Logs -----------------------------------------------------------------------------------------------------------


def test_the_library_is_silent_until_its_user_wants_to_hear_it(folder, caplog, capfd):
    with caplog.at_level(logging.WARNING, logger="prepkit"):  # the level of a program that sets none
        prepkit.pack_checkpoint(good())
    assert caplog.records == []
    with caplog.at_level(logging.INFO, logger="prepkit"):
        prepkit.pack_checkpoint("good.pt")
    assert [record.name for record in caplog.records] == ["prepkit.packing"] * 3
    assert caplog.messages[0] == "read 'good.pt' (torch zip): 1 tensor"
    assert capfd.readouterr() == ("", "")


def test_importing_the_command_line_does_not_import_logging():
    code = "import sys, prepkit.cli; assert 'logging' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# Colour ---------------------------------------------------------------------------------------------------------


def on_terminal(*arguments, **environment):
    """Run prepkit on a pseudo-terminal; return its exit status and what it showed."""
    ours, its = pty.openpty()
    settings = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    command = [sys.executable, "-m", "prepkit", *arguments]
    environment = {**settings, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    process = subprocess.Popen(command, stdin=its, stdout=subprocess.DEVNULL, stderr=its, env=environment)
    os.close(its)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # how Linux tells that the other end was closed
        pass
    os.close(ours)
    return process.wait(), shown.decode()


@pytest.mark.parametrize(
    ("environment", "is_coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False)],
)
def test_errors_are_red_on_a_terminal_unless_told_otherwise(environment, is_coloured, tmp_path):
    status, shown = on_terminal("zoo", "info", str(tmp_path / "nothing"), **environment)
    assert status == 2
    assert (RED in shown) is is_coloured
    assert ("\x1b" in shown) is is_coloured


def test_elsewhere_colour_must_be_forced(model, folder):
    run("pack", "model.pt", "--dtype", "float16")
    arguments = ["diff", "model.pt", "model.prep.safetensors"]
    plain = CliRunner().invoke(main, arguments, env={"FORCE_COLOR": None})
    forced = CliRunner().invoke(main, arguments, env={"FORCE_COLOR": "1"})
    assert "\x1b" not in plain.output
    assert RED in forced.output.splitlines()[-1]
    assert f"{RED}\x1b[1mError:\x1b[0m" in CliRunner().invoke(main, ["diff", "a"], env={"FORCE_COLOR": "1"}).stderr


def test_documents_have_no_colour(model, folder):
    forced = CliRunner().invoke(main, ["diff", "model.pt", "model.pt", "--json"], env={"FORCE_COLOR": "1"})
    assert json.loads(forced.stdout)["same"] is True
