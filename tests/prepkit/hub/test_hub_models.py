"""Commands that are given models on the Hub: names, ids and tables, and texts that are no address."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from prepkit.address import parse
from prepkit.cli import main
from prepkit.errors import ZooError
from prepkit.zoo.write.csv_columns import rows_of_models
from prepkit.zoo.write.model_files import check_columns
from prepkit.zoo.write.model_paths import stem


@pytest.mark.parametrize(
    ("address", "id_"),
    [
        ("hf://user/model", "user/model"),
        ("hf://user/model-1.5", "user/model-1.5"),
        ("hf://user/model@v1.0", "user/model@v1.0"),
        ("hf://user/model/model.safetensors", "user/model/model"),
        ("hf://user/model@main/a/b.safetensors.index.json", "user/model@main/a/b"),
        ("hf://user/model/x.prep.safetensors", "user/model/x"),
    ],
)
def test_the_id_of_a_model_of_the_hub_is_its_address(address, id_):
    assert stem(parse(address)) == id_


def test_files_and_addresses_are_joined_to_one_table(tmp_path):
    (tmp_path / "m0.pt").write_bytes(b"x")
    rows = ("file,id,score", "m0.pt,mine,1", "hf://a/b,theirs,2", "hf://a/b@v1/x.pt,,3", "c/d,other,4")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    models = [tmp_path / "m0.pt", parse("hf://a/b"), parse("hf://a/b@v1/x.pt")]
    joined = rows_of_models(models, tmp_path / "t.csv")
    assert [(row.model, row.id, row.columns["score"]) for row in joined.rows] == [
        (models[0], "mine", 1),
        (models[1], "theirs", 2),
        (models[2], "a/b@v1/x", 3),
    ]
    assert joined.notes == (f"1 row of {tmp_path / 't.csv'} has no model here: c/d.",)


def test_the_same_model_twice_is_refused():
    with pytest.raises(ZooError, match=r"'hf://a/b' and 'hf://a/b' both have the id 'a/b'"):
        rows_of_models([parse("hf://a/b"), parse("hf://a/b")], None)


def test_a_model_without_a_row_is_told_by_its_address(tmp_path):
    (tmp_path / "t.csv").write_text("file,x\nhf://a/c,1\n")
    with pytest.raises(ZooError, match=r"1 model has no row in it: hf://a/b\. Add rows, or leave these models out\.$"):
        rows_of_models([parse("hf://a/b")], tmp_path / "t.csv")


def test_a_column_source_of_the_users_own_is_refused_with_models_of_the_hub_only(tmp_path):
    (tmp_path / "m0.pt").write_bytes(b"x")
    (tmp_path / "t.csv").write_text("file,source\nhf://a/b,x\nm0,y\n")
    check_columns(rows_of_models([tmp_path / "m0.pt"], tmp_path / "t.csv").rows, tmp_path / "t.csv")
    with pytest.raises(ZooError, match="the column 'source' is filled from the models themselves"):
        check_columns(rows_of_models([parse("hf://a/b")], tmp_path / "t.csv").rows, Path("t.csv"))


@pytest.mark.parametrize("text", ["hf://", "hf://user", "hf://user/../../etc/passwd", "hf://us er/m"])
@pytest.mark.parametrize("command", [["pack"], ["zoo", "create", "zoo"]])
def test_what_is_no_address_is_a_wrong_use(text, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, [*command, text])
    assert result.exit_code == 2, result.output
    assert f"'{text}'" in result.stderr
    assert "hf://user/name" in result.stderr
    assert list(tmp_path.iterdir()) == []
