"""Tests of the proof by running: an imported zoo says `function: unverified` until `verify --rerun` ran instances."""

import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import prepkit
from prepkit.cli import main
from prepkit.errors import OutputError, ZooError
from prepkit.families.registry import Architecture, architecture
from prepkit.tasks import test_set
from prepkit.tasks.task import DataMissing
from prepkit.zoo.change.merge import merge
from prepkit.zoo.change.splitting import split
from prepkit.zoo.format.function import Function, Verified
from prepkit.zoo.format.manifest import MANIFEST, checksum, read_manifest
from prepkit.zoo.write.writer import ZooWriter

TASK = {"kind": "images", "dataset": "digits", "mean": [0.3], "std": [0.4], "split": {"seed": 0, "test": 360}}
GRAY = Architecture("sine@gray", "sine_mlp", (2,), "prepkit.families.sine_mlp:SineMLP", {"sizes": [2, 8, 1]})
SHADES = (0.25, 0.5, 0.75)


def command(*arguments, status=0):
    result = CliRunner().invoke(main, ["zoo", *map(str, arguments)])
    assert result.exit_code == status, (result.output, result.exception)
    return result.stdout


@pytest.fixture
def imported(tmp_path):
    """A zoo of two classifiers that was imported, with accuracies that were computed here."""
    inputs, labels = test_set(TASK)
    rows = []
    for number in range(2):
        torch.manual_seed(number)
        network = architecture("lenet_like@digits").build().eval()
        folder = tmp_path / "runs" / f"run_{number}"
        folder.mkdir(parents=True)
        torch.save(network.state_dict(), folder / "model.pt")
        with torch.no_grad():
            right = (network(inputs).argmax(-1) == labels).double().mean().item()
        rows.append({"run": f"run_{number}", "accuracy": right})
    table = tmp_path / "runs.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return prepkit.import_zoo(
        "tree", tmp_path / "runs", tmp_path / "zoo", pattern="{run}/model.pt", table=table, task=TASK
    ).path


def test_an_imported_zoo_is_unverified_until_instances_ran(imported):
    assert "function unverified" in command("info", imported)
    assert json.loads(command("info", imported, "--json"))["function"]["status"] == "unverified"
    assert "`function: unverified`" in (imported / "README.md").read_text()
    assert "function unverified" in command("verify", imported)  # which runs nothing

    text = command("verify", imported, "--rerun", 2)
    assert "2 of 2 instances have the accuracy that is stored" in text
    assert "function verified: accuracy of 2 instances, largest difference" in text
    assert "function verified: accuracy of 2 instances" in command("info", imported)
    document = json.loads(command("info", imported, "--json"))["function"]
    assert document["status"] == "verified"
    assert document["verified"]["instances"] == 2
    assert document["verified"]["largest_difference"] < 1e-6
    assert "`function: verified`: running instances found what is stored" in (imported / "README.md").read_text()
    assert prepkit.verify(imported).ok
    split(imported)  # what else changes the zoo keeps it
    assert "function verified" in command("info", imported)


def test_a_run_that_disagrees_takes_the_proof_back(tmp_path):
    network = architecture("lenet_like@digits").build()
    with ZooWriter(tmp_path / "zoo", task=TASK) as writer:
        writer.function = Function({"activation": "leaky_relu"}, Verified("accuracy", 1, 0.0))
        writer.add(network, accuracy=2.0)
    text = command("verify", tmp_path / "zoo", "--rerun", 1, status=1)
    assert "function unverified" in text
    assert read_manifest(tmp_path / "zoo").function == Function({"activation": "leaky_relu"})


def test_zoos_that_were_not_imported_say_nothing_and_keep_their_bytes(tmp_path):
    with ZooWriter(tmp_path / "zoo", task=TASK) as writer:
        writer.add(architecture("lenet_like@digits").build(), accuracy=2.0)
    assert "function" not in json.loads((tmp_path / "zoo" / MANIFEST).read_bytes())
    before = (tmp_path / "zoo" / MANIFEST).read_bytes()
    assert "function" not in command("info", tmp_path / "zoo")
    assert "function" not in command("verify", tmp_path / "zoo", "--rerun", 1, status=1)
    assert (tmp_path / "zoo" / MANIFEST).read_bytes() == before


def test_a_zoo_that_cannot_be_written_is_told(imported, monkeypatch):
    def refuse(*_, **__):
        raise OutputError("the disk is read-only.")

    monkeypatch.setattr("prepkit.zoo.change.verify.write_manifest", refuse)
    found = prepkit.verify(imported, rerun=1)
    assert found.ok
    assert "The zoo cannot keep that its function is verified: the disk is read-only." in found.notes
    assert found.function.status == "unverified"


