"""The starts of a NetSpace: their distributions, and that embeddings differ where they are asked to."""

import numpy as np
import pytest
import torch

import prepkit
from netspace.space._start_scale import InitialisationError
from netspace.space.network import Decoder, NetSpace
from netspace.space.starts import start_from_centroid, start_from_preps

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_the_papers_start_of_scale_and_bias():
    decoder = Decoder(32, 1024, 256)
    assert decoder.scale.std().item() == pytest.approx(1e-3, rel=0.02)
    assert abs(decoder.scale.mean().item()) < 3e-5
    assert decoder.bias.min() >= 0
    assert 0.0099 < decoder.bias.max() < 0.01
    assert decoder.bias.mean().item() == pytest.approx(5e-3, rel=0.02)


def test_the_start_for_small_zoos():
    decoder = Decoder(32, 1024, 256, initialisation="small_zoos")
    assert decoder.scale.std().item() == pytest.approx(0.01, rel=0.02)
    assert decoder.bias.std().item() == pytest.approx(0.1, rel=0.02)
    assert abs(decoder.bias.mean().item()) < 3e-3


def test_no_scale_layer():
    decoder = Decoder(32, 1024, 256, initialisation="without_scale")
    assert (decoder.scale == 1).all()
    assert (decoder.bias == 0).all()
    assert not decoder.scale.requires_grad
    assert not decoder.bias.requires_grad


@pytest.fixture
def signals():
    """PReps of freshly initialised sine MLPs that differ as trained ones would: a layout and 40 PReps."""
    sine = prepkit.architecture("sine_mlp@sdf_small")
    layout = prepkit.Layout.of(sine.build())
    shape = layout.shape(width=64)
    preps = torch.stack([layout.pack(sine.build().state_dict(), shape) for _ in range(40)])
    return layout, shape, preps


def test_a_start_from_preps(signals):
    layout, shape, preps = signals
    netspace = NetSpace(height=shape.height, width=shape.width, embedding_size=256, num_architectures=2)
    classifier = {name: value.clone() for name, value in netspace.classifier.state_dict().items()}
    before = netspace.encode(preps).std(0)
    start_from_preps(netspace, preps, preps[7], layout)
    deviation, mean = torch.std_mean(netspace.encode(preps), dim=0)
    assert before.max() < 0.1
    torch.testing.assert_close(mean, torch.ones(256), rtol=0, atol=5e-3)
    torch.testing.assert_close(deviation, torch.ones(256), rtol=0, atol=5e-3)
    for name, value in netspace.classifier.state_dict().items():
        assert torch.equal(value, classifier[name])
    assert all(parameter.requires_grad for parameter in netspace.parameters())

    decoder = netspace.decoder
    assert torch.equal(decoder.bias, preps[7])
    scale, values = decoder.scale.flatten(), preps.flatten(1)
    for slot in layout:
        expected = values[:, slot.start : slot.stop].double().std().item() * 0.3
        assert scale[slot.start : slot.stop].tolist() == pytest.approx([expected] * slot.size, rel=1e-5)
    assert not scale[layout.total :].any()
    # Every prediction is near the instance, and no two are the same.
    predicted = netspace.decode(netspace.encode(preps[:4]))
    assert ((predicted - preps[7]) / decoder.scale.clamp(min=1e-9)).std().item() == pytest.approx(1.5, rel=0.4)
    assert not predicted.flatten(1)[:, layout.total :].any()
    assert (predicted[0] - predicted[1]).abs().max() > 1e-3


def test_kaiming_convolutions(signals):
    """Variance 2 / (1 + slope^2) / inputs where LeakyReLU follows, 1 / inputs at the decoder's end; biases 0."""
    layout, shape, preps = signals
    netspace = NetSpace(height=shape.height, width=shape.width, embedding_size=256)
    start_from_preps(netspace, preps, preps[0], layout)
    layers = [*list(netspace.encoder.children())[1:3], *netspace.decoder.children()]
    for layer in layers:
        inputs = layer.weight[0].numel()
        expected = (1.0 if layer is netspace.decoder.conv4 else 2 / (1 + 0.01**2)) / inputs
        assert layer.weight.var().item() == pytest.approx(expected, rel=0.15)
        assert not layer.bias.any()


def test_the_same_seed_gives_the_same_start(signals):
    layout, shape, preps = signals
    starts = []
    for _ in range(2):
        torch.manual_seed(3)
        netspace = NetSpace(height=shape.height, width=shape.width, embedding_size=256)
        start_from_preps(netspace, preps, preps[0], layout)
        starts.append(netspace.state_dict())
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])


