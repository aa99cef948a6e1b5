"""`prepkit zoo train` and `zoo specs`: what they print, what they refuse, and what Ctrl-C does."""

import json
import os
import re
import signal
import sys
import time
from contextlib import redirect_stderr

import command_line
import pytest
import torch
from command_line import prepkit
from fake_terminal import Terminal
from folder_contents import files_of

from prepkit.api import open_zoo
from prepkit.families.registry import architecture
from prepkit.support.progress import SHARE, ProgressBar
from prepkit.training.run import ZooTraining, train_zoo
from prepkit.training.spec import load_spec, spec_names
from prepkit.zoo.format.manifest import read_manifest

FEW = ("test = 360, validation = 180", "test = 900, validation = 700")  # leaves 197 images to learn from
CPU = ("--device", "cpu", "--threads", "1")
TEXT = """\
name = "tiny"
description = "A few small networks on digits."
license = "mit"
width = 128
architectures = ["lenet_like@digits", "vanilla_cnn@digits"]

[task]
kind = "images"
dataset = "digits"
split = {seed = 0, test = 360, validation = 180}

[instances]
"lenet_like@digits" = {train = 2, test = 1}
"vanilla_cnn@digits" = {train = 1}

[training]
optimizer = "sgd"
learning_rate = 0.05
batch_size = 128
epochs = 2
"""


def told(*arguments, status=2):
    return command_line.told("zoo", "train", *arguments, status=status)


@pytest.fixture
def spec(tmp_path):
    """Write a spec: TEXT with some pieces replaced."""

    def write(*changes):
        text = TEXT
        for old, new in changes:
            assert text.count(old) >= 1, old
            text = text.replace(old, new)
        file = tmp_path / "spec.toml"
        file.write_text(text)
        return file

    return write


@pytest.fixture
def unfinished(tmp_path, spec, monkeypatch):
    """The folder of an unfinished zoo of TEXT."""

    def stop(units):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("prepkit.training.run.executor", lambda *arguments: stop)
        result = prepkit("zoo", "train", spec(), tmp_path / "zoo", *CPU, status=130)
    assert f"interrupted; what is finished is kept in '{tmp_path / 'zoo'}'. The same command goes on." in result.stderr
    return tmp_path / "zoo"


def test_info_tells_how_far_a_training_is(spec, unfinished, monkeypatch):
    before = files_of(unfinished)
    lines = prepkit("zoo", "info", unfinished).stdout.splitlines()
    assert lines[0] == "tiny: unfinished; its writing was interrupted, and goes on with the command that began it"
    assert re.fullmatch(r"  finished 0 instances of 4 \(0 %\), it was begun \d+ s ago", lines[1])
    for flag in ("--splits", "--columns"):
        assert f"{flag} goes with a finished zoo" in prepkit("zoo", "info", unfinished, flag, status=2).stderr
    assert files_of(unfinished) == before
    seen = []

    def look(self, finished):
        write(self, finished)
        seen.append(json.loads(prepkit("zoo", "info", unfinished, "--json").stdout))
        seen.append(prepkit("zoo", "info", unfinished).stdout)

    write = ZooTraining._write
    monkeypatch.setattr(ZooTraining, "_write", look)
    prepkit("zoo", "train", spec(), unfinished, *CPU)
    counts = [document["finished"] for document in seen[::2]]
    assert counts == sorted(set(counts))
    assert counts[-1] == 4
    for document, text in zip(seen[::2], seen[1::2], strict=True):
        assert document["unfinished"]
        assert document["planned"] == 4
        assert document["waiting"] == 0
        assert document["holder"].startswith(f"process {os.getpid()} on ")
        assert sum(document["architectures"].values()) == sum(document["splits"].values()) == document["finished"]
        assert f" of 4 ({25 * document['finished']} %), the last one" in text
        assert "has been writing it for" in text
    assert prepkit("zoo", "info", unfinished).stdout.startswith("tiny: 4 instances, PReps ")


# What it prints -----------------------------------------------------------------------------------------------


