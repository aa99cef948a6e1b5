"""A training that aligns: hidden units in another order change neither it nor what its space makes of instances."""

import shutil
import warnings
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from hand_written_units import permutation, permute
from small_zoos import SMALL, digits_zoo

import netspace
import prepkit
from netspace.alignment import AlignmentError
from netspace.data import Data
from netspace.experiments._subject import predict_split
from netspace.explore.embedding import embeddings
from netspace.explore.interpolation import weights_between
from netspace.recipe import load_recipe
from netspace.run.card import card_text
from netspace.run.hub import run_bundle
from netspace.run.run import RunError, check_free
from netspace.training import _validation
from netspace.training._aligning import align_data
from netspace.training._validation import Validation
from prepkit.errors import CopiesDiffer
from prepkit.support.processes import Ranks
from prepkit.support.progress import Progress
from prepkit.symmetry.aligning import Scrambled

pytestmark = pytest.mark.usefixtures("one_thread")
ONE = {"resnet8@digits": {"train": 3, "validation": 2, "test": 2}}
TWO = {"lenet_like@digits": {"train": 2, "validation": 1}, "resnet14@digits": {"train": 2, "validation": 1}}


def two_zoos(root, name, counts):
    """A zoo, and the same networks with hidden units in another order, but for the first ones of each architecture."""
    shape = {"single": True, "teacher": False} if name == "digits_single" else {"height": 88}
    digits_zoo(root / "zoo", counts, **shape)
    zoo = prepkit.open_zoo(root / "zoo")
    stream, registry = torch.Generator().manual_seed(0), zoo.registry
    settings = {"width": zoo.shape.width, "height": zoo.shape.height, "task": dict(zoo.task), "registry": registry}
    with prepkit.ZooWriter(root / "scrambled", **settings) as writer:
        for row in range(len(zoo)):
            facts, prep = zoo.metadata(row), zoo.preps([row])
            architecture = registry[facts["architecture"]]
            if not facts["id"].endswith("train-0"):
                prep = permute(prep, permutation(architecture, stream))
            tensors = architecture.layout.unpack(prep[0])
            writer.add(tensors, architecture=architecture, id=facts["id"], split=facts["split"])
        if zoo.teacher is not None:
            writer.set_teacher(zoo.teacher)
    return root / "zoo", root / "scrambled"


def trained(zoo, out, name, steps=2, **options):
    changes = {"align": True, "training.steps": steps, "training.validate_every": 1, "training.precision": "float32"}
    recipe = load_recipe(name, {**SMALL[name], **changes, "network.initialisation": "from_centroid"})
    return netspace.train(recipe, zoo, out, device="cpu", **options)


@pytest.fixture(scope="module", params=["digits_single", pytest.param("digits_multi", marks=pytest.mark.slow)])
def pair(request, tmp_path_factory):
    """Two zoos that differ in the order of units, and the runs that were trained on them."""
    name, root = request.param, tmp_path_factory.mktemp(request.param)
    zoos = two_zoos(root, name, ONE if name == "digits_single" else TWO)
    return zoos, [trained(zoo, root / f"run-{zoo.name}", name) for zoo in zoos]


def test_the_order_of_units_changes_neither_training_nor_embeddings(pair):
    zoos, runs = pair
    first, second = (
        [{key: value for key, value in line.items() if key != "instances_per_second"} for line in run.metrics()]
        for run in runs
    )
    assert first == second
    own, other = (run.state("latest").tensors for run in runs)
    assert all(torch.equal(value, other[key]) for key, value in own.items())

    # The run knows its references: what it makes of the scrambled networks is what it makes of the others.
    run = runs[0]
    views = [prepkit.open_zoo(zoo, width=128, height=run.recipe.network.height) for zoo in zoos]
    assert not torch.equal(views[0].preps(), views[1].preps())
    latents = [embeddings(netspace.embed(run, view)) for view in views]
    assert torch.equal(*latents)
    assert latents[0].std(0).max() > 0
    space = netspace.load(run.path)
    names = views[1].table["architecture"].to_pylist()
    with torch.no_grad():
        assert torch.equal(space.encode(views[1].preps(), names), space.encode(views[0].preps(), names))
        unaligned = [space.encoder(view.preps()) for view in views]
    assert (unaligned[0] - unaligned[1]).abs().max() > 1e-3
    predicted = [predict_split(space, run.registry, view) for view in views]
    assert torch.equal(predicted[0].preps, predicted[1].preps)
    assert torch.equal(predicted[0].predictions.preps, predicted[1].predictions.preps)
    if len(run.registry) == 1:
        ends = [[f"resnet8@digits-{split}-1"] for split in ("train", "test")]
        lines = [netspace.interpolate(run, view, *ends, steps=3, space=space) for view in views]
        assert lines[0].table.equals(lines[1].table)
        halves = [
            weights_between(space, view, line.first, line.second, [(0, 1)], line.gammas, torch.device("cpu"))[1]
            for view, line in zip(views, lines, strict=True)
        ]
        assert torch.equal(*halves)
        rows = [views[0].index(f"resnet8@digits-{split}-1") for split in ("train", "test")]
        torch.testing.assert_close(halves[0][0], predicted[0].preps[rows].mean(0))
    else:
        with pytest.raises(AlignmentError, match=r"name them: space\.encode\(preps, zoo\.table"):
            space.encode(views[0].preps())


