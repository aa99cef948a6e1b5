"""`prepkit zoo import tree` and import_zoo("tree"): patterns, tables, lists, and what files say."""

import argparse
import json

import pytest
import torch
from click.testing import CliRunner
from tree_samples import ON, PATTERN, command, lines, save, table, tensors

import prepkit
from prepkit.cli import main


def test_fields_become_columns_and_rows_are_found_by_their_values(runs, tmp_path):
    tables = ["{run}/result.json", "{run}/params.json"]
    written = prepkit.import_zoo("tree", runs, tmp_path / "zoo", pattern=PATTERN, table=tables, on=ON)
    rows = table(tmp_path / "zoo")
    assert list(rows) == ["r0/0", "r0/5", "r0/10", "r1/0", "r1/5", "r1/10"]
    for run in (0, 1):
        for epoch in (0, 5, 10):
            value = 100 * run + epoch
            assert rows[f"r{run}/{epoch}"] == {
                "run": f"r{run}",
                "epoch": epoch,
                "training_iteration": epoch,
                "acc": value,
                "model::nlin": "relu",
                "optim.lr": run / 8,
                "weight": value,
            }
    rows_without, one_row = written.notes
    assert rows_without.startswith("16 rows of {run}/result.json without a file:")
    assert one_row == "{run}/params.json: one row a run, taken for all 3 of its models."
    provenance = prepkit.open_zoo(tmp_path / "zoo").manifest.provenance
    assert provenance["command"] == "zoo import tree"
    card = (tmp_path / "zoo/README.md").read_text()
    assert "sha256 of the checkpoint's file" in card
    assert '- options: `{"on": {"epoch": "training_iteration"}, "pattern": ' in card
    assert provenance["options"] == {"pattern": PATTERN, "tables": tables, "on": ON}


def test_the_last_line_of_a_key_wins_and_nan_is_read(runs, tmp_path):
    rows = [{"epoch": epoch, "acc": 0.0} for epoch in range(11)]
    rows += [{"epoch": 5, "acc": 0.75}, {"epoch": 6, "acc": 0.5}, {"epoch": 10, "acc": float("nan")}]
    (runs / "r0/result.json").write_text(lines(*rows) + '{"epoch": 11, "ac')
    (runs / "r1/result.json").write_text(lines({"epoch": 10, "acc": 0.25}))
    output = command("import", "tree", runs, tmp_path / "zoo", "--pattern", PATTERN, "--table", "{run}/result.json")
    rows = table(tmp_path / "zoo")
    assert [rows[id_]["acc"] for id_ in ("r0/0", "r0/5", "r1/0", "r1/10")] == [0.0, 0.75, None, 0.25]
    assert rows["r0/10"]["acc"] != rows["r0/10"]["acc"]
    assert "3 rows of {run}/result.json are followed by a later one of the same key" in output.stderr
    assert "2 files without a row in {run}/result.json" in output.stderr
    assert "8 rows of {run}/result.json without a file" in output.stderr
    assert "r0/result.json is cut short, and left out" in output.stderr


def test_a_table_is_never_joined_by_its_lines(runs, tmp_path):
    message = command(
        "import", "tree", runs, tmp_path / "zoo", "--pattern", PATTERN, "--table", "{run}/result.json", status=2
    ).stderr
    assert (
        "r0/result.json: no column 'epoch' tells which row is of which epoch; there are training_iteration" in message
    )
    assert not (tmp_path / "zoo").exists()


