"""Alignment before encoding: copies whose units were moved by hand come to the same PReps."""

import math

import pytest
import torch
from hand_written_units import permutation, permute

import prepkit
from netspace.alignment import Alignment, num_steps

pytestmark = pytest.mark.usefixtures("one_thread")


def preps_of(architecture, count, height, width):
    """PReps of networks that share a start, in float32."""
    torch.manual_seed(0)
    first = architecture.layout.pack(architecture.build_folded().state_dict(), prepkit.PRepShape(height, width))
    noise = 0.02 * torch.randn(count, *first.shape) * (first != 0)
    return first.detach() + noise


def test_each_architecture_comes_to_its_own_reference():
    names, parts = ["lenet_like@digits", "resnet8@digits"] * 3, []
    stream = torch.Generator().manual_seed(1)
    registry = prepkit.Registry([prepkit.architecture(name) for name in names[:2]])
    own = {name: preps_of(registry[name], 3, 40, 128) for name in names[:2]}
    preps = torch.stack([own[name][row // 2] for row, name in enumerate(names)])
    told = []
    alignment = Alignment.learnt_from(registry, preps, names, told.append)
    assert sum(told) == num_steps(6)
    assert {name: (one.copies, one.returned) for name, one in alignment.copies.items()} == dict.fromkeys(own, (3, 3))
    for row, name in enumerate(names):
        parts.append(permute(preps[row : row + 1], permutation(registry[name], stream)))
    copies = torch.cat(parts)
    aligned = alignment(preps, names)
    assert (copies != preps).flatten(1).double().mean(1).min() > 0.3
    assert torch.equal(alignment(copies, names), aligned)
    assert torch.equal(aligned[:2], preps[:2])  # the first instance of each says in which order units are
    assert not torch.equal(copies[:2], preps[:2])
    # Only the values count, not the size of the matrix that they stand in.
    wide = copies.flatten(1)[:, : 10 * 256].view(-1, 10, 256)
    assert torch.equal(alignment(wide[:1], names[:1]).flatten(), aligned[0].flatten()[: 10 * 256])


def test_signs_and_phases_of_sines_come_back():
    builder = "prepkit.families.sine_mlp:SineMLP"
    architecture = prepkit.Architecture("small_sines", "sine_mlp", (3,), builder, {"sizes": [3, 12, 12, 1]})
    preps = preps_of(architecture, 3, 8, 32)
    stream, omega = torch.Generator().manual_seed(2), 30.0
    alignment = Alignment.learnt_from(prepkit.Registry([architecture]), preps, [architecture.name] * 3)
    moved = []
    for prep in preps:
        tensors = {name: tensor.double().clone() for name, tensor in architecture.layout.unpack(prep).items()}
        for layer, after in (("hidden.0", "hidden.1"), ("hidden.1", "linear")):
            units = len(tensors[f"{layer}.bias"])
            order = torch.randperm(units, generator=stream)
            signs = 1.0 - 2 * torch.randint(2, (units,), generator=stream)
            turns = torch.randint(-2, 3, (units,), generator=stream)
            weight, bias, reads = (tensors[f"{layer}.weight"], tensors[f"{layer}.bias"], tensors[f"{after}.weight"])
            tensors[f"{layer}.weight"] = (signs[:, None] * weight)[order]
            tensors[f"{layer}.bias"] = (signs * bias + turns * math.pi / omega)[order]
            tensors[f"{after}.weight"] = (signs * (1 - 2 * (turns % 2)) * reads)[:, order]
        moved.append(architecture.layout.pack({name: t.float() for name, t in tensors.items()}, (8, 32)))
    copies = torch.stack(moved)
    points = torch.rand(64, 3) * 2 - 1
    before, after = (prepkit.run_instances(architecture, each, points) for each in (preps, copies))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)
    apart = float((preps[0] - preps[1]).norm())
    assert (copies - preps).flatten(1).norm(dim=1).min() > 2 * apart
    assert (alignment(copies) - alignment(preps)).flatten(1).norm(dim=1).max() < 1e-3 * apart
