"""`prepkit zoo create`: what it writes, what it tells, and what it refuses."""

from pathlib import Path

import pytest
import torch
from cli_samples import ZOO_NAMES
from command_line import as_json, prepkit, told

from prepkit.api import open_zoo, verify
from prepkit.families.registry import architecture
from prepkit.zoo.format.manifest import read_manifest
from prepkit.zoo.write.cell_types import typed


def test_create_joins_the_table_and_folds_batch_norm(zoo, files):
    opened = open_zoo(zoo)
    rows = {row.pop("id"): row for row in opened.table.to_pylist()}
    assert list(rows) == ["a", "b", "c", "d"]
    assert [row["split"] for row in rows.values()] == ["train", "train", None, "test"]
    assert [row["accuracy"] for row in rows.values()][:3] == [0.5, 1.0, None]
    assert [row["epoch"] for row in rows.values()] == [1, 2, 3, 4]
    assert [row["best"] for row in rows.values()] == [True, False, None, True]
    assert [row["comment"] for row in rows.values()] == [None, "x", "7", "é"]
    assert [row["architecture"] for row in rows.values()] == [*ZOO_NAMES, *ZOO_NAMES]
    assert opened.registry.class_ids == {"lenet_like@digits": 0, "resnet8@digits": 1}
    network = architecture(ZOO_NAMES[0]).build()
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
    lacking = f"{files[1]}, {files[2]}, {files[3]}"
    assert message == f"{csv}: 3 models have no row in it: {lacking}. Add rows, or leave these models out."
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
