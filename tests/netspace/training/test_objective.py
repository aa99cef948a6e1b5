"""The losses of a whole batch against the same computed plainly: one instance at a time, with networks of their own."""

from dataclasses import replace

import pytest
import torch
from small_zoos import SMALL
from torch.nn import functional

import prepkit
from netspace.data import Data, cast_layers
from netspace.recipe import load_recipe
from netspace.run.run import new_space
from netspace.training._objective import Objective
from netspace.training._step import Operations, _backward, _class_ids, adam
from prepkit.support.device import constant
from prepkit.support.graphs import GraphedChain

pytestmark = pytest.mark.usefixtures("one_thread")
T, ALPHA = 4.0, 0.9
CPU = torch.device("cpu")


@pytest.fixture
def setting(small_zoo):
    """Objective, batch and space of a recipe, all in float64."""

    def made(name, position=0, **changes):
        recipe = load_recipe(name, {**SMALL[name], "training.precision": "float32", **changes})
        network = recipe.network
        zoo = prepkit.open_zoo(small_zoo(name), width=network.width, height=network.height)
        data = Data(recipe, zoo, torch.device("cpu"))
        space = new_space(recipe).double()
        with torch.no_grad():
            space.decoder.scale.mul_(30)  # predicted networks that differ, so that a mix-up shows
        batch = next(data.batches(position))
        line = None if batch.line is None else batch.line.double()
        batch = replace(batch, preps=batch.preps.double(), inputs=batch.inputs.double(), line=line)
        teacher = None if data.teacher is None else data.teacher.double()
        return Objective(space, recipe, data.registry, teacher), batch, space

    return made


def network_of(architecture, prep_HW):
    network = architecture.build_folded().double()
    tensors = architecture.layout.unpack(prep_HW)
    return lambda inputs: torch.func.functional_call(network, dict(tensors), (inputs,))


def kl(predicted, target):
    return (
        functional.kl_div(
            functional.log_softmax(predicted / T, 1), functional.softmax(target / T, 1), reduction="batchmean"
        )
        * T**2
    )


def kd(predicted, teacher, labels):
    return ALPHA * kl(predicted, teacher) + (1 - ALPHA) * functional.cross_entropy(predicted, labels)


def close(found, expected):
    torch.testing.assert_close(found, expected.detach(), rtol=1e-10, atol=0)


def same_gradients(space, found, expected):
    wanted = [parameter for parameter in space.parameters() if parameter.requires_grad]
    pairs = zip(torch.autograd.grad(found, wanted), torch.autograd.grad(expected, wanted), strict=True)
    for ours, plain in pairs:
        torch.testing.assert_close(ours, plain, rtol=1e-8, atol=1e-12 * float(plain.abs().max()))
        assert plain.abs().max() > 0


def test_single(setting):
    objective, batch, space = setting("digits_single")
    total = 0.0
    architecture = objective.registry.by_class_id(0)
    for prep_HW in batch.preps:
        predicted = space.decode(space.encode(prep_HW[None]))[0]
        target = network_of(architecture, prep_HW)(batch.inputs)
        total = total + kl(network_of(architecture, predicted)(batch.inputs), target.detach()) / len(batch.preps)
    found = objective(batch)
    close(found.total, total)
    close(found.parts["loss"], total)
    same_gradients(space, found.total, total)


def test_signals(setting):
    objective, batch, space = setting("chairs_mini")
    architecture, total = objective.registry.by_class_id(0), 0.0
    for prep_HW, points in zip(batch.preps, batch.inputs, strict=True):
        predicted = network_of(architecture, space.decode(space.encode(prep_HW[None]))[0])(points)
        target = network_of(architecture, prep_HW)(points)
        total = total + (predicted - target).square().mean() / len(batch.preps)
    found = objective(batch)
    close(found.total, total)
    same_gradients(space, found.total, total)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_several_architectures(setting, share):
    objective, batch, space = setting("digits_multi", **{"batch.boundary_share": share, "batch.instances": 4})
    registry, teacher = objective.registry, objective.teacher(batch.inputs).detach()
    parts = dict.fromkeys(("loss_kd", "loss_class", "loss_gamma"), torch.zeros((), dtype=torch.float64))

    def judged(latent_E, class_id):
        logits = space.classify(latent_E[None])
        prep_HW = space.decode(latent_E[None])[0]
        outputs = network_of(registry.by_class_id(int(logits.argmax())), prep_HW)(batch.inputs)
        return kd(outputs, teacher, batch.labels), functional.cross_entropy(logits, torch.tensor([class_id]))

    latents = [space.encode(prep_HW[None])[0] for prep_HW in batch.preps]
    for latent_E, class_id in zip(latents, batch.class_ids, strict=True):
        loss_kd, loss_class = judged(latent_E, class_id)
        parts["loss_kd"], parts["loss_class"] = parts["loss_kd"] + loss_kd, parts["loss_class"] + loss_class
    pairs = 0
    for a, first in zip(batch.class_ids, latents, strict=True):
        for b, last in zip(batch.class_ids, latents, strict=True):
            if (a, b) == (0, 3):
                pairs += 1
                for class_id in (1, 2):
                    gamma = class_id / 3
                    parts["loss_gamma"] = parts["loss_gamma"] + sum(
                        judged((1 - gamma) * first + gamma * last, class_id)
                    )
    assert pairs == (4 if share else pairs)
    found = objective(batch)
    for name, expected in parts.items():
        if pairs or name != "loss_gamma":
            close(found.parts[name], expected)
    close(found.total, sum(parts.values()))
    same_gradients(space, found.total, sum(parts.values()))


