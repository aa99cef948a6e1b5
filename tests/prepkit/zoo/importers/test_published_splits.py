"""`--splits paper` of SIRENs and `--splits strict` of any tree, against splits that are computed here."""

import hashlib
import json

import pytest
import torch
from click.testing import CliRunner

import prepkit
from prepkit.cli import main
from prepkit.errors import CheckpointError, ZooError
from prepkit.zoo.format.manifest import read_manifest

MNIST = "mnist_png_{split}_{label}_{index}/checkpoints/model_final.pth"
TREE = "{run}/net_{epoch:int}.pt"


def siren(value, names=("seq.0", "seq.1", "seq.2")):
    tensors = {}
    for name, shape in zip(names, [(8, 2), (8, 8), (1, 8)], strict=True):
        tensors[f"{name}.weight"] = torch.full(shape, float(value))
        tensors[f"{name}.bias"] = torch.zeros(shape[0])
    return tensors


def save(file, tensors):
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, file)


def mnist(root, training=24, testing=3):
    """Write models as DWSNets does, and return their paths below the folder, training first."""
    places = [("training", number) for number in range(training)] + [("testing", number) for number in range(testing)]
    paths = [MNIST.format(split=split, label=number % 10, index=number) for split, number in places]
    for number, path in enumerate(paths):
        save(root / "inrs" / path, siren(number))
    return paths


def imported(root, kind="siren", **options):
    return prepkit.import_zoo(kind, root / "inrs", root / "zoo", **options)


def split_of(root):
    return {row["id"]: row["split"] for row in prepkit.open_zoo(root / "zoo").table.to_pylist()}


def write(file, splits):
    file.write_text(json.dumps(splits))
    return file


def with_labels(paths):
    """A list of paths with labels, as `mnist_splits.json` has them: text."""
    return {"path": [f"/home/someone/mnist-inrs/{path}" for path in paths], "label": [p.split("_")[3] for p in paths]}


def test_a_file_of_splits_is_followed_wherever_its_paths_begin(tmp_path):
    paths = mnist(tmp_path)
    parts = {"train": paths[2:24], "val": paths[:2], "test": paths[24:]}
    file = write(tmp_path / "mnist_splits.json", {name: with_labels(part) for name, part in parts.items()})
    written = imported(tmp_path, splits="paper", split_file=file)
    names = {"train": "train", "val": "validation", "test": "test"}
    expected = {}
    for name, part in parts.items():
        for path in part:
            _, _, split, label, index = path.split("/")[0].split("_")
            expected[f"{split}/{label}/{index}"] = names[name]
    assert split_of(tmp_path) == expected
    assert read_manifest(tmp_path / "zoo").splits == {"test": 3, "train": 22, "validation": 2}
    options = read_manifest(tmp_path / "zoo").provenance["options"]
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert (options["splits"], options["split_file"]) == ("paper", {"name": "mnist_splits.json", "sha256": sha256})
    assert written.notes[1:2] == (f"The splits are those of '{file}'.",)
    assert not any("row" in note for note in written.notes)


def test_rows_that_are_missing_or_doubled_are_told(tmp_path):
    paths = mnist(tmp_path, training=4)
    absent = MNIST.format(split="training", label=9, index=99)
    file = write(tmp_path / "s.json", {"train": [*paths[1:4], paths[1], absent], "test": paths[4:]})
    notes = imported(tmp_path, splits="paper", split_file=file).notes
    assert f"1 row of s.json names no model here: {absent}." in notes
    assert f"1 model has no row in s.json, and so no split: {paths[0]}." in notes
    assert f"1 row stands in s.json again, with the same split: {paths[1]}." in notes
    assert split_of(tmp_path)["training/0/0"] is None


@pytest.mark.parametrize(
    ("splits", "match"),
    [
        ({"train": [0], "test": [0, 1]}, "is in train and in test; take it out of one of them"),
        ({"train": [MNIST.format(split="training", label=9, index=99)]}, "names none of 4 models.*another zoo"),
        ({"train": {"path": [0, 1], "label": ["0"]}}, r"s.json, train: its lists have different lengths \(path 2, lab"),
        ({"train": {"path": [0], "label": ["7"]}}, r"s.json: has label 7 for '.*', whose path has label 0\. Is it the"),
        ({"train": {"label": ["0"]}}, "s.json, train: holds no list of paths"),
        ({"train": 5}, "s.json, train: holds no list of paths"),
        ([], "s.json: holds no splits such as"),
        ('{"train": [], "train": []}', "the key 'train' stands twice"),
        ('{"train": ["', "s.json: not a whole JSON file of splits"),
    ],
)
def test_a_wrong_file_of_splits_is_refused(tmp_path, splits, match):
    paths = mnist(tmp_path, training=2, testing=2)

    def filled(value):
        if isinstance(value, dict):
            return {key: filled(each) for key, each in value.items()}
        return [paths[each] if isinstance(each, int) else each for each in value] if isinstance(value, list) else value

    file = tmp_path / "s.json"
    file.write_text(splits if isinstance(splits, str) else json.dumps(filled(splits)))
    with pytest.raises(ZooError, match=match):
        imported(tmp_path, splits="paper", split_file=file)
    assert not (tmp_path / "zoo").exists()


def test_the_validation_that_dwsnets_drew_without_a_seed_is_chosen_by_hash_and_told(tmp_path):
    mnist(tmp_path)
    notes = imported(tmp_path, splits="paper").notes
    found = split_of(tmp_path)
    trained = sorted(
        (id for id in found if id.startswith("training")), key=lambda id: hashlib.sha256(id.encode()).digest()
    )
    assert {id for id, split in found.items() if split == "validation"} == set(trained[:2])  # a twelfth of 24
    assert {id for id, split in found.items() if split == "test"} == {f"testing/{n}/{n}" for n in range(3)}
    assert any("without a seed, so nobody can draw them again: here 2 models of 24" in note for note in notes)


