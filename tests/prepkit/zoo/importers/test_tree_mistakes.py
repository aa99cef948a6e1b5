"""What `import tree` is told wrong, and what a kill leaves: one message, and the same command goes on."""

import os
import signal
import time

import pytest
import torch
from tree_samples import PATTERN, command, save, table, tensors

import prepkit
from prepkit.errors import CheckpointError, ZooError

# Bad input ----------------------------------------------------------------------------------------------------


def test_two_files_with_the_same_fields_are_told_before_anything_is_written(runs, tmp_path):
    save(runs / "r0/checkpoint_5/checkpoints", 1)
    with pytest.raises(ZooError, match=r"1 pair of files has the same fields: .*checkpoint_000005/.*checkpoint_5/"):
        prepkit.import_zoo("tree", runs, tmp_path / "zoo", pattern=PATTERN)
    assert not (tmp_path / "zoo").exists()


def test_a_tree_half_downloaded(runs, tmp_path):
    (runs / "r0/checkpoint_000005/checkpoints").unlink()
    broken = runs / "r1/checkpoint_000005/checkpoints"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"r1/checkpoint_000005/checkpoints is a truncated or damaged") as caught:
        prepkit.import_zoo("tree", runs, tmp_path / "zoo", pattern=PATTERN)
    kept = f"3 of 5 models are kept; the same command goes on, or delete '{tmp_path / 'zoo'}'."
    assert caught.value.__notes__ == [kept]
    broken.write_bytes(whole)
    written = prepkit.import_zoo("tree", runs, tmp_path / "zoo", pattern=PATTERN)
    assert {id_: row["weight"] for id_, row in table(tmp_path / "zoo").items()} == {
        "r0/0": 0,
        "r0/10": 10,
        "r1/0": 100,
        "r1/5": 105,
        "r1/10": 110,
    }
    assert written.notes == (f"1 folder that holds no file 'checkpoints': {runs}/r0/checkpoint_000005.",)


def test_going_on_needs_the_same_pattern_and_tables(runs, tmp_path):
    (runs / "r1/checkpoint_000005/checkpoints").write_bytes(b"nothing")
    with pytest.raises(CheckpointError):
        prepkit.import_zoo("tree", runs, tmp_path / "zoo", pattern=PATTERN, table="{run}/params.json")
    with pytest.raises(ZooError, match=r"begun with other settings: provenance.options.tables"):
        prepkit.import_zoo("tree", runs, tmp_path / "zoo", pattern=PATTERN)


