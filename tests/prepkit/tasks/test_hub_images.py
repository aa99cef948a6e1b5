"""Image sets of the Hub: read from a snapshot as `hf download` leaves it, without a network, and decoded once."""

import io
import os
import sys

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from contract import TaskContract
from PIL import Image

from prepkit.errors import ZooError
from prepkit.support.cache import cache_folder
from prepkit.tasks import _hub_images as hub_images
from prepkit.tasks import load_task
from prepkit.tasks._image_record import split_indices
from prepkit.tasks.task import DataMissing

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAMES = ["cat", "dog", "owl"]
RECORD = {
    "kind": "images",
    "dataset": "someone/animals",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4],
    "split": {"seed": 0, "test": "test", "validation": 10},
    "augmentation": {"crop_padding": 2, "horizontal_flip": True},
}


def pixels(count, seed, size=(6, 8), channels=3):
    shape = (count, *size, 3) if channels == 3 else (count, *size)
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def labels_of(count):
    return [number % 3 for number in range(count)]


def write_parts(folder, parts, features=None, columns=("img", "label")):
    """Parquet files as sets on the Hub have them: `parts` gives images by part."""
    features = features or {columns[0]: datasets.Image(), columns[1]: datasets.ClassLabel(names=NAMES)}
    (folder / "data").mkdir(parents=True)
    for name, images in parts.items():
        encoded = [{"bytes": png(image), "path": None} for image in images]
        rows = {columns[0]: encoded} | {key: labels_of(len(images)) for key in features if key != columns[0]}
        table = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
        table.to_parquet(str(folder / "data" / f"{name}-00000-of-00001.parquet"))
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the Hub and one of ours; no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("PREPKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "hub"


def snapshot(hub, parts, commit=COMMIT, name="someone/animals", **settings):
    """What `hf download` leaves: a folder a commit, and the commit that the main branch stands for."""
    repository = hub / f"datasets--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    return write_parts(repository / "snapshots" / commit, parts, **settings)


@pytest.fixture
def animals(hub):
    return snapshot(hub, {"train": pixels(40, 1), "test": pixels(9, 2)})


def error(**change):
    with pytest.raises(ZooError) as caught:
        load_task({**RECORD, **change})
    return str(caught.value)


class TestHub(TaskContract):
    batch_size = 8

    @pytest.fixture
    def record(self, animals):
        return RECORD

    def plain_evaluation(self, task, k, outputs_of, split):
        if split == "test":
            images, labels = pixels(9, 2), labels_of(9)
        else:
            chosen = split_indices(40, 0, 0, 10)[split]
            images, labels = pixels(40, 1)[chosen], np.array(labels_of(40))[chosen]
        inputs = torch.from_numpy((images / 255 - np.array(RECORD["mean"])) / np.array(RECORD["std"]))
        logits = outputs_of(inputs.permute(0, 3, 1, 2)).numpy()
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        correct = shares[np.arange(len(labels)), labels]
        return (logits.argmax(1) == labels).mean(), -np.log(correct).mean()


def test_the_record_resolves_the_commit_and_what_the_data_are(animals):
    task = load_task(RECORD)
    assert task.record["revision"] == COMMIT
    assert task.record["class_names"] == NAMES
    assert task.splits == {"train": 30, "validation": 10, "test": 9}
    assert task.input_shape == (3, 6, 8)
    assert load_task({**RECORD, "revision": "main"}).record == task.record


def test_images_are_decoded_once(animals, monkeypatch):
    first = load_task(RECORD)

    def fail(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(hub_images, "decode_all", fail)
    assert load_task(RECORD).record == first.record
    with pytest.raises(AssertionError, match="decoded again"):  # other parts are not in the cache
        load_task({**RECORD, "split": {"seed": 0, "test": 5}})
    (kept,) = (cache_folder() / "images").iterdir()
    for damage in (kept.read_bytes()[:-9], b"", flipped(kept.read_bytes())):
        kept.write_bytes(damage)
        with pytest.raises(AssertionError, match="decoded again"):
            load_task(RECORD)


def flipped(content):
    return content[:-40] + bytes([content[-40] ^ 1]) + content[-39:]


def test_a_pinned_commit_needs_neither_network_nor_snapshot_once_decoded(animals, hub):
    task = load_task(RECORD)
    record, expected = task.record, task.normalised("test")
    hub.rename(hub.with_name("elsewhere"))
    again = load_task(record)
    assert again.record == record
    assert all(torch.equal(a, b) for a, b in zip(again.normalised("test"), expected, strict=True))


def test_a_cache_that_cannot_be_written_is_no_obstacle(animals, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PREPKIT_CACHE", str(tmp_path / "file"))
    assert load_task(RECORD).splits["train"] == 30


def test_images_are_kept_in_the_home_of_the_hub(animals, monkeypatch, tmp_path):
    monkeypatch.delenv("PREPKIT_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    load_task(RECORD)
    (kept,) = (tmp_path / "home" / "prepkit" / "images").iterdir()
    assert kept.suffix == ".safetensors"


def test_a_later_commit_is_another_set(animals, hub):
    first = load_task(RECORD)
    other = "f" * 40
    snapshot(hub, {"train": pixels(40, 5), "test": pixels(9, 2)}, commit=other)
    later = load_task(RECORD)
    assert later.record["revision"] == other
    assert later.record["sha256"] != first.record["sha256"]
    assert load_task(first.record).record == first.record
    assert "are not those of the record" in error(revision=other, sha256=first.record["sha256"])


def test_a_local_copy_of_the_repository_is_read_where_it_lies(tmp_path, hub):
    folder = write_parts(tmp_path / "copy", {"train": pixels(40, 1), "test": pixels(9, 2)})
    task = load_task(RECORD, folder)
    assert "revision" not in task.record
    assert task.splits["test"] == 9
    snapshot(hub, {"train": pixels(40, 1), "test": pixels(9, 2)})
    assert load_task(RECORD).record["sha256"] == task.record["sha256"]
    with pytest.raises(ZooError, match="is no folder with a copy of 'someone/animals'"):
        load_task(RECORD, tmp_path / "none")


# Columns, parts, sizes ----------------------------------------------------------------------------------------


def test_several_label_columns_must_be_chosen_from(hub):
    features = {
        "img": datasets.Image(),
        "fine_label": datasets.ClassLabel(names=NAMES),
        "coarse_label": datasets.ClassLabel(names=["a", "b", "c", "d"]),
    }
    snapshot(hub, {"train": pixels(40, 1), "test": pixels(9, 2)}, features=features)
    told = error()
    assert "several columns of labels: fine_label, coarse_label" in told
    assert 'columns = {label = "fine_label"}' in told
    assert load_task({**RECORD, "columns": {"label": "coarse_label"}}).num_outputs == 4
    assert "there is no column 'fine'" in error(columns={"label": "fine"})
    assert "Did you mean 'fine_label'?" in error(columns={"label": "fine"})
    assert "'img' is no column of labels" in error(columns={"label": "img"})


def test_labels_may_be_whole_numbers_without_names(hub):
    features = {"picture": datasets.Image(), "y": datasets.Value("int64")}
    parts = {"train": pixels(40, 1, channels=1), "test": pixels(9, 2, channels=1)}
    snapshot(hub, parts, features=features, columns=("picture", "y"))
    task = load_task({**RECORD, "mean": [0.5], "std": [0.5]})
    assert task.input_shape == (1, 6, 8)
    assert task.num_outputs == 3
    assert "class_names" not in task.record
    assert task.normalised("test")[1].tolist() == labels_of(9)


def test_what_a_set_does_not_have_is_told(animals, hub):
    told = error(split={"seed": 0, "test": "tests"})
    assert "task, split: 'someone/animals' has no part 'tests'; it has " in told
    assert "Did you mean 'test'?" in told
    assert "images are more than the 40 of the data set" in error(split={"seed": 0, "test": "test", "validation": 41})
    assert "task, config: 'someone/animals' cannot be read: BuilderConfig 'large'" in error(config="large")
    features = {"img": datasets.Image(), "b": datasets.Value("float32")}
    snapshot(hub, {"train": pixels(40, 1), "test": pixels(9, 2)}, "1" * 40, features=features)
    assert "the data set has no column of labels; its columns are: img, b." in error()


def test_images_of_different_sizes_are_an_error_that_names_one(hub):
    images = [*pixels(5, 1), *pixels(1, 1, (8, 8)), *pixels(20, 1)]
    snapshot(hub, {"train": images, "test": pixels(9, 2)})
    assert "train, image 5 is 8 x 8 pixels, the first image is 8 x 6; scale them first" in error()


def test_withheld_labels_are_an_error(hub, monkeypatch):
    features = {"img": datasets.Image(), "label": datasets.Value("int64")}
    monkeypatch.setitem(globals(), "labels_of", lambda count: [-1] * count if count == 9 else [0, 1] * (count // 2))
    snapshot(hub, {"train": pixels(40, 1), "test": pixels(9, 2)}, features=features)
    assert "part 'test' has labels -1 to -1, but there are 2 classes. Its labels are withheld" in error()


def test_missing_labels_are_an_error(hub, monkeypatch):
    monkeypatch.setitem(globals(), "labels_of", lambda count: [None, *[0] * (count - 1)])
    snapshot(hub, {"train": pixels(40, 1), "test": pixels(9, 2)})
    assert "part 'train' has 1 image without a label" in error()


def test_the_splits_of_the_paper_are_a_part_of_the_set_and_numbers(hub):
    """Tiny-ImageNet in small: test is the set's own validation part, validation is drawn from its training part."""
    snapshot(hub, {"train": pixels(100, 1, (4, 4)), "valid": pixels(10, 2, (4, 4))}, name="zh-plus/tiny-imagenet")
    task = load_task(
        {**RECORD, "dataset": "zh-plus/tiny-imagenet", "split": {"seed": 0, "test": "valid", "validation": 20}}
    )
    assert task.splits == {"train": 80, "validation": 20, "test": 10}
    drawn = [task.to("cpu", torch.float64).normalised(name)[0] for name in ("train", "validation")]
    mean, std = np.array(RECORD["mean"]), np.array(RECORD["std"])
    everything = torch.from_numpy((pixels(100, 1, (4, 4)) / 255 - mean) / std).permute(0, 3, 1, 2).flatten(1)
    together = torch.cat(drawn).flatten(1)
    distances = torch.cdist(together, everything)
    assert sorted(distances.argmin(1).tolist()) == list(range(100))
    assert distances.min(1).values.max() < 1e-5


# Nothing at hand ----------------------------------------------------------------------------------------------


def missing(**change):
    with pytest.raises(DataMissing) as caught:
        load_task({**RECORD, **change})
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_offline_and_not_at_hand_gives_the_command(hub):
    told = missing()
    assert told == (
        "'someone/animals' is not at hand and this machine is offline; "
        "with a network: hf download someone/animals --repo-type dataset"
    )
    assert missing(revision=COMMIT).endswith(f"hf download someone/animals --repo-type dataset --revision {COMMIT}")
    assert missing(revision="v2").endswith("--revision v2")


def test_the_datasets_own_switch_for_offline_counts(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    asked = []
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: asked.append("the Hub"))
    assert "this machine is offline" in missing()
    assert asked == []


def test_a_hub_that_cannot_be_reached_falls_back_on_the_snapshot(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Unreachable)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", only_local(huggingface_hub.snapshot_download))
    assert "the Hub cannot be reached" in missing()
    snapshot(hub, {"train": pixels(40, 1), "test": pixels(9, 2)})
    assert load_task(RECORD).record["revision"] == COMMIT


def only_local(snapshot_download):
    """As if no server answered: what is on the disk is found, anything else fails as a lost connection does."""
    return lambda *arguments, **settings: snapshot_download(*arguments, **{**settings, "local_files_only": True})


class Unreachable:
    def dataset_info(self, *_, **__):
        raise OSError("no route to host")


@pytest.mark.parametrize("module", ["datasets", "PIL"])
def test_a_missing_library_gives_the_command(animals, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)  # what Python does for a module that is not there
    assert missing().endswith("pip install 'prepkit[train]'.")


def test_digits_without_scikit_learn_give_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    told = missing(dataset="digits", mean=[0], std=[1], split={"seed": 0, "test": 9})
    assert told == "the digits come with scikit-learn, which is missing; pip install 'prepkit[train]'."


def test_another_process_without_network_finds_what_was_downloaded(animals, hub, forked_python):
    """With the real switches of the environment, and warnings as errors."""
    code = "import warnings; warnings.simplefilter('error')\n"
    code += f"from prepkit.tasks import load_task; print(load_task({RECORD!r}).record['sha256'])"
    environment = {**os.environ, "HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}
    for _ in range(2):
        done = forked_python.run("-c", code, env=environment)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert done.stdout.strip() == load_task(RECORD).record["sha256"]
