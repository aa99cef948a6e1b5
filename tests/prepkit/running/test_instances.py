"""run_instances against plain networks that are loaded with one PRep after the other."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import prepkit
from prepkit.errors import LayoutMismatch
from prepkit.families.registry import architecture_from_callable
from prepkit.running import instances
from prepkit.running._stacking import StackedConvolution, Unstackable
from prepkit.running.instances import (
    STACKED_FLOPS_ON_CPU,
    activation_bytes,
    forward_flops,
    is_stackable,
    run_instances,
    runner,
    stacking_pays,
)

CPU = torch.device("cpu")
NAMES = ["lenet_like@digits", "resnet8@digits", "sine_mlp@sdf_small", "resnet8@cifar10"]


pytestmark = pytest.mark.usefixtures("one_thread")


class Normed(nn.Module):
    """A third party's network that cannot be stacked."""

    def __init__(self, width=6):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(5, width), nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, inputs):
        return self.last(self.norm(torch.tanh(self.first(inputs))))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight

    def forward(self, inputs):
        return self.second(torch.tanh(self.first(inputs)))


class Attentive(nn.Module):
    """One of its layers returns a tuple."""

    def __init__(self):
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, inputs):
        return self.last(self.attention(inputs, inputs, inputs)[0].mean(1))


class Constant(nn.Module):
    """With buffers that its state dict does not hold, or that are no numbers to learn."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 5), nn.Linear(5, 2)
        self.register_buffer("mixing", torch.randn(5, 5, generator=torch.Generator().manual_seed(0)), persistent=False)
        self.register_buffer("order", torch.tensor([2, 0, 1, 4, 3]))

    def forward(self, inputs):
        return self.last(torch.tanh(self.first(inputs @ self.mixing))[:, self.order])


class Dropping(nn.Module):
    def __init__(self, rate=0.5):
        super().__init__()
        self.linear, self.rate = nn.Linear(5, 4), rate

    def forward(self, inputs):
        return nn.functional.dropout(self.linear(inputs), self.rate, self.training)


def foreign(network, input_shape, **arguments):
    return architecture_from_callable(f"{__name__}:{network.__name__}", input_shape, arguments=arguments)


FOREIGN = {
    "Normed": (Normed, (5,)),
    "Tied": (Tied, (5,)),
    "Attentive": (Attentive, (6, 4)),
    "Constant": (Constant, (5,)),
}


def known(name):
    return foreign(*FOREIGN[name]) if name in FOREIGN else prepkit.architecture(name)


def some_preps(architecture, count, width=64, taller=0, dtype=torch.float64):
    """PReps of networks with fresh weights, rows of rubbish below; `[K, H, W]`."""
    shape = architecture.layout.shape(width)
    shape = replace(shape, height=shape.height + taller)
    preps = []
    for seed in range(count):
        torch.manual_seed(seed)
        state = architecture.build_folded().to(dtype).state_dict()
        preps.append(architecture.layout.pack(state, shape))
    preps = torch.stack(preps)
    preps.flatten(1)[:, architecture.layout.total :] = 7.0
    return preps


def some_inputs(architecture, *batch, dtype=torch.float64):
    return torch.randn(*batch, *architecture.input_shape, generator=torch.Generator().manual_seed(5), dtype=dtype)


def plain(architecture, prep):
    """The network that a PRep holds, its values sliced off one after another."""
    network = architecture.build_folded().to(prep.dtype)
    values, start, state = prep.flatten(), 0, {}
    for slot in architecture.layout:
        state[slot.name] = values[start : start + slot.size].view(slot.shape)
        start += slot.size
    state |= {alias: state[name] for alias, name in architecture.layout.ties}
    integers = {name: buffer for name, buffer in network.named_buffers() if not buffer.is_floating_point()}
    network.load_state_dict(state | integers)
    return network


def flat_gradients(architecture, network, cells):
    """The gradients of a network's parameters where its PRep holds them, 0 after the last."""
    own = dict(network.named_parameters())
    gradients = torch.cat([own[slot.name].grad.flatten() for slot in architecture.layout])
    return torch.cat([gradients, gradients.new_zeros(cells - len(gradients))])


