"""`prepkit zoo import small-transformer-zoo`: rebuilt networks, the table, what running decides, bad input."""

import json
import os
import shutil

import pytest
import torch
import transformer_samples as samples
from click.testing import CliRunner

import prepkit
from prepkit.cli import main
from prepkit.errors import CheckpointError, UnsafeCheckpoint, ZooError
from prepkit.zoo.importers.kinds import found_by

MNIST = "MNIST-Transformers/mnist"
TABLE = "MNIST-Transformers/metadata/mnist.csv"


def imported(tmp_path, name="zoo", **options):
    written = prepkit.import_zoo("small-transformer-zoo", tmp_path / "src", tmp_path / name, **options)
    return prepkit.open_zoo(tmp_path / name), written


def write_texts(root):
    rows = []
    for run in range(2):
        samples.save(root / f"AG-News-Transformers/ag_news/run{run}_50_8000.pt", samples.weights(run, text=True))
        row = {"n_attention_heads": 4, "ckpt_epoch": 50, "ckpt_file": f"ag_news/run{run}_50_8000.pt"}
        rows.append({**row, "test_accuracy": 0.8})
    samples.save(root / "AG-News-Transformers/ag_news/embedding.pt", {"embedding.embedding.weight": torch.ones(9, 8)})
    samples.write_table(root / "AG-News-Transformers/metadata/ag_news.csv", rows)


# What is imported ---------------------------------------------------------------------------------------------


def test_networks_compute_what_the_makers_describe(tmp_path):
    states, _ = samples.write_zoo(tmp_path / "src", heads=4)
    samples.save(tmp_path / "src" / MNIST / "runx_50_1.pt", samples.weights(77, stored_places=False))
    zoo, _ = imported(tmp_path, heads=4)
    images = torch.randn(2, 1, samples.SIDE, samples.SIDE, dtype=torch.float64)
    for name, state in {**dict(list(states.items())[:2]), "runx_50_1.pt": samples.weights(77)}.items():
        with torch.no_grad():
            outputs = zoo.network(name.removesuffix(".pt").replace("_", "/")).double()(images)
        expected = samples.oracle(state, samples.embedded(state, images), heads=4, sums=False)
        torch.testing.assert_close(outputs, expected, rtol=1e-6, atol=1e-6)  # places are stored in float32


def test_names_and_table_become_columns(tmp_path):
    _, rows = samples.write_zoo(tmp_path / "src")
    zoo, written = imported(tmp_path)
    row = zoo.metadata("run1/best1/5000")
    assert (row["run"], row["checkpoint"], row["epoch"], row["accuracy"]) == ("run1", "best1", None, 0.5)
    assert (row["lr"], row["n_attention_heads"]) == (0.001, 2)
    assert not {"ckpt_file", "ckpt_epoch", "test_top1_accuracy"} & row.keys()
    assert zoo.metadata("run1/75/5000")["epoch"] == 75
    assert (written.types["lr"], written.types["accuracy"]) == ("float", "float")
    assert written.types.keys() <= row.keys()
    assert zoo.task["dataset"] == "ylecun/mnist"
    assert len(rows) == len(zoo)


