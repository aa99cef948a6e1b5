"""All views of every kind of network: made by hand from state dicts, there and back to the bit, with equal logits."""

import doctest

import numpy as np
import pytest
import torch
from view_samples import SAMPLES, networks, packed, rows_by_hand

import prepkit
from prepkit import views

EXACT = {
    "prep": views.prep,
    "flat": views.flat,
    "layers": lambda of: views.layers(of, channel=True, missing_bias="zeros", others="beside"),
    "tokens": views.tokens,
    "short tokens": lambda of: views.tokens(of, 7),
}
each_network = pytest.mark.parametrize("name", SAMPLES)
each_exact = pytest.mark.parametrize("kind", EXACT)


def bits(tensor):
    """The tensor's memory as whole numbers, in which NaN equals NaN and 0 differs from -0."""
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


@each_network
@each_exact
def test_there_and_back_gives_the_bits_and_the_logits(name, kind):
    made, preps = packed(name)
    view = EXACT[kind](made[0])
    again = view.inverse(view(preps), preps.shape[1:])
    assert torch.equal(bits(again), bits(preps))
    inputs = SAMPLES[name].inputs()
    for network, tensors in zip(made, again, strict=True):
        other = networks(name, 1)[0]
        other.load_state_dict(prepkit.Layout.of(network).unpack(tensors), strict=False)
        assert torch.equal(other(inputs), network(inputs))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@each_exact
def test_any_dtype_with_nan_infinity_and_minus_zero(kind, dtype):
    made, preps = packed("resnet with BatchNorm")
    preps = preps.to(dtype)
    preps[0, 0, :4] = torch.tensor([float("nan"), float("inf"), -0.0, -float("inf")], dtype=dtype)
    preps[2, 3] = float("nan")
    view = EXACT[kind](made[0])
    assert torch.equal(bits(view.inverse(view(preps), preps.shape[1:])), bits(preps))


@each_exact
def test_gradients_go_through(kind):
    """The gradient of a sum of weighted values is the weights where the values stood."""
    made, preps = packed("attention")
    view = EXACT[kind](made[0])
    preps.requires_grad_()
    values = view(preps)
    values = [values] if isinstance(values, torch.Tensor) else [part for parts in values for part in parts]
    factor = 3.5
    sum((factor * part).sum() for part in values).backward()
    total = view.source.layout.total
    assert (preps.grad.flatten(1)[:, :total] == factor).all()
    assert kind == "prep" or not preps.grad.flatten(1)[:, total:].any()


@each_exact
def test_an_empty_batch(kind):
    made, preps = packed("transposed")
    view = EXACT[kind](made[0])
    for none in (preps[:0], preps[:0].clone().requires_grad_()):
        assert view.inverse(view(none), preps.shape[1:]).shape == (0, *preps.shape[1:])
    assert views.statistics(made[0])(preps[:0]).shape == (0, 7, 7)


@each_network
@pytest.mark.parametrize("size", [None, 7])
def test_an_index_moves_the_same_values_as_numpy_does(name, size):
    """Gradients, torch.func and accelerators take the index; all else on the CPU is copied in blocks."""
    made, preps = packed(name)
    view = views.tokens(made[0], size)
    with_gradients = preps.clone().requires_grad_()
    tokens = view(with_gradients)
    assert tokens.requires_grad
    assert torch.equal(tokens, view(preps))
    assert torch.equal(view.inverse(tokens, preps.shape[1:]), preps)
    gradient = torch.func.grad(lambda values: (view(values) * view(preps)).sum())(preps)
    assert torch.equal(
        gradient.flatten(1)[:, : view.source.layout.total], preps.flatten(1)[:, : view.source.layout.total]
    )


@each_network
@pytest.mark.parametrize("size", [None, 7])
def test_tokens_by_hand(name, size):
    check_tokens(name, size)


@pytest.mark.parametrize("size", [1, 1000])
def test_tokens_of_one_value_and_of_more_than_any_channel_has(size):
    check_tokens("transposed", size)


