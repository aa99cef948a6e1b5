"""`prepkit zoo import nino`: float16 kept bit by bit, selections, sizes, proof by running, resuming, bad input.

The arrays are written by numpy from the description of the format alone.
"""

import hashlib
import json
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

import prepkit
from prepkit.cli import main
from prepkit.errors import CheckpointError, ZooError
from prepkit.tasks import load_task
from prepkit.zoo.importers._matrix import Rows
from prepkit.zoo.importers._nino_sets import SETS
from prepkit.zoo.importers._selection import chosen

SHAPES = {"b.weight": [3, 2], "b.bias": [3], "a.weight": [2, 3, 1, 1], "a.bias": [2]}  # not in the order of names
SIZE, RUNS, STATES = 17, 4, 6
METRICS = ["test_loss", "test_acc"]


def write(folder, values, metrics, name="tiny", parts=1):
    folder.mkdir(exist_ok=True)
    for part, rows in enumerate(np.split(values, parts), 1):
        rows.tofile(folder / (f"{name}_p{part}.dat" if parts > 1 else f"{name}.dat"))
    metrics.tofile(folder / f"{name}_metrics.dat")


@pytest.fixture
def tiny(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2**16, size=(RUNS, STATES, SIZE), dtype=np.uint16)
    bits[(bits & 0x7C00) == 0x7C00] = 1  # neither NaN nor infinity, but subnormal numbers and -0
    bits[0, 0, :2] = 0x8000, 0x0001
    metrics = np.random.default_rng(1).uniform(0, 100, size=(RUNS, STATES, 2)).astype(np.float16)
    metrics[1, 2, 0], metrics[1, 3, 0] = np.nan, np.inf
    write(tmp_path / "src", bits.view(np.float16), metrics)
    layout = {"states": STATES, "runs": RUNS, "metrics": METRICS, "tensors": SHAPES}
    (tmp_path / "layout.json").write_text(json.dumps(layout))
    return tmp_path, bits, metrics


def imported(root, name="zoo", **options):
    written = prepkit.import_zoo("nino", root / "src", root / name, layout=root / "layout.json", **options)
    return prepkit.open_zoo(root / name), written


def bits_of(zoo, id):
    """The bits of an instance's numbers in the order of the file, the tensors cut out by hand."""
    tensors = zoo[zoo.index(id)][0].tensors()
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == SHAPES
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    return np.concatenate([tensors[name].numpy().reshape(-1).view(np.uint16) for name in SHAPES])


@pytest.mark.parametrize("parts", [1, 2])
def test_numbers_stay_bit_by_bit_and_metrics_become_columns(tiny, parts):
    root, bits, metrics = tiny
    if parts == 2:
        (root / "src" / "tiny.dat").unlink()
        write(root / "src", bits.view(np.float16), metrics, parts=2)
    zoo, written = imported(root)
    assert zoo.manifest.dtype == "float16"
    assert zoo.table["id"].to_pylist() == [f"{run}/{state}" for run in range(RUNS) for state in range(STATES)]
    for run in range(RUNS):
        for state in range(STATES):
            np.testing.assert_array_equal(bits_of(zoo, f"{run}/{state}"), bits[run, state])
            row = zoo.metadata(f"{run}/{state}")
            assert (row["run"], row["state"]) == (run, state)
            np.testing.assert_equal([row["test_loss"], row["test_acc"]], metrics[run, state].astype(float))
            assert row["accuracy"] == pytest.approx(float(metrics[run, state, 1]) / 100, rel=1e-12)
    assert "The column accuracy is test_acc divided by 100, as it is given in per cent." in written.notes
    assert zoo.manifest.function.status == "unverified"


def test_states_and_runs_choose_models(tiny):
    root, bits, _ = tiny
    zoo, _ = imported(root, states="1:6:2,-2", runs=[0, -1])
    assert zoo.table["id"].to_pylist() == [f"{run}/{state}" for run in (0, 3) for state in (1, 3, 4, 5)]
    np.testing.assert_array_equal(bits_of(zoo, "3/4"), bits[3, 4])


