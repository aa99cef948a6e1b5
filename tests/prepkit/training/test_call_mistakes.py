"""Values of a wrong type in calls from Python: each is an error of prepkit that names the argument."""

import pytest

import prepkit
from prepkit.errors import PrepkitError
from prepkit.tasks import load_task
from prepkit.training.spec import load_spec

FOLDER = {"kind": "images", "dataset": "folder", "split": {"seed": 0, "test": "test"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec": {"name": "tiny"}}, "spec: expected a Spec, the name of a built-in one or the path .* found a dict"),
        ({"path": None}, "path: expected the folder of the zoo; found a NoneType"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"stack": "4"}, "stack: expected a whole number of at least 1; found '4'"),
        ({"threads": 1.5}, r"threads: expected a whole number of at least 1; found 1\.5"),
        ({"instances": "1"}, "instances: expected a whole number of at least 1; found '1'"),
        ({"epochs": -1}, "epochs: expected a whole number of at least 1; found -1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_train_zoo(changes, message, tmp_path):
    with pytest.raises(PrepkitError, match=message):
        prepkit.train_zoo(**{"spec": "digits_single", "path": tmp_path / "zoo", "device": "cpu", **changes})
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize("spec", [{"name": "tiny"}, None, 3])
def test_load_spec(spec):
    with pytest.raises(PrepkitError, match="spec: expected a Spec, the name"):
        load_spec(spec)


@pytest.mark.parametrize("record", ["digits", ["images"]])
def test_load_task(record):
    with pytest.raises(PrepkitError, match="task: expected a record such as"):
        load_task(record)


def test_the_folder_of_a_task_may_be_a_text(tmp_path):
    with pytest.raises(PrepkitError, match="nothing' is no folder"):
        load_task(FOLDER, str(tmp_path / "nothing"))