def test_what_does_not_fit_is_told(tmp_path):
    _, rows = samples.write_zoo(tmp_path / "src")
    mnist = tmp_path / "src" / MNIST
    samples.save(mnist / "lost_50_7000.pt", samples.weights(50))
    (mnist / "notes.txt").write_text("x")
    rows[0]["test_top1_accuracy"] = 0.9
    rows[1]["ckpt_epoch"] = "100"
    rows[2]["ckpt_file"] = "mnist/model/mnist/" + rows[2]["ckpt_file"].removeprefix("mnist/")
    rows += [{**rows[3], "lr": 0.5}, {**rows[3], "ckpt_file": "mnist/gone_50_1.pt"}]
    samples.write_table(tmp_path / "src" / TABLE, rows)
    zoo, written = imported(tmp_path)
    notes = " ".join(written.notes)
    assert "1 file with another accuracy in mnist.csv, which is kept: run0_75_4000.pt (0.9)" in notes
    assert "1 file with another ckpt_epoch in mnist.csv; that of the name is kept: run0_best1_4000.pt (100)" in notes
    assert "1 file without a row in mnist.csv: lost_50_7000.pt" in notes
    assert "1 row of mnist.csv without a file: gone_50_1.pt" in notes
    assert "of a file that has a row before, which it replaces: run1_best1_5000.pt (line 8)" in notes
    assert "1 file is not called RUN_EPOCH_SCORE.pt, left out: notes.txt" in notes
    found = {row["id"]: (row["accuracy"], row["lr"]) for row in zoo.table.to_pylist()}
    assert found["run0/75/4000"] == (0.9, 0.001)
    assert found["run1/75/5000"] == (0.5, 0.001)  # its row has a second folder before its name
    assert found["run1/best1/5000"] == (0.5, 0.5)
    assert found["lost/50/7000"] == (0.7, None)


def test_accuracies_that_the_table_lacks_are_told(tmp_path):
    _, rows = samples.write_zoo(tmp_path / "src")
    rows[0]["test_top1_accuracy"] = rows[1]["test_top1_accuracy"] = ""
    samples.write_table(tmp_path / "src" / TABLE, rows)
    names = [row["ckpt_file"].rpartition("/")[2] for row in rows]
    found = found_by("small-transformer-zoo", tmp_path / "src", {})
    assert (
        "2 files have no number in the column test_top1_accuracy of mnist.csv; the accuracy in their names is kept: "
        f"{names[0]}, {names[1]}."
    ) in found.notes()
    assert found.told(found.ids.index(names[0].removesuffix(".pt").replace("_", "/"))).columns["accuracy"] == 0.4
    samples.write_table(tmp_path / "src" / TABLE, [{**row, "test_top1_accuracy": "n/a"} for row in rows[:1]] + rows[1:])
    assert any(
        "6 files have no number" in note for note in found_by("small-transformer-zoo", tmp_path / "src", {}).notes()
    )
    samples.write_table(tmp_path / "src" / TABLE, rows[2:])
    assert not any("no number in" in note for note in found_by("small-transformer-zoo", tmp_path / "src", {}).notes())
    for row in rows:
        del row["test_top1_accuracy"]
    samples.write_table(tmp_path / "src" / TABLE, rows)
    (note,) = (note for note in found_by("small-transformer-zoo", tmp_path / "src", {}).notes() if "no column" in note)
    assert note == (
        "mnist.csv has no column test_top1_accuracy, test_accuracy; accuracies are those of the files' names."
    )


# How networks are run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heads", "sums", "in_table"), [pytest.param(2, False, True, marks=pytest.mark.slow), (4, True, False)]
)
def test_running_decides_and_proves(tmp_path, heads, sums, in_table):
    images, labels = samples.write_pictures(tmp_path / "mnist")
    samples.write_zoo(tmp_path / "src", heads, sums, images, labels, in_table)
    _, written = imported(tmp_path, data=tmp_path / "mnist")
    name = ("" if in_table else "4 heads ") + ("with" if sums else "without") + " residual sums"
    assert any(f"Running 3 models decided for '{name}'" in note for note in written.notes)
    how = written.manifest.function.how
    assert (how.convention, how.assumed) == (name, None)
    found = prepkit.verify(tmp_path / "zoo", rerun=6, data=tmp_path / "mnist")
    assert [run.agrees for run in found.reruns] == [True] * 6
    assert found.function.status == "verified"


def test_accuracies_that_no_convention_gives_are_refused(tmp_path):
    samples.write_pictures(tmp_path / "mnist")
    samples.write_zoo(tmp_path / "src")
    with pytest.raises(ZooError, match=r"no convention gives the accuracies .* without residual sums 0\.\d+") as caught:
        imported(tmp_path, data=tmp_path / "mnist")
    assert f"'{tmp_path / 'mnist'}' holds the test images" in str(caught.value)
    assert not (tmp_path / "zoo").exists()


