"""What an import tells: notes over all of an interruption, of finished zoos, of links, of values in several tables."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from click.testing import CliRunner

import prepkit
from prepkit.cli import main
from prepkit.errors import CheckpointError, ZooError

PATTERN = "{run}/net_{epoch:int}.pt"


def save(file, value, **beside):
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": {"a.weight": torch.full((2, 3), float(value))}, **beside} if beside else
               {"a.weight": torch.full((2, 3), float(value))}, file)  # fmt: skip


def rows(zoo):
    return {row["id"]: row for row in prepkit.open_zoo(zoo).table.to_pylist()}


# Notes over an interruption -----------------------------------------------------------------------------------


def remarkable(root):
    """Six models, on each of which there is something to tell; the third file is cut short. Returns the whole one."""
    for number in range(6):
        beside = {"optimizer": {"state": {}, "param_groups": []}, "shard": number, "kind": 1 if number % 2 else "one"}
        beside["acc"] = 0.5 if number == 0 else float(number)
        tensors = {
            "body.w": torch.full((3,), float(number)),
            "steps": torch.tensor([1, 2]).bool(),
            "head.w": torch.ones(2),
        }
        file = root / f"src/r{number // 3}/net_{number % 3}.pt"
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"model": {f"net.{name}": value for name, value in tensors.items()}, **beside}, file)
    (root / "a.csv").write_text("run,epoch,acc,lr\n" + "".join(f"r{n // 3},{n % 3},{n},{n / 8}\n" for n in range(6)))
    (root / "b.csv").write_text("run,epoch,lr\n" + "".join(f"r{n // 3},{n % 3},9\n" for n in range(6)))


def imported(root, zoo, **options):
    options = {"pattern": PATTERN, "table": [root / "a.csv", root / "b.csv"], "prefix": "net", **options}
    return prepkit.import_zoo("tree", root / "src", root / zoo, **options)


@pytest.mark.parametrize("cut", [2, pytest.param(1, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow)])
def test_notes_count_all_models_whenever_an_import_was_interrupted(tmp_path, cut):
    remarkable(tmp_path)
    expected = imported(tmp_path, "straight").notes
    assert any("optimizer (6 models)" in note for note in expected)
    assert any("kind (3 models)" in note for note in expected)
    assert any("lr of" in note and "(6 models)" in note for note in expected)
    assert any("acc (1 model)" in note and "The table, not the file" in note for note in expected)
    assert any("Integer buffers" in note for note in expected)
    file = tmp_path / f"src/r{cut // 3}/net_{cut % 3}.pt"
    whole = file.read_bytes()
    for length in (50, 90):  # interrupted twice at the same place
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            imported(tmp_path, "zoo")
    file.write_bytes(whole)
    assert imported(tmp_path, "zoo").notes == expected
    assert not (tmp_path / "zoo/.writing").exists()


def test_a_line_that_a_kill_cut_short_is_read_again(tmp_path, monkeypatch):
    remarkable(tmp_path)
    expected = imported(tmp_path, "straight").notes
    file = tmp_path / "src/r1/net_1.pt"
    whole = file.read_bytes()
    file.write_bytes(whole[:50])
    with pytest.raises(CheckpointError):
        imported(tmp_path, "zoo")
    kept = tmp_path / "zoo/.writing/import/heard.jsonl"
    lines = kept.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    line = b'["r1/2", {"unkept": ["optimizer"]}]\n'  # which was not added
    kept.write_bytes(b"".join(lines) + line + line[:20])
    later = tmp_path / "src/r1/net_2.pt"
    whole_later = later.read_bytes()
    later.write_bytes(whole_later[:50])
    file.write_bytes(whole)
    with pytest.raises(CheckpointError):
        imported(tmp_path, "zoo")
    later.write_bytes(whole_later)
    assert imported(tmp_path, "zoo").notes == expected


def test_names_without_the_prefix_are_told_after_an_interruption(tmp_path):
    for number in range(3):
        tensors = {"net.w": torch.full((3,), float(number)), **({"other.w": torch.ones(1)} if number == 0 else {})}
        (tmp_path / "src").mkdir(exist_ok=True)
        torch.save(tensors, tmp_path / f"src/{number}.pt")
    whole = (tmp_path / "src/2.pt").read_bytes()
    (tmp_path / "src/2.pt").write_bytes(whole[:50])
    files = [tmp_path / f"src/{number}.pt" for number in range(3)]
    with pytest.raises(CheckpointError):
        prepkit.create_zoo(tmp_path / "zoo", files, prefix="net")
    (tmp_path / "src/2.pt").write_bytes(whole)
    written = prepkit.create_zoo(tmp_path / "zoo", files, prefix="net", resume=True)
    assert "Names without the prefix 'net' are left out: other.w." in written.notes


def test_a_zoo_that_lacks_only_its_card_says_what_is_not_counted(tmp_path):
    remarkable(tmp_path)
    imported(tmp_path, "zoo")
    (tmp_path / "zoo/README.md").unlink()
    assert "is not known any more" in imported(tmp_path, "zoo").notes[-1]
    assert (tmp_path / "zoo/README.md").exists()


@pytest.mark.slow
def test_a_kill_costs_no_note(tmp_path):
    for number in range(400):
        save(tmp_path / f"src/net_{number:03d}.pt", number, epoch=number, optimizer={"state": {}, "param_groups": []})
    arguments = ["zoo", "import", "tree", tmp_path / "src", tmp_path / "zoo", "--pattern", "net_{number:int}.pt"]
    process = subprocess.Popen([sys.executable, "-m", "prepkit", *map(str, arguments)])
    journal = tmp_path / "zoo/.writing/journal.jsonl"
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.read_bytes().count(b'"id"') > 20) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 20 < journal.read_bytes().count(b'"id"') < 400
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0
    assert "optimizer (400 models)" in result.output
    assert {row["epoch"] for row in rows(tmp_path / "zoo").values()} == set(range(400))


# Finished zoos ------------------------------------------------------------------------------------------------


def test_a_finished_zoo_says_what_is_so(tmp_path):
    for number in range(3):
        save(tmp_path / f"src/r/net_{number}.pt", number)
    prepkit.import_zoo("tree", tmp_path / "src", tmp_path / "zoo", pattern=PATTERN)
    again = {"kind": "tree", "source": tmp_path / "src", "path": tmp_path / "zoo", "pattern": PATTERN}
    with pytest.raises(ZooError, match="is a finished zoo and holds all 3 models, so nothing is left to do"):
        prepkit.import_zoo(**again)
    save(tmp_path / "src/r/net_7.pt", 7)
    with pytest.raises(
        ZooError, match=r"is a finished zoo, and 1 of 4 models is not in it: r/7.*Import them alone with append=True"
    ):
        prepkit.import_zoo(**again)
    (tmp_path / "src/r/net_0.pt").unlink()
    with pytest.raises(ZooError, match=r"finished zoo, of which 1 instance is none of these models: r/0. Name another"):
        prepkit.import_zoo(**again)
    assert len(prepkit.open_zoo(tmp_path / "zoo")) == 3


# Links --------------------------------------------------------------------------------------------------------


@pytest.fixture
def linked(tmp_path):
    """Two runs with two models each, and links to a file, to a run, and to the whole; a run that is a link alone."""
    for run in ("r0", "r1"):
        for epoch in range(2):
            save(tmp_path / f"src/{run}/net_{epoch}.pt", epoch)
    save(tmp_path / "elsewhere/net_0.pt", 5)
    (tmp_path / "src/a_link").symlink_to("r1")
    (tmp_path / "src/r0/net_9.pt").symlink_to("net_1.pt")
    (tmp_path / "src/r0/loop").symlink_to("..")
    for run in ("r2", "r3"):
        (tmp_path / f"src/{run}").symlink_to(tmp_path / "elsewhere")
    os.link(tmp_path / "src/r0/net_0.pt", tmp_path / "src/r0/net_5.pt")
    return tmp_path


def test_links_give_no_model_twice_by_a_pattern(linked):
    written = prepkit.import_zoo("tree", linked / "src", linked / "zoo", pattern=PATTERN)
    assert set(rows(linked / "zoo")) == {"r0/0", "r0/1", "r0/5", "r1/0", "r1/1", "r2/0"}
    note = next(note for note in written.notes if "by a link" in note)
    assert note.startswith("4 files are others by a link, and left out: ")
    assert "a_link/net_0.pt (" in note


def test_links_give_no_model_twice_without_a_pattern(linked):
    written = prepkit.import_zoo("tree", linked / "src", linked / "zoo")
    assert set(rows(linked / "zoo")) == {"r0/net_0", "r0/net_1", "r0/net_5", "r1/net_0", "r1/net_1", "r2/net_0"}
    assert any("1 file is another by a link" in note for note in written.notes)


def test_links_in_a_list_give_no_model_twice(linked):
    files = ["a_link/net_0.pt", "r1/net_0.pt", "r0/net_0.pt", "r0/loop/r0/net_0.pt"]
    prepkit.import_zoo("tree", linked / "src", linked / "zoo", pattern=PATTERN, files=files)
    assert set(rows(linked / "zoo")) == {"r0/0", "r1/0"}


# Tables -------------------------------------------------------------------------------------------------------


def test_several_tables_without_a_pattern(tmp_path):
    for number in range(3):
        save(tmp_path / f"src/{number}.pt", number)
    (tmp_path / "a.csv").write_text("file,id,acc\nsrc/0.pt,x,1\nsrc/1.pt,y,2\nsrc/2.pt,z,\n")
    (tmp_path / "b.json").write_text(json.dumps([{"file": f"src/{n}.pt", "split": "test", "acc": n} for n in range(3)]))
    (tmp_path / "c.csv").write_text("file,code\n" + "".join(f"src/{n}.pt,0{n}\n" for n in range(3)))
    tables = [tmp_path / name for name in ("a.csv", "b.json", "c.csv")]
    written = prepkit.import_zoo("tree", tmp_path / "src", tmp_path / "zoo", table=tables, types={"code": "text"})
    found = {id_: (row["acc"], row["split"], row["code"]) for id_, row in rows(tmp_path / "zoo").items()}
    assert found == {"x": (1, "test", "00"), "y": (2, "test", "01"), "z": (2, "test", "02")}
    assert any("left out: acc of" in note and "b.json (2 models)" in note for note in written.notes)
    with pytest.raises(ZooError, match="types= names the column 'size'; there are acc, code"):
        prepkit.import_zoo("tree", tmp_path / "src", tmp_path / "new", table=tables, types={"size": "text"})
    (tmp_path / "c.csv").write_text("file,code\nsrc/0.pt,1\n")
    with pytest.raises(ZooError, match=r"c\.csv: 2 models have no row in it"):
        prepkit.create_zoo(tmp_path / "new", [tmp_path / "src"], table=tables)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("pattern", [None, PATTERN])
@pytest.mark.parametrize("lines", [True, False])
def test_mixed_types_in_one_json_table_are_counted(tmp_path, pattern, lines):
    for number in range(4):
        save(tmp_path / f"src/r/net_{number}.pt", number)
    told = [{"file": f"src/r/net_{n}.pt", "lr": 0.5 if n < 3 else "auto", "depth": 3} for n in range(4)]
    table = tmp_path / ("t.jsonl" if lines else "t.json")
    table.write_text("\n".join(map(json.dumps, told)) if lines else json.dumps(told))
    written = prepkit.import_zoo("tree", tmp_path / "src", tmp_path / "zoo", pattern=pattern, table=table)
    assert "Values of another kind than those before, left in the tables: lr (1 model)." in written.notes
    assert [row["lr"] for row in rows(tmp_path / "zoo").values()] == [0.5] * 3 + [None]
    assert [row["depth"] for row in rows(tmp_path / "zoo").values()] == [3] * 4


def test_values_among_the_tensors_become_columns(tmp_path):
    for number in range(4):
        file = tmp_path / f"src/r/net_{number}.pt"
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"w": torch.full((3,), float(number)), "epochs": number, "file.id": 1, "id": "x"}, file)
    written = prepkit.import_zoo("tree", tmp_path / "src", tmp_path / "zoo", pattern=PATTERN)
    assert [row["epochs"] for row in rows(tmp_path / "zoo").values()] == [0, 1, 2, 3]
    assert [row["file.id"] for row in rows(tmp_path / "zoo").values()] == [1] * 4
    assert any("has no place for it: id (4 models)" in note for note in written.notes)
