"""Bad input to views: each error says what was asked, what was found and what to do."""

import pytest
import torch
from view_samples import networks, packed

from prepkit import views
from prepkit.errors import InvalidShape, LayoutMismatch, PrepkitError


@pytest.fixture(scope="module")
def lenet():
    made, preps = packed("lenet")
    return made[0], preps


@pytest.mark.parametrize("size", [0, -3, True, 2.0, "9"])
def test_sizes_of_tokens(size):
    with pytest.raises(InvalidShape, match="at least 1; found size="):
        views.tokens("lenet_like@digits", size)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda preps: preps[0], r"expected PReps \[N, H, W\], found \[144, 16\]. For one instance, give prep\[None\]"),
        (lambda preps: preps[None], r"found \[1, 3, 144, 16\]"),
        (lambda preps: preps[:, :4], "too small for LeNetLike, which has 2,302 values"),
        (lambda preps: preps.transpose(1, 2), "not row-major in memory"),
        (lambda preps: {"prep": preps}, "preps"),
    ],
)
@pytest.mark.parametrize("kind", ["prep", "flat", "layers", "tokens", "statistics"])
def test_what_is_no_batch_of_preps(lenet, kind, change, words):
    network, preps = lenet
    with pytest.raises(LayoutMismatch, match=words):
        getattr(views, kind)(network)(change(preps))


def test_shapes_of_what_is_brought_back(lenet):
    network, preps = lenet
    view = views.tokens(network)
    tokens = view(preps)
    with pytest.raises(LayoutMismatch, match=r"tokens of LeNetLike have shape \[N, 58, 73\]; found \[3, 58, 72\]"):
        view.inverse(tokens[:, :, 1:])
    with pytest.raises(LayoutMismatch, match=r"found \[58, 73\]"):
        view.inverse(tokens[0])
    with pytest.raises(InvalidShape, match="use height >= 288"):
        view.inverse(tokens, (4, 8))
    with pytest.raises(LayoutMismatch, match=r"flat values of LeNetLike have shape \[N, 2302\]"):
        views.flat(network).inverse(tokens)
    layers = views.layers(network)
    weights, biases, _ = layers(preps)
    with pytest.raises(LayoutMismatch, match="has 5 weights; found 4"):
        layers.inverse((weights[1:], biases))
    with pytest.raises(LayoutMismatch, match=r"biases.1 of LeNetLike have shape \[N, 8\]; found \[3, 4\]"):
        layers.inverse((weights, (biases[0], biases[0], *biases[2:])))
    with pytest.raises(LayoutMismatch, match="the tensors are of 2, 3 instances"):
        layers.inverse((weights, (*biases[:-1], biases[-1][1:])))
    with pytest.raises(LayoutMismatch, match="expected weights, biases and others; found 1 part"):
        layers.inverse((weights,))


def test_layers_refuse_what_they_have_no_place_for():
    with pytest.raises(LayoutMismatch, match=r"2 layers without bias: 0, 2. missing_bias='zeros' gives them"):
        views.layers(networks("without bias", 1)[0])
    with pytest.raises(LayoutMismatch, match=r"1 normalisation among 2 other parts: positions, after.* others="):
        views.layers(networks("attention", 1)[0])
    with pytest.raises(LayoutMismatch, match=r"has no layers with a weight; prepkit.views.flat"):
        views.layers(torch.nn.LayerNorm(4), others="beside")
    with pytest.raises(PrepkitError, match="missing_bias is 'refuse' or 'zeros'; found 'zero'"):
        views.layers("lenet_like@digits", missing_bias="zero")
    with pytest.raises(PrepkitError, match="others is 'refuse' or 'beside'"):
        views.layers("lenet_like@digits", others=None)


@pytest.mark.parametrize("value", [1e-3, float("nan")])
def test_a_bias_of_a_layer_that_has_none(value):
    made, preps = packed("without bias")
    view = views.layers(made[0], missing_bias="zeros")
    weights, biases, _ = view(preps)
    biases[1][2, 0] = value
    with pytest.raises(LayoutMismatch, match="2 of Sequential have no bias, so their biases must be 0"):
        view.inverse((weights, biases))


def test_what_has_no_inverse(lenet):
    network, preps = lenet
    with pytest.raises(LayoutMismatch, match="statistics do not tell the values"):
        views.statistics(network).inverse(views.statistics(network)(preps))
    with pytest.raises(LayoutMismatch, match="outputs do not tell the values"):
        views.outputs("lenet_like@digits", torch.ones(2, 1, 8, 8)).inverse(torch.ones(1))
    with pytest.raises(PrepkitError, match="spread is 'variance' or 'deviation'; found 'std'"):
        views.statistics(network, "std")


@pytest.mark.parametrize("probes", [torch.ones(1, 8, 8), torch.ones(0, 1, 8, 8), torch.ones(2, 1, 8, 9)])
def test_shapes_of_probes(probes):
    with pytest.raises(LayoutMismatch, match=r"probes of lenet_like@digits have shape \[B, 1, 8, 8\]; found"):
        views.outputs("lenet_like@digits", probes)


def test_padding_that_holds_values(lenet):
    """What stands after the last value belongs to no view; PReps that come back have zeros there."""
    network, preps = lenet
    dirty = preps.clone()
    dirty.flatten(1)[:, 2302:] = 7.0
    for view in (views.prep(network), views.flat(network), views.layers(network), views.tokens(network)):
        assert torch.equal(view.inverse(view(dirty), preps.shape[1:]), preps)


def test_repr_is_short():
    assert repr(views.tokens("lenet_like@digits")) == "<Tokens of lenet_like@digits: tokens [N, 58, 73]>"
    shown = repr(views.layers("resnet8@digits", channel=True))
    assert shown == ("<Layers of resnet8@digits: weights.0 [N, 1, 4, 1, 3, 3], biases.0 [N, 1, 4] and 18 more>")
