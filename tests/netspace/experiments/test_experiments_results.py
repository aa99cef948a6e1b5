"""Results of experiments: what they hold, and how they are saved and loaded."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from netspace import experiments
from netspace.experiments import (
    EXPERIMENTS,
    UnknownExperiment,
    experiment_function,
    experiment_names,
)
from netspace.experiments._subject import Subject
from netspace.experiments.result import (
    Column,
    Picture,
    Result,
    ResultError,
    Table,
    claim,
    table_of_measures,
)
from prepkit.figures import new_figure

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("number", "relation", "limit", "held"),
    [
        (0.95, ">=", 0.95, True),
        (0.9499, ">=", 0.95, False),
        (3.0, "<=", 3, True),
        (3.1, "<=", 3, False),
        (0, "==", 0, True),
        (1, "==", 0, False),
        (2, ">", 2, False),
        (1.9, "<", 2, True),
        (math.nan, ">=", 0.0, False),
        (math.nan, "<=", 0.0, False),
    ],
)
def test_a_number_decides_a_claim(number, relation, limit, held):
    made = claim("Something", number, relation, limit)
    assert made.held is held
    assert made.bound == f"{relation} {limit:g}"


def test_a_result_comes_back_as_it_was(tmp_path):
    result = Result(
        "accuracy",
        "Accuracy",
        "Words, `code` and ü.",
        {"numpy": np.float32(0.5), "tensor": torch.arange(2), "none": math.nan, "deep": {"rows": [(1, np.int64(2))]}},
        [
            claim("A", np.float64(0.96), ">=", 0.95, interval=(np.float64(0.9), 1)),
            claim("B", 1, "==", 0, kind="check"),
            claim("C", 2, ">=", 1, untold="of one instance alone"),
        ],
        [Table("T", ("name", "value", "flag"), (("a", np.int64(3), True), ("b", math.inf, None)))],
        [Picture("P", "p.png")],
        {"seed": 0},
    )
    assert result.numbers == {"numpy": 0.5, "tensor": [0, 1], "none": None, "deep": {"rows": [[1, 2]]}}
    assert result.tables[0].rows == (("a", 3, True), ("b", None, None))
    assert Result.load(result.save(tmp_path)) == result
    assert [path.name for path in tmp_path.iterdir()] == ["accuracy.json"]
    # What was not found is null in the file, and not held.
    assert [one.verdict for one in Result.load(tmp_path / "accuracy.json").claims] == [
        "undecided",
        "not held",
        "not told",
    ]
    lost = replace(result, claims=[claim("A", math.nan, ">=", 0, interval=(math.nan, math.nan))])
    assert json.loads(lost.save(tmp_path).read_text())["claims"][0]["number"] is None
    (back,) = Result.load(tmp_path / "accuracy.json").claims
    assert np.isnan([back.number, *back.interval]).all()
    assert not back.held


def test_what_json_has_no_form_for_is_refused():
    with pytest.raises(ResultError, match=r"result 'a', numbers, x, \[1\]: a set has no form"):
        Result("a", "", "", {"x": [1, {2}]})
    with pytest.raises(ResultError, match="table 'T': 2 columns, a row of 1"):
        Result("a", "", "", tables=[Table("T", ("a", "b"), ((1,),))])


@pytest.mark.parametrize("file", ["../secret.png", "/etc/hosts", "a/b.png", "", 3])
def test_a_picture_is_a_file_of_the_same_folder(tmp_path, file):
    path = Result("a", "", "", pictures=[Picture("P", "p.png")]).save(tmp_path)
    document = json.loads(path.read_text())
    document["pictures"][0]["file"] = file
    path.write_text(json.dumps(document))
    with pytest.raises(ResultError, match="not a result"):
        Result.load(path)


def test_no_result_is_told(tmp_path):
    with pytest.raises(ResultError, match=r"missing\.json"):
        Result.load(tmp_path / "missing.json")
    (tmp_path / "cut.json").write_text('{"name": "a"')
    with pytest.raises(ResultError, match="Run the experiment again"):
        Result.load(tmp_path / "cut.json")


def test_a_table_of_measures():
    columns = (Column("share, %", "share", 100, 1), Column("number", "number"), Column("other", "other", digits=2))
    rows = {("a", 1): {"share": 0.12345, "number": 3, "other": math.nan}, ("b", 2): {"share": 1}}
    table = Result("r", "", "", tables=[table_of_measures("T", ("name", "id"), rows, columns)]).tables[0]
    assert table.columns == ("name", "id", "share, %", "number", "other")
    assert table.rows == (("a", 1, 12.3, 3, None), ("b", 2, 100.0, None, None))


def test_pictures_of_the_same_figure_have_the_same_bytes(tmp_path):
    subject = Subject(None, None, None, None, tmp_path)
    for name in ("a.png", "b.png"):
        figure = new_figure(2, 2)
        figure.subplots().plot([1, 2], [3, 4])
        assert subject.picture("P", name, figure) == Picture("P", name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_every_experiment_has_its_function():
    for name in experiment_names():
        assert callable(experiment_function(name))
        assert set(EXPERIMENTS[name].settings) <= set(experiments.ALL)
    with pytest.raises(UnknownExperiment, match="Did you mean 'accuracy'"):
        experiment_function("acuracy")
    assert "chairs" in experiment_names("sdf")
    assert "chairs" not in experiment_names("single")
