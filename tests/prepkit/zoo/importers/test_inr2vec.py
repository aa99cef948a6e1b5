"""`prepkit zoo import inr2vec`: tensors, function, sizes, pairs for completion, resuming, bad input.

The files are written by h5py from the description of the format alone; networks run in numpy here.
"""

import hashlib
import math
from itertools import pairwise

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import prepkit
from prepkit.cli import main
from prepkit.errors import CheckpointError, ZooError
from prepkit.zoo.importers import inr2vec
from prepkit.zoo.importers._inr_files import read_shape, sizes_of

SIZES = (3, 8, 8, 8, 1)
COUNT = sum((a + 1) * b for a, b in pairwise(SIZES))


def numbers(*seed, count=COUNT):
    return np.random.default_rng(seed).normal(0, 0.3, size=count).astype(np.float32)


def write(file, **datasets):
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as found:
        for name, value in datasets.items():
            found.create_dataset(name, data=value)


@pytest.fixture
def clouds(tmp_path):
    for number, split in enumerate(("train", "val", "test")):
        for index in (0, 2, 10):
            data = {"params": numbers(number, index), "class_id": np.int64(index % 4), "pcd": np.zeros((5, 3))}
            write(tmp_path / "src" / split / f"{index}.h5", **data)
    return tmp_path


def imported(root, name="zoo", **options):
    written = prepkit.import_zoo("inr2vec", root / "src", root / name, **options)
    return prepkit.open_zoo(root / name), written


def forward(values, points, sizes=SIZES):
    """A SIREN as the makers run it: sin(30 x) after all layers but the last."""
    features, start = points, 0
    for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
        weight = values[start : start + inputs * outputs].reshape(outputs, inputs).astype(np.float64)
        start += inputs * outputs
        features = features @ weight.T + values[start : start + outputs]
        start += outputs
        if layer < len(sizes) - 2:
            features = np.sin(30 * features)
    assert start == len(values)
    return features


def run(zoo, id, points):
    with torch.no_grad():
        return zoo.network(zoo.index(id)).double()(torch.from_numpy(points)).numpy()


