"""run_instances against plain networks that are loaded with one PRep after the other."""

import pytest
import torch
from instance_samples import CPU, FOREIGN, NAMES, Dropping, check, foreign, known, some_inputs, some_preps

from prepkit.errors import LayoutMismatch
from prepkit.running.instances import (
    run_instances,
    runner,
)

pytestmark = pytest.mark.usefixtures("one_thread")


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
