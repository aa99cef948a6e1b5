"""NetSpace runs on the Hub: pushed as a model repository and loaded from it, with the real client."""

import hashlib
import json

import fsspec
import pytest
import torch
from click.testing import CliRunner

netspace = pytest.importorskip("netspace")

import prepkit  # noqa: E402
from netspace.cli import main  # noqa: E402
from netspace.data import ZooMismatch  # noqa: E402
from netspace.recipe import load_recipe  # noqa: E402
from netspace.run.card import card_text  # noqa: E402
from netspace.run.hub import push_run  # noqa: E402
from netspace.run.run import Run, RunError, State  # noqa: E402
from prepkit.errors import HubError  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(tmp_path):
    """A run of an untrained space, with a best and a latest state."""
    registry = prepkit.Registry([prepkit.architecture("resnet8@digits")])
    about = {"license": "mit", "provenance": {"options": {"splits": "paper"}}}
    with prepkit.ZooWriter(tmp_path / "zoo", width=128, height=40, registry=registry, **about) as writer:
        writer.add(prepkit.architecture("resnet8@digits").build(), split="train", id="only")
    recipe = load_recipe("digits_single")
    begun = Run.create(tmp_path / "run", recipe, prepkit.open_zoo(tmp_path / "zoo"), tmp_path / "zoo")
    weights = begun.new_space().state_dict()
    begun.save("best", State(7, weights, {"scores": {"score": -0.5}}))
    begun.save("latest", State(9, {f"network.{name}": value for name, value in weights.items()}, {"best": -0.5}))
    return begun


def test_what_was_pushed_is_loaded(hub, run, tmp_path):
    done = push_run(run, "me/space")
    assert {file.path for file in done.files} == {
        "run.json",
        "README.md",
        "checkpoints/best.json",
        "checkpoints/best-00000007.safetensors",
    }
    space = netspace.load("hf://me/space")
    expected = run.space().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in space.state_dict().items())
    fetched = netspace.open_run(f"hf://me/space@{done.commit}")
    assert fetched.recipe == run.recipe
    assert str(tmp_path) not in (fetched.path / "run.json").read_text()
    card = (fetched.path / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\nlibrary_name: prepkit\n")
    assert 'netspace.load("hf://me/space")' in card
    with pytest.raises(ZooMismatch, match="does not say where its zoo"):
        fetched.open_zoo()
    assert len(fetched.open_zoo(tmp_path / "zoo")) == 1
    assert push_run(run, "me/space").new_bytes == 0
    assert "--resume" not in card
    assert "latest.json" not in card
    assert "tensorboard" not in card


def test_a_run_records_which_splits_it_was_trained_on(run):
    zoo = json.loads((run.path / "run.json").read_text())["zoo"]
    assert (zoo["splits"], zoo["split_rule"]) == ({"train": hashlib.sha256(b"only\n").hexdigest()}, "paper")
    assert f"sha256 `{zoo['sha256']}`, splits paper. " in card_text(run)


def test_commands_take_runs_and_zoos_of_the_hub(hub, run, tmp_path):
    push_run(run, "me/space")
    prepkit.push(tmp_path / "zoo", "me/zoo")
    table = tmp_path / "table.csv"
    done = CliRunner().invoke(main, ["embed", "hf://me/space", "hf://me/zoo", "-o", str(table), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert len(table.read_text().splitlines()) == 2
    done = CliRunner().invoke(main, ["evaluate", "hf://me/space", "--device", "cpu"])
    assert done.exit_code == 2
    assert "does not say where its zoo" in done.stderr
    done = CliRunner().invoke(main, ["evaluate", "hf://me/space", "--zoo", "hf://me/zoo", "--split", "train"])
    assert "does not record its task" in done.stderr  # so the zoo was found and is the right one
    record = json.loads((run.path / "run.json").read_text())
    record["zoo"]["path"] = "hf://me/zoo"
    (run.path / "run.json").write_text(json.dumps(record))
    done = CliRunner().invoke(main, ["evaluate", str(run.path), "--split", "train", "--device", "cpu"])
    assert "does not record its task" in done.stderr


def test_commands_take_zoos_in_other_stores_too(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PREPKIT_CACHE", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    files.put(str(tmp_path / "zoo"), "/run-zoos/zoo", recursive=True)
    address = "memory://run-zoos/zoo"
    try:
        table = tmp_path / "table.csv"
        done = CliRunner().invoke(main, ["embed", str(run.path), address, "-o", str(table), "--device", "cpu"])
        assert done.exit_code == 0, done.output
        assert len(table.read_text().splitlines()) == 2
        done = CliRunner().invoke(main, ["evaluate", str(run.path), "--zoo", address, "--split", "train"])
        assert "does not record its task" in done.stderr  # so the zoo was found and is the right one
        record = json.loads((run.path / "run.json").read_text())
        record["zoo"]["path"] = address
        (run.path / "run.json").write_text(json.dumps(record))
        done = CliRunner().invoke(main, ["evaluate", str(run.path), "--split", "train", "--device", "cpu"])
        assert "does not record its task" in done.stderr
    finally:
        files.rm("/run-zoos", recursive=True)
    done = CliRunner().invoke(main, ["evaluate", str(run.path), "--zoo", "s3://bucket/zoo?key=secret"])
    assert (done.exit_code, "write it without '?' and '#'" in done.stderr, "secret" in done.stderr) == (2, True, False)
    done = CliRunner().invoke(main, ["evaluate", "s3://bucket/run"])
    assert (done.exit_code, "'s3://bucket/run' cannot be read here: this takes hf://user/name" in done.stderr) == (
        2,
        True,
    )


def test_what_cannot_be_pushed_or_loaded(hub, run, tmp_path):
    with pytest.raises(HubError, match="me/nothing"):
        netspace.load("hf://me/nothing")
    record = json.loads((run.path / "run.json").read_text())
    record["zoo"]["license"] = None
    (run.path / "run.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match="has a licence; give one"):
        push_run(Run(run.path), "me/space")
    assert push_run(Run(run.path), "me/space", license="cc-by-4.0", dry_run=True).created
    (file,) = (run.path / "checkpoints").glob("best-*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(RunError, match="does not match the sha256"):
        push_run(run, "me/space", license="mit")


def test_the_command_pushes_a_run(hub, run):
    planned = CliRunner().invoke(main, ["push", str(run.path), "me/space", "--dry-run"])
    assert planned.exit_code == 0, planned.output
    assert "would send to a new repository me/space: 4 files" in planned.stdout
    assert not hub.exists("me/space", repo_type="model")
    done = CliRunner().invoke(main, ["push", str(run.path), "me/space", "--json"])
    document = json.loads(done.stdout)
    assert document["run"] == str(run.path)
    assert document["commit"] == hub.head("me/space", repo_type="model")
    assert document["new_bytes"] == sum(file["bytes"] for file in document["files"])
