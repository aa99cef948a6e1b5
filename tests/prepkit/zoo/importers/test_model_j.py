"""`prepkit zoo import model-j`: folders as huggingface_hub downloads them; products of LoRA pairs are numpy's."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import prepkit
from prepkit.cli import main
from prepkit.errors import CheckpointError, ZooError

Q, OUT = "unet.down_blocks.0.attn1.to_q", "unet.down_blocks.0.attn1.to_out.0"


def lora(seed, **ranks):
    rng = np.random.default_rng(seed)
    tensors = {}
    for module, (rows, columns) in {Q: (12, 16), OUT: (16, 12)}.items():
        rank = ranks.get("q" if module == Q else "out", 3)
        tensors[f"{module}.lora.down.weight"] = rng.normal(size=(rank, columns)).astype(np.float32)
        tensors[f"{module}.lora.up.weight"] = rng.normal(size=(rows, rank)).astype(np.float32)
    return tensors


def save(file, tensors, **metadata):
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, metadata={"format": "pt", **metadata})


def write_adapters(root, count=4):
    """Write adapters of two splits, and return the folder of each by its id."""
    written = {}
    for number in range(count):
        folder = root / ("train", "val_holdout")[number % 2] / f"model_idx_{number // 2:04d}"
        written[folder.relative_to(root).as_posix()] = tensors = lora(number, out=2)
        save(
            folder / "pytorch_lora_weights.safetensors",
            tensors,
            imagenet_class_id=f"n0{number}",
            lr=("1e-4", "0.5")[number % 2],
            steps=str(100 * number),
            dataset_chosen_targets=repr(["a cat", f"dog {number}"]),
        )
        (folder / "image_0.png").write_bytes(b"no model")
    return written


def vit(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(4, 6)).astype(np.float32) for name in ("vit.a.weight", "vit.b.weight")}


def cached(root, name, tensors, commit="abc", **metadata):
    """Write a model as the cache of the Hub holds it: files are links to blobs."""
    folder = root / f"models--{name.replace('/', '--')}"
    save(folder / "blobs/0123", tensors, **metadata)
    (folder / "snapshots" / commit).mkdir(parents=True)
    os.symlink("../../blobs/0123", folder / "snapshots" / commit / "model.safetensors")
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs/main").write_text(commit)
    return folder


def imported(tmp_path, **options):
    written = prepkit.import_zoo("model-j", tmp_path / "src", tmp_path / "zoo", **options)
    return prepkit.open_zoo(tmp_path / "zoo"), written.notes


def command(*arguments, status=0):
    result = CliRunner().invoke(main, ["zoo", "import", "model-j", *map(str, arguments)])
    assert result.exit_code == status, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result.output


def test_adapters_keep_their_tensors_and_metadata_and_are_pairs(tmp_path):
    written = write_adapters(tmp_path / "src")
    zoo, _ = imported(tmp_path)
    rows = {row["id"]: row for row in zoo.table.to_pylist()}
    assert list(rows) == sorted(written)
    row = rows["val_holdout/model_idx_0001"]
    assert (row["split"], row["model_idx"], row["lr"], row["steps"]) == ("validation_holdout", 1, 0.5, 300)
    assert row["dataset_chosen_targets"] == ["a cat", "dog 3"]
    assert row["imagenet_class_id"] == "n03"
    for name, tensors in written.items():
        adapter = zoo.adapters()[name]
        assert set(adapter.pairs) == {Q, OUT}
        for module, pair in adapter.pairs.items():
            a, b = (tensors[f"{module}.lora.{side}.weight"].astype(float) for side in ("down", "up"))
            assert pair.scale == 1.0
            assert np.abs(pair.product().numpy() - b @ a).max() < 1e-5
            form = adapter.canonical().pairs[module]
            assert np.abs((form.B @ form.A).numpy() - b @ a).max() < 1e-5
    adapter.save(tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["pytorch_lora_weights.safetensors"]
    again = load_file(tmp_path / "out/pytorch_lora_weights.safetensors")
    assert again.keys() == tensors.keys()
    assert all(np.array_equal(again[name], tensors[name]) for name in tensors)


def test_models_of_the_cache_of_plain_folders_and_in_parts_have_ids_of_the_hub(tmp_path):
    src = tmp_path / "src"
    cached(src / "train", "acme/vit-1", vit(1), epochs="5")
    folder = cached(src / "train", "acme/vit-2", vit(2), commit="old", epochs="x7")
    (folder / "refs/main").write_text("new")
    save(folder / "snapshots/new/model.safetensors", vit(22), epochs="7")
    (folder / "snapshots/new/config.json").write_text(
        json.dumps({"model_type": "vit", "hidden_size": 6, "image_mean": [0.5, 0.5], "id2label": {"0": "cat"}})
    )
    save(src / "test/acme__vit-3/model.safetensors", vit(3))
    parts = vit(4)
    for number, name in enumerate(parts, 1):
        save(src / f"test/acme__vit-4/model-0000{number}-of-00002.safetensors", {name: parts[name]}, epochs="9")
    index = {"weight_map": {name: f"model-0000{number}-of-00002.safetensors" for number, name in enumerate(parts, 1)}}
    (src / "test/acme__vit-4/model.safetensors.index.json").write_text(json.dumps(index))
    zoo, notes = imported(tmp_path)
    rows = {row["id"]: row for row in zoo.table.to_pylist()}
    assert list(rows) == [f"acme/vit-{number}" for number in (3, 4, 1, 2)]
    assert [row["split"] for row in rows.values()] == ["test", "test", "train", "train"]
    assert [row["epochs"] for row in rows.values()] == [None, 9, 5, 7]
    assert rows["acme/vit-2"]["config.hidden_size"] == 6
    assert rows["acme/vit-2"]["config.image_mean"] == [0.5, 0.5]
    assert any("config.id2label" in note for note in notes)
    for name, tensors in (("acme/vit-2", vit(22)), ("acme/vit-4", parts)):
        state = zoo[name][0].state_dict()
        assert all(np.array_equal(state[key].numpy(), tensors[key]) for key in tensors)


def test_rows_of_the_data_set_are_joined_by_path_by_id_and_by_number(tmp_path):
    src = tmp_path / "src"
    write_adapters(src)
    cached(src / "train", "acme/vit", vit(1))
    rows = [
        {"hf_model_path": "val_holdout/model_idx_0001/pytorch_lora_weights.safetensors", "score": 0.31},
        {"hf_model_id": "acme/vit", "model_idx": 99, "score": 0.2},
        {"hf_model_path": None, "hf_model_id": "acme/all", "model_idx": 0, "score": 0.5, "split": "train"},
        {"hf_model_path": "test/model_idx_0000/pytorch_lora_weights.safetensors", "score": 0.9},
        {"hf_model_id": "acme/other", "score": 0.1},
    ]
    empty = {"hf_model_path": None, "hf_model_id": None, "model_idx": None, "split": None, "tree": {"a": 1}}
    pq.write_table(pa.Table.from_pylist([{**empty, **row} for row in rows]), tmp_path / "a.parquet")
    (tmp_path / "val_holdout-0.csv").write_text("model_idx,score\n0,0.7\n")
    output = command(
        src, tmp_path / "zoo", "--table", tmp_path / "a.parquet", "--table", tmp_path / "val_holdout-0.csv"
    )
    zoo = prepkit.open_zoo(tmp_path / "zoo")
    assert {row["id"]: row["score"] for row in zoo.table.to_pylist()} == {
        "train/model_idx_0000": 0.5,
        "train/model_idx_0001": None,
        "acme/vit": 0.2,
        "val_holdout/model_idx_0000": 0.7,
        "val_holdout/model_idx_0001": 0.31,
    }
    assert "1 model without a row: train/model_idx_0001" in output
    assert "2 rows without a model" in output
    assert "a.parquet, since a table has no place for it: tree" in output

    (tmp_path / "b.jsonl").write_text('{"model_idx": 0, "score": 1}\n')
    message = command(src, tmp_path / "other", "--table", tmp_path / "b.jsonl", status=2)
    assert "b.jsonl, row 1: models of train, validation_holdout have model_idx 0" in message
    (tmp_path / "c.csv").write_text("model_idx,split,score\n0,train,1\n0,train,2\n")
    message = command(src, tmp_path / "other", "--table", tmp_path / "c.csv", status=2)
    assert "row 2 and" in message
    assert "row 3 are of one model" in message
    (tmp_path / "d.csv").write_text("model_idx,split,score\n7,train,1\n")
    assert "no row of" in command(src, tmp_path / "other", "--table", tmp_path / "d.csv", status=2)
    (tmp_path / "e.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:200])
    assert "not a whole Parquet file" in command(src, tmp_path / "other", "--table", tmp_path / "e.parquet", status=2)
    assert not (tmp_path / "other").exists()


def test_metadata_that_would_run_code_stays_text_and_mixed_numbers_become_what_fits_all(tmp_path):
    mark = tmp_path / "ran"
    for number, value in enumerate(["['a']", f"[open({str(mark)!r}, 'w')]"]):
        save(tmp_path / f"src/m{number}/model.safetensors", vit(number), targets=value, wd=("0", "0.5")[number])
    zoo, notes = imported(tmp_path)
    assert not mark.exists()
    assert zoo.table["targets"].to_pylist()[1].startswith("[open(")
    assert zoo.table["wd"].to_pylist() == [0.0, 0.5]
    assert any("'targets' is kept as text" in note for note in notes)


def test_half_downloads_halves_of_pairs_and_archives_are_named_and_mending_goes_on(tmp_path):
    src = tmp_path / "src"
    written = write_adapters(src)
    file = src / "train/model_idx_0001/pytorch_lora_weights.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    with pytest.raises(CheckpointError, match=r"model_idx_0001/pytorch_lora.*truncated or damaged"):
        imported(tmp_path)
    save(file, {name: value for name, value in lora(2).items() if name != f"{Q}.lora.up.weight"})
    with pytest.raises(
        ZooError, match=rf"model_idx_0001.*'{Q}\.lora\.down\.weight' has no partner '{Q}\.lora\.up\.weig"
    ):
        imported(tmp_path)
    save(file, {"a": np.zeros((2, 2), np.float32)})
    with pytest.raises(ZooError, match=r"holds no LoRA adapter, such as pairs \*\.lora\.down\.weight"):
        imported(tmp_path)
    save(file, {**lora(2), f"{Q}.lora.down.weight": np.full((3, 16), np.nan, np.float32)})
    with pytest.raises(CheckpointError, match="NaN"):
        imported(tmp_path)
    assert not (tmp_path / "zoo/zoo.json").exists()
    file.unlink()
    zoo, notes = imported(tmp_path)
    assert len(zoo) == len(written) - 1
    assert any("1 folder of a model that holds no weights, left out: train/model_idx_0001" in note for note in notes)
    (tmp_path / "a.tar").write_bytes(b"x")
    with pytest.raises(ZooError, match="unpack an archive first"):
        prepkit.import_zoo("model-j", tmp_path / "a.tar", tmp_path / "other")
    with pytest.raises(ZooError, match="holds no model"):
        prepkit.import_zoo("model-j", src / "train/model_idx_0001", tmp_path / "other")


def test_a_model_of_two_splits_and_a_row_of_another_split_are_refused(tmp_path):
    cached(tmp_path / "src/train", "acme/vit", vit(1))
    cached(tmp_path / "src/test", "acme/vit", vit(1))
    with pytest.raises(ZooError, match="both 'acme/vit'"):
        imported(tmp_path)
    (tmp_path / "src/test/models--acme--vit").rename(tmp_path / "src/test/models--acme--other")
    (tmp_path / "t.csv").write_text("hf_model_id,split\nacme/vit,test\n")
    with pytest.raises(ZooError, match=r"is of the split 'test', but .* is in that of 'train'"):
        imported(tmp_path, table=tmp_path / "t.csv")