def edited(root, change):
    data = json.loads((root / MANIFEST).read_bytes())
    change(data["function"])
    data["sha256"] = checksum(data)
    (root / MANIFEST).write_text(json.dumps(data))


def test_keys_that_are_unknown_stay_and_wrong_ones_are_told(imported):
    edited(imported, lambda function: function.update(how_to_run={"w0": 30.0, "colour": "blue"}))
    prepkit.verify(imported, rerun=1)
    function = read_manifest(imported).function
    assert function.how_to_run == {"w0": 30.0, "colour": "blue"}
    assert (function.how.w0, function.status) == (30.0, "verified")
    edited(imported, lambda function: function["how_to_run"].update(grid="yx"))
    with pytest.raises(ZooError, match=r"zoo\.json, function\.how_to_run\.grid: expected one of xy, ij; found 'yx'"):
        read_manifest(imported)


def test_a_merged_zoo_is_unverified(imported, tmp_path):
    prepkit.verify(imported, rerun=1)
    other = tmp_path / "other"
    with ZooWriter(other, name="other", task=read_manifest(imported).task) as writer:
        writer.function = Function({"w0": 1.0})
        writer.add(architecture("lenet_like@digits").build(), id="else")
    both = merge(tmp_path / "both", [imported, other])
    assert both.manifest.function == Function()
    assert any("say differently how their instances are run" in note for note in both.notes)
    edited(other, lambda function: function.update(how_to_run=None))
    assert merge(tmp_path / "same", [imported, other]).manifest.function == Function()


# Pictures -----------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path):
    """Random gray pictures, 5 pixels high and 7 wide."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(len(SHADES)):
        Image.fromarray(generator.integers(256, size=(5, 7), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def gray_zoo(root, pictures, wrong=0.0, **how):
    """A zoo whose networks draw one shade each, so that their PSNR is known without running them."""
    with ZooWriter(root) as writer:
        writer.function = Function({"measure": "psnr", **how})
        for number, shade in enumerate(SHADES):
            network = GRAY.build()
            torch.nn.init.zeros_(network.linear.weight)
            torch.nn.init.constant_(network.linear.bias, shade)
            pixels = np.asarray(Image.open(pictures / f"{number}.png")) / 255
            psnr = -10 * math.log10(((pixels - shade) ** 2).mean())
            writer.add(network, architecture=GRAY, picture=f"{number}.png", psnr=psnr + (wrong if number else 0))
    return root


def test_pictures_are_compared_by_psnr(tmp_path, pictures):
    root = gray_zoo(tmp_path / "zoo", pictures)
    text = command("verify", root, "--rerun", 3, "--data", pictures)
    assert "3 of 3 instances have the psnr that is stored" in text
    assert "function verified: psnr of 3 instances, largest difference" in text
    assert read_manifest(root).function.verified.largest_difference < 1e-5


def test_a_wrong_psnr_is_a_disagreement(tmp_path, pictures):
    root = gray_zoo(tmp_path / "zoo", pictures, wrong=0.2)
    found = prepkit.verify(root, rerun=3, data=pictures)
    assert [run.agrees for run in found.reruns] == [True, False, False]
    assert read_manifest(root).function.status == "unverified"
    assert prepkit.verify(gray_zoo(tmp_path / "rough", pictures, wrong=0.2, tolerance=0.3), rerun=3, data=pictures).ok


def test_pixels_are_outputs_times_std_plus_mean(tmp_path, pictures):
    root = gray_zoo(tmp_path / "zoo", pictures, mean=[0.5], std=[0.5])
    found = prepkit.verify(root, rerun=3, data=pictures).reruns
    pixels = np.asarray(Image.open(pictures / "1.png")) / 255
    assert found[1].found == pytest.approx(-10 * math.log10(((pixels - 0.75) ** 2).mean()), abs=1e-4)


def test_a_rerun_of_pictures_says_what_it_lacks(tmp_path, pictures):
    root = gray_zoo(tmp_path / "zoo", pictures)
    with pytest.raises(DataMissing, match="data=PATH"):
        prepkit.verify(root, rerun=1)
    (pictures / "0.png").unlink()
    with pytest.raises(ZooError, match=r"instance '000000' .* has no picture '0\.png'"):
        prepkit.verify(root, rerun=1, data=pictures)
    Image.new("RGB", (2, 2)).save(pictures / "0.png")
    with pytest.raises(ZooError, match="1 outputs for each pixel, the picture 3 channels"):
        prepkit.verify(root, rerun=1, data=pictures)
