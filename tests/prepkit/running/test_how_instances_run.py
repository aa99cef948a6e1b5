"""How instances run: stacked, in packs or in a loop, by what network and device allow and what pays."""

import pytest
import torch
from instance_samples import CPU, FOREIGN, Dropping, check, foreign, known, some_inputs, some_preps
from torch import nn

import prepkit
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

pytestmark = pytest.mark.usefixtures("one_thread")


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
