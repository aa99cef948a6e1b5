"""Tables that lack a field of the pattern, that no file has a row of, or whose keys cannot be read."""

import codecs
import json

import pytest
import torch
from click.testing import CliRunner

import prepkit
from prepkit.cli import main
from prepkit.errors import ZooError
from prepkit.zoo.write.model_paths import paths_in

PATTERN = "{run}/checkpoint_{epoch:int}/checkpoints"
RESULT = "{run}/result.json"
EPOCHS = (0, 5, 10)


@pytest.fixture
def runs(tmp_path):
    """Two runs with three checkpoints each."""
    for run in ("r0", "r1"):
        for epoch in EPOCHS:
            file = tmp_path / f"runs/{run}/checkpoint_{epoch:06d}/checkpoints"
            file.parent.mkdir(parents=True)
            torch.save({"a.weight": torch.full((4, 3), float(epoch))}, file)
    return tmp_path / "runs"


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def imported(runs, **options):
    """The column acc by id, and the notes of an import."""
    zoo = runs.parent / "zoo"
    notes = prepkit.import_zoo("tree", runs, zoo, pattern=PATTERN, **options).notes
    return {row["id"]: row.get("acc") for row in prepkit.open_zoo(zoo).table.to_pylist()}, notes


def refused(runs, *arguments):
    """What the command line says of an import that is refused before anything is written."""
    zoo = runs.parent / "zoo"
    result = CliRunner().invoke(
        main, ["zoo", "import", "tree", str(runs), str(zoo), "--pattern", PATTERN, *map(str, arguments)]
    )
    assert result.exit_code == 2, (result.output, result.exception)
    assert not zoo.exists()
    return " ".join(result.stderr.split())


# A table for all that lacks a field ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_rows_of_several_runs_are_refused_where_no_column_tells_the_run(runs, tmp_path, kind):
    rows = [{"trial": run, "epoch": epoch, "acc": 1 / (1 + epoch)} for run in ("r0", "r1") for epoch in EPOCHS]
    path = tmp_path / f"all.{kind}"
    cells = "".join(f"{row['trial']},{row['epoch']},{row['acc']}\n" for row in rows)
    path.write_text(lines(*rows) if kind == "jsonl" else f"trial,epoch,acc\n{cells}")
    message = refused(runs, "--table", path)
    assert "two rows of epoch 0 differ, and no column tells which row is of which run; there are trial" in message
    assert "--on run=COLUMN" in message
    found, notes = imported(runs, table=path, on={"run": "trial"})
    assert found == {f"{row['trial']}/{row['epoch']}": row["acc"] for row in rows}
    assert notes == ()


def test_one_row_for_several_files_is_told(runs, tmp_path):
    (tmp_path / "all.jsonl").write_text(lines(*({"epoch": epoch, "acc": epoch} for epoch in EPOCHS)))
    found, notes = imported(runs, table=tmp_path / "all.jsonl")
    assert found == {f"{run}/{epoch}": epoch for run in ("r0", "r1") for epoch in EPOCHS}
    name = tmp_path / "all.jsonl"
    assert notes == (
        f"{name} is joined on epoch alone, since it has no column for run; each row is taken for 2 files.",
    )


def test_the_last_row_still_wins_where_all_fields_have_columns(runs, tmp_path):
    (tmp_path / "all.jsonl").write_text(lines(*({"run": "r0", "epoch": 5, "acc": acc} for acc in (1, 2))))
    assert imported(runs, table=tmp_path / "all.jsonl")[0]["r0/5"] == 2


# One row a run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["training_iteration", "step"])
def test_the_only_row_of_a_run_that_tells_its_epoch_is_not_that_of_all_its_models(runs, name):
    for run in ("r0", "r1"):
        (runs / run / "result.json").write_text(lines({name: 10, "acc": 0.5}))
    message = refused(runs, "--table", RESULT)
    assert f"r0/result.json: its only row has {name} 10" in message
    assert f"--on epoch={name}" in message
    found, _ = imported(runs, table=RESULT, on={"epoch": name})
    assert {id_: acc for id_, acc in found.items() if acc is not None} == {"r0/10": 0.5, "r1/10": 0.5}


def test_one_row_a_run_is_told(runs):
    for run in ("r0", "r1"):
        (runs / run / "result.json").write_text(json.dumps({"acc": 0.5, "step": "fast"}))
    found, notes = imported(runs, table=RESULT)
    assert set(found.values()) == {0.5}
    assert notes == ("{run}/result.json: one row a run, taken for all 3 of its models.",)


# No row at all ------------------------------------------------------------------------------------------------


def test_tables_of_runs_of_which_none_is_there_are_refused(runs):
    message = refused(runs, "--table", "{run}/results.json")
    assert f"none of the files is there: {runs}/r0/results.json, {runs}/r1/results.json" in message


def test_tables_of_runs_of_which_no_row_fits_are_refused(runs):
    for run in ("r0", "r1"):
        (runs / run / "result.json").write_text(lines({"epoch": 1, "acc": 1}, {"epoch": 2, "acc": 2}))
    message = refused(runs, "--table", RESULT)
    assert "no row is of any of 6 files; the first file has run 'r0', epoch 0, the first row of" in message
    assert "epoch 1, acc 1" in message


def test_tables_of_runs_may_be_missing_or_fit_in_part(runs):
    (runs / "r1/result.json").write_text(lines({"epoch": 1, "acc": 1}, {"epoch": 10, "acc": 2}))
    found, notes = imported(runs, table=RESULT)
    assert found["r1/10"] == 2
    assert notes[0] == f"1 table is missing, whose models have no such columns: {runs}/r0/result.json."


def test_an_empty_table_and_base_names_are_told(runs, tmp_path):
    (tmp_path / "t.csv").write_text("run,epoch,acc\n")
    assert "t.csv: holds no rows" in refused(runs, "--table", tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("file,acc\ncheckpoints,1\n")
    message = refused(runs, "--table", tmp_path / "t.csv")
    assert f"the first file has {runs}/r0/checkpoint_000000/checkpoints, the first row file 'checkpoints'" in message


# Keys that cannot be read -------------------------------------------------------------------------------------


def test_rows_whose_key_cannot_be_read_are_rows_without_a_file(runs, tmp_path):
    (tmp_path / "t.csv").write_text("run,epoch,acc\nr0,5,1\nr0,final,2\nr0,,3\nr0,10.5,4\n,5,5\nr7,5,6\n")
    _, notes = imported(runs, table=tmp_path / "t.csv")
    assert f"5 rows of {tmp_path / 't.csv'} without a file: lines 3, 4, 5, 6, 7." in notes


def test_rows_of_runs_whose_key_cannot_be_read_are_rows_without_a_file(runs):
    rows = [{"epoch": epoch, "acc": 1} for epoch in (*EPOCHS, "final", None, 10.5, 11)]
    for run in ("r0", "r1"):
        (runs / run / "result.json").write_text(lines(*rows))
    _, notes = imported(runs, table=RESULT)
    (note,) = notes
    assert note.startswith("8 rows of {run}/result.json without a file:")


# Lists --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\0"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_a_byte_order_mark_is_no_part_of_a_path(encoding, separator):
    content = separator.join(["a/é.pt", "b c.pt", ""]).encode(encoding)
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
    assert paths_in(mark + content) == ["a/é.pt", "b c.pt"]


def test_a_list_of_utf_16_that_is_cut_is_refused():
    with pytest.raises(ZooError, match="the list of files begins as UTF-16 does, but is not: truncated data"):
        paths_in("a.pt".encode("utf-16")[:-1])
