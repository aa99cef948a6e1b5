"""Folding many networks of an architecture: each as fold does it alone, and as plain networks say that it must run."""

import pytest
import torch
from torch import nn

import prepkit
from prepkit.families import folding
from prepkit.families.folding import fold_known, fold_proved, fold_stack
from prepkit.families.registry import architecture_from_callable
from prepkit.fusion import again
from prepkit.fusion.fold import UnfoldableNetwork, fold

pytestmark = pytest.mark.usefixtures("one_thread")


class TwoNorms(nn.Module):
    """A layer that takes in two BatchNorms, one without weights, and a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, eps=0.1), nn.BatchNorm2d(4)
        self.up, self.third = nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False), nn.BatchNorm2d(6, affine=False)

    def forward(self, images):
        return self.third(self.up(torch.tanh(self.second(self.first(self.conv(images)))))).flatten(1)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Linear(5, 5)
        self.third = nn.Linear(5, 5)
        self.third.weight = self.second.weight

    def forward(self, inputs):
        return self.third(torch.tanh(self.second(self.norm(self.first(inputs)))))


class Constant(nn.Module):
    """With buffers that its state dict does not hold, or that are no numbers to learn."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.last = nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)
        self.register_buffer("mixing", torch.eye(5).roll(1) + 0.25, persistent=False)  # exact in bfloat16
        self.register_buffer("order", torch.tensor([2, 0, 1, 4, 3]))

    def forward(self, inputs):
        return self.last(torch.tanh(self.norm(self.linear(inputs @ self.mixing)))[:, self.order])


class PreActivation(nn.Module):
    """The first BatchNorm goes ahead into a layer; the second has none, and becomes an affine map."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(5), nn.Linear(5, 5)
        self.last, self.out = nn.BatchNorm1d(5), nn.Linear(5, 2)

    def forward(self, inputs):
        return self.out(torch.tanh(self.last(torch.tanh(self.linear(self.norm(inputs))))))


class Deep(nn.Sequential):
    """A network that makes much of the smallest difference: each block more than doubles it."""

    def __init__(self):
        layers = [m for _ in range(80) for m in (nn.Linear(32, 32), nn.BatchNorm1d(32, momentum=1.0), nn.Tanh())]
        super().__init__(*layers)


class OnlyFloat32(nn.Module):
    """A network with a tensor of its own in float32, as many have."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(5, 4), nn.BatchNorm1d(4)

    def forward(self, inputs):
        return self.norm(self.linear(inputs)) @ torch.full((4, 2), 0.5, dtype=torch.float32)


class ByTheBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(5, 2), nn.BatchNorm1d(2, track_running_stats=False)

    def forward(self, inputs):
        return self.norm(self.linear(inputs))


FOREIGN = {"TwoNorms": (2, 6, 6), "Tied": (5,), "Constant": (5,), "PreActivation": (5,), "ByTheBatch": (5,)}
FOREIGN |= {"Deep": (32,), "OnlyFloat32": (5,)}
NAMES = ["resnet8@digits", "resnet14@digits", "resnet8@cifar10", "lenet_like@digits"]
NAMES += ["TwoNorms", "Tied", "Constant", "PreActivation"]


def known(name):
    if name in FOREIGN:
        return architecture_from_callable(f"{__name__}:{name}", FOREIGN[name])
    return prepkit.architecture(name)


def networks(architecture, count, dtype=torch.float32):
    """Networks in evaluation, as different as trained ones are: weights and statistics of their own."""
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        network = architecture.build()
        for module in network.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.track_running_stats:
                module.running_mean.normal_()
                module.running_var.uniform_(0.2, 3.0)
                module.num_batches_tracked += seed + 1
                if module.affine:
                    nn.init.uniform_(module.weight, 0.5, 2.0)
                    nn.init.normal_(module.bias)
        made.append(network.to(dtype).eval().requires_grad_(False))
    return made


def rows(made):
    """As a stack's snapshots hold them: parameters and buffers, each once."""
    return [dict([*network.named_parameters(), *network.named_buffers()]) for network in made]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_each_instance_is_folded_as_if_alone(name, dtype):
    one = known(name)
    made = networks(one, 3, dtype)
    found = fold_stack(one, rows(made))
    assert list(found) == [slot.name for slot in one.layout]
    for index, network in enumerate(made):
        expected = fold(network, one.example_input(), keep_unfoldable="affine").network.state_dict()
        for name, tensor in found.items():
            assert tensor.dtype == expected[name].dtype == dtype
            assert torch.equal(tensor[index], expected[name]), name


@pytest.mark.parametrize("name", NAMES)
def test_the_folded_network_is_the_same_function(name):
    one = known(name)
    made = networks(one, 3, torch.float64)
    found = fold_stack(one, rows(made))
    inputs = one.example_input(4, seed=3).double()
    for index, network in enumerate(made):
        folded = one.build_folded().double().eval()
        state = {name: tensor[index] for name, tensor in found.items()}
        state |= {name: buffer for name, buffer in folded.named_buffers() if not buffer.is_floating_point()}
        folded.load_state_dict(state | {alias: state[name] for alias, name in one.layout.ties})
        expected = network(inputs)
        assert (folded(inputs) - expected).abs().max() < 1e-9 * expected.abs().max()


def test_a_network_without_batch_norm_stays_as_it_is():
    one = known("lenet_like@digits")
    given = rows(networks(one, 2))
    for name, tensor in fold_stack(one, given).items():
        assert torch.equal(tensor, torch.stack([row[name] for row in given]))


