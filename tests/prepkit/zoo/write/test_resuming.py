"""Tests of what a writer keeps besides instances until it closes: teacher, settings, provenance, files of others."""

import json
from pathlib import Path

import pytest
import torch
from folder_contents import files_of
from writer_samples import killed_close, tensors_of, trained

import prepkit
from prepkit.api import open_zoo
from prepkit.errors import CheckpointError, PrepkitError, ZooError
from prepkit.tensors import same_bits
from prepkit.zoo.format.manifest import read_manifest
from prepkit.zoo.write.writer import ZooWriter

GIVEN = {
    "width": 64,
    "height": 200,
    "format": "safetensors",
    "name": "zoo",
    "registry": prepkit.built_in_registry("digits"),
    "task": {"dataset": "digits", "split": {"seed": 0, "test": 100}, "mean": (0.5,)},
    "license": "mit",
    "provenance": {"spec": "lr = 0.1\n" * 20, "versions": {"torch": "2"}},
    "shard_bytes": 50_000,
}


def interrupt(writer: ZooWriter) -> None:
    """End a writer as a kill does, but give its lock back."""
    writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)


# The working folder -----------------------------------------------------------------------------------------------


def test_working_folder_keeps_others_files_until_the_zoo_is_finished(tmp_path):
    writer = ZooWriter(tmp_path / "zoo")
    folder = writer.working_folder
    assert folder.is_dir()
    assert folder.is_relative_to(tmp_path / "zoo")
    (folder / "training" / "teacher-x.prep.safetensors").mkdir(parents=True)
    (folder / "training" / "state.pt").write_bytes(b"mine")
    writer.add(tensors_of(0), id="a")
    interrupt(writer)
    with ZooWriter(tmp_path / "zoo", resume=True) as writer:
        assert writer.working_folder == folder
        assert (folder / "training" / "state.pt").read_bytes() == b"mine"
        writer.set_teacher(tensors_of(1))
        writer.add(tensors_of(2), id="b")
        assert (folder / "training" / "teacher-x.prep.safetensors").is_dir()
    assert not folder.exists()
    assert open_zoo(tmp_path / "zoo").table["id"].to_pylist() == ["a", "b"]


# The teacher ------------------------------------------------------------------------------------------------------


def test_teacher_is_there_after_a_kill(tmp_path):
    with ZooWriter(tmp_path / "straight", name="zoo") as writer:
        assert not writer.has_teacher
        writer.set_teacher(trained("resnet14@digits", 3))
        assert writer.has_teacher
        writer.add(trained("lenet_like@digits", 0))
    writer = ZooWriter(tmp_path / "killed", name="zoo")
    writer.set_teacher(trained("resnet14@digits", 3))
    interrupt(writer)
    with ZooWriter(tmp_path / "killed", name="zoo", resume=True) as writer:
        assert writer.has_teacher
        writer.add(trained("lenet_like@digits", 0))
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "straight")
    assert open_zoo(tmp_path / "killed").teacher.training is False


def test_the_last_teacher_counts_also_across_a_kill(tmp_path):
    writer = ZooWriter(tmp_path / "zoo")
    writer.set_teacher(tensors_of(1))
    writer.set_teacher(tensors_of(2))
    assert len(list(writer.working_folder.glob("teacher*"))) == 1
    with pytest.raises(CheckpointError, match="NaN"):
        writer.set_teacher({"x": torch.full((3,), float("nan"))})
    interrupt(writer)
    with ZooWriter(tmp_path / "zoo", resume=True) as writer:
        writer.set_teacher(tensors_of(3, (3, 7, 2)))
        writer.add(tensors_of(0))
    (file,) = (tmp_path / "zoo").glob("teacher*")
    kept = prepkit.load_prep(file).tensors()
    assert all(same_bits(kept[name], tensor) for name, tensor in tensors_of(3, (3, 7, 2)).items())
    assert {stored.name for stored in read_manifest(tmp_path / "zoo").architectures if stored.class_id is None} == {
        read_manifest(tmp_path / "zoo").teacher.architecture
    }


def test_a_kill_before_the_journal_knows_the_teacher_leaves_the_one_before(tmp_path, monkeypatch):
    writer = ZooWriter(tmp_path / "zoo")
    writer.set_teacher(tensors_of(1))

    def dying(teacher):
        raise KeyboardInterrupt

    monkeypatch.setattr(writer._journal, "set_teacher", dying)
    with pytest.raises(KeyboardInterrupt):
        writer.set_teacher(tensors_of(2))
    interrupt(writer)
    with ZooWriter(tmp_path / "zoo", resume=True) as writer:
        assert len(list(writer.working_folder.glob("teacher*"))) == 1
        writer.add(tensors_of(0))
    (file,) = (tmp_path / "zoo").glob("teacher*")
    assert float(prepkit.load_prep(file).tensors()["0.bias"][0]) == 1.0


