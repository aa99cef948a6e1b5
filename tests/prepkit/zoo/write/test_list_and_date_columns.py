"""Columns of dates, timestamps and lists come back as they were given: from Python and CSV, after a kill, in files."""

import contextlib
import datetime as dt
import json
import math

import numpy as np
import pandas
import pytest
import torch
from click.testing import CliRunner
from folder_contents import files_of
from writer_samples import tensors_of

from prepkit.api import create_zoo, open_zoo, verify
from prepkit.cli import main
from prepkit.errors import WhereError, ZooError
from prepkit.zoo.change.merge import merge
from prepkit.zoo.change.splitting import split
from prepkit.zoo.write.cell_types import typed
from prepkit.zoo.write.writer import ZooWriter

DAY = dt.date(2026, 11, 27)
NOON = dt.datetime(2026, 11, 27, 12, 0, 0, 5)
EAST = dt.timezone(dt.timedelta(hours=2))
ROWS = [
    {"day": DAY, "finished": NOON, "zoned": NOON.replace(tzinfo=EAST), "loss": [1, 0.5, math.inf], "tags": ["ä", None]},
    {"day": None, "finished": np.datetime64("2026-11-28"), "loss": torch.tensor([0.25]), "tags": []},
    {
        "day": pandas.Timestamp("2026-12-01").date(),
        "finished": pandas.Timestamp("2026-11-29 13:50"),
        "zoned": pandas.NaT,
        "loss": np.array([2, 3]),
        "late": [True],
    },
]
ROWS[1]["finished"] = ROWS[1]["finished"].astype("datetime64[ns]")  # of which `item` makes a number
EXPECTED = {
    "day": [DAY, None, dt.date(2026, 12, 1)],
    "finished": [NOON, dt.datetime(2026, 11, 28), dt.datetime(2026, 11, 29, 13, 50)],
    "zoned": [NOON.replace(hour=10, tzinfo=dt.UTC), None, None],
    "loss": [[1.0, 0.5, math.inf], [0.25], [2.0, 3.0]],
    "tags": [["ä", None], [], None],
    "late": [None, None, [True]],
}


def write(root, rows=ROWS, **settings):
    with ZooWriter(root, license="mit", **settings) as writer:
        for number, row in list(enumerate(rows))[len(writer) :]:
            writer.add(tensors_of(number), id=f"m{number}", split="train", **row)
    return root


def interrupted(root, rows, **settings):
    """Write a zoo whose writer does not close."""
    with contextlib.suppress(KeyboardInterrupt), ZooWriter(root, **settings) as writer:
        for number, row in enumerate(rows):
            writer.add(tensors_of(number), id=f"m{number}", split="train", **row)
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return write(tmp_path_factory.mktemp("columns") / "zoo")


def columns_of(root):
    table = open_zoo(root).table
    return {name: table[name].to_pylist() for name in EXPECTED}


def test_they_come_back(zoo):
    assert columns_of(zoo) == EXPECTED
    assert verify(zoo).ok
    metadata = open_zoo(zoo).metadata("m0")
    assert {name: metadata[name] for name in EXPECTED} == {name: values[0] for name, values in EXPECTED.items()}


def test_they_survive_an_interrupted_writing(zoo, tmp_path):
    interrupted(tmp_path / "zoo", ROWS[:2], license="mit")
    write(tmp_path / "zoo", resume=True)
    assert files_of(tmp_path / "zoo") == files_of(zoo)


