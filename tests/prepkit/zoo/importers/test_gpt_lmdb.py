"""`prepkit zoo import gpt-lmdb`: networks, columns, splits, no lock in the source, resuming, bad input.

The data bases are written by lmdb from the description of the format alone; networks run in numpy here.
"""

import json
import math
import sys

import lmdb
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import prepkit
from prepkit.cli import main
from prepkit.errors import CheckpointError, ZooError
from prepkit.tasks.task import DataMissing
from prepkit.zoo.importers import gpt_lmdb
from prepkit.zoo.importers._gpt_networks import MNIST
from prepkit.zoo.importers._lmdb_values import LmdbValues

SIZES = {
    "mnist": [7840, 10, 100, 10],
    "cifar10": [432, 4608, 320, 10],
    "cartpole": [1, 128, 32, 1024, 32, 32, 1],
}


def numbers(kind, run, step, scale=0.1):
    generator = np.random.default_rng([sum(map(ord, kind)), int(run), step])
    return generator.normal(0, scale, size=sum(SIZES[kind])).astype(np.float32)


def name_of(kind, run, step):
    return f"{run}/it{step:05d}.pt" if kind == "cartpole" else f"{run}/ep{step:03d}_it{7 * step:05d}.pt"


def write_group(root, runs, kind="mnist", checkpoints=3, fused=True, error=None, change=None):
    """Write a folder of runs; `change` may alter a checkpoint's numbers."""
    group = root / "_".join(runs)
    said = {}
    with lmdb.open(str(group), map_size=1 << 26) as base, base.begin(write=True) as transaction:
        for run in runs:
            names = {}
            for step in range(checkpoints):
                key = name_of(kind, run, step)
                values = numbers(kind, run, step) if change is None else change(run, step, numbers(kind, run, step))
                transaction.put(key.encode(), values.tobytes())
                transaction.put(f"{key}_arch".encode(), np.array(SIZES[kind], np.float32).tobytes())
                wrong = 100 - step if error is None else error(values)
                names[key] = (
                    {"train_ret": step / 2} if kind == "cartpole" else {"avg_test_err": wrong, "loss": math.nan}
                )
            said[run] = {"checkpoints": names, "metadata": {"optimal": 0.5, "avg_test_err": [1.0, 2.0]}}
    (group / "lock.mdb").unlink()
    (group / "runs.json").write_text(json.dumps(said if fused else said[runs[0]]))
    return group


@pytest.fixture
def mnist(tmp_path):
    """Five runs in three folders, one of which is of one run; the order of names is not that in which they are made."""
    (tmp_path / "src").mkdir()
    for runs in (["000009"], ["000003", "000001"], ["000004", "000007"]):
        write_group(tmp_path / "src", runs, fused=len(runs) > 1)
    return tmp_path


def imported(root, name="zoo", **options):
    written = prepkit.import_zoo("gpt-lmdb", root / "src", root / name, **options)
    return prepkit.open_zoo(root / name), written


