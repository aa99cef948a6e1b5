"""normalise: means and deviations by numpy, there and back, kept with the zoo, and refused where they differ."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from zoo_samples import write_zoo

from prepkit import views
from prepkit.api import open_zoo, verify
from prepkit.cli import main
from prepkit.errors import LayoutMismatch, PrepkitError, ZooError
from prepkit.zoo.card.card import card_text
from prepkit.zoo.change import normalising
from prepkit.zoo.change.choosing import cut, drop
from prepkit.zoo.change.cleaning import clean
from prepkit.zoo.change.convert import convert
from prepkit.zoo.change.merge import merge
from prepkit.zoo.change.normalising import Moments, normalise
from prepkit.zoo.change.splitting import split
from prepkit.zoo.format.manifest import read_manifest

NAMES = ("lenet_like@digits", "resnet8@digits")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_zoo(tmp_path_factory.mktemp("normalised") / "zoo", 12, NAMES, width=64)


@pytest.fixture
def root(original, tmp_path):
    """Twelve instances of two architectures, a third each in train and test, the rest in no split.

    The biases of ResNet8 that folding made are 0 in all of them.
    """
    return shutil.copytree(original, tmp_path / "zoo")


def by_hand(zoo, name, per, split):
    """Mean and deviation of each cell of an architecture, from its networks' state dicts."""
    chosen = zoo.where(f"architecture == '{name}'" + (f" and split == '{split}'" if split else ""))
    tensors = [chosen.network(number).state_dict() for number in range(len(chosen))]
    means, deviations = [], []
    for tensor in tensors[0]:
        values = np.stack([state[tensor].double().numpy().ravel() for state in tensors])
        mean = values.mean(0) if per == "cell" else np.full(values.shape[1], values.mean())
        deviation = values.std(0) if per == "cell" else np.full(values.shape[1], values.std())
        means.append(mean)
        deviations.append(deviation)
    deviation = np.concatenate(deviations)
    return np.concatenate(means), np.where(deviation == 0, 1.0, deviation)


@pytest.mark.parametrize("per", ["cell", "slot"])
@pytest.mark.parametrize("chunk", [1, 2, None])
def test_against_numpy(root, per, chunk, monkeypatch):
    if chunk is not None:
        monkeypatch.setattr(normalising, "CHUNK_BYTES", chunk * 8 * open_zoo(root).shape.cells)
    result = normalise(root, per=per, card=False)
    zoo = open_zoo(root)
    assert result.stored == zoo.manifest.preprocessing == zoo.preprocessing.stored
    assert (result.stored.split, result.stored.rows, result.constant) == ("train", 4, 84 if per == "cell" else 9)
    assert result.stored.ids_sha256 == zoo.split("train").sha256
    assert zoo.preprocessing.sha256 == hashlib.sha256((root / result.stored.path).read_bytes()).hexdigest()
    for name in NAMES:
        chosen = zoo.where(f"architecture == '{name}'")
        mean, deviation = by_hand(zoo, name, per, "train")
        preps = chosen.preps()
        normalised = zoo.preprocessing.forward(preps, chosen.class_ids())
        assert normalised.shape == preps.shape
        flat = preps.flatten(1).double().numpy()
        expected = (flat[:, : len(mean)] - mean) / deviation
        np.testing.assert_allclose(normalised.flatten(1)[:, : len(mean)].numpy(), expected, rtol=1e-4, atol=1e-4)
        assert not normalised.flatten(1)[:, len(mean) :].any(), "padding stays 0"
        back = zoo.preprocessing.inverse(normalised, chosen.class_ids())
        torch.testing.assert_close(back, preps, rtol=1e-6, atol=1e-7)
        wide = zoo.preprocessing.inverse(
            zoo.preprocessing.forward(preps.double(), chosen.class_ids()), chosen.class_ids()
        )
        torch.testing.assert_close(wide, preps.double(), rtol=1e-14, atol=1e-14)


def test_a_large_mean_loses_no_digits():
    """In one pass of sums of squares, a mean of 1e8 would leave nothing of a deviation of 1."""
    values = np.random.default_rng(0).normal(1e8, 1.0, (1000, 3))
    moments = Moments(3)
    for chunk in np.array_split(values, [1, 5, 300, 301, 900]):
        moments.add(chunk)
    np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.variance, values.var(0), rtol=1e-6)


def test_loaders_normalise_before_they_make_a_view(root):
    normalise(root, card=False)
    zoo = open_zoo(root)
    for source in (zoo, zoo.to("cpu")):
        for preps, class_ids, indices in source.loader(5, normalise=True):
            expected = zoo.preprocessing.forward(zoo.preps(indices.numpy()), class_ids)
            assert torch.equal(preps, expected)
    lenets = zoo.where(f"architecture == '{NAMES[0]}'")
    tokens, class_ids, indices = next(iter(lenets.loader(4, view="tokens", normalise=True)))
    expected = zoo.preprocessing.forward(lenets.preps(indices.numpy()), class_ids)
    assert torch.equal(tokens, views.tokens(lenets)(expected))
    other = open_zoo(root, width=128)
    again = other.preprocessing.forward(other.preps(), other.class_ids())
    first = zoo.preprocessing.forward(zoo.preps(), zoo.class_ids())
    assert torch.equal(again.flatten(1)[:, :2302], first.flatten(1)[:, :2302])