def test_validation_sees_aligned_instances(pair, monkeypatch):
    zoos, (run, _) = pair
    seen = []
    monkeypatch.setattr(
        _validation, "evaluate", lambda *_, preps, **__: seen.append(preps) or SimpleNamespace(summary=dict, column=len)
    )
    for zoo in zoos:
        opened = prepkit.open_zoo(zoo, width=128, height=run.recipe.network.height)
        data = Data(run.recipe, opened, torch.device("cpu"))
        align_data(data, run.alignment, Ranks(), Progress())
        validation = Validation(run.recipe, opened, data, run.alignment)
        seen += validation.pictures(run.space())[:1]
        with suppress(TypeError, KeyError):  # what is made of the evaluation is not asked for here
            validation(run.space())
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert torch.equal(seen[0], seen[1][0])


def test_the_references_are_kept_and_gone_on_with(tmp_path, pair):
    (zoo, _), (run, _) = pair
    if len(run.registry) > 1:
        pytest.skip("one architecture says all")
    out = shutil.copytree(run.path, tmp_path / "run")
    alignment = run.alignment
    (reference,) = alignment.references.values()
    train = prepkit.open_zoo(zoo, width=128, height=40).split("train")
    aligned = alignment(train.preps()).flatten(1)[:, : len(reference)].double()
    torch.testing.assert_close(reference.double(), aligned.mean(0), rtol=0, atol=1e-6)  # of training instances alone
    assert run.record["alignment"]["scrambled"] == {"resnet8@digits": {"copies": 3, "returned": 3}}
    assert "3 of 3 of resnet8@digits came back" in card_text(run)
    for upload in run_bundle(run, "user/space", "mit").files:  # what is pushed encodes as the run does
        (tmp_path / "pushed" / upload.path).parent.mkdir(parents=True, exist_ok=True)
        content = upload.content if isinstance(upload.content, bytes) else upload.content.read_bytes()
        (tmp_path / "pushed" / upload.path).write_bytes(content)
    pushed = netspace.load(tmp_path / "pushed")
    with torch.no_grad():
        assert torch.equal(pushed.encode(train.preps()), run.space().encode(train.preps()))
        assert not torch.equal(pushed.encode(train.preps()), pushed.encoder(train.preps()))
    kept = (out / "references.safetensors").read_bytes()
    trained(zoo, out, "digits_single", steps=3, resume=True)
    assert (out / "references.safetensors").read_bytes() == kept
    with pytest.raises(AlignmentError, match=r"no reference of lenet_like@digits, .* those of resnet8@digits"):
        run.space().encode(train.preps(), "lenet_like@digits")
    with pytest.raises(AlignmentError, match="2 architectures for 3 PReps"):
        run.space().encode(train.preps(), ["resnet8@digits"] * 2)
    with pytest.raises(AlignmentError, match="no gradient goes through an alignment"):
        run.space().encode(train.preps().requires_grad_())
    (out / "references.safetensors").write_bytes(kept[:-4])
    for use in (lambda: netspace.load(out), lambda: trained(zoo, out, "digits_single", steps=4, resume=True)):
        with pytest.raises(RunError, match=r"references\.safetensors: missing or damaged, it does not match"):
            use()


def test_copies_that_do_not_come_back_are_told_of(pair, monkeypatch):
    (zoo, _), (run, _) = pair
    if len(run.registry) > 1:
        pytest.skip("one architecture says all")
    train = prepkit.open_zoo(zoo).split("train")
    data = SimpleNamespace(train=train, preps_NHW=train.preps(), registry=run.registry)
    monkeypatch.setattr("netspace.alignment.scrambled_copies", lambda *_: Scrambled(3, 1))
    with pytest.warns(CopiesDiffer, match=r"did not all come back .* \(2 of 3 of resnet8@digits did not"):
        assert align_data(data, None, Ranks(), Progress()).copies["resnet8@digits"] == Scrambled(3, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CopiesDiffer)
        align_data(data, run.alignment, Ranks(), Progress())  # it was said when the run began


def test_a_run_that_was_killed_before_its_record_is_begun_anew(tmp_path):
    out, other = tmp_path / "run", tmp_path / "other"
    (out / "checkpoints").mkdir(parents=True)
    (out / "references.safetensors").write_bytes(b"half")
    check_free(out)
    (other / "figures").mkdir(parents=True)
    (other / "figures" / "mine.png").write_bytes(b"mine")
    with pytest.raises(RunError, match="is there and no run"):
        check_free(other)
