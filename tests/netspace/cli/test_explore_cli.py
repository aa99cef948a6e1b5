"""`netspace evaluate`, `embed`, `interpolate`, `optimize`, `decode`: what they write, and what they say."""

import json
import os
import shutil
import sys

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from untrained import untrained_run

import prepkit
from netspace.cli import main
from netspace.cli.common import RESULT
from netspace.explore.embedding import embed, embeddings

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def runs(small_zoo, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    classes = {"digits_multi": 2, "digits_single": None, "chairs_mini": None}
    return {name: untrained_run(root / name, name, small_zoo(name), classes[name]) for name in classes}


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Run a command in an empty folder; on success its text, or its JSON document where that is asked for."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, code=0):
        done = CliRunner().invoke(main, [str(one) for one in arguments])
        assert done.exit_code == code, done.output
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        if code == 0:
            return json.loads(done.stdout) if "--json" in arguments else done.stdout
        return done

    return call


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# What they do ---------------------------------------------------------------------------------------------------


def test_evaluate_writes_into_the_run(call, runs):
    run = runs["digits_multi"]
    found = call("evaluate", run.path, "--json")
    table = pyarrow.csv.read_csv(run.path / "evaluation-test.csv")
    assert table.num_rows == found["instances"] == 4
    assert json.loads((run.path / "evaluation-test.json").read_text())["by_architecture"] == found["by_architecture"]
    assert (run.path / "figures" / "evaluation-test.png").read_bytes()[:4] == b"\x89PNG"
    assert found["class_id_accuracy"] == 0.25
    zoo = run.open_zoo().split("test")
    images, labels = prepkit.load_task(zoo.task).normalised("test")
    for row, accuracy in enumerate(table["target_accuracy"].to_pylist()):
        with torch.no_grad():
            right = (zoo.network(row)(images).argmax(1) == labels).double().mean()
        assert accuracy == pytest.approx(float(right), abs=1 / 60 + 1e-9)
    again = call(
        "evaluate", run.path, "--split", "validation"
    )  # text; a second evaluation replaces nothing of the first
    assert "lenet_like@digits" in again
    assert {"evaluation-test.csv", "evaluation-validation.csv"} <= set(os.listdir(run.path))


def test_evaluate_signals(call, runs):
    found = call("evaluate", runs["chairs_mini"].path, "--json")
    assert 0 <= found["closeness"] <= 1
    assert found["by_architecture"]["sine_mlp@sdf_small"]["instances"] == 1


def test_embed(call, runs, tmp_path):
    run = runs["digits_multi"]
    zoo = run.record["zoo"]["path"]
    assert call("embed", run.path, zoo, "--json") == {
        "output": "embeddings.parquet",
        "instances": 20,
        "embedding_size": 256,
    }
    found = pyarrow.parquet.read_table(tmp_path / "embeddings.parquet")
    torch.testing.assert_close(embeddings(found), embeddings(embed(run, run.open_zoo())))
    call("embed", run.path, zoo, "--split", "test", "-o", "e.npz")
    assert np.load(tmp_path / "e.npz")["embedding"].shape == (4, 256)
    # A smaller zoo is padded to the height that the run was trained on: the encoder sees padding too.
    single = runs["digits_single"]
    call("embed", run.path, single.record["zoo"]["path"], "-o", "single.parquet")
    padded = prepkit.open_zoo(single.record["zoo"]["path"], width=128, height=88)
    found = pyarrow.parquet.read_table(tmp_path / "single.parquet")
    torch.testing.assert_close(embeddings(found), embeddings(embed(run, padded)))
    done = CliRunner().invoke(main, ["embed", str(single.path), str(zoo), "-o", "multi.csv"])
    assert done.exit_code == 0
    assert "note: the space was trained without lenet_like@digits" in done.stderr
    assert "resnet8@digits" not in done.stderr


def test_interpolate_between_two(call, runs, tmp_path):
    run = runs["digits_single"]
    ids = "resnet8@digits-test-0", "resnet8@digits-train-1"
    document = call("interpolate", run.path, *ids, "--steps", "3", "-o", "line", "--json")
    assert files(tmp_path / "line") == [
        "embeddings.npy",
        "figure.png",
        *(f"networks/step-{step:03d}-resnet8@digits.pt" for step in range(3)),
        "result.json",
        "table.csv",
    ]
    assert document["gammas"] == [0, 0.5, 1]
    assert set(document["lines"]) == {"embedding", "weights"}
    saved = json.loads((tmp_path / "line" / "result.json").read_text())
    assert saved["lines"] == document["lines"]
    rows = pyarrow.csv.read_csv(tmp_path / "line" / "table.csv").to_pylist()
    assert [row["accuracy"] for row in rows[:3]] == pytest.approx(document["lines"]["embedding"]["mean"])
    # The network in the middle, in plain PyTorch.
    latents = np.load(tmp_path / "line" / "embeddings.npy")
    assert latents.shape == (1, 3, 256)
    middle = torch.load(tmp_path / "line" / "networks" / "step-001-resnet8@digits.pt", weights_only=True)
    with torch.no_grad():
        prep = run.space().decode(torch.from_numpy(latents[0, 1:2]))[0]
    expected = prepkit.architecture("resnet8@digits").layout.unpack(prep)
    assert middle.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(middle[name], value, rtol=1e-4, atol=1e-6)


def test_interpolate_random_pairs(call, runs):
    document = call(
        "interpolate", runs["digits_multi"].path, "--split", "train", "--pairs", "3", "--steps", "4", "--json"
    )
    assert document["pairs"] == 3
    assert "3 of 3 pairs have no line of weights" in document["notes"][0]
    assert call("interpolate", runs["digits_multi"].path, "--steps", "2", "--json")["pairs"] == 1  # 8, or all there are
    text = call("interpolate", runs["digits_multi"].path, "--split", "train", "--pairs", "2", "--steps", "2")
    assert text.splitlines()[2].split()[-1] == "resnet8@digits"


def test_interpolate_shapes_writes_meshes(call, runs, tmp_path, monkeypatch):
    """The untrained space has no surface anywhere; a line of balls has one at every step."""
    from netspace.explore import interpolation
    from prepkit.running import groups
    from prepkit.tasks.distance_grid import grid_points

    def balls(registry, class_ids, preps, resolution):
        radius = torch.linspace(0.3, 0.6, len(preps)).view(-1, 1)
        return (grid_points(resolution).norm(dim=1) - radius).view(-1, *[resolution] * 3)

    for module in (interpolation, groups):
        monkeypatch.setattr(module, "distance_grids", balls)
    call(
        "interpolate", runs["chairs_mini"].path, "chair-0", "chair-1", "--steps", "2", "--resolution", "8", "-o", "line"
    )
    assert [name for name in files(tmp_path / "line") if "mesh" in name] == [
        f"meshes/{line}-{step:03d}.obj" for line in ("embedding", "weights") for step in range(2)
    ]


def test_optimize(call, runs, tmp_path):
    run = runs["digits_multi"]
    settings = ["--steps", "2", "--validate-every", "1", "--batch", "16", "--learning-rate", "1e-2"]
    document = call("optimize", run.path, "--each", "1", *settings, "-o", "out", "--json")
    assert len(document["start_points"]) == 4
    assert [row["asked_class_id"] for row in document["start_points"]] == [0, 1, 2, 3]
    assert files(tmp_path / "out") == [
        "embeddings.npy",
        "figure.png",
        "history.csv",
        *(f"networks/start-{number:03d}-resnet8@digits.pt" for number in range(4)),
        "result.json",
        "table.csv",
    ]
    assert pyarrow.csv.read_csv(tmp_path / "out" / "history.csv").num_rows == 12
    assert document["notes"] == ["4 start points of 4 still moved after 2 steps."]
    assert (document["learning_rate"], document["patience"]) == (0.01, 10)
    text = call("optimize", run.path, "--embedding", "out/embeddings.npy", *settings)
    assert "embedding 3" in text
    still = ["--patience", "1", "--validate-every", "5", "--batch", "16", "--learning-rate", "0"]
    document = call("optimize", run.path, "--each", "1", *still, "--json")
    assert [row["last_step"] for row in document["start_points"]] == [5] * 4  # nothing ever improves
    (option,) = (option for option in main.commands["optimize"].params if option.name == "validate_every")
    assert option.default == 25
    assert document["notes"] == []


def test_decode(call, runs, tmp_path):
    run = runs["digits_multi"]
    zoo = run.open_zoo()
    document = call("decode", run.path, "--id", "lenet_like@digits-test-0", "-o", "a.pt", "--json")
    assert (document["architecture"], document["class_id"]) == ("resnet8@digits", 2)
    with torch.no_grad():
        latent = run.space().encode(zoo.preps([zoo.index("lenet_like@digits-test-0")]))
        expected = prepkit.architecture("resnet8@digits").layout.unpack(run.space().decode(latent)[0])
    found = torch.load(tmp_path / "a.pt", weights_only=True)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    np.save(tmp_path / "e.npy", np.stack([np.zeros(256), latent[0].numpy()]))
    call("decode", run.path, "--embedding", "e.npy", "--row", "1", "-o", "b.safetensors")
    again = safetensors.torch.load_file(tmp_path / "b.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(again[name], value, rtol=1e-4, atol=1e-6)
    document = call("decode", run.path, "--class-id", "2", "-o", "c.pt", "--json")
    assert document["gamma"] == pytest.approx(2 / 3)
    assert document["between"][0].startswith("lenet_like@digits-train")
    text = call("decode", run.path, "--gamma", "0.3", "-o", "d.pt", "--seed", "5")
    assert "at gamma 0.3 between lenet_like@digits-train" in text
    network = prepkit.architecture("resnet8@digits").build_folded()
    network.load_state_dict(torch.load(tmp_path / "d.pt", weights_only=True))


# What they refuse -----------------------------------------------------------------------------------------------

LINE = ["interpolate", "digits_multi", "--pairs", "1", "--steps", "2"]
REFUSED = [
    (["evaluate", "nowhere"], "'nowhere' is no run"),
    (["evaluate", "digits_multi", "--split", "tset"], "Did you mean 'test'"),
    (["evaluate", "digits_multi", "--samples", "x"], "the task has no samples 'x'"),
    (["evaluate", "digits_multi", "--kind", "latest"], "has no latest checkpoint yet"),
    (["evaluate", "digits_multi", "--device", "cuda:99"], "use another one, such as cpu"),
    (["evaluate", "digits_multi", "--zoo", "ZOO digits_single"], "Give the zoo that it was trained on"),
    (["evaluate", "digits_multi", "--zoo", "nowhere"], "nowhere"),
    (["embed", "digits_multi", "ZOO digits_multi", "-o", "x.xlsx"], "use one of .parquet, .csv, .npz"),
    (["embed", "digits_multi", "ZOO digits_multi", "-o", "taken.csv"], "exists already"),
    (["interpolate", "digits_multi", "a"], "a line has two ends"),
    (["interpolate", "digits_multi", "a", "b", "--pairs", "2"], "not both"),
    (["interpolate", "digits_multi", "lenet_like@digits-test-9", "resnet14@digits-test-0"], "Did you mean"),
    ([*LINE, "--split", "validatoin"], "Did you mean 'validation'"),
    (["interpolate", "digits_multi", "--pairs", "99"], "has 1 here"),
    (["interpolate", "chairs_mini"], "there are no pairs among the 1 instance of 'chairs_mini' to draw from"),
    ([*LINE, "-o", "taken"], "holds other files and no result.json"),
    ([*LINE, "-o", "taken", "--force"], "holds other files and no result.json"),
    ([*LINE, "-o", "ours"], "--force to replace it"),
    ([*LINE, "-o", "taken.csv"], "it is a file"),
    ([*LINE, "-o", "no/folder"], "does not exist"),
    (["optimize", "digits_multi", "a", "--embedding", "e.npy"], "not both"),
    (["optimize", "digits_multi", "--class-id", "9"], "ClassId 9 is not in this run; it has 0 (lenet_like@digits)"),
    (["optimize", "digits_multi", "--learning-rate", "nan"], "learning_rate nan is out of range"),
    (["optimize", "digits_multi", "--alpha", "2"], "alpha 2 is out of range; use 0 to 1"),
    (["optimize", "chairs_mini", "--alpha", "0.5"], "--alpha is the share of a teacher"),
    (["optimize", "digits_multi", "--embedding", "taken.csv"], "cannot be read as an array"),
    (["optimize", "digits_multi", "--embedding", "e.npy"], r"embeddings of this run are [..., 256]"),
    (["optimize", "digits_single"], "has no teacher"),
    (["decode", "digits_multi", "--embedding", "nan.npy", "-o", "x.pt"], "not finite"),
    (["decode", "digits_multi", "-o", "x.pt"], "one of --id, --embedding"),
    (["decode", "digits_multi", "--id", "a", "--gamma", "0.5", "-o", "x.pt"], "one of --id, --embedding"),
    (["decode", "digits_multi", "--id", "a", "-o", "x.bin"], "use one of .pt, .pth, .safetensors"),
    (["decode", "digits_multi", "--id", "a", "-o", "taken.pt"], "exists already"),
    (["decode", "digits_multi", "--class-id", "1", "-o", "x.pt"], "never predicted, but resnet8@digits"),
    (["decode", "digits_single", "--gamma", "0.5", "-o", "x.pt"], "knows one architecture"),
    ([*LINE, "-o", "."], "name a new folder"),
    (["decode", "digits_multi", "--id", "a", "--row", "1", "-o", "x.pt"], "--row is one of --embedding's"),
    (["decode", "digits_multi", "--id", "a", "--seed", "1", "-o", "x.pt"], "--seed draws the ends"),
    (["optimize", "digits_multi", "a", "--each", "2"], "--each is how many are drawn"),
    (["optimize", "digits_multi", "--embedding", "e.npy", "--split", "test"], "--split is where instances"),
    (["optimize", "digits_multi", "--item", "1"], "all classify the same images"),
    (["interpolate", "digits_multi", "a", "b", "--split", "test"], "--split is where random pairs"),
    (["interpolate", "digits_multi", "a", "b", "--seed", "1"], "--seed draws random pairs"),
    ([*LINE, "--resolution", "9"], "--resolution is of the meshes that --output gets"),
    ([*LINE, "--resolution", "9", "-o", "new"], "--resolution is of meshes, which image classifiers have none of"),
    (["interpolate", "digits_multi", "--steps", "1000000000"], "100000"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[" ".join(one) for one, _ in REFUSED])
def test_what_is_refused(call, runs, tmp_path, arguments, message):
    (tmp_path / "taken").mkdir()
    for name in ("taken/file", "taken.csv", "taken.pt"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / RESULT).write_text("{}")
    np.save(tmp_path / "e.npy", np.zeros((2, 255)))
    np.save(tmp_path / "nan.npy", np.full(256, np.nan))
    before = files(tmp_path)
    named = [runs[one].path if one in runs else one for one in arguments]
    named = [runs[one[4:]].record["zoo"]["path"] if str(one).startswith("ZOO ") else one for one in named]
    done = call(*named, "--json", code=2)
    error = json.loads(done.stdout)["error"]
    assert message in error["message"]
    assert "Traceback" not in done.output
    assert files(tmp_path) == before


def test_a_run_that_does_not_say_where_its_zoo_is(call, runs, tmp_path):
    """As one from the Hub."""
    run = runs["digits_single"]
    shutil.copytree(run.path, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    zoo = record["zoo"]["path"]
    record["zoo"]["path"] = None
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    assert "does not say where its zoo" in call("evaluate", "run", code=2).stderr
    assert call("evaluate", "run", "--zoo", zoo, "--json")["instances"] == 2


def test_samples_have_files_of_their_own(call, runs):
    run = runs["digits_single"]
    call("evaluate", run.path)
    before = (run.path / "evaluation-test.csv").read_bytes()
    found = call("evaluate", run.path, "--samples", "validation", "--json")
    assert found["table"].endswith("evaluation-test-on-validation.csv")
    assert (run.path / "evaluation-test.csv").read_bytes() == before


def test_a_walk_that_diverges_is_told(call, runs):
    options = ["--each", "1", "--steps", "3", "--learning-rate", "1e30", "--json"]
    text = call("optimize", runs["digits_multi"].path, *options)
    assert any("use a lower learning rate" in note.lower() for note in text["notes"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("zoo", "text"),
        ("zoo", {"name": "a"}),
        ("recipe", []),
        ("registry", {"architectures": [{"name": []}]}),
        ("task", 3),
    ],
)
def test_a_damaged_record_is_told(call, runs, tmp_path, key, value):
    shutil.copytree(runs["digits_single"].path, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record[key] = value
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    assert "run.json" in call("evaluate", "run", code=2).stderr


def test_a_zoo_that_has_moved(call, runs, tmp_path):
    """The run says where it was; --zoo says where it is."""
    run = runs["digits_single"]
    shutil.copytree(run.path, tmp_path / "run")
    shutil.copytree(run.record["zoo"]["path"], tmp_path / "moved")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["zoo"]["path"] = "gone"
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    done = call("evaluate", "run", code=2)
    assert "trained on a zoo at 'gone', which is not there; say where it is now with --zoo" in done.stderr
    assert call("evaluate", "run", "--zoo", "moved", "--json")["instances"] == 2
    np.save(tmp_path / "e.npy", np.zeros(256))
    call("decode", "run", "--embedding", "e.npy", "-o", "a.pt")  # needs no zoo at all


def test_no_matplotlib(call, runs, tmp_path, monkeypatch):
    """The numbers are there, and a note names the extra."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    document = call(*LINE[:1], runs["digits_multi"].path, *LINE[2:], "-o", "line", "--json")
    assert any(
        "figure.png: drawing needs matplotlib; pip install 'prepkit[plots]'" in note for note in document["notes"]
    )
    assert "figure.png" not in files(tmp_path / "line")
    assert "table.csv" in files(tmp_path / "line")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("DefaultCPUAllocator: can't allocate memory: x")])
def test_nothing_is_left_of_what_was_not_finished(call, runs, tmp_path, monkeypatch, error):
    from prepkit.support import table_files as module

    calls = []

    def fail(*args, **kwargs):
        calls.append(args)
        raise error

    monkeypatch.setattr(module, "write_table", fail)
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / RESULT).write_text("{}")
    code = 130 if isinstance(error, KeyboardInterrupt) else 1
    done = call(*LINE[:1], runs["digits_multi"].path, *LINE[2:], "-o", "ours", "--force", "--json", code=code)
    assert calls
    message = json.loads(done.stdout)["error"]["message"]
    assert ("no file is half written" if code == 130 else "not enough memory") in message
    assert files(tmp_path) == ["ours/result.json"]
    assert os.listdir(tmp_path) == ["ours"]


def test_force_replaces_a_result(call, runs, tmp_path):
    line = [*LINE[:1], runs["digits_multi"].path, *LINE[2:], "-o", "line"]
    call(*line)
    (tmp_path / "line" / "more.txt").write_text("of the user's")
    call(*line, "--force")
    assert "more.txt" not in files(tmp_path / "line")
    assert os.listdir(tmp_path) == ["line"]