def test_identity_adds_each_target_s_own_outputs(setting):
    objective, batch, space = setting("digits_multi", **{"loss.identity": 0.5, "batch.boundary_share": 1.0})
    plain, _, same = setting("digits_multi", **{"batch.boundary_share": 1.0})
    same.load_state_dict(space.state_dict())
    expected = 0.0
    for prep_HW, class_id in zip(batch.preps, batch.class_ids, strict=True):
        latent_1E = space.encode(prep_HW[None])
        runs_as = objective.registry.by_class_id(int(space.classify(latent_1E).argmax()))
        predicted = network_of(runs_as, space.decode(latent_1E)[0])(batch.inputs)
        target = network_of(objective.registry.by_class_id(class_id), prep_HW)(batch.inputs)
        expected = expected + kl(predicted, target.detach())
    found = objective(batch)
    close(found.parts["loss_identity"], 0.5 * expected)
    rest = plain(batch)
    close(found.total, rest.total + 0.5 * expected)
    close(found.parts["loss_kd"], rest.parts["loss_kd"])
    close(found.parts["loss_gamma"], rest.parts["loss_gamma"])
    rest.total.backward()
    others = [parameter.grad for parameter in same.parameters()]
    own = torch.autograd.grad(0.5 * expected, list(space.parameters()), allow_unused=True)
    found.total.backward()
    for parameter, other, identity in zip(space.parameters(), others, own, strict=True):
        expected_gradient = other if identity is None else other + identity
        torch.testing.assert_close(parameter.grad, expected_gradient, rtol=1e-8, atol=1e-12)


def on_the_line(space, line, weight):
    """The weighted line loss of 2 instances of each of 4 architectures, encoded one by one."""
    centres = [(space.encode(line[2 * k][None])[0] + space.encode(line[2 * k + 1][None])[0]) / 2 for k in range(4)]
    places = [(1 - k / 3) * centres[0] + k / 3 * centres[3] for k in range(4)]
    length = (centres[3] - centres[0]).square().sum()
    return weight * sum((centres[k] - places[k]).square().sum() / length for k in (1, 2))


LINE = {"loss.line": 0.7, "loss.line_from": 0.0, "batch.line_instances": 2, "batch.boundary_share": 1.0}


def test_the_line_loss_is_added(setting):
    objective, batch, space = setting("digits_multi", **LINE)
    plain, rest, same = setting("digits_multi", **{"batch.boundary_share": 1.0})
    same.load_state_dict(space.state_dict())
    assert torch.equal(rest.preps, batch.preps)
    assert batch.line.shape == (8, 88, 128)
    expected = on_the_line(space, batch.line, 0.7)
    found, without = objective(batch), plain(rest)
    close(found.parts["loss_line"], expected)
    close(found.total, without.total + expected)
    assert expected > 0.1
    gradients = torch.autograd.grad(expected, list(space.encoder.parameters()))
    without.total.backward()
    found.total.backward()
    for parameter, other, line in zip(space.encoder.parameters(), same.encoder.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, other.grad + line, rtol=1e-8, atol=1e-12)
        assert line.abs().max() > 0
    for parameter, other in zip(space.decoder.parameters(), same.decoder.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-8, atol=1e-12)
    before = objective(replace(batch, line=None))  # before it begins
    close(before.total, without.total)
    assert before.parts["loss_line"] == 0
    assert "loss_line" not in without.parts


def test_the_chain_that_a_gpu_records_gives_the_same(setting):
    objective, batch, space = setting("digits_multi", **LINE, **{"loss.identity": 0.5})
    operations = Operations(objective, adam(list(space.parameters()), 1e-3, CPU), CPU)
    chain = GraphedChain(operations.forward, _class_ids, operations.judge, _backward, CPU)
    given = batch.preps, batch.inputs, batch.labels, batch.class_ids, batch.line
    gradients = []
    for accumulate in (operations.accumulate, chain):
        parts = accumulate(*given)
        gradients.append([*parts.values(), *(parameter.grad.clone() for parameter in space.parameters())])
        space.zero_grad()
        assert {"loss_identity", "loss_line"} < set(parts)
    for plain, chained in zip(*gradients, strict=True):
        torch.testing.assert_close(chained, plain, rtol=1e-10, atol=1e-14)


