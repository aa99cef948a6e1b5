"""NetSpace runs on the Hub: pushed as a model repository and loaded from it, with the real client."""

import json

import pytest
import torch

netspace = pytest.importorskip("netspace")

import prepkit  # noqa: E402
from netspace.checkpoint import Run, RunError, State  # noqa: E402
from netspace.config import load_recipe  # noqa: E402
from netspace.data import ZooMismatch  # noqa: E402
from netspace.hub import push_run  # noqa: E402
from prepkit.errors import HubError  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(tmp_path):
    """A run of an untrained space, with a best and a latest state."""
    registry = prepkit.Registry([prepkit.architecture("resnet8@digits")])
    with prepkit.ZooWriter(tmp_path / "zoo", width=128, height=40, registry=registry, license="mit") as writer:
        writer.add(prepkit.architecture("resnet8@digits").build(), split="train")
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
