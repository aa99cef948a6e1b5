"""`prepkit zoo align`: the same functions, ids and columns, with hidden units in the order of a reference."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import zoo_samples
from click.testing import CliRunner

import prepkit
from prepkit.cli import main
from prepkit.errors import OutputError, SymmetryError, ZooError
from prepkit.symmetry.aligning import Aligner, Scrambled
from prepkit.zoo.change import _alignment
from prepkit.zoo.change.aligning import align, num_steps
from prepkit.zoo.change.normalising import normalise
from prepkit.zoo.write.writer import ZooWriter

pytestmark = pytest.mark.usefixtures("one_thread")


def scrambled_zoo(root, name="resnet8@digits", orbits=2, copies=3, **settings):
    """Write `copies` copies of each of a few networks, in random orders of units; those of orbit 0 are for training."""
    architecture = prepkit.architecture(name)
    aligner = Aligner.of(name)
    with ZooWriter(root, width=64, shard_bytes=60_000, **settings) as writer:
        for orbit in range(orbits):
            prep = zoo_prep(architecture, orbit)
            moved = aligner.scrambled(prep.repeat(copies, 1, 1), torch.Generator().manual_seed(orbit))
            ids = [f"{name.partition('@')[0]}-{orbit}-{copy}" for copy in range(copies)]
            split = [["train", "test"][orbit % 2]] * copies
            writer.add_stack(moved, architecture=architecture, ids=ids, split=split, run=[orbit] * copies)
    return root


def zoo_prep(architecture, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = architecture.build_folded()
    return architecture.layout.pack(network.state_dict(), architecture.layout.shape(64))


def outputs(zoo, inputs):
    return torch.stack([zoo.network(row).double()(inputs) for row in range(len(zoo))])


@pytest.mark.parametrize(
    ("name", "to_centroid"),
    [
        ("resnet8@digits", True),
        pytest.param("resnet8@digits", False, marks=pytest.mark.slow),
        ("sine_mlp@sdf_small", False),
        pytest.param("sine_mlp@sdf_small", True, marks=pytest.mark.slow),
    ],
)
def test_copies_of_a_network_become_one_and_all_else_stays(name, to_centroid, tmp_path):
    source = scrambled_zoo(tmp_path / "zoo", name, license="mit")
    result = align(source, tmp_path / "new", to_centroid=to_centroid, card=False)
    old, new = prepkit.open_zoo(source), prepkit.open_zoo(tmp_path / "new")
    assert old.preps()[0].ne(old.preps()[1]).double().mean() > 0.5
    torch.testing.assert_close(new.preps()[1:3], new.preps()[:1].expand(2, -1, -1), rtol=0, atol=1e-6)
    torch.testing.assert_close(new.preps()[4:], new.preps()[3:4].expand(2, -1, -1), rtol=0, atol=1e-6)
    inputs = prepkit.architecture(name).example_input(3).double()
    torch.testing.assert_close(outputs(new, inputs), outputs(old, inputs), rtol=1e-5, atol=1e-5)
    assert new.table.equals(old.table)
    (one,) = result.architectures
    assert (one.copies, one.returned, one.farther) == (4, 4, 0)
    assert one.distance_after < one.distance_before
    preps = [each.preps().double().flatten(1) for each in (old, new)]
    for own, spread in zip(preps, (one.spread_before, one.spread_after), strict=True):
        assert spread == pytest.approx(float((own - own.mean(0)).square().sum(1).mean().sqrt()), rel=1e-6)
    origin = new.manifest.provenance["aligned"]
    assert origin["references"] == {name: "centroid of 3 instances" if to_centroid else old.metadata(0)["id"]}
    assert origin["sha256"] == old.manifest.to_dict()["sha256"]
    assert new.manifest.license == "mit"
    again = align(tmp_path / "new", tmp_path / "again", card=False)
    if not to_centroid and name == "resnet8@digits":
        assert torch.equal(prepkit.open_zoo(tmp_path / "again").preps(), new.preps())
        assert again.architectures[0].distance_before == again.architectures[0].distance_after


def test_each_architecture_has_its_own_reference_and_accuracies_are_those_of_mean_weights(tmp_path):
    source = zoo_samples.write_zoo(tmp_path / "zoo", 6, teacher="resnet8@digits")
    normalise(source)
    steps = []
    result = align(source, tmp_path / "new", references=["m4"], progress=steps.append)
    assert sum(steps) == 6 == num_steps(prepkit.open_zoo(source).manifest, False)
    old, new = prepkit.open_zoo(source), prepkit.open_zoo(tmp_path / "new")
    assert new.preprocessing is None
    assert "the preprocessing was left out" in result.written.notes[-1]
    assert [one.reference for one in result.architectures] == ["m4", "m1"]
    assert torch.equal(new.preps()[[1, 4]], old.preps()[[1, 4]])  # references stay as they are
    lenet = result.architectures[0]
    task = prepkit.load_task(old.task)
    for zoo, accuracy in ((old, lenet.halfway.before), (new, lenet.halfway.after)):
        preps = zoo.preps([0, 2, 4])[:, : old.layout(0).shape(512).height]
        means = (preps[:-1] + preps[1:]) / 2
        found = task.evaluate(lambda x, m=means: prepkit.run_instances("lenet_like@digits", m, x), [0, 0], "test")
        assert accuracy == pytest.approx(float(found["accuracy"].mean()), abs=1e-9)
    assert prepkit.verify(tmp_path / "new").ok
    assert new.teacher is not None


def test_batch_norms_that_were_kept_stay(tmp_path):
    with ZooWriter(tmp_path / "zoo") as writer:
        for seed in range(3):
            writer.add(zoo_samples.network("resnet8@digits", seed), id=f"m{seed}", keep_batch_norm=True)
    align(tmp_path / "zoo", tmp_path / "new", card=False)
    inputs = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    old, new = (prepkit.open_zoo(tmp_path / each) for each in ("zoo", "new"))
    assert not torch.equal(old.preps(), new.preps())
    torch.testing.assert_close(outputs(new, inputs), outputs(old, inputs), rtol=1e-9, atol=1e-9)


def test_what_cannot_be_aligned_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    source = zoo_samples.write_zoo(tmp_path / "zoo", 4, tensors=1)
    target = tmp_path / "new"
    for settings, text in (
        ({}, "knows only the tensors of .*, not its network"),
        ({"references": ["m9"]}, "the reference 'm9' is not an id of the zoo's 5 instances"),
        ({"references": ["m0", "m2"]}, "'m0' and 'm2' are both of lenet_like@digits"),
        ({"references": ["m0"], "to_centroid": True}, "not both"),
    ):
        with pytest.raises(ZooError, match=text):
            align(source, target, **settings)
    whole = zoo_samples.write_zoo(tmp_path / "whole", 4)
    with pytest.raises(OutputError, match="exists already"):
        align(whole, source)
    monkeypatch.setattr(_alignment, "ROUNDING", -1.0)
    with pytest.raises(prepkit.VerificationError, match="compute something else"):
        align(whole, target)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(SymmetryError, match=r"prepkit\[train\]"):
        align(whole, target)
    network = zoo_samples.network("lenet_like@digits", 0)
    torch.nn.init.constant_(network.linear.bias, float("nan"))
    with ZooWriter(tmp_path / "broken") as writer:
        writer.add(zoo_samples.network("lenet_like@digits", 1), id="good")
        with monkeypatch.context() as patch:
            patch.setattr("prepkit.zoo.write._instance_rows.check_finite", lambda *args, **settings: None)
            writer.add(network, id="bad")
    monkeypatch.undo()
    with pytest.raises(ZooError, match=r"NaN or infinity in 1 instance, .* `prepkit zoo cut`"):
        align(tmp_path / "broken", target)
    monkeypatch.setattr(_alignment, "some_of", lambda rows: rows[:1])  # the others are first read to be written
    with pytest.raises(ZooError, match=r"shards/.*: there is NaN or infinity in 1 instance"):
        align(tmp_path / "broken", target)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["broken", "whole", "zoo"]


def test_copies_that_do_not_come_back_are_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr("prepkit.zoo.change.aligning.try_copies", lambda *settings: Scrambled(4, 3))
    result = align(scrambled_zoo(tmp_path / "zoo"), tmp_path / "new", card=False)
    assert "did not all come back (1 of 4 of resnet8@digits did not)" in result.written.notes[0]


def test_the_command_prints_what_it_did(tmp_path):
    source = scrambled_zoo(tmp_path / "zoo")
    done = CliRunner().invoke(main, ["zoo", "align", str(source), str(tmp_path / "new"), "--centroid"])
    assert done.exit_code == 0, done.output
    assert "4 of 4" in done.output
    assert "accuracy half-way between weights is not known: the zoo names no task" in done.output
    again = ["zoo", "align", str(source), str(tmp_path / "other"), "--reference", "resnet8-1-0", "--json"]
    done = CliRunner().invoke(main, again)
    (one,) = json.loads(done.stdout)["aligned"]
    assert one["reference"] == "resnet8-1-0"
    assert one["distance_after"] < one["distance_before"]
    done = CliRunner().invoke(main, [*again[:-1], "--centroid"])
    assert done.exit_code == 2
    assert "not both" in done.output


@pytest.mark.slow
def test_a_killed_alignment_leaves_nothing_and_the_same_command_begins_anew(tmp_path):
    source = scrambled_zoo(tmp_path / "zoo", copies=60)
    command = [sys.executable, "-m", "prepkit", "zoo", "align", str(source), str(tmp_path / "new")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob(".prepkit-*.tmp")):
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "new").exists()
    subprocess.run(command, check=True, capture_output=True)
    assert not list(tmp_path.glob(".prepkit-*"))
    assert prepkit.verify(tmp_path / "new").ok
