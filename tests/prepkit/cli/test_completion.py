"""<TAB> in real shells, two of them on a pseudo-terminal: paths, architectures, specs, recipes and ids of a zoo."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time

import pytest
import torch

from prepkit.families.registry import architecture
from prepkit.zoo.write.writer import ZooWriter

PROGRAMS = ("prepkit", "netspace")
SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$({0} completion bash)"'),
    "zsh": (["zsh", "-f", "-i"], 'autoload -Uz compinit; compinit -u -D; eval "$({0} completion zsh)"'),
}
PROGRAM = """#!/bin/sh
if [ -n "$_{0}_COMPLETE" ] || [ "$1" = completion ]; then exec "{1}" -m {2} "$@"; fi
printf '%s\\n' "$@" > arguments.part
mv arguments.part arguments
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with programs that write down how they are called, files to complete, and a zoo."""
    root = tmp_path_factory.mktemp("completion")
    for name in PROGRAMS:
        file = root / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(PROGRAM.format(name.upper(), sys.executable, name))
        file.chmod(0o755)
    for name in ("model.pt", "other.pt", "mine.toml"):
        (root / name).touch()
    (root / "modules").mkdir()
    known = architecture("lenet_like@digits")
    torch.manual_seed(0)
    with ZooWriter(root / "zoo", width=128) as writer:
        for name in ("net-4", "net-57"):
            writer.add(known.build().state_dict(), architecture=known, id=name)
    return root


def environment(folder):
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "dumb"}


class Shell:
    """A shell on a pseudo-terminal, in a folder, with the completion of both programs."""

    def __init__(self, name, folder):
        command, setup = SHELLS[name]
        self.written = folder / "arguments"
        self.terminal, other_end = pty.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=other_end,
            stdout=other_end,
            stderr=other_end,
            cwd=folder,
            env=environment(folder),
            start_new_session=True,
        )
        os.close(other_end)
        self.shown = b""
        for program in PROGRAMS:
            self.write(setup.format(program) + "\n")
        self.write("echo rea''dy\n")
        self.read_until(lambda: b"ready" in self.shown)

    def write(self, text):
        os.write(self.terminal, text.encode())

    def read_until(self, done):
        end = time.monotonic() + 60
        while not done() and time.monotonic() < end:
            if select.select([self.terminal], [], [], 0.05)[0]:
                self.shown += os.read(self.terminal, 65536)
        assert done(), self.shown.decode(errors="replace")

    def completed(self, typed):
        """The arguments of a command of which <TAB> and Enter are typed after its last word."""
        self.written.unlink(missing_ok=True)
        self.write(f"{typed}\t\n")
        self.read_until(self.written.exists)
        return self.written.read_text().split()

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)


@pytest.fixture(scope="module", params=SHELLS)
def shell(request, folder):
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    opened = Shell(request.param, folder)
    yield opened
    opened.close()


TYPED = pytest.mark.parametrize(
    ("typed", "last"),
    [
        ("prepkit pack model", "model.pt"),
        ("prepkit unpack oth", "other.pt"),
        ("prepkit zoo create new oth", "other.pt"),
        ("prepkit arch show vanilla_cnn@dig", "vanilla_cnn@digits"),
        ("prepkit pack model.pt --arch lenet_like@dig", "lenet_like@digits"),
        ("prepkit zoo train digits_sing", "digits_single"),
        ("prepkit zoo train mine", "mine.toml"),
        ("prepkit zoo export zoo net-5", "net-57"),
        ("netspace train digits_sing", "digits_single"),
        ("netspace train mine", "mine.toml"),
        ("netspace evaluate modul", "modules"),
        ("netspace interpolate run --zoo zoo net-5", "net-57"),
    ],
)


@TYPED
def test_tab_completes_the_last_word(typed, last, shell):
    if typed.startswith("netspace"):
        pytest.importorskip("netspace")
    found = [word.rstrip("/") for word in shell.completed(typed)]  # zsh takes the slash of a folder back at Enter
    assert found == [*typed.split()[1:-1], last]


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_offers_the_last_word(folder):
    """fish tells what it would offer without a terminal."""
    cases = {typed: last for typed, last in TYPED.args[1][1::3] if typed.startswith("prepkit")}
    offers = "; ".join(f"complete -C '{typed}' | head -1" for typed in cases)
    command = ["fish", "--no-config", "-c", f"prepkit completion fish | source; {offers}"]
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.split() == list(cases.values())
