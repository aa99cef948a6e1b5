"""Tests of `prepkit zoo create` and create_zoo: the task, and the facts that a zoo keeps of its models' files."""

import hashlib
import json
from importlib.metadata import version

import pytest
import torch
from click.testing import CliRunner
from folder_contents import files_of
from writer_samples import tensors_of

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
        f"1 of 3 models is kept; go on with resume=True, or delete '{tmp_path / 'a'}'.",
    ]
    assert (
        f"1 of 3 models is kept; go on with --resume, or delete '{tmp_path / 'b'}'."
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


# Many models --------------------------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path):
    """Two runs as trainers leave them: a model in each folder, and other files beside it."""
    for run in ("a", "b"):
        folder = tmp_path / "runs" / run
        (folder / ".cache").mkdir(parents=True)
        torch.save(tensors_of(0), folder / "model.pt")
        torch.save(tensors_of(0), folder / ".cache" / "old.pt")
        torch.save({"state": {}}, folder / "optimizer.pt")
        (folder / "log.txt").write_text("x")
    return tmp_path / "runs"


def test_a_folder_gives_its_models_and_tells_what_is_left_out(tmp_path, runs):
    facts = json.loads(create(tmp_path / "zoo", runs, "--json").stdout)
    left = "a/log.txt, a/optimizer.pt, b/log.txt, b/optimizer.pt"
    assert facts["notes"] == [f"2 models in '{runs}'; 4 files are left out: {left}."]
    assert open_zoo(tmp_path / "zoo").table["id"].to_pylist() == ["a", "b"]
    assert create_zoo(tmp_path / "python", [runs]).notes == tuple(facts["notes"])
    (tmp_path / "none").mkdir()
    assert f"'{tmp_path}/none' holds no model" in create(tmp_path / "new", tmp_path / "none", status=2).stderr
    assert "is a zoo; `prepkit zoo merge`" in create(tmp_path / "new", tmp_path, status=2).stderr
    assert not (tmp_path / "new").exists()


def test_a_list_names_models_in_a_file_or_on_standard_input(tmp_path, runs):
    files = sorted(runs.glob("*/model.pt"))
    for number, separator in enumerate((b"\n", b"\r\n", b"\0")):
        (tmp_path / "list").write_bytes(separator.join(str(file).encode() for file in files) + separator)
        create(tmp_path / f"zoo{number}", "--from", tmp_path / "list")
        assert open_zoo(tmp_path / f"zoo{number}").table["id"].to_pylist() == ["a", "b"]
    arguments = ["zoo", "create", str(tmp_path / "piped"), "--from", "-"]
    assert CliRunner().invoke(main, arguments, input=(tmp_path / "list").read_bytes()).exit_code == 0
    assert len(open_zoo(tmp_path / "piped")) == 2
    arguments[2] = str(tmp_path / "none")
    empty = CliRunner().invoke(main, arguments, input=b"\n")
    assert (empty.exit_code, "a list of them with --from" in empty.stderr) == (2, True)


def test_the_index_of_a_sharded_model_stands_for_its_parts(tmp_path):
    from safetensors.torch import save_file

    folder = tmp_path / "models" / "big"
    folder.mkdir(parents=True)
    parts = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    for name, part in parts.items():
        save_file({name: torch.ones(2)}, folder / part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": parts}))
    torch.save({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "models" / "small.pt")
    create(tmp_path / "zoo", tmp_path / "models")
    assert open_zoo(tmp_path / "zoo").table["id"].to_pylist() == ["small", "model"]


def test_models_are_read_and_packed_as_pack_does(tmp_path):
    state = {"0.weight": torch.ones(2, 3), "1.weight": torch.ones(2), "1.running_var": torch.ones(2)}
    torch.save({"ema": state, "model": {"x": torch.ones(1)}}, tmp_path / "m.pt")
    assert "choose one with --key NAME" in create(tmp_path / "zoo", tmp_path / "m.pt", status=2).stderr
    error = create(tmp_path / "zoo", tmp_path / "m.pt", "--key", "ema", status=2).stderr
    assert "has BatchNorm" in error
    assert "--keep-bn" in error
    create(tmp_path / "zoo", tmp_path / "m.pt", "--key", "ema", "--keep-bn", "--dtype", "float64")
    stored = read_manifest(tmp_path / "zoo").architectures[0]
    assert (stored.fused, read_manifest(tmp_path / "zoo").dtype) == (False, "float64")
    assert set(open_zoo(tmp_path / "zoo")[0][0].tensors()) == set(state)


def test_integer_buffers_are_left_out_and_named(tmp_path):
    torch.save({"w": torch.ones(3), "position_ids": torch.arange(4)}, tmp_path / "bert.pt")
    note = "Integer buffers are left out, for which a zoo has no place: position_ids."
    assert f"note: {note}" in create(tmp_path / "zoo", tmp_path / "bert.pt").stderr
    assert list(open_zoo(tmp_path / "zoo")[0][0].tensors()) == ["w"]
    save_prep(pack_checkpoint(tmp_path / "bert.pt").prep, tmp_path / "bert.prep.safetensors")
    assert create_zoo(tmp_path / "prep", [tmp_path / "bert.prep.safetensors"]).notes == (note,)


def test_resuming_without_models_that_are_in_the_zoo_is_refused(tmp_path, models):
    models[2].write_bytes(b"no model")
    create(tmp_path / "zoo", *models, status=2)
    error = create(tmp_path / "zoo", models[0], "--resume", status=2).stderr
    assert "holds 1 instance of none of these models: m1. Give the same models as before" in error
    create(tmp_path / "zoo", *models[:2], "--resume")


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("prepkit.zoo.write.writer.write_manifest", "All models are kept; go on with --resume, or delete"),
        ("prepkit.zoo.card.card.write_card", "is finished but for its card; go on with --resume, or delete"),
    ],
)
def test_ctrl_c_at_the_end_says_how_to_go_on(tmp_path, models, monkeypatch, place, told):
    def interrupted(*arguments, **keywords):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(place, interrupted)
        assert told in create(tmp_path / "zoo", *models, status=130).stderr
    create(tmp_path / "zoo", *models, "--resume")
    create(tmp_path / "straight", *models, "--name", "zoo")
    assert files_of(tmp_path / "zoo") == files_of(tmp_path / "straight")
    assert "is a finished zoo" in create(tmp_path / "zoo", *models, "--resume", status=2).stderr
    (tmp_path / "zoo" / "README.md").unlink()
    assert "is a finished zoo" in create(tmp_path / "zoo", *models[:2], "--resume", status=2).stderr


def test_a_prefix_takes_the_network_that_stands_beside_others(tmp_path):
    for number in range(2):
        inside = {f"model.{name}": tensor for name, tensor in tensors_of(number).items()}
        torch.save({"state_dict": {**inside, "criterion.pos_weight": torch.ones(3)}}, tmp_path / f"m{number}.pt")
    for name, prefix in (("dotted", "model."), ("plain", "model")):
        facts = json.loads(create(tmp_path / name, *sorted(tmp_path.glob("*.pt")), "--prefix", prefix, "--json").stdout)
        assert facts["notes"] == [f"Names without the prefix '{prefix}' are left out: criterion.pos_weight."]
        zoo = open_zoo(tmp_path / name)
        assert {slot.name for slot in zoo.layout(0)} == set(tensors_of(0))
        assert [zoo[i][0].tensors()["0.bias"][0].item() for i in range(2)] == [0.0, 1.0]
    python = create_zoo(tmp_path / "python", sorted(tmp_path.glob("*.pt")), prefix="model.", name="dotted")
    assert files_of(python.path) == files_of(tmp_path / "dotted")
    error = create(tmp_path / "none", tmp_path / "m0.pt", "--prefix", "net", status=2).stderr
    assert "m0.pt has no names that begin with 'net.'; they begin with criterion., model." in error
    assert not (tmp_path / "none").exists()


def test_a_dtype_that_no_prep_holds_is_cast_by_pack(tmp_path):
    torch.save({"w": torch.ones(8).to(torch.float8_e4m3fn)}, tmp_path / "small.pt")
    error = create(tmp_path / "zoo", tmp_path / "small.pt", status=2).stderr
    assert "Cast it with `prepkit pack --dtype float32`, and make the zoo of that PRep." in error
    prep = tmp_path / "small.prep.safetensors"
    pack = ["pack", str(tmp_path / "small.pt"), "--dtype", "float32", "-o", str(prep)]
    assert CliRunner().invoke(main, pack).exit_code == 0
    create(tmp_path / "zoo", prep)
