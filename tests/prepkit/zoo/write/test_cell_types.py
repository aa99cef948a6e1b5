"""Tests of tables as programs write them: encodings, delimiters, and what becomes of cells."""

import codecs
import json

import pytest
import torch
from click.testing import CliRunner
from writer_samples import tensors_of

from prepkit.api import create_zoo, open_zoo
from prepkit.cli import main
from prepkit.errors import WhereError, ZooError
from prepkit.zoo.write.cell_types import typed
from prepkit.zoo.write.csv_columns import read_csv


@pytest.mark.parametrize(
    ("content", "delimiter"),
    [
        (b"file;accuracy;note\nm0.pt;0,81;\xe9\n", "CP1252 with semicolons"),
        ("file;accuracy;note\nm0.pt;0,81;é\n".encode("utf-8-sig"), "UTF-8-SIG with semicolons"),
        ("sep=;\r\nfile;accuracy;note\r\nm0.pt;0,81;é\r\n".encode(), "UTF-8 with semicolons"),
        ("File\taccuracy\tnote\nm0.pt\t0,81\té\n".encode("utf-16"), "UTF-16 with tabs"),
        (codecs.BOM_UTF16_BE + "File\taccuracy\tnote\nm0.pt\t0.81\té\n".encode("utf-16-be"), "UTF-16 with tabs"),
        ("file\taccuracy\tnote\nm0.pt\t0.81\té\n".encode("utf-16-le"), "UTF-16-LE with tabs"),
        ("file|accuracy|note\nm0.pt|0.81|é\n".encode(), "UTF-8 with bars"),
        ('"file";"accuracy";"note"\n"m0.pt";"0,81";"é"\n'.encode(), "UTF-8 with semicolons"),
        ("FILE,accuracy,note\nm0.pt,0.81,é\n".encode(), None),
    ],
)
def test_encodings_and_delimiters(tmp_path, content, delimiter):
    (tmp_path / "t.csv").write_bytes(content)
    table = read_csv(tmp_path / "t.csv")
    assert [(line.file, line.cells) for line in table.lines] == [("m0.pt", {"accuracy": 0.81, "note": "é"})]
    notes = () if delimiter is None else (f"{tmp_path}/t.csv is read as {delimiter} between cells.",)
    assert table.notes == notes


def test_lines_are_counted_after_the_line_that_names_the_delimiter(tmp_path):
    (tmp_path / "t.csv").write_text("sep=;\nfile;x\nm0;1\nm1\n")
    with pytest.raises(ZooError, match="line 4: 1 cell, but the first line names 2 columns"):
        read_csv(tmp_path / "t.csv")


def test_only_file_id_and_split_may_be_written_in_other_letters(tmp_path):
    (tmp_path / "t.csv").write_text("File,ID,Split,LR\nm0,a,test,1\n")
    assert read_csv(tmp_path / "t.csv").lines[0].cells == {"id": "a", "split": "test", "LR": 1}
    (tmp_path / "t.csv").write_text("file,File\nm0,x\n")
    assert read_csv(tmp_path / "t.csv").lines[0].cells == {"File": "x"}


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        (["0,81", "0.5"], "text; '0,81' in line 2 may be a number; types= reads the column as float"),
        (["82%", "7 %"], "text; '82%' in line 2 may be a number; types= reads the column as float"),
        (["12e5", "1e5"], "text; '12e5' in line 2 may be a number; types= reads the column as float"),
        (["0.5", "0.6", "n/a"], "text; 'n/a' in line 4 is no number"),
        (["007", "008"], "text"),
        (["a", "b", ""], "text, 1 of 3 empty"),
        (["1e-3", "12e-4", "1e5"], "float"),
        (["1", ""], "int, 1 of 2 empty"),
        (["", ""], "empty, 2 of 2 empty"),
    ],
)
def test_a_column_tells_what_it_became(cells, told):
    assert str(typed(cells, lines=range(2, 9))) == told


def test_a_comma_is_a_decimal_one_only_where_it_cannot_stand_between_thousands():
    assert typed(["0,81", "3", "1,5e3"], decimal_comma=True).values == [0.81, 3.0, 1500.0]
    assert typed(["1,234", "0,5"], decimal_comma=True).values == [1.234, 0.5]
    assert typed(["1,234", "12,345"], decimal_comma=True).values == ["1,234", "12,345"]
    assert typed(["0,81", "x"], decimal_comma=True).values == ["0,81", "x"]


