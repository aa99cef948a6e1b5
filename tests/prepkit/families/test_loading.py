"""Networks that hold given tensors: the same as those that are built, and nothing shared among them."""

import pickle

import pytest
import torch
from torch import nn

import prepkit
from prepkit.errors import LayoutMismatch
from prepkit.families import architecture as architectures
from prepkit.families.loading import network_with, network_with_copies
from prepkit.families.registry import architecture_from_callable

pytestmark = pytest.mark.usefixtures("one_thread")


class Tied(nn.Module):
    """Two layers with one weight, constants that no state dict holds, and a counter."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5)
        self.third.weight = self.second.weight
        self.first.bias.requires_grad_(False)
        self.register_buffer("mixing", torch.eye(5) + 0.25, persistent=False)
        self.register_buffer("order", torch.tensor([2, 0, 1, 4, 3]))

    def forward(self, inputs):
        return self.third(torch.tanh(self.second(self.first(inputs @ self.mixing))))[:, self.order]


class WithLambda(nn.Module):
    """A network that cannot be pickled."""

    def __init__(self):
        super().__init__()
        self.linear, self.activation = nn.Linear(5, 2), lambda values: values.relu()

    def forward(self, inputs):
        return self.activation(self.linear(inputs))


class Loading(nn.Module):
    """A network with a value of its own for what it has loaded."""

    def __init__(self):
        super().__init__()
        self.linear, self.total = nn.Linear(5, 2), torch.zeros(())
        self.register_load_state_dict_post_hook(lambda network, keys: network.sum_up())

    def sum_up(self):
        self.total = self.linear.weight.detach().sum()

    def forward(self, inputs):
        return self.linear(inputs) * self.total


class Summing(Loading):
    """The same, in a way that can be pickled."""

    def __init__(self):
        super().__init__()
        self._load_state_dict_post_hooks.clear()
        self.register_load_state_dict_post_hook(sum_up)


def sum_up(network, keys):
    network.sum_up()


class Copying(nn.Linear):
    """A layer that copies what it loads into the parameters that it has."""

    def __init__(self):
        super().__init__(5, 2)

    def _load_from_state_dict(self, state, prefix, *rest):
        with torch.no_grad():
            self.weight.copy_(state[prefix + "weight"])
            self.bias.copy_(state[prefix + "bias"])


FOREIGN = [Tied, WithLambda, Loading, Summing, Copying]
NAMES = [network.__name__ for network in FOREIGN]
NAMES += ["resnet8@digits", "lenet_like@digits", "sine_mlp@sdf_small"]


def known(name):
    if name in [network.__name__ for network in FOREIGN]:
        return architecture_from_callable(f"{__name__}:{name}", (5,))
    return prepkit.architecture(name)


def built(architecture, seed):
    torch.manual_seed(seed)
    network = architecture.build()
    network.load_state_dict(network.state_dict())
    return network.eval()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", [network_with, network_with_copies])
def test_each_network_is_as_if_it_were_built(name, make):
    one = known(name)
    inputs = one.example_input(3)
    found, expected = [], [built(one, seed) for seed in range(3)]
    for network in expected:
        given = (network.state_dict(), one)
        found.append(make(*given, "here") if make is network_with else make(*given, folded=False))
    for network, like in zip(found, expected, strict=True):
        assert torch.equal(network(inputs), like(inputs))
        assert [(name, type(m), m.training) for name, m in network.named_modules()] == [
            (name, type(m), m.training) for name, m in like.named_modules()
        ]
        assert [(name, type(t), t.requires_grad) for name, t in network.named_parameters()] == [
            (name, type(t), t.requires_grad) for name, t in like.named_parameters()
        ]
        for name, buffer in like.named_buffers():
            assert torch.equal(network.get_buffer(name), buffer)
    # A change of one network is no change of another.
    for tensor in (*found[1].parameters(), *found[1].buffers()):
        tensor.data.zero_()
    for network, like in ((found[0], expected[0]), (found[2], expected[2])):
        assert torch.equal(network(inputs), like(inputs))


def test_given_tensors_are_held_and_not_changed():
    one = known("Tied")
    state = built(one, 0).double().state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    network = network_with(state, one, "here")
    assert network.first.weight.data_ptr() == state["first.weight"].data_ptr()
    assert network.first.weight.dtype == torch.float64
    assert network.third.weight is network.second.weight
    copied = network_with_copies(state, one, folded=False)
    assert copied.first.weight.data_ptr() != state["first.weight"].data_ptr()
    assert copied.third.weight is copied.second.weight
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())


def test_many_networks_are_built_once(monkeypatch):
    one = known("resnet8@digits")
    state = built(one, 0).state_dict()
    network_with_copies(state, one, folded=False)
    monkeypatch.setattr(architectures.Architecture, "build", lambda self: pytest.fail("it was built again"))
    for _ in range(3):
        network_with_copies(state, one, folded=False)
        network_with(state, one, "here")


def test_the_random_numbers_stay_as_they_are():
    one = known("Tied")
    state = built(one, 0).state_dict()
    before = torch.get_rng_state()
    for _ in range(2):
        network_with(state, one, "here")
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("change", ["shape", "missing", "unexpected"])
def test_other_tensors_are_refused_each_time(change):
    one = known("lenet_like@digits")
    state = built(one, 0).state_dict()
    name = next(iter(state))
    wrong = dict(state)
    if change == "shape":
        wrong[name] = wrong[name][:1]
    elif change == "missing":
        del wrong[name]
    else:
        wrong["other.weight"] = torch.zeros(2)
    for given in (state, wrong, wrong):
        if given is state:
            network_with_copies(given, one, folded=True)
        else:
            with pytest.raises(RuntimeError, match=name if change != "unexpected" else "other.weight"):
                network_with_copies(given, one, folded=True)


def test_tied_tensors_must_agree():
    one = known("Tied")
    state = built(one, 0).state_dict()
    state["third.weight"] = state["second.weight"] + 1
    with pytest.raises(LayoutMismatch, match=r"^here does not load into .*'third.weight' and 'second.weight' are tied"):
        network_with(state, one, "here")


def test_a_network_is_kept_without_its_tensors():
    from prepkit.families.loading import _template

    template = _template(prepkit.architecture("resnet8@cifar10"), True)
    assert template.content is not None
    assert len(pickle.dumps((template.content, template.others))) < 20_000  # its tensors have 300 KB