def test_a_damaged_date_in_a_journal(tmp_path):
    interrupted(tmp_path / "zoo", [{"day": DAY}])
    journal = next((tmp_path / "zoo" / ".writing").glob("*journal*"))
    lines = [line for line in journal.read_bytes().splitlines(True) if not line.startswith(b'{"sum"')]
    first = json.loads(lines[0])
    del first["journal"]  # the first version of the journal had no sums that would find it
    damaged = b"".join(lines[1:]).replace(b'{"date":"2026-11-27"}', b'{"date":"2026-11-37"}')
    journal.write_bytes(json.dumps(first).encode() + b"\n" + damaged)
    with pytest.raises(ZooError, match="line 4: damaged"):
        ZooWriter(tmp_path / "zoo", resume=True)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (DAY, NOON, "2026-11-27 12:00:00.000005 is timestamp, but other rows have date"),
        (NOON, NOON.replace(tzinfo=dt.UTC), "is timestamp with time zone, but other rows have timestamp"),
        ([1], ["a"], r"\['a'\] is list of str, but other rows have list of int"),
        ([1], 1, "1 is int, but other rows have list of int"),
        ([2**60 + 1], [0.5], "is list of float, but other rows have list of long"),
        (DAY, pandas.Timestamp("2026-01-01T00:00:00.000000001"), "is finer than a microsecond"),
        (DAY, dt.timedelta(1), "a timedelta cannot stand here; give a number"),
        (DAY, dt.datetime.min.replace(tzinfo=EAST), "out of the years 1 to 9999"),
    ],
)
def test_kinds_that_do_not_go_together(tmp_path, first, second, message):
    writer = ZooWriter(tmp_path / "zoo")
    writer.add(tensors_of(0), x=first)
    with pytest.raises(ZooError, match=f"column 'x': {message}|column 'x': .*{message}"):
        writer.add(tensors_of(1), x=second)
    assert len(writer) == 1


@pytest.mark.parametrize(
    ("condition", "ids"),
    [
        ("day < '2026-12-01'", ["m0"]),
        ("day >= '2026-11-27 00:00'", ["m0", "m2"]),
        ("day > '2026-11-27 00:01'", ["m2"]),
        ("not day == '2026-11-27'", ["m2"]),
        ("'2026-11-27 12:00' < finished <= '2026-11-28'", ["m0", "m1"]),
        ("finished in ('2026-11-28', '2026-11-29T13:50:00')", ["m1", "m2"]),
        ("zoned == '2026-11-27T12:00:00.000005+02:00'", ["m0"]),
        ("zoned > '2026-11-27 10:00'", ["m0"]),
        ("zoned > '2026-11-27 10:01'", []),
        ("zoned < '2026-11-28'", ["m0"]),
        ("day > finished", ["m2"]),
        ("late is None and loss is not None", ["m0", "m1"]),
    ],
)
def test_conditions(zoo, condition, ids):
    assert open_zoo(zoo).where(condition).table["id"].to_pylist() == ids


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("loss > 0.5", "the column loss holds lists; a condition can only ask whether it `is None`"),
        ("0.5 in loss", "expected the name of a column"),
        ("loss in (1, 2)", "the column loss holds lists"),
        ("day == loss", "the column loss holds lists"),
        ("day > 2026", "the column day holds dates or times and 2026 is none"),
        ("day > id", "the column day holds dates or times and id is none"),
        ("day > '27.11.2026'", "it is no date or time; write it as '2026-11-27' or '2026-11-27 13:50'"),
        ("finished > '2026-11-27T12:00Z'", "have no time zone; leave it out"),
        ("zoned > finished", "time zone|timezone"),
    ],
)
def test_conditions_that_cannot_be(zoo, condition, message):
    with pytest.raises(WhereError, match=message):
        open_zoo(zoo).where(condition)


def test_a_list_groups_no_split(zoo):
    with pytest.raises(ZooError, match="the column 'loss' holds lists, which name no groups"):
        split(zoo, group="loss", force=True)


def test_merged_zoos_have_the_type_that_holds_both(zoo, tmp_path):
    rows = [{"loss": [5], "tags": [], "day": None}, {"loss": [], "late": [None]}]
    merged = merge(tmp_path / "both", [zoo, write(tmp_path / "other", rows)], prefix=True).path
    assert open_zoo(merged).table["loss"].to_pylist() == [*EXPECTED["loss"], [5.0], []]
    assert open_zoo(merged).table["late"].to_pylist() == [*EXPECTED["late"], None, [None]]
    assert open_zoo(merged).table["day"].to_pylist() == [*EXPECTED["day"], None, None]


