"""`prepkit zoo import small-cnn-zoo`: tensors in PyTorch's layout, the table, splits, resuming, bad input."""

import gzip
import json
import math
import random

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import prepkit
from prepkit.cli import main
from prepkit.errors import CheckpointError, ZooError
from prepkit.zoo.importers._matrix import Matrix
from prepkit.zoo.importers._paper_split import paper_splits, read_order

SHAPES = {  # (height, width, in, out) and (in, out), as TensorFlow has them; the sizes all differ
    "sequential/conv2d/bias:0": (3,),
    "sequential/conv2d/kernel:0": (3, 2, 1, 3),
    "sequential/conv2d_1/bias:0": (4,),
    "sequential/conv2d_1/kernel:0": (2, 3, 3, 4),
    "sequential/dense/bias:0": (5,),
    "sequential/dense/kernel:0": (4, 5),
}
SIZE = sum(int(np.prod(shape)) for shape in SHAPES.values())
STEPS = (0, 40, 86)
RUNS = 10


def write_layout(folder, shapes=SHAPES):
    lines, start = ["varname,start_idx,end_idx,shape"], 0
    for name, shape in shapes.items():
        end = start + int(np.prod(shape))
        lines.append(f'{name},{start},{end},"{shape}"')
        start = end
    (folder / "layout.csv").write_text("\n".join(lines) + "\n")


def table_rows():
    header = ["config.activation", "config.dataset", "config.learning_rate", "modeldir", "step"]
    rows = [[*header, "test_accuracy", "test_loss"]]
    for run in range(RUNS):
        for step in STEPS:
            activation = "relu" if run % 2 else "tanh"
            where = f"/cns/zoo/cifar10/{run}"
            rows.append(
                [activation, "cifar10", f"{run / 8}", where, f"{step}", f"{run / 16}", "nan" if run == 3 else "2"]
            )
    return rows


def write_table(folder, rows):
    text = "\n".join(",".join(row) for row in rows) + "\n"
    (folder / "metrics.csv.gz").write_bytes(gzip.compress(text.encode()))


