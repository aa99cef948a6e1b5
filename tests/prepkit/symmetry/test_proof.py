"""The proof finds rules that are wrong, and networks of which nothing can be proved are refused in words."""

import copy

import pytest
import symmetry_samples
import torch
from torch import nn

import prepkit
from prepkit.symmetry import derive

pytestmark = pytest.mark.usefixtures("one_thread")


class Summed(nn.Module):
    """Sums along the units, between layers that are sound."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.third(torch.relu(self.second(torch.relu(self.first(x)).cumsum(-1))))


def test_a_group_that_a_wrong_rule_leaves_free_is_found_and_named(monkeypatch):
    inputs = torch.randn(4, 3)
    assert [group.size for group in prepkit.symmetries(Summed(), inputs).movable] == [4]
    monkeypatch.setitem(derive.RULES, "cumsum", derive.RULES["pointwise"])
    found = prepkit.symmetries(Summed(), inputs)
    assert [(group.name, group.size) for group in found.movable] == [("P_1", 4)]
    assert found.axes["first.weight"] == (None, None)
    assert found.axes["second.weight"][1] is None
    (fixture,) = found.fixtures
    assert (fixture.tensor, fixture.axis, fixture.size) == ("first.weight", 0, 5)
    assert fixture.reason.startswith("outputs differ by ")
    assert fixture.reason.endswith(" when its units change places")
    assert {one.group for one in found.scalings} == {"P_1"}
    assert found.proof < 1e-12


def test_a_scaling_that_a_wrong_rule_leaves_free_is_left_out(monkeypatch):
    network, inputs = nn.Sequential(nn.Linear(3, 5), nn.SiLU(), nn.Linear(5, 2)), torch.randn(4, 3)
    monkeypatch.setitem(derive.RULES, "silu", lambda call: call.label("self"))
    found = prepkit.symmetries(network, inputs)
    assert [group.size for group in found.movable] == [5]
    assert found.scalings == ()


def test_two_wrong_groups_that_undo_each_other_are_told_apart(monkeypatch):
    """Two units each: swapping both is a symmetry, and swapping one is not."""

    class Paired(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.last = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.last(torch.relu(self.a(x)) * torch.relu(self.b(x)))

    inputs = torch.randn(4, 3)
    assert [group.size for group in prepkit.symmetries(Paired(), inputs).movable] == [2]

    def apart(call):  # a product as if its factors had nothing to do with each other
        return call.label("self")

    monkeypatch.setitem(derive.RULES, "mul", apart)
    found = prepkit.symmetries(Paired(), inputs)
    assert [group.name for group in found.movable] == []
    reasons = {one.tensor: one.reason for one in found.fixtures}
    assert reasons.keys() == {"a.weight", "b.weight"}
    assert all(reason.startswith("outputs differ by") for reason in reasons.values())


@pytest.mark.parametrize("seed", range(8))
def test_two_units_behind_rectifiers_are_proved_whatever_the_network_holds(seed):
    """With these values, half of such networks return the same whatever is done to them."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        network[0].bias.fill_(-10)
    found = prepkit.symmetries(network, torch.randn(2, 1))
    assert [group.size for group in found.movable] == [2]
    assert found.fixtures == ()


def test_what_the_outputs_do_not_depend_on_stays():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.idle, self.last = nn.Linear(3, 4), nn.Linear(4, 6), nn.Linear(4, 2)

        def forward(self, x):
            x = torch.tanh(self.first(x))
            self.idle(x).relu()
            return self.last(x)

    found = prepkit.symmetries(Idle(), torch.randn(2, 3))
    assert [group.size for group in found.movable] == [4]
    (fixture,) = found.fixtures
    assert (fixture.tensor, fixture.axis, fixture.size) == ("idle.weight", 0, 6)
    assert fixture.reason == "the outputs do not depend on it, so that nothing is proved"
    assert found.axes["idle.weight"] == (None, prepkit.symmetry.spec.Units("P_0", 4))
    assert {one.group for one in found.scalings} == {"P_0"}


@torch.no_grad()
def test_a_network_without_gradients_is_proved_too():
    class Frozen(nn.Sequential):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    found = prepkit.symmetries(Frozen(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(2, 3))
    assert [group.size for group in found.movable] == [4]


def test_the_network_its_mode_and_random_numbers_stay_as_they_are():
    network, inputs = symmetry_samples.dense_net()
    network.train()
    before, given = copy.deepcopy(network.state_dict()), inputs.clone()
    state = torch.random.get_rng_state()
    prepkit.symmetries(network, inputs)
    assert network.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(inputs, given)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_derived_twice_it_is_the_same():
    network, inputs = symmetry_samples.transformer()
    assert prepkit.symmetries(network, inputs).to_dict() == prepkit.symmetries(network, inputs).to_dict()


def test_a_network_that_needs_float32_is_compared_in_float32():
    class Narrow(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, x):
            return self.last(torch.tanh(self.first(x)) @ torch.eye(5))

    found = prepkit.symmetries(Narrow(), torch.randn(4, 3))
    assert 1e-12 < found.proof < 1e-3 or found.movable == ()


class Refused(nn.Module):
    """A network that is refused, for the reason that its argument names."""

    def __init__(self, why):
        super().__init__()
        self.why, self.layer = why, nn.Linear(3, 2)

    def forward(self, x):
        y = self.layer(x)
        if self.why == "random":
            return y + torch.rand_like(y)
        if self.why == "infinite":
            return y / 0
        if self.why == "nothing":
            return None
        return y @ y


@pytest.mark.parametrize(
    ("why", "message"),
    [
        ("random", r"two runs of the network on the same input differ by .* make it deterministic"),
        ("infinite", "outputs are not finite"),
        ("nothing", "returns no tensor"),
        ("fails", r"The network fails on the example input \[4, 3\] float32: RuntimeError: .*; pass an input"),
    ],
)
def test_a_network_of_which_nothing_can_be_proved(why, message):
    with pytest.raises(prepkit.SymmetryError, match=message):
        prepkit.symmetries(Refused(why), torch.randn(4, 3))


def test_wrong_arguments():
    with pytest.raises(prepkit.SymmetryError, match=r"give what it runs on: symmetries\(network, inputs\)"):
        prepkit.symmetries(nn.Linear(2, 2))
    with pytest.raises(
        prepkit.SymmetryError, match=r"takes an architecture, its name or a torch\.nn\.Module, not a dict"
    ):
        prepkit.symmetries({}, torch.randn(1))
    with pytest.raises(prepkit.RegistryError, match="Did you mean 'resnet8@digits'"):
        prepkit.symmetries("resnet8@digit")


def test_several_inputs_by_name_and_by_position():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(2, 4)

        def forward(self, x, y):
            return {"sum": (torch.relu(self.a(x)) * torch.relu(self.b(y))).sum(-1)}

    for inputs in ((torch.randn(5, 3), torch.randn(5, 2)), {"y": torch.randn(5, 2), "x": torch.randn(5, 3)}):
        found = prepkit.symmetries(Two(), inputs)
        assert found.permutation_spec()["a.weight"] == ("P_0", None)
        assert found.permutation_spec()["b.bias"] == ("P_0",)


def test_what_the_run_never_read_stays():
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    network.head = nn.Linear(4, 6)
    network.forward = lambda x: network[2](network[1](network[0](x)))
    found = prepkit.symmetries(network, torch.randn(2, 3))
    assert found.axes["head.weight"] == (None, None)
    assert {one.reason for one in found.fixtures} == {"the run never read it"}
