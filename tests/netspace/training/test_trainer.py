"""Training as a whole: every recipe trains, an instance is learnt, and the folder explains itself."""

import json
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from short_trainings import recipe_of
from small_zoos import SMALL, digits_zoo

import netspace
import prepkit
from netspace.cli import main
from netspace.run.card import write_card
from prepkit.errors import DeviceError
from prepkit.support.device import own_device

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", list(SMALL))
def test_every_embedded_recipe_trains_end_to_end(tmp_path, small_zoo, name):
    run = netspace.train(recipe_of(name, 3), small_zoo(name), tmp_path / "run", device="cpu")
    last, validation = run.metrics()
    assert last["step"] == validation["step"] == 3
    assert last["loss"] > 0
    assert validation["best"]
    space = netspace.load(tmp_path / "run")
    zoo = run.open_zoo()
    preps = zoo.split("train").preps()
    with torch.inference_mode():
        again = space.decode(space.encode(preps))
    assert again.shape == preps.shape
    assert not space.training
    # The weights are plain safetensors of NetSpace's own names.
    (file,) = (tmp_path / "run" / "checkpoints").glob("best-*.safetensors")
    assert set(safetensors.torch.load_file(file)) == set(space.state_dict())
    assert list((tmp_path / "run" / "tensorboard").iterdir())


@pytest.mark.parametrize(("steps", "points"), [(180, 0.15), pytest.param(400, 0.05, marks=pytest.mark.slow)])
def test_one_prep_of_one_architecture_is_learnt(tmp_path, steps, points):
    """The predicted instance reaches the accuracy of its target, which was trained well."""
    torch.manual_seed(0)
    network = prepkit.architecture("resnet8@digits").build()
    task = prepkit.load_task(
        {"kind": "images", "dataset": "digits", "split": {"seed": 0, "test": 60, "validation": 40}}
    )
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for epoch in range(3):
        for batch in task.batches([0], [0], epoch, 64):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(network(batch.inputs[0]), batch.targets[0]).backward()
            optimiser.step()
    registry = prepkit.Registry([prepkit.architecture("resnet8@digits")])
    with prepkit.ZooWriter(tmp_path / "zoo", width=128, registry=registry, task=task.record) as writer:
        for split in ("train", "validation"):
            writer.add(network.eval(), split=split)
    changes = {"batch.instances": 1, "batch.samples": 64, "training.precision": "float32"}
    recipe = recipe_of("digits_single", steps, **{"training.validate_every": 20, **changes})
    run = netspace.train(recipe, tmp_path / "zoo", tmp_path / "run", device="cpu")
    scores = run.facts("best")["scores"]
    assert scores["target_accuracy"] > 0.85
    assert scores["predicted_accuracy"] > scores["target_accuracy"] - points
    losses = [line["loss"] for line in run.metrics() if "loss" in line]
    assert losses[-1] < losses[0] / 5


def test_a_column_item_of_the_user_s_means_nothing_to_images(tmp_path):
    counts = {"resnet8@digits": {"train": 2, "validation": 1}}
    path = digits_zoo(tmp_path / "zoo", counts, teacher=False, single=True, columns={"item": "mine"})
    run = netspace.train(recipe_of("digits_single", 1), path, tmp_path / "run", device="cpu")
    assert run.facts("best")["step"] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has mallopt")
def test_only_the_command_line_changes_the_process_s_allocator(tmp_path, small_zoo, mallopt_calls):
    name = "digits_single"
    netspace.train(recipe_of(name, 1), small_zoo(name), tmp_path / "called", device="cpu")
    assert mallopt_calls == []
    options = ["--device", "cpu", "--steps", "1", "--set", "batch.instances=2", "--set", "batch.samples=16"]
    command = ["train", name, "--zoo", str(small_zoo(name)), "--out", str(tmp_path / "commanded"), *options]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert len(mallopt_calls) == 2


def test_each_process_takes_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name in ("auto", "cuda"):  # torch.cuda.set_device wants a number
        assert own_device(name) == torch.device("cuda", 0)
    assert own_device("cuda:1") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    for name in ("auto", "cuda"):
        assert own_device(name) == torch.device("cuda", 1)
    assert own_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(DeviceError, match=r"process 2 .* no GPU of its own, torch sees 2; use --nproc-per-node 2"):
        own_device("auto")


def test_the_folder_explains_itself(tmp_path, small_zoo):
    name = "digits_single"
    run = netspace.train(recipe_of(name, 1), small_zoo(name), tmp_path / "run", device="cpu")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["recipe"] == json.loads(json.dumps(run.recipe.to_dict()))
    assert record["zoo"]["sha256"] == prepkit.open_zoo(small_zoo(name)).manifest.to_dict()["sha256"]
    train = prepkit.open_zoo(small_zoo(name)).split("train")
    assert record["zoo"]["splits"]["train"] == train.sha256
    assert record["versions"]["torch"] == torch.__version__
    assert run.registry.class_ids == {"resnet8@digits": 0}
    assert Path(record["zoo"]["path"]) == small_zoo(name)
    readme = tmp_path / "run" / "README.md"
    text = readme.read_text()
    best = run.facts("best")
    for expected in (
        f"best after step {best['step']}",
        "| 0 | resnet8@digits | 5,058 |",
        record["zoo"]["sha256"],
        "netspace.load(",
    ):
        assert expected in text
    assert f"| score | {best['scores']['score']:.4f} |" in text
    assert write_card(run) == readme
    readme.write_text("my own words")
    assert write_card(run) is None
    assert readme.read_text() == "my own words"