def forward(kind, values, inputs):
    """Run a checkpoint in numpy: the tensors in their order, cut by hand."""
    values, parts, start = values.astype(np.float64), [], 0
    for size in SIZES[kind]:
        parts.append(values[start : start + size])
        start += size
    if kind == "mnist":
        hidden = np.maximum(inputs.reshape(len(inputs), 784) @ parts[0].reshape(10, 784).T + parts[1], 0)
        return hidden @ parts[2].reshape(10, 10).T + parts[3]
    if kind == "cartpole":

        def selu(x):
            return 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x))

        first = selu(inputs @ parts[1].reshape(32, 4).T + parts[2])
        return selu(first @ parts[3].reshape(32, 32).T + parts[4]) @ parts[5].reshape(1, 32).T + parts[6]
    features = inputs
    for kernel, stride in ((parts[0].reshape(16, 3, 3, 3), 2), (parts[1].reshape(32, 16, 3, 3), 1)):
        padded = np.pad(features, ((0, 0), (0, 0), (1, 1), (1, 1)))
        rows, columns = ((size - 3) // stride + 1 for size in padded.shape[2:])
        out = np.zeros((len(inputs), len(kernel), rows, columns))
        for y in range(rows):
            for x in range(columns):
                window = padded[:, :, stride * y : stride * y + 3, stride * x : stride * x + 3]
                out[:, :, y, x] = np.einsum("bihw,oihw->bo", window, kernel)
        features = np.maximum(out, 0)
    return features.mean((2, 3)) @ parts[2].reshape(10, 32).T + parts[3]


@pytest.mark.parametrize(("kind", "shape"), [("mnist", (1, 28, 28)), ("cifar10", (3, 9, 12)), ("cartpole", (4,))])
def test_networks_compute_what_those_of_the_makers_do(tmp_path, kind, shape):
    (tmp_path / "src").mkdir()
    write_group(tmp_path / "src", ["000000", "000001"], kind)
    zoo, _ = imported(tmp_path)
    assert zoo.manifest.architectures[0].name.endswith(f"@{kind}")
    inputs = np.random.default_rng(5).normal(size=(3, *shape))
    for run, step in (("000000", 1), ("000001", 2)):
        index = zoo.index(name_of(kind, run, step))
        with torch.no_grad():
            outputs = zoo.network(index).double()(torch.from_numpy(inputs)).numpy()
        np.testing.assert_allclose(outputs, forward(kind, numbers(kind, run, step), inputs), rtol=1e-9, atol=1e-12)
        flat = [value.numpy().reshape(-1) for value in zoo[index][0].tensors().values()]
        assert {array.dtype for array in flat} == {np.dtype("float32")}
    assert zoo.manifest.function.status == "unverified"
    if kind == "cartpole":
        assert zoo.metadata(index)["train_ret"] == 1.0
        assert zoo[index][0].tensors()["log_std"].shape == (1,)


def test_columns_and_the_order_of_runs(mnist):
    zoo, written = imported(mnist)
    rows = zoo.table.to_pylist()
    order = ["000003", "000001", "000004", "000007", "000009"]
    assert [row["id"] for row in rows] == [
        f"{run}/ep{step:03d}_it{7 * step:05d}.pt" for run in order for step in range(3)
    ]
    row = rows[7]
    assert {name: row[name] for name in ("run", "epoch", "iteration", "avg_test_err", "metadata.optimal", "split")} == {
        "run": "000004",
        "epoch": 1,
        "iteration": 7,
        "avg_test_err": 99,
        "metadata.optimal": 0.5,
        "split": None,
    }
    assert row["accuracy"] == pytest.approx(0.01)
    assert math.isnan(row["loss"])
    assert "Left in runs.json, since they are lists or tables: avg_test_err." in written.notes


def test_runs_and_checkpoints_choose_models(mnist):
    zoo, _ = imported(mnist, runs="1:3", checkpoints=-1)
    assert zoo.table["id"].to_pylist() == ["000001/ep002_it00014.pt", "000004/ep002_it00014.pt"]
    with pytest.raises(ZooError, match="3 is not there; there are 3 checkpoints in run '000003', from 0 to 2"):
        imported(mnist, "other", checkpoints="3")


def test_the_papers_split_keeps_the_last_runs_for_testing(mnist, monkeypatch):
    with pytest.raises(ZooError, match="keeps the last 500 runs for testing; there are 5 runs"):
        imported(mnist, splits="paper")
    monkeypatch.setattr(gpt_lmdb, "NETWORKS", (MNIST.__class__(MNIST.tensors, MNIST.architecture, None, 5, 2),))
    zoo, written = imported(mnist, splits="paper", runs="::2")
    assert zoo.split_rule == "paper"
    split = {row["run"]: row["split"] for row in zoo.table.to_pylist()}
    assert split == {"000003": "train", "000004": "train", "000009": "test"}  # 7 and 9 are the last two of all
    assert not any("may not be the paper's" in note for note in written.notes)
    monkeypatch.setattr(gpt_lmdb, "NETWORKS", (MNIST.__class__(MNIST.tensors, MNIST.architecture, None, 99, 2),))
    _, written = imported(mnist, "other", splits="paper", checkpoints=0)
    assert any("runs.json name 5 runs, not the 99 that were published" in note for note in written.notes)
    strict, _ = imported(mnist, "strict", splits="strict", checkpoints=[0, 1])
    split = {row["run"]: row["split"] for row in strict.table.to_pylist()}
    assert sorted(split.values()) == ["test", "test", "train", "train", "validation"]
    assert all(row["split"] == split[row["run"]] for row in strict.table.to_pylist())


def test_a_run_is_proved_with_pictures(tmp_path):
    generator = np.random.default_rng(0)
    for number in range(40):
        file = tmp_path / "png" / ("train", "test")[number // 20] / f"{number % 10}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.uniform(size=(28, 28)) ** generator.uniform(0.1, 9) * 255  # of any brightness
        Image.fromarray(pixels.astype(np.uint8)).save(file)
    files = sorted((tmp_path / "png" / "test").rglob("*.png"))
    pixels = np.stack([(np.asarray(Image.open(file)) / 255 - 0.1307) / 0.3081 for file in files])
    labels = np.array([int(file.parent.name) for file in files])

    def error(values):
        return 100 * float((forward("mnist", values, pixels).argmax(1) != labels).mean())

    (tmp_path / "src").mkdir()
    write_group(tmp_path / "src", ["000000"], error=error, fused=False)
    task = {
        "kind": "images",
        "dataset": "folder",
        "mean": [0.1307],
        "std": [0.3081],
        "split": {"seed": 0, "test": "test"},
    }
    imported(tmp_path, task=task)
    found = prepkit.verify(tmp_path / "zoo", rerun=3, data=tmp_path / "png")
    assert found.function.status == "verified"
    assert len({run.stored for run in found.reruns}) > 1


def test_the_zoo_knows_the_images_that_its_networks_classify(mnist, tmp_path):
    imported(tmp_path)
    task = prepkit.open_zoo(tmp_path / "zoo").task
    assert (task["dataset"], task["mean"], task["std"]) == ("mnist", [0.1307], [0.3081])
    with pytest.raises(DataMissing, match="name the folder: data=PATH"):
        prepkit.verify(tmp_path / "zoo", rerun=1)


def test_nothing_is_written_into_the_source(mnist):
    before = {file: file.read_bytes() for file in (mnist / "src").rglob("*") if file.is_file()}
    for folder in (mnist / "src").iterdir():
        folder.chmod(0o555)
    imported(mnist)
    for folder in (mnist / "src").iterdir():
        folder.chmod(0o755)
    assert {file: file.read_bytes() for file in (mnist / "src").rglob("*") if file.is_file()} == before


def test_one_group_alone_and_a_layout(mnist):
    (mnist / "layout.json").write_text(json.dumps({"a": [784, 10], "b": [10], "c": [100], "d": [10]}))
    group = mnist / "src" / "000009"
    written = prepkit.import_zoo("gpt-lmdb", group, mnist / "zoo", layout=mnist / "layout.json", checkpoints="0")
    tensors = prepkit.open_zoo(mnist / "zoo")[0][0].tensors()
    np.testing.assert_array_equal(tensors["a"].numpy(), numbers("mnist", "000009", 0)[:7840].reshape(784, 10))
    assert written.manifest.function.how_to_run is None


def test_an_interrupted_import_goes_on(mnist, monkeypatch):
    get, keys = LmdbValues.get, []

    def stopping(values, key):
        if not key.endswith("_arch"):
            keys.append(key)
            if len(keys) == 8:
                raise KeyboardInterrupt
        return get(values, key)

    monkeypatch.setattr(LmdbValues, "get", stopping)
    with pytest.raises(KeyboardInterrupt):
        imported(mnist)
    zoo, _ = imported(mnist)
    # Each import looks at the first checkpoint, to know the network; a resumed one compares the 6 that are kept.
    assert len(keys) == 8 + 1 + 6 + 9
    for row in zoo.table.to_pylist():
        tensors = zoo[zoo.index(row["id"])][0].tensors().values()
        expected = numbers("mnist", row["run"], row["epoch"])
        np.testing.assert_array_equal(torch.cat([tensor.flatten() for tensor in tensors]).numpy(), expected)


def test_nan_is_refused_with_its_place_or_left_out_and_counted(tmp_path):
    (tmp_path / "src").mkdir()

    def change(run, step, values):
        values[3] = math.nan if step == 1 else values[3]
        return values

    write_group(tmp_path / "src", ["000000"], change=change)
    with pytest.raises(CheckpointError, match=r"data\.mdb, '000000/ep001_it00007\.pt'"):
        imported(tmp_path)
    zoo, written = imported(tmp_path, drop_nan=True)
    assert len(zoo) == 2
    assert "1 model that holds NaN or infinity left out: 000000/ep001_it00007.pt." in written.notes


def put(group, key, value):
    with lmdb.open(str(group), map_size=1 << 26) as base, base.begin(write=True) as transaction:
        transaction.put(key.encode(), value) if value is not None else transaction.delete(key.encode())
    (group / "lock.mdb").unlink()


FIRST, KEY = "000003_000001", "000003/ep001_it00007.pt"
BROKEN = {
    "truncated": (
        lambda g: (g / "data.mdb").write_bytes((g / "data.mdb").read_bytes()[:50000]),
        r"not a whole LMDB file \(it has 50,000 of",
    ),
    "empty": (lambda g: (g / "data.mdb").write_bytes(b""), r"not a whole LMDB file \(it is empty\)"),
    "foreign": (
        lambda g: (g / "data.mdb").write_bytes(bytes(range(256)) * 99),
        "not a whole LMDB file .*not an LMDB file",
    ),
    "no data": (lambda g: (g / "data.mdb").unlink(), r"lacks data\.mdb"),
    "no runs": (lambda g: (g / "runs.json").unlink(), r"lacks runs\.json"),
    "half json": (
        lambda g: (g / "runs.json").write_text((g / "runs.json").read_text()[:-9]),
        r"runs\.json: is not JSON",
    ),
    "list": (lambda g: (g / "runs.json").write_text("[1]"), r"runs\.json: expected \{run: "),
    "no names": (lambda g: (g / "runs.json").write_text('{"000003": {"metadata": {}}}'), "'checkpoints' is missing"),
    "none": (lambda g: (g / "runs.json").write_text('{"000003": {"checkpoints": {}}}'), "1 run has no checkpoint in"),
    "twice": (
        lambda g: (g / "runs.json").write_text((g / "runs.json").read_text().replace("000001", "000009")),
        r"run '000009' stands in '.*000003_000001' and in '.*000009'",
    ),
    "network": (
        lambda g: put(g, "000003/ep000_it00000.pt_arch", np.float32([7860, 100]).tobytes()),
        "tensors of 7860, 100 values, those of no network of G.pt",
    ),
}
LATER = {
    "absent": (lambda g: put(g, KEY, None), rf"'{KEY}': is in runs\.json but not in data\.mdb"),
    "short": (lambda g: put(g, KEY, b"1234"), rf"'{KEY}': has 1 value.*, its tensors 7,960"),
    "bytes": (lambda g: put(g, KEY, b"123"), rf"'{KEY}': 3 bytes are no whole number of float32 values"),
    "sizes": (lambda g: put(g, KEY + "_arch", np.float32([1, 2]).tobytes()), rf"'{KEY}': its tensors have 1, 2 values"),
    "no sizes": (lambda g: put(g, KEY + "_arch", np.float32([1.5]).tobytes()), "1.5 are no sizes of tensors"),
}


@pytest.mark.parametrize("case", [*BROKEN, *LATER])
def test_bad_input_is_refused_with_its_place(mnist, case):
    spoil, message = (BROKEN | LATER)[case]
    spoil(mnist / "src" / FIRST)
    with pytest.raises(ZooError, match=message):
        imported(mnist)
    assert (mnist / "zoo").exists() == (case in LATER)  # where the first checkpoint is kept, and the import goes on


def test_the_command_and_the_missing_package(mnist, monkeypatch):
    arguments = ["zoo", "import", "gpt-lmdb", str(mnist / "src"), str(mnist / "zoo")]
    result = CliRunner().invoke(main, [*arguments, "--checkpoints", "9"])
    assert result.exit_code == 2
    assert "--checkpoints: 9 is not there" in result.stderr
    (mnist / "a.zip").write_bytes(b"PK")
    result = CliRunner().invoke(main, ["zoo", "import", "gpt-lmdb", str(mnist / "a.zip"), str(mnist / "zoo")])
    assert "a.zip' is a file; unpack an archive first" in result.stderr
    assert CliRunner().invoke(main, [*arguments, "--checkpoints", "-1", "--runs", "0"]).exit_code == 0
    assert prepkit.open_zoo(mnist / "zoo").table["id"].to_pylist() == ["000003/ep002_it00014.pt"]
    monkeypatch.setitem(sys.modules, "lmdb", None)
    result = CliRunner().invoke(main, [*arguments[:-1], str(mnist / "new")])
    assert result.exit_code == 2
    assert "pip install 'prepkit[lmdb]'" in result.stderr
