"""Tests of `prepkit zoo create` and create_zoo: the task, and the facts that a zoo keeps of its models' files."""

import hashlib
import json
from importlib.metadata import version

import pytest
import torch
from click.testing import CliRunner
from writer_samples import files_of, tensors_of

from prepkit.api import create_zoo, open_zoo
from prepkit.cli import main
from prepkit.errors import CheckpointError, ZooError
from prepkit.packing import pack_checkpoint
from prepkit.prep.file import save_prep
from prepkit.zoo.format.manifest import read_manifest

TASK = {"kind": "images", "dataset": "digits", "split": {"seed": 0, "test": 360}, "mean": [0.3], "note": "é"}


def create(*arguments, status=0):
    result = CliRunner().invoke(main, ["zoo", "create", *map(str, arguments)])
    assert result.exit_code == status, (result.output, result.exception)
    return result


@pytest.fixture
def models(tmp_path):
    files = []
    for number in range(3):
        files.append(tmp_path / f"m{number}.pt")
        torch.save(tensors_of(number), files[-1])
    return files


@pytest.fixture
def task(tmp_path):
    file = tmp_path / "task.json"
    file.write_text(json.dumps(TASK, indent=1), encoding="utf-8")
    return file


def test_the_task_is_kept(tmp_path, models, task):
    assert json.loads(create(tmp_path / "zoo", *models, "--task", task, "--json").stdout)["task"] == TASK
    assert open_zoo(tmp_path / "zoo").task == TASK
    assert read_manifest(tmp_path / "zoo").task == TASK
    assert "--task" in create("--help").stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ", line 1: not JSON: Expecting value."),
        (b'{"kind": 1,\n}', ", line 2: not JSON: "),
        (b"[1, 2]", ": holds a list, not an object."),
        (b"null", ": holds a NoneType, not an object."),
        (b'{"mean": NaN}', ": not JSON in UTF-8: NaN is no JSON number."),
        (b'{"kind": "\xff"}', ": not JSON in UTF-8: "),
        (b"[" * 200_000, ": not JSON in UTF-8: "),
        (None, ": cannot be read: No such file or directory."),
    ],
)
def test_a_task_that_is_none_is_refused_before_anything_is_written(tmp_path, models, content, message):
    file = tmp_path / "task.json"
    if content is not None:
        file.write_bytes(content)
    output = create(tmp_path / "zoo", *models, "--task", file, status=2).stderr
    assert f"Error: {file}{message}" in output
    assert 'Write an object such as {"kind": "images", "dataset": "digits"} in it.' in output
    assert not (tmp_path / "zoo").exists()


def test_a_folder_is_no_task(tmp_path, models):
    assert "cannot be read: Is a directory" in create(tmp_path / "zoo", *models, "--task", tmp_path, status=2).stderr


def test_resuming_with_another_task_is_refused(tmp_path, models, task):
    good = models[2].read_bytes()
    models[2].write_bytes(b"no model")
    create(tmp_path / "zoo", *models, "--task", task, status=2)
    models[2].write_bytes(good)
    assert "task" in create(tmp_path / "zoo", *models, "--resume", status=2).stderr
    create(tmp_path / "zoo", *models, "--task", task, "--resume")
    create(tmp_path / "straight", *models, "--task", task, "--name", "zoo")
    assert files_of(tmp_path / "zoo") == files_of(tmp_path / "straight")


def test_provenance_tells_command_versions_and_number_and_nothing_of_the_machine(tmp_path, models, task):
    create(tmp_path / "a" / "zoo", *models, "--task", task)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = [file.rename(elsewhere / file.name) for file in models]
    create(tmp_path / "b" / "zoo", *moved, "--task", task)
    manifest = read_manifest(tmp_path / "a" / "zoo")
    assert manifest.provenance == {
        "command": "zoo create",
        "sources": 3,
        "versions": {"prepkit": version("prepkit"), "torch": torch.__version__, "safetensors": version("safetensors")},
    }
    assert files_of(tmp_path / "a" / "zoo") == files_of(tmp_path / "b" / "zoo")
    assert str(tmp_path).encode() not in b"".join(files_of(tmp_path / "a" / "zoo").values())


def test_each_instance_knows_the_sum_of_its_checkpoint(tmp_path, models):
    sums = [hashlib.sha256(file.read_bytes()).hexdigest() for file in models]
    packed = pack_checkpoint(models[1])
    save_prep(packed.prep, tmp_path / "packed.prep.safetensors")
    create(tmp_path / "zoo", models[0], tmp_path / "packed.prep.safetensors", models[2])
    assert open_zoo(tmp_path / "zoo").table["source_sha256"].to_pylist() == sums