def test_strict_splits_keep_runs_together_and_leave_copies_out(tiny):
    root, bits, metrics = tiny
    bits[2, 3] = bits[1, 0]
    write(root / "src", bits.view(np.float16), metrics)
    zoo, _ = imported(root, splits="strict")
    assert "2/3" not in zoo
    split = {run: {row["split"] for row in zoo.table.to_pylist() if row["run"] == run} for run in range(RUNS)}
    ordered = sorted(range(RUNS), key=lambda run: hashlib.sha256(str(run).encode()).hexdigest())
    assert [split[run] for run in ordered] == [{"test"}, {"test"}, {"train"}, {"validation"}]
    assert zoo.split_rule == "strict"


def test_selections_are_those_of_python():
    for text in ("::3", "2:9:4", "-3:", ":-8", "7", "-1", "0,5,-1"):
        parts = [eval(f"list(range(10))[{part}]") for part in text.split(",")]
        flat = sorted(number for part in parts for number in (part if isinstance(part, list) else [part]))
        assert chosen(text, 10, "states", "state") == flat
    for text, words in {
        "10": "10 is not there; there are 10 states, from 0 to 9",
        "0:11": "'0:11' goes beyond what is there",
        "5:5": "names nothing",
        "1,::1": "names the same state twice",
        "a": "'a' is neither a number nor a slice",
        "::0": "neither a number nor a slice",
        "": "neither a number nor a slice",
    }.items():
        with pytest.raises(ZooError, match=words):
            chosen(text, 10, "states", "state")


def convnet(values, images):
    """The convnets of fm-16 and c10-16 on a row of numbers: parameters in order, stride 2 first, then padding 1."""
    channels, parts, start = images.shape[1], [], 0
    for shape in [(16, channels, 3, 3), (16,), (32, 16, 3, 3), (32,), (32, 32, 3, 3), (32,), (10, 32), (10,)]:
        size = int(np.prod(shape))
        parts.append(torch.from_numpy(values[start : start + size].astype(np.float32)).reshape(shape))
        start += size
    assert start == len(values)
    x = F.relu(F.conv2d(images, parts[0], parts[1], stride=2))
    x = F.relu(F.conv2d(x, parts[2], parts[3], padding=1))
    x = F.relu(F.conv2d(x, parts[4], parts[5], padding=1))
    return F.linear(x.mean((2, 3)), parts[6], parts[7])


@pytest.mark.parametrize(
    ("name", "states", "channels", "size"), [("fm-16", 2688, 1, 14378), ("c10-16", 2513, 3, 14666)]
)
def test_a_known_set_of_its_true_size_runs_and_is_proved(tmp_path, name, states, channels, size):
    """The files are sparse: three of 700,000 states are written, the others read as 0."""
    generator = np.random.default_rng(3)
    models = [(0, 0), (299, states - 1), (7, 5)]
    values = {at: generator.normal(0, 0.2, size=size).astype("<f2") for at in models}
    task = {"kind": "images", "dataset": "digits", "mean": [0.1307], "std": [0.3081], "split": {"seed": 0, "test": 360}}
    (tmp_path / "task.json").write_text(json.dumps(task))
    digits, labels = load_task(task).normalised("test")
    (tmp_path / "src").mkdir()
    with (
        open(tmp_path / f"src/{name}.dat", "wb") as weights,
        open(tmp_path / f"src/{name}_metrics.dat", "wb") as metrics,
    ):
        os.truncate(weights.fileno(), 300 * states * size * 2)
        os.truncate(metrics.fileno(), 300 * states * 4 * 2)
        for (run, state), row in values.items():
            weights.seek((run * states + state) * size * 2)
            weights.write(row.tobytes())
            guesses = convnet(row, digits.expand(-1, channels, -1, -1)).argmax(1)
            right = 100 * (guesses == labels).double().mean().item()
            metrics.seek((run * states + state) * 4 * 2)
            metrics.write(np.array([0.5, right, 0.4, 70], "<f2").tobytes())
    chosen_models = {"states": [0, 5, states - 1], "runs": "0,7,299"}
    prepkit.import_zoo("nino", tmp_path / "src", tmp_path / "zoo", task=tmp_path / "task.json", **chosen_models)
    zoo = prepkit.open_zoo(tmp_path / "zoo")
    assert len(zoo) == 9
    images = torch.from_numpy(generator.normal(size=(2, channels, 15, 13)).astype(np.float32))
    for (run, state), row in values.items():
        with torch.no_grad():
            outputs = zoo.network(zoo.index(f"{run}/{state}")).float()(images)
        torch.testing.assert_close(outputs, convnet(row, images), rtol=1e-5, atol=1e-5)
    assert not any(tensor.any() for tensor in zoo[zoo.index("0/5")][0].tensors().values())
    assert zoo.manifest.function.how.stride == "2, 1, 1"
    if channels == 1:  # 0/0, which is verified, and eight others of which all but two are zeros
        found = prepkit.verify(tmp_path / "zoo", rerun=1)
        assert found.function.status == "verified"
        assert found.reruns[0].stored == pytest.approx(found.reruns[0].found, abs=3e-4)


