"""`prepkit zoo` end to end: what it prints, what it writes, what it refuses, and with which exit status."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from prepkit.api import open_zoo, verify
from prepkit.cli import main
from prepkit.families.registry import architecture
from prepkit.support.progress import show_progress
from prepkit.tasks import test_set
from prepkit.zoo.format.manifest import read_manifest, write_manifest
from prepkit.zoo.write.cell_types import typed
from prepkit.zoo.write.writer import ZooWriter

TASK = {"kind": "images", "dataset": "digits", "split": {"seed": 0, "test": 100}}
NAMES = ("resnet8@digits", "lenet_like@digits")


def prepkit(*arguments, status=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == status, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result


def told(*arguments):
    """The one line that a failing command prints."""
    result = prepkit(*arguments, status=2)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    return line.removeprefix("Error: ")


def as_json(*arguments, status=0):
    return json.loads(prepkit(*arguments, "--json", status=status).stdout)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Four models, their table, and the zoo of them."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("originals")
    (root / "models").mkdir()
    for number in range(4):
        torch.save(architecture(NAMES[number % 2]).build().state_dict(), root / "models" / f"m{number}.pt")
    lines = ["file,id,split,accuracy,epoch,run,best,comment", "m0.pt,a,train,0.5,1,1,true,", "m1,b,train,1,2,1,False,x"]
    lines += ["m2.pt,c,,,3,2,,7", "m3.pt,d,test,nan,4,2,TRUE,é"]
    (root / "table.csv").write_text("\n".join(lines))
    files = sorted((root / "models").iterdir())
    prepkit("zoo", "create", root / "zoo", *files, "--table", root / "table.csv", "--license", "mit")
    return root


@pytest.fixture
def files(originals, tmp_path):
    return sorted(shutil.copytree(originals / "models", tmp_path / "models").iterdir())


@pytest.fixture
def csv(originals, tmp_path):
    return shutil.copy(originals / "table.csv", tmp_path / "table.csv")


@pytest.fixture
def zoo(originals, tmp_path):
    return shutil.copytree(originals / "zoo", tmp_path / "zoo")


# create -------------------------------------------------------------------------------------------------------


def test_create_joins_the_table_and_folds_batch_norm(zoo, files):
    opened = open_zoo(zoo)
    rows = {row.pop("id"): row for row in opened.table.to_pylist()}
    assert list(rows) == ["a", "b", "c", "d"]
    assert [row["split"] for row in rows.values()] == ["train", "train", None, "test"]
    assert [row["accuracy"] for row in rows.values()][:3] == [0.5, 1.0, None]
    assert [row["epoch"] for row in rows.values()] == [1, 2, 3, 4]
    assert [row["best"] for row in rows.values()] == [True, False, None, True]
    assert [row["comment"] for row in rows.values()] == [None, "x", "7", "é"]
    assert [row["architecture"] for row in rows.values()] == [*NAMES, *NAMES]
    assert opened.registry.class_ids == {"lenet_like@digits": 0, "resnet8@digits": 1}
    network = architecture(NAMES[0]).build()
    network.load_state_dict(torch.load(files[0], weights_only=True))
    inputs = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(opened.network("a")(inputs), network.eval()(inputs))
    assert verify(zoo).ok
    assert (zoo / "README.md").exists()


def test_create_without_a_table_takes_prep_files_too(tmp_path, files):
    prepkit("pack", files[1], "-o", tmp_path / "packed.prep.safetensors", "--width", "128")
    facts = as_json(
        "zoo", "create", tmp_path / "zoo", files[0], tmp_path / "packed.prep.safetensors", "--format", "hdf5"
    )
    assert facts["instances"] == 2
    assert facts["shard_format"] == "hdf5"
    assert facts["output"] == str(tmp_path / "zoo")
    assert open_zoo(tmp_path / "zoo").table["id"].to_pylist() == ["m0", "packed"]


def test_create_takes_a_network_of_the_users_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own_net.py").write_text("from torch import nn\ndef net():\n    return nn.Sequential(nn.Linear(4, 3))\n")
    torch.save({"0.weight": torch.ones(3, 4), "0.bias": torch.zeros(3)}, "own.pt")
    prepkit("zoo", "create", "zoo", "own.pt", "--arch", "own_net:net", "--input", "4", "--name", "mine")
    manifest = read_manifest("zoo")
    assert (manifest.name, manifest.architectures[0].name) == ("mine", "own_net.net")


def test_create_makes_batch_norm_without_a_layer_affine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("late_net.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.BatchNorm1d(3))\n"
    )
    network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.BatchNorm1d(3))
    torch.save(network.state_dict(), "late.pt")
    command = ("zoo", "create", "zoo", "late.pt", "--arch", "late_net:net", "--input", "4")
    assert "--bn affine makes each of these a scale and a shift per channel" in prepkit(*command, status=2).stderr
    prepkit(*command, "--bn", "affine")
    (stored,) = read_manifest("zoo").architectures
    assert [slot.name for slot in stored.layout] == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_rows_without_a_model_are_noted_and_models_without_a_row_refused(tmp_path, files, csv):
    result = prepkit("zoo", "create", tmp_path / "some", *files[:3], "--table", csv)
    assert f"note: 1 row of {csv} has no model here: m3.pt." in result.stderr
    csv.write_text("file,accuracy\nm0.pt,0.5\nm11.pt,1\n")
    message = told("zoo", "create", tmp_path / "none", *files, "--table", csv)
    assert message == f"{csv}: 3 models have no row in it: {files[1]}, {files[2]}, {files[3]}."
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty; the first line names the columns, one of them 'file'"),
        ("name\nm0\n", "there is no column 'file'"),
        ("file,x\nm0\n", "line 2: 1 cell, but the first line names 2 columns"),
        ("file,x,x\nm0,1,2\n", "the columns x stand twice"),
        ("file\nm0.pt\nm0.pt\n", "line 3: file 'm0.pt' stands twice, also in line 2"),
        ("file,x\n,1\n", "line 2: file is missing"),
        ("file,class_id\nm0,1\n", "the zoo fills the columns class_id itself; rename them"),
        ("file,learning`rate\nm0,1\n", "'learning`rate' cannot name a column"),
        ("file,id\nm0,same\nm1,same\nm2,x\nm3,y\n", "both have the id 'same'"),
        ('file,x\nm0,"1\n', "not a CSV file"),
        (b"file\n\x81\n", "not a CSV file in UTF-8 or CP1252; save it as CSV in UTF-8"),
    ],
)
def test_a_wrong_table_is_told_with_its_line_before_anything_is_written(tmp_path, files, content, message):
    csv = tmp_path / "table.csv"
    csv.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in told("zoo", "create", tmp_path / "zoo", *files, "--table", csv)
    assert not (tmp_path / "zoo").exists()


def test_what_is_missing_or_stands_twice_is_told_before_anything_is_written(tmp_path, files):
    message = told("zoo", "create", tmp_path / "zoo", *files, tmp_path / "none.pt", tmp_path / "x")
    assert message == f"2 of 6 models are no files: {tmp_path / 'none.pt'}, {tmp_path / 'x'}."
    message = told("zoo", "create", tmp_path / "zoo", tmp_path / "none.pt")
    assert message == f"1 of 1 model is no file: {tmp_path / 'none.pt'}."
    assert not (tmp_path / "zoo").exists()
    assert "No such file" in told("zoo", "create", tmp_path / "zoo", *files, "--table", tmp_path / "none.csv")
    assert "both have the id 'm0'" in told("zoo", "create", tmp_path / "zoo", files[0], files[0])


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1", "-2", "", "+0"], [1, -2, None, 0]),
        (["1", "2.5", "1e-3"], [1.0, 2.5, 0.001]),
        (["007", "1"], ["007", "1"]),
        (["99999999999999999999"], ["99999999999999999999"]),
        (["999999999999999999"], [999999999999999999]),
        (["9007199254740993", "0.5"], ["9007199254740993", "0.5"]),
        (["1.", ".5", "0.5"], [1.0, 0.5, 0.5]),
        (["."], ["."]),
        (["1.2.3", "e5", ""], ["1.2.3", "e5", None]),
        (["true", "FALSE", ""], [True, False, None]),
        (["true", "1"], ["true", "1"]),
        (["1_000"], ["1_000"]),
        (["", ""], [None, None]),
        (["inf", "-inf"], [float("inf"), float("-inf")]),
    ],
)
def test_types_of_cells(cells, values):
    assert typed(cells).values == values
    assert list(map(type, typed(cells).values)) == list(map(type, values))


def test_a_bad_model_keeps_the_others_and_resume_goes_on(tmp_path, files):
    good = files[2].read_bytes()
    files[2].write_bytes(b"not a model")
    result = prepkit("zoo", "create", tmp_path / "zoo", *files, status=2)
    assert "2 of 4 models are kept; go on with --resume" in result.stderr
    assert "m2.pt" in result.stderr
    progress = prepkit("zoo", "info", tmp_path / "zoo").stdout
    assert progress.startswith("zoo: unfinished; its writing was interrupted")
    assert "finished 2 instances, the last one" in progress
    assert "unfinished zoo" in told("zoo", "verify", tmp_path / "zoo")
    assert "--resume" in told("zoo", "create", tmp_path / "zoo", *files)
    files[2].write_bytes(good)
    prepkit("zoo", "create", tmp_path / "zoo", *files, "--resume")
    prepkit("zoo", "create", tmp_path / "straight", *files, "--name", "zoo")
    ids = open_zoo(tmp_path / "zoo").table["id"].to_pylist()
    assert ids == ["m0", "m1", "m2", "m3"]
    assert read_manifest(tmp_path / "zoo") == read_manifest(tmp_path / "straight")


def test_create_names_the_file_with_values_that_are_not_finite(tmp_path, files):
    state = torch.load(files[2], weights_only=True)
    next(iter(state.values())).view(-1)[0] = float("nan")
    torch.save(state, files[2])
    message = told("zoo", "create", tmp_path / "zoo", *files)
    assert f"'{files[2]}': " in message
    assert "1 NaN" in message
    assert "leave it out" in message


def test_create_at_a_width_beyond_all_memory(tmp_path, files):
    message = told("zoo", "create", tmp_path / "zoo", files[0], "--width", 8 * 10**13)
    assert "there is no memory for a PRep of 4 x 80000000000000 float32" in message
    assert "use a smaller width." in message
    assert not (tmp_path / "zoo").exists()


def test_a_first_bad_model_leaves_nothing(tmp_path, files):
    (tmp_path / "bad.pt").write_bytes(b"not a model")
    (tmp_path / "empty").mkdir()
    for folder in ("zoo", "empty"):
        result = prepkit("zoo", "create", tmp_path / folder, tmp_path / "bad.pt", *files, status=2)
        assert "bad.pt" in result.stderr
        assert "--resume" not in result.stderr
    assert not (tmp_path / "zoo").exists()
    assert list((tmp_path / "empty").iterdir()) == [], "it was there before"
    prepkit("zoo", "create", tmp_path / "zoo", *files)


def test_a_shard_is_no_checkpoint(tmp_path, zoo):
    shard = zoo / read_manifest(zoo).shards[0].path
    for command in (["pack", shard], ["inspect", shard], ["zoo", "create", tmp_path / "new", shard]):
        message = told(*command)
        assert f"'{shard}' is a shard of a zoo" in message
        assert "prepkit zoo export" in message


def test_existing_targets_are_refused_and_left_alone(zoo, files, tmp_path):
    before = {file: file.read_bytes() for file in zoo.rglob("*") if file.is_file()}
    assert "is a finished zoo" in told("zoo", "create", zoo, *files)
    assert "exists already" in told("zoo", "convert", zoo, zoo, "--format", "hdf5")
    assert "exists already" in told("zoo", "merge", zoo, zoo, zoo)
    assert "holds other files" in told("zoo", "create", tmp_path / "models", *files)
    assert {file: file.read_bytes() for file in zoo.rglob("*") if file.is_file()} == before
    for command in ("create", "convert", "merge"):
        assert "--force" not in prepkit("zoo", command, "--help").stdout


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
