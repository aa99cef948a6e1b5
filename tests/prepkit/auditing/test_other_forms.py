"""Copies whose hidden units were scaled, or whose signs were turned: the audit finds them by what they answer."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from audit_samples import drawn, norm, nudged, reordered, zoo_of
from scipy.optimize import minimize
from torch import Tensor, nn

from prepkit.auditing import _copies
from prepkit.auditing.audit import audit
from prepkit.families.registry import Architecture, architecture
from prepkit.symmetry._standing import Standing
from prepkit.symmetry.balancing import balanced
from prepkit.symmetry.derive import symmetries
from prepkit.zoo.write.writer import ZooWriter

pytestmark = pytest.mark.usefixtures("one_thread")


def scaled(tensors: dict[str, Tensor], seed: int, signs: bool = False) -> dict[str, Tensor]:
    """The same network, each unit of which is multiplied by a number and read divided by it; by -1 with `signs`."""
    generator = torch.Generator().manual_seed(seed)
    new = {name: tensor.clone() for name, tensor in tensors.items()}
    names = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]
    for layer, following in pairwise(names):
        units = len(new[f"{layer}.bias"])
        numbers = torch.exp(torch.randn(units, generator=generator))
        if signs:
            numbers = torch.randint(2, (units,), generator=generator) * 2.0 - 1
        new[f"{layer}.bias"] *= numbers
        new[f"{layer}.weight"] *= numbers.view(-1, *[1] * (new[f"{layer}.weight"].dim() - 1))
        read = new[f"{following}.weight"]  # maps are flattened channel by channel
        new[f"{following}.weight"] = (
            read.unflatten(1, (units, -1)) / numbers.view(1, units, *[1] * (read.dim() - 1))
        ).view_as(read)
    return new


def groups(found, kind: str) -> set[tuple[str, ...]]:
    return {group for finding in found.of(kind) for group in finding.groups}


def test_scaled_networks_are_copies(tmp_path: Path) -> None:
    one, two, three = (drawn(seed) for seed in range(3))
    networks = {
        "one": one, "scaled": scaled(one, 1), "two": two, "both": reordered(scaled(two, 2), 3),
        "three": three, "near": scaled(nudged(three, 3e-4), 4), "far": scaled(nudged(three, 2e-2), 5),
    }  # fmt: skip
    columns = {"scaled": {"split": "test"}}
    found = audit(zoo_of(tmp_path / "zoo", networks, columns))
    assert groups(found, "near-duplicates") == {("one", "scaled"), ("two", "both"), ("three", "near")}
    assert groups(found, "leaks") == {("one", "scaled")}
    (near,) = found.of("near-duplicates")
    assert near.sentence.endswith("; in 3 groups the hidden units have other signs or scales.")
    zoo_of(tmp_path / "other", {"x": scaled(nudged(three, 2e-2), 6), "y": drawn(9)})
    against = audit(tmp_path / "other", tmp_path / "zoo")
    assert groups(against, "leaks") == {("x", "far")}


def test_networks_with_turned_signs_are_copies(tmp_path: Path) -> None:
    arguments = {"channels": [1, 6, 8], "kernels": [[3, 3], [2, 2]], "outputs": 10, "activation": "tanh"}
    known = Architecture("tanh@digits", "small_cnn", (1, 8, 8), "prepkit.families.small_cnn:SmallCNN", arguments, {})
    torch.manual_seed(0)
    one, two = (known.build().state_dict() for _ in range(2))
    with ZooWriter(tmp_path / "zoo") as writer:
        for id_, tensors in {"one": one, "turned": scaled(one, 1, signs=True), "two": two}.items():
            writer.add(tensors, architecture=known, id=id_)
        siren = architecture("sine_mlp@sdf_small").build()
        writer.add(siren, architecture="sine_mlp@sdf_small", id="sine")
        with torch.no_grad():  # sin(-x) = -sin(x), and sin(x + pi) = -sin(x)
            hidden, after = siren.hidden[0], siren.hidden[1]
            hidden.weight[0] *= -1
            hidden.bias[0] *= -1
            hidden.bias[1] += math.pi / siren.omega
            after.weight[:, :2] *= -1
        writer.add(siren, architecture="sine_mlp@sdf_small", id="shifted")
    assert groups(audit(tmp_path / "zoo"), "near-duplicates") == {("one", "turned"), ("sine", "shifted")}


def test_comparisons_of_forms_come_to_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three groups of copies one pair is compared, and the audit says so."""
    networks = {f"{seed} {copy}": scaled(drawn(seed), copy) for seed in range(3) for copy in range(2)}
    root = zoo_of(tmp_path / "zoo", networks)
    assert audit(root).counts["near-duplicates"] == 6
    monkeypatch.setattr(_copies, "MAX_FORMS", 1)
    found = audit(root)
    assert found.counts["near-duplicates"] == 2
    assert any("only 1 were compared with other signs and scales" in sentence for sentence in found.unchecked)


def test_balanced_scales_have_the_least_norm() -> None:
    """An optimiser that knows nothing of symmetries finds the same least norm over the scales of two hidden layers."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.LeakyReLU(0.1), nn.Linear(5, 2)).double()
    standing = Standing(symmetries(network.float(), torch.randn(2, 3)))
    network.double()
    tensors = {name: tensor.detach()[None] for name, tensor in network.state_dict().items()}
    found = {name: tensor[0] for name, tensor in balanced(standing, tensors).items()}
    first, second, third = (network[place].requires_grad_(False) for place in (0, 2, 4))

    def squares(logs: np.ndarray) -> float:
        a, b = torch.from_numpy(np.exp(logs[:4])), torch.from_numpy(np.exp(logs[4:]))
        parts = [
            first.weight * a[:, None], first.bias * a, second.weight * b[:, None] / a, second.bias * b,
            third.weight / b, third.bias,
        ]  # fmt: skip
        return sum(float(part.square().sum()) for part in parts)

    least = minimize(squares, np.zeros(9), method="BFGS", options={"gtol": 1e-8}).fun
    assert norm(found) ** 2 == pytest.approx(least, rel=1e-6)
    assert norm(found) < norm(dict(network.state_dict()))
    inputs = torch.randn(7, 3, dtype=torch.float64)
    before = network(inputs)
    network.load_state_dict(found)
    torch.testing.assert_close(network(inputs), before)