def check_tokens(name, size):
    made, preps = packed(name)
    view = views.tokens(made[0], size)
    tokens = view(preps)
    longest = max(len(row) for layer in rows_by_hand(name, made[0].state_dict()) for row in layer)
    assert view.size == (size or longest)
    for number, network in enumerate(made):
        expected, mask, position = [], [], []
        for layer, rows in enumerate(rows_by_hand(name, network.state_dict())):
            for channel, row in enumerate(rows):
                for part in row.split(view.size):
                    missing = view.size - len(part)
                    expected.append(torch.cat([part, torch.zeros(missing)]))
                    mask.append([True] * len(part) + [False] * missing)
                    position.append([len(position), layer, channel])
        assert torch.equal(tokens[number], torch.stack(expected))
        assert view.mask.tolist() == mask
        assert view.position.tolist() == position
    assert view.shapes == {"tokens": tuple(tokens.shape[1:])}
    assert len(view.names) == int(view.position[:, 1].max()) + 1


@each_network
def test_flat_and_prep_by_hand(name):
    made, preps = packed(name)
    view = views.flat(made[0])
    for network, values in zip(made, view(preps), strict=True):
        state = {name: tensor for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
        assert torch.equal(values, torch.cat([tensor.reshape(-1) for tensor in state.values()]))
        assert view.names == tuple(state)
        for slot in view.slots:
            assert torch.equal(values[slot.start : slot.stop].view(slot.shape), state[slot.name])
    assert views.prep(made[0])(preps) is preps


def test_flat_is_in_the_order_of_the_state_dict_where_the_layout_is_not():
    """A layout that was made from a state dict alone is in the order of names."""
    network = torch.nn.ModuleDict({"second": torch.nn.Linear(2, 3), "first": torch.nn.Linear(3, 1)})
    layout = prepkit.Layout.of_tensors(network.state_dict())
    preps = layout.pack(network.state_dict(), layout.shape(8))[None].detach()
    view = views.flat(views.source.Source("both", layout, layout.shape(8), given=network))
    assert view.names == tuple(network.state_dict())
    assert torch.equal(view(preps)[0], torch.cat([tensor.flatten() for tensor in network.state_dict().values()]))
    assert torch.equal(view.inverse(view(preps)), preps)


@pytest.mark.parametrize("spread", ["variance", "deviation"])
@each_network
def test_statistics_by_numpy(name, spread):
    made, preps = packed(name)
    view = views.statistics(made[0], spread)
    found = view(preps)
    assert view.statistics == ("mean", spread, "0 %", "25 %", "50 %", "75 %", "100 %")
    for number, network in enumerate(made):
        state = {name: tensor for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
        assert view.names == tuple(state)
        for tensor, values in zip(state.values(), found[number], strict=True):
            array = tensor.double().numpy()
            second = array.var() if spread == "variance" else array.std()
            expected = [array.mean(), second, *np.quantile(array, [0, 0.25, 0.5, 0.75, 1])]
            np.testing.assert_allclose(values.double().numpy(), expected, rtol=1e-6, atol=1e-9)


def test_statistics_of_values_that_are_not_finite():
    layout = prepkit.Layout.of(torch.nn.Linear(3, 1, bias=False))
    preps = torch.zeros(4, 4, 8, dtype=torch.bfloat16)
    preps[0, 0, :3] = torch.tensor([1.0, float("nan"), 3.0])
    preps[1, 0, :3] = torch.tensor([1.0, float("inf"), 3.0])
    preps[2, 0, :3] = torch.tensor([-float("inf")] * 3)
    found = views.statistics(layout)(preps)
    assert found.dtype == torch.float32
    assert found[0].isnan().all()
    assert found[1, 0, [0, 2, 4, 6]].tolist() == [float("inf"), 1.0, 3.0, float("inf")]
    assert found[2, 0, 2:].tolist() == [-float("inf")] * 5
    assert found[3].tolist() == [[0.0] * 7]


def test_sorting_elsewhere_gives_the_same_statistics():
    """On an accelerator torch sorts, which this calls on the CPU."""
    from prepkit.views.slot_statistics import _on_device, _on_host

    values = torch.randn(5, 38)
    values[1, 3] = float("nan")
    torch.testing.assert_close(_on_device(values, "deviation"), _on_host(values, "deviation"), equal_nan=True)


def test_layers_by_hand():
    made, preps = packed("lenet")
    state = made[1].state_dict()
    weights, biases, others = views.layers(made[0])(preps)
    names = [name for name in state if name.endswith("weight")]
    assert [tuple(weight.shape) for weight in weights] == [(3, *state[name].shape) for name in names]
    for name, weight, bias in zip(names, weights, biases, strict=True):
        assert torch.equal(weight[1], state[name])
        assert torch.equal(bias[1], state[name.replace("weight", "bias")])
    assert others == ()
    with_channel = views.layers(made[0], channel=True)(preps)
    for plain, wide in zip((*weights, *biases), (*with_channel.weights, *with_channel.biases), strict=True):
        assert torch.equal(plain[:, None], wide)
    assert weights[0].data_ptr() == preps.data_ptr(), "layers share the memory of PReps"


def test_layers_that_are_turned_or_beside():
    made, preps = packed("transposed")
    view = views.layers(made[0], others="beside")
    weights, _, others = view(preps)
    state = made[2].state_dict()
    assert torch.equal(weights[1][2], rows_weight(state))
    assert view.names == ("conv", "up")
    assert view.other_names == ("scale", "norm.weight", "norm.bias")
    assert [other[2].tolist() for other in others] == [state[name].tolist() for name in view.other_names]
    assert view.shapes["others.0"] == ()
    assert any("up were turned" in note for note in view.notes)
    made, preps = packed("attention")
    view = views.layers(made[0], missing_bias="zeros", others="beside")
    found = view(preps)
    assert view.without_bias == ("embedding", "head")
    assert torch.equal(found.weights[0][1], made[1].embedding.weight.T)
    assert not found.biases[0].any()
    assert any("embedding, head are zeros" in note for note in view.notes)


def rows_weight(state):
    """The transposed convolution's weight, element by element: out channel o of group g reads the inputs of g."""
    weight = state["up.weight"]  # [6, 2, 3, 2] with 2 groups
    found = torch.empty(4, 3, 3, 2)
    for out in range(4):
        group, within = divmod(out, 2)
        for given in range(3):
            found[out, given] = weight[group * 3 + given, within]
    return found


@pytest.mark.parametrize("name", ["lenet_like@digits", "resnet8@digits", "sine_mlp@sdf_small"])
def test_outputs_are_those_of_each_network(name):
    architecture = prepkit.architecture(name)
    made = [architecture.build_folded().eval() for _ in range(3)]
    preps = torch.stack([architecture.layout.pack(one.state_dict(), architecture.layout.shape(64)) for one in made])
    probes = architecture.example_input(6)
    view = views.outputs(name, probes)
    expected = torch.stack([network(probes) for network in made])
    torch.testing.assert_close(view(preps), expected, rtol=1e-5, atol=1e-5)
    assert view.shapes == {"outputs": tuple(expected.shape[1:])}
    assert view(preps.requires_grad_()).requires_grad


def test_tied_tensors_stand_once():
    network = torch.nn.ModuleDict({"in": torch.nn.Embedding(5, 3), "out": torch.nn.Linear(3, 5, bias=True)})
    network["out"].weight = network["in"].weight
    layout = prepkit.Layout.of(network)
    preps = layout.pack(network.state_dict(), layout.shape(8))[None].detach()
    view = views.tokens(network)
    assert view.names == ("in", "out")
    assert view(preps).shape == (1, 3 + 5, 5)
    assert torch.equal(view.inverse(view(preps), (4, 8)), preps)


def test_roles_are_told_from_the_layout_where_the_network_is_unknown():
    made, preps = packed("resnet with BatchNorm")
    known, unknown = views.tokens(made[0]), views.tokens(prepkit.Layout.of(made[0]))
    assert torch.equal(known(preps), unknown(preps))
    assert known.names == unknown.names
    assert not known.notes
    assert "told from the names of their modules and from their shapes" in unknown.notes[0]


@pytest.mark.parametrize("name", ["prep", "flat", "layers", "tokens", "graph", "statistics", "outputs"])
def test_examples_run(name):
    """Each function of the room has an example in its docstring, and it is right."""
    function = getattr(views, name)
    preps = torch.zeros(2, 8, 512)
    (example,) = doctest.DocTestFinder(recurse=False).find(
        function, name, globs={"prepkit": prepkit, "torch": torch, "preps": preps}
    )
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(example)
    assert (runner.tries > 0, runner.failures) == (True, 0)
