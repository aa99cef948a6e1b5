"""`prepkit bench` as a user types it: the table, the JSON document, the folder, and learners of the user's."""

import json
import tomllib
from importlib.resources import files

import bench_samples
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import prepkit
from prepkit.benching.run import BASELINE_NAMES
from prepkit.cli import main
from prepkit.support.statistics import tau_of_halves
from prepkit.zoo.importers._siren_files import LAYOUTS

LEARNER = """
def nearest(train, validation, test):
    known, asked = (part.zoo.preps().flatten(1) for part in (train, test))
    return train.target[(asked[:, None] - known[None]).square().sum(2).argmin(1)]

def fails(train, validation, test):
    raise ValueError("no")
"""
RIDGE = ("--baseline", "statistics + ridge")


def run(*arguments):
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    (tmp_path / "bench_mine.py").write_text(LEARNER)
    return tmp_path


def test_the_folder_holds_table_picture_and_json(zoo_folder, here):
    options = ("--target", "score", *RIDGE, "--learner", "bench_mine:nearest", "--seed", 3, "-o", "out")
    done = run(zoo_folder, *options)
    assert done.exit_code == 0, done.output
    assert "statistics + ridge" in done.stdout
    assert "24 train, 10 validation, 12 test; seed 3" in done.stdout
    assert sorted(path.name for path in (here / "out").iterdir()) == ["bench.json", "bench.md", "bench.png"]
    assert (here / "out/bench.md").read_text().count("\n| ") == 4
    document = json.loads((here / "out/bench.json").read_text())
    zoo = prepkit.open_zoo(zoo_folder)
    assert document["format"] == "prepkit-bench/1"
    assert document["zoo"] == {"name": "zoo", "sha256": zoo.manifest.to_dict()["sha256"], "instances": 46}
    assert document["split"]["test"] == {"instances": 12, "sha256": zoo.split("test").sha256}
    assert document["versions"].keys() == {"prepkit", "torch", "numpy", "scikit-learn", "scipy"}
    assert (document["seed"], document["preprocessing"], document["published"]) == (3, None, [])
    assert document["test"]["ids"] == zoo.split("test").table["id"].to_pylist()
    for result in document["results"].values():
        assert result.keys() >= {"r2", "tau", "tau_over_ceiling", "mean_error", "interval", "seconds", "peak_bytes"}
        assert len(result["predictions"]) == 12
    weights = {split: zoo.split(split).preps().flatten(1) for split in ("train", "test")}
    nearest = torch.cdist(weights["test"], weights["train"]).argmin(1)
    expected = np.array(zoo.split("train").table["score"].to_pylist())[nearest.numpy()]
    assert document["results"]["bench_mine:nearest"]["predictions"] == expected.tolist()
    again = run(zoo_folder, *options)
    assert again.exit_code == 2
    assert "--force" in again.stderr
    assert run(zoo_folder, *options, "--force").exit_code == 0


def test_a_learner_that_fails_ends_with_status_1_and_the_others_are_told(zoo_folder, here):
    done = run(zoo_folder, "--target", "side", *RIDGE, "--learner", "bench_mine:fails", "--json")
    document = json.loads(done.stdout)
    assert (done.exit_code, document["target"]["classes"]) == (1, ["a", "b"])
    assert document["results"]["bench_mine:fails"]["error"] == "bench_mine.py, line 7: ValueError: no"
    assert document["results"]["statistics + ridge"]["accuracy"] > 0.5
    assert set(document["results"]["statistics + ridge"]["predictions"]) <= {"a", "b"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--target", "scroe"), "Did you mean 'score'?"),
        (("--target", "score", "--learner", "bench_mine:nearst"), "Did you mean 'nearest'?"),
        (("--target", "score", "--learner", "bench_mine"), "does not name a learner; write module:callable"),
        (("--target", "score", "--data", "x"), "give --rerun too"),
        (("--target", "score", "--baseline", "ridge"), f"there are {BASELINE_NAMES[0]}"),
        (("--target", "side", "--log"), "leave `--log` out, or take --kind"),
        ((), "Missing option '--target'"),
    ],
)
def test_mistakes_are_one_line(zoo_folder, here, options, told):
    done = run(zoo_folder, *options)
    assert done.exit_code == 2
    assert told.replace("`--log`", "--log") in done.stderr
    assert "Traceback" not in done.output


