"""What was begun is gone on with as it was begun, and what is damaged or does not fit is told."""

import pytest
import torch
from folder_contents import files_of
from killed_training import TEXTS
from run_samples import Notes, rows_of, stopped, trained

import prepkit
from prepkit.errors import DeviceError, ZooError
from prepkit.training import run as running
from prepkit.training.run import TrainingLog

pytestmark = pytest.mark.xdist_group("trainings")  # one worker runs all, since they share zoos


@pytest.fixture
def unfinished(tmp_path, monkeypatch):
    """A zoo of LAST whose teacher and first unit are there."""
    real = running.executor

    def two(*arguments):
        def execute(units):
            for number, done in enumerate(real(*arguments)(units)):
                if number == 2:
                    raise KeyboardInterrupt
                yield done

        return execute

    with monkeypatch.context() as patch:
        patch.setattr(running, "executor", two)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "zoo", TEXTS["last"], stack=1)
    return tmp_path / "zoo"


def test_what_was_begun_otherwise_is_not_gone_on_with(unfinished, monkeypatch):
    before = files_of(unfinished)
    other = TEXTS["last"].replace("0.05", "0.06")
    with pytest.raises(ZooError, match="holds the unfinished zoo of another spec"):
        trained(unfinished, other)
    with pytest.raises(ZooError, match="was begun with neither `instances` nor `epochs`; go on with the same"):
        trained(unfinished, TEXTS["last"], epochs=1)
    monkeypatch.setattr(running, "choose_device", lambda name: torch.device("meta" if name == "another" else "cpu"))
    with pytest.raises(ZooError, match="was begun on cpu, and goes on there: meta gives other last bits"):
        trained(unfinished, TEXTS["last"], device="another")
    for options in ({"stack": 2}, {"threads": 2}):
        with pytest.raises(ZooError, match=r"was begun with stacks of .* 1 and 1 thread, and goes on so"):
            trained(unfinished, TEXTS["last"], **options)
    monkeypatch.setattr("prepkit.training._provenance.versions", lambda: {"prepkit": "9", "torch": "9"})
    with pytest.raises(ZooError, match=r"here is prepkit 9, torch 9\. Install those to go on, or begin anew"):
        trained(unfinished, TEXTS["last"])
    assert files_of(unfinished) == before


def test_sizes_that_were_begun_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "executor", lambda *arguments: stopped)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "zoo", TEXTS["last"], instances=2, epochs=1)
    with pytest.raises(ZooError, match="was begun with `instances` 2 `epochs` 1; go on with the same"):
        trained(tmp_path / "zoo", TEXTS["last"])


def test_progress_counts_what_was_finished_before(unfinished):
    progress = Notes()
    trained(unfinished, TEXTS["last"], progress=progress)
    assert progress.texts[0] == "1/6 instances"
    assert progress.texts[-1] == f"6/6 instances, accuracy {rows_of(unfinished)[-1]['accuracy']:.3f} in the last stack"


def test_a_damaged_record_is_told(unfinished):
    record = unfinished / ".writing/training/record.json"
    good = record.read_text()
    for bad in ("", "{", "[]", "{}", good.replace('"engine"', '"motor"'), b"\xff\xfe"):
        record.write_bytes(bad if isinstance(bad, bytes) else bad.encode())
        with pytest.raises(ZooError, match=r"record\.json: is damaged: .*Delete .* and train it again"):
            trained(unfinished, TEXTS["last"])
    record.write_text(good)
    trained(unfinished, TEXTS["last"])


def test_a_damaged_line_of_what_was_told(unfinished, monkeypatch):
    """A line that a kill cut is left out, and none is joined to it; one that is whole but no entry is an error."""
    file = unfinished / ".writing/training/told.jsonl"
    good = file.read_text()
    assert "teacher" in good
    file.write_text(good + '{"diverged"\n')
    with pytest.raises(ZooError, match=r"told\.jsonl: is damaged: .*Delete '.*zoo' and train it again"):
        trained(unfinished, TEXTS["last"])
    file.write_text(good + '{"diverged": {"run": "x"}')
    with monkeypatch.context() as patch:
        patch.setattr(running, "executor", lambda *arguments: stopped)
        with pytest.raises(KeyboardInterrupt):
            trained(unfinished, TEXTS["last"])
    assert file.read_text() == good
    trained(unfinished, TEXTS["last"])
    assert prepkit.open_zoo(unfinished).manifest.provenance["diverged"] == []
    assert prepkit.open_zoo(unfinished).manifest.provenance["teacher"]["epochs"] == 1


def test_a_task_that_does_not_fit(tmp_path):
    other = TEXTS["last"].replace('digits"]', 'cifar10"]').replace("@digits", "@cifar10")
    with pytest.raises(ZooError, match="lenet_like@cifar10 takes inputs of 3x32x32, but those of the task are 1x8x8"):
        trained(tmp_path / "zoo", other)
    assert not (tmp_path / "zoo").exists()


def test_classes_that_do_not_fit(tmp_path, monkeypatch):
    def fewer(record, data):
        task = running_load(record, data)
        task.num_outputs = 7
        return task

    running_load = running.load_task
    monkeypatch.setattr(running, "load_task", fewer)
    with pytest.raises(ZooError, match="lenet_like@digits has 10 outputs, but the task needs 7"):
        trained(tmp_path / "zoo", TEXTS["last"])
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize("what", ["stack", "threads", "instances", "epochs"])
def test_numbers_below_one(tmp_path, what):
    with pytest.raises(ZooError, match=f"{what}: expected a whole number of at least 1; found 0"):
        trained(tmp_path / "zoo", TEXTS["last"], **{what: 0})
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize("name", ["nonsense", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there(tmp_path, name):
    with pytest.raises(DeviceError, match=f"device '{name}'"):
        trained(tmp_path / "zoo", TEXTS["last"], device=name)


def test_of_a_teacher_trained_twice_the_last_counts(tmp_path):
    told = TrainingLog(tmp_path / "told.jsonl")
    for accuracy in (0.5, 0.75):
        told.add({"teacher": {"accuracy": accuracy}})
    assert TrainingLog(told.file).teacher == {"accuracy": 0.75}
