"""Tests of `prepkit zoo import KIND SRC DST --append`: what is added and refused, and how it goes on."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from folder_contents import files_of
from writer_samples import tensors_of

import prepkit
from prepkit.api import open_zoo, verify
from prepkit.cli import main
from prepkit.errors import CheckpointError, ZooError
from prepkit.zoo.importers import kinds
from prepkit.zoo.importers.making import make_zoo
from prepkit.zoo.write.adding import Model, Packing, Source

PATTERN = "{run}/net_{epoch:int}.pt"


def save_run(folder, run, start, count=3):
    (folder / run).mkdir(parents=True)
    for number in range(count):
        torch.save(tensors_of(start + number), folder / run / f"net_{number}.pt")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A zoo of run r0, and a folder with run r1."""
    folder = tmp_path_factory.mktemp("runs")
    save_run(folder / "old", "r0", 0)
    save_run(folder / "new", "r1", 10)
    prepkit.import_zoo("tree", folder / "old", folder / "zoo", pattern=PATTERN, license="mit", width=64)
    return folder


@pytest.fixture
def root(source, tmp_path):
    return shutil.copytree(source / "zoo", tmp_path / "zoo")


def imported(folder, root, **options):
    return prepkit.import_zoo("tree", folder, root, pattern=PATTERN, append=True, **options)


def biases(zoo):
    """Return the first bias of each instance, which is the seed that it was made with."""
    return [zoo[number][0].tensors()["0.bias"][0].item() for number in range(len(zoo))]


def test_models_of_another_folder_are_added(source, root):
    arguments = ["zoo", "import", "tree", str(source / "new"), str(root), "--pattern", PATTERN, "--append"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "No licence" not in result.stderr
    zoo = open_zoo(root)
    assert zoo.table["id"].to_pylist() == ["r0/0", "r0/1", "r0/2", "r1/0", "r1/1", "r1/2"]
    assert zoo.table["epoch"].to_pylist() == [0, 1, 2] * 2
    assert biases(zoo) == [0.0, 1.0, 2.0, 10.0, 11.0, 12.0]
    assert (zoo.manifest.width, zoo.manifest.license, verify(root).ok) == (64, "mit", True)
    assert "6 trained networks" in (root / "README.md").read_text()
    assert "by zoo import tree" in CliRunner().invoke(main, ["zoo", "info", str(root)]).stdout
    before = files_of(root)
    again = CliRunner().invoke(main, arguments)
    assert "has instances of the ids of all 3 models already, so nothing is left to append" in again.stderr
    assert files_of(root) == before


def test_every_kind_can_append():
    commands = main.commands["zoo"].commands["import"].commands
    assert set(commands) == set(kinds.KINDS)
    assert all("--append" in {name for one in command.params for name in one.opts} for command in commands.values())


def test_what_does_not_fit_changes_nothing(source, root, tmp_path):
    before = files_of(root)
    with pytest.raises(ZooError, match="has width 64, not 512"):
        imported(source / "new", root, width=512)
    shutil.copytree(source / "new", tmp_path / "both")
    shutil.copytree(source / "old/r0", tmp_path / "both/r0")
    with pytest.raises(ZooError, match=r"3 of 6 models have the ids of instances .* Name a `source` with only the new"):
        imported(tmp_path / "both", root)
    with pytest.raises(ZooError, match=r"3 of 6 models are not in it: .* Import them alone with append=True"):
        prepkit.import_zoo("tree", tmp_path / "both", root, pattern=PATTERN)
    with pytest.raises(ZooError, match="does not exist"):
        imported(source / "new", tmp_path / "none")
    assert files_of(root) == before


def test_the_same_call_goes_on_when_a_file_was_mended(source, root, tmp_path):
    src = shutil.copytree(source / "new", tmp_path / "src")
    broken = src / "r1/net_2.pt"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:50])
    with pytest.raises(CheckpointError) as caught:
        imported(src, root)
    assert any("2 of 3 models are kept; the same command goes on, or delete" in note for note in caught.value.__notes__)
    assert len(open_zoo(root)) == 3
    info = CliRunner().invoke(main, ["zoo", "info", str(root)])
    assert "given again: `zoo import` as it was, `zoo create` with --resume" in info.stderr
    other = tmp_path / "other"
    save_run(other, "r1", 50)
    with pytest.raises(ZooError, match="was begun with another `source` or table"):
        imported(other, root)
    broken.write_bytes(whole)
    imported(src, root)
    assert biases(open_zoo(root)) == [0.0, 1.0, 2.0, 10.0, 11.0, 12.0]
    assert verify(root).ok
    assert not (root / ".appending").exists()


def test_interrupted_before_the_last_step_though_copies_are_left_out(source, root, tmp_path, monkeypatch):
    src = shutil.copytree(source / "new", tmp_path / "src")
    shutil.copy(src / "r1/net_0.pt", src / "r1/net_9.pt")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("prepkit.zoo.write.appending.write_manifest", interrupted)
        with pytest.raises(KeyboardInterrupt):
            imported(src, root, splits="strict")
    assert len(open_zoo(root)) == 3
    imported(src, root, splits="strict")
    assert biases(open_zoo(root)) == [0.0, 1.0, 2.0, 10.0, 11.0, 12.0]
    assert len(open_zoo(root).manifest.provenance["appends"]) == 1


def test_notes_say_what_is_not_done(source, root):
    notes = imported(source / "new", root, splits="strict").notes
    assert any("among the new models only; `prepkit zoo audit" in note for note in notes)


class Made(Source):
    """One model in memory, with a task, a teacher and a way to run it."""

    def __init__(self, id_, task, how_to_run=None, teacher=None):
        self.ids, self.task, self.how_to_run, self._teacher = [id_], task, how_to_run, teacher

    def read(self, index):
        return Model(tensors_of(1), "made")

    def teacher(self):
        return self._teacher


def made(path, source, **options):
    return make_zoo(path, source, Packing(), command="zoo import made", resume=True, **options)


def test_a_task_a_teacher_and_how_to_run(tmp_path):
    digits, other = ({"kind": "images", "dataset": name} for name in ("digits", "mnist"))
    run = {"measure": "accuracy", "activation": "relu"}
    made(tmp_path / "zoo", Made("a", digits, run))
    before = files_of(tmp_path / "zoo")
    with pytest.raises(ZooError, match="than `source` says of its models: dataset is 'digits' there and 'mnist' here"):
        made(tmp_path / "zoo", Made("b", other, run), append=True)
    assert files_of(tmp_path / "zoo") == before
    teacher = SimpleNamespace(tensors=tensors_of(2), architecture=None)
    notes = made(tmp_path / "zoo", Made("b", digits, run, teacher), append=True).notes
    assert notes[-1].startswith("The teacher of `source` is left out")
    assert open_zoo(tmp_path / "zoo").manifest.function.how_to_run == run
    notes = made(tmp_path / "zoo", Made("c", None, {**run, "activation": "tanh"}), append=True).notes
    assert any("noted in different ways, or not of all" in note for note in notes)
    assert open_zoo(tmp_path / "zoo").manifest.function.how_to_run is None
    made(tmp_path / "untold", Made("a", None))
    notes = made(tmp_path / "untold", Made("b", digits), append=True).notes
    assert any("The zoo notes no task, and gets none" in note for note in notes)
