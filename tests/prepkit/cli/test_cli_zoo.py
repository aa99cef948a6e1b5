"""The other commands of `prepkit zoo`: what they print, what they write, what they refuse, and their exit status."""

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from command_line import as_json, prepkit, told
from pyarrow import parquet

from prepkit.api import open_zoo
from prepkit.cli import main
from prepkit.families.registry import architecture
from prepkit.support.progress import show_progress
from prepkit.tasks import test_set
from prepkit.zoo.format.manifest import read_manifest, write_manifest
from prepkit.zoo.write.writer import ZooWriter

TASK = {"kind": "images", "dataset": "digits", "split": {"seed": 0, "test": 100}}


# info, verify -------------------------------------------------------------------------------------------------


def test_info_is_light_and_quick(zoo):
    code = (
        "import sys; from prepkit.cli import main; main(['zoo', 'info', sys.argv[1]], standalone_mode=False); "
        "heavy = {'torch', 'pyarrow', 'numpy', 'h5py', 'matplotlib'} & set(sys.modules); assert not heavy, heavy"
    )
    seconds = []
    for _ in range(3):
        before = os.times()
        done = subprocess.run([sys.executable, "-c", code, zoo], capture_output=True, text=True, check=False)
        after = os.times()  # time of the processor: the clock also counts what else runs
        seconds.append(sum(after[2:4]) - sum(before[2:4]))
        assert done.returncode == 0, done.stderr
    assert "zoo: 4 instances, PReps 12 x 512 float32" in done.stdout
    assert "test 1, train 2" in done.stdout
    assert min(seconds) < 0.25


def test_info_as_json(zoo):
    facts = as_json("zoo", "info", zoo)
    assert facts["instances"] == 4
    assert facts["splits"] == {"test": 1, "train": 2}
    assert facts["license"] == "mit"
    assert [(a["class_id"], a["name"], a["instances"]) for a in facts["architectures"]] == [
        (0, "lenet_like@digits", 2),
        (1, "resnet8@digits", 2),
    ]
    assert "has no zoo.json" in as_json("zoo", "info", zoo.parent, status=2)["error"]["message"]


def test_info_shows_the_sums_of_the_splits_when_asked(zoo):
    ids = [row["id"] for row in open_zoo(zoo).table.to_pylist() if row["split"] == "train"]
    expected = hashlib.sha256("".join(f"{id}\n" for id in sorted(ids)).encode()).hexdigest()
    assert "splits_sha256" not in as_json("zoo", "info", zoo)
    sums = as_json("zoo", "info", zoo, "--splits")["splits_sha256"]
    assert sums.keys() == {"test", "train"}
    assert sums["train"] == expected != sums["test"]
    assert f"{expected} of the ids of train" in prepkit("zoo", "info", zoo, "--splits").stdout


def test_info_lists_the_columns_when_asked(zoo):
    expected = {field.name: str(field.type) for field in parquet.read_schema(zoo / read_manifest(zoo).table.path)}
    assert {"id": "string", "split": "string", "class_id": "int32"}.items() <= expected.items()
    assert "columns" not in as_json("zoo", "info", zoo)
    assert as_json("zoo", "info", zoo, "--columns")["columns"] == expected
    lines = prepkit("zoo", "info", zoo, "--columns").stdout.splitlines()
    assert [tuple(line.split()) for line in lines[-len(expected) :]] == [*expected.items()]


def test_verify_says_what_is_wrong_and_exits_with_1(zoo):
    assert "whole; 4 instances" in prepkit("zoo", "verify", zoo, "--jobs", "2").stdout
    (zoo / "stray").write_text("")
    assert as_json("zoo", "verify", zoo)["notes"] == ["stray: the manifest does not name it; it can be deleted."]
    file = zoo / read_manifest(zoo).shards[0].path
    data = bytearray(file.read_bytes())
    data[-1] ^= 128
    file.write_bytes(data)
    assert f"fault  {file.relative_to(zoo)} (shards[0]): damaged" in prepkit("zoo", "verify", zoo, status=1).stdout
    document = as_json("zoo", "verify", zoo, status=1)
    assert document["ok"] is False
    assert document["faults"][0]["file"] == str(file.relative_to(zoo))
    assert "does not exist" in told("zoo", "verify", zoo / "none")


