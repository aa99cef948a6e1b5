"""Tests of how rows of a table are joined to models: by path, by name only where it is the only one, never in part."""

from pathlib import Path

import pytest

from prepkit.errors import ZooError
from prepkit.zoo.write._json_rows import read_json_rows
from prepkit.zoo.write.csv_columns import rows_of_models
from prepkit.zoo.write.model_paths import ids_of


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Make files, and join them to a table: `tree(files, rows, table="t.csv")` gives the `x` of each model's row."""
    monkeypatch.chdir(tmp_path)

    def joined(files, rows, table="t.csv", others=()):
        for file in (*files, *others):
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_bytes(b"x")
        path = tmp_path / table
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(["file,x", *(f"{row},{number}" for number, row in enumerate(rows))]) + "\n")
        result = rows_of_models([tmp_path / file for file in files], path)
        joined.notes = result.notes
        return [row.columns["x"] for row in result.rows]

    return joined


@pytest.mark.parametrize(
    ("files", "rows", "numbers"),
    [
        (["setA/0.pt", "setB/0.pt"], ["setB/0.pt", "setA/0.pt"], [1, 0]),
        (["t0/ck/model.pth", "t1/ck/model.pth"], ["t0/ck/model.pth", "t1/ck/model.pth"], [0, 1]),
        (["t0/ck/model.pth", "t1/ck/model.pth"], ["t1/ck/model", "./t0/ck/model"], [1, 0]),
        (["t0/ck/model.pth", "t1/ck/model.pth"], [r"t0\ck\model.pth", r"t1\ck\model.pth"], [0, 1]),
        (["t0/ck/model.pth", "t1/ck/model.pth"], [r"C:\old\t1\ck\model.pth", r"C:\old\t0\ck\model.pth"], None),
        (["a/0.pt", "a/1.pt"], ["1.pt", "0"], [1, 0]),
        (["0.pt", "a/0.pt"], ["0.pt", "a/0.pt"], [0, 1]),
        (["a/m.pt", "a/m.safetensors"], ["a/m.safetensors", "a/m.pt"], [1, 0]),
        (["a/0.pt", "b/1.pt"], ["b/../a/0.pt", "b/1.pt"], [0, 1]),
        (["checkpoints/run.v1/model", "checkpoints/run.v2/model"], ["run.v2/model", "run.v1/model"], [1, 0]),
    ],
)
def test_rows_are_joined_by_path(tree, files, rows, numbers):
    if numbers is None:
        with pytest.raises(ZooError, match="2 models have no row in it"):
            tree(files, rows)
    else:
        assert tree(files, rows) == numbers


@pytest.mark.parametrize(
    ("files", "rows", "row"),
    [
        (["setB/0.pt"], ["setA/0.pt"], "setA/0.pt"),
        (["setB/0.pt"], [r"setA\0.pt"], r"setA\0.pt"),
        (["setB/0.pt"], ["/nowhere/setB/0.pt"], "/nowhere/setB/0.pt"),
        (["setB/0.pt"], ["0.pt", "setA/0.pt"], "0.pt"),
        (["setB/0.pt"], ["0", "setA/0.pt"], "0"),
        (["setA/0.pt", "setB/0.pt"], ["0.pt"], "0.pt"),
    ],
)
def test_a_name_that_is_a_part_of_a_path_joins_nothing(tree, files, rows, row):
    with pytest.raises(ZooError, match="no row in it") as caught:
        tree(files, rows, table="elsewhere/t.csv")
    assert f"'{row}' is not taken for " in str(caught.value)


def test_a_row_of_another_file_that_is_there_joins_nothing(tree):
    with pytest.raises(ZooError, match=r"1 model has no row in it: .*setB/0\.pt"):
        tree(["setB/0.pt"], ["0.pt"], table="setA/t.csv", others=["setA/0.pt"])
    with pytest.raises(ZooError, match="1 model has no row in it"):
        tree(["copy/setA/0.pt"], ["setA/0.pt"], others=["setA/0.pt"])


def test_paths_may_start_from_a_folder_that_holds_all_models(tree, tmp_path):
    assert tree(["zoo/a/0.pt", "zoo/b/0.pt"], ["b/0.pt", "a/0.pt"], table="tables/t.csv") == [1, 0]
    assert tree.notes == (f"The rows of {tmp_path}/tables/t.csv name models by their paths in '{tmp_path}/zoo'.",)
    assert tree(["zoo/a/0.pt", "zoo/b/0.pt"], ["zoo/b/0.pt", "zoo/a/0.pt"], table="tables/t.csv") == [1, 0]
    assert tree(["zoo/a/0.pt"], ["a/0.pt", "b/0.pt"], table="tables/t.csv") == [0]
    assert tree.notes[1] == f"1 row of {tmp_path}/tables/t.csv has no model here: b/0.pt."


def test_paths_of_another_machine_start_from_a_folder_of_the_same_name(tree, tmp_path):
    files = ["runs/a/m.pt", "runs/b/m.pt"]
    assert tree(files, [r"C:\exp\runs\b\m.pt", r"C:\exp\runs\a\m.pt"]) == [1, 0]
    assert tree.notes == (f"Paths of {tmp_path}/t.csv in 'C:/exp/runs' are taken for those in '{tmp_path}/runs'.",)
    assert tree(files, [f"{tmp_path}/runs/b/m.pt", f"{tmp_path}/runs/a/m.pt"]) == [1, 0]
    assert tree.notes == ()


def test_rows_and_models_that_fit_several_are_refused(tree):
    with pytest.raises(ZooError, match=r"lines 2 and 3: 'm' and 'm\.pt' both name .*m\.pt; keep one of them"):
        tree(["m.pt"], ["m", "m.pt"])
    with pytest.raises(ZooError, match=r"'.*/m' may be .*m\.pt, .*m\.safetensors; give the suffix"):
        tree(["m.pt", "m.safetensors"], ["m"])
    with pytest.raises(ZooError, match=r"line 3: file '\./m\.pt' stands twice, also in line 2"):
        tree(["m.pt"], ["m.pt", "./m.pt"])


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        (["m0.pt", "a/m1.prep.safetensors"], ["m0", "m1"]),
        (["runs/a/model.pt", "runs/b/model.pt"], ["a", "b"]),
        (["r/a/ck/e1.pt", "r/a/ck/e2.pt", "r/b/ck/e1.pt"], ["a/e1", "a/e2", "b/e1"]),
        (["r/a/0.pt", "r/b/1/0.pt"], ["a/0", "b/1/0"]),
        (["m.pt", "m.safetensors"], ["m.pt", "m.safetensors"]),
        (["r/a.1/checkpoints", "r/a.2/checkpoints"], ["a.1", "a.2"]),
        (["m.pt", "m.pt"], ["m", "m"]),
    ],
)
def test_ids_are_names_or_the_parts_of_paths_that_differ(files, ids):
    assert ids_of(map(Path, files)) == ids


@pytest.mark.parametrize(("name", "place"), [("rows.json", "item 1"), ("rows.jsonl", "line 1")])
def test_two_values_for_one_column_of_a_row_are_refused(tmp_path, name, place):
    """The second one took the place of the first without a word."""
    content = b'{"id": "a", "config.rate": 1, "config": {"rate": 2}}\n'
    with pytest.raises(ZooError, match=rf"{name}, {place}: two values would be the column 'config.rate'\."):
        read_json_rows(tmp_path / name, content, one_row=True)