def test_plain_lines_where_there_is_no_terminal(tmp_path, spec):
    result = prepkit("zoo", "train", spec(), tmp_path / "zoo", *CPU)
    lines = result.stderr.splitlines()
    assert lines[0] == "training: 0%, 0/4 instances"
    assert re.fullmatch(r"training: 100%, 4/4 instances, accuracy 0\.\d{3} in the last stack", lines[-1])
    assert result.stdout.startswith("tiny: 4 instances, PReps ")
    assert "\r" not in result.output


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has mallopt")
def test_only_the_command_line_changes_the_process_s_allocator(tmp_path, spec, mallopt_calls):
    train_zoo(spec(), tmp_path / "called", device="cpu", threads=1)
    assert mallopt_calls == []
    prepkit("zoo", "train", spec(), tmp_path / "commanded", *CPU)
    assert len(mallopt_calls) == 2


def test_lines_come_as_time_goes_by(tmp_path, spec, monkeypatch):
    monkeypatch.setattr("prepkit.support.progress.LINE_SECONDS", 0.0)
    lines = prepkit("zoo", "train", spec(), tmp_path / "zoo", *CPU, "--stack", 1).stderr.splitlines()
    shares = [int(found[1]) for line in lines if (found := re.match(r"training: +(\d+)%, \d/4 instances", line))]
    assert len(shares) >= 8
    assert shares == sorted(shares)
    assert shares[-1] == 100
    assert shares[0] < 50


def test_one_json_document_and_nothing_else(tmp_path, spec):
    result = prepkit("zoo", "train", spec(), tmp_path / "zoo", *CPU, "--json")
    document = json.loads(result.stdout)
    assert result.stderr == ""
    assert (document["output"], document["name"], document["instances"]) == (str(tmp_path / "zoo"), "tiny", 4)
    assert document["diverged"] == 0
    assert document["engine"]["device"] == "cpu"
    result = prepkit("zoo", "train", spec(), tmp_path / "zoo", "--json", status=2)
    assert "holds a finished zoo" in json.loads(result.stdout)["error"]["message"]


def test_instances_that_were_replaced_are_told(tmp_path, spec, monkeypatch):
    from prepkit.training._stack import Stack

    train_epoch = Stack._train_epoch

    def poisoned(stack):
        losses = train_epoch(stack)
        first = stack.attempts[stack.active[0]] == 0 and stack.setup.architecture.name.startswith("vanilla")
        return [float("inf")] * len(losses) if first else losses

    monkeypatch.setattr(Stack, "_train_epoch", poisoned)
    result = prepkit("zoo", "train", spec(), tmp_path / "zoo", *CPU)
    assert re.search(r"note: vanilla_cnn-00000 diverged with seed \d+ after epoch 1: replaced\.", result.stderr)
    assert "note: 1 attempt diverged and was replaced; zoo.json tells which." in result.stderr
    (gone,) = read_manifest(tmp_path / "zoo").provenance["diverged"]
    row = open_zoo(tmp_path / "zoo").table.to_pylist()[-1]
    assert (row["run"], gone["run"]) == ("vanilla_cnn-00000", "vanilla_cnn-00000")
    assert row["seed"] != gone["seed"]


def test_an_interruption_is_one_json_document(tmp_path, spec, monkeypatch):
    def stop(units):
        raise KeyboardInterrupt

    monkeypatch.setattr("prepkit.training.run.executor", lambda *arguments: stop)
    error = json.loads(prepkit("zoo", "train", spec(), tmp_path / "zoo", *CPU, "--json", status=130).stdout)["error"]
    kept = f"interrupted; what is finished is kept in '{tmp_path / 'zoo'}'. The same command goes on."
    assert error == {"kind": "Interrupted", "message": kept}


def test_a_bar_on_a_terminal(tmp_path, spec):
    file = spec(("epochs = 2", "epochs = 12"))
    with redirect_stderr(Terminal()) as terminal, ProgressBar("training", SHARE) as bar:
        train_zoo(file, tmp_path / "zoo", device="cpu", threads=1, stack=1, progress=bar)
    drawn = terminal.getvalue()
    assert re.search(r"training   0%\| +\| 0/4 instances \[00:00<\?\]", drawn)
    last = drawn.rstrip().split("\r")[-1]
    end = r"training 100%\|█+\| 4/4 instances, accuracy 0\.\d{3} in the last stack \[\d\d:\d\d<00:00\]"
    assert re.match(end, last), last
    assert re.search(r"training  \d\d%\|[^|]*\| [0-3]/4 instances.* \[\d\d:\d\d<\d\d:\d\d\]", drawn)