def test_networks_compute_what_those_of_the_makers_do(clouds):
    zoo, written = imported(clouds)
    points = np.random.default_rng(1).uniform(-1, 1, size=(7, 3))
    for number, split in enumerate(("train", "val", "test")):
        for index in (0, 2, 10):
            expected = forward(numbers(number, index), points)
            np.testing.assert_allclose(run(zoo, f"{split}/{index}", points), expected, rtol=1e-9, atol=1e-12)
    tensors = zoo.export(0, clouds / "out.pt")
    names = [f"layers.{layer}.0" for layer in range(3)] + ["layers.3"]
    assert set(tensors) == {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
    function = zoo.manifest.function
    assert (function.status, function.how.w0, function.how.output_offset) == ("unverified", 30.0, 0.0)
    assert "All have the sizes 3x8x8x8x1." in written.notes


def test_columns_and_what_is_left(clouds):
    zoo, written = imported(clouds)
    rows = zoo.table.to_pylist()
    assert {row["id"]: (row["split"], row["index"], row["label"]) for row in rows} == {
        f"{split}/{index}": (split, index, index % 4) for split in ("train", "val", "test") for index in (0, 2, 10)
    }
    for row in rows:
        content = (clouds / "src" / f"{row['id']}.h5").read_bytes()
        assert row["source_sha256"] == hashlib.sha256(content).hexdigest()
    assert "The column label is class_id of the files." in written.notes
    assert "Left in the files, since a table has no place for it: pcd (9 models)." in written.notes


@pytest.mark.parametrize("trained", [True, False])
def test_networks_are_run_at_the_points_of_their_shapes(tmp_path, trained):
    expected = []
    for index in range(3):
        values, points = numbers(index), np.random.default_rng(index).uniform(-1, 1, size=(20, 3))
        if trained:
            values[-1] += 40  # so that all logits are high, as on a surface
        write(tmp_path / f"src/train/{index}.h5", params=values, pcd=points)
        expected.append(np.mean(0.1 * (1 - 1 / (1 + np.exp(-forward(values, points))))))
    zoo, written = imported(tmp_path)
    run = zoo.manifest.provenance["points_run"]
    assert (run["models"], run["distance"]) == (3, pytest.approx(np.mean(expected), abs=1e-6))
    note = f"Running 3 models at points of their shapes, where the distance is 0: they say {np.mean(expected):.4f} in "
    note += "the mean, of at most 0.1."
    assert note + ("" if trained else " That is far: they may have been trained or stored otherwise.") in written.notes


def test_meshes_have_their_single_values_as_columns(tmp_path):
    mesh = {"vertices": np.zeros((9, 3)), "num_vertices": 4, "triangles": np.zeros((9, 3), int), "num_triangles": 2}
    queries = {"coords": np.zeros((6, 3)), "labels": np.zeros(6)}
    write(tmp_path / "src/train/0.h5", params=numbers(0).astype(">f8"), class_id=3, **mesh, **queries)
    zoo, written = imported(tmp_path)
    row = zoo.metadata(0)
    assert (row["num_vertices"], row["num_triangles"], row["label"]) == (4, 2, 3)
    assert zoo.manifest.dtype == "float64"
    np.testing.assert_array_equal(zoo[0][0].tensors()["layers.0.0.weight"].numpy().reshape(-1), numbers(0)[:24])
    assert any("coords (1 model), labels (1 model), triangles (1 model), vertices" in note for note in written.notes)


def test_completion_gives_two_instances_a_file_which_are_linked(tmp_path):
    for index in range(3):
        both = {"params_incomplete": numbers(index, 0), "params_complete": numbers(index, 1)}
        cloud = {"incomplete": np.zeros((4, 3)), "complete": np.zeros((4, 3))}
        write(tmp_path / f"src/train/{index}.h5", **both, **cloud, category=b"chair", name=f"n{index}")
    zoo, _ = imported(tmp_path)
    assert zoo.table["id"].to_pylist() == [f"train/{i}/{part}" for i in range(3) for part in ("incomplete", "complete")]
    rows = [zoo.metadata(f"train/1/{part}") for part in ("incomplete", "complete")]
    assert [(row["pair"], row["part"], row["category"], row["name"]) for row in rows] == [
        ("train/1", "incomplete", "chair", "n1"),
        ("train/1", "complete", "chair", "n1"),
    ]
    strict, _ = imported(tmp_path, "strict", splits="strict")
    split = {row["pair"]: (row["split"], row["split.original"]) for row in strict.table.to_pylist()}
    assert sorted(split.values()) == [("test", "train"), ("train", "train"), ("validation", "train")]
    assert all(row["split"] == split[row["pair"]][0] for row in strict.table.to_pylist())
    points = np.random.default_rng(1).uniform(-1, 1, size=(5, 3))
    for which, part in enumerate(("incomplete", "complete")):
        expected = forward(numbers(2, which), points)
        np.testing.assert_allclose(run(zoo, f"train/2/{part}", points), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        (1_053_185, [(3, 512, 512, 512, 512, 512, 1)]),
        (790_529, [(3, 512, 512, 512, 512, 1)]),  # of the makers' initial weights
        (COUNT, [SIZES]),
        (8641, [(3, 90, 90, 1), (3, 64, 64, 64, 1)]),
        (COUNT + 1, []),
    ],
)
def test_sizes_follow_from_the_number_of_parameters(count, sizes):
    assert sizes_of(count) == sizes
    brute = [
        (3, *[width] * (layers + 1), 1)
        for layers in range(1, 17)
        for width in range(1, 600)
        if 3 * width + width + layers * (width * width + width) + width + 1 == count
    ]
    assert brute == sizes


def test_sizes_are_asked_for_where_several_fit(tmp_path):
    write(tmp_path / "src/train/0.h5", params=numbers(0, count=8641))
    with pytest.raises(ZooError, match=r"8,641 parameters, those of 3x90x90x1 and of 3x64x64x64x1. Say which"):
        imported(tmp_path)
    with pytest.raises(ZooError, match=r"8,641 parameters, 3x64x64x1 has 4,481"):
        imported(tmp_path, sizes=[3, 64, 64, 1])
    with pytest.raises(ZooError, match="are no sizes of layers"):
        imported(tmp_path, sizes=[3, 0])
    zoo, _ = imported(tmp_path, sizes=(3, 64, 64, 64, 1))
    points = np.random.default_rng(1).uniform(-1, 1, size=(5, 3))
    expected = forward(numbers(0, count=8641), points, (3, 64, 64, 64, 1))
    np.testing.assert_allclose(run(zoo, "train/0", points), expected, rtol=1e-9, atol=1e-10)


def test_tables_and_lists_as_for_trees(clouds):
    (clouds / "t.csv").write_text("split,index,miou\ntrain,2,0.5\ntest,10,0.25\n")
    (clouds / "bad.csv").write_text("split,index,label\ntrain,2,0\n")
    zoo, _ = imported(clouds, table=clouds / "t.csv", files=["train/2.h5", "test/10.h5"])
    assert {row["id"]: row["miou"] for row in zoo.table.to_pylist()} == {"train/2": 0.5, "test/10": 0.25}
    with pytest.raises(ZooError, match="the columns label are filled by the importer"):
        imported(clouds, "other", table=clouds / "bad.csv")