CSV = "run;epoch;split;loss\nr0;0;train;0,5\nr0;5;train;1,5\nr1;10;test;2,5\nr7;0;test;3\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("excel.csv", b"\xef\xbb\xbf" + CSV.encode()),
        ("tabs.tsv", CSV.replace(";", "\t").replace(",", ".").encode("utf-16")),
        (
            "list.json",
            json.dumps(
                [
                    {"run": "r0", "epoch": 0, "split": "train", "loss": 0.5},
                    {"run": "r0", "epoch": 5, "split": "train", "loss": 1.5},
                    {"run": "r1", "epoch": 10, "split": "test", "loss": 2.5},
                    {"run": "r7", "epoch": 0, "split": "test", "loss": 3.0},
                ]
            ).encode(),
        ),
        (
            "columns.json",
            json.dumps(
                {
                    "run": ["r0", "r0", "r1", "r7"],
                    "epoch": [0, 5, 10, 0],
                    "split": ["train", "train", "test", "test"],
                    "loss": [0.5, 1.5, 2.5, 3.0],
                }
            ).encode(),
        ),
        (
            "lines.jsonl",
            lines(
                {"run": "r0", "epoch": 0, "split": "train", "loss": 7},
                {"run": "r0", "epoch": 0, "split": "train", "loss": 0.5},
                {"run": "r0", "epoch": 5, "split": "train", "loss": 1.5},
                {"run": "r1", "epoch": 10, "split": "test", "loss": 2.5},
                {"run": "r7", "epoch": 0, "split": "test", "loss": 3.0},
            ).encode(),
        ),
        (
            "files.json",
            json.dumps(
                {
                    "r0/checkpoint_000000/checkpoints": {"split": "train", "loss": 0.5},
                    "r0/checkpoint_000005/checkpoints": {"split": "train", "loss": 1.5},
                    "r1/checkpoint_000010/checkpoints": {"split": "test", "loss": 2.5},
                    "r7/checkpoint_000000/checkpoints": {"split": "test", "loss": 3.0},
                }
            ).encode(),
        ),
    ],
)
def test_one_table_for_all_of_any_kind(runs, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    written = prepkit.import_zoo("tree", runs, tmp_path / "zoo", pattern=PATTERN, table=tmp_path / name)
    rows = table(tmp_path / "zoo")
    assert {id_: row["loss"] for id_, row in rows.items() if row["loss"] is not None} == {
        "r0/0": 0.5,
        "r0/5": 1.5,
        "r1/10": 2.5,
    }
    assert written.manifest.splits == {"test": 1, "train": 2}
    assert any(note.startswith("3 files without a row in") and "r0/000010" in note for note in written.notes)
    assert any(note.startswith("1 row of") and "without a file: lines " in note for note in written.notes)


def test_a_row_of_a_run_is_that_of_all_its_models_and_ids_may_come_from_a_table(runs, tmp_path):
    (tmp_path / "runs.csv").write_text("run,seed,id\nr0,7,x\nr1,8,y\n")
    prepkit.import_zoo("tree", runs, tmp_path / "zoo", pattern=PATTERN, table=tmp_path / "runs.csv")
    rows = table(tmp_path / "zoo")
    assert {id_: row["seed"] for id_, row in rows.items()} == {
        **{f"r0/{epoch}": 7 for epoch in (0, 5, 10)},
        **{f"r1/{epoch}": 8 for epoch in (0, 5, 10)},
    }
    assert rows["r1/5"]["runs.id"] == "y"  # the id of a run is not that of a model
    last = "{run}/checkpoint_000010/checkpoints"
    prepkit.import_zoo("tree", runs, tmp_path / "last", pattern=last, table=tmp_path / "runs.csv")
    assert list(table(tmp_path / "last")) == ["x", "y"]


def test_types_of_tables_of_runs_are_those_of_all_runs(runs, tmp_path):
    (runs / "r0/progress.csv").write_text("epoch,note,acc\n0,1,1\n5,2,0.5\n10,3,0.25\n")
    (runs / "r1/progress.csv").write_text("epoch,note,acc\n0,a,1\n5,,2\n10,b,3\n")
    written = prepkit.import_zoo("tree", runs, tmp_path / "zoo", pattern=PATTERN, table="{run}/progress.csv")
    rows = table(tmp_path / "zoo")
    assert [row["note"] for row in rows.values()] == ["1", "2", "3", "a", None, "b"]
    assert [row["acc"] for row in rows.values()] == [1.0, 0.5, 0.25, 1.0, 2.0, 3.0]
    assert written.types == {"epoch": "int", "note": "text", "acc": "float"}


@pytest.mark.parametrize("how", ["-", "file", "zero bytes"])
def test_a_list_names_the_models(runs, tmp_path, how):
    names = ["r1/checkpoint_000005/checkpoints", "r0/checkpoint_000010/checkpoints", "r1/checkpoint_000005/checkpoints"]
    listed = ("\0" if how == "zero bytes" else "\n").join(names)
    (tmp_path / "list").write_text(listed)
    from_ = "-" if how == "-" else tmp_path / "list"
    output = command(
        "import", "tree", runs, tmp_path / "zoo", "--from", from_, "--pattern", PATTERN, stdin=listed
    ).stderr
    assert {id_: row["weight"] for id_, row in table(tmp_path / "zoo").items()} == {"r1/5": 105, "r0/10": 10}
    assert "1 file named more than once; each is taken once." in output


def test_create_takes_patterns_of_folders_and_files(runs, tmp_path):
    command("create", tmp_path / "zoo", runs, "--pattern", PATTERN, "--table", "{run}/params.json")
    assert table(tmp_path / "zoo")["r1/5"] == {
        "run": "r1",
        "epoch": 5,
        "model::nlin": "relu",
        "optim.lr": 1 / 8,
        "weight": 105,
    }
    command("create", tmp_path / "some", runs / "r0/checkpoint_000005/checkpoints", "--pattern", PATTERN)
    assert list(table(tmp_path / "some")) == ["r0/5"]


def test_without_a_pattern_a_tree_is_what_create_takes(tmp_path):
    save(tmp_path / "src/a/model.pt", 1)
    save(tmp_path / "src/b/model.pt", 2)
    (tmp_path / "t.json").write_text(json.dumps({"a/model.pt": {"acc": 1}, "b/model.pt": {"acc": 2}}))
    prepkit.import_zoo("tree", tmp_path / "src", tmp_path / "zoo", table=tmp_path / "t.json")
    assert table(tmp_path / "zoo") == {"a": {"acc": 1, "weight": 1}, "b": {"acc": 2, "weight": 2}}


def test_ids_stay_when_more_models_are_there(runs, tmp_path):
    prepkit.import_zoo("tree", runs, tmp_path / "one", pattern=PATTERN)
    save(runs / "r0/checkpoint_000007/checkpoints", 7)
    save(runs / "a/checkpoint_000007/checkpoints", 8)
    prepkit.import_zoo("tree", runs, tmp_path / "two", pattern=PATTERN)
    assert set(table(tmp_path / "two")) == {*table(tmp_path / "one"), "r0/7", "a/7"}


def test_what_files_say_becomes_columns(tmp_path):
    for number, (best, act) in enumerate([(0, "relu"), (0.5, "relu"), (0.25, 7)]):
        (tmp_path / "src").mkdir(exist_ok=True)
        saved = {
            "model": tensors(number),
            "optimizer": {"state": {}, "param_groups": []},
            "epoch": number,
            "best_acc": best,
            "config": argparse.Namespace(act=act, sizes=[1, 2]),
            "row": 5,
            "seed": 9,
        }
        torch.save(saved, tmp_path / f"src/net_{number}.pt")
    (tmp_path / "t.csv").write_text("i,seed\n0,9\n1,8\n2,9\n")
    written = prepkit.import_zoo(
        "tree", tmp_path / "src", tmp_path / "zoo", pattern="net_{i:int}.pt", table=tmp_path / "t.csv"
    )
    expected = {"config.sizes": [1, 2], "file.row": 5, "weight": 2.0, "i": 2, "seed": 9, "epoch": 2, "best_acc": 0.25}
    rows = table(tmp_path / "zoo")
    assert rows["2"] == {**expected, "config.act": None}
    assert rows["1"]["config.act"] == "relu"
    assert rows["1"]["seed"] == 8
    assert written.notes == (
        "What files say under names of the zoo's own columns has other names: row is file.row.",
        "Left in the files, since a table has no place for it: optimizer (3 models).",
        "Values of another kind than those before, left in the files: config.act (1 model).",
        "The table, not the file, is kept where they differ: seed (1 model).",
    )
    output = command("create", tmp_path / "again", tmp_path / "src").stderr
    assert "Left in the files, since a table has no place for it: optimizer (3 models)." in output
    assert table(tmp_path / "again")["net_1"]["best_acc"] == 0.5


def test_pack_tells_what_it_leaves_behind(tmp_path):
    torch.save({"model": tensors(1), "epoch": 3, "optimizer": {"state": {}, "param_groups": []}}, tmp_path / "m.pt")
    result = CliRunner().invoke(main, ["pack", str(tmp_path / "m.pt"), "-o", str(tmp_path / "m.prep.safetensors")])
    assert "stays behind  epoch, optimizer, which a PRep has no place for" in result.stdout
    assert prepkit.pack_checkpoint(tmp_path / "m.pt").stays == ("epoch", "optimizer")
