"""A user's folder of images: a class a subfolder, decoded once, whatever its path."""

import shutil
from contextlib import redirect_stderr

import numpy as np
import pytest
import torch
from contract import TaskContract
from fake_terminal import Terminal
from PIL import Image

from prepkit.errors import ZooError
from prepkit.support.progress import show_progress
from prepkit.tasks import load_task
from prepkit.tasks._image_record import split_indices
from prepkit.tasks._image_set import scaled
from prepkit.tasks.task import DataMissing

NAMES = ("rose", "tulip", "violet")
RECORD = {
    "kind": "images",
    "dataset": "folder",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4],
    "split": {"seed": 3, "test": 6, "validation": 5},
}


def pixels_of(label, number, channels=3):
    shape = (6, 9, 3) if channels == 3 else (6, 9)
    return np.random.default_rng(100 * label + number).integers(256, size=shape, dtype=np.uint8)


def write(root, count=12, channels=3, names=NAMES):
    for label, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(pixels_of(label, number, channels)).save(root / name / f"{number:03d}.png")
    return root


class TestFolder(TaskContract):
    batch_size = 7

    @pytest.fixture
    def record(self):
        return {**RECORD, "augmentation": {"crop_padding": 1, "horizontal_flip": True}}

    @pytest.fixture
    def data(self, tmp_path):
        return write(tmp_path / "flowers")

    def plain_evaluation(self, task, k, outputs_of, split):
        chosen = split_indices(36, 3, 6, 5)[split].tolist()
        mean, std = np.array(RECORD["mean"]), np.array(RECORD["std"])
        hits, loss = 0, 0.0
        for index in chosen:
            label, number = divmod(index, 12)
            pixels = torch.from_numpy((pixels_of(label, number) / 255 - mean) / std).permute(2, 0, 1)
            logits = outputs_of(pixels[None])[0].numpy()
            hits += logits.argmax() == label
            loss += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[label]
        return hits / len(chosen), loss / len(chosen)


def error(root, **change):
    with pytest.raises(ZooError) as caught:
        load_task({**RECORD, **change}, root)
    return str(caught.value)


def test_the_record_tells_names_and_counts_but_not_the_path(tmp_path):
    task = load_task(RECORD, write(tmp_path / "here"))
    assert task.record["class_names"] == list(NAMES)
    assert task.record["classes"] == task.num_outputs == 3
    assert task.record["input_shape"] == [3, 6, 9]
    assert task.splits == {"train": 25, "validation": 5, "test": 6}
    assert str(tmp_path) not in str(task.record)
    moved = shutil.move(tmp_path / "here", tmp_path / "there")
    assert load_task(task.record, moved).record == task.record
    Image.fromarray(pixels_of(0, 99)).save(moved / "rose" / "000.png")
    assert "sha256" in error(moved, sha256=task.record["sha256"])


def test_parts_are_folders(tmp_path):
    write(tmp_path / "train")
    write(tmp_path / "val", 4, names=NAMES[1:])
    split = {"seed": 0, "test": "val", "validation": 6}
    task = load_task({**RECORD, "split": split}, tmp_path)
    assert task.splits == {"train": 30, "validation": 6, "test": 8}
    inputs, labels = task.normalised("test")
    assert labels.tolist() == [1] * 4 + [2] * 4  # numbered by the classes of train
    expected = (pixels_of(0, 0).transpose(2, 0, 1) / 255 - np.array(RECORD["mean"])[:, None, None]) / np.array(
        RECORD["std"]
    )[:, None, None]
    np.testing.assert_allclose(inputs[0].numpy(), expected, rtol=1e-5, atol=1e-5)
    told = error(tmp_path, split={**split, "test": "vel"})
    assert f"'{tmp_path}' has no part 'vel'; it has train, val. Did you mean 'val'?" in told
    write(tmp_path / "val" / "x", names=("tulips",))
    shutil.move(tmp_path / "val" / "x" / "tulips", tmp_path / "val" / "tulips")
    shutil.rmtree(tmp_path / "val" / "x")
    told = error(tmp_path, split=split)
    assert "is a class that the training images do not have. Did you mean 'tulip'?" in told


def test_gray_images_have_one_channel_and_become_coloured_beside_coloured_ones(tmp_path):
    plain = {"kind": "images", "dataset": "folder", "split": {"seed": 0, "test": 3}}
    root = write(tmp_path / "gray", channels=1)
    assert load_task(plain, root).input_shape == (1, 6, 9)
    Image.fromarray(pixels_of(0, 0)).save(root / "rose" / "000.png")
    mixed = load_task({**plain, "split": {"seed": 0, "test": 35}}, root)
    assert mixed.input_shape == (3, 6, 9)
    inputs, _ = mixed.normalised("test")
    gray = (inputs == inputs[:, :1]).flatten(1).all(1)
    assert gray.sum() >= 34
    write(tmp_path / "parts" / "train", channels=1)
    write(tmp_path / "parts" / "test", channels=3)
    parts = load_task({**plain, "split": {"seed": 0, "test": "test"}}, tmp_path / "parts")
    assert parts.input_shape == (3, 6, 9)
    inputs, _ = parts.normalised("train")
    assert torch.equal(inputs[:, 0], inputs[:, 2])


