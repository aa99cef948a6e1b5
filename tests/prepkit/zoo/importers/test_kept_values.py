"""A resumed import of a matrix or of adapters compares the values and the configs that it kept with its source."""

import gzip
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

import prepkit
from prepkit.errors import PrepkitError, ZooError

SHAPES = {"conv/bias:0": (2,), "conv/kernel:0": (3, 3, 1, 2), "dense/bias:0": (4,), "dense/kernel:0": (2, 4)}
SIZE, ROWS = 2 + 18 + 4 + 8, 6


def contents(folder):
    return {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file() and file.name != "lock"}


def matrix(root, **rows):
    """Write a Small CNN Zoo in which row 4 has NaN, and rows such as r1=5.0 have other values."""
    root.mkdir(exist_ok=True)
    values = np.arange(ROWS * SIZE, dtype=np.float32).reshape(ROWS, SIZE) / 100
    values[4, 0] = np.nan
    for name, value in rows.items():
        values[int(name[1:]), 7] = value
    np.save(root / "weights.npy", values)
    lines, start = ["varname,start_idx,end_idx,shape"], 0
    for name, shape in SHAPES.items():
        lines.append(f'{name},{start},{start + int(np.prod(shape))},"{shape}"')
        start += int(np.prod(shape))
    (root / "layout.csv").write_text("\n".join(lines) + "\n")
    table = ["config.activation,modeldir,step,test_accuracy", *(f"relu,/x/{row},86,0.{row}" for row in range(ROWS))]
    (root / "metrics.csv.gz").write_bytes(gzip.compress("\n".join(table).encode()))


def begun(root, kind):
    """Import until a model fails, so that those before it are kept."""
    with pytest.raises(PrepkitError) as caught:
        prepkit.import_zoo(kind, root / "src", root / "zoo")
    assert f"4 of {ROWS} models are kept" in "".join(caught.value.__notes__)


def refused(root, kind, match):
    before = contents(root / "zoo")
    with pytest.raises(ZooError, match=f"was begun with another `source` or table: model .*{match}.*delete"):
        prepkit.import_zoo(kind, root / "src", root / "zoo")
    assert contents(root / "zoo") == before


def test_another_matrix_is_refused_and_the_same_goes_on(tmp_path):
    matrix(tmp_path / "src")
    begun(tmp_path, "small-cnn-zoo")
    matrix(tmp_path / "src", r3=5.0, r4=1.0)
    refused(tmp_path, "small-cnn-zoo", "'3/86' .*row 3.* has other values in the zoo than now")
    matrix(tmp_path / "src")
    values = np.load(tmp_path / "src/weights.npy")
    values[4, 0] = 1.5  # the row that failed was mended, and row 5, which is not kept, may change too
    values[5, 0] = 2.5
    np.save(tmp_path / "src/weights.npy", values)
    prepkit.import_zoo("small-cnn-zoo", tmp_path / "src", tmp_path / "zoo")
    preps = prepkit.open_zoo(tmp_path / "zoo").preps().flatten(1).numpy()
    assert preps.shape[0] == ROWS
    assert np.allclose(np.sort(preps.max(1)), np.sort(values.max(1)))


def test_values_in_a_shard_that_is_full_are_compared_too(tmp_path, monkeypatch):
    monkeypatch.setitem(prepkit.ZooWriter.__init__.__kwdefaults__, "shard_bytes", 1)  # one instance a shard
    matrix(tmp_path / "src")
    begun(tmp_path, "small-cnn-zoo")
    matrix(tmp_path / "src", r1=5.0)
    refused(tmp_path, "small-cnn-zoo", "'1/86' .*has other values")


def adapters(root, start=0.0):
    for number in range(ROWS):
        folder = root / f"a{number}"
        folder.mkdir(parents=True, exist_ok=True)
        shapes = {"A": (2, 6), "B": (4, 2)}
        tensors = {
            f"base_model.model.q.lora_{side}.weight": np.full(shape, start + number, np.float32)
            for side, shape in shapes.items()
        }
        save_file(tensors, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 8}
        (folder / "adapter_config.json").write_text(json.dumps(config))
    (root / "a4/adapter_config.json").write_text("{")


def test_other_adapters_and_other_configs_are_refused(tmp_path):
    adapters(tmp_path / "src")
    begun(tmp_path, "peft")
    adapters(tmp_path / "src", start=10.0)
    refused(tmp_path, "peft", "'a0' .*sha256")
    adapters(tmp_path / "src")
    config = tmp_path / "src/a2/adapter_config.json"
    whole = config.read_text()
    config.write_text(whole.replace("8", "16"))  # other products, though the tensors are the same
    refused(tmp_path, "peft", "'a2' .*has 'adapter_config' .* in the zoo, and")
    config.write_text(whole)
    shutil.copy(config, tmp_path / "src/a4/adapter_config.json")
    assert prepkit.import_zoo("peft", tmp_path / "src", tmp_path / "zoo").manifest.table.rows == ROWS
