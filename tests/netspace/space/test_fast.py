"""NetSpace's fast functions for a CPU against the plain network that defines them, in float64 and in bfloat16."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity
from torch.utils._python_dispatch import TorchDispatchMode

from netspace.space import fast, network
from netspace.space.network import Decoder, Encoder, NetSpace

pytestmark = pytest.mark.usefixtures("one_thread")

# Height, width, embedding, columns: also columns that 4 does not divide, one place or row in a map, several channels.
SIZES = [
    (4, 8, 256, 2),
    (4, 8, 256, 4),
    (8, 24, 256, 12),
    (12, 40, 1024, 20),
    (8, 56, 256, 14),
    (16, 120, 256, 30),
    (4, 24, 16_384, 6),
    (8, 64, 256, 2),
    (8, 512, 256, 1024),
]
WIDTHS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 33, 255, 256, 257, 300, 1023]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def fast_encode(encoder):
    return lambda preps: fast.encode(preps, (encoder.conv1, encoder.conv2, encoder.conv3, encoder.conv4))


def fast_decode(decoder):
    convolutions = (decoder.conv1, decoder.conv2, decoder.conv3, decoder.conv4)

    def decode(latent):
        images = decoder.image.view(latent)
        cells = fast.decode(images, convolutions, decoder.height, decoder.width, decoder.columns)
        return cells * decoder.scale + decoder.bias

    return decode


def results(function, given, module):
    """The output and all gradients of a sum that weighs it unevenly, by name; None where none is asked for."""
    given = given.clone().requires_grad_(given.requires_grad)
    outputs = function(given)
    weights = torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype).view_as(outputs).cos()
    asked = {"input": given, **dict(module.named_parameters())}
    asked = {name: tensor for name, tensor in asked.items() if tensor.requires_grad}
    if not asked:
        assert not outputs.requires_grad
        return {"output": outputs}
    gradients = torch.autograd.grad((outputs * weights).sum(), list(asked.values()))
    return {"output": outputs.detach(), **dict(zip(asked, gradients, strict=True))}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        assert found[name].dtype == value.dtype, name
        error = float((found[name] - value).abs().max() / value.abs().max().clamp(min=1e-30))
        assert error < 1e-12, (name, error)


# The same numbers in float64 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("embedding", [256, 1024])
@pytest.mark.parametrize("width", WIDTHS)
def test_encoder(width, embedding):
    encoder = Encoder(embedding).double()
    preps = torch.randn(2, 5, width, dtype=torch.float64, requires_grad=True)
    assert_same(results(fast_encode(encoder), preps, encoder), results(encoder.plain, preps, encoder))


@pytest.mark.parametrize("height", [1, 2, 3, 8])
def test_encoder_of_few_rows(height):
    encoder = Encoder(256).double()
    preps = torch.randn(3, height, 70, dtype=torch.float64, requires_grad=True)
    assert_same(results(fast_encode(encoder), preps, encoder), results(encoder.plain, preps, encoder))


@pytest.mark.parametrize("size", SIZES)
def test_decoder(size):
    decoder = Decoder(*size).double()
    latent = torch.randn(3, size[2], dtype=torch.float64, requires_grad=True)
    assert_same(results(fast_decode(decoder), latent, decoder), results(decoder.plain, latent, decoder))


def test_the_papers_sizes():
    """One row of blocks after another, and all of the decoder's columns."""
    space = NetSpace(height=8, width=10_000, embedding_size=4096).double()
    preps = torch.randn(1, 8, 10_000, dtype=torch.float64)
    assert_same(results(space.encode, preps, space.encoder), results(space.encoder.plain, preps, space.encoder))
    latent = torch.randn(1, 4096, dtype=torch.float64, requires_grad=True)
    assert_same(results(space.decode, latent, space.decoder), results(space.decoder.plain, latent, space.decoder))


@pytest.mark.parametrize("blocks", [1, 300, 2000])
def test_blocks_of_rows_do_not_matter(blocks, monkeypatch):
    encoder = Encoder(256).double()
    preps = torch.randn(3, 7, 90, dtype=torch.float64, requires_grad=True)
    expected = results(encoder.plain, preps, encoder)
    monkeypatch.setitem(fast._encoder.BLOCK_VALUES, "cpu", blocks)
    assert_same(results(fast_encode(encoder), preps, encoder), expected)


