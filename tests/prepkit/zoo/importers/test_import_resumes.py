"""What a review found of importers: another source on resuming, circular proofs, PSNR of other labels, odd ids."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import prepkit
from prepkit.cli import main
from prepkit.errors import CheckpointError, ZooError
from prepkit.zoo.format.manifest import read_manifest

PATTERN = "{run}/net_{epoch:int}.pt"
NAMES = ("seq.0", "seq.1", "seq.2")


def save(file, tensors):
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, file)


def net(value):
    return {"a.weight": torch.full((4, 3), float(value)), "a.bias": torch.zeros(4)}


def write_runs(folder, start=0):
    for number in range(6):
        save(folder / f"r{number // 3}" / f"net_{number % 3}.pt", net(start + number))


def write_table(file, **changed):
    rows = {f"r{number // 3}/net_{number % 3}.pt": number for number in range(6)}
    rows |= {name.replace("__", "/net_") + ".pt": value for name, value in changed.items()}
    file.write_text("file,acc\n" + "".join(f"{name},{value}\n" for name, value in rows.items()))


def contents(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "lock"
    }


@pytest.fixture
def begun(tmp_path):
    """An import of six models, of which the fourth is cut short, so that three are kept."""
    write_runs(tmp_path / "src")
    write_runs(tmp_path / "other", 100)
    write_table(tmp_path / "t.csv")
    broken = tmp_path / "src/r1/net_0.pt"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:50])
    with pytest.raises(CheckpointError):
        imported(tmp_path, "src")
    assert contents(tmp_path / "zoo")
    return whole


def imported(root, source, **options):
    options = {"pattern": PATTERN, "table": root / "t.csv", **options}
    return prepkit.import_zoo("tree", root / source, root / "zoo", **options)


def refused(root, source, match):
    before = contents(root / "zoo")
    with pytest.raises(ZooError, match=match) as caught:
        imported(root, source)
    assert contents(root / "zoo") == before
    assert not getattr(caught.value, "__notes__", [])


def test_another_source_is_refused(tmp_path, begun):
    refused(tmp_path, "other", r"was begun with another `source` or table: model 'r0/0' .*sha256.*delete '.*zoo'")


def test_a_file_that_was_kept_and_changed_is_refused(tmp_path, begun):
    save(tmp_path / "src/r0/net_2.pt", net(77))
    refused(tmp_path, "src", "another `source` or table: model 'r0/2'")


def test_an_edited_row_that_was_kept_is_refused(tmp_path, begun):
    write_table(tmp_path / "t.csv", r0__1=50)
    refused(tmp_path, "src", "model 'r0/1' .*has 'acc' 1 in the zoo, and 'acc' 50 now")


def test_a_cell_that_was_emptied_and_a_new_column_are_refused(tmp_path, begun):
    write_table(tmp_path / "t.csv", r0__1="")
    refused(tmp_path, "src", "model 'r0/1' .*has 'acc' 1 in the zoo, and 'acc' nothing now")
    write_table(tmp_path / "t.csv")
    rows = (tmp_path / "t.csv").read_text().splitlines()
    (tmp_path / "t.csv").write_text("".join(f"{row},{'lr' if row[0] == 'f' else 3}\n" for row in rows))
    refused(tmp_path, "src", "model 'r0/0' .*has 'lr' nothing in the zoo, and 'lr' 3 now")


def test_a_column_that_was_taken_away_is_refused(tmp_path, begun):
    rows = (tmp_path / "t.csv").read_text().splitlines()
    (tmp_path / "t.csv").write_text("".join(row.partition(",")[0] + "\n" for row in rows))
    refused(tmp_path, "src", "model 'r0/0' .*has 'acc' 0 in the zoo, and 'acc' nothing now")


def test_rows_and_files_that_are_not_yet_written_may_be_mended(tmp_path, begun):
    write_table(tmp_path / "t.csv", r1__1=0.5)
    (tmp_path / "src/r1/net_0.pt").write_bytes(begun)
    imported(tmp_path, "src")
    rows = {row["id"]: row["acc"] for row in prepkit.open_zoo(tmp_path / "zoo").table.to_pylist()}
    assert rows == {"r0/0": 0, "r0/1": 1, "r0/2": 2, "r1/0": 3, "r1/1": 0.5, "r1/2": 5}


def test_the_same_source_may_stand_elsewhere(tmp_path, begun):
    (tmp_path / "src/r1/net_0.pt").write_bytes(begun)
    shutil.move(tmp_path / "src", tmp_path / "moved")
    assert imported(tmp_path, "moved").manifest.table.rows == 6


def test_create_zoo_and_the_command_line_refuse_too(tmp_path, begun):
    arguments = ["zoo", "import", "tree", tmp_path / "other", tmp_path / "zoo", "--pattern", PATTERN]
    result = CliRunner().invoke(main, [*map(str, arguments), "--table", str(tmp_path / "t.csv")])
    assert result.exit_code == 2
    assert "was begun with another SRC or table" in result.stderr


def test_nan_names_what_leaves_such_models_out(tmp_path):
    save(tmp_path / "src/r0/net_0.pt", net(math.nan))
    with pytest.raises(CheckpointError, match="drop_nan=True"):
        prepkit.import_zoo("tree", tmp_path / "src", tmp_path / "zoo", pattern=PATTERN)
    arguments = ["zoo", "import", "tree", tmp_path / "src", tmp_path / "zoo", "--pattern", PATTERN]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert "--drop-nan" in result.stderr
    assert "drop_nan" not in result.stderr


def test_ids_with_line_feeds_are_refused(tmp_path):
    save(tmp_path / "src/a\nb/net_0.pt", net(1))
    with pytest.raises(ZooError, match=r"its id 'a\\nb/0' has a control character"):
        prepkit.import_zoo("tree", tmp_path / "src", tmp_path / "zoo", pattern=PATTERN)
    assert not (tmp_path / "zoo").exists()


# SIREN --------------------------------------------------------------------------------------------------------


def flat(level):
    """A SIREN of the convention dws that draws one gray level everywhere."""
    sizes = [(8, 2), (8, 8), (1, 8)]
    tensors = {f"{name}.weight": torch.zeros(size) for name, size in zip(NAMES, sizes, strict=True)}
    tensors |= {f"{name}.bias": torch.zeros(size[0]) for name, size in zip(NAMES, sizes, strict=True)}
    tensors["seq.2.bias"] += level - 0.5
    return tensors


def picture(file, level):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 6), round(level * 255), dtype=np.uint8)).save(file)


def sirens(root, drawn):
    """Models of level 0.8 whose pictures have the levels that are given."""
    for number, level in enumerate(drawn):
        save(root / f"inrs/train/model_{number}.pth", flat(0.8))
        picture(root / f"png/train/{number}.png", level)


def import_sirens(root, **options):
    options = {"data": root / "png", "convention": "dws", **options}
    return prepkit.import_zoo("siren", root / "inrs", root / "zoo", **options)


def test_what_prepkit_measured_itself_must_also_draw_the_picture(tmp_path):
    sirens(tmp_path, [0.8, 0.8, 0.8, 0.1])
    written = import_sirens(tmp_path)
    assert any("1 model draws its picture with less than 15 dB" in note for note in written.notes)
    how = read_manifest(tmp_path / "zoo").function.how
    assert (how.measured_by, how.least) == ("prepkit", 15.0)
    found = prepkit.verify(tmp_path / "zoo", rerun=4, data=tmp_path / "png")
    assert [run.agrees for run in found.reruns] == [True, True, True, False]
    assert found.function.status == "unverified"
    arguments = ["zoo", "verify", tmp_path / "zoo", "--rerun", 4, "--data", tmp_path / "png"]
    assert (
        "prepkit measured it itself, so a run must reach 15"
        in CliRunner().invoke(main, list(map(str, arguments))).stdout
    )


def test_what_the_makers_measured_is_compared_alone(tmp_path):
    sirens(tmp_path, [0.8, 0.8, 0.8, 0.1])
    import_sirens(tmp_path)
    values = {row["index"]: row["psnr"] for row in prepkit.open_zoo(tmp_path / "zoo").table.to_pylist()}
    (tmp_path / "t.csv").write_text("index,psnr\n" + "".join(f"{key},{value}\n" for key, value in values.items()))
    shutil.rmtree(tmp_path / "zoo")
    import_sirens(tmp_path, table=tmp_path / "t.csv")
    assert read_manifest(tmp_path / "zoo").function.how.measured_by is None
    assert prepkit.verify(tmp_path / "zoo", rerun=4, data=tmp_path / "png").function.status == "verified"


def test_a_measured_psnr_does_not_hinder_resuming(tmp_path):
    sirens(tmp_path, [0.8] * 4)
    file = tmp_path / "inrs/train/model_2.pth"
    whole = file.read_bytes()
    file.write_bytes(whole[:50])
    with pytest.raises(CheckpointError):
        import_sirens(tmp_path)
    file.write_bytes(whole)
    assert import_sirens(tmp_path).manifest.table.rows == 4


def test_a_stored_psnr_is_of_no_index_that_several_labels_have(tmp_path):
    for label in (0, 1):
        save(tmp_path / f"inrs/ckpts/{label:02}/000007_0000042.ckpt", {"image_idx": 7, "params": flat(0.8)})
    (tmp_path / "inrs/0_9.json").write_text(json.dumps({"7": 30.0}))
    with pytest.raises(ZooError, match="index 7 has both label 0 and label 1"):
        import_sirens(tmp_path, data=None)
    (tmp_path / "inrs/0_9.json").write_text(json.dumps({"8": 30.0}))
    assert import_sirens(tmp_path, data=None).manifest.table.rows == 2


def test_values_of_mixed_types_in_json_tables_are_counted_not_refused(tmp_path):
    write_runs(tmp_path / "src")
    for run, rate in (("r0", 0.5), ("r1", "auto")):
        (tmp_path / f"src/{run}/params.json").write_text(json.dumps({"lr": rate, "depth": 3}))
    written = prepkit.import_zoo("tree", tmp_path / "src", tmp_path / "zoo", pattern=PATTERN, table="{run}/params.json")
    assert "Values of another kind than those before, left in the tables: lr (3 models)." in written.notes
    rows = prepkit.open_zoo(tmp_path / "zoo").table.to_pylist()
    assert [(row["lr"], row["depth"]) for row in rows] == [(0.5, 3)] * 3 + [(None, 3)] * 3
