"""Operations one by one between layers: which groups they leave free, and that outputs stay, value by value."""

import by_hand
import pytest
import torch
from symmetry_samples import Fn
from torch import nn
from torch.nn import functional

import prepkit

pytestmark = pytest.mark.usefixtures("one_thread")


def between(operation, width=4):
    """Two linear layers with an operation between them, for vectors."""
    torch.manual_seed(0)
    size = operation(torch.randn(2, width, dtype=torch.float64)).shape[-1]
    first, last = nn.Linear(3, width), nn.Linear(size, 2)
    return Fn(lambda self, x: self.last(operation(self.first(x))), first=first, last=last), torch.randn(5, 3)


def pictures(operation, channels=4, outputs=4):
    """Two convolutions with an operation between them."""
    torch.manual_seed(0)
    first, last = nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(outputs, 2, 1)
    return Fn(lambda self, x: self.last(operation(self.first(x))), first=first, last=last), torch.randn(2, 3, 6, 6)


def attended(heads, shared, **options):
    """Attention by torch's own function; `shared` heads of keys and values."""
    torch.manual_seed(0)

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (-1, 2)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(q, k, v, enable_gqa=heads != shared, **options)
        return self.last(mixed.transpose(1, 2).flatten(2))

    layers = {"q": nn.Linear(5, 2 * heads), "k": nn.Linear(5, 2 * shared), "v": nn.Linear(5, 2 * shared)}
    return Fn(forward, **layers, last=nn.Linear(2 * heads, 2)), torch.randn(2, 3, 5)


def heads_by_einsum():
    """Weights with an axis of their own for heads."""
    torch.manual_seed(0)

    def forward(self, x):
        q, k, v = (torch.einsum("btm,mhd->bhtd", x, weight) for weight in (self.q, self.k, self.v))
        return torch.einsum("bhtd,hde->bte", (q @ k.mT).softmax(-1) @ v, self.out)

    network = Fn(forward)
    network.q, network.k, network.v = (nn.Parameter(torch.randn(5, 3, 2)) for _ in range(3))
    network.out = nn.Parameter(torch.randn(3, 2, 4))
    return network, torch.randn(2, 4, 5)


def squeezed():
    """Squeeze and excitation: channels are weighed by what all of them say."""
    torch.manual_seed(0)

    def forward(self, x):
        x = self.stem(x)
        weights = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.last(x * weights)

    layers = {
        "stem": nn.Conv2d(3, 4, 3),
        "down": nn.Conv2d(4, 2, 1),
        "up": nn.Conv2d(2, 4, 1),
        "last": nn.Conv2d(4, 2, 1),
    }
    return Fn(forward, **layers), torch.randn(2, 3, 5, 5)


def written_into():
    """Results are written into a tensor of zeros, part after part."""
    torch.manual_seed(0)

    def forward(self, x):
        y = self.a(x)
        y += self.b(x)
        whole = x.new_zeros(len(x), 7)
        whole[:, :4] = y.relu_()
        whole[:, 4:] = self.c(x)
        return self.last(whole.mul_(2))

    layers = {"a": nn.Linear(3, 4), "b": nn.Linear(3, 4), "c": nn.Linear(3, 3), "last": nn.Linear(7, 2)}
    return Fn(forward, **layers), torch.randn(5, 3)


def bilinear():
    torch.manual_seed(0)
    layers = {"a": nn.Linear(3, 4), "b": nn.Linear(3, 2), "both": nn.Bilinear(4, 2, 5), "last": nn.Linear(5, 2)}
    return Fn(lambda self, x: self.last(torch.relu(self.both(self.a(x), self.b(x)))), **layers), torch.randn(5, 3)


def normed(kind):
    torch.manual_seed(0)
    return nn.Sequential(
        kind(nn.Linear(3, 4)), nn.ReLU(), kind(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 2)
    ), torch.randn(5, 3)


def bags():
    torch.manual_seed(0)
    return nn.Sequential(nn.EmbeddingBag(7, 4), nn.Linear(4, 2)), torch.randint(7, (2, 3))


def looked_up(x):
    return x.gather(1, x.argmax(1, keepdim=True).expand(-1, 4))