@pytest.mark.parametrize(
    ("cells", "kind", "values"),
    [
        (["2026-11-27", "", "0001-01-01"], "date", [DAY, None, dt.date(1, 1, 1)]),
        (["2026-11-27 13:50", "2026-11-27T13:50:01.5"], "timestamp", [dt.datetime(2026, 11, 27, 13, 50)]),
        (["2026-11-27T13:50Z", "2026-11-27 13:50+0200"], "timestamp with time zone", []),
        (["[0.9, 0.5]", "[]", "[1]"], "list", [[0.9, 0.5], [], [1]]),
        (["[0.9 5e-1\n 1]", "[1, null]"], "list", [[0.9, 0.5, 1], [1, None]]),
        (["[np.float64(0.9), np.int64(3)]"], "list", [[0.9, 3]]),
        (["2026-13-27"], "text", ["2026-13-27"]),
        (["2026-11-27", "2026-11-27 13:50"], "text", []),
        (["2026-11-27 13:50", "2026-11-27 13:50Z"], "text", []),
        (["27.11.2026"], "text", []),
        (["[0,9; 0,5]"], "text", []),
        (["[0,9 0,5]"], "text", []),
        (['["a"]', "[1]"], "text", []),
        (["[[1], [2]]"], "text", []),
        (["[0.1 ... 0.9]"], "text", []),
        (["0.9 0.5"], "text", []),
    ],
)
def test_cells(cells, kind, values):
    column = typed(cells)
    assert column.kind == kind
    assert column.values[: len(values)] == values


@pytest.fixture
def models(tmp_path):
    for number in range(2):
        torch.save(tensors_of(number), tmp_path / f"m{number}.pt")
    return [tmp_path / "m0.pt", tmp_path / "m1.pt"]


def test_a_table_of_zoo_create(models, tmp_path):
    (tmp_path / "t.csv").write_text('file,day,loss,curve,code\nm0,2026-11-27,"[0.9, NaN]",1;2.5,[3]\nm1,,,-,[4]\n')
    types = "curve=list,code=text"
    arguments = ["zoo", "create", str(tmp_path / "zoo"), *map(str, models), "--table", str(tmp_path / "t.csv")]
    result = CliRunner().invoke(main, [*arguments, "--types", types])
    assert result.exit_code == 0, result.output
    assert "note: column day: date, 1 of 2 empty\n" in result.stderr
    assert "note: column loss: list, 1 of 2 empty\n" in result.stderr
    table = open_zoo(tmp_path / "zoo").table
    assert table["day"].to_pylist() == [DAY, None]
    assert table["curve"].to_pylist() == [[1.0, 2.5], None]
    assert table["code"].to_pylist() == ["[3]", "[4]"]
    output = ["-o", str(tmp_path / "o.pt"), "--json"]
    exported = CliRunner().invoke(main, ["zoo", "export", str(tmp_path / "zoo"), "m0", *output])
    metadata = json.loads(exported.stdout)["metadata"]
    assert (metadata["day"], metadata["loss"], metadata["curve"]) == ("2026-11-27", [0.9, "nan"], [1.0, 2.5])


def test_types_from_python(models, tmp_path):
    (tmp_path / "t.csv").write_text("file,day,at,curve\nm0,2026-11-27,2026-11-27,1 2\nm1,2026-11-27,2026-11-27,3\n")
    create_zoo(tmp_path / "zoo", models, table=tmp_path / "t.csv", types={"day": str, "at": dt.datetime, "curve": list})
    table = open_zoo(tmp_path / "zoo").table
    assert table["day"].to_pylist() == ["2026-11-27"] * 2
    assert table["at"].to_pylist() == [dt.datetime(2026, 11, 27)] * 2
    assert table["curve"].to_pylist() == [[1, 2], [3]]


@pytest.mark.parametrize(
    ("kind", "cell", "message"),
    [
        ("list", '"0,9"', "line 2: '0,9' is no list"),
        ("list", "high", "line 2: 'high' is no list"),
        ("date", "2026-11-27 13:50", "line 2: '2026-11-27 13:50' is no date"),
        ("timestamp", "27.11.2026", "line 2: '27.11.2026' is no timestamp"),
        ("day", "1", "there is no type 'day'; use int, float, bool, text, date, timestamp or list"),
    ],
)
def test_cells_that_are_not_what_was_asked_for(models, tmp_path, kind, cell, message):
    (tmp_path / "t.csv").write_text(f"file,x\nm0,{cell}\nm1,\n")
    with pytest.raises(ZooError, match=message):
        create_zoo(tmp_path / "zoo", models, table=tmp_path / "t.csv", types={"x": kind})
    assert not (tmp_path / "zoo").exists()