def test_a_start_that_cannot_be(signals):
    layout, shape, preps = signals
    netspace = NetSpace(height=shape.height, width=shape.width, embedding_size=256)
    with pytest.raises(InitialisationError, match="needs at least 2 of 72 x 64"):
        start_from_preps(netspace, preps[:1], preps[0], layout)
    with pytest.raises(InitialisationError, match=r"found \[40, 4, 64\] and \[72, 64\]"):
        start_from_preps(netspace, preps[:, :4], preps[0], layout)
    with pytest.raises(InitialisationError, match=r"is the same for all 3 PReps.*give more PReps"):
        start_from_preps(netspace, preps[:1].expand(3, -1, -1), preps[0], layout)
    other = prepkit.Layout.of(prepkit.architecture("lenet_like@cifar10").build())
    with pytest.raises(InitialisationError, match="a layout of 62,006 values does not fit PReps of 72 x 64"):
        start_from_preps(netspace, preps, preps[0], other)


# About the centroid ---------------------------------------------------------------------------------------------


@pytest.fixture
def near_each_other():
    """16 PReps of 24 x 40 that share a start, in float32: 8 of 700 values and 8 of 900, zeros behind them."""
    generator = np.random.default_rng(0)
    flat = generator.normal(size=960) + generator.normal(size=(16, 960)) * generator.uniform(0, 0.1, size=960)
    totals = [700, 900] * 8
    for row, total in enumerate(totals):
        flat[row, total:] = 0
    flat[:, 5] = flat[0, 5]  # a cell that no training moved
    return torch.from_numpy(flat).float().view(16, 24, 40), totals


def by_numpy(preps, totals):
    """Mean and deviation of each cell over the instances that have a value there, and the scale that follows."""
    flat = preps.numpy().reshape(len(preps), -1).astype(np.float64)
    held = [[row[cell] for row, total in zip(flat, totals, strict=True) if cell < total] for cell in range(max(totals))]
    mean, deviation = np.array([[np.mean(values), np.std(values, ddof=1)] for values in held]).T
    return mean, np.maximum(0.3 * deviation, 0.3 * deviation.mean())


@pytest.mark.parametrize("layouts", [1, 2])
def test_a_start_about_the_centroid(near_each_other, layouts):
    preps, totals = near_each_other
    preps, totals = (preps, totals) if layouts == 2 else (preps[1::2], totals[1::2])
    netspace = NetSpace(height=24, width=40, embedding_size=256, num_architectures=None if layouts == 1 else 2)
    start_from_centroid(netspace, preps, totals)
    mean, scale = by_numpy(preps, totals)
    decoder = netspace.decoder
    np.testing.assert_allclose(decoder.bias.detach().numpy().reshape(-1)[:900], mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(decoder.scale.detach().numpy().reshape(-1)[:900], scale, rtol=1e-5)
    assert decoder.scale.flatten()[5] == decoder.scale.flatten()[:900].min()
    assert not decoder.bias.flatten()[900:].any()
    assert not decoder.scale.flatten()[900:].any()
    # The untrained space predicts the centroid, whatever the embedding, and learns: its gradient reaches the decoder.
    predicted = netspace.decode(netspace.encode(preps))
    np.testing.assert_allclose(
        predicted.detach().numpy().reshape(len(preps), -1)[:, :900], [mean] * len(preps), atol=1e-6
    )
    (predicted - preps).square().mean().backward()
    assert decoder.conv4.weight.grad.abs().max() > 0
    deviation, middle = torch.std_mean(netspace.encode(preps), dim=0)
    torch.testing.assert_close(middle, torch.ones(256), rtol=0, atol=5e-3)
    torch.testing.assert_close(deviation, torch.ones(256), rtol=0, atol=5e-3)


def test_a_start_about_the_centroid_that_cannot_be(near_each_other):
    preps, totals = near_each_other
    netspace = NetSpace(height=24, width=40, embedding_size=256)
    with pytest.raises(InitialisationError, match=r"needs at least 2 of 24 x 40; found \[1, 24, 40\]"):
        start_from_centroid(netspace, preps[:1], totals[:1])
    with pytest.raises(InitialisationError, match="a layout of 961 values does not fit PReps of 24 x 40"):
        start_from_centroid(netspace, preps, [961] * 16)