def test_verify_reruns_instances(tmp_path, zoo):
    assert "names no task" in told("zoo", "verify", zoo, "--rerun", "1")
    network = architecture("lenet_like@digits").build().eval()
    inputs, labels = test_set(TASK)
    right = (network(inputs).argmax(-1) == labels).float().mean().item()
    for name, accuracies in [("good", [right, right]), ("bad", [right, right + 0.05])]:
        with ZooWriter(tmp_path / name, task=TASK) as writer:
            for accuracy in accuracies:
                writer.add(network, accuracy=accuracy)
    result = prepkit("zoo", "verify", tmp_path / "good", "--rerun", "5")
    assert "2 of 2 instances have the accuracy that is stored" in result.stdout
    document = as_json("zoo", "verify", tmp_path / "bad", "--rerun", "2", status=1)
    assert [run["agrees"] for run in document["reruns"]] == [True, False]
    assert document["ok"] is False
    assert "fault  000001: accuracy" in prepkit("zoo", "verify", tmp_path / "bad", "--rerun", "2", status=1).stdout


# convert, merge, split, export --------------------------------------------------------------------------------


def test_convert(zoo, tmp_path):
    assert as_json("zoo", "convert", zoo, tmp_path / "h5", "--format", "hdf5")["shard_format"] == "hdf5"
    assert repr(open_zoo(tmp_path / "h5").table.to_pylist()) == repr(open_zoo(zoo).table.to_pylist())  # NaN too
    assert (tmp_path / "h5" / "README.md").exists()
    prepkit("zoo", "convert", zoo, tmp_path / "x", "--format", "zip", status=2)