def test_what_is_the_same_in_all_instances_is_only_shifted(tmp_path):
    write_zoo(tmp_path / "zoo", 1, NAMES[:1], width=64)
    result = normalise(tmp_path / "zoo", card=False)
    assert (result.constant, result.stored.split, result.stored.rows) == (2302, None, 1)
    assert result.notes == ("2,302 cells are the same in all instances, and will only be shifted to 0.",)
    zoo = open_zoo(tmp_path / "zoo")
    normalised = zoo.preprocessing.forward(zoo.preps())
    assert not normalised.any()
    assert torch.equal(zoo.preprocessing.inverse(normalised), zoo.preps())


def test_a_learner_refuses_another_preprocessing(root):
    with pytest.raises(ZooError, match="'zoo' has no preprocessing to normalise by; `prepkit zoo normalise`"):
        open_zoo(root).loader(2, normalise=True)
    assert open_zoo(root).preprocessing is None
    first = normalise(root, card=False).stored
    assert normalise(root, card=False, force=True).stored == first, "the same instances give the same sum"
    open_zoo(root).check_preprocessing(first.sha256)
    second = normalise(root, per="slot", card=False, force=True).stored
    with pytest.raises(ZooError, match=f"trained with the preprocessing {first.sha256[:12]}; 'zoo' has another one"):
        open_zoo(root).check_preprocessing(first.sha256)
    assert [file.path for file in clean(root).removed] == [first.path]
    open_zoo(root).check_preprocessing(second.sha256)
    with pytest.raises(ZooError, match=r"has no preprocessing. Use the zoo"):
        open_zoo(write_zoo(root.parent / "other", 1)).check_preprocessing(first.sha256)


def test_what_is_refused(root):
    with pytest.raises(ZooError, match=r"no split 'trian'; it has test, train. Did you mean 'train'"):
        normalise(root, split="trian")
    with pytest.raises(ZooError, match="per is 'cell' or 'slot'; found 'row'"):
        normalise(root, per="row")
    normalise(root, card=False)
    with pytest.raises(
        ZooError, match=r"has a preprocessing already \(per cell over train \(4 instances\), .*force=True"
    ):
        normalise(root)
    zoo = open_zoo(root)
    with pytest.raises(ZooError, match="is of lenet_like@digits, resnet8@digits; give the ClassIds"):
        zoo.preprocessing.forward(zoo.preps())
    with pytest.raises(LayoutMismatch, match="there are 12 PReps, but 2 ClassIds"):
        zoo.preprocessing.forward(zoo.preps(), [0, 1])
    with pytest.raises(ZooError, match="no statistics of ClassId 7"):
        zoo.preprocessing.forward(zoo.preps(), [7] * 12)
    with pytest.raises(LayoutMismatch, match="too small for resnet8@digits, which has 5,058 values"):
        zoo.preprocessing.forward(torch.zeros(1, 40, 64), [1])


def test_an_architecture_without_training_instances(tmp_path):
    root = write_zoo(tmp_path / "zoo", 3, (NAMES[0], NAMES[0], NAMES[1]), width=64)
    assert normalise(root, card=False).notes[0].startswith("'train' has no instance of resnet8@digits, so nothing")
    zoo = open_zoo(root)
    with pytest.raises(ZooError, match="no statistics of ClassId 1, of which there was no instance in 'train'"):
        zoo.preprocessing.forward(zoo.preps(), zoo.class_ids())


def test_it_goes_with_the_zoo_while_its_instances_stay(root, tmp_path):
    stored = normalise(root, card=False).stored
    assert verify(root).ok
    assert f"normalises PReps: {stored}" in card_text(open_zoo(root), False)
    convert(root, tmp_path / "hdf5", "hdf5", card=False)
    cut(root, tmp_path / "some", where="accuracy > 0.55", card=False)
    for name in ("hdf5", "some"):
        assert verify(tmp_path / name).ok
        open_zoo(tmp_path / name).check_preprocessing(stored.sha256)
        assert open_zoo(tmp_path / name).preprocessing.normals.keys() == set(NAMES)
    drop(root, ids=["m3"], card=False)
    open_zoo(root).check_preprocessing(stored.sha256)
    write_zoo(tmp_path / "more", 2, prefix="n", width=64)
    merged = merge(tmp_path / "both", [root, tmp_path / "more"], card=False)
    assert merged.manifest.preprocessing is None
    assert any("was left out; `prepkit zoo normalise`" in note for note in merged.notes)
    result = split(root, {"train": 0.5, "test": 0.5}, force=True, card=False)
    assert any("was of the old split, and is gone" in note for note in result.notes)
    assert read_manifest(root).preprocessing is None


def test_damage_is_found(root):
    file = root / normalise(root, card=False).stored.path
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    (fault,) = verify(root).faults
    assert (fault.file, fault.place) == (file.name, "preprocessing")
    with pytest.raises(ZooError, match="missing or damaged"):
        _ = open_zoo(root).preprocessing
    file.unlink()
    assert not verify(root).ok


def test_the_command(root):
    def run(*arguments, status=0):
        result = CliRunner().invoke(main, ["zoo", *map(str, arguments)])
        assert result.exit_code == status, result.output
        assert "Traceback" not in result.output
        return result

    normalise(root, per="slot", card=False)
    assert "--force replaces it" in run("normalise", root, status=2).stderr
    document = json.loads(run("normalise", root, "--force", "--split", "test", "--json").stdout)
    assert (document["per"], document["split"], document["rows"], document["constant"]) == ("cell", "test", 4, 84)
    assert document["sha256"] == read_manifest(root).preprocessing.sha256
    assert f"normalised per cell over test (4 instances), {document['sha256'][:12]}" in run("info", root).stdout
    assert json.loads(run("info", root, "--json").stdout)["preprocessing"]["sha256"] == document["sha256"]
    run("normalise", root / "nowhere", status=2)
    with pytest.raises(PrepkitError):
        normalise(root / "nowhere")