@pytest.fixture
def small(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    values = np.random.default_rng(0).normal(size=(RUNS * len(STEPS), SIZE)).astype(np.float32)
    np.save(folder / "weights.npy", values)
    write_layout(folder)
    write_table(folder, table_rows())
    return folder


def change(folder, **rows):
    """Give rows of the matrix other values: change(folder, r4=values)."""
    values = np.load(folder / "weights.npy")
    for name, row in rows.items():
        values[int(name[1:])] = row
    np.save(folder / "weights.npy", values)


def numpy_forward(row, images_BHWC, activation):
    """Run a row as TensorFlow does: NHWC, HWIO, stride 2, VALID, the mean over the picture, a dense layer."""
    variables, start = {}, 0
    for name, shape in SHAPES.items():
        size = int(np.prod(shape))
        variables[name.removeprefix("sequential/").removesuffix(":0")] = row[start : start + size].reshape(shape)
        start += size
    act = {"relu": lambda x: np.maximum(x, 0), "tanh": np.tanh}[activation]
    features = images_BHWC
    for layer in ("conv2d", "conv2d_1"):
        kernel, bias = variables[f"{layer}/kernel"].astype(np.float64), variables[f"{layer}/bias"]
        height, width = kernel.shape[:2]
        out_h, out_w = (features.shape[1] - height) // 2 + 1, (features.shape[2] - width) // 2 + 1
        out = np.zeros((len(features), out_h, out_w, kernel.shape[3]))
        for y in range(out_h):
            for x in range(out_w):
                window = features[:, 2 * y : 2 * y + height, 2 * x : 2 * x + width]
                out[:, y, x] = np.einsum("bhwi,hwio->bo", window, kernel) + bias
        features = act(out)
    return features.mean((1, 2)) @ variables["dense/kernel"] + variables["dense/bias"]


def imported(small, tmp_path, name="zoo", **options):
    written = prepkit.import_zoo("small-cnn-zoo", small, tmp_path / name, **options)
    return prepkit.open_zoo(tmp_path / name), written


def test_networks_compute_what_they_do_in_tensorflow(small, tmp_path):
    zoo, _ = imported(small, tmp_path)
    values = np.load(small / "weights.npy")
    images = np.random.default_rng(1).normal(size=(4, 17, 14, 1))  # neither square nor even
    inputs = torch.from_numpy(images).permute(0, 3, 1, 2).double()
    assert len(zoo) == len(values)
    for index in (0, 3, 29):  # tanh, relu, relu
        with torch.no_grad():
            outputs = zoo.network(index).double()(inputs)
        activation = zoo.metadata(index)["config.activation"]
        expected = numpy_forward(values[index].astype(np.float64), images, activation)
        np.testing.assert_allclose(outputs.numpy(), expected, rtol=1e-9, atol=1e-9)
    assert {row["config.activation"] for row in map(zoo.metadata, (0, 3, 29))} == {"relu", "tanh"}
    assert zoo.registry.class_ids.keys() == {"small_cnn_3-4_tanh@cifar10", "small_cnn_3-4_relu@cifar10"}


def test_the_table_becomes_columns(small, tmp_path):
    zoo, written = imported(small, tmp_path)
    row = zoo.metadata("7/40")
    assert {name: row[name] for name in ("run", "step", "accuracy", "config.learning_rate", "config.activation")} == {
        "run": "/cns/zoo/cifar10/7",
        "step": 40,
        "accuracy": 7 / 16,
        "config.learning_rate": 7 / 8,
        "config.activation": "relu",
    }
    assert row["split"] is None
    assert math.isnan(zoo.metadata("3/0")["test_loss"])
    assert written.types["accuracy"] == "float"
    assert written.types["step"] == "int"
    assert zoo.index("7/40") == 7 * len(STEPS) + 1
    assert any("modeldir is run, test_accuracy is accuracy" in note for note in written.notes)
    function = zoo.manifest.function
    assert function.status == "unverified"
    assert function.how.stride == "2"
    assert zoo.manifest.provenance["command"] == "zoo import small-cnn-zoo"


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<f2"])
def test_matrices_of_other_types_are_read(small, tmp_path, dtype):
    values = np.load(small / "weights.npy").astype(dtype)
    np.save(small / "weights.npy", values)
    zoo, _ = imported(small, tmp_path)
    tensors = zoo["2/40"][0].tensors()
    kernel = values[7, 3:21].reshape(3, 2, 1, 3)
    assert torch.equal(tensors["convs.0.weight"].double()[2, 0, :, 1], torch.tensor(kernel[:, 1, 0, 2].astype(float)))
    assert zoo.manifest.dtype == {"<f8": "float64", ">f4": "float32", "<f2": "float16"}[dtype]


def test_steps_and_activation_choose_rows(small, tmp_path):
    zoo, _ = imported(small, tmp_path, steps=86, activation="relu")
    assert zoo.table["id"].to_pylist() == [f"{run}/86" for run in range(1, RUNS, 2)]
    assert len(imported(small, tmp_path, "both", steps=[0, 86])[0]) == 2 * RUNS
    with pytest.raises(ZooError, match=r"no row is of step 5; there are 0, 40, 86"):
        imported(small, tmp_path, "none", steps=[0, 5])
    with pytest.raises(ZooError, match=r"no row has config.activation 'gelu'; there are relu, tanh"):
        imported(small, tmp_path, "none", activation="gelu")


def protocol(order):
    """The protocol as the papers describe it, written anew: (row, split) in order, each row as often as it stands."""
    last = [row for row in order if row % len(STEPS) == len(STEPS) - 1]
    first, second = last[: len(last) // 2], last[len(last) // 2 :]
    random.Random(0).shuffle(first)
    cut = int(len(first) * 0.8)
    return (
        [(row, "train") for row in first[:cut]]
        + [(row, "validation") for row in first[cut:]]
        + [(row, "test") for row in second]
    )


def test_the_splits_of_papers(small, tmp_path):
    permutation = random.Random(5).sample(range(RUNS * len(STEPS)), RUNS * len(STEPS))
    (tmp_path / "order.csv").write_text("\n".join(map(str, [0, *permutation])) + "\n")
    zoo, _ = imported(small, tmp_path, splits="paper", order=tmp_path / "order.csv")
    expected = {f"{row // len(STEPS)}/86": split for row, split in protocol([0, *permutation])}
    assert dict(zip(zoo.table["id"].to_pylist(), zoo.table["split"].to_pylist(), strict=True)) == expected
    assert zoo.manifest.splits == {"test": 5, "train": 4, "validation": 1}
    relu, _ = imported(small, tmp_path, "relu", splits="paper", order=tmp_path / "order.csv", activation="relu")
    for row in relu.table.to_pylist():
        assert row["split"] == expected[row["id"]]


def test_a_stray_row_of_the_last_step_moves_the_split_and_is_told(tmp_path):
    (tmp_path / "order.csv").write_text("0\n3\n2\n1\n0\n")
    order = read_order(tmp_path / "order.csv", 4)
    assert order == [0, 3, 2, 1, 0]
    splits, notes = paper_splits(order, [0, 1, 2, 3])
    assert splits[0] in ("train", "validation")  # it stands first; its second place is in the second half
    assert {row: splits[row] for row in (1, 2)} == {1: "test", 2: "test"}
    assert len(notes) == 1
    assert f"Row 0 stands twice in the order, for {splits[0]} and for test" in notes[0]
    assert paper_splits(order, [1, 2])[1] == []


def test_the_strict_split_keeps_runs_together_and_drops_copies(small, tmp_path):
    values = np.load(small / "weights.npy")
    change(small, r4=values[0])  # 1/40 has the weights of 0/0
    zoo, written = imported(small, tmp_path, splits="strict")
    rows = zoo.table.to_pylist()
    assert "1/40" not in zoo
    assert len(rows) == RUNS * len(STEPS) - 1
    splits = {run: {row["split"] for row in rows if row["run"] == run} for run in {row["run"] for row in rows}}
    assert all(len(names) == 1 for names in splits.values())
    counts = sorted(next(iter(names)) for names in splits.values())
    assert counts == ["test"] * 5 + ["train"] * 4 + ["validation"]
    assert "1 row of weights.npy with the weights of an earlier row, left out: 4." in written.notes
    kept, written = imported(small, tmp_path, "kept")
    assert "1/40" in kept
    assert "1 row of weights.npy with the weights of an earlier row, kept: 4." in written.notes


def test_the_same_run_and_step_twice_is_told(small, tmp_path):
    rows = table_rows()
    rows[6] = rows[5]
    write_table(small, rows)
    zoo, written = imported(small, tmp_path)
    assert zoo.table["id"].to_pylist()[4:6] == ["1/40", "1/40#2"]
    assert any("1 row has the run and step of an earlier row" in note for note in written.notes)


def test_nan_is_refused_with_its_row_or_left_out_and_counted(small, tmp_path):
    values = np.load(small / "weights.npy")
    values[4, 7], values[8, 0] = np.nan, np.inf
    np.save(small / "weights.npy", values)
    with pytest.raises(CheckpointError, match=r"weights\.npy, row 4") as caught:
        imported(small, tmp_path)
    assert any("4 of 30 models are kept" in note for note in caught.value.__notes__)
    zoo, written = imported(small, tmp_path, drop_nan=True)  # goes on
    assert len(zoo) == 28
    assert "2 models that hold NaN or infinity left out: 1/40, 2/86." in written.notes


def test_an_interrupted_import_goes_on(small, tmp_path, monkeypatch):
    read, rows = Matrix.row, []

    def stopping(matrix, number):
        rows.append(number)
        if len(rows) == 12:
            raise KeyboardInterrupt
        return read(matrix, number)

    monkeypatch.setattr(Matrix, "row", stopping)
    with pytest.raises(KeyboardInterrupt):
        imported(small, tmp_path)
    zoo, _ = imported(small, tmp_path)
    assert rows == [*range(12), *range(11), *range(11, 30)]  # those that are kept are compared first
    whole, _ = imported(small, tmp_path, "whole")
    assert torch.equal(zoo.preps(), whole.preps())
    assert repr(zoo.table.to_pylist()) == repr(whole.table.to_pylist())  # NaN is not equal to itself
    with pytest.raises(ZooError):
        imported(small, tmp_path)  # it is finished


BROKEN = {
    "no-table": (lambda f: (f / "metrics.csv.gz").unlink(), r"lacks metrics\.csv\.gz"),
    "short-matrix": (
        lambda f: (f / "weights.npy").write_bytes((f / "weights.npy").read_bytes()[:-4]),
        r"weights\.npy: not a whole \.npy file",
    ),
    "pickle": (lambda f: np.save(f / "weights.npy", np.array([print]), allow_pickle=True), r"not a whole \.npy file"),
    "integers": (lambda f: np.save(f / "weights.npy", np.zeros((30, SIZE), int)), r"found int64 \[30, "),
    "columns-first": (
        lambda f: np.save(f / "weights.npy", np.asfortranarray(np.load(f / "weights.npy"))),
        r"in C order",
    ),
    "rows": (
        lambda f: write_table(f, table_rows()[:-1]),
        r"metrics\.csv\.gz: has 29 rows, but weights\.npy has 30",
    ),
    "short-table": (
        lambda f: (f / "metrics.csv.gz").write_bytes((f / "metrics.csv.gz").read_bytes()[:-30]),
        r"metrics\.csv\.gz: not a whole CSV file",
    ),
    "cells": (lambda f: write_table(f, [*table_rows()[:-1], ["relu"]]), r"metrics\.csv\.gz, line 31: 1 cell, but"),
    "no-run": (lambda f: write_table(f, [row[:3] + row[4:] for row in table_rows()]), r"no column modeldir; there are"),
    "step": (
        lambda f: write_table(f, [*table_rows()[:-1], [*table_rows()[-1][:4], "last", "1", "1"]]),
        r"metrics\.csv\.gz: each row needs a modeldir, and a step that is a whole number",
    ),
    "no-step": (
        lambda f: write_table(f, [*table_rows()[:-1], [*table_rows()[-1][:4], "", "1", "1"]]),
        r"metrics\.csv\.gz, line 31: each row needs a modeldir, and a step",
    ),
    "layout-end": (
        lambda f: (
            write_layout(f, {**SHAPES, "sequential/dense/kernel:0": (4, 5), "sequential/dense/bias:0": (5,)})
            or np.save(f / "weights.npy", np.zeros((30, SIZE + 1), np.float32))
        ),
        rf"layout\.csv: ends at {SIZE}, but a row of weights\.npy has {SIZE + 1} values",
    ),
    "layout-code": (
        lambda f: (f / "layout.csv").write_text('varname,start_idx,end_idx,shape\na/bias:0,0,3,"print(1)"\n'),
        r"layout\.csv, line 2: start_idx and end_idx are numbers, and shape",
    ),
    "layout-gap": (
        lambda f: (f / "layout.csv").write_text('varname,start_idx,end_idx,shape\na/bias:0,1,4,"(3,)"\n'),
        r"layout\.csv, line 2: .* 3 values from 0 on; the line says 1 to 4",
    ),
    "layout-layers": (
        lambda f: write_layout(f, {"a/bias:0": (3,), "a/kernel:0": (SIZE - 3, 3)}),
        r"not the variables of convolutions and then one dense layer",
    ),
    "activation": (
        lambda f: write_table(f, [[cell.replace("relu", "gelu") for cell in row] for row in table_rows()]),
        r"metrics\.csv\.gz, line 5: no config\.activation 'gelu' is known",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_bad_input_is_refused_with_its_place_and_mended(small, tmp_path, case):
    before = {file.name: file.read_bytes() for file in small.iterdir()}
    spoil, message = BROKEN[case]
    spoil(small)
    with pytest.raises(ZooError, match=message):
        imported(small, tmp_path)
    for name, content in before.items():
        (small / name).write_bytes(content)
    assert len(imported(small, tmp_path)[0]) == 30


def test_an_archive_in_place_of_the_folder_is_refused(small, tmp_path):
    (tmp_path / "cifar10.tar.xz").write_bytes(b"archive")
    with pytest.raises(ZooError, match=r"cifar10\.tar\.xz' is a file; unpack an archive first"):
        imported(tmp_path / "cifar10.tar.xz", tmp_path)
    assert not (tmp_path / "zoo").exists()


def test_the_order_has_to_name_each_row_once(small, tmp_path):
    order = tmp_path / "order.csv"
    for text, message in (
        ("0\n1\n", r"has 2 numbers, 2 of them different; it has to name each of 30 rows once"),
        ("index\n0\n", r"order\.csv, line 1: 'index' is not the number of one of 30 rows"),
        ("0\n30\n", r"order\.csv, line 2: '30'"),
    ):
        order.write_text(text)
        with pytest.raises(ZooError, match=message):
            imported(small, tmp_path, splits="paper", order=order)
    with pytest.raises(ZooError, match=r"go together"):
        imported(small, tmp_path, splits="paper")
    with pytest.raises(ZooError, match=r"go together"):
        imported(small, tmp_path, order=order)
    with pytest.raises(ZooError, match=r"`splits` is paper or strict, not 'papers'\. Did you mean 'paper'"):
        imported(small, tmp_path, splits="papers")
    order.write_text("\n".join(map(str, range(30))))
    with pytest.raises(ZooError, match=r"of the last step, 86; leave out `steps`"):
        imported(small, tmp_path, splits="paper", order=order, steps=0)


def test_the_command(small, tmp_path):
    arguments = ["zoo", "import", "small-cnn-zoo", str(small), str(tmp_path / "zoo"), "--splits", "strict"]
    result = CliRunner().invoke(main, [*arguments, "--step", "0", "--step", "86", "--license", "cc-by-4.0", "--json"])
    assert result.exit_code == 0, (result.output, result.exception)
    document = json.loads(result.stdout)
    assert document["instances"] == 2 * RUNS
    assert document["license"] == "cc-by-4.0"
    assert document["function"]["status"] == "unverified"
    zoo = prepkit.open_zoo(tmp_path / "zoo")
    assert zoo.manifest.provenance["options"] == {"steps": [0, 86], "splits": "strict"}
    result = CliRunner().invoke(
        main, ["zoo", "import", "small-cnn-zoo", str(small), str(tmp_path / "x"), "--step", "7"]
    )
    assert result.exit_code == 2
    assert "no row is of step 7" in result.stderr