def expected_results(architecture, preps, inputs, weights):
    """Outputs, gradients of PReps, and of inputs `[K, B, ...]`, by autograd of one network after another."""
    outputs, of_preps, of_inputs = [], [], []
    for prep, given, weight in zip(preps, inputs, weights, strict=True):
        network, own = plain(architecture, prep.detach()), given.clone().requires_grad_()
        output = network.eval()(own)
        (output * weight).sum().backward()
        outputs.append(output.detach())
        of_preps.append(flat_gradients(architecture, network, prep.numel()).view(prep.shape))
        of_inputs.append(own.grad)
    return torch.stack(outputs), torch.stack(of_preps), torch.stack(of_inputs)


def close(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()


@pytest.fixture
def in_a_loop(monkeypatch):
    monkeypatch.setattr(instances, "stacking_pays", lambda *args, **kwargs: False)


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(instances, "stacking_pays", lambda *args, **kwargs: True)


def check(architecture, shared, count=3, batch=4, dense=False, **sizes):
    preps = some_preps(architecture, count, **sizes).requires_grad_()
    inputs = some_inputs(architecture, *([batch] if shared else [count, batch])).requires_grad_()
    outputs = prepkit.run_instances(architecture, preps, inputs, dense=dense)
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    (outputs * weights).sum().backward()
    each = inputs.detach().expand(count, *inputs.shape) if shared else inputs.detach()
    expected, of_preps, of_inputs = expected_results(architecture, preps, each, weights)
    close(outputs.detach(), expected)
    close(preps.grad, of_preps)
    close(inputs.grad, of_inputs.sum(0) if shared else of_inputs)
    assert preps.grad.flatten(1)[:, architecture.layout.total :].count_nonzero() == 0
    assert preps.grad.flatten(1)[:, : architecture.layout.total].count_nonzero() > 0


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("at_once")
def test_at_once_equals_one_network_after_another(name, shared):
    assert runner(known(name), True, True, CPU).stacked
    check(known(name), shared)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", [*NAMES, *FOREIGN])
@pytest.mark.usefixtures("in_a_loop")
def test_in_a_loop_equals_one_network_after_another(name, shared):
    check(known(name), shared)


@pytest.mark.parametrize(("width", "taller"), [(128, 4), (512, 8)])
@pytest.mark.parametrize("name", ["resnet8@digits", "Normed"])
def test_what_stands_after_the_parameters_neither_counts_nor_learns(name, width, taller):
    check(known(name), shared=True, width=width, taller=taller)


@pytest.mark.parametrize("name", ["sine_mlp@sdf_small", "Normed"])
def test_gradients_are_those_of_finite_differences(name):
    """Along random directions of all PReps and inputs; what autograd says of the single network is compared above."""
    one = known(name)
    preps, inputs = some_preps(one, 2).requires_grad_(), some_inputs(one, 3).requires_grad_()
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        steps = [torch.randn(t.shape, generator=generator, dtype=torch.float64) * 1e-6 for t in (preps, inputs)]
        ahead, behind = (
            run_instances(one, preps + sign * steps[0], inputs + sign * steps[1]).square().sum() for sign in (1, -1)
        )
        gradients = torch.autograd.grad(run_instances(one, preps, inputs).square().sum(), (preps, inputs))
        slope = sum((gradient * step).sum() for gradient, step in zip(gradients, steps, strict=True))
        assert (ahead - behind).item() / 2 == pytest.approx(slope.item(), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_equal_to_rounding(name):
    one = known(name)
    preps, inputs = some_preps(one, 3), some_inputs(one, 4)
    wide = run_instances(one, preps, inputs)
    found = run_instances(one, preps.float(), inputs.float())
    assert found.dtype == torch.float32
    assert (found - wide).abs().max() < 1e-4 * wide.abs().max()


def test_evaluation_does_not_depend_on_what_ran_before():
    """A training run leaves the cached network in training mode; Dropout must not drop afterwards."""
    one = foreign(Dropping, (5,))
    preps, inputs = some_preps(one, 2), some_inputs(one, 4)
    before = run_instances(one, preps, inputs)
    runner(one, True, False, CPU)(one.layout.unpack(preps), inputs, training=True)
    state = torch.get_rng_state()
    assert torch.equal(run_instances(one, preps, inputs), before)
    assert torch.equal(torch.get_rng_state(), state)


# Bad input ----------------------------------------------------------------------------------------------------

RESNET = "resnet8@digits reads inputs [B, 1, 8, 8], or [3, B, 1, 8, 8] to give each instance its own; found "


@pytest.mark.parametrize(
    ("preps", "inputs", "text"),
    [
        ((44, 128), (4, 1, 8, 8), "expected PReps [K, H, W], found [44, 128]."),
        ((1, 3, 44, 128), (4, 1, 8, 8), "expected PReps [K, H, W], found [1, 3, 44, 128]."),
        ((3, 44, 128), (1, 8, 8), RESNET + "[1, 8, 8]."),
        ((3, 44, 128), (4, 1, 8, 9), RESNET + "[4, 1, 8, 9]."),
        ((3, 44, 128), (4, 3, 8, 8), RESNET + "[4, 3, 8, 8]."),
        ((3, 44, 128), (2, 4, 1, 8, 8), RESNET + "[2, 4, 1, 8, 8]."),
        ((3, 44, 128), (1, 3, 4, 1, 8, 8), RESNET + "[1, 3, 4, 1, 8, 8]."),
        ((3, 4, 128), (4, 1, 8, 8), "a PRep of [3, 4, 128] is too small for 5,058 values."),
        ((0, 44, 128), (4, 1, 8, 8), "there are no PReps to run: found [0, H, W]."),
        ((0, 44, 128), (0, 4, 1, 8, 8), "there are no PReps to run: found [0, H, W]."),
    ],
)
def test_a_wrong_shape_is_told(preps, inputs, text):
    with pytest.raises(LayoutMismatch) as error:
        run_instances(known("resnet8@digits"), torch.zeros(preps), torch.zeros(inputs))
    assert str(error.value) == text


@pytest.mark.parametrize("inputs", [(0, 1, 8, 8), (3, 0, 1, 8, 8)])
def test_no_inputs_give_no_outputs(inputs):
    one = known("resnet8@digits")
    assert run_instances(one, torch.zeros(3, 44, 128), torch.zeros(inputs)).shape == (3, 0, 10)


# How instances are run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FOREIGN)
def test_a_network_that_cannot_be_stacked_runs_in_a_loop(name):
    assert not is_stackable(known(name), True)
    assert not stacking_pays(known(name), 1, CPU)
    with pytest.raises(Unstackable):
        runner(known(name), True, True, CPU)
    check(known(name), shared=True)


def test_dropout_is_never_stacked_and_no_random_number_is_drawn_to_find_out():
    rarely = foreign(Dropping, (5,), rate=1e-6)
    state = torch.get_rng_state()
    assert not is_stackable(rarely, False)
    assert forward_flops(rarely, 1) == 2 * 5 * 4
    assert torch.equal(torch.get_rng_state(), state)


def test_a_third_partys_network_is_stacked_where_that_works():
    """Normed is refused for its LayerNorm; a folded BatchNorm leaves a network that can be stacked."""
    one = architecture_from_callable(f"{__name__}:with_batch_norm", (5,))
    assert is_stackable(one, True)
    assert is_stackable(one, False)
    check(one, shared=False)


def with_batch_norm():
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))