def test_specs():
    lines = prepkit("zoo", "specs").stdout.splitlines()
    assert lines[0].split() == ["name", "instances", "description"]
    assert [line.split()[0] for line in lines[2:]] == spec_names()
    width = max(map(len, spec_names()))
    assert f"{'digits_multi':<{width}}        368  LeNetLike" in "\n".join(lines)
    rows = json.loads(prepkit("zoo", "specs", "--json").stdout)["specs"]
    assert [row["name"] for row in rows] == spec_names()
    assert {row["name"]: row["instances"] for row in rows}["digits_single"] == 132
    assert {row["license"] for row in rows} >= {"mit", "other"}


def test_a_spec_is_printed_and_trains_as_the_built_in_one(tmp_path):
    printed = prepkit("zoo", "specs", "digits_single").stdout
    (tmp_path / "mine.toml").write_text(printed)
    assert load_spec(tmp_path / "mine.toml") == load_spec("digits_single")
    document = json.loads(prepkit("zoo", "specs", "digits_single", "--json").stdout)
    assert document["toml"] == printed
    refused = prepkit("zoo", "specs", "digits_singel", status=2)
    assert "Did you mean 'digits_single'?" in refused.stderr


def test_help():
    text = prepkit("zoo", "train", "--help").stdout
    options = ("--device", "--stack", "--threads", "--data", "--instances", "--epochs", "--ray", "--gpus", "--json")
    assert all(option in text for option in options)
    assert "prepkit zoo train digits_single my-zoo" in text
    assert "the same command goes on" in " ".join(text.split())
    assert "built-in" in prepkit("zoo", "specs", "--help").stdout
    listed = prepkit("zoo", "--help").stdout
    assert "train" in listed
    assert "specs" in listed


# What it refuses ----------------------------------------------------------------------------------------------


def test_specs_that_cannot_be_read(tmp_path, spec):
    zoo = tmp_path / "zoo"
    assert "unknown zoo spec 'digits_singel'. Built in are: " in told("digits_singel", zoo)
    assert "Did you mean 'digits_single'?" in told("digits_singel", zoo)
    message = told(tmp_path / "none.toml", zoo)
    assert message.endswith("none.toml: cannot be read: No such file or directory. Is the path right?")
    assert "epoch: unknown key" in told(spec(("epochs", "epoch")), zoo) or "epoch" in told(
        spec(("epochs", "epoch")), zoo
    )
    message = told(spec(("vanilla_cnn@digits", "vanilla_cnm@digits")), zoo)
    assert "spec.toml, architectures: unknown architecture 'vanilla_cnm@digits'" in message
    assert "Did you mean 'vanilla_cnn@digits'?" in message
    assert "is not TOML" in told(spec(("[task]", "[task")), zoo)
    assert not zoo.exists()


@pytest.mark.parametrize("option", ["--stack", "--instances", "--epochs", "--threads", "--gpus"])
def test_numbers_below_one(tmp_path, spec, option):
    assert "0 is not in the range x>" in told(spec(), tmp_path / "zoo", option, 0).replace("0.0 is", "0 is")
    assert not (tmp_path / "zoo").exists()


def test_a_device_that_is_not_there(tmp_path, spec):
    for name in ("tpu", "cpu:x"):
        assert f"unknown device '{name}'" in told(spec(), tmp_path / "zoo", "--device", name)
    assert "device 'cuda:99' was asked for" in told(spec(), tmp_path / "zoo", "--device", "cuda:99")
    assert not (tmp_path / "zoo").exists()


def test_data_that_is_not_at_hand(tmp_path, forked_python):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "HOME": str(tmp_path)}
    command = ["zoo", "train", "cifar10_single", tmp_path / "zoo", *CPU]
    done = forked_python.run("-m", "prepkit", *command, env=environment)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(r"Error: .*uoft-cs/cifar10", done.stderr)
    assert "--data" in told("chairs", tmp_path / "zoo", *CPU, status=1)
    assert not (tmp_path / "zoo").exists()


def test_folders_that_are_not_free(tmp_path, spec, unfinished, monkeypatch):
    file = spec()
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    assert "holds other files (thesis.tex); name an empty folder" in told(file, other, *CPU)
    assert "is a file, not a folder" in told(file, other / "thesis.tex", *CPU, status=2)
    assert sorted(path.name for path in other.iterdir()) == ["thesis.tex"]
    before = files_of(unfinished)
    assert "holds the unfinished zoo of another spec" in told(spec(("0.05", "0.1")), unfinished, *CPU)
    file = spec()
    assert "was begun with neither --instances nor --epochs" in told(file, unfinished, *CPU, "--instances", 1)
    with monkeypatch.context() as patch:
        patch.setattr("prepkit.training.run.choose_device", torch.device)
        assert "goes on there: meta gives other last bits" in told(file, unfinished, "--device", "meta")
    assert "goes on so: others give other last bits" in told(file, unfinished, *CPU[:2], "--threads", 2)
    assert files_of(unfinished) == before
    prepkit("zoo", "train", file, unfinished, *CPU)
    before = files_of(unfinished)
    assert told(file, unfinished, *CPU) == f"'{unfinished}' holds a finished zoo; name another folder."
    assert files_of(unfinished) == before