def test_folding_changes_neither_its_input_nor_the_random_numbers():
    one = known("resnet8@digits")
    given = rows(networks(one, 2))
    before = [{name: tensor.clone() for name, tensor in row.items()} for row in given]
    state = torch.get_rng_state()
    fold_stack(one, given)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(row[name], t) for row, old in zip(given, before, strict=True) for name, t in old.items())


@pytest.fixture
def proved(monkeypatch):
    """The architectures that are folded with a proof, in order; none was before."""
    monkeypatch.setattr(folding, "_proofs", {})
    names = []

    def noted(network, architecture, *rest):
        names.append(architecture.name)
        return fold_proved(network, architecture, *rest)

    monkeypatch.setattr(folding, "fold_proved", noted)
    return names


@pytest.mark.parametrize("name", NAMES)
def test_one_network_of_an_architecture_is_proved(proved, name):
    one = known(name)
    fold_stack(one, rows(networks(one, 3)))
    fold_stack(one, rows(networks(one, 2, torch.bfloat16)))
    assert proved == [one.name]


def test_what_may_become_of_a_batch_norm_is_proved_apart(proved):
    one = known("PreActivation")
    state = networks(one, 1)[0].state_dict()
    fold_stack(one, [state])
    with pytest.raises(UnfoldableNetwork, match=r"^here: 1 of 2 BatchNorms cannot be folded"):
        fold_known(state, one, "here")
    assert proved == [one.name, one.name]


def test_few_proofs_are_kept(proved, monkeypatch):
    monkeypatch.setattr(folding, "MAX_PROOFS", 2)
    for name in ("TwoNorms", "Tied", "Constant", "TwoNorms"):
        fold_stack(known(name), rows(networks(known(name), 2)))
        assert len(folding._proofs) <= 2
    assert [name.rpartition(".")[2] for name in proved] == ["TwoNorms", "Tied", "Constant", "TwoNorms"]


@pytest.mark.parametrize("wrong_instance", [1, 2])
def test_an_instance_that_would_become_another_function_gets_a_proof_of_its_own(monkeypatch, proved, wrong_instance):
    """The first one is proved; the formula for the others is made wrong here, by little, once."""
    one = known("resnet8@digits")
    made = networks(one, 3)
    real, calls = again.new_values, []

    def wrong(step, network, values):
        calls.append(step)
        new = real(step, network, values)
        norms = sum(isinstance(module, nn.BatchNorm2d) for module in made[0].modules())
        factor = 1 + 1e-6 if len(calls) == norms * (wrong_instance - 1) + 3 else 1
        return {name: value * factor for name, value in new.items()}

    monkeypatch.setattr(again, "new_values", wrong)
    found = fold_stack(one, rows(made))
    assert proved == [one.name, one.name]
    for index, network in enumerate(made):
        expected = fold(network, one.example_input()).network.state_dict()
        assert all(torch.equal(tensor[index], expected[name]) for name, tensor in found.items())


def test_values_beyond_the_dtype_are_refused_as_for_the_first(proved):
    one = known("TwoNorms")
    fine, large = networks(one, 2, torch.float16)
    large.second.weight.fill_(6e4)
    fold_known(fine.state_dict(), one, "fine")
    with pytest.raises(
        UnfoldableNetwork, match=r"(?s)^large: .*folding it into 'conv' gives .*, beyond float16"
    ) as later:
        fold_known(large.state_dict(), one, "large")
    with pytest.raises(UnfoldableNetwork) as alone:
        fold(large, one.example_input())
    assert str(later.value) == f"large: {alone.value}"


def test_values_that_are_not_finite_are_caught():
    one = known("lenet_like@digits")
    given = rows(networks(one, 2))
    next(iter(given[1].values())).fill_(torch.nan)
    with pytest.raises(UnfoldableNetwork, match="output on the example input is not finite"):
        fold_stack(one, given)


def test_a_network_that_reacts_strongly_is_judged_by_its_reaction(monkeypatch):
    """A right fold differs by more than 1e-9 here, since rounding itself does."""
    one = known("Deep")
    made = networks(one, 2)
    for network in made:
        for module in network:
            if isinstance(module, nn.BatchNorm1d):
                nn.init.constant_(module.weight, 2.0)
                nn.init.zeros_(module.bias)
        network.train()(torch.randn(64, 32))  # gives it statistics
        network.eval()
    given = [{name: t.double() if t.is_floating_point() else t for name, t in row.items()} for row in rows(made)]
    found = fold_stack(one, given)
    inputs = one.example_input(2).double()
    for index, network in enumerate(made):
        plain = one.build_folded().double()
        plain.load_state_dict({name: tensor[index] for name, tensor in found.items()})
        error = (plain(inputs) - network.double()(inputs)).abs().max()
        assert 1e-9 < error < 1e-5
    real = again.new_values
    monkeypatch.setattr(again, "new_values", lambda *given: {k: v * (1 + 1e-6) for k, v in real(*given).items()})
    assert all(torch.equal(tensor, found[name]) for name, tensor in fold_stack(one, given).items())


def test_a_network_that_runs_in_float32_only():
    one = known("OnlyFloat32")
    made = networks(one, 2)
    found = fold_stack(one, rows(made))
    inputs = one.example_input(3)
    for index, network in enumerate(made):
        hidden = torch.nn.functional.linear(inputs, found["linear.weight"][index], found["linear.bias"][index])
        torch.testing.assert_close(hidden @ torch.full((4, 2), 0.5), network.eval()(inputs), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_folded_is_refused():
    one = known("ByTheBatch")
    with pytest.raises(UnfoldableNetwork, match="norm"):
        fold_stack(one, rows(networks(one, 2)))