def test_the_ceiling_of_an_accuracy_follows_from_two_halves_of_the_samples(tmp_path):
    record = {"kind": "images", "dataset": "digits", "mean": [0.3], "std": [0.4]}
    record["split"] = {"seed": 0, "test": 60, "validation": 60}
    inputs, truth = prepkit.load_task(record).normalised("test")
    networks = []
    root = tmp_path / "zoo"
    with torch.random.fork_rng(), prepkit.ZooWriter(root, width=64, task=record) as writer:
        for number in range(14):
            torch.manual_seed(5 + number)
            network = prepkit.architecture(bench_samples.NAME).build().eval()
            right = (network(inputs).argmax(1) == truth).double()
            networks.append(right)
            split = "train" if number < 8 else "validation" if number < 10 else "test"
            writer.add(network, split=split, architecture=bench_samples.NAME, accuracy=right.mean().item())
    plain = prepkit.bench(root, "accuracy", baselines=["constant"])
    assert plain.ceiling.bound == "ties"
    assert "the luck of the samples" in plain.notes[-1]
    found = prepkit.bench(root, "accuracy", baselines=["constant"], rerun=True)
    assert (found.ceiling.bound, found.ceiling.samples, found.notes) == ("samples", 60, ())
    rights = torch.stack(networks[10:]).numpy()
    assert found.ceiling.halves == tau_of_halves(rights, 50, 0)
    likeness = np.sin(np.pi / 2 * found.ceiling.halves)
    of_all = 2 * likeness / (1 + likeness)
    assert np.sin(np.pi / 2 * found.ceiling.tau) ** 2 == pytest.approx(of_all)
    assert found.ceiling.halves < found.ceiling.tau < 1


def test_published_numbers_stand_beside_ours_only_for_the_zoo_that_they_are_of(tmp_path):
    provenance = {"command": "zoo import small-cnn-zoo", "options": {"splits": "paper"}}
    task = {"kind": "images", "dataset": "svhn", "mean": [0.5], "std": [0.5], "gray": True}
    task["split"] = {"seed": 0, "test": "test"}
    columns = {"columns": lambda number: {"accuracy": number / 46}}
    root = bench_samples.write_zoo(tmp_path / "zoo", task=task, provenance=provenance, **columns)
    result = prepkit.bench(root, "accuracy", baselines=["constant"])
    assert {one.metric for one in result.published} == {"tau"}
    assert {one.method: one.value for one in result.published}["StatNN (Unterthiner et al., 2020)"] == 0.843
    assert prepkit.bench(root, "score", baselines=["constant"]).published == ()
    assert prepkit.bench(root, "accuracy", baselines=["constant"], where="accuracy > 0.01").published == ()
    prepkit.split(root, force=True)
    assert prepkit.bench(root, "accuracy", baselines=["constant"]).published == ()
    strict = {**provenance, "options": {"splits": "strict"}}
    other = bench_samples.write_zoo(tmp_path / "other", task=task, provenance=strict, **columns)
    assert prepkit.bench(other, "accuracy", baselines=["constant"]).published == ()


def test_patterns_of_published_sirens_are_those_of_the_importer():
    published = files("prepkit.benching").joinpath("published.toml").read_text(encoding="utf-8")
    patterns = {table["pattern"] for table in tomllib.loads(published)["table"] if table["kind"] == "siren"}
    assert patterns == {layout.pattern for layout in LAYOUTS if layout.rule}


@pytest.mark.parametrize(
    ("pattern", "convention", "outputs", "methods"),
    [
        ("mnist_png_{split}_{label:int}_{index:int}/checkpoints/model_final.pth", "dws", 1, 4),
        ("{split}/model_{index:int}.pth", "dws", 1, 4),
        ("{prefix}_{label:int}s/net{index:int}.pth", "nfn", 3, 5),
        ("{prefix}_{label:int}s/net{index:int}.pth", "nfn", 1, 0),  # of MNIST or of Fashion-MNIST
        ("{prefix}_{label:int}s/net{index:int}.pth", "dws", 3, 0),
    ],
)
def test_published_numbers_of_sirens(tmp_path, pattern, convention, outputs, methods):
    options = {"splits": "paper", "pattern": pattern, "convention": convention}
    provenance = {"command": "zoo import siren", "options": options}
    siren = prepkit.Architecture(
        "siren", "siren", (2,), "prepkit.families.sine_mlp:SineMLP", {"sizes": [2, 4, outputs]}, {}
    )
    with prepkit.ZooWriter(tmp_path / "zoo", width=64, provenance=provenance) as writer:
        for number in range(30):
            split = ("train", "train", "train", "validation", "test")[number % 5]
            writer.add(siren.build(), id=f"{number}", architecture=siren, split=split, label=number % 2)
    as_class = prepkit.bench(tmp_path / "zoo", "label", kind="class", baselines=["constant"])
    assert [one.metric for one in as_class.published] == ["accuracy"] * methods
    assert prepkit.bench(tmp_path / "zoo", "label", baselines=["constant"]).published == ()
