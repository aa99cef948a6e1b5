"""`prepkit zoo create`: the task, and what a zoo remembers of the files that it was made of."""

import hashlib
import json
from importlib.metadata import version

import pytest
import torch
from click.testing import CliRunner
from writer_samples import files_of, tensors_of

from prepkit.api import open_zoo
from prepkit.cli import main
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
    ("content", "told"),
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
def test_a_task_that_is_none_is_refused_before_anything_is_written(tmp_path, models, content, told):
    file = tmp_path / "task.json"
    if content is not None:
        file.write_bytes(content)
    output = create(tmp_path / "zoo", *models, "--task", file, status=2).stderr
    assert f"Error: {file}{told}" in output
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