def test_what_the_ablations_leave_out(setting):
    objective, batch, space = setting("digits_multi", **{"loss.interpolation": False, "batch.boundary_share": 1.0})
    found = objective(batch)
    assert found.parts["loss_gamma"] == 0
    close(found.total, found.parts["loss_kd"] + found.parts["loss_class"])
    objective, batch, space = setting("digits_single", **{"loss.weights": True})
    expected = (space.decode(space.encode(batch.preps)) - batch.preps).square().mean()
    close(objective(batch).total, expected)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("digits_single", {}),
        ("digits_single", {"loss.weights": True}),
        ("digits_multi", {"batch.boundary_share": 1.0}),
        ("chairs_mini", {}),
    ],
)
def test_recomputing_changes_neither_losses_nor_gradients(setting, name, changes):
    gradients = []
    for recompute in (False, True):
        objective, batch, space = setting(name, **{"training.recompute": recompute, **changes})
        found = objective(batch)
        found.total.backward()
        gradients.append([found.total.detach(), *(parameter.grad for parameter in space.parameters())])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-10, atol=1e-14)
        assert plain.abs().max() > 0


@pytest.mark.parametrize("name", ["digits_single", "digits_multi", "digits_unseen", "chairs_mini"])
def test_half_precision_is_near(small_zoo, name):
    totals = {}
    for precision in ("float32", "bfloat16"):
        recipe = load_recipe(name, {**SMALL[name], "training.precision": precision})
        zoo = prepkit.open_zoo(small_zoo(name), width=recipe.network.width, height=recipe.network.height)
        data = Data(recipe, zoo, torch.device("cpu"))
        objective = Objective(new_space(recipe), recipe, data.registry, data.teacher)
        found = objective(next(data.batches(0)))
        assert found.total.dtype == torch.float32
        assert all(part.dtype == torch.float32 for part in found.parts.values())
        totals[precision] = found.total.item()
    assert totals["bfloat16"] == pytest.approx(totals["float32"], rel=0.05)
    assert totals["bfloat16"] != totals["float32"]


@pytest.mark.parametrize("name", ["digits_single", "digits_multi"])
def test_what_is_cast_once_a_step_equals_what_autocast_casts_at_each_use(small_zoo, name, monkeypatch):
    """On a GPU, PReps and the teacher's layers are cast once; here a CPU does so too."""
    recipe = load_recipe(name, {**SMALL[name], "training.precision": "bfloat16"})
    zoo = prepkit.open_zoo(small_zoo(name), width=recipe.network.width, height=recipe.network.height)
    data = Data(recipe, zoo, torch.device("cpu"))
    space, batch, found = new_space(recipe), next(data.batches(0)), []
    for cast in (False, True):
        if cast:
            monkeypatch.setattr(Objective, "_cast", lambda self, preps: preps.bfloat16())
            data.teacher = data.teacher and cast_layers(data.teacher)
        space.zero_grad()
        losses = Objective(space, recipe, data.registry, data.teacher)(batch)
        losses.total.backward()
        found.append((losses.parts, torch.cat([parameter.grad.flatten() for parameter in space.parameters()])))
    (parts, gradient), (once, gradient_once) = found
    assert once == parts
    assert float((gradient_once - gradient).norm() / gradient.norm()) < 2**-7


@pytest.mark.parametrize(
    ("name", "changes"), [("digits_single", {}), ("digits_multi", {}), ("digits_multi", LINE), ("chairs_mini", {})]
)
def test_no_numbers_are_made_into_tensors_in_later_steps(small_zoo, name, changes, monkeypatch):
    """On a GPU each would be copied from the host, which waits for it."""
    recipe = load_recipe(name, {**SMALL[name], **changes})
    zoo = prepkit.open_zoo(small_zoo(name), width=recipe.network.width, height=recipe.network.height)
    data = Data(recipe, zoo, torch.device("cpu"))
    objective = Objective(new_space(recipe), recipe, data.registry, data.teacher)
    batch = next(data.batches(0))
    made, real = [], torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda *given, **options: made.append(given) or real(*given, **options))
    constant.cache_clear()
    objective(batch).total.backward()
    first = len(made)
    objective(batch).total.backward()
    assert len(made) == first
    assert first > 0 or name != "digits_multi"  # that is, the count sees them


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["digits_single", "digits_multi", "chairs_mini"])
def test_a_gpu_agrees_with_the_cpu(small_zoo, name, monkeypatch):
    found = {}
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    for device in ("cpu", "cuda"):
        recipe = load_recipe(name, {**SMALL[name], "training.precision": "float32"})
        zoo = prepkit.open_zoo(small_zoo(name), width=recipe.network.width, height=recipe.network.height)
        data = Data(recipe, zoo, torch.device(device))
        space = new_space(recipe).to(device)
        batch = next(Data(recipe, zoo, torch.device("cpu")).batches(0))  # a GPU draws other points of shapes
        tensors = {name: value.to(device) for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
        losses = Objective(space, recipe, data.registry, data.teacher)(replace(batch, **tensors))
        losses.total.backward()
        found[device] = [losses.total.detach().cpu(), *(parameter.grad.cpu() for parameter in space.parameters())]
    for cpu, gpu in zip(found["cpu"], found["cuda"], strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=1e-3, atol=1e-5 * float(cpu.abs().max()) + 1e-9)