def test_what_nothing_proves_is_said(tmp_path):
    samples.write_zoo(tmp_path / "src", in_table=False)
    _, written = imported(tmp_path)
    function = written.manifest.function
    assert function.status == "unverified"
    assert function.how.assumed == (
        "networks are without residual sums, as in the makers' program, and with 2 heads where n_attention_heads says "
        "nothing (6 models have none)"
    )
    assert any("which nothing proves: name the folder of the pictures, data=PATH" in note for note in written.notes)
    assert "makers' program" in (tmp_path / "zoo/README.md").read_text()
    samples.write_pictures(tmp_path / "mnist")
    task = {**written.manifest.task, "dataset": "folder"}
    imported(tmp_path, "other", task=task)
    found = prepkit.verify(tmp_path / "other", rerun=6, data=tmp_path / "mnist")
    assert found.function.status == "unverified"


def test_texts_cannot_be_run_and_the_zoo_says_why(tmp_path):
    write_texts(tmp_path / "src")
    zoo, written = imported(tmp_path)
    state = samples.weights(1, text=True)
    tokens = torch.randn(2, 5, samples.WIDTH, dtype=torch.float64)
    with torch.no_grad():
        outputs = zoo.network("run1/50/8000").double()(tokens)
    torch.testing.assert_close(outputs, samples.oracle(state, tokens, heads=4, sums=False), rtol=1e-9, atol=1e-9)
    assert any("embedding.pt is left out: it is no model" in note for note in written.notes)
    function = written.manifest.function
    assert str(function).startswith("unverified: the files lack the embedding of the words")
    assert "the files lack the embedding" in (tmp_path / "zoo/README.md").read_text()
    assert zoo.task is None
    with pytest.raises(ZooError, match=r"no run can prove 'zoo': the files lack the embedding of the words"):
        prepkit.verify(tmp_path / "zoo", rerun=1)
    with pytest.raises(ZooError, match=r"data= has no use here: the files lack the embedding"):
        imported(tmp_path, "other", data=tmp_path)


# Splits and folders -------------------------------------------------------------------------------------------


def test_strict_leaves_out_a_best_model_that_is_that_of_an_epoch(tmp_path):
    states, _ = samples.write_zoo(tmp_path / "src")
    samples.save(tmp_path / "src" / MNIST / "run2_best1_6000.pt", states["run2_75_6000.pt"])
    written = imported(tmp_path, "whole")[1]
    told = "1 model has the weights of an earlier one and stays in the zoo; `splits` strict leaves such models out: "
    assert f"{told}run2/best1/6000 (as run2/75/6000)." in written.notes
    zoo, written = imported(tmp_path, splits="strict")
    assert not any("stays in the zoo" in note for note in written.notes)
    assert len(zoo) == 5
    assert any("1 model with the weights of an earlier one left out: run2/best1/6000" in n for n in written.notes)
    rows = zoo.table.to_pylist()
    assert all(len({row["split"] for row in rows if row["run"] == f"run{run}"} - {None}) == 1 for run in range(3))
    with pytest.raises(ZooError, match=r"paper cannot be: the makers' program drew the split without a seed"):
        imported(tmp_path, "other", splits="paper")


def test_a_folder_with_both_data_sets_asks_which(tmp_path):
    samples.write_zoo(tmp_path / "src", runs=1)
    write_texts(tmp_path / "src")
    with pytest.raises(ZooError, match=r"holds models in .*ag_news, .*mnist; a zoo has one task.*`dataset`"):
        imported(tmp_path)
    assert len(imported(tmp_path, dataset="ag_news")[0]) == 2
    written = prepkit.import_zoo("small-transformer-zoo", tmp_path / "src" / MNIST, tmp_path / "inner")
    assert written.manifest.table.rows == 2
    assert any("lr" in column for column in prepkit.open_zoo(tmp_path / "inner").table.column_names)