@pytest.mark.parametrize("mode", ["1", "LA", "P", "RGBA", "CMYK"])
def test_pictures_of_other_modes_are_converted(tmp_path, mode):
    root = write(tmp_path / "flowers", 2)
    suffix = "jpg" if mode == "CMYK" else "png"
    original = Image.fromarray(pixels_of(0, 0)).convert(mode)
    (root / "rose" / "000.png").unlink()
    original.save(root / "rose" / f"000.{suffix}")
    with Image.open(root / "rose" / f"000.{suffix}") as saved:
        assert saved.mode == mode
        expected = np.asarray(saved.convert("RGB"))
    task = load_task({**RECORD, "split": {"seed": 0, "test": 6}, "mean": [0, 0, 0], "std": [1, 1, 1]}, root)
    inputs, labels = task.normalised("test")
    assert len(labels) == 6
    np.testing.assert_array_equal((inputs[0] * 255).round().permute(1, 2, 0).byte().numpy(), expected)


def test_what_is_wrong_with_a_folder_is_told_with_its_place(tmp_path):
    with pytest.raises(DataMissing, match=r"data=PATH"):
        load_task(RECORD)
    assert "is no folder of images" in error(tmp_path / "none")
    root = write(tmp_path / "flowers")
    told = error(root, split={"seed": 0, "test": "test"})
    assert "has no folder 'train'" in told
    assert "give numbers of images" in told
    (root / "empty").mkdir()
    assert f"'{root / 'empty'}' has no images (.png" in error(root)
    (root / "empty" / "notes.txt").write_text("no image")
    assert "has no images" in error(root)
    shutil.rmtree(root / "empty")
    Image.fromarray(np.zeros((9, 6, 3), np.uint8)).save(root / "tulip" / "003.png")
    assert f"'{root / 'tulip' / '003.png'}' is 6 x 9 pixels, the first image is 9 x 6" in error(root)
    (root / "tulip" / "003.png").write_bytes(b"no image")
    assert f"'{root / 'tulip' / '003.png'}' is no image that can be read" in error(root)
    Image.fromarray(np.zeros((6, 9), np.uint16)).save(root / "tulip" / "003.png")
    assert "pixels of mode I;16; convert them to 8 bits" in error(root)
    good = (root / "tulip" / "004.png").read_bytes()
    (root / "tulip" / "003.png").write_bytes(good[: len(good) // 2])
    assert "is no image that can be read" in error(root)
    assert "no subfolders; a class is a subfolder" in error(root / "rose")


def test_parts_of_different_sizes_are_an_error(tmp_path):
    write(tmp_path / "train")
    (tmp_path / "test" / "rose").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "test" / "rose" / "0.png")
    told = error(tmp_path, split={"seed": 0, "test": "test"})
    assert "the parts are not: train 9 x 6, test 8 x 8" in told


def test_hidden_files_and_notes_are_passed_over(tmp_path):
    root = write(tmp_path / "flowers")
    before = load_task(RECORD, root).record
    (root / ".cache").mkdir()
    (root / "README.txt").write_text("flowers")
    (root / "rose" / "Thumbs.db").write_bytes(b"x")
    (root / "rose" / "._000.png").write_bytes(b"x")
    assert load_task(RECORD, root).record == before


@pytest.mark.parametrize("shown", [True, False])
def test_a_terminal_shows_how_far_decoding_is_unless_progress_is_hidden(tmp_path, shown):
    before = show_progress.set(shown)
    try:
        with redirect_stderr(Terminal()) as drawn:
            load_task(RECORD, write(tmp_path / f"{shown}"))
    finally:
        show_progress.reset(before)
    assert ("decoding" in drawn.getvalue()) is shown


def test_images_are_scaled_to_a_size(tmp_path):
    """PyTorch's own scaling judges; both round, so that one level may differ."""
    data = write(tmp_path / "flowers")
    task = load_task({**RECORD, "mean": None, "std": None, "size": 4}, data)
    assert task.input_shape == (3, 4, 4)
    whole = load_task({**RECORD, "mean": None, "std": None}, data)
    expected = torch.nn.functional.interpolate(whole.normalised("test")[0], (4, 4), mode="bilinear", antialias=True)
    assert (task.normalised("test")[0] - expected).abs().max() <= 1.01 / 255
    assert task.record["sha256"] != whole.record["sha256"]
    pixels = (whole.normalised("test")[0] * 255).round().byte().numpy()  # as those of files that torchvision downloads
    assert torch.equal(torch.from_numpy(scaled(pixels, 4)), (task.normalised("test")[0] * 255).round().byte())
    with pytest.raises(ZooError, match=r"task.*size"):
        load_task({"kind": "images", "dataset": "digits", "split": {"seed": 0, "test": 9}, "size": 4})