@pytest.mark.parametrize("width", [8, 400, 1003])
def test_ties_take_the_first_place(width):
    """Zero rows make a tie of every place; gradients with respect to PReps show which was taken."""
    encoder = Encoder(256).double()
    preps = torch.randn(3, 6, width, dtype=torch.float64)
    preps[0], preps[1, 2:], preps[2, :, width // 2 :] = 0.0, 0.0, 0.0
    preps[1, 0] = preps[1, 0, :4].repeat(width // 4 + 1)[:width]  # the same four values again and again
    preps.requires_grad_()
    expected = results(encoder.plain, preps, encoder)
    assert_same(results(fast_encode(encoder), preps, encoder), expected)
    assert expected["input"][0].any()


def test_not_a_number_is_not_hidden():
    encoder = Encoder(256)
    preps = torch.randn(2, 3, 500)
    preps[1, 1, 350] = float("nan")
    latent = fast_encode(encoder)(preps)
    assert torch.isfinite(latent[0]).all()
    assert latent[1].isnan().all() == encoder.plain(preps)[1].isnan().all()
    assert latent[1].isnan().any()


# What is asked for -------------------------------------------------------------------------------------------------


def ask_for(module, start):
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(bool(start) and name.startswith(start))


@pytest.mark.parametrize("names", ["", "conv1", "conv2.weight", "conv3", "conv4.bias", "scale"])
@pytest.mark.parametrize("latent_too", [True, False])
def test_decoder_with_frozen_layers(names, latent_too):
    """Latent optimisation asks for the embedding's gradient alone."""
    decoder = Decoder(8, 24, 256).double()
    ask_for(decoder, names)
    latent = torch.randn(3, 256, dtype=torch.float64, requires_grad=latent_too)
    assert_same(results(fast_decode(decoder), latent, decoder), results(decoder.plain, latent, decoder))


@pytest.mark.parametrize("names", ["", "conv1.weight", "conv1.bias", "conv2", "conv2.bias", "conv4"])
@pytest.mark.parametrize("preps_too", [True, False])
def test_encoder_with_frozen_layers(names, preps_too):
    encoder = Encoder(256).double()
    ask_for(encoder, names)
    preps = torch.randn(3, 4, 100, dtype=torch.float64, requires_grad=preps_too)
    assert_same(results(fast_encode(encoder), preps, encoder), results(encoder.plain, preps, encoder))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode):
    space = NetSpace(height=8, width=24, embedding_size=256).double()
    preps = torch.randn(3, 8, 24, dtype=torch.float64)
    with mode():
        latent = fast_encode(space.encoder)(preps)
        torch.testing.assert_close(latent, space.encoder.plain(preps), rtol=1e-12, atol=1e-14)
        found = fast_decode(space.decoder)(latent)
        torch.testing.assert_close(found, space.decoder.plain(latent), rtol=1e-12, atol=1e-14)
    assert not found.requires_grad


def test_backward_twice_and_two_forwards():
    """Rooms are used again and sums begin anew, within a graph and beside another one."""
    decoder = Decoder(8, 24, 256).double()
    first, second = (torch.randn(2, 256, dtype=torch.float64, requires_grad=True) for _ in range(2))
    parameters = list(decoder.parameters())
    outputs = [fast_decode(decoder)(latent).square().sum() for latent in (first, second)]
    twice = [torch.autograd.grad(outputs[0], [first, *parameters], retain_graph=True) for _ in range(2)]
    other = torch.autograd.grad(outputs[1], [second, *parameters])
    for a, b in zip(*twice, strict=True):
        assert torch.equal(a, b)
    expected = torch.autograd.grad(decoder.plain(second).square().sum(), [second, *parameters])
    for a, b in zip(other, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


# Bfloat16 ----------------------------------------------------------------------------------------------------------


def test_bfloat16_stays_near_and_gives_float32():
    space = NetSpace(height=8, width=512, embedding_size=256, columns=256, initialisation="small_zoos")
    preps = torch.randn(3, 8, 512)

    def both(encode, decode, half):
        space.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            latent = encode(preps)
            predicted = decode(latent)
        predicted.float().square().sum().backward()
        gradients = [parameter.grad for parameter in space.parameters()]
        return latent, predicted, gradients

    exact = both(space.encoder.plain, space.decoder.plain, half=False)
    found = both(fast_encode(space.encoder), fast_decode(space.decoder), half=True)
    plain = both(space.encoder.plain, space.decoder.plain, half=True)
    assert {tensor.dtype for tensor in (*found[:2], *found[2])} == {torch.float32}
    for position, limit in enumerate((1e-3, 2e-2)):  # of an embedding only the places of maxima are rounded
        assert (found[position] - exact[position]).abs().max() < limit * exact[position].abs().max()
    flat = [torch.cat([gradient.flatten() for gradient in way[2]]) for way in (exact, found, plain)]
    cosine = [float(cosine_similarity(flat[0], other, dim=0)) for other in flat[1:]]
    assert cosine[0] > 0.998
    assert cosine[0] > cosine[1] - 1e-3  # at least about as good as autocast of the plain network


@pytest.mark.parametrize("columns", [16, 30])
def test_bfloat16_reads_nothing_that_was_not_written(columns, monkeypatch):
    """Products in bfloat16 read beyond rows of odd lengths, and times 0 a NaN stays."""
    space = NetSpace(height=8, width=120, embedding_size=256, columns=columns)
    preps = torch.randn(3, 8, 300)

    def step():
        space.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            predicted = fast_decode(space.decoder)(fast_encode(space.encoder)(preps))
        predicted.square().sum().backward()
        return [predicted.detach(), *(parameter.grad.clone() for parameter in space.parameters())]

    new_empty = torch.Tensor.new_empty

    def filled(self, *args, **kwargs):
        fresh = new_empty(self, *args, **kwargs)
        return fresh.fill_(float("nan")) if fresh.is_floating_point() else fresh

    expected = step()
    monkeypatch.setattr(torch.Tensor, "new_empty", filled)
    for found, value in zip(step(), expected, strict=True):
        assert torch.isfinite(value).all()
        assert torch.equal(found, value)


# Which way is taken ------------------------------------------------------------------------------------------------


@pytest.fixture
def taken(monkeypatch):
    """Which fast functions were called."""
    calls = []
    for name in ("encode", "decode"):
        function = getattr(fast, name)
        monkeypatch.setattr(
            network.fast, name, lambda *args, name=name, function=function: (calls.append(name), function(*args))[1]
        )
    return calls


def test_wide_preps_go_the_fast_way_and_small_ones_the_plain(taken):
    for width, expected in ((128, []), (1024, ["encode"]), (4096, ["encode", "encode", "decode"])):
        space = NetSpace(height=4, width=width, embedding_size=256)
        space.decode(space.encode(torch.zeros(1, 4, width)))
        assert taken == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_dtypes_go_the_plain_way(taken, dtype):
    space = NetSpace(height=4, width=4096, embedding_size=256).to(dtype)
    with torch.no_grad():
        assert space.encode(torch.zeros(1, 4, 4096, dtype=dtype)).dtype == dtype
    assert taken == []


def test_float16_autocast_goes_the_plain_way(taken):
    space = NetSpace(height=4, width=4096, embedding_size=256)
    with torch.autocast("cpu", torch.float16), torch.no_grad():
        assert space.decode(space.encode(torch.zeros(1, 4, 4096))).shape == (1, 4, 4096)
    assert taken == []


def test_other_devices_go_the_plain_way(taken):
    with torch.device("meta"):
        space = NetSpace(height=4, width=4096, embedding_size=256)
        assert space.decode(space.encode(torch.empty(2, 4, 4096))).shape == (2, 4, 4096)
    assert taken == []


def test_one_switch_leads_all_to_the_plain_network(taken, monkeypatch):
    space = NetSpace(height=4, width=4096, embedding_size=256)
    preps = torch.randn(1, 4, 4096)
    with torch.no_grad():
        space.decode(space.encode(preps))
        assert taken
        taken.clear()
        monkeypatch.setattr(fast._products, "enabled", False)
        space.decode(space.encode(preps))
    assert taken == []


def test_float64_under_autocast_stays_exact():
    """Autocast leaves float64 alone; so do these."""
    encoder = Encoder(256).double()
    preps = torch.randn(2, 4, 600, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(fast_encode(encoder)(preps), encoder.plain(preps), rtol=1e-12, atol=1e-14)


def test_modules_keep_their_names():
    """What is saved does not depend on the way that is taken."""
    names = [name for name, _ in NetSpace(height=4, width=8, embedding_size=256).named_parameters()]
    assert names[:2] == ["encoder.conv1.weight", "encoder.conv1.bias"]
    assert all(isinstance(layer, nn.Conv2d) for layer in Encoder(256).children())


def gpu_decode(decoder, third_as_product):
    """A GPU's decoder, which runs on any device; only where it is faster it is chosen."""
    convolutions = (decoder.conv1, decoder.conv2, decoder.conv3, decoder.conv4)

    def decode(latent):
        images, sizes = decoder.image.view(latent), (decoder.height, decoder.width, decoder.columns)
        cells = fast.decode_channels_last(images, convolutions, *sizes, third_as_product)
        return cells * decoder.scale + decoder.bias

    return decode


LARGE = (12, 2048, 4096, 1024)


@pytest.mark.parametrize(
    ("size", "third_as_product"),
    [
        ((8, 128, 256, 64), False),
        ((8, 128, 256, 64), True),
        (LARGE, False),
        pytest.param(LARGE, True, marks=pytest.mark.slow),
    ],
)
def test_a_gpus_decoder_computes_what_the_plain_one_does(size, third_as_product):
    decoder = Decoder(*size).double()
    latent = torch.randn(3, size[2], dtype=torch.float64, requires_grad=True)
    found = results(gpu_decode(decoder, third_as_product), latent, decoder)
    assert_same(found, results(decoder.plain, latent, decoder))
    assert not fast.decodes_channels_last(latent, decoder, decoder.conv1.out_channels)  # not on a CPU


@pytest.mark.parametrize("size", [(4, 24, 256, 16), (12, 8, 256, 16), (8, 40, 1024, 128)])
def test_the_third_convolution_as_a_product_at_other_sizes(size):
    """One row, one place, and numbers of places that are no multiples of 8, which are filled up with zeros."""
    decoder = Decoder(*size).double()
    latent = torch.randn(2, size[2], dtype=torch.float64, requires_grad=True)
    assert_same(results(gpu_decode(decoder, True), latent, decoder), results(decoder.plain, latent, decoder))


@pytest.mark.parametrize("third_as_product", [False, True])
def test_a_gpus_decoder_in_bfloat16_is_as_near_as_autocast_of_the_plain_one(third_as_product):
    """Weights are cast once a step; no output and no gradient is farther from float32 than rounding explains."""
    decoder = Decoder(8, 128, 256, 64, "small_zoos")
    latent = torch.randn(3, 256, requires_grad=True)
    exact = results(decoder.plain, latent, decoder)
    with torch.autocast("cpu", torch.bfloat16):
        plain = results(decoder.plain, latent, decoder)
        found = results(gpu_decode(decoder, third_as_product), latent, decoder)
    for name, value in exact.items():
        assert found[name].dtype == torch.float32, name
        own, other = (float((way[name] - value).norm() / value.norm()) for way in (found, plain))
        assert own < 1.25 * other + 2**-9, (name, own, other)


def test_a_gpus_decoder_casts_each_weight_once_a_step():
    """Also where the batch is large; autocast would cast at each use."""

    sizes = []

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            found = operation(*args, **(kwargs or {}))
            if operation is torch.ops.aten._to_copy.default and found.dtype == torch.bfloat16:
                sizes.append(found.numel())
            return found

    decoder = Decoder(4, 24, 256, 16)
    latent = torch.randn(5, 256, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), Casts():
        gpu_decode(decoder, True)(latent)
    factors = [decoder.conv1, decoder.conv2, decoder.conv3]
    padded = [layer.weight[0].numel() + 1 + -(layer.weight[0].numel() + 1) % 8 for layer in factors]
    expected = [layer.out_channels * width for layer, width in zip(factors, padded, strict=True)]
    for size in (*expected, decoder.conv4.weight.numel()):
        assert sizes.count(size) == 1, (size, sizes)
