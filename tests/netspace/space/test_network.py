"""Shapes, parameter counts and arithmetic of NetSpace's network, against formulae and loops written here."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import prepkit
from netspace.space.network import (
    ClassIdClassifier,
    Decoder,
    EmbeddingImage,
    Encoder,
    InvalidNetSpace,
    NetSpace,
    default_columns,
    legal_columns,
)

SIZES = [(4, 8), (8, 24), (12, 40), (44, 64), (88, 128), (8, 512), (8, 10_000), (88, 10_000)]
EMBEDDINGS = [256, 1024, 4096, 16_384]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def size_of(module):
    return sum(parameter.numel() for parameter in module.parameters())


# Shapes and counts, on the meta device: no value is computed -------------------------------------------------------


@pytest.mark.parametrize("embedding", EMBEDDINGS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_shapes(height, width, embedding):
    with torch.device("meta"):
        netspace = NetSpace(height=height, width=width, embedding_size=embedding, num_architectures=4)
        latent = netspace.encode(torch.empty(2, height, width))
        assert latent.shape == (2, embedding)
        assert netspace.decode(latent).shape == (2, height, width)
        assert netspace.classify(latent).shape == (2, 4)


@pytest.mark.parametrize(
    ("embedding", "channels", "side"), [(256, 1, 16), (1024, 1, 32), (4096, 1, 64), (16_384, 4, 64), (65_536, 16, 64)]
)
@pytest.mark.parametrize(("height", "width", "columns"), [(4, 8, 2), (8, 24, 12), (88, 128, 64), (88, 10_000, 2048)])
def test_parameter_counts(height, width, columns, embedding, channels, side):
    with torch.device("meta"):
        netspace = NetSpace(height=height, width=width, embedding_size=embedding, num_architectures=3, columns=columns)
    e = embedding
    assert size_of(netspace.encoder) == (
        (3 + 1) * e // 32 + (3 * e // 32 + 1) * e // 16 + (3 * e // 16 + 1) * e // 8 + (3 * e // 8 + 1) * e
    )
    # As many outputs as the next shape has values for each place of the map.
    first, places = divmod(128 * height * columns, (side // 2) ** 2)
    second, rest = divmod(512 * (height // 2) * (width // 4), (height // 2) * (columns // 2))
    assert places == rest == 0
    assert size_of(netspace.decoder) == (
        (9 * channels + 1) * first
        + (9 * 128 + 1) * second
        + (9 * 512 + 1) * 256
        + (9 * 256 + 1) * 32
        + 2 * height * width
    )
    assert size_of(netspace.classifier) == (9 * channels + 1) * 10 + (10 * side * side // 4 + 1) * 3


def test_the_papers_sizes():
    """METHOD's formulae: 256 H and W / 8 outputs, embeddings of 4096 values as 64 x 64."""
    with torch.device("meta"):
        netspace = NetSpace(height=8, width=10_000, embedding_size=4096)
    decoder = netspace.decoder
    assert netspace.columns == 2048
    assert [layer.out_channels for layer in decoder.children()] == [256 * 8, 10_000 // 8, 256, 32]
    assert [layer.in_channels for layer in decoder.children()] == [1, 128, 512, 256]
    assert [layer.stride for layer in decoder.children()] == [(2, 2), (2, 2), (2, 2), (1, 1)]
    assert {(layer.kernel_size, layer.padding) for layer in decoder.children()} == {((3, 3), (1, 1))}
    assert [layer.out_channels for layer in netspace.encoder.children()] == [128, 256, 512, 4096]


def test_default_columns_are_half_the_width_up_to_the_papers():
    known = {8: 4, 24: 12, 64: 32, 128: 64, 512: 256, 4096: 2048, 4104: 2048, 10_000: 2048, 100_000: 2048}
    assert {width: default_columns(width) for width in known} == known


@pytest.mark.parametrize("side", [16, 32, 64])
def test_legal_columns_keep_the_element_counts(side):
    """Exactly those columns for which every step of the decoder keeps the number of values, at every height."""
    for width in range(8, 121, 8):
        expected = [
            columns
            for columns in range(1, 256 * width + 1)
            if (256 * width) % columns == 0
            and 256 * width // columns * math.ceil(columns / 2) == 512 * (width // 4)
            and all(128 * height * columns % (side // 2) ** 2 == 0 for height in range(4, 41, 4))
        ]
        assert legal_columns(width) == expected
        assert default_columns(width) in expected


@pytest.mark.parametrize("columns", legal_columns(24))
def test_every_legal_number_of_columns_decodes(columns):
    with torch.device("meta"):
        for embedding in EMBEDDINGS:
            assert Decoder(4, 24, embedding, columns)(torch.empty(2, embedding)).shape == (2, 4, 24)


def test_the_embedding_has_one_size_for_preps_of_any_size():
    netspace = NetSpace(height=4, width=8, embedding_size=256)
    for height, width in [(4, 8), (8, 8), (4, 64), (1, 1), (7, 33), (124, 512)]:
        latent = netspace.encode(torch.randn(2, height, width))
        assert latent.shape == (2, 256)
        assert netspace.decode(latent).shape == (2, 4, 8)


def test_no_instances():
    netspace = NetSpace(height=4, width=8, embedding_size=256, num_architectures=2)
    latent = netspace.encode(torch.empty(0, 4, 8))
    assert latent.shape == (0, 256)
    assert netspace.decode(latent).shape == (0, 4, 8)
    assert netspace.classify(latent).shape == (0, 2)


# Arithmetic, in float64 loops --------------------------------------------------------------------------------------


def leaky(x):
    return x if x > 0 else 0.01 * x


def written_encoder(prep, weights):
    """The encoder for one PRep, METHOD's steps 1 to 4, a number at a time."""
    (w1, b1), (w2, b2), (w3, b3), (w4, b4) = weights
    height = prep.shape[0]
    maps = [prep]
    for w, b in ((w1, b1), (w2, b2)):
        width = maps[0].shape[1]
        outputs = []
        for o in range(len(b)):
            out = np.zeros((height, (width + 1) // 2))
            for row in range(height):
                for column in range(out.shape[1]):
                    total = b[o]
                    for i in range(len(maps)):
                        for k in range(3):
                            place = 2 * column + k - 1
                            if 0 <= place < width:
                                total += w[o, i, 0, k] * maps[i][row, place]
                    out[row, column] = leaky(total)
            outputs.append(out)
        maps = outputs
    lines = [[max(m[row]) for row in range(height)] for m in maps]
    for w, b in ((w3, b3), (w4, b4)):
        outputs = []
        for o in range(len(b)):
            line = []
            for row in range(height):
                total = b[o]
                for i in range(len(lines)):
                    for k in range(3):
                        if 0 <= row + k - 1 < height:
                            total += w[o, i, k, 0] * lines[i][row + k - 1]
                line.append(leaky(total))
            outputs.append(line)
        lines = outputs
    return [max(line) for line in lines]


def arrays(module):
    layers = [layer for layer in module.children() if isinstance(layer, nn.Conv2d)]
    return [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in layers]


def test_the_encoder_against_loops():
    encoder = Encoder(256).double()
    preps = torch.randn(2, 4, 10, dtype=torch.float64)
    found = encoder(preps).detach().numpy()
    for prep, latent in zip(preps.numpy(), found, strict=True):
        np.testing.assert_allclose(latent, written_encoder(prep, arrays(encoder)), rtol=1e-12, atol=1e-14)


def written_convolution(images, weight, bias, stride):
    """3 x 3 convolution with padding 1, a place and a tap at a time."""
    _, rows, columns = images.shape
    out = np.zeros((len(bias), (rows + stride - 1) // stride, (columns + stride - 1) // stride))
    for row in range(out.shape[1]):
        for column in range(out.shape[2]):
            out[:, row, column] = bias
            for u in range(3):
                for v in range(3):
                    y, x = stride * row + u - 1, stride * column + v - 1
                    if 0 <= y < rows and 0 <= x < columns:
                        out[:, row, column] += weight[:, :, u, v] @ images[:, y, x]
    return out


@pytest.mark.parametrize(("embedding", "channels", "side"), [(256, 1, 16), (16_384, 4, 64)])
def test_decoder_and_classifier_against_loops(embedding, channels, side):
    height, width, columns = 4, 16, 4
    decoder = Decoder(height, width, embedding, columns).double()
    classifier = ClassIdClassifier(embedding, 3).double()
    latent = torch.randn(1, embedding, dtype=torch.float64)
    image = latent.numpy().reshape(channels, side, side)
    shapes = [(128, height, columns), (512, height // 2, width // 4), (256, height // 4, width // 8)]
    maps = image
    for (weight, bias), shape in zip(arrays(decoder)[:3], shapes, strict=True):
        maps = written_convolution(maps, weight, bias, 2)
        maps = np.where(maps > 0, maps, 0.01 * maps).reshape(shape)
    cells = written_convolution(maps, *arrays(decoder)[3], 1).reshape(height, width)
    expected = cells * decoder.scale.detach().numpy() + decoder.bias.detach().numpy()
    np.testing.assert_allclose(decoder(latent)[0].detach().numpy(), expected, rtol=1e-10, atol=1e-14)

    features = written_convolution(image, *arrays(classifier)[0], 2)
    features = np.where(features > 0, features, 0.01 * features).reshape(-1)
    linear = classifier.linear
    logits = linear.weight.detach().numpy() @ features + linear.bias.detach().numpy()
    np.testing.assert_allclose(classifier(latent)[0].detach().numpy(), logits, rtol=1e-10, atol=1e-14)


# Gradients and padding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("initialisation", ["paper", "small_zoos"])
def test_gradients_reach_all_parameters(initialisation):
    netspace = NetSpace(height=8, width=16, embedding_size=256, num_architectures=3, initialisation=initialisation)
    latent = netspace.encode(torch.randn(4, 8, 16))
    (netspace.decode(latent).square().sum() + netspace.classify(latent).square().sum()).backward()
    for name, parameter in netspace.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.flatten(1).abs().amax(1).min() > 0 if parameter.dim() > 1 else parameter.grad.any(), name
    assert netspace.decoder.scale.grad.all()
    assert netspace.decoder.bias.grad.all()


def test_padding_does_not_break():
    """Zero rows make ties in every maximum; the gradient goes to one position, and instances do not mix."""
    netspace = NetSpace(height=12, width=16, embedding_size=256)
    preps = torch.randn(3, 12, 16)
    preps[0, 5:], preps[1] = 0.0, 0.0
    preps.requires_grad_()
    latent = netspace.encode(preps)
    assert torch.isfinite(netspace.decode(latent)).all()
    torch.testing.assert_close(latent[:1], netspace.encode(preps[:1]))
    latent[:2].sum().backward()
    assert torch.isfinite(preps.grad).all()
    assert preps.grad[0].any()
    assert not preps.grad[2].any()

    flat = torch.zeros(1, 4, 400, requires_grad=True)
    netspace.encode(flat).sum().backward()
    inner = flat.grad[0, 1, 8:-8]  # away from the borders all places tie, and one alone may be chosen
    assert inner.count_nonzero() <= 7 * 16


def test_a_state_dict_brings_the_network_back():
    first, second = (NetSpace(height=4, width=8, embedding_size=256, num_architectures=2) for _ in range(2))
    preps = torch.randn(2, 4, 8)
    assert not torch.equal(first.decode(first.encode(preps)), second.decode(second.encode(preps)))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.decode(first.encode(preps)), second.decode(second.encode(preps)))


# Errors ------------------------------------------------------------------------------------------------------------


def test_the_image_of_an_embedding():
    assert EmbeddingImage.of(256) == EmbeddingImage(1, 16)
    assert EmbeddingImage.of(65_536) == EmbeddingImage(16, 64)
    assert [EmbeddingImage.of(4**k).size for k in range(4, 10)] == [4**k for k in range(4, 10)]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"embedding_size": 1000}, "embedding_size 1000 is not 4^k with k >= 4; use 256 or 1024."),
        ({"embedding_size": 512}, "embedding_size 512 is not 4^k with k >= 4; use 256 or 1024."),
        ({"embedding_size": 64}, "embedding_size 64 is not 4^k with k >= 4; use 256."),
        ({"embedding_size": 0}, "embedding_size 0 is too small; use at least 1."),
        ({"embedding_size": 256.0}, "embedding_size must be a whole number, not 256.0."),
        ({"num_architectures": 1}, "num_architectures 1 is too small; use at least 2 (for one architecture use None"),
        ({"num_architectures": True}, "num_architectures must be a whole number, not True."),
        ({"columns": 100}, "columns 100 do not keep the element counts for a width of 16: they must be even and divide "
                           "256 x 16 = 4,096; use 64 or 128, or leave them out."),
        ({"columns": 1}, "use 2, or leave them out."),
        ({"columns": 8192}, "use 4096, or leave them out."),
        ({"columns": 0}, "columns 0 is too small; use at least 1."),
        ({"width": 12}, "width 12 is not a multiple of 8; use 8 or 16."),
        ({"height": 6}, "height 6 is not a multiple of 4; use 4 or 8."),
        ({"initialisation": "quick"}, "'quick'; use one of 'paper', 'small_zoos', 'without_scale'."),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be(changed, message):
    with pytest.raises(prepkit.PrepkitError) as error:
        NetSpace(**{"height": 8, "width": 16, "embedding_size": 256, **changed})
    assert message in str(error.value)


def test_tensors_that_cannot_be_read():
    netspace = NetSpace(height=4, width=8, embedding_size=256)
    with pytest.raises(InvalidNetSpace, match=r"PReps of \[4, 8\] cannot be encoded; give \[N, H, W\]"):
        netspace.encode(torch.zeros(4, 8))
    with pytest.raises(InvalidNetSpace, match=r"PReps of \[2, 0, 8\] cannot be encoded"):
        netspace.encode(torch.zeros(2, 0, 8))
    for latent in (torch.zeros(256), torch.zeros(2, 128)):
        with pytest.raises(InvalidNetSpace, match=r"this NetSpace has \[N, 256\]"):
            netspace.decode(latent)
    with pytest.raises(InvalidNetSpace, match="has no ClassId classifier"):
        netspace.classify(torch.zeros(2, 256))