# Sizes of the groups that may change places, and how many of these are over others.
CASES = {
    **{
        kind.__name__: (lambda kind=kind: between(kind().eval()), [4])
        for kind in (nn.Hardswish, nn.LogSigmoid, nn.RReLU, nn.Softplus, nn.Hardshrink, nn.SiLU)
    },
    "log softmax": (lambda: between(nn.LogSoftmax(-1)), [4]),
    "PReLU of each unit": (lambda: between(nn.PReLU(4).double().requires_grad_(False)), []),
    "GLU": (lambda: between(nn.GLU(), 8), [4]),
    "gated": (lambda: between(lambda x: functional.silu(x[:, :4]) * x[:, 4:], 8), [4]),
    "maxout": (lambda: between(lambda x: x.unflatten(-1, (4, 2)).amax(-1), 8), [4, 2]),
    "maximum along the units": (lambda: between(lambda x: x / x.abs().max(-1, keepdim=True)[0]), [4]),
    "number of the largest": (lambda: between(lambda x: x + x.argmax(-1, keepdim=True)), []),
    "number of the largest by max": (lambda: between(lambda x: x + x.max(-1, keepdim=True)[1]), []),
    "looked up": (lambda: between(looked_up), []),
    "normalised": (lambda: between(functional.normalize), [4]),
    "standardised": (lambda: between(lambda x: (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True)), [4]),
    "order of the units": (lambda: between(lambda x: x.sort(-1)[0]), []),
    "backwards": (lambda: between(lambda x: x.flip(-1)), []),
    "transformed": (lambda: between(lambda x: torch.fft.rfft(x).abs()), []),
    "one unit as a number": (lambda: between(lambda x: x * float(x[0, 1])), [2]),
    "every second unit": (lambda: between(lambda x: x[:, ::2]), []),
    "repeated": (lambda: between(lambda x: x.repeat(1, 3)), [3, 4]),
    "each repeated": (lambda: between(lambda x: x.repeat_interleave(3, 1)), [3, 4]),
    "outer product": (lambda: between(lambda x: (x[:, :, None] * x[:, None, :]).flatten(1)), [4]),
    "both signs": (lambda: between(lambda x: torch.relu(torch.cat([x, -x], 1))), [4]),
    "stacked": (lambda: between(lambda x: torch.stack([x, x.tanh()], 1).flatten(1)), [4]),
    "out of torch": (lambda: between(lambda x: torch.from_numpy(x.detach().numpy() * 2)), []),
    "windows": (lambda: pictures(lambda x: functional.unfold(x, 2).view(2, 16, 5, 5), outputs=16), [4]),
    "unpooled": (
        lambda: pictures(lambda x: functional.max_unpool2d(*functional.max_pool2d(x, 2, return_indices=True), 2)),
        [4],
    ),
    "circular": (lambda: pictures(nn.CircularPad2d(1)), [4]),
    "response": (lambda: pictures(nn.LocalResponseNorm(2)), []),
    "upsampled": (lambda: pictures(nn.Upsample(scale_factor=2, mode="bilinear")), [4]),
    "shuffled pixels": (lambda: pictures(nn.PixelShuffle(2), 8, 2), [2]),
    "unshuffled pixels": (lambda: pictures(nn.PixelUnshuffle(2), 2, 8), [2]),
    "causal attention": (lambda: attended(3, 3, is_causal=True), [3, 2, 2]),
    "shared heads": (lambda: attended(6, 2), [2, 3, 2, 2]),
    "heads by einsum": (heads_by_einsum, [2, 2, 3]),
    "squeeze and excitation": (squeezed, [4, 2]),
    "written into": (written_into, [4, 3]),
    "bilinear": (bilinear, [4, 2, 5]),
    "weight norm": (lambda: normed(nn.utils.parametrizations.weight_norm), [4, 5]),
    "spectral norm": (lambda: normed(nn.utils.parametrizations.spectral_norm), [4, 5]),
    "bags of words": (bags, [4]),
}


@pytest.mark.parametrize("name", CASES)
def test_an_operation_leaves_these_groups_and_no_output_changes(name):
    make, sizes = CASES[name]
    network, inputs = make()
    network.eval()
    found = prepkit.symmetries(network, inputs)
    assert sorted(group.size for group in found.movable) == sorted(sizes)
    if not sizes:
        assert found.fixtures != ()
        return
    tensors = by_hand.values(network)
    before = by_hand.outputs(network, tensors, inputs)
    moved = by_hand.permuted(found, tensors, by_hand.orders(found))
    assert any(not torch.equal(moved[key], tensors[key]) for key in moved)
    torch.testing.assert_close(by_hand.outputs(network, moved, inputs), before, rtol=1e-9, atol=1e-9)


def test_heads_of_keys_have_groups_of_heads_of_queries():
    network, inputs = attended(6, 2)
    spec = prepkit.symmetries(network, inputs)
    assert spec.permutation_spec()["q.weight"] == ({"product": ["P_0", "P_1", "P_2"]}, None)
    assert spec.permutation_spec()["k.weight"] == ({"product": ["P_0", "P_2"]}, None)
    assert spec.permutation_spec()["v.weight"] == ({"product": ["P_0", "P_3"]}, None)
    assert spec.permutation_spec()["last.weight"] == (None, {"product": ["P_0", "P_1", "P_3"]})
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 7):  # torch 2.6 repeats heads by other operations
        assert [group.over for group in spec.groups] == [(), ("P_0",), ("P_0",), ("P_0",)]


def test_a_rule_that_fails_leaves_its_operation_unknown(monkeypatch):
    from prepkit.symmetry import derive

    def broken(call):
        raise ZeroDivisionError

    network, inputs = between(torch.tanh)
    monkeypatch.setitem(derive.RULES, "tanh", broken)
    found = prepkit.symmetries(network, inputs)
    assert found.movable == ()
    assert "`tanh` reads it, of which nothing is known" in {one.reason for one in found.fixtures}