def test_archives_and_folders_without_models_are_refused(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src/MNIST-Transformers.zip").write_bytes(b"PK")
    with pytest.raises(ZooError, match=r"holds no folder mnist or ag_news .*there is MNIST-Transformers\.zip\. Unpack"):
        imported(tmp_path)
    with pytest.raises(ZooError, match=r"\.zip' is a file; unpack an archive first"):
        prepkit.import_zoo("small-transformer-zoo", tmp_path / "src/MNIST-Transformers.zip", tmp_path / "zoo")
    (tmp_path / "src" / MNIST).mkdir(parents=True)
    (tmp_path / "src" / MNIST / "run_best.pt").write_bytes(b"")
    with pytest.raises(ZooError, match=r"no file in .* is called RUN_EPOCH_SCORE\.pt.*there is run_best\.pt"):
        imported(tmp_path)
    with pytest.raises(ZooError, match=r"`dataset` is mnist or ag_news, not 'minst'\. Did you mean 'mnist'"):
        imported(tmp_path, dataset="minst")
    assert not (tmp_path / "zoo").exists()


# Bad input ----------------------------------------------------------------------------------------------------


class Runs:
    def __reduce__(self):
        return os.system, ("exit 1",)


BROKEN = {
    "shape": (
        lambda state: {**state, "encoder.1.fc2.weight": torch.zeros(8, 5)},
        ZooError,
        r"encoder\.1\.fc2\.weight is \[8, 5\]; by the other tensors it should be \[8, 12\]",
    ),
    "code": (lambda state: {**state, "x": Runs()}, UnsafeCheckpoint, r"would import and call posix\.system"),
    "nan": (
        lambda state: {**state, "classifier.fc2.bias": torch.full((3,), float("nan"))},
        CheckpointError,
        "drop_nan",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_bad_files_are_refused_by_name_and_the_same_call_goes_on(tmp_path, case):
    states, _ = samples.write_zoo(tmp_path / "src")
    spoil, error, message = BROKEN[case]
    name = "run1_75_5000.pt"
    samples.save(tmp_path / "src" / MNIST / name, spoil(states[name]))
    with pytest.raises(error, match=message) as caught:
        imported(tmp_path)
    assert name in str(caught.value)
    assert not (tmp_path / "zoo/zoo.json").exists()
    samples.save(tmp_path / "src" / MNIST / name, states[name])
    assert len(imported(tmp_path)[0]) == 6


def test_a_table_that_disagrees_with_the_tensors_is_refused(tmp_path):
    _, rows = samples.write_zoo(tmp_path / "src")
    rows[3]["n_layers"] = 5
    samples.write_table(tmp_path / "src" / TABLE, rows)
    with pytest.raises(
        ZooError, match=r"run1_best1_5000\.pt' and .*mnist\.csv, line 5, disagree: n_layers is 5 in the table, and 2 by"
    ):
        imported(tmp_path)
    rows[3]["n_layers"] = 2
    samples.write_table(tmp_path / "src" / TABLE, [{"file": "x"}])
    shutil.rmtree(tmp_path / "zoo")
    with pytest.raises(ZooError, match=r"mnist\.csv: no column ckpt_file, which names the models; there are file"):
        imported(tmp_path)
    samples.write_table(tmp_path / "src" / TABLE, [{**rows[0], "ckpt_file": "mnist/other.pt"}])
    with pytest.raises(ZooError, match=r"names none of 6 models; it has other\.pt"):
        imported(tmp_path)
    samples.write_table(tmp_path / "src" / TABLE, rows)
    with pytest.raises(ZooError, match=r"3 attention heads do not divide its width of 8"):
        imported(tmp_path, heads=3)


def test_the_command(tmp_path):
    samples.write_zoo(tmp_path / "src")
    arguments = ["zoo", "import", "small-transformer-zoo", tmp_path / "src", tmp_path / "zoo", "--heads", 2]
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, (result.output, result.exception)
    assert json.loads(result.stdout)["function"]["how_to_run"]["convention"] == "without residual sums"
    shutil.rmtree(tmp_path / "zoo")
    result = CliRunner().invoke(main, [*map(str, arguments), "--data", str(tmp_path / "none")])
    assert result.exit_code == 2
    assert "none' is no folder with a copy of 'ylecun/mnist'" in result.stderr