def test_a_zoo_that_create_has_begun_is_left_alone(tmp_path, spec):
    bad = tmp_path / "bad.pt"
    bad.write_bytes(b"not a model")
    good = tmp_path / "good.pt"
    torch.save(architecture("lenet_like@digits").build().state_dict(), good)
    prepkit("zoo", "create", tmp_path / "zoo", good, bad, "--width", 128, status=2)
    before = files_of(tmp_path / "zoo")
    message = told(spec(), tmp_path / "zoo", *CPU)
    assert str(tmp_path / "zoo") in message
    assert files_of(tmp_path / "zoo") == before


def test_networks_that_do_not_fit_the_task(tmp_path, spec):
    message = told(spec(("@digits", "@cifar10")), tmp_path / "zoo", *CPU)
    assert "lenet_like@cifar10 takes inputs of 3x32x32, but those of the task are 1x8x8" in message
    assert not (tmp_path / "zoo").exists()


def test_everything_diverges(tmp_path, spec):
    file = spec(("learning_rate = 0.05", "learning_rate = 1e38"), ("batch_size = 128", "batch_size = 512"), FEW)
    message = told(file, tmp_path / "zoo", *CPU)
    assert re.match(r"lenet_like-0000\d: diverged with 101 seeds at learning rate 1e\+38; lower it", message)


# Ctrl-C -------------------------------------------------------------------------------------------------------


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(tmp_path, spec, forked_python):
    file = spec(("epochs = 2", "epochs = 12"))
    process = forked_python.start("-m", "prepkit", "zoo", "train", file, tmp_path / "zoo", *CPU, "--stack", "1")
    journal = tmp_path / "zoo/.writing/journal.jsonl"
    until = time.monotonic() + 60
    while time.monotonic() < until and not (journal.exists() and "lenet_like-0000" in journal.read_text()):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    lines = stderr.splitlines()
    assert lines[-1] == f"interrupted; what is finished is kept in '{tmp_path / 'zoo'}'. The same command goes on."
    assert "Traceback" not in stderr
    told = prepkit("zoo", "info", tmp_path / "zoo").stdout
    assert told.startswith("tiny: unfinished; its writing was interrupted")
    assert re.search(r"finished [1-3] instances? of 4 ", told)
    assert "is an unfinished zoo" in prepkit("zoo", "verify", tmp_path / "zoo", status=2).stderr
    again = prepkit("zoo", "train", file, tmp_path / "zoo", *CPU, "--stack", 1)
    assert re.match(r"training: 0%, [123]/4 instances", again.stderr)
    prepkit("zoo", "train", file, tmp_path / "straight", *CPU, "--stack", 1)
    assert files_of(tmp_path / "zoo") == files_of(tmp_path / "straight")


# verify --data ------------------------------------------------------------------------------------------------


def test_verify_takes_the_folder_of_the_data(tmp_path, spec):
    from PIL import Image

    for part, count in (("train", 12), ("test", 6)):
        for label in range(10):
            folder = tmp_path / "data" / part / str(label)
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("L", (8, 8), label * 25 + number).save(folder / f"{number}.png")
    zoo = tmp_path / "zoo"
    file = spec(
        ('dataset = "digits"', 'dataset = "folder"'),
        ("split = {seed = 0, test = 360, validation = 180}", 'split = {seed = 0, test = "test"}'),
    )
    prepkit("zoo", "train", file, zoo, *CPU, "--data", tmp_path / "data")
    result = prepkit("zoo", "verify", zoo, "--rerun", 2, "--data", tmp_path / "data")
    assert "2 of 2 instances have the accuracy that is stored" in result.stdout
    assert "Traceback" not in prepkit("zoo", "verify", zoo, "--rerun", 2, status=1).output
    assert "--data goes with --rerun N" in prepkit("zoo", "verify", zoo, "--data", tmp_path, status=2).stderr