def test_the_cost_of_a_forward():
    lenet = known("lenet_like@digits")
    convolutions = 8 * 8 * 4 * 9 + 3 * 3 * 8 * 4 * 9
    products = convolutions + 72 * 20 + 20 * 16 + 16 * 10
    assert forward_flops(lenet, 5) == 5 * 2 * products
    values = sum(counted_values(lenet.build(), lenet.example_input(1)))
    assert activation_bytes(lenet, 3) == 3 * 4 * values


def counted_values(network, inputs):
    """The values that each module puts out."""
    sizes = []
    for module in network.modules():
        module.register_forward_hook(lambda module, arguments, output: sizes.append(output.numel()))
    network(inputs)
    return sizes


def test_stacking_pays_for_small_forwards_on_a_cpu():
    resnet = known("resnet8@digits")
    most = int(STACKED_FLOPS_ON_CPU // forward_flops(resnet, 1))
    assert stacking_pays(resnet, most, CPU)
    assert not stacking_pays(resnet, most + 1, CPU)
    assert not stacking_pays(known("resnet8@cifar10"), 128, CPU, folded=False)
    assert [stacking_pays(resnet, 64, CPU, folded=folded) for folded in (True, False) * 3] == [True] * 6


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_what_is_kept_does_not_depend_on_the_mode_that_the_first_caller_was_in(mode):
    """Both are kept for the whole process, and evaluation often comes first."""
    caches = (instances.is_stackable, instances.runner)
    for cache in caches:
        cache.cache_clear()
    one = known("resnet8@digits")
    preps, inputs = some_preps(one, 2), some_inputs(one, 4)
    with mode():
        assert instances.is_stackable(one, True)
        run_instances(one, preps, inputs)
    preps.requires_grad_()
    outputs = run_instances(one, preps, inputs)
    assert torch.autograd.grad(outputs.square().sum(), preps)[0].abs().sum() > 0


@pytest.mark.parametrize("shared", [True, False])
def test_packs_of_instances_run_one_after_another(shared, at_once, monkeypatch):
    monkeypatch.setattr(instances, "pack_size", lambda *args: 2)
    check(known("resnet8@digits"), shared, count=5, dense=True)


def test_an_instance_that_is_not_finite_spoils_no_other(at_once, monkeypatch):
    """Zeros between the instances of a dense convolution would turn its infinite values into NaN everywhere."""
    monkeypatch.setattr(StackedConvolution, "is_dense", lambda self, features: self.dense is not False)
    architecture = known("resnet8@digits")
    preps, images = some_preps(architecture, 3), some_inputs(architecture, 2)
    expected = prepkit.run_instances(architecture, preps, images)
    preps[1] = float("inf")
    found = prepkit.run_instances(architecture, preps, images)
    assert torch.equal(found[[0, 2]], expected[[0, 2]])
    assert not found[1].isfinite().any()
    dense = runner(architecture, True, True, CPU, dense=True)
    spoilt = dense(architecture.layout.unpack(preps), images)
    assert not spoilt[0].isfinite().any()  # so the test would see it


def test_a_gpu_runs_convolutions_in_packs_and_linear_layers_all_at_once():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert instances.pack_size(known("resnet8@digits"), cuda) == 4
    assert instances.pack_size(known("sine_mlp@sdf_small"), cuda) > 10**6
    assert instances.pack_size(known("resnet8@digits"), cpu) > 10**6


def test_an_accelerator_stacks_whatever_can_be():
    assert stacking_pays(known("resnet8@cifar10"), 100_000, torch.device("cuda"))
    assert not stacking_pays(known("Normed"), 1, torch.device("cuda"))


def test_the_rule_decides_how_instances_run(monkeypatch):
    """Both ways were compared above with the rule taken out; here is what the rule does to a run."""
    made = []
    real = instances.runner
    assert [instances.is_stackable(known(name), True) for name in ("resnet8@digits", "Normed")] == [True, False]
    monkeypatch.setattr(instances, "runner", lambda *args, **options: made.append(args[2]) or real(*args, **options))
    for name, batch in (("resnet8@digits", 4), ("resnet8@cifar10", 7), ("Normed", 4)):
        one = known(name)
        run_instances(one, some_preps(one, 2), some_inputs(one, batch))
    assert made == [True, False, False]


@pytest.mark.parametrize("engine", ["in_a_loop", "at_once"])
def test_outputs_have_the_dtype_of_preps_under_autocast_too(engine, request):
    request.getfixturevalue(engine)
    architecture = known("lenet_like@digits")
    preps = some_preps(architecture, 2, dtype=torch.float32).requires_grad_()
    inputs = some_inputs(architecture, 3, dtype=torch.float32)
    expected = run_instances(architecture, preps, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = run_instances(architecture, preps, inputs)
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)  # bfloat16 was used
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05 * float(expected.detach().abs().max()))
    found.sum().backward()
    assert preps.grad.dtype == torch.float32


def test_an_architecture_is_named_and_inputs_take_the_dtype_of_the_preps():
    known = prepkit.architecture("resnet8@digits")
    preps, inputs = torch.randn(2, 80, 64), torch.randn(3, 1, 8, 8)
    outputs = run_instances(known, preps, inputs)
    assert torch.equal(run_instances("resnet8@digits", preps, inputs.double()), outputs)
    with pytest.raises(prepkit.RegistryError, match="Did you mean 'resnet8@digits'"):
        run_instances("resnet88@digits", preps, inputs)