@pytest.mark.parametrize("way", ["python", "command"])
def test_nan_is_refused_or_dropped_and_counted(runs, tmp_path, way):
    save(runs / "r0/checkpoint_000005/checkpoints", float("nan"))
    with pytest.raises(CheckpointError, match=r"r0/checkpoint_000005/checkpoints': 'a.weight' holds 12 NaN"):
        prepkit.import_zoo("tree", runs, tmp_path / "zoo", pattern=PATTERN)
    if way == "python":
        notes = prepkit.import_zoo("tree", runs, tmp_path / "zoo", pattern=PATTERN, drop_nan=True).notes
    else:
        notes = command("import", "tree", runs, tmp_path / "zoo", "--pattern", PATTERN, "--drop-nan").stderr
    assert "1 model that holds NaN or infinity left out: r0/5." in "".join(notes)
    assert list(table(tmp_path / "zoo")) == ["r0/0", "r0/10", "r1/0", "r1/5", "r1/10"]


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(runs, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"state_dict": tensors(1), "x": Evil()}, runs / "r0/checkpoint_000005/checkpoints")
    with pytest.raises(prepkit.CheckpointError, match=r"r0/checkpoint_000005/checkpoints holds more than tensors"):
        prepkit.import_zoo("tree", runs, tmp_path / "zoo", pattern=PATTERN)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"pattern": "{run}/ckpt_{epoch:int}/x"},
            r"no folder in 2 folders of .* fits 'ckpt_\{epoch:int\}'.*there is (\w+), (?!\1)",
        ),
        ({"pattern": "{run}/{run}/x"}, "the field 'run' stands twice"),
        ({"pattern": "{run:number}/x"}, "there is no type 'number' of a field; use int, float, text"),
        ({"pattern": "{run/x"}, "a brace has no partner"),
        ({"pattern": "{row}/x"}, "the zoo fills the column 'row' itself"),
        ({"pattern": "{a}_{b}/{epoch}/*"}, "no folder in"),
        ({"pattern": PATTERN, "table": "{job}/t.csv"}, "has the field job, which the pattern of the files has not"),
        ({"pattern": PATTERN, "table": "gone.csv"}, "gone.csv: cannot be read: No such file"),
        ({"pattern": PATTERN, "on": {"step": "epoch"}}, "`on` names the field step; .* has run, epoch"),
        ({"pattern": PATTERN, "files": ["gone"]}, "1 of 1 model is no file: gone"),
        ({"pattern": PATTERN, "types": {"acc": "float"}}, "types= names the column 'acc'; there are none"),
        ({"on": {"epoch": "x"}}, "`on` goes with a `pattern`"),
        ({"table": "{run}/t.csv"}, "has fields, so it goes with a `pattern`"),
        ({"patern": "x"}, "has no option patern; it has pattern, files, table"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is_written(runs, tmp_path, options, message):
    with pytest.raises(ZooError, match=message):
        prepkit.import_zoo("tree", runs, tmp_path / "zoo", **options)
    assert not (tmp_path / "zoo").exists()


def test_an_archive_or_nothing_in_place_of_the_folder(tmp_path):
    (tmp_path / "runs.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(ZooError, match=r"runs.tar.gz' is a file; unpack an archive first, and name the folder"):
        prepkit.import_zoo("tree", tmp_path / "runs.tar.gz", tmp_path / "zoo", pattern=PATTERN)
    with pytest.raises(ZooError, match=r"'.*gone' is not there"):
        prepkit.import_zoo("tree", tmp_path / "gone", tmp_path / "zoo", pattern=PATTERN)
    with pytest.raises(ZooError, match=r"there is no importer 'treee'; there are .* Did you mean 'tree'"):
        prepkit.import_zoo("treee", tmp_path, tmp_path / "zoo")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"epoch": 0}\n{"epoch": 5\n{"epoch": 10}\n', "result.json, line 2: not JSON"),
        ('{"epoch": 0}\n[1]\n', "result.json, line 2: holds a list; a row is an object"),
        ("[1, 2]", "result.json, item 1: holds a int"),
        ('{"epoch": 0', "result.json, line 1: not JSON"),
        ("epoch,acc\n0,1,2\n", "result.json, line 2: 3 cells, but the first line names 2 columns"),
    ],
)
def test_a_damaged_table_is_told_with_its_line(runs, tmp_path, content, message):
    (runs / "r0/result.json").write_text(content)
    with pytest.raises(ZooError, match=message):
        prepkit.import_zoo("tree", runs, tmp_path / "zoo", pattern=PATTERN, table="{run}/result.json")
    assert not (tmp_path / "zoo").exists()


def test_rows_of_one_key_that_differ_in_a_csv_are_refused(runs, tmp_path):
    (tmp_path / "t.csv").write_text("run,epoch,acc\nr0,5,1\nr0,5,2\n")
    with pytest.raises(ZooError, match="lines 2 and 3: two rows of run r0, epoch 5 differ; keep one of them"):
        prepkit.import_zoo("tree", runs, tmp_path / "zoo", pattern=PATTERN, table=tmp_path / "t.csv")


def test_a_table_of_which_no_row_fits_is_refused(runs, tmp_path):
    (tmp_path / "t.csv").write_text("run,acc\nrun0,1\n")
    with pytest.raises(ZooError, match=r"no row is of any of 6 files; the first file has run 'r0'.*run 'run0'"):
        prepkit.import_zoo("tree", runs, tmp_path / "zoo", pattern=PATTERN, table=tmp_path / "t.csv")


# Killed, and run again ----------------------------------------------------------------------------------------


def test_killed_and_run_again(tmp_path, forked_python):
    for number in range(300):
        save(tmp_path / f"src/net_{number:03d}.pt", number)
    arguments = ["import", "tree", tmp_path / "src", tmp_path / "zoo", "--pattern", "net_{number:int}.pt"]
    process = forked_python.start("-m", "prepkit", "zoo", *arguments)
    journal = tmp_path / "zoo/.writing/journal.jsonl"
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.read_bytes().count(b'"id"') > 20) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 20 < journal.read_bytes().count(b'"id"') < 300
    command(*arguments)
    whole = {name.name: name.read_bytes() for name in (tmp_path / "zoo/shards").iterdir()}
    command("import", "tree", tmp_path / "src", tmp_path / "other", *arguments[4:])
    assert whole == {name.name: name.read_bytes() for name in (tmp_path / "other/shards").iterdir()}
    assert {id_: row["weight"] for id_, row in table(tmp_path / "zoo").items()} == {str(n): n for n in range(300)}