@pytest.fixture
def models(tmp_path):
    for number in range(2):
        torch.save(tensors_of(number), tmp_path / f"m{number}.pt")
    return sorted(tmp_path.glob("*.pt"))


def write(tmp_path, *lines):
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "t.csv"


def test_types_that_are_asked_for(tmp_path, models):
    table = write(tmp_path, "file,accuracy,share,code,done", 'm0,"0,81",82%,12,yes', "m1,0.5,n/a,13,0")
    types = {"accuracy": float, "share": "float", "code": "text", "done": "bool"}
    written = create_zoo(tmp_path / "zoo", models, table=table, types=types)
    rows = open_zoo(tmp_path / "zoo").table.select(list(types)).to_pylist()
    assert [list(row.values()) for row in rows] == [[0.81, 0.82, "12", True], [0.5, None, "13", False]]
    assert written.types == {
        "accuracy": "float; 0,81 is 0.81",
        "share": "float, 1 of 2 empty; 82% is 0.82",
        "code": "text",
        "done": "bool",
    }


@pytest.mark.parametrize(
    ("types", "message"),
    [
        ({"x": "float"}, r"types= names the column 'x'; there are accuracy, code"),
        ({"file": "text"}, r"types= names the column 'file'; there are accuracy, code"),
        (
            {"code": "number"},
            r"column 'code': there is no type 'number'; use int, float, bool, text, date, timestamp or list",
        ),
        ({"code": "int"}, r"column 'code', line 3: 'b' is no int, .*read the column as text"),
        ({"accuracy": "float"}, r"column 'accuracy': '1,234' may be 1\.234 or 1234; write it so"),
    ],
)
def test_types_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, models, types, message):
    table = write(tmp_path, "file,accuracy,code", 'm0,"1,234",1', 'm1,"5,678",b')
    with pytest.raises(ZooError, match=message):
        create_zoo(tmp_path / "zoo", models, table=table, types=types)
    assert not (tmp_path / "zoo").exists()
    with pytest.raises(ZooError, match="there is no table"):
        create_zoo(tmp_path / "zoo", models, types={"x": "int"})


def test_the_command_tells_of_each_column_and_takes_types(tmp_path, models):
    table = write(tmp_path, "file,accuracy,code", 'm0,"0,81",1', 'm1,"0,5",2')
    arguments = ["zoo", "create", str(tmp_path / "a"), *map(str, models), "--table", str(table)]
    output = CliRunner().invoke(main, arguments).stderr
    remark = "text; '0,81' in line 2 may be a number; --types reads the column as float"
    assert f"note: column accuracy: {remark}\nnote: column code: int\n" in output
    arguments[2] = str(tmp_path / "b")
    result = CliRunner().invoke(main, [*arguments, "--types", "accuracy=float,code=text", "--json"])
    assert json.loads(result.stdout)["types"] == {"accuracy": "float; 0,81 is 0.81", "code": "text"}
    assert open_zoo(tmp_path / "b").where("accuracy > 0.6 and code == '1'").table["id"].to_pylist() == ["m0"]
    wrong = CliRunner().invoke(main, [*arguments, "--types", "accuracy"])
    assert (wrong.exit_code, "accuracy=float,code=text" in wrong.stderr) == (2, True)
    zoo = open_zoo(tmp_path / "a")
    for condition in ("accuracy > 0.5", "0.5 < accuracy", "accuracy in (1, 2)", "not accuracy == -1"):
        with pytest.raises(WhereError, match=r"the column accuracy is text and .* is not; put a text in quotes"):
            zoo.where(condition)
    with pytest.raises(WhereError, match="'1' is text and code is not; leave the quotes out"):
        zoo.where("code == '1'")


def test_columns_of_any_name(tmp_path, models):
    table = write(tmp_path, "file,config.l2,train-acc,learning rate,class", "m0,1,0.5,a|b,x", "m1,2,0.6,c,y")
    create_zoo(tmp_path / "zoo", models, table=table)
    zoo = open_zoo(tmp_path / "zoo")
    assert zoo.table.column_names[-5:-1] == ["config.l2", "train-acc", "learning rate", "class"]
    assert zoo.where("`config.l2` > 1 and `train-acc` < 1").metadata(0)["class"] == "y"
    assert "| config.l2 |" in (tmp_path / "zoo" / "README.md").read_text()
    for name in ("a`b", "a\tb", "a" * 201):
        with pytest.raises(ZooError, match="cannot name a column"):
            create_zoo(tmp_path / "new", models, table=write(tmp_path, f"file,{name}", "m0,1", "m1,1"))