def test_nfn_splits_by_the_number_of_the_picture(tmp_path):
    expected = {44_999: "train", 45_000: "validation", 49_999: "validation", 50_000: "test", 7: "train"}
    for prefix in ("randinit", "randinit_aug0"):
        for number in expected:
            save(tmp_path / f"inrs/{prefix}_3s/net{number}.pth", siren(number))
    imported(tmp_path, splits="paper")
    assert split_of(tmp_path) == {f"{p}/3/{n}": s for n, s in expected.items() for p in ("randinit", "randinit_aug0")}


def test_fashion_mnist_needs_the_file_that_comes_with_it(tmp_path):
    for split in ("train", "test"):
        for number in range(2):
            save(tmp_path / f"inrs/{split}/model_{number}.pth", siren(number))
    with pytest.raises(ZooError, match=r"is in the file splits\.json that comes with them.*Name it, `split_file`"):
        imported(tmp_path, splits="paper")
    write(tmp_path / "inrs/splits.json", {"train": ["x/train/model_1.pth"], "val": ["x/train/model_0.pth"], "test": []})
    imported(tmp_path, splits="paper")
    assert split_of(tmp_path) == {"train/1": "train", "train/0": "validation", "test/0": None, "test/1": None}


def test_splits_that_nobody_published_are_refused(tmp_path):
    save(tmp_path / "inrs/ckpts/00/000001_0000042.ckpt", {"image_idx": 1, "params": siren(1)})
    with pytest.raises(ZooError, match="no split of this layout was published"):
        imported(tmp_path, splits="paper")
    with pytest.raises(ZooError, match=r"`splits` is paper or strict, not 'papers'.*paper"):
        imported(tmp_path, splits="papers")
    with pytest.raises(ZooError, match="`split_file` goes with `splits` paper"):
        imported(tmp_path, split_file="s.json")
    arguments = ["zoo", "import", "siren", tmp_path / "inrs", tmp_path / "zoo", "--split-file", "s.json"]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert (result.exit_code, "--split-file goes with --splits paper" in result.stderr) == (2, True)


# strict -------------------------------------------------------------------------------------------------------


def runs(root, count=20):
    """Write two models each of some runs; run r5 has the weights of r4."""
    for number in range(count):
        for epoch in range(2):
            value = 100 * (4 if number == 5 else number) + epoch
            save(root / f"inrs/r{number}/net_{epoch}.pt", {"a.weight": torch.full((2, 2), float(value))})


def strictly(names):
    """Splits of runs, computed anew: half for testing, four tenths for training, one tenth for validation."""
    ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    parts = ["test"] * 10 + ["train"] * 8 + ["validation"] * 2
    return dict(zip(ordered, parts, strict=True))


def test_strict_leaves_copies_out_and_keeps_runs_together(tmp_path):
    runs(tmp_path)
    notes = imported(tmp_path, "tree", pattern=TREE, splits="strict").notes
    by_run = strictly(f"r{number}" for number in range(20))
    expected = {f"{run}/{epoch}": split for run, split in by_run.items() for epoch in range(2) if run != "r5"}
    assert split_of(tmp_path) == expected
    assert "2 models with the weights of an earlier one left out: r5/0, r5/1." in notes


def test_strict_goes_on_after_an_interruption_and_still_knows_copies(tmp_path):
    runs(tmp_path)
    broken = tmp_path / "inrs/r5/net_0.pt"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:50])
    with pytest.raises(CheckpointError):
        imported(tmp_path, "tree", pattern=TREE, splits="strict")
    broken.write_bytes(whole)
    notes = imported(tmp_path, "tree", pattern=TREE, splits="strict").notes
    assert "2 models with the weights of an earlier one left out: r5/0, r5/1." in notes
    assert len(split_of(tmp_path)) == 38
    (tmp_path / "zoo/README.md").unlink()  # as if it had been killed before the card
    assert imported(tmp_path, "tree", pattern=TREE, splits="strict").manifest.table.rows == 38
    assert (tmp_path / "zoo/README.md").exists()


def test_strict_needs_runs_and_keeps_the_split_that_it_replaces(tmp_path):
    for number, split in enumerate(("a", "b")):
        save(tmp_path / f"inrs/{split}/run{number}/net.pt", {"a.weight": torch.full((2, 2), float(number))})
    with pytest.raises(ZooError, match=r"nothing tells its run.*\{run\}.*there is name"):
        imported(tmp_path, "tree", pattern="{split}/{name}/net.pt", splits="strict")
    imported(tmp_path, "tree", pattern="{split}/{run}/net.pt", splits="strict")
    rows = prepkit.open_zoo(tmp_path / "zoo").table.to_pylist()
    assert {row["run"]: row["split.original"] for row in rows} == {"run0": "a", "run1": "b"}


def test_models_of_a_picture_are_in_the_same_split(tmp_path):
    for number in range(10):
        for seed in (41, 42):
            file = tmp_path / f"inrs/ckpts/00/{number:06}_{seed}.ckpt"
            save(file, {"image_idx": number, "params": siren(number + seed / 100)})
    imported(tmp_path, splits="strict")
    found = split_of(tmp_path)
    assert all(found[f"0/{number}/41"] == found[f"0/{number}/42"] for number in range(10))
    assert sorted(found.values()) == ["test"] * 10 + ["train"] * 8 + ["validation"] * 2
