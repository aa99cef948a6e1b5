"""Any sequence of modules folds exactly, or says why not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fusion_samples import assert_unchanged, batch_norms, conv, in_float64, net, noise, norm, randomised, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prepkit.fusion.fold import UnfoldableNetwork, fold

PASSES = {"identity": nn.Identity, "dropout": nn.Dropout}
BLOCKS: dict[str, Callable[[], nn.Module]] = {
    **PASSES,
    "conv": conv,
    "depthwise": lambda: nn.Conv2d(4, 8, 1, groups=4, bias=False),
    "halve": lambda: nn.Conv2d(8, 4, 1, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(4, 4, 3, padding=1, groups=2),
    "norm": norm,
    "plain norm": lambda: norm(affine=False, eps=0.1),
    "no statistics": lambda: norm(track_running_stats=False),
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "residual": lambda: net(lambda n, x: x + n.bn(n.conv(x))),
    "reads twice": lambda: net(lambda n, x: n.bn(y := n.conv(x)) + y),
    "linear": lambda: net(lambda n, x: n.bn(n.fc(x.mean((2, 3))))[:, :, None, None] + x, "", **linear_pair()),
}


def linear_pair() -> dict[str, nn.Module]:
    return {"fc": nn.Linear(4, 4), "bn": nn.BatchNorm1d(4)}


def expected_folds(names: list[str]) -> list[str]:
    """Which BatchNorms of a sequence fold, by a rule that looks at nothing but the names."""
    folds, layer_before = [], False
    for index, name in enumerate(names):
        is_norm = name in ("norm", "plain norm")
        following = next((other for other in names[index:] if other not in (*PASSES, "norm", "plain norm")), None)
        if is_norm and (layer_before or following in ("depthwise", "halve")):
            folds.append(str(index))
        elif name in ("residual", "linear"):
            folds.append(f"{index}.bn")
        if name not in PASSES:
            layer_before = name in ("conv", "transposed", "halve") or (is_norm and layer_before)
    return folds


@st.composite
def sequences(draw: st.DrawFn) -> list[str]:
    names: list[str] = []
    for name in draw(st.lists(st.sampled_from([*BLOCKS, "norm", "conv", "norm"]), min_size=1, max_size=7)):
        names += {"depthwise": ["depthwise", "halve"], "halve": []}.get(name, [name])
    return names


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(names=sequences(), seed=st.integers(0, 2**16), training=st.booleans())
def test_any_sequence_folds_exactly_or_says_why_not(names, seed, training):
    network = randomised(nn.Sequential(*(BLOCKS[name]() for name in names)), seed).train(training)
    before = snapshot(network)
    x = noise(2, 4, 5, 5)
    result = fold(network, x, keep_unfoldable=True)
    assert_unchanged(network, before)
    assert {pair.batch_norm for pair in result.folded} == set(expected_folds(names))
    assert sorted(refusal.batch_norm for refusal in result.kept) == sorted(batch_norms(result.network))
    assert len(result.kept) + len(result.folded) == len(batch_norms(network))
    expected, found = in_float64(network, x.double()), in_float64(result.network, x.double())
    assert float((expected - found).abs().max() / max(expected.abs().max(), 1e-9)) < 1e-4
    if result.kept:
        with pytest.raises(UnfoldableNetwork) as caught_error:
            fold(network, x)
        assert caught_error.value.refusals == result.kept
        assert_unchanged(network, before)
    if "no statistics" not in names:
        affine = fold(network, x, keep_unfoldable="affine")
        assert {refusal.batch_norm for refusal in affine.affine} == {refusal.batch_norm for refusal in result.kept}
        assert not any("running" in name for name in affine.network.state_dict())
        found = in_float64(affine.network, x.double())
        assert float((expected - found).abs().max() / max(expected.abs().max(), 1e-9)) < 1e-4