def test_an_interrupted_import_goes_on_and_another_file_is_refused(clouds, monkeypatch):
    files = []

    def stopping(file, dataset):
        files.append(file)
        if len(files) == 6:
            raise KeyboardInterrupt
        return read_shape(file, dataset)

    monkeypatch.setattr(inr2vec, "read_shape", stopping)
    with pytest.raises(KeyboardInterrupt):
        imported(clouds)
    write(clouds / "src/test/0.h5", params=numbers(7), class_id=0)
    with pytest.raises(ZooError, match="was begun with another"):
        imported(clouds)
    write(clouds / "src/test/0.h5", params=numbers(2, 0), class_id=np.int64(0), pcd=np.zeros((5, 3)))
    zoo, _ = imported(clouds)
    assert len(files) == 6 + 1 + 1 + 1 + 5  # each import reads the first for its sizes, a resumed one what it kept
    for number, split in enumerate(("train", "val", "test")):
        for index in (0, 2, 10):
            flat = [tensor.flatten() for tensor in zoo[zoo.index(f"{split}/{index}")][0].tensors().values()]
            np.testing.assert_array_equal(torch.cat(flat).numpy(), numbers(number, index))


def test_nan_is_refused_with_its_file_or_left_out_and_counted(clouds):
    values = numbers(0, 2)
    values[5] = math.nan
    write(clouds / "src/train/2.h5", params=values)
    with pytest.raises(CheckpointError, match=r"train/2\.h5"):
        imported(clouds)
    zoo, written = imported(clouds, drop_nan=True)
    assert len(zoo) == 8
    assert "1 model that holds NaN or infinity left out: train/2." in written.notes


def link(file):
    write(file.parent / "x.h5", params=numbers(1))
    with h5py.File(file, "w") as found:
        found["params"] = h5py.ExternalLink("x.h5", "params")


def huge(file):
    with h5py.File(file, "w") as found:
        found.create_dataset("params", shape=(2**40,), dtype="f4", chunks=(2**10,))


BROKEN = {
    "truncated": (lambda f: f.write_bytes(f.read_bytes()[:-100]), r"not a whole HDF5 file \(.*trunc"),
    "empty": (lambda f: f.write_bytes(b""), "not a whole HDF5 file"),
    "foreign": (lambda f: f.write_bytes(b"PK" * 2000), "not a whole HDF5 file"),
    "no params": (lambda f: write(f, pcd=np.zeros(3)), "has no params, unlike the first file; it has pcd"),
    "pair": (lambda f: write(f, params_incomplete=numbers(1), params_complete=numbers(2)), "has no params, unlike"),
    "shape": (lambda f: write(f, params=np.zeros((2, 3))), r"params is float64 \[2, 3\]; expected a row of numbers"),
    "integers": (lambda f: write(f, params=np.zeros(COUNT, int)), "params is int64"),
    "other size": (lambda f: write(f, params=numbers(1, count=790_529)), "has 790,529 parameters; those of 3x512x512"),
    "link": (link, "has no params"),
    "bomb": (huge, "far more than the file"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_bad_file_is_named_and_the_same_command_goes_on(clouds, case):
    spoil, message = BROKEN[case]
    file = clouds / "src/val/2.h5"
    before = file.read_bytes()
    spoil(file)
    with pytest.raises(ZooError, match=rf"val/2\.h5.*{message}"):
        imported(clouds)
    if case == "truncated":
        file.write_bytes(before)
        assert len(imported(clouds)[0]) == 9


def test_folders_that_hold_something_else_are_refused(clouds):
    arguments = ["zoo", "import", "inr2vec"]
    (clouds / "a.zip").write_bytes(b"PK")
    result = CliRunner().invoke(main, [*arguments, str(clouds / "a.zip"), str(clouds / "zoo")])
    assert result.exit_code == 2
    assert "a.zip' is a file; unpack an archive first" in result.stderr
    result = CliRunner().invoke(main, [*arguments, str(clouds / "src/train"), str(clouds / "zoo")])
    assert "of the pattern '{split}/{index:int}.h5'; there is 0.h5" in result.stderr
    write(clouds / "src/test/0.h5", params=numbers(0, count=COUNT + 1))
    result = CliRunner().invoke(main, [*arguments, str(clouds / "src"), str(clouds / "zoo")])
    assert "which fit no equal hidden layers. Say which with --sizes" in result.stderr
    assert not (clouds / "zoo").exists()
    write(clouds / "src/test/0.h5", params=numbers(0))
    arguments += [str(clouds / "src"), str(clouds / "zoo"), "--sizes", "3x8x8x8x1"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert len(prepkit.open_zoo(clouds / "zoo")) == 9
