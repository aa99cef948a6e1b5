"""Tests of `prepkit zoo create --append`: what is added, what is told, and how an interrupted one goes on."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from folder_contents import files_of
from writer_samples import tensors_of

from prepkit.api import create_zoo, open_zoo, verify
from prepkit.cli import main
from prepkit.errors import ZooError


def zoo(*arguments, status=0):
    result = CliRunner().invoke(main, ["zoo", *map(str, arguments)])
    assert result.exit_code == status, (result.output, result.exception)
    return result


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of models of two weeks, each with a table."""
    folder = tmp_path_factory.mktemp("models")
    for week in range(2):
        (folder / f"week{week}").mkdir()
        lines = ["file,split,accuracy"]
        for number in range(2):
            torch.save(tensors_of(10 * week + number), folder / f"week{week}" / f"m{week}{number}.pt")
            lines.append(f"m{week}{number}.pt,train,0.{week}{number}")
        (folder / f"week{week}" / "t.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture
def root(models, tmp_path):
    zoo("create", tmp_path / "zoo", models / "week0", "--table", models / "week0/t.csv", "--license", "mit")
    return tmp_path / "zoo"


def test_models_are_added_a_week_later(root, models):
    new = models / "week1"
    result = zoo("create", root, new, "--append", "--table", new / "t.csv")
    assert "note: The splits have grown, train by 2" in result.stderr
    table = open_zoo(root).table
    assert table["id"].to_pylist() == ["m00", "m01", "m10", "m11"]
    assert table["accuracy"].to_pylist() == [0.0, 0.01, 0.1, 0.11]
    assert open_zoo(root)["m11"][0].tensors()["0.bias"].tolist() == [11.0] * 5
    assert "4 trained networks" in (root / "README.md").read_text()
    assert verify(root).ok
    told = zoo("info", root).stdout
    assert "  appended 2 instances on 20" in told
    assert " to train 2, by zoo create\n" in told
    (record,) = json.loads(zoo("info", root, "--json").stdout)["appends"]
    assert (record["instances"], record["provenance"]["sources"]) == (2, 2)
    before = files_of(root)
    assert "has instances of the ids of all 2 models already" in zoo("create", root, new, "--append", status=2).stderr
    twice = zoo("create", root, new / "m10.pt", models / "week0/m00.pt", "--append", status=2).stderr
    assert "has instances of the ids of all 2 models already, so nothing is left" in twice
    shutil.copy(new / "m10.pt", root.parent / "x.pt")
    twice = zoo("create", root, root.parent / "x.pt", new / "m10.pt", "--append", status=2).stderr
    assert f"1 of 2 models has the id of an instance that '{root}' has already: 'm10' (m10.pt)." in twice
    assert "Name only the new models" in twice
    assert files_of(root) == before


def test_mistakes_change_nothing(root, models):
    before = files_of(root)
    new = models / "week1"
    told = zoo("create", root, new, "--append", "--width", 64, status=2).stderr
    assert "has width 512, not 64. What is appended shares the zoo's settings: leave them out" in told
    told = zoo("create", root, new, status=2).stderr
    assert f"'{root}' is a finished zoo; --append adds instances to it" in told
    told = zoo("create", root, models / "week0", new, "--resume", status=2).stderr
    assert "2 of 4 models are not in it: m10, m11. They came later. Name them alone with --append" in told
    (root.parent / "bad").mkdir()
    (root.parent / "bad/b.pt").write_bytes(b"no model")
    zoo("create", root, root.parent / "bad/b.pt", "--append", status=2)
    assert files_of(root) == before
    with pytest.raises(ZooError, match="does not exist"):
        create_zoo(root.parent / "none", [new], append=True)


@pytest.mark.parametrize(
    "place", ["prepkit.zoo.write.writer.write_manifest", "prepkit.zoo.write.appending.write_manifest"]
)
def test_ctrl_c_at_the_end_says_how_to_go_on(root, models, monkeypatch, place):
    def interrupted(*arguments, **keywords):
        raise KeyboardInterrupt

    new = models / "week1"
    with monkeypatch.context() as patch:
        patch.setattr(place, interrupted)
        told = zoo("create", root, new, "--append", status=130).stderr
    assert "go on with --append --resume" in told
    assert "kept" in told
    assert len(open_zoo(root)) == 2
    note = "Appending to the zoo was interrupted; 2 finished instances will be in it when the command that began it"
    assert note in zoo("info", root).stderr
    assert note in json.loads(zoo("info", root, "--json").stdout)["notes"][0]
    assert (
        "go on with --append --resume, or delete that folder" in zoo("create", root, new, "--append", status=2).stderr
    )
    zoo("create", root, new, "--append", "--resume")
    assert open_zoo(root).table["id"].to_pylist() == ["m00", "m01", "m10", "m11"]
    assert "notes" not in json.loads(zoo("info", root, "--json").stdout)
    assert not (root / ".appending").exists()


def test_a_model_that_fails_keeps_the_others_for_resume(root, models, tmp_path):
    (tmp_path / "bad.pt").write_bytes(b"no model")
    new = models / "week1"
    told = zoo("create", root, new, tmp_path / "bad.pt", "--append", "--keep-going", status=2).stderr
    assert f"2 of 3 models are kept; go on with --append --resume, or delete '{root / '.appending'}'" in told
    create_zoo(root, [new], append=True, resume=True)
    assert len(open_zoo(root)) == 4
    assert verify(root).ok