def test_a_table_cannot_fill_that_column(tmp_path, models):
    (tmp_path / "table.csv").write_text("file,source_sha256\nm0,a\nm1,b\nm2,c\n")
    output = create(tmp_path / "zoo", *models, "--table", tmp_path / "table.csv", status=2).stderr
    assert "the column 'source_sha256' is filled from the models themselves; rename it" in output
    assert not (tmp_path / "zoo").exists()


# From Python --------------------------------------------------------------------------------------------------


def test_python_writes_what_the_command_line_writes(tmp_path, models, task):
    (tmp_path / "t.csv").write_text("file,split,x\nm0,train,1\nm1.pt,,2\nm2,test,\nm9,,3\n")
    output = create(
        tmp_path / "a", *models, "--table", tmp_path / "t.csv", "--task", task, "--license", "mit", "--name", "zoo"
    ).stderr
    added = []
    written = create_zoo(
        tmp_path / "b",
        [str(model) for model in models],
        table=tmp_path / "t.csv",
        task=TASK,
        license="mit",
        name="zoo",
        progress=added.append,
    )
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert added == [1, 1, 1]
    assert written.manifest == read_manifest(tmp_path / "b")
    assert (written.path, written.notes) == (tmp_path / "b", (f"1 row of {tmp_path / 't.csv'} has no model here: m9.",))
    assert f"note: {written.notes[0]}" in output


def test_an_error_says_what_is_kept_in_the_words_of_its_caller(tmp_path, models):
    good = models[1].read_bytes()
    models[1].write_bytes(b"no model")
    with pytest.raises(CheckpointError) as caught:
        create_zoo(tmp_path / "a", models)
    assert caught.value.__notes__ == [
        f"1 of 3 models are kept; go on with resume=True, or delete '{tmp_path / 'a'}'.",
    ]
    assert (
        f"1 of 3 models are kept; go on with --resume, or delete '{tmp_path / 'b'}'."
        in create(tmp_path / "b", *models, status=2).stderr
    )
    with pytest.raises(ZooError, match="go on with resume=True, or delete"):
        create_zoo(tmp_path / "a", models)
    assert "go on with --resume, or delete" in create(tmp_path / "b", *models, status=2).stderr
    models[1].write_bytes(good)
    added = []
    assert create_zoo(tmp_path / "a", models, resume=True, progress=added.append).manifest.table.rows == 3
    assert added == [1, 1, 1]


def test_where_nothing_is_kept_nothing_is_left(tmp_path, models):
    models[0].write_bytes(b"no model")
    with pytest.raises(CheckpointError) as caught:
        create_zoo(tmp_path / "zoo", models)
    assert not getattr(caught.value, "__notes__", [])
    assert not (tmp_path / "zoo").exists()


def test_an_error_names_the_file_and_the_instance(tmp_path):
    own = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    torch.save(own.state_dict(), tmp_path / "own_bn.pt")
    error = create(tmp_path / "zoo", tmp_path / "own_bn.pt", status=2).stderr
    assert error.startswith("Error: 'own_bn' (own_bn.pt) has BatchNorm")
    (tmp_path / "t.csv").write_text("file,id\nown_bn,first\n")
    error = create(tmp_path / "zoo", tmp_path / "own_bn.pt", "--table", tmp_path / "t.csv", status=2).stderr
    assert error.startswith("Error: 'first' (own_bn.pt) has BatchNorm")


def test_the_row_of_a_file_in_another_folder_is_not_taken(tmp_path):
    for number, folder in enumerate(("setA", "setB")):
        (tmp_path / folder).mkdir()
        torch.save(tensors_of(number), tmp_path / folder / "0.pt")
    (tmp_path / "t.csv").write_text("file,accuracy\nsetA/0.pt,0.9\n")
    error = create(tmp_path / "zoo", tmp_path / "setB/0.pt", "--table", tmp_path / "t.csv", status=2).stderr
    assert f"1 model has no row in it: {tmp_path}/setB/0.pt. 'setA/0.pt' is not taken for" in error
    create(tmp_path / "zoo", tmp_path / "setA/0.pt", "--table", tmp_path / "t.csv")
    assert open_zoo(tmp_path / "zoo").table["accuracy"].to_pylist() == [0.9]


def test_equal_names_in_several_folders_become_ids_by_folder(tmp_path):
    for run in ("a", "b"):
        (tmp_path / "runs" / run).mkdir(parents=True)
        torch.save(tensors_of(0), tmp_path / "runs" / run / "model.pt")
    create(tmp_path / "zoo", *sorted(tmp_path.glob("runs/*/model.pt")))
    assert open_zoo(tmp_path / "zoo").table["id"].to_pylist() == ["a", "b"]