def test_convnets_know_the_images_that_they_classify():
    found = {name: of_set.task and (of_set.task["dataset"], of_set.task["mean"][0]) for name, of_set in SETS.items()}
    cifar10 = ("cifar10", pytest.approx(0.4914, abs=1e-4))
    assert found == {"fm-16": ("fashion_mnist", 0.1307), "c10-16": cifar10, "lm1b-3-24": None, "lm1b-2-32": None}


def test_language_models_have_the_tensors_of_their_sizes_and_parts(tmp_path):
    src, size = tmp_path / "src", 1252464
    src.mkdir()
    row = (np.arange(size) % 2000).astype("<f2")
    with open(src / "lm1b-3-24_p1.dat", "wb") as file:
        os.truncate(file.fileno(), 100 * 124 * size * 2)
        file.seek((99 * 124 + 123) * size * 2)
        file.write(row.tobytes())
    np.full((200, 124, 1), 5.5, "<f2").tofile(src / "lm1b-3-24_metrics.dat")
    written = prepkit.import_zoo("nino", src, tmp_path / "zoo", states=-1, runs=-1)
    assert "lm1b-3-24_p2.dat is not there, so runs 100 to 199 are left out." in written.notes
    zoo = prepkit.open_zoo(tmp_path / "zoo")
    assert zoo.metadata(0)["id"] == "99/123"
    assert zoo.metadata(0)["train_loss"] == 5.5
    tensors = zoo[0][0].tensors()
    assert tensors["transformer.wte.weight"].shape == (50257, 24)
    start = 50257 * 24 + 1024 * 24 + 24 + 24  # then h.0.attn.c_attn.weight
    assert tensors["transformer.h.0.attn.c_attn.weight"].shape == (24, 72)
    assert tensors["transformer.h.0.attn.c_attn.weight"][0, 1] == row[start + 1]
    assert zoo.manifest.function.how_to_run is None
    (src / "lm1b-3-24_p1.dat").rename(src / "lm1b-3-24_p2.dat")
    with pytest.raises(ZooError, match=r"lacks 'lm1b-3-24_p1\.dat'"):
        prepkit.import_zoo("nino", src, tmp_path / "other")


def test_an_interrupted_import_goes_on_and_another_selection_is_refused(tiny, monkeypatch):
    root, bits, metrics = tiny
    read, rows = Rows.row, []

    def stopping(array, number):
        if array.columns == SIZE:
            rows.append(number)
            if len(rows) == 10:
                raise KeyboardInterrupt
        return read(array, number)

    monkeypatch.setattr(Rows, "row", stopping)
    with pytest.raises(KeyboardInterrupt):
        imported(root)
    with pytest.raises(ZooError):
        imported(root, states="::2")
    zoo, _ = imported(root)
    assert rows == [*range(10), *range(9), *range(9, 24)]  # what is kept is compared with the file, the rest is added
    np.testing.assert_array_equal(bits_of(zoo, "2/5"), bits[2, 5])
    rows.clear()
    with pytest.raises(KeyboardInterrupt):
        imported(root, "changed")
    changed = bits.copy()
    changed[0, 3, 5] ^= 1
    write(root / "src", changed.view(np.float16), metrics)
    with pytest.raises(ZooError, match="was begun with another"):
        imported(root, "changed")
    metrics[0, 3] = 1.5
    write(root / "src", bits.view(np.float16), metrics)
    with pytest.raises(ZooError, match="was begun with another"):
        imported(root, "changed")


