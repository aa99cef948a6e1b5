"""Tests of `prepkit zoo annotate`."""

import json
from pathlib import Path

import pytest
from cli_samples import run, zoo_of_three

from prepkit.api import open_zoo


@pytest.fixture
def zoo(folder: Path) -> Path:
    return zoo_of_three()


def test_add_then_rename_and_drop(zoo: Path) -> None:
    Path("t.csv").write_text("id,robust,note\nr1,0.5,a\nr3,0.25,b\nr9,1,c\n")
    result = run("zoo", "annotate", "zoo", "--table", "t.csv", "--types", "robust=float")
    assert result.stdout == "zoo\n  added      robust, note\n  rows found for 2 instances\n"
    assert result.stderr == (
        "note: 1 instance has no row in t.csv: r2.\nnote: 1 row of t.csv is of no instance: line 4.\n"
    )
    assert open_zoo(zoo).table["robust"].to_pylist() == [0.5, None, 0.25]
    result = run("zoo", "annotate", "zoo", "--rename", "acc=accuracy,note=remark", "--drop", "robust", "--json")
    document = json.loads(result.stdout)
    assert (document["renamed"], document["dropped"]) == ({"acc": "accuracy", "note": "remark"}, ["robust"])
    assert open_zoo(zoo).where("accuracy > 0.15").table["id"].to_pylist() == ["r2", "r3"]
    assert run("zoo", "verify", "zoo").stdout.startswith("zoo: whole; 3 instances")


def test_rows_by_another_column(zoo: Path) -> None:
    Path("t.jsonl").write_text('{"value": 0.1, "x": 1}\n{"value": 0.3, "x": 3}\n')
    run("zoo", "annotate", "zoo", "--table", "t.jsonl", "--on", "acc=value")
    assert open_zoo(zoo).table["x"].to_pylist() == [1, None, 3]
    Path("t.jsonl").write_text('{"acc": 0.2, "x": 2}\n')
    run("zoo", "annotate", "zoo", "--table", "t.jsonl", "--on", "acc")
    assert open_zoo(zoo).table["x"].to_pylist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --table FILE, --rename OLD=NEW or --drop NAME."),
        (["--drop", "acc", "--on", "id"], "--on and --types go with --table FILE."),
        (["--table", "no.csv"], "no.csv: cannot be read: No such file or directory."),
        (["--table", "acc.csv", "--on", "name"], "there is no column 'name' to find rows by; there are file, acc."),
        (["--rename", "acc"], "'acc' does not name columns such as acc=accuracy."),
    ],
)
def test_mistakes(zoo: Path, arguments: list[str], message: str) -> None:
    assert message in run("zoo", "annotate", "zoo", *arguments, code=2).stderr
