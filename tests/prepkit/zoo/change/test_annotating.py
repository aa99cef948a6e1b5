"""Tests of columns that a finished zoo is given: whose rows they are, and that nothing else changes."""

import json
import multiprocessing
import shutil
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from folder_contents import files_of
from killed_changes import killed
from zoo_samples import write_zoo

from prepkit.api import open_zoo, verify
from prepkit.errors import ZooError, ZooLocked
from prepkit.support.lock import changing
from prepkit.zoo.card.card import write_card
from prepkit.zoo.change import annotating
from prepkit.zoo.change.cleaning import clean

annotate = partial(annotating.annotate, card=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Seven instances m0 ... m6, of which two and two share a run."""
    return write_zoo(tmp_path_factory.mktemp("source") / "zoo", count=7)


@pytest.fixture
def root(source, tmp_path):
    shutil.copytree(source, tmp_path / "zoo")
    return tmp_path / "zoo"


def column(root, name):
    table = open_zoo(root).table
    return dict(zip(table["id"].to_pylist(), table[name].to_pylist(), strict=True))


# Frames -------------------------------------------------------------------------------------------------------


class Interchanged:
    """A frame of a library that has only the interchange protocol."""

    def __init__(self, table):
        self._table = table

    def __dataframe__(self, *arguments, **keywords):
        return self._table.__dataframe__(*arguments, **keywords)


class Streamed:
    """A frame of a library that has only Arrow's C stream, such as polars or duckdb."""

    def __init__(self, table):
        self._table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self._table.__arrow_c_stream__(requested_schema)


VALUES = {"id": ["m3", "m1"], "robust": [0.25, 0.5]}


@pytest.mark.parametrize(
    "frame",
    [
        VALUES,
        {"id": ("m3", "m1"), "robust": np.array([0.25, 0.5], np.float32)},
        {"id": np.array(["m3", "m1"], object), "robust": torch.tensor([0.25, 0.5])},
        {"id": pa.array(["m3", "m1"]), "robust": pa.chunked_array([[0.25], [0.5]])},
        pa.table(VALUES),
        pd.DataFrame(VALUES, index=[7, 9]),
        pd.DataFrame(VALUES).astype({"id": "category"}),
        Interchanged(pa.table(VALUES)),
        Streamed(pa.table(VALUES)),
    ],
    ids=lambda frame: type(frame).__name__,
)
def test_columns_of_any_frame(root, frame):
    before = files_of(root)
    done = annotate(root, frame)
    assert (done.added, done.replaced, done.matched) == (("robust",), (), 2)
    assert done.notes == (f"5 instances have no row in the {type(frame).__name__}: m0, m2, m4, m5, m6.",)
    assert column(root, "robust") == {**dict.fromkeys([f"m{n}" for n in range(7)]), "m3": 0.25, "m1": 0.5}
    assert open_zoo(root).table.schema.field("robust").type == pa.float64()
    after = files_of(root)
    assert {name for name in after if after[name] != before.get(name)} == {"zoo.json", done.table}
    assert verify(root).ok


def test_types_of_values(root):
    ids = [f"m{n}" for n in range(7)]
    values = {
        "int": [2**60, *[None] * 6],
        "bool": [True] * 7,
        "day": [date(2026, 11, 27)] * 7,
        "time": [datetime(2026, 11, 27, 13, tzinfo=UTC)] * 7,
        "curve": [[0.5, 1]] * 6 + [None],
    }
    annotate(root, {"id": ids, **values})
    for name, expected in values.items():
        assert list(column(root, name).values()) == expected
    frame = pd.DataFrame({"id": ids, "when": pd.to_datetime(["2026-11-27"] * 7), "gone": [np.nan] * 6 + [1.5]})
    annotate(root, frame)
    assert column(root, "when")["m0"] == datetime(2026, 11, 27)
    assert column(root, "gone") == {**dict.fromkeys(ids), "m6": 1.5}


# Files --------------------------------------------------------------------------------------------------------


def test_a_row_of_a_table_counts_for_its_whole_run(root, tmp_path):
    (tmp_path / "runs.csv").write_text("name;lr\n0;0,1\n2;0,2\n9;0,3\n")
    done = annotate(root, tmp_path / "runs.csv", on={"run": "name"})
    assert list(column(root, "lr").values()) == [0.1, 0.1, None, None, 0.2, 0.2, None]
    assert done.notes[1:] == (
        f"3 instances have no row in {tmp_path / 'runs.csv'}: m2, m3, m6.",
        f"1 row of {tmp_path / 'runs.csv'} is of no instance: line 4.",
    )


def test_several_columns_are_a_key_and_the_last_line_of_jsonl_wins(root, tmp_path):
    rows = [{"run": n // 2, "accuracy": 0.5 + n / 100, "score": n} for n in range(7)]
    lines = [*rows, {**rows[3], "score": 33}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    done = annotate(root, tmp_path / "t.jsonl", on=["run", "accuracy"])
    assert list(column(root, "score").values()) == [0, 1, 2, 33, 4, 5, 6]
    assert done.notes == (
        f"1 row of {tmp_path / 't.jsonl'} is followed by a later one of the same key, which is taken.",
    )


def test_ids_that_look_like_numbers_are_text(tmp_path):
    root = write_zoo(tmp_path / "zoo", count=3, prefix="00")
    (tmp_path / "t.csv").write_text("id,x\n001,1\n002,2\n")
    annotate(root, tmp_path / "t.csv")
    assert column(root, "x") == {"000": None, "001": 1, "002": 2}


def test_rows_by_the_path_that_an_id_was_made_of(root, tmp_path):
    (tmp_path / "t.csv").write_text("file,x\nruns/a/m1.pt,1\nm2.safetensors,2\nC:\\runs\\m3.pth,3\nother.pt,4\n")
    assert annotate(root, tmp_path / "t.csv").matched == 3
    assert list(column(root, "x").values())[:4] == [None, 1, 2, 3]
    (tmp_path / "t.csv").write_text("file,x\na/m1.pt,1\nb/m1.pt,2\n")
    with pytest.raises(ZooError, match="line 2 and line 3 may both be of 'm1'"):
        annotate(root, tmp_path / "t.csv")


def test_a_zoo_with_columns_is_the_same_zoo_or_view_as_it_is_then(root):
    zoo = open_zoo(root, width=64)
    view = zoo.where("accuracy > 0.525").select([2, 0])
    changed = view.with_columns({"id": ["m3", "m5", "m0"], "robust": [0.3, 0.5, 0]})
    assert changed.table.select(["id", "robust"]).to_pylist() == [
        {"id": "m5", "robust": 0.5},
        {"id": "m3", "robust": 0.3},
    ]
    assert torch.equal(changed.preps(), view.preps())
    assert "robust" not in zoo.table.column_names
    again = zoo.with_columns(pd.DataFrame({"run": [0], "lr": [0.1]}), on="run")
    assert (len(again), again.shape.width) == (7, 64)
    assert again.where("lr > 0").table["id"].to_pylist() == ["m0", "m1"]


# Replacing, renaming, dropping --------------------------------------------------------------------------------


def test_values_are_replaced_where_there_are_new_ones(root):
    done = annotate(root, {"id": ["m0", "m1", "m2"], "accuracy": [1, None, 0.5], "run": [0, 0, 1]})
    assert (done.added, done.replaced) == ((), ("accuracy",))
    assert list(column(root, "accuracy").values())[:4] == [1.0, 0.51, 0.5, 0.53]
    done = annotate(root, {"id": ["m6"], "run": [2.5]})  # a column of whole numbers takes a fraction
    assert list(column(root, "run").values()) == [0, 0, 1, 1, 2, 2, 2.5]


def test_a_column_of_text_takes_the_cells_as_they_stand(root, tmp_path):
    (tmp_path / "t.csv").write_text("id,note\nm1,007\n")
    annotate(root, tmp_path / "t.csv")
    assert column(root, "note")["m1"] == "007"


def test_drop_rename_then_add(root):
    done = annotate(root, {"id": ["m0"], "run": ["x"]}, rename={"run": "group"}, drop=["note"])
    assert (done.renamed, done.dropped, done.added) == ({"run": "group"}, ("note",), ("run",))
    assert open_zoo(root).table.column_names[6:] == ["accuracy", "group", "run"]
    annotate(root, rename={"group": "run", "run": "group"})  # two that change their names
    assert column(root, "group")["m0"] == "x"


def test_what_changed_is_in_the_provenance_and_the_card(root, tmp_path):
    write_card(root)
    (tmp_path / "t.csv").write_text("id,robust\nm0,0.5\n")
    annotating.annotate(root, tmp_path / "t.csv")
    annotating.annotate(root, drop=["note"])
    first, second = open_zoo(root).manifest.provenance["annotations"]
    assert (first["from"], first["added"], first["instances"], len(first["sha256"])) == ("t.csv", ["robust"], 1, 64)
    assert second["dropped"] == ["note"]
    assert datetime.fromisoformat(first["time"]).tzinfo is not None
    assert "| robust " in (root / "README.md").read_text()
    assert "| note " not in (root / "README.md").read_text()


def test_nothing_is_written_where_nothing_changes(root):
    annotate(root, {"id": ["m0"], "x": [1]})
    before = files_of(root)
    assert annotate(root, {"id": ["m0"], "x": [1]}).replaced == ()
    assert files_of(root) == before


# Mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "options", "message"),
    [
        (None, {}, "there is nothing to change"),
        (None, {"rename": {"note": "id"}}, "the column 'id' is filled by the zoo itself"),
        (None, {"rename": {"note": "run"}}, "'zoo' would have two columns run"),
        (None, {"drop": ["split"]}, "the column 'split' is filled by the zoo itself, so it cannot be dropped"),
        (None, {"drop": ["nota"]}, "'zoo' has no column 'nota' to be dropped; it has .* Did you mean 'note'?"),
        (None, {"drop": ["note"], "on": "id"}, "`on` and types= go with columns"),
        (3, {}, "columns are a pandas, polars or pyarrow table, .*; found a int"),
        ({"id": ["m0"]}, {}, "has no columns but those of its keys, id"),
        ({"id": ["m0"], "x": [1, 2]}, {}, "the same number of values; found id 1, x 2"),
        ({"id": ["m0"], "x": "a"}, {}, "column 'x': give a list of values, one a row; found a str"),
        ({"id": ["m0"], "x": np.ones((1, 2))}, {}, r"one value a row, \[rows\]; found the shape \[1, 2\]"),
        ({"id": ["m0"], "x": [{}]}, {}, "column 'x': a dict cannot stand here"),
        ({"id": ["m0", "m1"], "x": [1, "a"]}, {}, "'a' is str, but other rows have int"),
        ({"id": ["q"], "x": [1]}, {}, "no row is of any of 7 instances; the first row has id 'q', the first instance"),
        ({"id": ["m0", "m0"], "x": [1, 1]}, {}, "row 0 and row 1 are both of id 'm0'"),
        ({"name": ["m0"], "x": [1]}, {}, "there is no column 'id' to find rows by; there are name, x"),
        ({"id": ["m0"], "x": [1]}, {"on": "rum"}, "no column 'rum'"),
        ({"run": ["0"], "x": [1]}, {"on": "run"}, "'run' holds string, but the zoo's holds int64"),
        ({"id": ["m0"], "shard": [1]}, {}, "the column 'shard' is filled by the zoo itself"),
        ({"id": ["m0"], "accuracy": ["a"]}, {}, "holds string, but the zoo's column of this name holds double"),
        (pa.table({"id": ["m0"], "x": [{"a": 1}]}), {}, "has the type struct<a: int64>"),
        (pa.table({"id": ["m0"], "x": pa.array([2**64 - 1], pa.uint64())}), {}, "column 'x': does not fit int64"),
        (pa.table([["m0"], [1], [2]], ["id", "x", "x"]), {}, "the columns x stand twice"),
    ],
)
def test_mistakes_change_nothing(root, frame, options, message):
    before = files_of(root)
    with pytest.raises(ZooError, match=message):
        annotate(root, frame, **options)
    assert files_of(root) == before


def test_one_process_at_a_time(root):
    with changing(root), pytest.raises(ZooLocked, match="is being written by process"):
        annotate(root, drop=["note"])


# Interruption and readers -------------------------------------------------------------------------------------


def add_a_column(root: Path) -> None:
    annotate(root, VALUES, rename={"note": "remark"})


def test_killed_at_any_call_the_zoo_is_as_before_or_as_after(root, tmp_path):
    old = open_zoo(root).table.column_names
    done = kept = 0
    for copy in killed(add_a_column, root, tmp_path):
        zoo = open_zoo(copy)
        if zoo.table.column_names == old:
            kept += 1
            add_a_column(copy)
        done += zoo.table.column_names != old
        assert column(copy, "robust")["m3"] == 0.25
        assert verify(copy).ok
        clean(copy)
        assert {name for name in files_of(copy) if name.startswith((".", "models"))} == {
            open_zoo(copy).manifest.table.path
        }
    assert kept > 3
    assert done > 0


def read(root: Path, is_done: object, failures: object) -> None:
    while not is_done.is_set():  # type: ignore[attr-defined]
        try:
            zoo = open_zoo(root)
            assert len(set(zoo.table["count"].to_pylist())) == 1
            zoo.preps([0, 6])
        except Exception as error:
            failures.put(repr(error))  # type: ignore[attr-defined]
            return


def test_sixteen_readers_beside_a_writer(root):
    ids = [f"m{n}" for n in range(7)]
    annotate(root, {"id": ids, "count": [0] * 7})
    context = multiprocessing.get_context("fork")
    failures, is_done = context.Queue(), context.Event()
    readers = [context.Process(target=read, args=(root, is_done, failures)) for _ in range(16)]
    for reader in readers:
        reader.start()
    for number in range(1, 6):
        annotate(root, {"id": ids, "count": [number] * 7})
    is_done.set()
    for reader in readers:
        reader.join()
    assert failures.empty(), failures.get()
    assert column(root, "count") == dict.fromkeys(ids, 5)