def test_nan_is_refused_with_its_place_or_left_out_and_counted(tiny):
    root, bits, metrics = tiny
    values = bits.view(np.float16).copy()
    values[2, 1, 4], values[3, 0, 0] = np.nan, np.inf
    write(root / "src", values, metrics)
    with pytest.raises(CheckpointError, match=r"tiny\.dat, run 2, state 1"):
        imported(root)
    zoo, written = imported(root, drop_nan=True)
    assert len(zoo) == RUNS * STATES - 2
    assert "2 models that hold NaN or infinity left out: 2/1, 3/0." in written.notes


def shorten(file, count):
    file.write_bytes(file.read_bytes()[:-count])


def layout(root, **changes):
    data = json.loads((root / "layout.json").read_text()) | changes
    (root / "layout.json").write_text(json.dumps({key: value for key, value in data.items() if value != "gone"}))


BROKEN = {
    "truncated": (
        lambda r: shorten(r / "src/tiny.dat", 2),
        r"tiny\.dat' has 814 bytes, which is no number of whole runs",
    ),
    "a run less": (lambda r: shorten(r / "src/tiny.dat", STATES * SIZE * 2), "hold 3 runs, but the layout says 4"),
    "metrics": (
        lambda r: shorten(r / "src/tiny_metrics.dat", 2),
        r"tiny_metrics\.dat' has 94 bytes, but 4 runs x 6 st",
    ),
    "no metrics": (lambda r: (r / "src/tiny_metrics.dat").unlink(), r"tiny_metrics\.dat' is missing"),
    "no weights": (lambda r: (r / "src/tiny.dat").unlink(), r"holds no set of trajectories"),
    "two sets": (lambda r: (r / "src/big.dat").write_bytes(b"ab"), r"holds several sets, big, tiny; name the folder"),
    "parts": (lambda r: (r / "src/tiny_p2.dat").write_bytes(b"ab"), "and parts of it; take away"),
    "tensors": (lambda r: layout(r, tensors={"a": [SIZE - 1]}), "no number of whole runs"),
    "shape": (lambda r: layout(r, tensors={"a": [SIZE, -1]}), r"layout\.json, tensors\.a: expected a shape such as"),
    "no tensors": (lambda r: layout(r, tensors={}), r"layout\.json, tensors: expected names and shapes"),
    "absent": (lambda r: layout(r, tensors="gone"), r"layout\.json: 'tensors' is missing"),
    "states": (lambda r: layout(r, states=0), r"layout\.json, states: expected a whole number"),
    "taken": (lambda r: layout(r, metrics=["run"]), r"layout\.json, metrics: run is filled otherwise"),
    "json": (lambda r: (r / "layout.json").write_text("{"), r"layout\.json: is not JSON"),
    "no layout": (lambda r: (r / "layout.json").unlink(), r"layout\.json: cannot be read: No such file"),
    "archive": (lambda r: (r / "src").rename(r / "s") and (r / "src").write_bytes(b"PK"), "a file; unpack an archive"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_bad_input_is_refused_with_its_place_and_nothing_is_written(tiny, case):
    root, _, _ = tiny
    spoil, message = BROKEN[case]
    spoil(root)
    with pytest.raises(ZooError, match=message):
        imported(root)
    assert not (root / "zoo").exists()


def test_the_command(tiny):
    root, _, _ = tiny
    arguments = ["zoo", "import", "nino", str(root / "src"), str(root / "zoo")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "the order of its parameters is unknown; known are fm-16, c10-16" in result.stderr
    assert "with --layout, a JSON file" in result.stderr
    result = CliRunner().invoke(main, [*arguments, "--layout", str(root / "layout.json"), "--states", "0:99"])
    assert "--states: '0:99' goes beyond what is there; there are 6 states" in result.stderr
    arguments += ["--layout", str(root / "layout.json"), "--states", "::5", "--runs", "1", "--dataset", "tiny"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert prepkit.open_zoo(root / "zoo").table["id"].to_pylist() == ["1/0", "1/5"]
