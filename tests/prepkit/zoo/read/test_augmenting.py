"""zoo.loader(augment=...): other values and the same functions, the same again for a loader that goes on."""

import pytest
import torch
import zoo_samples

import prepkit
from prepkit.errors import ZooError
from prepkit.prep.contents import contents_of
from prepkit.zoo.write.writer import ZooWriter

pytestmark = pytest.mark.usefixtures("one_thread")


def zoo_of(root, *names, count=7, **settings):
    return prepkit.open_zoo(zoo_samples.write_zoo(root / "zoo", count, names=names, task=None, **settings))


def sines(root):
    with ZooWriter(root / "sines") as writer:
        for seed in range(4):
            writer.add(zoo_samples.network("sine_mlp@sdf_small", seed), id=f"m{seed}")
    return prepkit.open_zoo(root / "sines")


def check(zoo, augment, batch_size=3, same=0.5):
    """Compare the outputs of all instances, and how many of their values are others."""
    seen = 0
    for preps, class_ids, indices in zoo.loader(batch_size, seed=1, augment=augment):
        assert contents_of(preps) == contents_of(zoo.preps(indices))
        for prep, class_id, index in zip(preps.double(), class_ids.tolist(), indices.tolist(), strict=True):
            architecture = zoo.registry.by_class_id(class_id)
            inputs, own = architecture.example_input(3).double(), zoo.preps([index])[0].double()
            before, after = (prepkit.run_instances(architecture, one[None], inputs) for one in (own, prep))
            torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
            total = architecture.layout.total
            assert torch.equal(prep.flatten()[total:], own.flatten()[total:])
            assert (prep != own).flatten()[:total].double().mean() > same
            seen += 1
    assert seen == len(zoo)


@pytest.mark.parametrize("augment", ["permute", "scale", ("permute", "scale")])
def test_functions_stay_in_a_zoo_of_several_architectures(augment, tmp_path):
    check(zoo_of(tmp_path, "lenet_like@digits", "resnet8@digits"), augment)


@pytest.mark.parametrize("augment", ["permute", "sign", ["sign", "phase"]])
def test_functions_stay_in_a_zoo_of_sines(augment, tmp_path):
    check(sines(tmp_path), augment, same=0.3)


def test_batches_are_those_of_seed_epoch_and_number(tmp_path):
    zoo = zoo_of(tmp_path, "lenet_like@digits")

    def loader(**settings):
        return zoo.loader(2, **{"seed": 5, "augment": "permute", **settings})

    first = loader()
    epochs = [[batch.preps for batch in first] for _ in range(2)]
    again = loader()
    assert all(torch.equal(a, b.preps) for a, b in zip(epochs[0], again, strict=True))
    plain = [batch.preps for batch in loader(augment=None)]
    assert not any(torch.equal(a, b) for a, b in zip(epochs[0], plain, strict=True))
    other = loader()
    iterator = iter(other)
    next(iterator), next(iterator)
    resumed = loader()
    resumed.load_state_dict(other.state_dict())
    assert all(torch.equal(a, b.preps) for a, b in zip(epochs[0][2:], resumed, strict=True))
    assert all(torch.equal(a, b.preps) for a, b in zip(epochs[1], resumed, strict=True))
    assert {tuple(prep.flatten().tolist()) for epoch in epochs for batch in epoch for prep in batch}.__len__() == 14
    with pytest.raises(ZooError, match=r"with augment=\['permute'\] instead of None"):
        loader(augment=None).load_state_dict(other.state_dict())
    with pytest.raises(ZooError, match=r"with augment=None instead of \['permute'\]"):
        loader().load_state_dict(loader(augment=None).state_dict())


def test_ranks_draw_changes_of_their_own_and_views_see_what_was_changed(tmp_path):
    zoo = zoo_of(tmp_path, "lenet_like@digits", count=4)
    one, two = (next(iter(zoo.loader(4, augment="permute", rank=rank, world_size=2))) for rank in (0, 1))
    assert not set(one.indices.tolist()) & set(two.indices.tolist())
    plain = next(iter(zoo.loader(4, augment="permute", seed=3)))
    flat = next(iter(zoo.loader(4, augment="permute", seed=3, view="flat")))
    assert torch.equal(flat.preps, plain.preps.flatten(1)[:, : flat.preps.shape[1]])


def test_what_cannot_be_done_is_refused(tmp_path):
    zoo = zoo_of(tmp_path, "lenet_like@digits")
    with pytest.raises(ZooError, match=r"augment is .*; found 'permutation'\. Did you mean 'permute'"):
        zoo.loader(2, augment="permutation")
    with pytest.raises(ZooError, match="augment names nothing"):
        zoo.loader(2, augment=())
    with pytest.raises(ZooError, match="augment='phase' would change nothing: no hidden unit of lenet_like@digits"):
        zoo.loader(2, augment=("permute", "phase"))
    nameless = prepkit.open_zoo(zoo_samples.write_zoo(tmp_path / "nameless", 2, tensors=1, task=None))
    with pytest.raises(ZooError, match="knows only the layout"):
        nameless.loader(2, augment="permute")