@pytest.mark.parametrize("command", [["convert", "out", "--format", "hdf5"], ["merge", "out"]])
def test_an_interrupted_card_leaves_nothing_so_that_the_same_command_works(zoo, tmp_path, monkeypatch, command):
    def interrupt(path):
        raise KeyboardInterrupt

    name, target, *options = command
    arguments = ["zoo", name, zoo, tmp_path / target] if name == "convert" else ["zoo", name, tmp_path / target, zoo]
    other = [] if name == "convert" else [shutil.copytree(zoo, tmp_path / "other"), "--prefix", "--name", "both"]
    if other:
        manifest = read_manifest(other[0])
        write_manifest(replace(manifest, name="other"), other[0], overwrite=True)
    before = sorted(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        module = "convert" if name == "convert" else "merge"
        patch.setattr(f"prepkit.zoo.change.{module}.write_card", interrupt)
        prepkit(*arguments, *other, *options, status=130)
    assert sorted(tmp_path.iterdir()) == before
    prepkit(*arguments, *other, *options)
    assert (tmp_path / target / "README.md").is_file()


def test_merge(zoo, tmp_path, files):
    prepkit("zoo", "create", tmp_path / "two", *files, "--license", "mit")
    document = as_json("zoo", "merge", tmp_path / "all", zoo, tmp_path / "two", "--name", "all of it")
    assert (document["name"], document["instances"]) == ("all of it", 8)
    assert "--prefix" in told("zoo", "merge", tmp_path / "x", zoo, zoo)
    assert "two zoos or more" in told("zoo", "merge", tmp_path / "x", zoo)
    prepkit(
        "zoo", "merge", tmp_path / "y", zoo, tmp_path / "two", "--prefix", "--license", "cc0-1.0", "--format", "hdf5"
    )
    assert open_zoo(tmp_path / "y").table["id"].to_pylist()[4] == "two-m0"


def test_split(zoo):
    halves = ["--train", "0.5", "--validation", "0", "--test", "0.5"]
    assert "(test 1, train 2); --force draws another" in told("zoo", "split", zoo, *halves)
    document = as_json("zoo", "split", zoo, *halves, "--force", "--keep-as", "paper")
    assert document["kept"] == "split.paper"
    assert document["group"] == "run"
    assert document["groups"] == 2
    assert open_zoo(zoo).manifest.splits == {"test": 2, "train": 2}
    assert read_manifest(zoo).table.path in (zoo / "README.md").read_text()
    result = prepkit("zoo", "split", zoo, "--group", "none", "--seed", "3", "--force")
    assert "no groups" in result.stdout
    assert "the split before it is column split.seed0" in result.stdout
    assert "sum to 1" in told("zoo", "split", zoo, "--train", "0.9")
    assert "Did you mean 'run'" in told("zoo", "split", zoo, "--group", "ran", "--force")
    assert "choose another name with --keep-as" in told("zoo", "split", zoo, "--force", "--keep-as", "paper")
    assert "--keep-as goes with --force" in told("zoo", "split", zoo, "--keep-as", "paper")


def test_clean(zoo):
    old = read_manifest(zoo).table
    prepkit("zoo", "split", zoo, "--force")
    (zoo / "notes.txt").write_text("mine")
    expected = {"zoo": str(zoo), "removed": [{"path": old.path, "bytes": old.bytes}], "others": ["notes.txt"]}
    assert as_json("zoo", "clean", zoo, "--dry-run") == {**expected, "dry_run": True}
    assert (zoo / old.path).exists()
    text = prepkit("zoo", "clean", zoo).stdout.splitlines()
    assert text[0].startswith(f"{zoo}: removed 1 file, ")
    assert text[1:] == [f"  {old.path}", "  left alone: notes.txt; prepkit did not write it"]
    assert not (zoo / old.path).exists()
    assert as_json("zoo", "clean", zoo)["removed"] == []
    assert as_json("zoo", "clean", zoo / "none", status=2)["error"]["kind"] == "ZooError"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_export(zoo, tmp_path, files, suffix):
    target = tmp_path / f"model{suffix}"
    document = as_json("zoo", "export", zoo, "d", "-o", target)
    assert document["metadata"]["accuracy"] == "nan"
    original = torch.load(files[3], weights_only=True)
    if suffix == ".pt":
        exported = torch.load(target, weights_only=True)
        assert all(torch.equal(exported[name], tensor) for name, tensor in original.items())
    assert "exists already" in told("zoo", "export", zoo, "d", "-o", target)
    prepkit("zoo", "export", zoo, "a", "-o", target, "--force")
    assert "has no instance 'e'" in told("zoo", "export", zoo, "e", "-o", tmp_path / "e.pt")
    assert "the suffix says the format" in told("zoo", "export", zoo, "a", "-o", tmp_path / "a.bin")
    assert "lies in the zoo" in told("zoo", "export", zoo, "a", "-o", zoo / "a.pt")


def test_help_names_every_command():
    text = prepkit("zoo", "--help").stdout
    assert all(name in text for name in ("info", "verify", "create", "convert", "merge", "export", "split", "clean"))
    assert "zoo" in prepkit("--help").stdout


def test_json_hides_progress_for_its_own_command_alone(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("prepkit.cli.zoo._manifest_of", lambda folder: shown.append(show_progress.get()))
    monkeypatch.setattr("prepkit.cli.zoo.facts", lambda manifest: {})
    monkeypatch.setattr("prepkit.cli.zoo.description", lambda manifest: "")
    for options in ([], ["--json"], ["--json", "--what"]):  # the last one cannot be parsed
        CliRunner().invoke(main, ["zoo", "info", str(tmp_path), *options])
        assert show_progress.get()
    assert shown == [True, False]