def test_a_kill_after_the_teacher_was_published_loses_nothing(tmp_path, monkeypatch):
    writer = ZooWriter(tmp_path / "zoo")
    writer.add(tensors_of(0))
    writer.set_teacher(tensors_of(1))
    killed_close(writer)
    assert list((tmp_path / "zoo").glob("teacher*"))
    with ZooWriter(tmp_path / "zoo", resume=True) as writer:
        assert writer.has_teacher
        assert not list((tmp_path / "zoo").glob("teacher*"))
        writer.set_teacher(tensors_of(2))
    (file,) = (tmp_path / "zoo").glob("teacher*")
    assert float(prepkit.load_prep(file).tensors()["0.bias"][0]) == 2.0


def test_a_teacher_whose_file_is_gone_is_named(tmp_path):
    writer = ZooWriter(tmp_path / "zoo")
    writer.set_teacher(tensors_of(1))
    next(writer.working_folder.glob("teacher*")).unlink()
    interrupt(writer)
    with pytest.raises(ZooError, match=r"teacher-.*: the teacher's file is gone"):
        ZooWriter(tmp_path / "zoo", resume=True)


# Settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "other", "message"),
    [
        ("width", 512, "width 64, not 512"),
        ("height", None, "height 200, not None"),
        ("format", "hdf5", "format 'safetensors', not 'hdf5'"),
        ("name", None, "name 'zoo', not None"),
        ("registry", None, "registry {'lenet_like@digits': 0"),
        ("task", {**GIVEN["task"], "split": {"seed": 1, "test": 100}}, "task.split.seed 0, not 1"),
        ("task", None, "task {'dataset': 'digits'"),
        ("license", None, "license 'mit', not None"),
        ("provenance", {"versions": {"torch": "3"}}, "provenance.versions.torch '2', not '3'"),
        ("provenance", None, "provenance.spec 'lr = 0.1"),
        ("shard_bytes", 1, "shard_bytes 50000, not 1"),
    ],
)
def test_resuming_with_other_settings_is_refused_and_says_which(tmp_path, key, other, message):
    interrupt(ZooWriter(tmp_path / "zoo", **GIVEN))
    before = files_of(tmp_path / "zoo")
    with pytest.raises(ZooError, match="begun with other settings") as caught:
        ZooWriter(tmp_path / "zoo", resume=True, **{**GIVEN, key: other})
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500
    assert all(f": {name} " not in str(caught.value) for name in GIVEN if name != key)
    assert {**files_of(tmp_path / "zoo"), ".writing/lock": b""} == {**before, ".writing/lock": b""}
    with ZooWriter(tmp_path / "zoo", resume=True, **GIVEN) as writer:
        assert len(writer) == 0


def test_a_zoo_without_a_name_may_be_moved_before_it_is_resumed(tmp_path):
    interrupt(ZooWriter(tmp_path / "here"))
    (tmp_path / "here").rename(tmp_path / "there")
    ZooWriter(tmp_path / "there", resume=True).close()
    assert read_manifest(tmp_path / "there").name == "there"


# Provenance -------------------------------------------------------------------------------------------------------


def test_provenance_may_grow_until_the_zoo_is_closed(tmp_path):
    given = {"spec": "x", "seeds": [1]}
    writer = ZooWriter(tmp_path / "zoo", provenance=given)
    writer.provenance["diverged"] = ["run3"]
    interrupt(writer)
    with ZooWriter(tmp_path / "zoo", provenance=given, resume=True) as writer:
        assert writer.provenance == given  # what was given; the caller adds the rest again
        writer.provenance["diverged"] = ["run3", "run4"]
    assert read_manifest(tmp_path / "zoo").provenance == {**given, "diverged": ["run3", "run4"]}
    assert given == {"spec": "x", "seeds": [1]}


def test_provenance_that_is_not_json_can_be_put_right(tmp_path):
    writer = ZooWriter(tmp_path / "zoo")
    writer.add(tensors_of(0))
    writer.provenance["path"] = Path("x")
    with pytest.raises(ZooError, match="provenance is not JSON"):
        writer.close()
    assert not (tmp_path / "zoo" / "zoo.json").exists()
    writer.provenance["path"] = "x"
    writer.close()
    assert json.loads((tmp_path / "zoo" / "zoo.json").read_text())["provenance"] == {"path": "x"}


def test_a_failure_of_finishing_gives_the_lock_back(tmp_path):
    with pytest.raises(PrepkitError, match="provenance is not JSON"), ZooWriter(tmp_path / "zoo") as writer:
        writer.provenance["x"] = object()
    ZooWriter(tmp_path / "zoo", resume=True).close()


# After a failure --------------------------------------------------------------------------------------------------


def test_nothing_follows_values_without_their_lines(tmp_path, monkeypatch):
    """A KeyboardInterrupt that the caller catches must not shift the rows of what comes after."""
    writer = ZooWriter(tmp_path / "zoo")
    writer.add(tensors_of(0), id="a")

    def dying(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writer._journal, "add", dying)
        with pytest.raises(KeyboardInterrupt):
            writer.add(tensors_of(1), id="b")
    with pytest.raises(ZooError, match=r"failed before \(KeyboardInterrupt\)"):
        writer.add(tensors_of(2), id="c")
    interrupt(writer)
    with ZooWriter(tmp_path / "zoo", resume=True) as writer:
        writer.add(tensors_of(2), id="c")
    zoo = open_zoo(tmp_path / "zoo")
    assert [zoo[name][0].tensors()["0.bias"][0].item() for name in ("a", "c")] == [0.0, 2.0]
