"""Views of zoos: through loaders and on devices, with BatchNorm that was kept, and with several architectures."""

import pickle

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader
from view_samples import networks
from zoo_view_samples import kept_batch_norm

import prepkit
from prepkit import views
from prepkit.errors import PrepkitError, RegistryError, ZooError

NAME = "lenet_like@digits"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Seven LeNets and two ResNets; the zoo's PReps have the larger height."""
    root = tmp_path_factory.mktemp("views") / "zoo"
    with torch.random.fork_rng(), prepkit.ZooWriter(root, width=64) as writer:
        torch.manual_seed(0)
        for number in range(9):
            name = "resnet8@digits" if number in (2, 5) else NAME
            writer.add(prepkit.architecture(name).build(), split="train" if number % 2 else "test", id=f"{number}")
    return prepkit.open_zoo(root)


@pytest.fixture(scope="module")
def lenets(zoo):
    return zoo.where(f"architecture == '{NAME}'")


@pytest.mark.parametrize("view", ["flat", "layers", "tokens", "graph", "statistics"])
@pytest.mark.parametrize("resident", [False, True])
def test_a_loader_gives_a_view_of_the_batches_that_it_would_give(lenets, view, resident):
    source = lenets.to("cpu") if resident else lenets
    made = getattr(views, view)(lenets)
    plain = [tuple(part.clone() for part in batch) for batch in source.loader(3, seed=1)]
    assert [len(batch[0]) for batch in plain] == [3, 3, 1]
    for (preps, class_ids, indices), (values, *rest) in zip(plain, source.loader(3, seed=1, view=view), strict=True):
        assert [each.tolist() for each in rest] == [class_ids.tolist(), indices.tolist()]
        expected = made(preps)
        for one, other in zip(values, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_view_that_was_made_before(lenets):
    view = views.tokens(lenets, 16)
    tokens, _, indices = next(iter(lenets.loader(4, view=view)))
    assert tokens.shape == (4, *view.shapes["tokens"])
    assert torch.equal(view.inverse(tokens), lenets.preps(indices.numpy()))
    logits, _, indices = next(iter(lenets.loader(2, view=views.outputs(lenets, torch.ones(3, 1, 8, 8)))))
    for number, own in zip(indices.tolist(), logits, strict=True):
        torch.testing.assert_close(own, lenets.network(number)(torch.ones(3, 1, 8, 8)), rtol=1e-5, atol=1e-5)


def test_a_view_knows_the_shape_of_the_zoo_and_of_a_zoo_at_another_width(lenets, zoo):
    assert views.prep(lenets).shapes == {"preps": (zoo.shape.height, 64)}
    assert torch.equal(views.prep(lenets).mask, lenets.masks([0])[0])
    other = prepkit.open_zoo(zoo._store.root, width=128).where(f"architecture == '{NAME}'")
    view = views.tokens(other)
    assert torch.equal(view.inverse(view(other.preps())), other.preps())
    assert torch.equal(view(other.preps()), views.tokens(lenets)(lenets.preps()))


def test_the_other_view_is_the_one_of_the_architecture(lenets):
    assert torch.equal(views.tokens(NAME)(lenets.preps()), views.tokens(lenets)(lenets.preps()))


def test_several_architectures_are_refused_with_what_to_do(zoo):
    with pytest.raises(ZooError, match=r"lenet_like@digits, resnet8@digits. Take one at a time: zoo.where"):
        views.tokens(zoo)
    with pytest.raises(ZooError, match="a view is of one architecture"):
        zoo.loader(2, view="tokens")
    with pytest.raises(ZooError, match="no instances here"):
        views.flat(zoo.select([]))


def test_preps_of_another_architecture_are_refused(zoo, lenets):
    with pytest.raises(prepkit.LayoutMismatch, match="read as those of resnet8@digits"):
        views.tokens(lenets)(zoo.where("architecture == 'resnet8@digits'").preps())
    with pytest.raises(PrepkitError, match="is no view of 'zoo', whose tensors have other shapes"):
        lenets.loader(2, view=views.tokens("resnet8@digits"))


@pytest.mark.parametrize(
    ("view", "words"),
    [
        ("token", "Did you mean 'tokens'?"),
        ("outputs", r"view=prepkit.views.outputs\(zoo, probes\)"),
        (7, "found 7"),
    ],
)
def test_names_of_views(lenets, view, words):
    with pytest.raises(PrepkitError, match=words):
        lenets.loader(2, view=view)


def test_batch_norm_that_was_kept(tmp_path):
    zoo = kept_batch_norm(tmp_path / "zoo", 3)
    probes = torch.randn(4, 1, 8, 8)
    found = views.outputs(zoo, probes)(zoo.preps())
    for number in range(3):
        torch.testing.assert_close(found[number], zoo.network(number)(probes), rtol=1e-4, atol=1e-4)
    view = views.tokens(zoo)
    assert not view.notes
    network = networks("resnet with BatchNorm", 1)[0]
    assert torch.equal(view(zoo.preps()), views.tokens(network)(zoo.preps()))
    assert torch.equal(view.inverse(view(zoo.preps())), zoo.preps())
    with pytest.raises(prepkit.LayoutMismatch, match=r"9 normalisations among 9 other parts.* PReps with BatchNorm"):
        views.layers(zoo)


def test_a_zoo_of_bare_tensors(tmp_path):
    with prepkit.ZooWriter(tmp_path / "zoo", width=8) as writer:
        for number in range(2):
            writer.add({"a.weight": torch.full((3, 5), number + 0.5), "a.bias": torch.arange(3.0)})
    zoo = prepkit.open_zoo(tmp_path / "zoo")
    view = views.tokens(zoo)
    assert view(zoo.preps())[1].tolist() == [[1.5] * 5 + [channel] for channel in range(3)]
    assert "is not known here" in view.notes[0]
    with pytest.raises(PrepkitError, match="only the tensors of layout-"):
        views.outputs(zoo, torch.ones(1, 5))


def test_what_a_view_may_be_of():
    with pytest.raises(PrepkitError, match=r"a view is of a zoo, .* found dict"):
        views.tokens({})
    with pytest.raises(RegistryError, match="unknown architecture 'lenet_lik@digits'"):
        views.tokens("lenet_lik@digits")


def test_a_view_can_be_sent_to_another_process(lenets):
    view = pickle.loads(pickle.dumps(views.tokens(lenets)))
    assert torch.equal(view(lenets.preps()), views.tokens(lenets)(lenets.preps()))


@pytest.mark.parametrize("view", ["flat", "layers", "tokens", "graph"])
def test_a_dataset_for_the_data_loader_of_torch(lenets, view):
    dataset = pickle.loads(pickle.dumps(lenets.dataset(view=view)))  # as a spawned worker gets it
    made = getattr(views, view)(lenets)
    for values, class_ids, indices in DataLoader(dataset, batch_size=3):
        expected = made(lenets.preps(indices.numpy()))
        assert class_ids.tolist() == [0] * len(indices)
        assert type(values) is type(expected)
        for one, other in zip(pytree.tree_leaves(values), pytree.tree_leaves(expected), strict=True):
            assert torch.equal(one, other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("view", ["prep", "flat", "layers", "tokens", "graph", "statistics"])
def test_a_gpu_gives_the_same(lenets, view):
    made = getattr(views, view)(lenets)
    there = made(lenets.preps().cuda())
    for one, other in zip(pytree.tree_leaves(there), pytree.tree_leaves(made(lenets.preps())), strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-6 if view == "statistics" else 0, atol=0)
    if view != "statistics":
        assert torch.equal(made.inverse(there).cpu(), lenets.preps())
